//! What is asked for by its name beside a backfill of the same repository.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::scripted::Answer;
use crate::support::*;

const BACKFILL: u64 = 20;

/// Twenty tags in staging; no blob of theirs is answered before the gate opens.
fn stuck_backfill() -> (Scripted, Scripted, Gate) {
    stuck_reads(BACKFILL)
}

/// So many tags in staging; no blob of theirs is answered before the gate opens.
fn stuck_reads(tags: u64) -> (Scripted, Scripted, Gate) {
    let (staging, production, gate) = (Scripted::start(), Scripted::start(), Gate::closed());
    let mut stuck = BTreeSet::new();
    for number in 0..tags {
        let image = Image::oci(number + 1, &[1000]);
        staging.push("app", &format!("v{number}"), &image);
        stuck.extend(
            image
                .unique_blobs()
                .into_iter()
                .map(|blob| blob.digest.clone()),
        );
    }
    let held = gate.clone();
    staging.on(move |asked| match asked.kind {
        Kind::BlobGet if stuck.contains(asked.reference()) => Answer::Hold(held.clone()),
        _ => Answer::Pass,
    });
    (staging, production, gate)
}

fn puts(production: &Scripted, tag: &str) -> usize {
    let ending = format!("/manifests/{tag}");
    production
        .of(Kind::ManifestPut)
        .iter()
        .filter(|put| put.path.ends_with(&ending))
        .count()
}

#[tokio::test]
async fn a_hotfix_by_name_passes_a_stuck_backfill_of_its_repository() {
    let (staging, production, gate) = stuck_backfill();
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let daemon = ferry.start().await;
    gate.arrived(BACKFILL as usize).await;

    let hotfix = Image::oci(100, &[400]);
    staging.push("app", "hotfix", &hotfix);
    let (status, report) = daemon.ping(json!({"wait": true, "tag": "hotfix"})).await;
    assert_eq!(
        (status, &report["totals"]["promoted"]),
        (200, &json!(1)),
        "{report:#}"
    );
    assert_eq!(production.tags("app"), ["hotfix"], "the backfill is stuck");

    gate.open();
    daemon.ready().await;
    assert_eq!(production.tags("app").len(), BACKFILL as usize + 1);
    assert_eq!(puts(&production, "hotfix"), 1);
}

/// Two routes between the registries; both repositories of the second are empty.
fn beside_a_hotfix(staging: &Scripted, production: &Scripted, keys: &Value) -> Ferry {
    let config = Config::new()
        .registry_with("staging", &staging.url(), keys.clone())
        .registry_with("production", &production.url(), keys.clone())
        .route("app", json!({}))
        .route("hotfix", json!({}));
    Ferry::new(&config)
}

async fn assert_hotfix_passes(daemon: &Daemon, staging: &Scripted, production: &Scripted) {
    for (number, tag) in ["h1", "h2"].into_iter().enumerate() {
        staging.push("hotfix", tag, &Image::oci(1000 + number as u64, &[400]));
        let ask = json!({"wait": true, "repository": "hotfix", "tag": tag});
        let (status, report) = daemon.ping(ask).await;
        assert_eq!(
            (status, &report["totals"]["promoted"]),
            (200, &json!(1)),
            "{report:#}"
        );
    }
    assert_eq!(production.tags("hotfix"), ["h1", "h2"]);
}

/// Eighty tags with blobs that took 25 s each held all requests to staging: a hotfix waited for them.
async fn hotfix_beside_slow_reads(keys: Value, at_once: usize) {
    let (staging, production, gate) = stuck_reads(80);
    let ferry = beside_a_hotfix(&staging, &production, &keys);
    let daemon = ferry.start().await;
    gate.arrived(at_once).await;
    assert_hotfix_passes(&daemon, &staging, &production).await;
    assert!(production.tags("app").is_empty(), "the backfill is stuck");
    gate.open();
    daemon.ready().await;
    assert_eq!(production.tags("app").len(), 80);
}

#[tokio::test]
async fn a_hotfix_by_name_passes_a_repository_whose_reads_hold_all_requests() {
    hotfix_beside_slow_reads(json!({}), 64).await;
}

#[tokio::test]
async fn a_hotfix_by_name_passes_slow_reads_within_a_configured_concurrency() {
    hotfix_beside_slow_reads(json!({"concurrency": 16}), 14).await;
}

/// Names that took 20 s each held all naming permits of production.
#[tokio::test]
async fn a_hotfix_by_name_passes_a_repository_whose_names_take_long() {
    let (staging, production, gate) = (Scripted::start(), Scripted::start(), Gate::closed());
    for number in 0..40 {
        staging.push("app", &format!("v{number}"), &Image::oci(number + 1, &[10]));
    }
    let held = gate.clone();
    production.on(move |asked| match asked.kind {
        Kind::ManifestPut if asked.path.starts_with("/v2/app/") => Answer::Hold(held.clone()),
        _ => Answer::Pass,
    });
    let ferry = beside_a_hotfix(&staging, &production, &json!({}));
    let daemon = ferry.start().await;
    gate.arrived(21).await;
    assert_hotfix_passes(&daemon, &staging, &production).await;
    assert!(production.tags("app").is_empty(), "the backfill is stuck");
    gate.open();
    daemon.ready().await;
    assert_eq!(production.tags("app").len(), 40);
}

#[tokio::test]
async fn a_tag_that_two_looks_are_about_is_named_once() {
    let (staging, production, gate) = stuck_backfill();
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let daemon = ferry.start().await;
    gate.arrived(BACKFILL as usize).await;
    let listed = staging.count(Kind::Tags);
    assert_eq!(daemon.ping(json!({"tag": "v3"})).await.0, 202);
    staging.seen(Kind::Tags, listed + 1).await;
    gate.open();
    daemon.ready().await;
    let (status, report) = daemon
        .ping(json!({"wait": true, "tag": "v3", "all": true}))
        .await;
    assert_eq!(
        (status, &report["jobs"][0]["result"]),
        (200, &json!("up_to_date")),
        "{report:#}"
    );
    assert_eq!(puts(&production, "v3"), 1);
}

/// Each call with another digest was a row of the ledger, and the next look another.
#[tokio::test]
async fn a_digest_that_a_request_makes_up_leaves_no_row() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    staging.push("app", "v1", &Image::oci(1, &[10]));
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    ferry.sync(&[]).await.expect(0);
    let rows = async || {
        ferry
            .run(&["history", "--json"])
            .await
            .stdout
            .lines()
            .count()
    };
    let before = rows().await;
    let daemon = ferry.start_ready().await;
    for number in 0..3 {
        let digest = image::sha256(format!("{number}").as_bytes());
        let asked = json!({"tag": "v1", "digest": digest, "wait": true});
        let (status, report) = daemon.ping(asked).await;
        assert_eq!((status, &report["totals"]["refused"]), (409, &json!(1)));
        daemon.ping(json!({"tag": "v1", "wait": true})).await;
    }
    assert_eq!(rows().await, before);
}
