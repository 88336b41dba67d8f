//! What the engine counts. Labels come from the config or from closed sets; repositories are
//! capped.

mod sets;
mod throughput;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prometheus::{
    CounterVec, Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, Registry,
};
use tokio::time::Instant;

pub use self::sets::SetMetrics;
pub use self::throughput::Meter;
use self::throughput::Rate;
use super::health::Health;
use crate::fault::Class;
use crate::job::{BlobOutcome, GateKind, Outcome, ReferrerOutcome, Verdict};
use crate::metrics::{LabelNames, forget_series, options, registered};

/// Most destination repositories with series of their own; further ones count as `other`.
const REPOSITORIES: usize = 1000;

/// Buckets of a promotion's duration: from a few manifests to many gigabytes over a slow link.
const PROMOTION_SECONDS: [f64; 14] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];
/// Buckets of the time from a push, or its first observation, to production.
pub const TO_PRODUCTION_SECONDS: [f64; 14] = [
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 43_200.0,
    86_400.0,
];

/// The engine's instruments. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    promotions: IntCounterVec,
    outcomes: IntCounterVec,
    gates: IntCounterVec,
    promotion_seconds: HistogramVec,
    push_to_production_seconds: HistogramVec,
    jobs_in_flight: IntGauge,
    blobs: IntCounterVec,
    referrers: IntCounterVec,
    resumes: IntCounter,
    spared_bytes: IntCounterVec,
    throughput: GaugeVec,
    digest_mismatches: IntCounterVec,
    retries: IntCounterVec,
    stalls: IntCounterVec,
    rate_limited_seconds: CounterVec,
    /// Waiting times for permits.
    pub waited: Waited,
    /// The health of the registries.
    pub health: Health,
    /// What is counted of sets.
    pub sets: SetMetrics,
    /// Destinations of the config's routes: others are not counted.
    places: Arc<Mutex<HashSet<(String, String)>>>,
    registries: LabelNames,
    repositories: Arc<Mutex<HashSet<String>>>,
    rates: Arc<Mutex<Vec<Rate>>>,
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, Error> {
    registered(registry, IntCounterVec::new(options(name, help), labels)?)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    bounds: &[f64],
) -> Result<HistogramVec, Error> {
    let options = HistogramOpts::from(options(name, help)).buckets(bounds.to_vec());
    registered(registry, HistogramVec::new(options, &["route"])?)
}

impl Metrics {
    /// Registers the instruments.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, Error> {
        Ok(Metrics {
            promotions: counters(
                registry,
                "promotions_total",
                "Production tags that were moved.",
                &["route", "destination", "repository"],
            )?,
            outcomes: counters(
                registry,
                "outcomes_total",
                "Settled jobs by what came of them.",
                &["route", "destination", "result"],
            )?,
            gates: counters(
                registry,
                "gates_total",
                "Settled jobs by the verdict of each gate that was judged.",
                &["route", "gate", "verdict"],
            )?,
            promotion_seconds: histograms(
                registry,
                "promotion_duration_seconds",
                "From the start of a promotion to its tag in production.",
                &PROMOTION_SECONDS,
            )?,
            push_to_production_seconds: histograms(
                registry,
                "push_to_production_seconds",
                "From the push in staging, where its time is known, to the tag readable in production.",
                &TO_PRODUCTION_SECONDS,
            )?,
            jobs_in_flight: registered(
                registry,
                IntGauge::new("blobferry_jobs_in_flight", "Jobs that are running.")?,
            )?,
            blobs: counters(
                registry,
                "blobs_total",
                "Blobs by how they came to be in the destination.",
                &["route", "destination", "how"],
            )?,
            referrers: counters(
                registry,
                "referrers_total",
                "Referrers and companion tags of images by what happened to them.",
                &["route", "destination", "how"],
            )?,
            resumes: registered(
                registry,
                IntCounter::new(
                    "blobferry_resumes_total",
                    "Uploads that went on from a checkpoint.",
                )?,
            )?,
            spared_bytes: counters(
                registry,
                "spared_bytes_total",
                "Bytes that did not have to be sent.",
                &["how"],
            )?,
            throughput: registered(
                registry,
                GaugeVec::new(
                    options(
                        "transfer_throughput_bytes_per_second",
                        "Blob bytes per second over the last 10 seconds.",
                    ),
                    &["registry", "direction"],
                )?,
            )?,
            digest_mismatches: counters(
                registry,
                "digest_mismatches_total",
                "Content that did not have the digest or size it promised.",
                &["registry"],
            )?,
            stalls: counters(
                registry,
                "stalls_total",
                "Transfers that were cut because too little moved.",
                &["registry", "direction"],
            )?,
            retries: counters(
                registry,
                "retries_total",
                "Tries after a failure.",
                &["registry", "class"],
            )?,
            rate_limited_seconds: registered(
                registry,
                CounterVec::new(
                    options(
                        "rate_limited_seconds_total",
                        "Seconds for which a registry asked us to send no requests of some kind.",
                    ),
                    &["registry"],
                )?,
            )?,
            waited: Waited::new(registry)?,
            health: Health::new(registry)?,
            sets: SetMetrics::new(registry)?,
            places: Arc::default(),
            registries: LabelNames::default(),
            repositories: Arc::default(),
            rates: Arc::default(),
        })
    }

    /// Creates all series of a route, at 0.
    pub fn prepare_route<'a>(&self, route: &str, destinations: impl Iterator<Item = &'a str>) {
        for destination in destinations {
            self.places().insert((route.into(), destination.into()));
            for outcome in Outcome::ALL {
                self.outcomes
                    .with_label_values(&[route, destination, outcome.name()]);
            }
            for how in ["present", "mounted", "copied"] {
                self.blobs.with_label_values(&[route, destination, how]);
            }
            for outcome in ReferrerOutcome::ALL {
                self.referrers
                    .with_label_values(&[route, destination, outcome.name()]);
            }
        }
        self.promotion_seconds.with_label_values(&[route]);
        self.push_to_production_seconds.with_label_values(&[route]);
        for how in ["present", "mounted", "resumed"] {
            self.spared_bytes.with_label_values(&[how]);
        }
    }

    /// Creates the series of a route's gates, at 0.
    pub fn prepare_gates(&self, route: &str, gates: &[GateKind]) {
        for gate in gates {
            for verdict in Verdict::ALL {
                let labels = [route, gate.name(), verdict.name()];
                self.gates.with_label_values(&labels);
            }
        }
    }

    /// A gate was judged for a job that has settled.
    pub fn judged(&self, route: &str, gate: GateKind, verdict: Verdict) {
        if self.places().iter().any(|(known, _)| known == route) {
            let labels = [route, gate.name(), verdict.name()];
            self.gates.with_label_values(&labels).inc();
        }
    }

    /// Creates the promotion counter of a literal destination repository, at 0.
    pub fn prepare_repository(&self, route: &str, destination: &str, repository: &str) {
        self.promotions
            .with_label_values(&[route, destination, &self.bounded(repository)]);
    }

    /// Creates all series of a registry, at 0.
    pub fn prepare_registry(&self, registry: &str) {
        self.registries.take_up(registry);
        self.digest_mismatches.with_label_values(&[registry]);
        self.rate_limited_seconds.with_label_values(&[registry]);
        self.retries
            .with_label_values(&[registry, Class::RETRYABLE.name()]);
        for direction in ["read", "sent"] {
            self.throughput.with_label_values(&[registry, direction]);
            self.stalls.with_label_values(&[registry, direction]);
        }
    }

    /// Removes destinations of routes that are not in `places`, and registries that are not in
    /// `registries`. Jobs that still run do not create them again.
    pub fn retain(&self, places: &HashSet<(&str, &str)>, registries: &HashSet<&str>) {
        self.places()
            .retain(|(route, destination)| places.contains(&(route, destination)));
        self.registries.retain(registries);
        let no_registry =
            |label: &dyn Fn(&str) -> String| !registries.contains(&*label("registry"));
        [
            &self.promotions,
            &self.outcomes,
            &self.blobs,
            &self.referrers,
        ]
        .into_iter()
        .for_each(|vec| {
            forget_series(vec, |label| {
                !places.contains(&(&label("route"), &label("destination")))
            })
        });
        forget_series(&self.gates, |label| {
            !places.iter().any(|(route, _)| *route == label("route"))
        });
        [&self.promotion_seconds, &self.push_to_production_seconds]
            .into_iter()
            .for_each(|vec| {
                forget_series(vec, |label| {
                    !places.iter().any(|(route, _)| *route == label("route"))
                })
            });
        [&self.digest_mismatches, &self.retries, &self.stalls]
            .into_iter()
            .for_each(|vec| forget_series(vec, no_registry));
        forget_series(&self.rate_limited_seconds, no_registry);
        forget_series(&self.throughput, no_registry);
    }

    fn places(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.places.lock().expect("nothing panics while it counts")
    }

    fn has(&self, route: &str, destination: &str) -> bool {
        self.places()
            .contains(&(route.to_owned(), destination.to_owned()))
    }

    /// Counts a running job until the guard is dropped.
    pub fn in_flight(&self) -> InFlight {
        self.jobs_in_flight.inc();
        InFlight(self.jobs_in_flight.clone())
    }

    /// A job settled.
    pub fn counted(&self, route: &str, destination: &str, outcome: Outcome) {
        if self.has(route, destination) {
            self.outcomes
                .with_label_values(&[route, destination, outcome.name()])
                .inc();
        }
    }

    /// A tag was moved.
    pub fn promoted(
        &self,
        route: &str,
        destination: &str,
        repository: &str,
        took: Duration,
        since_push: Option<Duration>,
    ) {
        if !self.has(route, destination) {
            return;
        }
        self.promotions
            .with_label_values(&[route, destination, &self.bounded(repository)])
            .inc();
        self.promotion_seconds
            .with_label_values(&[route])
            .observe(took.as_secs_f64());
        if let Some(since_push) = since_push {
            self.push_to_production_seconds
                .with_label_values(&[route])
                .observe(since_push.as_secs_f64());
        }
    }

    /// Counts a blob that the destination holds now.
    pub fn blob(&self, route: &str, destination: &str, outcome: BlobOutcome, size: u64) {
        let how = match outcome {
            BlobOutcome::Present => "present",
            BlobOutcome::Mounted => "mounted",
            BlobOutcome::Copied { .. } => "copied",
        };
        if self.has(route, destination) {
            self.blobs
                .with_label_values(&[route, destination, how])
                .inc();
        }
        if !matches!(outcome, BlobOutcome::Copied { .. }) {
            self.spared_bytes.with_label_values(&[how]).inc_by(size);
        }
    }

    /// Counts a referrer or companion that was copied, present or refused.
    pub fn referrer(&self, route: &str, destination: &str, outcome: ReferrerOutcome) {
        if self.has(route, destination) {
            self.referrers
                .with_label_values(&[route, destination, outcome.name()])
                .inc();
        }
    }

    /// Counts an upload resumed from a checkpoint: `spared` bytes were not sent again.
    pub fn resumed(&self, spared: u64) {
        self.resumes.inc();
        self.spared_bytes
            .with_label_values(&["resumed"])
            .inc_by(spared);
    }

    /// Counts content with another digest or size than promised.
    pub fn mismatched(&self, registry: &str) {
        if !self.registries.is_gone(registry) {
            self.digest_mismatches.with_label_values(&[registry]).inc();
        }
    }

    /// Counts a retry.
    pub fn retried(&self, registry: &str, class: Class) {
        if !self.registries.is_gone(registry) {
            self.retries
                .with_label_values(&[registry, class.name()])
                .inc();
        }
    }

    /// Counts a transfer that was cut because `registry` sent (`read`) or took (`sent`) too little.
    pub fn stalled(&self, registry: &str, direction: &str) {
        if !self.registries.is_gone(registry) {
            self.stalls.with_label_values(&[registry, direction]).inc();
        }
    }

    /// Counts the time that a registry asked for.
    pub fn rate_limited(&self, registry: &str, wait: Duration) {
        if !wait.is_zero() && !self.registries.is_gone(registry) {
            self.rate_limited_seconds
                .with_label_values(&[registry])
                .inc_by(wait.as_secs_f64());
        }
    }

    /// A meter of the bytes that cross `registry` in `direction` (`read` or `sent`).
    pub fn meter(&self, registry: &str, direction: &str) -> Meter {
        let gauge = match self.registries.is_gone(registry) {
            true => Gauge::new("nowhere", "Shown nowhere.").expect("a name of letters"),
            false => self.throughput.with_label_values(&[registry, direction]),
        };
        let mut rates = self.rates.lock().expect("nothing panics while it counts");
        let key = format!("{registry}\0{direction}");
        let at = rates.iter().position(|rate| rate.key == key);
        let at = at.unwrap_or(rates.len());
        match rates.get_mut(at) {
            // The registry may have been removed since.
            Some(rate) => rate.gauge = gauge,
            None => rates.push(Rate {
                key,
                gauge,
                window: Default::default(),
                started: Instant::now(),
            }),
        }
        Meter {
            rates: self.rates.clone(),
            at,
        }
    }

    /// Updates the throughput gauges; called before a scrape.
    pub fn refresh(&self) {
        for rate in self
            .rates
            .lock()
            .expect("nothing panics while it counts")
            .iter()
        {
            rate.gauge.set(rate.per_second());
        }
    }

    fn bounded(&self, repository: &str) -> String {
        let mut known = self
            .repositories
            .lock()
            .expect("nothing panics while it counts");
        if known.contains(repository) {
            return repository.into();
        }
        if known.len() >= REPOSITORIES {
            return "other".into();
        }
        known.insert(repository.into());
        repository.into()
    }
}

/// Waiting times for permits, by kind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waited {
    job: Histogram,
    body: Histogram,
    request: Histogram,
}

impl Waited {
    fn new(registry: &Registry) -> Result<Waited, Error> {
        let help = "Wait for the permit to run a job, to move a blob or to send a request.";
        let buckets = vec![0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 600.0];
        let options = HistogramOpts::new("blobferry_admission_wait_seconds", help).buckets(buckets);
        let vec = HistogramVec::new(options, &["class"])?;
        registry.register(Box::new(vec.clone()))?;
        let [job, body, request] =
            ["job", "body", "request"].map(|class| vec.with_label_values(&[class]));
        Ok(Waited { job, body, request })
    }

    /// Records a job permit that was asked for at that time.
    pub(super) fn job(&self, asked: Instant) {
        self.job.observe(asked.elapsed().as_secs_f64());
    }

    /// Records body permits that were asked for at that time.
    pub(super) fn body(&self, asked: Instant) {
        self.body.observe(asked.elapsed().as_secs_f64());
    }

    /// Records a request permit that was asked for at that time.
    pub(super) fn request(&self, asked: Instant) {
        self.request.observe(asked.elapsed().as_secs_f64());
    }
}

/// A running job.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;
