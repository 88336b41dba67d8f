//! A gate that does not answer holds up its own tags alone.

use std::sync::Arc;

use serde_json::json;

use super::scanned::{Bench, gate};
use crate::ecr::{demo, one_account, with_identity};
use crate::support::daemon::end_of;
use crate::support::ecr::Scanned;
use crate::support::*;

const FINDINGS: &str = "DescribeImageScanFindings";

/// A service that takes connections and answers none until it is opened; then each with a pass.
async fn silent(opened: Arc<tokio::sync::Semaphore>) -> String {
    let answers = move || {
        let opened = opened.clone();
        async move {
            let _turn = opened.acquire().await;
            json!({"verdict": "pass"}).to_string()
        }
    };
    format!("{}/", serve(axum::Router::new().fallback(answers)).await)
}

/// Thirty repositories wait for a gate that does not answer: more than looks run at once. A push of
/// another route between the same registries is promoted meanwhile; what waits moves when its
/// answers come, although nothing polls.
#[tokio::test]
async fn a_gate_that_hangs_holds_up_no_other_route() {
    const WAITING: usize = 30;
    let opened = Arc::new(tokio::sync::Semaphore::new(0));
    let url = silent(opened.clone()).await;
    let (staging, production) = (Scripted::start(), Scripted::start());
    let config = Config::pair(&staging.url(), &production.url()).raw_route(json!({
        "name": "gated",
        "from": "staging/gated/*",
        "to": "production/gated/{1}",
        "tags": {"include": ["*"]},
        "gates": {"http": {"url": url, "timeout": "5m"}},
    }));
    let image = Image::oci(1, &[100]);
    let repositories: Vec<String> = (0..WAITING)
        .map(|number| format!("gated/r{number}"))
        .collect();
    for repository in &repositories {
        staging.push(repository, "v1", &image);
    }
    let ferry = Ferry::new(&config);
    let daemon = ferry.start().await;
    let waiting = [("route", "gated"), ("state", "waiting")];
    eventually("all looks have ended", async || {
        let count = daemon.metric("blobferry_tags", &waiting).await;
        count.filter(|count| *count == WAITING as f64)
    })
    .await;
    staging.push("app", "v1", &image);
    daemon
        .ping(json!({"repository": "app", "wait": true}))
        .await;
    assert_eq!(
        production.tagged("app", "v1").as_deref(),
        Some(image.digest())
    );
    for repository in &repositories {
        assert_eq!(production.tagged(repository, "v1"), None, "{repository}");
    }
    opened.close();
    eventually("the tags move by themselves", async || {
        let is_there = |repository: &String| production.tagged(repository, "v1").is_some();
        repositories.iter().all(is_there).then_some(())
    })
    .await;
}

/// The findings of one image that did not come held up every new tag of its repository.
#[tokio::test]
async fn findings_that_do_not_come_hold_up_no_other_tag() {
    let bench = Bench::new(gate(json!({}))).await;
    let (slow, other) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    bench.push("v1", &slow).await;
    bench.scan(&slow, Scanned::basic(&[]));
    let held = Gate::closed();
    bench
        .ecr
        .ways(|ways| ways.holds = Some((FINDINGS, held.clone())));
    let daemon = bench.ferry.start().await;
    let waiting = [("route", "app"), ("state", "waiting")];
    eventually("the look has ended", async || {
        let count = daemon.metric("blobferry_tags", &waiting).await;
        count.filter(|count| *count == 1.0)
    })
    .await;
    let why = bench
        .ferry
        .run(&["why", "production/prod-demo-app:v1"])
        .await;
    let reading = format!("the findings of {} are being read", slow.digest());
    assert!(why.stdout.contains(&reading), "{}", why.stdout);
    // What is asked from now on is answered.
    bench.ecr.ways(|ways| ways.holds = None);
    bench.push("v2", &other).await;
    bench.scan(&other, Scanned::basic(&[]));
    daemon.ping(json!({"wait": true})).await;
    let named = async |tag: &str, image: &Image| {
        eventually("the tag is there", async || {
            let digest = bench.ecr.client().digest("prod-demo-app", tag).await;
            digest.filter(|digest| digest == image.digest())
        })
        .await
    };
    named("v2", &other).await;
    // The findings come, and wake their tag, although nothing polls.
    held.open();
    named("v1", &slow).await;
}

async fn scanned_daemon() -> (Ecr, Ferry, Daemon) {
    let ecr = demo().await;
    let route = json!({"gates": {"scan": gate(json!({}))}});
    let config = one_account(&ecr, route).daemon("grace", json!("10m"));
    let ferry = with_identity(Ferry::new(&config), &ecr);
    let daemon = ferry.start_ready().await;
    (ecr, ferry, daemon)
}

/// SIGTERM waited for the findings as long as for a transfer.
#[tokio::test]
async fn findings_that_do_not_come_hold_up_no_end() {
    let (ecr, ferry, mut daemon) = scanned_daemon().await;
    let image = Image::oci(1, &[1000]);
    ecr.client().push("staging-demo-app", "v1", &image).await;
    let held = Gate::closed();
    ecr.ways(|ways| ways.holds = Some((FINDINGS, held.clone())));
    // A request that waits stays for the answer.
    let mut sync = ferry.spawn_command(&["sync", "--tag", "v1"]);
    held.arrived(1).await;
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
    assert_ne!(end_of(&mut sync).await, 0);
}

/// The same of the documents that say which platforms are to be scanned.
#[tokio::test]
async fn platforms_that_do_not_come_hold_up_no_end() {
    let (ecr, ferry, mut daemon) = scanned_daemon().await;
    let inner = Image::index(&[Image::oci(1, &[1000])]);
    let image = Image::index(std::slice::from_ref(&inner));
    ecr.client().push("staging-demo-app", "v1", &image).await;
    let held = Gate::closed();
    ecr.ways(|ways| ways.holds_manifest = Some((inner.digest().into(), held.clone())));
    let mut sync = ferry.spawn_command(&["sync", "--tag", "v1"]);
    held.arrived(1).await;
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
    assert_ne!(end_of(&mut sync).await, 0);
}
