//! SQLite for an async program: one thread writes, one thread reads, no other thread waits for the
//! disk.
//!
//! The writing thread owns the writing connection. Requests reach it through a bounded channel; it
//! takes up to [`GROUP`] at a time into one transaction, so that a commit, durable or not
//! ([`Schema::durable`]), is paid once for all of them. A request that fails is undone alone; when
//! the commit fails, all of its group fail and nothing of it remains. The reading thread has a
//! read-only connection and sees whole commits only.
//!
//! **A read sees every write that was accepted before it**, from any handle: it waits until the
//! writer has settled as many requests as had been accepted by then.
//!
//! Each thread runs an async function (`queues`). A simulator runs the same functions as one future
//! over a [`Disk`] of its own, with delays, kills and power cuts.
//!
//! A database in memory has no threads: its requests take microseconds and run where they are made,
//! so a paused clock, which leaps ahead whenever nothing but another thread is waited for, stands
//! still over them.
//!
//! The threads end when the last handle is dropped or at [`Store::close`]; what was accepted is
//! committed first.

use std::fmt::Formatter;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use rusqlite::Connection;
use tokio::sync::oneshot;

mod disk;
mod file;
mod queues;
mod task;

pub use disk::{Behaviour, Disk, QueueKind};
pub use file::{OpenError, Schema, set_aside};

use queues::Queues;
use task::{Task, Work};

/// Requests that share one transaction, at most.
pub const GROUP: usize = 256;

/// Capacity of each queue; further callers wait for room.
const WAITING: usize = 1024;

/// Why a request came to nothing. Nothing of it remains.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{file}: {text}")]
pub struct Failure {
    file: Arc<str>,
    text: Arc<str>,
    closed: bool,
}

impl Failure {
    /// Whether the store had been closed before: no sign of trouble.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

/// A handle on an open database: cheap to clone.
#[derive(Clone)]
pub struct Store {
    file: Arc<str>,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    /// `None` once it has been closed.
    Memory(Arc<Mutex<Option<Connection>>>),
    Queues(Queues),
}

impl Store {
    /// Opens the database at `path`, created when it is missing, and brings it to the newest
    /// version of `schema`. Blocks on the disk: for the time before the runtime has work.
    pub fn open(path: &Path, schema: &Schema) -> Result<Store, OpenError> {
        let (writing, reading) = file::open(path, schema)?;
        let file: Arc<str> = path.display().to_string().into();
        let queues = Queues::on_threads(&file, schema.name, writing, reading).map_err(|error| {
            OpenError::Unavailable {
                path: path.into(),
                reason: format!("no thread for it: {error}"),
            }
        })?;
        Ok(Store {
            file,
            storage: Storage::Queues(queues),
        })
    }

    /// Opens the database of a simulator's disk. Nothing happens before the future is polled;
    /// dropping it loses what was accepted and not yet committed.
    pub fn on_disk(
        disk: &Disk,
        schema: &Schema,
    ) -> (Store, impl Future<Output = ()> + Send + use<>) {
        let connection = disk
            .open(schema)
            .expect("a database in memory opens and its schema is right");
        let file: Arc<str> = "simulated disk".into();
        let (queues, served) = Queues::on_disk(&file, connection, disk.clone());
        (
            Store {
                file,
                storage: Storage::Queues(queues),
            },
            served,
        )
    }

    /// Opens a database that is there to read it: every write fails, and nothing of it changes.
    /// `None`: it is not there. It has no threads, so that a request blocks its caller on the disk:
    /// for commands that read a little and end.
    pub fn open_to_read(path: &Path, schema: &Schema) -> Result<Option<Store>, OpenError> {
        let Some(connection) = file::open_to_read(path, schema)? else {
            return Ok(None);
        };
        let storage = Storage::Memory(Arc::new(Mutex::new(Some(connection))));
        Ok(Some(Store {
            file: path.display().to_string().into(),
            storage,
        }))
    }

    /// A private database that ends with its last handle.
    pub fn in_memory(schema: &Schema) -> Store {
        let connection =
            file::in_memory(schema).expect("a database in memory opens and its schema is right");
        Store {
            file: "memory".into(),
            storage: Storage::Memory(Arc::new(Mutex::new(Some(connection)))),
        }
    }

    /// Runs `act` and waits until it is committed.
    pub async fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.queue(act, reply_to(reply)).await;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Has `act` run soon and waits only for room in the channel; `settle` hears what came of it,
    /// on the writing thread.
    pub async fn queue<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        settle: impl FnOnce(Result<T, Failure>) + Send + 'static,
    ) {
        let task = Task::boxed(act, settle);
        let refused = match &self.storage {
            Storage::Memory(connection) => self.run_here(connection, task),
            Storage::Queues(queues) => queues.accept(task).await,
        };
        if let Err(task) = refused {
            task.settle(Err(self.closed()));
        }
    }

    /// Runs `act`, which only reads, on one state of the database: with every write in it that was
    /// accepted before.
    pub async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let Storage::Queues(queues) = &self.storage else {
            return self.write(act).await;
        };
        let (reply, answer) = oneshot::channel();
        queues
            .read(Task::boxed(act, reply_to(reply)))
            .await
            .map_err(|_| self.closed())?;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Why the disk did not take the newest write. `None`: it did. A database in memory has no
    /// disk.
    pub fn write_trouble(&self) -> Option<Failure> {
        match &self.storage {
            Storage::Memory(_) => None,
            Storage::Queues(queues) => queues.trouble(),
        }
    }

    /// Commits what was accepted, refuses what comes later, from this and every other handle, and
    /// waits until the file is left.
    pub async fn close(&self) {
        match &self.storage {
            Storage::Memory(connection) => drop(lock(connection).take()),
            Storage::Queues(queues) => queues.close().await,
        }
    }

    fn run_here(
        &self,
        connection: &Mutex<Option<Connection>>,
        task: Box<dyn Work>,
    ) -> Result<(), Box<dyn Work>> {
        match &*lock(connection) {
            Some(connection) => drop(task::settle(connection, vec![task], "BEGIN", &self.file)),
            None => return Err(task),
        }
        Ok(())
    }

    fn closed(&self) -> Failure {
        Failure {
            file: self.file.clone(),
            text: "it has been closed".into(),
            closed: true,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no task panics")
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.file)
    }
}

/// A cancelled caller has dropped its receiver; its request runs all the same.
fn reply_to<T>(reply: oneshot::Sender<T>) -> impl FnOnce(T) {
    move |outcome| {
        let _ = reply.send(outcome);
    }
}

#[cfg(test)]
mod tests;
