//! Routes: which source repositories go to which destinations, under which rules.
//!
//! A [`Pattern`] is the `from` of a route, a [`Template`] one of its `to`. The first route whose pattern matches a source
//! repository has it; a literal pattern is a pattern without wildcards.

mod pattern;

use std::sync::Arc;

pub use pattern::{Naming, ParseError, Pattern, Template};

use super::rules::Selection;
pub use crate::endpoint::Create;
use crate::job::{Drift, Existing, TagRules};
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
    /// What happens to a production tag that was there before us.
    pub existing: Existing,
    /// What happens to a production tag that someone changed.
    pub drift: Drift,
    /// What happens when a destination repository is missing.
    pub create: Create,
}

impl Route {
    /// The rules for one tag.
    pub fn rules_for(&self, tag: &Tag) -> TagRules {
        TagRules { moving: self.selection.is_moving(tag), existing: self.existing, drift: self.drift }
    }
}

/// All routes, in the order of the config.
#[derive(Clone, Debug, Default)]
pub struct Routes(pub Vec<Route>);

impl Routes {
    /// The route that has a source repository: the first whose `from` matches.
    pub fn of(&self, registry: &str, repository: &RepositoryName) -> Option<&Route> {
        self.0.iter().find(|route| **route.from.registry() == *registry && route.from.captures(repository).is_some())
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
            let (existing, drift) = (Existing::Adopt, Drift::Keep);
            let selection = Selection { moving: vec!["latest".parse().unwrap()], ..Selection::default() };
            Route { name: label.into(), from, to, selection, existing, drift, create: Create::Never }
        };
        let routes = Routes(vec![route("one", "s/app"), route("other", "t/*"), route("rest", "s/*")]);
        let label = |registry: &str, text: &str| routes.of(registry, &name(text)).map(|route| route.name.to_string());
        assert_eq!(label("s", "app").as_deref(), Some("one"));
        assert_eq!(label("s", "web").as_deref(), Some("rest"));
        assert_eq!(label("t", "app").as_deref(), Some("other"));
        assert_eq!(label("s", "a/b"), None);
        let expected = TagRules { moving: true, existing: Existing::Adopt, drift: Drift::Keep };
        assert_eq!(routes.0[0].rules_for(&"latest".parse().unwrap()), expected);
        assert!(!routes.0[0].rules_for(&"v1".parse().unwrap()).moving);
    }
}
