//! Route health: which routes have been looked at once, and the trouble of their repositories.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::job::Trouble;
use crate::look::discover::Discovered;
use crate::oci::RepositoryName;

/// Most repositories of one route with stored trouble.
const REMEMBERED: usize = 1000;
/// Most troubles of one route that are shown.
const SHOWN: usize = 100;

/// The health of all routes.
#[derive(Debug, Default)]
pub struct RouteHealth {
    routes: BTreeMap<Arc<str>, Route>,
}

#[derive(Debug, Default)]
struct Route {
    /// Repositories of the first discovery that have not been looked at; `None`: there was none
    /// yet.
    first: Option<BTreeSet<RepositoryName>>,
    /// By repository; `None` is the discovery itself.
    trouble: BTreeMap<Option<RepositoryName>, Vec<Trouble>>,
}

impl RouteHealth {
    /// Replaces the routes. The state of those that stay is kept.
    pub fn adopt<'a>(&mut self, routes: impl Iterator<Item = &'a Arc<str>>) {
        let mut before = std::mem::take(&mut self.routes);
        self.routes = routes
            .map(|name| (name.clone(), before.remove(name).unwrap_or_default()))
            .collect();
    }

    /// A discovery of the route has ended.
    pub fn discovered(&mut self, route: &str, discovered: &Discovered) {
        let Some(entry) = self.routes.get_mut(route) else {
            return;
        };
        entry
            .first
            .get_or_insert_with(|| discovered.repositories.clone());
        entry.trouble.retain(|name, _| {
            name.as_ref()
                .is_some_and(|name| discovered.repositories.contains(name))
        });
        entry.note(None, &discovered.trouble);
    }

    /// Records a failed discovery. The state of the route's repositories is kept.
    pub fn undiscovered(&mut self, route: &str, trouble: &Trouble) {
        let Some(entry) = self.routes.get_mut(route) else {
            return;
        };
        entry.first.get_or_insert_default();
        entry.note(None, std::slice::from_ref(trouble));
    }

    /// Records a look at a whole repository, or that it will not take place.
    pub fn looked(&mut self, route: &str, repository: &RepositoryName, trouble: &[Trouble]) {
        let Some(entry) = self.routes.get_mut(route) else {
            return;
        };
        if let Some(first) = &mut entry.first {
            first.remove(repository);
        }
        entry.note(Some(repository), trouble);
    }

    /// Forgets a repository that is gone.
    pub fn forget(&mut self, route: &str, repository: &RepositoryName) {
        if let Some(entry) = self.routes.get_mut(route) {
            entry.trouble.remove(&Some(repository.clone()));
        }
    }

    /// Whether every route has been looked at once, with any result.
    pub fn is_ready(&self) -> bool {
        self.routes
            .values()
            .all(|route| route.first.as_ref().is_some_and(BTreeSet::is_empty))
    }

    /// The present trouble of a route.
    pub fn trouble(&self, route: &str) -> Vec<Trouble> {
        let all = self
            .routes
            .get(route)
            .into_iter()
            .flat_map(|route| route.trouble.values().flatten());
        all.take(SHOWN).cloned().collect()
    }
}

impl Route {
    fn note(&mut self, repository: Option<&RepositoryName>, trouble: &[Trouble]) {
        self.trouble.remove(&repository.cloned());
        // The discovery's own trouble always has a place.
        let has_room = repository.is_none() || self.trouble.len() < REMEMBERED;
        if !trouble.is_empty() && has_room {
            let shown = trouble.iter().take(SHOWN).cloned().collect();
            self.trouble.insert(repository.cloned(), shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Discovered {
        let repositories = names.iter().map(|name| name.parse().unwrap()).collect();
        Discovered {
            repositories,
            trouble: Vec::new(),
        }
    }

    fn trouble(text: &str) -> Vec<Trouble> {
        vec![Trouble {
            class: crate::job::TroubleClass::Retryable,
            text: text.into(),
        }]
    }

    #[test]
    fn a_route_is_looked_at_once_when_all_its_first_repositories_are() {
        let mut standing = RouteHealth::default();
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        standing.adopt([&one, &other].into_iter());
        standing.discovered("one", &found(&["a", "b"]));
        standing.looked("one", &"a".parse().unwrap(), &[]);
        standing.undiscovered("other", &trouble("no catalog")[0]);
        assert!(!standing.is_ready(), "b has not been looked at");
        standing.discovered("one", &found(&["a", "b", "c"]));
        standing.looked("one", &"b".parse().unwrap(), &trouble("down"));
        assert!(
            standing.is_ready(),
            "whatever came of it, and without what was found later"
        );
    }

    #[test]
    fn trouble_of_one_repository_outlives_looks_at_others() {
        let mut standing = RouteHealth::default();
        standing.adopt([&"one".into()].into_iter());
        standing.discovered("one", &found(&["a", "b"]));
        standing.looked("one", &"a".parse().unwrap(), &trouble("a is down"));
        standing.looked("one", &"b".parse().unwrap(), &[]);
        standing.undiscovered("one", &trouble("no catalog")[0]);
        let texts = |standing: &RouteHealth| {
            standing
                .trouble("one")
                .into_iter()
                .map(|trouble| trouble.text)
                .collect::<Vec<_>>()
        };
        assert_eq!(texts(&standing), ["no catalog", "a is down"]);
        standing.discovered("one", &found(&["b"]));
        assert!(texts(&standing).is_empty(), "what is gone is in no trouble");
    }

    #[test]
    fn the_trouble_of_the_discovery_has_a_place_beside_a_thousand_others() {
        let mut standing = RouteHealth::default();
        standing.adopt([&"one".into()].into_iter());
        for number in 0..=REMEMBERED {
            let name = format!("r{number}").parse().unwrap();
            standing.looked("one", &name, &trouble("down"));
        }
        assert_eq!(standing.routes["one"].trouble.len(), REMEMBERED);
        standing.undiscovered("one", &trouble("no catalog")[0]);
        assert_eq!(standing.trouble("one")[0].text, "no catalog");
    }
}
