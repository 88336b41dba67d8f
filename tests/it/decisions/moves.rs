//! Staging moves on, or seems to: what ends by that, and what does not.

use std::time::Duration;

use blobferry::clock;
use blobferry::decision::{Decision, Kind as Ordered};
use blobferry::job::{Actor, Outcome};
use blobferry::ledger::RunFacts;
use blobferry::oci::Digest;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::approve::{approve, scene};
use super::rights::decide;
use super::rollback::{BACK, moved_through};
use super::{Scene, reasons};
use crate::engine::{World, assert_promoted};
use crate::support::*;

impl Scene {
    /// Waits for the looks that decisions woke: what staging names from now on is seen by others.
    async fn woken(&self, daemon: &Daemon, times: f64) {
        let labels = [("cause", "decision")];
        eventually("the decisions' looks have ended", async || {
            let looks = daemon.metric("blobferry_looks_total", &labels).await;
            looks.is_some_and(|looks| looks >= times).then_some(())
        })
        .await;
    }
}

/// One answer of a replica that lagged ended the rollback, and the next look put back what it had
/// kept out.
#[tokio::test]
async fn a_lagging_answer_of_staging_ends_no_rollback() {
    let images: Vec<Image> = (1..=3).map(|seed| Image::oci(seed, &[100])).collect();
    let (scene, daemon) = moved_through(&images.iter().collect::<Vec<_>>()).await;
    scene.run(&BACK).await.expect(0);
    scene.woken(&daemon, 1.0).await;
    assert_eq!(scene.there("latest").as_deref(), Some(images[1].digest()));
    // First the lagging answer, then the right one again.
    for names in [&images[0], &images[2]] {
        scene.staging.tag("app", "latest", names.digest());
        let held = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
        assert_eq!(held.job("latest")["result"], "held");
        assert_eq!(scene.there("latest").as_deref(), Some(images[1].digest()));
    }
    assert_eq!(scene.in_force().await.len(), 1);
    // What is new is promoted at once.
    let next = Image::oci(9, &[100]);
    scene.staging.push("app", "latest", &next);
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(next.digest()));
}

/// One answer of a replica that lagged ended the approval for good.
#[tokio::test]
async fn a_lagging_answer_of_staging_ends_no_approval() {
    let (scene, daemon) = scene(json!({"approval": {"people": 2}})).await;
    let (old, new) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    scene.staging.push("app", "latest", &old);
    scene.staging.push("app", "latest", &new);
    let body = approve("latest", &new);
    assert_eq!(decide(&daemon, Some("bob"), body.clone()).await.0, 201);
    scene.woken(&daemon, 1.0).await;
    scene.staging.tag("app", "latest", old.digest());
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    scene.staging.tag("app", "latest", new.digest());
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert!(reasons(&run.job("latest")).contains("approved by 1 of 2"));
    assert_eq!(decide(&daemon, Some("carol"), body).await.0, 201);
    scene.named("latest", &new).await;
}

/// It had outlived that: what was approved before came back later and was promoted by it.
#[tokio::test]
async fn an_approval_ends_as_well_when_staging_goes_back_to_what_production_names() {
    let (scene, daemon) = scene(json!({"approval": {"people": 2}})).await;
    let (old, new) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    scene.production.push("app", "latest", &old);
    scene.staging.push("app", "latest", &old);
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    scene.staging.push("app", "latest", &new);
    let body = approve("latest", &new);
    assert_eq!(decide(&daemon, Some("bob"), body.clone()).await.0, 201);
    scene.woken(&daemon, 1.0).await;
    scene.staging.tag("app", "latest", old.digest());
    for _ in 0..2 {
        scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    }
    assert_eq!(scene.in_force().await, Vec::<Value>::new());
    scene.staging.tag("app", "latest", new.digest());
    assert_eq!(decide(&daemon, Some("carol"), body).await.0, 201);
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert!(reasons(&run.job("latest")).contains("approved by 1 of 2"));
    assert_eq!(scene.there("latest").as_deref(), Some(old.digest()));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_ends_once_staging_has_named_something_else_for_a_minute() {
    clock::simulate(Timestamp::from_second(1_795_000_000).expect("a time of these years"));
    let world = World::new();
    let [old, bad, next] = ["old", "bad", "next"]
        .map(|of| world.image("app", of, &[world.layer("app", 1, 100)]).digest);
    let staging_names = |digest: &Digest| world.staging.tag("app", "latest", digest);
    let promoted = async || world.promote("app", "latest").await;
    let in_force = async || {
        world
            .engine
            .ledger
            .in_force()
            .await
            .unwrap()
            .decisions
            .len()
    };
    staging_names(&old);
    assert_promoted(&promoted().await);
    let about = "app:latest".parse().expect("a target");
    let back = Decision {
        digest: Some(old),
        replaces: Some(bad),
        keeps_out: vec![bad],
        ..Decision::about(&about, Actor::daemon())
    };
    let ledger = &world.engine.ledger;
    let decided = ledger.decide(Ordered::Rollback, back, RunFacts::default());
    decided.await.expect("it is recorded");
    tokio::time::advance(Duration::from_secs(1)).await;
    // It goes on, and is not taken for a lag: but then the bad one is back.
    staging_names(&next);
    assert_promoted(&promoted().await);
    tokio::time::advance(Duration::from_secs(50)).await;
    staging_names(&bad);
    assert_eq!(promoted().await.outcome, Outcome::Held);
    // Where staging goes back as well, nothing is over.
    staging_names(&old);
    assert_promoted(&promoted().await);
    tokio::time::advance(Duration::from_secs(100)).await;
    assert_eq!(promoted().await.outcome, Outcome::UpToDate);
    staging_names(&next);
    assert_promoted(&promoted().await);
    for expected in [1, 0] {
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(promoted().await.outcome, Outcome::UpToDate);
        assert_eq!(in_force().await, expected);
    }
    staging_names(&bad);
    assert_promoted(&promoted().await);
}
