//! Events that wait for the discovery of their routes.
//!
//! One discovery of a route runs at a time. Events that arrive meanwhile share the next one, which
//! starts after they arrived: a hundred pings cost two readings of a catalog.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::event::Event;

/// An event and its progress.
#[derive(Debug)]
pub struct PendingEvent {
    /// The event.
    pub event: Event,
    /// Looks queued for it so far.
    pub count: usize,
    open: usize,
    /// Waiting routes, by the registry of their catalog.
    waiting: BTreeMap<Arc<str>, Vec<Arc<str>>>,
}

#[derive(Debug, Default)]
struct Round {
    /// Events answered by the running discovery.
    asked: Vec<u64>,
    /// Events answered by the next one.
    dirty: Vec<u64>,
}

/// Waiting events, and the discoveries that run for them.
#[derive(Debug, Default)]
pub struct PendingEvents {
    next: u64,
    pending_events: BTreeMap<u64, PendingEvent>,
    rounds: BTreeMap<Arc<str>, Round>,
}

impl PendingEvents {
    /// The number of waiting events.
    pub fn len(&self) -> usize {
        self.pending_events.len()
    }

    /// Adds an event about this number of routes.
    pub fn open(&mut self, event: Event, routes: usize) -> u64 {
        self.next += 1;
        self.pending_events.insert(
            self.next,
            PendingEvent {
                event,
                count: 0,
                open: routes,
                waiting: BTreeMap::new(),
            },
        );
        self.next
    }

    /// Adds a route of an event to the routes that wait for a catalog. Returns whether a reading
    /// must be started.
    pub fn join(&mut self, registry: &Arc<str>, id: u64, route: Arc<str>) -> bool {
        let Some(pending) = self.pending_events.get_mut(&id) else {
            return false;
        };
        let waiting = pending.waiting.entry(registry.clone()).or_default();
        waiting.push(route);
        if waiting.len() > 1 {
            return false;
        }
        match self.rounds.get_mut(registry) {
            Some(round) => {
                round.dirty.push(id);
                false
            }
            None => {
                self.rounds.insert(
                    registry.clone(),
                    Round {
                        asked: vec![id],
                        dirty: Vec::new(),
                    },
                );
                true
            }
        }
    }

    /// Whether a reading of the registry's catalog runs.
    pub fn is_running(&self, registry: &str) -> bool {
        self.rounds.contains_key(registry)
    }

    /// Ends a reading. Returns the routes that it answers, with their events, and whether another
    /// reading must be started for later ones.
    pub fn ended(&mut self, registry: &Arc<str>) -> (Vec<(u64, Arc<str>)>, bool) {
        let Some(round) = self.rounds.remove(registry) else {
            return (Vec::new(), false);
        };
        let again = !round.dirty.is_empty();
        if again {
            self.rounds.insert(
                registry.clone(),
                Round {
                    asked: round.dirty,
                    dirty: Vec::new(),
                },
            );
        }
        (self.routes_of(registry, round.asked), again)
    }

    /// Ends a reading under a replaced config. Returns all routes that wait for this catalog.
    pub fn outdated(&mut self, registry: &str) -> Vec<(u64, Arc<str>)> {
        let Some(round) = self.rounds.remove(registry) else {
            return Vec::new();
        };
        self.routes_of(registry, [round.asked, round.dirty].concat())
    }

    fn routes_of(&mut self, registry: &str, ids: Vec<u64>) -> Vec<(u64, Arc<str>)> {
        let mut routes = Vec::new();
        for id in ids {
            let waiting = self
                .pending_events
                .get_mut(&id)
                .and_then(|pending| pending.waiting.remove(registry));
            routes.extend(waiting.into_iter().flatten().map(|route| (id, route)));
        }
        routes
    }

    /// The event with this id.
    pub fn find(&mut self, id: u64) -> Option<&mut PendingEvent> {
        self.pending_events.get_mut(&id)
    }

    /// Records that one of its routes was answered. Returns the event after the last one.
    pub fn answered(&mut self, id: u64) -> Option<PendingEvent> {
        let pending = self.pending_events.get_mut(&id)?;
        pending.open = pending.open.saturating_sub(1);
        if pending.open == 0 {
            self.pending_events.remove(&id)
        } else {
            None
        }
    }

    /// Drops all waiting events: no running reading answers any, and none follows it.
    pub fn clear(&mut self) {
        self.pending_events.clear();
        self.rounds.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::job::{Actor, Cause};
    use crate::look::PassOptions;
    use crate::watch::Scope;

    fn event() -> Event {
        let scope = Scope::default();
        let options = PassOptions::default();
        let actor = Actor::daemon();
        Event {
            scope,
            pushed: None,
            cause: Cause::Ping,
            actor,
            run_id: String::new(),
            received: Instant::now(),
            options,
            reply: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_events_share_the_next_reading() {
        let mut pending_events = PendingEvents::default();
        let (registry, wild, other): (Arc<str>, Arc<str>, Arc<str>) =
            ("staging".into(), "wild".into(), "other".into());
        let first = pending_events.open(event(), 2);
        assert!(pending_events.join(&registry, first, wild.clone()));
        assert!(
            !pending_events.join(&registry, first, other.clone()),
            "one reading for both routes"
        );
        for _ in 0..100 {
            let id = pending_events.open(event(), 1);
            assert!(
                !pending_events.join(&registry, id, wild.clone()),
                "one at a time"
            );
        }
        assert_eq!(
            pending_events.ended(&registry),
            (vec![(first, wild), (first, other)], true)
        );
        assert!(
            pending_events.answered(first).is_none(),
            "another route is open"
        );
        assert!(pending_events.answered(first).is_some());
        let (asked, again) = pending_events.ended(&registry);
        assert_eq!((asked.len(), again), (100, false));
        assert!(
            asked
                .into_iter()
                .all(|(id, _)| pending_events.answered(id).is_some())
        );
        assert!(pending_events.len() == 0 && !pending_events.is_running(&registry));
    }

    #[tokio::test(start_paused = true)]
    async fn no_reading_follows_for_dropped_events() {
        let mut pending_events = PendingEvents::default();
        let (registry, route): (Arc<str>, Arc<str>) = ("staging".into(), "wild".into());
        for _ in 0..2 {
            let id = pending_events.open(event(), 1);
            pending_events.join(&registry, id, route.clone());
        }
        pending_events.clear();
        assert_eq!(pending_events.ended(&registry), (Vec::new(), false));
    }
}
