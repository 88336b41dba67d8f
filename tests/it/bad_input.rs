//! Registries that lie, stall and break off. Whatever they do: a clear error in bounded time,
//! nothing named, no corrupt blob finished, no credential on another host.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::token::Manner;
use crate::support::*;

const SAID_NOWHERE: &str = "hunter2";

/// How long a pass may take against peers that never answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// A stage with one image in staging, and what must be true after a failure.
struct Scene {
    stage: Stage,
    image: Image,
}

impl Scene {
    async fn new() -> Scene {
        Scene::with(Image::oci(1, &[80_000, 300])).await
    }

    async fn with(image: Image) -> Scene {
        let stage = Stage::new(Program::Distribution2).await;
        stage.push().push("app", "v1", &image).await;
        Scene { stage, image }
    }

    /// A pass that fails, though a peer never answers.
    async fn fails_in_time(&self) -> Run {
        let run = self.stage.ferry.run_within(PATIENCE, &["sync", "--json"]);
        run.await.expect(1)
    }

    fn layer(&self) -> &Blob {
        &self.image.blobs[1]
    }

    /// Breaks every reading of the layer.
    fn break_layer(&self, act: impl Into<Act>) {
        self.stage.source.rule(
            Rule::on(&[Kind::BlobGet])
                .path(&self.layer().digest)
                .act(act),
        );
    }

    /// Runs, expects this class of error about `registry`, and that production saw nothing of the
    /// tag and the layer.
    async fn fails(&self, class: &[&str], registry: &str) -> Run {
        let run = self.stage.sync().await;
        assert_ne!(run.code, 0, "{}", run.said());
        let error = first_error(&run);
        match error["class"].as_str() {
            Some(found) => assert!(class.contains(&found), "{error:#}"),
            // What kept a whole repository from being looked at has its class in the exit code.
            None => assert_eq!(run.code == 3, class.contains(&"auth"), "{error:#}"),
        }
        let text = error["text"].as_str().unwrap();
        assert_names(text, &[registry, "app"]);
        assert!(
            !text.contains("\n") && text.len() < 2100,
            "an error is one bounded line: {text}"
        );
        let layer = self.layer().digest.clone();
        self.stage
            .there()
            .assert_lacks("app", "v1", &[&layer])
            .await;
        run
    }
}

fn first_error(run: &Run) -> Value {
    let report = run.report();
    let jobs = report["jobs"]
        .as_array()
        .expect("a report has jobs")
        .clone();
    let error = jobs
        .iter()
        .map(|job| &job["error"])
        .find(|error| !error.is_null())
        .cloned();
    error
        .or_else(|| Some(json!({"text": report["trouble"].get(0)?})))
        .unwrap_or_else(|| panic!("no error in {report:#}\n{}", run.stderr))
}

#[track_caller]
fn assert_names(text: &str, things: &[&str]) {
    for thing in things {
        assert!(
            text.contains(thing),
            "the error does not name {thing}: {text}"
        );
    }
}

#[tokio::test]
async fn wrong_bytes_never_reach_production() {
    let scene = Scene::new().await;
    scene.break_layer(Act::FlipByte(40_000));
    let run = scene.fails(&["corrupt"], "staging").await.expect(1);
    assert_names(
        first_error(&run)["text"].as_str().unwrap(),
        &[&scene.layer().digest],
    );
    assert_eq!(
        scene
            .stage
            .source
            .of(&[Kind::BlobGet])
            .iter()
            .filter(|get| get.path.contains(&scene.layer().digest))
            .count(),
        2,
        "fetched afresh once"
    );
}

#[tokio::test]
async fn wrong_bytes_once_are_fetched_afresh() {
    let scene = Scene::new().await;
    let rule = Rule::on(&[Kind::BlobGet])
        .path(&scene.layer().digest)
        .times(1)
        .act(Act::FlipByte(40_000));
    scene.stage.source.rule(rule);
    scene.stage.sync().await.expect(0);
    scene
        .stage
        .there()
        .assert_holds("app", "v1", &scene.image)
        .await;
}

#[tokio::test]
async fn too_few_bytes_never_reach_production() {
    let scene = Scene::new().await;
    scene.break_layer(Act::Truncate(50_000));
    scene
        .fails(&["corrupt", "retryable"], "staging")
        .await
        .expect(1);
}

#[tokio::test]
async fn too_many_bytes_never_reach_production() {
    let scene = Scene::new().await;
    scene.break_layer(Act::Extend(10));
    scene.fails(&["corrupt"], "staging").await.expect(1);
}

#[tokio::test]
async fn bytes_that_end_early_every_time_end_the_job() {
    let scene = Scene::new().await;
    scene.break_layer(Act::CutAnswer(0, Cut::Reset));
    scene.fails(&["retryable"], "staging").await.expect(1);
}

#[tokio::test]
async fn a_wrong_part_is_not_taken_for_the_rest() {
    let scene = Scene::new().await;
    let layer = scene.layer().digest.clone();
    let on = || Rule::on(&[Kind::BlobGet]).path(&layer);
    scene
        .stage
        .source
        .rule(on().times(1).act(Act::CutAnswer(30_000, Cut::Fin)));
    scene
        .stage
        .source
        .rule(on().from(1).times(1).act(Act::Header(
            "content-range",
            Some("bytes 0-49999/80000".into()),
        )));
    let run = scene.stage.sync().await;
    if run.code == 0 {
        scene
            .stage
            .there()
            .assert_holds("app", "v1", &scene.image)
            .await;
    } else {
        scene
            .stage
            .there()
            .assert_lacks("app", "v1", &[&layer])
            .await;
    }
}

#[tokio::test]
async fn a_changed_manifest_never_reaches_production() {
    let scene = Scene::new().await;
    scene
        .stage
        .source
        .always(Kind::ManifestGet, Act::FlipByte(20));
    scene
        .fails(&["corrupt", "rejected"], "staging")
        .await
        .expect(1);
    assert_eq!(scene.stage.target.count(Kind::ManifestPut), 0);
}

#[tokio::test]
async fn a_manifest_of_other_bytes_than_its_digest_never_reaches_production() {
    let scene = Scene::with(Image::index(&[
        Image::oci(1, &[80_000]),
        Image::oci(2, &[10]),
    ]))
    .await;
    let other = Image::oci(3, &[10]);
    let reply = Reply::status(200).body(&other.root().media_type, other.root().bytes.clone());
    scene.stage.source.rule(
        Rule::on(&[Kind::ManifestGet])
            .path(&scene.image.documents[0].digest)
            .act(reply),
    );
    scene.fails(&["corrupt"], "staging").await.expect(1);
}

#[tokio::test]
async fn a_lying_digest_header_is_not_believed() {
    let scene = Scene::new().await;
    let lie = format!("sha256:{}", "1".repeat(64));
    for kind in [Kind::ManifestHead, Kind::ManifestGet] {
        scene.stage.source.always(
            kind,
            Act::Header("docker-content-digest", Some(lie.clone())),
        );
    }
    scene
        .fails(&["corrupt", "not_found", "rejected"], "staging")
        .await;
    assert_eq!(scene.stage.target.count(Kind::ManifestPut), 0);
}

#[tokio::test]
async fn a_lying_size_is_not_believed() {
    let mut image = Image::oci(1, &[80_000]);
    let honest = String::from_utf8(image.root().bytes.to_vec()).unwrap();
    assert!(honest.contains("80000"));
    image.documents[0] = Document::raw(&image.root().media_type, honest.replace("80000", "79000"));
    let scene = Scene::with(image).await;
    scene
        .fails(&["corrupt", "rejected"], "staging")
        .await
        .expect(1);
}

#[tokio::test]
async fn an_index_that_refers_to_itself_ends() {
    let own = format!("sha256:{}", "2".repeat(64));
    let body = json!({"schemaVersion": 2, "mediaType": image::OCI_INDEX,
        "manifests": [{"mediaType": image::OCI_INDEX, "digest": own, "size": 300}, {"mediaType": image::OCI_INDEX, "digest": own, "size": 300}]});
    let scene = Scene::new().await;
    let reply = Reply::status(200)
        .header("docker-content-digest", &own)
        .body(image::OCI_INDEX, body.to_string());
    for kind in [Kind::ManifestGet, Kind::ManifestHead] {
        scene.stage.source.always(kind, reply.clone());
    }
    scene
        .fails(&["corrupt", "rejected"], "staging")
        .await
        .expect(1);
    assert!(
        scene.stage.source.count(Kind::ManifestGet) < 20,
        "it went round and round"
    );
}

#[tokio::test]
async fn five_mebibytes_of_json_are_no_manifest() {
    let scene = Scene::new().await;
    let body = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"junk\":\"{}\"}}",
        image::OCI_MANIFEST,
        "x".repeat(5 << 20)
    );
    let digest = image::sha256(body.as_bytes());
    let reply = Reply::status(200)
        .header("docker-content-digest", &digest)
        .body(image::OCI_MANIFEST, body);
    scene.stage.source.always(Kind::ManifestHead, reply.clone());
    scene.stage.source.always(Kind::ManifestGet, reply);
    let run = scene
        .fails(&["rejected", "corrupt"], "staging")
        .await
        .expect(1);
    assert!(
        run.peak_memory < 128 << 20,
        "{} bytes resident",
        run.peak_memory
    );
}

#[tokio::test]
async fn endless_pages_of_tags_end() {
    let scene = Scene::new().await;
    scene.stage.source.always(Kind::Tags, Act::EndlessTags);
    // The tags of the pages do not exist: asking for them must not hide the endless listing.
    scene
        .fails(&["rejected", "corrupt"], "staging")
        .await
        .expect(1);
}

#[tokio::test]
async fn a_listing_whose_next_page_is_itself_ends() {
    let scene = Scene::new().await;
    scene.stage.source.always(
        Kind::Tags,
        Act::Header(
            "link",
            Some("</v2/app/tags/list?n=1000>; rel=\"next\"".into()),
        ),
    );
    scene.stage.sync().await;
    assert!(
        scene.stage.source.count(Kind::Tags) < 50,
        "{} pages",
        scene.stage.source.count(Kind::Tags)
    );
}

#[tokio::test]
async fn a_next_page_on_another_host_gets_no_credentials() {
    let other = Proxy::alone().await;
    let stage = locked_staging(json!({})).await;
    let next = format!("<{}/v2/app/tags/list?n=10>; rel=\"next\"", other.url());
    stage
        .source
        .always(Kind::Tags, Act::Header("link", Some(next)));
    stage.sync().await;
    assert!(
        other.log().iter().all(|entry| !entry.authorization),
        "credentials went to another host"
    );
}

#[tokio::test]
async fn html_in_place_of_json_is_an_error_and_not_nothing() {
    for kind in [Kind::Tags, Kind::ManifestGet] {
        let scene = Scene::new().await;
        scene.stage.source.always(kind, Reply::html());
        let run = scene
            .fails(&["rejected", "corrupt", "retryable"], "staging")
            .await;
        assert_eq!(run.code, 1, "{}", run.said());
    }
}

#[tokio::test]
async fn only_404_means_absent() {
    for status in [400, 403, 405, 500] {
        let scene = Scene::new().await;
        for kind in [Kind::Tags, Kind::ManifestHead, Kind::ManifestGet] {
            scene.stage.target.always(kind, Reply::status(status));
        }
        let run = scene.stage.sync().await;
        assert_ne!(
            run.code, 0,
            "{status} from production was taken for an empty repository"
        );
        assert_eq!(scene.stage.target.count(Kind::ManifestPut), 0, "{status}");
    }
}

/// Staging wants a login, has one image, and its proxy takes rules.
async fn locked_staging(more: Value) -> Stage {
    let staging = Program::Distribution2
        .setup()
        .basic("reader", SAID_NOWHERE)
        .start();
    let stage = Stage::between(staging, Registry::distribution3(), |config| config).await;
    let password = stage.ferry.file("password", SAID_NOWHERE);
    let mut login = json!({"auth": "basic", "username": "reader", "password_file": password});
    login
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let config = Config::new()
        .registry_with("staging", &stage.source.url(), login)
        .registry("production", &stage.target.url());
    stage.ferry.write_config(&config.route("app", json!({})));
    stage
        .push()
        .with_basic("reader", SAID_NOWHERE)
        .push("app", "v1", &locked_image())
        .await;
    stage
}

fn locked_image() -> Image {
    Image::oci(1, &[80_000, 300])
}

#[tokio::test]
async fn a_blob_store_on_another_host_is_read_without_our_credentials() {
    let other = Proxy::alone().await;
    let stage = locked_staging(json!({})).await;
    for blob in locked_image().unique_blobs() {
        let place = format!("/store/{}?signature={SAID_NOWHERE}", &blob.digest[7..]);
        stage.source.rule(
            Rule::on(&[Kind::BlobGet])
                .path(&blob.digest)
                .act(Reply::redirect(&format!("{}{place}", other.url()))),
        );
        let body = Reply::status(200).body("application/octet-stream", blob.bytes.clone());
        other.rule(Rule::on(&[]).path(&blob.digest[7..]).act(body));
    }
    let run = stage.sync().await.expect(0);
    stage
        .there()
        .assert_holds("app", "v1", &locked_image())
        .await;
    assert_eq!(other.log().len(), 3);
    assert!(
        other.log().iter().all(|entry| !entry.authorization),
        "credentials went to the blob store"
    );
    assert!(
        stage
            .source
            .of(&[Kind::BlobGet])
            .iter()
            .all(|entry| entry.authorization)
    );
    assert!(
        !run.said().contains(SAID_NOWHERE),
        "a password or a signed URL was said"
    );
}

#[tokio::test]
async fn redirects_that_lead_astray_are_refused() {
    for (to, most) in [
        ("SELF", 60),
        ("http://169.254.169.254/latest/meta-data/", 20),
        ("http://10.255.255.1/store", 20),
        ("file:///etc/passwd", 20),
        ("ftp://127.0.0.1/x", 20),
    ] {
        let stage = locked_staging(json!({})).await;
        let layer = locked_image().blobs[1].digest.clone();
        let to = if to == "SELF" {
            format!("{}/v2/app/blobs/{layer}", stage.source.url())
        } else {
            to.into()
        };
        stage.source.rule(
            Rule::on(&[Kind::BlobGet])
                .path(&layer)
                .act(Reply::redirect(&to)),
        );
        let run = stage
            .ferry
            .run_within(Duration::from_secs(60), &["sync", "--json"])
            .await
            .expect(1);
        assert_names(
            first_error(&run)["text"].as_str().unwrap(),
            &["staging", "app"],
        );
        stage.there().assert_lacks("app", "v1", &[&layer]).await;
        assert!(
            stage.source.count(Kind::BlobGet) < most,
            "{to}: {} requests",
            stage.source.count(Kind::BlobGet)
        );
    }
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_refused() {
    let (other, registry) = (Proxy::alone().await, Registry::distribution2());
    let (image, production) = (locked_image(), Registry::distribution3());
    registry.client().push("app", "v1", &image).await;
    let secure = Proxy::tls_before(&registry.url()).await;
    let ferry = Ferry::bare();
    let ca = ferry.file("ca.pem", secure.certificate());
    let config = Config::new()
        .registry_with("staging", &secure.url(), json!({"ca_file": ca}))
        .registry("production", &production.url())
        .route("app", json!({}));
    ferry.write_config(&config);
    secure.always(
        Kind::BlobGet,
        Reply::redirect(&format!("{}/store", other.url())),
    );
    let run = ferry.sync(&[]).await.expect(1);
    assert_names(
        first_error(&run)["text"].as_str().unwrap(),
        &["staging", "app", "http"],
    );
    assert!(other.log().is_empty(), "the downgrade was followed");
    production
        .client()
        .assert_lacks("app", "v1", &[&image.blobs[1].digest])
        .await;

    secure.reset();
    ferry.sync(&[]).await.expect(0);
    production.client().assert_holds("app", "v1", &image).await;
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let registry = Registry::distribution2();
    let secure = Proxy::tls_before(&registry.url()).await;
    let ferry = Ferry::new(&Config::pair(&secure.url(), &registry.url()));
    let run = ferry.sync(&[]).await;
    assert_ne!(run.code, 0);
    assert_names(
        first_error(&run)["text"].as_str().unwrap(),
        &["staging", "certificate"],
    );
    assert!(secure.log().is_empty());
}

#[tokio::test]
async fn a_realm_on_a_foreign_domain_gets_no_password() {
    let thief = Proxy::alone().await;
    let realm = format!(
        "http://localhost:{}/token",
        thief.address().rsplit_once(':').unwrap().1
    );
    let stage = locked_staging(json!({})).await;
    let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
    stage
        .source
        .rule(Rule::on(&[]).act(Reply::status(401).header("www-authenticate", &challenge)));
    let run = stage.sync().await.expect(3);
    assert_names(
        first_error(&run)["text"].as_str().unwrap(),
        &["staging", "token_realms"],
    );
    assert!(
        thief.log().is_empty(),
        "the foreign realm was asked: {:#?}",
        thief.log()
    );
    assert!(!run.said().contains(SAID_NOWHERE));
}

#[tokio::test]
async fn a_wrong_password_is_said_once_and_not_tried_again_and_again() {
    let stage = locked_staging(json!({})).await;
    stage.ferry.file("password", "wrong");
    let run = stage.sync().await.expect(3);
    assert_names(first_error(&run)["text"].as_str().unwrap(), &["staging"]);
    assert!(
        stage.source.log().len() < 10,
        "{} requests with a wrong password",
        stage.source.log().len()
    );
    stage.there().assert_lacks("app", "v1", &[]).await;
}

/// Both registries want tokens from a server that misbehaves.
async fn with_tokens(manner: Manner) -> (TokenServer, Registry, Registry, Run) {
    let tokens = TokenServer::start("ferry", SAID_NOWHERE).await;
    let staging = Program::Distribution3.setup().token(&tokens).start();
    let production = Registry::distribution3();
    staging
        .client()
        .with_bearer(&tokens.mint(&["app"]))
        .push("app", "v1", &locked_image())
        .await;
    tokens.behave(manner);
    let ferry = Ferry::bare();
    let password = ferry.file("password", SAID_NOWHERE);
    let login = json!({"auth": "basic", "username": "ferry", "password_file": password});
    let config = Config::new()
        .registry_with("staging", &staging.url(), login)
        .registry("production", &production.url());
    ferry.write_config(&config.route("app", json!({})));
    let run = ferry.run_within(PATIENCE, &["sync", "--json"]).await;
    (tokens, staging, production, run)
}

#[tokio::test]
async fn a_token_server_that_misbehaves_is_named() {
    for manner in [Manner::Html, Manner::Denied] {
        let (tokens, _staging, production, run) = with_tokens(manner).await;
        assert!([1, 3].contains(&run.code), "{}", run.said());
        assert_names(first_error(&run)["text"].as_str().unwrap(), &["staging"]);
        assert!(
            tokens.asked().len() < 10,
            "{} questions to the token server",
            tokens.asked().len()
        );
        assert!(!run.said().contains(SAID_NOWHERE));
        production.client().assert_lacks("app", "v1", &[]).await;
    }
}

#[tokio::test]
async fn peers_that_never_answer_do_not_hold_us() {
    let tags = async {
        let scene = Scene::new().await;
        scene.stage.source.always(Kind::Tags, Act::Silent);
        let run = scene.fails_in_time().await;
        assert_names(
            first_error(&run)["text"].as_str().unwrap(),
            &["staging", "app"],
        );
    };
    let blobs = async {
        let scene = Scene::new().await;
        scene.break_layer(Act::Silent);
        let run = scene.fails_in_time().await;
        assert_names(
            first_error(&run)["text"].as_str().unwrap(),
            &["staging", "app"],
        );
        scene
            .stage
            .there()
            .assert_lacks("app", "v1", &[&scene.layer().digest])
            .await;
    };
    let uploads = async {
        let scene = Scene::new().await;
        scene.stage.target.always(Kind::UploadPost, Act::Silent);
        let run = scene.fails_in_time().await;
        assert_names(
            first_error(&run)["text"].as_str().unwrap(),
            &["production", "app"],
        );
    };
    let token = async {
        let (_tokens, _staging, production, run) = with_tokens(Manner::Silent).await;
        assert!([1, 3].contains(&run.code), "{}", run.said());
        assert_names(first_error(&run)["text"].as_str().unwrap(), &["staging"]);
        production.client().assert_lacks("app", "v1", &[]).await;
    };
    tokio::join!(tags, blobs, uploads, token);
}

#[tokio::test]
async fn an_upload_that_is_answered_early_and_closed_ends_in_what_was_said() {
    let image = Image::oci(1, &[8 << 20]);
    let scene = Scene::with(image).await;
    let denied = r#"{"errors":[{"code":"DENIED","message":"quota of the project is used up"}]}"#;
    for kind in [Kind::UploadPatch, Kind::UploadPut] {
        scene.stage.target.always(
            kind,
            Reply::status(403)
                .body("application/json", denied)
                .closing(),
        );
    }
    scene
        .fails(&["rejected", "auth", "retryable"], "production")
        .await;
    assert_eq!(scene.stage.target.count(Kind::ManifestPut), 0);
}

#[tokio::test]
async fn an_upload_without_a_location_is_an_error() {
    let scene = Scene::new().await;
    scene
        .stage
        .target
        .always(Kind::UploadPost, Act::Header("location", None));
    scene.fails(&["rejected"], "production").await.expect(1);
}

#[tokio::test]
async fn an_upload_location_on_another_host_gets_no_credentials() {
    let other = Proxy::alone().await;
    let production = Program::Distribution2
        .setup()
        .basic("writer", SAID_NOWHERE)
        .start();
    let stage = Stage::between(Registry::distribution2(), production, |config| config).await;
    let password = stage.ferry.file("password", SAID_NOWHERE);
    let login = json!({"auth": "basic", "username": "writer", "password_file": password});
    let config = Config::new()
        .registry("staging", &stage.source.url())
        .registry_with("production", &stage.target.url(), login);
    stage.ferry.write_config(&config.route("app", json!({})));
    stage.push().push("app", "v1", &locked_image()).await;
    let away = format!("{}/v2/app/blobs/uploads/1", other.url());
    stage
        .target
        .always(Kind::UploadPost, Act::Header("location", Some(away)));
    let run = stage.sync().await;
    assert_ne!(run.code, 0);
    assert!(
        other.log().iter().all(|entry| !entry.authorization),
        "credentials went to another host"
    );
    assert!(!run.said().contains(SAID_NOWHERE));
}

#[tokio::test]
async fn a_registry_that_commits_other_bytes_is_not_believed() {
    let scene = Scene::new().await;
    let lie = format!("sha256:{}", "3".repeat(64));
    scene.stage.target.always(
        Kind::ManifestPut,
        Act::Header("docker-content-digest", Some(lie)),
    );
    let run = scene.stage.sync().await;
    assert_ne!(run.code, 0, "{}", run.said());
    assert_eq!(run.total("promoted"), 0);
}

#[tokio::test]
async fn a_read_only_production_fails_with_its_name() {
    let production = Program::Distribution3.setup().read_only().start();
    let stage = Stage::between(Registry::distribution2(), production, |config| {
        config.route("app", json!({}))
    })
    .await;
    stage.push().push("app", "v1", &Image::oci(1, &[10])).await;
    let run = stage.sync().await;
    assert_ne!(run.code, 0);
    assert_names(
        first_error(&run)["text"].as_str().unwrap(),
        &["production", "app"],
    );
}
