mod pushes;
mod shares;

use std::time::Duration;

use tokio::sync::mpsc;

use super::entry::APART;
use super::*;
use crate::job::{Actor, Cause};

fn key(repository: &str) -> LookKey {
    LookKey {
        route: "r".into(),
        repository: repository.parse().unwrap(),
        dry_run: false,
    }
}

fn ask(cause: Cause, tags: &[&str]) -> LookRequest {
    let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
    LookRequest::new(tags, cause, Actor::daemon())
}

const ANY: Capacity = Capacity {
    all: 100,
    by_name: 0,
};
const ONLY_BY_NAME: Capacity = Capacity {
    all: 100,
    by_name: 100,
};

#[tokio::test(start_paused = true)]
async fn a_hundred_pings_cost_one_extra_look() {
    let mut queue = Queue::default();
    let now = Instant::now();
    queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
    let (running, _) = queue.start(now, ANY).unwrap();
    let (sender, _receiver) = mpsc::unbounded_channel();
    for _ in 0..100 {
        queue.add(key("a"), ask(Cause::Ping, &[]), Some(sender.clone()), now);
    }
    assert!(
        queue.start(now, ANY).is_none(),
        "looks of one repository never overlap"
    );
    assert_eq!(queue.counts(), (1, 1, Some(now)));
    queue.settled(&running, false, true, now);
    let (again, waiting) = queue.start(now, ANY).unwrap();
    assert_eq!(waiting.senders.len(), 100);
    queue.settled(&again, false, true, now);
    assert!(queue.start(now, ANY).is_none());
    assert!(
        queue.entries.is_empty() && queue.due.is_empty(),
        "an idle key costs nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_narrow_question_is_answered_by_a_wide_look_unless_it_was_asked_by_name() {
    let mut queue = Queue::default();
    let now = Instant::now();
    queue.add(key("a"), ask(Cause::Webhook, &["v1"]), None, now);
    queue.add(key("a"), ask(Cause::Webhook, &["v2", "v1"]), None, now);
    assert_eq!(queue.entries[&key("a")].waiting[0].request.tags.len(), 2);
    queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
    queue.add(key("a"), ask(Cause::Ping, &["v3"]), None, now);
    let (running, waiting) = queue.start(now, ANY).unwrap();
    assert_eq!(
        (waiting.request.cause, waiting.request.tags),
        (Cause::Ping, vec!["v3".parse().unwrap()])
    );
    queue.settled(&running, false, true, now);
    let (_, waiting) = queue.start(now, ANY).unwrap();
    assert!(waiting.request.tags.is_empty());
    assert_eq!(
        waiting.request.cause,
        Cause::Webhook,
        "it is for what asked first for more than a poll"
    );
}

#[tokio::test(start_paused = true)]
async fn what_trusts_hints_does_not_weaken_what_does_not() {
    let mut queue = Queue::default();
    let now = Instant::now();
    queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
    queue.add(key("a"), ask(Cause::Verify, &[]), None, now);
    assert_eq!(
        queue.start(now, ANY).unwrap().1.request.cause,
        Cause::Verify
    );
    queue.add(key("b"), ask(Cause::Verify, &[]), None, now);
    queue.add(key("b"), ask(Cause::Poll, &[]), None, now);
    assert!(
        !queue
            .start(now, ANY)
            .unwrap()
            .1
            .request
            .cause
            .trusts_hints()
    );
}

#[tokio::test(start_paused = true)]
async fn order_is_by_who_asks_then_by_age() {
    let mut queue = Queue::default();
    let now = Instant::now();
    queue.add(key("backfill"), ask(Cause::Start, &[]), None, now);
    queue.add(key("poll"), ask(Cause::Poll, &[]), None, now);
    queue.add(
        key("named"),
        ask(Cause::Cli, &["v1"]),
        None,
        now + Duration::from_secs(1),
    );
    let later = now + Duration::from_secs(2);
    assert!(
        queue
            .start(later, ONLY_BY_NAME)
            .is_some_and(|(key, _)| key.repository.as_str() == "named")
    );
    assert!(
        queue.start(later, ONLY_BY_NAME).is_none(),
        "the last places are kept for looks that are asked for by name"
    );
    let order: Vec<_> = std::iter::from_fn(|| queue.start(later, ANY))
        .map(|(key, _)| key.repository.to_string())
        .collect();
    assert_eq!(order, ["poll", "backfill"]);
}

#[tokio::test(start_paused = true)]
async fn trouble_is_looked_at_again_ever_more_slowly() {
    let waits = |pace: RetryDelays| {
        let mut queue = Queue::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
        for _ in 0..8 {
            let (running, _) = queue.start(now, ANY).unwrap();
            queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
            queue.add_later(running.clone(), ask(Cause::Poll, &[]), pace, now);
            queue.settled(&running, false, false, now);
            queue.add(
                key("a"),
                ask(Cause::Poll, &[]),
                None,
                now + Duration::from_secs(1),
            );
            let next = queue.next().unwrap();
            waits.push((next - now).as_secs());
            now = next;
        }
        waits
    };
    assert_eq!(
        waits(RetryDelays::WHOLE),
        [15, 30, 60, 120, 240, 480, 900, 900]
    );
    assert_eq!(
        waits(RetryDelays::TAGS),
        [15, 30, 60, 120, 240, 240, 240, 240]
    );
    assert_eq!(
        waits(RetryDelays::SLOW),
        [60, 120, 240, 480, 900, 900, 900, 900]
    );
}

#[tokio::test(start_paused = true)]
async fn people_and_events_do_not_wait_for_trouble_to_pass() {
    for cause in [
        Cause::Ping,
        Cause::Cli,
        Cause::Signal,
        Cause::Webhook,
        Cause::Queue,
        Cause::Start,
    ] {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.add_later(key("a"), ask(Cause::Poll, &[]), RetryDelays::WHOLE, now);
        queue.add(key("a"), ask(Cause::Verify, &[]), None, now);
        assert!(queue.start(now, ANY).is_none(), "a poll waits");
        queue.add(key("a"), ask(cause, &[]), None, now);
        let (running, _) = queue.start(now, ANY).expect("asked for");
        queue.settled(&running, false, true, now);
        assert!(queue.entries.is_empty(), "{cause}: one look answers both");
    }
    let mut queue = Queue::default();
    let now = Instant::now();
    queue.add_later(key("a"), ask(Cause::Poll, &[]), RetryDelays::ABSENT, now);
    queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
    assert!(
        queue.start(now, ANY).is_some(),
        "a first push is found by the next poll"
    );
}

#[tokio::test(start_paused = true)]
async fn expectations_of_different_digests_stay_apart() {
    let mut queue = Queue::default();
    let now = Instant::now();
    let expecting = |text: &str| LookRequest {
        digest: Some(crate::oci::Digest::sha256(text.as_bytes())),
        ..ask(Cause::Ping, &["v1"])
    };
    for text in ["one", "other", "one"] {
        queue.add(key("a"), expecting(text), None, now);
    }
    queue.add(key("a"), ask(Cause::Ping, &["v1"]), None, now);
    let mut asked = Vec::new();
    while let Some((running, waiting)) = queue.start(now, ANY) {
        assert!(
            queue.start(now, ANY).is_none(),
            "looks of one repository never overlap"
        );
        asked.push(waiting.request.digest);
        queue.settled(&running, false, true, now);
    }
    assert_eq!(
        asked,
        [expecting("one").digest, expecting("other").digest, None]
    );

    let (sender, mut told) = mpsc::unbounded_channel();
    for number in 0..=APART {
        queue.add(
            key("a"),
            expecting(&number.to_string()),
            Some(sender.clone()),
            now,
        );
    }
    assert_eq!(
        told.try_recv().unwrap().trouble[0].class,
        crate::job::TroubleClass::Retryable,
        "too many at once"
    );
    assert!(told.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_by_name_runs_beside_a_look_at_everything() {
    let mut queue = Queue::default();
    let now = Instant::now();
    queue.add(key("a"), ask(Cause::Start, &[]), None, now);
    let (backfill, waiting) = queue.start(now, ANY).unwrap();
    assert!(!waiting.is_beside);
    queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
    assert!(queue.start(now, ANY).is_none(), "a poll waits");
    let expected = Some(crate::oci::Digest::sha256(b"hotfix"));
    queue.add(
        key("a"),
        LookRequest {
            digest: expected,
            ..ask(Cause::Ping, &["v2"])
        },
        None,
        now,
    );
    let (hotfix, waiting) = queue
        .start(now, ANY)
        .expect("a hotfix does not wait for the backfill");
    assert!(waiting.is_beside && waiting.request.tags == ["v2".parse().unwrap()]);
    queue.add(
        key("a"),
        LookRequest {
            digest: Some(crate::oci::Digest::sha256(b"x")),
            ..ask(Cause::Ping, &["v3"])
        },
        None,
        now,
    );
    assert!(
        queue.start(now, ANY).is_none(),
        "one beside another at the most"
    );
    queue.settled(&backfill, false, true, now);
    assert!(
        queue.start(now, ANY).is_none(),
        "nothing begins beside what is asked for by name"
    );
    queue.settled(&hotfix, true, true, now);
    let named: Vec<_> = std::iter::from_fn(|| {
        let (running, waiting) = queue.start(now, ANY)?;
        assert!(!waiting.is_beside);
        queue.settled(&running, false, true, now);
        Some(waiting.request.tags.len())
    })
    .collect();
    assert_eq!(named, [1, 0], "then v3, then the poll");
    assert!(queue.entries.is_empty() && queue.ready.is_empty() && queue.running == 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_told_as_interrupted() {
    let mut queue = Queue::default();
    let now = Instant::now();
    let (sender, mut told) = mpsc::unbounded_channel();
    queue.add(key("a"), ask(Cause::Ping, &[]), Some(sender), now);
    queue.retain(|_| false, now);
    assert_eq!(told.try_recv().unwrap().totals.interrupted, 1);
    assert!(queue.entries.is_empty() && queue.ready.is_empty() && queue.due.is_empty());
}

/// A poll took on the strictness of the look at a resting tag, and asked production about all tags.
#[tokio::test(start_paused = true)]
async fn a_look_at_a_resting_tag_and_a_poll_stay_what_they_are() {
    let now = Instant::now();
    let at = now + Duration::from_secs(60);
    let mut queue = Queue::default();
    queue.add_at(key("a"), ask(Cause::Verify, &["v1"]), None, at, now);
    queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
    let (_, poll) = queue.start(now, ANY).unwrap();
    assert_eq!(
        (poll.request.cause, poll.request.tags.len()),
        (Cause::Poll, 0)
    );
    queue.settled(&key("a"), false, true, now);
    assert_eq!(queue.next(), Some(at));
    tokio::time::advance(Duration::from_secs(60)).await;
    let (_, resting) = queue.start(at, ANY).unwrap();
    assert_eq!(resting.request.cause, Cause::Verify);
    assert_eq!(resting.request.tags, ["v1".parse().unwrap()]);
}
