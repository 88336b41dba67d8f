//! The topology of a config: backends, routes, and the engine. A new config replaces it as a whole;
//! running looks keep the topology they began with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backend::{self, Backend};
use crate::endpoint::{Origin, Repositories, RouteSource, Source};
use crate::fault::Fault;
use crate::job::Key;
use crate::ledger::RunFacts;
use crate::oci::RepositoryName;
use crate::route::{Naming, Route, Routes, Template};
use crate::set::{Member, Set, Sets};
use crate::status::metrics::Metrics;
use crate::transfer::Engine;
use crate::transfer::retry::{PlatformNow, RulesInForce};

/// Intervals of looks that no event asks for.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// Between two polls of a route; `None`: only the sweep.
    pub poll: Option<Duration>,
    /// Within this time the registries are asked again instead of the index.
    pub verify: Duration,
}

/// Concurrency of the watch. The program runs with the defaults; a simulator draws others.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Looks that run at once.
    pub looks: usize,
    /// The part of `looks` that is reserved for looks that name their tags.
    pub reserved: usize,
    /// Tags of one destination that are compared and carried at once.
    pub tags: usize,
    /// Events that wait for discoveries at once. Further ones wait in their channel, and are
    /// refused once it is full.
    pub events: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            looks: 16,
            reserved: 4,
            tags: 64,
            events: 256,
        }
    }
}

/// The topology.
pub struct Topology<B: Repositories = Backend> {
    /// The backends by their names in the config.
    pub backends: BTreeMap<String, B>,
    /// The routes, in the order of the config.
    pub routes: Routes,
    /// The members of the sets.
    pub sets: Arc<Sets>,
    /// The engine.
    pub engine: Engine,
    /// The metrics of routes and looks.
    pub metrics: Metrics,
    /// What every row of the ledger says besides the job.
    pub facts: Arc<RunFacts>,
    /// Intervals of looks.
    pub intervals: Intervals,
    /// Concurrency.
    pub settings: Settings,
    /// Cancelled when a newer config no longer has the route: its jobs end before their tag.
    pub withdrawn: BTreeMap<Arc<str>, CancellationToken>,
}

/// One side of a route: a repository of a backend.
#[derive(Clone)]
pub struct Side<R = backend::Repository> {
    /// The registry's name in the config.
    pub registry: Arc<str>,
    /// The entry of the route's `to`.
    pub to: Arc<str>,
    /// The repository.
    pub repository: R,
    /// How tags are renamed there.
    pub naming: Naming,
}

impl<R: Source> Side<R> {
    /// Whether this is the repository `source` itself, under other tags.
    pub fn is_itself(&self, source: &impl Source) -> bool {
        self.repository.origin() == source.origin()
            && self.repository.repository() == source.repository()
    }
}

/// The members of a config's sets.
pub fn members_of<B: Repositories>(
    sets: &[Set],
    routes: &Routes,
    backends: &BTreeMap<String, B>,
) -> Sets {
    let mut members = Vec::new();
    for set in sets {
        let of_set = set.routes.iter().filter_map(|name| routes.named(name));
        for route in of_set {
            members.extend(members_of_route(set, route, backends));
        }
    }
    Sets(members)
}

/// The destinations of a route, which has a literal `from`.
fn members_of_route<B: Repositories>(
    set: &Set,
    route: &Route,
    backends: &BTreeMap<String, B>,
) -> Vec<Member> {
    let Some(source) = route.from.literal() else {
        return Vec::new();
    };
    let member = |template: &Template| {
        let backend = backends.get(&**template.registry())?;
        Some(Member {
            set: set.name.clone(),
            route: route.name.clone(),
            source: source.clone(),
            selection: route.selection.clone(),
            origin: backend.origin().clone(),
            repository: template.fill(&[]).ok()?,
            naming: template.naming().clone(),
            shown: (route.to.len() > 1).then(|| template.to_string()),
        })
    };
    route.to.iter().filter_map(member).collect()
}

impl<B: Repositories> Topology<B> {
    /// The route of that name.
    pub fn route(&self, name: &str) -> Option<&Route> {
        self.routes.named(name)
    }

    /// The backend of that name. The config guarantees one for every route.
    pub fn backend(&self, name: &str) -> &B {
        self.backends
            .get(name)
            .expect("the config names the registries of its routes")
    }

    /// The rules in force for a job whose source has this origin. `None`: this config has no such
    /// job.
    pub fn rules_of(&self, key: &Key, source: &Origin) -> Option<RulesInForce> {
        let route = self.route(&key.route)?;
        let owner = self.routes.of(route.from.registry(), &key.source)?;
        let reads =
            owner.name == route.name && self.backend(route.from.registry()).origin() == source;
        if !reads || !route.selection.allows(&key.tag) {
            return None;
        }
        let place = &key.destination;
        let is_wanted = self
            .destinations(route, &key.source)
            .ok()?
            .iter()
            .any(|side| {
                let there = &side.repository;
                let is_repository =
                    *there.origin() == place.origin && *there.repository() == place.repository;
                is_repository && side.naming.name(&key.tag).as_ref() == Some(&place.tag)
            });
        is_wanted.then(|| RulesInForce {
            tag: route.rules_for(&key.tag),
            gates: route.gates.clone(),
            backup: route.backup_of(&key.tag, &place.tag),
            observes: route.observes(),
            platform: PlatformNow::of(route.platform.as_deref()),
        })
    }

    /// The routes of those names, or of all names if there are none, in the order of the config.
    /// With a repository: only its owners, each with the repository.
    pub fn matching(
        &self,
        names: &[String],
        repository: Option<&RepositoryName>,
    ) -> Vec<(&Route, Option<RepositoryName>)> {
        let routes = self
            .positions(names, repository)
            .into_iter()
            .map(|position| &self.routes.0[position]);
        match repository {
            None => routes.map(|route| (route, None)).collect(),
            Some(name) => routes
                .filter(|route| self.owns(route, name))
                .map(|route| (route, Some(name.clone())))
                .collect(),
        }
    }

    fn positions(&self, names: &[String], repository: Option<&RepositoryName>) -> BTreeSet<usize> {
        match (names, repository) {
            ([], None) => (0..self.routes.0.len()).collect(),
            ([], Some(repository)) => self
                .backends
                .keys()
                .filter_map(|registry| self.routes.position_of(registry, repository))
                .collect(),
            (names, _) => names
                .iter()
                .filter_map(|name| self.routes.position(name))
                .collect(),
        }
    }

    /// Whether the route is the owner of a repository in its registry.
    fn owns(&self, route: &Route, repository: &RepositoryName) -> bool {
        self.routes
            .of(route.from.registry(), repository)
            .is_some_and(|owner| owner.name == route.name)
    }

    /// The routes that read a repository, one for each name that its registry has in the config.
    pub fn routes_reading(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
    ) -> impl Iterator<Item = &Route> {
        self.backends
            .iter()
            .filter(move |(_, backend)| backend.origin() == origin)
            .filter_map(move |(name, _)| self.routes.of(name, repository))
    }

    /// The source repository of a look.
    pub fn source(&self, route: &Route, repository: &RepositoryName) -> RouteSource<B::Repository> {
        let whole = self.backend(route.from.registry());
        let whole = whole.repository(repository.clone());
        RouteSource::new(whole, route.platform.clone())
    }

    /// The destination repositories of a source repository.
    ///
    /// # Errors
    /// When the repository's name yields no valid name at a destination.
    pub fn destinations(
        &self,
        route: &Route,
        repository: &RepositoryName,
    ) -> Result<Vec<Side<B::Repository>>, Fault> {
        let captures = route.from.captures(repository).unwrap_or_default();
        let sides = route.to.iter().map(|template| {
            let name = template
                .fill(&captures)
                .map_err(|error| Fault::rejected(format!("route {}: {error}", route.name)))?;
            Ok(self.side(route, template, name, repository))
        });
        sides.collect()
    }

    /// The destination of a source repository by one template.
    fn side(
        &self,
        route: &Route,
        template: &Template,
        name: RepositoryName,
        source: &RepositoryName,
    ) -> Side<B::Repository> {
        let registry = template.registry();
        let source = self.source(route, source).whole().clone();
        let there = self.backend(registry);
        Side {
            registry: registry.clone(),
            to: template.to_string().into(),
            repository: there.destination(name, &route.create, source),
            naming: template.naming().clone(),
        }
    }
}
