//! Discovery: the source repositories of each route. A literal route has one. Those of a wildcard
//! route come from the registry's catalog or the layout's folders, page by page. A catalog is read
//! once for all routes of its registry, and each name is matched once.
//!
//! Two sources with one destination would overwrite each other, and a destination that is also a
//! source would make a circle: both are refused. The first source by the routes' order in the
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
use crate::job::{Look, Totals, Trouble};
use crate::oci::RepositoryName;
use crate::route::claims::{DestinationKey, DestinationKeys};
use crate::route::{Route, Template};

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
