//! Polls: when each route is due.
//!
//! A literal route has its own time. All wildcard routes of one registry share one, since they
//! share its catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::random;
use crate::route::Route;

/// The routes of one poll.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PollKey {
    /// A literal route.
    Route(Arc<str>),
    /// All routes with wildcards that read this registry.
    Catalog(Arc<str>),
}

impl PollKey {
    /// The poll of a route.
    pub fn of(route: &Route) -> PollKey {
        if route.from.is_literal() {
            PollKey::Route(route.name.clone())
        } else {
            PollKey::Catalog(route.from.registry().clone())
        }
    }
}

/// The times of all polls.
#[derive(Debug, Default)]
pub struct Polls {
    next: BTreeMap<PollKey, Instant>,
    order: BTreeSet<(Instant, PollKey)>,
    /// Polls that have not been due since [`Polls::begin`].
    first: BTreeSet<PollKey>,
}

impl Polls {
    /// Replaces all polls; all are due now.
    pub fn begin(&mut self, keys: impl IntoIterator<Item = PollKey>, now: Instant) {
        *self = Polls::default();
        for key in keys {
            self.next.insert(key.clone(), now);
            self.order.insert((now, key.clone()));
            self.first.insert(key);
        }
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// When this one is due.
    pub fn next_of(&self, key: &PollKey) -> Option<Instant> {
        self.next.get(key).copied()
    }

    /// Takes a due poll, and whether it is its first one. It is due again after `pace`, up to a
    /// tenth earlier or later, so that polls spread out.
    pub fn take_due(&mut self, now: Instant, pace: Duration) -> Option<(PollKey, bool)> {
        let (_, key) = self.order.first().filter(|(at, _)| *at <= now).cloned()?;
        self.order.pop_first();
        let next = now + pace.mul_f64(0.9 + 0.2 * random::fraction());
        self.next.insert(key.clone(), next);
        self.order.insert((next, key.clone()));
        let is_first = self.first.remove(&key);
        Some((key, is_first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_comes_up_at_once_and_then_at_its_pace() {
        let mut polls = Polls::default();
        let start = Instant::now();
        let pace = Duration::from_secs(60);
        let keys = [
            PollKey::Route("one".into()),
            PollKey::Catalog("staging".into()),
        ];
        polls.begin(keys.clone(), start);
        let first: Vec<_> = std::iter::from_fn(|| polls.take_due(start, pace)).collect();
        assert_eq!(first, keys.clone().map(|key| (key, true)));
        for key in &keys {
            let next = polls.next_of(key).unwrap() - start;
            assert!((54..=66).contains(&next.as_secs()), "{next:?}");
        }
        let next = polls.next().unwrap();
        assert!(
            polls
                .take_due(next - Duration::from_millis(1), pace)
                .is_none()
        );
        assert!(polls.take_due(next, pace).is_some_and(|(_, first)| !first));
        polls.begin([keys[0].clone()], next);
        assert_eq!(polls.next_of(&keys[1]), None);
        assert_eq!(polls.take_due(next, pace), Some((keys[0].clone(), true)));
    }
}
