//! `scan` with `at: destination`: what ECR's scanner finds in production decides over the tag.

use serde_json::{Value, json};

use super::scan_wakes::tell;
use super::scanned::{Bench, gate};
use super::verdicts;
use crate::ecr::one_account;
use crate::support::ecr::Scanned;
use crate::support::*;

fn there() -> Value {
    gate(json!({"at": "destination"}))
}

/// What the tag's job comes to, and that the image is there by digest alone.
async fn assert_carried_alone(bench: &Bench, image: &Image, verdict: &str) {
    let run = bench.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = run.job("v1");
    assert_eq!(verdicts(&job), json!({"scan": verdict}), "{job:#}");
    let client = bench.ecr.client();
    assert_eq!(client.digest("prod-demo-app", "v1").await, None);
    let by_digest = client.digest("prod-demo-app", image.digest()).await;
    assert_eq!(by_digest.as_deref(), Some(image.digest()));
}

#[tokio::test]
async fn a_scan_in_production_is_judged_after_carrying_and_before_the_tag() {
    let bench = Bench::new(there()).await;
    let (first, second) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    let image = Image::index(&[first.clone(), second.clone()]);
    bench.push("v1", &image).await;
    let signature = format!("{}.sig", image.digest().replace(':', "-"));
    bench.push(&signature, &Image::oci(7, &[100])).await;
    // Staging's scanner is not asked.
    let found = Scanned::basic(&[("CVE-2026-1", "CRITICAL")]);
    bench
        .ecr
        .scan("staging-demo-app", first.digest(), found.clone());

    let plan = bench.ferry.sync(&["--dry-run"]).await.expect(0);
    let job = plan.job("v1");
    assert_eq!(job["result"], "planned");
    let note = json!(["a dry run asks for no scan in production"]);
    assert_eq!(job["reasons"], note);

    assert_carried_alone(&bench, &image, "wait").await;
    let client = bench.ecr.client();
    assert_eq!(client.digest("prod-demo-app", &signature).await, None);

    let scan = |image: &Image, scanned| bench.ecr.scan("prod-demo-app", image.digest(), scanned);
    scan(&first, Scanned::basic(&[]));
    scan(&second, found);
    assert_carried_alone(&bench, &image, "refuse").await;
    assert_eq!(client.digest("prod-demo-app", &signature).await, None);

    scan(&second, Scanned::basic(&[]));
    let job = bench.assert_promoted(&image).await;
    assert_eq!(job["gates"][0]["evidence"]["at"], "destination");
    let companion = client.digest("prod-demo-app", &signature).await;
    assert!(companion.is_some(), "it follows the verdict on its image");
}

/// Nothing names the image yet: the event of its scan has no tag.
#[tokio::test]
async fn the_scan_of_an_image_without_a_tag_wakes_the_tag_that_waits_for_it() {
    let bench = Bench::new(there()).await;
    let receiver = json!({"kind": "ecr", "unauthenticated": true, "registry": "production"});
    let config = one_account(&bench.ecr, json!({"gates": {"scan": there()}}))
        .daemon("poll", json!("1h"))
        .receiver("events", receiver);
    bench.ferry.write_config(&config);
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    let daemon = bench.ferry.start_ready().await;
    let (_, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(report["jobs"][0]["result"], "waiting", "{report:#}");

    bench
        .ecr
        .scan("prod-demo-app", image.digest(), Scanned::enhanced(&[]));
    tell(&daemon, "Inspector2 Scan", "prod-demo-app", json!([])).await;
    eventually("the tag moves", async || {
        bench.ecr.client().digest("prod-demo-app", "v1").await
    })
    .await;
}
