//! The two lines of requests of a store, and the async functions that serve them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use futures::future::join;
use rusqlite::Connection;
use tokio::runtime;
use tokio::sync::{Notify, mpsc};

use super::disk::{Disk, QueueKind};
use super::task::{self, Work};
use super::{Failure, GROUP, WAITING, lock};

/// Where requests enter. Cheap to clone.
#[derive(Clone)]
pub(super) struct Queues {
    writer: mpsc::Sender<Request>,
    reader: mpsc::Sender<Request>,
    /// Writes accepted so far. Raised before a write enters the channel, so it is never below the
    /// place of a write in it.
    accepted: Arc<AtomicU64>,
    settled: Arc<Settled>,
    trouble: Trouble,
}

/// Why the disk did not take the newest group of writes.
type Trouble = Arc<Mutex<Option<Failure>>>;

enum Request {
    Act(Box<dyn Work>),
    Close,
}

/// How many writes have settled. Waiters are woken in the order of their arrival.
#[derive(Default)]
struct Settled {
    count: AtomicU64,
    changed: Notify,
}

/// The writer lives as long as this.
struct WriterGuard(Arc<Settled>);

/// Serves one queue.
struct Server {
    queue_kind: QueueKind,
    connection: Arc<Mutex<Connection>>,
    requests: mpsc::Receiver<Request>,
    settled: Arc<Settled>,
    trouble: Trouble,
    file: Arc<str>,
    /// Where a simulator serves it.
    disk: Option<Disk>,
}

impl Queues {
    /// Serves each queue on a thread of its own, until the last handle is dropped or the
    /// queues are closed.
    pub(super) fn on_threads(
        file: &Arc<str>,
        name: &str,
        writing: Connection,
        reading: Connection,
    ) -> io::Result<Queues> {
        let writing = Arc::new(Mutex::new(writing));
        let reading = Arc::new(Mutex::new(reading));
        let (queues, writer, reader) = Queues::new(file, [writing, reading], None);
        let lives = WriterGuard(queues.settled.clone());
        let context = runtime::Builder::new_current_thread().build()?;
        let reads = thread::Builder::new()
            .name(format!("{name}-read"))
            .spawn(move || context.block_on(reader.serve()))?;
        let context = runtime::Builder::new_current_thread().build()?;
        thread::Builder::new()
            .name(format!("{name}-write"))
            .spawn(move || {
                let connection = writer.connection.clone();
                context.block_on(writer.serve());
                // The last connection to leave folds the write-ahead log into the database: that
                // has to be this one.
                let _ = reads.join();
                drop(connection);
                drop(lives);
            })?;
        Ok(queues)
    }

    /// Queues that are served by the future.
    pub(super) fn on_disk(
        file: &Arc<str>,
        connection: Arc<Mutex<Connection>>,
        disk: Disk,
    ) -> (Queues, impl Future<Output = ()> + Send + use<>) {
        let (queues, writer, reader) =
            Queues::new(file, [connection.clone(), connection], Some(disk));
        let lives = WriterGuard(queues.settled.clone());
        let served = async move {
            join(writer.serve(), reader.serve()).await;
            drop(lives);
        };
        (queues, served)
    }

    fn new(
        file: &Arc<str>,
        connections: [Arc<Mutex<Connection>>; 2],
        disk: Option<Disk>,
    ) -> (Queues, Server, Server) {
        let (writer, writes) = mpsc::channel(WAITING);
        let (reader, reads) = mpsc::channel(WAITING);
        let settled = Arc::<Settled>::default();
        let trouble = Trouble::default();
        let server = |queue_kind, connection, requests| Server {
            queue_kind,
            connection,
            requests,
            settled: settled.clone(),
            trouble: trouble.clone(),
            file: file.clone(),
            disk: disk.clone(),
        };
        let [writing, reading] = connections;
        let writes = server(QueueKind::Write, writing, writes);
        let reads = server(QueueKind::Read, reading, reads);
        (
            Queues {
                writer,
                reader,
                accepted: Arc::default(),
                settled,
                trouble,
            },
            writes,
            reads,
        )
    }

    /// Queues a write. Gives the task back when the writer has ended.
    pub(super) async fn accept(&self, task: Box<dyn Work>) -> Result<(), Box<dyn Work>> {
        let Ok(place) = self.writer.reserve().await else {
            return Err(task);
        };
        self.accepted.fetch_add(1, Ordering::SeqCst);
        place.send(Request::Act(task));
        Ok(())
    }

    /// Queues a read, once every write is settled that was accepted before. Fails when the reader
    /// has ended.
    pub(super) async fn read(&self, task: Box<dyn Work>) -> Result<(), Closed> {
        let accepted = self.accepted.load(Ordering::SeqCst);
        self.settled.reached(accepted).await;
        self.reader
            .send(Request::Act(task))
            .await
            .map_err(|_| Closed)
    }

    /// Why the disk did not take the newest group of writes.
    pub(super) fn trouble(&self) -> Option<Failure> {
        self.trouble
            .lock()
            .expect("nothing panics while it notes")
            .clone()
    }

    /// Waits until all that was accepted is settled and the file is left.
    pub(super) async fn close(&self) {
        // Either may have ended already.
        let _ = self.reader.send(Request::Close).await;
        let _ = self.writer.send(Request::Close).await;
        self.ended().await;
    }

    /// Waits until the file is left.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let settled = self.settled.clone();
        async move { settled.reached(u64::MAX).await }
    }
}

/// The queue is closed.
#[derive(Debug)]
pub(super) struct Closed;

impl Settled {
    async fn reached(&self, count: u64) {
        loop {
            // Created before the count is read: it hears of every change from here on.
            let changed = self.changed.notified();
            if self.count.load(Ordering::SeqCst) >= count {
                return;
            }
            changed.await;
        }
    }

    fn add(&self, count: u64) {
        self.count.fetch_add(count, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

impl Drop for WriterGuard {
    /// When the writer has ended, everything is settled.
    fn drop(&mut self) {
        self.0.count.store(u64::MAX, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Server {
    /// Runs requests in groups, each in one transaction, until there will be no more.
    async fn serve(mut self) {
        let begin = match self.queue_kind {
            QueueKind::Write => "BEGIN IMMEDIATE",
            QueueKind::Read => "BEGIN",
        };
        let mut number = 0;
        while let Some(group) = self.next_group().await {
            if let Some(disk) = &self.disk {
                disk.delay(self.queue_kind, number).await;
            }
            let count = group.len() as u64;
            let trouble = task::settle(&lock(&self.connection), group, begin, &self.file);
            if self.queue_kind == QueueKind::Write {
                *self.trouble.lock().expect("nothing panics while it notes") = trouble;
                self.disk.iter().for_each(|disk| disk.committed(number));
                self.settled.add(count);
            }
            number += 1;
        }
    }

    /// Waits for requests. `None`: there will be no more.
    async fn next_group(&mut self) -> Option<Vec<Box<dyn Work>>> {
        let most = self.disk.as_ref().map_or(GROUP, Disk::group);
        let mut group = Vec::new();
        if self.requests.recv_many(&mut group, most).await == 0 {
            return None;
        }
        let tasks = group.into_iter().filter_map(|request| match request {
            Request::Act(task) => Some(task),
            Request::Close => {
                self.requests.close();
                None
            }
        });
        Some(tasks.collect())
    }
}
