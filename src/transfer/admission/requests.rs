//! The pure core for requests to one registry: which of those that wait is sent next.
//!
//! - A request takes all that it needs at once: a place in the window of its class and in the
//!   shared one, and a token of every quota that counts it. Nothing is held while one of them is
//!   missing.
//! - A PUT under a naming permit goes first, then what is asked for by name. The others share by
//!   weight: a queue (flow and rank) that has sent less for its weight goes first, the oldest
//!   request of a queue before the younger ones.
//! - What is asked for by name has room in both windows that nothing else uses: requests with slow
//!   answers do not hold it up.
//! - A class that waits for a time to come holds up no other class.
//! - A probe asks when a class admits requests, and takes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::fair_order::{FairOrder, RequestQueue};
use crate::endpoint::rate_limit::RequestClass;
use crate::job::Rank;
use crate::transfer::pace::{ClassLimiter, SharedLimiter};

/// What waits.
#[derive(Clone, Debug)]
pub(in crate::transfer) struct Ask {
    /// Its class.
    pub(in crate::transfer) class: RequestClass,
    /// Whether it keeps to the looks' part of the quota.
    pub(in crate::transfer) is_look: bool,
    /// Whether it is sent under a naming permit.
    pub(in crate::transfer) is_naming: bool,
    /// Whether it is to be sent. Else it only asks when it could be.
    pub(in crate::transfer) is_sent: bool,
    /// The job that it belongs to: as urgent as that is by now.
    pub(in crate::transfer) ticket: Option<u64>,
    /// The queue that it stands in.
    pub(in crate::transfer) queue: RequestQueue,
    /// It is given up when its class closes for longer.
    pub(in crate::transfer) max_wait: Duration,
}

/// Which requests go before all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Naming,
    Named,
    Shared,
}

/// A line of requests that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LineKey {
    tier: Tier,
    is_look: bool,
    queue: RequestQueue,
}

impl LineKey {
    fn of(ask: &Ask) -> LineKey {
        let tier = match ask.queue.1 {
            _ if ask.is_naming => Tier::Naming,
            Rank::Named => Tier::Named,
            Rank::Request | Rank::Event | Rank::New | Rank::Backfill => Tier::Shared,
        };
        LineKey {
            tier,
            is_look: ask.is_look,
            queue: ask.queue.clone(),
        }
    }

    /// Whether it is asked for by name: then it has room beyond the others.
    fn is_named(&self) -> bool {
        self.queue.1 == Rank::Named
    }
}

/// One class: its limits, and what waits.
#[derive(Debug)]
struct Class {
    limiter: ClassLimiter,
    lines: BTreeMap<LineKey, BTreeSet<u64>>,
    probes: BTreeSet<u64>,
    order: FairOrder,
}

impl Class {
    /// The request that goes first among those that are due.
    fn first(&self, shared: &SharedLimiter, now: Instant) -> Option<(&LineKey, u64)> {
        if self.lines.is_empty() || !self.has_room(shared, true) {
            return None;
        }
        let is_ready = [false, true].map(|is_look| self.limiter.ready_in(is_look, now).is_zero());
        let ready = self.lines.iter().filter(|(key, _)| {
            is_ready[usize::from(key.is_look)] && self.has_room(shared, key.is_named())
        });
        let heads = ready.filter_map(|(key, ids)| Some((key, *ids.first()?)));
        heads.min_by_key(|(key, id)| (key.tier, self.used(key), *id))
    }

    fn has_room(&self, shared: &SharedLimiter, is_named: bool) -> bool {
        self.limiter.has_room(is_named) && shared.has_room(is_named)
    }

    /// Requests under a naming permit have had their turn: among them the oldest goes first.
    fn used(&self, key: &LineKey) -> u64 {
        match key.tier {
            Tier::Naming => 0,
            Tier::Named | Tier::Shared => self.order.used(&key.queue),
        }
    }

    /// How long until time alone lets something go that waits here. `None`: nothing waits for a
    /// time.
    fn ready_in(&self, shared: &SharedLimiter, now: Instant) -> Option<Duration> {
        let waits = [false, true].map(|is_look| {
            let has_probe = !is_look && !self.probes.is_empty();
            let mut lines = self.lines.keys().filter(|key| key.is_look == is_look);
            let is_waiting = has_probe || lines.any(|key| self.has_room(shared, key.is_named()));
            let ready_in = self
                .limiter
                .ready_in(is_look, now)
                .max(shared.ready_in(now));
            (is_waiting && !ready_in.is_zero()).then_some(ready_in)
        });
        waits.into_iter().flatten().min()
    }
}

/// All requests to one registry that wait.
#[derive(Debug)]
pub(in crate::transfer) struct Requests {
    classes: [Class; 5],
    shared: SharedLimiter,
    order: FairOrder,
    asks: BTreeMap<u64, Ask>,
    next: u64,
}

impl Requests {
    pub(in crate::transfer) fn new(limiters: [ClassLimiter; 5], shared: SharedLimiter) -> Requests {
        Requests {
            classes: limiters.map(|limiter| Class {
                limiter,
                lines: BTreeMap::new(),
                probes: BTreeSet::new(),
                order: FairOrder::default(),
            }),
            shared,
            order: FairOrder::default(),
            asks: BTreeMap::new(),
            next: 0,
        }
    }

    /// The limits of a class.
    pub(in crate::transfer) fn class(&self, class: RequestClass) -> &ClassLimiter {
        &self.classes[class as usize].limiter
    }

    /// The same, to be changed.
    pub(in crate::transfer) fn class_mut(&mut self, class: RequestClass) -> &mut ClassLimiter {
        &mut self.classes[class as usize].limiter
    }

    /// The limits of all classes together.
    pub(in crate::transfer) fn shared(&self) -> &SharedLimiter {
        &self.shared
    }

    /// The same, to be changed.
    pub(in crate::transfer) fn shared_mut(&mut self) -> &mut SharedLimiter {
        &mut self.shared
    }

    /// A request comes; its number.
    pub(in crate::transfer) fn ask(&mut self, ask: Ask) -> u64 {
        self.next += 1;
        let id = self.next;
        self.stand(id, &ask);
        self.asks.insert(id, ask);
        id
    }

    fn stand(&mut self, id: u64, ask: &Ask) {
        let class = &mut self.classes[ask.class as usize];
        if ask.is_sent {
            class.lines.entry(LineKey::of(ask)).or_default().insert(id);
        } else {
            class.probes.insert(id);
        }
    }

    fn leave(&mut self, id: u64, ask: &Ask) {
        let class = &mut self.classes[ask.class as usize];
        class.probes.remove(&id);
        let key = LineKey::of(ask);
        if let Some(line) = class.lines.get_mut(&key) {
            line.remove(&id);
            if line.is_empty() {
                class.lines.remove(&key);
            }
        }
    }

    /// A request waits no more.
    pub(in crate::transfer) fn cancel(&mut self, id: u64) {
        if let Some(ask) = self.asks.remove(&id) {
            self.leave(id, &ask);
        }
    }

    /// Jobs have become more urgent: their requests move to where they belong now.
    pub(in crate::transfer) fn reorder(&mut self, queue_of: impl Fn(u64) -> Option<RequestQueue>) {
        let moved: Vec<(u64, Ask)> = self
            .asks
            .iter()
            .filter_map(|(id, ask)| {
                let queue = queue_of(ask.ticket?)?;
                (queue != ask.queue).then(|| {
                    (
                        *id,
                        Ask {
                            queue,
                            ..ask.clone()
                        },
                    )
                })
            })
            .collect();
        for (id, ask) in moved {
            self.cancel(id);
            self.stand(id, &ask);
            self.asks.insert(id, ask);
        }
    }

    /// The next request that goes now, if there is one.
    pub(in crate::transfer) fn grant(&mut self, now: Instant) -> Option<(u64, Ask)> {
        if !self.shared.ready_in(now).is_zero() {
            return None;
        }
        self.grant_probe(now).or_else(|| self.grant_request(now))
    }

    fn grant_probe(&mut self, now: Instant) -> Option<(u64, Ask)> {
        let waiting = self.classes.iter().filter(|class| !class.probes.is_empty());
        let id = waiting
            .filter(|class| class.limiter.ready_in(false, now).is_zero())
            .find_map(|class| class.probes.first().copied())?;
        let ask = self.asks.remove(&id)?;
        self.leave(id, &ask);
        Some((id, ask))
    }

    fn grant_request(&mut self, now: Instant) -> Option<(u64, Ask)> {
        let classes = self.classes.iter();
        let heads = classes.filter_map(|class| class.first(&self.shared, now));
        let (_, id) = heads.min_by_key(|(key, id)| match key.tier {
            Tier::Naming => (key.tier, 0, *id),
            Tier::Named | Tier::Shared => (key.tier, self.order.used(&key.queue), *id),
        })?;
        let ask = self.asks.remove(&id)?;
        self.leave(id, &ask);
        let class = &mut self.classes[ask.class as usize];
        class.limiter.take(ask.is_look, now);
        self.shared.take(now);
        if !ask.is_naming {
            class.order.charge(&ask.queue);
            self.order.charge(&ask.queue);
        }
        Some((id, ask))
    }

    /// A granted request is not sent: what it took goes to others.
    pub(in crate::transfer) fn give_back(&mut self, ask: &Ask, now: Instant) {
        if !ask.is_sent {
            return;
        }
        let class = &mut self.classes[ask.class as usize];
        class.limiter.give_back(ask.is_look, now);
        self.shared.give_back(now);
        if !ask.is_naming {
            class.order.refund(&ask.queue);
            self.order.refund(&ask.queue);
        }
    }

    /// A granted request of a class that has closed before it was sent waits again, in its old place.
    pub(in crate::transfer) fn ask_again(&mut self, id: u64, ask: Ask, now: Instant) {
        self.give_back(&ask, now);
        self.stand(id, &ask);
        self.asks.insert(id, ask);
    }

    /// A request has been answered.
    pub(in crate::transfer) fn release(&mut self, class: RequestClass) {
        self.class_mut(class).release();
        self.shared.release();
    }

    /// Requests that wait for less time than their class is closed now.
    pub(in crate::transfer) fn overdue(&self, class: RequestClass, now: Instant) -> Vec<u64> {
        let closed_for = self.class(class).closed_for(now);
        self.asks
            .iter()
            .filter(|(_, ask)| ask.class == class && ask.max_wait < closed_for)
            .map(|(id, _)| *id)
            .collect()
    }

    /// When time alone lets the next request go.
    pub(in crate::transfer) fn next_time(&self, now: Instant) -> Option<Instant> {
        let classes = self.classes.iter();
        let ready_in = classes
            .filter_map(|class| class.ready_in(&self.shared, now))
            .min()?;
        Some(now + ready_in)
    }

    /// The request that has waited for longest.
    pub(in crate::transfer) fn oldest(&self) -> Option<u64> {
        self.asks.first_key_value().map(|(id, _)| *id)
    }

    /// Whether the request waits.
    pub(in crate::transfer) fn is_waiting(&self, id: u64) -> bool {
        self.asks.contains_key(&id)
    }

    /// How many requests wait although their time has come: for others to be answered.
    pub(in crate::transfer) fn runnable(&self, now: Instant) -> usize {
        self.asks
            .values()
            .filter(|ask| {
                let class_ready_in = self.class(ask.class).ready_in(ask.is_look, now);
                class_ready_in.max(self.shared.ready_in(now)).is_zero()
            })
            .count()
    }
}

#[cfg(test)]
mod tests;
