//! Those who ask: what they are told, and that none of them gets in the way of another.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::*;

fn wild(name: &str, from: &str, to: &str) -> Value {
    json!({"name": name, "from": from, "to": to, "tags": {"include": ["*"]}})
}

/// Two asked and waited when the daemon was told to stop; they were answered as if nothing had
/// matched.
#[tokio::test]
async fn whoever_waits_at_a_drain_or_a_reload_is_told_of_an_interruption() {
    let stage = Stage::build(Program::Distribution3, |config| {
        config.daemon("grace", json!("1s")).route("app", json!({}))
    })
    .await;
    let mut daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[100_000]);
    stage.push().push("app", "v1", &image).await;
    let never = Gate::closed();
    stage
        .source
        .rule(Rule::on(&[Kind::BlobGet]).act(Act::HoldAnswer(10, never.clone())));
    let answers = {
        let ask = || daemon.ping(json!({"wait": true}));
        let stop = async {
            never.arrived(1).await;
            // The second waits for the look after the one that runs.
            eventually("both wait", async || {
                (daemon
                    .metric(
                        "blobferry_events_total",
                        &[("source", "ping"), ("result", "queued")],
                    )
                    .await
                    == Some(2.0))
                .then_some(())
            })
            .await;
            daemon.signal("TERM").await;
        };
        let (one, other, ()) = tokio::join!(ask(), ask(), stop);
        [one, other]
    };
    for (status, report) in answers {
        assert_eq!(
            (status, &report["exit_code"]),
            (503, &json!(130)),
            "{report:#}"
        );
    }
    assert_eq!(daemon.ended().await, 0);
}

/// Two wildcard routes meet in one destination. A request that named the second source went around
/// the refusal.
#[tokio::test]
async fn a_source_that_is_second_in_a_destination_is_refused_even_by_name() {
    let stage = Stage::build(Program::Distribution3, |config| {
        config
            .raw_route(wild("one", "staging/o/*", "production/{1}"))
            .raw_route(wild("two", "staging/q/*", "production/{1}"))
    })
    .await;
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[100]));
    stage.push().push("o/a", "v1", &first).await;
    stage.push().push("q/a", "v1", &second).await;
    stage.push().push("q/a", "v2", &second).await;
    stage.push().push("q/b", "v1", &second).await;
    let run = stage.sync().await.expect(4);
    assert_eq!(
        (
            run.total("refused"),
            run.total("promoted"),
            run.total("failed")
        ),
        (1, 2, 0),
        "{}",
        run.stdout
    );

    let daemon = stage.ferry.start_ready().await;
    let (status, report) = daemon
        .ping(json!({"wait": true, "repository": "q/a"}))
        .await;
    assert_eq!(
        (status, &report["exit_code"], &report["totals"]["refused"]),
        (409, &json!(4), &json!(1)),
        "{report:#}"
    );
    assert!(
        report["trouble"][0]
            .as_str()
            .unwrap()
            .contains("q/a is left out"),
        "{report:#}"
    );
    assert_eq!(stage.there().tags("a").await, ["v1"]);
    stage.there().assert_holds("a", "v1", &first).await;
    stage.there().assert_holds("b", "v1", &second).await;
}

#[tokio::test]
async fn a_destination_that_is_read_again_as_a_source_is_refused() {
    let stage = Stage::build(Program::Distribution3, |config| {
        config.raw_route(wild("dev", "staging/dev-*", "staging/{1}"))
    })
    .await;
    let image = Image::oci(1, &[100]);
    stage.push().push("dev-app", "v1", &image).await;
    stage.push().push("dev-dev-x", "v1", &image).await;
    let run = stage.sync().await.expect(4);
    assert_eq!(
        (run.total("refused"), run.total("promoted")),
        (1, 1),
        "{}",
        run.stdout
    );
    stage.push().assert_holds("app", "v1", &image).await;
    assert_eq!(stage.push().digest("dev-x", "v1").await, None);
}

/// A hundred pings walked three hundred times through the catalog.
#[tokio::test]
async fn a_hundred_pings_share_their_walk_through_the_catalog() {
    let stage = Stage::build(Program::Distribution3, |config| {
        config.raw_route(wild("all", "staging/**", "production/{1}"))
    })
    .await;
    stage.push().push("app", "v1", &Image::oci(1, &[100])).await;
    let daemon = stage.ferry.start_ready().await;
    stage.reset();
    let gate = Gate::closed();
    stage
        .source
        .rule(Rule::on(&[Kind::Catalog]).act(Act::Hold(gate.clone())));
    let open = async {
        gate.arrived(1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(join_all((0..100).map(|_| daemon.ping(json!({})))), open);
    assert!(
        answers
            .iter()
            .all(|(status, answer)| *status == 202 && answer["queued"] == 1),
        "{answers:?}"
    );
    let walks = stage.source.count(Kind::Catalog);
    assert!(walks <= 10, "{walks} walks through the catalog");
}

/// Thirteen repositories are being filled from a slow staging, and a request asks for another one
/// by name.
#[tokio::test]
async fn a_backfill_leaves_room_for_whoever_asks_by_name() {
    let stage = Stage::build(Program::Distribution3, |config| {
        config.raw_route(wild("all", "staging/**", "production/{1}"))
    })
    .await;
    let (slow, wanted) = (Image::oci(1, &[1000]), Image::oci(2, &[10]));
    for number in 0..13 {
        stage
            .push()
            .push(&format!("slow{number}"), "v1", &slow)
            .await;
    }
    let never = Gate::closed();
    stage.source.rule(
        Rule::on(&[Kind::BlobGet])
            .path(&slow.blobs[1].digest)
            .act(Act::Hold(never.clone())),
    );
    let daemon = stage.ferry.start().await;
    eventually("the backfill has all places it may have", async || {
        let status: Value =
            serde_json::from_str(&daemon.get("/v1/status").await.text().await.ok()?).ok()?;
        (status["queue"]["running"] == 12 && status["queue"]["depth"] == 1).then_some(())
    })
    .await;
    assert_eq!(
        daemon.get("/readyz").await.status(),
        503,
        "not everything was looked at once"
    );
    stage.push().push("wanted", "v1", &wanted).await;
    let (status, report) = daemon
        .ping(json!({"wait": true, "repository": "wanted"}))
        .await;
    assert_eq!(
        (status, &report["totals"]["promoted"]),
        (200, &json!(1)),
        "{report:#}"
    );
    never.open();
    daemon.ready().await;
}
