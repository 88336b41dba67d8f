//! What a person accepts moves once, and only from where it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::Scene;
use crate::support::rules::Gate;
use crate::support::scripted::Answer;
use crate::support::*;

#[tokio::test]
async fn what_is_accepted_moves_once_and_only_from_where_it_was() {
    let scene = Scene::new();
    let (first, second, theirs) = (
        Image::oci(1, &[100]),
        Image::oci(2, &[200]),
        Image::oci(3, &[300]),
    );
    scene.staging.push("app", "v1", &first);
    let _daemon = scene.ferry.start_ready().await;
    scene.staging.push("app", "v1", &second);
    scene.ferry.sync(&[]).await.expect(4);
    let accept = [
        "accept",
        "production/app:v1",
        "--reason",
        "the rebuild is right",
    ];
    // Of another digest than the one that was seen it is refused.
    let other = [&accept[..], &["--digest", first.digest()]].concat();
    let refused = scene.run(&other).await.expect(4);
    assert!(refused.stderr.contains("look again"), "{}", refused.stderr);
    scene.run(&["hold", "app:v1"]).await.expect(0);
    let run = scene.run(&accept).await.expect(0);
    assert!(
        run.stdout.contains(second.digest()) && run.stdout.contains(first.digest()),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("it waits: app:v1 is held by") && run.stdout.contains("(decision 4)"),
        "{}",
        run.stdout
    );
    assert_eq!(
        scene.ferry.sync(&["--tag", "v1"]).await.expect(4).job("v1")["result"],
        "held",
        "holds apply"
    );
    scene.run(&["release", "app:v1"]).await.expect(0);
    scene.named("v1", &second).await;
    eventually("it is over", async || {
        scene.in_force().await.is_empty().then_some(())
    })
    .await;
    // Once: the next change is a conflict again.
    scene.staging.push("app", "v1", &theirs);
    scene.ferry.sync(&[]).await.expect(4);
    assert_eq!(scene.there("v1").as_deref(), Some(second.digest()));

    // Production changed by hand to what staging names: a person agrees.
    scene.production.push("app", "v1", &theirs);
    let agreed = scene.run(&accept).await.expect(0);
    assert!(
        agreed.stdout.contains("both sides name"),
        "{}",
        agreed.stdout
    );
    assert_eq!(scene.in_force().await.len(), 0);
    scene.ferry.sync(&[]).await.expect(0);
    let nothing = ["accept", "production/app:v9", "--reason", "x"];
    scene.run(&nothing).await.expect(5);
    let wide = ["accept", "production/**", "--reason", "x"];
    scene.run(&wide).await.expect(2);
    let silent = ["accept", "production/app:v1"];
    scene.run(&silent).await.expect(2);
}

#[tokio::test]
async fn all_existing_tags_of_a_route_are_accepted_as_they_were_reported() {
    let scene = Scene::new();
    let theirs = Image::oci(9, &[900]);
    let ours: Vec<Image> = (1..=3).map(|seed| Image::oci(seed, &[100])).collect();
    for (tag, image) in ["v1", "v2", "latest"].into_iter().zip(&ours) {
        scene.staging.push("app", tag, image);
        scene.production.push("app", tag, &theirs);
    }
    let _daemon = scene.ferry.start_ready().await;
    let run = scene.ferry.sync(&[]).await;
    assert_eq!(run.total("existing"), 3);
    // One of them changes after the report.
    let newer = Image::oci(4, &[400]);
    scene.staging.push("app", "v2", &newer);
    let accept = ["accept", "route:app", "--all", "--reason", "first start"];
    let accepted = scene.run(&accept).await.expect(0);
    assert!(
        accepted.stdout.contains(": accept route:app, 3 tags"),
        "{}",
        accepted.stdout
    );
    scene.named("v1", &ours[0]).await;
    scene.named("latest", &ours[2]).await;
    let run = scene.ferry.sync(&["--tag", "v2"]).await;
    assert_eq!(run.job("v2")["result"], "existing");
    assert_eq!(scene.there("v2").as_deref(), Some(theirs.digest()));
    // Once: what is put back by hand stays.
    scene.production.push("app", "v1", &theirs);
    scene.ferry.sync(&["--tag", "v1"]).await;
    assert_eq!(scene.there("v1").as_deref(), Some(theirs.digest()));
    let narrow = ["accept", "app:v1", "--all", "--reason", "x"];
    scene.run(&narrow).await.expect(2);
}

#[tokio::test]
async fn accept_takes_a_daemon() {
    let scene = Scene::new();
    let accept = ["accept", "app:v1", "--reason", "x"];
    let run = scene.run(&accept).await.expect(1);
    assert!(
        run.stderr.contains("no daemon is running") && run.stderr.contains("--replace DIGEST"),
        "{}",
        run.stderr
    );
}

const ACCEPT: [&str; 4] = ["accept", "app:v1", "--reason", "the rebuild is right"];

/// `v1` names the first image in production, and staging moved it to the second.
async fn in_conflict() -> (Scene, Daemon, Image, Image) {
    let scene = Scene::new();
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    scene.staging.push("app", "v1", &first);
    let daemon = scene.ferry.start_ready().await;
    scene.staging.push("app", "v1", &second);
    scene.ferry.sync(&[]).await.expect(4);
    scene.production.forget_requests();
    (scene, daemon, first, second)
}

/// A look finds the tag in conflict, and production keeps its image.
async fn stays(scene: &Scene, image: &Image) {
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = run.job("v1");
    assert_eq!(job["result"], "conflict", "{job:#}");
    assert_eq!(scene.there("v1").as_deref(), Some(image.digest()));
}

/// The kinds of the decisions in force.
async fn kinds(scene: &Scene) -> Vec<String> {
    let in_force = scene.in_force().await;
    let kind = |one: &serde_json::Value| one["kind"].as_str().expect("a kind").to_owned();
    in_force.iter().map(kind).collect()
}

#[tokio::test]
async fn an_accept_that_was_released_while_its_image_is_carried_names_nothing() {
    let (scene, _daemon, first, second) = in_conflict().await;
    let gate = Gate::closed();
    let at_gate = gate.clone();
    scene.production.on(move |asked| match asked.kind {
        Kind::UploadPost => Answer::Hold(at_gate.clone()),
        _ => Answer::Pass,
    });
    scene.run(&ACCEPT).await.expect(0);
    gate.arrived(1).await;
    scene.run(&["release", "app:v1"]).await.expect(0);
    gate.open();
    // It takes its turn at the tag after the job that carries.
    stays(&scene, &first).await;
    assert_eq!(scene.production.of(Kind::ManifestPut).len(), 0);
    // Accepted again, it moves.
    scene.run(&ACCEPT).await.expect(0);
    scene.named("v1", &second).await;
}

#[tokio::test]
async fn an_accept_that_was_released_while_its_name_is_refused_names_nothing() {
    let (scene, _daemon, first, _second) = in_conflict().await;
    scene.production.on(|asked| match asked.kind {
        Kind::ManifestPut => Answer::Reply(Reply::status(429).header("retry-after", "1")),
        _ => Answer::Pass,
    });
    scene.run(&ACCEPT).await.expect(0);
    scene.production.seen(Kind::ManifestPut, 1).await;
    scene.run(&["release", "app:v1"]).await.expect(0);
    scene.production.calm();
    stays(&scene, &first).await;
}

#[tokio::test]
async fn an_accept_is_over_when_its_name_is_found_moved() {
    let (scene, daemon, first, second) = in_conflict().await;
    let has_moved = Arc::new(AtomicBool::new(false));
    scene.production.on(move |asked| match asked.kind {
        Kind::ManifestPut => {
            has_moved.store(true, Ordering::Relaxed);
            Answer::Lose
        }
        Kind::ManifestHead | Kind::ManifestGet if has_moved.load(Ordering::Relaxed) => Answer::Hang,
        _ => Answer::Pass,
    });
    scene.run(&ACCEPT).await.expect(0);
    scene.named("v1", &second).await;
    daemon.killed().await;
    scene.production.calm();
    let _daemon = scene.ferry.start_ready().await;
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(kinds(&scene).await, Vec::<String>::new());
    // What a person puts back stays.
    scene.production.tag("app", "v1", first.digest());
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(scene.there("v1").as_deref(), Some(first.digest()));
    scene.run(&["history", "--verify"]).await.expect(0);
}

#[tokio::test]
async fn an_accept_is_over_when_either_side_moves() {
    let (scene, _daemon, first, second) = in_conflict().await;
    let third = Image::oci(3, &[300]);
    scene.run(&["hold", "app:v1"]).await.expect(0);
    for (registry, digest) in [
        (&scene.staging, third.digest()),
        (&scene.staging, first.digest()),
        (&scene.production, third.digest()),
        (&scene.production, second.digest()),
    ] {
        scene.run(&ACCEPT).await.expect(0);
        assert_eq!(kinds(&scene).await, ["hold", "accept"]);
        registry.push_untagged("app", &third);
        registry.push_untagged("app", &second);
        registry.tag("app", "v1", digest);
        scene.ferry.sync(&["--tag", "v1"]).await;
        assert_eq!(kinds(&scene).await, ["hold"], "{digest}");
        let history = scene.run(&["history"]).await.expect(0);
        let why = format!(" names {digest}");
        assert!(history.stdout.contains(&why), "{}", history.stdout);
        // Back to where it was accepted.
        scene.staging.tag("app", "v1", second.digest());
        scene.production.tag("app", "v1", first.digest());
    }
    scene.run(&["release", "app:v1"]).await.expect(0);
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(scene.there("v1").as_deref(), Some(first.digest()));
}

#[tokio::test]
async fn what_is_denied_is_not_accepted() {
    let (scene, _daemon, first, second) = in_conflict().await;
    let deny = ["deny", second.digest(), "--reason", "CVE"];
    scene.run(&deny).await.expect(0);
    let refused = scene.run(&ACCEPT).await.expect(4);
    assert!(
        refused.stderr.contains("is denied by"),
        "{}",
        refused.stderr
    );
    assert_eq!(kinds(&scene).await, ["deny"]);
    scene.run(&["release", second.digest()]).await.expect(0);
    stays(&scene, &first).await;
}

#[tokio::test]
async fn an_accept_of_a_route_without_existing_tags_is_refused() {
    let (scene, _daemon, first, _second) = in_conflict().await;
    let accept = ["accept", "route:app", "--all", "--reason", "first start"];
    let nothing = scene.run(&accept).await.expect(5);
    assert!(
        nothing
            .stderr
            .contains("no tag of route:app was reported as existing"),
        "{}",
        nothing.stderr
    );
    stays(&scene, &first).await;
}

/// A tag of which a gate will have none was accepted in silence.
#[tokio::test]
async fn an_accept_tells_which_gates_keep_its_tag() {
    let scene = Scene::new();
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    for (tag, image) in [("v1", &first), ("v1.5.0", &first), ("latest", &first)] {
        scene.staging.push("app", tag, image);
    }
    let daemon = scene.ferry.start_ready().await;
    let tags = json!({"include": ["*"], "moving": ["latest"], "forward_only": ["latest"]});
    let route = json!({"tags": tags, "gates": {"approval": {"people": 1}}});
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route("app", route);
    scene.ferry.write_config(&config);
    daemon.signal("HUP").await;
    daemon.says("the config was read again").await;
    let other = Image::oci(3, &[300]);
    for (tag, image) in [("v1", &second), ("v1.4.0", &second), ("latest", &second)] {
        scene.staging.push("app", tag, image);
    }
    scene.production.push("app", "latest", &other);
    scene.ferry.sync(&[]).await.expect(4);
    let accept = async |tag: &str| {
        let target = format!("app:{tag}");
        let run = scene.run(&["accept", &target, "--reason", "CHG-17"]).await;
        run.expect(0).stdout
    };
    let fixed = accept("v1").await;
    assert!(
        fixed.contains("it waits: approval: approved by 0 of 1"),
        "{fixed}"
    );
    scene.run(&["approve", "app:v1"]).await.expect(0);
    scene.named("v1", &second).await;
    let moving = accept("latest").await;
    assert!(moving.contains("it waits: forward_only: "), "{moving}");
    let agreed = scene.run(&["approve", "app:latest"]).await.expect(0).stdout;
    assert!(agreed.contains("it waits: forward_only: "), "{agreed}");
    assert_eq!(scene.there("latest").as_deref(), Some(other.digest()));
}
