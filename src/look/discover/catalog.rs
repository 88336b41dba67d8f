//! Catalogs: the sources of all wildcard routes in one registry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Destinations;
use crate::endpoint::Repositories;
use crate::fault::Fault;
use crate::look::topology::Topology;
use crate::oci::RepositoryName;
use crate::route::claims::Claimant;
use crate::transfer::Stop;
use crate::transfer::pages::List;

/// Names that are matched before the task yields.
pub(super) const SORTED_AT_ONCE: usize = 500;

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
    pub(super) claimant: Claimant,
    pub(super) destinations: Option<Arc<Destinations>>,
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
    if !topology
        .engine
        .pages(
            list,
            |cursor| async move { backend.repositories(cursor.as_ref()).await },
            |name| names.insert(name),
        )
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
    pub(super) fn sort<B: Repositories>(
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

    pub(super) fn sort_gone<B: Repositories>(
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
