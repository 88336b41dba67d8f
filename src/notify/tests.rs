//! A follower between a ledger in memory and a server.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::backoff::Backoff;
use crate::endpoint::Origin;
use crate::job::{Key, Outcome, Settled, TagId};
use crate::ledger::{Ledger, RunFacts};

/// A receiver that answers as it is told.
#[derive(Clone, Default)]
struct Hook {
    bodies: Arc<Mutex<Vec<Value>>>,
    /// The first answers; 204 after them.
    answers: Arc<Mutex<Vec<StatusCode>>>,
    /// Where each message finds the mark of the receiver, once there is one to look at.
    marks: Arc<Mutex<BTreeSet<Option<u64>>>>,
    marked: Arc<OnceLock<(Ledger, String)>>,
}

async fn take(State(hook): State<Hook>, body: Bytes) -> Response {
    let body = serde_json::from_slice(&body).expect("a body is JSON");
    hook.bodies.lock().unwrap().push(body);
    if let Some((ledger, receiver)) = hook.marked.get() {
        let mark = ledger.told(receiver).await.unwrap();
        hook.marks.lock().unwrap().insert(mark);
    }
    let mut answers = hook.answers.lock().unwrap();
    let status = match answers.is_empty() {
        true => StatusCode::NO_CONTENT,
        false => answers.remove(0),
    };
    status.into_response()
}

impl Hook {
    /// The hook behind a server, and its address.
    async fn serve(&self, tasks: &mut JoinSet<()>) -> Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(take).with_state(self.clone());
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}/hook").parse().unwrap()
    }

    fn count(&self) -> usize {
        self.bodies.lock().unwrap().len()
    }

    fn ids(&self) -> Vec<u64> {
        let bodies = self.bodies.lock().unwrap();
        bodies
            .iter()
            .map(|body| body["id"].as_u64().unwrap())
            .collect()
    }
}

/// Records a job of `app` that came to `result`.
pub(crate) async fn record(ledger: &Ledger, tag: &str, result: Outcome) {
    let key = Key {
        route: "app".into(),
        source: "app".parse().unwrap(),
        tag: tag.parse().unwrap(),
        destination: TagId {
            origin: Origin::new("https://prod.example"),
            repository: "app".parse().unwrap(),
            tag: tag.parse().unwrap(),
        },
    };
    let settled = Settled::sample(result);
    ledger
        .record(&key, &settled, RunFacts::default(), None)
        .await
        .unwrap();
}

async fn follower(url: &Url, ledger: &Ledger, metrics: &Metrics, newest: u64) -> Follower {
    let follower = Follower {
        receiver: Arc::new(Settings {
            url: url.clone(),
            on: Event::ALL.to_vec(),
            template: None,
            token: None,
        }),
        ledger: ledger.clone(),
        metrics: metrics.clone(),
        stop: CancellationToken::new(),
        pace: Pace {
            tries: 5,
            again: Backoff::new(Duration::from_millis(1), Duration::from_millis(4)),
            ..PACE
        },
    };
    let key = follower.receiver.key();
    ledger.start_told(&key, newest).await.unwrap();
    follower
}

fn count(metrics: &Metrics, result: &str) -> u64 {
    metrics.told.with_label_values(&[result]).get()
}

/// Waits until something holds; panics after 30 s.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 30 s");
}

/// 2,600 promotions ran ahead of a follower that got few turns: 1,150 messages were dropped.
#[tokio::test]
async fn a_burst_that_ran_ahead_is_told_whole() {
    let mut tasks = JoinSet::new();
    let hook = Hook::default();
    let url = hook.serve(&mut tasks).await;
    let ledger = Ledger::in_memory();
    let metrics = Metrics::new(&Registry::new()).unwrap();
    for number in 0..1500 {
        record(&ledger, &format!("v{number}"), Outcome::Promoted).await;
    }
    tasks.spawn(follower(&url, &ledger, &metrics, 0).await.run());
    until("all is counted", || count(&metrics, "sent") == 1500).await;
    assert_eq!(hook.ids(), (1..=1500).collect::<Vec<u64>>());
    assert_eq!(count(&metrics, "dropped"), 0);
}

/// A flood beyond all bounds, in which every tenth row is a conflict.
#[tokio::test]
async fn a_flood_drops_promotions_first_and_counts_them() {
    let mut tasks = JoinSet::new();
    let hook = Hook::default();
    let url = hook.serve(&mut tasks).await;
    let ledger = Ledger::in_memory();
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let is_conflict = |id: u64| id.is_multiple_of(10);
    for id in 1..=1000 {
        let result = match is_conflict(id) {
            true => Outcome::Conflict,
            false => Outcome::Promoted,
        };
        record(&ledger, &format!("v{id}"), result).await;
    }
    let mut follower = follower(&url, &ledger, &metrics, 0).await;
    follower.pace.promotions_behind = 100;
    follower.pace.others_behind = 500;
    let key = follower.receiver.key();
    tasks.spawn(follower.run());
    let in_time = |id: &u64| *id > 900 || (*id > 500 && is_conflict(*id));
    let expected: Vec<u64> = (1..=1000).filter(in_time).collect();
    let sent = expected.len() as u64;
    until("all is counted", || count(&metrics, "sent") == sent).await;
    assert_eq!(hook.ids(), expected);
    assert_eq!(count(&metrics, "dropped"), 1000 - sent);
    assert_eq!(ledger.told(&key).await.unwrap(), Some(1000));
}

/// Each message was a commit of its own, which all promotions share: a burst ran away from its
/// receiver.
#[tokio::test]
async fn a_burst_is_kept_for_many_messages_at_once() {
    let mut tasks = JoinSet::new();
    let hook = Hook::default();
    let url = hook.serve(&mut tasks).await;
    let ledger = Ledger::in_memory();
    for number in 0..500 {
        record(&ledger, &format!("v{number}"), Outcome::Promoted).await;
    }
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let follower = follower(&url, &ledger, &metrics, 0).await;
    let key = follower.receiver.key();
    assert!(hook.marked.set((ledger.clone(), key.clone())).is_ok());
    tasks.spawn(follower.run());
    until("all is kept", || count(&metrics, "sent") == 500).await;
    assert_eq!(ledger.told(&key).await.unwrap(), Some(500));
    // By count they are 0, 100, 200, 300, 400 at most; a slow machine adds some by time.
    let marks = hook.marks.lock().unwrap().len();
    assert!(marks < 100, "{marks}");
}

/// A restart between two rows.
#[tokio::test]
async fn what_was_told_is_not_told_again_and_what_was_not_is() {
    let mut tasks = JoinSet::new();
    let hook = Hook::default();
    let url = hook.serve(&mut tasks).await;
    let ledger = Ledger::in_memory();
    let metrics = Metrics::new(&Registry::new()).unwrap();
    record(&ledger, "old", Outcome::Promoted).await;
    let first = follower(&url, &ledger, &metrics, 1).await;
    let stop = first.stop.clone();
    tasks.spawn(first.run());
    record(&ledger, "v1", Outcome::Promoted).await;
    record(&ledger, "v2", Outcome::UpToDate).await;
    record(&ledger, "v3", Outcome::Drift).await;
    until("two are told", || hook.count() == 2).await;
    until("both are kept", || count(&metrics, "sent") == 2).await;
    stop.cancel();
    record(&ledger, "v4", Outcome::Held).await;
    // Of a process that does not know where the first one stood.
    tasks.spawn(follower(&url, &ledger, &metrics, 5).await.run());
    until("three are told", || hook.count() == 3).await;
    assert_eq!(hook.ids(), [2, 4, 5]);
}

#[tokio::test]
async fn a_receiver_that_fails_is_tried_again_and_then_left() {
    let mut tasks = JoinSet::new();
    let hook = Hook::default();
    let url = hook.serve(&mut tasks).await;
    let ledger = Ledger::in_memory();
    let metrics = Metrics::new(&Registry::new()).unwrap();
    // Two tries fail; then one is refused for good; then five fail.
    let mut answers = vec![StatusCode::BAD_GATEWAY; 2];
    answers.extend([StatusCode::OK, StatusCode::NOT_FOUND]);
    answers.extend(vec![StatusCode::TOO_MANY_REQUESTS; 5]);
    *hook.answers.lock().unwrap() = answers;
    tasks.spawn(follower(&url, &ledger, &metrics, 0).await.run());
    for tag in ["v1", "v2", "v3", "v4"] {
        record(&ledger, tag, Outcome::Promoted).await;
    }
    until("the last one is told", || hook.ids().last() == Some(&4)).await;
    assert_eq!(hook.ids(), [1, 1, 1, 2, 3, 3, 3, 3, 3, 4]);
    until("all is counted", || count(&metrics, "sent") == 2).await;
    assert_eq!(count(&metrics, "dropped"), 2);
}

/// The old follower of a receiver that is gone ends its last request: its mark stays forgotten.
#[tokio::test]
async fn a_forgotten_receiver_is_not_remembered_by_its_last_message() {
    let ledger = Ledger::in_memory();
    ledger.start_told("one", 3).await.unwrap();
    ledger.keep_told(Vec::new()).await.unwrap();
    ledger.set_told("one", 4).await.unwrap();
    assert_eq!(ledger.told("one").await.unwrap(), None);
    ledger.start_told("one", 9).await.unwrap();
    ledger.start_told("one", 5).await.unwrap();
    assert_eq!(ledger.told("one").await.unwrap(), Some(9));
}

#[test]
fn a_receiver_is_never_printed_with_its_address() {
    let settings = Settings {
        url: "https://hooks.example/services/hush".parse().unwrap(),
        on: vec![Event::Conflict],
        template: None,
        token: None,
    };
    let shown = format!("{settings:?} {}", settings.key());
    assert!(!shown.contains("hush"), "{shown}");
    let other = Settings {
        on: vec![Event::Drift],
        ..settings.clone()
    };
    assert_ne!(settings.key(), other.key());
}
