//! Discovery: which source repositories fall to a route. A literal route has one; behind wildcards they are found through the
//! registry's catalog or the layout's folders, page by page.
//!
//! Two sources that meet in one destination would overwrite each other, and a destination that is read again as a source would
//! go round in a circle: both are refused. Which of two sources is the second does not depend on who was found first: the
//! routes' order in the config decides, then the sources' names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::route::{Route, Template};
use super::world::World;
use crate::endpoint::{Backend, Cursor, Origin, Source as _};
use crate::fault::Fault;
use crate::job::{Look, Totals, Trouble};
use crate::oci::RepositoryName;
use crate::transfer::Stop;
use crate::transfer::pages::List;

/// The repositories of a route, and what stood in the way of some.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    /// The source repositories.
    pub repositories: BTreeSet<RepositoryName>,
    /// Refused ones, and why.
    pub trouble: Vec<Trouble>,
}

impl Discovered {
    /// What is told to whoever asked for a look, when something stood in the way.
    pub fn as_look(&self) -> Option<Look> {
        let refused = self.trouble.iter().filter(|trouble| trouble.class == Trouble::REFUSED).count() as u64;
        let totals = Totals { refused, ..Totals::default() };
        (!self.trouble.is_empty()).then(|| Look { totals, trouble: self.trouble.clone(), ..Look::default() })
    }
}

/// Finds the source repositories of a route.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn discover<B: Backend>(world: &World<B>, route: &Route, stop: &Stop) -> Result<BTreeSet<RepositoryName>, Fault> {
    match route.from.literal() {
        Some(name) => Ok(BTreeSet::from([name])),
        None => catalog(world, route, stop).await,
    }
}

async fn catalog<B: Backend>(world: &World<B>, route: &Route, stop: &Stop) -> Result<BTreeSet<RepositoryName>, Fault> {
    let site = world.site(route.from.registry());
    let mut names = BTreeSet::new();
    let what = format!("route {}: the catalog", route.name);
    let list = List { what, origin: site.origin(), registry: site.name(), stop };
    let read = |cursor: Option<Cursor>| async move { site.repositories(cursor.as_ref()).await };
    let falls_here =
        |name: &RepositoryName| world.routes.of(route.from.registry(), name).is_some_and(|owner| owner.name == route.name);
    let take = |name: RepositoryName| {
        if falls_here(&name) {
            names.insert(name);
        }
        true
    };
    if world.engine.pages(list, read, take).await? {
        return Ok(names);
    }
    Err(Fault::rejected(format!(
        "route {}: {} lists no catalog for us; name its repositories one by one instead of with *",
        route.name,
        site.name()
    )))
}

/// A destination repository.
type Home = (Origin, RepositoryName);

/// Who writes to which destination repository, as far as the sources are known.
#[derive(Debug, Default)]
pub struct Owners {
    known: BTreeMap<Arc<str>, BTreeSet<RepositoryName>>,
    /// Routes with wildcards whose discovery has not ended yet, well or not.
    untried: BTreeSet<Arc<str>>,
    owners: HashMap<Home, (Arc<str>, RepositoryName)>,
    /// What was sorted since the owners last changed.
    sorted: BTreeMap<Arc<str>, Arc<Discovered>>,
}

impl Owners {
    /// What the config alone says: the sources of literal routes.
    pub fn new<B: Backend>(world: &World<B>) -> Owners {
        let mut owners = Owners::default();
        for route in &world.routes.0 {
            match route.from.literal() {
                Some(name) => drop(owners.known.insert(route.name.clone(), BTreeSet::from([name]))),
                None => drop(owners.untried.insert(route.name.clone())),
            }
        }
        owners.claim_all(world);
        owners
    }

    /// The discovery of a route has ended; `None`: it failed, and what was known of it holds.
    pub fn note<B: Backend>(&mut self, world: &World<B>, route: &Route, found: Option<BTreeSet<RepositoryName>>) {
        self.untried.remove(&route.name);
        let Some(found) = found else { return };
        if self.known.get(&route.name) != Some(&found) {
            self.known.insert(route.name.clone(), found);
            self.claim_all(world);
        }
    }

    /// Routes whose sources have to be known before it can be said who is second in a destination of `route`.
    pub fn awaited<'a, B: Backend>(&self, world: &'a World<B>, route: &Route) -> Vec<&'a Route> {
        if self.untried.is_empty() {
            return Vec::new();
        }
        let up_to = world.routes.0.iter().position(|other| other.name == route.name).map_or(0, |at| at + 1);
        let earlier = world.routes.0.iter().take(up_to).filter(|other| self.untried.contains(&other.name));
        earlier.filter(|other| may_meet(world, route, other)).collect()
    }

    /// The known sources of a route, without those that are refused.
    pub fn sorted<B: Backend>(&mut self, world: &World<B>, route: &Route) -> Arc<Discovered> {
        if let Some(sorted) = self.sorted.get(&route.name) {
            return sorted.clone();
        }
        let mut discovered = Discovered::default();
        for name in self.known.get(&route.name).into_iter().flatten() {
            match self.judge(world, route, name) {
                Ok(()) => drop(discovered.repositories.insert(name.clone())),
                Err(trouble) => discovered.trouble.push(trouble),
            }
        }
        let sorted = Arc::new(discovered);
        self.sorted.insert(route.name.clone(), sorted.clone());
        sorted
    }

    /// One source of a route alone, known or not.
    pub fn alone<B: Backend>(&self, world: &World<B>, route: &Route, source: &RepositoryName) -> Discovered {
        match self.judge(world, route, source) {
            Ok(()) => Discovered { repositories: BTreeSet::from([source.clone()]), trouble: Vec::new() },
            Err(trouble) => Discovered { repositories: BTreeSet::new(), trouble: vec![trouble] },
        }
    }

    /// Whether a source may go where its route sends it.
    fn judge<B: Backend>(&self, world: &World<B>, route: &Route, source: &RepositoryName) -> Result<(), Trouble> {
        for (home, registry) in homes(world, route, source).map_err(|fault| Trouble::from(&fault))? {
            let taken = self.owners.get(&home).filter(|(name, theirs)| (name, theirs) != (&route.name, source));
            let address = format!("{registry}/{}", home.1);
            if let Some((other, theirs)) = taken {
                return Err(refused(format!(
                    "route {}: {source} and {theirs} (route {other}) would both be promoted to {address}; {source} is left out",
                    route.name
                )));
            }
            if let Some(reader) =
                reader(world, &home).filter(|reader| !(**reader == route.name && names_anew(route, &home, source)))
            {
                return Err(refused(format!(
                    "route {}: {source} would be promoted to {address}, which route {reader} reads again; {source} is left out",
                    route.name
                )));
            }
        }
        Ok(())
    }

    /// Every known source claims its destinations, all of them or none, in the order that decides.
    fn claim_all<B: Backend>(&mut self, world: &World<B>) {
        self.owners.clear();
        self.sorted.clear();
        for route in &world.routes.0 {
            for source in self.known.get(&route.name).into_iter().flatten() {
                let Ok(homes) = homes(world, route, source) else { continue };
                if homes.iter().all(|(home, _)| !self.owners.contains_key(home) && reader(world, home).is_none()) {
                    let me = (route.name.clone(), source.clone());
                    self.owners.extend(homes.into_iter().map(|(home, _)| (home, me.clone())));
                }
            }
        }
    }
}

fn refused(text: String) -> Trouble {
    Trouble { class: Trouble::REFUSED.into(), text }
}

/// The destinations of a source, each with its registry's name in the config.
fn homes<B: Backend>(world: &World<B>, route: &Route, source: &RepositoryName) -> Result<Vec<(Home, Arc<str>)>, Fault> {
    let sides = world.destinations(route, source)?;
    Ok(sides
        .into_iter()
        .map(|side| ((side.repository.origin().clone(), side.repository.repository().clone()), side.registry))
        .collect())
}

/// Whether a route names tags anew in the source itself: looks leave out what it has named there.
fn names_anew(route: &Route, (_, repository): &Home, source: &RepositoryName) -> bool {
    let within = |to: &&Template| to.registry() == route.from.registry();
    repository == source && route.to.iter().filter(within).all(|to| !to.naming().keeps())
}

/// The route that would read a destination as its source, under whatever name the config has for that registry.
fn reader<'a, B: Backend>(world: &'a World<B>, (origin, repository): &Home) -> Option<&'a Arc<str>> {
    let mut same = world.sites.iter().filter(|(_, site)| site.origin() == origin);
    same.find_map(|(registry, _)| world.routes.of(registry, repository)).map(|route| &route.name)
}

/// Whether sources of these routes can meet in one destination, as far as the templates tell.
fn may_meet<B: Backend>(world: &World<B>, one: &Route, other: &Route) -> bool {
    let origin = |template: &Template| world.site(template.registry()).origin().clone();
    if one.name == other.name {
        return one
            .to
            .iter()
            .any(|to| (1..=one.from.wildcards()).any(|number| !to.repository().contains(&format!("{{{number}}}"))));
    }
    one.to.iter().any(|to| other.to.iter().any(|too| origin(to) == origin(too) && overlap(to.repository(), too.repository())))
}

/// Whether two templates have the same start and end, as far as those are written out.
fn overlap(one: &str, other: &str) -> bool {
    let start = |text: &str| text.split('{').next().unwrap_or_default().to_owned();
    let end = |text: &str| text.rsplit('}').next().unwrap_or_default().to_owned();
    let (start_one, start_other, end_one, end_other) = (start(one), start(other), end(one), end(other));
    (start_one.starts_with(&start_other) || start_other.starts_with(&start_one))
        && (end_one.ends_with(&end_other) || end_other.ends_with(&end_one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_differ_in_what_is_written_out_do_not_meet() {
        for (one, other, meet) in [
            ("prod/{1}", "prod/{1}", true),
            ("prod/{1}", "prod/a-{1}", true),
            ("prod/{1}", "test/{1}", false),
            ("{1}-a", "{1}-b", false),
            ("prod/app", "prod/{1}", true),
            ("prod/app", "prod/web", false),
        ] {
            assert_eq!((overlap(one, other), overlap(other, one)), (meet, meet), "{one} {other}");
        }
    }
}
