//! `scan` in the daemon: events of scans, and a person that passes one.

use serde_json::{Value, json};

use super::scanned::{Bench, gate};
use crate::ecr::one_account;
use crate::support::ecr::{HOME, Scanned};
use crate::support::*;

#[tokio::test]
async fn the_end_of_a_scan_wakes_the_tag_that_waits_for_it() {
    for (kind, repository) in [
        ("ECR Image Scan", "staging-demo-app".to_owned()),
        (
            "Inspector2 Scan",
            format!("arn:aws:ecr:eu-west-1:{HOME}:repository/staging-demo-app"),
        ),
    ] {
        let bench = Bench::new(gate(json!({}))).await;
        let gates = json!({"gates": {"scan": gate(json!({}))}});
        let receiver = json!({"kind": "ecr", "unauthenticated": true});
        let config = one_account(&bench.ecr, gates)
            .daemon("poll", json!("1h"))
            .receiver("events", receiver);
        bench.ferry.write_config(&config);
        let image = Image::oci(1, &[1000]);
        bench.push("v1", &image).await;
        let daemon = bench.ferry.start_ready().await;
        let (_, report) = daemon.ping(json!({"wait": true})).await;
        assert_eq!(report["jobs"][0]["result"], "waiting", "{report:#}");
        let why = bench
            .ferry
            .run(&["why", "prod-demo-app:v1"])
            .await
            .expect(0);
        assert!(why.stdout.contains("has no findings yet"), "{}", why.stdout);
        let counted = async |verdict: &str| {
            let labels = [("route", "app"), ("gate", "scan"), ("verdict", verdict)];
            daemon.metric("blobferry_gates_total", &labels).await
        };
        assert_eq!(counted("refuse").await, Some(0.0));

        bench.scan(&image, Scanned::basic(&[]));
        tell(&daemon, kind, &repository, json!(["v1"])).await;
        eventually("the tag moves", async || {
            bench.ecr.client().digest("prod-demo-app", "v1").await
        })
        .await;
    }
}

/// The daemon's receiver is told of the end of a scan.
pub(super) async fn tell(daemon: &Daemon, kind: &str, repository: &str, tags: Value) {
    let event = json!({
        "detail-type": kind, "account": HOME, "region": "eu-west-1",
        "detail": {"scan-status": "COMPLETE", "repository-name": repository, "image-tags": tags},
    });
    daemon.notify("events", &event).await;
}

#[tokio::test]
async fn a_person_may_pass_a_scan_that_refuses() {
    let bench = Bench::new(gate(json!({}))).await;
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    bench.scan(&image, Scanned::basic(&[("CVE-2026-1", "HIGH")]));
    let daemon = bench.ferry.start_ready().await;
    let (_, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(report["jobs"][0]["result"], "refused", "{report:#}");
    let arguments = [
        "approve",
        "prod-demo-app:v1",
        "--despite",
        "scan",
        "--reason",
        "INC-7",
    ];
    bench.ferry.run(&arguments).await.expect(0);
    eventually("the tag moves", async || {
        bench.ecr.client().digest("prod-demo-app", "v1").await
    })
    .await;
    drop(daemon);
}
