//! A route of the config: from a place to others, and the rules for its tags.

use super::remark::{Remark, add_missing};

/// A repository, or a pattern of some, in a registry of the outline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The position of the registry.
    pub(super) registry: usize,
    pub(super) repository: String,
}

/// Which tags a route takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tags {
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) newest: Option<u64>,
    pub(super) at_least: Option<u64>,
}

impl Tags {
    /// Every tag.
    pub(super) fn all() -> Tags {
        Tags::of(["*".to_owned()])
    }

    pub(super) fn of(include: impl IntoIterator<Item = String>) -> Tags {
        Tags {
            include: include.into_iter().collect(),
            ..Tags::default()
        }
    }

    /// `newest` leaves alone what is no version: such rules would take every tag there is.
    pub(super) fn check_newest(&self, key: &str) -> Result<(), String> {
        let is_of_versions = self.include.iter().all(|rule| rule.starts_with("semver:"));
        match self.newest.is_some() && !is_of_versions {
            true => Err(format!(
                "{key} counts all tags, and `newest` versions (MAJOR.MINOR.PATCH) only, with all others beside them: \
                 where the versions are meant, write `include: [\"semver:*\"]` and `newest`"
            )),
            false => Ok(()),
        }
    }

    /// Adds the rules of another one, where that is the union of both.
    pub(super) fn join(&mut self, other: &Tags) -> bool {
        let joins = self.exclude == other.exclude
            && self.newest == other.newest
            && self.at_least == other.at_least;
        if joins {
            add_missing(&mut self.include, &other.include);
            if self.include.iter().any(|rule| rule == "*") {
                self.include = vec!["*".to_owned()];
            }
        }
        joins
    }
}

/// A route.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) line: u64,
    pub(super) from: Place,
    pub(super) to: Vec<Place>,
    pub(super) tags: Tags,
    pub(super) remarks: Vec<Remark>,
}
