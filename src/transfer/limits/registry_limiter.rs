//! The limits of one registry, and the permits for requests to it.
//!
//! A request waits in one line with all others to the registry; [`Requests`] decides which goes
//! next. One of the waiting requests keeps the timer for all: it wakes when time alone lets the
//! next one go. Dropping a waiter or a permit is always safe: its place, its share or the timer
//! goes to the next one.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::naming_queue::NamingQueue;
use super::{JOBS, REQUESTS, RequestClass, RequestPriority, Settings};
use crate::endpoint::Origin;
use crate::endpoint::rate_limit::RateLimit;
use crate::fault::{Class, Fault};
use crate::transfer::admission::{Admission, Ask, Requests, Room, Side, Wakers};
use crate::transfer::bandwidth::Meter;
use crate::transfer::pace::{ClassLimiter, Epoch, SharedLimiter};

/// The limits of one registry.
#[derive(Debug)]
pub struct RegistryLimiter {
    origin: Origin,
    admission: Admission,
    state: Mutex<State>,
    bandwidth: Mutex<Option<Arc<Meter>>>,
    names: NamingQueue,
    /// What the registry says that it still allows.
    rate_limit: Mutex<RateLimit>,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    requests: Requests,
    /// Granted, not yet taken.
    granted: BTreeMap<u64, Ask>,
    wakers: Wakers,
    /// The request that keeps the timer, and the time.
    timer: Option<(u64, Instant)>,
    /// As often jobs had become more urgent when the lines were put in order.
    raises: u64,
}

impl State {
    fn new(settings: Settings, now: Instant) -> State {
        let limit = settings.concurrency();
        let limiters = RequestClass::ALL
            .map(|class| ClassLimiter::new(limit, class.quota(&settings.quotas), now));
        let shared = SharedLimiter::new(limit, settings.requests_per_second, now);
        State {
            settings,
            requests: Requests::new(limiters, shared),
            granted: BTreeMap::new(),
            wakers: Wakers::default(),
            timer: None,
            raises: 0,
        }
    }

    fn reconfigure(&mut self, settings: Settings, now: Instant) {
        let limit = settings.concurrency();
        for class in RequestClass::ALL {
            let quota = class.quota(&settings.quotas);
            self.requests
                .class_mut(class)
                .reconfigure(limit, quota, now);
        }
        let rate = settings.requests_per_second;
        self.requests.shared_mut().reconfigure(limit, rate, now);
        self.settings = settings;
    }

    /// Grants what can go now, and sees to it that time is kept for the rest.
    fn pump(&mut self, admission: &Admission, now: Instant) {
        let raises = admission.raises();
        if raises != self.raises {
            self.raises = raises;
            self.requests.reorder(|ticket| admission.queue_of(ticket));
        }
        while let Some((id, ask)) = self.requests.grant(now) {
            self.granted.insert(id, ask);
            self.wakers.wake(id);
        }
        self.keep_time(now);
    }

    fn keep_time(&mut self, now: Instant) {
        let keeper = self.timer.map(|(id, _)| id);
        let keeper = keeper.filter(|id| self.requests.is_waiting(*id));
        let keeper = keeper.or_else(|| self.requests.oldest());
        let timer = keeper.zip(self.requests.next_time(now));
        if timer != self.timer
            && let Some((id, _)) = timer
        {
            self.wakers.wake(id);
        }
        self.timer = timer;
    }

    /// The class has closed: what does not wait for so long is told.
    fn closed(&mut self, class: RequestClass, now: Instant) {
        for id in self.requests.overdue(class, now) {
            self.wakers.wake(id);
        }
    }
}

impl RegistryLimiter {
    pub(super) fn new(
        origin: &Origin,
        settings: Settings,
        admission: &Admission,
    ) -> RegistryLimiter {
        let bandwidth = meter(&settings);
        let limiter = RegistryLimiter {
            origin: origin.clone(),
            admission: admission.clone(),
            state: Mutex::new(State::new(settings, Instant::now())),
            bandwidth: Mutex::new(bandwidth),
            names: NamingQueue::default(),
            rate_limit: Mutex::default(),
        };
        limiter.make_room(RequestClass::Blobs);
        limiter.make_room(RequestClass::Uploads);
        limiter
    }

    /// Other settings from now on. What the registry asked for, and what is under way, stays.
    pub(super) fn reconfigure(&self, settings: Settings) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.settings == settings {
            return;
        }
        if state.settings.bandwidth != settings.bandwidth {
            *self
                .bandwidth
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = meter(&settings);
        }
        state.reconfigure(settings, now);
        state.pump(&self.admission, now);
        drop(state);
        self.probe();
        self.make_room(RequestClass::Blobs);
        self.make_room(RequestClass::Uploads);
        self.grant_names();
    }

    /// No step under this lock leaves the state half changed, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As many bodies may move as requests of their class may run.
    fn make_room(&self, class: RequestClass) {
        let side = match class {
            RequestClass::Blobs => Side::Source,
            RequestClass::Uploads => Side::Destination,
            RequestClass::Listing | RequestClass::Manifests | RequestClass::Writes => return,
        };
        let state = self.lock();
        let limiter = state.requests.class(class);
        let room = Room {
            limit: limiter.width(),
            named: limiter.named_width(),
            is_firm: state.settings.concurrency.is_some() || limiter.width() < REQUESTS,
        };
        drop(state);
        self.admission.set_room(&self.origin, side, room);
    }

    /// From now on, what the registry says that it still allows is kept to.
    pub(super) fn heed(&self, rate_limit: RateLimit) {
        *self
            .rate_limit
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = rate_limit;
    }

    fn rate_limit(&self) -> RateLimit {
        self.rate_limit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How long no such request may be sent, because the registry asked for it.
    pub fn closed_for(&self, class: RequestClass) -> Duration {
        self.lock().requests.class(class).closed_for(Instant::now())
    }

    /// For how long any class is closed.
    pub fn longest_closed(&self) -> Duration {
        let now = Instant::now();
        let state = self.lock();
        let closed = RequestClass::ALL.map(|class| state.requests.class(class).closed_for(now));
        closed.into_iter().max().unwrap_or_default()
    }

    /// A person asks, or the config is new: a class that is closed for long is tried again.
    pub fn probe(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        for class in RequestClass::ALL {
            state.requests.class_mut(class).probe(now);
        }
        state.pump(&self.admission, now);
    }

    /// Ends when the registry takes such requests again.
    pub async fn opens(&self, class: RequestClass) {
        loop {
            let until = self.lock().requests.class(class).closed_until();
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// The permit to send one request, in its turn.
    pub async fn acquire(&self, priority: impl Into<RequestPriority>) -> RequestPermit<'_> {
        let priority = priority.into();
        loop {
            if let Ok(permit) = self.acquire_within(priority, Duration::MAX).await {
                return permit;
            }
        }
    }

    /// The permit to send one request, unless the registry asks for more than `max_wait` before it.
    /// The error is that time.
    pub async fn acquire_within(
        &self,
        priority: RequestPriority,
        max_wait: Duration,
    ) -> Result<RequestPermit<'_>, Duration> {
        let epoch = self.wait(priority, max_wait, true).await?;
        Ok(RequestPermit::new(self, priority.class, epoch, true))
    }

    /// The permit of a request that belongs to a body: the body's own permit counts it. Sent when
    /// its class is open.
    pub async fn acquire_for_body(&self, class: RequestClass) -> RequestPermit<'_> {
        self.opens(class).await;
        let epoch = self.lock().requests.class(class).epoch();
        RequestPermit::new(self, class, epoch, false)
    }

    /// Waits until the rate limiters admit such a request. Nothing is taken, and nothing has to be
    /// held meanwhile.
    pub async fn until_admitted(&self, class: RequestClass) {
        let priority = RequestPriority::from(class);
        while self.wait(priority, Duration::MAX, false).await.is_err() {}
    }

    fn wait(
        &self,
        priority: RequestPriority,
        max_wait: Duration,
        is_sent: bool,
    ) -> RequestWait<'_> {
        let queue = priority
            .ticket
            .and_then(|ticket| self.admission.queue_of(ticket));
        let ask = Ask {
            class: priority.class,
            is_look: priority.is_look,
            is_naming: priority.is_naming,
            is_sent,
            ticket: priority.ticket,
            queue: queue.unwrap_or((None, priority.rank)),
            max_wait,
        };
        let now = Instant::now();
        let mut state = self.lock();
        let id = state.requests.ask(ask);
        state.pump(&self.admission, now);
        RequestWait {
            limiter: self,
            id: Some(id),
            class: priority.class,
            max_wait,
            timer: None,
        }
    }

    /// How long the limits of this registry hold up such a request: its quota, the pace, a time
    /// that the registry named. Zero: it would go at once, unless too many are under way.
    pub fn admitted_in(&self, class: RequestClass) -> Duration {
        let now = Instant::now();
        let state = self.lock();
        let class = state.requests.class(class).ready_in(false, now);
        class.max(state.requests.shared().ready_in(now))
    }

    /// How many answers to such requests have helped so far: while others get answers, the registry
    /// is at work.
    pub fn answers(&self, class: RequestClass) -> u64 {
        self.lock().requests.class(class).answers()
    }

    /// How many requests wait although their time has come.
    pub(super) fn runnable(&self) -> usize {
        self.lock().requests.runnable(Instant::now())
    }

    /// How many jobs may hold a naming permit at once: as many as the quota allows PUTs in half a
    /// second, at most a third of the requests that may run at once, at least one. Jobs that are
    /// asked for by name have `NAMED_ABOVE` more.
    pub fn names_at_once(&self) -> usize {
        let state = self.lock();
        let most = state.settings.concurrency().usual / 3;
        names_in_time(&state.settings).min(most).max(1)
    }

    pub(in crate::transfer) fn names(&self) -> &NamingQueue {
        &self.names
    }

    /// How long to wait for so many bytes to have been allowed.
    pub fn bandwidth(&self, bytes: u64) -> Duration {
        let meter = self
            .bandwidth
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        meter.map_or(Duration::ZERO, |meter| meter.take(bytes))
    }
}

/// The meter of the configured bandwidth.
fn meter(settings: &Settings) -> Option<Arc<Meter>> {
    let plan = settings.bandwidth.clone()?;
    Some(Arc::new(Meter::new(plan)))
}

/// How many tags can be moved in half a second, at least one: as many as manifests may be written,
/// and requests sent. Moving one takes three requests (each side is asked, the tag is written), and
/// a tenth of the pace stays unused.
fn names_in_time(settings: &Settings) -> usize {
    let writes = settings.quotas.writes.map_or(f64::INFINITY, f64::from);
    let requests = settings.requests_per_second.unwrap_or(f64::INFINITY) / 3.0;
    (writes.min(requests) * 0.45).clamp(1.0, JOBS as f64) as usize
}

/// The permit to send one request, until dropped.
#[derive(Debug)]
pub struct RequestPermit<'a> {
    limiter: &'a RegistryLimiter,
    class: RequestClass,
    epoch: Epoch,
    /// Whether it has a place in the windows.
    is_counted: bool,
}

impl<'a> RequestPermit<'a> {
    fn new(
        limiter: &'a RegistryLimiter,
        class: RequestClass,
        epoch: Epoch,
        is_counted: bool,
    ) -> RequestPermit<'a> {
        limiter.admission.pulse().sent();
        RequestPermit {
            limiter,
            class,
            epoch,
            is_counted,
        }
    }

    /// Records what came of the request. Returns by how much longer its class is closed now because
    /// the registry asked for it, or said that nothing is left.
    pub fn record<T>(&self, result: &Result<T, Fault>) -> Duration {
        let now = Instant::now();
        let spent_for = self.limiter.rate_limit().spent_for(self.class);
        let mut state = self.limiter.lock();
        let limits = state.requests.class_mut(self.class);
        let width = limits.width();
        let asked = match result.as_ref().map_err(Fault::class) {
            Ok(_) => {
                limits.helped(self.epoch);
                Duration::ZERO
            }
            Err(Class::Retryable { after }) => limits.congested(self.epoch, after, now),
            Err(_) => Duration::ZERO,
        };
        let longer = asked + limits.close(spent_for, now);
        let has_changed = limits.width() != width;
        if !longer.is_zero() {
            state.closed(self.class, now);
        }
        state.pump(&self.limiter.admission, now);
        drop(state);
        if has_changed {
            self.limiter.make_room(self.class);
        }
        longer
    }
}

impl Drop for RequestPermit<'_> {
    fn drop(&mut self) {
        if self.is_counted {
            let mut state = self.limiter.lock();
            state.requests.release(self.class);
            state.pump(&self.limiter.admission, Instant::now());
        }
        self.limiter.admission.pulse().ended();
    }
}

/// A place in the line.
struct RequestWait<'a> {
    limiter: &'a RegistryLimiter,
    /// Taken when the grant is.
    id: Option<u64>,
    class: RequestClass,
    max_wait: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for RequestWait<'_> {
    type Output = Result<Epoch, Duration>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id.expect("it is not polled after its end");
        let limiter = self.limiter;
        let mut state = limiter.lock();
        loop {
            let now = Instant::now();
            let closed_for = state.requests.class(self.class).closed_for(now);
            if let Some(ask) = state.granted.remove(&id) {
                if closed_for.is_zero() {
                    state.wakers.forget(id);
                    self.id = None;
                    let epoch = state.requests.class(self.class).epoch();
                    return Poll::Ready(Ok(epoch));
                }
                state.requests.ask_again(id, ask, now);
                state.pump(&limiter.admission, now);
            }
            if closed_for > self.max_wait {
                self.id = None;
                state.wakers.forget(id);
                state.requests.cancel(id);
                state.pump(&limiter.admission, now);
                return Poll::Ready(Err(closed_for));
            }
            state.wakers.wait(id, cx.waker());
            let Some((_, until)) = state.timer.filter(|(keeper, _)| *keeper == id) else {
                break;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(until)));
            timer.as_mut().reset(until);
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
            state.pump(&limiter.admission, Instant::now());
        }
        Poll::Pending
    }
}

impl Drop for RequestWait<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let now = Instant::now();
        let mut state = self.limiter.lock();
        state.wakers.forget(id);
        match state.granted.remove(&id) {
            Some(ask) => state.requests.give_back(&ask, now),
            None => state.requests.cancel(id),
        }
        state.pump(&self.limiter.admission, now);
    }
}

#[cfg(test)]
mod tests;
