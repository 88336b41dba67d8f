//! No source, destination or backfill holds up another: the built program before registries that
//! are slow, busy or sick.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::scripted::{Answer, Asked, Record};
use crate::support::*;

const KIB: usize = 1024;

fn busy(seconds: u64) -> Answer {
    Answer::Reply(Reply::status(429).header("retry-after", &seconds.to_string()))
}

/// Refuses each n-th request that `is_meant`; counts the refusals.
fn refuse_each(
    registry: &Scripted,
    nth: usize,
    after: u64,
    is_meant: impl Fn(&Asked) -> bool + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let seen = AtomicUsize::new(0);
    let refused = Arc::new(AtomicUsize::new(0));
    let count = refused.clone();
    registry.on(move |asked| {
        if !is_meant(asked) || !(seen.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(nth) {
            return Answer::Pass;
        }
        count.fetch_add(1, Ordering::SeqCst);
        busy(after)
    });
    refused
}

fn puts(log: &[Record], repository: &str, tag: &str) -> Vec<usize> {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let is_put = |record: &Record| record.path == path && record.method == "PUT";
    (0..log.len()).filter(|at| is_put(&log[*at])).collect()
}

/// Two destinations share the reads of one route. At the second one every layer is believed to be
/// elsewhere: its mounts are refused, and the sessions that a refusal leaves are sent through
/// alone. So permits are taken in two orders. With few of them the two ways once waited for each
/// other in a circle.
async fn assert_all_end(keys: Value, tags: u64, after: u64) {
    let staging = Scripted::start();
    let (production, second) = (Scripted::start(), Scripted::start());
    let base = Blob::layer(1, 300 * KIB);
    let layers: Vec<Blob> = (0..tags)
        .map(|tag| Blob::layer(100 + tag, 100 * KIB))
        .collect();
    for (tag, layer) in layers.iter().enumerate() {
        let image = Image::of_layers(1000 + tag as u64, vec![base.clone(), layer.clone()]);
        staging.push("app", &format!("v{tag}"), &image);
    }
    staging.push("first", "all", &Image::of_layers(1, layers));
    let config = Config::new()
        .registry_with(
            "staging",
            &staging.url(),
            json!({"concurrency": keys["concurrency"]}),
        )
        .registry_with("production", &production.url(), keys.clone())
        .registry_with("second", &second.url(), keys)
        .route("first", json!({"to": "second/elsewhere"}))
        .route("app", json!({"to": ["production/app", "second/app"]}));
    let ferry = Ferry::new(&config);
    ferry.sync(&["first"]).await.expect(0);

    second.set(|settings| settings.mounts = false);
    second.forget_requests();
    let refused = refuse_each(&second, 9, after, |asked| asked.kind == Kind::UploadPost);
    let run = ferry.sync(&["app"]).await.expect(0);
    assert_eq!(run.total("promoted"), 2 * tags, "{}", run.stdout);
    for registry in [&production, &second] {
        assert_eq!(registry.tags("app").len() as u64, tags);
    }
    assert!(refused.load(Ordering::SeqCst) > 0, "no upload was refused");
    let offered = second.of(Kind::UploadPost);
    let offered = offered.iter().filter(|post| post.query.contains("mount="));
    assert!(offered.count() as u64 >= tags, "no mount was refused");
}

#[tokio::test]
async fn two_at_once_end_whatever_order_permits_are_taken_in() {
    assert_all_end(json!({"concurrency": 2}), 46, 1).await;
}

#[tokio::test]
async fn eight_at_once_end_whatever_order_permits_are_taken_in() {
    assert_all_end(json!({"concurrency": 8}), 90, 1).await;
}

#[tokio::test]
async fn on_ecr_all_end_whatever_order_permits_are_taken_in() {
    assert_all_end(json!({"kind": "ecr", "auth": "anonymous"}), 46, 1).await;
}

/// A route from a sick registry, and one from a well one, into the same production.
fn two_sources(sick: &Scripted, well: &Scripted, production: &Scripted) -> Ferry {
    let to =
        |from: &str| json!({"from": format!("{from}/{from}"), "to": format!("production/{from}")});
    let config = Config::new()
        .registry("sick", &sick.url())
        .registry("well", &well.url())
        .registry("production", &production.url())
        .route("sick", to("sick"))
        .route("well", to("well"));
    Ferry::new(&config)
}

/// Sixteen large layers that drip: the first of them, and all digests.
fn dripping() -> (Scripted, Blob, BTreeSet<String>) {
    let sick = Scripted::start();
    let layers: Vec<Blob> = (0..16)
        .map(|layer| Blob::layer(10 + layer, 4 * 1024 * KIB))
        .collect();
    let large: BTreeSet<String> = layers.iter().map(|layer| layer.digest.clone()).collect();
    for (tag, layer) in layers.iter().enumerate() {
        let image = Image::of_layers(200 + tag as u64, vec![layer.clone()]);
        sick.push("sick", &format!("v{tag}"), &image);
    }
    let drips = large.clone();
    sick.on(move |asked| match asked.kind {
        Kind::BlobGet if drips.contains(asked.reference()) => Answer::Drip(15_000),
        _ => Answer::Pass,
    });
    (sick, layers[0].clone(), large)
}

async fn assert_promoted(daemon: &Daemon, repository: &str, tag: &str) {
    let ask = json!({"wait": true, "repository": repository, "tag": tag});
    let (status, report) = daemon.ping(ask).await;
    assert_eq!(
        (status, &report["totals"]["promoted"]),
        (200, &json!(1)),
        "{report:#}"
    );
}

#[tokio::test]
async fn sixteen_layers_that_drip_hold_up_no_other_source() {
    let (sick, base, large) = dripping();
    let (well, production) = (Scripted::start(), Scripted::start());
    let ferry = two_sources(&sick, &well, &production);
    let daemon = ferry.start().await;
    let drip = |log: &[Record]| {
        log.iter()
            .filter(|record| large.contains(record.path.rsplit('/').next().unwrap_or_default()))
            .count()
    };
    sick.until("sixteen layers drip", |log| drip(log) >= 16)
        .await;
    well.push("well", "v1", &Image::oci(1, &[100 * KIB, 200 * KIB]));
    assert_promoted(&daemon, "well", "v1").await;
    // The base layer is on its way from the sick source.
    let shares = Image::of_layers(2, vec![base, Blob::layer(3, 1000)]);
    well.push("well", "v2", &shares);
    assert_promoted(&daemon, "well", "v2").await;
    assert!(
        production.tags("sick").is_empty(),
        "the layers did not drip"
    );
    assert_eq!(production.tags("well"), ["v1", "v2"]);
}

#[tokio::test]
async fn eighty_tags_that_are_to_wait_for_long_hold_up_no_other_source() {
    let (sick, well, production) = (Scripted::start(), Scripted::start(), Scripted::start());
    for tag in 0..80 {
        sick.push("sick", &format!("v{tag}"), &Image::oci(tag + 1, &[100]));
    }
    sick.on(|asked| match asked.kind {
        Kind::ManifestGet | Kind::ManifestHead => {
            Answer::Reply(Reply::status(503).header("retry-after", "700"))
        }
        _ => Answer::Pass,
    });
    let ferry = two_sources(&sick, &well, &production);
    let daemon = ferry.start().await;
    let is_asked = |record: &Record| [Kind::ManifestGet, Kind::ManifestHead].contains(&record.kind);
    sick.until("the sick source answers", |log| {
        log.iter()
            .any(|record| is_asked(record) && record.status.is_some())
    })
    .await;
    for tag in 0..20 {
        well.push(
            "well",
            &format!("v{tag}"),
            &Image::oci(1000 + tag, &[1000, 100 * KIB]),
        );
    }
    let (status, report) = daemon
        .ping(json!({"wait": true, "repository": "well"}))
        .await;
    assert_eq!(
        (status, &report["totals"]["promoted"]),
        (200, &json!(20)),
        "{report:#}"
    );
    assert!(production.tags("sick").is_empty());
    let asked = sick.count(Kind::ManifestGet) + sick.count(Kind::ManifestHead);
    assert!(
        asked <= 64,
        "{asked} requests before the time that was named"
    );
}

/// How many requests production answered between the first one of a hotfix and its PUT, and how
/// many tags had been named.
async fn beside_a_backfill(repository: &str) -> (usize, usize) {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let mut config = Config::new()
        .registry("staging", &staging.url())
        .registry_with(
            "production",
            &production.url(),
            json!({"concurrency": 8, "requests_per_second": 250}),
        );
    for app in 0..12_u64 {
        let name = format!("app-{app}");
        for tag in 0..64 {
            staging.push(
                &name,
                &format!("v{tag}"),
                &Image::oci(1 + app * 64 + tag, &[1000]),
            );
        }
        config = config.route(&name, json!({}));
    }
    let ferry = Ferry::new(&config.route("hotfix", json!({})));
    let daemon = ferry.start().await;
    production.seen(Kind::ManifestPut, 20).await;
    staging.push(repository, "hotfix", &Image::oci(10_000, &[400]));
    let before = production.log().len();
    assert_promoted(&daemon, repository, "hotfix").await;
    let log = production.log();
    let put = puts(&log, repository, "hotfix");
    assert_eq!(put.len(), 1);
    let named = log[..put[0]]
        .iter()
        .filter(|record| record.kind == Kind::ManifestPut)
        .count();
    (put[0] - before, named)
}

#[tokio::test]
async fn a_hotfix_by_name_is_served_before_a_backfill_of_other_repositories() {
    let (requests, named) = beside_a_backfill("hotfix").await;
    assert!(requests <= 250, "{requests} requests went before");
    assert!(named < 384, "{named} of 768 tags were named before");
}

#[tokio::test]
async fn a_hotfix_by_name_is_served_before_a_backfill_of_its_own_repository() {
    let (requests, named) = beside_a_backfill("app-0").await;
    assert!(requests <= 250, "{requests} requests went before");
    assert!(named < 384, "{named} of 768 tags were named before");
}

/// A pass at two requests at once, over a production that refuses each fourth request for a second.
async fn pass_under_steady_refusals(tags: u64) -> Run {
    let (staging, production) = (Scripted::start(), Scripted::start());
    for tag in 0..tags {
        staging.push(
            "app",
            &format!("v{tag}"),
            &Image::oci(tag + 1, &[1000, 70 * KIB]),
        );
    }
    let keys = json!({"concurrency": 2});
    let config = Config::new()
        .registry_with("staging", &staging.url(), keys.clone())
        .registry_with("production", &production.url(), keys)
        .route("app", json!({}));
    let refused = refuse_each(&production, 4, 1, |_| true);
    let ferry = Ferry::new(&config);
    let run = ferry
        .run_within(Duration::from_secs(900), &["sync", "--json"])
        .await;
    assert!(
        refused.load(Ordering::SeqCst) as u64 >= tags / 2,
        "hardly any was refused"
    );
    run
}

/// Jobs that only waited in line were once given up as if the registry had refused them.
#[tokio::test]
async fn a_pass_that_gets_on_does_not_fail_for_steady_refusals() {
    let run = pass_under_steady_refusals(12).await.expect(0);
    assert_eq!(run.total("promoted"), 12, "{}", run.stdout);
}

/// Prints how long fifty tags take, and how many fail.
#[tokio::test]
#[ignore = "a measurement: run it by its name with --nocapture"]
async fn measure_a_pass_of_fifty_tags_under_steady_refusals() {
    let start = Instant::now();
    let run = pass_under_steady_refusals(50).await;
    let (promoted, failed) = (run.total("promoted"), run.total("failed"));
    println!(
        "{promoted} promoted, {failed} failed in {:?}",
        start.elapsed()
    );
}
