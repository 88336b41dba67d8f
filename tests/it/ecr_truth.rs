//! What ECR and AWS's credential providers say is told as what it is: whose fault, whether another
//! try helps, and the way out.

use serde_json::{Value, json};

use crate::ecr::{OTHER, demo, keys, one_account, pipeline, with_identity};
use crate::support::ecr::HOME;
use crate::support::*;

/// A build whose credentials come from the profile `build` of this configuration alone.
fn of_profile(ecr: &Ecr, profile: &str) -> Ferry {
    let ferry = Ferry::bare();
    let config = ferry.file("aws-config", profile);
    ferry
        .with_env("AWS_CONFIG_FILE", &config)
        .with_env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .with_env("AWS_PROFILE", "build")
        .with_env("AWS_REGION", "eu-west-1")
        .with_env("AWS_EC2_METADATA_DISABLED", "true")
        .with_env("AWS_ENDPOINT_URL_STS", &ecr.url())
        .with_env("AWS_ENDPOINT_URL_ECR", &ecr.url())
        .with_env("DOCKER_REG", ecr.address())
        .with_env("STAGING_IMAGE_NAME", "staging-demo-app")
        .with_env("PROD_IMAGE_NAME", "prod-demo-app")
}

/// Expired sessions and failing credential programs were taken for network trouble: nine seconds of
/// retries, exit code 1, and advice about proxies.
#[tokio::test]
async fn credentials_that_no_provider_gives_are_authentication_and_name_the_way_out() {
    let ecr = demo().await;
    ecr.client()
        .push("staging-demo-app", "latest", &Image::oci(1, &[500]))
        .await;
    let sso = "[profile build]\nsso_session = corp\nsso_account_id = 123456789012\nsso_role_name = builder\n\
        [sso-session corp]\nsso_region = eu-west-1\nsso_start_url = https://corp.awsapps.example/start\n";
    for (profile, way_out) in [
        (
            "[profile build]\ncredential_process = /bin/false\n",
            "credential_process",
        ),
        (
            "[profile build]\ncredential_process = /bin/echo {}\n",
            "credential_process",
        ),
        (sso, "aws sso login"),
        (
            "[profile build]\nrole_arn = arn:aws:iam::123456789012:role/x\nsource_profile = absent\n",
            "AWS configuration",
        ),
        (
            "[profile build]\nrole_arn = arn:aws:iam::123456789012:role/x\nweb_identity_token_file = /no/such/token\n",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
        ),
    ] {
        let ferry = of_profile(&ecr, profile);
        let run = ferry.run(&["promote"]).await.expect(3);
        assert!(run.said().contains(way_out), "{profile}:\n{}", run.said());
        assert!(
            !run.said().contains("check the way to AWS"),
            "{profile}:\n{}",
            run.said()
        );
    }
    assert_eq!(ecr.count("GetAuthorizationToken"), 0);
}

#[tokio::test]
async fn what_the_control_plane_refuses_for_good_is_tried_once() {
    let ecr = demo().await;
    for tag in ["v1", "v2", "v3"] {
        ecr.client()
            .push(
                "staging-demo-app",
                tag,
                &Image::oci(u64::from(tag.as_bytes()[1]), &[500]),
            )
            .await;
    }
    for code in [
        "KmsException",
        "LimitExceededException",
        "InvalidParameterException",
    ] {
        ecr.ways(|ways| ways.refuses_action = Some(("CreateRepository", code)));
        let route = json!({"to": "production/new", "create": "template", "template": {"except": ["latest"]}});
        let ferry = with_identity(Ferry::new(&one_account(&ecr, route)), &ecr);
        ecr.forget_log();
        let run = ferry.sync(&[]).await.expect(1);
        assert_eq!(run.job("v1")["error"]["class"], "rejected", "{code}");
        assert!(run.said().contains(code), "{}", run.said());
        assert_eq!(ecr.count("CreateRepository"), 1, "{code}");
    }
}

#[tokio::test]
async fn settings_of_the_callers_account_say_nothing_about_anothers_registry() {
    let (staging, production) = (Ecr::start(HOME).await, Ecr::start(OTHER).await);
    staging.create("staging-demo-app");
    production.create("prod-demo-app");
    staging
        .client()
        .push("staging-demo-app", "v1", &Image::oci(1, &[500]))
        .await;
    let config = Config::new()
        .registry_with("staging", &staging.url(), keys(&staging, HOME))
        .registry_with("production", &production.url(), keys(&production, OTHER))
        .raw_route(json!({"name": "app", "from": "staging/staging-demo-app", "to": "production/prod-demo-app", "tags": {"include": ["*"]}}));
    let ferry = with_identity(Ferry::new(&config), &staging);
    ferry.sync(&[]).await.expect(0);
    ferry.run(&["check", "--online"]).await.expect(0);
    assert_eq!(
        production.count("GetAccountSetting"),
        0,
        "the caller is of another account"
    );
}

#[tokio::test]
async fn a_moving_tag_that_the_template_does_not_exempt_is_an_error_of_check() {
    let ecr = demo().await;
    let checked = async |template: Value, tags: Value| {
        let route = json!({"to": "production/new", "create": "template", "template": template, "tags": tags});
        Ferry::new(&one_account(&ecr, route)).run(&["check"]).await
    };
    let latest = json!({"include": ["latest", "v*"]});
    let refused = checked(json!({}), latest.clone()).await.expect(2);
    assert!(
        refused.stderr.contains("template.except") && refused.stderr.contains("\"latest\""),
        "{}",
        refused.stderr
    );
    checked(json!({}), json!({"include": ["*"], "moving": ["edge-*"]}))
        .await
        .expect(2);
    checked(json!({"except": ["latest"]}), latest.clone())
        .await
        .expect(0);
    checked(json!({"except": ["lat*"]}), latest.clone())
        .await
        .expect(0);
    checked(json!({"immutable": false}), latest).await.expect(0);
    checked(
        json!({"except": ["edge-*"]}),
        json!({"include": ["*"], "moving": ["edge-*"]}),
    )
    .await
    .expect(0);
    checked(json!({}), json!({"include": ["v*"]}))
        .await
        .expect(0);
    checked(json!({}), json!({"include": ["*"], "moving": []}))
        .await
        .expect(0);
}

/// The commands of the shipped buildspec, as CodeBuild runs them.
fn build_commands() -> Vec<String> {
    let path = format!(
        "{}/config/codepipeline/buildspec.yml",
        env!("CARGO_MANIFEST_DIR")
    );
    let spec: Value =
        serde_saphyr::from_str(&std::fs::read_to_string(path).expect("the buildspec"))
            .expect("YAML");
    let commands = spec["phases"]["build"]["commands"]
        .as_array()
        .expect("commands");
    commands
        .iter()
        .map(|command| command.as_str().expect("a command").to_owned())
        .collect()
}

#[tokio::test]
async fn the_shipped_buildspec_promotes_one_tag_and_every_tag() {
    let ecr = demo().await;
    for tag in ["latest", "v1"] {
        ecr.client()
            .push(
                "staging-demo-app",
                tag,
                &Image::oci(tag.len() as u64, &[500]),
            )
            .await;
    }
    for (asked, definitions) in [(None, true), (Some("*"), false)] {
        let mut ferry = pipeline(&ecr);
        if let Some(asked) = asked {
            ferry = ferry.with_env("IMAGE_TAG", asked);
        }
        for command in build_commands() {
            let code = ferry.shell(&command).await;
            assert_eq!(code, 0, "{asked:?}: {command}");
        }
        assert!(ferry.path("promotion/promotion.json").exists(), "{asked:?}");
        assert_eq!(
            ferry.path("promotion/imagedefinitions.json").exists(),
            definitions,
            "{asked:?}"
        );
    }
    assert!(ecr.client().digest("prod-demo-app", "v1").await.is_some());
}
