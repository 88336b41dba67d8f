//! The way in: asks for looks, waits for what comes of them, and remembers the last passes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{Board, Event, Reply, Scope, Wish};
use crate::job::{Actor, Cause, Report};

/// Passes that are remembered for `GET /v1/runs/ID`.
const REMEMBERED: usize = 256;

/// Sends events and follows passes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    events: mpsc::Sender<Event>,
    runs: Arc<Mutex<VecDeque<Run>>>,
    board: Board,
}

/// A pass that was asked for.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name.
    pub id: String,
    /// Looks that it stands for.
    pub queued: usize,
    report: watch::Receiver<Option<Arc<Report>>>,
}

impl Run {
    /// The report, once all looks have settled.
    pub fn report(&self) -> Option<Arc<Report>> {
        self.report.borrow().clone()
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
        self.run.report.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// The daemon takes no more events: it drains, or its queue of events is full.
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
    /// A handle whose events arrive at `events`.
    pub fn new(events: mpsc::Sender<Event>, board: Board) -> Handle {
        Handle { events, runs: Arc::default(), board }
    }

    /// The board.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Asks for a look; answers as soon as the looks are queued. The pass goes on when the ticket is dropped.
    ///
    /// # Errors
    /// [`Busy`], and then nothing was queued.
    pub async fn ask(&self, scope: Scope, cause: Cause, actor: Actor, wish: Wish) -> Result<Ticket, Busy> {
        let (queued, mut queued_count) = oneshot::channel();
        let (looks, mut settled) = mpsc::unbounded_channel();
        let (started, id) = (Timestamp::now(), run_id());
        let received = Instant::now();
        let event = Event { scope, cause, actor, run_id: id.clone(), received, wish, reply: Some(Reply { queued, looks }) };
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Busy::Full,
            mpsc::error::TrySendError::Closed(_) => Busy::Draining,
        })?;
        let queued = (&mut queued_count).await.map_err(|_| Busy::Draining)?;
        let (report, receiver) = watch::channel(None);
        let run = Run { id: id.clone(), queued, report: receiver };
        self.remember(run.clone());
        tokio::spawn(async move {
            let mut done = Vec::new();
            while let Some(look) = settled.recv().await {
                done.push(look);
            }
            report.send_replace(Some(Arc::new(Report::new(&id, started, received.elapsed(), done))));
        });
        Ok(Ticket { run })
    }

    /// A pass that was asked for not too long ago.
    pub fn run(&self, id: &str) -> Option<Run> {
        self.runs.lock().expect("no panic while listing").iter().find(|run| run.id == id).cloned()
    }

    fn remember(&self, run: Run) {
        let mut runs = self.runs.lock().expect("no panic while listing");
        runs.push_back(run);
        if runs.len() > REMEMBERED {
            runs.pop_front();
        }
    }
}

/// A name for a pass: 16 random hexadecimal characters.
pub fn run_id() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
