//! What the watch floor counts: looks, the state of tags, what waits.

mod destination;
pub mod queues;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prometheus::core::{MetricVec, MetricVecBuilder};
use prometheus::{
    Error, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};
use tokio::time::Instant;

use self::destination::DestinationState;
pub use self::destination::SeenTag;
use self::queues::QueueMetrics;
use crate::clock;
use crate::job::{Cause, Outcome, Totals, Trouble, TroubleClass};
use crate::metrics::{forget_series, options, registered};
use crate::oci::{RepositoryName, Tag};
use crate::route::{Route, Routes};
use crate::transfer::metrics::TO_PRODUCTION_SECONDS;

/// Most tags with a stored waiting time.
const PENDING: usize = 100_000;

/// The states of the gauge `tags`.
const STATES: [&str; 10] = [
    "up_to_date",
    "pending",
    "waiting",
    "held",
    "conflict",
    "drift",
    "existing",
    "refused",
    "failed",
    "only_in_destination",
];

/// The watch floor's instruments. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    tags: IntGaugeVec,
    oldest_pending: GaugeVec,
    last_look: GaugeVec,
    last_success: GaugeVec,
    route_up: IntGaugeVec,
    seen_to_production: HistogramVec,
    looks: IntCounterVec,
    events: IntCounterVec,
    /// What waits in the queues.
    pub queues: QueueMetrics,
    config_last_reload_successful: IntGauge,
    state: Arc<Mutex<State>>,
    /// Whether the state folder is gone.
    without_state: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct State {
    /// Each destination of each route that the config has. What is not in here is not counted.
    destinations: BTreeMap<(Arc<str>, Arc<str>), DestinationState>,
    /// Pending tags in all destinations.
    pending: usize,
}

/// One destination of a route.
#[derive(Clone, Copy, Debug)]
pub struct DestinationLabels<'a> {
    /// The route's name.
    pub route: &'a Arc<str>,
    /// The registry's name in the config.
    pub registry: &'a Arc<str>,
    /// The entry of the route's `to`: there may be several in one registry.
    pub to: &'a Arc<str>,
}

/// A source repository and an entry of the route's `to`.
type RepositoryKey = (RepositoryName, Arc<str>);

fn forget_destinations<T: MetricVecBuilder>(
    vec: &MetricVec<T>,
    pairs: &HashSet<(Arc<str>, Arc<str>)>,
) {
    forget_series(vec, |label| {
        !pairs.contains(&(label("route").into(), label("destination").into()))
    });
}

fn forget_routes<T: MetricVecBuilder>(vec: &MetricVec<T>, routes: &Routes) {
    forget_series(vec, |label| {
        !routes.0.iter().any(|route| *route.name == *label("route"))
    });
}

impl Metrics {
    /// Registers the instruments.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, Error> {
        macro_rules! register {
            ($kind:ident, $name:literal, $help:literal, $labels:expr) => {
                registered(registry, $kind::new(options($name, $help), $labels)?)?
            };
            ($kind:ident, $name:literal, $help:literal) => {
                registered(registry, $kind::with_opts(options($name, $help))?)?
            };
        }
        Ok(Metrics {
            tags: register!(
                IntGaugeVec,
                "tags",
                "Chosen tags by state, as of the last look.",
                &["route", "destination", "state"]
            ),
            oldest_pending: register!(
                GaugeVec,
                "oldest_pending_age_seconds",
                "How long the oldest tag has waited to be promoted.",
                &["route"]
            ),
            last_look: register!(
                GaugeVec,
                "last_look_timestamp_seconds",
                "When a look last ended.",
                &["route", "destination"]
            ),
            last_success: register!(
                GaugeVec,
                "last_success_timestamp_seconds",
                "When a look last ended with every chosen tag of the route in the destination, or left alone there as the rules say.",
                &["route", "destination"]
            ),
            route_up: register!(
                IntGaugeVec,
                "route_up",
                "Whether the newest look was complete: 1, else 0; 0 also until the first has ended.",
                &["route", "destination"]
            ),
            seen_to_production: {
                let help = "From the first sight of a difference in staging to the tag readable in production.";
                let options = HistogramOpts::new("blobferry_seen_to_production_seconds", help);
                let vec =
                    HistogramVec::new(options.buckets(TO_PRODUCTION_SECONDS.to_vec()), &["route"])?;
                registry.register(Box::new(vec.clone()))?;
                vec
            },
            looks: register!(
                IntCounterVec,
                "looks_total",
                "Looks that have ended, by what caused them and whether they were complete.",
                &["route", "cause", "result"]
            ),
            events: register!(
                IntCounterVec,
                "events_total",
                "Events by source and what came of them.",
                &["source", "result"]
            ),
            queues: QueueMetrics::new(registry)?,
            config_last_reload_successful: register!(
                IntGauge,
                "config_last_reload_successful",
                "Whether the newest reading of the config was accepted."
            ),
            state: Arc::default(),
            without_state: Arc::default(),
        })
    }

    /// Makes all series of a route exist, at 0.
    pub fn prepare(&self, route: &Route) {
        for template in &route.to {
            let place = (route.name.clone(), template.registry().clone());
            self.lock()
                .destinations
                .entry(place)
                .or_default()
                .to
                .insert(template.to_string().into());
            for state in STATES {
                self.tags
                    .with_label_values(&[&route.name, template.registry(), state]);
            }
            self.last_look
                .with_label_values(&[&route.name, template.registry()]);
            self.last_success
                .with_label_values(&[&route.name, template.registry()]);
            self.route_up
                .with_label_values(&[&route.name, template.registry()]);
        }
        for cause in Cause::ALL {
            for result in [DONE, FAILED] {
                self.looks
                    .with_label_values(&[&route.name, cause.name(), result]);
            }
        }
        self.seen_to_production.with_label_values(&[&route.name]);
        self.oldest_pending.with_label_values(&[&route.name]);
    }

    /// Makes all series of the events exist, at 0.
    pub fn prepare_events(&self) {
        for cause in Cause::ALL {
            for result in [
                "queued",
                "ignored",
                "unauthenticated",
                "unverifiable",
                "malformed",
                "too_large",
                "limited",
            ] {
                self.events.with_label_values(&[cause.name(), result]);
            }
        }
    }

    /// Forgets the routes and the destinations of routes that the config no longer has.
    pub fn retain_routes(&self, routes: &Routes) {
        let pairs = routes.0.iter().flat_map(|route| {
            route
                .to
                .iter()
                .map(|to| (route.name.clone(), to.registry().clone()))
        });
        let pairs: HashSet<(Arc<str>, Arc<str>)> = pairs.collect();
        let mut state = self.lock();
        state.destinations.retain(|place, _| pairs.contains(place));
        for ((name, registry), place) in &mut state.destinations {
            let route = routes.0.iter().find(|route| route.name == *name);
            let here = route
                .into_iter()
                .flat_map(|route| &route.to)
                .filter(|to| to.registry() == registry);
            place.to = here.map(|to| to.to_string().into()).collect();
            place.keep(|_| true);
            self.show([name, registry], place);
        }
        state.pending = state.destinations.values().map(|place| place.pending).sum();
        forget_destinations(&self.tags, &pairs);
        forget_destinations(&self.last_look, &pairs);
        forget_destinations(&self.last_success, &pairs);
        forget_destinations(&self.route_up, &pairs);
        forget_routes(&self.seen_to_production, routes);
        forget_routes(&self.looks, routes);
        forget_routes(&self.oldest_pending, routes);
    }

    /// Records a discovery of the route: its other repositories are removed, and new ones count as
    /// unseen until a look. Without repositories the discovery itself is the look. `refused`:
    /// repositories were refused because of their destinations.
    pub fn retain_repositories(
        &self,
        route: &Arc<str>,
        found: &BTreeSet<RepositoryName>,
        refused: bool,
    ) {
        let mut state = self.lock();
        let now = now();
        let State {
            destinations,
            pending,
        } = &mut *state;
        for ((_, destination), place) in destinations
            .iter_mut()
            .filter(|((name, _), _)| name == route)
        {
            *pending -= place.pending;
            place.keep(|name| found.contains(name));
            let to = place.to.clone();
            for key in found
                .iter()
                .flat_map(|name| to.iter().map(|to| (name.clone(), to.clone())))
            {
                place.known(&key);
            }
            *pending += place.pending;
            place.undiscovered = false;
            place.refused = refused;
            let labels = [&**route, &**destination];
            if found.is_empty() {
                place.looked = true;
                self.last_look.with_label_values(&labels).set(now);
                if place.has_success() {
                    self.last_success.with_label_values(&labels).set(now);
                }
            }
            self.show(labels, place);
        }
    }

    /// Forgets a repository that is gone.
    pub fn forget_repository(&self, route: &Arc<str>, repository: &RepositoryName) {
        let mut state = self.lock();
        let State {
            destinations,
            pending,
        } = &mut *state;
        for ((_, destination), place) in destinations
            .iter_mut()
            .filter(|((name, _), _)| name == route)
        {
            *pending -= place.pending;
            place.keep(|name| name != repository);
            *pending += place.pending;
            self.show([route, destination], place);
        }
    }

    /// Records a failed discovery of the route: its repositories stay.
    pub fn undiscovered(&self, route: &Arc<str>) {
        let now = now();
        for ((_, destination), place) in self
            .lock()
            .destinations
            .iter_mut()
            .filter(|((name, _), _)| name == route)
        {
            place.undiscovered = true;
            place.looked = true;
            self.last_look
                .with_label_values(&[route, destination])
                .set(now);
            self.show([route, destination], place);
        }
    }

    /// Records a look, or a discovery without repositories. An interrupted one does not count.
    pub fn look_ended(&self, route: &str, cause: Cause, trouble: &[Trouble]) {
        let is_interrupted = trouble
            .iter()
            .any(|trouble| trouble.class == TroubleClass::Cancelled);
        if self.lock().has_route(route) && !is_interrupted {
            let result = if trouble.is_empty() { DONE } else { FAILED };
            self.looks
                .with_label_values(&[route, cause.name(), result])
                .inc();
        }
    }

    /// Records that a tag differs: it is pending from now on, if it was not before.
    pub fn differs(
        &self,
        destination: DestinationLabels<'_>,
        repository: &RepositoryName,
        tag: &Tag,
    ) {
        let key = destination.key(repository);
        self.change(destination, |place, pending| {
            if *pending < PENDING && place.note_pending(&key, tag) {
                *pending += 1;
            }
        });
    }

    /// Records that nothing of a tag is left to promote.
    pub fn waits_no_more(
        &self,
        destination: DestinationLabels<'_>,
        repository: &RepositoryName,
        tag: &Tag,
    ) {
        let key = destination.key(repository);
        self.change(destination, |place, pending| {
            if place.drop_pending(&key, tag).is_some() {
                *pending -= 1;
            }
        });
    }

    /// Changes a known destination and the count of all pending tags, and shows the result.
    fn change(
        &self,
        destination: DestinationLabels<'_>,
        act: impl FnOnce(&mut DestinationState, &mut usize),
    ) {
        let mut state = self.lock();
        let State {
            destinations,
            pending,
        } = &mut *state;
        let Some(place) = destination.place(destinations) else {
            return;
        };
        act(place, pending);
        self.show([destination.route, destination.registry], place);
    }

    /// A tag was promoted.
    pub fn arrived(
        &self,
        destination: DestinationLabels<'_>,
        repository: &RepositoryName,
        tag: &Tag,
    ) {
        let mut state = self.lock();
        let Some(place) = destination.place(&mut state.destinations) else {
            return;
        };
        if let Some(since) = place.pending_since(&destination.key(repository), tag) {
            self.seen_to_production
                .with_label_values(&[destination.route])
                .observe(since.elapsed().as_secs_f64());
        }
    }

    /// Records a look at one destination of a repository. Parts it did not see stay as they were.
    pub fn looked(
        &self,
        destination: DestinationLabels<'_>,
        repository: &RepositoryName,
        seen: Coverage<'_>,
    ) {
        let labels = [&**destination.route, &**destination.registry];
        let key = destination.key(repository);
        let now = now();
        let mut state = self.lock();
        let State {
            destinations,
            pending,
        } = &mut *state;
        let Some(place) = destination.place(destinations) else {
            return;
        };
        self.last_look.with_label_values(&labels).set(now);
        let (everything, known) = match seen {
            Coverage::Tags(seen) => {
                seen.iter().for_each(|seen| place.set_state(&key, seen));
                self.show(labels, place);
                return;
            }
            Coverage::Everything(known) => (true, Some(known)),
            Coverage::StagingAlone(known) => (false, Some(known)),
            Coverage::Nothing => (false, None),
        };
        place.looked = true;
        place.set_seen(&key, everything);
        if let Some(known) = known {
            *pending -= place.pending;
            place.set_totals(&key, known.totals);
            place.set_states(&key, known.tags);
            place.set_pending(&key, known.pending, PENDING.saturating_sub(*pending));
            *pending += place.pending;
        }
        self.show(labels, place);
        if place.has_success() {
            self.last_success.with_label_values(&labels).set(now);
        }
    }

    /// The state folder is gone, or there again. Without it nothing is named, so no route is up.
    pub fn set_without_state(&self, is_without: bool) {
        self.without_state.store(is_without, Ordering::Relaxed);
        let state = self.lock();
        for ((route, registry), place) in &state.destinations {
            self.show([route, registry], place);
        }
    }

    fn is_without_state(&self) -> bool {
        self.without_state.load(Ordering::Relaxed)
    }

    fn show(&self, labels: [&str; 2], place: &DestinationState) {
        self.route_up
            .with_label_values(&labels)
            .set((place.is_up() && !self.is_without_state()).into());
        let sum = &place.sum;
        let values = [
            sum.up_to_date + sum.promoted,
            place.only_pending(),
            sum.waiting,
            sum.held,
            sum.conflict,
            sum.drift,
            sum.existing,
            sum.refused,
            sum.failed,
            sum.only_in_destination,
        ];
        for (name, value) in STATES.into_iter().zip(values) {
            self.tags
                .with_label_values(&[labels[0], labels[1], name])
                .set(value as i64);
        }
    }

    /// The sum of a route's totals, over its repositories and destinations.
    pub fn totals(&self, route: &str) -> Totals {
        let state = self.lock();
        let mut sum = Totals::default();
        state
            .places_of(route)
            .for_each(|place| sum.merge(&place.sum));
        sum
    }

    /// Whether the last look at every repository of the route was complete, and every chosen tag
    /// was promoted or left alone by the rules.
    pub fn has_success(&self, route: &str) -> bool {
        let state = self.lock();
        state.has_route(route) && state.places_of(route).all(DestinationState::has_success)
    }

    /// The state of the route: whether its newest looks were complete, the tags pending and in no
    /// other state, and the age of the oldest.
    pub fn standing(&self, route: &str) -> RouteState {
        let state = self.lock();
        let oldest = state
            .places_of(route)
            .filter_map(DestinationState::oldest)
            .min();
        RouteState {
            up: state.has_route(route)
                && state.places_of(route).all(DestinationState::is_up)
                && !self.is_without_state(),
            pending: state
                .places_of(route)
                .map(DestinationState::only_pending)
                .sum(),
            oldest_pending: oldest.map(|since| since.elapsed()),
        }
    }

    /// An event came in.
    pub fn event(&self, cause: Cause, result: &str) {
        self.events.with_label_values(&[cause.name(), result]).inc();
    }

    /// The queue as it is now.
    pub fn queue(&self, depth: usize, oldest: Option<Instant>) {
        let age = oldest.map_or(0.0, |since| since.elapsed().as_secs_f64());
        self.queues.looks(depth, age);
    }

    /// Whether the newest reading of the config was accepted.
    pub fn reloaded(&self, accepted: bool) {
        self.config_last_reload_successful.set(accepted.into());
    }

    /// Brings the ages up to date; called before a scrape.
    pub fn refresh(&self) {
        self.queues.refresh();
        let state = self.lock();
        let mut oldest: BTreeMap<&str, f64> = BTreeMap::new();
        for ((route, _), place) in &state.destinations {
            let age = oldest.entry(route).or_default();
            *age = place
                .oldest()
                .map_or(0.0, |since| since.elapsed().as_secs_f64())
                .max(*age);
        }
        for (route, age) in oldest {
            self.oldest_pending.with_label_values(&[route]).set(age);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it counts")
    }
}

/// The state of a route.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteState {
    /// Whether the newest look was complete, at each destination.
    pub up: bool,
    /// Tags that wait to be promoted.
    pub pending: u64,
    /// How long the oldest of them has waited.
    pub oldest_pending: Option<Duration>,
}

/// What a look saw of one destination.
#[derive(Clone, Copy, Debug)]
pub enum Coverage<'a> {
    /// These tags: of the others of the repository it tells nothing.
    Tags(&'a [SeenTag]),
    /// Both sides: tags by state, and the pending ones.
    Everything(TagCounts<'a>),
    /// Staging alone: tags by production's last known digests.
    StagingAlone(TagCounts<'a>),
    /// Nothing.
    Nothing,
}

/// The tags of a repository, as a look has seen them.
#[derive(Clone, Copy, Debug)]
pub struct TagCounts<'a> {
    /// By state.
    pub totals: &'a Totals,
    /// Those that are neither up to date nor pending, among others.
    pub tags: &'a [SeenTag],
    /// Those that are still to go.
    pub pending: &'a [Tag],
}

const DONE: &str = "done";
const FAILED: &str = "failed";

/// The time of day, in seconds since the epoch.
fn now() -> f64 {
    clock::now().as_millisecond() as f64 / 1000.0
}

/// Whether every chosen tag is in production, or left alone there by the rules.
fn is_success(totals: &Totals) -> bool {
    Outcome::ALL
        .iter()
        .filter(|outcome| !is_settled(outcome))
        .all(|outcome| totals.of(*outcome) == 0)
}

/// Whether a tag with this outcome is in production, or left alone there by the rules.
fn is_settled(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Promoted | Outcome::UpToDate | Outcome::Gone | Outcome::Existing => true,
        Outcome::Conflict
        | Outcome::Drift
        | Outcome::Refused
        | Outcome::Waiting
        | Outcome::Held
        | Outcome::Planned
        | Outcome::Interrupted
        | Outcome::Failed => false,
    }
}

impl State {
    fn places_of(&self, route: &str) -> impl Iterator<Item = &DestinationState> {
        self.destinations
            .iter()
            .filter(move |((name, _), _)| **name == *route)
            .map(|(_, place)| place)
    }

    fn has_route(&self, route: &str) -> bool {
        self.places_of(route).next().is_some()
    }
}

impl DestinationLabels<'_> {
    /// The state of a destination, unless the config no longer has it.
    fn place<'a>(
        &self,
        destinations: &'a mut BTreeMap<(Arc<str>, Arc<str>), DestinationState>,
    ) -> Option<&'a mut DestinationState> {
        let place = destinations.get_mut(&(self.route.clone(), self.registry.clone()));
        place.filter(|place| place.to.contains(self.to))
    }

    fn key(&self, repository: &RepositoryName) -> RepositoryKey {
        (repository.clone(), self.to.clone())
    }
}

#[cfg(test)]
mod tests;
