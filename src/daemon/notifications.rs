//! The followers of the receivers of notifications, one for each in the config.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::joined;
use crate::fault::Fault;
use crate::ledger::Ledger;
use crate::notify::{Follower, Metrics, PACE, Settings};

/// The time to end a request at shutdown. What was not told by then is told at the next start.
const LAST_REQUEST: Duration = Duration::from_secs(2);

/// The followers that run.
pub(super) struct Followers {
    ledger: Ledger,
    metrics: Metrics,
    running: Vec<RunningFollower>,
    tasks: JoinSet<()>,
}

/// A follower, until its receiver is gone from the config or is told otherwise.
struct RunningFollower {
    receiver: Arc<Settings>,
    stop: CancellationToken,
    /// Cancelled when it has ended.
    ended: CancellationToken,
}

impl Followers {
    /// No followers yet.
    pub(super) fn new(ledger: Ledger, metrics: Metrics) -> Followers {
        Followers {
            ledger,
            metrics,
            running: Vec::new(),
            tasks: JoinSet::new(),
        }
    }

    /// From now on these receivers are told. One that is new is told of what comes from now on.
    ///
    /// # Errors
    /// When the ledger cannot be read or written. The followers are those before, then.
    pub(super) async fn adopt(&mut self, receivers: &[Settings]) -> Result<(), Fault> {
        self.mark(receivers).await?;
        while self.tasks.try_join_next().is_some() {}
        let (running, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|follower| {
                receivers.contains(&follower.receiver) && !follower.ended.is_cancelled()
            });
        self.running = running;
        gone.iter().for_each(|follower| follower.stop.cancel());
        for receiver in receivers {
            let mut running = self.running.iter();
            if running.any(|follower| *follower.receiver == *receiver) {
                continue;
            }
            let key = receiver.key();
            let mut before = gone.iter();
            let before = before.find(|follower| follower.receiver.key() == key);
            self.start(receiver, before.map(|before| before.ended.clone()));
        }
        Ok(())
    }

    /// Gives each receiver its mark in the ledger, and forgets those of others.
    async fn mark(&self, receivers: &[Settings]) -> Result<(), Fault> {
        let keys: Vec<String> = receivers.iter().map(Settings::key).collect();
        let newest = self.ledger.end().await?.id;
        for key in &keys {
            self.ledger.start_told(key, newest).await?;
        }
        self.ledger.keep_told(keys).await
    }

    /// Starts a follower. One that goes on where another one stood waits for its end.
    fn start(&mut self, receiver: &Settings, before: Option<CancellationToken>) {
        let stop = CancellationToken::new();
        let ended = CancellationToken::new();
        let receiver = Arc::new(receiver.clone());
        self.running.push(RunningFollower {
            receiver: receiver.clone(),
            stop: stop.clone(),
            ended: ended.clone(),
        });
        let follower = Follower {
            receiver,
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
            stop,
            pace: PACE,
        };
        self.tasks.spawn(async move {
            let _ended = ended.drop_guard();
            if let Some(before) = before {
                before.cancelled().await;
            }
            follower.run().await;
        });
    }

    /// Ends all of them.
    pub(super) async fn end(mut self) {
        for follower in &self.running {
            follower.stop.cancel();
        }
        let ended = tokio::time::timeout(LAST_REQUEST, joined(&mut self.tasks)).await;
        if ended.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::body::Bytes;
    use axum::extract::State;
    use axum::http::StatusCode;
    use prometheus::Registry;
    use serde_json::Value;
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::job::Outcome;
    use crate::notify::tests::{record, until};
    use crate::notify::{Event, Template};

    /// A permit for each answer, and the numbers of the rows that were told.
    type Held = (Arc<Semaphore>, Arc<Mutex<Vec<String>>>);

    /// The receiver is slow: its answer comes after the reload.
    #[tokio::test]
    async fn a_row_on_its_way_at_a_reload_is_told_once() {
        let answers = Arc::new(Semaphore::new(0));
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let held: Held = (answers.clone(), told.clone());
        let take = async |State((answers, told)): State<Held>, body: Bytes| {
            let body: Value = serde_json::from_slice(&body).unwrap();
            let id = body["id"].to_string().replace('"', "");
            told.lock().unwrap().push(id);
            let _answer = answers.acquire().await;
            StatusCode::NO_CONTENT
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _server = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            let router = Router::new().fallback(take).with_state(held);
            axum::serve(listener, router).await.unwrap();
        }));
        let before = Settings {
            url: format!("http://{address}/").parse().unwrap(),
            on: Event::ALL.to_vec(),
            template: None,
            token: None,
        };
        let after = Settings {
            template: Some(Template::parse(r#"{"id": "{id}"}"#).unwrap()),
            ..before.clone()
        };
        let ledger = Ledger::in_memory();
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let mut followers = Followers::new(ledger.clone(), metrics);
        followers.adopt(&[before]).await.unwrap();
        record(&ledger, "v1", Outcome::Promoted).await;
        let count = || told.lock().unwrap().len();
        until("the first row is on its way", || count() == 1).await;
        followers.adopt(&[after]).await.unwrap();
        record(&ledger, "v2", Outcome::Promoted).await;
        answers.add_permits(2);
        until("another row is told", || count() == 2).await;
        followers.end().await;
        assert_eq!(*told.lock().unwrap(), ["1", "2"]);
    }
}
