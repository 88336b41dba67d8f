//! One pass over the world, for commands that run without the daemon.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use tokio::time::Instant;

use super::board::Board;
use super::discover::{Owners, discover};
use super::event::{Scope, Wish};
use super::look::{Ask, Looking};
use super::queue::fruitless;
use super::run::matching;
use super::world::World;
use crate::clock;
use crate::endpoint::Backend;
use crate::job::{Actor, Cause, Look, Report};
use crate::oci::RepositoryName;
use crate::transfer::{Settle, Stop};
use crate::watch::route::Route;

/// Looks at everything in the scope once, and carries what differs.
pub async fn pass<B: Backend>(world: &World<B>, scope: &Scope, wish: Wish, actor: Actor, settle: &Settle, stop: &Stop) -> Report {
    let (started, clock) = (clock::now(), Instant::now());
    let (board, mut owners, mut looks) = (Board::default(), Owners::new(world), Vec::new());
    let ask =
        Ask { tags: scope.tags.clone(), digest: scope.digest, cause: Cause::Cli, actor, wish, run_id: settle.facts.run_id.clone() };
    let asked = matching(world, scope);
    discover_all(world, &asked, &mut owners, stop, &mut looks).boxed().await;
    let mut places: Vec<(&Route, RepositoryName)> = Vec::new();
    for (route, repository) in asked {
        let discovered = match repository {
            Some(name) => Arc::new(owners.alone(world, route, &name)),
            None => owners.sorted(world, route),
        };
        looks.extend(discovered.as_look());
        places.extend(discovered.repositories.iter().map(|name| (route, name.clone())));
    }
    let each = stream::iter(&places).map(|(route, repository)| {
        let (ask, board) = (&ask, &board);
        async move {
            let look = Looking { world, route, repository, ask, settle, board, stop }.look().boxed().await;
            world.metrics.look_ended(&route.name, ask.cause, &look.trouble);
            look
        }
    });
    looks.extend(each.buffer_unordered(world.settings.looks).collect::<Vec<_>>().await);
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
    for route in &world.routes.0 {
        let is_asked = asked.iter().any(|(one, repository)| one.name == route.name && repository.is_none());
        let is_awaited = || asked.iter().any(|(one, _)| owners.awaited(world, one).iter().any(|other| other.name == route.name));
        if route.from.is_literal() || !(is_asked || is_awaited()) {
            continue;
        }
        let found = discover(world, route, stop).boxed().await;
        looks.extend(found.as_ref().err().filter(|_| is_asked).map(fruitless));
        owners.note(world, route, found.ok());
    }
}
