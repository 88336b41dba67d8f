//! Templates: the destinations of a route.

use std::fmt;
use std::sync::Arc;

use regex::Regex;

use super::{DEEP, PART, ParseError, Pattern, Shape, clip, split};
use crate::oci::reference::ParseError as NameError;
use crate::oci::{RepositoryName, Tag};

/// A destination: a repository in which `{1}`, `{2}`, … are replaced by the captures.
#[derive(Clone)]
pub struct Template {
    pub(super) registry: Arc<str>,
    pub(super) text: Arc<str>,
    pub(super) pieces: Vec<Piece>,
    pub(super) reach: Reach,
    pub(super) naming: Naming,
}

/// How a tag is renamed at the destination: unchanged, or with a prefix and a suffix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    pub(super) before: String,
    pub(super) behind: String,
}

impl Naming {
    /// Parses `prod-{tag}`.
    pub fn parse(text: &str) -> Option<Naming> {
        let (before, behind) = text.split_once("{tag}")?;
        format!("{before}x{behind}").parse::<Tag>().ok()?;
        Some(Naming {
            before: before.to_owned(),
            behind: behind.to_owned(),
        })
    }

    /// Whether tags keep their names.
    pub fn keeps(&self) -> bool {
        *self == Naming::default()
    }

    /// The new name of `tag`. `None`: it would be too long for a tag.
    pub fn name(&self, tag: &Tag) -> Option<Tag> {
        match self.keeps() {
            true => Some(tag.clone()),
            false => format!("{}{tag}{}", self.before, self.behind).parse().ok(),
        }
    }

    /// Whether a tag has the prefix and the suffix of a renamed one.
    pub fn made(&self, tag: &Tag) -> bool {
        self.inner(tag).is_some()
    }

    /// The name at the source of a tag of the destination.
    pub fn original(&self, tag: &Tag) -> Option<Tag> {
        self.inner(tag)?.parse().ok()
    }

    fn inner<'t>(&self, tag: &'t Tag) -> Option<&'t str> {
        tag.as_str()
            .strip_prefix(self.before.as_str())
            .and_then(|rest| rest.strip_suffix(self.behind.as_str()))
            .filter(|inner| !inner.is_empty())
    }
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{tag}}{}", self.before, self.behind)
    }
}

/// The repositories that a template can yield.
#[derive(Clone)]
pub(super) enum Reach {
    One,
    /// All that match, and the pattern for captures that are arbitrary names.
    Many {
        regex: Regex,
        typical: Vec<RepositoryName>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// Counted from 1.
    Capture(usize),
}

impl Template {
    /// Parses `registry/repository` for a pattern.
    ///
    /// # Errors
    /// [`ParseError`], when a capture does not exist or no filling makes a repository name.
    pub fn parse(text: &str, from: &Pattern) -> Result<Template, ParseError> {
        let (registry, repository) = split(text)?;
        let (repository, naming) = match repository.split_once(':') {
            Some((repository, naming)) => (
                repository,
                Naming::parse(naming).ok_or_else(|| ParseError::Tag(clip(text)))?,
            ),
            None => (repository, Naming::default()),
        };
        if repository.contains('*') {
            return Err(ParseError::Wildcard(clip(text)));
        }
        let pieces = pieces(repository).ok_or_else(|| ParseError::Brace(clip(text)))?;
        let there = from.wildcards();
        for piece in &pieces {
            if let Piece::Capture(wanted) = *piece
                && !(1..=there).contains(&wanted)
            {
                return Err(ParseError::Capture { wanted, there });
            }
        }
        if filled(&pieces, |_| "a").is_err() {
            return Err(ParseError::Name(clip(text)));
        }
        let reach = reach(&pieces, from).map_err(|_| ParseError::Name(clip(text)))?;
        Ok(Template {
            registry: registry.into(),
            text: repository.into(),
            pieces,
            reach,
            naming,
        })
    }

    /// The registry's name in the config.
    pub fn registry(&self) -> &Arc<str> {
        &self.registry
    }

    /// The repository part, as written.
    pub fn repository(&self) -> &str {
        &self.text
    }

    /// How tags are renamed there.
    pub fn naming(&self) -> &Naming {
        &self.naming
    }

    /// The destination for these captures.
    ///
    /// # Errors
    /// When the result is no repository name: captures can be too long together or join badly (`a-`
    /// and `.b`).
    pub fn fill(&self, captures: &[String]) -> Result<RepositoryName, NameError> {
        filled(&self.pieces, |number| {
            captures.get(number - 1).map_or("", String::as_str)
        })
    }

    /// Whether copies sent here may become sources of `reader`, a pattern of the same registry: the
    /// start of a circle. Captures of a wildcard pattern count as arbitrary names: a coincidence of
    /// wildcards alone (`dev-*` → `{1}` with a source `dev-dev-x`) is no reason. Discovery reports
    /// such cases.
    pub fn may_feed(&self, reader: &Pattern) -> bool {
        match (&self.reach, &reader.shape) {
            (Reach::One, Shape::Literal(name)) => *self.text == *name.as_str(),
            (Reach::One, Shape::Wild { regex, .. }) => regex.is_match(&self.text),
            (Reach::Many { regex, .. }, Shape::Literal(name)) => regex.is_match(name.as_str()),
            (Reach::Many { typical, .. }, Shape::Wild { regex, .. }) => {
                typical.iter().any(|name| regex.is_match(name.as_str()))
            }
        }
    }
}

pub(super) fn filled<'a>(
    pieces: &'a [Piece],
    capture: impl Fn(usize) -> &'a str,
) -> Result<RepositoryName, NameError> {
    pieces
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Capture(number) => capture(*number),
        })
        .collect::<String>()
        .parse()
}

pub(super) fn reach(pieces: &[Piece], from: &Pattern) -> Result<Reach, regex::Error> {
    if pieces.iter().all(|piece| matches!(piece, Piece::Text(_))) {
        return Ok(Reach::One);
    }
    let expression: String = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => regex::escape(text),
            Piece::Capture(number) if from.is_deep(*number) => DEEP.to_owned(),
            Piece::Capture(_) => PART.to_owned(),
        })
        .collect();
    let typical = ["x", "x/x", "x/x/x"]
        .into_iter()
        .filter_map(|deep| {
            let capture = |number| if from.is_deep(number) { deep } else { "x" };
            filled(pieces, capture).ok()
        })
        .collect();
    Ok(Reach::Many {
        regex: Regex::new(&format!(r"\A{expression}\z"))?,
        typical,
    })
}

/// `None` when a brace is no capture.
pub(super) fn pieces(template: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once('{') {
        let (number, after) = after.split_once('}')?;
        let digits = !number.is_empty()
            && number.len() <= 3
            && number.bytes().all(|byte| byte.is_ascii_digit());
        if text.contains('}') || !digits {
            return None;
        }
        pieces.push(Piece::Text(text.to_owned()));
        pieces.push(Piece::Capture(number.parse().ok()?));
        rest = after;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    pieces.retain(|piece| *piece != Piece::Text(String::new()));
    (!rest.contains('}')).then_some(pieces)
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.text)?;
        match self.naming.keeps() {
            true => Ok(()),
            false => write!(f, ":{}{{tag}}{}", self.naming.before, self.naming.behind),
        }
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Template) -> bool {
        self.registry == other.registry && self.text == other.text && self.naming == other.naming
    }
}

impl Eq for Template {}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
