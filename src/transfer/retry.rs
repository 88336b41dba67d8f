//! Retry: the one place that decides whether to try again, and when.
//!
//! Failures are counted without progress: a byte that arrived or an answer that helped starts the count anew. A peer that
//! asks for time gets it, also from those whom it has not asked; being told to wait costs time, not tries. What is not
//! retryable is never tried again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;
use tokio_util::future::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::limits::{Errand, Lane, Traffic};
use crate::endpoint::Origin;
use crate::fault::{Class, Fault};
use crate::job::{Job, Key, SHORT_WAIT, TagRules};
use crate::random;

/// How patient to be.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Tries after the first that may fail in a row.
    pub attempts: u32,
    /// The first wait; each further one doubles.
    pub first: Duration,
    /// The longest wait of our own choice.
    pub longest: Duration,
    /// No new try starts after so long without progress, unless the peer asked for the wait.
    pub patience: Duration,
    /// How long peers may make us wait in all, without progress.
    pub hinted: Duration,
    /// How long a job waits for a registry's time, without progress, with its permit and its claims in hand.
    pub hold: Duration,
}

impl Settings {
    /// The same with shorter waits for a registry's time.
    pub fn within(self, most: Duration) -> Settings {
        Settings {
            hinted: self.hinted.min(most),
            ..self
        }
    }

    /// For a job that holds its permit and its claims.
    pub fn holding(self) -> Settings {
        self.within(self.hold)
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            attempts: 5,
            first: Duration::from_millis(400),
            longest: Duration::from_secs(20),
            patience: Duration::from_secs(40),
            hinted: Duration::from_secs(15 * 60),
            hold: SHORT_WAIT,
        }
    }
}

/// Counts failures without progress.
#[derive(Clone, Debug)]
pub struct Budget {
    settings: Settings,
    failures: u32,
    since: Option<Instant>,
    hinted_since: Option<Instant>,
    /// Waits because others were told to, without progress.
    excused: Duration,
}

impl Budget {
    /// A budget of which nothing is used.
    pub fn new(settings: Settings) -> Budget {
        Budget {
            settings,
            failures: 0,
            since: None,
            hinted_since: None,
            excused: Duration::ZERO,
        }
    }

    /// Something moved: the count starts anew.
    pub fn progress(&mut self) {
        self.failures = 0;
        self.since = None;
        self.hinted_since = None;
        self.excused = Duration::ZERO;
    }

    /// How long to wait before the next try; `None`: do not try again.
    pub fn next(&mut self, class: Class) -> Option<Duration> {
        let Class::Retryable { after } = class else {
            return None;
        };
        match after {
            Some(after) => self.hinted_wait(after),
            None => self.own_wait(),
        }
    }

    fn hinted_wait(&mut self, after: Duration) -> Option<Duration> {
        let wait = jittered_up(after.max(self.settings.first));
        let since = *self.hinted_since.get_or_insert_with(Instant::now);
        (since.elapsed() + wait <= self.settings.hinted).then_some(wait)
    }

    /// Time that passed because others were told to wait does not count against our own patience, but as long as peers may make
    /// us wait.
    pub fn excuse(&mut self, waited: Duration) {
        self.excused += waited;
        self.since = self.since.map(|since| since + waited);
    }

    /// The settings, without the waits that are used up.
    pub fn left(&self) -> Settings {
        Settings {
            hinted: self.settings.hinted.saturating_sub(self.excused),
            ..self.settings
        }
    }

    fn own_wait(&mut self) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.failures += 1;
        if self.failures > self.settings.attempts || since.elapsed() >= self.settings.patience {
            return None;
        }
        let doubled = self
            .settings
            .first
            .saturating_mul(1 << (self.failures - 1).min(16));
        Some(jittered_down(doubled.min(self.settings.longest)))
    }
}

/// Between the hint and a quarter more, so that many waiters do not return in one instant, and none before its time.
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
    /// Begin nothing long: running blobs end at their last checkpoint, jobs that have only manifests left finish.
    pub drain: CancellationToken,
    /// Drop everything.
    pub abort: CancellationToken,
    /// The route is no more: nothing is named any more.
    pub withdrawn: CancellationToken,
    /// What the config in force says of a job, whatever it said when the job began.
    pub rules: CurrentRules,
}

/// Answers what the config in force says of a job that began under an older one.
#[derive(Clone, Default)]
pub struct CurrentRules(Option<Arc<RulesOf>>);

/// The rules for a job from a source of that origin; `None`: there is no such job any more.
type RulesOf = dyn Fn(&Key, &Origin) -> Option<TagRules> + Send + Sync;

impl CurrentRules {
    /// Asks `rules` each time.
    pub fn new(
        rules: impl Fn(&Key, &Origin) -> Option<TagRules> + Send + Sync + 'static,
    ) -> CurrentRules {
        CurrentRules(Some(Arc::new(rules)))
    }

    /// The rules for a job now. Where no config can change, those that it began with.
    pub fn of(&self, job: &Job, source: &Origin) -> Option<TagRules> {
        self.0
            .as_ref()
            .map_or(Some(job.rules), |rules| rules(&job.key, source))
    }
}

impl fmt::Debug for CurrentRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentRules")
    }
}

/// Tries until it works, the budget is used up, or `stop` says to stop: draining ends the waits, aborting all. Each try is
/// sent in its turn, and everybody in the lane learns from what comes of it.
///
/// # Errors
/// The last failure, or one of class `Cancelled`.
pub async fn retry<T, F>(
    engine: &Engine,
    lane: &Lane,
    registry: &str,
    errand: impl Into<Errand>,
    stop: &Stop,
    mut act: impl FnMut() -> F,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let (errand, metrics) = (errand.into(), &engine.metrics);
    let settings = errand.max_wait.map_or(engine.settings.retry, |most| {
        engine.settings.retry.within(most)
    });
    let mut budget = Budget::new(settings);
    // A look only asks: a signal ends its question at once. What a job has begun may finish.
    let ends = if errand.look {
        &stop.drain
    } else {
        &stop.abort
    };
    loop {
        budget.excuse(opened(lane, errand.traffic, &budget.left(), stop).await?);
        let asked = Instant::now();
        let Ok(turn) = stoppable(ends, lane.turn_within(errand, settings.hinted)).await? else {
            continue;
        };
        metrics.waited.request(asked);
        let result = stoppable(ends, act()).await?;
        metrics.rate_limited(registry, turn.learn(&result));
        drop(turn);
        let fault = match result {
            Ok(value) => {
                metrics.health.heard(registry, None);
                return Ok(value);
            }
            Err(fault) => fault,
        };
        let Some(wait) = budget.next(fault.class()) else {
            metrics.health.heard(registry, Some(&fault));
            return Err(fault);
        };
        metrics.retried(registry, fault.class());
        tracing::debug!(registry, error = %fault.chain(), wait_seconds = wait.as_secs_f64(), "trying again");
        stoppable(&stop.drain, tokio::time::sleep(wait)).await?;
    }
}

/// Waits until the registry lets us send such requests again; returns how long that took.
///
/// # Errors
/// A retryable one when that is longer than we are patient; `Cancelled` when we drain.
pub async fn opened(
    lane: &Lane,
    traffic: Traffic,
    settings: &Settings,
    stop: &Stop,
) -> Result<Duration, Fault> {
    let left = lane.closed_for(traffic);
    if left > settings.hinted {
        let text = format!(
            "the registry asked for no such requests in the next {} s; it will be looked at again later",
            left.as_secs()
        );
        return Err(Fault::new(Class::Retryable { after: Some(left) }, text));
    }
    let start = Instant::now();
    if !left.is_zero() {
        stoppable(&stop.drain, lane.opens(traffic)).await?;
    }
    Ok(start.elapsed())
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

    #[tokio::test(start_paused = true)]
    async fn a_budget_ends_by_count_or_by_time() {
        let mut budget = Budget::new(Settings::default());
        let waits: Vec<_> = std::iter::from_fn(|| budget.next(Class::RETRYABLE)).collect();
        assert_eq!(waits.len(), 5);
        assert!(waits.windows(2).all(|pair| pair[1] >= pair[0] / 2));
        budget.progress();
        assert!(budget.next(Class::RETRYABLE).is_some());
        tokio::time::advance(Duration::from_secs(41)).await;
        assert!(budget.next(Class::RETRYABLE).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_comes_back_before_the_time_that_was_named() {
        let mut budget = Budget::new(Settings::default());
        for _ in 0..10 {
            let wait = budget
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
            budget
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
            assert_eq!(Budget::new(Settings::default()).next(class), None);
        }
        let (engine, lane) = idle_engine();
        let mut tries = 0;
        let result: Result<(), Fault> = retry(
            &engine,
            &lane,
            "r",
            Traffic::Manifests,
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
        let (engine, lane) = idle_engine();
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
        retry(&engine, &lane, "r", Traffic::Manifests, &stop, act)
            .await
            .unwrap();
        assert_eq!(up(), Some(true));
        let act = || std::future::ready(Err::<(), _>(Fault::retryable("reset")));
        retry(&engine, &lane, "r", Traffic::Manifests, &stop, act)
            .await
            .unwrap_err();
        assert_eq!(up(), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_we_are_asked_to_stop() {
        let (engine, lane) = idle_engine();
        let stop = Stop::default();
        let act = || std::future::ready(Err::<(), _>(busy(60)));
        let (result, ()) = tokio::join!(
            retry(&engine, &lane, "r", Traffic::Manifests, &stop, act),
            async { stop.drain.cancel() }
        );
        assert_eq!(result.unwrap_err().class(), Class::Cancelled);
        let stop = Stop::default();
        let held = || std::future::ready(Ok(()));
        let (result, ()) = tokio::join!(
            retry(&engine, &lane, "r", Traffic::Manifests, &stop, held),
            async { stop.drain.cancel() }
        );
        assert_eq!(
            result.unwrap_err().class(),
            Class::Cancelled,
            "whoever waits for others' sake stops as well"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_is_told_all_keep_to() {
        let (engine, lane) = idle_engine();
        let start = Instant::now();
        let mut told = false;
        let first = retry(
            &engine,
            &lane,
            "r",
            Traffic::Manifests,
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
        let other = retry(&engine, &lane, "r", Traffic::Writes, &stop, || {
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
    async fn a_wait_beyond_all_patience_is_said_at_once() {
        let (engine, lane) = idle_engine();
        lane.turn(Traffic::Manifests)
            .await
            .learn(&Err::<(), _>(busy(3600)));
        let act = || async { panic!("sent before its time") };
        let result: Result<(), Fault> = retry(
            &engine,
            &lane,
            "r",
            Traffic::Manifests,
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

    fn idle_engine() -> (Engine, std::sync::Arc<Lane>) {
        let metrics = crate::transfer::Metrics::new(&prometheus::Registry::new()).unwrap();
        let (index, ledger) = (
            crate::index::Index::in_memory(),
            crate::ledger::Ledger::in_memory(),
        );
        let engine = Engine::new(
            Default::default(),
            index,
            ledger,
            Default::default(),
            metrics,
        );
        let lane = engine
            .limits
            .lane(&crate::endpoint::Origin::new("http://127.0.0.1:1"));
        (engine, lane)
    }
}
