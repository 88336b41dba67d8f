//! Events that wait for the discovery of their routes.
//!
//! One discovery of a route runs at a time. Whoever asks while it runs is answered by the next one, which began after they
//! asked; all who wait share it, so a hundred pings cost two walks through a catalog.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::event::Event;

/// An event and how much of it is answered.
#[derive(Debug)]
pub struct Inquiry {
    /// The event.
    pub event: Event,
    /// Looks that were queued for it so far.
    pub count: usize,
    open: usize,
}

#[derive(Debug, Default)]
struct Round {
    /// Answered by the discovery that runs.
    asked: Vec<u64>,
    /// Answered by the next.
    dirty: Vec<u64>,
}

/// The events that wait, and the discoveries that run for them.
#[derive(Debug, Default)]
pub struct Inquiries {
    next: u64,
    inquiries: BTreeMap<u64, Inquiry>,
    rounds: BTreeMap<Arc<str>, Round>,
}

impl Inquiries {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.inquiries.len()
    }

    /// An event that is about so many routes.
    pub fn open(&mut self, event: Event, routes: usize) -> u64 {
        self.next += 1;
        self.inquiries.insert(self.next, Inquiry { event, count: 0, open: routes });
        self.next
    }

    /// Waits for a discovery of the route. `true`: there is none, one is to begin.
    pub fn join(&mut self, route: &Arc<str>, id: u64) -> bool {
        match self.rounds.get_mut(route) {
            Some(round) => {
                round.dirty.push(id);
                false
            }
            None => {
                self.rounds.insert(route.clone(), Round { asked: vec![id], dirty: Vec::new() });
                true
            }
        }
    }

    /// Whether a discovery of the route runs.
    pub fn is_running(&self, route: &str) -> bool {
        self.rounds.contains_key(route)
    }

    /// A discovery has ended: whom it answers. What came while it ran waits for another one, which is to begin if `true`.
    pub fn ended(&mut self, route: &Arc<str>) -> (Vec<u64>, bool) {
        let Some(round) = self.rounds.remove(route) else { return (Vec::new(), false) };
        let again = !round.dirty.is_empty();
        if again {
            self.rounds.insert(route.clone(), Round { asked: round.dirty, dirty: Vec::new() });
        }
        (round.asked, again)
    }

    /// The discovery that ended was of a world that is no more: whom it would have answered, with those who came since.
    pub fn outdated(&mut self, route: &str) -> Vec<u64> {
        self.rounds.remove(route).map(|round| [round.asked, round.dirty].concat()).unwrap_or_default()
    }

    /// The event of that number.
    pub fn find(&mut self, id: u64) -> Option<&mut Inquiry> {
        self.inquiries.get_mut(&id)
    }

    /// One of its routes has been answered for; the whole once it was the last.
    pub fn answered(&mut self, id: u64) -> Option<Inquiry> {
        let inquiry = self.inquiries.get_mut(&id)?;
        inquiry.open = inquiry.open.saturating_sub(1);
        if inquiry.open == 0 { self.inquiries.remove(&id) } else { None }
    }

    /// Nobody waits any more.
    pub fn clear(&mut self) {
        self.inquiries.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::job::{Actor, Cause};
    use crate::watch::{Scope, Wish};

    fn event() -> Event {
        let (scope, wish, actor) = (Scope::default(), Wish::default(), Actor::daemon());
        Event { scope, cause: Cause::Ping, actor, run_id: String::new(), received: Instant::now(), wish, reply: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_askers_share_the_next_discovery() {
        let mut inquiries = Inquiries::default();
        let route: Arc<str> = "wild".into();
        let first = inquiries.open(event(), 2);
        assert!(inquiries.join(&route, first));
        for _ in 0..100 {
            let id = inquiries.open(event(), 1);
            assert!(!inquiries.join(&route, id), "one at a time");
        }
        assert_eq!(inquiries.ended(&route), (vec![first], true));
        assert!(inquiries.answered(first).is_none(), "another route is open");
        assert!(inquiries.answered(first).is_some());
        let (asked, again) = inquiries.ended(&route);
        assert_eq!((asked.len(), again), (100, false));
        assert!(asked.into_iter().all(|id| inquiries.answered(id).is_some()));
        assert!(inquiries.len() == 0 && !inquiries.is_running(&route));
    }
}
