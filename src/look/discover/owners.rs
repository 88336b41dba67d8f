//! Owners: which sources write to which destination repositories.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Catalog, Change, DestinationRepository, Destinations, Discovered, awaits};
use crate::endpoint::Repositories;
use crate::job::Trouble;
use crate::look::topology::Topology;
use crate::oci::RepositoryName;
use crate::route::claims::{Claimant, Claims, DestinationKey};

/// Which sources write to which destination repositories, as far as the sources are known. Valid
/// for one config; a new config starts with its literal routes.
#[derive(Debug, Default)]
pub struct Owners {
    /// The known sources of each route, by its position.
    pub(super) sources: Vec<BTreeMap<RepositoryName, Arc<Destinations>>>,
    pub(super) catalogs: HashMap<Arc<str>, Arc<Catalog>>,
    pub(super) claims: Claims,
    /// For each route the registries with the catalogs that decide which of two sources is refused.
    pub(super) awaits: Vec<BTreeSet<Arc<str>>>,
    /// Registries with catalogs that nothing has tried to read yet.
    pub(super) untried: BTreeSet<Arc<str>>,
    /// Routes with a source that claims nothing but depends on claims.
    pub(super) observers: BTreeSet<usize>,
    /// Results by the route's position, until a claim changes.
    pub(super) sorted: Vec<Option<Arc<Discovered>>>,
}

impl Owners {
    /// The state before any catalog was read: the sources of literal routes.
    pub fn new<B: Repositories>(topology: &Topology<B>) -> Owners {
        let routes = &topology.routes.0;
        let wild = routes.iter().filter(|route| !route.from.is_literal());
        let mut owners = Owners {
            sources: vec![BTreeMap::new(); routes.len()],
            awaits: awaits(topology),
            untried: wild.map(|route| route.from.registry().clone()).collect(),
            sorted: vec![None; routes.len()],
            ..Owners::default()
        };
        let literal = routes
            .iter()
            .enumerate()
            .filter_map(|(position, route)| Some((position, route, route.from.literal()?)));
        let changes = literal.map(|(route, of, source)| {
            let destinations = Some(Arc::new(Destinations::of(topology, of, &source)));
            Change {
                claimant: Claimant { route, source },
                destinations,
            }
        });
        owners.apply(changes.collect::<Vec<_>>());
        owners
    }

    /// The catalog of a registry by its last reading.
    pub fn catalog(&self, registry: &str) -> Arc<Catalog> {
        self.catalogs.get(registry).cloned().unwrap_or_default()
    }

    /// Whether the source is one of the route's, by its pattern or by the last reading.
    pub fn knows(&self, route: usize, source: &RepositoryName) -> bool {
        self.sources[route].contains_key(source)
    }

    /// The source that is promoted to a repository, as far as the sources are known.
    pub fn owner(&self, destination: &DestinationKey) -> Option<&Claimant> {
        self.claims.owner(destination)
    }

    /// Applies changes of a reading. All of them come before [`Owners::read`], in any number of
    /// pieces.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut claimed = Vec::new();
        for Change {
            claimant,
            destinations,
        } in changes
        {
            let sources = &mut self.sources[claimant.route];
            if destinations
                .as_ref()
                .is_some_and(|destinations| destinations.claims.is_empty())
            {
                self.observers.insert(claimant.route);
            }
            let claims = destinations
                .as_ref()
                .map(|destinations| destinations.claims.clone());
            match destinations {
                Some(destinations) => drop(sources.insert(claimant.source.clone(), destinations)),
                None => drop(sources.remove(&claimant.source)),
            }
            claimed.push((claimant, claims));
        }
        if claimed.is_empty() {
            return;
        }
        let changed = self.claims.update(claimed);
        for route in changed.iter().chain(&self.observers) {
            self.sorted[*route] = None;
        }
    }

    /// Ends a reading after its changes. `None`: it failed, and the earlier catalog stays.
    pub fn read(&mut self, registry: &Arc<str>, catalog: Option<Catalog>) {
        self.untried.remove(registry);
        if let Some(catalog) = catalog {
            self.catalogs.insert(registry.clone(), Arc::new(catalog));
        }
    }

    /// A registry whose catalog must be read before the route's refused sources are known.
    pub fn awaited(&self, route: usize) -> Option<&Arc<str>> {
        self.all_awaited(route).next()
    }

    /// All such registries.
    pub fn all_awaited(&self, route: usize) -> impl Iterator<Item = &Arc<str>> {
        self.awaits[route].intersection(&self.untried)
    }

    /// The known sources of a route, refused ones apart.
    pub fn sorted<B: Repositories>(
        &mut self,
        topology: &Topology<B>,
        route: usize,
    ) -> Arc<Discovered> {
        if let Some(sorted) = &self.sorted[route] {
            return sorted.clone();
        }
        let mut discovered = Discovered::default();
        for (source, destinations) in &self.sources[route] {
            match self.judge(topology, route, source, destinations) {
                Ok(()) => drop(discovered.repositories.insert(source.clone())),
                Err(trouble) => discovered.trouble.push(trouble),
            }
        }
        let sorted = Arc::new(discovered);
        self.sorted[route] = Some(sorted.clone());
        sorted
    }

    /// One source of a route alone, known or not.
    pub fn alone<B: Repositories>(
        &self,
        topology: &Topology<B>,
        route: usize,
        source: &RepositoryName,
    ) -> Discovered {
        let known = self.sources[route].get(source).cloned();
        let destinations = known.unwrap_or_else(|| {
            Arc::new(Destinations::of(
                topology,
                &topology.routes.0[route],
                source,
            ))
        });
        match self.judge(topology, route, source, &destinations) {
            Ok(()) => Discovered {
                repositories: BTreeSet::from([source.clone()]),
                trouble: Vec::new(),
            },
            Err(trouble) => Discovered {
                repositories: BTreeSet::new(),
                trouble: vec![trouble],
            },
        }
    }

    /// Whether a source may be promoted to its destinations.
    pub(super) fn judge<B: Repositories>(
        &self,
        topology: &Topology<B>,
        route: usize,
        source: &RepositoryName,
        destinations: &Destinations,
    ) -> Result<(), Trouble> {
        let name = &topology.routes.0[route].name;
        for DestinationRepository {
            destination,
            registry,
            reader,
        } in destinations.all.as_ref().map_err(Clone::clone)?
        {
            let address = || format!("{registry}/{}", destination.1);
            let owner = self
                .claims
                .owner(destination)
                .filter(|owner| (owner.route, &owner.source) != (route, source));
            if let Some(owner) = owner {
                let other = &topology.routes.0[owner.route].name;
                let theirs = &owner.source;
                return Err(Trouble::refused(format!(
                    "route {name}: {source} and {theirs} (route {other}) would both be promoted to {}; {source} is left out",
                    address()
                )));
            }
            if let Some(reader) = reader {
                return Err(Trouble::refused(format!(
                    "route {name}: {source} would be promoted to {}, which route {reader} reads again; {source} is left out",
                    address()
                )));
            }
        }
        Ok(())
    }
}
