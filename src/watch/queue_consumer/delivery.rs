//! One message, from its receipt to its deletion or return.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::join_all;
use http::HeaderMap;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Looks, MessageQueue, Shared, VISIBILITY};
use crate::backoff::Backoff;
use crate::clock;
use crate::sqs::{Message, Receipt};
use crate::status::metrics::queues::MessageResult;
use crate::watch::handle::Busy;
use crate::watch::notification::Settlement;
use crate::watch::receiver::{Delivery, Kind, Push};

/// How often the visibility of a message in hand is renewed.
const RENEWED_EVERY: Duration = Duration::from_secs(10);
/// When a message is deleted although its look runs: SQS keeps it for one consumer for 12 h at most.
const OLDEST: Duration = Duration::from_secs(11 * 3600);
/// How long a message stays away after a failure, by its count of receives.
const RETURN: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(15 * 60));
/// Waits for a daemon that takes no more events for now.
const BUSY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// Waits between tries to delete or return a message; together shorter than [`VISIBILITY`].
const TRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8));
/// Tries to delete or return a message.
const TRIES: u32 = 5;

impl<Q: MessageQueue, L: Looks> Shared<Q, L> {
    /// Looks where the message says, and ends it.
    pub(super) async fn deliver(&self, message: Message) {
        let Message {
            id,
            receipt,
            body,
            receives,
            sent,
        } = message;
        let consumer = &self.consumer;
        let in_hand = self.hold(sent.unwrap_or_else(clock::now));
        let result = match self.read(&id, body) {
            Ok(pushes) => self.result(pushes, &receipt).await,
            Err(result) => result,
        };
        consumer.metrics.message(&consumer.name, result);
        tracing::debug!(
            queue = &*consumer.name,
            message_id = id,
            receives,
            result = result.name(),
            "a message has ended"
        );
        self.end(receipt, result, receives).await;
        drop(in_hand);
    }

    /// The pushes of a message, or what becomes of it without any. The body goes: many messages
    /// may be in hand.
    fn read(&self, id: &str, body: String) -> Result<Vec<Push>, MessageResult> {
        match Kind::Ecr.read(&HeaderMap::new(), body.as_bytes()) {
            Ok(Delivery::Pushes(pushes)) => Ok(pushes),
            Ok(Delivery::Handshake(_) | Delivery::Ignored(_)) => {
                self.consumer.looks.count("ignored");
                Err(MessageResult::Ignored)
            }
            Err(malformed) => {
                let queue = &*self.consumer.name;
                tracing::warn!(
                    queue,
                    message_id = id,
                    error = %malformed,
                    "a message is no push event"
                );
                self.consumer.looks.count("malformed");
                Err(MessageResult::Malformed)
            }
        }
    }

    async fn result(&self, pushes: Vec<Push>, receipt: &Receipt) -> MessageResult {
        let deadline = Instant::now() + OLDEST;
        tokio::select! {
            biased;
            result = self.looked(pushes) => result,
            never = self.renew(receipt) => match never {},
            () = sleep_until(deadline) => MessageResult::Expired,
        }
    }

    /// Waits for the looks at all pushes.
    async fn looked(&self, pushes: Vec<Push>) -> MessageResult {
        let settlements = join_all(pushes.into_iter().map(|push| self.settled(push))).await;
        let any = |settlement: Settlement| settlements.contains(&settlement);
        if any(Settlement::Failed) {
            MessageResult::Failed
        } else if any(Settlement::Interrupted) {
            self.interrupted()
        } else if any(Settlement::Settled) {
            MessageResult::Settled
        } else {
            MessageResult::Ignored
        }
    }

    /// A look that ends so while the daemon goes on lost its route: the message comes back later,
    /// under the new config.
    fn interrupted(&self) -> MessageResult {
        if self.consumer.drain.is_cancelled() {
            MessageResult::Returned
        } else {
            MessageResult::Failed
        }
    }

    async fn settled(&self, push: Push) -> Settlement {
        let mut failures = 0;
        loop {
            match self.consumer.looks.look(push.clone()).await {
                Ok(settlement) => return settlement,
                Err(Busy::Draining) => return Settlement::Interrupted,
                Err(Busy::Full) => failures += 1,
            }
            sleep(BUSY.wait(failures)).await;
        }
    }

    /// Keeps the message invisible to other consumers.
    async fn renew(&self, receipt: &Receipt) -> Infallible {
        loop {
            sleep(RENEWED_EVERY).await;
            let change = (receipt.clone(), VISIBILITY);
            let renewed = self.visibilities.make(change).await;
            self.note("ChangeMessageVisibility", &renewed);
        }
    }

    async fn end(&self, receipt: Receipt, result: MessageResult, receives: u32) {
        let stays_away = match result {
            MessageResult::Settled | MessageResult::Ignored | MessageResult::Expired => None,
            MessageResult::Failed | MessageResult::Malformed => Some(RETURN.wait(receives)),
            MessageResult::Returned => Some(Duration::ZERO),
        };
        for tries in 1..=TRIES {
            let (action, ended) = match stays_away {
                None => ("DeleteMessage", self.deletions.make(receipt.clone()).await),
                Some(time) => {
                    let change = (receipt.clone(), time);
                    let changed = self.visibilities.make(change).await;
                    ("ChangeMessageVisibility", changed)
                }
            };
            self.note(action, &ended);
            if tries == TRIES
                || ended
                    .err()
                    .is_none_or(|fault| !fault.class().is_retryable())
            {
                return;
            }
            sleep(TRY.wait(tries)).await;
        }
    }
}
