//! One pass over the topology, for commands that run without the daemon.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;

use super::event::Scope;
use crate::clock;
use crate::decision::Target;
use crate::endpoint::Repositories;
use crate::fault::Fault;
use crate::job::{Actor, Cause, Look, Report};
use crate::look::LeftAlone;
use crate::look::PassOptions;
use crate::look::discover::{Catalog, Owners, read_catalog};
use crate::look::topology::Topology;
use crate::look::{LookRequest, RepositoryLook};
use crate::oci::{RepositoryName, Tag};
use crate::route::Route;
use crate::status::board::Board;
use crate::transfer::{Settle, Stop};

/// Runs one look at each source of the scope.
pub async fn pass<B: Repositories>(
    topology: &Topology<B>,
    scope: &Scope,
    options: PassOptions,
    actor: Actor,
    settle: &Settle,
    stop: &Stop,
) -> Report {
    let started = clock::now();
    let clock = Instant::now();
    let board = Board::default();
    let mut owners = Owners::new(topology);
    let mut looks = Vec::new();
    let request = LookRequest {
        digest: scope.digest,
        options,
        run_id: settle.facts.run_id.clone(),
        ..LookRequest::new(scope.tags.clone(), Cause::Cli, actor)
    };
    let asked = topology.matching(&scope.routes, scope.repository.as_ref());
    discover_all(topology, &asked, &mut owners, stop, &mut looks)
        .boxed()
        .await;
    let mut places: Vec<(&Route, RepositoryName)> = Vec::new();
    for (route, repository) in asked {
        let Some(position) = topology.routes.position(&route.name) else {
            continue;
        };
        let discovered = match repository {
            Some(name) => Arc::new(owners.alone(topology, position, &name)),
            None => owners.sorted(topology, position),
        };
        looks.extend(discovered.as_look());
        places.extend(
            discovered
                .repositories
                .iter()
                .map(|name| (route, name.clone())),
        );
    }
    // Members of a set wait for each other, so they are looked at side by side.
    places.sort_by_cached_key(|(route, _)| topology.sets.set_of(&route.name));
    let view = Pass {
        topology,
        board,
        left_alone: LeftAlone::new(),
        settle,
        stop,
    };
    looks.extend(view.look_at(&places, &request).await);
    // Moving tags of a set that was torn go back with the next look.
    for (set, tag) in torn_since(topology, started).await {
        let is_member = |(route, _): &&(&Route, _)| topology.sets.set_of(&route.name) == Some(&set);
        let members: Vec<_> = places.iter().filter(is_member).cloned().collect();
        let request = LookRequest {
            tags: tag.into_iter().collect(),
            ..request.clone()
        };
        looks.extend(view.look_at(&members, &request).await);
    }
    Report::new(&request.run_id, started, clock.elapsed(), looks)
}

/// What the looks of a pass share.
struct Pass<'a, B: Repositories> {
    topology: &'a Topology<B>,
    board: Board,
    left_alone: LeftAlone,
    settle: &'a Settle,
    stop: &'a Stop,
}

impl<B: Repositories> Pass<'_, B> {
    async fn look_at(
        &self,
        places: &[(&Route, RepositoryName)],
        request: &LookRequest,
    ) -> Vec<Look> {
        let topology = self.topology;
        let at_once = topology.settings.looks.max(topology.sets.largest());
        let each = stream::iter(places).map(async |(route, repository)| {
            let look = RepositoryLook {
                topology,
                route,
                repository,
                request,
                settle: self.settle,
                board: &self.board,
                stop: self.stop,
                left_alone: &self.left_alone,
                began: Instant::now(),
            }
            .look()
            .boxed()
            .await;
            topology
                .metrics
                .look_ended(&route.name, request.cause, &look.trouble);
            look
        });
        each.buffer_unordered(at_once).collect().await
    }
}

/// The tags of sets that were torn since a time. A ledger that cannot be read has told so by what had
/// to be recorded.
async fn torn_since<B: Repositories>(
    topology: &Topology<B>,
    since: Timestamp,
) -> Vec<(Arc<str>, Option<Tag>)> {
    let in_force = topology.engine.ledger.in_force().await.unwrap_or_default();
    let torn = in_force.torn(clock::now()).filter(|hold| hold.at >= since);
    let names = torn.filter_map(|hold| match &hold.target {
        Target::Set(set, tag) => Some((set.clone(), tag.clone())),
        Target::Everything | Target::Digest(_) | Target::Route(_) | Target::Destination(_) => None,
    });
    names.collect()
}

/// Discovers the sources of the scope's routes, and of earlier routes with the same destinations.
async fn discover_all<B: Repositories>(
    topology: &Topology<B>,
    asked: &[(&Route, Option<RepositoryName>)],
    owners: &mut Owners,
    stop: &Stop,
    looks: &mut Vec<Look>,
) {
    let wild = asked
        .iter()
        .filter(|(route, repository)| repository.is_none() && !route.from.is_literal());
    let wild: Vec<&Route> = wild.map(|(route, _)| *route).collect();
    let mut wanted: BTreeSet<Arc<str>> = wild
        .iter()
        .map(|route| route.from.registry().clone())
        .collect();
    let positions = asked
        .iter()
        .filter_map(|(route, _)| topology.routes.position(&route.name));
    wanted.extend(positions.flat_map(|position| owners.all_awaited(position).cloned()));
    for registry in wanted {
        match read_catalog(topology, &registry, &Catalog::default(), stop)
            .boxed()
            .await
        {
            Ok(reading) => {
                owners.apply(reading.changes);
                owners.read(&registry, Some(reading.catalog));
            }
            Err(fault) => {
                owners.read(&registry, None);
                let of_it = wild
                    .iter()
                    .filter(|route| *route.from.registry() == registry);
                looks.extend(of_it.map(|route| {
                    let text = format!("route {}: {}", route.name, fault.chain());
                    Look::failed(&Fault::new(fault.class(), text))
                }));
            }
        }
    }
}
