//! The consumers of the queues of push events, one for each queue of the config.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::joined;
use crate::sqs;
use crate::status::Board;
use crate::status::board::{MessageQueueStatus, Status};
use crate::status::metrics::queues::QueueMetrics;
use crate::watch::Handle;
use crate::watch::queue_consumer::{Consumer, QueueLooks, Settings};

/// The time to delete or return the last messages once the watch has ended.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The consumers that run.
pub(super) struct Consumers {
    handle: Handle,
    metrics: QueueMetrics,
    board: Board,
    drain: CancellationToken,
    running: BTreeMap<Arc<str>, RunningConsumer>,
    tasks: JoinSet<()>,
}

/// A consumer, until its queue is gone from the config or is read otherwise.
struct RunningConsumer {
    settings: Settings,
    drain: CancellationToken,
}

impl Consumers {
    /// No consumers yet. `drain` ends all of them.
    pub(super) fn new(
        handle: Handle,
        metrics: QueueMetrics,
        drain: CancellationToken,
    ) -> Consumers {
        let board = handle.board().clone();
        Consumers {
            handle,
            metrics,
            board,
            drain,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// From now on these queues are consumed. Messages in hand still settle where their queue is gone
    /// or its settings have changed.
    pub(super) fn adopt(&mut self, queues: &[Settings]) {
        while self.tasks.try_join_next().is_some() {}
        self.running.retain(|_, running| {
            let goes_on = queues.contains(&running.settings);
            if !goes_on {
                running.drain.cancel();
            }
            goes_on
        });
        self.metrics.retain(
            &queues
                .iter()
                .map(|queue| &*queue.name)
                .collect::<HashSet<&str>>(),
        );
        self.board.update(|status| show(status, queues));
        for settings in queues {
            if !self.running.contains_key(&settings.name) {
                self.start(settings.clone());
            }
        }
    }

    fn start(&mut self, settings: Settings) {
        self.metrics.prepare(&settings.name);
        let drain = self.drain.child_token();
        let looks = QueueLooks {
            handle: self.handle.clone(),
            notifier: settings.notifier.clone(),
            principal: format!("queue:{}", settings.name),
        };
        let consumer = Consumer {
            name: settings.name.clone(),
            queue: sqs::Queue::new(settings.queue.clone()),
            looks,
            metrics: self.metrics.clone(),
            board: self.board.clone(),
            drain: drain.clone(),
        };
        self.tasks.spawn(consumer.run());
        let running = RunningConsumer { settings, drain };
        self.running.insert(running.settings.name.clone(), running);
    }

    /// Waits for the consumers after the watch has ended: every message in hand is deleted or
    /// returned, unless AWS does not answer in time.
    pub(super) async fn ended(&mut self) {
        if tokio::time::timeout(LAST_CALLS, joined(&mut self.tasks))
            .await
            .is_err()
        {
            tracing::warn!(
                "messages could not be returned to their queues in time; they come back within 30 s"
            );
        }
        self.tasks.shutdown().await;
    }
}

/// Keeps what is known of queues that go on.
fn show(status: &mut Status, queues: &[Settings]) {
    let before = std::mem::take(&mut status.queues);
    let entries = queues.iter().map(|queue| {
        let known = before.iter().find(|entry| entry.name == *queue.name);
        MessageQueueStatus {
            name: queue.name.to_string(),
            url: queue.queue.address.to_string(),
            registry: queue.notifier.registry.to_string(),
            ..known.cloned().unwrap_or_default()
        }
    });
    status.queues = entries.collect();
}
