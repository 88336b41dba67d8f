//! Amazon ECR as its users have it, on a fake with ECR's ways in front of a real registry.

use std::collections::BTreeSet;

use http::header::AUTHORIZATION;
use serde_json::{Value, json};

use crate::support::ecr::HOME;
use crate::support::image::unique;
use crate::support::scripted::{Answer, Scripted};
use crate::support::*;

const MIB: usize = 1024 * 1024;
pub const OTHER: &str = "210987654321";

/// The environment of a build with an IAM identity.
pub fn with_identity(ferry: Ferry, sts: &Ecr) -> Ferry {
    ferry
        .with_env("AWS_ACCESS_KEY_ID", "AKIDBUILDER")
        .with_env("AWS_SECRET_ACCESS_KEY", "secret-of-the-builder")
        .with_env("AWS_REGION", "eu-west-1")
        .with_env("AWS_ENDPOINT_URL_STS", &sts.url())
        .with_env("AWS_EC2_METADATA_DISABLED", "true")
}

/// A pipeline's build on one ECR.
pub fn pipeline(ecr: &Ecr) -> Ferry {
    with_identity(Ferry::bare(), ecr)
        .with_env("DOCKER_REG", ecr.address())
        .with_env("AWS_ENDPOINT_URL_ECR", &ecr.url())
        .with_env("STAGING_IMAGE_NAME", "staging-demo-app")
        .with_env("PROD_IMAGE_NAME", "prod-demo-app")
}

pub async fn demo() -> Ecr {
    let ecr = Ecr::start(HOME).await;
    ecr.create("staging-demo-app").create("prod-demo-app");
    ecr
}

pub fn keys(ecr: &Ecr, account: &str) -> Value {
    json!({"auth": "ecr", "kind": "ecr", "region": "eu-west-1", "account": account, "ecr_endpoint": ecr.url()})
}

pub fn merged(mut base: Value, more: Value) -> Value {
    base.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    base
}

/// Staging and production in one account.
pub fn one_account(ecr: &Ecr, route: Value) -> Config {
    let base = Config::new()
        .registry_with("staging", &ecr.url(), keys(ecr, HOME))
        .registry_with("production", &ecr.url(), keys(ecr, HOME));
    base.raw_route(merged(
        json!({"name": "app", "from": "staging/staging-demo-app", "to": "production/prod-demo-app", "tags": {"include": ["*"]}}),
        route,
    ))
}

pub fn platforms() -> Image {
    Image::index(&[Image::oci(1, &[1000]), Image::oci(2, &[2000])])
}

#[tokio::test]
async fn the_five_variables_of_the_pipeline_step_are_enough() {
    let ecr = demo().await;
    let image = platforms();
    ecr.client()
        .push("staging-demo-app", "latest", &image)
        .await;
    let ferry = pipeline(&ecr);
    let definitions = ferry.path("imagedefinitions.json");
    let run = ferry
        .run(&[
            "promote",
            "--imagedefinitions",
            &definitions.display().to_string(),
            "--container",
            "prod-demo-app=web",
        ])
        .await
        .expect(0);
    ecr.client()
        .assert_holds("prod-demo-app", "latest", &image)
        .await;
    let written: Value = serde_json::from_slice(&std::fs::read(definitions).unwrap()).unwrap();
    assert_eq!(
        written,
        json!([{"name": "web", "imageUri": format!("{}/prod-demo-app@{}", ecr.address(), image.digest())}])
    );
    assert_eq!(
        ecr.count("GetAuthorizationToken"),
        1,
        "one identity has one token"
    );
    assert!(!run.said().contains("secret-of-the-builder"));
    ferry.run(&["promote"]).await.expect(0);
}

#[tokio::test]
async fn every_tag_and_several_images_are_promoted() {
    let ecr = demo().await;
    ecr.create("staging-b").create("prod-b");
    let (old, new, other) = (
        Image::oci(1, &[900]),
        Image::oci(2, &[800]),
        Image::docker(3, &[700]),
    );
    ecr.client().push("staging-demo-app", "v1", &old).await;
    ecr.client().push("staging-demo-app", "latest", &new).await;
    ecr.client().push("staging-b", "v9", &other).await;
    let ferry = pipeline(&ecr)
        .with_env("STAGING_IMAGE_NAME", "staging-demo-app,staging-b")
        .with_env("PROD_IMAGE_NAME", "prod-demo-app,prod-b")
        .with_env("IMAGE_TAG", "*");
    let run = ferry.run(&["promote", "--json"]).await.expect(0);
    assert_eq!(run.total("promoted"), 3);
    ecr.client().assert_holds("prod-demo-app", "v1", &old).await;
    ecr.client()
        .assert_holds("prod-demo-app", "latest", &new)
        .await;
    ecr.client().assert_holds("prod-b", "v9", &other).await;
    ecr.forget_log();
    let again = ferry.run(&["promote", "--json"]).await.expect(0);
    assert_eq!(again.total("up_to_date"), 3);
    assert_eq!(
        ecr.actions(),
        BTreeSet::from(["DescribeImages".into(), "GetAuthorizationToken".into()])
            .into_iter()
            .filter(|action: &String| action == "DescribeImages")
            .collect()
    );
}

#[tokio::test]
async fn a_wrong_expectation_names_nothing() {
    let ecr = demo().await;
    let image = platforms();
    ecr.client()
        .push("staging-demo-app", "latest", &image)
        .await;
    let other = Image::oci(9, &[1]);
    pipeline(&ecr)
        .with_env("IMAGE_DIGEST", other.digest())
        .run(&["promote"])
        .await
        .expect(4);
    pipeline(&ecr)
        .run(&["promote", "--expect", other.digest()])
        .await
        .expect(4);
    assert_eq!(ecr.client().digest("prod-demo-app", "latest").await, None);
    assert_eq!(ecr.count("PutImage"), 0);
    pipeline(&ecr)
        .with_env("IMAGE_DIGEST", image.digest())
        .run(&["promote"])
        .await
        .expect(0);
}

#[tokio::test]
async fn thousands_of_equal_tags_cost_a_page_for_each_thousand_from_the_first_look_on() {
    let ecr = demo().await;
    for repository in ["staging-demo-app", "prod-demo-app"] {
        ecr.invent_tags(repository, (0..3000).map(|number| format!("v{number}")));
    }
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    let build = pipeline(&ecr).with_env("IMAGE_TAG", "*");
    for look in ["the first look", "a later look", "a build"] {
        ecr.forget_log();
        let run = if look == "a build" {
            build.run(&["promote", "--json"]).await
        } else {
            ferry.sync(&[]).await
        };
        assert_eq!(run.expect(0).total("up_to_date"), 3000);
        for side in ["staging-demo-app", "prod-demo-app"] {
            let calls = ecr
                .log()
                .into_iter()
                .filter(|act| act.repository == side)
                .count();
            assert!(calls <= 6, "{calls} calls for {side} in {look}");
        }
        let actions = ecr.actions();
        let idle =
            |action: &String| action == "DescribeImages" || action == "GetAuthorizationToken";
        assert!(actions.iter().all(idle), "{look} used {actions:?}");
    }
}

#[tokio::test]
async fn one_tag_is_promoted_by_name_with_its_signatures_and_nothing_is_listed() {
    let ecr = demo().await;
    let image = platforms();
    ecr.client().push("staging-demo-app", "v7", &image).await;
    let signed = image.documents[0].digest.replace(':', "-");
    let (of_all, of_one) = (
        format!("{}.sig", image.digest().replace(':', "-")),
        format!("{signed}.att"),
    );
    let (signature, attestation) = (Image::oci(7, &[70]), Image::oci(8, &[80]));
    ecr.client()
        .push("staging-demo-app", &of_all, &signature)
        .await;
    ecr.client()
        .push("staging-demo-app", &of_one, &attestation)
        .await;
    let build = pipeline(&ecr).with_env("IMAGE_TAG", "v7");
    build.run(&["promote"]).await.expect(0);
    ecr.client()
        .assert_holds("prod-demo-app", "v7", &image)
        .await;
    ecr.client()
        .assert_holds("prod-demo-app", &of_all, &signature)
        .await;
    ecr.client()
        .assert_holds("prod-demo-app", &of_one, &attestation)
        .await;
    assert_eq!(
        ecr.count("DescribeImages") + ecr.count("ListImages"),
        0,
        "nothing is listed"
    );

    ecr.forget_log();
    let again = build.run(&["promote", "--json"]).await.expect(0);
    assert_eq!(again.total("up_to_date"), 1);
    assert_eq!(
        ecr.actions(),
        ["BatchGetImage".into(), "GetAuthorizationToken".into()].into()
    );
    // ECR names no digest: each tag that is there takes a HEAD, a GET and a HEAD by digest on each
    // side. The image is read once more, and four names are asked for on behalf of each of its
    // three manifests.
    assert!(
        ecr.count("BatchGetImage") <= 30,
        "{} requests for an image of two platforms",
        ecr.count("BatchGetImage")
    );
}

#[tokio::test]
async fn a_late_signature_shows_in_the_list_and_only_its_image_is_asked_about() {
    let ecr = demo().await;
    for repository in ["staging-demo-app", "prod-demo-app"] {
        ecr.invent_tags(repository, (0..200).map(|number| format!("v{number}")));
    }
    ecr.ways(|ways| ways.lists_referrers = true);
    let image = Image::oci(1, &[500]);
    let client = ecr.client();
    client.push("staging-demo-app", "signed", &image).await;
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    ferry.sync(&[]).await.expect(0);
    let (signature, attestation) = (
        Image::referrer(10, &image, "application/vnd.example.signature"),
        Image::oci(8, &[80]),
    );
    client.push_untagged("staging-demo-app", &signature).await;
    let beside = format!("{}.att", image.digest().replace(':', "-"));
    client.push("staging-demo-app", &beside, &attestation).await;
    let of_attestation = Image::referrer(11, &attestation, "application/vnd.example.signature");
    client
        .push_untagged("staging-demo-app", &of_attestation)
        .await;
    ecr.forget_log();
    assert_eq!(ferry.sync(&[]).await.expect(0).total("up_to_date"), 201);
    for late in [&signature, &of_attestation] {
        assert!(
            client
                .digest("prod-demo-app", late.digest())
                .await
                .is_some(),
            "{} is missing",
            late.digest()
        );
    }
    client
        .assert_holds("prod-demo-app", &beside, &attestation)
        .await;
    let asked = ecr.count("BatchGetImage");
    assert!(
        asked <= 20,
        "{asked} requests for one image of 201 that has news"
    );

    ecr.forget_log();
    assert_eq!(ferry.sync(&[]).await.expect(0).total("up_to_date"), 201);
    assert_eq!(ecr.count("BatchGetImage"), 0, "nothing has come");
}

#[tokio::test]
async fn without_the_permission_to_list_the_registry_is_asked_and_it_is_said_once() {
    let ecr = demo().await;
    let image = Image::oci(1, &[500]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    ecr.ways(|ways| ways.denied = ["DescribeImages", "GetAccountSetting"].into());
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    let run = ferry.sync(&[]).await.expect(0);
    ecr.client()
        .assert_holds("prod-demo-app", "v1", &image)
        .await;
    assert!(ecr.count("ListImages") > 0);
    let said = run
        .stderr
        .matches("a permission of the control plane is missing")
        .count();
    assert!(
        said <= 2,
        "once for each registry, not {said} times:\n{}",
        run.stderr
    );
    assert!(
        run.stderr
            .contains("user/builder is not authorized to perform: ecr:DescribeImages on resource"),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn wildcards_find_repositories_through_the_control_plane() {
    let ecr = Ecr::start(HOME).await;
    ecr.create("team/a")
        .create("team/b")
        .create("prod/team/a")
        .create("prod/team/b");
    let image = Image::oci(1, &[500]);
    ecr.client().push("team/a", "v1", &image).await;
    ecr.client().push("team/b", "v1", &image).await;
    let config = Config::new()
        .registry_with("staging", &ecr.url(), keys(&ecr, HOME))
        .registry_with("production", &ecr.url(), keys(&ecr, HOME));
    let config = config
        .raw_route(json!({"name": "all", "from": "staging/team/*", "to": "production/prod/team/{1}", "tags": {"include": ["*"]}}));
    let run = with_identity(Ferry::new(&config), &ecr)
        .sync(&[])
        .await
        .expect(0);
    assert_eq!(run.total("promoted"), 2);
    assert_eq!(ecr.count("DescribeRepositories"), 1);
    ecr.client().assert_holds("prod/team/b", "v1", &image).await;
}

#[tokio::test]
async fn two_accounts_are_entered_under_two_roles() {
    let (staging, production) = (Ecr::start(HOME).await, Ecr::start(OTHER).await);
    staging.create("app");
    production.create("app");
    staging.ways(|ways| ways.admitted = vec![format!("{HOME}:assumed-role/reader/")]);
    production.ways(|ways| ways.admitted = vec![format!("{OTHER}:assumed-role/promoter/")]);
    let image = platforms();
    staging.client().push("app", "v1", &image).await;
    let role = |account: &str, name: &str| json!({"role_arn": format!("arn:aws:iam::{account}:role/ci/{name}"), "external_id": "seven", "role_session_name": "build-7"});
    let demanded = json!({"identity": format!("arn:aws:iam::{OTHER}:role/ci/promoter")});
    let config = Config::new()
        .registry_with(
            "staging",
            &staging.url(),
            merged(keys(&staging, HOME), role(HOME, "reader")),
        )
        .registry_with(
            "production",
            &production.url(),
            merged(
                merged(keys(&production, OTHER), role(OTHER, "promoter")),
                demanded,
            ),
        )
        .route("app", json!({}));
    let ferry = with_identity(Ferry::new(&config), &staging);
    ferry.sync(&[]).await.expect(0);
    production.client().assert_holds("app", "v1", &image).await;
    assert_eq!(
        staging.principals(),
        [format!("arn:aws:sts::{HOME}:assumed-role/reader/build-7")].into()
    );
    assert_eq!(
        production.principals(),
        [format!(
            "arn:aws:sts::{OTHER}:assumed-role/promoter/build-7"
        )]
        .into()
    );
    assert_eq!(
        (
            staging.count("GetAuthorizationToken"),
            production.count("GetAuthorizationToken")
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn a_token_that_ends_in_mid_transfer_is_replaced() {
    let ecr = demo().await;
    let image = Image::oci(1, &[2 * MIB, 3000, 4000, 5000]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    ecr.ways(|ways| (ways.uses, ways.ends_once) = (Some(14), true));
    let run = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr)
        .sync(&[])
        .await;
    assert_eq!(run.code, 0, "{}", run.said());
    ecr.client()
        .assert_holds("prod-demo-app", "v1", &image)
        .await;
    assert_eq!(ecr.count("GetAuthorizationToken"), 2);
}

#[tokio::test]
async fn a_cut_upload_goes_on_where_ecr_stands() {
    let ecr = demo().await;
    let image = Image::oci(1, &[40 * MIB]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    ecr.ways(|ways| ways.cut = Some(25 * MIB as u64));
    let run = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr)
        .sync(&[])
        .await
        .expect(0);
    ecr.client()
        .assert_holds("prod-demo-app", "v1", &image)
        .await;
    assert_eq!(run.job("v1")["blobs"]["resumed"], 1);
}

#[tokio::test]
async fn mounts_are_used_where_the_account_has_them_and_missed_where_not() {
    let image = Image::oci(1, &[MIB, 3000]);
    for mounting in [true, false] {
        let ecr = demo().await;
        ecr.client().push("staging-demo-app", "v1", &image).await;
        ecr.ways(|ways| ways.mounting = mounting);
        let run = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr)
            .sync(&[])
            .await
            .expect(0);
        ecr.client()
            .assert_holds("prod-demo-app", "v1", &image)
            .await;
        let mounted = if mounting {
            unique(image.blobs.iter()).len()
        } else {
            0
        };
        assert_eq!(run.job("v1")["blobs"]["mounted"], mounted);
        assert_eq!(
            run.stderr.contains("put-account-setting"),
            !mounting,
            "{}",
            run.stderr
        );
    }
}

#[tokio::test]
async fn immutable_tags_are_equal_or_in_conflict_and_never_tried_again() {
    let ecr = Ecr::start(HOME).await;
    ecr.create("staging-demo-app")
        .create_with("prod-demo-app", json!({"imageTagMutability": "IMMUTABLE"}));
    let (old, new) = (Image::oci(1, &[500]), Image::oci(2, &[600]));
    ecr.client().push("staging-demo-app", "latest", &old).await;
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    ferry.sync(&[]).await.expect(0);
    assert_eq!(ferry.sync(&[]).await.expect(0).total("up_to_date"), 1);
    ecr.client().push("staging-demo-app", "latest", &new).await;
    ecr.forget_log();
    let run = ferry.sync(&[]).await.expect(4);
    assert_eq!(run.total("conflict"), 1);
    assert_eq!(
        ecr.log()
            .iter()
            .filter(|act| act.action == "PutImage")
            .count(),
        1,
        "the refusal is final"
    );
    ecr.client()
        .assert_holds("prod-demo-app", "latest", &old)
        .await;
}

#[tokio::test]
async fn a_missing_repository_is_created_only_when_the_route_says_so() {
    let ecr = Ecr::start(HOME).await;
    ecr.create("staging-demo-app");
    let image = Image::oci(1, &[500]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    let run = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr)
        .sync(&[])
        .await;
    assert_ne!(run.code, 0);
    assert!(
        run.said().contains("ecr:CreateRepository") && run.said().contains("create: template"),
        "{}",
        run.said()
    );
    assert_eq!(ecr.count("CreateRepository"), 0);
    ecr.ways(|ways| ways.create_on_push = true);
    with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr)
        .sync(&[])
        .await
        .expect(0);
    ecr.client()
        .assert_holds("prod-demo-app", "v1", &image)
        .await;
}

#[tokio::test]
async fn a_missing_repository_is_created_from_a_template_or_after_staging() {
    let ecr = Ecr::start(HOME).await;
    let model = json!({"imageTagMutability": "IMMUTABLE", "imageScanningConfiguration": {"scanOnPush": true}});
    ecr.create_with("staging-demo-app", model);
    ecr.set_policies("staging-demo-app", "{\"Statement\":[]}", "{\"rules\":[]}");
    let image = Image::oci(1, &[500]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    let config = |to: &str, more: Value| {
        one_account(
            &ecr,
            merged(json!({"to": format!("production/{to}")}), more),
        )
    };
    let template = json!({"create": "template", "template": {"immutable": true, "except": ["latest*"], "scan_on_push": true, "kms": true,
        "lifecycle_policy_file": "lifecycle.json", "resource_tags": {"team": "demo"}}});
    let ferry = with_identity(Ferry::bare(), &ecr);
    ferry.file("lifecycle.json", "{\"rules\": [1]}");
    ferry.write_config(&config("made", template));
    ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(ecr.settings("made"), None, "a dry run creates nothing");
    ferry.sync(&[]).await.expect(0);
    let made = ecr.settings("made").unwrap();
    assert_eq!(made["imageTagMutability"], "IMMUTABLE_WITH_EXCLUSION");
    assert_eq!(
        made["imageTagMutabilityExclusionFilters"][0]["filter"],
        "latest*"
    );
    assert_eq!(
        (
            &made["encryptionConfiguration"]["encryptionType"],
            &made["imageScanningConfiguration"]["scanOnPush"]
        ),
        (&json!("KMS"), &json!(true))
    );
    assert_eq!(
        (&made["tags"][0]["Key"], made["lifecycle"].as_str()),
        (&json!("team"), Some("{\"rules\": [1]}"))
    );
    ecr.client().assert_holds("made", "v1", &image).await;

    ferry.write_config(&config("cloned", json!({"create": "clone"})));
    ferry.sync(&[]).await.expect(0);
    let cloned = ecr.settings("cloned").unwrap();
    assert_eq!(cloned["imageTagMutability"], "IMMUTABLE");
    assert_eq!(
        (cloned["policy"].as_str(), cloned["lifecycle"].as_str()),
        (Some("{\"Statement\":[]}"), Some("{\"rules\":[]}"))
    );
    ecr.client().assert_holds("cloned", "v1", &image).await;
}

#[tokio::test]
async fn an_archived_image_says_so_and_holds_up_nothing() {
    let ecr = demo().await;
    let (archived, good) = (Image::oci(1, &[500]), Image::oci(2, &[600]));
    ecr.client().push("staging-demo-app", "v1", &archived).await;
    ecr.client().push("staging-demo-app", "v2", &good).await;
    ecr.archive("staging-demo-app", archived.digest());
    let run = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr)
        .sync(&[])
        .await
        .expect(1);
    assert_eq!((run.total("promoted"), run.total("failed")), (1, 1));
    assert!(
        run.job("v1")["error"]["text"]
            .as_str()
            .unwrap()
            .contains("is archived"),
        "{}",
        run.job("v1")
    );
}

#[tokio::test]
async fn an_image_that_is_restored_from_the_archive_is_promoted_without_a_restart() {
    let ecr = demo().await;
    let image = Image::oci(1, &[500]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    ecr.archive("staging-demo-app", image.digest());
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    let daemon = ferry.start_ready().await;
    let run = ferry.sync(&[]).await.expect(1);
    assert!(
        run.job("v1")["error"]["text"]
            .as_str()
            .unwrap()
            .contains("is archived"),
        "{}",
        run.stdout
    );
    ecr.restore("staging-demo-app", image.digest());
    assert_eq!(ferry.sync(&[]).await.expect(0).total("promoted"), 1);
    ecr.client()
        .assert_holds("prod-demo-app", "v1", &image)
        .await;
    drop(daemon);
}

#[tokio::test]
async fn a_repository_that_was_created_and_not_set_up_is_set_up_by_the_next_process() {
    let ecr = Ecr::start(HOME).await;
    ecr.create("staging-demo-app").create("theirs");
    ecr.client()
        .push("staging-demo-app", "v1", &Image::oci(1, &[500]))
        .await;
    let ferry = with_identity(Ferry::bare(), &ecr);
    ferry.file("lifecycle.json", "{\"rules\": [1]}");
    ferry.file("policy.json", "{\"Statement\": [2]}");
    let template = json!({"except": ["latest"], "lifecycle_policy_file": "lifecycle.json", "policy_file": "policy.json"});
    let config = |to: &str| {
        one_account(
            &ecr,
            json!({"to": format!("production/{to}"), "create": "template", "template": template}),
        )
    };
    for (to, by_hand) in [
        ("made", None),
        ("mended", Some("{\"Statement\": [\"a person's\"]}")),
    ] {
        ferry.write_config(&config(to));
        ecr.ways(|ways| ways.denied = ["SetRepositoryPolicy"].into());
        assert_ne!(ferry.sync(&[]).await.code, 0);
        let half = ecr.settings(to).unwrap();
        assert_eq!(
            (half["lifecycle"].as_str(), &half["policy"]),
            (Some("{\"rules\": [1]}"), &json!(null))
        );
        if let Some(policy) = by_hand {
            ecr.set_policies(to, policy, "{\"rules\": [1]}");
        }
        ecr.ways(|ways| ways.denied.clear());
        ferry.sync(&[]).await.expect(0);
        let policy = ecr.settings(to).unwrap()["policy"]
            .as_str()
            .map(str::to_owned);
        assert_eq!(
            policy.as_deref(),
            Some(by_hand.unwrap_or("{\"Statement\": [2]}")),
            "{to}"
        );
    }
    ferry.write_config(&config("theirs"));
    ferry.sync(&[]).await.expect(0);
    assert_eq!(
        ecr.settings("theirs").unwrap()["policy"],
        json!(null),
        "what we did not create is left as it is"
    );
}

#[tokio::test]
async fn no_second_sees_more_than_ten_manifests() {
    let ecr = demo().await;
    let children: Vec<Image> = (0..14).map(|seed| Image::oci(seed, &[50])).collect();
    ecr.client()
        .push("staging-demo-app", "v1", &Image::index(&children))
        .await;
    with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr)
        .sync(&[])
        .await
        .expect(0);
    assert_eq!(ecr.count("PutImage"), 15);
    assert!(
        ecr.most_in_a_second("PutImage") <= 10,
        "{} of the daemon in one second",
        ecr.most_in_a_second("PutImage")
    );

    ecr.forget_log();
    ecr.create("staging-small").create("prod-small");
    let base = Blob::layer(1, 900);
    for seed in 0..40 {
        let image = Image::of_layers(100 + seed, vec![base.clone()]);
        ecr.client()
            .push("staging-small", &format!("v{seed}"), &image)
            .await;
    }
    let pipeline = pipeline(&ecr)
        .with_env("STAGING_IMAGE_NAME", "staging-small")
        .with_env("PROD_IMAGE_NAME", "prod-small");
    let run = pipeline
        .with_env("IMAGE_TAG", "*")
        .run(&["promote", "--json"])
        .await
        .expect(0);
    assert_eq!((run.total("promoted"), ecr.count("PutImage")), (40, 40));
    assert!(
        ecr.most_in_a_second("PutImage") <= 10,
        "{} of a build in one second",
        ecr.most_in_a_second("PutImage")
    );
}

#[tokio::test]
async fn blobs_are_asked_about_together() {
    let ecr = demo().await;
    let image = Image::oci(1, &[10, 20, 30, 40, 50, 60, 70]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    ecr.client()
        .push("prod-demo-app", "v0", &Image::oci(9, &[5]))
        .await;
    with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr)
        .sync(&[])
        .await
        .expect(0);
    assert!(
        ecr.count("BatchCheckLayerAvailability") <= 3,
        "{}",
        ecr.count("BatchCheckLayerAvailability")
    );
}

#[tokio::test]
async fn promotion_may_be_a_tag_of_the_same_repository() {
    let ecr = Ecr::start(HOME).await;
    ecr.create("app");
    let (old, new) = (Image::oci(1, &[MIB]), Image::oci(2, &[600]));
    ecr.client().push("app", "v1", &old).await;
    ecr.client().push("app", "v2", &new).await;
    ecr.client().push("app", "rc", &new).await;
    let config = Config::new().registry_with("one", &ecr.url(), keys(&ecr, HOME)).raw_route(
        json!({"name": "app", "from": "one/app", "to": "one/app:prod-{tag}", "tags": {"include": ["*"], "exclude": ["rc"]}}),
    );
    let ferry = with_identity(Ferry::new(&config), &ecr);
    let run = ferry.sync(&[]).await.expect(0);
    assert_eq!((run.total("promoted"), run.total("excluded")), (2, 1));
    ecr.client().assert_holds("app", "prod-v1", &old).await;
    assert_eq!(ecr.count("CompleteLayerUpload"), 0, "only manifests move");
    let run = ferry.sync(&[]).await.expect(0);
    assert_eq!(
        (
            run.total("up_to_date"),
            run.total("promoted"),
            run.total("only_in_destination")
        ),
        (2, 0, 0)
    );
    assert_eq!(
        ecr.client().tags("app").await.len(),
        5,
        "what was named is no source"
    );
    ferry.write_config(
        &Config::new()
            .registry_with("one", &ecr.url(), keys(&ecr, HOME))
            .raw_route(json!({"name": "app", "from": "one/app", "to": "one/app:prod-{tga}", "tags": {"include": ["*"]}})),
    );
    ferry.run(&["check"]).await.expect(2);
}

#[tokio::test]
async fn a_check_warns_probes_and_creates_nothing() {
    let ecr = Ecr::start(HOME).await;
    ecr.create("staging-demo-app")
        .create("prod-demo-app")
        .create_with("throw-away", json!({"imageTagMutability": "IMMUTABLE"}));
    ecr.client()
        .push("staging-demo-app", "v1", &Image::oci(1, &[500]))
        .await;
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    let run = ferry
        .run(&[
            "check",
            "--online",
            "--probe-repository",
            "staging/throw-away",
        ])
        .await
        .expect(0);
    for words in [
        "user/builder",
        "blob mounting is off",
        "its tags are mutable",
        "reports 5242880, 5242880, 5242880",
        "its status says gone; a part in the wrong place says 15728640",
        "going on from there works",
        "refused: the tag is immutable",
        "no digest",
    ] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    ferry.write_config(&one_account(
        &ecr,
        json!({"to": "production/absent", "create": "clone"}),
    ));
    let run = ferry.run(&["check", "--online"]).await.expect(0);
    assert!(
        run.stdout.contains("the first promotion creates it"),
        "{}",
        run.stdout
    );
    assert_eq!(ecr.settings("absent"), None);
}

/// Beside an emulator's control plane any host on loopback counts as ECR, one that is nothing of
/// the kind among them.
#[tokio::test]
async fn a_host_that_the_emulator_rule_takes_for_ecr_gets_the_token_only_after_it_asks() {
    let ecr = demo().await;
    let image = Image::oci(1, &[1000]);
    for asks in [false, true] {
        ecr.forget_log();
        let host = Scripted::start();
        host.push("staging-demo-app", "latest", &image);
        host.on(
            move |asked| match asked.headers.contains_key(AUTHORIZATION) {
                false if asks => {
                    let challenge = "Basic realm=\"https://elsewhere.test/\",service=\"other\"";
                    Answer::Reply(Reply::status(401).header("www-authenticate", challenge))
                }
                _ => Answer::Pass,
            },
        );
        let address = host.url().replace("http://", "");
        let ferry = pipeline(&ecr).with_env("DOCKER_REG", &address);
        ferry.run(&["promote"]).await.expect(0);
        assert_eq!(
            host.tagged("prod-demo-app", "latest").as_deref(),
            Some(image.digest())
        );
        let shown = host
            .log()
            .iter()
            .filter(|record| record.headers.contains_key(AUTHORIZATION))
            .count();
        assert_eq!(shown > 0, asks, "{:#?}", host.log());
        assert_eq!(ecr.count("GetAuthorizationToken"), usize::from(asks));
        let first = &host.log()[0];
        assert!(!first.headers.contains_key(AUTHORIZATION), "{first:?}");
    }
}
