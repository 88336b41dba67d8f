//! Discovery: the source repositories of each route. A literal route has one. Those of a wildcard
//! route come from the registry's catalog or the layout's folders, page by page. A catalog is read
//! once for all routes of its registry, and each name is matched once.
//!
//! Two sources with one destination would overwrite each other, and a destination that is also a
//! source would make a circle: both are refused. The first source by the routes' order in the
//! config, then by name, keeps the destination, whichever was found first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::topology::Topology;
use crate::endpoint::{Cursor, Origin, Repositories, Source as _};
use crate::fault::Fault;
use crate::job::{Look, Totals, Trouble};
use crate::oci::RepositoryName;
use crate::route::claims::{Claimant, Claims, DestinationKey, DestinationKeys};
use crate::route::{Route, Template};
use crate::transfer::Stop;
use crate::transfer::pages::List;

/// Names that are matched before the task yields.
const SORTED_AT_ONCE: usize = 500;

/// The repositories of a route, and the trouble with refused ones.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    /// The source repositories.
    pub repositories: BTreeSet<RepositoryName>,
    /// Refused ones, and why.
    pub trouble: Vec<Trouble>,
}

impl Discovered {
    /// The trouble as the result of a look, if there is any.
    pub fn as_look(&self) -> Option<Look> {
        let refused = self
            .trouble
            .iter()
            .filter(|trouble| trouble.class == Trouble::REFUSED)
            .count() as u64;
        let totals = Totals {
            refused,
            ..Totals::default()
        };
        (!self.trouble.is_empty()).then(|| Look {
            totals,
            trouble: self.trouble.clone(),
            ..Look::default()
        })
    }
}

/// The sources of all routes with wildcards in one registry, as its catalog had them at one time.
#[derive(Debug, Default)]
pub struct Catalog(BTreeMap<RepositoryName, Arc<Destinations>>);

impl Catalog {
    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &RepositoryName> {
        self.0.keys()
    }
}

/// A catalog that was read, and its changes since the reading before.
#[derive(Debug, Default)]
pub struct Reading {
    /// What it holds now.
    pub catalog: Catalog,
    /// Sources that are new or gone.
    pub changes: Vec<Change>,
}

/// A source that is new, or gone under `None`.
#[derive(Debug)]
pub struct Change {
    claimant: Claimant,
    destinations: Option<Arc<Destinations>>,
}

/// Where a source is promoted to.
#[derive(Debug)]
pub struct Destinations {
    /// `Err`: its name yields no valid destination.
    all: Result<Vec<DestinationRepository>, Trouble>,
    /// The destinations it claims: all, or none if one of them is also a source.
    claims: DestinationKeys,
}

/// A destination repository of a source.
#[derive(Debug)]
struct DestinationRepository {
    destination: DestinationKey,
    /// The registry's name in the config.
    registry: Arc<str>,
    /// The route that reads it as a source, unless that does no harm.
    reader: Option<Arc<str>>,
}

/// Reads the catalog of a registry for all its wildcard routes. `before` is the catalog of the last
/// reading under the same config.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn read_catalog<B: Repositories>(
    topology: &Topology<B>,
    registry: &str,
    before: &Catalog,
    stop: &Stop,
) -> Result<Reading, Fault> {
    let backend = topology.backend(registry);
    let mut names = BTreeSet::new();
    let list = List {
        what: "the catalog".into(),
        origin: backend.origin(),
        registry: backend.name(),
        stop,
    };
    let read = |cursor: Option<Cursor>| async move { backend.repositories(cursor.as_ref()).await };
    if !topology
        .engine
        .pages(list, read, |name| names.insert(name))
        .await?
    {
        let text = format!(
            "{} lists no catalog for us; name its repositories one by one instead of with *",
            backend.name()
        );
        return Err(Fault::rejected(text));
    }
    let mut reading = Reading::default();
    for (number, name) in names.into_iter().enumerate() {
        if number % SORTED_AT_ONCE == SORTED_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        reading.sort(topology, registry, before, name);
    }
    for (number, name) in before.0.keys().enumerate() {
        if number % SORTED_AT_ONCE == SORTED_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        reading.sort_gone(topology, registry, name);
    }
    Ok(reading)
}

impl Reading {
    fn sort<B: Repositories>(
        &mut self,
        topology: &Topology<B>,
        registry: &str,
        before: &Catalog,
        source: RepositoryName,
    ) {
        let Some(route) = topology.routes.position_of(registry, &source) else {
            return;
        };
        if topology.routes.0[route].from.is_literal() {
            return;
        }
        let destinations = before.0.get(&source).cloned().unwrap_or_else(|| {
            let destinations = Arc::new(Destinations::of(
                topology,
                &topology.routes.0[route],
                &source,
            ));
            let claimant = Claimant {
                route,
                source: source.clone(),
            };
            self.changes.push(Change {
                claimant,
                destinations: Some(destinations.clone()),
            });
            destinations
        });
        self.catalog.0.insert(source, destinations);
    }

    fn sort_gone<B: Repositories>(
        &mut self,
        topology: &Topology<B>,
        registry: &str,
        source: &RepositoryName,
    ) {
        if self.catalog.0.contains_key(source) {
            return;
        }
        if let Some(route) = topology.routes.position_of(registry, source) {
            self.changes.push(Change {
                claimant: Claimant {
                    route,
                    source: source.clone(),
                },
                destinations: None,
            });
        }
    }
}

impl Destinations {
    fn of<B: Repositories>(
        topology: &Topology<B>,
        route: &Route,
        source: &RepositoryName,
    ) -> Destinations {
        let sides = match topology.destinations(route, source) {
            Ok(sides) => sides,
            Err(fault) => {
                return Destinations {
                    all: Err(Trouble::from(&fault)),
                    claims: DestinationKeys::default(),
                };
            }
        };
        let mut may_claim = true;
        let mut all = Vec::new();
        for side in sides {
            let destination = (
                side.repository.origin().clone(),
                side.repository.repository().clone(),
            );
            let reader = reader(topology, &destination);
            may_claim &= reader.is_none();
            let reader = reader
                .filter(|reader| {
                    !(**reader == route.name && names_anew(route, &destination, source))
                })
                .cloned();
            all.push(DestinationRepository {
                destination,
                registry: side.registry,
                reader,
            });
        }
        let claims = if may_claim {
            all.iter().map(|place| place.destination.clone()).collect()
        } else {
            DestinationKeys::default()
        };
        Destinations {
            all: Ok(all),
            claims,
        }
    }
}

/// Which sources write to which destination repositories, as far as the sources are known. Valid
/// for one config; a new config starts with its literal routes.
#[derive(Debug, Default)]
pub struct Owners {
    /// The known sources of each route, by its position.
    sources: Vec<BTreeMap<RepositoryName, Arc<Destinations>>>,
    catalogs: HashMap<Arc<str>, Arc<Catalog>>,
    claims: Claims,
    /// For each route the registries whose catalogs decide which of two sources is refused.
    awaits: Vec<BTreeSet<Arc<str>>>,
    /// Registries whose catalogs nothing has tried to read yet.
    untried: BTreeSet<Arc<str>>,
    /// Routes with a source that claims nothing but depends on claims.
    observers: BTreeSet<usize>,
    /// Results by the route's position, until a claim changes.
    sorted: Vec<Option<Arc<Discovered>>>,
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
    fn judge<B: Repositories>(
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
                let (other, theirs) = (&topology.routes.0[owner.route].name, &owner.source);
                return Err(refused(format!(
                    "route {name}: {source} and {theirs} (route {other}) would both be promoted to {}; {source} is left out",
                    address()
                )));
            }
            if let Some(reader) = reader {
                return Err(refused(format!(
                    "route {name}: {source} would be promoted to {}, which route {reader} reads again; {source} is left out",
                    address()
                )));
            }
        }
        Ok(())
    }
}

fn refused(text: String) -> Trouble {
    Trouble {
        class: Trouble::REFUSED.into(),
        text,
    }
}

/// Whether a route renames tags within its source repository. Looks leave out its own names there.
fn names_anew(route: &Route, (_, repository): &DestinationKey, source: &RepositoryName) -> bool {
    let within = |to: &&Template| to.registry() == route.from.registry();
    repository == source
        && route
            .to
            .iter()
            .filter(within)
            .all(|to| !to.naming().keeps())
}

/// The route that reads a destination as its source, by any of the registry's names in the config.
fn reader<'a, B: Repositories>(
    topology: &'a Topology<B>,
    (origin, repository): &DestinationKey,
) -> Option<&'a Arc<str>> {
    let mut same = topology
        .backends
        .iter()
        .filter(|(_, backend)| backend.origin() == origin);
    same.find_map(|(registry, _)| topology.routes.of(registry, repository))
        .map(|route| &route.name)
}

/// For each route the registries of wildcard routes, itself or before it, whose sources can share a
/// destination with it, as far as the templates tell.
fn awaits<B: Repositories>(topology: &Topology<B>) -> Vec<BTreeSet<Arc<str>>> {
    let routes: Vec<(&Route, Vec<Shape<'_>>)> = topology
        .routes
        .0
        .iter()
        .map(|route| {
            (
                route,
                route
                    .to
                    .iter()
                    .map(|to| Shape::of(topology.backend(to.registry()).origin(), to.repository()))
                    .collect(),
            )
        })
        .collect();
    let awaited_by = |(position, (route, shapes)): (usize, &(&Route, Vec<Shape<'_>>))| {
        let mut awaits = BTreeSet::new();
        if may_meet_itself(route) {
            awaits.insert(route.from.registry().clone());
        }
        for (earlier, theirs) in &routes[..position] {
            let registry = earlier.from.registry();
            if !earlier.from.is_literal()
                && !awaits.contains(registry)
                && Shape::any_meet(shapes, theirs)
            {
                awaits.insert(registry.clone());
            }
        }
        awaits
    };
    routes.iter().enumerate().map(awaited_by).collect()
}

/// Whether two sources of one route can share a destination: a template leaves a capture unused.
fn may_meet_itself(route: &Route) -> bool {
    let is_unused =
        |to: &Template, number: usize| !to.repository().contains(&format!("{{{number}}}"));
    route
        .to
        .iter()
        .any(|to| (1..=route.from.wildcards()).any(|number| is_unused(to, number)))
}

/// The literal start and end of a template.
struct Shape<'a> {
    origin: &'a Origin,
    start: &'a str,
    end: &'a str,
}

impl<'a> Shape<'a> {
    fn of(origin: &'a Origin, template: &'a str) -> Shape<'a> {
        let start = template.split('{').next().unwrap_or_default();
        let end = template.rsplit('}').next().unwrap_or_default();
        Shape { origin, start, end }
    }

    fn any_meet(ours: &[Shape<'_>], theirs: &[Shape<'_>]) -> bool {
        ours.iter()
            .any(|one| theirs.iter().any(|other| one.may_meet(other)))
    }

    /// Whether both literal starts and both literal ends are compatible.
    fn may_meet(&self, other: &Shape<'_>) -> bool {
        (self.start.starts_with(other.start) || other.start.starts_with(self.start))
            && (self.end.ends_with(other.end) || other.end.ends_with(self.end))
            && self.origin == other.origin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_differ_in_what_is_written_out_do_not_meet() {
        let (here, elsewhere) = (
            Origin::new("https://production.example"),
            Origin::new("https://other.example"),
        );
        for (one, other, meet) in [
            ("prod/{1}", "prod/{1}", true),
            ("prod/{1}", "prod/a-{1}", true),
            ("prod/{1}", "test/{1}", false),
            ("{1}-a", "{1}-b", false),
            ("prod/app", "prod/{1}", true),
            ("prod/app", "prod/web", false),
        ] {
            let meets = |one, other| Shape::of(&here, one).may_meet(&Shape::of(&here, other));
            assert_eq!(
                (meets(one, other), meets(other, one)),
                (meet, meet),
                "{one} {other}"
            );
            assert!(
                !Shape::of(&here, one).may_meet(&Shape::of(&elsewhere, other)),
                "another registry"
            );
        }
    }
}
