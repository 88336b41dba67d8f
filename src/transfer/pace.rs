//! Pace: when the next request of one kind may go to one registry, and how many at once.
//!
//! - A registry that asks for patience gets it from everybody: nobody passes a closed [`Gate`], whoever was told.
//! - Congestion halves the number of requests at once, an answer that helps widens it again by a part of one. What was
//!   sent before the last halving says nothing new: at most one halving for each epoch.
//! - Documented quotas hold for every second, whenever it begins: next to nothing is saved up. Whoever waits for a time to
//!   come stands first in line and holds nothing, and whoever has his time holds all that he needs and goes at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};

/// The first wait where a registry says "too much" and names no time; each further one in a row doubles.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait of our own choice.
const LONGEST: Duration = Duration::from_secs(30);
/// The part of a quota that looks may use up: the rest is left to those who carry, here and elsewhere.
const LOOKS: f64 = 0.25;
/// The part of a quota that comes by in a second: with [`AT_ONCE`] it stays below the quota by a twentieth, so that requests
/// that left in time do not break it when those before them were late by as much as 50 ms.
const STEADY: f64 = 0.9;
/// The part of a quota that may be used at once.
const AT_ONCE: f64 = 0.05;

/// What one kind of request to one registry has to keep to.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    requests: Arc<Window>,
    quota: Option<Arc<Bucket>>,
    looks: Option<Arc<Bucket>>,
    line: tokio::sync::Mutex<()>,
    line_of_looks: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Counts halvings.
    epoch: u64,
    /// Nobody passes before.
    closed_until: Instant,
    /// Refusals without a time since the last answer that helped.
    refusals: u32,
}

impl State {
    fn close(&mut self, wait: Duration) -> Duration {
        let now = Instant::now();
        let (before, until) = (self.closed_until.max(now), now + wait);
        self.closed_until = self.closed_until.max(until);
        until.saturating_duration_since(before)
    }
}

/// The right to send one request. Whoever has it says what came of it.
#[derive(Debug)]
pub(super) struct Pass {
    epoch: u64,
    _permits: Option<(Permit, OwnedSemaphorePermit)>,
}

/// What requests of all kinds to one registry have to keep to together.
#[derive(Debug)]
pub(super) struct Whole {
    requests: Arc<Semaphore>,
    pace: Option<Bucket>,
}

impl Whole {
    /// `most` requests at once, `pace` a second.
    pub(super) fn new(most: usize, pace: Option<f64>) -> Whole {
        Whole {
            requests: Arc::new(Semaphore::new(most)),
            pace: pace.map(|rate| Bucket::new(rate, rate.max(1.0))),
        }
    }

    async fn acquire(&self) -> OwnedSemaphorePermit {
        self.requests
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }
}

impl Gate {
    /// A gate for `most` requests at once and `quota` a second.
    pub(super) fn new(most: usize, quota: Option<f64>) -> Gate {
        let state = State {
            epoch: 0,
            closed_until: Instant::now(),
            refusals: 0,
        };
        let bucket = |quota: f64| Arc::new(Bucket::new(quota * STEADY, (quota * AT_ONCE).max(1.0)));
        Gate {
            state: Mutex::new(state),
            requests: Window::new(most),
            quota: quota.map(bucket),
            looks: quota.map(|rate| bucket(rate * LOOKS)),
            line: tokio::sync::Mutex::default(),
            line_of_looks: tokio::sync::Mutex::default(),
        }
    }

    /// Keeps closed what the gate before this one kept closed, and shares its quota with those who still stand there.
    pub(super) fn inherit(&mut self, before: &Gate) {
        self.lock().closed_until = before.lock().closed_until;
        let rate = |gate: &Gate| gate.quota.as_ref().map(|quota| quota.rate);
        if rate(self) == rate(before) {
            (self.quota, self.looks) = (before.quota.clone(), before.looks.clone());
        }
    }

    /// How long nobody may pass.
    pub(super) fn closed_for(&self) -> Duration {
        self.lock()
            .closed_until
            .saturating_duration_since(Instant::now())
    }

    async fn opens_after(&self, closed_for: Duration) {
        if !closed_for.is_zero() {
            sleep(closed_for).await;
        }
    }

    /// Ends when the gate is open. It may be closed again right after.
    pub(super) async fn opens(&self) {
        loop {
            let until = self.lock().closed_until;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// How long quota, pace and what the registry asked for hold up a request.
    pub(super) fn admitted_in(&self, whole: &Whole) -> Duration {
        let buckets = [whole.pace.as_ref(), self.quota.as_deref()];
        let ready_in = buckets.into_iter().flatten().map(Bucket::ready_in).max();
        self.closed_for().max(ready_in.unwrap_or_default())
    }

    /// The right to send one request, in turn and at once; pace and quota are paid from, and looks pay from their part as well.
    pub(super) async fn pass(&self, look: bool, whole: &Whole) -> Pass {
        loop {
            if let Ok(pass) = self.pass_within(look, whole, Duration::MAX).await {
                return pass;
            }
        }
    }

    /// The same, unless the registry asks for more than `most` before that. The error is that time.
    pub(super) async fn pass_within(
        &self,
        look: bool,
        whole: &Whole,
        most: Duration,
    ) -> Result<Pass, Duration> {
        let _looks = if look {
            Some(self.line_of_looks.lock().await)
        } else {
            None
        };
        let share = self.looks.as_deref().filter(|_| look);
        if let Some(share) = share {
            sleep(share.ready_in()).await;
        }
        let _first = self.line.lock().await;
        let buckets = || {
            [whole.pace.as_ref(), self.quota.as_deref(), share]
                .into_iter()
                .flatten()
        };
        loop {
            let closed_for = self.closed_for();
            if closed_for > most {
                return Err(closed_for);
            }
            self.opens_after(closed_for).await;
            let wait = buckets().map(Bucket::ready_in).max().unwrap_or_default();
            if !wait.is_zero() {
                sleep(wait).await;
                continue;
            }
            let permits = (self.requests.acquire().await, whole.acquire().await);
            let ready =
                self.closed_for().is_zero() && buckets().all(|bucket| bucket.ready_in().is_zero());
            if ready {
                for bucket in buckets() {
                    bucket.take(1.0);
                }
                return Ok(Pass {
                    epoch: self.lock().epoch,
                    _permits: Some(permits),
                });
            }
        }
    }

    /// The word of a request that needs no right of its own: it belongs to a body that has one.
    pub(super) fn free_pass(&self) -> Pass {
        Pass {
            epoch: self.lock().epoch,
            _permits: None,
        }
    }

    /// How many may go at once.
    pub(super) fn width(&self) -> usize {
        self.requests.lock().now
    }

    /// A request helped.
    pub(super) fn helped(&self, pass: &Pass) {
        let mut state = self.lock();
        if pass.epoch == state.epoch {
            state.refusals = 0;
        }
        self.requests.widen();
    }

    /// A request met congestion. `after` is the time that the registry asked for: zero when it asked without naming one,
    /// `None` when it just failed. Returns by how much longer the gate is closed now.
    pub(super) fn congested(&self, pass: &Pass, after: Option<Duration>) -> Duration {
        let mut state = self.lock();
        let is_news = pass.epoch == state.epoch;
        if is_news {
            state.epoch += 1;
            self.requests.halve();
        }
        let wait = match after {
            Some(Duration::ZERO) if is_news => {
                state.refusals += 1;
                LONGEST.min(FIRST.saturating_mul(1 << (state.refusals - 1).min(16)))
            }
            after => after.unwrap_or_default(),
        };
        state.close(wait)
    }

    /// Nobody passes for so long. Returns by how much longer that is than before.
    pub(super) fn close(&self, wait: Duration) -> Duration {
        self.lock().close(wait)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the gate")
    }
}

/// How many may go at once: between one and `most`, first come, first served.
#[derive(Debug)]
pub(super) struct Window {
    permits: Arc<Semaphore>,
    most: usize,
    width: Mutex<Width>,
}

#[derive(Debug)]
struct Width {
    now: usize,
    /// Permits that are out and are not given back to anybody.
    owed: usize,
    /// Answers that helped since the last widening.
    helped: usize,
}

/// The right to be one of them.
#[derive(Debug)]
pub(super) struct Permit {
    window: Arc<Window>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Window {
    fn new(most: usize) -> Arc<Window> {
        let width = Mutex::new(Width {
            now: most,
            owed: 0,
            helped: 0,
        });
        Arc::new(Window {
            permits: Arc::new(Semaphore::new(most)),
            most,
            width,
        })
    }

    async fn acquire(self: &Arc<Window>) -> Permit {
        let permit = self
            .permits
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        Permit {
            window: self.clone(),
            permit: Some(permit),
        }
    }

    fn halve(&self) {
        let mut width = self.lock();
        let less = width.now / 2;
        width.owed += less - self.permits.forget_permits(less);
        width.now -= less;
        width.helped = 0;
    }

    /// One more after as many answers as there may be requests at once: by one for each round trip.
    fn widen(&self) {
        let mut width = self.lock();
        width.helped += 1;
        if width.now == self.most || width.helped < width.now {
            return;
        }
        width.helped = 0;
        width.now += 1;
        match width.owed {
            0 => self.permits.add_permits(1),
            _ => width.owed -= 1,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Width> {
        self.width
            .lock()
            .expect("nothing panics while it holds the width")
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut width = self.window.lock();
        if width.owed > 0 {
            width.owed -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
    }
}

/// A token bucket that may go into debt: a taker is told how long to wait until the debt is paid.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    most: f64,
    state: Mutex<(f64, Instant)>,
}

impl Bucket {
    /// `rate` a second, at most `most` saved up.
    pub(super) fn new(rate: f64, most: f64) -> Bucket {
        Bucket {
            rate,
            most,
            state: Mutex::new((most, Instant::now())),
        }
    }

    /// How long until a whole token is there.
    pub(super) fn ready_in(&self) -> Duration {
        self.wait_for(1.0 - self.fill().0)
    }

    /// Takes `amount`; the time until that has been paid for.
    pub(super) fn take(&self, amount: f64) -> Duration {
        let mut state = self.fill();
        state.0 -= amount;
        self.wait_for(-state.0)
    }

    fn fill(&self) -> std::sync::MutexGuard<'_, (f64, Instant)> {
        let mut state = self
            .state
            .lock()
            .expect("nothing panics while it holds the bucket");
        let now = Instant::now();
        let (tokens, at) = *state;
        *state = (
            (tokens + now.duration_since(at).as_secs_f64() * self.rate).min(self.most),
            now,
        );
        state
    }

    fn wait_for(&self, missing: f64) -> Duration {
        // Less than that is the rounding of fractions.
        if missing < 1e-6 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64((missing / self.rate).min(3600.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Whole {
        Whole::new(64, None)
    }

    const TEN: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn nobody_passes_before_the_time_that_one_was_told() {
        let gate = Arc::new(Gate::new(4, None));
        let (told, other) = (
            gate.pass(false, &whole()).await,
            gate.pass(false, &whole()).await,
        );
        assert_eq!(gate.congested(&told, Some(TEN)), TEN);
        assert_eq!(
            gate.congested(&other, Some(TEN / 2)),
            Duration::ZERO,
            "the longer wait stands"
        );
        drop((told, other));
        let start = Instant::now();
        futures::future::join_all(
            (0..20).map(|_| async { drop(gate.pass(false, &whole()).await) }),
        )
        .await;
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_that_closes_while_somebody_waits_for_a_permit_holds_him_back() {
        let gate = Arc::new(Gate::new(1, None));
        let first = gate.pass(false, &whole()).await;
        let start = Instant::now();
        let second = async { (gate.pass(false, &whole()).await, start.elapsed()).1 };
        let refused = async {
            sleep(Duration::from_secs(1)).await;
            gate.congested(&first, Some(TEN));
            drop(first);
        };
        assert_eq!(tokio::join!(second, refused).0.as_secs(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn congestion_halves_once_for_each_epoch_and_answers_widen() {
        let gate = Gate::new(16, None);
        let mut passes = Vec::new();
        for _ in 0..16 {
            passes.push(gate.pass(false, &whole()).await);
        }
        for pass in &passes {
            gate.congested(pass, None);
        }
        drop(passes);
        assert_eq!(
            (
                gate.requests.lock().now,
                gate.requests.permits.available_permits()
            ),
            (8, 8)
        );
        for _ in 0..8 {
            gate.helped(&gate.free_pass());
        }
        assert_eq!(
            (
                gate.requests.lock().now,
                gate.requests.permits.available_permits()
            ),
            (9, 9)
        );
        for _ in 0..10 {
            gate.congested(&gate.free_pass(), None);
        }
        assert_eq!(gate.requests.lock().now, 1, "one may always go");
        for _ in 0..200 {
            gate.helped(&gate.free_pass());
        }
        assert_eq!(
            (
                gate.requests.lock().now,
                gate.requests.permits.available_permits()
            ),
            (16, 16)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_names_no_time_is_given_more_and_more() {
        let gate = Gate::new(4, None);
        let mut waits = Vec::new();
        for _ in 0..4 {
            waits.push(gate.congested(&gate.free_pass(), Some(Duration::ZERO)));
            gate.opens().await;
        }
        assert_eq!(waits, [1, 2, 4, 8].map(|times| FIRST * times));
        gate.helped(&gate.free_pass());
        assert_eq!(
            gate.congested(&gate.free_pass(), Some(Duration::ZERO)),
            FIRST
        );
    }

    /// Passes one after the other; when each came.
    async fn times(gate: &Gate, look: bool, count: usize) -> Vec<Instant> {
        let whole = whole();
        let mut times = Vec::new();
        for _ in 0..count {
            drop(gate.pass(look, &whole).await);
            times.push(Instant::now());
        }
        times
    }

    /// The most within one second, if each may arrive so much later than it left.
    fn most_in_a_second(times: &[Instant], late: Duration) -> usize {
        let second = Duration::from_secs(1) + late;
        let within = |(at, start): (usize, &Instant)| {
            times[at..]
                .iter()
                .take_while(|time| **time - *start < second)
                .count()
        };
        times.iter().enumerate().map(within).max().unwrap_or(0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_is_kept_in_every_second_and_looks_use_a_quarter_of_it() {
        for quota in [1, 4, 10, 100, 2000] {
            for (look, most) in [(false, quota), (true, quota / 4 + 1)] {
                let gate = Gate::new(32, Some(quota.into()));
                let start = Instant::now();
                let count = 5 * most + 1;
                let times = times(&gate, look, count as usize).await;
                let seen = most_in_a_second(&times, Duration::from_millis(48));
                assert!(
                    seen <= most as usize,
                    "{seen} in a second where {most} may go"
                );
                let due =
                    f64::from(count) / (f64::from(quota) * STEADY * if look { LOOKS } else { 1.0 });
                assert!(
                    start.elapsed().as_secs_f64() < due + 1.0,
                    "{count} of a quota of {quota} took {:?}",
                    start.elapsed()
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_for_others_to_end_goes_no_faster_then() {
        let (gate, whole) = (Gate::new(32, Some(10.0)), Whole::new(1, None));
        let long = whole.acquire().await;
        let ends = async {
            sleep(TEN).await;
            drop(long);
        };
        let pass = || async {
            drop(gate.pass(false, &whole).await);
            Instant::now()
        };
        let (times, ()) = tokio::join!(futures::future::join_all((0..25).map(|_| pass())), ends);
        assert!(most_in_a_second(&times, Duration::ZERO) <= 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_gate_gives_nothing_on_top_of_the_quota() {
        let before = Gate::new(32, Some(10.0));
        let mut times = times(&before, false, 9).await;
        let mut after = Gate::new(8, Some(10.0));
        after.inherit(&before);
        times.extend(self::times(&after, false, 9).await);
        assert!(most_in_a_second(&times, Duration::ZERO) <= 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_does_not_turn_into_a_burst() {
        let gate = Gate::new(32, Some(10.0));
        gate.congested(&gate.free_pass(), Some(TEN));
        let start = Instant::now();
        let times = times(&gate, false, 19).await;
        assert_eq!(start.elapsed().as_secs(), 12);
        assert!(most_in_a_second(&times, Duration::ZERO) <= 10);
    }
}
