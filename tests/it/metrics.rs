//! What Prometheus sees: the agreed names, nothing that its linter minds, and a target that is up.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::prometheus::{Prometheus, lint};
use crate::support::*;

/// One line for each metric: name, kind, labels in order; `maybe` in front of one that has no
/// series before its event.
const AGREED: &str = include_str!("metrics.txt");

#[derive(Debug, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

async fn at_work() -> (Stage, Daemon) {
    let gates = json!({"gates": {"window": {"open": "mon-sun"}}});
    let stage = Stage::with_route(Program::Distribution3, gates).await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let daemon = stage.ferry.start_ready().await;
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 200);
    (stage, daemon)
}

#[tokio::test]
async fn a_scrape_has_the_agreed_metrics_and_no_other() {
    let (_stage, daemon) = at_work().await;
    let scraped = parse(&daemon.metrics().await);
    let mut expected = BTreeSet::new();
    for line in AGREED
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let maybe = words[0] == "maybe";
        if maybe {
            words.remove(0);
        }
        let name = format!("blobferry_{}", words[0]);
        let labels = words[2..].iter().map(ToString::to_string).collect();
        match scraped.get(&name) {
            Some(found) => assert_eq!(
                *found,
                Metric {
                    kind: words[1].into(),
                    labels
                },
                "{name}"
            ),
            None => assert!(maybe, "{name} is missing"),
        }
        expected.insert(name);
    }
    let unknown: Vec<_> = scraped
        .keys()
        .filter(|name| !expected.contains(*name) && !name.starts_with("process_"))
        .collect();
    assert!(unknown.is_empty(), "not agreed: {unknown:?}");
    assert!(scraped.contains_key("process_resident_memory_bytes"));
}

#[tokio::test]
async fn every_series_of_a_route_exists_before_its_first_event() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    let route = [("route", "app"), ("destination", "production")];
    for outcome in [
        "promoted",
        "up_to_date",
        "conflict",
        "drift",
        "existing",
        "refused",
        "gone",
        "waiting",
        "held",
        "interrupted",
        "failed",
    ] {
        let labels = [&route[..], &[("result", outcome)]].concat();
        assert_eq!(
            daemon.metric("blobferry_outcomes_total", &labels).await,
            Some(0.0),
            "{outcome}"
        );
    }
    for state in [
        "up_to_date",
        "pending",
        "waiting",
        "held",
        "conflict",
        "drift",
        "existing",
        "refused",
        "failed",
        "only_in_destination",
    ] {
        let labels = [&route[..], &[("state", state)]].concat();
        assert_eq!(
            daemon.metric("blobferry_tags", &labels).await,
            Some(0.0),
            "{state}"
        );
    }
    for how in ["present", "mounted", "copied"] {
        let labels = [&route[..], &[("how", how)]].concat();
        assert_eq!(
            daemon.metric("blobferry_blobs_total", &labels).await,
            Some(0.0),
            "{how}"
        );
    }
}

#[tokio::test]
async fn numbers_tell_what_happened() {
    let (stage, daemon) = at_work().await;
    let route = [("route", "app"), ("destination", "production")];
    assert_eq!(
        daemon.metric("blobferry_promotions_total", &route).await,
        Some(1.0)
    );
    assert_eq!(
        daemon
            .metric("blobferry_tags", &[("state", "up_to_date")])
            .await,
        Some(1.0)
    );
    assert_eq!(
        daemon
            .metric("blobferry_blobs_total", &[("how", "copied")])
            .await,
        Some(2.0)
    );
    let sent = daemon
        .metric(
            "blobferry_transfer_bytes_total",
            &[("registry", "production"), ("direction", "sent")],
        )
        .await;
    assert_eq!(
        sent,
        Some(stage.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0 as f64)
    );
    let read = daemon
        .metric(
            "blobferry_transfer_bytes_total",
            &[("registry", "staging"), ("direction", "read")],
        )
        .await;
    assert_eq!(read, Some(stage.source.bytes(&[Kind::BlobGet]).1 as f64));
    let text = daemon.metrics().await;
    assert!(!text.contains("sha256:"), "a digest is no label");
    assert!(!text.contains("\"v1\""), "a tag is no label");
    assert!(!text.contains("http://"), "a URL is no label");
}

#[tokio::test]
async fn what_a_reload_takes_away_leaves_no_numbers() {
    let (stage, daemon) = at_work().await;
    let config = stage.config(|config| {
        config
            .registry("elsewhere", &stage.target.url())
            .route("app", json!({"to": "elsewhere/other"}))
            .route("second", json!({}))
    });
    stage.ferry.write_config(&config);
    daemon.signal("HUP").await;
    eventually("the new destination has numbers", async || {
        daemon
            .metric(
                "blobferry_tags",
                &[("route", "app"), ("destination", "elsewhere")],
            )
            .await
    })
    .await;
    let old = "route=\"app\"";
    let text = daemon.metrics().await;
    let left: Vec<_> = text
        .lines()
        .filter(|line| line.contains(old) && line.contains("destination=\"production\""))
        .collect();
    assert!(left.is_empty(), "{left:#?}");
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("second", json!({}))));
    daemon.signal("HUP").await;
    eventually("the route has no numbers any more", async || {
        (!daemon.metrics().await.contains(old)).then_some(())
    })
    .await;
}

/// Bytes still came in for a registry that the config had no more, and its series were back after
/// the next scrape.
#[tokio::test]
async fn what_still_runs_for_a_registry_that_is_gone_brings_no_numbers_back() {
    let stage = Stage::new(Program::Distribution3).await;
    let image = Image::oci(1, &[200_000]);
    stage.push().push("app", "v1", &image).await;
    let gate = Gate::closed();
    let blob = &image.blobs[1].digest;
    stage.source.rule(
        Rule::on(&[Kind::BlobGet])
            .path(blob)
            .act(Act::HoldAnswer(100_000, gate.clone())),
    );
    let daemon = stage.ferry.start().await;
    gate.arrived(1).await;
    let elsewhere = Config::new()
        .registry("here", &stage.source.url())
        .registry("there", &stage.target.url());
    stage.ferry.write_config(
        &elsewhere.raw_route(json!({"name": "other", "from": "here/other", "to": "there/other", "tags": {"include": ["*"]}})),
    );
    daemon.signal("HUP").await;
    let gone = [
        "registry=\"staging\"",
        "registry=\"production\"",
        "route=\"app\"",
    ];
    let left = async || {
        let text = daemon.metrics().await;
        text.lines()
            .filter(|line| gone.iter().any(|label| line.contains(label)))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    eventually("the old registries have no numbers", async || {
        left().await.is_empty().then_some(())
    })
    .await;
    gate.open();
    eventually("the job has ended", async || {
        (daemon.metric("blobferry_jobs_in_flight", &[]).await == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(left().await, Vec::<String>::new());
    assert_eq!(stage.there().digest("app", "v1").await, None);
}

#[tokio::test]
async fn the_build_is_named_and_bounds_are_round_numbers() {
    let (_stage, daemon) = at_work().await;
    let text = daemon.metrics().await;
    let info = text
        .lines()
        .find(|line| line.starts_with("blobferry_build_info{"))
        .expect("the build");
    let revision = info
        .split("revision=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("a revision");
    assert!(revision.len() >= 7 && revision != "unknown", "{info}");
    let version = stage_version().await;
    assert!(version.contains(revision), "{version} is not {revision}");
    let bounds: BTreeSet<&str> = text
        .lines()
        .filter(|line| line.starts_with("blobferry_") && line.contains("_bucket{"))
        .filter_map(|line| line.split("le=\"").nth(1)?.split('"').next())
        .collect();
    let is_round = |bound: &str| {
        let digits = bound.trim_start_matches(['0', '.']).replace('.', "");
        bound == "+Inf"
            || [
                "1", "18", "108", "12", "25", "3", "36", "432", "5", "6", "864",
            ]
            .contains(&digits.trim_end_matches('0'))
    };
    let odd: Vec<_> = bounds.iter().filter(|bound| !is_round(bound)).collect();
    assert!(bounds.len() > 20 && odd.is_empty(), "{odd:?}");
}

async fn stage_version() -> String {
    Ferry::bare().run(&["--version"]).await.expect(0).stdout
}

#[tokio::test]
async fn the_linter_has_nothing_to_say() {
    let (_stage, daemon) = at_work().await;
    assert_eq!(lint(&daemon.metrics().await).await, "");
}

#[tokio::test]
async fn a_real_prometheus_has_the_target_up() {
    let (_stage, daemon) = at_work().await;
    let prometheus = Prometheus::scraping(daemon.url().trim_start_matches("http://")).await;
    prometheus.target_up().await;
    let promotions = eventually("prometheus has the promotion", async || {
        prometheus.query("sum(blobferry_promotions_total)").await
    })
    .await;
    assert_eq!(promotions, 1.0);
}

fn parse(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a kind");
            metrics.insert(
                name.into(),
                Metric {
                    kind: kind.into(),
                    labels: BTreeSet::new(),
                },
            );
        } else if let Some((series, labels)) = line.split_once('{') {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| series.strip_suffix(end))
                .filter(|base| metrics.contains_key(*base));
            let metric = metrics
                .get_mut(base.unwrap_or(series))
                .expect("a kind comes before its series");
            metric.labels.extend(
                labels
                    .split("\",")
                    .filter_map(|pair| pair.split_once("=\""))
                    .map(|(label, _)| label.to_owned()),
            );
            metric.labels.remove("le");
        }
    }
    metrics
}
