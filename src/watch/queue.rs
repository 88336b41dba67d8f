//! The queue of looks: level-triggered, one entry for each source repository of a route.
//!
//! A key is idle, waiting, running, or running and dirty: asking again while it waits changes nothing but who is told, and
//! asking while it runs makes it run once more. A hundred pings cost one extra look. Looks of one repository never overlap.
//! Order: asked for by name, event, new push, backfill; then first come, first served.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::look::Ask;
use crate::job::{Cause, Look};
use crate::oci::RepositoryName;

/// Single tags that one entry may be about; more, and it is about all.
const TAGS: usize = 256;
/// The first wait before a repository in trouble is looked at again; doubles each time.
const FIRST_WAIT: Duration = Duration::from_secs(15);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

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
    pub tell: Vec<mpsc::UnboundedSender<Look>>,
    /// Not before.
    pub not_before: Instant,
    /// Since when it waits.
    pub since: Instant,
    rank: u8,
}

#[derive(Debug, Default)]
struct Entry {
    waiting: Option<Waiting>,
    running: bool,
    failures: u32,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<LookKey, Entry>,
}

impl Queue {
    /// Asks for a look; merges with what waits already.
    pub fn ask(&mut self, key: LookKey, ask: Ask, tell: Option<mpsc::UnboundedSender<Look>>, now: Instant) {
        let entry = self.entries.entry(key).or_default();
        let rank = rank(&ask);
        match &mut entry.waiting {
            None => entry.waiting = Some(Waiting { ask, tell: tell.into_iter().collect(), not_before: now, since: now, rank }),
            Some(waiting) => waiting.merge(ask, rank, tell, now),
        }
    }

    /// Asks for another look later, because of trouble that may pass; the wait doubles while trouble lasts.
    pub fn ask_later(&mut self, key: LookKey, ask: Ask, now: Instant) {
        let entry = self.entries.entry(key).or_default();
        entry.failures += 1;
        let wait = FIRST_WAIT.saturating_mul(1 << (entry.failures - 1).min(10)).min(LONGEST_WAIT);
        let rank = rank(&ask);
        entry.waiting.get_or_insert(Waiting { ask, tell: Vec::new(), not_before: now + wait, since: now, rank });
    }

    /// The next look whose time has come, in order; it runs from now on.
    pub fn start(&mut self, now: Instant) -> Option<(LookKey, Waiting)> {
        let ready = |entry: &Entry| !entry.running && entry.waiting.as_ref().is_some_and(|waiting| waiting.not_before <= now);
        let order = |entry: &Entry| entry.waiting.as_ref().map(|waiting| (waiting.rank, waiting.since));
        let key = self.entries.iter().filter(|(_, entry)| ready(entry)).min_by_key(|(_, entry)| order(entry))?.0.clone();
        let entry = self.entries.get_mut(&key)?;
        entry.running = true;
        Some((key, entry.waiting.take()?))
    }

    /// A look has settled. `well`: nothing in it calls for another one soon.
    pub fn settled(&mut self, key: &LookKey, well: bool) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.running = false;
            if well {
                entry.failures = 0;
            }
            if entry.waiting.is_none() && entry.failures == 0 {
                self.entries.remove(key);
            }
        }
    }

    /// Forgets what waits for routes that are no more.
    pub fn retain(&mut self, keep: impl Fn(&LookKey) -> bool) {
        self.entries.retain(|key, entry| {
            if !keep(key) {
                entry.waiting = None;
            }
            entry.running || entry.waiting.is_some()
        });
    }

    /// When the next look's time comes, if none is ready before.
    pub fn next(&self) -> Option<Instant> {
        self.entries.values().filter(|entry| !entry.running).filter_map(|entry| Some(entry.waiting.as_ref()?.not_before)).min()
    }

    /// Looks that wait and whose time has come; looks that run; since when the oldest waits.
    pub fn counts(&self, now: Instant) -> (usize, usize, Option<Instant>) {
        let due = || self.entries.values().filter_map(|entry| entry.waiting.as_ref()).filter(|waiting| waiting.not_before <= now);
        let running = self.entries.values().filter(|entry| entry.running).count();
        (due().count(), running, due().map(|waiting| waiting.since.max(waiting.not_before)).min())
    }
}

impl Waiting {
    fn merge(&mut self, ask: Ask, rank: u8, tell: Option<mpsc::UnboundedSender<Look>>, now: Instant) {
        self.tell.extend(tell);
        self.not_before = self.not_before.min(now);
        self.ask.tags = match (std::mem::take(&mut self.ask.tags), ask.tags) {
            (ours, theirs) if ours.is_empty() || theirs.is_empty() => Vec::new(),
            (mut ours, theirs) => {
                ours.extend(theirs.into_iter().filter(|tag| !ours.contains(tag)).collect::<Vec<_>>());
                if ours.len() > TAGS { Vec::new() } else { ours }
            }
        };
        // An expectation holds for one asker's tag only; who expects something else has to be asked again.
        if self.ask.digest != ask.digest {
            self.ask.digest = None;
        }
        self.ask.wish.all |= ask.wish.all;
        // What asks production itself outdoes what trusts hints, whoever came first.
        let (ours, theirs) = (self.ask.cause.trusts_hints(), ask.cause.trusts_hints());
        if (ours && !theirs) || (ours == theirs && rank < self.rank) {
            (self.ask.cause, self.ask.actor, self.ask.run_id) = (ask.cause, ask.actor, ask.run_id);
        }
        self.rank = self.rank.min(rank);
    }
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

    #[tokio::test(start_paused = true)]
    async fn a_hundred_pings_cost_one_extra_look() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
        let (running, _) = queue.start(now).unwrap();
        let (sender, _receiver) = mpsc::unbounded_channel();
        for _ in 0..100 {
            queue.ask(key("a"), ask(Cause::Ping, &[]), Some(sender.clone()), now);
        }
        assert!(queue.start(now).is_none(), "looks of one repository never overlap");
        queue.settled(&running, true);
        let (again, waiting) = queue.start(now).unwrap();
        assert_eq!(waiting.tell.len(), 100);
        queue.settled(&again, true);
        assert!(queue.start(now).is_none());
        assert!(queue.entries.is_empty(), "an idle key costs nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_narrow_question_is_answered_by_a_wide_look() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask(key("a"), ask(Cause::Ping, &["v1"]), None, now);
        queue.ask(key("a"), ask(Cause::Ping, &["v2", "v1"]), None, now);
        assert_eq!(queue.entries[&key("a")].waiting.as_ref().unwrap().ask.tags.len(), 2);
        queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
        let (_, waiting) = queue.start(now).unwrap();
        assert!(waiting.ask.tags.is_empty());
        assert_eq!(waiting.ask.cause, Cause::Ping, "who asked for it by name is who it is for");
    }

    #[tokio::test(start_paused = true)]
    async fn what_trusts_hints_does_not_weaken_what_does_not() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
        queue.ask(key("a"), ask(Cause::Verify, &[]), None, now);
        assert_eq!(queue.start(now).unwrap().1.ask.cause, Cause::Verify);
        queue.ask(key("b"), ask(Cause::Verify, &[]), None, now);
        queue.ask(key("b"), ask(Cause::Poll, &[]), None, now);
        assert!(!queue.start(now).unwrap().1.ask.cause.trusts_hints());
    }

    #[tokio::test(start_paused = true)]
    async fn order_is_by_who_asks_then_by_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.ask(key("backfill"), ask(Cause::Start, &[]), None, now);
        queue.ask(key("poll"), ask(Cause::Poll, &[]), None, now);
        queue.ask(key("named"), ask(Cause::Cli, &["v1"]), None, now + Duration::from_secs(1));
        let later = now + Duration::from_secs(2);
        let order: Vec<_> = std::iter::from_fn(|| queue.start(later)).map(|(key, _)| key.repository.to_string()).collect();
        assert_eq!(order, ["named", "poll", "backfill"]);
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_looked_at_again_ever_more_slowly() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..9 {
            queue.ask(key("a"), ask(Cause::Poll, &[]), None, now);
            let (running, _) = queue.start(now).unwrap();
            queue.ask_later(running.clone(), ask(Cause::Poll, &[]), now);
            queue.settled(&running, false);
            let next = queue.next().unwrap();
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [15, 30, 60, 120, 240, 480, 900, 900, 900]);
        assert!(queue.start(now).is_some());
    }
}
