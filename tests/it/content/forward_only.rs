//! `forward_only`: a moving tag never goes to a lower version.

use serde_json::{Value, json};

use super::image;
use crate::decisions::Scene;
use crate::support::rules::Gate;
use crate::support::scripted::Answer;
use crate::support::*;

fn tags() -> Value {
    json!({"tags": {"include": ["*"], "forward_only": "latest"}})
}

async fn push(stage: &Stage, tag: &str, version: u64) {
    stage.push().push("app", tag, &image(version)).await;
}

/// Staging and production name version 5 under `latest`; staging has version 4, too.
async fn released() -> Stage {
    let stage = Stage::with_route(Program::Distribution3, tags()).await;
    push(&stage, "v1.4.0", 4).await;
    push(&stage, "v1.5.0", 5).await;
    push(&stage, "latest", 5).await;
    assert_eq!(stage.sync().await.expect(0).total("promoted"), 3);
    stage
}

fn reasons(job: &Value) -> String {
    job["reasons"].to_string()
}

/// A rebuild of an old branch moved `latest` in staging, and production went back with it.
#[tokio::test]
async fn latest_never_goes_to_a_lower_version() {
    let stage = released().await;
    push(&stage, "latest", 4).await;
    let run = stage.sync().await.expect(4);
    let job = run.job("latest");
    assert_eq!(job["result"], "refused");
    let said = "forward_only: staging names v1.4.0, which is lower than production's v1.5.0";
    assert!(reasons(&job).contains(said), "{job:#}");
    assert_eq!(job["gates"][0]["gate"], "forward_only");
    assert_eq!(job["gates"][0]["verdict"], "refuse");
    stage.there().assert_holds("app", "latest", &image(5)).await;

    // An order is no way around it.
    let (from, to) = (stage.source.address(), stage.target.address());
    let (from, to) = (format!("{from}/app:latest"), format!("{to}/app:latest"));
    stage.ferry.run(&["copy", &from, &to]).await.expect(4);
    stage.there().assert_holds("app", "latest", &image(5)).await;

    let older = from.replace(":latest", ":v1.4.0");
    stage.ferry.run(&["copy", &older, &to]).await.expect(4);
    stage.there().assert_holds("app", "latest", &image(5)).await;

    // A rollback goes back, and what the rule says is recorded.
    push(&stage, "v1.6.0", 6).await;
    push(&stage, "latest", 6).await;
    assert_eq!(stage.sync().await.expect(0).total("promoted"), 2);
    stage.there().assert_holds("app", "latest", &image(6)).await;
    let back = ["rollback", "production/app:latest", "--reason", "INC-4"];
    stage.ferry.run(&back).await.expect(0);
    stage.there().assert_holds("app", "latest", &image(5)).await;
    let history = stage.ferry.run(&["history", "app:latest", "--json"]).await;
    let said = "staging names v1.5.0, which is lower than production's v1.6.0";
    assert!(history.stdout.contains(said), "{}", history.said());
}

#[tokio::test]
async fn an_image_without_a_version_waits_for_one_and_is_not_carried() {
    let stage = released().await;
    push(&stage, "latest", 6).await;
    // A tag that is no version is none, nor is one of another image.
    push(&stage, "edge", 7).await;
    let run = stage.ferry.sync(&["--tag", "latest"]).await.expect(4);
    let job = run.job("latest");
    assert_eq!(job["result"], "waiting");
    let said = format!(
        "staging names {}, and no version tag does",
        image(6).digest()
    );
    assert!(reasons(&job).contains(&said), "{job:#}");
    assert_eq!(stage.there().digest("app", image(6).digest()).await, None);

    push(&stage, "v1.6.0", 6).await;
    let run = stage.ferry.sync(&["--tag", "latest"]).await.expect(0);
    let job = run.job("latest");
    assert_eq!(job["result"], "promoted");
    let evidence = json!({"staging": "v1.6.0", "production": "v1.5.0"});
    assert_eq!(job["gates"][0]["evidence"], evidence);
    stage.there().assert_holds("app", "latest", &image(6)).await;
}

/// Staging keeps its newest tags only: what production still names has no tag there any more.
#[tokio::test]
async fn production_knows_the_version_of_what_staging_has_dropped() {
    let renamed = json!({"to": "production/app:prod-{tag}", "tags": tags()["tags"]});
    let stage = Stage::with_route(Program::Distribution3, renamed).await;
    push(&stage, "v1.5.0", 5).await;
    push(&stage, "latest", 5).await;
    assert_eq!(stage.sync().await.expect(0).total("promoted"), 2);
    stage.push().delete("app", image(5).digest()).await;
    for (version, code, result) in [(4, 4, "refused"), (6, 0, "promoted")] {
        push(&stage, &format!("v1.{version}.0"), version).await;
        push(&stage, "latest", version).await;
        let run = stage.sync().await.expect(code);
        assert_eq!(run.job("latest")["result"], result, "{}", run.said());
    }
    let there = stage.there();
    there.assert_holds("app", "prod-latest", &image(6)).await;
}

fn scene() -> Scene {
    super::scene(tags())
}

/// A route of `latest` alone: a version that is pushed again is no conflict.
fn latest_alone() -> Scene {
    super::scene(json!({"tags": {"include": ["latest"], "forward_only": "latest"}}))
}

/// `v1.6.0` had named another image when it was asked last, so `latest` went back to `v1.6.0-rc.4`.
#[tokio::test]
async fn what_a_version_tag_named_before_lets_nothing_go_back() {
    let scene = latest_alone();
    let push = |tag: &str, version| scene.staging.push("app", tag, &image(version));
    push("v1.6.0", 6);
    push("v1.6.0-rc.3", 3);
    push("latest", 3);
    let _daemon = scene.ferry.start_ready().await;
    assert_eq!(scene.there("latest").as_deref(), Some(image(3).digest()));
    // The candidate becomes the release, and another one is built.
    push("v1.6.0", 3);
    push("v1.6.0-rc.4", 4);
    push("latest", 4);
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(run.job("latest")["result"], "refused", "{}", run.said());
    assert_eq!(scene.there("latest").as_deref(), Some(image(3).digest()));
}

/// A build that is repeated pushes its version again: `latest` waited until memory was too old.
#[tokio::test]
async fn a_version_that_is_pushed_again_is_found_at_the_next_look() {
    let scene = latest_alone();
    let push = |tag: &str, version| scene.staging.push("app", tag, &image(version));
    push("v1.4.0", 4);
    push("v1.5.0", 7);
    push("latest", 4);
    let _daemon = scene.ferry.start_ready().await;
    // No version tag names this one: all are asked.
    push("latest", 6);
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(run.job("latest")["result"], "waiting", "{}", run.said());
    push("v1.5.0", 5);
    push("latest", 5);
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    assert_eq!(run.job("latest")["result"], "promoted", "{}", run.said());
    assert_eq!(scene.there("latest").as_deref(), Some(image(5).digest()));
}

#[tokio::test]
async fn accept_and_approve_are_stopped_by_it_and_an_override_is_not() {
    let scene = scene();
    let push = |tag: &str, version| scene.staging.push("app", tag, &image(version));
    push("v1.4.0", 4);
    push("v1.5.0", 5);
    push("latest", 4);
    let _daemon = scene.ferry.start_ready().await;
    assert_eq!(scene.there("latest").as_deref(), Some(image(4).digest()));
    // A person moves it forward by hand.
    scene.production.tag("app", "latest", image(5).digest());
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    for decision in ["accept", "approve"] {
        let order = [decision, "app:latest", "--reason", "as staging has it"];
        scene.run(&order).await.expect(0);
        let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
        assert_eq!(run.job("latest")["result"], "refused", "{}", run.said());
        let why = scene.run(&["why", "app:latest"]).await.expect(0).stdout;
        assert!(
            why.contains("v1.4.0, which is lower than production's v1.5.0"),
            "{why}"
        );
    }
    assert_eq!(scene.there("latest").as_deref(), Some(image(5).digest()));
    let despite = [
        "approve",
        "app:latest",
        "--despite",
        "forward_only",
        "--reason",
        "INC-4",
    ];
    scene.run(&despite).await.expect(0);
    scene.named("latest", &image(4)).await;
}

/// The version tag was taken away while its image was carried.
#[tokio::test]
async fn versions_are_judged_again_before_the_tag_moves() {
    let scene = scene();
    let push = |tag: &str, version| scene.staging.push("app", tag, &image(version));
    push("v1.5.0", 5);
    push("latest", 5);
    scene.ferry.sync(&[]).await.expect(0);
    push("v1.6.0", 6);
    push("latest", 6);
    let gate = Gate::closed();
    let held = gate.clone();
    scene.staging.on(move |asked| match asked.kind {
        Kind::BlobGet => Answer::Hold(held.clone()),
        _ => Answer::Pass,
    });
    let look = scene.ferry.sync(&["--tag", "latest"]);
    let change = async {
        gate.arrived(1).await;
        scene.staging.untag("app", "v1.6.0");
        gate.open();
    };
    let (run, ()) = tokio::join!(look, change);
    let run = run.expect(4);
    assert_eq!(run.job("latest")["result"], "waiting", "{}", run.said());
    assert_eq!(scene.there("latest").as_deref(), Some(image(5).digest()));

    scene.staging.tag("app", "v1.6.0", image(6).digest());
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(image(6).digest()));
}

#[tokio::test]
async fn what_is_up_to_date_costs_no_request_for_its_version() {
    let mut costs = Vec::new();
    for route in [json!({}), tags()] {
        let scene = super::scene(route);
        for version in 1..=3 {
            let tag = format!("v1.{version}.0");
            scene.staging.push("app", &tag, &image(version));
        }
        scene.staging.push("app", "latest", &image(3));
        scene.ferry.sync(&[]).await.expect(0);
        scene.staging.forget_requests();
        scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
        costs.push(scene.staging.log().len());
    }
    assert_eq!(costs[0], costs[1]);
}
