//! `scan` with `from: attestation`: the newest scan that a signer has attached to the image.

use serde_json::{Value, json};

use super::signed::{Cosign, assert_promoted, place};
use super::{stage, verdicts};
use crate::ecr::merged;
use crate::support::image::noise;
use crate::support::*;

const COSIGN: &str = "vuln";
const IN_TOTO: &str = "https://in-toto.io/attestation/vulns/v0.1";

/// A stage with the gate, and cosign with the key that it trusts.
async fn bench(more: Value) -> (Stage, Cosign) {
    let cosign = Cosign::new();
    let key = cosign.key("ours").await;
    let gate = json!({"from": "attestation", "key_file": key, "refuse": ["critical", "high"]});
    let stage = stage(json!({"scan": merged(gate, more)})).await;
    (stage, cosign)
}

/// A scan that ended on this day of November.
fn scan(day: u8, result: Value) -> Value {
    let time = format!("2026-11-{day:02}T00:00:00Z");
    json!({
        "invocation": {"parameters": null, "uri": "", "event_id": "", "builder.id": ""},
        "scanner": {"uri": "pkg:x/scanner", "version": "1", "db": {"uri": "", "version": ""}, "result": result},
        "metadata": {"scanStartedOn": time, "scanFinishedOn": time},
    })
}

fn trivy(severities: &[&str]) -> Value {
    let found = severities.iter().enumerate().map(|(number, severity)| {
        json!({"VulnerabilityID": format!("CVE-2026-{number}"), "Severity": severity})
    });
    let found: Vec<Value> = found.collect();
    json!({"SchemaVersion": 2, "Results": [{"Vulnerabilities": found}]})
}

/// Asserts that the gate keeps the tag back, and that nothing of the image is in production.
async fn assert_kept(stage: &Stage, image: &Image, verdict: &str, why: &str) -> Value {
    let run = stage.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = run.job("v1");
    assert_eq!(verdicts(&job), json!({"scan": verdict}), "{job:#}");
    let reason = job["reasons"][0].as_str().unwrap();
    assert!(reason.contains(why), "{reason}");
    assert_eq!(stage.there().digest("app", "v1").await, None);
    assert_eq!(stage.there().digest("app", image.digest()).await, None);
    job
}

#[tokio::test]
async fn the_newest_scan_of_the_signer_counts() {
    let (stage, cosign) = bench(json!({})).await;
    cosign.key("theirs").await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    assert_kept(&stage, &image, "wait", "no scan by the key ours.pub").await;

    let at = place(&stage, &image);
    let clean = trivy(&["LOW"]);
    cosign
        .attest_with("theirs", COSIGN, &scan(9, clean.clone()), &at)
        .await;
    assert_kept(&stage, &image, "wait", "no scan by the key ours.pub").await;

    // The order in which they are attached does not count.
    cosign
        .attest_with("ours", COSIGN, &scan(5, trivy(&["HIGH"])), &at)
        .await;
    cosign
        .attest_with("ours", COSIGN, &scan(4, clean.clone()), &at)
        .await;
    let job = assert_kept(&stage, &image, "refuse", "found CVE-2026-0 (high)").await;
    let evidence = &job["gates"][0]["evidence"];
    assert_eq!(evidence["scanned"], "2026-11-05T00:00:00Z");

    cosign
        .attest_with("ours", COSIGN, &scan(6, clean), &at)
        .await;
    let job = assert_promoted(&stage, &image).await;
    let evidence = &job["gates"][0]["evidence"];
    assert_eq!(evidence["counts"], json!({"low": 1}));
    let statement = &evidence["attestations"][0];
    assert_eq!(statement["identity"], "key ours.pub");
    let there = statement["statement"].as_str().unwrap();
    let there = stage.there().digest("app", there).await;
    assert!(there.is_some(), "the evidence went along");
}

#[tokio::test]
async fn a_result_that_cannot_be_read_lets_nothing_pass() {
    let (stage, cosign) = bench(json!({})).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let at = place(&stage, &image);
    let unscanned = json!({"runs": [{"tool": {"driver": {"name": "scanner"}}}]});
    cosign
        .attest_with("ours", COSIGN, &scan(1, json!({})), &at)
        .await;
    assert_kept(&stage, &image, "wait", "no scanner that is known").await;
    cosign
        .attest_with("ours", COSIGN, &scan(2, unscanned), &at)
        .await;
    assert_kept(&stage, &image, "wait", "missing field `results`").await;

    // A scan that can be read and is newer ends that.
    let listed =
        json!([{"id": "CVE-2026-1", "severity": [{"method": "cvss_score", "score": "9.8"}]}]);
    cosign
        .attest_with("ours", IN_TOTO, &scan(3, listed), &at)
        .await;
    assert_kept(&stage, &image, "refuse", "found CVE-2026-1 (critical)").await;
    cosign
        .attest_with("ours", IN_TOTO, &scan(4, json!([])), &at)
        .await;
    assert_promoted(&stage, &image).await;
}

/// A newer scan that was too large to be read was left out, and the clean one before it passed.
#[tokio::test]
async fn a_statement_that_is_left_out_may_be_the_newest_scan() {
    const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let (stage, cosign) = bench(json!({})).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let large = Blob::new(BUNDLE, noise(1, (16 << 20) + 1));
    let large = Image::referrer_of(&image, BUNDLE, large);
    super::attach(&stage, &image, &[&large]).await;
    let clean = scan(1, trivy(&[]));
    let at = place(&stage, &image);
    cosign.attest_with("ours", COSIGN, &clean, &at).await;
    assert_kept(&stage, &image, "wait", "statements that are left out").await;
}

#[tokio::test]
async fn with_platforms_each_of_them_has_a_scan() {
    let (stage, cosign) = bench(json!({"on": "platforms"})).await;
    let (first, second) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    let image = Image::index(&[first.clone(), second.clone()]);
    stage.push().push("app", "v1", &image).await;
    let clean = scan(1, json!({"matches": []}));
    cosign
        .attest_with("ours", COSIGN, &clean, &place(&stage, &image))
        .await;
    cosign
        .attest_with("ours", COSIGN, &clean, &place(&stage, &first))
        .await;
    assert_kept(&stage, &image, "wait", second.digest()).await;
    cosign
        .attest_with("ours", COSIGN, &clean, &place(&stage, &second))
        .await;
    let job = assert_promoted(&stage, &image).await;
    assert_eq!(job["gates"][0]["evidence"]["images"], 2);
}
