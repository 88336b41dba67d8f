//! The disk of a simulator: one database in memory that outlives the processes which open it.
//!
//! The store over it is the same as over a file, but its two queues are one future instead of two
//! threads. Dropping that future is the death of the process: what was queued is lost. Each group
//! of requests takes the time that the simulator says. A power cut takes back the commits since the
//! last sync, unless the schema is durable.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::Backup;

use super::{GROUP, file, lock};
use crate::sqlite::Schema;

/// A disk. Cheap to clone; clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Inner>);

struct Inner {
    live: Arc<Mutex<Connection>>,
    /// What a power cut leaves.
    synced: Mutex<Connection>,
    durable: AtomicBool,
    behaviour: Box<dyn Behaviour>,
}

/// How a disk behaves: asked for each group of requests, the `number`-th of its queue since
/// the store was opened.
pub trait Behaviour: Send + Sync + 'static {
    /// Requests that share one transaction, at most.
    fn group(&self) -> usize {
        GROUP
    }

    /// How long the group takes, before it is committed or read.
    fn delay(&self, queue_kind: QueueKind, number: u64) -> Duration;

    /// Whether a power cut after this group of writes leaves it and all before it.
    fn is_synced(&self, number: u64) -> bool;
}

/// One of the two lines of requests of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// Writes.
    Write,
    /// Reads.
    Read,
}

impl Disk {
    /// An empty disk.
    pub fn new(behaviour: impl Behaviour) -> Disk {
        Disk(Arc::new(Inner {
            live: Arc::new(Mutex::new(Disk::empty())),
            synced: Mutex::new(Disk::empty()),
            durable: AtomicBool::new(false),
            behaviour: Box::new(behaviour),
        }))
    }

    fn empty() -> Connection {
        Connection::open_in_memory().expect("a database in memory opens")
    }

    /// Takes back what a power cut takes back. The process that had the store open must be dead.
    pub fn cut_power(&self) {
        if !self.0.durable.load(Ordering::Relaxed) {
            copy(&lock(&self.0.synced), &mut lock(&self.0.live));
        }
    }

    /// The connection that all queues share, at the newest version of `schema`.
    pub(super) fn open(&self, schema: &Schema) -> rusqlite::Result<Arc<Mutex<Connection>>> {
        self.0.durable.store(schema.durable, Ordering::Relaxed);
        file::bring_up(&lock(&self.0.live), schema)?;
        Ok(self.0.live.clone())
    }

    pub(super) fn group(&self) -> usize {
        self.0.behaviour.group()
    }

    /// Waits as long as a group of requests takes.
    pub(super) async fn delay(&self, queue_kind: QueueKind, number: u64) {
        let delay = self.0.behaviour.delay(queue_kind, number);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    /// A group of writes has been committed.
    pub(super) fn committed(&self, number: u64) {
        if !self.0.durable.load(Ordering::Relaxed) && self.0.behaviour.is_synced(number) {
            copy(&lock(&self.0.live), &mut lock(&self.0.synced));
        }
    }
}

fn copy(from: &Connection, to: &mut Connection) {
    let copied = Backup::new(from, to)
        .and_then(|backup| backup.run_to_completion(i32::MAX, Duration::ZERO, None));
    copied.expect("databases in memory that nothing else uses are copied");
}
