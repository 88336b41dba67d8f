//! Consumes a queue of push events.
//!
//! | a message | ends so |
//! |---|---|
//! | its looks have settled | deleted |
//! | no route has its repository | deleted |
//! | its look failed, or it is no event | comes back after 10 s, doubling to 15 min by its count of receives, so that the queue's redrive policy applies |
//! | its look did not settle before the drain | comes back at once |
//! | its look runs for 11 h | deleted; the look goes on |
//!
//! A message is received with a visibility of 30 s, which is renewed every 10 s while its look runs:
//! a consumer that dies gives its messages back within 30 s. Several consumers share a queue.
//! Messages in hand are bounded; a queue that does not answer is asked less and less often.

mod batches;
mod delivery;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::batches::Batches;
use super::handle::{Busy, Handle};
use super::notification::Settlement;
use super::receiver::{Notifier, Push};
use crate::backoff::Backoff;
use crate::clock;
use crate::fault::Fault;
use crate::job::Cause;
use crate::sqs::{self, BATCH, Depth, Message, Receipt};
use crate::status::Board;
use crate::status::board::MessageQueueStatus;
use crate::status::metrics::queues::{HeldMessage, QueueMetrics};
use crate::telemetry::Changes;

/// How long an empty queue is waited for: the most that SQS takes.
const WAIT: Duration = Duration::from_secs(20);
/// How long a message is invisible to other consumers.
const VISIBILITY: Duration = Duration::from_secs(30);
/// Messages in hand at most.
const MOST: usize = 200;
/// Waits after a queue that did not answer.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// How often SQS is asked how many messages wait.
const DEPTH_EVERY: Duration = Duration::from_secs(30);

/// A queue of push events, as the config describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its name in the config: label in metrics, actor in the ledger.
    pub name: Arc<str>,
    /// The registry that its events are about.
    pub notifier: Notifier,
    /// Where it is, and with which credentials it is read.
    pub queue: sqs::Settings,
}

/// A queue of messages, as SQS has it.
pub trait MessageQueue: Clone + Send + Sync + 'static {
    /// See [`sqs::Queue::receive`].
    fn receive(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> impl Future<Output = Result<Vec<Message>, Fault>> + Send;

    /// See [`sqs::Queue::delete`].
    fn delete(
        &self,
        receipts: &[Receipt],
    ) -> impl Future<Output = Result<Vec<Result<(), Fault>>, Fault>> + Send;

    /// See [`sqs::Queue::set_visibility`].
    fn set_visibility(
        &self,
        changes: &[(Receipt, Duration)],
    ) -> impl Future<Output = Result<Vec<Result<(), Fault>>, Fault>> + Send;

    /// See [`sqs::Queue::depth`].
    fn depth(&self) -> impl Future<Output = Result<Depth, Fault>> + Send;
}

impl MessageQueue for sqs::Queue {
    async fn receive(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, Fault> {
        self.receive(most, wait, visibility).await
    }

    async fn delete(&self, receipts: &[Receipt]) -> Result<Vec<Result<(), Fault>>, Fault> {
        self.delete(receipts).await
    }

    async fn set_visibility(
        &self,
        changes: &[(Receipt, Duration)],
    ) -> Result<Vec<Result<(), Fault>>, Fault> {
        self.set_visibility(changes).await
    }

    async fn depth(&self) -> Result<Depth, Fault> {
        self.depth().await
    }
}

/// Turns pushes into looks.
pub trait Looks: Send + Sync + 'static {
    /// Looks where something was pushed, and waits until every look has settled.
    ///
    /// # Errors
    /// [`Busy`], and then no look was queued.
    fn look(&self, push: Push) -> impl Future<Output = Result<Settlement, Busy>> + Send;

    /// Counts a message that asks for no look.
    fn count(&self, result: &str);
}

/// The looks of the daemon.
pub struct QueueLooks {
    /// The watch.
    pub handle: Handle,
    /// The registry that the queue's events are about.
    pub notifier: Notifier,
    /// The actor of the looks.
    pub principal: String,
}

impl Looks for QueueLooks {
    async fn look(&self, push: Push) -> Result<Settlement, Busy> {
        let followed = self
            .handle
            .follow(&self.notifier, Cause::Queue, &self.principal, push);
        Ok(followed.await?.settled().await)
    }

    fn count(&self, result: &str) {
        self.handle.count(Cause::Queue, result);
    }
}

/// Consumes one queue.
pub struct Consumer<Q, L> {
    /// The queue's name in the config.
    pub name: Arc<str>,
    /// The queue.
    pub queue: Q,
    /// Where its pushes go.
    pub looks: L,
    /// Counts messages.
    pub metrics: QueueMetrics,
    /// Shows the queue.
    pub board: Board,
    /// Ends receiving.
    pub drain: CancellationToken,
}

/// What the deliveries of a consumer share.
struct Shared<Q, L> {
    consumer: Consumer<Q, L>,
    deletions: Batches<Receipt>,
    visibilities: Batches<(Receipt, Duration)>,
    changes: Changes,
    /// What AWS said last to calls that fail, by action.
    troubles: Mutex<BTreeMap<&'static str, String>>,
}

impl<Q: MessageQueue, L: Looks> Consumer<Q, L> {
    /// Consumes until the drain begins and every message in hand has ended.
    pub async fn run(self) {
        let queue = self.queue.clone();
        let (deletions, to_delete) = Batches::new(MOST);
        let (visibilities, to_change) = Batches::new(MOST);
        let shared = Arc::new(Shared {
            consumer: self,
            deletions,
            visibilities,
            changes: Changes::new(8),
            troubles: Mutex::default(),
        });
        let queue = &queue;
        let delete = batches::run(to_delete, |receipts: Vec<Receipt>| async move {
            queue.delete(&receipts).await
        });
        let change = batches::run(to_change, |changes: Vec<(Receipt, Duration)>| async move {
            queue.set_visibility(&changes).await
        });
        // The batches end when the last delivery has dropped its share.
        futures::join!(consume(shared), delete, change);
    }
}

async fn consume<Q: MessageQueue, L: Looks>(shared: Arc<Shared<Q, L>>) {
    let mut deliveries = JoinSet::new();
    futures::join!(shared.receive_all(&mut deliveries), shared.show_depth());
    drop(shared);
    while let Some(ended) = deliveries.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the delivery of a message ended in a panic; it comes back");
    }
}

impl<Q: MessageQueue, L: Looks> Shared<Q, L> {
    /// Receives until the drain begins.
    async fn receive_all(self: &Arc<Self>, deliveries: &mut JoinSet<()>) {
        let slots = Arc::new(Semaphore::new(MOST));
        let mut failures = 0;
        let drain = self.consumer.drain.clone();
        while let Some(received) = drain.run_until_cancelled(self.receive(&slots)).await {
            while let Some(ended) = deliveries.try_join_next() {
                log_panic(ended);
            }
            let (messages, mut held_slots) = match received {
                Ok(received) => received,
                Err(fault) => {
                    failures += 1;
                    self.is_up(false);
                    self.note("ReceiveMessage", &Err(fault));
                    let wait = tokio::time::sleep(AGAIN.wait(failures));
                    drain.run_until_cancelled(wait).await;
                    continue;
                }
            };
            failures = 0;
            self.is_up(true);
            self.note("ReceiveMessage", &Ok(()));
            for message in messages {
                // SQS gives no more than were asked for.
                let slot = held_slots.pop();
                let shared = self.clone();
                deliveries.spawn(async move {
                    shared.deliver(message).await;
                    drop(slot);
                });
            }
        }
    }

    /// Receives as many messages as may be in hand, at most a batch.
    async fn receive(
        &self,
        slots: &Arc<Semaphore>,
    ) -> Result<(Vec<Message>, Vec<OwnedSemaphorePermit>), Fault> {
        let first = slots.clone().acquire_owned().await;
        let mut held: Vec<_> = first.into_iter().collect();
        held.extend(std::iter::from_fn(|| slots.clone().try_acquire_owned().ok()).take(BATCH - 1));
        let queue = &self.consumer.queue;
        let messages = queue.receive(held.len(), WAIT, VISIBILITY).await?;
        Ok((messages, held))
    }

    /// Shows how many messages wait, until the drain begins.
    async fn show_depth(&self) {
        let Consumer {
            queue,
            drain,
            name,
            metrics,
            ..
        } = &self.consumer;
        while let Some(depth) = drain.run_until_cancelled(queue.depth()).await {
            let visible = depth.as_ref().ok().map(|depth| depth.visible);
            metrics.show_depth(name, visible);
            self.show(|status| status.depth = visible);
            self.note("GetQueueAttributes", &depth.map(drop));
            drain
                .run_until_cancelled(tokio::time::sleep(DEPTH_EVERY))
                .await;
        }
    }

    fn is_up(&self, up: bool) {
        self.show(|status| status.up = Some(up));
    }

    /// Notes what came of a call: each change is logged once.
    fn note(&self, action: &'static str, result: &Result<(), Fault>) {
        let text = result.as_ref().err().map(Fault::chain).unwrap_or_default();
        if !self.changes.changed(action, &text) {
            return;
        }
        let queue = &*self.consumer.name;
        if text.is_empty() {
            tracing::info!(queue, action, "the queue answers again");
        } else {
            tracing::warn!(queue, action, error = text, "a call to the queue failed");
        }
        let mut troubles = self.troubles.lock().expect("no panic while noting");
        troubles.remove(action);
        if !text.is_empty() {
            troubles.insert(action, text);
        }
        let trouble = troubles.values().next().cloned();
        drop(troubles);
        self.show(|status| status.trouble = trouble);
    }

    fn show(&self, change: impl FnOnce(&mut MessageQueueStatus)) {
        self.consumer
            .board
            .update_queue(&self.consumer.name, change);
    }

    /// Shows a message as one that is worked on, until dropped.
    fn hold(&self, sent: Timestamp) -> InHand<'_, Q, L> {
        self.show(|status| {
            status.last_message = Some(clock::now());
            status.in_hand += 1;
        });
        let consumer = &self.consumer;
        InHand {
            shared: self,
            _aged: consumer.metrics.hold(&consumer.name, sent),
        }
    }
}

/// A message that is being worked on.
struct InHand<'s, Q: MessageQueue, L: Looks> {
    shared: &'s Shared<Q, L>,
    /// Its age counts.
    _aged: HeldMessage,
}

impl<Q: MessageQueue, L: Looks> Drop for InHand<'_, Q, L> {
    fn drop(&mut self) {
        self.shared
            .show(|status| status.in_hand = status.in_hand.saturating_sub(1));
    }
}
