//! Limits: which request may be sent to which registry, and when.
//!
//! One [`RegistryLimiter`] per registry. Each class of requests has limits of its own there (quota,
//! back-off that all share, adaptive concurrency); the pace of the config, its concurrency and its
//! bandwidth hold for all classes together. Permits are held for the length of one request or one
//! body, and never while waiting for a time to come or for another job.

mod naming;
mod naming_queue;
mod priority;
mod registry_limiter;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::naming::NamingPermit;
pub use self::priority::RequestPriority;
pub use self::registry_limiter::{RegistryLimiter, RequestPermit};
pub use super::admission::Settings as Permits;
use super::admission::{Admission, Pulse};
use super::bandwidth::Plan;
use crate::endpoint::Origin;
use crate::endpoint::rate_limit::RateLimit;
pub use crate::endpoint::rate_limit::RequestClass;
use crate::registry::profile::Quotas;
use crate::transfer::pace::Concurrency;

/// What the config says of one registry, and what its operator documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Requests at once, 1 to 256; default [`REQUESTS`].
    pub concurrency: Option<usize>,
    /// Requests per second.
    pub requests_per_second: Option<f64>,
    /// Blob bytes per second, both ways together.
    pub bandwidth: Option<Plan>,
    /// Documented quotas, in requests per second.
    pub quotas: Quotas,
}

impl Settings {
    /// Requests at once.
    fn concurrency(&self) -> Concurrency {
        match self.concurrency {
            Some(most) => Concurrency::configured(most),
            None => Concurrency::unlimited(REQUESTS),
        }
    }
}

/// Requests at once to a registry of which the config says nothing.
pub const REQUESTS: usize = 64;
/// Blobs of at most so many bytes are bounded by the requests of their registries alone: they take
/// round trips, not memory.
pub const SMALL: u64 = 64 * 1024;
/// Jobs that run at once.
pub const JOBS: usize = 64;

/// Large blobs that move at once, of one image and of all: four for each thread that moves bytes, at
/// least sixteen.
pub fn bodies_at_once(threads: NonZeroUsize) -> usize {
    let most = threads.get().saturating_mul(4);
    most.max(Permits::default().bodies)
}

/// The limits of all registries. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    limiters: Arc<Mutex<BTreeMap<Origin, Arc<RegistryLimiter>>>>,
    admission: Admission,
}

impl Limits {
    /// Limits with so many permits for jobs and bodies.
    pub fn new(permits: Permits) -> Limits {
        Limits {
            limiters: Arc::default(),
            admission: Admission::new(permits),
        }
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    pub(super) fn pulse(&self) -> &Pulse {
        self.admission.pulse()
    }

    /// Whether tasks that could run have got no permit, byte, answer or error for a minute: a
    /// watchdog should know. To be asked regularly.
    pub fn stand_still(&self) -> bool {
        let limiters: Vec<Arc<RegistryLimiter>> = self.lock().values().cloned().collect();
        let requests: usize = limiters.iter().map(|limiter| limiter.runnable()).sum();
        self.pulse()
            .stands_still(self.admission.waiting() + requests)
    }

    /// Sets what the config says of a registry. What the registry asked for, and what waits and is
    /// under way, stays.
    pub fn set(&self, origin: &Origin, settings: Settings) {
        self.of(origin).reconfigure(settings);
    }

    /// From now on, what the registry says that it still allows is kept to.
    pub fn heed(&self, origin: &Origin, rate_limit: RateLimit) {
        self.of(origin).heed(rate_limit);
    }

    /// The limits of a registry.
    pub fn of(&self, origin: &Origin) -> Arc<RegistryLimiter> {
        self.lock()
            .entry(origin.clone())
            .or_insert_with(|| {
                Arc::new(RegistryLimiter::new(
                    origin,
                    Settings::default(),
                    &self.admission,
                ))
            })
            .clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Origin, Arc<RegistryLimiter>>> {
        self.limiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;
    use crate::endpoint::rate_limit::RateLimitHeader;
    use crate::fault::{Class, Fault};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_kept_over_time() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        limits.set(
            &origin,
            Settings {
                requests_per_second: Some(10.0),
                ..Settings::default()
            },
        );
        let limiter = limits.of(&origin);
        let start = Instant::now();
        for _ in 0..60 {
            drop(limiter.acquire(RequestClass::Manifests).await);
        }
        let took = start.elapsed().as_secs_f64();
        assert!(
            (4.9..5.2).contains(&took),
            "50 beyond the burst of 10 at 10 a second took {took}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_is_a_debt_that_is_paid_by_waiting() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        limits.set(
            &origin,
            Settings {
                bandwidth: Some(Plan::constant(1_000_000)),
                ..Settings::default()
            },
        );
        let limiter = limits.of(&origin);
        let start = Instant::now();
        for _ in 0..10 {
            tokio::time::sleep(limiter.bandwidth(400_000)).await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((3.6..4.1).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn other_settings_keep_what_a_registry_asked_for() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        let settings = Settings {
            concurrency: Some(1),
            ..Settings::default()
        };
        limits.set(&origin, settings.clone());
        let limiter = limits.of(&origin);
        let permit = limiter.acquire(RequestClass::Writes).await;
        limits.set(&origin, settings.clone());
        assert!(Arc::ptr_eq(&limits.of(&origin), &limiter));
        let busy = Fault::new(
            Class::Retryable {
                after: Some(Duration::from_secs(9)),
            },
            "busy",
        );
        assert_eq!(permit.record(&Err::<(), _>(busy)).as_secs(), 9);
        limits.set(
            &origin,
            Settings {
                concurrency: Some(2),
                ..settings
            },
        );
        let newer = limits.of(&origin);
        let one_more = || newer.acquire(RequestClass::Manifests).now_or_never();
        let second = one_more();
        assert!(second.is_some() && one_more().is_none(), "two at once");
        assert!(
            newer.closed_for(RequestClass::Writes).as_secs() >= 8,
            "a new config does not end what a registry asked for"
        );
        assert!(newer.closed_for(RequestClass::Manifests).is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_has_nothing_left_is_not_asked_before_there_is_more() {
        let limits = Limits::default();
        let (origin, rate_limit) = (Origin::new("http://127.0.0.1:1"), RateLimit::default());
        limits.heed(&origin, rate_limit.clone());
        limits.set(
            &origin,
            Settings {
                concurrency: Some(3),
                ..Settings::default()
            },
        );
        let limiter = limits.of(&origin);
        let permit = limiter.acquire(RequestClass::Manifests).await;
        rate_limit.note(
            RequestClass::Manifests,
            RateLimitHeader {
                remaining: 0,
                reset: Some(Duration::from_secs(30)),
                window: None,
            },
        );
        assert_eq!(permit.record(&Ok::<_, Fault>(())).as_secs(), 30);
        drop(permit);
        let start = Instant::now();
        drop(limiter.acquire(RequestClass::Blobs).await);
        assert!(
            start.elapsed().is_zero(),
            "other kinds of requests are counted apart"
        );
        drop(limiter.acquire(RequestClass::Manifests).await);
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
