//! Finds the route of a source repository without matching every route.
//!
//! A literal `from` is found by its name. Wildcard patterns are grouped by the lengths of the
//! literal text before the first and after the last wildcard. A name is looked up once for each
//! pair of lengths, and only patterns with both ends equal are matched: a thousand routes
//! `team-N/**` cost a handful of look-ups for each name.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Pattern, Route};
use crate::oci::RepositoryName;

/// Positions of routes in the config, by the registry they read.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    registries: HashMap<Arc<str>, Sources>,
    names: HashMap<Arc<str>, usize>,
}

/// The routes that read one registry.
#[derive(Clone, Debug, Default)]
struct Sources {
    literals: HashMap<RepositoryName, usize>,
    /// The group with the earliest route first.
    groups: Vec<Group>,
}

/// Patterns with ends of the same lengths.
#[derive(Clone, Debug)]
struct Group {
    before: usize,
    behind: usize,
    /// The position of its earliest route.
    first: usize,
    /// By both ends joined with `*`, which no name contains. Earlier routes first.
    patterns: HashMap<String, Vec<usize>>,
}

impl Index {
    pub(super) fn new(routes: &[Route]) -> Index {
        let mut index = Index::default();
        for (position, route) in routes.iter().enumerate() {
            index.names.entry(route.name.clone()).or_insert(position);
            let sources = index
                .registries
                .entry(route.from.registry().clone())
                .or_default();
            match route.from.literal() {
                Some(name) => drop(sources.literals.entry(name).or_insert(position)),
                None => sources.add_wild(&route.from, position),
            }
        }
        index
    }

    /// The position of the route of that name.
    pub(super) fn named(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// The position of the first route that matches the repository.
    pub(super) fn of(
        &self,
        routes: &[Route],
        registry: &str,
        repository: &RepositoryName,
    ) -> Option<usize> {
        let sources = self.registries.get(registry)?;
        let mut found = sources.literals.get(repository).copied();
        let mut key = String::new();
        for group in &sources.groups {
            if found.is_some_and(|found| found < group.first) {
                break;
            }
            let candidates = group
                .candidates(repository.as_str(), &mut key)
                .iter()
                .take_while(|position| found.is_none_or(|found| **position < found));
            found = candidates
                .copied()
                .find(|position| routes[*position].from.matches(repository))
                .or(found);
        }
        found
    }
}

impl Sources {
    /// Adds a pattern of a route after all earlier ones.
    fn add_wild(&mut self, pattern: &Pattern, position: usize) {
        let (before, behind) = pattern.ends();
        let key = format!("{before}*{behind}");
        let same =
            |group: &&mut Group| (group.before, group.behind) == (before.len(), behind.len());
        match self.groups.iter_mut().find(same) {
            Some(group) => group.patterns.entry(key).or_default().push(position),
            None => {
                let patterns = HashMap::from([(key, vec![position])]);
                self.groups.push(Group {
                    before: before.len(),
                    behind: behind.len(),
                    first: position,
                    patterns,
                });
            }
        }
    }
}

impl Group {
    /// The patterns with both ends equal; `key` is a buffer.
    fn candidates(&self, name: &str, key: &mut String) -> &[usize] {
        // A wildcard captures at least one character.
        if name.len() <= self.before + self.behind {
            return &[];
        }
        // Repository names are ASCII: every byte is a character boundary.
        key.clear();
        key.push_str(&name[..self.before]);
        key.push('*');
        key.push_str(&name[name.len() - self.behind..]);
        self.patterns.get(key.as_str()).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Routes, Template};
    use super::*;
    use crate::job::{Drift, Existing};

    fn route(position: usize, from: &str) -> Option<Route> {
        let from = Pattern::parse(from).ok()?;
        Some(Route {
            name: position.to_string().into(),
            to: vec![Template::parse("p/x", &from).ok()?],
            from,
            selection: Default::default(),
            existing: Existing::Keep,
            drift: Drift::Keep,
            backup: None,
            mode: Default::default(),
            platform: None,
            create: Default::default(),
            gates: Default::default(),
        })
    }

    /// The expected route: the first pattern in the config that matches.
    fn first_that_matches<'a>(
        routes: &'a [Route],
        registry: &str,
        name: &RepositoryName,
    ) -> Option<&'a Route> {
        let reads = |route: &&Route| {
            **route.from.registry() == *registry && route.from.captures(name).is_some()
        };
        routes.iter().find(reads)
    }

    proptest! {
        #[test]
        fn the_index_finds_what_asking_every_route_finds(
            patterns in prop::collection::vec(("[st]", "[ab*/]{1,7}"), 0..12),
            names in prop::collection::vec("[ab]{1,3}(/[ab]{1,2}){0,2}", 1..40),
        ) {
            let patterns = patterns.iter().map(|(registry, pattern)| format!("{registry}/{pattern}"));
            let routes: Vec<Route> = patterns.enumerate().filter_map(|(at, pattern)| route(at, &pattern)).collect();
            let routes = Routes::new(routes);
            for name in names {
                let name: RepositoryName = name.parse().unwrap();
                for registry in ["s", "t", "u"] {
                    let found = routes.of(registry, &name).map(|route| route.name.clone());
                    let expected = first_that_matches(&routes.0, registry, &name).map(|route| route.name.clone());
                    prop_assert_eq!(found, expected, "{} {}", registry, name);
                }
            }
        }

        #[test]
        fn a_pattern_matches_what_it_captures(pattern in "[ab*/]{1,9}", name in "[ab]{1,3}(/[ab]{1,2}){0,2}") {
            if let Ok(pattern) = Pattern::parse(&format!("s/{pattern}")) {
                let name: RepositoryName = name.parse().unwrap();
                prop_assert_eq!(pattern.matches(&name), pattern.captures(&name).is_some());
            }
        }
    }

    #[test]
    fn routes_are_found_by_their_names() {
        let routes = Routes::new(
            ["s/a", "s/*"]
                .iter()
                .enumerate()
                .filter_map(|(at, from)| route(at, from))
                .collect(),
        );
        assert_eq!(
            routes
                .named("1")
                .map(|route| route.from.to_string())
                .as_deref(),
            Some("s/*")
        );
        assert!(routes.named("2").is_none());
    }
}
