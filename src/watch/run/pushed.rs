//! Which looks a push asks for.

use std::sync::Arc;
use std::time::Duration;

use super::Watch;
use crate::endpoint::{Origin, Repositories, Source as _};
use crate::job::ScanSide;
use crate::look::topology::{Side, Topology};
use crate::oci::{RepositoryName, Tag};
use crate::route::Route;
use crate::watch::event::PushedTo;
use crate::watch::queue::LookKey;

/// How long a look waits that no tag was named for. The children of an index are pushed without a
/// tag just before the index: its own notification starts a look at its tag at once.
pub(super) const UNTAGGED_DELAY: Duration = Duration::from_secs(5);

/// A look that a push asks for.
pub(super) struct PushedLook {
    pub(super) route: Arc<str>,
    /// The source repository.
    pub(super) repository: RepositoryName,
    /// For a push to a destination: the tags in the source that the pushed ones are named after.
    pub(super) source_tags: Option<Vec<Tag>>,
}

impl PushedLook {
    /// Its key in the queue.
    pub(super) fn key(&self) -> LookKey {
        LookKey {
            route: self.route.clone(),
            repository: self.repository.clone(),
            dry_run: false,
        }
    }
}

impl<B: Repositories> Watch<B> {
    /// The looks for a push: that of the route that reads the repository, and that of the source
    /// that is promoted to it. Of several names of a repository, the first that leads to a route
    /// counts.
    pub(super) fn pushed_looks(
        &self,
        topology: &Topology<B>,
        pushed: &PushedTo,
        tags: &[Tag],
    ) -> Vec<PushedLook> {
        let Some(backend) = topology.backends.get(&*pushed.registry) else {
            return Vec::new();
        };
        let origin = backend.origin();
        let looks = |repository: &RepositoryName| {
            let read = read_from(topology, origin, repository);
            let written = self.written_to(topology, (origin, repository), tags, pushed.is_scan);
            read.into_iter().chain(written).collect::<Vec<_>>()
        };
        pushed
            .repositories
            .iter()
            .map(looks)
            .find(|looks| !looks.is_empty())
            .unwrap_or_default()
    }

    /// The look at the source that is promoted to a repository. A push without a tag changes
    /// nothing there that a look compares; a scan of what has no tag yet may be waited for by any
    /// tag of the source.
    fn written_to(
        &self,
        topology: &Topology<B>,
        (origin, repository): (&Origin, &RepositoryName),
        tags: &[Tag],
        is_scan: bool,
    ) -> Option<PushedLook> {
        let there = (origin.clone(), repository.clone());
        let owner = self.owners.owner(&there)?;
        let route = topology.routes.0.get(owner.route)?;
        let source_tags = originals(topology, route, &owner.source, &there, tags);
        let is_scanned_there = route.gates.is_scanned_at(ScanSide::Destination);
        let is_awaited = is_scan && tags.is_empty() && is_scanned_there;
        (is_awaited || !source_tags.is_empty()).then(|| PushedLook {
            route: route.name.clone(),
            repository: owner.source.clone(),
            source_tags: (!is_awaited).then_some(source_tags),
        })
    }
}

/// The source's names of tags in a destination.
fn originals<B: Repositories>(
    topology: &Topology<B>,
    route: &Route,
    source: &RepositoryName,
    (origin, repository): &(Origin, RepositoryName),
    tags: &[Tag],
) -> Vec<Tag> {
    let is_there = |side: &Side<B::Repository>| {
        side.repository.origin() == origin && side.repository.repository() == repository
    };
    let sides = topology.destinations(route, source).unwrap_or_default();
    let namings = sides.iter().filter(|side| is_there(side));
    namings
        .flat_map(|side| tags.iter().filter_map(|tag| side.naming.original(tag)))
        .collect()
}

/// The looks of the routes that read a repository.
fn read_from<B: Repositories>(
    topology: &Topology<B>,
    origin: &Origin,
    repository: &RepositoryName,
) -> Vec<PushedLook> {
    topology
        .routes_reading(origin, repository)
        .map(|route| PushedLook {
            route: route.name.clone(),
            repository: repository.clone(),
            source_tags: None,
        })
        .collect()
}
