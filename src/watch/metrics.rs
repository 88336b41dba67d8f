//! What the watch floor counts: looks, the state of tags, what waits.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use prometheus::{Error, Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::time::Instant;

use super::route::Route;
use crate::job::{Cause, Outcome, Totals};
use crate::oci::{RepositoryName, Tag};

/// Tags whose waiting time is remembered, at the most.
const PENDING: usize = 100_000;

/// The states of the gauge `tags`.
const STATES: [&str; 9] =
    ["up_to_date", "pending", "waiting", "conflict", "drift", "existing", "refused", "failed", "only_in_destination"];

/// The watch floor's instruments. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    tags: IntGaugeVec,
    oldest_pending: GaugeVec,
    last_look: GaugeVec,
    last_success: GaugeVec,
    looks: IntCounterVec,
    events: IntCounterVec,
    queue_depth: IntGauge,
    queue_oldest: Gauge,
    config_last_reload_successful: IntGauge,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Totals by route, destination and source repository: the gauges show their sums.
    totals: HashMap<(Arc<str>, Arc<str>), Repositories>,
    /// Since when a tag is known to differ.
    pending: HashMap<Pending, Instant>,
}

/// Totals of the last look and the tags that waited to go, by source repository.
type Repositories = HashMap<RepositoryName, (Totals, u64)>;

type Pending = (Arc<str>, Arc<str>, RepositoryName, Tag);

impl Metrics {
    /// Registers the instruments.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, Error> {
        let options = |name: &str, help: &str| Opts::new(format!("blobferry_{name}"), help);
        macro_rules! register {
            ($kind:ident, $name:literal, $help:literal, $labels:expr) => {{
                let vec = $kind::new(options($name, $help), $labels)?;
                registry.register(Box::new(vec.clone()))?;
                vec
            }};
            ($kind:ident, $name:literal, $help:literal) => {{
                let one = $kind::with_opts(options($name, $help))?;
                registry.register(Box::new(one.clone()))?;
                one
            }};
        }
        Ok(Metrics {
            tags: register!(IntGaugeVec, "tags", "Chosen tags by state, as of the last look.", &["route", "destination", "state"]),
            oldest_pending: register!(
                GaugeVec,
                "oldest_pending_age_seconds",
                "How long the oldest tag has waited to be promoted.",
                &["route"]
            ),
            last_look: register!(GaugeVec, "last_look_timestamp_seconds", "When a look last ended.", &["route", "destination"]),
            last_success: register!(
                GaugeVec,
                "last_success_timestamp_seconds",
                "When a look last ended with every chosen tag equal.",
                &["route", "destination"]
            ),
            looks: register!(IntCounterVec, "looks_total", "Looks by what caused them.", &["route", "cause"]),
            events: register!(IntCounterVec, "events_total", "Events by source and what came of them.", &["source", "result"]),
            queue_depth: register!(IntGauge, "queue_depth", "Looks that wait for their turn."),
            queue_oldest: register!(Gauge, "queue_oldest_age_seconds", "How long the oldest look has waited for its turn."),
            config_last_reload_successful: register!(
                IntGauge,
                "config_last_reload_successful",
                "Whether the newest reading of the config was accepted."
            ),
            state: Arc::default(),
        })
    }

    /// Makes all series of a route exist, at 0.
    pub fn prepare(&self, route: &Route) {
        for template in &route.to {
            for state in STATES {
                self.tags.with_label_values(&[&route.name, template.registry(), state]);
            }
            self.last_look.with_label_values(&[&route.name, template.registry()]);
            self.last_success.with_label_values(&[&route.name, template.registry()]);
        }
        for cause in Cause::ALL {
            self.looks.with_label_values(&[&route.name, cause.name()]);
        }
        self.oldest_pending.with_label_values(&[&route.name]);
    }

    /// Makes all series of the events exist, at 0.
    pub fn prepare_events(&self) {
        for cause in Cause::ALL {
            for result in ["queued", "matched_nothing", "rejected"] {
                self.events.with_label_values(&[cause.name(), result]);
            }
        }
    }

    /// Forgets a route that the config no longer has.
    pub fn forget(&self, route: &Route) {
        for template in &route.to {
            for state in STATES {
                let _ = self.tags.remove_label_values(&[&route.name, template.registry(), state]);
            }
            let _ = self.last_look.remove_label_values(&[&route.name, template.registry()]);
            let _ = self.last_success.remove_label_values(&[&route.name, template.registry()]);
        }
        for cause in Cause::ALL {
            let _ = self.looks.remove_label_values(&[&route.name, cause.name()]);
        }
        let _ = self.oldest_pending.remove_label_values(&[&route.name]);
        let mut state = self.lock();
        state.totals.retain(|(name, _), _| *name != route.name);
        state.pending.retain(|(name, ..), _| *name != route.name);
    }

    /// A look begins.
    pub fn look_begins(&self, route: &str, cause: Cause) {
        self.looks.with_label_values(&[route, cause.name()]).inc();
    }

    /// A look at one destination of a repository ended. `sees`: nothing kept it from seeing everything; `whole`: it was not
    /// about single tags only.
    pub fn looked(
        &self,
        route: &Route,
        destination: &Arc<str>,
        repository: &RepositoryName,
        totals: &Totals,
        seen: Seen,
        pending: &[Tag],
    ) {
        let labels = [&*route.name, &**destination];
        let now = Timestamp::now().as_millisecond() as f64 / 1000.0;
        self.last_look.with_label_values(&labels).set(now);
        if !seen.whole {
            return;
        }
        if seen.everything && is_equal(totals) {
            self.last_success.with_label_values(&labels).set(now);
        }
        let mut state = self.lock();
        state.note_pending(route, destination, repository, pending);
        if seen.everything {
            let entry = state.totals.entry((route.name.clone(), destination.clone())).or_default();
            entry.insert(repository.clone(), (*totals, pending.len() as u64));
            self.show(&labels, entry);
        }
    }

    fn show(&self, labels: &[&str; 2], repositories: &Repositories) {
        let mut sum = Totals::default();
        let mut waiting_to_go = 0;
        for (totals, pending) in repositories.values() {
            sum.merge(totals);
            waiting_to_go += pending;
        }
        let values = [
            sum.up_to_date + sum.promoted,
            waiting_to_go.saturating_sub(sum.failed + sum.waiting),
            sum.waiting,
            sum.conflict,
            sum.drift,
            sum.existing,
            sum.refused,
            sum.failed,
            sum.only_in_destination,
        ];
        for (name, value) in STATES.into_iter().zip(values) {
            self.tags.with_label_values(&[labels[0], labels[1], name]).set(value as i64);
        }
    }

    /// The sum of a route's totals, over its repositories and destinations.
    pub fn totals(&self, route: &str) -> Totals {
        let state = self.lock();
        let mut sum = Totals::default();
        for ((name, _), repositories) in &state.totals {
            if &**name == route {
                repositories.values().for_each(|(totals, _)| sum.merge(totals));
            }
        }
        sum
    }

    /// An event came in.
    pub fn event(&self, cause: Cause, result: &str) {
        self.events.with_label_values(&[cause.name(), result]).inc();
    }

    /// The queue as it is now.
    pub fn queue(&self, depth: usize, oldest: Option<Instant>) {
        self.queue_depth.set(depth as i64);
        self.queue_oldest.set(oldest.map_or(0.0, |since| since.elapsed().as_secs_f64()));
    }

    /// Whether the newest reading of the config was accepted.
    pub fn reloaded(&self, accepted: bool) {
        self.config_last_reload_successful.set(accepted.into());
    }

    /// Brings the ages up to date; called before a scrape.
    pub fn refresh<'a>(&self, routes: impl Iterator<Item = &'a Arc<str>>) {
        let state = self.lock();
        for route in routes {
            let ages = state.pending.iter().filter(|((name, ..), _)| name == route).map(|(_, since)| since.elapsed().as_secs_f64());
            self.oldest_pending.with_label_values(&[route]).set(ages.fold(0.0, f64::max));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it counts")
    }
}

/// What a look could see.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Nothing kept it from seeing everything.
    pub everything: bool,
    /// It was not about single tags only.
    pub whole: bool,
}

/// Whether every chosen tag is equal in production now.
fn is_equal(totals: &Totals) -> bool {
    let others =
        Outcome::ALL.into_iter().filter(|outcome| !matches!(outcome, Outcome::Promoted | Outcome::UpToDate | Outcome::Gone));
    others.map(|outcome| totals.of(outcome)).sum::<u64>() == 0
}

impl State {
    fn note_pending(&mut self, route: &Route, destination: &Arc<str>, repository: &RepositoryName, tags: &[Tag]) {
        let key = |tag: &Tag| (route.name.clone(), destination.clone(), repository.clone(), tag.clone());
        let here = |other: &Pending| other.0 == route.name && other.1 == *destination && other.2 == *repository;
        let still: HashSet<&Tag> = tags.iter().collect();
        self.pending.retain(|other, _| !here(other) || still.contains(&other.3));
        for tag in tags {
            if self.pending.len() < PENDING {
                self.pending.entry(key(tag)).or_insert_with(Instant::now);
            }
        }
    }
}
