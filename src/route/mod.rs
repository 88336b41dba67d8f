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
pub use crate::endpoint::{Create, OnlyPlatform};
use crate::job::{Drift, Existing, GateKind, Gates, TagRules};
use crate::oci::{RepositoryName, Tag};

/// What a route does with a tag that is to be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// It is promoted.
    #[default]
    Promote,
    /// It is reported: nothing is written at the destination.
    Observe,
}

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
    /// The platform of the manifest that is promoted instead of an index.
    pub platform: Option<Arc<OnlyPlatform>>,
    /// Whether it writes.
    pub mode: Mode,
    /// The name of the tag that gets what a moving tag named, before that moves.
    pub backup: Option<Naming>,
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
            forward_only: self.selection.is_forward_only(tag),
        }
    }

    /// Whether it writes nothing at its destinations.
    pub fn observes(&self) -> bool {
        self.mode == Mode::Observe
    }

    /// The backup tag of a tag, which has these names at the source and at the destination. `None`:
    /// there is none, or its name would be too long.
    pub fn backup_of(&self, tag: &Tag, there: &Tag) -> Option<Tag> {
        let is_moving = self.selection.is_moving(tag);
        self.backup.as_ref().filter(|_| is_moving)?.name(there)
    }

    /// Whether a tag of a destination is the backup of a moving tag there.
    pub fn is_backup(&self, tag: &Tag, naming: &Naming) -> bool {
        self.backed_up(tag, naming).is_some()
    }

    /// The moving tag, by its name at the source, that has this tag of a destination as its backup.
    pub fn backed_up(&self, tag: &Tag, naming: &Naming) -> Option<Tag> {
        let there = self.backup.as_ref()?.original(tag)?;
        let original = naming.original(&there)?;
        self.selection.is_moving(&original).then_some(original)
    }

    /// What is judged before a tag moves: gates, and the rules of tags that are judged like gates.
    pub fn gate_kinds(&self) -> Vec<GateKind> {
        let forward_only = !self.selection.forward_only.is_empty();
        let forward_only = forward_only.then_some(GateKind::ForwardOnly);
        forward_only.into_iter().chain(self.gates.kinds()).collect()
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
                backup: None,
                mode: Mode::Promote,
                platform: None,
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
            forward_only: false,
        };
        assert_eq!(routes.0[0].rules_for(&"latest".parse().unwrap()), expected);
        assert!(!routes.0[0].rules_for(&"v1".parse().unwrap()).moving);
    }
}
