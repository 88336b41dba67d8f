//! `scan`: what ECR's scanners have found in staging, on the fake ECR and on moto.

use serde_json::{Value, json};

use super::verdicts;
use crate::ecr::{demo, keys, merged, one_account, with_identity};
use crate::support::ecr::{HOME, Scanned};
use crate::support::moto::Moto;
use crate::support::*;

const FINDINGS: &str = "DescribeImageScanFindings";

/// Staging and production in one ECR, with a gate on scans.
pub(super) struct Bench {
    pub(super) ecr: Ecr,
    pub(super) ferry: Ferry,
}

impl Bench {
    pub(super) async fn new(gate: Value) -> Bench {
        let ecr = demo().await;
        let config = one_account(&ecr, json!({"gates": {"scan": gate}}));
        let ferry = with_identity(Ferry::new(&config), &ecr);
        Bench { ecr, ferry }
    }

    /// The gate of the config becomes another one.
    pub(super) fn gate(&self, gate: Value) {
        let config = one_account(&self.ecr, json!({"gates": {"scan": gate}}));
        self.ferry.write_config(&config);
    }

    pub(super) async fn push(&self, tag: &str, image: &Image) {
        let client = self.ecr.client();
        client.push("staging-demo-app", tag, image).await;
    }

    pub(super) fn scan(&self, image: &Image, scanned: Scanned) {
        self.ecr.scan("staging-demo-app", image.digest(), scanned);
    }

    /// Asserts that the gate comes to this verdict, and that nothing of the image is in production.
    pub(super) async fn assert_kept(&self, image: &Image, verdict: &str) -> Value {
        let run = self.ferry.sync(&["--tag", "v1"]).await.expect(4);
        let job = run.job("v1");
        assert_eq!(verdicts(&job), json!({"scan": verdict}), "{job:#}");
        let result = match verdict {
            "wait" => "waiting",
            _ => "refused",
        };
        assert_eq!(job["result"], result, "{job:#}");
        let blobs: Vec<&str> = image
            .unique_blobs()
            .iter()
            .map(|blob| &*blob.digest)
            .collect();
        let client = self.ecr.client();
        client.assert_lacks("prod-demo-app", "v1", &blobs).await;
        let by_digest = client.digest("prod-demo-app", image.digest()).await;
        assert_eq!(by_digest, None);
        job
    }

    pub(super) async fn assert_promoted(&self, image: &Image) -> Value {
        let run = self.ferry.sync(&["--tag", "v1"]).await.expect(0);
        let job = run.job("v1");
        assert_eq!(job["result"], "promoted", "{job:#}");
        let client = self.ecr.client();
        client.assert_holds("prod-demo-app", "v1", image).await;
        job
    }
}

/// The gate of most tests.
pub(super) fn gate(more: Value) -> Value {
    merged(json!({"from": "ecr", "refuse": ["critical", "high"]}), more)
}

/// The first reason of a job.
pub(super) fn reason(job: &Value) -> String {
    job["reasons"][0].as_str().expect("a reason").to_owned()
}

#[tokio::test]
async fn an_image_without_findings_that_refuse_is_promoted() {
    let findings = [("CVE-2026-3", "MEDIUM"), ("CVE-2026-4", "UNDEFINED")];
    let inspected = [("CVE-2026-3", "MEDIUM", 0), ("CVE-2026-4", "UNTRIAGED", 0)];
    let closed =
        Scanned::enhanced(&[("CVE-2026-5", "CRITICAL", 0)]).with("status", json!("CLOSED"));
    let cases = [
        (Scanned::basic(&[]), json!({})),
        (Scanned::enhanced(&[]), json!({})),
        (
            Scanned::basic(&findings),
            json!({"medium": 1, "undefined": 1}),
        ),
        (
            Scanned::enhanced(&inspected),
            json!({"medium": 1, "undefined": 1}),
        ),
        (closed, json!({"critical": 1})),
    ];
    for (scanned, counts) in cases {
        let bench = Bench::new(gate(json!({}))).await;
        let image = Image::oci(1, &[1000]);
        bench.push("v1", &image).await;
        bench.scan(&image, scanned);
        let job = bench.assert_promoted(&image).await;
        let evidence = &job["gates"][0]["evidence"];
        assert_eq!(evidence["counts"], counts, "{evidence:#}");
        assert_eq!(evidence["scanned"], "2026-11-01T00:00:00Z");
        assert_eq!(evidence["images"], 1);
        // The pass of a moment ago holds until the tag has moved.
        assert_eq!(bench.ecr.count(FINDINGS), 1);
    }
}

#[tokio::test]
async fn a_finding_that_refuses_keeps_the_whole_image_out_of_production() {
    let bench = Bench::new(gate(json!({}))).await;
    let image = Image::oci(1, &[1000, 2000]);
    bench.push("v1", &image).await;
    bench.scan(&image, Scanned::basic(&[("CVE-2026-1", "HIGH")]));
    let job = bench.assert_kept(&image, "refuse").await;
    assert_eq!(reason(&job), "scan: found CVE-2026-1 (high)");

    // It stands on the third page, and no page after it is read.
    let many: Vec<String> = (1..=9).map(|number| format!("CVE-2026-{number}")).collect();
    let many: Vec<(&str, &str, i64)> = many.iter().map(|id| (&**id, "CRITICAL", 0)).collect();
    bench.ecr.ways(|ways| ways.page = 2);
    bench.scan(&image, Scanned::enhanced(&many).after_low(5));
    bench.ecr.forget_log();
    let job = bench.assert_kept(&image, "refuse").await;
    assert_eq!(reason(&job), "scan: found CVE-2026-1 (critical)");
    assert_eq!(bench.ecr.count(FINDINGS), 3);
    let evidence = &job["gates"][0]["evidence"];
    assert_eq!(evidence["counts"], json!({"critical": 9, "low": 5}));

    // All on one page: the worst five are named.
    bench.ecr.ways(|ways| ways.page = 0);
    let job = bench.assert_kept(&image, "refuse").await;
    let found = job["gates"][0]["evidence"]["found"].as_array().unwrap();
    assert_eq!(found.len(), 5);
    assert!(reason(&job).ends_with("CVE-2026-5 (critical) and more"));

    bench.scan(&image, Scanned::enhanced(&[]));
    bench.assert_promoted(&image).await;
}

/// ECR scans the children of an index, and never the index.
#[tokio::test]
async fn each_platform_of_an_index_is_judged() {
    let bench = Bench::new(gate(json!({}))).await;
    let (first, second) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    let image = Image::index(&[first.clone(), second.clone()]);
    bench.push("v1", &image).await;
    bench.scan(&first, Scanned::basic(&[]));
    let job = bench.assert_kept(&image, "wait").await;
    let pending = json!([{"image": second.digest(), "status": "no scan"}]);
    assert_eq!(job["gates"][0]["evidence"]["pending"], pending);

    bench.scan(&second, Scanned::basic(&[("CVE-2026-1", "CRITICAL")]));
    let job = bench.assert_kept(&image, "refuse").await;
    assert_eq!(job["gates"][0]["evidence"]["images"], 2);

    bench.scan(&second, Scanned::basic(&[]));
    bench.assert_promoted(&image).await;
}

/// The index in an index was asked about, which no scanner knows.
#[tokio::test]
async fn each_platform_of_an_index_in_an_index_is_judged() {
    let bench = Bench::new(gate(json!({}))).await;
    let images: Vec<Image> = (1..=3).map(|seed| Image::oci(seed, &[1000])).collect();
    let inner = Image::index(&images[..2]);
    let image = Image::index(&[inner.clone(), images[2].clone()]);
    bench.push("v1", &image).await;
    for clean in [&inner, &images[0], &images[2]] {
        bench.scan(clean, Scanned::basic(&[]));
    }
    bench.scan(&images[1], Scanned::basic(&[("CVE-2026-1", "CRITICAL")]));
    let job = bench.assert_kept(&image, "refuse").await;
    assert_eq!(reason(&job), "scan: found CVE-2026-1 (critical)");

    bench.scan(&images[1], Scanned::basic(&[]));
    let job = bench.assert_promoted(&image).await;
    assert_eq!(job["gates"][0]["evidence"]["images"], 3);
}

#[tokio::test]
async fn a_platform_that_is_listed_twice_is_judged_once() {
    let bench = Bench::new(gate(json!({}))).await;
    let images: Vec<Image> = (1..=2).map(|seed| Image::oci(seed, &[1000])).collect();
    let inner = Image::index(&images);
    let image = Image::index(&[images[0].clone(), images[1].clone(), inner]);
    bench.push("v1", &image).await;
    for clean in &images {
        bench.scan(clean, Scanned::basic(&[]));
    }
    let job = bench.assert_promoted(&image).await;
    assert_eq!(job["gates"][0]["evidence"]["images"], 2);
}

#[tokio::test]
async fn the_statements_beside_the_platforms_need_no_scan() {
    let bench = Bench::new(gate(json!({}))).await;
    let platform = Image::oci(1, &[1000]);
    let image = super::signed::with_unknown_child(&platform, &Image::statements(3));
    bench.push("v1", &image).await;
    bench.scan(&platform, Scanned::basic(&[]));
    bench.assert_promoted(&image).await;

    // What can be run needs one, whatever its platform is called.
    let bench = Bench::new(gate(json!({}))).await;
    let image = super::signed::with_unknown_child(&platform, &Image::oci(2, &[1000]));
    bench.push("v1", &image).await;
    bench.scan(&platform, Scanned::basic(&[]));
    bench.assert_kept(&image, "wait").await;
}

#[tokio::test]
async fn a_scan_that_does_not_come_is_waited_for_and_then_refused() {
    let bench = Bench::new(gate(json!({"wait": "24h"}))).await;
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    let job = bench.assert_kept(&image, "wait").await;
    let began = format!(
        "scan: {} has no findings yet (no scan): waits until ",
        image.digest()
    );
    assert!(reason(&job).starts_with(&began), "{job:#}");
    for status in ["IN_PROGRESS", "PENDING", "SOMETHING_NEW"] {
        bench.scan(&image, Scanned::status(status));
        let job = bench.assert_kept(&image, "wait").await;
        assert!(reason(&job).contains(status), "{job:#}");
    }

    bench.gate(gate(json!({"wait": "1s"})));
    eventually("the wait is over", async || {
        let run = bench.ferry.sync(&[]).await;
        (run.total("refused") == 1).then_some(())
    })
    .await;
    let job = bench.assert_kept(&image, "refuse").await;
    assert!(reason(&job).contains("was waited for until"), "{job:#}");

    bench.scan(&image, Scanned::basic(&[]));
    bench.assert_promoted(&image).await;
}

#[tokio::test]
async fn a_scan_that_ended_without_findings_is_refused_by_name() {
    let bench = Bench::new(gate(json!({}))).await;
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    for status in [
        "FAILED",
        "FINDINGS_UNAVAILABLE",
        "IMAGE_ARCHIVED",
        "LIMIT_EXCEEDED",
        "SCAN_ELIGIBILITY_EXPIRED",
    ] {
        bench.scan(&image, Scanned::status(status));
        let job = bench.assert_kept(&image, "refuse").await;
        assert!(
            reason(&job).ends_with(&format!("ended as {status}")),
            "{job:#}"
        );
    }
    let unsupported = Scanned::status("UNSUPPORTED_IMAGE");
    bench.scan(
        &image,
        unsupported.described("UnsupportedImageError: no os"),
    );
    let job = bench.assert_kept(&image, "refuse").await;
    let said = reason(&job);
    let end = "ended as UNSUPPORTED_IMAGE: UnsupportedImageError: no os";
    assert!(said.ends_with(end), "{said}");
}

/// Each page of a scan with a million findings would be read for minutes.
#[tokio::test]
async fn a_million_findings_are_not_all_read() {
    let bench = Bench::new(gate(json!({}))).await;
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    bench.scan(&image, Scanned::basic(&[]).after_low(1_000_000));
    let job = bench.assert_kept(&image, "refuse").await;
    assert!(
        reason(&job).ends_with("has too many findings: 100000 were read"),
        "{job:#}"
    );
    assert_eq!(bench.ecr.count(FINDINGS), 100);
    let counts = &job["gates"][0]["evidence"]["counts"];
    assert_eq!(counts, &json!({"low": 1_000_000}));
}

#[tokio::test]
async fn findings_that_cannot_be_read_let_nothing_pass() {
    let bench = Bench::new(gate(json!({}))).await;
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    bench.scan(&image, Scanned::enhanced(&[("CVE-2026-1", "TERRIBLE", 0)]));
    let job = bench.assert_kept(&image, "wait").await;
    assert!(reason(&job).contains("CVE-2026-1 has the severity TERRIBLE"));

    // Without the permission the job fails, and says which one it lacks.
    bench.scan(&image, Scanned::basic(&[]));
    bench.ecr.ways(|ways| {
        ways.denied.insert(FINDINGS);
    });
    let run = bench.ferry.sync(&["--tag", "v1"]).await.expect(3);
    let job = run.job("v1");
    assert_eq!(job["result"], "failed");
    let said = job["error"]["text"].as_str().unwrap();
    assert!(said.contains("ecr:DescribeImageScanFindings"), "{said}");
    let there = bench.ecr.client().digest("prod-demo-app", "v1").await;
    assert_eq!(there, None);
    let check = bench.ferry.run(&["check", "--online"]).await;
    let lacks = check.said().contains("ecr:DescribeImageScanFindings");
    assert!(lacks, "{}", check.said());

    bench.ecr.ways(|ways| {
        ways.denied.clear();
        ways.storm = 2;
        ways.storm_on.insert(FINDINGS);
    });
    bench.assert_promoted(&image).await;
    bench.ecr.ways(|ways| ways.storm = 0);
    let check = bench.ferry.run(&["check", "--online"]).await.expect(0);
    let can = format!("scans of {}/staging-demo-app", bench.ecr.address());
    assert!(check.said().contains(&can), "{}", check.said());
}

/// A registry without a scanner would be waited for in vain.
#[tokio::test]
async fn a_registry_that_is_not_ecr_is_a_mistake_of_the_config() {
    let ecr = demo().await;
    let plain = Registry::distribution3();
    for (at, from, to) in [
        ("source", "plain/staging", "ecr/prod-demo-app"),
        ("destination", "ecr/staging-demo-app", "plain/production"),
    ] {
        let scan = gate(json!({"at": at}));
        let config = Config::new()
            .registry_with("ecr", &ecr.url(), keys(&ecr, HOME))
            .registry("plain", &plain.url())
            .raw_route(json!({
                "name": "app", "from": from, "to": to, "tags": {"include": ["*"]},
                "gates": {"scan": scan},
            }));
        let ferry = with_identity(Ferry::new(&config), &ecr);
        let run = ferry.run(&["check"]).await.expect(2);
        let text = "\"plain\" is no private registry of ECR";
        assert!(run.said().contains(text), "{at}: {}", run.said());
    }
}

#[tokio::test]
async fn what_moto_says_of_a_scan_is_judged() {
    let moto = Moto::start().await;
    let registry = Program::Distribution3
        .setup()
        .basic("AWS", &format!("{HOME}-auth-token"))
        .start();
    let client = registry
        .client()
        .with_basic("AWS", &format!("{HOME}-auth-token"));
    let image = Image::oci(1, &[1000]);
    client.push("staging-demo-app", "v1", &image).await;
    for repository in ["staging-demo-app", "prod-demo-app"] {
        let name = json!({"repositoryName": repository});
        moto.call("CreateRepository", name).await;
    }
    moto.know("staging-demo-app", "v1", &image).await;
    let keys = json!({"auth": "ecr", "kind": "ecr", "region": "eu-west-1", "account": HOME, "ecr_endpoint": moto.url});
    let config = Config::new()
        .registry_with("staging", &registry.url(), keys.clone())
        .registry_with("production", &registry.url(), keys)
        .raw_route(json!({
            "name": "app", "from": "staging/staging-demo-app", "to": "production/prod-demo-app",
            "tags": {"include": ["*"]}, "gates": {"scan": gate(json!({}))},
        }));
    let ferry = Ferry::new(&config).with_aws_identity(&moto);
    let run = ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(verdicts(&run.job("v1")), json!({"scan": "wait"}));

    let scanned =
        json!({"repositoryName": "staging-demo-app", "imageId": {"imageDigest": image.digest()}});
    moto.call("StartImageScan", scanned).await;
    let run = ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = run.job("v1");
    assert_eq!(verdicts(&job), json!({"scan": "refuse"}), "{job:#}");
    assert_eq!(reason(&job), "scan: found CVE-9999-9999 (high)");
    assert_eq!(client.digest("prod-demo-app", "v1").await, None);
}
