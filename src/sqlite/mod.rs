//! SQLite beside an async program: one thread writes, one reads, nobody else waits for a disk.
//!
//! The writing thread owns the writing connection. Requests reach it through a bounded channel; it takes up to
//! [`GROUP`] at a time into one transaction, so that a durable commit (`synchronous=FULL`) is paid once for all of them. A request
//! that fails is undone alone; when the commit fails, all of its group fail and nothing of it remains. The reading
//! thread has a read-only connection and sees whole commits only.
//!
//! **A read sees every write that was accepted before it**, whoever asked: it waits until the writer has settled as many
//! requests as had been accepted by then. In memory there is one connection, and reads stand in the writer's queue.
//!
//! The threads end when the last handle is dropped or at [`Store::close`]; what was accepted is committed first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

mod file;

pub use file::{OpenError, Schema, set_aside};

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
    writer: mpsc::Sender<Request>,
    /// `None` in memory.
    reader: Option<mpsc::Sender<Request>>,
    /// Writes accepted so far. Raised before a write enters the channel, so it is never below the place of a write in it.
    accepted: Arc<AtomicU64>,
    /// Writes settled so far. Its sender lives as long as the writing thread.
    settled: watch::Receiver<u64>,
}

impl Store {
    /// Opens the database at `path`, created when it is missing, and brings it to the newest version of `schema`. Blocks
    /// on the disk: for the time before the runtime has work.
    pub fn open(path: &std::path::Path, schema: &Schema) -> Result<Store, OpenError> {
        let (writing, reading) = file::open(path, schema)?;
        let (reader, reads) = mpsc::channel(WAITING);
        let unavailable = |error| OpenError::Unavailable { path: path.into(), reason: format!("no thread for it: {error}") };
        let file: Arc<str> = path.display().to_string().into();
        let (name, label) = (format!("{}-read", schema.name), file.clone());
        let reading = thread::Builder::new().name(name).spawn(move || read(&reading, reads, &label)).map_err(unavailable)?;
        Store::start(file, schema.name, writing, Some((reader, reading))).map_err(unavailable)
    }

    /// A database that nobody else sees and that ends with its last handle.
    pub fn in_memory(schema: &Schema) -> Store {
        let connection = file::in_memory(schema).expect("a database in memory opens and its schema is right");
        Store::start("memory".into(), schema.name, connection, None).expect("the system has room for a thread")
    }

    fn start(
        file: Arc<str>,
        name: &str,
        connection: Connection,
        reader: Option<(mpsc::Sender<Request>, thread::JoinHandle<()>)>,
    ) -> std::io::Result<Store> {
        let (writer, writes) = mpsc::channel(WAITING);
        let (settle, settled) = watch::channel(0);
        let (reader, reading) = reader.unzip();
        let label = file.clone();
        thread::Builder::new().name(format!("{name}-write")).spawn(move || {
            write(&connection, writes, &settle, &label);
            // The last connection to leave folds the write-ahead log into the database: that has to be this one.
            let _ = reading.map(thread::JoinHandle::join);
            drop(connection);
        })?;
        Ok(Store { file, writer, reader, accepted: Arc::default(), settled })
    }

    /// Runs `act` and waits until it is committed.
    pub async fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.accept(Task::boxed(act, reply_to(reply))).await?;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Has `act` run soon and waits only for room in the channel; `settle` hears what came of it, on the writing thread.
    pub async fn queue(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
        settle: impl FnOnce(Result<(), Failure>) + Send + 'static,
    ) {
        let task = Task { act: Some(act), value: None, settle: Some(settle) };
        if let Err((task, failure)) = self.send(Box::new(task)).await {
            task.settle(Err(failure));
        }
    }

    /// Runs `act`, which only reads, on one state of the database: with every write in it that was accepted before.
    pub async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let Some(reader) = &self.reader else { return self.write(act).await };
        self.catch_up().await;
        let (reply, answer) = oneshot::channel();
        reader.send(Request::Act(Task::boxed(act, reply_to(reply)))).await.map_err(|_| self.closed())?;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Commits what was accepted, refuses what comes later, from this and every other handle, and waits until the file is
    /// left.
    pub async fn close(&self) {
        if let Some(reader) = &self.reader {
            let _ = reader.send(Request::Close).await;
        }
        let _ = self.writer.send(Request::Close).await;
        let mut settled = self.settled.clone();
        while settled.changed().await.is_ok() {}
    }

    async fn accept(&self, task: Box<dyn Work>) -> Result<(), Failure> {
        self.send(task).await.map_err(|(_, failure)| failure)
    }

    async fn send(&self, task: Box<dyn Work>) -> Result<(), (Box<dyn Work>, Failure)> {
        let Ok(place) = self.writer.reserve().await else { return Err((task, self.closed())) };
        self.accepted.fetch_add(1, Ordering::SeqCst);
        place.send(Request::Act(task));
        Ok(())
    }

    async fn catch_up(&self) {
        let accepted = self.accepted.load(Ordering::SeqCst);
        // An error means that the writer has ended: then everything is settled.
        let _ = self.settled.clone().wait_for(|settled| *settled >= accepted).await;
    }

    fn closed(&self) -> Failure {
        Failure { file: self.file.clone(), text: "it has been closed".into(), closed: true }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.file)
    }
}

enum Request {
    Act(Box<dyn Work>),
    Close,
}

/// What a thread does for somebody: first the act, then, when its fate is known, the answer.
trait Work: Send {
    fn act(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    fn settle(self: Box<Self>, outcome: Result<(), Failure>);
}

struct Task<A, T, S> {
    act: Option<A>,
    value: Option<T>,
    settle: Option<S>,
}

impl<A, T, S> Task<A, T, S>
where
    A: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    T: Send + 'static,
    S: FnOnce(Result<T, Failure>) + Send + 'static,
{
    fn boxed(act: A, settle: S) -> Box<dyn Work> {
        Box::new(Task { act: Some(act), value: None, settle: Some(settle) })
    }
}

impl<A, T, S> Work for Task<A, T, S>
where
    A: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
    S: FnOnce(Result<T, Failure>) + Send,
{
    fn act(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let act = self.act.take().expect("a task runs once");
        self.value = Some(act(connection)?);
        Ok(())
    }

    fn settle(mut self: Box<Self>, outcome: Result<(), Failure>) {
        let settle = self.settle.take().expect("a task settles once");
        settle(outcome.map(|()| self.value.take().expect("a task that went well has its value")));
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
        settle(connection, group, "BEGIN IMMEDIATE", file);
        settled.send_modify(|settled| *settled += count);
    }
}

/// The reading thread: a group shares one state of the database.
fn read(connection: &Connection, mut requests: mpsc::Receiver<Request>, file: &Arc<str>) {
    while let Some(group) = next_group(&mut requests) {
        settle(connection, group, "BEGIN", file);
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

fn settle(connection: &Connection, mut group: Vec<Box<dyn Work>>, begin: &str, file: &Arc<str>) {
    let failure = |error: rusqlite::Error| Failure { file: file.clone(), text: said(&error).into(), closed: false };
    match together(connection, &mut group, begin) {
        Ok(outcomes) => group.into_iter().zip(outcomes).for_each(|(task, outcome)| task.settle(outcome.map_err(failure))),
        Err(error) => {
            let failure = failure(error);
            if !connection.is_autocommit() {
                let _ = run(connection, "ROLLBACK");
            }
            group.into_iter().for_each(|task| task.settle(Err(failure.clone())));
        }
    }
}

/// Runs a group in one transaction. `Ok` tells the fate of each; `Err` says that nothing of the group remains.
fn together(connection: &Connection, group: &mut [Box<dyn Work>], begin: &str) -> rusqlite::Result<Vec<rusqlite::Result<()>>> {
    run(connection, begin)?;
    let outcomes = group.iter_mut().map(|task| alone(connection, task.as_mut())).collect::<rusqlite::Result<_>>()?;
    run(connection, "COMMIT")?;
    Ok(outcomes)
}

/// Runs one task so that its failure takes back nothing but itself.
fn alone(connection: &Connection, task: &mut dyn Work) -> rusqlite::Result<rusqlite::Result<()>> {
    run(connection, "SAVEPOINT task")?;
    let outcome = task.act(connection);
    if let Err(error) = outcome {
        // A full disk, for one, ends the whole transaction.
        if connection.is_autocommit() {
            return Err(error);
        }
        run(connection, "ROLLBACK TO task")?;
        run(connection, "RELEASE task")?;
        return Ok(Err(error));
    }
    run(connection, "RELEASE task")?;
    Ok(outcome)
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// What SQLite says, with the way out where there is one.
fn said(error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full (free some space)".into(),
        Some(ErrorCode::ReadOnly) => "it is not writable (see the mode of the file and of its disk)".into(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("it is damaged: {error} (start again to have it checked)")
        }
        Some(ErrorCode::DatabaseBusy) => "another process keeps it locked".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
