//! The queue of looks: level-triggered, one entry for each source repository of a route.
//!
//! A key is idle, waiting, running, or running and dirty: a request while it waits is merged, and
//! one while it runs makes it run once more. A hundred pings cost one extra look. Looks of one
//! repository do not overlap, with one exception: a request by tag name runs beside a look at
//! everything. Requests that expect different digests are not merged: each has its own look, in
//! order.
//!
//! Order: by name first, then event, new push and backfill in proportions of 8 to 4 to 1 (stride
//! scheduling), each fair between registry pairs: the registries that routes connect. No pair takes
//! all capacity while there are others, so a registry that does not answer delays only its own
//! routes. Within a pair: first come, first served. Every step costs the logarithm of the waiting
//! entries, and a visit to each pair.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::fault::{Class, Fault};
use crate::job::{Cause, Look, Totals, Trouble};
use crate::look::LookRequest;
use crate::oci::RepositoryName;

/// Most single tags of one entry; beyond that it becomes a look at all tags.
const TAGS: usize = 256;
/// Most waiting looks of one repository that expect different digests.
const APART: usize = 64;
/// The highest rank of requests by name.
pub const BY_NAME: u8 = 1;
/// The rank of requests that name tags: they may run beside a look at everything.
const NAMED: u8 = 0;

/// Receives the result of a look.
pub type LookSender = mpsc::UnboundedSender<Arc<Look>>;

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

/// A look that waits.
#[derive(Debug)]
pub struct Waiting {
    /// The request.
    pub request: LookRequest,
    /// The receivers of its result.
    pub senders: Vec<LookSender>,
    /// The earliest start.
    pub not_before: Instant,
    /// When it was added.
    pub since: Instant,
    /// Whether it runs beside a look at everything.
    pub is_beside: bool,
    rank: u8,
}

/// Delays before another look at a repository in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryDelays {
    backoff: Backoff,
    /// Whether they also delay polls. Requests and events are never delayed.
    holds_polls: bool,
}

impl RetryDelays {
    /// Single tags are in trouble: the other tags must not wait long for their poll.
    pub const TAGS: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(15), Duration::from_secs(4 * 60)),
        holds_polls: true,
    };
    /// The repository could not be looked at.
    pub const WHOLE: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(15), Duration::from_secs(15 * 60)),
        holds_polls: true,
    };
    /// A registry refuses the credentials, which rarely passes by itself.
    pub const SLOW: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(60), Duration::from_secs(15 * 60)),
        holds_polls: true,
    };
    /// The repository does not exist yet: the next poll finds the first push.
    pub const ABSENT: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(15), Duration::from_secs(15 * 60)),
        holds_polls: false,
    };

    /// The delay after this number of failures, at least one; doubles each time.
    fn wait(self, failures: u32) -> Duration {
        self.backoff.wait(failures)
    }
}

#[derive(Debug, Default)]
struct Entry {
    waiting: Vec<Waiting>,
    running: Option<Running>,
    beside: Option<Running>,
    failures: u32,
    /// Polls are delayed until then.
    held: Option<Instant>,
    position: Option<Position>,
}

/// A running look.
#[derive(Clone, Copy, Debug)]
struct Running {
    /// Whether it covers all tags.
    is_wide: bool,
    pair: usize,
}

/// The position of an entry in the indexes of the queue.
#[derive(Clone, Copy, Debug)]
enum Position {
    /// It is due, but it runs.
    Dirty { due: Instant },
    /// It is due.
    Ready {
        due: Instant,
        stride_key: StrideKey,
        since: Instant,
    },
    /// It is due later.
    Later { at: Instant },
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

/// The unit of stride scheduling: a rank within a registry pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StrideKey {
    rank: u8,
    pair: usize,
}

/// The registry pairs, by number, and their strides. Numbers outlive a config.
#[derive(Debug, Default)]
struct RegistryPairs {
    numbers: BTreeMap<String, usize>,
    of_routes: BTreeMap<Arc<str>, usize>,
    /// The number of pairs in the config.
    count: usize,
    /// Running looks of each.
    running: Vec<usize>,
    /// The pass value of each key: the lowest goes first.
    passes: BTreeMap<StrideKey, u64>,
    /// The pass value of the last start.
    pass: u64,
}

/// How many looks may run.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// In total.
    pub all: usize,
    /// The part of `all` that is reserved for looks that are asked for by name.
    pub by_name: usize,
}

impl Capacity {
    /// Most running looks of one pair, if there are others.
    fn per_pair(self, rank: u8) -> usize {
        let others = self.all.saturating_sub(self.by_name);
        if rank <= BY_NAME {
            others.max(1)
        } else {
            others.div_ceil(2).max(1)
        }
    }

    /// Most running looks of all pairs.
    fn in_total(self, rank: u8) -> usize {
        if rank <= BY_NAME {
            self.all
        } else {
            self.all.saturating_sub(self.by_name)
        }
    }
}

impl Queue {
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
    pub fn add_at(&mut self, key: LookKey, request: LookRequest, at: Instant, now: Instant) {
        self.entries
            .entry(key.clone())
            .or_default()
            .add(request, None, at, now);
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

    fn next_key(&self, capacity: Capacity) -> Option<StrideKey> {
        let may_start = |stride_key: &&StrideKey| {
            let per_pair = self
                .pairs
                .running
                .get(stride_key.pair)
                .copied()
                .unwrap_or(0);
            let has_place = self.pairs.count <= 1 || per_pair < capacity.per_pair(stride_key.rank);
            has_place && self.running < capacity.in_total(stride_key.rank)
        };
        let order = |stride_key: &&StrideKey| {
            let since = self
                .ready
                .get(stride_key)
                .and_then(|ready| ready.first())
                .map(|(since, _)| *since);
            // Requests by name are not subject to strides.
            let pass = if stride_key.rank <= BY_NAME {
                0
            } else {
                self.pairs.pass_of(stride_key)
            };
            (stride_key.rank > BY_NAME, pass, stride_key.rank, since)
        };
        self.ready
            .keys()
            .filter(may_start)
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

impl RegistryPairs {
    fn of(&self, route: &str) -> usize {
        self.of_routes.get(route).copied().unwrap_or(0)
    }

    fn pass_of(&self, stride_key: &StrideKey) -> u64 {
        self.passes.get(stride_key).copied().unwrap_or(self.pass)
    }

    /// A key that was empty gets an entry: its unused share is lost.
    fn begin(&mut self, stride_key: StrideKey) {
        let pass = self.pass_of(&stride_key).max(self.pass);
        self.passes.insert(stride_key, pass);
    }

    fn start(&mut self, stride_key: StrideKey) {
        if stride_key.rank > BY_NAME {
            self.pass = self.pass_of(&stride_key);
            self.passes
                .insert(stride_key, self.pass + stride(stride_key.rank));
        }
        if self.running.len() <= stride_key.pair {
            self.running.resize(stride_key.pair + 1, 0);
        }
        self.running[stride_key.pair] += 1;
    }

    fn end(&mut self, pair: usize) {
        if let Some(running) = self.running.get_mut(pair) {
            *running = running.saturating_sub(1);
        }
    }
}

/// The stride of a start: events start eight times, new pushes four times as often as a backfill.
fn stride(rank: u8) -> u64 {
    match rank {
        0..=2 => 1,
        3 => 2,
        _ => 8,
    }
}

impl Entry {
    fn add(
        &mut self,
        request: LookRequest,
        senders: Option<LookSender>,
        not_before: Instant,
        now: Instant,
    ) {
        let rank = rank(&request);
        // A request by name neither waits for a look at everything nor becomes one.
        let is_named = rank == NAMED;
        let fits = |waiting: &&mut Waiting| {
            waiting.request.digest == request.digest && waiting.is_named() == is_named
        };
        if let Some(waiting) = self.waiting.iter_mut().find(fits) {
            return waiting.merge(request, rank, senders, not_before);
        }
        if self.waiting.len() >= APART {
            // Requests without an expected digest always merge, so only a request with one gets
            // here.
            let text = "too many different digests are expected of this repository at once; ask again in a moment";
            senders.into_iter().for_each(|senders| {
                drop(senders.send(Arc::new(fruitless(&Fault::retryable(text)))))
            });
            return;
        }
        let senders = senders.into_iter().collect();
        self.waiting.push(Waiting {
            request,
            senders,
            not_before,
            since: now,
            is_beside: false,
            rank,
        });
    }

    fn is_idle(&self) -> bool {
        self.running.is_none()
            && self.beside.is_none()
            && self.waiting.is_empty()
            && self.failures == 0
    }

    /// Whether a look may start now or beside the running one.
    fn may_start(&self, waiting: &Waiting) -> bool {
        match (self.running, self.beside) {
            (None, None) => true,
            (Some(running), None) => running.is_wide && waiting.is_named(),
            (_, Some(_)) => false,
        }
    }

    /// The waiting look to start first.
    fn best(&self, now: Instant) -> Option<usize> {
        let due = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, waiting)| waiting.not_before <= now && self.may_start(waiting));
        due.min_by_key(|(_, waiting)| (waiting.rank, waiting.since))
            .map(|(at, _)| at)
    }

    fn position_at(&self, now: Instant, pair: usize) -> Option<Position> {
        let due = self
            .waiting
            .iter()
            .filter(|waiting| waiting.not_before <= now);
        let oldest = due
            .map(|waiting| waiting.since.max(waiting.not_before))
            .min();
        let is_running = self.running.is_some() || self.beside.is_some();
        match (oldest, self.best(now)) {
            (Some(due), Some(best)) => {
                let best = &self.waiting[best];
                Some(Position::Ready {
                    due,
                    stride_key: StrideKey {
                        rank: best.rank,
                        pair,
                    },
                    since: best.since,
                })
            }
            (Some(due), None) => Some(Position::Dirty { due }),
            (None, _) if is_running => None,
            (None, _) => self
                .waiting
                .iter()
                .map(|waiting| Position::Later {
                    at: waiting.not_before,
                })
                .min_by_key(Position::at),
        }
    }
}

impl Position {
    fn at(&self) -> Instant {
        match self {
            Position::Dirty { due } | Position::Ready { due, .. } => *due,
            Position::Later { at } => *at,
        }
    }
}

impl Waiting {
    /// Whether it names its tags.
    fn is_named(&self) -> bool {
        self.rank == NAMED && !self.request.tags.is_empty()
    }

    fn merge(
        &mut self,
        request: LookRequest,
        rank: u8,
        senders: Option<LookSender>,
        not_before: Instant,
    ) {
        if self.senders.len() == self.senders.capacity() {
            self.senders.retain(|asker| !asker.is_closed());
        }
        self.senders.extend(senders);
        self.not_before = self.not_before.min(not_before);
        self.request.tags = match (std::mem::take(&mut self.request.tags), request.tags) {
            (ours, theirs) if ours.is_empty() || theirs.is_empty() => Vec::new(),
            (mut ours, theirs) => {
                ours.extend(
                    theirs
                        .into_iter()
                        .filter(|tag| !ours.contains(tag))
                        .collect::<Vec<_>>(),
                );
                if ours.len() > TAGS { Vec::new() } else { ours }
            }
        };
        self.request.options.all |= request.options.all;
        self.request.options.waits |= request.options.waits;
        // The stricter cause wins, whichever came first.
        let (ours, theirs) = (
            self.request.cause.trusts_hints(),
            request.cause.trusts_hints(),
        );
        if (ours && !theirs) || (ours == theirs && rank < self.rank) {
            (self.request.cause, self.request.actor, self.request.run_id) =
                (request.cause, request.actor, request.run_id);
        }
        self.rank = self.rank.min(rank);
    }

    /// Reports to all receivers that the look will not take place.
    pub fn interrupt(self) {
        let look = Arc::new(interrupted());
        for asker in self.senders {
            // The caller may be gone.
            let _ = asker.send(look.clone());
        }
    }
}

/// A look that could not be, because of this.
pub fn fruitless(fault: &Fault) -> Look {
    Look {
        trouble: vec![Trouble::from(fault)],
        ..Look::default()
    }
}

/// A look that will not be: the daemon stops, or the config no longer has the route.
pub fn interrupted() -> Look {
    let totals = Totals {
        interrupted: 1,
        ..Totals::default()
    };
    let text =
        "interrupted before its turn: the daemon stops, or the config no longer has the route"
            .into();
    Look {
        totals,
        trouble: vec![Trouble {
            class: Class::Cancelled.name().into(),
            text,
        }],
        ..Look::default()
    }
}

/// Whether the request is the daemon's own.
fn is_poll(request: &LookRequest) -> bool {
    matches!(request.cause, Cause::Poll | Cause::Verify)
}

/// The rank of a request; lower goes first.
fn rank(request: &LookRequest) -> u8 {
    match (request.cause, request.tags.is_empty()) {
        (Cause::Cli | Cause::Ping | Cause::Signal, false) => 0,
        (Cause::Cli | Cause::Ping | Cause::Signal, true) => 1,
        (Cause::Webhook | Cause::Queue, _) => 2,
        (Cause::Poll, _) => 3,
        (Cause::Start | Cause::Verify, _) => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Actor;
    use crate::look::PassOptions;

    fn key(repository: &str) -> LookKey {
        LookKey {
            route: "r".into(),
            repository: repository.parse().unwrap(),
            dry_run: false,
        }
    }

    fn ask(cause: Cause, tags: &[&str]) -> LookRequest {
        let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        LookRequest {
            tags,
            digest: None,
            cause,
            actor: Actor::daemon(),
            options: PassOptions::default(),
            run_id: String::new(),
        }
    }

    const ANY: Capacity = Capacity {
        all: 100,
        by_name: 0,
    };
    const ONLY_BY_NAME: Capacity = Capacity {
        all: 100,
        by_name: 100,
    };

    #[tokio::test(start_paused = true)]
    async fn a_hundred_pings_cost_one_extra_look() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
        let (running, _) = queue.start(now, ANY).unwrap();
        let (sender, _receiver) = mpsc::unbounded_channel();
        for _ in 0..100 {
            queue.add(key("a"), ask(Cause::Ping, &[]), Some(sender.clone()), now);
        }
        assert!(
            queue.start(now, ANY).is_none(),
            "looks of one repository never overlap"
        );
        assert_eq!(queue.counts(), (1, 1, Some(now)));
        queue.settled(&running, false, true, now);
        let (again, waiting) = queue.start(now, ANY).unwrap();
        assert_eq!(waiting.senders.len(), 100);
        queue.settled(&again, false, true, now);
        assert!(queue.start(now, ANY).is_none());
        assert!(
            queue.entries.is_empty() && queue.due.is_empty(),
            "an idle key costs nothing"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_narrow_question_is_answered_by_a_wide_look_unless_it_was_asked_by_name() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(key("a"), ask(Cause::Webhook, &["v1"]), None, now);
        queue.add(key("a"), ask(Cause::Webhook, &["v2", "v1"]), None, now);
        assert_eq!(queue.entries[&key("a")].waiting[0].request.tags.len(), 2);
        queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
        queue.add(key("a"), ask(Cause::Ping, &["v3"]), None, now);
        let (running, waiting) = queue.start(now, ANY).unwrap();
        assert_eq!(
            (waiting.request.cause, waiting.request.tags),
            (Cause::Ping, vec!["v3".parse().unwrap()])
        );
        queue.settled(&running, false, true, now);
        let (_, waiting) = queue.start(now, ANY).unwrap();
        assert!(waiting.request.tags.is_empty());
        assert_eq!(
            waiting.request.cause,
            Cause::Webhook,
            "it is for what asked first for more than a poll"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_trusts_hints_does_not_weaken_what_does_not() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
        queue.add(key("a"), ask(Cause::Verify, &[]), None, now);
        assert_eq!(
            queue.start(now, ANY).unwrap().1.request.cause,
            Cause::Verify
        );
        queue.add(key("b"), ask(Cause::Verify, &[]), None, now);
        queue.add(key("b"), ask(Cause::Poll, &[]), None, now);
        assert!(
            !queue
                .start(now, ANY)
                .unwrap()
                .1
                .request
                .cause
                .trusts_hints()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn order_is_by_who_asks_then_by_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(key("backfill"), ask(Cause::Start, &[]), None, now);
        queue.add(key("poll"), ask(Cause::Poll, &[]), None, now);
        queue.add(
            key("named"),
            ask(Cause::Cli, &["v1"]),
            None,
            now + Duration::from_secs(1),
        );
        let later = now + Duration::from_secs(2);
        assert!(
            queue
                .start(later, ONLY_BY_NAME)
                .is_some_and(|(key, _)| key.repository.as_str() == "named")
        );
        assert!(
            queue.start(later, ONLY_BY_NAME).is_none(),
            "the last places are kept for looks that are asked for by name"
        );
        let order: Vec<_> = std::iter::from_fn(|| queue.start(later, ANY))
            .map(|(key, _)| key.repository.to_string())
            .collect();
        assert_eq!(order, ["poll", "backfill"]);
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_looked_at_again_ever_more_slowly() {
        let waits = |pace: RetryDelays| {
            let (mut queue, mut now, mut waits) = (Queue::default(), Instant::now(), Vec::new());
            queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
            for _ in 0..8 {
                let (running, _) = queue.start(now, ANY).unwrap();
                queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
                queue.add_later(running.clone(), ask(Cause::Poll, &[]), pace, now);
                queue.settled(&running, false, false, now);
                queue.add(
                    key("a"),
                    ask(Cause::Poll, &[]),
                    None,
                    now + Duration::from_secs(1),
                );
                let next = queue.next().unwrap();
                waits.push((next - now).as_secs());
                now = next;
            }
            waits
        };
        assert_eq!(
            waits(RetryDelays::WHOLE),
            [15, 30, 60, 120, 240, 480, 900, 900]
        );
        assert_eq!(
            waits(RetryDelays::TAGS),
            [15, 30, 60, 120, 240, 240, 240, 240]
        );
        assert_eq!(
            waits(RetryDelays::SLOW),
            [60, 120, 240, 480, 900, 900, 900, 900]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn people_and_events_do_not_wait_for_trouble_to_pass() {
        for cause in [
            Cause::Ping,
            Cause::Cli,
            Cause::Signal,
            Cause::Webhook,
            Cause::Queue,
            Cause::Start,
        ] {
            let (mut queue, now) = (Queue::default(), Instant::now());
            queue.add_later(key("a"), ask(Cause::Poll, &[]), RetryDelays::WHOLE, now);
            queue.add(key("a"), ask(Cause::Verify, &[]), None, now);
            assert!(queue.start(now, ANY).is_none(), "a poll waits");
            queue.add(key("a"), ask(cause, &[]), None, now);
            let (running, _) = queue.start(now, ANY).expect("asked for");
            queue.settled(&running, false, true, now);
            assert!(queue.entries.is_empty(), "{cause}: one look answers both");
        }
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add_later(key("a"), ask(Cause::Poll, &[]), RetryDelays::ABSENT, now);
        queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
        assert!(
            queue.start(now, ANY).is_some(),
            "a first push is found by the next poll"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn expectations_of_different_digests_stay_apart() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let expecting = |text: &str| LookRequest {
            digest: Some(crate::oci::Digest::sha256(text.as_bytes())),
            ..ask(Cause::Ping, &["v1"])
        };
        for text in ["one", "other", "one"] {
            queue.add(key("a"), expecting(text), None, now);
        }
        queue.add(key("a"), ask(Cause::Ping, &["v1"]), None, now);
        let mut asked = Vec::new();
        while let Some((running, waiting)) = queue.start(now, ANY) {
            assert!(
                queue.start(now, ANY).is_none(),
                "looks of one repository never overlap"
            );
            asked.push(waiting.request.digest);
            queue.settled(&running, false, true, now);
        }
        assert_eq!(
            asked,
            [expecting("one").digest, expecting("other").digest, None]
        );

        let (sender, mut told) = mpsc::unbounded_channel();
        for number in 0..=APART {
            queue.add(
                key("a"),
                expecting(&number.to_string()),
                Some(sender.clone()),
                now,
            );
        }
        assert_eq!(
            told.try_recv().unwrap().trouble[0].class,
            "retryable",
            "too many at once"
        );
        assert!(told.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_by_name_runs_beside_a_look_at_everything() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(key("a"), ask(Cause::Start, &[]), None, now);
        let (backfill, waiting) = queue.start(now, ANY).unwrap();
        assert!(!waiting.is_beside);
        queue.add(key("a"), ask(Cause::Poll, &[]), None, now);
        assert!(queue.start(now, ANY).is_none(), "a poll waits");
        let expected = Some(crate::oci::Digest::sha256(b"hotfix"));
        queue.add(
            key("a"),
            LookRequest {
                digest: expected,
                ..ask(Cause::Ping, &["v2"])
            },
            None,
            now,
        );
        let (hotfix, waiting) = queue
            .start(now, ANY)
            .expect("a hotfix does not wait for the backfill");
        assert!(waiting.is_beside && waiting.request.tags == ["v2".parse().unwrap()]);
        queue.add(
            key("a"),
            LookRequest {
                digest: Some(crate::oci::Digest::sha256(b"x")),
                ..ask(Cause::Ping, &["v3"])
            },
            None,
            now,
        );
        assert!(
            queue.start(now, ANY).is_none(),
            "one beside another at the most"
        );
        queue.settled(&backfill, false, true, now);
        assert!(
            queue.start(now, ANY).is_none(),
            "nothing begins beside what is asked for by name"
        );
        queue.settled(&hotfix, true, true, now);
        let named: Vec<_> = std::iter::from_fn(|| {
            let (running, waiting) = queue.start(now, ANY)?;
            assert!(!waiting.is_beside);
            queue.settled(&running, false, true, now);
            Some(waiting.request.tags.len())
        })
        .collect();
        assert_eq!(named, [1, 0], "then v3, then the poll");
        assert!(queue.entries.is_empty() && queue.ready.is_empty() && queue.running == 0);
    }

    fn with_pairs(pairs: &[&str]) -> Queue {
        let mut queue = Queue::default();
        let names: Vec<Arc<str>> = pairs.iter().map(|pair| Arc::from(*pair)).collect();
        queue.set_registry_pairs(names.iter().map(|name| (name, name.to_string())));
        queue
    }

    fn in_lane(pair: &str, repository: usize) -> LookKey {
        LookKey {
            route: pair.into(),
            repository: format!("r{repository}").parse().unwrap(),
            dry_run: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_does_not_answer_leaves_places_to_the_others() {
        let (mut queue, now) = (with_pairs(&["sick", "well"]), Instant::now());
        let capacity = Capacity {
            all: 16,
            by_name: 4,
        };
        for number in 0..100 {
            queue.add(
                in_lane("sick", number),
                ask(Cause::Ping, &["v1"]),
                None,
                now,
            );
            queue.add(
                in_lane("sick", 100 + number),
                ask(Cause::Start, &[]),
                None,
                now,
            );
        }
        let started = std::iter::from_fn(|| queue.start(now, capacity)).count();
        assert_eq!(started, 12, "not even by name does one pair take all");
        queue.add(in_lane("well", 0), ask(Cause::Ping, &["v1"]), None, now);
        assert!(
            queue
                .start(now, capacity)
                .is_some_and(|(key, _)| &*key.route == "well")
        );

        let (mut queue, now) = (with_pairs(&["sick", "well"]), Instant::now());
        (0..100).for_each(|number| {
            queue.add(in_lane("sick", number), ask(Cause::Start, &[]), None, now)
        });
        assert_eq!(std::iter::from_fn(|| queue.start(now, capacity)).count(), 6);
        queue.add(in_lane("well", 0), ask(Cause::Start, &[]), None, now);
        assert!(
            queue
                .start(now, capacity)
                .is_some_and(|(key, _)| &*key.route == "well")
        );

        let (mut queue, now) = (with_pairs(&["only"]), Instant::now());
        (0..100).for_each(|number| {
            queue.add(in_lane("only", number), ask(Cause::Start, &[]), None, now)
        });
        assert_eq!(
            std::iter::from_fn(|| queue.start(now, capacity)).count(),
            12,
            "alone it has all but the reserved ones"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn events_new_pushes_and_backfills_take_turns() {
        let (mut queue, now) = (with_pairs(&["one"]), Instant::now());
        for number in 0..100 {
            for (position, cause) in [(0, Cause::Webhook), (100, Cause::Poll), (200, Cause::Start)]
            {
                queue.add(
                    in_lane("one", position + number),
                    ask(cause, &[]),
                    None,
                    now,
                );
            }
        }
        let capacity = Capacity {
            all: 1000,
            by_name: 0,
        };
        let causes: Vec<Cause> = std::iter::from_fn(|| queue.start(now, capacity))
            .map(|(_, waiting)| waiting.request.cause)
            .collect();
        let of = |cause: Cause| causes[..65].iter().filter(|other| **other == cause).count();
        assert_eq!(
            (of(Cause::Webhook), of(Cause::Poll), of(Cause::Start)),
            (40, 20, 5)
        );
        assert_eq!(causes.len(), 300);
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_take_turns_however_much_one_of_them_asks() {
        let (mut queue, now) = (with_pairs(&["busy", "quiet"]), Instant::now());
        (0..50).for_each(|number| {
            queue.add(in_lane("busy", number), ask(Cause::Poll, &[]), None, now)
        });
        for _ in 0..5 {
            queue.start(now, ANY);
        }
        (0..5).for_each(|number| {
            queue.add(in_lane("quiet", number), ask(Cause::Poll, &[]), None, now)
        });
        let next: Vec<_> = (0..10)
            .filter_map(|_| queue.start(now, ANY))
            .map(|(key, _)| key.route.to_string())
            .collect();
        assert_eq!(
            next.iter().filter(|route| *route == "quiet").count(),
            5,
            "{next:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_is_told_as_interrupted() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let (sender, mut told) = mpsc::unbounded_channel();
        queue.add(key("a"), ask(Cause::Ping, &[]), Some(sender), now);
        queue.retain(|_| false, now);
        assert_eq!(told.try_recv().unwrap().totals.interrupted, 1);
        assert!(queue.entries.is_empty() && queue.ready.is_empty() && queue.due.is_empty());
    }
}
