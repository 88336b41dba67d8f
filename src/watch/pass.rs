//! One pass over the world, for commands that run without the daemon.

use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;

use super::board::Board;
use super::discover::{Discovered, Owners, discover};
use super::event::{Scope, Wish};
use super::look::{Ask, Looking};
use super::run::matching;
use super::world::World;
use crate::job::{Actor, Cause, Look, Report, Trouble};
use crate::oci::RepositoryName;
use crate::transfer::{Settle, Stop};
use crate::watch::route::Route;

/// Repositories that are looked at at once.
const LOOKS: usize = 16;

/// Looks at everything in the scope once, and carries what differs.
pub async fn pass(world: &World, scope: &Scope, wish: Wish, actor: Actor, settle: &Settle, stop: &Stop) -> Report {
    let (started, clock) = (Timestamp::now(), Instant::now());
    let (board, owners) = (Board::default(), Owners::default());
    let ask = Ask {
        tags: scope.tag.iter().cloned().collect(),
        digest: scope.digest,
        cause: Cause::Cli,
        actor,
        wish,
        run_id: settle.facts.run_id.clone(),
    };
    let mut looks = Vec::new();
    let mut places: Vec<(&Route, RepositoryName)> = Vec::new();
    for (route, repository) in matching(world, scope) {
        let discovered = match repository {
            Some(name) => Ok(Discovered { repositories: [name].into(), trouble: Vec::new() }),
            None => discover(world, route, &owners, stop).await,
        };
        let discovered =
            discovered.unwrap_or_else(|fault| Discovered { trouble: vec![Trouble::from(&fault)], ..Discovered::default() });
        looks.push(Look { trouble: discovered.trouble, ..Look::default() });
        places.extend(discovered.repositories.into_iter().map(|name| (route, name)));
    }
    let each = stream::iter(&places).map(|(route, repository)| {
        let (ask, board) = (&ask, &board);
        async move {
            world.metrics.look_begins(&route.name, ask.cause);
            Looking { world, route, repository, ask, settle, board, stop }.look().await
        }
    });
    looks.extend(each.buffer_unordered(LOOKS).collect::<Vec<_>>().await);
    Report::new(&ask.run_id, started, clock.elapsed(), looks)
}
