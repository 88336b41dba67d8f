//! The pusher of a digest does not approve it, whatever the event of the push came to.

use serde_json::json;

use super::approve::{approve, scene, tell_of_push};
use super::rights::decide;
use super::{Scene, reasons};
use crate::support::*;

/// A registry tells of a push, and the look has ended that it asks for.
async fn pushed_by(daemon: &Daemon, tag: &str, pusher: &str) {
    let looks = async || {
        let labels = [("cause", "webhook")];
        let looks = daemon.metric("blobferry_looks_total", &labels).await;
        looks.unwrap_or_default()
    };
    let before = looks().await;
    tell_of_push(daemon, tag, pusher).await;
    eventually("the event's look has ended", async || {
        (looks().await > before).then_some(())
    })
    .await;
}

/// Bob approves, and that does not count.
async fn bob_alone_is_not_enough(scene: &Scene, daemon: &Daemon, tag: &str, image: &Image) {
    let decided = decide(daemon, Some("bob"), approve(tag, image)).await;
    assert_eq!(decided.0, 201, "{}", decided.1);
    let run = scene.ferry.sync(&["--tag", tag]).await.expect(4);
    let why = reasons(&run.job(tag));
    assert!(why.contains("has pushed it and does not count"), "{why}");
    assert_ne!(scene.there(tag).as_deref(), Some(image.digest()));
}

/// The look of a push by bob comes to this result, and bob accepts and approves.
async fn is_noted_for(scene: &Scene, daemon: &Daemon, result: &str) {
    let new = Image::oci(2, &[200]);
    scene.staging.push("app", "v1", &new);
    pushed_by(daemon, "v1", "bob").await;
    let found = scene.ferry.sync(&["--tag", "v1"]).await;
    assert_eq!(found.job("v1")["result"], result);
    let accept = ["accept", "app:v1", "--reason", "CHG-17"];
    scene.run(&accept).await.expect(0);
    bob_alone_is_not_enough(scene, daemon, "v1", &new).await;
    let body = approve("v1", &new);
    assert_eq!(decide(daemon, Some("carol"), body).await.0, 201);
    scene.named("v1", &new).await;
}

/// The look judged no gate, so the pusher was not noted.
#[tokio::test]
async fn a_push_that_meets_a_conflict_has_its_pusher_noted() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    let old = Image::oci(1, &[100]);
    scene.production.push("app", "v1", &old);
    scene.staging.push("app", "v1", &old);
    scene.ferry.sync(&["--tag", "v1"]).await.expect(0);
    is_noted_for(&scene, &daemon, "conflict").await;
}

#[tokio::test]
async fn a_push_that_meets_an_existing_tag_has_its_pusher_noted() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    scene.production.push("app", "v1", &Image::oci(1, &[100]));
    is_noted_for(&scene, &daemon, "existing").await;
}

/// The pusher was noted for what staging named before.
#[tokio::test]
async fn an_event_before_staging_shows_the_push_names_its_pusher_too() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    let (old, new) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    scene.staging.push("app", "latest", &old);
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    pushed_by(&daemon, "latest", "bob").await;
    scene.staging.push("app", "latest", &new);
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    bob_alone_is_not_enough(&scene, &daemon, "latest", &new).await;
}

#[tokio::test]
async fn a_push_by_another_principal_may_be_approved_by_the_pusher_before() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    let images: Vec<Image> = (1..=3).map(|seed| Image::oci(seed, &[100])).collect();
    scene.staging.push("app", "latest", &images[0]);
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    for (image, pusher) in [(&images[1], "bob"), (&images[2], "carol")] {
        scene.staging.push("app", "latest", image);
        pushed_by(&daemon, "latest", pusher).await;
    }
    let body = approve("latest", &images[2]);
    assert_eq!(decide(&daemon, Some("bob"), body).await.0, 201);
    scene.named("latest", &images[2]).await;
}
