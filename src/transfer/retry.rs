//! Retry: the one place that decides whether to try again, and when.
//!
//! Failures are counted without progress: a byte that arrived or an answer that helped starts the
//! count anew. A peer that asks for time gets it, also from callers that it has not asked; being
//! told to wait costs time, not tries. What is not retryable is never tried again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::future::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::limits::{RegistryLimiter, RequestPriority};
use super::sets::CurrentSets;
use super::{Engine, Metrics};
use crate::backoff::Backoff;
use crate::endpoint::OnlyPlatform;
use crate::endpoint::Origin;
use crate::fault::{Class, Fault};
use crate::job::{Gates, Job, Key, SHORT_WAIT, TagRules};
use crate::oci::{Platform, Tag};
use crate::random;

/// How often and how long to try.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Tries after the first that may fail in a row.
    pub attempts: u32,
    /// The first wait; each further one doubles.
    pub first: Duration,
    /// The longest wait of our own choice.
    pub longest: Duration,
    /// No new try starts after so long without progress, unless the peer asked for the wait.
    pub max_elapsed: Duration,
    /// How long peers may make us wait in all, without progress.
    pub max_server_delay: Duration,
    /// How long a job waits for a registry's time, without progress, with its permit and its claims
    /// in hand.
    pub hold: Duration,
}

impl Settings {
    /// The same with shorter waits for a registry's time.
    pub fn within(self, most: Duration) -> Settings {
        Settings {
            max_server_delay: self.max_server_delay.min(most),
            ..self
        }
    }

    /// For a job that holds its permit and its claims.
    pub fn holding(self) -> Settings {
        self.within(self.hold)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.first, self.longest)
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            attempts: 5,
            first: Duration::from_millis(400),
            longest: Duration::from_secs(20),
            max_elapsed: Duration::from_secs(40),
            max_server_delay: Duration::from_secs(15 * 60),
            hold: SHORT_WAIT,
        }
    }
}

/// Counts failures without progress.
#[derive(Clone, Debug)]
pub struct RetryState {
    settings: Settings,
    failures: u32,
    since: Option<Instant>,
    /// Waits that the peer asked us for.
    delayed: Duration,
    /// Waits because the peer asked others, and answers that it gave to others by then.
    excused: Duration,
    answers: u64,
}

impl RetryState {
    /// Nothing has failed yet.
    pub fn new(settings: Settings) -> RetryState {
        RetryState {
            settings,
            failures: 0,
            since: None,
            delayed: Duration::ZERO,
            excused: Duration::ZERO,
            answers: 0,
        }
    }

    /// Something moved: the count starts anew.
    pub fn progress(&mut self) {
        self.failures = 0;
        self.since = None;
        self.delayed = Duration::ZERO;
        self.excused = Duration::ZERO;
    }

    /// How long to wait before the next try; `None`: do not try again.
    pub fn next(&mut self, class: Class) -> Option<Duration> {
        let Class::Retryable { after } = class else {
            return None;
        };
        match after {
            Some(after) => self.server_delay(after),
            None => self.own_wait(),
        }
    }

    /// The time that the peer asked for: it costs time, not tries.
    fn server_delay(&mut self, after: Duration) -> Option<Duration> {
        let wait = jittered_up(self.settings.backoff().hinted(after));
        self.delayed += wait;
        self.since = self.since.map(|since| since + wait);
        (self.delayed <= self.settings.max_server_delay).then_some(wait)
    }

    fn own_wait(&mut self) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.failures += 1;
        if self.failures > self.settings.attempts || since.elapsed() >= self.settings.max_elapsed {
            return None;
        }
        Some(jittered_down(self.settings.backoff().wait(self.failures)))
    }

    /// Time that passed because others were told to wait counts neither as a try nor as our own
    /// time, but only so much of it is waited in which the peer answers nothing at all.
    fn excuse(&mut self, waited: Duration, answers: u64) {
        if answers != self.answers {
            self.answers = answers;
            self.excused = Duration::ZERO;
        }
        self.excused += waited;
        self.since = self.since.map(|since| since + waited);
    }

    /// How long a class may be closed to be waited for.
    fn left(&self) -> Duration {
        self.settings.max_server_delay.saturating_sub(self.excused)
    }
}

/// Between the hint and a quarter more, so that many waiters do not return in one instant, and none
/// before its time.
fn jittered_up(wait: Duration) -> Duration {
    wait + wait.mul_f64(0.25 * random::fraction())
}

/// Between half and all of the wait.
fn jittered_down(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + 0.5 * random::fraction())
}

/// When to stop: gently, or at once.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Begin nothing long: running blobs end at their last checkpoint, jobs that have only
    /// manifests left finish.
    pub drain: CancellationToken,
    /// Drop everything.
    pub abort: CancellationToken,
    /// The route is no more: nothing is named any more.
    pub withdrawn: CancellationToken,
    /// What the config in force says of a job, whatever it said when the job began.
    pub rules: CurrentRules,
    /// The sets of the config in force.
    pub sets: CurrentSets,
}

/// Answers what the config in force says of a job that began under an older one.
#[derive(Clone, Default)]
pub struct CurrentRules(Option<Arc<RulesOf>>);

/// The rules for a job from a source of that origin; `None`: there is no such job any more.
type RulesOf = dyn Fn(&Key, &Origin) -> Option<RulesInForce> + Send + Sync;

/// What the config in force says of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RulesInForce {
    /// The rules for the tag.
    pub tag: TagRules,
    /// The gates of the route.
    pub gates: Arc<Gates>,
    /// The tag that gets what a moving tag named, before that moves.
    pub backup: Option<Tag>,
    /// Whether the route writes nothing: its jobs only plan.
    pub observes: bool,
    /// The platform that the route reads.
    pub platform: PlatformNow,
}

/// What a route reads of an image now.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum PlatformNow {
    /// What it read when the job began.
    #[default]
    AsBegun,
    /// One platform alone, or with `None` the whole image.
    Reads(Option<Platform>),
}

impl PlatformNow {
    /// What is read now.
    pub fn of(only: Option<&OnlyPlatform>) -> PlatformNow {
        PlatformNow::Reads(only.map(|only| only.platform().clone()))
    }

    /// Whether that is what a job reads.
    pub(super) fn is(&self, read: Option<&Platform>) -> bool {
        match self {
            PlatformNow::AsBegun => true,
            PlatformNow::Reads(platform) => platform.as_ref() == read,
        }
    }
}

impl RulesInForce {
    /// The rules that a job began with.
    fn at_begin(job: &Job) -> RulesInForce {
        RulesInForce {
            tag: job.rules,
            gates: job.gates.clone(),
            backup: job.backup.clone(),
            observes: false,
            platform: PlatformNow::AsBegun,
        }
    }
}

impl From<TagRules> for RulesInForce {
    fn from(tag: TagRules) -> RulesInForce {
        RulesInForce {
            tag,
            ..RulesInForce::default()
        }
    }
}

impl CurrentRules {
    /// Asks `rules` each time.
    pub fn new<R: Into<RulesInForce>>(
        rules: impl Fn(&Key, &Origin) -> Option<R> + Send + Sync + 'static,
    ) -> CurrentRules {
        CurrentRules(Some(Arc::new(move |key, source| {
            rules(key, source).map(Into::into)
        })))
    }

    /// The rules for a job now. Where no config can change, those that it began with.
    pub fn of(&self, job: &Job, source: &Origin) -> Option<RulesInForce> {
        match &self.0 {
            Some(rules) => rules(&job.key, source),
            None => Some(RulesInForce::at_begin(job)),
        }
    }
}

impl fmt::Debug for CurrentRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentRules")
    }
}

/// Tries until it works, nothing is left to try with, or `stop` says to stop: draining ends the
/// waits, aborting all. Each try is sent in its turn, and the registry's limiter records what comes
/// of it.
///
/// # Errors
/// The last failure, or one of class `Cancelled`.
pub async fn retry<T, F>(
    engine: &Engine,
    limiter: &RegistryLimiter,
    registry: &str,
    priority: impl Into<RequestPriority>,
    stop: &Stop,
    act: impl FnMut() -> F,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let priority = priority.into();
    let settings = engine.settings.retry;
    let settings = priority
        .max_wait
        .map_or(settings, |most| settings.within(most));
    let retry = Retry {
        metrics: &engine.metrics,
        limiter,
        registry,
        priority,
        stop,
    };
    retry.send(&mut RetryState::new(settings), act).await
}

/// Requests of one kind to one registry, sent until one works.
pub(super) struct Retry<'a> {
    pub(super) metrics: &'a Metrics,
    pub(super) limiter: &'a RegistryLimiter,
    pub(super) registry: &'a str,
    pub(super) priority: RequestPriority,
    pub(super) stop: &'a Stop,
}

impl Retry<'_> {
    /// See [`retry`].
    pub(super) async fn send<T, F>(
        &self,
        state: &mut RetryState,
        mut act: impl FnMut() -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        // A look only asks: a signal ends its request at once. What a job has begun may finish.
        let ends = if self.priority.is_look {
            &self.stop.drain
        } else {
            &self.stop.abort
        };
        loop {
            self.opened(state).await?;
            let asked = Instant::now();
            let acquired = self.limiter.acquire_within(self.priority, state.left());
            let Ok(permit) = stoppable(ends, acquired).await? else {
                continue;
            };
            self.metrics.waited.request(asked);
            let result = stoppable(ends, act()).await?;
            self.metrics
                .rate_limited(self.registry, permit.record(&result));
            drop(permit);
            let fault = match result {
                Ok(value) => {
                    self.metrics.health.heard(self.registry, None);
                    return Ok(value);
                }
                Err(fault) => fault,
            };
            if !self.wait_after(state, &fault).await? {
                self.metrics.health.heard(self.registry, Some(&fault));
                return Err(fault);
            }
        }
    }

    /// Waits before the next try. `false`: it is not tried again.
    ///
    /// # Errors
    /// `Cancelled` when we drain.
    pub(super) async fn wait_after(
        &self,
        state: &mut RetryState,
        fault: &Fault,
    ) -> Result<bool, Fault> {
        let Some(wait) = state.next(fault.class()) else {
            return Ok(false);
        };
        self.metrics.retried(self.registry, fault.class());
        let (registry, wait_seconds) = (self.registry, wait.as_secs_f64());
        tracing::debug!(
            registry,
            error = %fault.chain(),
            wait_seconds,
            "trying again"
        );
        stoppable(&self.stop.drain, tokio::time::sleep(wait)).await?;
        Ok(true)
    }

    /// Waits until the registry takes such requests again.
    ///
    /// # Errors
    /// A retryable one when that takes longer than is waited for; `Cancelled` when we drain.
    pub(super) async fn opened(&self, state: &mut RetryState) -> Result<(), Fault> {
        let class = self.priority.class;
        let closed_for = self.limiter.closed_for(class);
        if closed_for.is_zero() {
            return Ok(());
        }
        state.excuse(Duration::ZERO, self.limiter.answers(class));
        if closed_for > state.left() {
            let text = format!(
                "the registry asked for no such requests in the next {} s; it will be looked at again later",
                closed_for.as_secs()
            );
            let after = Some(closed_for);
            let fault = Fault::new(Class::Retryable { after }, text);
            self.metrics.health.heard(self.registry, Some(&fault));
            return Err(fault);
        }
        let start = Instant::now();
        stoppable(&self.stop.drain, self.limiter.opens(class)).await?;
        state.excuse(start.elapsed(), self.limiter.answers(class));
        Ok(())
    }
}

/// Waits for `future` unless `stop` comes first.
///
/// # Errors
/// A fault of class `Cancelled` when it does.
pub fn stoppable<F: Future>(
    stop: &CancellationToken,
    future: F,
) -> impl Future<Output = Result<F::Output, Fault>> {
    // No async function: that would keep room for the future twice, and futures nest.
    future
        .with_cancellation_token(stop)
        .map(|ended| ended.ok_or_else(Fault::cancelled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::limits::RequestClass;

    #[tokio::test(start_paused = true)]
    async fn a_budget_ends_by_count_or_by_time() {
        let mut state = RetryState::new(Settings::default());
        let waits: Vec<_> = std::iter::from_fn(|| state.next(Class::RETRYABLE)).collect();
        assert_eq!(waits.len(), 5);
        assert!(waits.windows(2).all(|pair| pair[1] >= pair[0] / 2));
        state.progress();
        assert!(state.next(Class::RETRYABLE).is_some());
        tokio::time::advance(Duration::from_secs(41)).await;
        assert!(state.next(Class::RETRYABLE).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn no_caller_comes_back_before_the_time_that_was_named() {
        let mut state = RetryState::new(Settings::default());
        for _ in 0..10 {
            let wait = state
                .next(Class::Retryable {
                    after: Some(Duration::from_secs(30)),
                })
                .unwrap();
            assert!(
                wait >= Duration::from_secs(30) && wait <= Duration::from_secs(38),
                "{wait:?}"
            );
        }
        assert!(
            state
                .next(Class::Retryable {
                    after: Some(Duration::from_secs(3600))
                })
                .is_none()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_retryable_is_tried_again() {
        for class in [
            Class::Auth,
            Class::NotFound,
            Class::Corrupt,
            Class::Rejected,
            Class::Cancelled,
        ] {
            assert_eq!(RetryState::new(Settings::default()).next(class), None);
        }
        let (engine, limiter) = idle_engine();
        let mut tries = 0;
        let result: Result<(), Fault> = retry(
            &engine,
            &limiter,
            "r",
            RequestClass::Manifests,
            &Stop::default(),
            || {
                tries += 1;
                std::future::ready(if tries < 3 {
                    Err(Fault::retryable("reset"))
                } else {
                    Err(Fault::rejected("no"))
                })
            },
        )
        .await;
        assert_eq!((tries, result.unwrap_err().class()), (3, Class::Rejected));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_of_a_registry_tells_whether_it_is_up() {
        let (engine, limiter) = idle_engine();
        engine.metrics.health.prepare("r");
        let up = || engine.metrics.health.of("r").unwrap().up;
        let stop = Stop::default();
        let mut tries = 0;
        let act = || {
            tries += 1;
            std::future::ready(if tries < 3 {
                Err(Fault::retryable("reset"))
            } else {
                Ok(())
            })
        };
        retry(&engine, &limiter, "r", RequestClass::Manifests, &stop, act)
            .await
            .unwrap();
        assert_eq!(up(), Some(true));
        let act = || std::future::ready(Err::<(), _>(Fault::retryable("reset")));
        retry(&engine, &limiter, "r", RequestClass::Manifests, &stop, act)
            .await
            .unwrap_err();
        assert_eq!(up(), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_we_are_asked_to_stop() {
        let (engine, limiter) = idle_engine();
        let stop = Stop::default();
        let act = || std::future::ready(Err::<(), _>(busy(60)));
        let (result, ()) = tokio::join!(
            retry(&engine, &limiter, "r", RequestClass::Manifests, &stop, act),
            async { stop.drain.cancel() }
        );
        assert_eq!(result.unwrap_err().class(), Class::Cancelled);
        let stop = Stop::default();
        let held = || std::future::ready(Ok(()));
        let (result, ()) = tokio::join!(
            retry(&engine, &limiter, "r", RequestClass::Manifests, &stop, held),
            async { stop.drain.cancel() }
        );
        assert_eq!(
            result.unwrap_err().class(),
            Class::Cancelled,
            "a caller that was not asked to wait stops as well"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_holds_for_every_caller() {
        let (engine, limiter) = idle_engine();
        let start = Instant::now();
        let mut told = false;
        let first = retry(
            &engine,
            &limiter,
            "r",
            RequestClass::Manifests,
            &Stop::default(),
            || {
                std::future::ready(if std::mem::replace(&mut told, true) {
                    Ok(start.elapsed())
                } else {
                    Err(busy(60))
                })
            },
        )
        .await;
        assert!(first.unwrap() >= Duration::from_secs(60));
        let stop = Stop::default();
        let other = retry(&engine, &limiter, "r", RequestClass::Writes, &stop, || {
            std::future::ready(Ok::<_, Fault>(()))
        });
        let before = Instant::now();
        other.await.unwrap();
        assert!(
            before.elapsed().is_zero(),
            "other kinds of requests are not concerned"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_too_long_is_said_at_once() {
        let (mut engine, limiter) = idle_engine();
        engine.settings.retry.max_server_delay = Duration::from_secs(30);
        limiter
            .acquire(RequestClass::Manifests)
            .await
            .record(&Err::<(), _>(busy(3600)));
        let act = || async { panic!("sent before its time") };
        let result: Result<(), Fault> = retry(
            &engine,
            &limiter,
            "r",
            RequestClass::Manifests,
            &Stop::default(),
            act,
        )
        .await;
        assert!(matches!(
            result.unwrap_err().class(),
            Class::Retryable { after: Some(_) }
        ));
    }

    fn busy(seconds: u64) -> Fault {
        Fault::new(
            Class::Retryable {
                after: Some(Duration::from_secs(seconds)),
            },
            "busy",
        )
    }

    fn idle_engine() -> (Engine, std::sync::Arc<RegistryLimiter>) {
        let engine = Engine::in_memory();
        let limiter = engine
            .limits
            .of(&crate::endpoint::Origin::new("http://127.0.0.1:1"));
        (engine, limiter)
    }
}
