//! The line for the naming permits of one registry: which requests are granted.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::job::Rank;
use crate::transfer::admission::Wakers;

/// Permits beyond the limit for jobs that are asked for by name, at most as many as the limit: a
/// repository with slow names does not hold them up.
pub(super) const NAMED_ABOVE: usize = 4;

/// The pure core: which requests for a naming permit are granted.
#[derive(Debug, Default)]
pub(super) struct NamingCore {
    pub(super) held: usize,
    /// Granted, not yet taken.
    pub(super) granted: BTreeSet<u64>,
    pub(super) waiting: BTreeSet<(Rank, Instant, u64)>,
}

impl NamingCore {
    pub(super) fn ask(&mut self, rank: Rank, since: Instant, id: u64) {
        self.waiting.insert((rank, since, id));
    }

    pub(super) fn cancel(&mut self, rank: Rank, since: Instant, id: u64) {
        self.waiting.remove(&(rank, since, id));
    }

    pub(super) fn release(&mut self) {
        self.held -= 1;
    }

    /// The next request that is granted while at most `limit` permits are out, and some more for
    /// jobs that are asked for by name.
    fn grant(&mut self, limit: usize) -> Option<u64> {
        let (rank, ..) = self.waiting.first()?;
        let above = if *rank == Rank::Named {
            NAMED_ABOVE.min(limit)
        } else {
            0
        };
        if self.held >= limit + above {
            return None;
        }
        let (_, _, id) = self.waiting.pop_first()?;
        self.held += 1;
        Some(id)
    }
}

/// The naming permits of one registry.
#[derive(Debug, Default)]
pub(in crate::transfer) struct NamingQueue(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) core: NamingCore,
    pub(super) wakers: Wakers,
    pub(super) next: u64,
}

impl NamingQueue {
    /// No step under this lock leaves the state half changed, so a poisoned lock is as good as any.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn pump(&mut self, limit: usize) {
        while let Some(id) = self.core.grant(limit) {
            self.core.granted.insert(id);
            self.wakers.wake(id);
        }
    }
}
