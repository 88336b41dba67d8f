//! The pure core for jobs and bodies: which of the tasks that wait get a permit now.
//!
//! - A body gets what it needs at once or nothing: the right to read from its source, the right to
//!   write to its destination, and a slot where it is large. Of a read that several destinations
//!   share, one body has the right to read for all.
//! - What is asked for by name goes first. The others share the permits by time: a queue (flow and
//!   rank) that has had fewer permit-seconds for its weight goes first, the oldest request of a
//!   queue before the younger ones.
//! - Above the limits go four jobs and bodies that are asked for by name, at each registry as far as
//!   it has room for such, and one for each registry at which nothing runs; for that one a limit
//!   that is configured, or that congestion has set, holds too.
//! - A body that was passed over for long has the next free share of each of its registries kept
//!   for it, for a short time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::Origin;
use crate::job::Rank;

/// How many permits there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Jobs that run at once.
    pub jobs: usize,
    /// Large bodies that move at once.
    pub bodies: usize,
    /// Jobs, and bodies, that are asked for by name and go above these limits.
    pub named_above: usize,
    /// A body is passed over so often before a share of its registries is kept for it.
    pub passed_over: u64,
    /// How long that share is kept.
    pub kept_for: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            jobs: 64,
            bodies: 16,
            named_above: 4,
            passed_over: 256,
            kept_for: Duration::from_secs(5),
        }
    }
}

/// What jobs are fair to each other by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::transfer) struct Flow {
    pub(super) route: Arc<str>,
    pub(super) source: Origin,
    pub(super) destination: Origin,
}

/// How many bodies one side of a registry has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transfer) struct Room {
    /// As many as may move by rule.
    pub(in crate::transfer) limit: usize,
    /// As many as may move with those that are asked for by name.
    pub(in crate::transfer) named: usize,
    /// Whether the config or congestion set the limit: then nothing else goes above it.
    pub(in crate::transfer) is_firm: bool,
}

/// A side of a registry: what is read from it, or what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::transfer) enum Side {
    Source,
    Destination,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Job,
    Body {
        /// Whether it is large.
        slot: bool,
        /// The shared read that it belongs to.
        share: Option<u64>,
    },
}

/// What was granted, to be given back with [`Pools::release`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Job {
        queue: Queue,
        above: Above,
    },
    /// The right to read, and a slot where the body is large.
    Reading {
        source: Origin,
        slot: bool,
        share: Option<u64>,
    },
    Writing {
        queue: Queue,
        above: Above,
    },
}

/// A grant: a job, or what a body needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    Job(Held),
    Body {
        reading: Option<Held>,
        writing: Held,
    },
}

/// Flow, rank.
pub(super) type Queue = (Arc<Flow>, Rank);

/// Whether a grant went above the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Above {
    No,
    Named,
    Idle,
}

#[derive(Debug)]
struct Ask {
    want: Want,
    ticket: u64,
    /// The number of grants when it came, or when a share was last kept for it.
    since: u64,
}

/// What one queue has had of a pool, and what waits in it.
#[derive(Debug)]
struct Line {
    asks: BTreeMap<u64, Ask>,
    held: u64,
    /// Weighted permit-microseconds up to `at`.
    used: u64,
    at: Instant,
}

/// How a shared read stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShareState {
    /// A body has the right to read for all.
    Held,
    /// The source has been read to its end: none is needed any more.
    Free,
}

#[derive(Debug)]
struct Kept {
    id: u64,
    flow: Arc<Flow>,
    slot: bool,
    until: Instant,
}

/// A pool of permits: the lines in front of it and what is out.
#[derive(Debug, Default)]
struct Pool {
    lines: BTreeMap<Queue, Line>,
    /// Where a new queue starts: it has no claim on the past.
    now_used: u64,
    out: usize,
    named_above: usize,
    grants: u64,
}

/// The core.
#[derive(Debug, Default)]
pub(super) struct Pools {
    settings: Settings,
    tickets: BTreeMap<u64, Queue>,
    /// Jobs by flow.
    flows: BTreeMap<Arc<Flow>, usize>,
    jobs: Pool,
    bodies: Pool,
    /// Running jobs by the side of a registry.
    running: BTreeMap<(Origin, Side), usize>,
    /// Moving bodies by the side of a registry.
    moving: BTreeMap<(Origin, Side), usize>,
    rooms: BTreeMap<(Origin, Side), Room>,
    shares: BTreeMap<u64, ShareState>,
    /// Asks by their pool and queue.
    asks: BTreeMap<u64, (bool, Queue)>,
    kept: Option<Kept>,
    next: u64,
}

impl Line {
    fn new(now_used: u64, now: Instant) -> Line {
        Line {
            asks: BTreeMap::new(),
            held: 0,
            used: now_used,
            at: now,
        }
    }

    fn used(&self, rank: Rank, now: Instant) -> u64 {
        let passed =
            u64::try_from(now.saturating_duration_since(self.at).as_micros()).unwrap_or(u64::MAX);
        self.used
            .saturating_add(passed.saturating_mul(self.held).saturating_mul(rank.cost()))
    }

    fn settle(&mut self, rank: Rank, now: Instant) {
        self.used = self.used(rank, now);
        self.at = self.at.max(now);
    }
}

/// A grant counts like a permit that is held for so many microseconds: where nothing is held for
/// long, turns are shared.
const GRANT: u64 = 1000;

impl Pool {
    fn line(&mut self, queue: &Queue, now: Instant) -> &mut Line {
        let now_used = self.now_used;
        self.lines
            .entry(queue.clone())
            .or_insert_with(|| Line::new(now_used, now))
    }

    fn ask(&mut self, id: u64, ask: Ask, queue: &Queue, now: Instant) {
        let now_used = self.now_used;
        let line = self.line(queue, now);
        if line.asks.is_empty() && line.held == 0 {
            line.settle(queue.1, now);
            line.used = line.used.max(now_used);
        }
        line.asks.insert(id, ask);
    }

    /// The queue whose turn it is, of those in which `first` finds a request that may be granted.
    fn choose<T>(
        &self,
        now: Instant,
        first: impl Fn(&Queue, &Line) -> Option<(u64, T)>,
    ) -> Option<(Queue, u64, T)> {
        let waiting = self.lines.iter().filter(|(_, line)| !line.asks.is_empty());
        let found = waiting.filter_map(|(queue, line)| {
            let (id, granted) = first(queue, line)?;
            let order = (queue.1 != Rank::Named, line.used(queue.1, now), id);
            Some((order, queue, id, granted))
        });
        let (_, queue, id, granted) = found.min_by_key(|(order, ..)| *order)?;
        Some((queue.clone(), id, granted))
    }

    fn take(&mut self, queue: &Queue, id: u64, above: Above, now: Instant) {
        self.grants += 1;
        self.named_above += usize::from(above == Above::Named);
        self.out += usize::from(above == Above::No);
        let line = self.line(queue, now);
        line.settle(queue.1, now);
        let began = line.used;
        line.used += GRANT * queue.1.cost();
        line.held += 1;
        line.asks.remove(&id);
        self.now_used = self.now_used.max(began);
    }

    fn give_back(&mut self, queue: &Queue, above: Above, now: Instant) {
        self.named_above -= usize::from(above == Above::Named);
        self.out -= usize::from(above == Above::No);
        let line = self.line(queue, now);
        line.settle(queue.1, now);
        line.held -= 1;
    }

    /// Forgets queues of a flow that has no jobs any more.
    fn forget(&mut self, flow: &Arc<Flow>) {
        for rank in Rank::ALL {
            let queue = (flow.clone(), rank);
            if self
                .lines
                .get(&queue)
                .is_some_and(|line| line.held == 0 && line.asks.is_empty())
            {
                self.lines.remove(&queue);
            }
        }
    }
}

impl Pools {
    pub(super) fn new(settings: Settings) -> Pools {
        Pools {
            settings,
            ..Pools::default()
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A job comes. Its requests are ordered by what is said of it here.
    pub(super) fn enter(&mut self, flow: Flow, rank: Rank) -> u64 {
        let ticket = self.number();
        let known = self
            .flows
            .get_key_value(&flow)
            .map(|(known, _)| known.clone());
        let flow = known.unwrap_or_else(|| Arc::new(flow));
        *self.flows.entry(flow.clone()).or_default() += 1;
        self.tickets.insert(ticket, (flow, rank));
        ticket
    }

    /// A job goes; it waits for nothing any more.
    pub(super) fn leave(&mut self, ticket: u64) {
        let Some((flow, _)) = self.tickets.remove(&ticket) else {
            return;
        };
        count_down(&mut self.flows, &flow);
        self.forget_unused(&flow);
    }

    /// The queue of a job, by how urgent it is now.
    pub(super) fn queue_of(&self, ticket: u64) -> Option<Queue> {
        self.tickets.get(&ticket).cloned()
    }

    /// Forgets what a flow has had once it has no jobs any more.
    fn forget_unused(&mut self, flow: &Arc<Flow>) {
        if !self.flows.contains_key(flow) {
            self.jobs.forget(flow);
            self.bodies.forget(flow);
        }
    }

    /// A job becomes more urgent, with all that it waits for.
    pub(super) fn raise(&mut self, ticket: u64, rank: Rank, now: Instant) {
        let Some((flow, before)) = self
            .tickets
            .get_mut(&ticket)
            .filter(|(_, before)| rank < *before)
        else {
            return;
        };
        let from = (flow.clone(), std::mem::replace(before, rank));
        let to = (from.0.clone(), rank);
        for pool in [&mut self.jobs, &mut self.bodies] {
            let moved: Vec<(u64, Ask)> = match pool.lines.get_mut(&from) {
                Some(line) => line
                    .asks
                    .extract_if(.., |_, ask| ask.ticket == ticket)
                    .collect(),
                None => continue,
            };
            for (id, ask) in moved {
                if let Some(entry) = self.asks.get_mut(&id) {
                    entry.1 = to.clone();
                }
                pool.ask(id, ask, &to, now);
            }
        }
    }

    /// Asks for a permit; the number under which it will be granted.
    pub(super) fn ask(&mut self, ticket: u64, want: Want, now: Instant) -> u64 {
        let id = self.number();
        let queue = self
            .tickets
            .get(&ticket)
            .expect("a job asks between its coming and its going")
            .clone();
        let is_body = want != Want::Job;
        let pool = if is_body {
            &mut self.bodies
        } else {
            &mut self.jobs
        };
        let since = pool.grants;
        pool.ask(
            id,
            Ask {
                want,
                ticket,
                since,
            },
            &queue,
            now,
        );
        self.asks.insert(id, (is_body, queue));
        id
    }

    /// Nothing waits for that permit any more.
    pub(super) fn cancel(&mut self, id: u64) {
        let Some((is_body, queue)) = self.asks.remove(&id) else {
            return;
        };
        let pool = if is_body {
            &mut self.bodies
        } else {
            &mut self.jobs
        };
        if let Some(line) = pool.lines.get_mut(&queue) {
            line.asks.remove(&id);
        }
        self.kept.take_if(|kept| kept.id == id);
    }

    /// The right to read a body over one more connection, with a slot, if nothing waits that could
    /// use either.
    pub(super) fn read_ahead(&mut self, source: &Origin) -> Option<Held> {
        let side = (source.clone(), Side::Source);
        let moving = self.moving.get(&side).copied().unwrap_or(0);
        let room = self.rooms.get(&side);
        let has_room = room.is_none_or(|room| moving < room.limit);
        let waits = self.bodies.lines.values().any(|line| !line.asks.is_empty());
        if waits || !has_room || self.bodies.out >= self.settings.bodies {
            return None;
        }
        *self.moving.entry(side).or_default() += 1;
        self.bodies.out += 1;
        Some(Held::Reading {
            source: source.clone(),
            slot: true,
            share: None,
        })
    }

    /// A permit is given back.
    pub(super) fn release(&mut self, held: Held, now: Instant) {
        match held {
            Held::Job { queue, above } => {
                self.jobs.give_back(&queue, above, now);
                count_down(&mut self.running, &(queue.0.source.clone(), Side::Source));
                count_down(
                    &mut self.running,
                    &(queue.0.destination.clone(), Side::Destination),
                );
                self.forget_unused(&queue.0);
            }
            Held::Reading {
                source,
                slot,
                share,
            } => {
                self.bodies.out -= usize::from(slot);
                count_down(&mut self.moving, &(source, Side::Source));
                if let Some(share) = share
                    && self.shares.get(&share) == Some(&ShareState::Held)
                {
                    self.shares.remove(&share);
                }
            }
            Held::Writing { queue, above } => {
                // The slot, if there is one, is with the right to read.
                self.bodies.out += usize::from(above == Above::No);
                self.bodies.give_back(&queue, above, now);
                count_down(
                    &mut self.moving,
                    &(queue.0.destination.clone(), Side::Destination),
                );
                self.forget_unused(&queue.0);
            }
        }
    }

    /// The registry has room for so many bodies now.
    pub(super) fn set_room(&mut self, origin: &Origin, side: Side, room: Room) {
        self.rooms.insert((origin.clone(), side), room);
    }

    /// A number for a shared read.
    pub(super) fn open_share(&mut self) -> u64 {
        self.number()
    }

    /// Whether a body of a shared read needs no right to read of its own.
    fn is_shared(&self, share: u64) -> bool {
        self.shares.contains_key(&share)
    }

    /// The source of a shared read has been read to its end.
    pub(super) fn free_share(&mut self, share: u64) {
        self.shares.insert(share, ShareState::Free);
    }

    /// A shared read is over.
    pub(super) fn close_share(&mut self, share: u64) {
        self.shares.remove(&share);
    }

    /// For which request a share is kept, and until when.
    pub(super) fn kept(&self) -> Option<(u64, Instant)> {
        self.kept.as_ref().map(|kept| (kept.id, kept.until))
    }

    /// How many tasks wait for a permit.
    pub(super) fn waiting(&self) -> usize {
        self.asks.len()
    }

    /// Whether nothing waits, nothing is out and no job is there.
    pub(super) fn is_idle(&self) -> bool {
        let nothing_out =
            |pool: &Pool| pool.out == 0 && pool.named_above == 0 && pool.lines.is_empty();
        let nothing_runs = self.running.is_empty() && self.moving.is_empty();
        nothing_out(&self.jobs)
            && nothing_out(&self.bodies)
            && nothing_runs
            && self.tickets.is_empty()
            && self.kept.is_none()
    }

    /// The next grant, if there is one.
    pub(super) fn grant(&mut self, now: Instant) -> Option<(u64, Grant)> {
        self.grant_job(now).or_else(|| self.grant_body(now))
    }

    fn grant_job(&mut self, now: Instant) -> Option<(u64, Grant)> {
        let (queue, id, above) = self.jobs.choose(now, |queue, line| {
            let (id, _) = line.asks.first_key_value()?;
            Some((*id, self.may_run(queue)?))
        })?;
        self.jobs.take(&queue, id, above, now);
        self.asks.remove(&id);
        *self
            .running
            .entry((queue.0.source.clone(), Side::Source))
            .or_default() += 1;
        *self
            .running
            .entry((queue.0.destination.clone(), Side::Destination))
            .or_default() += 1;
        Some((id, Grant::Job(Held::Job { queue, above })))
    }

    /// Whether one more job of that queue may run, and how.
    fn may_run(&self, queue: &Queue) -> Option<Above> {
        if self.jobs.out < self.settings.jobs {
            return Some(Above::No);
        }
        self.may_go_above(&self.jobs, &self.running, queue)
    }

    fn may_go_above(
        &self,
        pool: &Pool,
        busy: &BTreeMap<(Origin, Side), usize>,
        (flow, rank): &Queue,
    ) -> Option<Above> {
        let is_idle = |origin: &Origin, side| !busy.contains_key(&(origin.clone(), side));
        if is_idle(&flow.source, Side::Source) || is_idle(&flow.destination, Side::Destination) {
            return Some(Above::Idle);
        }
        (*rank == Rank::Named && pool.named_above < self.settings.named_above)
            .then_some(Above::Named)
    }

    fn grant_body(&mut self, now: Instant) -> Option<(u64, Grant)> {
        self.keep_for_the_passed_over(now);
        let (queue, id, (reads, above)) = self
            .bodies
            .choose(now, |queue, line| self.first_body(queue, line))?;
        let want = self.bodies.lines[&queue].asks[&id].want;
        let Want::Body { slot, share } = want else {
            unreachable!("jobs wait in another pool")
        };
        self.bodies.take(&queue, id, above, now);
        // Counted with the right to read.
        self.bodies.out -= usize::from(above == Above::No);
        self.asks.remove(&id);
        self.kept.take_if(|kept| kept.id == id);
        let flow = &queue.0;
        *self
            .moving
            .entry((flow.destination.clone(), Side::Destination))
            .or_default() += 1;
        let reading = reads.then(|| {
            *self
                .moving
                .entry((flow.source.clone(), Side::Source))
                .or_default() += 1;
            let slot = slot && above == Above::No;
            self.bodies.out += usize::from(slot);
            if let Some(share) = share {
                self.shares.insert(share, ShareState::Held);
            }
            Held::Reading {
                source: flow.source.clone(),
                slot,
                share,
            }
        });
        Some((
            id,
            Grant::Body {
                reading,
                writing: Held::Writing { queue, above },
            },
        ))
    }

    /// The first body in the line that may move now: whether it takes the right to read, and how.
    fn first_body(&self, queue: &Queue, line: &Line) -> Option<(u64, (bool, Above))> {
        // Most often the destination has no room at all: then no request has to be looked at.
        self.fits(queue, Side::Destination, None)?;
        let above = self.may_go_above(&self.bodies, &self.moving, queue);
        line.asks.iter().find_map(|(id, ask)| {
            let Want::Body { slot, share } = ask.want else {
                return None;
            };
            let reads = !share.is_some_and(|share| self.is_shared(share));
            let kept = self.kept.as_ref().filter(|kept| kept.id != *id);
            let writes_by_rule = self.fits(queue, Side::Destination, kept)?;
            let reads_by_rule = if reads {
                self.fits(queue, Side::Source, kept)?
            } else {
                true
            };
            let slots = self
                .settings
                .bodies
                .saturating_sub(usize::from(kept.is_some_and(|kept| kept.slot)));
            let has_slot = !reads || !slot || self.bodies.out < slots;
            let is_by_rule = writes_by_rule && reads_by_rule && has_slot;
            let how = if is_by_rule { Some(Above::No) } else { above };
            how.map(|above| (*id, (reads, above)))
        })
    }

    /// Whether one more body of a queue fits into a side of a registry: within its limit, above it,
    /// or not at all.
    fn fits(&self, (flow, rank): &Queue, side: Side, kept: Option<&Kept>) -> Option<bool> {
        let origin = match side {
            Side::Source => &flow.source,
            Side::Destination => &flow.destination,
        };
        let moving = self
            .moving
            .get(&(origin.clone(), side))
            .copied()
            .unwrap_or(0);
        let room = self
            .rooms
            .get(&(origin.clone(), side))
            .copied()
            .unwrap_or(Room {
                limit: usize::MAX,
                named: usize::MAX,
                is_firm: false,
            });
        let is_kept = kept.is_some_and(|kept| match side {
            Side::Source => kept.flow.source == *origin,
            Side::Destination => kept.flow.destination == *origin,
        });
        let limit = room.limit.saturating_sub(usize::from(is_kept));
        if moving < limit {
            return Some(true);
        }
        let has_room_above = !room.is_firm || (*rank == Rank::Named && moving < room.named);
        (has_room_above && !is_kept).then_some(false)
    }

    /// The body that was passed over for longest has a share kept for it, for a while.
    fn keep_for_the_passed_over(&mut self, now: Instant) {
        self.kept.take_if(|kept| kept.until <= now);
        let grants = self.bodies.grants;
        // Rarely looked for: it takes a look at all.
        if self.kept.is_some() || !grants.is_multiple_of((self.settings.passed_over / 4).max(1)) {
            return;
        }
        let lines = self.bodies.lines.iter_mut();
        let asks = lines
            .flat_map(|(queue, line)| line.asks.iter_mut().map(move |(id, ask)| (*id, queue, ask)));
        let old = asks.filter(|(_, _, ask)| grants - ask.since >= self.settings.passed_over);
        if let Some((id, queue, ask)) = old.min_by_key(|(id, ..)| *id) {
            ask.since = grants;
            let slot = matches!(ask.want, Want::Body { slot: true, .. });
            self.kept = Some(Kept {
                id,
                flow: queue.0.clone(),
                slot,
                until: now + self.settings.kept_for,
            });
        }
    }
}

fn count_down<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
