//! At most one run of a piece of work at a time, shared by concurrent callers.
//!
//! The first caller starts the work; callers that arrive while it runs wait for the same result.
//! Dropping one caller does not stop the work: the remaining callers poll it. When the last caller
//! is dropped, the work is dropped too, and the next caller starts it again. Nothing is spawned.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{Shared, WeakShared};

use crate::fault::Fault;

type Work<T> = Pin<Box<dyn Future<Output = Result<T, Arc<Fault>>> + Send>>;

/// At most one run of a piece of work at a time.
pub struct SingleFlight<T: Clone>(Mutex<Option<WeakShared<Work<T>>>>);

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    /// No run yet.
    pub fn new() -> SingleFlight<T> {
        SingleFlight(Mutex::new(None))
    }

    /// The result of the current run, or of a new one when none runs. All waiting callers get the
    /// same result or the same failure.
    pub async fn join<F>(&self, start: impl FnOnce() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        self.running_or(start)
            .await
            .map_err(|fault| fault.duplicate())
    }

    fn running_or<F>(&self, start: impl FnOnce() -> F) -> Shared<Work<T>>
    where
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = current.as_ref().and_then(WeakShared::upgrade);
        // A finished run stays upgradable until its last waiter reads it; its result is stale.
        if let Some(running) = running.filter(|running| running.peek().is_none()) {
            return running;
        }
        let work: Work<T> = Box::pin(start().map(|result| result.map_err(Arc::new)));
        let run = work.shared();
        *current = run.downgrade();
        run
    }
}

impl<T: Clone + Send + Sync + 'static> Default for SingleFlight<T> {
    fn default() -> Self {
        SingleFlight::new()
    }
}

impl<T: Clone> fmt::Debug for SingleFlight<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SingleFlight")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    struct Bench {
        flight: SingleFlight<usize>,
        runs: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
    }

    impl Bench {
        fn new() -> Arc<Bench> {
            Arc::new(Bench {
                flight: SingleFlight::new(),
                runs: Arc::default(),
                gate: Arc::new(Semaphore::new(0)),
            })
        }

        fn waiter(self: &Arc<Self>) -> tokio::task::JoinHandle<Result<usize, Fault>> {
            let bench = Arc::clone(self);
            tokio::spawn(async move { bench.run().await })
        }

        async fn run(&self) -> Result<usize, Fault> {
            let runs = Arc::clone(&self.runs);
            let gate = Arc::clone(&self.gate);
            self.flight
                .join(|| async move {
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
                })
                .await
        }
    }

    #[tokio::test]
    async fn concurrent_callers_share_one_run() {
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
    async fn a_dropped_caller_neither_stops_nor_blocks_the_run() {
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
            "the run continues without the caller that started it"
        );
    }

    #[tokio::test]
    async fn a_run_without_callers_is_dropped() {
        let bench = Bench::new();
        let only = bench.waiter();
        tokio::task::yield_now().await;
        only.abort();
        assert!(only.await.unwrap_err().is_cancelled());
        bench.gate.add_permits(1);
        assert_eq!(bench.run().await.unwrap(), 2);
    }
}
