//! What goes wrong with ECR: each is a clear error that names the principal, the action and the
//! resource, and nothing is written.

use std::collections::BTreeSet;

use serde_json::json;

use crate::ecr::{OTHER, demo, keys, merged, one_account, pipeline, with_identity};
use crate::support::ecr::HOME;
use crate::support::*;

#[tokio::test]
async fn nothing_is_written_as_somebody_else_or_into_another_account() {
    let ecr = demo().await;
    ecr.client()
        .push("staging-demo-app", "v1", &Image::oci(1, &[500]))
        .await;
    let somebody = json!({"identity": format!("arn:aws:iam::{OTHER}:role/promoter")});
    let config = Config::new()
        .registry_with("staging", &ecr.url(), keys(&ecr, HOME))
        .registry_with("production", &ecr.url(), merged(keys(&ecr, HOME), somebody))
        .raw_route(json!({"name": "app", "from": "staging/staging-demo-app", "to": "production/prod-demo-app", "tags": {"include": ["*"]}}));
    let run = with_identity(Ferry::new(&config), &ecr)
        .sync(&[])
        .await
        .expect(3);
    assert!(
        run.said().contains("user/builder") && run.said().contains("role/promoter"),
        "{}",
        run.said()
    );
    assert_eq!(
        (ecr.count("InitiateLayerUpload"), ecr.count("PutImage")),
        (0, 0)
    );

    let host = format!("https://{HOME}.dkr.ecr.eu-west-1.amazonaws.com");
    let config = Config::new()
        .registry_with("staging", &host, json!({"account": OTHER}))
        .registry("production", &host);
    let run = Ferry::new(&config.route("app", json!({})))
        .run(&["check"])
        .await
        .expect(2);
    assert!(
        run.stderr.contains(OTHER) && run.stderr.contains(HOME),
        "{}",
        run.stderr
    );
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
    let run = with_identity(Ferry::new(&config), &ecr)
        .sync(&[])
        .await
        .expect(1);
    assert_eq!(run.total("promoted"), 1);
    ecr.client()
        .assert_holds("prod-demo-app", "v1", &image)
        .await;
    assert!(
        run.said().contains("ecr:") && run.said().contains("away"),
        "{}",
        run.said()
    );
}

/// The first requests for every action of both planes are throttled while a build promotes two
/// repositories.
#[tokio::test]
async fn a_storm_on_both_planes_fails_no_job() {
    let ecr = demo().await;
    ecr.create("staging-b").create("prod-b");
    let images = [
        ("staging-demo-app", "v1"),
        ("staging-demo-app", "latest"),
        ("staging-b", "v1"),
        ("staging-b", "v2"),
    ];
    let images = images.map(|(repository, tag)| {
        (
            repository,
            tag,
            Image::oci((repository.len() + tag.len()) as u64, &[500, 600]),
        )
    });
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
        ecr.client()
            .assert_holds(&repository.replace("staging", "prod"), tag, image)
            .await;
    }
    for action in [
        "GetAuthorizationToken",
        "DescribeImages",
        "BatchGetImage",
        "InitiateLayerUpload",
        "PutImage",
    ] {
        assert!(
            ecr.count(action) >= 3,
            "{action} was throttled and tried again"
        );
    }
}

/// A repository has been created, then AWS throttles what belongs to it: the next attempt finds the
/// repository there.
#[tokio::test]
async fn a_repository_is_furnished_whatever_is_throttled_on_the_way() {
    let ecr = demo().await;
    ecr.client()
        .push("staging-demo-app", "v1", &Image::oci(1, &[500]))
        .await;
    let template = json!({"except": ["latest"], "lifecycle_policy_file": "lifecycle.json", "policy_file": "policy.json"});
    let ferry = with_identity(Ferry::bare(), &ecr);
    ferry.file("lifecycle.json", "{\"rules\": []}");
    ferry.file("policy.json", "{\"Statement\": []}");
    ferry.write_config(&one_account(
        &ecr,
        json!({"to": "production/new", "create": "template", "template": template}),
    ));
    ecr.ways(|ways| (ways.storm, ways.calm_after) = (1, Some(1)));
    ecr.ways(|ways| {
        ways.storm_on = [
            "CreateRepository",
            "PutLifecyclePolicy",
            "SetRepositoryPolicy",
        ]
        .into()
    });
    ferry.sync(&[]).await.expect(0);
    let made = ecr.settings("new").unwrap();
    assert_eq!(
        (made["lifecycle"].as_str(), made["policy"].as_str()),
        (Some("{\"rules\": []}"), Some("{\"Statement\": []}"))
    );
}

const BUILDER: &str = "arn:aws:iam::123456789012:user/builder";
const STAGING: &str = "arn:aws:ecr:eu-west-1:123456789012:repository/staging-demo-app";
const PRODUCTION: &str = "arn:aws:ecr:eu-west-1:123456789012:repository/prod-demo-app";

/// What went wrong, once for each cause: the troubles of the report and of its jobs, without
/// addresses and digests.
fn wrong(run: &Run, ecr: &Ecr) -> Vec<String> {
    let report = run.report();
    let jobs = report["jobs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|job| &job["error"]["text"]);
    let texts = report["trouble"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(jobs)
        .filter_map(|text| text.as_str());
    let digest = regex::Regex::new("sha256:[0-9a-f]{64}").expect("a pattern");
    let masked = |text: &str| {
        digest
            .replace_all(&text.replace(ecr.address(), "HOST"), "DIGEST")
            .into_owned()
    };
    texts
        .map(masked)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Nothing that opens a door was said.
pub fn assert_discreet(said: &str) {
    for secret in [
        "secret-of",
        "token-of-the-session",
        "-for-arn:",
        "QVdTO",
        "Authorization:",
    ] {
        assert!(!said.contains(secret), "{secret} was said:\n{said}");
    }
}

/// An ECR whose staging repository holds an image under `latest`.
async fn with_an_image() -> Ecr {
    let ecr = demo().await;
    ecr.client()
        .push("staging-demo-app", "latest", &Image::oci(1, &[500]))
        .await;
    ecr
}

/// `promote` there ends with 3 and says exactly this; nothing is written.
async fn promotion_is_refused(ecr: &Ecr, text: &str) {
    let run = pipeline(ecr).run(&["promote", "--json"]).await.expect(3);
    assert_eq!(wrong(&run, ecr), [text]);
    assert_discreet(&run.said());
    assert_eq!(ecr.client().digest("prod-demo-app", "latest").await, None);
}

/// AWS does not say whom it does not know: the id of the access key does.
#[tokio::test]
async fn credentials_that_do_not_work_are_named() {
    let call = "credentials of source: ecr:GetAuthorizationToken in eu-west-1 for HOST as access key AKIDBUILDER";
    for (code, words) in [
        (
            "ExpiredTokenException",
            "The security token included in the request is expired; the AWS credentials have expired: renew them",
        ),
        (
            "UnrecognizedClientException",
            "The security token included in the request is invalid; AWS does not accept the credentials: check the keys, the profile and this machine's clock",
        ),
        (
            "InvalidSignatureException",
            "Credential should be scoped to a valid region; the endpoint is one of another region: check `region` and `ecr_endpoint`",
        ),
    ] {
        let ecr = demo().await;
        ecr.ways(|ways| ways.refuses = Some(code));
        promotion_is_refused(&ecr, &format!("{call}: {code}: {words}")).await;
    }
}

#[tokio::test]
async fn a_single_action_that_is_denied_names_principal_action_and_resource() {
    let read = "read the manifest at source (HOST/staging-demo-app:latest)";
    let blob = "source → destination: blob DIGEST of HOST/staging-demo-app:latest";
    let there = "at destination (HOST/prod-demo-app@DIGEST)";
    for (action, doing, resource) in [
        ("BatchGetImage", read.to_owned(), STAGING),
        (
            "GetDownloadUrlForLayer",
            format!("{blob}: read the blob at source (HOST/staging-demo-app@DIGEST)"),
            STAGING,
        ),
        (
            "InitiateLayerUpload",
            format!("{blob}: open an upload {there}"),
            PRODUCTION,
        ),
        (
            "UploadLayerPart",
            format!("{blob}: close the upload {there}"),
            PRODUCTION,
        ),
        (
            "CompleteLayerUpload",
            format!("{blob}: close the upload {there}"),
            PRODUCTION,
        ),
        (
            "PutImage",
            "write the manifest at destination (HOST/prod-demo-app:latest)".to_owned(),
            PRODUCTION,
        ),
    ] {
        let ecr = with_an_image().await;
        ecr.ways(|ways| ways.denied = [action].into());
        let denied = format!(
            "403 DENIED: User: {BUILDER} is not authorized to perform: ecr:{action} on resource: {resource}"
        );
        promotion_is_refused(
            &ecr,
            &format!("{doing}: {denied}; allow it (`blobferry iam` prints what is needed)"),
        )
        .await;
    }
    let ecr = with_an_image().await;
    ecr.ways(|ways| ways.denied = ["GetAuthorizationToken"].into());
    let denied = format!(
        "AccessDeniedException: User: {BUILDER} is not authorized to perform: ecr:GetAuthorizationToken on resource: *"
    );
    let call = "credentials of source: ecr:GetAuthorizationToken in eu-west-1 for HOST";
    let text = format!(
        "{call}: {denied}; allow ecr:GetAuthorizationToken there (`blobferry iam` prints what is needed)"
    );
    promotion_is_refused(&ecr, &text).await;
}

/// The production repository's policy lets staging's account read, and nobody of it write.
#[tokio::test]
async fn a_repository_policy_that_allows_reading_only_is_told_as_such() {
    let ecr = with_an_image().await;
    ecr.ways(|ways| {
        ways.denied = [
            "InitiateLayerUpload",
            "UploadLayerPart",
            "CompleteLayerUpload",
            "PutImage",
        ]
        .into();
        ways.because = " because no resource-based policy allows the ecr:{action} action";
    });
    let doing = "source → destination: blob DIGEST of HOST/staging-demo-app:latest: open an upload at destination (HOST/prod-demo-app@DIGEST)";
    let denied = format!(
        "403 DENIED: User: {BUILDER} is not authorized to perform: ecr:InitiateLayerUpload on resource: {PRODUCTION}"
    );
    let why = "because no resource-based policy allows the ecr:InitiateLayerUpload action";
    let way_out = "the repository's policy in destination allows it to others only: add us there (`blobferry iam` prints it)";
    promotion_is_refused(&ecr, &format!("{doing}: {denied} {why}; {way_out}")).await;
}

/// A registry of another region, or of an account that never heard of us, refuses the token itself
/// and says little.
#[tokio::test]
async fn a_registry_that_refuses_the_token_is_told_with_who_asked_for_what() {
    let who = format!("ecr:BatchGetImage as {BUILDER} on {STAGING}");
    let region = "our token is one of eu-west-1, and opens no other region's registry";
    let invalid =
        r#"{"errors":[{"code":"DENIED","message":"Your Authorization Token is invalid."}]}"#;
    for (bars, words) in [
        (
            (401, "Not Authorized\n"),
            "read the manifest at source (HOST/staging-demo-app:latest): 401: Not Authorized; source does not accept the credentials; check them",
        ),
        (
            (403, invalid),
            "read the manifest at source (HOST/staging-demo-app:latest): 403 DENIED: Your Authorization Token is invalid.; the credentials for source lack this right; grant it",
        ),
        (
            (403, ""),
            "read the manifest at source (HOST/staging-demo-app:latest): 403 Forbidden; the credentials for source lack this right; grant it",
        ),
    ] {
        let ecr = with_an_image().await;
        ecr.ways(|ways| ways.bars = Some(bars));
        promotion_is_refused(&ecr, &format!("{who}: {words}; {region}")).await;
        assert!(
            ecr.count("GetAuthorizationToken") <= 2,
            "a token is replaced once"
        );
    }
}

#[tokio::test]
async fn a_role_that_cannot_be_assumed_says_whose_trust_is_missing() {
    let ecr = with_an_image().await;
    let role =
        json!({"role_arn": format!("arn:aws:iam::{OTHER}:role/closed"), "external_id": "seven"});
    let config = one_account(&ecr, json!({})).registry_with(
        "staging",
        &ecr.url(),
        merged(keys(&ecr, HOME), role),
    );
    let run = with_identity(Ferry::new(&config), &ecr)
        .sync(&[])
        .await
        .expect(3);
    let denied = format!(
        "AccessDenied: User: {BUILDER} is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::{OTHER}:role/closed"
    );
    let way_out = "let the role's trust policy name us (check `external_id`, too), and allow us sts:AssumeRole on it";
    let call = "route app: ecr:DescribeImages in eu-west-1 for staging (staging-demo-app)";
    assert_eq!(wrong(&run, &ecr), [format!("{call}: {denied}; {way_out}")]);
    assert!(
        !run.stderr.contains("aws_config"),
        "it is said once:\n{}",
        run.stderr
    );
    assert_discreet(&run.said());
}

#[tokio::test]
async fn an_account_that_is_not_the_registrys_is_told() {
    let ecr = with_an_image().await;
    let config =
        one_account(&ecr, json!({})).registry_with("staging", &ecr.url(), keys(&ecr, OTHER));
    let run = with_identity(Ferry::new(&config), &ecr)
        .sync(&[])
        .await
        .expect(1);
    let text = format!(
        "route app: HOST/staging-demo-app is there, but not in account {OTHER}, which `account` of staging names: mend it"
    );
    assert_eq!(wrong(&run, &ecr), [text]);
}

#[tokio::test]
async fn without_credentials_or_a_way_to_aws_the_text_says_what_is_missing() {
    let ecr = with_an_image().await;
    let run = Ferry::bare()
        .with_env("AWS_EC2_METADATA_DISABLED", "true")
        .with_env("AWS_REGION", "eu-west-1")
        .with_env("DOCKER_REG", ecr.address())
        .with_env("AWS_ENDPOINT_URL_ECR", &ecr.url())
        .with_env("STAGING_IMAGE_NAME", "staging-demo-app")
        .with_env("PROD_IMAGE_NAME", "prod-demo-app")
        .run(&["promote", "--json"])
        .await
        .expect(3);
    let text = wrong(&run, &ecr).remove(0);
    assert!(
        text.starts_with(
            "credentials of source: ecr:GetAuthorizationToken in eu-west-1 for HOST: "
        ),
        "{text}"
    );
    assert!(
        text.ends_with(
            "; give the process AWS credentials (instance or task role, environment, aws_profile), or set auth to something else"
        ),
        "{text}"
    );
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let run = pipeline(&ecr)
        .with_env("AWS_ENDPOINT_URL_ECR", &nobody)
        .run(&["promote", "--json"])
        .await
        .expect(1);
    let text = wrong(&run, &ecr).remove(0);
    assert!(
        text.contains("Connection refused")
            && text
                .ends_with("; check the way to AWS: network, proxy, VPC endpoints, `ecr_endpoint`"),
        "{text}"
    );
}

/// A lifecycle policy takes an image while it is read: nothing is named, the others go on, and a
/// push brings it again.
#[tokio::test]
async fn an_image_that_vanishes_in_mid_copy_is_named_nowhere() {
    let ecr = demo().await;
    let (goes, stays) = (Image::oci(1, &[500]), Image::oci(2, &[600]));
    ecr.create("staging-b").create("prod-b");
    ecr.client().push("staging-demo-app", "v1", &goes).await;
    ecr.client().push("staging-b", "v1", &stays).await;
    ecr.ways(|ways| ways.vanishes = Some(goes.blobs[1].digest.clone()));
    let other = json!({"name": "b", "from": "staging/staging-b", "to": "production/prod-b", "tags": {"include": ["*"]}});
    let ferry = with_identity(
        Ferry::new(&one_account(&ecr, json!({})).raw_route(other)),
        &ecr,
    );
    let run = ferry.sync(&[]).await;
    assert_eq!(
        ecr.client().digest("prod-demo-app", "v1").await,
        None,
        "{}",
        run.said()
    );
    ecr.client().assert_holds("prod-b", "v1", &stays).await;
    assert!(
        run.total("promoted") == 1 && run.total("failed") + run.total("gone") == 1,
        "{}",
        run.said()
    );
    let again = Image::oci(3, &[700]);
    ecr.client().push("staging-demo-app", "v1", &again).await;
    ferry.sync(&[]).await.expect(0);
    ecr.client()
        .assert_holds("prod-demo-app", "v1", &again)
        .await;
}

/// Pages come in no order, and a tag that moves meanwhile shows twice: then the tag itself is
/// asked.
#[tokio::test]
async fn unordered_pages_lose_no_tag_and_name_nothing_old() {
    let ecr = demo().await;
    let images: Vec<Image> = (0..9).map(|seed| Image::oci(seed, &[100])).collect();
    for (number, image) in images.iter().enumerate() {
        ecr.client()
            .push("staging-demo-app", &format!("v{number}"), image)
            .await;
    }
    ecr.client()
        .push("staging-demo-app", "latest", &images[7])
        .await;
    ecr.ways(|ways| {
        ways.page = 2;
        ways.shows_again = Some(("latest".into(), images[3].digest().into()));
    });
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    let run = ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), 10, "{}", run.stdout);
    for (number, image) in images.iter().enumerate() {
        assert_eq!(
            ecr.client()
                .digest("prod-demo-app", &format!("v{number}"))
                .await
                .as_deref(),
            Some(image.digest())
        );
    }
    assert_eq!(
        ecr.client()
            .digest("prod-demo-app", "latest")
            .await
            .as_deref(),
        Some(images[7].digest())
    );
    assert_eq!(ferry.sync(&[]).await.expect(0).total("up_to_date"), 10);
}

/// The last page shows `latest` once more, as it was before it moved.
#[tokio::test]
async fn promoting_every_tag_names_nothing_old_either() {
    let ecr = demo().await;
    let (old, new) = (Image::oci(1, &[100]), Image::oci(2, &[100]));
    ecr.client().push("staging-demo-app", "v1", &old).await;
    ecr.client().push("staging-demo-app", "latest", &new).await;
    ecr.ways(|ways| ways.shows_again = Some(("latest".into(), old.digest().into())));
    pipeline(&ecr)
        .with_env("IMAGE_TAG", "*")
        .run(&["promote"])
        .await
        .expect(0);
    ecr.client()
        .assert_holds("prod-demo-app", "latest", &new)
        .await;
}

/// For a while after our own write DescribeImages shows what was there before. It decides neither
/// drift nor equality.
#[tokio::test]
async fn a_list_that_is_behind_our_own_write_decides_nothing() {
    let ecr = demo().await;
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[100]));
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    ecr.client()
        .push("staging-demo-app", "latest", &first)
        .await;
    ferry.sync(&[]).await.expect(0);
    ecr.freeze_list("prod-demo-app");
    ecr.client()
        .push("staging-demo-app", "latest", &second)
        .await;
    assert_eq!(ferry.sync(&[]).await.expect(0).total("promoted"), 1);
    assert_eq!(
        ferry.sync(&[]).await.expect(0).total("up_to_date"),
        1,
        "the list shows the first, and that is no drift"
    );
    ecr.client()
        .push("staging-demo-app", "latest", &first)
        .await;
    assert_eq!(
        ferry.sync(&[]).await.expect(0).total("promoted"),
        1,
        "the list shows the first, and that is not equality"
    );
    ecr.client()
        .assert_holds("prod-demo-app", "latest", &first)
        .await;
}

#[tokio::test]
async fn a_public_registry_is_a_source_without_any_identity() {
    let (public, production) = (Registry::distribution3(), Ecr::start(HOME).await);
    production.create("mirror/alpine");
    let image = Image::oci(1, &[500]);
    Client::new(&public.url())
        .push("library/alpine", "v1", &image)
        .await;
    let config = Config::new()
        .registry_with("public", &public.url(), json!({"kind": "ecr-public", "auth": "anonymous"}))
        .registry_with("production", &production.url(), keys(&production, HOME))
        .raw_route(json!({"from": "public/library/alpine", "to": "production/mirror/alpine", "tags": {"include": ["*"]}}));
    with_identity(Ferry::new(&config), &production)
        .sync(&[])
        .await
        .expect(0);
    production
        .client()
        .assert_holds("mirror/alpine", "v1", &image)
        .await;
}
