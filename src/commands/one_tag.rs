//! One tag of a destination that a decision is about: both of its sides, and what they name.

use std::sync::Arc;

use super::resolve::{Resolved, may_yield};
use super::undecided::Undecided;
use crate::backend::Repository;
use crate::endpoint::{Repositories as _, RouteSource, Source};
use crate::fault::Fault;
use crate::job::{Gates, LONG_WAIT, TagId};
use crate::ledger::Ledger;
use crate::look::topology::Topology;
use crate::oci::{Digest, RepositoryName, Tag};
use crate::transfer::Stop;
use crate::transfer::limits::{RequestClass, RequestPriority};
use crate::transfer::resolve::Attempts;

/// A tag of a destination.
pub(crate) struct OneTag {
    pub(crate) place: TagId,
    /// The routes that lead there.
    pub(crate) routes: Arc<[Arc<str>]>,
    /// The production repository.
    pub(crate) there: Repository,
    /// Where it comes from, as far as that is known.
    pub(crate) from: Option<SourceTag>,
}

/// A tag of a source.
pub(crate) struct SourceTag {
    pub(crate) route: Arc<str>,
    pub(crate) gates: Arc<Gates>,
    /// Whether the route lets the tag only go forward.
    pub(crate) forward_only: bool,
    pub(crate) tag: Tag,
    pub(crate) repository: RouteSource<Repository>,
}

impl OneTag {
    /// The one tag that a target names.
    ///
    /// # Errors
    /// Where it names no tag, or more than one, or the ledger cannot be read.
    pub(crate) async fn of(
        resolved: &Resolved,
        topology: &Topology,
        ledger: &Ledger,
    ) -> Result<OneTag, Undecided> {
        routes_write(resolved, topology)?;
        let target = &resolved.target;
        let (Some(repository), Some(tag)) = (target.repository(), target.tag()) else {
            let text =
                "name one tag of a destination: [REGISTRY/]REPOSITORY:TAG, without wildcards";
            return Err(Undecided::Target(text.into()));
        };
        let registry = registry(resolved, topology, &repository)?;
        let backend = topology.backend(&registry);
        let place = TagId {
            origin: backend.origin().clone(),
            repository: repository.clone(),
            tag: tag.clone(),
        };
        let from = source(resolved, topology, ledger, &place).await?;
        Ok(OneTag {
            routes: resolved.routes.clone().into(),
            there: backend.repository(repository),
            place,
            from,
        })
    }

    /// What production names, if anything.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub(crate) async fn found(
        &self,
        topology: &Topology,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let there = &self.there;
        named_by(topology, there, &self.place.tag, Attempts::Retried, stop).await
    }

    /// What production names.
    ///
    /// # Errors
    /// Where it names nothing, or cannot be asked.
    pub(crate) async fn production(
        &self,
        topology: &Topology,
        stop: &Stop,
    ) -> Result<Digest, Undecided> {
        let named = self.found(topology, stop).await?;
        named.ok_or_else(|| Undecided::NotThere(format!("{} is not there", self.shown())))
    }

    /// What staging names, where it must name something.
    ///
    /// # Errors
    /// Where it names nothing, or cannot be asked.
    pub(crate) async fn promoted(
        &self,
        topology: &Topology,
        stop: &Stop,
    ) -> Result<Digest, Undecided> {
        let named = self.staging(topology, stop).await?;
        named.ok_or_else(|| {
            let text = format!("staging has nothing under the tag of {}", self.shown());
            Undecided::NotThere(text)
        })
    }

    /// What staging names, if anything.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub(crate) async fn staging(
        &self,
        topology: &Topology,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        self.staging_in(Attempts::Retried, topology, stop).await
    }

    /// What staging names, if anything, asked once.
    ///
    /// # Errors
    /// Where it does not answer.
    pub(crate) async fn staging_at_once(
        &self,
        topology: &Topology,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        self.staging_in(Attempts::Once, topology, stop).await
    }

    async fn staging_in(
        &self,
        attempts: Attempts,
        topology: &Topology,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        match &self.from {
            Some(from) => {
                let repository = &from.repository;
                named_by(topology, repository, &from.tag, attempts, stop).await
            }
            None => Ok(None),
        }
    }

    /// The tag as reports show it.
    pub(crate) fn shown(&self) -> String {
        format!("{}:{}", self.there.address(), self.place.tag)
    }
}

/// Refuses to decide about tags of a route that writes nothing.
///
/// # Errors
/// Where a route observes.
pub(crate) fn routes_write(resolved: &Resolved, topology: &Topology) -> Result<(), Undecided> {
    let names = resolved.routes.iter();
    let mut routes = names.filter_map(|name| topology.route(name));
    match routes.find(|route| route.observes()) {
        None => Ok(()),
        Some(route) => Err(Undecided::Conflict(format!(
            "route {} observes (`mode: observe`): it writes nothing to {}",
            route.name, resolved.target
        ))),
    }
}

/// What a tag names.
///
/// # Errors
/// Where the registry cannot be asked.
pub(crate) async fn named_by(
    topology: &Topology,
    repository: &impl Source,
    tag: &Tag,
    attempts: Attempts,
    stop: &Stop,
) -> Result<Option<Digest>, Fault> {
    let priority = RequestPriority::from(RequestClass::Manifests).within(LONG_WAIT);
    topology
        .engine
        .resolve_tag(repository, tag, priority, attempts, stop)
        .await
}

/// The registry of the destination, by its name.
fn registry(
    resolved: &Resolved,
    topology: &Topology,
    repository: &RepositoryName,
) -> Result<Arc<str>, Undecided> {
    let origin = resolved.target.origin();
    let is_there =
        |name: &Arc<str>| origin.is_none_or(|origin| topology.backend(name).origin() == origin);
    let mut found: Vec<Arc<str>> = resolved
        .routes
        .iter()
        .filter_map(|name| topology.route(name))
        .flat_map(|route| &route.to)
        .filter(|to| may_yield(to, repository))
        .map(|to| to.registry().clone())
        .filter(is_there)
        .collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(Undecided::Target(format!(
            "{} is in several registries ({}): put one of them in front",
            resolved.target,
            found.join(", ")
        ))),
    }
}

/// The source of a destination tag: that of the ledger's newest job, else that of a route with one
/// source.
async fn source(
    resolved: &Resolved,
    topology: &Topology,
    ledger: &Ledger,
    place: &TagId,
) -> Result<Option<SourceTag>, Fault> {
    if let Some(key) = ledger.newest_job(place).await? {
        let source = source_of(topology, &key.route, key.source, key.tag);
        if source.is_some() {
            return Ok(source);
        }
    }
    let routes = resolved.routes.iter();
    let source = routes
        .filter_map(|name| topology.route(name))
        .find_map(|route| {
            let repository = route.only_source()?;
            source_of(topology, &route.name, repository, place.tag.clone())
        });
    Ok(source)
}

fn source_of(
    topology: &Topology,
    route: &Arc<str>,
    repository: RepositoryName,
    tag: Tag,
) -> Option<SourceTag> {
    let route = topology.route(route)?;
    Some(SourceTag {
        route: route.name.clone(),
        gates: route.gates.clone(),
        forward_only: route.selection.is_forward_only(&tag),
        repository: topology.source(route, &repository),
        tag,
    })
}
