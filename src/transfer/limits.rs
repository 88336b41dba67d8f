//! Limits: who may send how much at once.
//!
//! One lane per registry holds its request permits, its pace (requests per second) and its bandwidth. Permits are held for
//! the length of one request or one blob and never while waiting for another job. Waiting is fair: first come, first served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::endpoint::Origin;
use crate::fault::Fault;

/// What the config says of one registry.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// Requests at once, 1 to 256; default [`REQUESTS`].
    pub concurrency: Option<usize>,
    /// Requests per second.
    pub requests_per_second: Option<f64>,
    /// Blob bytes per second, each way.
    pub bandwidth: Option<u64>,
}

/// Requests at once to a registry of which the config says nothing.
pub const REQUESTS: usize = 32;
/// Blobs that move at once, over all registries: bounds memory, since each holds at most a few frames.
pub const BLOBS: usize = 16;
/// Jobs that run at once.
pub const JOBS: usize = 64;

/// All lanes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Limits {
    lanes: Arc<Mutex<HashMap<Origin, Arc<Lane>>>>,
    blobs: Arc<Semaphore>,
    jobs: Arc<Semaphore>,
}

/// The limits of one registry.
#[derive(Debug)]
pub struct Lane {
    settings: Settings,
    requests: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
    pace: Option<Bucket>,
    bandwidth: Option<Bucket>,
    manifests: OnceLock<Bucket>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { lanes: Arc::default(), blobs: Arc::new(Semaphore::new(BLOBS)), jobs: Arc::new(Semaphore::new(JOBS)) }
    }
}

impl Limits {
    /// Sets what the config says of a registry. A lane whose settings stay the same keeps its state.
    pub fn set(&self, origin: &Origin, settings: Settings) {
        let mut lanes = self.lanes.lock().expect("nothing panics while it holds the lanes");
        if lanes.get(origin).is_none_or(|lane| lane.settings != settings) {
            lanes.insert(origin.clone(), Arc::new(Lane::new(settings)));
        }
    }

    /// The lane of a registry.
    pub fn lane(&self, origin: &Origin) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().expect("nothing panics while it holds the lanes");
        lanes.entry(origin.clone()).or_insert_with(|| Arc::new(Lane::new(Settings::default()))).clone()
    }

    /// The right to move one blob.
    pub async fn blob(&self) -> OwnedSemaphorePermit {
        self.blobs.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// The right to run one job.
    pub async fn job(&self) -> OwnedSemaphorePermit {
        self.jobs.clone().acquire_owned().await.expect("the semaphore is never closed")
    }
}

impl Lane {
    fn new(settings: Settings) -> Lane {
        let permits = || Arc::new(Semaphore::new(settings.concurrency.unwrap_or(REQUESTS)));
        Lane {
            settings,
            requests: permits(),
            readers: permits(),
            writers: permits(),
            pace: settings.requests_per_second.map(|rate| Bucket::new(rate, rate.max(1.0))),
            manifests: OnceLock::new(),
            bandwidth: settings.bandwidth.map(|rate| Bucket::new(rate as f64, (rate as f64 / 4.0).max(65536.0))),
        }
    }

    /// Requests that may run at once.
    pub fn concurrency(&self) -> usize {
        self.settings.concurrency.unwrap_or(REQUESTS)
    }

    /// The right to send one request, when its time has come.
    pub async fn request(&self) -> OwnedSemaphorePermit {
        let permit = self.requests.clone().acquire_owned().await.expect("the semaphore is never closed");
        if let Some(pace) = &self.pace {
            tokio::time::sleep(pace.take(1.0)).await;
        }
        permit
    }

    /// The right to read one blob from here. Taken before the right to write: nobody waits in a circle.
    pub async fn read(&self) -> OwnedSemaphorePermit {
        self.readers.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// The right to write one blob to here.
    pub async fn write(&self) -> OwnedSemaphorePermit {
        self.writers.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Waits until the registry takes one more manifest, of which it takes `rate` in a second and none ahead of its time.
    pub async fn manifest(&self, rate: Option<f64>) {
        if let Some(rate) = rate {
            let wait = self.manifests.get_or_init(|| Bucket::new(rate, 1.0)).take(1.0);
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends one request under a permit.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn send<T>(&self, request: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let _permit = self.request().await;
        request.await
    }

    /// How long to wait for so many bytes to have been allowed.
    pub fn bandwidth(&self, bytes: u64) -> Duration {
        self.bandwidth.as_ref().map_or(Duration::ZERO, |bucket| bucket.take(bytes as f64))
    }
}

/// A token bucket that may go into debt: a taker is told how long to wait until the debt is paid.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    most: f64,
    state: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(rate: f64, most: f64) -> Bucket {
        Bucket { rate, most, state: Mutex::new((most, Instant::now())) }
    }

    fn take(&self, amount: f64) -> Duration {
        let mut state = self.state.lock().expect("nothing panics while it holds the bucket");
        let now = Instant::now();
        let (tokens, at) = *state;
        let filled = (tokens + now.duration_since(at).as_secs_f64() * self.rate).min(self.most);
        let left = filled - amount;
        *state = (left, now);
        if left >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64((-left / self.rate).min(3600.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_kept_over_time() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        limits.set(&origin, Settings { requests_per_second: Some(10.0), ..Settings::default() });
        let lane = limits.lane(&origin);
        let start = Instant::now();
        for _ in 0..60 {
            drop(lane.request().await);
        }
        let took = start.elapsed().as_secs_f64();
        assert!((4.9..5.2).contains(&took), "50 beyond the burst of 10 at 10 a second took {took}");
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_is_a_debt_that_is_paid_by_waiting() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        limits.set(&origin, Settings { bandwidth: Some(1_000_000), ..Settings::default() });
        let lane = limits.lane(&origin);
        let start = Instant::now();
        for _ in 0..10 {
            tokio::time::sleep(lane.bandwidth(400_000)).await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((3.6..4.1).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn a_lane_keeps_its_permits_when_nothing_changed() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        let settings = Settings { concurrency: Some(1), ..Settings::default() };
        limits.set(&origin, settings);
        let lane = limits.lane(&origin);
        let _permit = lane.request().await;
        limits.set(&origin, settings);
        assert_eq!(limits.lane(&origin).requests.available_permits(), 0);
        limits.set(&origin, Settings { concurrency: Some(2), ..settings });
        assert_eq!(limits.lane(&origin).concurrency(), 2);
    }
}
