//! Groups changes of single messages into calls of at most ten, one call at a time: what comes
//! while a call runs shares the next one.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};

use crate::fault::Fault;
use crate::sqs::BATCH;

/// Sends changes to [`run`].
#[derive(Debug)]
pub struct Batches<T>(mpsc::Sender<Entry<T>>);

/// A change, and the receiver of its result.
#[derive(Debug)]
pub struct Entry<T> {
    change: T,
    reply: oneshot::Sender<Result<(), Fault>>,
}

impl<T> Batches<T> {
    /// At most `most` changes wait; more wait to be taken.
    pub fn new(most: usize) -> (Batches<T>, mpsc::Receiver<Entry<T>>) {
        let (sender, receiver) = mpsc::channel(most);
        (Batches(sender), receiver)
    }

    /// Makes a change. It is not begun any more once this future is dropped.
    pub async fn make(&self, change: T) -> Result<(), Fault> {
        let (reply, result) = oneshot::channel();
        let entry = Entry { change, reply };
        self.0.send(entry).await.map_err(|_| Fault::cancelled())?;
        result.await.unwrap_or_else(|_| Err(Fault::cancelled()))
    }
}

/// Makes changes by `call` until every sender is dropped.
pub async fn run<T, F>(mut entries: mpsc::Receiver<Entry<T>>, call: impl Fn(Vec<T>) -> F)
where
    F: Future<Output = Result<Vec<Result<(), Fault>>, Fault>>,
{
    let mut waiting = Vec::with_capacity(BATCH);
    while entries.recv_many(&mut waiting, BATCH).await > 0 {
        waiting.retain(|entry| !entry.reply.is_closed());
        let (changes, replies): (Vec<T>, Vec<_>) = waiting
            .drain(..)
            .map(|entry| (entry.change, entry.reply))
            .unzip();
        if changes.is_empty() {
            continue;
        }
        let results = match call(changes).await {
            Ok(results) => results,
            Err(fault) => replies.iter().map(|_| Err(fault.duplicate())).collect(),
        };
        for (reply, result) in replies.into_iter().zip(results) {
            // The message may have ended meanwhile.
            let _ = reply.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::FutureExt as _;
    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn what_comes_during_a_call_shares_the_next_one() {
        let (batches, entries) = Batches::new(64);
        let gate = Arc::new(Semaphore::new(0));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (opened, seen) = (gate.clone(), calls.clone());
        let worker = tokio::spawn(run(entries, move |changes: Vec<usize>| {
            seen.lock().unwrap().push(changes.len());
            let opened = opened.clone();
            async move {
                opened.acquire().await.expect("never closed").forget();
                Ok(changes.iter().map(|_| Ok(())).collect())
            }
        }));
        let mut first = Box::pin(batches.make(0));
        assert!(first.as_mut().now_or_never().is_none());
        while calls.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let mut rest: Vec<_> = (1..=25)
            .map(|number| Box::pin(batches.make(number)))
            .collect();
        assert!(rest.iter_mut().all(|one| one.now_or_never().is_none()));
        // This one's message has ended before its change began.
        drop(rest.pop());
        gate.add_permits(4);
        first.await.unwrap();
        assert!(join_all(rest).await.iter().all(Result::is_ok));
        assert_eq!(*calls.lock().unwrap(), [1, 10, 10, 4]);
        drop(batches);
        worker.await.unwrap();
    }

    #[tokio::test]
    async fn a_call_that_fails_fails_each_of_its_changes() {
        let (batches, entries) = Batches::new(64);
        let worker = tokio::spawn(run(entries, |_: Vec<usize>| async {
            Err(Fault::retryable("no answer"))
        }));
        let both = futures::join!(batches.make(1), batches.make(2));
        for result in [both.0, both.1] {
            assert!(result.unwrap_err().class().is_retryable());
        }
        drop(batches);
        worker.await.unwrap();
    }
}
