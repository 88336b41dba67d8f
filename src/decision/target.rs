//! Targets: what a decision is about.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::SetName;
use crate::endpoint::Origin;
use crate::fault::clip;
use crate::job::TagId;
use crate::oci::{Digest, RepositoryName, Tag};
use crate::route::Pattern;

/// Bytes of a target at most.
const MOST: usize = 600;

/// What a decision is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Everything.
    Everything,
    /// `sha256:…`: a manifest, a config or a layer.
    Digest(Digest),
    /// `route:NAME`: all that a route names.
    Route(Arc<str>),
    /// `set:NAME[:TAG]`: what moves with a set, or one tag of it by its name at staging.
    Set(Arc<str>, Option<Tag>),
    /// `[REGISTRY/]REPOSITORY[:TAG]`: tags of destinations.
    Destination(Box<Destination>),
}

/// Destination repositories, or one tag of them. Without a config it is not known whether the first
/// part names a registry: then both readings hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    text: String,
    /// The text as a repository of any registry.
    whole: Option<Pattern>,
    /// The text as a registry and a repository.
    split: Option<Pattern>,
    tag: Option<Tag>,
    /// The registry's origin, where a config told it: then `split` is the only reading.
    origin: Option<Origin>,
}

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no target (a digest sha256:…, route:NAME, set:NAME[:TAG], or a destination [REGISTRY/]REPOSITORY[:TAG] \
     whose repository may hold * and **)"
)]
pub struct NotATarget(String);

impl Target {
    /// The one digest that it names.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Target::Digest(digest) => Some(*digest),
            Target::Everything | Target::Route(_) | Target::Set(..) | Target::Destination(_) => {
                None
            }
        }
    }

    /// The destination that it names.
    pub fn destination(&self) -> Option<&Destination> {
        match self {
            Target::Destination(destination) => Some(destination),
            Target::Everything | Target::Digest(_) | Target::Route(_) | Target::Set(..) => None,
        }
    }

    /// The tag that it names.
    pub fn tag(&self) -> Option<&Tag> {
        self.destination()?.tag.as_ref()
    }

    /// The origin of the registry that it names, where that is known.
    pub fn origin(&self) -> Option<&Origin> {
        self.destination()?.origin.as_ref()
    }

    /// The repository that it names, where it is exactly one.
    pub fn repository(&self) -> Option<RepositoryName> {
        let destination = self.destination()?;
        let reading = match &destination.origin {
            Some(_) => &destination.split,
            None => &destination.whole,
        };
        reading.as_ref()?.literal()
    }

    /// Whether it covers a tag of a destination that one of these routes leads to.
    pub fn covers(&self, routes: &[Arc<str>], registry: &str, place: &TagId) -> bool {
        match self {
            Target::Everything => true,
            Target::Digest(_) => false,
            Target::Set(..) => false,
            Target::Route(name) => routes.contains(name),
            Target::Destination(destination) => destination.covers(registry, place),
        }
    }

    /// Whether it covers a tag of a set.
    pub fn covers_in_set(&self, name: &SetName) -> bool {
        match self {
            Target::Set(set, tag) => {
                *set == name.set && tag.as_ref().is_none_or(|tag| *tag == name.tag)
            }
            _ => false,
        }
    }

    /// Whether it is exactly this tag. Without a known registry it may be that of any.
    pub fn is_tag(&self, place: &TagId) -> bool {
        self.tag() == Some(&place.tag) && self.is_beside(place)
    }

    /// Whether it is a tag of the same repository as this one.
    pub fn is_beside(&self, place: &TagId) -> bool {
        let is_there = self.origin().is_none_or(|origin| *origin == place.origin);
        is_there && self.repository().as_ref() == Some(&place.repository)
    }

    /// The same, with the origin of the registry that its first part names.
    pub fn at(self, origin: Option<Origin>) -> Target {
        match self {
            Target::Destination(destination) => Target::Destination(Box::new(Destination {
                origin,
                ..*destination
            })),
            other => other,
        }
    }
}

impl Destination {
    /// The first part, if it may name a registry.
    pub fn registry(&self) -> Option<&str> {
        self.split.as_ref().map(|split| &**split.registry())
    }

    /// The repositories of any registry, where the text can be read so.
    pub fn whole(&self) -> Option<&Pattern> {
        self.whole.as_ref()
    }

    /// The repositories of the registry that the first part names.
    pub fn split(&self) -> Option<&Pattern> {
        self.split.as_ref()
    }

    /// The tag.
    pub fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    fn covers(&self, registry: &str, place: &TagId) -> bool {
        self.tag.as_ref().is_none_or(|tag| *tag == place.tag)
            && self.covers_repository(registry, &place.origin, &place.repository)
    }

    /// Whether it covers a repository of a registry, or tags of it.
    pub fn covers_repository(
        &self,
        registry: &str,
        origin: &Origin,
        repository: &RepositoryName,
    ) -> bool {
        let split = self.split.as_ref();
        match &self.origin {
            Some(known) => known == origin && split.is_some_and(|split| split.matches(repository)),
            None => {
                let whole = self.whole.as_ref();
                let is_in =
                    |split: &Pattern| **split.registry() == *registry && split.matches(repository);
                whole.is_some_and(|whole| whole.matches(repository)) || split.is_some_and(is_in)
            }
        }
    }
}

impl FromStr for Target {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Target, NotATarget> {
        let wrong = || NotATarget(clip(text, 200));
        if text.len() > MOST || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(wrong());
        }
        if text.is_empty() {
            return Ok(Target::Everything);
        }
        if text.starts_with("sha256:") || text.starts_with("sha512:") {
            return text.parse().map(Target::Digest).map_err(|_| wrong());
        }
        if let Some(name) = text.strip_prefix("route:").filter(|name| !name.is_empty()) {
            return Ok(Target::Route(name.into()));
        }
        if let Some(set) = text.strip_prefix("set:").filter(|name| !name.is_empty()) {
            return set_target(set).ok_or_else(wrong);
        }
        destination(text)
            .map(|destination| Target::Destination(Box::new(destination)))
            .ok_or_else(wrong)
    }
}

fn set_target(text: &str) -> Option<Target> {
    let (name, tag) = match text.split_once(':') {
        Some((name, tag)) => (name, Some(tag.parse().ok()?)),
        None => (text, None),
    };
    (!name.is_empty()).then(|| Target::Set(name.into(), tag))
}

fn destination(text: &str) -> Option<Destination> {
    let (repository, tag) = match text.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag.parse().ok()?)),
        None => (text, None),
    };
    let whole = Pattern::parse(&format!("any/{repository}")).ok();
    let split = Pattern::parse(repository).ok();
    if whole.is_none() && split.is_none() {
        return None;
    }
    Some(Destination {
        text: text.to_owned(),
        whole,
        split,
        tag,
        origin: None,
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Everything => Ok(()),
            Target::Digest(digest) => write!(f, "{digest}"),
            Target::Route(name) => write!(f, "route:{name}"),
            Target::Set(name, None) => write!(f, "set:{name}"),
            Target::Set(name, Some(tag)) => write!(f, "set:{name}:{tag}"),
            Target::Destination(destination) => f.write_str(&destination.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(repository: &str, tag: &str) -> TagId {
        TagId {
            origin: Origin::new("https://p.example"),
            repository: repository.parse().unwrap(),
            tag: tag.parse().unwrap(),
        }
    }

    #[test]
    fn a_target_covers_what_it_says_and_no_more() {
        let digest = Digest::sha256(b"x").to_string();
        let app = place("payments/api", "v1");
        for (text, expected) in [
            ("", true),
            (&*digest, false),
            ("route:pay", true),
            ("route:other", false),
            ("payments/api", true),
            ("payments/api:v1", true),
            ("payments/api:v2", false),
            ("payments", false),
            ("api", false),
            ("production/payments/api:v1", true),
            ("staging/payments/api:v1", false),
            ("production/payments/**", true),
            ("production/payments/*", true),
            ("production/*", false),
            ("payments/*:v1", true),
            ("**", true),
            ("production/**:v2", false),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(
                target.covers(&["pay".into()], "production", &app),
                expected,
                "{text}"
            );
            assert_eq!(target.to_string().parse(), Ok(target), "{text}");
        }
    }

    #[test]
    fn a_known_origin_leaves_one_reading() {
        let target = |text: &str, origin: &str| {
            let target: Target = text.parse().unwrap();
            target.at(Some(Origin::new(origin)))
        };
        let api = place("payments/api", "v1");
        let here = target("production/payments/api", "https://p.example");
        assert!(here.covers(&[], "renamed", &api));
        assert_eq!(here.repository(), Some("payments/api".parse().unwrap()));
        let elsewhere = target("production/payments/api", "https://q.example");
        assert!(!elsewhere.covers(&[], "production", &api));
        let whole = target("payments/api", "https://p.example");
        assert!(
            !whole.covers(&[], "production", &api),
            "the registry is payments"
        );
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "sha256:abc",
            "App",
            "a b",
            "app:",
            "app:-x",
            ":v1",
            "a//b",
            "a/***",
            "app\u{1b}[2J",
            &"a".repeat(700),
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
