//! One pass over the world, for commands that run without the daemon.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use tokio::time::Instant;

use super::event::Scope;
use super::queue::fruitless;
use super::run::matching;
use crate::clock;
use crate::endpoint::Backend;
use crate::fault::Fault;
use crate::job::{Actor, Cause, Look, Report};
use crate::look::LeftAlone;
use crate::look::Wish;
use crate::look::discover::{Catalog, Owners, read_catalog};
use crate::look::topology::World;
use crate::look::{Ask, Looking};
use crate::oci::RepositoryName;
use crate::route::Route;
use crate::status::board::Board;
use crate::transfer::{Settle, Stop};

/// Looks at everything in the scope once, and carries what differs.
pub async fn pass<B: Backend>(
    world: &World<B>,
    scope: &Scope,
    wish: Wish,
    actor: Actor,
    settle: &Settle,
    stop: &Stop,
) -> Report {
    let (started, clock) = (clock::now(), Instant::now());
    let (board, mut owners, mut looks) = (Board::default(), Owners::new(world), Vec::new());
    let ask = Ask {
        tags: scope.tags.clone(),
        digest: scope.digest,
        cause: Cause::Cli,
        actor,
        wish,
        run_id: settle.facts.run_id.clone(),
    };
    let asked = matching(world, scope);
    discover_all(world, &asked, &mut owners, stop, &mut looks)
        .boxed()
        .await;
    let mut places: Vec<(&Route, RepositoryName)> = Vec::new();
    for (route, repository) in asked {
        let Some(position) = world.routes.position(&route.name) else {
            continue;
        };
        let discovered = match repository {
            Some(name) => Arc::new(owners.alone(world, position, &name)),
            None => owners.sorted(world, position),
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
    let each = stream::iter(&places).map(|(route, repository)| {
        let (ask, board, left_alone) = (&ask, &board, &left_alone);
        async move {
            let look = Looking {
                world,
                route,
                repository,
                ask,
                settle,
                board,
                stop,
                left_alone,
            }
            .look()
            .boxed()
            .await;
            world
                .metrics
                .look_ended(&route.name, ask.cause, &look.trouble);
            look
        }
    });
    looks.extend(
        each.buffer_unordered(world.settings.looks)
            .collect::<Vec<_>>()
            .await,
    );
    Report::new(&ask.run_id, started, clock.elapsed(), looks)
}

/// Finds the sources of the routes that are asked for, and of those that come before them in the same destinations.
async fn discover_all<B: Backend>(
    world: &World<B>,
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
        .filter_map(|(route, _)| world.routes.position(&route.name));
    wanted.extend(positions.flat_map(|position| owners.all_awaited(position).cloned()));
    for registry in wanted {
        match read_catalog(world, &registry, &Catalog::default(), stop)
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
                    fruitless(&Fault::new(fault.class(), text))
                }));
            }
        }
    }
}
