//! `platform` and what people ask for: copies, promotions, decisions and questions.

use serde_json::{Value, json};

use super::platform::{index, only};
use crate::decisions::{Scene, one_denied_is_told};
use crate::support::*;

/// A reference of `copy` and `promote`.
fn at(registry: &Scripted, reference: &str) -> String {
    format!("{}/app{reference}", registry.url())
}

async fn said(scene: &Scene, arguments: &[&str]) -> Value {
    let run = scene.run(arguments).await;
    serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{}{}", run.stdout, run.stderr))
}

/// The route promises one platform to production, whichever command writes there.
#[tokio::test]
async fn copy_and_promote_obey_the_platform_of_the_route() {
    for with_daemon in [false, true] {
        let scene = super::scene(only("linux/amd64"));
        let (whole, children) = index(1);
        scene.staging.push("app", "v1", &whole);
        let _daemon = match with_daemon {
            true => {
                scene.staging.untag("app", "v1");
                let daemon = scene.ferry.start_ready().await;
                scene.staging.tag("app", "v1", whole.digest());
                Some(daemon)
            }
            false => None,
        };
        let by_tag = at(&scene.staging, ":v1");
        let by_digest = at(&scene.staging, &format!("@{}", whole.digest()));
        let by_both = at(&scene.staging, &format!(":v1@{}", whole.digest()));
        for (act, from, tag) in [
            ("copy", &by_tag, "v1"),
            ("copy", &by_digest, "v2"),
            ("copy", &by_both, "v3"),
            ("promote", &by_tag, "v4"),
        ] {
            let to = at(&scene.production, &format!(":{tag}"));
            let run = scene.run(&[act, from, &to, "--json"]).await.expect(0);
            assert_eq!(scene.there(tag).as_deref(), Some(children[0].digest()));
            let job = &run.report()["jobs"][0];
            assert_eq!(job["index"], whole.digest(), "{job:#}");
        }
        assert!(!scene.production.holds("app", whole.digest()));
        assert!(!scene.production.holds("app", children[1].digest()));
        // The whole may be expected, and it may be denied.
        let (newer, _) = index(2);
        scene.staging.push("app", "v5", &newer);
        let deny = ["deny", newer.digest(), "--reason", "CVE"];
        scene.run(&deny).await.expect(0);
        for from in [":v5".to_owned(), format!("@{}", newer.digest())] {
            let from = at(&scene.staging, &from);
            let to = at(&scene.production, ":v5");
            let run = scene.run(&["copy", &from, &to, "--json"]).await.expect(4);
            let job = &run.report()["jobs"][0];
            assert_eq!(job["result"], "refused", "{job:#}");
        }
        assert_eq!(scene.there("v5"), None);
    }
}

#[tokio::test]
async fn promote_of_every_tag_obeys_the_platform_of_the_route() {
    let scene = super::scene(only("linux/arm64"));
    for number in 1..=3 {
        let (whole, _) = index(number);
        scene.staging.push("app", &format!("v{number}"), &whole);
    }
    let (from, to) = (at(&scene.staging, ""), at(&scene.production, ""));
    for _ in 0..2 {
        scene
            .run(&["promote", "--all-tags", &from, &to])
            .await
            .expect(0);
        for number in 1..=3 {
            let (_, children) = index(number);
            let there = scene.there(&format!("v{number}"));
            assert_eq!(there.as_deref(), Some(children[1].digest()));
        }
    }
}

/// Production names the whole index from before the route had a platform.
#[tokio::test]
async fn copy_replaces_an_index_by_the_manifest_of_the_platform() {
    let scene = super::scene(only("linux/amd64"));
    let (whole, children) = index(1);
    scene.staging.push("app", "v1", &whole);
    scene.production.push("app", "v1", &whole);
    let [from, to] = [&scene.staging, &scene.production].map(|registry| at(registry, ":v1"));
    scene.run(&["copy", &from, &to]).await.expect(4);
    let copy = ["copy", "--replace", whole.digest(), &from, &to];
    scene.run(&copy).await.expect(0);
    assert_eq!(scene.there("v1").as_deref(), Some(children[0].digest()));
}

/// As for a denied image that production names.
#[tokio::test]
async fn a_denied_index_of_what_production_names_is_counted_and_told() {
    let scene = super::scene(only("linux/amd64"));
    let (whole, children) = index(1);
    let (other, _) = index(2);
    scene.staging.push("app", "v1", &whole);
    scene.staging.push("app", "v2", &other);
    let daemon = scene.ferry.start_ready().await;
    let deny = ["deny", whole.digest(), "--reason", "withdrawn"];
    scene.run(&deny).await.expect(0);
    one_denied_is_told(&daemon).await;
    // Staging names something else by then.
    let (newer, _) = index(3);
    for (tag, count) in [("v1", 1), ("v2", 0)] {
        scene.staging.push("app", "v1", &newer);
        let answer = said(&scene, &["why", &format!("app:{tag}"), "--json"]).await;
        let view = &answer["tags"][0];
        let decisions = view["decisions"].as_array().expect("a list");
        assert_eq!(decisions.len(), count, "{tag}: {view:#}");
    }
    assert_eq!(scene.there("v1").as_deref(), Some(children[0].digest()));
}

#[tokio::test]
async fn why_says_what_a_tag_without_the_platform_names() {
    let scene = super::scene(only("linux/arm64"));
    // By its config it is for linux/amd64.
    let single = Image::oci(9, &[1000]);
    scene.staging.push("app", "v1", &single);
    scene.production.push("app", "v1", &Image::oci(8, &[1000]));
    let _daemon = scene.ferry.start_ready().await;
    let answer = said(&scene, &["why", "app:v1", "--json"]).await;
    let view = &answer["tags"][0];
    assert_eq!(view["result"], "refused", "{view:#}");
    assert_eq!(view["digest"], single.digest(), "{view:#}");
    assert_eq!(view["production"], Image::oci(8, &[1000]).digest());
    let run = scene.run(&["why", "app:v1"]).await.expect(0);
    assert!(!run.stdout.contains("not there"), "{}", run.stdout);
    assert!(
        run.stdout
            .contains("is for linux/amd64, not for linux/arm64"),
        "{}",
        run.stdout
    );
}

/// In a chain the staging tag of the one route is what the other route writes: each wrote over what
/// the other remembered, and both asked again at every poll.
#[tokio::test]
async fn routes_that_read_a_tag_differently_remember_it_separately() {
    let dev = Scripted::start();
    let scene = super::scene(json!({}));
    let config = Config::new()
        .registry("dev", &dev.url())
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .daemon("poll", json!("200ms"))
        .daemon("verify", json!("24h"))
        .raw_route(json!({"name": "first", "from": "dev/app", "to": "staging/app", "tags": {"include": ["*"]}}))
        .raw_route(json!({"name": "second", "from": "staging/app", "to": "production/app",
            "platform": "linux/amd64", "tags": {"include": ["*"]}}));
    scene.ferry.write_config(&config);
    let (whole, children) = index(1);
    dev.push("app", "v1", &whole);
    let _daemon = scene.ferry.start_ready().await;
    scene.named("v1", &children[0]).await;
    super::polled(&scene.staging, 6).await;
    dev.forget_requests();
    super::polled(&scene.staging, 8).await;
    for registry in [&dev, &scene.staging] {
        assert_eq!(registry.count(Kind::ManifestHead), 0);
    }
}
