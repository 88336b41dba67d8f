//! `platform`: one child of an index is promoted instead of the index.

use blobferry::endpoint::{OnlyPlatform, RouteSource, Source as _};
use blobferry::oci::{Digest, Target};
use serde_json::{Value, json};

use super::{asked_beyond_comparison, image, polled};
use crate::decisions::reasons;
use crate::support::scripted::Answer;
use crate::support::*;

pub(super) fn only(platform: &str) -> Value {
    json!({"platform": platform})
}

/// An index for linux/amd64 and linux/arm64.
pub(super) fn index(number: u64) -> (Image, [Image; 2]) {
    let children = [image(10 * number), image(10 * number + 1)];
    (Image::index(&children), children)
}

#[tokio::test]
async fn production_names_the_manifest_of_the_platform_alone() {
    for (program, platform, chosen) in [
        (Program::Distribution3, "linux/amd64", 0),
        (Program::Distribution2, "linux/arm64/v8", 1),
    ] {
        let stage = Stage::with_route(program, only(platform)).await;
        let (first, children) = index(1);
        stage.push().push("app", "v1", &first).await;
        stage.push().push("app", "latest", &first).await;
        let run = stage.sync().await.expect(0);
        let job = run.job("v1");
        assert_eq!(job["digest"], children[chosen].digest());
        let said = format!("{platform}: a manifest of the index {}", first.digest());
        assert!(reasons(&job).contains(&said.replace("/v8", "")), "{job:#}");
        let there = stage.there();
        there.assert_holds("app", "v1", &children[chosen]).await;
        there.assert_holds("app", "latest", &children[chosen]).await;
        assert_eq!(there.digest("app", first.digest()).await, None);
        let other = &children[1 - chosen];
        assert_eq!(there.digest("app", other.digest()).await, None);

        // Nothing differs then, however it is asked.
        stage.ferry.delete_index();
        stage.reset();
        let run = stage.sync().await.expect(0);
        assert_eq!(run.total("up_to_date"), 2, "{}", run.said());
        let written = stage.target.of(&Kind::WRITES);
        assert!(written.is_empty(), "{written:#?}");

        // Another child of a new index is no news; this one is.
        let mut newer = [children[0].clone(), children[1].clone()];
        newer[1 - chosen] = image(7);
        stage
            .push()
            .push("app", "latest", &Image::index(&newer))
            .await;
        assert_eq!(stage.sync().await.expect(0).total("up_to_date"), 2);
        newer[chosen] = image(8);
        stage
            .push()
            .push("app", "latest", &Image::index(&newer))
            .await;
        assert_eq!(stage.sync().await.expect(0).total("promoted"), 1);
        there.assert_holds("app", "latest", &newer[chosen]).await;
        // A fixed tag with another child is a conflict.
        stage.push().push("app", "v1", &Image::index(&newer)).await;
        assert_eq!(stage.sync().await.expect(4).job("v1")["result"], "conflict");
        there.assert_holds("app", "v1", &children[chosen]).await;
    }
}

/// Half a push, or a lifecycle policy: the tag counted as gone from staging, and nothing told.
#[tokio::test]
async fn an_index_without_its_manifest_for_the_platform_fails() {
    let scene = super::scene(only("linux/amd64"));
    let (index, children) = index(1);
    scene.staging.push("app", "v1", &index);
    let missing = children[0].digest().to_owned();
    scene.staging.on(move |asked| {
        if asked.path.contains(&missing) {
            return Answer::Reply(Reply::status(404));
        }
        Answer::Pass
    });
    let run = scene.ferry.sync(&[]).await.expect(1);
    let job = run.job("v1");
    assert_eq!(job["result"], "failed", "{job:#}");
    let error = job["error"].to_string();
    assert!(
        error.contains("but does not have it; push the image again"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_not_for_the_platform_is_refused_in_words() {
    let stage = Stage::with_route(Program::Distribution3, only("linux/arm64")).await;
    let (both, _) = index(1);
    stage.push().push("app", "both", &both).await;
    // Configs of this test's images say linux/amd64.
    stage.push().push("app", "single", &image(2)).await;
    stage
        .push()
        .push("app", "alone", &Image::index(&[image(3)]))
        .await;
    let chart = Image::empty_config(4);
    stage.push().push("app", "chart", &chart).await;
    // All platforms of it were promoted as the manifest for one.
    let nested = Image::index(&[image(5), index(6).0]);
    stage.push().push("app", "nested", &nested).await;
    for _ in 0..2 {
        let run = stage.sync().await.expect(4);
        assert_eq!(run.total("refused"), 4, "{}", run.said());
        let alone = Image::index(&[image(3)]);
        for (tag, said) in [
            (
                "nested",
                format!(
                    "what {} lists for linux/arm64 is an index itself",
                    nested.digest()
                ),
            ),
            (
                "single",
                format!(
                    "{} is for linux/amd64, not for linux/arm64",
                    image(2).digest()
                ),
            ),
            (
                "alone",
                format!("{} has no manifest for linux/arm64", alone.digest()),
            ),
            (
                "chart",
                format!("{} does not say that it is for linux/arm64", chart.digest()),
            ),
        ] {
            let job = run.job(tag);
            assert_eq!(job["result"], "refused");
            assert!(reasons(&job).contains(&said), "{job:#}");
        }
    }
    assert_eq!(stage.there().tags("app").await, ["both"]);

    // A single manifest of the right platform passes.
    let stage = Stage::with_route(Program::Distribution3, only("linux/amd64")).await;
    stage.push().push("app", "single", &image(2)).await;
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", "single", &image(2)).await;
}

#[tokio::test]
async fn what_a_platform_refuses_costs_a_poll_its_comparison() {
    let scene = super::scene(only("linux/s390x"));
    let (both, _) = index(1);
    scene.staging.push("app", "both", &both);
    scene.staging.push("app", "single", &image(2));
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .daemon("poll", json!("200ms"))
        .route("app", only("linux/s390x"));
    scene.ferry.write_config(&config);
    let daemon = scene.ferry.start_ready().await;
    let refused = [("state", "refused")];
    let count = daemon.metric("blobferry_tags", &refused).await;
    assert_eq!(count, Some(2.0));
    polled(&scene.staging, 4).await;
    for registry in [&scene.staging, &scene.production] {
        assert_eq!(asked_beyond_comparison(registry), [""; 0]);
    }
}

#[tokio::test]
async fn a_denied_index_and_a_denied_child_refuse() {
    let scene = super::scene(only("linux/amd64"));
    for (number, denied) in [(1, None), (2, Some(0)), (3, Some(1))] {
        let (whole, children) = index(number);
        let tag = format!("v{number}");
        scene.staging.push("app", &tag, &whole);
        // The other child is not promoted, but part of what is denied.
        let digest = denied.map_or(whole.digest(), |child: usize| children[child].digest());
        scene
            .run(&["deny", digest, "--reason", "CVE"])
            .await
            .expect(0);
    }
    let run = scene.ferry.sync(&[]).await.expect(4);
    for (tag, result) in [("v1", "refused"), ("v2", "refused"), ("v3", "promoted")] {
        assert_eq!(run.job(tag)["result"], result, "{tag}: {}", run.said());
    }
    assert_eq!(scene.production.tags("app"), ["v3"]);
    let (_, children) = index(1);
    assert!(!scene.production.holds("app", children[0].digest()));
}

/// Staging names another index by then, and does not have the denied one any more.
#[tokio::test]
async fn no_rollback_goes_to_a_part_of_a_denied_index() {
    let scene = super::scene(only("linux/amd64"));
    let indexes = [index(1), index(2), index(3)];
    for (whole, _) in &indexes {
        scene.staging.push("app", "latest", whole);
        scene.ferry.sync(&[]).await.expect(0);
    }
    let [(denied, [first, _]), (_, [second, _]), (_, [third, _])] = &indexes;
    scene
        .run(&["deny", denied.digest(), "--reason", "CVE"])
        .await
        .expect(0);
    scene.staging.remove("app", denied.digest());
    let back = |to| ["rollback", "app:latest", "--to", to, "--reason", "INC-4"];
    let run = scene.run(&back(first.digest())).await.expect(4);
    assert!(run.said().contains("CVE"), "{}", run.said());
    assert_eq!(scene.there("latest").as_deref(), Some(third.digest()));
    scene.run(&back(second.digest())).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
}

/// What was read of an index may have been forgotten since, and the tag may name another index.
#[tokio::test]
async fn each_answer_says_by_itself_of_which_index_its_manifest_is_a_part() {
    let registry = memory::Registry::new("staging");
    let [amd64, arm64] = ["amd64", "arm64"].map(|architecture| {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2,
                "digest": Digest::sha256(architecture.as_bytes()).to_string()},
            "layers": [],
        });
        registry.store_manifest("app", None, &manifest)
    });
    let child = |manifest: &blobferry::oci::Manifest, architecture: &str| {
        json!({
            "mediaType": manifest.media_type.to_string(),
            "digest": manifest.digest.to_string(),
            "size": manifest.bytes.len(),
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let [alone, both] = [1, 2].map(|children| {
        let all = [child(&amd64, "amd64"), child(&arm64, "arm64")];
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": &all[..children],
        });
        registry.store_manifest("app", Some("latest"), &index)
    });
    let fresh = || {
        let only = OnlyPlatform::new("linux/amd64".parse().unwrap());
        RouteSource::new(registry.repository("app"), Some(only.into()))
    };
    let latest = Target::Tag("latest".parse().unwrap());
    let looking = fresh();
    for (source, index) in [(&looking, &both), (&looking, &alone), (&fresh(), &alone)] {
        registry.tag("app", "latest", &index.digest);
        let resolved = source.resolve(&latest).await.unwrap().unwrap();
        assert_eq!(resolved.digest, Some(amd64.digest));
        assert_eq!(resolved.index, Some(index.digest));
    }
}

/// A backup tag names what was promoted before.
#[tokio::test]
async fn a_part_of_a_denied_index_gets_no_backup() {
    let route = json!({
        "platform": "linux/amd64",
        "backup": "{tag}.previous",
        "tags": {"include": ["*"], "exclude": ["*.previous"]},
    });
    let scene = super::scene(route);
    let [(denied, [first, _]), (newer, [second, _])] = [index(1), index(2)];
    scene.staging.push("app", "latest", &denied);
    scene.ferry.sync(&[]).await.expect(0);
    scene
        .run(&["deny", denied.digest(), "--reason", "CVE"])
        .await
        .expect(0);
    scene.staging.push("app", "latest", &newer);
    let run = scene.ferry.sync(&[]).await.expect(0);
    let said = format!("{} is denied: it gets no backup", first.digest());
    assert!(
        reasons(&run.job("latest")).contains(&said),
        "{}",
        run.said()
    );
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
    assert_eq!(scene.there("latest.previous"), None);
}

/// SBOMs and signatures are attached to the index.
#[tokio::test]
async fn evidence_on_the_index_counts_and_what_belongs_to_the_child_travels() {
    const SPDX: &str = "application/spdx+json";
    let gated = json!({"platform": "linux/amd64", "gates": {"referrers": [SPDX]}});
    let stage = Stage::with_route(Program::Distribution3, gated).await;
    let (whole, children) = index(1);
    stage.push().push("app", "v1", &whole).await;
    let of_child = Image::referrer(5, &children[0], "application/vnd.example");
    let list = Image::index(std::slice::from_ref(&of_child));
    let fallback = children[0].digest().replace(':', "-");
    stage.push().push("app", &fallback, &list).await;
    let run = stage.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "waiting");
    assert_eq!(
        stage.there().digest("app", children[0].digest()).await,
        None
    );

    let of_index = Image::referrer(6, &whole, SPDX);
    let list = Image::index(std::slice::from_ref(&of_index));
    let fallback = whole.digest().replace(':', "-");
    stage.push().push("app", &fallback, &list).await;
    let run = stage.sync().await.expect(0);
    assert_eq!(run.job("v1")["result"], "promoted", "{}", run.said());
    let there = stage.there();
    there.assert_holds("app", "v1", &children[0]).await;
    let carried = there.digest("app", of_child.digest()).await;
    assert!(carried.is_some(), "what belongs to the child travels");
    assert_eq!(there.digest("app", of_index.digest()).await, None);
    let check = stage.ferry.run(&["check"]).await;
    assert!(!check.stdout.contains("signature"), "{}", check.stdout);
}

#[tokio::test]
async fn a_digest_that_is_expected_may_be_that_of_the_index() {
    let scene = super::scene(only("linux/amd64"));
    let daemon = scene.ferry.start_ready().await;
    let (whole, children) = index(1);
    scene.staging.push("app", "v1", &whole);
    let ask = |digest: &str| json!({"wait": true, "tag": "v1", "digest": digest});
    let other = image(9);
    let (code, _) = daemon.ping(ask(other.digest())).await;
    assert_eq!(code, 409);
    for digest in [whole.digest(), children[0].digest(), whole.digest()] {
        let (code, report) = daemon.ping(ask(digest)).await;
        assert_eq!(code, 200, "{report:#}");
    }
    assert_eq!(scene.there("v1").as_deref(), Some(children[0].digest()));
    // Back and forth, by the child.
    let (newer, others) = index(2);
    scene.staging.push("app", "latest", &whole);
    scene.ferry.sync(&[]).await.expect(0);
    scene.staging.push("app", "latest", &newer);
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(others[0].digest()));
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    scene.run(&back).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(children[0].digest()));
    let held = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(held.job("latest")["result"], "held");
}

/// One image without the platform keeps no other back.
#[tokio::test]
async fn a_tag_without_the_platform_refuses_itself_alone() {
    let scene = super::scene(only("linux/arm64"));
    let (index, children) = index(1);
    // By its config it is for linux/amd64.
    scene.staging.push("app", "v0.9.0", &image(90));
    scene.staging.push("app", "v1.0.0", &index);
    scene.staging.push("app", "latest", &index);
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    assert_eq!(run.job("latest")["result"], "promoted", "{}", run.stdout);
    let run = scene.ferry.sync(&[]).await.expect(4);
    assert_eq!(run.job("v0.9.0")["result"], "refused");
    assert_eq!(
        scene.production.tagged("app", "v1.0.0").as_deref(),
        Some(children[1].digest())
    );
}
