//! A person agrees: approvals, and gates that are passed although they are not met.

use serde_json::{Value, json};

use super::rights::{decide, user};
use super::{Scene, reasons};
use crate::support::*;

/// A scene with these gates, and tokens of two principals and of this user.
pub async fn scene(gates: Value) -> (Scene, Daemon) {
    let scene = Scene::new();
    let file = |name: &str| scene.ferry.file(name, &format!("token of {name}\n"));
    let tokens = json!({
        "bob": {"file": file("bob"), "may": "approve"},
        "carol": {"file": file("carol"), "may": ["approve", "override"]},
        "mine": {"file": file("mine"), "may": "approve", "user": user()},
    });
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route("app", json!({"gates": gates}))
        .receiver(
            "pushes",
            json!({"kind": "generic", "registry": "staging", "unauthenticated": true}),
        )
        .daemon("tokens", tokens);
    scene.ferry.write_config(&config);
    let daemon = scene.ferry.start().await;
    (scene, daemon)
}

pub fn approve(tag: &str, image: &Image) -> Value {
    json!({"kind": "approve", "target": format!("app:{tag}"), "digest": image.digest()})
}

/// The receiver of [`scene`] is told of a push.
pub async fn tell_of_push(daemon: &Daemon, tag: &str, pusher: &str) {
    let event = json!({"repository": "app", "tag": tag, "pusher": pusher});
    daemon.notify("pushes", &event).await;
}

/// An approval tells what still holds the tag, and is none of what never goes.
#[tokio::test]
async fn an_approval_tells_what_stands_against_it() {
    let scene = Scene::new();
    let tags = json!({"include": ["*"], "exclude": ["*-rc1"]});
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route(
            "app",
            json!({"gates": {"approval": {"people": 1}}, "tags": tags}),
        );
    scene.ferry.write_config(&config);
    let _daemon = scene.ferry.start().await;
    let (good, bad) = (Image::oci(1, &[100]), Image::oci(2, &[100]));
    for tag in ["v1", "v1-rc1"] {
        scene.staging.push("app", tag, &good);
    }
    scene.staging.push("app", "v2", &bad);
    scene.ferry.sync(&[]).await.expect(0);
    let deny = ["deny", bad.digest(), "--reason", "CVE-2026-1"];
    scene.run(&deny).await.expect(0);
    let approve = ["approve", "app:v2", "--digest", bad.digest()];
    let denied = scene.run(&approve).await.expect(4);
    assert!(denied.stderr.contains("CVE-2026-1"), "{}", denied.stderr);
    let excluded = ["approve", "app:v1-rc1", "--digest", good.digest()];
    let excluded = scene.run(&excluded).await.expect(5);
    assert!(excluded.stderr.contains("leave"), "{}", excluded.stderr);
    scene.run(&["hold", "--reason", "CHG-17"]).await.expect(0);
    let approve = ["approve", "app:v1", "--digest", good.digest()];
    let held = scene.run(&approve).await.expect(0);
    assert!(held.stdout.contains("it waits: "), "{}", held.stdout);
    assert!(held.stdout.contains("CHG-17"), "{}", held.stdout);
}

#[tokio::test]
async fn a_person_agrees() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    let image = Image::oci(1, &[1000]);
    scene.staging.push("app", "v1", &image);
    scene.staging.push("app", "latest", &image);
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = run.job("v1");
    assert_eq!(job["result"], "waiting");
    assert!(
        reasons(&job).contains("approval: approved by 0 of 1"),
        "{job:#}"
    );
    assert_eq!(scene.there("v1"), None);
    for blob in image.unique_blobs() {
        let is_there = scene.production.holds("app", &blob.digest);
        assert!(is_there, "it is carried meanwhile");
    }
    // Of another digest than the one that was seen it is refused.
    let other = Image::oci(2, &[2000]);
    let wrong = ["approve", "app:v1", "--digest", other.digest()];
    scene.run(&wrong).await.expect(4);
    let approved = scene.run(&["approve", "app:v1"]).await.expect(0);
    assert!(
        approved.stdout.contains(image.digest()),
        "{}",
        approved.stdout
    );
    scene.named("v1", &image).await;
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(image.digest()));
    // It is used up.
    let labels = [("kind", "approve")];
    let in_force = daemon.metric("blobferry_decisions_in_force", &labels).await;
    assert_eq!(in_force, Some(0.0));
    let history = scene.run(&["history", "--json"]).await.stdout;
    assert!(history.contains("approved_by"), "{history}");

    // It was about that digest.
    scene.staging.push("app", "latest", &other);
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(run.job("latest")["result"], "waiting");
    assert_eq!(scene.there("latest").as_deref(), Some(image.digest()));
}

/// Each stayed in force until it was released, and named its tag again after that was deleted in
/// production.
#[tokio::test]
async fn an_approval_that_was_used_is_over() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    let body = approve("v1", &image);
    assert_eq!(decide(&daemon, Some("bob"), body.clone()).await.0, 201);
    scene.named("v1", &image).await;
    scene.ferry.sync(&["--tag", "v1"]).await.expect(0);
    assert_eq!(scene.in_force().await, Vec::<Value>::new());
    scene.production.untag("app", "v1");
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert!(reasons(&run.job("v1")).contains("approved by 0 of 1"));
    assert_eq!(scene.there("v1"), None);
    // A moving tag follows the tag that was named by it, also much later.
    scene.staging.push("app", "latest", &image);
    assert_eq!(decide(&daemon, Some("bob"), body).await.0, 201);
    scene.named("v1", &image).await;
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(image.digest()));
    scene.run(&["history", "--verify"]).await.expect(0);
}

#[tokio::test]
async fn an_approval_ends_when_staging_moves() {
    let gates = json!({"approval": {"people": 2}});
    let (scene, daemon) = scene(gates).await;
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    scene.staging.push("app", "latest", &first);
    let body = approve("latest", &first);
    assert_eq!(decide(&daemon, Some("bob"), body.clone()).await.0, 201);
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    scene.staging.push("app", "latest", &second);
    for _ in 0..2 {
        scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    }
    assert_eq!(scene.in_force().await.len(), 0);
    // Staging moves back, and the approval does not come back.
    scene.staging.push("app", "latest", &first);
    assert_eq!(decide(&daemon, Some("carol"), body).await.0, 201);
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert!(reasons(&run.job("latest")).contains("approved by 1 of 2"));
    assert_eq!(scene.there("latest"), None);
}

#[tokio::test]
async fn socket_and_token_of_one_person_are_one_approval() {
    let (scene, daemon) = scene(json!({"approval": {"people": 2}})).await;
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    let claimed = ["approve", "app:v1", "--actor", "somebody-else"];
    scene.run(&claimed).await.expect(0);
    scene.run(&["approve", "app:v1"]).await.expect(0);
    let body = approve("v1", &image);
    assert_eq!(decide(&daemon, Some("mine"), body.clone()).await.0, 201);
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert!(reasons(&run.job("v1")).contains("approved by 1 of 2"));
    assert_eq!(decide(&daemon, Some("bob"), body).await.0, 201);
    scene.named("v1", &image).await;
}

#[tokio::test]
async fn who_pushed_it_does_not_count() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    tell_of_push(&daemon, "v1", &user()).await;
    daemon.says("approved by 0 of 1").await;
    scene.run(&["approve", "app:v1"]).await.expect(0);
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let why = reasons(&run.job("v1"));
    assert!(why.contains("has pushed it and does not count"), "{why}");
    // Not after a restart either.
    daemon.killed().await;
    let daemon = scene.ferry.start().await;
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(scene.there("v1"), None);
    let body = approve("v1", &image);
    assert_eq!(decide(&daemon, Some("bob"), body).await.0, 201);
    scene.named("v1", &image).await;
}

#[tokio::test]
async fn a_person_passes_gates_that_are_not_met_for_one_digest() {
    let gates = json!({
        "window": {"open": "mon-sun", "closed": ["2000-01-01/2999-12-31"]},
        "command": {"run": ["/bin/sh", "-c", "exit 1"]},
    });
    let (scene, daemon) = scene(gates).await;
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    scene.staging.push("app", "v2", &Image::oci(2, &[200]));
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let with = |more: Value| {
        let mut body = approve("v1", &image);
        let more = more.as_object().expect("keys").clone();
        body.as_object_mut().expect("an object").extend(more);
        body
    };
    let despite = json!({"despite": ["window", "command"], "reason": "INC-4"});
    let unsaid = json!({"despite": ["window"]});
    let long = json!({"despite": ["window"], "reason": "INC-4", "until": "25h"});
    let blind = json!({"digest": null});
    for (token, body, expected, said) in [
        (
            "bob",
            with(despite.clone()),
            403,
            "not the right `override`",
        ),
        ("carol", with(unsaid), 400, "needs a `reason`"),
        ("carol", with(long), 400, "24 hours"),
        ("carol", with(json!({"despite": ["luck"]})), 400, "luck"),
        ("carol", with(blind), 400, "names the `digest`"),
        (
            "carol",
            with(json!({"target": "app:v9"})),
            404,
            "staging has nothing",
        ),
        (
            "carol",
            with(json!({"target": "app:v2"})),
            409,
            "look again",
        ),
    ] {
        let (status, answer) = decide(&daemon, Some(token), body.clone()).await;
        assert_eq!(status, expected, "{token} {body}: {answer}");
        assert!(answer.to_string().contains(said), "{body}: {answer}");
    }
    // One of the two is not enough.
    let half = [
        "approve",
        "app:v1",
        "--despite",
        "window",
        "--reason",
        "INC-4",
    ];
    scene.run(&half).await.expect(0);
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "refused");
    assert_eq!(scene.there("v1"), None);
    let (status, answer) = decide(&daemon, Some("carol"), with(despite)).await;
    assert_eq!(status, 201, "{answer}");
    assert!(answer["until"].is_string(), "it has an end: {answer}");
    scene.named("v1", &image).await;
    let overrides = daemon.metric("blobferry_overrides_total", &[]).await;
    assert_eq!(overrides, Some(2.0));
    let history = scene.run(&["history", "--json"]).await.stdout;
    assert!(history.contains("passed by carol: INC-4"), "{history}");
    let run = scene.ferry.sync(&["--tag", "v2"]).await.expect(4);
    assert_eq!(run.job("v2")["result"], "refused");
}

#[tokio::test]
async fn a_release_takes_an_approval_back() {
    let (scene, daemon) = scene(json!({"approval": {"people": 2}})).await;
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    scene.run(&["approve", "app:v1"]).await.expect(0);
    scene.run(&["release", "app:v1"]).await.expect(0);
    assert_eq!(
        decide(&daemon, Some("bob"), approve("v1", &image)).await.0,
        201
    );
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert!(reasons(&run.job("v1")).contains("approved by 1 of 2"));
    assert_eq!(scene.there("v1"), None);
}

/// An override of a gate that is not there was recorded, counted, and passed nothing.
#[tokio::test]
async fn a_gate_that_the_route_has_not_is_passed_by_nobody() {
    let gates = json!({"window": {"open": "mon-sun", "closed": ["2000-01-01/2999-12-31"]}});
    let (scene, daemon) = scene(gates).await;
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    let wrong = ["approve", "app:v1", "--reason", "INC-4", "--despite"];
    let said = "route app has no gate `min_age`; its gates are window";
    let by_hand = [&wrong[..], &["window,min_age"]].concat();
    let by_hand = scene.run(&by_hand).await.expect(2);
    assert!(by_hand.stderr.contains(said), "{}", by_hand.stderr);
    let mut body = approve("v1", &image);
    body["despite"] = json!(["min_age"]);
    body["reason"] = json!("INC-4");
    let (status, answer) = decide(&daemon, Some("carol"), body).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains(said), "{answer}");
    assert_eq!(scene.in_force().await, Vec::<Value>::new());
    let right = [&wrong[..], &["window"]].concat();
    scene.run(&right).await.expect(0);
    scene.named("v1", &image).await;
}
