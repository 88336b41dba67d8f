//! Which tags of a source repository a route takes.
//!
//! A [`TagRule`] is one line of the config: a literal tag, a glob, a version range or a regular
//! expression. A [`Selection`] combines them. The decision depends on tag names alone, never on the
//! order of a registry's list, and takes linear time.

mod versions;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use semver::Version;

use self::versions::Range;
pub use self::versions::version;
use crate::oci::Tag;

/// Most memory that a compiled regular expression may take, in bytes.
const REGEX_SIZE: usize = 1 << 20;

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Neither a tag nor a glob over the characters of tags.
    #[error(
        "\"{0}\" can match no tag (a tag has 1 to 128 of letters, digits, _ . - and does not start with . or -; \
         a regular expression is written /between slashes/, a range of versions semver:>=1.2)"
    )]
    Literal(String),
    /// A regular expression that does not parse, or is too large.
    #[error("\"{text}\" is not a regular expression: {reason}")]
    Regex {
        /// The rule.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A range that does not parse.
    #[error(
        "\"{text}\" is not a range of versions: {reason} (examples: semver:>=1.2 <3, semver:1.x, semver:^2.1 || ^3)"
    )]
    Range {
        /// The rule.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One rule: `latest`, `v*`, `semver:>=1.2 <3`, `/^rel-[0-9]+$/`.
#[derive(Clone)]
pub struct TagRule {
    text: Arc<str>,
    matcher: Matcher,
}

#[derive(Clone)]
enum Matcher {
    Literal,
    Pattern(Regex),
    Versions(Arc<Range>),
}

impl TagRule {
    /// Whether the rule matches the tag.
    pub fn matches(&self, tag: &Tag) -> bool {
        match &self.matcher {
            Matcher::Literal => *self.text == *tag.as_str(),
            Matcher::Pattern(regex) => regex.is_match(tag.as_str()),
            Matcher::Versions(range) => {
                version(tag).is_some_and(|version| range.contains(&version))
            }
        }
    }

    /// The tag of a literal rule.
    fn literal(&self) -> Option<Tag> {
        matches!(self.matcher, Matcher::Literal)
            .then(|| self.text.parse().ok())
            .flatten()
    }

    /// The rule as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for TagRule {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let matcher = if let Some(range) = text.strip_prefix("semver:") {
            let range = range.parse().map_err(|reason| ParseError::Range {
                text: clip(text),
                reason,
            })?;
            Matcher::Versions(Arc::new(range))
        } else if text.starts_with('/') {
            Matcher::Pattern(between_slashes(text)?)
        } else {
            literal_or_glob(text)?
        };
        Ok(TagRule {
            text: text.into(),
            matcher,
        })
    }
}

fn between_slashes(text: &str) -> Result<Regex, ParseError> {
    parse_between_slashes(text).map_err(|reason| ParseError::Regex {
        text: clip(text),
        reason,
    })
}

fn parse_between_slashes(text: &str) -> Result<Regex, String> {
    let body = text[1..]
        .strip_suffix('/')
        .ok_or("the closing / is missing")?;
    if body.is_empty() {
        return Err("it is empty and would match every tag; write \"*\" for that".into());
    }
    RegexBuilder::new(body)
        .size_limit(REGEX_SIZE)
        .build()
        .map_err(|error| one_line(&error))
}

fn one_line(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("it needs more than {limit} bytes when compiled")
        }
        // The last line states the error; the others draw its position.
        other => other
            .to_string()
            .lines()
            .last()
            .unwrap_or_default()
            .trim()
            .trim_start_matches("error: ")
            .to_owned(),
    }
}

fn literal_or_glob(text: &str) -> Result<Matcher, ParseError> {
    let sample = text.replace(['*', '?'], "a");
    if sample.parse::<Tag>().is_err() {
        return Err(ParseError::Literal(clip(text)));
    }
    if sample == text {
        return Ok(Matcher::Literal);
    }
    let mut pattern = String::with_capacity(text.len() + 16);
    pattern.push_str(r"\A");
    for character in text.chars() {
        match character {
            // Tags are ASCII. What matches no other character is far cheaper to build.
            '*' => pattern.push_str("[!-~]*"),
            '?' => pattern.push_str("[!-~]"),
            other => pattern.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    pattern.push_str(r"\z");
    // At most 128 characters of a tag's alphabet: always within the default limits.
    Regex::new(&pattern)
        .map(Matcher::Pattern)
        .map_err(|_| ParseError::Literal(clip(text)))
}

impl fmt::Debug for TagRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
    }
}

impl fmt::Display for TagRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for TagRule {
    fn eq(&self, other: &TagRule) -> bool {
        self.text == other.text
    }
}

impl Eq for TagRule {}

/// Selects the tags of a route, and tells which of them may move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// A tag passes when one of these matches.
    pub include: Vec<TagRule>,
    /// A tag that matches one of these is excluded. Always wins.
    pub exclude: Vec<TagRule>,
    /// Keeps only this many of the highest versions. Tags that are no versions are unaffected.
    pub newest: Option<NonZeroU32>,
    /// Tags that may name another digest later. Every other tag is fixed.
    pub moving: Vec<TagRule>,
    /// Moving tags that never go to an image with a lower version.
    pub forward_only: Vec<TagRule>,
    /// A repository with fewer chosen tags is not what it should be: nothing of it is promoted.
    pub at_least: usize,
}

impl Selection {
    /// Rules that can never match, each with the reason. `check` reports them as warnings.
    pub fn idle_rules(&self) -> Vec<String> {
        let mut idle = Vec::new();
        let all = [
            ("include", &self.include),
            ("exclude", &self.exclude),
            ("moving", &self.moving),
            ("forward_only", &self.forward_only),
        ];
        for (key, rule) in all
            .into_iter()
            .flat_map(|(key, rules)| rules.iter().map(move |rule| (key, rule)))
        {
            if matches!(&rule.matcher, Matcher::Versions(range) if range.is_empty()) {
                idle.push(format!(
                    "{key}: {rule} can never match: no version is in that range"
                ));
            }
            if rule.literal().is_some_and(|tag| tag.travels_with_subject()) {
                idle.push(format!("{key}: {rule} can never match: such a tag travels with its image, never by a rule"));
            }
        }
        for (rule, tag) in self
            .include
            .iter()
            .filter_map(|rule| Some((rule, rule.literal()?)))
        {
            if let Some(other) = first_match(&self.exclude, &tag) {
                idle.push(format!(
                    "include: {rule} can never match: exclude has {other}, which always wins"
                ));
            }
        }
        // `latest` is the default of `moving`, and does no harm without that tag.
        for (rule, tag) in self
            .moving
            .iter()
            .filter_map(|rule| Some((rule, rule.literal()?)))
        {
            if !self.passes(&tag) && tag.as_str() != "latest" {
                idle.push(format!(
                    "moving: {rule} can never match: include and exclude do not take that tag"
                ));
            }
        }
        for rule in &self.forward_only {
            if rule.literal().is_some_and(|tag| !self.is_moving(&tag)) {
                idle.push(format!(
                    "forward_only: {rule} can never match: it is no moving tag"
                ));
            }
        }
        idle
    }
}

/// The selected tags of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The tags that pass, in the order in which they came.
    pub chosen: Vec<Tag>,
    /// How many tags are excluded. Tags that travel with their subject are neither chosen nor
    /// counted.
    pub excluded: usize,
}

impl Selection {
    /// Selects among all tags of one repository.
    pub fn choose<'a>(&self, tags: impl Iterator<Item = &'a Tag>) -> Choice {
        let mut choice = Choice::default();
        for tag in tags.filter(|tag| !tag.travels_with_subject()) {
            if self.allows(tag) {
                choice.chosen.push(tag.clone());
            } else {
                choice.excluded += 1;
            }
        }
        if let Some(newest) = self.newest {
            let old = beyond_newest(&choice.chosen, newest);
            choice.chosen.retain(|tag| !old.contains(tag));
            choice.excluded += old.len();
        }
        choice
    }

    /// Whether the tag passes by its name. `newest`, which needs the other tags, is not checked.
    pub fn allows(&self, tag: &Tag) -> bool {
        !tag.travels_with_subject() && self.passes(tag)
    }

    fn passes(&self, tag: &Tag) -> bool {
        first_match(&self.include, tag).is_some() && first_match(&self.exclude, tag).is_none()
    }

    /// Whether the tag may name another digest later.
    pub fn is_moving(&self, tag: &Tag) -> bool {
        first_match(&self.moving, tag).is_some()
    }
}

impl Selection {
    /// Whether the tag moves, and never to a lower version.
    pub fn is_forward_only(&self, tag: &Tag) -> bool {
        self.is_moving(tag) && first_match(&self.forward_only, tag).is_some()
    }
}

fn first_match<'r>(rules: &'r [TagRule], tag: &Tag) -> Option<&'r TagRule> {
    rules.iter().find(|rule| rule.matches(tag))
}

/// The versions among `tags` below the `newest` highest. Two spellings of one version count as two,
/// ordered by name.
fn beyond_newest(tags: &[Tag], newest: NonZeroU32) -> HashSet<Tag> {
    let versions: BTreeSet<(Version, &Tag)> = tags
        .iter()
        .filter_map(|tag| Some((version(tag)?, tag)))
        .collect();
    let keep = usize::try_from(newest.get()).unwrap_or(usize::MAX);
    versions
        .into_iter()
        .rev()
        .skip(keep)
        .map(|(_, tag)| tag.clone())
        .collect()
}

fn clip(text: &str) -> String {
    crate::fault::clip(text, 200)
}

#[cfg(test)]
mod tests;
