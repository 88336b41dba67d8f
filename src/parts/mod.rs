//! Builds the parts: stores, instruments, engine, and the topology that a config describes.

mod decisions;
mod metrics;
mod neighbours;
mod state_health;

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::decisions::DecisionMetrics;
use self::metrics::{StoreMetrics, build_info};
use crate::backend::Backend;
use crate::byte_threads::ByteThreads;
use crate::config::{self, Config, RegistryKind};
use crate::ecr;
use crate::endpoint::Repositories as _;
use crate::fault::Fault;
use crate::index::{self, Index};
use crate::layout;
use crate::ledger::{self, Ledger, RunFacts};
use crate::notify;
use crate::registry::{self, Registry};
use crate::route::{Route, Routes, Template};
use crate::state::StateLock;
use crate::transfer::{self, Engine, Limits, limits};

use crate::look::topology::{Intervals, Topology, members_of};
use crate::status;

/// Why the parts cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index cannot be opened, not even as a new one.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The ledger cannot be read or written.
    #[error("{0}")]
    Unreadable(Fault),
    /// The audit file cannot be used.
    #[error(
        "the audit file {} cannot be used: {reason} (`daemon.audit_file` names a file in a folder that exists and in which this user may write; the unit of systemd has /var/log/blobferry for it)",
        path.display()
    )]
    Audit {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// A registry's settings do not work.
    #[error("{0}")]
    Registry(Fault),
    /// An instrument is registered twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl Error {
    /// The exit code of the process: 2, usage or configuration, for what another start cannot mend.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Metrics(_) | Error::Unreadable(_) => 1,
            Error::Index(_) | Error::Ledger(_) | Error::Audit { .. } | Error::Registry(_) => 2,
        }
    }
}

/// The parts that outlive a config.
#[derive(Clone)]
pub struct Parts {
    pub(crate) registry: prometheus::Registry,
    pub(crate) index: Index,
    pub(crate) ledger: Ledger,
    limits: Limits,
    transfer: transfer::Metrics,
    pub(crate) watch: status::Metrics,
    wire: registry::Metrics,
    store: StoreMetrics,
    decided: DecisionMetrics,
    pub(crate) notify: notify::Metrics,
    engine: Engine,
}

impl Parts {
    /// Opens the stores in a locked state folder.
    pub(crate) fn open(lock: &StateLock) -> Result<Parts, Error> {
        let state = lock.folder();
        let opened = Index::open(state)?;
        if let Some(aside) = &opened.set_aside {
            tracing::warn!(
                path = %aside.path.display(),
                reason = aside.reason,
                "the index was damaged or newer: set aside and started afresh; this costs requests, nothing else"
            );
        }
        Parts::over(opened.index, Ledger::open(state)?.guarded_by(lock)?)
    }

    /// Parts for a dry run: they read the ledger of a state folder, if there is one, and write
    /// nothing anywhere.
    pub(crate) fn to_read(state: &Path) -> Result<Parts, Error> {
        let ledger = Ledger::open_to_read(state)?.unwrap_or_else(Ledger::in_memory);
        Parts::over(Index::in_memory(), ledger)
    }

    /// Parts that remember nothing.
    pub(crate) fn in_memory() -> Result<Parts, Error> {
        Parts::over(Index::in_memory(), Ledger::in_memory())
    }

    /// The same, under the decisions that are in force in a state folder.
    pub(crate) async fn under_decisions_of(state: &Path) -> Result<Parts, Error> {
        let in_force = match Ledger::open_to_read(state)? {
            Some(ledger) => {
                let in_force = ledger.in_force().await.map_err(Error::Unreadable)?;
                ledger.close().await;
                in_force
            }
            None => Arc::default(),
        };
        Parts::over(Index::in_memory(), Ledger::in_memory_under(&in_force))
    }

    fn over(index: Index, ledger: Ledger) -> Result<Parts, Error> {
        let registry = prometheus::Registry::new();
        let transfer = transfer::Metrics::new(&registry)?;
        let watch = crate::status::Metrics::new(&registry)?;
        watch.prepare_events();
        watch.reloaded(true);
        let wire = registry::Metrics::new(&registry)?;
        let store = StoreMetrics::new(&registry)?;
        let decided = DecisionMetrics::new(&registry)?;
        let notify = notify::Metrics::new(&registry)?;
        build_info(&registry)?;
        crate::telemetry::count_dropped(&registry)?;
        registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        let limits = Limits::default();
        let engine = Engine::new(
            transfer::Settings::default(),
            index.clone(),
            ledger.clone(),
            limits.clone(),
            transfer.clone(),
        );
        Ok(Parts {
            registry,
            index,
            ledger,
            limits,
            transfer,
            watch,
            wire,
            store,
            decided,
            notify,
            engine,
        })
    }

    /// The same parts with so many threads that move bytes. For parts that nothing uses yet.
    pub(crate) fn on_threads(self, threads: NonZeroUsize) -> Parts {
        let at_once = limits::bodies_at_once(threads);
        let permits = limits::Permits {
            bodies: at_once,
            ..limits::Permits::default()
        };
        let limits = Limits::new(permits);
        let mut settings = self.engine.settings;
        settings.bounds.blobs = at_once;
        let engine = Engine::new(
            settings,
            self.index.clone(),
            self.ledger.clone(),
            limits.clone(),
            self.transfer.clone(),
        );
        Parts {
            limits,
            engine: engine.on_threads(ByteThreads::new(threads)),
            ..self
        }
    }

    /// The topology of a config. Tokens of routes that `before` had as well are kept, unless they
    /// read or write elsewhere now.
    pub(crate) fn topology(
        &self,
        config: &Config,
        before: Option<&Topology>,
    ) -> Result<Topology, Error> {
        let mut backends = BTreeMap::new();
        for (name, registry) in &config.registries {
            let backend = self
                .build_site(registry)
                .inspect_err(|_| self.forget_refused(before));
            backends.insert(name.clone(), backend.map_err(Error::Registry)?);
        }
        // Nothing fails from here on: a config that is refused has changed nothing.
        for (name, registry) in &config.registries {
            self.put_in_force(&backends[name], registry.limits.clone());
        }
        let kept = |route: &Route| {
            let before = before.filter(|before| {
                before
                    .route(&route.name)
                    .is_some_and(|before| holds_still(before, route))
                    && stay_where_they_are(route, &before.backends, &backends)
            });
            before
                .and_then(|before| before.withdrawn.get(&route.name).cloned())
                .unwrap_or_default()
        };
        let withdrawn: BTreeMap<Arc<str>, CancellationToken> = config
            .routes
            .iter()
            .map(|route| (route.name.clone(), kept(route)))
            .collect();
        let settings = transfer::Settings {
            trust: config.daemon.verify,
            ..self.engine.settings
        };
        let routes = Routes::new(config.routes.clone());
        let sets = members_of(&config.sets, &routes, &backends);
        let topology = Topology {
            backends,
            routes,
            sets: Arc::new(sets),
            engine: self.engine.with(settings),
            metrics: self.watch.clone(),
            facts: Arc::new(facts(&config.hash)),
            intervals: Intervals {
                poll: config.daemon.poll,
                verify: config.daemon.verify,
            },
            settings: crate::look::topology::Settings::default(),
            withdrawn,
        };
        self.prepare(&topology);
        Ok(topology)
    }

    /// Which registries answer and accept us.
    pub(crate) fn health(&self) -> transfer::Health {
        self.transfer.health.clone()
    }

    /// An engine for one act without a config.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A registry or a folder of layouts; nothing that runs hears of it.
    fn build_site(&self, registry: &config::Registry) -> Result<Backend, Fault> {
        match &registry.kind {
            RegistryKind::Remote(settings) => self.registry(settings.clone()),
            RegistryKind::Layout(path) => {
                Ok(Backend::Layout(layout::Root::new(&registry.name, path)))
            }
        }
    }

    /// Forgets the series of registries that were built for a config before it was refused.
    fn forget_refused(&self, before: Option<&Topology>) {
        if let Some(before) = before {
            self.wire
                .retain(&before.backends.keys().map(String::as_str).collect());
        }
    }

    /// From now on a registry has its series, and is kept to its limits.
    fn put_in_force(&self, backend: &Backend, limits: config::Limits) {
        let registry = match backend {
            Backend::Registry(registry) => Some(registry),
            Backend::Ecr(registry) => Some(registry.inner()),
            Backend::Layout(_) => None,
        };
        if let Some(registry) = registry {
            self.wire.prepare(registry.name());
            self.limits
                .heed(registry.origin(), registry.rate_limit().clone());
        }
        self.limit(backend, limits);
    }

    /// A registry of which no config says anything: what its operator documents holds all the same.
    pub(crate) fn remote(&self, settings: registry::Settings) -> Result<Backend, Fault> {
        let backend = self.registry(settings)?;
        self.put_in_force(&backend, config::Limits::default());
        Ok(backend)
    }

    fn limit(&self, backend: &Backend, said: config::Limits) {
        let config::Limits {
            concurrency,
            requests_per_second,
            bandwidth,
        } = said;
        let quotas = match backend {
            Backend::Registry(registry) => registry.profile().quotas,
            Backend::Ecr(registry) => registry.inner().profile().quotas,
            Backend::Layout(_) => Default::default(),
        };
        let settings = limits::Settings {
            concurrency: concurrency.map(Into::into),
            requests_per_second,
            bandwidth,
            quotas,
        };
        self.limits.set(backend.origin(), settings);
    }

    fn registry(&self, settings: registry::Settings) -> Result<Backend, Fault> {
        let login = ecr::Login::of(&settings.credentials)
            .filter(|login| !login.is_public())
            .cloned();
        let registry = Registry::new(settings, &self.wire)?;
        Ok(match login {
            Some(login) => Backend::Ecr(ecr::Registry::new(
                registry,
                login,
                &self.wire,
                Arc::new(self.index.clone()),
            )),
            None => Backend::Registry(registry),
        })
    }

    /// All series of all routes exist from the start.
    fn prepare(&self, topology: &Topology) {
        for name in topology.backends.keys() {
            self.transfer.prepare_registry(name);
        }
        let sets = topology.sets.0.iter().map(|member| &*member.set);
        self.transfer.sets.adopt(sets);
        for route in &topology.routes.0 {
            self.watch.prepare(route);
            registries_of(route).for_each(|name| self.transfer.health.prepare(name));
            self.transfer.prepare_route(
                &route.name,
                route.to.iter().map(|template| &**template.registry()),
            );
            self.transfer
                .prepare_gates(&route.name, &route.gate_kinds());
            let literal = route.from.literal();
            for side in literal
                .iter()
                .flat_map(|name| topology.destinations(route, name))
                .flatten()
            {
                use crate::endpoint::Source as _;
                self.transfer.prepare_repository(
                    &route.name,
                    &side.registry,
                    side.repository.repository().as_str(),
                );
            }
        }
    }

    /// Forgets the series of routes, destinations and registries that are no more, and ends the
    /// jobs of routes that are no more, or read or write elsewhere now, before their tag.
    pub(crate) fn withdraw(&self, before: &Topology, now: &Topology) {
        let routes = &now.routes.0;
        let places = routes
            .iter()
            .flat_map(|route| route.to.iter().map(|to| (&*route.name, &**to.registry())))
            .collect();
        let registries = now.backends.keys().map(String::as_str).collect();
        let in_use: HashSet<&str> = routes.iter().flat_map(registries_of).collect();
        self.watch.retain_routes(&now.routes);
        self.transfer.retain(&places, &registries);
        self.transfer.health.retain(|name| in_use.contains(name));
        self.wire.retain(&registries);
        for route in &before.routes.0 {
            let later = now.route(&route.name);
            let goes_on = later.is_some_and(|later| holds_still(route, later))
                && stay_where_they_are(route, &before.backends, &now.backends);
            if !goes_on && let Some(token) = before.withdrawn.get(&route.name) {
                token.cancel();
            }
        }
    }

    /// Brings the gauges up to date that are not kept so by events.
    pub(crate) fn refresh(&self) {
        self.transfer.refresh();
        self.watch.refresh();
        self.decided.show(&self.ledger.holding());
        self.transfer.sets.show(&self.ledger.known_decisions());
    }

    /// Counts an approval that passes gates.
    pub(crate) fn overridden(&self) {
        self.decided.overridden();
    }

    /// Shows how many production tags name a denied digest.
    pub(crate) fn show_denied(&self, tags: usize) {
        self.decided.show_denied(tags);
    }

    /// Brings the gauges of the stores up to date, every now and then, until dropped.
    pub(crate) async fn count_stores(self) {
        loop {
            let statistics = self.index.statistics().await;
            self.store.show_index(&statistics);
            self.remember_ledger().await;
            tokio::time::sleep(Duration::from_secs(15)).await;
        }
    }

    /// Prunes old unconfirmed hints of the index, until dropped.
    pub(crate) async fn prune_index(self) {
        const KEPT: jiff::SignedDuration = jiff::SignedDuration::from_hours(24 * 90);
        loop {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            if let Ok(limit) = crate::clock::now().checked_sub(KEPT) {
                self.index.prune(limit).await;
            }
        }
    }

    /// Closes the stores after their last writer.
    pub(crate) async fn close(self) {
        self.remember_ledger().await;
        let Parts {
            index,
            ledger,
            engine,
            ..
        } = self;
        engine.end_threads().await;
        drop(engine);
        index.close().await;
        ledger.close().await;
    }
}

/// Whether what a route did before is still wanted: it reads the same, and writes all that it
/// wrote.
fn holds_still(before: &Route, now: &Route) -> bool {
    let reads_same = before.from.registry() == now.from.registry()
        && before.from.repository() == now.from.repository();
    let mut written = before.to.iter();
    reads_same && written.all(|to| now.to.iter().any(|now| is_same_place(to, now)))
}

fn is_same_place(one: &Template, other: &Template) -> bool {
    one.registry() == other.registry() && one.repository() == other.repository()
}

/// Whether the registries of a route are the same ones under the same names.
fn stay_where_they_are(
    route: &Route,
    before: &BTreeMap<String, Backend>,
    now: &BTreeMap<String, Backend>,
) -> bool {
    use crate::endpoint::Repositories as _;
    let origin = |backends: &BTreeMap<String, Backend>, name: &str| {
        backends.get(name).map(|backend| backend.origin().clone())
    };
    registries_of(route).all(|name| origin(before, name) == origin(now, name))
}

/// The registries that a route reads and writes.
fn registries_of(route: &Route) -> impl Iterator<Item = &str> {
    [&**route.from.registry()]
        .into_iter()
        .chain(route.to.iter().map(|to| &**to.registry()))
}

/// What every row of the ledger says besides the job.
pub(crate) fn facts(config_hash: &str) -> RunFacts {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default();
    RunFacts {
        run_id: String::new(),
        config_hash: config_hash.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Drift, Existing};
    use crate::route::Pattern;

    #[test]
    fn a_route_holds_still_as_long_as_it_reads_the_same_and_writes_all_that_it_wrote() {
        let route = |from: &str, to: &[&str]| {
            let from = Pattern::parse(from).unwrap();
            let to = to
                .iter()
                .map(|to| Template::parse(to, &from).unwrap())
                .collect();
            Route {
                name: "r".into(),
                from,
                to,
                selection: Default::default(),
                existing: Existing::Adopt,
                drift: Drift::Keep,
                create: Default::default(),
                backup: None,
                mode: Default::default(),
                platform: None,
                gates: Default::default(),
            }
        };
        let before = route("s/app", &["p/app"]);
        for (now, expected) in [
            (route("s/app", &["p/app"]), true),
            (route("s/app", &["q/app", "p/app"]), true),
            (route("s/app", &["q/app"]), false),
            (route("s/app", &["p/other"]), false),
            (route("s/other", &["p/app"]), false),
            (route("t/app", &["p/app"]), false),
        ] {
            assert_eq!(
                holds_still(&before, &now),
                expected,
                "{} {}",
                now.from.repository(),
                now.to[0].repository()
            );
        }
    }
}
