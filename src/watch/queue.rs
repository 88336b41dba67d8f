//! The queue of looks: level-triggered, one entry for each source repository of a route.
//!
//! A key is idle, waiting, running, or running and dirty: asking again while it waits changes nothing but who is told, and
//! asking while it runs makes it run once more. A hundred pings cost one extra look. Looks of one repository never overlap.
//! Asks that expect different digests are not merged: each has a look of its own, in order.
//! Order: asked for by name, event, new push, backfill; then first come, first served.
//! Every step costs the logarithm of what waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::look::Ask;
use crate::fault::{Class, Fault};
use crate::job::{Cause, Look, Totals, Trouble};
use crate::oci::RepositoryName;

/// Single tags that one entry may be about; more, and it is about all.
const TAGS: usize = 256;
/// Looks of one repository that may wait because their askers expect different digests.
const APART: usize = 64;
/// Those who asked by name have at most this rank.
pub const BY_NAME: u8 = 1;

/// Who is told what came of a look.
pub type Tell = mpsc::UnboundedSender<Arc<Look>>;

/// Names an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LookKey {
    /// The route.
    pub route: Arc<str>,
    /// The source repository.
    pub repository: RepositoryName,
    /// Dry runs wait on their own: they must not turn a real look into a plan.
    pub dry_run: bool,
}

/// A look that waits for its turn.
#[derive(Debug)]
pub struct Waiting {
    /// What is asked.
    pub ask: Ask,
    /// Who is told what came of it.
    pub tell: Vec<Tell>,
    /// Not before.
    pub not_before: Instant,
    /// Since when it waits.
    pub since: Instant,
    rank: u8,
}

/// How soon a repository in trouble is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    first: Duration,
    longest: Duration,
    /// Whether polls wait as well. People and events never do.
    holds_polls: bool,
}

impl Pace {
    /// Single tags are in trouble: the others must not wait long for their poll.
    pub const TAGS: Pace = Pace { first: Duration::from_secs(15), longest: Duration::from_secs(4 * 60), holds_polls: true };
    /// The repository could not be looked at.
    pub const WHOLE: Pace = Pace { first: Duration::from_secs(15), longest: Duration::from_secs(15 * 60), holds_polls: true };
    /// A registry does not accept us: that seldom passes by itself.
    pub const SLOW: Pace = Pace { first: Duration::from_secs(60), longest: Duration::from_secs(15 * 60), holds_polls: true };
    /// Nothing is there yet: what is pushed first is found by the next poll.
    pub const ABSENT: Pace = Pace { first: Duration::from_secs(15), longest: Duration::from_secs(15 * 60), holds_polls: false };

    /// The wait after so many failures, one at least; doubles each time.
    fn wait(self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << (failures.max(1) - 1).min(10)).min(self.longest)
    }
}

#[derive(Debug, Default)]
struct Entry {
    waiting: Vec<Waiting>,
    running: bool,
    failures: u32,
    /// Polls wait until then.
    held: Option<Instant>,
    place: Option<Place>,
}

/// Where an entry stands in the orders of the queue.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Its time has come, but it runs.
    Dirty { due: Instant },
    /// Its time has come.
    Ready { due: Instant, rank: u8, since: Instant },
    /// Its time will come.
    Later { at: Instant },
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    entries: BTreeMap<LookKey, Entry>,
    /// What may start, best first.
    ready: BTreeSet<(u8, Instant, LookKey)>,
    /// Whose time will come, next first.
    later: BTreeSet<(Instant, LookKey)>,
    /// Whose time has come, whether it runs or not; oldest first.
    due: BTreeSet<(Instant, LookKey)>,
    running: usize,
}

impl Queue {
    /// Asks for a look; merges with what waits already.
    pub fn ask(&mut self, key: LookKey, ask: Ask, tell: Option<Tell>, now: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        let not_before = if is_poll(&ask) { entry.held.map_or(now, |held| held.max(now)) } else { now };
        entry.ask(ask, tell, not_before, now);
        self.place(&key, now);
    }

    /// Asks for another look later, because of trouble that may pass; the wait doubles while trouble lasts.
    pub fn ask_later(&mut self, key: LookKey, ask: Ask, pace: Pace, now: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        entry.failures += 1;
        let until = now + pace.wait(entry.failures);
        if pace.holds_polls {
            entry.held = Some(until);
            for waiting in entry.waiting.iter_mut().filter(|waiting| is_poll(&waiting.ask)) {
                waiting.not_before = waiting.not_before.max(until);
            }
        }
        entry.ask(ask, None, until, now);
        self.place(&key, now);
    }

    /// The next look whose time has come and whose rank is at most `rank`, in order; it runs from now on.
    pub fn start(&mut self, now: Instant, rank: u8) -> Option<(LookKey, Waiting)> {
        self.advance(now);
        let key = self.ready.first().filter(|(first, ..)| *first <= rank)?.2.clone();
        let entry = self.entries.get_mut(&key)?;
        let waiting = entry.waiting.remove(entry.best(now)?);
        entry.running = true;
        self.running += 1;
        self.place(&key, now);
        Some((key, waiting))
    }

    /// A look has settled. `well`: nothing in it calls for another one soon.
    pub fn settled(&mut self, key: &LookKey, well: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        self.running -= usize::from(entry.running);
        entry.running = false;
        if well {
            (entry.failures, entry.held) = (0, None);
        }
        self.place(key, now);
    }

    /// Forgets what waits and is not to be kept, and says so to those who asked for it.
    pub fn retain(&mut self, keep: impl Fn(&LookKey) -> bool, now: Instant) {
        let gone: Vec<LookKey> = self.entries.keys().filter(|key| !keep(key)).cloned().collect();
        for key in gone {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            (entry.failures, entry.held) = (0, None);
            for waiting in entry.waiting.drain(..) {
                waiting.interrupt();
            }
            self.place(&key, now);
        }
    }

    /// Until when polls of a repository wait because of trouble there.
    pub fn held(&self, key: &LookKey) -> Option<Instant> {
        self.entries.get(key)?.held
    }

    /// When the next look's time comes that has not come yet.
    pub fn next(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Repositories that wait and whose time has come; looks that run; since when the oldest waits.
    pub fn counts(&self) -> (usize, usize, Option<Instant>) {
        (self.due.len(), self.running, self.due.first().map(|(since, _)| *since))
    }

    /// What waited for its time until now is ready.
    pub fn advance(&mut self, now: Instant) {
        while let Some((_, key)) = self.later.first().filter(|(at, _)| *at <= now).cloned() {
            self.place(&key, now);
        }
    }

    /// Puts an entry where it belongs now; one that is idle and well costs nothing.
    fn place(&mut self, key: &LookKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let place = entry.place_at(now);
        let before = std::mem::replace(&mut entry.place, place);
        let idle = !entry.running && entry.waiting.is_empty() && entry.failures == 0;
        if let Some(Place::Dirty { due } | Place::Ready { due, .. }) = before {
            self.due.remove(&(due, key.clone()));
        }
        match before {
            Some(Place::Ready { rank, since, .. }) => drop(self.ready.remove(&(rank, since, key.clone()))),
            Some(Place::Later { at }) => drop(self.later.remove(&(at, key.clone()))),
            Some(Place::Dirty { .. }) | None => {}
        }
        if let Some(Place::Dirty { due } | Place::Ready { due, .. }) = place {
            self.due.insert((due, key.clone()));
        }
        match place {
            Some(Place::Ready { rank, since, .. }) => drop(self.ready.insert((rank, since, key.clone()))),
            Some(Place::Later { at }) => drop(self.later.insert((at, key.clone()))),
            Some(Place::Dirty { .. }) | None => {}
        }
        if idle {
            self.entries.remove(key);
        }
    }
}

impl Entry {
    fn ask(&mut self, ask: Ask, tell: Option<Tell>, not_before: Instant, now: Instant) {
        let rank = rank(&ask);
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.ask.digest == ask.digest) {
            return waiting.merge(ask, rank, tell, not_before);
        }
        if self.waiting.len() >= APART {
            // Everyone who expects nothing has a place: only what is expected can come so often.
            let text = "too many different digests are expected of this repository at once; ask again in a moment";
            tell.into_iter().for_each(|tell| drop(tell.send(Arc::new(fruitless(&Fault::retryable(text))))));
            return;
        }
        self.waiting.push(Waiting { ask, tell: tell.into_iter().collect(), not_before, since: now, rank });
    }

    /// The waiting look that goes first.
    fn best(&self, now: Instant) -> Option<usize> {
        let due = self.waiting.iter().enumerate().filter(|(_, waiting)| waiting.not_before <= now);
        due.min_by_key(|(_, waiting)| (waiting.rank, waiting.since)).map(|(at, _)| at)
    }

    fn place_at(&self, now: Instant) -> Option<Place> {
        let due = self.waiting.iter().filter(|waiting| waiting.not_before <= now);
        let oldest = due.map(|waiting| waiting.since.max(waiting.not_before)).min();
        match (oldest, self.running) {
            (Some(due), true) => Some(Place::Dirty { due }),
            (Some(due), false) => {
                let best = &self.waiting[self.best(now)?];
                Some(Place::Ready { due, rank: best.rank, since: best.since })
            }
            (None, true) => None,
            (None, false) => self.waiting.iter().map(|waiting| Place::Later { at: waiting.not_before }).min_by_key(Place::at),
        }
    }
}

impl Place {
    fn at(&self) -> Instant {
        match self {
            Place::Dirty { due } | Place::Ready { due, .. } => *due,
            Place::Later { at } => *at,
        }
    }
}

impl Waiting {
    fn merge(&mut self, ask: Ask, rank: u8, tell: Option<Tell>, not_before: Instant) {
        if self.tell.len() == self.tell.capacity() {
            self.tell.retain(|asker| !asker.is_closed());
        }
        self.tell.extend(tell);
        self.not_before = self.not_before.min(not_before);
        self.ask.tags = match (std::mem::take(&mut self.ask.tags), ask.tags) {
            (ours, theirs) if ours.is_empty() || theirs.is_empty() => Vec::new(),
            (mut ours, theirs) => {
                ours.extend(theirs.into_iter().filter(|tag| !ours.contains(tag)).collect::<Vec<_>>());
                if ours.len() > TAGS { Vec::new() } else { ours }
            }
        };
        self.ask.wish.all |= ask.wish.all;
        // What asks production itself outdoes what trusts hints, whoever came first.
        let (ours, theirs) = (self.ask.cause.trusts_hints(), ask.cause.trusts_hints());
        if (ours && !theirs) || (ours == theirs && rank < self.rank) {
            (self.ask.cause, self.ask.actor, self.ask.run_id) = (ask.cause, ask.actor, ask.run_id);
        }
        self.rank = self.rank.min(rank);
    }

    /// Tells everyone that the look will not be.
    pub fn interrupt(self) {
        let look = Arc::new(interrupted());
        for asker in self.tell {
            // Whoever asked may have gone.
            let _ = asker.send(look.clone());
        }
    }
}

/// A look that could not be, because of this.
pub fn fruitless(fault: &Fault) -> Look {
    Look { trouble: vec![Trouble::from(fault)], ..Look::default() }
}

/// A look that will not be: the daemon stops, or the config no longer has the route.
pub fn interrupted() -> Look {
    let totals = Totals { interrupted: 1, ..Totals::default() };
    let text = "interrupted before its turn: the daemon stops, or the config no longer has the route".into();
    Look { totals, trouble: vec![Trouble { class: Class::Cancelled.name().into(), text }], ..Look::default() }
}

/// Whether nobody but the daemon itself asks.
fn is_poll(ask: &Ask) -> bool {
    matches!(ask.cause, Cause::Poll | Cause::Verify)
}

/// Lower goes first.
fn rank(ask: &Ask) -> u8 {
    match (ask.cause, ask.tags.is_empty()) {
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
    use crate::watch::Wish;

    fn key(repository: &str) -> LookKey {
        LookKey { route: "r".into(), repository: repository.parse().unwrap(), dry_run: false }
    }

    fn ask(cause: Cause, tags: &[&str]) -> Ask {
        let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        Ask { tags, digest: None, cause, actor: Actor::daemon(), wish: Wish::default(), run_id: String::new() }
    }

    const ANY: u8 = u8::MAX;

    #[tokio::test(start_paused = true)]
    async fn a_hundred_pings_cost_one_extra_look() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
        let (running, _) = queue.start(now, ANY).unwrap();
        let (sender, _receiver) = mpsc::unbounded_channel();
        for _ in 0..100 {
            queue.ask(key("a"), ask(Cause::Ping, &[]), Some(sender.clone()), now);
        }
        assert!(queue.start(now, ANY).is_none(), "looks of one repository never overlap");
        assert_eq!(queue.counts(), (1, 1, Some(now)));
        queue.settled(&running, true, now);
        let (again, waiting) = queue.start(now, ANY).unwrap();
        assert_eq!(waiting.tell.len(), 100);
        queue.settled(&again, true, now);
        assert!(queue.start(now, ANY).is_none());
        assert!(queue.entries.is_empty() && queue.due.is_empty(), "an idle key costs nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_narrow_question_is_answered_by_a_wide_look() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask(key("a"), ask(Cause::Ping, &["v1"]), None, now);
        queue.ask(key("a"), ask(Cause::Ping, &["v2", "v1"]), None, now);
        assert_eq!(queue.entries[&key("a")].waiting[0].ask.tags.len(), 2);
        queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
        let (_, waiting) = queue.start(now, ANY).unwrap();
        assert!(waiting.ask.tags.is_empty());
        assert_eq!(waiting.ask.cause, Cause::Ping, "who asked for it by name is who it is for");
    }

    #[tokio::test(start_paused = true)]
    async fn what_trusts_hints_does_not_weaken_what_does_not() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
        queue.ask(key("a"), ask(Cause::Verify, &[]), None, now);
        assert_eq!(queue.start(now, ANY).unwrap().1.ask.cause, Cause::Verify);
        queue.ask(key("b"), ask(Cause::Verify, &[]), None, now);
        queue.ask(key("b"), ask(Cause::Poll, &[]), None, now);
        assert!(!queue.start(now, ANY).unwrap().1.ask.cause.trusts_hints());
    }

    #[tokio::test(start_paused = true)]
    async fn order_is_by_who_asks_then_by_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask(key("backfill"), ask(Cause::Start, &[]), None, now);
        queue.ask(key("poll"), ask(Cause::Poll, &[]), None, now);
        queue.ask(key("named"), ask(Cause::Cli, &["v1"]), None, now + Duration::from_secs(1));
        let later = now + Duration::from_secs(2);
        assert!(queue.start(later, BY_NAME).is_some_and(|(key, _)| key.repository.as_str() == "named"));
        assert!(queue.start(later, BY_NAME).is_none(), "the last places are kept for those who ask by name");
        let order: Vec<_> = std::iter::from_fn(|| queue.start(later, ANY)).map(|(key, _)| key.repository.to_string()).collect();
        assert_eq!(order, ["poll", "backfill"]);
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_looked_at_again_ever_more_slowly() {
        let waits = |pace: Pace| {
            let (mut queue, mut now, mut waits) = (Queue::default(), Instant::now(), Vec::new());
            queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
            for _ in 0..8 {
                let (running, _) = queue.start(now, ANY).unwrap();
                queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
                queue.ask_later(running.clone(), ask(Cause::Poll, &[]), pace, now);
                queue.settled(&running, false, now);
                queue.ask(key("a"), ask(Cause::Poll, &[]), None, now + Duration::from_secs(1));
                let next = queue.next().unwrap();
                waits.push((next - now).as_secs());
                now = next;
            }
            waits
        };
        assert_eq!(waits(Pace::WHOLE), [15, 30, 60, 120, 240, 480, 900, 900]);
        assert_eq!(waits(Pace::TAGS), [15, 30, 60, 120, 240, 240, 240, 240]);
        assert_eq!(waits(Pace::SLOW), [60, 120, 240, 480, 900, 900, 900, 900]);
    }

    #[tokio::test(start_paused = true)]
    async fn people_and_events_do_not_wait_for_trouble_to_pass() {
        for cause in [Cause::Ping, Cause::Cli, Cause::Signal, Cause::Webhook, Cause::Queue, Cause::Start] {
            let (mut queue, now) = (Queue::default(), Instant::now());
            queue.ask_later(key("a"), ask(Cause::Poll, &[]), Pace::WHOLE, now);
            queue.ask(key("a"), ask(Cause::Verify, &[]), None, now);
            assert!(queue.start(now, ANY).is_none(), "a poll waits");
            queue.ask(key("a"), ask(cause, &[]), None, now);
            let (running, _) = queue.start(now, ANY).expect("asked for");
            queue.settled(&running, true, now);
            assert!(queue.entries.is_empty(), "{cause}: one look answers both");
        }
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask_later(key("a"), ask(Cause::Poll, &[]), Pace::ABSENT, now);
        queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
        assert!(queue.start(now, ANY).is_some(), "a first push is found by the next poll");
    }

    #[tokio::test(start_paused = true)]
    async fn expectations_of_different_digests_stay_apart() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let expecting = |text: &str| Ask { digest: Some(crate::oci::Digest::sha256(text.as_bytes())), ..ask(Cause::Ping, &["v1"]) };
        for text in ["one", "other", "one"] {
            queue.ask(key("a"), expecting(text), None, now);
        }
        queue.ask(key("a"), ask(Cause::Ping, &["v1"]), None, now);
        let mut asked = Vec::new();
        while let Some((running, waiting)) = queue.start(now, ANY) {
            assert!(queue.start(now, ANY).is_none(), "looks of one repository never overlap");
            asked.push(waiting.ask.digest);
            queue.settled(&running, true, now);
        }
        assert_eq!(asked, [expecting("one").digest, expecting("other").digest, None]);

        let (sender, mut told) = mpsc::unbounded_channel();
        for number in 0..=APART {
            queue.ask(key("a"), expecting(&number.to_string()), Some(sender.clone()), now);
        }
        assert_eq!(told.try_recv().unwrap().trouble[0].class, "retryable", "too many at once");
        assert!(told.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_is_told_as_interrupted() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let (sender, mut told) = mpsc::unbounded_channel();
        queue.ask(key("a"), ask(Cause::Ping, &[]), Some(sender), now);
        queue.retain(|_| false, now);
        assert_eq!(told.try_recv().unwrap().totals.interrupted, 1);
        assert!(queue.entries.is_empty() && queue.ready.is_empty() && queue.due.is_empty());
    }
}
