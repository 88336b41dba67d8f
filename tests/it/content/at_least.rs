//! `at_least`: a repository that has lost its tags fails the look.

use serde_json::{Value, json};

use crate::support::*;

fn tags() -> Value {
    json!({"tags": {"include": ["v*"], "at_least": 2}})
}

/// A migration left one of twenty tags in staging, and `sync` said that all was well.
#[tokio::test]
async fn a_repository_with_too_few_tags_is_trouble_and_nothing_of_it_is_promoted() {
    let stage = Stage::build(Program::Distribution3, |config| {
        config.route("app", tags()).route("other", json!({}))
    })
    .await;
    let (first, second) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &first).await;
    // Tags that the rules leave out do not count.
    stage.push().push("app", "latest", &second).await;
    stage.push().push("other", "v1", &first).await;

    for asked in [&[][..], &["app", "--tag", "v1"], &["app", "--dry-run"]] {
        let run = stage.ferry.sync(asked).await.expect(1);
        let report = run.report();
        let trouble = report["trouble"][0].as_str().expect("trouble in words");
        let wanted = "/app, and `at_least` asks for 2: nothing of it is promoted";
        assert!(
            trouble.starts_with("route app: the rules choose 1 tags of "),
            "{trouble}"
        );
        assert!(trouble.contains(wanted), "{trouble}");
        assert_eq!(report["totals"]["failed"], 0);
    }
    assert_eq!(stage.there().digest("app", "v1").await, None);
    assert_eq!(stage.there().digest("app", first.digest()).await, None);
    // Another repository is not held up by it.
    stage.there().assert_holds("other", "v1", &first).await;

    stage.push().push("app", "v2", &second).await;
    assert_eq!(stage.sync().await.expect(0).total("promoted"), 2);
    stage.there().assert_holds("app", "v1", &first).await;

    stage.push().delete("app", second.digest()).await;
    let run = stage.sync().await.expect(1);
    assert_eq!(run.report()["trouble"].as_array().map(Vec::len), Some(1));
    stage.there().assert_holds("app", "v2", &second).await;
}

#[tokio::test]
async fn too_few_tags_show_in_status_and_metrics_until_they_are_back() {
    let stage = Stage::with_route(Program::Distribution3, tags()).await;
    let (first, second) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &first).await;
    let daemon = stage.ferry.start_ready().await;
    let labels = [("route", "app"), ("destination", "production")];
    let is_up = || daemon.metric("blobferry_route_up", &labels);
    assert_eq!(is_up().await, Some(0.0));
    let status = stage.ferry.run(&["status"]).await;
    assert!(
        status.stdout.contains("`at_least` asks for 2"),
        "{}",
        status.said()
    );

    // An event that names the tag does not get it past the rule.
    let (code, _) = daemon.ping(json!({"wait": true, "tag": "v1"})).await;
    assert_eq!(code, 502);
    assert_eq!(stage.there().digest("app", "v1").await, None);

    stage.push().push("app", "v2", &second).await;
    let (code, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!((code, &report["totals"]["promoted"]), (200, &json!(2)));
    assert_eq!(is_up().await, Some(1.0));
}
