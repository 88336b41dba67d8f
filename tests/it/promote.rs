//! What is tagged in staging is in production, byte for byte, and it costs what it must and no
//! more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::image::{Corpus, DOCKER_MANIFEST, unique};
use crate::support::*;

const MIB: usize = 1024 * 1024;

fn usual_images() -> Vec<(&'static str, Image)> {
    let children = [Image::oci(20, &[4000]), Image::oci(21, &[5000, 1])];
    vec![
        ("oci", Image::oci(1, &[100_000, 3000, 17])),
        ("docker", Image::docker(2, &[50_000, 10])),
        ("index", Image::index(&children)),
        (
            "list",
            Image::list(&[Image::docker(22, &[600]), Image::docker(23, &[700])]),
        ),
        (
            "nested",
            Image::index(&[Image::index(&children), Image::oci(24, &[9])]),
        ),
        (
            "duplicate",
            Image::of_layers(
                3,
                vec![
                    Blob::layer(30, 800),
                    Blob::layer(31, 20),
                    Blob::layer(30, 800),
                ],
            ),
        ),
        (
            "empty-layer",
            Image::of_layers(4, vec![Blob::layer(40, 0), Blob::layer(41, 5)]),
        ),
        ("empty-config", Image::empty_config(5)),
        (
            "sha512",
            Image::of_layers(6, vec![Blob::layer(60, 12_345).with_sha512()]),
        ),
        ("no-layers", Image::oci(7, &[])),
    ]
}

#[tokio::test]
async fn every_kind_of_image_arrives_byte_for_byte() {
    for program in Program::ALL {
        let stage = Stage::new(program).await;
        let images = usual_images();
        for (tag, image) in &images {
            stage.push().push("app", tag, image).await;
        }
        let run = stage.sync().await.expect(0);
        assert_eq!(run.total("promoted"), images.len() as u64);
        assert_eq!(run.total("failed"), 0);
        for (tag, image) in &images {
            stage.there().assert_holds("app", tag, image).await;
            assert_eq!(
                skopeo::raw_digest(&format!("{}/app:{tag}", stage.production.address())).await,
                image.digest()
            );
            assert_eq!(run.job(tag)["digest"], image.digest());
        }
        assert_eq!(
            stage.there().tags("app").await,
            stage.push().tags("app").await
        );
        assert_eq!(
            stage.target.count(Kind::UploadDelete),
            0,
            "no upload is left behind or thrown away"
        );
    }
}

#[tokio::test]
async fn between_different_registries_nothing_changes_either() {
    let stage = Stage::between(
        Registry::distribution2(),
        Registry::distribution3(),
        |config| config.route("app", json!({})),
    )
    .await;
    let image = Image::index(&[Image::oci(1, &[MIB, 200]), Image::docker(2, &[300])]);
    stage.push().push("app", "v1", &image).await;
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", "v1", &image).await;
}

#[tokio::test]
async fn foreign_layers_stay_away_and_caches_travel_whole() {
    let open = || Program::Distribution3.setup().lenient().start();
    let stage = Stage::between(open(), open(), |config| config.route("app", json!({}))).await;
    let foreign = Blob::foreign(10, 500, "http://127.0.0.1:9/layer");
    let windows = Image::of_layers(1, vec![foreign.clone(), Blob::layer(11, 50)]);
    let cache = Image::cache(2, &[400, 500]);
    stage.push().push("app", "windows", &windows).await;
    stage.push().push("app", "cache", &cache).await;
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", "windows", &windows).await;
    stage.there().assert_holds("app", "cache", &cache).await;
    assert!(
        !stage.there().has_blob("app", &foreign.digest).await,
        "a foreign layer was uploaded"
    );
}

#[tokio::test]
async fn signatures_travel_with_their_subject_even_when_they_come_later() {
    let stage =
        Stage::with_route(Program::Distribution3, json!({"tags": {"include": ["v*"]}})).await;
    let image = Image::oci(1, &[1000]);
    let hex = image.digest().strip_prefix("sha256:").unwrap();
    let (list, cosign) = (format!("sha256-{hex}"), format!("sha256-{hex}.sig"));
    stage.push().push("app", "v1", &image).await;
    stage.sync().await.expect(0);
    assert_eq!(stage.there().tags("app").await, ["v1"]);

    let signature = Image::referrer(2, &image, "application/vnd.example.signature");
    stage.push().push_untagged("app", &signature).await;
    let listing = Image {
        documents: vec![
            signature.root().clone(),
            Image::index(std::slice::from_ref(&signature))
                .root()
                .clone(),
        ],
        blobs: vec![],
    };
    stage.push().push("app", &list, &listing).await;
    let sign = Image::oci(3, &[200]);
    stage.push().push("app", &cosign, &sign).await;
    stage.sync().await.expect(0);
    stage
        .there()
        .assert_holds("app", signature.digest(), &signature)
        .await;
    stage.there().assert_holds("app", &cosign, &sign).await;
    let listed = stage
        .there()
        .manifest("app", &list)
        .await
        .expect("the list of referrers is in production");
    assert!(String::from_utf8_lossy(&listed.bytes).contains(signature.digest()));

    stage.reset();
    stage.sync().await.expect(0);
    assert!(
        stage.target.of(&Kind::WRITES).is_empty(),
        "signatures that are there are not written again"
    );
}

#[tokio::test]
async fn each_blob_is_read_once_and_uploaded_once() {
    for program in Program::ALL {
        let corpus = Corpus::shared_base(1, 3, 2, &[300_000, 200_000, 1000], 5000);
        let stage = Stage::build(program, |config| {
            config.raw_route(
                json!({"name": "apps", "from": "staging/app-*", "to": "production/app-{1}", "tags": {"include": ["v*"]}}),
            )
        })
        .await;
        for app in &corpus.apps {
            for (tag, image) in &app.versions {
                stage.push().push(&app.name, tag, image).await;
            }
        }
        let run = stage.sync().await.expect(0);
        assert_eq!(run.total("promoted"), 6);
        for app in &corpus.apps {
            for (tag, image) in &app.versions {
                stage.there().assert_holds(&app.name, tag, image).await;
            }
        }

        let blobs = corpus.unique_blobs();
        let total: u64 = blobs.iter().map(|blob| blob.bytes.len() as u64).sum();
        assert_eq!(
            stage.source.count(Kind::BlobGet),
            blobs.len(),
            "each blob is read once"
        );
        assert_eq!(
            stage.source.bytes(&[Kind::BlobGet]).1,
            total,
            "and no byte twice"
        );
        assert_eq!(
            stage.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0,
            total,
            "each byte is sent once"
        );
        let finished: BTreeSet<String> = stage
            .target
            .of(&[Kind::UploadPut])
            .iter()
            .map(|put| digest_of(&put.path))
            .collect();
        assert_eq!(
            (stage.target.count(Kind::UploadPut), finished.len()),
            (blobs.len(), blobs.len()),
            "each blob is uploaded once"
        );
        assert_eq!(
            stage.target.count(Kind::BlobHead),
            0,
            "nothing is asked of a registry that is known to lack it"
        );
        assert_eq!(
            stage.source.count(Kind::BlobHead),
            0,
            "staging's manifests say what it holds"
        );
        let sent: u64 = run.report()["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["bytes_sent"].as_u64().unwrap())
            .sum();
        assert_eq!(sent, total);
        for (path, count) in by_path(&stage.source, Kind::ManifestGet) {
            assert_eq!(count, 1, "{path} was read more than once");
        }
        for (path, count) in by_path(&stage.target, Kind::ManifestPut) {
            assert_eq!(count, 1, "{path} was written more than once");
        }
    }
}

#[tokio::test]
async fn a_second_pass_costs_two_requests_a_tag_at_most() {
    for program in Program::ALL {
        let stage = Stage::new(program).await;
        let images = usual_images();
        for (tag, image) in &images {
            stage.push().push("app", tag, image).await;
        }
        stage.sync().await.expect(0);
        for forget in [false, true] {
            if forget {
                stage.ferry.delete_index();
            }
            stage.reset();
            let run = stage.sync().await.expect(0);
            assert_eq!(run.total("up_to_date"), images.len() as u64);
            assert_eq!(
                run.report()["jobs"],
                json!([]),
                "what is up to date is not listed"
            );
            assert!(
                stage.target.of(&Kind::WRITES).is_empty(),
                "nothing is written"
            );
            assert_eq!(
                stage.source.count(Kind::BlobGet) + stage.source.count(Kind::BlobHead),
                0
            );
            let listings = [Kind::Tags, Kind::Catalog];
            let all = stage.source.log().len() + stage.target.log().len();
            let pages = stage.source.of(&listings).len() + stage.target.of(&listings).len();
            assert!(
                all <= 2 * images.len() + pages + 2,
                "{all} requests, {pages} of them pages, for {} tags",
                images.len()
            );
        }
    }
}

#[tokio::test]
async fn what_the_rules_leave_out_stays_out() {
    let rules = json!({"tags": {"include": ["semver:>=1.0.0", "/^rel-[0-9]+$/"], "exclude": ["*-debug"], "newest": 2}});
    let stage = Stage::with_route(Program::Distribution2, rules).await;
    let image = Image::oci(1, &[10]);
    for tag in [
        "v0.9.0",
        "v1.0.0",
        "v1.1.0",
        "v1.10.0",
        "v1.10.0-debug",
        "rel-7",
        "rel-x",
        "latest",
    ] {
        stage.push().push("app", tag, &image).await;
    }
    let run = stage.sync().await.expect(0);
    assert_eq!(
        stage.there().tags("app").await,
        ["rel-7", "v1.1.0", "v1.10.0"]
    );
    assert_eq!((run.total("promoted"), run.total("excluded")), (3, 5));
    stage.ferry.sync(&["--tag", "v0.9.0"]).await.expect(5);
    assert_eq!(
        stage.there().digest("app", "v0.9.0").await,
        None,
        "the rules hold for what is asked by name too"
    );
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do_and_touches_nothing() {
    let stage = Stage::new(Program::Distribution3).await;
    let image = Image::oci(1, &[1000, 2000]);
    stage.push().push("app", "v1", &image).await;
    let run = stage.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(run.total("planned"), 1);
    assert_eq!(run.job("v1")["result"], "planned");
    assert!(stage.target.of(&Kind::WRITES).is_empty(), "a dry run wrote");
    assert_eq!(stage.source.count(Kind::BlobGet), 0, "a dry run read blobs");
    stage
        .there()
        .assert_lacks("app", "v1", &[&image.blobs[0].digest])
        .await;
}

#[tokio::test]
async fn fan_out_reaches_every_destination() {
    let other = Registry::distribution2();
    let url = other.url();
    let stage = Stage::build(Program::Distribution3, |config| {
        config
            .registry("other", &url)
            .route("app", json!({"to": ["production/app", "other/team/app"]}))
    })
    .await;
    let image = Image::index(&[Image::oci(1, &[30_000]), Image::oci(2, &[40_000])]);
    stage.push().push("app", "v1", &image).await;
    let run = stage.sync().await.expect(0);
    assert_eq!(run.total("promoted"), 2);
    stage.there().assert_holds("app", "v1", &image).await;
    other.client().assert_holds("team/app", "v1", &image).await;
}

#[tokio::test]
async fn one_broken_image_does_not_hold_up_the_others() {
    let stage = Stage::new(Program::Distribution2).await;
    let (broken, good) = (Image::oci(1, &[5000]), Image::oci(2, &[6000]));
    stage.push().push("app", "broken", &broken).await;
    stage.push().push("app", "good", &good).await;
    stage.source.rule(
        Rule::on(&[Kind::BlobGet])
            .path(&broken.blobs[1].digest)
            .act(Act::FlipByte(100)),
    );
    let run = stage.sync().await.expect(1);
    assert_eq!((run.total("promoted"), run.total("failed")), (1, 1));
    stage.there().assert_holds("app", "good", &good).await;
    stage
        .there()
        .assert_lacks("app", "broken", &[&broken.blobs[1].digest])
        .await;
}

#[tokio::test]
async fn a_cut_read_goes_on_where_it_ended() {
    let stage = Stage::new(Program::Distribution2).await;
    let image = Image::oci(1, &[12 * MIB]);
    stage.push().push("app", "v1", &image).await;
    let rule = |cut| {
        Rule::on(&[Kind::BlobGet])
            .path(&image.blobs[1].digest)
            .times(1)
            .act(Act::CutAnswer(5 * MIB as u64, cut))
    };
    stage.source.rule(rule(Cut::Reset));
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", "v1", &image).await;
    let read = stage.source.bytes(&[Kind::BlobGet]).1;
    assert!(
        read < 20 * MIB as u64,
        "{read} bytes were read for a blob of 12 MiB"
    );
}

#[tokio::test]
async fn a_cut_upload_goes_on_where_the_registry_stands() {
    let stage = Stage::new(Program::Distribution3).await;
    let image = Image::oci(1, &[40 * MIB]);
    stage.push().push("app", "v1", &image).await;
    // Whoever starts over is cut again and never gets through.
    stage.target.rule(
        Rule::on(&[Kind::UploadPatch, Kind::UploadPut])
            .act(Act::CutRequest(25 * MIB as u64, Cut::Reset)),
    );
    let run = stage.sync().await.expect(0);
    stage.there().assert_holds("app", "v1", &image).await;
    let sent = stage.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0;
    assert!(
        sent < 52 * MIB as u64,
        "{sent} bytes were sent for an image of 40 MiB"
    );
    assert_eq!(run.job("v1")["blobs"]["resumed"], 1);
}

#[tokio::test]
async fn a_cut_upload_that_the_registry_forgot_starts_over() {
    let stage = Stage::new(Program::Distribution2).await;
    let image = Image::oci(1, &[6 * MIB]);
    stage.push().push("app", "v1", &image).await;
    stage.target.rule(
        Rule::on(&[Kind::UploadPatch, Kind::UploadPut])
            .times(3)
            .act(Act::CutRequest(3 * MIB as u64, Cut::Fin)),
    );
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", "v1", &image).await;
}

#[tokio::test]
async fn a_registry_that_asks_for_patience_gets_it() {
    let stage = Stage::new(Program::Distribution3).await;
    let image = Image::oci(1, &[1000, 2000]);
    stage.push().push("app", "v1", &image).await;
    let busy = |status: u16| Reply::status(status).header("retry-after", "1");
    stage.source.once(Kind::Tags, busy(503));
    stage.source.once(Kind::ManifestGet, busy(429));
    stage.source.once(Kind::BlobGet, busy(503));
    stage.target.once(Kind::UploadPost, busy(429));
    stage.target.once(Kind::ManifestPut, busy(503));
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", "v1", &image).await;
    assert_eq!(stage.target.count(Kind::ManifestPut), 2);
}

#[tokio::test]
async fn what_production_lost_is_sent_again() {
    let stage = Stage::new(Program::Distribution3).await;
    let image = Image::oci(1, &[3000]);
    stage.push().push("app", "v1", &image).await;
    stage.sync().await.expect(0);
    stage.there().delete("app", image.digest()).await;
    let lost = image.blobs[1].digest.strip_prefix("sha256:").unwrap();
    std::fs::remove_dir_all(
        stage
            .production
            .data()
            .join("docker/registry/v2/repositories/app/_layers/sha256")
            .join(lost),
    )
    .unwrap();
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", "v1", &image).await;
}

#[tokio::test]
async fn logins_are_found_and_used_for_reading_writing_and_mounting() {
    let tokens = TokenServer::start("ferry", "s3cret").await;
    let staging = Program::Distribution2
        .setup()
        .basic("reader", "hush")
        .start();
    let production = Program::Distribution3.setup().token(&tokens).start();
    let ferry = Ferry::bare();
    let password = ferry.file("password", "s3cret\n");
    let login = json!({"auths": {staging.address(): {"auth": "cmVhZGVyOmh1c2g="}}});
    std::fs::create_dir(ferry.path("home/.docker")).unwrap();
    ferry.file("home/.docker/config.json", &login.to_string());
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry_with(
            "production",
            &production.url(),
            json!({"auth": "basic", "username": "ferry", "password_file": password}),
        );
    ferry.write_config(&config.route("app", json!({})).route("twin", json!({})));

    let image = Image::oci(1, &[5000]);
    let reader = staging.client().with_basic("reader", "hush");
    reader.push("app", "v1", &image).await;
    reader.push("twin", "v1", &image).await;
    let run = ferry.sync(&[]).await.expect(0);
    let there = production
        .client()
        .with_bearer(&tokens.mint(&["app", "twin"]));
    there.assert_holds("app", "v1", &image).await;
    there.assert_holds("twin", "v1", &image).await;
    let mounted: u64 = run.report()["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["blobs"]["mounted"].as_u64().unwrap())
        .sum();
    assert_eq!(
        mounted, 2,
        "the second repository takes its blobs from the first"
    );
    let asked = tokens.asked();
    assert!(
        asked.iter().all(|one| one.authorization.is_some()),
        "anonymous tokens were asked for: {asked:#?}"
    );
    assert!(
        asked.iter().any(|one| one.scopes.len() == 2),
        "a mount needs rights in two repositories: {asked:#?}"
    );
    assert!(
        asked.len() < 12,
        "a token is asked for once for each set of rights: {asked:#?}"
    );
    for secret in ["s3cret", "hush", "cmVhZGVyOmh1c2g="] {
        assert!(!run.said().contains(secret), "a password was said");
    }
}

#[tokio::test]
async fn copy_needs_no_config_and_replaces_only_what_it_is_told_to() {
    let (from, to) = (Registry::distribution2(), Registry::distribution3());
    let ferry = Ferry::bare();
    let (old, new) = (Image::oci(1, &[1000]), Image::docker(2, &[2000]));
    from.client().push("a/b", "v1", &old).await;
    let (source, destination) = (
        format!("{}/a/b:v1", from.address()),
        format!("{}/c:v1", to.address()),
    );
    ferry
        .run(&["copy", &source, &destination, "--expect", new.digest()])
        .await
        .expect(4);
    to.client()
        .assert_lacks("c", "v1", &[&old.blobs[1].digest])
        .await;
    ferry
        .run(&["copy", &source, &destination, "--expect", old.digest()])
        .await
        .expect(0);
    to.client().assert_holds("c", "v1", &old).await;

    from.client().push("a/b", "v1", &new).await;
    ferry.run(&["copy", &source, &destination]).await.expect(4);
    ferry
        .run(&["copy", &source, &destination, "--replace", new.digest()])
        .await
        .expect(4);
    to.client().assert_holds("c", "v1", &old).await;
    ferry
        .run(&["copy", &source, &destination, "--replace", old.digest()])
        .await
        .expect(0);
    to.client().assert_holds("c", "v1", &new).await;
    assert_eq!(
        to.client().manifest("c", "v1").await.unwrap().media_type,
        DOCKER_MANIFEST
    );

    ferry
        .run(&[
            "copy",
            &format!("{}/a/b:absent", from.address()),
            &destination,
        ])
        .await
        .expect(5);
    ferry
        .run(&["copy", "not a reference", &destination])
        .await
        .expect(2);
    let by_digest = format!("{}/c@{}", to.address(), new.digest());
    let run = ferry.run(&["copy", &source, &by_digest]).await.expect(2);
    assert!(
        run.stderr.contains("names no tag") && run.stderr.contains("--expect sha256:"),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn promote_is_the_pipeline_step() {
    let registry = Registry::distribution3();
    let image = Image::index(&[Image::oci(1, &[1000]), Image::oci(2, &[2000])]);
    registry
        .client()
        .push("staging-demo-app", "latest", &image)
        .await;
    let ferry = Ferry::bare()
        .with_env("DOCKER_REG", registry.address())
        .with_env("STAGING_IMAGE_NAME", "staging-demo-app")
        .with_env("PROD_IMAGE_NAME", "prod-demo-app");
    let report = ferry.path("report.json").display().to_string();
    let junit = ferry.path("junit.xml").display().to_string();
    ferry
        .run(&["promote", "--report", &report, "--junit", &junit])
        .await
        .expect(0);
    let junit = std::fs::read_to_string(junit).unwrap();
    let counts =
        "<testsuite name=\"blobferry\" tests=\"1\" failures=\"0\" errors=\"0\" skipped=\"0\"";
    assert!(junit.contains(counts), "{junit}");
    assert!(junit.contains("prod-demo-app:latest\""), "{junit}");
    registry
        .client()
        .assert_holds("prod-demo-app", "latest", &image)
        .await;
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["totals"]["promoted"], 1);
    assert_eq!(
        report["jobs"][0]["blobs"]["mounted"],
        unique(image.blobs.iter()).len(),
        "inside one registry everything is mounted"
    );
    assert_eq!(report["jobs"][0]["bytes_sent"], 0);
}

#[tokio::test]
async fn a_conflict_is_a_failure_of_the_test_report() {
    let registry = Registry::distribution3();
    let client = registry.client();
    client
        .push("staging-app", "v1", &Image::oci(1, &[1000]))
        .await;
    client.push("prod-app", "v1", &Image::oci(2, &[1000])).await;
    let ferry = Ferry::bare();
    let reference = |repository| format!("{}/{repository}:v1", registry.address());
    let source = reference("staging-app");
    let destination = reference("prod-app");
    let junit = ferry.path("junit.xml").display().to_string();
    ferry
        .run(&["promote", &source, &destination, "--junit", &junit])
        .await
        .expect(4);
    let junit = std::fs::read_to_string(junit).unwrap();
    assert!(junit.contains(" failures=\"1\" errors=\"0\""), "{junit}");
    assert!(junit.contains("<failure type=\"conflict\""), "{junit}");
}

fn digest_of(path: &str) -> String {
    let query = path.split_once('?').map_or("", |(_, query)| query);
    let pairs: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    pairs["digest"].clone()
}

fn by_path(proxy: &Proxy, kind: Kind) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in proxy.of(&[kind]) {
        *counts.entry(entry.path).or_default() += 1;
    }
    counts
}
