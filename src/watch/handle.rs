//! The handle of the watch: sends events, awaits results, and keeps the last passes.
//!
//! Passes share their looks. The stored passes are bounded in number and in bytes.

mod passed;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::passed::{Passed, weight};
use super::{Event, Reply, Scope};
use crate::clock;
use crate::job::{Actor, Cause, Report};
use crate::look::PassOptions;
use crate::random::name;
use crate::status::{Board, Metrics};

/// Passes that are kept for `GET /v1/runs/ID`.
const REMEMBERED: usize = 256;
/// Bytes of looks that all kept passes hold; older passes keep only their totals.
const REMEMBERED_BYTES: usize = 16 << 20;

/// Sends events and follows passes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    events: mpsc::Sender<Event>,
    runs: Arc<Mutex<VecDeque<Run>>>,
    board: Board,
    metrics: Option<Metrics>,
}

/// A pass that was asked for.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name.
    pub id: String,
    /// Its looks.
    pub queued: usize,
    passed: watch::Receiver<Option<Passed>>,
    /// Whether only its totals are kept.
    brief: bool,
}

impl Run {
    /// The report, once all looks have settled.
    pub fn report(&self) -> Option<Arc<Report>> {
        self.passed
            .borrow()
            .as_ref()
            .map(|passed| Arc::new(passed.report(&self.id, !self.brief)))
    }
}

/// A pass that was asked for just now.
#[derive(Debug)]
pub struct Ticket {
    /// The pass.
    pub run: Run,
}

impl Ticket {
    /// Waits until all looks have settled. `None`: the daemon stopped before that.
    pub async fn settled(mut self) -> Option<Arc<Report>> {
        self.run.passed.wait_for(Option::is_some).await.ok()?;
        self.run.report()
    }
}

/// The daemon takes no events: it drains, or its event queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// It is draining.
    #[error("the daemon is stopping")]
    Draining,
    /// Too many events at once.
    #[error("too many events are waiting; try again in a moment")]
    Full,
}

impl Handle {
    /// A handle that sends events to `events`.
    pub fn new(events: mpsc::Sender<Event>, board: Board) -> Handle {
        Handle {
            events,
            runs: Arc::default(),
            board,
            metrics: None,
        }
    }

    /// Counts rejected events.
    pub fn counted_by(self, metrics: Metrics) -> Handle {
        Handle {
            metrics: Some(metrics),
            ..self
        }
    }

    /// The board.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Counts an invalid event.
    pub fn count(&self, cause: Cause, result: &str) {
        if let Some(metrics) = &self.metrics {
            metrics.event(cause, result);
        }
    }

    /// Sends an event. Returns once its looks are queued. The pass continues when the ticket is
    /// dropped.
    ///
    /// # Errors
    /// [`Busy`], and then nothing was queued.
    pub async fn ask(
        &self,
        scope: Scope,
        cause: Cause,
        actor: Actor,
        options: PassOptions,
    ) -> Result<Ticket, Busy> {
        let asked = self.send(scope, cause, actor, options).await;
        if let (Err(_), Some(metrics)) = (&asked, &self.metrics) {
            metrics.event(cause, "limited");
        }
        asked
    }

    async fn send(
        &self,
        scope: Scope,
        cause: Cause,
        actor: Actor,
        options: PassOptions,
    ) -> Result<Ticket, Busy> {
        let (reply, answer) = Reply::new();
        let started = clock::now();
        let id = run_id();
        let received = Instant::now();
        let event = Event {
            scope,
            pushed: None,
            cause,
            actor,
            run_id: id.clone(),
            received,
            options,
            reply: Some(reply),
        };
        self.send_event(event)?;
        let queued = answer.queued.await.map_err(|_| Busy::Draining)?;
        let (passed, receiver) = watch::channel(None);
        let run = Run {
            id,
            queued,
            passed: receiver,
            brief: false,
        };
        self.remember(run.clone());
        let handle = self.clone();
        let blank = Passed::begun(started, options.all);
        tokio::spawn(async move {
            // The pass is no longer kept, and its ticket is dropped.
            tokio::select! {
                biased;
                done = blank.follow(answer.looks, queued, received) => {
                    passed.send_replace(Some(done));
                    handle.make_room();
                }
                () = passed.closed() => {}
            }
        });
        Ok(Ticket { run })
    }

    /// Sends an event, and waits so long for room.
    pub(super) async fn send_within(&self, event: Event, wait: Duration) -> Result<(), Busy> {
        let sent = self.events.send_timeout(event, wait).await;
        sent.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => Busy::Full,
            mpsc::error::SendTimeoutError::Closed(_) => Busy::Draining,
        })
    }

    fn send_event(&self, event: Event) -> Result<(), Busy> {
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Busy::Full,
            mpsc::error::TrySendError::Closed(_) => Busy::Draining,
        })
    }

    /// A recent pass.
    pub fn run(&self, id: &str) -> Option<Run> {
        self.runs
            .lock()
            .expect("no panic while listing")
            .iter()
            .find(|run| run.id == id)
            .cloned()
    }

    fn remember(&self, run: Run) {
        let mut runs = self.runs.lock().expect("no panic while listing");
        runs.push_back(run);
        if runs.len() > REMEMBERED {
            runs.pop_front();
        }
    }

    /// Drops the looks of older passes beyond the bound. A look shared by two passes counts once.
    fn make_room(&self) {
        let mut runs = self.runs.lock().expect("no panic while listing");
        let mut counted = HashSet::new();
        let mut bytes = 0;
        for run in runs.iter_mut().rev().filter(|run| !run.brief) {
            let Some(brief) = run.passed.borrow().as_ref().and_then(|passed| {
                let news = passed
                    .looks
                    .iter()
                    .filter(|look| counted.insert(Arc::as_ptr(look)));
                bytes += news.map(|look| weight(look)).sum::<usize>();
                (bytes > REMEMBERED_BYTES).then(|| passed.brief(&run.id))
            }) else {
                continue;
            };
            run.passed = watch::channel(Some(brief)).1;
            run.brief = true;
        }
    }
}

/// A name for a pass: 16 random hexadecimal characters.
pub fn run_id() -> String {
    name()
}

#[cfg(test)]
mod tests;
