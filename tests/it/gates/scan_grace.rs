//! `scan`: what is let pass for a while, by grace and by exceptions.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::scanned::{Bench, gate, reason};
use crate::ecr::{demo, keys, with_identity};
use crate::support::ecr::{HOME, Scanned};
use crate::support::*;

fn hours_ago(hours: i64) -> i64 {
    let then = blobferry::clock::now() - SignedDuration::from_hours(hours);
    then.as_second()
}

#[tokio::test]
async fn a_finding_has_the_grace_of_its_severity_from_its_own_date() {
    let grace = |high: &str| gate(json!({"grace": {"high": high}}));
    let bench = Bench::new(grace("5h")).await;
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    let old = Scanned::enhanced(&[("CVE-2026-1", "HIGH", hours_ago(10))]);
    for scanned in [
        old.clone(),
        Scanned::basic(&[("CVE-2026-1", "HIGH")]).ended(hours_ago(10)),
        // Of no date, and of a severity without grace.
        Scanned::enhanced(&[("CVE-2026-1", "HIGH", 0)]).with("firstObservedAt", Value::Null),
        Scanned::enhanced(&[("CVE-2026-1", "CRITICAL", hours_ago(1))]),
    ] {
        bench.scan(&image, scanned);
        bench.assert_kept(&image, "refuse").await;
    }
    bench.gate(grace("20h"));
    bench.scan(&image, old);
    let job = bench.assert_promoted(&image).await;
    let evidence = &job["gates"][0]["evidence"];
    assert_eq!(evidence["grace"], json!(["CVE-2026-1"]));
    assert!(evidence["until"].is_string(), "{evidence:#}");
    assert!(evidence["found"].as_array().unwrap().is_empty());

    // Of a basic scan the end counts.
    let image = Image::oci(2, &[1000]);
    bench.push("v2", &image).await;
    let basic = Scanned::basic(&[("CVE-2026-1", "HIGH")]).ended(hours_ago(10));
    bench.scan(&image, basic);
    let run = bench.ferry.sync(&["--tag", "v2"]).await.expect(0);
    assert_eq!(run.job("v2")["result"], "promoted");
}

#[tokio::test]
async fn an_exception_lets_one_vulnerability_pass_until_its_end() {
    let ignored = |until: &str| {
        let entry = json!({"id": "CVE-2026-1", "until": until, "reason": "not reachable"});
        gate(json!({"ignore": [entry]}))
    };
    let bench = Bench::new(ignored("2026-11-01")).await;
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    bench.scan(&image, Scanned::basic(&[("CVE-2026-1", "CRITICAL")]));
    bench.assert_kept(&image, "refuse").await;

    bench.gate(ignored("2999-12-31"));
    let both = [("CVE-2026-1", "CRITICAL"), ("CVE-2026-2", "HIGH")];
    bench.scan(&image, Scanned::basic(&both));
    let job = bench.assert_kept(&image, "refuse").await;
    assert_eq!(reason(&job), "scan: found CVE-2026-2 (high)");

    bench.scan(&image, Scanned::basic(&both[..1]));
    let job = bench.assert_promoted(&image).await;
    let evidence = &job["gates"][0]["evidence"];
    assert_eq!(evidence["ignored"], json!({"CVE-2026-1": "not reachable"}));
    assert_eq!(evidence["until"], "3000-01-01T00:00:00Z");
}

/// Whether a grace or an exception has ended cannot be told by a clock that is wrong.
#[tokio::test]
async fn nothing_is_let_pass_by_a_clock_that_is_off() {
    let ecr = demo().await;
    let production = Proxy::before(&ecr.url()).await;
    let ahead = (blobferry::clock::now() + SignedDuration::from_hours(1))
        .to_zoned(jiff::tz::TimeZone::UTC)
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    let kinds = [Kind::ManifestGet, Kind::ManifestHead, Kind::BlobHead];
    production.rule(Rule::on(&kinds).act(Act::Header("date", Some(ahead))));
    let ignore = json!([{"id": "CVE-2026-1", "until": "2999-12-31", "reason": "not reachable"}]);
    let config = Config::new()
        .registry_with("staging", &ecr.url(), keys(&ecr, HOME))
        .registry_with("production", &production.url(), keys(&ecr, HOME))
        .raw_route(json!({
            "name": "app", "from": "staging/staging-demo-app", "to": "production/prod-demo-app",
            "tags": {"include": ["*"]}, "gates": {"scan": gate(json!({"ignore": ignore}))},
        }));
    let ferry = with_identity(Ferry::new(&config), &ecr);
    let bench = Bench { ecr, ferry };
    let image = Image::oci(1, &[1000]);
    bench.push("v1", &image).await;
    bench.scan(&image, Scanned::basic(&[("CVE-2026-1", "HIGH")]));
    let job = bench.assert_kept(&image, "wait").await;
    assert!(
        reason(&job).contains("our clock is more than 60 s off"),
        "{job:#}"
    );
    // What depends on no time is judged.
    bench.scan(&image, Scanned::basic(&[("CVE-2026-2", "HIGH")]));
    bench.assert_kept(&image, "refuse").await;
    bench.scan(&image, Scanned::basic(&[]));
    bench.assert_promoted(&image).await;
}
