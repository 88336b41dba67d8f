//! One pass over the topology, for commands that run without the daemon.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use tokio::time::Instant;

use super::event::Scope;
use crate::clock;
use crate::endpoint::Repositories;
use crate::fault::Fault;
use crate::job::{Actor, Cause, Look, Report};
use crate::look::LeftAlone;
use crate::look::PassOptions;
use crate::look::discover::{Catalog, Owners, read_catalog};
use crate::look::topology::Topology;
use crate::look::{LookRequest, RepositoryLook};
use crate::oci::RepositoryName;
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
    let left_alone = LeftAlone::new();
    // Members of a set wait for each other, so they are looked at side by side.
    places.sort_by_cached_key(|(route, _)| topology.sets.set_of(&route.name));
    let at_once = topology.settings.looks.max(topology.sets.largest());
    let each = stream::iter(&places).map(|(route, repository)| {
        let request = &request;
        let board = &board;
        let left_alone = &left_alone;
        async move {
            let look = RepositoryLook {
                topology,
                route,
                repository,
                request,
                settle,
                board,
                stop,
                left_alone,
            }
            .look()
            .boxed()
            .await;
            topology
                .metrics
                .look_ended(&route.name, request.cause, &look.trouble);
            look
        }
    });
    looks.extend(each.buffer_unordered(at_once).collect::<Vec<_>>().await);
    Report::new(&request.run_id, started, clock.elapsed(), looks)
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
