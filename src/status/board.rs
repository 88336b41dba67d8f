//! The board: the daemon's state for status, readiness and progress. The watch writes it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::decision::Numbered;
use crate::job::{BlobProgress, Cause, Progress, Totals, Trouble};
use crate::transfer::Health;

/// Repositories of a route that are shown with their last event.
const EVENTS: usize = 10;
/// Tags of an event that are shown.
pub const EVENT_TAGS: usize = 10;

/// Moving blobs that are shown.
const BLOBS: usize = 100;

/// A snapshot of everything on the board: the body of `GET /v1/status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// When the daemon started.
    pub started: Option<Timestamp>,
    /// Whether the daemon is draining.
    pub draining: bool,
    /// Whether every route has been looked at once.
    pub ready: bool,
    /// Why nothing is named: the state folder is not the one that was locked, or the ledger cannot
    /// be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_trouble: Option<String>,
    /// The config file.
    pub config: ConfigStatus,
    /// Each route.
    pub routes: Vec<RouteStatus>,
    /// Each registry.
    pub registries: Vec<RegistryStatus>,
    /// The decisions in force.
    #[serde(default)]
    pub decisions: Vec<Numbered>,
    /// What is waiting.
    pub queue: QueueStatus,
    /// Each queue of push events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<MessageQueueStatus>,
    /// What is running now.
    pub jobs: Vec<JobStatus>,
    /// Blobs that are moving now, the oldest first.
    #[serde(default)]
    pub blobs: Vec<BlobStatus>,
    /// Rows that the daemon has added to the ledger since it started.
    #[serde(default)]
    pub rows_added: u64,
}

/// The config file that is in force.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Its path.
    pub path: String,
    /// When it was read.
    pub loaded: Option<Timestamp>,
    /// The first twelve characters of its SHA-256.
    pub hash: String,
    /// Why the newest reading of it was refused, if it was.
    pub refused: Option<String>,
}

/// A route, as far as it is known.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RouteStatus {
    /// Its name.
    pub name: String,
    /// Where it reads.
    pub from: String,
    /// Where it writes.
    pub to: Vec<String>,
    /// Whether it writes nothing, and reports what differs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub observes: bool,
    /// Source repositories that fall to it, as of the last discovery.
    pub repositories: usize,
    /// When a look last ended.
    pub last_look: Option<Timestamp>,
    /// When a look last ended with every chosen tag equal.
    pub last_success: Option<Timestamp>,
    /// When it will be looked at without being asked.
    pub next_look: Option<Timestamp>,
    /// Whether the newest look was complete at every destination; unknown before the first.
    #[serde(default)]
    pub up: Option<bool>,
    /// Tags by state, over its repositories and destinations.
    pub tags: Totals,
    /// Tags that wait to be promoted and that no other state counts.
    #[serde(default)]
    pub pending: u64,
    /// Since when the oldest of the tags waits that are to be promoted.
    #[serde(default)]
    pub pending_since: Option<Timestamp>,
    /// What is wrong now.
    pub trouble: Vec<Trouble>,
    /// The last event of each repository that had one lately, the newest first.
    #[serde(default)]
    pub events: Vec<EventStatus>,
}

/// The last event of a repository: a ping, a signal, or what a registry told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventStatus {
    /// The source repository.
    pub repository: String,
    /// Where it came from.
    pub cause: Cause,
    /// The principal.
    pub actor: String,
    /// The account that pushed, as the registry calls it, or what the caller calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_actor: Option<String>,
    /// When it arrived.
    pub at: Timestamp,
    /// When the push was, as the registry says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Timestamp>,
    /// The tags that it named; none: all, or a push without a tag.
    pub tags: Vec<String>,
}

/// A registry, as far as it is known.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RegistryStatus {
    /// Its name in the config.
    pub name: String,
    /// Its origin.
    pub url: String,
    /// Whether it accepts us; unknown before the first request.
    pub up: Option<bool>,
    /// What it said last, when it does not.
    pub trouble: Option<String>,
}

/// The queue of looks.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Looks that wait for their turn.
    pub depth: usize,
    /// Looks that are running.
    pub running: usize,
    /// How long the oldest has waited, in seconds.
    pub oldest_seconds: f64,
}

/// A queue of push events, as far as it is known.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MessageQueueStatus {
    /// Its name in the config.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The registry that its events are about.
    pub registry: String,
    /// Whether messages can be received; unknown before the first answer.
    pub up: Option<bool>,
    /// What AWS said last, where a call fails.
    pub trouble: Option<String>,
    /// Messages that wait; unknown where AWS does not tell.
    pub depth: Option<u64>,
    /// Messages that are being worked on here.
    pub in_hand: usize,
    /// When a message last came.
    pub last_message: Option<Timestamp>,
}

/// A running job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its route.
    pub route: String,
    /// `host/repository:tag`.
    pub source: String,
    /// `host/repository:tag`.
    pub destination: String,
    /// When it started.
    pub since: Timestamp,
}

/// A blob that is moving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStatus {
    /// Its destination repository and short digest.
    pub label: String,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes that were sent of it.
    pub sent: u64,
    /// Whether all bytes are sent and the registry has not answered yet.
    pub closing: bool,
}

impl From<&BlobProgress> for BlobStatus {
    fn from(blob: &BlobProgress) -> BlobStatus {
        BlobStatus {
            label: blob.label.clone(),
            size: blob.size,
            sent: blob.done.load(Ordering::Relaxed),
            closing: blob.closing.load(Ordering::Relaxed),
        }
    }
}

/// The shared board.
#[derive(Clone, Debug, Default)]
pub struct Board {
    state: Arc<Mutex<State>>,
    health: Option<Health>,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct State {
    status: Status,
    /// Where the routes stood when they were last looked for.
    positions: HashMap<String, usize>,
    jobs: BTreeMap<u64, JobStatus>,
    next_job: u64,
}

impl RouteStatus {
    /// Notes an event in place of an earlier one of its repository. The oldest goes where there are
    /// too many.
    pub fn note_event(&mut self, event: EventStatus) {
        self.events
            .retain(|earlier| earlier.repository != event.repository);
        self.events.insert(0, event);
        self.events.truncate(EVENTS);
    }
}

impl Board {
    /// A board that shows registries as `health` knows them.
    pub fn over(health: Health) -> Board {
        Board {
            state: Arc::default(),
            health: Some(health),
            progress: Arc::default(),
        }
    }

    /// The progress that it shows.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// The names of the routes.
    pub fn route_names(&self) -> Vec<String> {
        let state = self.lock();
        let routes = state.status.routes.iter();
        routes.map(|route| route.name.clone()).collect()
    }

    /// What is on the board now.
    pub fn snapshot(&self) -> Status {
        let state = self.lock();
        let mut status = state.status.clone();
        status.jobs = state.jobs.values().cloned().collect();
        let blobs = self.progress.active();
        status.blobs = blobs
            .iter()
            .take(BLOBS)
            .map(|(_, blob)| BlobStatus::from(&**blob))
            .collect();
        for registry in &mut status.registries {
            if let Some(heard) = self
                .health
                .as_ref()
                .and_then(|health| health.of(&registry.name))
            {
                (registry.up, registry.trouble) = (heard.up, heard.trouble);
            }
        }
        status
    }

    /// Changes what is on the board.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock().status);
    }

    /// Changes a route's entry.
    pub fn update_route(&self, route: &str, change: impl FnOnce(&mut RouteStatus)) {
        let state = &mut *self.lock();
        let known = state.positions.get(route).copied().filter(|at| {
            state
                .status
                .routes
                .get(*at)
                .is_some_and(|entry| entry.name == route)
        });
        let Some(at) = known.or_else(|| {
            state
                .status
                .routes
                .iter()
                .position(|entry| entry.name == route)
        }) else {
            return;
        };
        if known.is_none() {
            state.positions.insert(route.to_owned(), at);
        }
        change(&mut state.status.routes[at]);
    }

    /// Changes the entry of a queue of push events.
    pub fn update_queue(&self, name: &str, change: impl FnOnce(&mut MessageQueueStatus)) {
        let state = &mut *self.lock();
        let mut queues = state.status.queues.iter_mut();
        if let Some(entry) = queues.find(|entry| entry.name == name) {
            change(entry);
        }
    }

    /// Lists a running job until the guard is dropped.
    pub fn start_job(&self, job: JobStatus) -> RunningJob {
        let mut state = self.lock();
        let id = state.next_job;
        state.next_job += 1;
        state.jobs.insert(id, job);
        RunningJob {
            id,
            board: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the board")
    }
}

/// A job on the board.
#[derive(Debug)]
pub struct RunningJob {
    id: u64,
    board: Board,
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        self.board.lock().jobs.remove(&self.id);
    }
}
