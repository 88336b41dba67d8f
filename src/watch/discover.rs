//! Discovery: which source repositories fall to a route. A literal route has one; behind wildcards they are found through the
//! registry's catalog or the layout's folders, page by page.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use super::route::Route;
use super::world::World;
use crate::endpoint::{Cursor, Origin, Source as _};
use crate::fault::Fault;
use crate::job::Trouble;
use crate::oci::RepositoryName;
use crate::transfer::Stop;
use crate::transfer::limits::Traffic;

/// Most repositories of one registry: more is a catalog that never ends.
const MOST: usize = 200_000;

/// Who writes to which destination repository: the first source that came has it.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    owners: Arc<Mutex<HashMap<(Origin, RepositoryName), Feeder>>>,
}

type Feeder = (Arc<str>, RepositoryName);

/// The repositories of a route, and what stood in the way of some.
#[derive(Debug, Default)]
pub struct Discovered {
    /// The source repositories.
    pub repositories: BTreeSet<RepositoryName>,
    /// Refused ones, and why.
    pub trouble: Vec<Trouble>,
}

/// Finds the source repositories of a route.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn discover(world: &World, route: &Route, owners: &Owners, stop: &Stop) -> Result<Discovered, Fault> {
    let names = match route.from.literal() {
        Some(name) => BTreeSet::from([name]),
        None => catalog(world, route, stop).await?,
    };
    let mut discovered = Discovered::default();
    for name in names {
        match owners.claim(world, route, &name) {
            Ok(()) => drop(discovered.repositories.insert(name)),
            Err(fault) => discovered.trouble.push(Trouble::from(&fault)),
        }
    }
    Ok(discovered)
}

async fn catalog(world: &World, route: &Route, stop: &Stop) -> Result<BTreeSet<RepositoryName>, Fault> {
    let site = world.site(route.from.registry());
    let engine = &world.engine;
    let mut names = BTreeSet::new();
    let mut cursor: Option<Cursor> = None;
    let mut read = 0;
    loop {
        let act = || {
            let cursor = cursor.clone();
            async move { site.repositories(cursor.as_ref()).await }
        };
        let page = engine.ask(site.origin(), site.name(), Traffic::Listing.of_look(), stop, act).await?;
        let Some(page) = page else {
            let text = format!(
                "route {}: {} lists no catalog for us; name its repositories one by one instead of with *",
                route.name,
                site.name()
            );
            return Err(Fault::rejected(text));
        };
        read += page.entries.len() + page.invalid;
        let falls_here =
            |name: &RepositoryName| world.routes.of(route.from.registry(), name).is_some_and(|owner| owner.name == route.name);
        names.extend(page.entries.into_iter().filter(falls_here));
        match page.next {
            None => return Ok(names),
            Some(next) if read <= MOST && cursor.as_ref() != Some(&next) => cursor = Some(next),
            Some(_) => return Err(Fault::rejected(format!("route {}: the catalog of {} never ends", route.name, site.name()))),
        }
    }
}

impl Owners {
    /// Two sources that meet in one destination would overwrite each other: the second is refused.
    fn claim(&self, world: &World, route: &Route, source: &RepositoryName) -> Result<(), Fault> {
        let mut owners = self.owners.lock().expect("nothing panics while it claims");
        let me = (route.name.clone(), source.clone());
        for side in world.destinations(route, source)? {
            let key = (side.repository.origin().clone(), side.repository.repository().clone());
            let owner = owners.entry(key).or_insert_with(|| me.clone());
            if *owner != me {
                let (address, (other, theirs)) = (side.repository.address(), owner);
                let text = format!(
                    "route {}: {source} and {theirs} (route {other}) would both be promoted to {address}; {source} is left out",
                    route.name
                );
                return Err(Fault::rejected(text));
            }
        }
        Ok(())
    }
}
