//! One run of a piece of work for everybody who wants its result while it runs.
//!
//! Whoever comes first starts the work, whoever comes meanwhile waits for the same result. A waiter who leaves harms
//! nobody: the rest drive the work on. When all have left, the work is dropped with them, and the next starts afresh.
//! Nothing is spawned.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{Shared, WeakShared};

use crate::fault::Fault;

type Work<T> = Pin<Box<dyn Future<Output = Result<T, Arc<Fault>>> + Send>>;

/// At most one run of a piece of work at a time.
pub struct Flight<T: Clone>(Mutex<Option<WeakShared<Work<T>>>>);

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Nothing runs yet.
    pub fn new() -> Flight<T> {
        Flight(Mutex::new(None))
    }

    /// The result of the run that is under way, else of a new one. Every waiter gets the same result or the same failure.
    pub async fn join<F>(&self, start: impl FnOnce() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        self.running_or(start).await.map_err(|fault| again(&fault))
    }

    fn running_or<F>(&self, start: impl FnOnce() -> F) -> Shared<Work<T>>
    where
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = current.as_ref().and_then(WeakShared::upgrade);
        // A finished run stays reachable until its last waiter has looked; its result is yesterday's.
        if let Some(running) = running.filter(|running| running.peek().is_none()) {
            return running;
        }
        let work: Work<T> = Box::pin(start().map(|result| result.map_err(Arc::new)));
        let run = work.shared();
        *current = run.downgrade();
        run
    }
}

impl<T: Clone + Send + Sync + 'static> Default for Flight<T> {
    fn default() -> Self {
        Flight::new()
    }
}

impl<T: Clone> fmt::Debug for Flight<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flight")
    }
}

/// The same failure for one more who waited for it.
pub fn again(fault: &Fault) -> Fault {
    Fault::new(fault.class(), fault.chain())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    struct Bench {
        flight: Flight<usize>,
        runs: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
    }

    impl Bench {
        fn new() -> Arc<Bench> {
            Arc::new(Bench {
                flight: Flight::new(),
                runs: Arc::default(),
                gate: Arc::new(Semaphore::new(0)),
            })
        }

        fn waiter(self: &Arc<Self>) -> tokio::task::JoinHandle<Result<usize, Fault>> {
            let bench = Arc::clone(self);
            tokio::spawn(async move { bench.run().await })
        }

        async fn run(&self) -> Result<usize, Fault> {
            let (runs, gate) = (Arc::clone(&self.runs), Arc::clone(&self.gate));
            let work = || async move {
                let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
                gate.acquire()
                    .await
                    .expect("the gate is never closed")
                    .forget();
                if run == 3 {
                    Err(Fault::retryable("third run"))
                } else {
                    Ok(run)
                }
            };
            self.flight.join(work).await
        }
    }

    #[tokio::test]
    async fn those_who_come_meanwhile_share_one_run() {
        let bench = Bench::new();
        let waiters: Vec<_> = (0..8).map(|_| bench.waiter()).collect();
        tokio::task::yield_now().await;
        bench.gate.add_permits(1);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap(), 1);
        }
        bench.gate.add_permits(1);
        assert_eq!(
            bench.run().await.unwrap(),
            2,
            "a later caller gets a new run"
        );
        let failing: Vec<_> = (0..3).map(|_| bench.waiter()).collect();
        tokio::task::yield_now().await;
        bench.gate.add_permits(1);
        for waiter in failing {
            assert!(waiter.await.unwrap().unwrap_err().class().is_retryable());
        }
        assert_eq!(bench.runs.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_waiter_who_leaves_neither_ends_the_run_nor_hangs_it() {
        let bench = Bench::new();
        let first = bench.waiter();
        tokio::task::yield_now().await;
        let second = bench.waiter();
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        bench.gate.add_permits(1);
        assert_eq!(
            second.await.unwrap().unwrap(),
            1,
            "the run went on without the one who had started it"
        );
    }

    #[tokio::test]
    async fn a_run_that_all_have_left_is_forgotten() {
        let bench = Bench::new();
        let only = bench.waiter();
        tokio::task::yield_now().await;
        only.abort();
        assert!(only.await.unwrap_err().is_cancelled());
        bench.gate.add_permits(1);
        assert_eq!(bench.run().await.unwrap(), 2);
    }
}
