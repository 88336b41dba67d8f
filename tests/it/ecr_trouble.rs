//! What goes wrong with ECR: each is a clear error that names the principal, the action and the resource, and nothing is written.

use serde_json::json;

use crate::ecr::{OTHER, demo, keys, merged, one_account, pipeline, with_identity};
use crate::support::ecr::HOME;
use crate::support::*;

#[tokio::test]
async fn nothing_is_written_as_somebody_else_or_into_another_account() {
    let ecr = demo().await;
    ecr.client().push("staging-demo-app", "v1", &Image::oci(1, &[500])).await;
    let somebody = json!({"identity": format!("arn:aws:iam::{OTHER}:role/promoter")});
    let config = Config::new()
        .registry_with("staging", &ecr.url(), keys(&ecr, HOME))
        .registry_with("production", &ecr.url(), merged(keys(&ecr, HOME), somebody))
        .raw_route(json!({"name": "app", "from": "staging/staging-demo-app", "to": "production/prod-demo-app", "tags": {"include": ["*"]}}));
    let run = with_identity(Ferry::new(&config), &ecr).sync(&[]).await.expect(3);
    assert!(run.said().contains("user/builder") && run.said().contains("role/promoter"), "{}", run.said());
    assert_eq!((ecr.count("InitiateLayerUpload"), ecr.count("PutImage")), (0, 0));

    let host = format!("https://{HOME}.dkr.ecr.eu-west-1.amazonaws.com");
    let config = Config::new().registry_with("staging", &host, json!({"account": OTHER})).registry("production", &host);
    let run = Ferry::new(&config.route("app", json!({}))).run(&["check"]).await.expect(2);
    assert!(run.stderr.contains(OTHER) && run.stderr.contains(HOME), "{}", run.stderr);
}

/// What goes wrong with identities: each with its words, exit code 3, and nothing written.
#[tokio::test]
async fn credentials_that_do_not_work_are_named() {
    for (code, words) in [
        ("ExpiredTokenException", "have expired"),
        ("UnrecognizedClientException", "does not accept the credentials"),
        ("InvalidSignatureException", "does not accept the credentials"),
    ] {
        let ecr = demo().await;
        ecr.ways(|ways| ways.refuses = Some(code));
        let run = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr).sync(&[]).await.expect(3);
        assert!(run.said().contains(words) && run.said().contains("eu-west-1"), "{code}: {}", run.said());
        assert!(!run.said().contains("secret-of-the-builder"));
    }
    let ecr = demo().await;
    let closed = json!({"role_arn": format!("arn:aws:iam::{OTHER}:role/closed")});
    let config = Config::new()
        .registry_with("staging", &ecr.url(), merged(keys(&ecr, HOME), closed))
        .registry_with("production", &ecr.url(), keys(&ecr, HOME))
        .raw_route(json!({"from": "staging/staging-demo-app", "to": "production/prod-demo-app", "tags": {"include": ["*"]}}));
    let run = with_identity(Ferry::new(&config), &ecr).sync(&[]).await.expect(3);
    assert!(run.said().contains("sts:AssumeRole") && run.said().contains("role/closed"), "{}", run.said());
}

#[tokio::test]
async fn a_single_action_that_is_denied_names_principal_action_and_resource() {
    for action in [
        "BatchGetImage",
        "GetDownloadUrlForLayer",
        "InitiateLayerUpload",
        "CompleteLayerUpload",
        "PutImage",
        "GetAuthorizationToken",
    ] {
        let ecr = demo().await;
        ecr.client().push("staging-demo-app", "v1", &Image::oci(1, &[500])).await;
        ecr.ways(|ways| ways.denied = [action].into());
        let run = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr).sync(&[]).await.expect(3);
        let text = run.said();
        assert!(
            text.contains("user/builder") && text.contains(&format!("ecr:{action}")) && text.contains("arn:aws:ecr"),
            "{action}: {text}"
        );
        assert_eq!(ecr.client().digest("prod-demo-app", "v1").await, None);
    }
}

#[tokio::test]
async fn a_control_plane_that_is_away_holds_up_nothing_else() {
    let ecr = demo().await;
    let image = Image::oci(1, &[500]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let away = merged(keys(&ecr, HOME), json!({"ecr_endpoint": nobody}));
    let config = one_account(&ecr, json!({})).registry_with("away", &ecr.url(), away);
    let config =
        config.raw_route(json!({"name": "away", "from": "away/other", "to": "production/elsewhere", "tags": {"include": ["*"]}}));
    let run = with_identity(Ferry::new(&config), &ecr).sync(&[]).await.expect(1);
    assert_eq!(run.total("promoted"), 1);
    ecr.client().assert_holds("prod-demo-app", "v1", &image).await;
    assert!(run.said().contains("ecr:") && run.said().contains("away"), "{}", run.said());
}

/// The first requests for every action of both planes are throttled while a build promotes two repositories.
#[tokio::test]
async fn a_storm_on_both_planes_fails_no_job() {
    let ecr = demo().await;
    ecr.create("staging-b").create("prod-b");
    let images = [("staging-demo-app", "v1"), ("staging-demo-app", "latest"), ("staging-b", "v1"), ("staging-b", "v2")];
    let images = images.map(|(repository, tag)| (repository, tag, Image::oci((repository.len() + tag.len()) as u64, &[500, 600])));
    for (repository, tag, image) in &images {
        ecr.client().push(repository, tag, image).await;
    }
    ecr.ways(|ways| (ways.storm, ways.calm_after) = (2, Some(2)));
    let build = pipeline(&ecr)
        .with_env("STAGING_IMAGE_NAME", "staging-demo-app,staging-b")
        .with_env("PROD_IMAGE_NAME", "prod-demo-app,prod-b")
        .with_env("IMAGE_TAG", "*");
    let run = build.run(&["promote", "--json"]).await.expect(0);
    assert_eq!((run.total("promoted"), run.total("failed")), (4, 0));
    for (repository, tag, image) in &images {
        ecr.client().assert_holds(&repository.replace("staging", "prod"), tag, image).await;
    }
    for action in ["GetAuthorizationToken", "DescribeImages", "BatchGetImage", "InitiateLayerUpload", "PutImage"] {
        assert!(ecr.count(action) >= 3, "{action} was throttled and tried again");
    }
}

/// A repository has been created, then AWS throttles what belongs to it: the next attempt finds the repository there.
#[tokio::test]
async fn a_repository_is_furnished_whatever_is_throttled_on_the_way() {
    let ecr = demo().await;
    ecr.client().push("staging-demo-app", "v1", &Image::oci(1, &[500])).await;
    let template = json!({"lifecycle_policy_file": "lifecycle.json", "policy_file": "policy.json"});
    let ferry = with_identity(Ferry::bare(), &ecr);
    ferry.file("lifecycle.json", "{\"rules\": []}");
    ferry.file("policy.json", "{\"Statement\": []}");
    ferry.write_config(&one_account(&ecr, json!({"to": "production/new", "create": "template", "template": template})));
    ecr.ways(|ways| (ways.storm, ways.calm_after) = (1, Some(1)));
    ecr.ways(|ways| ways.storm_on = ["CreateRepository", "PutLifecyclePolicy", "SetRepositoryPolicy"].into());
    ferry.sync(&[]).await.expect(0);
    let made = ecr.settings("new").unwrap();
    assert_eq!((made["lifecycle"].as_str(), made["policy"].as_str()), (Some("{\"rules\": []}"), Some("{\"Statement\": []}")));
}
