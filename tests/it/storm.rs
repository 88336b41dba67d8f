//! Registries that say "too many requests": a storm costs time, and nothing else.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::image::Corpus;
use crate::support::proxy::Entry;
use crate::support::*;

/// What registries limit together, and so what waits together.
const CLASSES: [&[Kind]; 5] = [
    &[Kind::Tags, Kind::Catalog, Kind::Referrers],
    &[Kind::ManifestHead, Kind::ManifestGet],
    &[Kind::BlobHead, Kind::BlobGet],
    &[
        Kind::UploadPost,
        Kind::UploadPatch,
        Kind::UploadPut,
        Kind::UploadStatus,
    ],
    &[Kind::ManifestPut],
];
/// Requests that were sent before the refusal was read may come so much later.
const ON_THEIR_WAY: Duration = Duration::from_millis(400);
/// A date has whole seconds: it may be so much earlier than meant.
const ROUNDING: Duration = Duration::from_secs(1);

/// Asserts that after each refusal of `wait` no request of its class came before its time.
fn assert_patience(proxy: &Proxy, wait: Duration) {
    for class in CLASSES {
        let log = proxy.of(class);
        let refusals = log.iter().filter(|entry| entry.status == Some(429));
        for (refusal, told) in
            refusals.map(|entry| (entry, entry.answered_at.expect("a refusal is an answer")))
        {
            let early = |entry: &&Entry| (told + ON_THEIR_WAY..told + wait).contains(&entry.at);
            let early: Vec<&Entry> = log.iter().filter(early).collect();
            assert!(
                early.is_empty(),
                "{} was refused, and then too early came {early:#?}",
                refusal.path
            );
        }
    }
}

fn busy() -> Reply {
    Reply::status(429).header("retry-after", "1").body(
        "application/json",
        r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#,
    )
}

async fn stage(threads: usize) -> (Stage, Corpus) {
    let corpus = Corpus::shared_base(1, 3, 3, &[300_000, 20_000], 5000);
    let stage = Stage::build(Program::Distribution3, |config| {
        config.threads(threads).raw_route(json!({"name": "apps", "from": "staging/app-*", "to": "production/app-{1}", "tags": {"include": ["v*"]}}))
    })
    .await;
    for app in &corpus.apps {
        for (tag, image) in &app.versions {
            stage.push().push(&app.name, tag, image).await;
        }
    }
    (stage, corpus)
}

async fn assert_all_there(stage: &Stage, corpus: &Corpus) {
    for app in &corpus.apps {
        for (tag, image) in &app.versions {
            stage.there().assert_holds(&app.name, tag, image).await;
        }
    }
}

#[tokio::test]
async fn a_storm_of_refusals_costs_time_and_no_job() {
    for threads in THREADS {
        let (stage, corpus) = stage(threads).await;
        refuses_every_other_request(&stage, &corpus).await;
    }
}

async fn refuses_every_other_request(stage: &Stage, corpus: &Corpus) {
    for class in CLASSES {
        stage
            .source
            .rule(Rule::on(class).times(2).every(2).act(busy()));
        stage
            .target
            .rule(Rule::on(class).times(3).every(2).act(busy()));
    }
    let run = stage.sync().await.expect(0);
    assert_eq!((run.total("promoted"), run.total("failed")), (9, 0));
    assert_all_there(stage, corpus).await;
    let refused = |proxy: &Proxy| {
        proxy
            .log()
            .iter()
            .filter(|entry| entry.status == Some(429))
            .count()
    };
    assert!(
        refused(&stage.source) >= 5 && refused(&stage.target) >= 8,
        "the storm was no storm"
    );
    assert_patience(&stage.source, Duration::from_secs(1));
    assert_patience(&stage.target, Duration::from_secs(1));
}

#[tokio::test]
async fn a_date_is_waited_for_by_everybody() {
    for threads in THREADS {
        let (stage, corpus) = stage(threads).await;
        names_a_date(&stage, &corpus).await;
    }
}

async fn names_a_date(stage: &Stage, corpus: &Corpus) {
    for class in [CLASSES[1], CLASSES[3]] {
        stage
            .source
            .rule(Rule::on(class).times(1).act(Act::BusyUntil(3)));
        stage.target.rule(
            Rule::on(class)
                .from(3)
                .times(2)
                .every(2)
                .act(Act::BusyUntil(3)),
        );
    }
    let run = stage.sync().await.expect(0);
    assert_eq!(run.total("promoted"), 9);
    assert_all_there(stage, corpus).await;
    assert_patience(&stage.source, Duration::from_secs(3) - ROUNDING);
    assert_patience(&stage.target, Duration::from_secs(3) - ROUNDING);
}

#[tokio::test]
async fn looks_wait_as_well_and_the_wait_is_counted() {
    let stage = Stage::new(Program::Distribution2).await;
    let image = Image::oci(1, &[1000]);
    for number in 0..40 {
        stage
            .push()
            .push("app", &format!("v{number}"), &image)
            .await;
    }
    stage.sync().await.expect(0);
    stage.reset();
    stage.source.rule(
        Rule::on(&[Kind::ManifestHead])
            .from(10)
            .times(1)
            .act(busy()),
    );
    stage.target.rule(
        Rule::on(&[Kind::ManifestHead])
            .times(1)
            .act(Reply::status(429)),
    );
    let daemon = stage.ferry.start_ready().await;
    assert_patience(&stage.source, Duration::from_secs(1));
    let waited = daemon
        .metric(
            "blobferry_rate_limited_seconds_total",
            &[("registry", "staging")],
        )
        .await;
    assert!(
        waited.is_some_and(|seconds| (0.9..3.0).contains(&seconds)),
        "{waited:?} s were counted for one refusal of 1 s"
    );
    let waited = daemon
        .metric(
            "blobferry_rate_limited_seconds_total",
            &[("registry", "production")],
        )
        .await;
    assert!(
        waited.is_some_and(|seconds| seconds > 0.0),
        "a refusal that names no time is a reason to wait too"
    );
}

#[tokio::test]
async fn a_pace_of_the_config_is_kept() {
    let (staging, production) = (Registry::distribution3(), Registry::distribution3());
    let target = Proxy::before(&production.url()).await;
    let slow = json!({"requests_per_second": 20});
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry_with("production", &target.url(), slow);
    let ferry = Ferry::new(&config.route("app", json!({})));
    let image = Image::oci(1, &[1000]);
    for number in 0..20 {
        staging
            .client()
            .push("app", &format!("v{number}"), &image)
            .await;
    }
    ferry.sync(&[]).await.expect(0);
    let log = target.of(&[Kind::ManifestPut, Kind::ManifestHead, Kind::ManifestGet]);
    let times: Vec<Instant> = log.iter().map(|entry| entry.at).collect();
    let window = |from: Instant| {
        times
            .iter()
            .filter(|at| (from..from + Duration::from_secs(1)).contains(*at))
            .count()
    };
    assert!(
        times.iter().all(|from| window(*from) <= 42),
        "a second's worth may be saved up, and no more"
    );
}

#[tokio::test]
async fn who_says_that_nothing_is_left_is_not_asked_before_there_is_more() {
    let (stage, corpus) = stage(2).await;
    // As Docker Hub counts: its 5th answer is the last of a window of 2 s; whoever comes earlier
    // would be refused.
    let window = Duration::from_secs(2);
    let left =
        |remaining: &str| Act::Header("ratelimit-remaining", Some(format!("{remaining};w=2")));
    let manifests = [Kind::ManifestGet, Kind::ManifestHead];
    stage
        .source
        .rule(Rule::on(&manifests).from(5).times(1).act(left("0")));
    let puts = [Kind::ManifestPut];
    stage
        .target
        .rule(Rule::on(&puts).from(2).times(1).act(left("0")));
    let run = stage.sync().await.expect(0);
    assert_eq!((run.total("promoted"), run.total("failed")), (9, 0));
    assert_all_there(&stage, &corpus).await;
    for (proxy, kinds, last) in [
        (&stage.source, &manifests[..], 5),
        (&stage.target, &puts[..], 2),
    ] {
        let log = proxy.of(kinds);
        // Of those under way together, the log does not say which one was told: none was before the
        // first of their answers.
        let answers = log
            .iter()
            .filter_map(|entry| entry.answered_at)
            .filter(|at| *at >= log[last - 1].at);
        let told = answers.min().expect("it was answered");
        let early: Vec<&Entry> = log
            .iter()
            .filter(|entry| (told + ON_THEIR_WAY..told + window).contains(&entry.at))
            .collect();
        assert!(
            early.is_empty() && log.len() > last,
            "too early came {early:#?}"
        );
    }
}
