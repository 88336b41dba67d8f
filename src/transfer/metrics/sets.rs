//! What is counted of sets.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{Error, HistogramOpts, HistogramVec, IntGaugeVec, Registry};

use crate::clock;
use crate::decision::{InForce, Target};
use crate::metrics::{forget_series, options, registered};

/// Buckets of the time between the first and the last member: from requests side by side to looks
/// one after the other.
const SECONDS: [f64; 12] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

/// The instruments of sets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SetMetrics {
    naming_seconds: HistogramVec,
    torn: IntGaugeVec,
    /// The sets of the config.
    names: Arc<Mutex<BTreeSet<String>>>,
}

impl SetMetrics {
    pub(super) fn new(registry: &Registry) -> Result<SetMetrics, Error> {
        let seconds = options(
            "set_naming_seconds",
            "From the first tag of a set that was named to the last.",
        );
        let seconds = HistogramOpts::from(seconds).buckets(SECONDS.to_vec());
        let torn = options(
            "sets_torn",
            "Tags of a set of which only a part was named, and which are held.",
        );
        Ok(SetMetrics {
            naming_seconds: registered(registry, HistogramVec::new(seconds, &["set"])?)?,
            torn: registered(registry, IntGaugeVec::new(torn, &["set"])?)?,
            names: Arc::default(),
        })
    }

    /// Creates the series of a config's sets, and forgets those of others.
    pub fn adopt<'a>(&self, sets: impl Iterator<Item = &'a str>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        *names = sets.map(str::to_owned).collect();
        for name in names.iter().map(String::as_str) {
            self.naming_seconds.with_label_values(&[name]);
            self.torn.with_label_values(&[name]);
        }
        forget_series(&self.naming_seconds, |label| !names.contains(&label("set")));
        forget_series(&self.torn, |label| !names.contains(&label("set")));
    }

    /// All members of a set were named, the first one so long ago.
    pub fn named(&self, set: &str, took: Duration) {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(set) {
            let seconds = took.as_secs_f64();
            self.naming_seconds
                .with_label_values(&[set])
                .observe(seconds);
        }
    }

    /// Shows which sets are torn.
    pub fn show(&self, in_force: &InForce) {
        let now = clock::now();
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names.iter() {
            let is_of_set =
                |target: &Target| matches!(target, Target::Set(set, _) if **set == **name);
            let torn = in_force.torn(now).filter(|one| is_of_set(&one.target));
            self.torn
                .with_label_values(&[name])
                .set(torn.count() as i64);
        }
    }
}
