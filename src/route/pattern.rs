//! The two sides of a route: patterns of source repositories and templates of destinations.

use std::fmt;
use std::sync::Arc;

use regex::Regex;

use crate::oci::reference::ParseError as NameError;
use crate::oci::{RepositoryName, Tag};

/// Most wildcards in a pattern, and the highest capture of a template.
const MOST_CAPTURES: usize = 16;

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

fn expression(pattern: &str) -> (String, usize) {
    let mut expression = String::from(r"\A");
    let mut captures = 0;
    let mut rest = pattern;
    while let Some(at) = rest.find('*') {
        expression.push_str(&regex::escape(&rest[..at]));
        let deep = rest[at..].starts_with("**");
        expression.push_str(if deep { "(.+)" } else { "([^/]+)" });
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

/// A destination: a repository in which `{1}`, `{2}`, … are replaced by the captures.
#[derive(Clone)]
pub struct Template {
    registry: Arc<str>,
    text: Arc<str>,
    pieces: Vec<Piece>,
    reach: Reach,
    naming: Naming,
}

/// How a tag is renamed at the destination: unchanged, or with a prefix and a suffix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    before: String,
    behind: String,
}

impl Naming {
    /// Parses `prod-{tag}`.
    fn parse(text: &str) -> Option<Naming> {
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
        let inner = tag
            .as_str()
            .strip_prefix(self.before.as_str())
            .and_then(|rest| rest.strip_suffix(self.behind.as_str()));
        inner.is_some_and(|inner| !inner.is_empty())
    }
}

/// The repositories that a template can yield.
#[derive(Clone)]
enum Reach {
    One,
    /// All that match, and the pattern for captures that are arbitrary names.
    Many {
        regex: Regex,
        typical: Vec<RepositoryName>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
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

fn filled<'a>(
    pieces: &'a [Piece],
    capture: impl Fn(usize) -> &'a str,
) -> Result<RepositoryName, NameError> {
    let text = |piece: &'a Piece| match piece {
        Piece::Text(text) => text.as_str(),
        Piece::Capture(number) => capture(*number),
    };
    pieces.iter().map(text).collect::<String>().parse()
}

fn reach(pieces: &[Piece], from: &Pattern) -> Result<Reach, regex::Error> {
    if pieces.iter().all(|piece| matches!(piece, Piece::Text(_))) {
        return Ok(Reach::One);
    }
    let expression: String = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => regex::escape(text),
            Piece::Capture(number) if from.is_deep(*number) => ".+".to_owned(),
            Piece::Capture(_) => "[^/]+".to_owned(),
        })
        .collect();
    let typical = |deep| {
        filled(
            pieces,
            move |number| if from.is_deep(number) { deep } else { "x" },
        )
        .ok()
    };
    let typical = ["x", "x/x", "x/x/x"]
        .into_iter()
        .filter_map(typical)
        .collect();
    Ok(Reach::Many {
        regex: Regex::new(&format!(r"\A{expression}\z"))?,
        typical,
    })
}

/// `None` when a brace is no capture.
fn pieces(template: &str) -> Option<Vec<Piece>> {
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn patterns_capture_what_their_wildcards_stand_for() {
        let table: &[(&str, &str, Option<&[&str]>)] = &[
            ("staging/app", "app", Some(&[])),
            ("staging/app", "app2", None),
            ("staging/staging-*", "staging-demo", Some(&["demo"])),
            ("staging/staging-*", "staging-demo/x", None),
            ("staging/*", "a", Some(&["a"])),
            ("staging/*", "a/b", None),
            ("staging/**", "a/b/c", Some(&["a/b/c"])),
            ("staging/team/**", "team", None),
            ("staging/team/**", "team/a/b", Some(&["a/b"])),
            ("staging/*/app-*", "team/app-web", Some(&["team", "web"])),
            ("staging/**/release/*", "a/b/release/c", Some(&["a/b", "c"])),
            (
                "staging/**/release/*",
                "a/release/release/c",
                Some(&["a/release", "c"]),
            ),
            ("staging/*-*", "a-b-c", Some(&["a-b", "c"])),
            ("staging/a.b*", "axbc", None),
        ];
        for (from, repository, expected) in table {
            let found = pattern(from).captures(&name(repository));
            assert_eq!(
                found,
                expected.map(|captures| captures.iter().map(ToString::to_string).collect()),
                "{from} {repository}"
            );
        }
    }

    #[test]
    fn prefixes_are_what_a_catalog_can_be_filtered_by() {
        for (from, prefix) in [
            ("s/app", "app"),
            ("s/team/app-*", "team/app-"),
            ("s/**", ""),
            ("s/a/*/b", "a/"),
        ] {
            assert_eq!(pattern(from).prefix(), prefix, "{from}");
        }
        assert_eq!(pattern("s/app").literal(), Some(name("app")));
        assert!(!pattern("s/*").is_literal());
        assert_eq!(pattern("s/team/*").to_string(), "s/team/*");
    }

    #[test]
    fn patterns_that_match_nothing_are_refused() {
        for bad in [
            "", "app", "s/", "/app", "s/App", "s/a//b", "s/***", "s/a-", "s/-*", "s/a:1", "s/{1}",
            "s/a/",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert!(matches!(
            Pattern::parse(&format!("s/{}", "*/".repeat(17) + "a")),
            Err(ParseError::TooMany(_))
        ));
    }

    #[test]
    fn templates_are_filled_with_captures() {
        let table: &[(&str, &str, &str, &str)] = &[
            ("s/staging-*", "p/prod-{1}", "staging-web", "prod-web"),
            ("s/**/app-*", "p/{2}/{1}", "a/b/app-x", "x/a/b"),
            ("s/*", "p/{1}/{1}", "web", "web/web"),
            ("s/app", "p/prod-app", "app", "prod-app"),
        ];
        for (from, to, source, destination) in table {
            let from = pattern(from);
            let captures = from.captures(&name(source)).unwrap();
            assert_eq!(
                Template::parse(to, &from).unwrap().fill(&captures),
                Ok(name(destination)),
                "{to}"
            );
        }
        let from = pattern("s/*-x");
        let template = Template::parse("p/b{1}", &from).unwrap();
        assert!(
            template.fill(&["-".to_owned()]).is_err(),
            "a filling that makes no name is told, not sent"
        );
    }

    #[test]
    fn templates_that_cannot_be_filled_are_refused() {
        let from = pattern("s/*");
        assert_eq!(
            Template::parse("p/{2}", &from),
            Err(ParseError::Capture {
                wanted: 2,
                there: 1
            })
        );
        assert_eq!(
            Template::parse("p/{0}", &from),
            Err(ParseError::Capture {
                wanted: 0,
                there: 1
            })
        );
        for bad in [
            "p/{", "p/}", "p/{1", "p/1}", "p/{}", "p/{a}", "p/{+1}", "p/{1}}", "p/{{1}}", "p/*",
            "p/A{1}", "p/{1}/", "p",
        ] {
            assert!(Template::parse(bad, &from).is_err(), "{bad}");
        }
        assert_eq!(
            Template::parse("p/{1}", &pattern("s/a"))
                .unwrap_err()
                .to_string(),
            "there is no capture {1}: `from` has no wildcard"
        );
    }

    #[test]
    fn circles_are_seen() {
        let table = [
            ("r/**", "r/mirror/{1}", "r/**", true),
            ("r/*", "r/prod-{1}", "r/*", true),
            ("r/app", "r/app", "r/app", true),
            ("r/dev-*", "r/{1}", "r/web", true),
            ("r/dev-*", "r/prod-{1}", "r/web", false),
            ("r/dev-*", "r/prod-{1}", "r/dev-*", false),
            ("r/*-dev", "r/{1}", "r/*-dev", false),
            ("r/dev/**", "r/{1}", "r/*/*", true),
            ("r/dev/**", "r/prod/{1}", "r/dev/**", false),
        ];
        for (from, to, reader, expected) in table {
            let from = pattern(from);
            let template = Template::parse(to, &from).unwrap();
            assert_eq!(
                template.may_feed(&pattern(reader)),
                expected,
                "{from} → {to}, read by {reader}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_captured_makes_the_name_again(
            text in "[a-c]{1,2}(/[a-c]{1,2}){0,3}",
            from in "(\\*|\\*\\*|[a-c])(/(\\*|\\*\\*|[a-c])){0,3}",
        ) {
            let pattern = Pattern::parse(&format!("s/{from}")).unwrap();
            let name: RepositoryName = text.parse().unwrap();
            if let Some(captures) = pattern.captures(&name) {
                let mut number = 0;
                let to = from.replace("**", "*").split('*').map(str::to_owned).reduce(|made, next| {
                    number += 1;
                    format!("{made}{{{number}}}{next}")
                }).unwrap();
                prop_assert_eq!(Template::parse(&format!("p/{to}"), &pattern).unwrap().fill(&captures), Ok(name.clone()));
                prop_assert!(name.as_str().starts_with(pattern.prefix()));
            }
        }

        #[test]
        fn parsing_never_panics(from in "[a-z*/{}1-]{0,20}", to in "[a-z*/{}0-9]{0,20}") {
            if let Ok(from) = Pattern::parse(&from) {
                let _ = Template::parse(&to, &from);
            }
        }
    }
}
