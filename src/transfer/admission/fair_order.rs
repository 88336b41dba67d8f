//! The order in which queues take turns: each by its weight, and none by what it saved up.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pools::Flow;
use crate::job::Rank;

/// What takes turns: the requests of one rank of one flow. Requests of looks have no flow.
pub(in crate::transfer) type RequestQueue = (Option<Arc<Flow>>, Rank);

/// A queue that could not be served keeps at most so much of what it did not use.
const CREDIT: u64 = 64;
/// Queues whose use is remembered.
const MOST: usize = 1024;

/// What each queue has used, in weighted requests.
#[derive(Debug, Default)]
pub(super) struct FairOrder {
    used: BTreeMap<RequestQueue, u64>,
    /// What the queue that was served last had used: a new queue starts there.
    now: u64,
}

impl FairOrder {
    /// Lower goes first.
    pub(super) fn used(&self, queue: &RequestQueue) -> u64 {
        let least = self.now.saturating_sub(CREDIT);
        self.used
            .get(queue)
            .map_or(self.now, |used| (*used).max(least))
    }

    /// A request of the queue was granted.
    pub(super) fn charge(&mut self, queue: &RequestQueue) {
        let began = self.used(queue);
        self.now = self.now.max(began);
        self.used
            .insert(queue.clone(), began.saturating_add(queue.1.cost()));
        if self.used.len() > MOST {
            let now = self.now;
            self.used.retain(|_, used| *used > now);
        }
    }

    /// A granted request was not sent.
    pub(super) fn refund(&mut self, queue: &RequestQueue) {
        if let Some(used) = self.used.get_mut(queue) {
            *used = used.saturating_sub(queue.1.cost());
        }
    }
}
