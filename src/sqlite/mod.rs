//! SQLite beside an async program: one thread writes, one reads, nobody else waits for a disk.
//!
//! The writing thread owns the writing connection. Requests reach it through a bounded channel; it takes up to
//! [`GROUP`] at a time into one transaction, so that a commit, durable or not ([`Schema::durable`]), is paid once for all of them. A request
//! that fails is undone alone; when the commit fails, all of its group fail and nothing of it remains. The reading
//! thread has a read-only connection and sees whole commits only.
//!
//! **A read sees every write that was accepted before it**, whoever asked: it waits until the writer has settled as many
//! requests as had been accepted by then.
//!
//! A database in memory has no threads: its requests take microseconds and run where they are made, so a paused clock,
//! which leaps ahead whenever nothing but another thread is waited for, stands still over them.
//!
//! The threads end when the last handle is dropped or at [`Store::close`]; what was accepted is committed first.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

mod file;
mod task;

pub use file::{OpenError, Schema, set_aside};

use task::{Task, Work};

/// Requests that share one transaction, at most.
pub const GROUP: usize = 256;

/// Requests that wait for a thread, at most; whoever has more waits for room.
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
    home: Home,
}

#[derive(Clone)]
enum Home {
    /// `None` once it has been closed.
    Memory(Arc<Mutex<Option<Connection>>>),
    File(Lanes),
}

#[derive(Clone)]
struct Lanes {
    writer: mpsc::Sender<Request>,
    reader: mpsc::Sender<Request>,
    /// Writes accepted so far. Raised before a write enters the channel, so it is never below the place of a write in it.
    accepted: Arc<AtomicU64>,
    /// Writes settled so far. Its sender lives as long as the writing thread.
    settled: watch::Receiver<u64>,
}

enum Request {
    Act(Box<dyn Work>),
    Close,
}

impl Store {
    /// Opens the database at `path`, created when it is missing, and brings it to the newest version of `schema`. Blocks
    /// on the disk: for the time before the runtime has work.
    pub fn open(path: &Path, schema: &Schema) -> Result<Store, OpenError> {
        let (writing, reading) = file::open(path, schema)?;
        let file: Arc<str> = path.display().to_string().into();
        let unavailable = |error| OpenError::Unavailable { path: path.into(), reason: format!("no thread for it: {error}") };
        let lanes = Lanes::start(&file, schema.name, writing, reading).map_err(unavailable)?;
        Ok(Store { file, home: Home::File(lanes) })
    }

    /// Opens a database that is there to read it: every write fails, and nothing of it changes. `None`: it is not there. It
    /// has no threads, so that a request blocks its caller on the disk: for commands that read a little and end.
    pub fn open_to_read(path: &Path, schema: &Schema) -> Result<Option<Store>, OpenError> {
        let Some(connection) = file::open_to_read(path, schema)? else { return Ok(None) };
        let home = Home::Memory(Arc::new(Mutex::new(Some(connection))));
        Ok(Some(Store { file: path.display().to_string().into(), home }))
    }

    /// A database that nobody else sees and that ends with its last handle.
    pub fn in_memory(schema: &Schema) -> Store {
        let connection = file::in_memory(schema).expect("a database in memory opens and its schema is right");
        Store { file: "memory".into(), home: Home::Memory(Arc::new(Mutex::new(Some(connection)))) }
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

    /// Has `act` run soon and waits only for room in the channel; `settle` hears what came of it, on the writing thread.
    pub async fn queue<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        settle: impl FnOnce(Result<T, Failure>) + Send + 'static,
    ) {
        let task = Task::boxed(act, settle);
        let refused = match &self.home {
            Home::Memory(connection) => self.run_here(connection, task),
            Home::File(lanes) => lanes.accept(task).await,
        };
        if let Err(task) = refused {
            task.settle(Err(self.closed()));
        }
    }

    /// Runs `act`, which only reads, on one state of the database: with every write in it that was accepted before.
    pub async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let Home::File(lanes) = &self.home else { return self.write(act).await };
        lanes.catch_up().await;
        let (reply, answer) = oneshot::channel();
        lanes.reader.send(Request::Act(Task::boxed(act, reply_to(reply)))).await.map_err(|_| self.closed())?;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Commits what was accepted, refuses what comes later, from this and every other handle, and waits until the file is
    /// left.
    pub async fn close(&self) {
        match &self.home {
            Home::Memory(connection) => drop(lock(connection).take()),
            Home::File(lanes) => lanes.close().await,
        }
    }

    fn run_here(&self, connection: &Mutex<Option<Connection>>, task: Box<dyn Work>) -> Result<(), Box<dyn Work>> {
        match &*lock(connection) {
            Some(connection) => task::settle(connection, vec![task], "BEGIN", &self.file),
            None => return Err(task),
        }
        Ok(())
    }

    fn closed(&self) -> Failure {
        Failure { file: self.file.clone(), text: "it has been closed".into(), closed: true }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no task panics")
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.file)
    }
}

impl Lanes {
    fn start(file: &Arc<str>, name: &str, writing: Connection, reading: Connection) -> io::Result<Lanes> {
        let (writer, writes) = mpsc::channel(WAITING);
        let (reader, reads) = mpsc::channel(WAITING);
        let (settle, settled) = watch::channel(0);
        let label = file.clone();
        let reading = thread::Builder::new().name(format!("{name}-read")).spawn(move || read(&reading, reads, &label))?;
        let label = file.clone();
        thread::Builder::new().name(format!("{name}-write")).spawn(move || {
            write(&writing, writes, &settle, &label);
            // The last connection to leave folds the write-ahead log into the database: that has to be this one.
            let _ = reading.join();
            drop(writing);
        })?;
        Ok(Lanes { writer, reader, accepted: Arc::default(), settled })
    }

    /// Gives the task back when the writer has ended.
    async fn accept(&self, task: Box<dyn Work>) -> Result<(), Box<dyn Work>> {
        let Ok(place) = self.writer.reserve().await else { return Err(task) };
        self.accepted.fetch_add(1, Ordering::SeqCst);
        place.send(Request::Act(task));
        Ok(())
    }

    async fn catch_up(&self) {
        let accepted = self.accepted.load(Ordering::SeqCst);
        // An error means that the writer has ended: then everything is settled.
        let _ = self.settled.clone().wait_for(|settled| *settled >= accepted).await;
    }

    async fn close(&self) {
        // Either may have ended already.
        let _ = self.reader.send(Request::Close).await;
        let _ = self.writer.send(Request::Close).await;
        let mut settled = self.settled.clone();
        while settled.changed().await.is_ok() {}
    }
}

/// Nobody listens any more when the caller was cancelled: what it asked for is done all the same.
fn reply_to<T>(reply: oneshot::Sender<T>) -> impl FnOnce(T) {
    move |outcome| {
        let _ = reply.send(outcome);
    }
}

/// The writing thread.
fn write(connection: &Connection, mut requests: mpsc::Receiver<Request>, settled: &watch::Sender<u64>, file: &Arc<str>) {
    while let Some(group) = next_group(&mut requests) {
        let count = group.len() as u64;
        task::settle(connection, group, "BEGIN IMMEDIATE", file);
        settled.send_modify(|settled| *settled += count);
    }
}

/// The reading thread: a group shares one state of the database.
fn read(connection: &Connection, mut requests: mpsc::Receiver<Request>, file: &Arc<str>) {
    while let Some(group) = next_group(&mut requests) {
        task::settle(connection, group, "BEGIN", file);
    }
}

/// Waits for requests. `None`: there will be no more.
fn next_group(requests: &mut mpsc::Receiver<Request>) -> Option<Vec<Box<dyn Work>>> {
    let mut group = Vec::new();
    if requests.blocking_recv_many(&mut group, GROUP) == 0 {
        return None;
    }
    let tasks = group.into_iter().filter_map(|request| match request {
        Request::Act(task) => Some(task),
        Request::Close => {
            requests.close();
            None
        }
    });
    Some(tasks.collect())
}

#[cfg(test)]
mod tests;
