//! The queue of looks: level-triggered, one entry for each source repository of a route.
//!
//! A key is idle, waiting, running, or running and dirty: a request while it waits is merged, and
//! one while it runs makes it run once more. A hundred pings cost one extra look. Looks of one
//! repository do not overlap, with one exception: a request by tag name runs beside a look at
//! everything. Requests that expect different digests are not merged: each has its own look, in
//! order.
//!
//! Order ([`Rank`]): requests that name tags first; then requests for whole repositories, events,
//! new pushes, and backfill in proportions of 8 to 8 to 4 to 1 (stride scheduling), each fair
//! between registry pairs: the registries that routes connect. No pair takes all capacity while there are
//! others, so a registry that does not answer delays only its own routes. Within a pair: first
//! come, first served. Every step costs the logarithm of the waiting
//! entries, and a visit to each pair.

mod delays;
mod entry;
mod strides;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

pub use self::delays::RetryDelays;
use self::entry::{Entry, Position, Running, is_poll};
pub use self::entry::{LookSender, Waiting};
pub use self::strides::Capacity;
use self::strides::{RegistryPairs, StrideKey};
use crate::job::Rank;
use crate::look::LookRequest;
use crate::oci::RepositoryName;

/// Most entries while notifications may add more: a sender can name any repository of a wildcard
/// route.
const NOTIFIED: usize = 100_000;

/// The key of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LookKey {
    /// The route.
    pub route: Arc<str>,
    /// The source repository.
    pub repository: RepositoryName,
    /// Dry runs have their own entries: they must not turn a real look into a plan.
    pub dry_run: bool,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    entries: BTreeMap<LookKey, Entry>,
    /// Entries that may start, oldest first.
    ready: BTreeMap<StrideKey, BTreeSet<(Instant, LookKey)>>,
    pairs: RegistryPairs,
    /// Entries that are due later, next first.
    later: BTreeSet<(Instant, LookKey)>,
    /// Entries that are due, running or not; oldest first.
    due: BTreeSet<(Instant, LookKey)>,
    running: usize,
}

impl Queue {
    /// Whether a notification may add a look with this key.
    pub fn has_room(&self, key: &LookKey) -> bool {
        self.entries.len() < NOTIFIED || self.entries.contains_key(key)
    }

    /// Adds a request. Merges it with a waiting one.
    pub fn add(
        &mut self,
        key: LookKey,
        request: LookRequest,
        senders: Option<LookSender>,
        now: Instant,
    ) {
        let entry = self.entries.entry(key.clone()).or_default();
        let not_before = if is_poll(&request) {
            entry.held.map_or(now, |held| held.max(now))
        } else {
            now
        };
        entry.add(request, senders, not_before, now);
        self.reposition(&key, now);
    }

    /// Adds a look after a delay, because of trouble that may pass. The delay doubles while trouble
    /// lasts.
    pub fn add_later(
        &mut self,
        key: LookKey,
        request: LookRequest,
        pace: RetryDelays,
        now: Instant,
    ) {
        let entry = self.entries.entry(key.clone()).or_default();
        entry.failures += 1;
        let until = now + pace.wait(entry.failures);
        if pace.holds_polls {
            entry.held = Some(until);
            for waiting in entry
                .waiting
                .iter_mut()
                .filter(|waiting| is_poll(&waiting.request))
            {
                waiting.not_before = waiting.not_before.max(until);
            }
        }
        entry.add(request, None, until, now);
        self.reposition(&key, now);
    }

    /// Adds a look at a time, independent of polls.
    pub fn add_at(
        &mut self,
        key: LookKey,
        request: LookRequest,
        senders: Option<LookSender>,
        at: Instant,
        now: Instant,
    ) {
        self.entries
            .entry(key.clone())
            .or_default()
            .add(request, senders, at, now);
        self.reposition(&key, now);
    }

    /// Sets the registry pairs of the routes.
    pub fn set_registry_pairs<'a>(&mut self, routes: impl Iterator<Item = (&'a Arc<str>, String)>) {
        let pairs = &mut self.pairs;
        pairs.of_routes.clear();
        let mut names = BTreeSet::new();
        for (route, name) in routes {
            let next = pairs.numbers.len() + 1;
            let number = *pairs.numbers.entry(name.clone()).or_insert(next);
            pairs.of_routes.insert(route.clone(), number);
            names.insert(name);
        }
        pairs.count = names.len();
    }

    /// Starts the next due look that fits the capacity.
    pub fn start(&mut self, now: Instant, capacity: Capacity) -> Option<(LookKey, Waiting)> {
        self.advance(now);
        let stride_key = self.next_key(capacity)?;
        let (_, key) = self.ready.get(&stride_key)?.first()?.clone();
        let entry = self.entries.get_mut(&key)?;
        let mut waiting = entry.waiting.remove(entry.best(now)?);
        let running = Running {
            is_wide: waiting.request.tags.is_empty(),
            pair: stride_key.pair,
        };
        waiting.is_beside = entry.running.is_some();
        if waiting.is_beside {
            entry.beside = Some(running);
        } else {
            entry.running = Some(running);
        }
        self.running += 1;
        self.pairs.start(stride_key);
        self.reposition(&key, now);
        Some((key, waiting))
    }

    fn may_start(&self, stride_key: &StrideKey, capacity: Capacity) -> bool {
        let pairs = &self.pairs;
        let running = pairs.running.get(stride_key.pair).copied().unwrap_or(0);
        let has_place = pairs.count <= 1 || running < capacity.per_pair(stride_key.rank);
        has_place && self.running < capacity.in_total(stride_key.rank)
    }

    fn next_key(&self, capacity: Capacity) -> Option<StrideKey> {
        let order = |stride_key: &&StrideKey| {
            let since = self
                .ready
                .get(stride_key)
                .and_then(|ready| ready.first())
                .map(|(since, _)| *since);
            // Requests that name tags are not subject to strides.
            let takes_turns = stride_key.rank != Rank::Named;
            let pass = if takes_turns {
                self.pairs.pass_of(stride_key)
            } else {
                0
            };
            (takes_turns, pass, stride_key.rank, since)
        };
        self.ready
            .keys()
            .filter(|stride_key| self.may_start(stride_key, capacity))
            .min_by_key(order)
            .copied()
    }

    /// Ends a look. `is_well`: nothing in it calls for another one soon.
    pub fn settled(&mut self, key: &LookKey, is_beside: bool, is_well: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let ended = if is_beside {
            entry.beside.take()
        } else {
            entry.running.take()
        };
        if let Some(running) = ended {
            self.running -= 1;
            self.pairs.end(running.pair);
        }
        if is_well && !is_beside {
            (entry.failures, entry.held) = (0, None);
        }
        self.reposition(key, now);
    }

    /// Drops waiting entries that `keep` rejects, and tells their receivers.
    pub fn retain(&mut self, keep: impl Fn(&LookKey) -> bool, now: Instant) {
        let gone: Vec<LookKey> = self
            .entries
            .keys()
            .filter(|key| !keep(key))
            .cloned()
            .collect();
        for key in gone {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            (entry.failures, entry.held) = (0, None);
            for waiting in entry.waiting.drain(..) {
                waiting.interrupt();
            }
            self.reposition(&key, now);
        }
    }

    /// Forgets the failures of a repository, and the looks that only they call for.
    pub fn forget(&mut self, key: &LookKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        (entry.failures, entry.held) = (0, None);
        let is_asked_for =
            |waiting: &Waiting| !waiting.senders.is_empty() || !is_poll(&waiting.request);
        entry.waiting.retain(is_asked_for);
        self.reposition(key, now);
    }

    /// Until when trouble delays the polls of a repository.
    pub fn held(&self, key: &LookKey) -> Option<Instant> {
        self.entries.get(key)?.held
    }

    /// When the next later entry is due.
    pub fn next(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// The number of due repositories, the number of running looks, and since when the oldest
    /// waits.
    pub fn counts(&self) -> (usize, usize, Option<Instant>) {
        (
            self.due.len(),
            self.running,
            self.due.first().map(|(since, _)| *since),
        )
    }

    /// Moves entries that have become due.
    pub fn advance(&mut self, now: Instant) {
        while let Some((_, key)) = self.later.first().filter(|(at, _)| *at <= now).cloned() {
            self.reposition(&key, now);
        }
    }

    /// Updates the position of an entry. An idle entry without failures is removed.
    fn reposition(&mut self, key: &LookKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let position = entry.position_at(now, self.pairs.of(&key.route));
        let before = std::mem::replace(&mut entry.position, position);
        if entry.is_idle() {
            self.entries.remove(key);
        }
        if let Some(Position::Dirty { due } | Position::Ready { due, .. }) = before {
            self.due.remove(&(due, key.clone()));
        }
        match before {
            Some(Position::Ready {
                stride_key, since, ..
            }) => self.take_from_ready(stride_key, since, key),
            Some(Position::Later { at }) => drop(self.later.remove(&(at, key.clone()))),
            Some(Position::Dirty { .. }) | None => {}
        }
        if let Some(Position::Dirty { due } | Position::Ready { due, .. }) = position {
            self.due.insert((due, key.clone()));
        }
        match position {
            Some(Position::Ready {
                stride_key, since, ..
            }) => self.add_to_ready(stride_key, since, key),
            Some(Position::Later { at }) => drop(self.later.insert((at, key.clone()))),
            Some(Position::Dirty { .. }) | None => {}
        }
    }

    fn add_to_ready(&mut self, stride_key: StrideKey, since: Instant, key: &LookKey) {
        if !self.ready.contains_key(&stride_key) {
            self.pairs.begin(stride_key);
        }
        self.ready
            .entry(stride_key)
            .or_default()
            .insert((since, key.clone()));
    }

    fn take_from_ready(&mut self, stride_key: StrideKey, since: Instant, key: &LookKey) {
        let Some(ready) = self.ready.get_mut(&stride_key) else {
            return;
        };
        ready.remove(&(since, key.clone()));
        if ready.is_empty() {
            self.ready.remove(&stride_key);
        }
    }
}

#[cfg(test)]
mod tests;
