//! A signal ends what is only asked at once, and lets what has begun come to its end.

use std::future::pending;
use std::process::Stdio;
use std::time::Duration;

use blobferry::endpoint::Source as _;
use blobferry::fault::{Class, Fault};
use blobferry::transfer::Stop;
use blobferry::transfer::limits::{RequestClass, RequestPriority};
use tokio::time::{Instant, timeout};

use crate::engine::World;
use crate::support::daemon::{end_of, send_signal};
use crate::support::scripted::Answer;
use crate::support::*;

/// Asks staging a question that is never answered.
async fn ask_in_vain(world: &World, priority: RequestPriority, stop: &Stop) -> Fault {
    let staging = world.staging.repository("app");
    let engine = &world.engine;
    let question = || pending::<Result<(), Fault>>();
    engine
        .ask(
            staging.origin(),
            staging.registry(),
            priority,
            stop,
            question,
        )
        .await
        .expect_err("no answer comes")
}

#[tokio::test(start_paused = true)]
async fn a_look_that_waits_for_an_answer_ends_when_the_drain_begins() {
    let world = World::new();
    let stop = Stop::default();
    let asking = ask_in_vain(&world, RequestClass::Listing.of_look(), &stop);
    let began = Instant::now();
    let interrupt = async {
        tokio::task::yield_now().await;
        stop.drain.cancel();
    };
    let (fault, ()) = tokio::join!(asking, interrupt);
    assert_eq!(fault.class(), Class::Cancelled);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_a_job_has_begun_goes_on_while_it_drains_and_ends_when_it_aborts() {
    let world = World::new();
    let stop = Stop::default();
    let mut asking = std::pin::pin!(ask_in_vain(&world, RequestClass::Manifests.into(), &stop));
    stop.drain.cancel();
    timeout(Duration::from_secs(60), &mut asking)
        .await
        .expect_err("the drain alone does not end it");
    stop.abort.cancel();
    assert_eq!(asking.await.class(), Class::Cancelled);
}

/// The comparison waited for the daemon's plan, which waited for a registry without an answer.
#[tokio::test]
async fn a_signal_ends_a_comparison_of_plans_at_once() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    staging.push("app", "v1", &Image::oci(1, &[100]));
    let config = Config::pair(&staging.url(), &production.url());
    let ferry = Ferry::new(&config);
    let daemon = ferry.start_ready().await;
    staging.on(|asked| match asked.kind {
        Kind::Tags => Answer::Hang,
        _ => Answer::Pass,
    });
    let before = staging.count(Kind::Tags);
    let state = ferry.path("state").display().to_string();
    let other = config
        .daemon("state", state.into())
        .daemon("verify", "2h".into());
    let other = ferry.file("other.yaml", &other.text_of());
    let arguments = ["sync", "--dry-run", "--changes", "-c", &other];
    let mut child = ferry.spawn_printing_to(&arguments, Stdio::null());
    staging.seen(Kind::Tags, before + 2).await;
    send_signal(child.id().expect("it waits"), "INT").await;
    assert_eq!(end_of(&mut child).await, 130);
    drop(daemon);
}

#[tokio::test]
async fn a_signal_during_a_listing_without_an_answer_ends_sync_as_interrupted() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    staging.push("app", "v1", &Image::oci(1, &[100]));
    staging.on(|asked| match asked.kind {
        Kind::Tags => Answer::Hang,
        _ => Answer::Pass,
    });
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let mut child = ferry.spawn_printing_to(&["sync"], Stdio::null());
    staging.seen(Kind::Tags, 1).await;
    send_signal(child.id().expect("it waits"), "INT").await;
    assert_eq!(end_of(&mut child).await, 130);
    assert_eq!(
        staging.count(Kind::Tags),
        1,
        "the list is not asked for again"
    );
    assert!(production.tags("app").is_empty());
}
