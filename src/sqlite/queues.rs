//! The two lines of requests of a store, and the async functions that serve them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use futures::future::join;
use rusqlite::Connection;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

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

/// How many writes have settled, and what waits for more.
#[derive(Default)]
struct Settled(Mutex<SettledState>);

#[derive(Default)]
struct SettledState {
    count: u64,
    /// By the count that each waits for, then in the order of arrival.
    waiting: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
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
    /// Waits until so many have settled. A settled group wakes only what waits for no more.
    async fn reached(&self, count: u64) {
        if let Some(reached) = self.wait_for(count) {
            // The writer outlives what waits for it.
            let _ = reached.await;
        }
    }

    fn wait_for(&self, count: u64) -> Option<oneshot::Receiver<()>> {
        let mut state = self.lock();
        if state.count >= count {
            return None;
        }
        let (wake, reached) = oneshot::channel();
        state.waiting.entry(count).or_default().push(wake);
        Some(reached)
    }

    fn add(&self, count: u64) {
        let mut state = self.lock();
        state.count = state.count.saturating_add(count);
        let settled = state.count;
        while let Some(first) = state.waiting.first_entry()
            && *first.key() <= settled
        {
            for wake in first.remove() {
                // What waited may be gone.
                let _ = wake.send(());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, SettledState> {
        self.0.lock().expect("nothing panics while it counts")
    }
}

impl Drop for WriterGuard {
    /// When the writer has ended, everything is settled.
    fn drop(&mut self) {
        self.0.add(u64::MAX);
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake, Waker};

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Wakes {
        fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn a_settled_group_wakes_what_waits_for_no_more() {
        let settled = Settled::default();
        let mut first = pin!(settled.reached(1));
        let mut third = pin!(settled.reached(3));
        let wakes = [Arc::<Wakes>::default(), Arc::default()];
        let wakers = wakes.clone().map(Waker::from);
        let [mut of_first, mut of_third] = wakers.each_ref().map(Context::from_waker);
        assert!(first.as_mut().poll(&mut of_first).is_pending());
        assert!(third.as_mut().poll(&mut of_third).is_pending());
        settled.add(2);
        assert_eq!(wakes.each_ref().map(|wakes| wakes.count()), [1, 0]);
        assert!(first.as_mut().poll(&mut of_first).is_ready());
        settled.add(1);
        assert!(third.as_mut().poll(&mut of_third).is_ready());
    }

    #[test]
    fn the_end_of_the_writer_wakes_all() {
        let settled = Arc::<Settled>::default();
        let mut ended = pin!(settled.reached(u64::MAX));
        let mut context = Context::from_waker(Waker::noop());
        assert!(ended.as_mut().poll(&mut context).is_pending());
        drop(WriterGuard(settled.clone()));
        assert!(ended.as_mut().poll(&mut context).is_ready());
    }
}
