//! Retry: the one place that decides whether to try again, and when.
//!
//! Failures are counted without progress: a byte that arrived or an answer that helped starts the count anew. A peer that
//! names a time is waited for; being told to wait costs time, not tries. What is not retryable is never tried again.

use std::time::Duration;

use futures::future::Either;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fault::{Class, Fault};
use crate::transfer::metrics::Metrics;

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
    /// The longest time that peers may make us wait in all, without progress.
    pub hinted: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            attempts: 5,
            first: Duration::from_millis(400),
            longest: Duration::from_secs(20),
            patience: Duration::from_secs(40),
            hinted: Duration::from_secs(15 * 60),
        }
    }
}

/// Counts failures without progress.
#[derive(Clone, Debug)]
pub struct Budget {
    settings: Settings,
    failures: u32,
    since: Option<Instant>,
    hinted: Duration,
}

impl Budget {
    /// A budget of which nothing is used.
    pub fn new(settings: Settings) -> Budget {
        Budget { settings, failures: 0, since: None, hinted: Duration::ZERO }
    }

    /// Something moved: the count starts anew.
    pub fn progress(&mut self) {
        self.failures = 0;
        self.since = None;
        self.hinted = Duration::ZERO;
    }

    /// How long to wait before the next try; `None`: do not try again.
    pub fn next(&mut self, class: Class) -> Option<Duration> {
        let Class::Retryable { after } = class else { return None };
        match after {
            Some(after) => self.hinted_wait(after),
            None => self.own_wait(),
        }
    }

    fn hinted_wait(&mut self, after: Duration) -> Option<Duration> {
        let wait = jittered_up(after.max(self.settings.first));
        self.hinted += wait;
        (self.hinted <= self.settings.hinted).then_some(wait)
    }

    fn own_wait(&mut self) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.failures += 1;
        if self.failures > self.settings.attempts || since.elapsed() >= self.settings.patience {
            return None;
        }
        let doubled = self.settings.first.saturating_mul(1 << (self.failures - 1).min(16));
        Some(jittered_down(doubled.min(self.settings.longest)))
    }
}

/// Between the hint and a quarter more, so that many waiters do not return in one instant, and none before its time.
fn jittered_up(wait: Duration) -> Duration {
    wait + wait.mul_f64(0.25 * random())
}

/// Between half and all of the wait.
fn jittered_down(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + 0.5 * random())
}

/// A number from 0 to 1, good enough to spread waits.
pub fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1u64 << 53) as f64
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
}

/// Tries until it works, the budget is used up, or `stop` says to stop: draining ends the waits, aborting all.
///
/// # Errors
/// The last failure, or one of class `Cancelled`.
pub async fn retry<T, F>(
    settings: Settings,
    metrics: &Metrics,
    registry: &str,
    stop: &Stop,
    mut act: impl FnMut() -> F,
) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let mut budget = Budget::new(settings);
    loop {
        let fault = match stoppable(&stop.abort, act()).await? {
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
        metrics.retried(registry, fault.class(), wait);
        tracing::debug!(registry, error = %fault.chain(), wait_seconds = wait.as_secs_f64(), "trying again");
        stoppable(&stop.drain, tokio::time::sleep(wait)).await?;
    }
}

/// Waits for `future` unless `stop` comes first.
///
/// # Errors
/// A fault of class `Cancelled` when it does.
pub async fn stoppable<T>(stop: &CancellationToken, future: impl Future<Output = T>) -> Result<T, Fault> {
    let stopped = std::pin::pin!(stop.cancelled());
    match futures::future::select(stopped, std::pin::pin!(future)).await {
        Either::Left(_) => Err(Fault::cancelled()),
        Either::Right((value, _)) => Ok(value),
    }
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
            let wait = budget.next(Class::Retryable { after: Some(Duration::from_secs(30)) }).unwrap();
            assert!(wait >= Duration::from_secs(30) && wait <= Duration::from_secs(38), "{wait:?}");
        }
        assert!(budget.next(Class::Retryable { after: Some(Duration::from_secs(3600)) }).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_retryable_is_tried_again() {
        for class in [Class::Auth, Class::NotFound, Class::Corrupt, Class::Rejected, Class::Cancelled] {
            assert_eq!(Budget::new(Settings::default()).next(class), None);
        }
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let mut tries = 0;
        let result: Result<(), Fault> = retry(Settings::default(), &metrics, "r", &Stop::default(), || {
            tries += 1;
            std::future::ready(if tries < 3 { Err(Fault::retryable("reset")) } else { Err(Fault::rejected("no")) })
        })
        .await;
        assert_eq!((tries, result.unwrap_err().class()), (3, Class::Rejected));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_of_a_registry_tells_whether_it_is_up() {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        metrics.health.prepare("r");
        let up = || metrics.health.of("r").unwrap().up;
        let (settings, stop) = (Settings::default(), Stop::default());
        let mut tries = 0;
        let act = || {
            tries += 1;
            std::future::ready(if tries < 3 { Err(Fault::retryable("reset")) } else { Ok(()) })
        };
        retry(settings, &metrics, "r", &stop, act).await.unwrap();
        assert_eq!(up(), Some(true));
        let act = || std::future::ready(Err::<(), _>(Fault::retryable("reset")));
        retry(settings, &metrics, "r", &stop, act).await.unwrap_err();
        assert_eq!(up(), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_we_are_asked_to_stop() {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let stop = Stop::default();
        let act =
            || std::future::ready(Err::<(), _>(Fault::new(Class::Retryable { after: Some(Duration::from_secs(60)) }, "busy")));
        let (result, ()) = tokio::join!(retry(Settings::default(), &metrics, "r", &stop, act), async { stop.drain.cancel() });
        assert_eq!(result.unwrap_err().class(), Class::Cancelled);
    }
}
