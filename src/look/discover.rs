//! Discovery: the source repositories of each route. A literal route has one. Those of a wildcard
//! route come from the registry's catalog or the layout's folders, page by page. A catalog is read
//! once for all routes of its registry, and each name is matched once.
//!
//! Two sources with one destination would overwrite each other, and a chain of routes that comes back
//! to one of them would go round: both are refused. The first source by the routes' order in the
//! config, then by name, keeps the destination, whichever was found first.

mod catalog;
mod overlap;
mod owners;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use self::catalog::{Catalog, Change, Reading, read_catalog};
use self::overlap::awaits;
pub use self::owners::Owners;
use super::topology::Topology;
use crate::endpoint::{Repositories, Source as _};
use crate::job::{Look, Totals, Trouble, TroubleClass};
use crate::oci::RepositoryName;
use crate::route::Route;
use crate::route::claims::{DestinationKey, DestinationKeys};

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
            .filter(|trouble| trouble.class == TroubleClass::Refused)
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

/// Steps of a walk along chains of routes at most.
const MOST_STEPS: usize = 100;

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
    /// The route that reads it as a source and leads back, unless that does no harm.
    reader: Option<Arc<str>>,
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
            let reader = circle(topology, route, &destination);
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

/// Whether a route renames tags within its source repository. Looks leave out its own names there.
fn names_anew(route: &Route, (_, repository): &DestinationKey, source: &RepositoryName) -> bool {
    repository == source
        && route
            .to
            .iter()
            .filter(|to| to.registry() == route.from.registry())
            .all(|to| !to.naming().keeps())
}

/// The route that reads a destination and from which a chain leads to a route a second time:
/// promotions could go round. A chain such as dev → staging → production ends.
fn circle<'a, B: Repositories>(
    topology: &'a Topology<B>,
    route: &'a Route,
    (origin, repository): &DestinationKey,
) -> Option<&'a Arc<str>> {
    let mut chain = Chain {
        topology,
        path: vec![&route.name],
        steps: 0,
    };
    topology
        .routes_reading(origin, repository)
        .find(|reader| chain.comes_back(reader, repository))
        .map(|reader| &reader.name)
}

/// A walk along the routes that read what the route before has written.
struct Chain<'a, B: Repositories> {
    topology: &'a Topology<B>,
    path: Vec<&'a Arc<str>>,
    steps: usize,
}

impl<'a, B: Repositories> Chain<'a, B> {
    /// Whether the repository that `reader` reads leads to a route of the path or to `reader`
    /// itself. A walk that is very long counts as one that does.
    fn comes_back(&mut self, reader: &'a Route, repository: &RepositoryName) -> bool {
        self.steps += 1;
        if self.path.contains(&&reader.name) || self.steps > MOST_STEPS {
            return true;
        }
        self.path.push(&reader.name);
        let topology = self.topology;
        // A name that yields no destination ends the chain.
        let sides = topology
            .destinations(reader, repository)
            .unwrap_or_default();
        let leads_back = sides.iter().any(|side| {
            let there = side.repository.repository();
            topology
                .routes_reading(side.repository.origin(), there)
                .any(|next| self.comes_back(next, there))
        });
        self.path.pop();
        leads_back
    }
}
