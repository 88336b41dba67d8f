//! Pace: when the next request of one class may go to one registry, and how many at once.
//!
//! - A registry that asks for time gets it from every caller: a closed [`ClassLimiter`] admits no
//!   request.
//! - Congestion halves the number of requests at once, an answer that helps widens it again by a
//!   part of one. What was sent before the last halving says nothing new: at most one halving for
//!   each epoch.
//! - Documented quotas hold for every second, whenever it begins: next to nothing is saved up.
//!
//! Nothing here waits. [`Requests`](super::admission::Requests) decides which request takes what is
//! free.

mod aimd_window;
mod concurrency;

use std::time::Duration;

use tokio::time::Instant;

pub(super) use self::aimd_window::AimdWindow;
pub(super) use self::concurrency::Concurrency;
use crate::backoff::Backoff;
use crate::token_bucket::TokenBucket;

/// The waits of a whole class where a registry says "too much" and names no time. They stay short:
/// one tag that is always refused so must not hold up the others. What is refused waits longer by
/// itself.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
/// Longest time for which one answer closes a class. Then one request asks again, whatever the
/// registry said: an answer about one repository must not stop all others for an hour.
pub(super) const CLOSED_AT_MOST: Duration = Duration::from_secs(60);
/// How long a class stays closed at least before what a person asks for may try it again.
const PROBED_AFTER: Duration = Duration::from_secs(1);
/// The part of a quota that looks may use up: the rest is left to jobs, here and elsewhere.
const LOOKS: f64 = 0.25;
/// The part of a quota that comes by in a second: with [`AT_ONCE`] it stays below the quota by a
/// twentieth, so that requests that left in time do not break it when those before them were late
/// by as much as 50 ms.
const STEADY: f64 = 0.9;
/// The part of a quota that may be used at once.
const AT_ONCE: f64 = 0.05;

/// Counts halvings: an answer belongs to the epoch in which its request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

/// The limits of one class of requests to one registry.
#[derive(Debug)]
pub(super) struct ClassLimiter {
    epoch: u64,
    /// No request is admitted before.
    closed_until: Instant,
    /// Since when the class is closed for longer than one answer may close it.
    long_since: Option<Instant>,
    /// Refusals without a time since the last answer that helped.
    refusals: u32,
    /// Answers that helped.
    helped: u64,
    window: AimdWindow,
    quota: Option<TokenBucket>,
    looks: Option<TokenBucket>,
}

impl ClassLimiter {
    /// A limiter for so many requests at once and `quota` a second.
    pub(super) fn new(limit: Concurrency, quota: Option<f64>, now: Instant) -> ClassLimiter {
        ClassLimiter {
            epoch: 0,
            closed_until: now,
            long_since: None,
            refusals: 0,
            helped: 0,
            window: AimdWindow::new(limit),
            quota: quota.map(|quota| bucket(quota, now)),
            looks: quota.map(|quota| bucket(quota * LOOKS, now)),
        }
    }

    /// Other limits from now on. What the registry asked for and what of the same quota was used
    /// stays.
    pub(super) fn reconfigure(&mut self, limit: Concurrency, quota: Option<f64>, now: Instant) {
        self.window.resize(limit);
        let rate = self.quota.as_ref().map(TokenBucket::rate);
        if rate != quota.map(|quota| quota * STEADY) {
            self.quota = quota.map(|quota| bucket(quota, now));
            self.looks = quota.map(|quota| bucket(quota * LOOKS, now));
        }
    }

    /// How long no request is admitted because the registry asked for it.
    pub(super) fn closed_for(&self, now: Instant) -> Duration {
        self.closed_until.saturating_duration_since(now)
    }

    /// When requests are admitted again.
    pub(super) fn closed_until(&self) -> Instant {
        self.closed_until
    }

    /// How long a request has to wait for a time to come: the registry's own, the quota's, and that
    /// of the looks' part.
    pub(super) fn ready_in(&self, is_look: bool, now: Instant) -> Duration {
        let looks = self.looks.as_ref().filter(|_| is_look);
        let buckets = self.quota.as_ref().into_iter().chain(looks);
        let ready_in = buckets.map(|bucket| bucket.ready_in(now)).max();
        self.closed_for(now).max(ready_in.unwrap_or_default())
    }

    /// Whether one more request may be under way. `is_named`: it is asked for by name.
    pub(super) fn has_room(&self, is_named: bool) -> bool {
        self.window.has_room(is_named)
    }

    /// A request is admitted.
    pub(super) fn take(&mut self, is_look: bool, now: Instant) {
        self.window.take();
        for bucket in self.buckets(is_look) {
            bucket.take(now);
        }
    }

    /// An admitted request was not sent.
    pub(super) fn give_back(&mut self, is_look: bool, now: Instant) {
        self.window.give_back();
        for bucket in self.buckets(is_look) {
            bucket.give_back(now);
        }
    }

    /// A request has been answered.
    pub(super) fn release(&mut self) {
        self.window.give_back();
    }

    fn buckets(&mut self, is_look: bool) -> impl Iterator<Item = &mut TokenBucket> {
        let looks = self.looks.as_mut().filter(|_| is_look);
        self.quota.as_mut().into_iter().chain(looks)
    }

    /// How many requests may be under way.
    pub(super) fn width(&self) -> usize {
        self.window.width()
    }

    /// The same, with what is asked for by name.
    pub(super) fn named_width(&self) -> usize {
        self.window.named_width()
    }

    /// The epoch of a request that is sent now.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// How many answers have helped so far.
    pub(super) fn answers(&self) -> u64 {
        self.helped
    }

    /// An answer helped. One to a request from before the last halving widens nothing.
    pub(super) fn helped(&mut self, epoch: Epoch) {
        self.helped += 1;
        if epoch.0 == self.epoch {
            self.refusals = 0;
            self.window.widen();
        }
    }

    /// A request met congestion. `after` is the time that the registry asked for: zero when it
    /// asked without naming one, `None` when it just failed. Returns by how much longer the class
    /// is closed now.
    pub(super) fn congested(
        &mut self,
        epoch: Epoch,
        after: Option<Duration>,
        now: Instant,
    ) -> Duration {
        let is_news = epoch.0 == self.epoch;
        if is_news {
            self.epoch += 1;
            self.window.halve();
        }
        let wait = match after {
            Some(Duration::ZERO) if is_news => {
                self.refusals = self.refusals.saturating_add(1);
                BACKOFF.wait(self.refusals)
            }
            after => after.unwrap_or_default(),
        };
        self.close(wait, now)
    }

    /// No request is admitted for so long, but for at most [`CLOSED_AT_MOST`]: after a longer time
    /// one request goes first. Returns by how much longer that is than before.
    pub(super) fn close(&mut self, wait: Duration, now: Instant) -> Duration {
        if wait > CLOSED_AT_MOST {
            self.long_since = Some(now);
            self.window.narrow();
        } else if self.closed_for(now).is_zero() {
            self.long_since = None;
        }
        let before = self.closed_until.max(now);
        let until = now + wait.min(CLOSED_AT_MOST);
        self.closed_until = self.closed_until.max(until);
        until.saturating_duration_since(before)
    }

    /// Opens a class that is closed for longer than one answer may close it: one request shows
    /// whether the registry still asks for time.
    pub(super) fn probe(&mut self, now: Instant) {
        if self
            .long_since
            .filter(|since| now.saturating_duration_since(*since) >= PROBED_AFTER)
            .is_some()
        {
            self.long_since = None;
            self.closed_until = now;
        }
    }
}

fn bucket(quota: f64, now: Instant) -> TokenBucket {
    TokenBucket::new(quota * STEADY, (quota * AT_ONCE).max(1.0), now)
}

/// The limits of all requests to one registry together.
#[derive(Debug)]
pub(super) struct SharedLimiter {
    limit: Concurrency,
    out: usize,
    pace: Option<TokenBucket>,
}

impl SharedLimiter {
    /// So many requests at once, `rate` a second.
    pub(super) fn new(limit: Concurrency, rate: Option<f64>, now: Instant) -> SharedLimiter {
        SharedLimiter {
            limit,
            out: 0,
            pace: rate.map(|rate| TokenBucket::new(rate, rate.max(1.0), now)),
        }
    }

    /// Other limits from now on.
    pub(super) fn reconfigure(&mut self, limit: Concurrency, rate: Option<f64>, now: Instant) {
        self.limit = limit;
        if self.pace.as_ref().map(TokenBucket::rate) != rate {
            self.pace = rate.map(|rate| TokenBucket::new(rate, rate.max(1.0), now));
        }
    }

    /// Whether one more request may be under way. `is_named`: it is asked for by name.
    pub(super) fn has_room(&self, is_named: bool) -> bool {
        let most = if is_named {
            self.limit.most
        } else {
            self.limit.usual
        };
        self.out < most
    }

    /// How long until the pace allows one more request.
    pub(super) fn ready_in(&self, now: Instant) -> Duration {
        let pace = self.pace.as_ref();
        pace.map(|pace| pace.ready_in(now)).unwrap_or_default()
    }

    pub(super) fn take(&mut self, now: Instant) {
        self.out += 1;
        if let Some(pace) = &mut self.pace {
            pace.take(now);
        }
    }

    /// An admitted request was not sent.
    pub(super) fn give_back(&mut self, now: Instant) {
        self.out -= 1;
        if let Some(pace) = &mut self.pace {
            pace.give_back(now);
        }
    }

    /// A request has been answered.
    pub(super) fn release(&mut self) {
        self.out -= 1;
    }

    /// How many requests are under way.
    #[cfg(test)]
    pub(super) fn out(&self) -> usize {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    fn at_once(usual: usize) -> Concurrency {
        Concurrency { usual, most: usual }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_time_that_a_registry_asked_for_stands() {
        let now = Instant::now();
        let mut limiter = ClassLimiter::new(at_once(4), None, now);
        let epoch = limiter.epoch();
        assert_eq!(limiter.congested(epoch, Some(TEN), now), TEN);
        assert_eq!(limiter.congested(epoch, Some(TEN / 2), now), Duration::ZERO);
        assert_eq!(limiter.closed_for(now), TEN);
    }

    #[tokio::test(start_paused = true)]
    async fn one_answer_closes_a_class_for_a_minute_and_then_one_request_asks() {
        let now = Instant::now();
        let hour = Some(TEN * 360);
        let mut limiter = ClassLimiter::new(at_once(16), None, now);
        assert_eq!(
            limiter.congested(limiter.epoch(), hour, now),
            CLOSED_AT_MOST
        );
        assert_eq!(
            (limiter.closed_for(now), limiter.width()),
            (CLOSED_AT_MOST, 1)
        );
        limiter.probe(now);
        assert_eq!(
            limiter.closed_for(now),
            CLOSED_AT_MOST,
            "it has just been told"
        );
        limiter.probe(now + TEN);
        assert!(limiter.closed_for(now + TEN).is_zero());
        limiter.congested(limiter.epoch(), hour, now);
        let now = now + CLOSED_AT_MOST;
        limiter.congested(limiter.epoch(), Some(CLOSED_AT_MOST), now);
        limiter.probe(now + TEN);
        assert_eq!(
            limiter.closed_for(now + TEN),
            CLOSED_AT_MOST - TEN,
            "a time that is waited for is kept by all"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn congestion_halves_once_for_each_epoch_and_answers_widen() {
        let now = Instant::now();
        let mut limiter = ClassLimiter::new(at_once(16), None, now);
        let epoch = limiter.epoch();
        for _ in 0..16 {
            limiter.congested(epoch, None, now);
        }
        assert_eq!(limiter.width(), 8);
        for _ in 0..50 {
            limiter.helped(epoch);
        }
        assert_eq!(
            limiter.width(),
            8,
            "these were sent before the registry was congested"
        );
        for _ in 0..8 {
            limiter.helped(limiter.epoch());
        }
        assert_eq!(limiter.width(), 9);
        for _ in 0..10 {
            limiter.congested(limiter.epoch(), None, now);
        }
        assert_eq!(limiter.width(), 1, "one may always go");
        for _ in 0..200 {
            limiter.helped(limiter.epoch());
        }
        assert_eq!(limiter.width(), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_names_no_time_is_given_more_and_more() {
        let mut now = Instant::now();
        let mut limiter = ClassLimiter::new(at_once(4), None, now);
        let mut waits = Vec::new();
        for _ in 0..4 {
            waits.push(limiter.congested(limiter.epoch(), Some(Duration::ZERO), now));
            now = limiter.closed_until();
        }
        assert_eq!(waits, [1, 2, 3, 4].map(|refusals| BACKOFF.wait(refusals)));
        limiter.helped(limiter.epoch());
        let wait = limiter.congested(limiter.epoch(), Some(Duration::ZERO), now);
        assert_eq!(wait, BACKOFF.wait(1));
    }

    /// One tag that is always refused so held up the others for up to 30 s.
    #[tokio::test(start_paused = true)]
    async fn refusals_that_name_no_time_close_a_class_for_moments_only() {
        let mut now = Instant::now();
        let mut limiter = ClassLimiter::new(at_once(4), None, now);
        for _ in 0..20 {
            limiter.congested(limiter.epoch(), Some(Duration::ZERO), now);
            assert!(limiter.closed_for(now) <= Duration::from_secs(1));
            now = limiter.closed_until();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_limits_keep_what_was_asked_for_and_what_was_used() {
        let now = Instant::now();
        let mut limiter = ClassLimiter::new(at_once(8), Some(10.0), now);
        limiter.take(false, now);
        limiter.close(TEN, now);
        limiter.reconfigure(at_once(4), Some(10.0), now);
        assert_eq!((limiter.width(), limiter.closed_for(now)), (4, TEN));
        assert!(limiter.ready_in(false, now + TEN).is_zero());
        limiter.reconfigure(at_once(4), Some(1.0), now + TEN);
        limiter.take(false, now + TEN);
        assert!(!limiter.ready_in(false, now + TEN).is_zero());
    }
}
