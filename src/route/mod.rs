//! Routes: which source repositories go to which destinations, under which rules.
//!
//! A [`Pattern`] is the `from` of a route, a [`Template`] one of its `to`. The first route with a
//! matching pattern owns a source repository.

use std::sync::Arc;

pub mod claims;
mod index;
pub mod pattern;
pub mod rules;

use self::index::Index;
pub use self::pattern::{Naming, ParseError, Pattern, Template};

use self::rules::Selection;
pub use crate::endpoint::Create;
use crate::job::{Drift, Existing, Gates, TagRules};
use crate::oci::{RepositoryName, Tag};

/// One entry of the config's `routes`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Label in metrics, logs and history. Unique.
    pub name: Arc<str>,
    /// The source repositories.
    pub from: Pattern,
    /// The destinations of each of them; not empty.
    pub to: Vec<Template>,
    /// Which tags.
    pub selection: Selection,
    /// What happens to a production tag that predates the daemon.
    pub existing: Existing,
    /// What happens to a production tag that was changed outside the daemon.
    pub drift: Drift,
    /// What happens when a destination repository is missing.
    pub create: Create,
    /// What must be so before a tag moves.
    pub gates: Arc<Gates>,
}

impl Route {
    /// The rules for one tag.
    pub fn rules_for(&self, tag: &Tag) -> TagRules {
        TagRules {
            moving: self.selection.is_moving(tag),
            existing: self.existing,
            drift: self.drift,
        }
    }

    /// Whether a tag has the same name at each destination.
    pub fn keeps_names(&self) -> bool {
        self.to.iter().all(|to| to.naming().keeps())
    }

    /// The repository from which each tag of its destinations comes under the same name, where there
    /// is one alone.
    pub fn only_source(&self) -> Option<RepositoryName> {
        self.from.literal().filter(|_| self.keeps_names())
    }
}

/// All routes, in the order of the config.
#[derive(Clone, Debug, Default)]
pub struct Routes(pub Vec<Route>, Index);

impl Routes {
    /// The routes of a config.
    pub fn new(routes: Vec<Route>) -> Routes {
        let index = Index::new(&routes);
        Routes(routes, index)
    }

    /// The route of that name.
    pub fn named(&self, name: &str) -> Option<&Route> {
        self.position(name).map(|position| &self.0[position])
    }

    /// The position of the route of that name in the config.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.1.named(name)
    }

    /// The route that owns a source repository: the first with a matching `from`.
    pub fn of(&self, registry: &str, repository: &RepositoryName) -> Option<&Route> {
        self.position_of(registry, repository)
            .map(|position| &self.0[position])
    }

    /// The position of that route in the config.
    pub fn position_of(&self, registry: &str, repository: &RepositoryName) -> Option<usize> {
        self.1.of(&self.0, registry, repository)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_matching_route_has_a_repository() {
        let route = |label: &str, from: &str| {
            let from = Pattern::parse(from).unwrap();
            let to = vec![Template::parse("p/x", &from).unwrap()];
            let existing = Existing::Adopt;
            let drift = Drift::Keep;
            let selection = Selection {
                moving: vec!["latest".parse().unwrap()],
                ..Selection::default()
            };
            Route {
                name: label.into(),
                from,
                to,
                selection,
                existing,
                drift,
                create: Create::Never,
                gates: Arc::default(),
            }
        };
        let routes = Routes::new(vec![
            route("one", "s/app"),
            route("other", "t/*"),
            route("rest", "s/*"),
        ]);
        let label = |registry: &str, text: &str| {
            routes
                .of(registry, &name(text))
                .map(|route| route.name.to_string())
        };
        assert_eq!(label("s", "app").as_deref(), Some("one"));
        assert_eq!(label("s", "web").as_deref(), Some("rest"));
        assert_eq!(label("t", "app").as_deref(), Some("other"));
        assert_eq!(label("s", "a/b"), None);
        let expected = TagRules {
            moving: true,
            existing: Existing::Adopt,
            drift: Drift::Keep,
        };
        assert_eq!(routes.0[0].rules_for(&"latest".parse().unwrap()), expected);
        assert!(!routes.0[0].rules_for(&"v1".parse().unwrap()).moving);
    }
}
