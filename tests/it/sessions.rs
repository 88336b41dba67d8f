//! Upload sessions that died meanwhile are replaced, whatever kind of registry it is.

use serde_json::json;

use crate::support::image::Blob;
use crate::support::scripted::Answer;
use crate::support::*;

const MIB: usize = 1024 * 1024;
/// Taken before the upload stands still: two checkpoints and some.
const TAKEN: u64 = 20 * MIB as u64;

/// What has become of the session.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is not known any more.
    Gone,
    /// Every request to it is answered with 500.
    Fails,
    /// It tells where it stands, and takes no further byte.
    Stuck,
}

fn is_upload(kind: Kind) -> bool {
    matches!(kind, Kind::UploadPatch | Kind::UploadPut)
}

/// Leaves an upload of the layer half done, by a daemon that is told to stop.
async fn half_an_upload(production: &Scripted, ferry: &Ferry) {
    production.on(|asked| {
        let length = asked
            .headers
            .get("content-length")
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let is_large = length.is_some_and(|length| length > TAKEN);
        if is_upload(asked.kind) && is_large {
            Answer::HangRequest(TAKEN)
        } else {
            Answer::Pass
        }
    });
    let mut daemon = ferry.start().await;
    production
        .until("half an upload", |log| {
            log.iter().any(|record| record.received >= TAKEN)
        })
        .await;
    daemon.signal("TERM").await;
    daemon.ended().await;
    production.calm();
}

async fn a_dead_session_is_replaced(kind: &str, fate: Fate) {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let image = Image::of_layers(1, vec![Blob::layer(1, 24 * MIB)]);
    staging.push("app", "v1", &image);
    let more = json!({"kind": kind, "auth": "anonymous"});
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry_with("production", &production.url(), more);
    let ferry = Ferry::new(&config.route("app", json!({})));
    half_an_upload(&production, &ferry).await;
    let half = production
        .log()
        .into_iter()
        .find(|record| record.received >= TAKEN)
        .expect("it was waited for");
    let session = half
        .path
        .rsplit('/')
        .next()
        .expect("a session has a name")
        .to_owned();
    if matches!(fate, Fate::Gone) {
        production.drop_uploads();
    }
    production.forget_requests();
    let dead = session.clone();
    production.on(move |asked| match fate {
        _ if asked.reference() != dead => Answer::Pass,
        Fate::Gone => Answer::Pass,
        Fate::Fails => Answer::Reply(Reply::status(500)),
        Fate::Stuck if is_upload(asked.kind) => Answer::CutRequest(0),
        Fate::Stuck => Answer::Pass,
    });
    let run = ferry.sync(&[]).await;
    assert_eq!(run.code, 0, "{kind} {fate:?}: {}", run.said());
    Client::new(&production.url())
        .assert_holds("app", "v1", &image)
        .await;

    production.forget_requests();
    staging.push(
        "app",
        "v2",
        &Image::of_layers(2, vec![Blob::layer(1, 24 * MIB)]),
    );
    ferry.sync(&[]).await.expect(0);
    let again = production
        .log()
        .into_iter()
        .filter(|record| record.path.ends_with(&session))
        .count();
    assert_eq!(again, 0, "{kind} {fate:?}: no later look comes back to it");
}

#[tokio::test]
async fn a_session_that_is_gone_is_replaced() {
    futures::future::join_all(
        ["distribution3", "ecr-public", "ecr"]
            .map(|kind| a_dead_session_is_replaced(kind, Fate::Gone)),
    )
    .await;
}

#[tokio::test]
async fn a_session_that_answers_500_is_replaced() {
    futures::future::join_all(
        ["distribution3", "ecr-public", "ecr"]
            .map(|kind| a_dead_session_is_replaced(kind, Fate::Fails)),
    )
    .await;
}

#[tokio::test]
async fn a_session_that_takes_no_further_byte_is_replaced() {
    futures::future::join_all(
        ["distribution3", "ecr-public"].map(|kind| a_dead_session_is_replaced(kind, Fate::Stuck)),
    )
    .await;
}

#[tokio::test]
async fn a_session_is_kept_while_the_whole_registry_fails_and_gone_on_with_afterwards() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let image = Image::of_layers(1, vec![Blob::layer(1, 24 * MIB)]);
    staging.push("app", "v1", &image);
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    half_an_upload(&production, &ferry).await;
    production.on(|asked| match asked.kind {
        Kind::UploadPost | Kind::UploadStatus | Kind::UploadPut | Kind::UploadPatch => {
            Answer::Reply(Reply::status(500))
        }
        _ => Answer::Pass,
    });
    ferry.sync(&[]).await.expect(1);
    production.calm();
    production.forget_requests();
    let run = ferry.sync(&[]).await.expect(0);
    assert_eq!(run.job("v1")["blobs"]["resumed"], 1, "{}", run.stdout);
    let sent: u64 = production
        .log()
        .iter()
        .filter(|record| is_upload(record.kind))
        .map(|record| record.received)
        .sum();
    assert!(
        sent < 8 * MIB as u64,
        "{sent} bytes were sent for the 4 MiB that were missing"
    );
}

/// The closing request was answered before its body was read, and the tag then named an image
/// without its layer.
#[tokio::test]
async fn a_closing_request_that_is_answered_early_counts_only_if_the_blob_is_there() {
    for is_there in [false, true] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let image = Image::oci(1, &[8 * MIB]);
        staging.push("app", "v1", &image);
        // Another tag: the repository is not taken for an empty one.
        production.push("app", "v0", &Image::oci(2, &[10]));
        let layer = image.blobs[1].clone();
        let registry = production.clone();
        let is_answered = std::sync::atomic::AtomicBool::new(false);
        production.on(move |asked| {
            let closes_layer =
                asked.kind == Kind::UploadPut && asked.query.contains(&layer.digest[7..]);
            if !closes_layer || is_answered.swap(true, std::sync::atomic::Ordering::Relaxed) {
                return Answer::Pass;
            }
            if is_there {
                registry.put_blob("app", &layer.digest, layer.bytes.clone());
            }
            let mut created = Reply::status(201);
            created.close = true;
            Answer::Early(created)
        });
        let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
        ferry.sync(&[]).await.expect(0);
        Client::new(&production.url())
            .assert_holds("app", "v1", &image)
            .await;
        let puts = production.of(Kind::UploadPut);
        let of_layer = puts
            .iter()
            .filter(|put| put.query.contains(&image.blobs[1].digest[7..]));
        assert_eq!(of_layer.count(), if is_there { 1 } else { 2 });
    }
}

/// Every attempt counted as progress: a layer of 3 MB was sent hundreds of times.
#[tokio::test]
async fn a_session_that_gains_a_byte_with_every_attempt_is_given_up() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let image = Image::oci(1, &[3_000_000]);
    staging.push("app", "v1", &image);
    let registry = production.clone();
    production.on(move |asked| {
        let length = asked.headers.get("content-length");
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        match asked.kind {
            Kind::UploadPut if length > Some(100_000) => Answer::CutRequest(500_000),
            Kind::UploadStatus => {
                let held = 1000 + registry.count(Kind::UploadPut);
                let status = Reply::status(204).header("location", &asked.path);
                Answer::Reply(status.header("range", &format!("0-{held}")))
            }
            _ => Answer::Pass,
        }
    });
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry_with(
            "production",
            &production.url(),
            json!({"kind": "distribution3"}),
        )
        .route("app", json!({}));
    let run = Ferry::new(&config).sync(&[]).await.expect(1);
    assert_eq!(run.job("v1")["error"]["class"], "retryable");
    let puts = production.count(Kind::UploadPut);
    assert!(puts < 12, "{puts} bodies");
}
