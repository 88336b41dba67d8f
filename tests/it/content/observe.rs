//! `mode: observe`: what a route would do, and nothing of it.

use serde_json::{Value, json};

use super::image;
use crate::decisions::reasons;
use crate::support::*;

fn observed() -> Value {
    json!({"mode": "observe"})
}

#[tokio::test]
async fn what_a_route_observes_is_reported_and_never_written() {
    let stage = Stage::with_route(Program::Distribution3, observed()).await;
    let (push, there) = (stage.push(), stage.there());
    push.push("app", "v1", &image(1)).await;
    there.push("app", "v1", &image(1)).await;
    push.push("app", "v2", &image(2)).await;
    push.push("app", "v3", &image(3)).await;
    there.push("app", "v3", &image(4)).await;
    // A signature of what both sides have.
    let signature = format!("{}.sig", image(1).digest().replace(':', "-"));
    push.push("app", &signature, &image(5)).await;

    for asked in [&[][..], &["--tag", "v2"]] {
        let run = stage.ferry.sync(asked).await.expect(0);
        let job = run.job("v2");
        assert_eq!(job["result"], "planned");
        assert!(reasons(&job).contains("the route observes"), "{job:#}");
    }
    let run = stage.sync().await.expect(0);
    assert_eq!((run.total("up_to_date"), run.total("existing")), (1, 1));
    let written = stage.target.of(&Kind::WRITES);
    assert!(written.is_empty(), "{written:#?}");
    assert_eq!(there.digest("app", image(2).digest()).await, None);
    assert_eq!(there.tags("app").await, ["v1", "v3"]);
}

#[tokio::test]
async fn a_daemon_shows_what_it_observes_and_takes_no_decision_on_it() {
    let scene = super::scene(observed());
    for (tag, number) in [("v1", 1), ("v2", 2)] {
        scene.staging.push("app", tag, &image(number));
        scene.production.push("app", tag, &image(1));
    }
    scene.staging.push("app", "v3", &image(3));
    let daemon = scene.ferry.start_ready().await;
    let tags = async |state: &str| {
        let labels = [
            ("route", "app"),
            ("destination", "production"),
            ("state", state),
        ];
        daemon.metric("blobferry_tags", &labels).await
    };
    assert_eq!(tags("pending").await, Some(1.0));
    assert_eq!(tags("existing").await, Some(1.0));
    let status = scene.run(&["status"]).await.expect(0).stdout;
    assert!(status.contains("observes: "), "{status}");
    let why = scene.run(&["why", "app:v3"]).await.expect(0).stdout;
    assert!(why.contains("the route observes"), "{why}");

    for decision in ["accept", "approve", "rollback"] {
        let order = [decision, "production/app:v2", "--reason", "INC-4"];
        let refused = scene.run(&order).await.expect(4);
        let said = "route app observes (`mode: observe`): it writes nothing to";
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
    let all = ["accept", "route:app", "--all", "--reason", "INC-4"];
    scene.run(&all).await.expect(4);
    assert_eq!(scene.in_force().await.len(), 0);
    let writes = |kind: &Kind| scene.production.count(*kind);
    assert_eq!(Kind::WRITES.iter().map(writes).sum::<usize>(), 0);

    // The same route promotes once it may.
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route("app", json!({}));
    scene.ferry.write_config(&config);
    daemon.signal("HUP").await;
    scene.named("v3", &image(3)).await;
    // What was equal while it observed is agreed on: a change there is drift.
    scene.production.tag("app", "v1", image(3).digest());
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "drift");
    assert_eq!(
        scene
            .run(&["accept", "app:v1", "--reason", "ours"])
            .await
            .code,
        0
    );
}

/// What a person changes while the route observes is no less a person's change than before.
#[tokio::test]
async fn a_drift_that_is_observed_is_recorded_and_stays() {
    let scene = super::scene(json!({}));
    let config = |route: Value| {
        Config::new()
            .registry("staging", &scene.staging.url())
            .registry("production", &scene.production.url())
            .route("app", route)
    };
    let sync = async |code: i32| {
        let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(code);
        run.job("latest")["result"].clone()
    };
    scene.staging.push("app", "latest", &image(1));
    assert_eq!(sync(0).await, "promoted");
    scene.ferry.write_config(&config(observed()));
    scene.production.push("app", "latest", &image(2));
    assert_eq!(sync(4).await, "drift");
    let history = scene.run(&["history", "app:latest"]).await.expect(0);
    assert!(history.stdout.contains("drift"), "{}", history.stdout);
    scene.staging.push("app", "latest", &image(2));
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    scene.ferry.write_config(&config(json!({})));
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    scene.staging.push("app", "latest", &image(3));
    assert_eq!(sync(4).await, "drift");
    assert_eq!(
        scene.production.tagged("app", "latest").as_deref(),
        Some(image(2).digest())
    );
}

/// What is old enough by the time that the route promotes waits no more.
#[tokio::test]
async fn an_age_begins_while_the_route_observes() {
    let scene = super::scene(json!({"mode": "observe", "gates": {"min_age": "1h"}}));
    scene.staging.push("app", "v1", &image(1));
    let plan = scene.ferry.sync(&["--dry-run"]).await.expect(0);
    let seen = |run: &Run| run.job("v1")["gates"][0]["evidence"]["first_seen"].clone();
    assert!(seen(&plan).is_null(), "{}", plan.said());
    let first = seen(&scene.ferry.sync(&[]).await.expect(0));
    assert!(first.is_string(), "{first}");
    assert_eq!(seen(&scene.ferry.sync(&[]).await.expect(0)), first);
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route("app", json!({"gates": {"min_age": "1h"}}));
    scene.ferry.write_config(&config);
    assert_eq!(seen(&scene.ferry.sync(&[]).await.expect(0)), first);
}
