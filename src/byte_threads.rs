//! The threads that move bytes, beside the thread that decides.
//!
//! - The deciding thread runs everything but the requests that carry large bodies. Each byte thread
//!   has a runtime of its own, so a connection and what it carries stay on the thread that opened
//!   it.
//! - The unit of work is one request with its body. It owns all that it needs, the permits too, and
//!   comes back as a value. Dropping the caller's future aborts it on its thread.
//! - A thread starts with its first work and ends with [`ByteThreads::end`], or when the last
//!   handle is dropped.
//! - Credentials are asked for on the deciding thread ([`on_deciding_thread`]): their connections
//!   outlive no byte thread.
//! - With one thread, and on a system that refuses a second one, the deciding thread does it all.

use std::cell::RefCell;
use std::future::Future;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

use crate::fault::Fault;

/// Most byte threads.
pub const MOST: usize = 64;
/// Most byte threads unless the config names a number.
const USUAL: usize = 8;
/// Threads on which one byte thread resolves names and works on files.
const BLOCKING: usize = 8;
/// How long such work may take to end after its byte thread has.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    static CURRENT: RefCell<Option<CurrentThread>> = const { RefCell::new(None) };
}

/// What a byte thread knows of itself.
struct CurrentThread {
    /// From 1.
    number: usize,
    /// The runtime of the deciding thread.
    deciding: Handle,
}

/// The number of the byte thread that runs this; 0 on all other threads.
pub fn current() -> usize {
    CURRENT.with_borrow(|current| current.as_ref().map_or(0, |current| current.number))
}

/// Runs `work` on the deciding thread.
///
/// # Errors
/// The failure of the work; `Cancelled` when the deciding thread ends.
pub async fn on_deciding_thread<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    let deciding = CURRENT.with_borrow(|current| Some(current.as_ref()?.deciding.clone()));
    match deciding {
        Some(deciding) => spawned(&deciding, work).await,
        None => work.await,
    }
}

/// The result of `work` on another runtime. A panic goes on here.
async fn spawned<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    match AbortOnDropHandle::new(runtime.spawn(work)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => Err(Fault::cancelled()),
    }
}

/// How many threads move bytes unless the config says otherwise: the processors, at most 8.
pub fn usual() -> NonZeroUsize {
    let most = NonZeroUsize::new(USUAL).expect("eight is not zero");
    thread::available_parallelism().map_or(NonZeroUsize::MIN, |processors| processors.min(most))
}

/// The byte threads. Cheap to clone.
#[derive(Clone, Default)]
pub struct ByteThreads(Arc<[Arc<Slot>]>);

/// A slot for one thread, which starts with its first work.
struct Slot {
    number: usize,
    /// Bodies that the thread carries.
    load: AtomicUsize,
    /// `None` in it: the system refused the thread.
    running: OnceLock<Option<Running>>,
}

struct Running {
    handle: Handle,
    /// Dropping the sender ends the thread.
    ending: Mutex<Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>>,
}

impl ByteThreads {
    /// So many threads, none of which runs yet. One thread is the deciding one alone.
    pub fn new(threads: NonZeroUsize) -> ByteThreads {
        let slots = match threads.get() {
            1 => 0,
            more => more.min(MOST),
        };
        ByteThreads(
            (1..=slots)
                .map(|number| Arc::new(Slot::new(number)))
                .collect(),
        )
    }

    /// The thread that carries the fewest bodies, the first of several: what comes one at a time
    /// finds its connections there.
    pub fn least_loaded(&self) -> ByteThread {
        let slots = self.0.iter();
        let slot = slots.min_by_key(|slot| slot.load.load(Ordering::Relaxed));
        slot.map_or_else(ByteThread::deciding, ByteThread::on)
    }

    /// Ends the threads and waits for that. What still runs there is dropped.
    pub async fn end(&self) {
        let ending: Vec<_> = self.0.iter().filter_map(|slot| slot.stop()).collect();
        for thread in ending {
            // Its tasks keep their panics to themselves.
            let _ended = spawn_blocking(|| thread.join()).await;
        }
    }
}

impl fmt::Debug for ByteThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByteThreads").field(&self.0.len()).finish()
    }
}

impl Slot {
    fn new(number: usize) -> Slot {
        Slot {
            number,
            load: AtomicUsize::new(0),
            running: OnceLock::new(),
        }
    }

    /// The runtime of the thread. To be called on the deciding thread.
    fn handle(&self) -> Option<&Handle> {
        let running = self.running.get_or_init(|| {
            Running::start(self.number)
                .inspect_err(|error| {
                    tracing::warn!(%error, "the system refuses a thread; the deciding thread moves these bytes");
                })
                .ok()
        });
        running.as_ref().map(|running| &running.handle)
    }

    /// Tells the thread to end, once.
    fn stop(&self) -> Option<thread::JoinHandle<()>> {
        let running = self.running.get()?.as_ref()?;
        let mut ending = running
            .ending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ending.take().map(|(_stop, thread)| thread)
    }
}

impl Running {
    fn start(number: usize) -> io::Result<Running> {
        let current = CurrentThread {
            number,
            deciding: Handle::current(),
        };
        let (stop, stopped) = oneshot::channel();
        let (started, starting) = sync_channel(1);
        let thread = thread::Builder::new()
            .name(format!("bytes-{number}"))
            .spawn(move || run(current, &started, stopped))?;
        let handle = starting.recv().map_err(io::Error::other)??;
        Ok(Running {
            handle,
            ending: Mutex::new(Some((stop, thread))),
        })
    }
}

fn run(
    current: CurrentThread,
    started: &SyncSender<io::Result<Handle>>,
    stopped: oneshot::Receiver<()>,
) {
    CURRENT.set(Some(current));
    let mut builder = Builder::new_current_thread();
    let built = builder.enable_all().max_blocking_threads(BLOCKING).build();
    let handle = built.as_ref().map(|runtime| runtime.handle().clone());
    let handle = handle.map_err(|error| io::Error::new(error.kind(), error.to_string()));
    // The starting thread waits for it.
    let _received = started.send(handle);
    let Ok(runtime) = built else {
        return;
    };
    // Nothing is sent: the sender is dropped.
    let _dropped = runtime.block_on(stopped);
    runtime.shutdown_timeout(LINGER);
}

/// One thread for one body, which counts towards its load until dropped.
pub struct ByteThread(Option<Arc<Slot>>);

impl ByteThread {
    /// The thread that decides.
    pub fn deciding() -> ByteThread {
        ByteThread(None)
    }

    fn on(slot: &Arc<Slot>) -> ByteThread {
        slot.load.fetch_add(1, Ordering::Relaxed);
        ByteThread(Some(slot.clone()))
    }

    /// Runs `work` on the thread. Dropping this future aborts the work there.
    ///
    /// # Errors
    /// The failure of the work; `Cancelled` when the thread ends.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<T, Fault> {
        match self.0.as_ref().and_then(|slot| slot.handle()) {
            Some(handle) => spawned(handle, work).await,
            None => work.await,
        }
    }
}

/// Another body on the same thread.
impl Clone for ByteThread {
    fn clone(&self) -> ByteThread {
        self.0
            .as_ref()
            .map_or_else(ByteThread::deciding, ByteThread::on)
    }
}

impl Drop for ByteThread {
    fn drop(&mut self) {
        if let Some(slot) = &self.0 {
            slot.load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for ByteThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0.as_ref().map_or(0, |slot| slot.number);
        f.debug_tuple("ByteThread").field(&number).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Class;

    fn threads(count: usize) -> ByteThreads {
        ByteThreads::new(NonZeroUsize::new(count).unwrap())
    }

    async fn number_on(thread: &ByteThread) -> usize {
        thread.run(async { Ok(current()) }).await.unwrap()
    }

    #[tokio::test]
    async fn one_thread_is_the_deciding_one() {
        let threads = threads(1);
        assert_eq!(number_on(&threads.least_loaded()).await, 0);
        assert_eq!(number_on(&ByteThread::deciding()).await, 0);
        threads.end().await;
    }

    #[tokio::test]
    async fn the_least_loaded_thread_is_chosen_and_the_first_of_equals() {
        let threads = threads(2);
        for _ in 0..3 {
            assert_eq!(number_on(&threads.least_loaded()).await, 1);
        }
        let first = threads.least_loaded();
        let second = threads.least_loaded();
        assert_eq!([number_on(&first).await, number_on(&second).await], [1, 2]);
        let same = second.clone();
        drop(second);
        assert_eq!(number_on(&same).await, 2);
        assert_eq!(number_on(&threads.least_loaded()).await, 1);
        drop((first, same));
        threads.end().await;
    }

    #[tokio::test]
    async fn what_the_deciding_thread_is_asked_for_runs_there() {
        let threads = threads(2);
        let here = thread::current().id();
        let chosen = threads.least_loaded();
        let asked = chosen.run(async {
            let there = thread::current().id();
            let decided = on_deciding_thread(async { Ok(thread::current().id()) }).await?;
            Ok((there, decided))
        });
        let (there, decided) = asked.await.unwrap();
        assert_ne!(there, here);
        assert_eq!(decided, here);
        threads.end().await;
    }

    #[tokio::test]
    async fn dropping_the_future_aborts_the_work_on_its_thread() {
        let threads = threads(2);
        let (held, dropped) = oneshot::channel::<()>();
        let (began, begun) = oneshot::channel();
        let thread = threads.least_loaded();
        let work = thread.run(async move {
            let _held = held;
            began.send(()).unwrap();
            std::future::pending::<Result<(), Fault>>().await
        });
        tokio::select! {
            biased;
            _ = work => panic!("the work never ends"),
            begun = begun => begun.unwrap(),
        }
        assert!(dropped.await.is_err());
        threads.end().await;
    }

    #[tokio::test]
    #[should_panic(expected = "a bug in a body")]
    async fn a_panic_on_a_byte_thread_goes_on_at_the_caller() {
        let threads = threads(2);
        let work = async { panic!("a bug in a body") };
        let _: Result<(), Fault> = threads.least_loaded().run(work).await;
    }

    #[tokio::test]
    async fn the_end_drops_what_runs_and_waits_for_the_threads() {
        let threads = threads(2);
        let thread = threads.least_loaded();
        let (held, mut dropped) = oneshot::channel::<()>();
        let (began, begun) = oneshot::channel();
        let work = tokio::spawn(async move {
            let waits = async move {
                let _held = held;
                began.send(()).unwrap();
                std::future::pending::<Result<(), Fault>>().await
            };
            thread.run(waits).await
        });
        begun.await.unwrap();
        threads.end().await;
        assert_eq!(
            dropped.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
        let ended = work.await.unwrap();
        assert_eq!(ended.unwrap_err().class(), Class::Cancelled);
    }
}
