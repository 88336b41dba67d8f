//! What was refused for good is not sent again for nothing.

use std::time::Duration;

use blobferry::fault::Class;
use blobferry::job::{Cause, Job};
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use crate::engine::{World, assert_failed, assert_promoted};
use crate::support::image::Blob;
use crate::support::memory::Operation;
use crate::support::scripted::Answer;
use crate::support::*;

const LAYER: usize = 2_000_000;

fn polled(staging: &Scripted, production: &Scripted) -> Ferry {
    Ferry::new(&Config::pair(&staging.url(), &production.url()).daemon("poll", json!("1s")))
}

fn sent(production: &Scripted) -> u64 {
    production.received(Kind::UploadPut) + production.received(Kind::UploadPatch)
}

/// A registry whose quota is used up took 20 MB and refused them, for each tag and at each look.
#[tokio::test]
async fn a_layer_beyond_the_quota_is_sent_once_in_a_pass_and_again_when_a_person_asks() {
    for status in [412, 403, 507] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let layer = Blob::layer(1, LAYER);
        let images: Vec<Image> = (1..=5)
            .map(|seed| Image::of_layers(seed, vec![layer.clone()]))
            .collect();
        for (number, image) in images.iter().enumerate() {
            staging.push("app", &format!("v{number}"), image);
        }
        let digest = layer.digest.clone();
        production.on(move |asked| match asked.kind {
            Kind::UploadPut if asked.query.contains(&digest) => {
                let body = r#"{"errors":[{"code":"QUOTA","message":"adding 2 MB would exceed the quota"}]}"#;
                Answer::Reply(Reply::status(status).body("application/json", body))
            }
            _ => Answer::Pass,
        });
        let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
        let _daemon = ferry.start_ready().await;
        assert!(
            sent(&production) < 2 * LAYER as u64,
            "{status}: {} bytes were sent",
            sent(&production)
        );
        let run = ferry.sync(&[]).await;
        assert_eq!(run.total("failed"), 5, "{status}");
        assert!(
            run.job("v3")["error"]["text"]
                .as_str()
                .unwrap()
                .contains("exceed the quota"),
            "{}",
            run.stdout
        );
        assert_eq!(run.code, 1, "{status}: no credentials are at fault");
        if status != 507 {
            assert!(
                run.stdout.contains("have the quota raised"),
                "{}",
                run.stdout
            );
        }
        assert!(!run.stdout.contains("grant it"), "{}", run.stdout);
        assert!(
            sent(&production) < 3 * LAYER as u64,
            "{status}: {} bytes were sent",
            sent(&production)
        );
        assert!(production.tags("app").is_empty());

        production.calm();
        assert_eq!(ferry.sync(&[]).await.expect(0).total("promoted"), 5);
        Client::new(&production.url())
            .assert_holds("app", "v4", &images[4])
            .await;
    }
}

#[tokio::test]
async fn a_corrupt_layer_is_read_twice_in_a_pass_and_not_for_every_tag() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let layer = Blob::layer(1, LAYER);
    for seed in 1..=5 {
        staging.push(
            "app",
            &format!("v{seed}"),
            &Image::of_layers(seed, vec![layer.clone()]),
        );
    }
    staging.put_blob("app", &layer.digest, Bytes::from(vec![7; LAYER]));
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let run = ferry.sync(&[]).await.expect(1);
    assert_eq!(
        (
            run.total("failed"),
            run.job("v5")["error"]["class"].as_str()
        ),
        (5, Some("corrupt"))
    );
    let reads = staging
        .of(Kind::BlobGet)
        .iter()
        .filter(|get| get.path.ends_with(&layer.digest))
        .count();
    assert!((1..=2).contains(&reads), "{reads} reads");
    assert!(!production.holds("app", &layer.digest) && production.tags("app").is_empty());

    staging.put_blob("app", &layer.digest, layer.bytes.clone());
    assert_eq!(ferry.sync(&[]).await.expect(0).total("promoted"), 5);
}

/// What the polls of an hour cost, without waiting for them.
#[tokio::test(start_paused = true)]
async fn polls_do_not_send_what_was_refused() {
    let world = World::new();
    let layer = world.layer("app", 1, LAYER);
    world.image("app", "v1", &[layer]);
    let poll = async || {
        let job = Job {
            cause: Cause::Poll,
            look_began: blobferry::clock::now(),
            news: None,
            ..world.job("app", "v1")
        };
        world.run(&job).await
    };
    world
        .production
        .fail_next(Operation::FinishUpload, Class::Rejected);
    for _ in 0..2 {
        assert_failed(&poll().await, Class::Rejected);
    }
    world.production.clear_calls();
    for _ in 0..50 {
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_failed(&poll().await, Class::Rejected);
    }
    assert_eq!(
        world.production.count(Operation::BeginUpload),
        0,
        "not even opened"
    );
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_promoted(&poll().await);
}

/// A registry whose rules refuse the image itself was sent its manifest at every look.
#[tokio::test(start_paused = true)]
async fn polls_do_not_send_a_manifest_that_was_refused_under_its_tag() {
    let world = World::new();
    world.image("app", "v1", &[]);
    let run = async |cause: Cause| {
        let job = Job {
            cause,
            look_began: blobferry::clock::now(),
            news: cause.is_news().then(Instant::now),
            ..world.job("app", "v1")
        };
        world.run(&job).await
    };
    world
        .production
        .fail_next(Operation::PutManifest, Class::Rejected);
    assert_failed(&run(Cause::Poll).await, Class::Rejected);
    world.production.clear_calls();
    for _ in 0..50 {
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_failed(&run(Cause::Poll).await, Class::Rejected);
    }
    assert_eq!(world.production.count(Operation::PutManifest), 0);
    assert_promoted(&run(Cause::Ping).await);
}

#[tokio::test]
async fn another_digest_is_tried_at_once() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let (large, small) = (
        Image::of_layers(1, vec![Blob::layer(1, LAYER)]),
        Image::of_layers(2, vec![Blob::layer(2, 1000)]),
    );
    staging.push("app", "latest", &large);
    let layer = large.blobs[1].digest.clone();
    production.on(move |asked| match asked.kind {
        Kind::UploadPut if asked.query.contains(&layer) => Answer::Reply(Reply::status(413)),
        _ => Answer::Pass,
    });
    let ferry = polled(&staging, &production);
    let _daemon = ferry.start().await;
    staging.seen(Kind::Tags, 2).await;
    staging.push("app", "latest", &small);
    ferry.sync(&[]).await.expect(0);
    assert_eq!(
        production.tagged("app", "latest").as_deref(),
        Some(small.digest())
    );
}
