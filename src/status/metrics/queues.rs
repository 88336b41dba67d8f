//! What waits: looks in our own queue, and messages in the queues of push events.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use prometheus::{Error, Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::clock;
use crate::metrics::{LabelNames, forget_series, options, registered};

/// What came of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageResult {
    /// Its looks have settled: deleted.
    Settled,
    /// A look failed: it comes back later.
    Failed,
    /// It is about nothing that a route has: deleted.
    Ignored,
    /// It is no event: it comes back later, until the queue's redrive policy takes it away.
    Malformed,
    /// Its look took longer than SQS keeps a message for one consumer: deleted.
    Expired,
    /// The daemon stopped before its look had settled: it comes back at once.
    Returned,
}

impl MessageResult {
    /// All of them.
    pub const ALL: [MessageResult; 6] = [
        MessageResult::Settled,
        MessageResult::Failed,
        MessageResult::Ignored,
        MessageResult::Malformed,
        MessageResult::Expired,
        MessageResult::Returned,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            MessageResult::Settled => "settled",
            MessageResult::Failed => "failed",
            MessageResult::Ignored => "ignored",
            MessageResult::Malformed => "malformed",
            MessageResult::Expired => "expired",
            MessageResult::Returned => "returned",
        }
    }
}

/// The instruments. Cheap to clone.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    looks: IntGauge,
    oldest_look: Gauge,
    waiting: IntGaugeVec,
    oldest_message: GaugeVec,
    messages: IntCounterVec,
    in_hand: Arc<Mutex<InHand>>,
    names: LabelNames,
}

/// When the messages were sent that are being worked on, by queue.
#[derive(Debug, Default)]
struct InHand {
    next: u64,
    queues: BTreeMap<String, BTreeSet<(Timestamp, u64)>>,
}

/// A message that is being worked on, until dropped.
#[derive(Debug)]
pub struct HeldMessage {
    queue: Arc<str>,
    place: (Timestamp, u64),
    in_hand: Arc<Mutex<InHand>>,
}

impl QueueMetrics {
    /// Registers the instruments.
    ///
    /// # Errors
    /// When they are registered already.
    pub(super) fn new(registry: &Registry) -> Result<QueueMetrics, Error> {
        let looks = options("queue_depth", "Looks that wait for their turn.");
        let oldest_look = options(
            "queue_oldest_age_seconds",
            "How long the oldest look that waits has waited.",
        );
        let waiting = options(
            "queue_messages_waiting",
            "Messages that wait in a queue of push events.",
        );
        let oldest_message = options(
            "queue_message_age_seconds",
            "Age of the oldest message that is being worked on.",
        );
        let messages = options(
            "queue_messages_total",
            "Messages of queues of push events by what came of them.",
        );
        Ok(QueueMetrics {
            looks: registered(registry, IntGauge::with_opts(looks)?)?,
            oldest_look: registered(registry, Gauge::with_opts(oldest_look)?)?,
            waiting: registered(registry, IntGaugeVec::new(waiting, &["queue"])?)?,
            oldest_message: registered(registry, GaugeVec::new(oldest_message, &["queue"])?)?,
            messages: registered(
                registry,
                IntCounterVec::new(messages, &["queue", "result"])?,
            )?,
            in_hand: Arc::default(),
            names: LabelNames::default(),
        })
    }

    /// Shows the looks that wait.
    pub(super) fn looks(&self, depth: usize, oldest_seconds: f64) {
        self.looks.set(i64::try_from(depth).unwrap_or(i64::MAX));
        self.oldest_look.set(oldest_seconds);
    }

    /// Makes all series of a queue exist, at 0, but its depth, which SQS knows.
    pub fn prepare(&self, queue: &str) {
        self.names.take_up(queue);
        self.oldest_message.with_label_values(&[queue]);
        for result in MessageResult::ALL {
            self.messages.with_label_values(&[queue, result.name()]);
        }
    }

    /// Forgets the queues that the config no longer has.
    pub fn retain(&self, known: &HashSet<&str>) {
        let is_gone = |label: &dyn Fn(&str) -> String| !known.contains(&*label("queue"));
        self.names.retain(known);
        lock(&self.in_hand)
            .queues
            .retain(|queue, _| known.contains(&**queue));
        forget_series(&self.waiting, is_gone);
        forget_series(&self.oldest_message, is_gone);
        forget_series(&self.messages, is_gone);
    }

    /// Counts a message.
    pub fn message(&self, queue: &str, result: MessageResult) {
        if !self.names.is_gone(queue) {
            let labels = [queue, result.name()];
            self.messages.with_label_values(&labels).inc();
        }
    }

    /// Shows how many messages wait; `None`: SQS does not tell.
    pub fn show_depth(&self, queue: &str, depth: Option<u64>) {
        match depth.filter(|_| !self.names.is_gone(queue)) {
            Some(depth) => self
                .waiting
                .with_label_values(&[queue])
                .set(i64::try_from(depth).unwrap_or(i64::MAX)),
            // It may never have been there.
            None => drop(self.waiting.remove_label_values(&[queue])),
        }
    }

    /// Notes that a message is being worked on.
    pub fn hold(&self, queue: &Arc<str>, sent: Timestamp) -> HeldMessage {
        let mut in_hand = lock(&self.in_hand);
        in_hand.next += 1;
        let place = (sent, in_hand.next);
        if !self.names.is_gone(queue) {
            let of_queue = in_hand.queues.entry(queue.to_string()).or_default();
            of_queue.insert(place);
        }
        HeldMessage {
            queue: queue.clone(),
            place,
            in_hand: self.in_hand.clone(),
        }
    }

    /// Brings the ages up to date.
    pub(super) fn refresh(&self) {
        let now = clock::now();
        for (queue, sent) in &lock(&self.in_hand).queues {
            let age = sent.first().map(|(sent, _)| now.duration_since(*sent));
            let seconds = age.map_or(0.0, |age| age.as_secs_f64().max(0.0));
            self.oldest_message.with_label_values(&[queue]).set(seconds);
        }
    }
}

impl Drop for HeldMessage {
    fn drop(&mut self) {
        let mut in_hand = lock(&self.in_hand);
        if let Some(sent) = in_hand.queues.get_mut(&*self.queue) {
            sent.remove(&self.place);
        }
    }
}

fn lock(in_hand: &Mutex<InHand>) -> MutexGuard<'_, InHand> {
    in_hand.lock().expect("nothing panics while it counts")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_age_is_that_of_the_oldest_message_in_hand() {
        let metrics = QueueMetrics::new(&Registry::new()).unwrap();
        let queue: Arc<str> = "q".into();
        metrics.prepare(&queue);
        let ago = |seconds| clock::now() - Duration::from_secs(seconds);
        let age = || {
            metrics.refresh();
            metrics
                .oldest_message
                .with_label_values(&["q"])
                .get()
                .round()
        };
        assert_eq!(age(), 0.0);
        let old = metrics.hold(&queue, ago(100));
        let young = metrics.hold(&queue, ago(10));
        assert_eq!(age(), 100.0);
        drop(old);
        assert_eq!(age(), 10.0);
        drop(young);
        assert_eq!(age(), 0.0);
    }

    #[test]
    fn a_queue_that_is_gone_takes_its_series_along() {
        let registry = Registry::new();
        let metrics = QueueMetrics::new(&registry).unwrap();
        metrics.prepare("q");
        metrics.show_depth("q", Some(3));
        let held = metrics.hold(&"q".into(), clock::now());
        metrics.retain(&HashSet::from(["other"]));
        metrics.message("q", MessageResult::Settled);
        metrics.refresh();
        drop(held);
        let families = registry.gather();
        let labels: Vec<&str> = families
            .iter()
            .flat_map(|family| family.get_metric())
            .flat_map(|metric| metric.get_label())
            .map(|label| label.value())
            .collect();
        assert_eq!(labels, [""; 0]);
    }
}
