//! Many notifications: none is lost, and what they cost is bounded.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::*;

const SECRET: &str = "a-long-random-word";
const REPOSITORIES: usize = 20;

/// A daemon between two scripted registries with [`REPOSITORIES`] repositories.
async fn scene(limit: u64) -> (Scripted, Scripted, Ferry, Daemon) {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let base = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url());
    let ferry = Ferry::new(&base);
    let secret = ferry.file("secret", SECRET);
    let keys = json!({"kind": "harbor", "secret_file": secret, "limit": limit});
    let config = (0..REPOSITORIES).fold(base, |config, number| {
        config.route(&format!("app{number}"), json!({}))
    });
    ferry.write_config(&config.receiver("harbor", keys));
    let daemon = ferry.start_ready().await;
    (staging, production, ferry, daemon)
}

fn body(repository: usize, tag: &str) -> String {
    let resources = json!([{"tag": tag}]);
    let name = format!("app{repository}");
    json!({"type": "PUSH_ARTIFACT", "event_data": {"resources": resources,
        "repository": {"repo_full_name": name}}})
    .to_string()
}

/// The status of a notification, and how long it took.
async fn send(daemon: &Daemon, number: usize, secret: &str) -> (u16, Duration) {
    let request = daemon
        .request("/v1/events/harbor")
        .header("authorization", secret)
        .body(body(number % REPOSITORIES, "v1"));
    let began = Instant::now();
    let answer = request.send().await.expect("the daemon answers");
    let status = answer.status().as_u16();
    answer.bytes().await.expect("a body");
    (status, began.elapsed())
}

async fn queued(daemon: &Daemon) -> f64 {
    let labels = [("source", "webhook"), ("result", "queued")];
    let count = daemon.metric("blobferry_events_total", &labels).await;
    count.unwrap_or_default()
}

#[tokio::test]
async fn of_thousands_of_notifications_none_is_lost() {
    const COUNT: usize = 3000;
    let (staging, production, _ferry, daemon) = scene(100_000).await;
    for number in 0..REPOSITORIES {
        let image = Image::oci(number as u64 + 1, &[1000]);
        staging.push(&format!("app{number}"), "v1", &image);
    }
    let sent = stream::iter(0..COUNT).map(|number| send(&daemon, number, SECRET));
    let statuses: Vec<u16> = sent
        .buffer_unordered(50)
        .map(|(status, _)| status)
        .collect()
        .await;
    assert!(statuses.iter().all(|status| *status == 202), "{statuses:?}");
    eventually("all were queued", async || {
        (queued(&daemon).await == COUNT as f64).then_some(())
    })
    .await;
    for number in 0..REPOSITORIES {
        let name = format!("app{number}");
        eventually("every repository was looked at", async || {
            production.tagged(&name, "v1")
        })
        .await;
    }
    let looks = [("cause", "webhook")];
    let looks = daemon.metric("blobferry_looks_total", &looks).await;
    let looks = looks.unwrap_or_default();
    assert!(looks < COUNT as f64 / 2.0, "{looks} looks: bursts coalesce");
}

/// Takes over a minute: `cargo test --test it -- --ignored --nocapture receivers_load`.
#[tokio::test]
#[ignore = "measures for over a minute"]
async fn a_thousand_notifications_a_second_for_a_minute() {
    const SECONDS: usize = 60;
    let (staging, _production, _ferry, daemon) = scene(2000).await;
    for number in 0..REPOSITORIES {
        let image = Image::oci(number as u64 + 1, &[1000]);
        staging.push(&format!("app{number}"), "v1", &image);
    }
    let before = daemon.peak_memory();
    let mut ticks = interval(Duration::from_millis(10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let daemon = Arc::new(daemon);
    // As many connections as a proxy may keep.
    let connections = Arc::new(Semaphore::new(100));
    let mut running = tokio::task::JoinSet::new();
    for batch in 0..SECONDS * 100 {
        ticks.tick().await;
        for number in 0..10 {
            let daemon = daemon.clone();
            let connections = connections.clone();
            running.spawn(async move {
                let _permit = connections.acquire().await.expect("it is never closed");
                send(&daemon, batch * 10 + number, SECRET).await
            });
        }
    }
    let mut times = Vec::new();
    for (status, took) in running.join_all().await {
        assert_eq!(status, 202);
        times.push(took);
    }
    times.sort_unstable();
    let percentile = |part: usize| times[times.len() * part / 1000 - 1];
    println!(
        "{} notifications: p50 {:?}, p99 {:?}, max {:?}; peak memory {} MiB, {} MiB before",
        times.len(),
        percentile(500),
        percentile(990),
        percentile(1000),
        daemon.peak_memory() >> 20,
        before >> 20,
    );
    let count = (SECONDS * 1000) as f64;
    eventually("none is lost", async || {
        (queued(&daemon).await == count).then_some(())
    })
    .await;
}

/// Over a thousand pushes: from the push to the tag in production, beside the time that as many
/// requests take one after the other. `cargo test --test it -- --ignored --nocapture receivers_load`.
#[tokio::test]
#[ignore = "measures a thousand pushes"]
async fn from_a_push_to_production_by_its_notification() {
    const PUSHES: usize = 1000;
    let (staging, production, _ferry, daemon) = scene(2000).await;
    let mut times = Vec::new();
    let mut requests = Vec::new();
    for number in 0..PUSHES {
        let tag = format!("v{number}");
        let image = Image::oci(number as u64 + 1, &[1000]);
        let repository = number % REPOSITORIES;
        let name = format!("app{repository}");
        staging.forget_requests();
        production.forget_requests();
        staging.push(&name, &tag, &image);
        let began = Instant::now();
        let request = daemon
            .request("/v1/events/harbor")
            .header("authorization", SECRET)
            .body(body(repository, &tag));
        assert_eq!(request.send().await.expect("an answer").status(), 202);
        let ending = format!("/manifests/{tag}");
        production
            .until("the tag is there", |log| {
                let put = |record: &scripted::Record| {
                    record.kind == Kind::ManifestPut && record.path.ends_with(&ending)
                };
                log.iter().any(put)
            })
            .await;
        times.push(began.elapsed());
        requests.push(staging.log().len() + production.log().len());
    }
    times.sort_unstable();
    requests.sort_unstable();
    let each = requests[PUSHES / 2];
    let client = reqwest::Client::builder().no_proxy().build();
    let client = client.expect("a client");
    let mut bare = Vec::new();
    for _ in 0..PUSHES {
        let began = Instant::now();
        for _ in 0..each {
            let asked = client.get(format!("{}/v2/", production.url())).send();
            let answer = asked.await.expect("an answer");
            answer.bytes().await.expect("a body");
        }
        bare.push(began.elapsed());
    }
    bare.sort_unstable();
    let at = |times: &[Duration], part: usize| times[times.len() * part / 1000 - 1];
    println!(
        "{PUSHES} pushes of {each} requests: p50 {:?}, p99 {:?}; {each} bare requests: p50 {:?}, p99 {:?}; ratio of the medians {:.1}",
        at(&times, 500),
        at(&times, 990),
        at(&bare, 500),
        at(&bare, 990),
        at(&times, 500).as_secs_f64() / at(&bare, 500).as_secs_f64(),
    );
}
