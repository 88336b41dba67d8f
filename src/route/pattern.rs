//! The two sides of a route: patterns of source repositories and templates of destinations.

mod template;

use std::fmt;
use std::sync::Arc;

use regex::Regex;

pub use self::template::{Naming, Template};
use crate::oci::RepositoryName;

/// Most wildcards in a pattern, and the highest capture of a template.
const MOST_CAPTURES: usize = 16;
/// What `**` captures. Names are ASCII, and what matches no other character is far cheaper to build.
const DEEP: &str = "[!-~]+";
/// What `*` captures: no slash.
const PART: &str = "[!-.0-~]+";

/// Why a text is not a pattern or a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There is nothing before or after the first slash.
    #[error("\"{0}\" names no repository (expected the registry's name, a slash, the repository)")]
    NoRegistry(String),
    /// With wildcards or captures replaced it is no repository name.
    #[error(
        "\"{0}\" fits no repository name (lower-case letters, digits, and single . _ __ - between them, in parts joined by /)"
    )]
    Name(String),
    /// Three or more asterisks in a row, or two wildcards side by side.
    #[error("\"{0}\" has wildcards side by side (* captures within one part, ** across parts)")]
    Wildcards(String),
    /// More than 16 wildcards.
    #[error("\"{0}\" has more than {MOST_CAPTURES} wildcards")]
    TooMany(String),
    /// A `{` without its number and `}`, or a stray `}`.
    #[error("\"{0}\" has a brace that is no capture (captures are written {{1}}, {{2}}, …)")]
    Brace(String),
    /// A wildcard in a destination.
    #[error("\"{0}\" has a wildcard (a destination uses what `from` captured: {{1}}, {{2}}, …)")]
    Wildcard(String),
    /// The text after the colon yields no tag.
    #[error(
        "\"{0}\" fits no tag (letters, digits and _ . - around one {{tag}}, not starting with . or -)"
    )]
    Tag(String),
    /// A capture that `from` does not have.
    #[error("there is no capture {{{wanted}}}: `from` has {}", count(*.there))]
    Capture {
        /// The number that was written.
        wanted: usize,
        /// How many wildcards `from` has.
        there: usize,
    },
}

fn count(wildcards: usize) -> String {
    match wildcards {
        0 => "no wildcard".into(),
        1 => "one wildcard".into(),
        many => format!("{many} wildcards"),
    }
}

/// Source repositories of one registry: a literal name, or one with `*` and `**`.
#[derive(Clone)]
pub struct Pattern {
    registry: Arc<str>,
    text: Arc<str>,
    shape: Shape,
}

#[derive(Clone)]
enum Shape {
    Literal(RepositoryName),
    Wild {
        regex: Regex,
        prefix: usize,
        captures: usize,
    },
}

impl Pattern {
    /// Parses `registry/repository` with wildcards. A wildcard captures at least one character. `*`
    /// stays within a path part, `**` does not. Of several wildcards, an earlier one captures as
    /// much as it can.
    ///
    /// # Errors
    /// [`ParseError`], when no repository name can match.
    pub fn parse(text: &str) -> Result<Pattern, ParseError> {
        let (registry, repository) = split(text)?;
        if !repository.contains('*') {
            let name = repository
                .parse()
                .map_err(|_| ParseError::Name(clip(text)))?;
            return Ok(Pattern {
                registry: registry.into(),
                text: repository.into(),
                shape: Shape::Literal(name),
            });
        }
        if repository.contains("***") {
            return Err(ParseError::Wildcards(clip(text)));
        }
        if repository
            .replace("**", "*")
            .replace('*', "a")
            .parse::<RepositoryName>()
            .is_err()
        {
            return Err(ParseError::Name(clip(text)));
        }
        let (expression, captures) = expression(repository);
        if captures > MOST_CAPTURES {
            return Err(ParseError::TooMany(clip(text)));
        }
        let regex = Regex::new(&expression).map_err(|_| ParseError::Name(clip(text)))?;
        let prefix = repository.find('*').unwrap_or(repository.len());
        Ok(Pattern {
            registry: registry.into(),
            text: repository.into(),
            shape: Shape::Wild {
                regex,
                prefix,
                captures,
            },
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

    /// The captures of a name, in the order of the wildcards. `None`: the name does not match.
    pub fn captures(&self, name: &RepositoryName) -> Option<Vec<String>> {
        match &self.shape {
            Shape::Literal(literal) => (literal == name).then(Vec::new),
            Shape::Wild { regex, .. } => {
                let captures = regex.captures(name.as_str())?;
                Some(
                    captures
                        .iter()
                        .skip(1)
                        .flatten()
                        .map(|capture| capture.as_str().to_owned())
                        .collect(),
                )
            }
        }
    }

    /// Whether a name matches.
    pub fn matches(&self, name: &RepositoryName) -> bool {
        match &self.shape {
            Shape::Literal(literal) => literal == name,
            Shape::Wild { captures: 1, .. } => {
                let (before, behind) = self.ends();
                let rest = name
                    .as_str()
                    .strip_prefix(before)
                    .and_then(|rest| rest.strip_suffix(behind));
                rest.is_some_and(|rest| {
                    !rest.is_empty() && (self.is_deep(1) || !rest.contains('/'))
                })
            }
            Shape::Wild { regex, .. } => regex.is_match(name.as_str()),
        }
    }

    /// The literal text before the first and after the last wildcard.
    pub fn ends(&self) -> (&str, &str) {
        let behind = self.text.rfind('*').map_or(self.text.len(), |at| at + 1);
        (self.prefix(), &self.text[behind..])
    }

    /// How many wildcards it has.
    pub fn wildcards(&self) -> usize {
        match &self.shape {
            Shape::Literal(_) => 0,
            Shape::Wild { captures, .. } => *captures,
        }
    }

    /// Whether it names exactly one repository.
    pub fn is_literal(&self) -> bool {
        self.literal().is_some()
    }

    /// The repository of a literal pattern.
    pub fn literal(&self) -> Option<RepositoryName> {
        match &self.shape {
            Shape::Literal(name) => Some(name.clone()),
            Shape::Wild { .. } => None,
        }
    }

    /// The common start of all matching names: the literal, or the text before the first wildcard.
    pub fn prefix(&self) -> &str {
        match &self.shape {
            Shape::Literal(_) => &self.text,
            Shape::Wild { prefix, .. } => &self.text[..*prefix],
        }
    }

    /// Whether the wildcard with this number, counted from 1, captures across parts.
    fn is_deep(&self, capture: usize) -> bool {
        wildcards(&self.text)
            .nth(capture.saturating_sub(1))
            .is_some_and(|wildcard| wildcard == "**")
    }
}

/// The wildcards of a pattern, in the order of writing.
fn wildcards(pattern: &str) -> impl Iterator<Item = &str> {
    pattern
        .split(|character| character != '*')
        .filter(|run| !run.is_empty())
}

/// The expression of a pattern, and its captures.
fn expression(pattern: &str) -> (String, usize) {
    let mut expression = String::from(r"\A");
    let mut captures = 0;
    let mut rest = pattern;
    while let Some(at) = rest.find('*') {
        expression.push_str(&regex::escape(&rest[..at]));
        let deep = rest[at..].starts_with("**");
        let capture = if deep { DEEP } else { PART };
        expression.push_str(&format!("({capture})"));
        captures += 1;
        rest = &rest[at + 1 + usize::from(deep)..];
    }
    expression.push_str(&regex::escape(rest));
    expression.push_str(r"\z");
    (expression, captures)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.registry == other.registry && self.text == other.text
    }
}

impl Eq for Pattern {}

fn split(text: &str) -> Result<(&str, &str), ParseError> {
    match text.split_once('/') {
        Some((registry, repository)) if !registry.is_empty() && !repository.is_empty() => {
            Ok((registry, repository))
        }
        _ => Err(ParseError::NoRegistry(clip(text))),
    }
}

fn clip(text: &str) -> String {
    crate::fault::clip(text, 300)
}

#[cfg(test)]
mod tests;
