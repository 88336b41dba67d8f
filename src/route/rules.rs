//! Which tags of a source repository a route takes.
//!
//! A [`TagRule`] is one line of the config: a literal tag, a glob, a version range or a regular
//! expression. A [`Selection`] combines them. The decision depends on tag names alone, never on the
//! order of a registry's list, and takes linear time.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use semver::{BuildMetadata, Comparator, Op, Prerelease, Version, VersionReq};

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
    let wrong = |reason: String| ParseError::Regex {
        text: clip(text),
        reason,
    };
    let body = text[1..]
        .strip_suffix('/')
        .ok_or_else(|| wrong("the closing / is missing".into()))?;
    if body.is_empty() {
        return Err(wrong(
            "it is empty and would match every tag; write \"*\" for that".into(),
        ));
    }
    RegexBuilder::new(body)
        .size_limit(REGEX_SIZE)
        .build()
        .map_err(|error| wrong(one_line(&error)))
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
            '*' => pattern.push_str(".*"),
            '?' => pattern.push('.'),
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

/// The version of a tag: `MAJOR.MINOR.PATCH`, optionally with a pre-release and a leading `v`.
pub fn version(tag: &Tag) -> Option<Version> {
    let text = tag.as_str();
    Version::parse(text.strip_prefix('v').unwrap_or(text)).ok()
}

/// Alternatives, each a list of comparators that must all hold.
#[derive(Clone, Debug)]
struct Range(Vec<VersionReq>);

impl Range {
    fn contains(&self, version: &Version) -> bool {
        self.0.iter().any(|alternative| {
            let comparators = &alternative.comparators;
            let admitted = version.pre.is_empty()
                || comparators
                    .iter()
                    .any(|comparator| !comparator.pre.is_empty());
            admitted
                && comparators
                    .iter()
                    .all(|comparator| holds(comparator, version))
        })
    }
}

impl Range {
    /// Whether the range is empty. A range that is not empty contains one of its bounds or the
    /// version next to one.
    fn is_empty(&self) -> bool {
        let bounds = self
            .0
            .iter()
            .flat_map(|alternative| &alternative.comparators);
        let near = |comparator: &Comparator| {
            let floor = floor(comparator);
            let mut versions = vec![floor.clone(), Version::new(0, 0, 0)];
            versions.extend((1..=3).map(|kept| end_of(comparator, kept)));
            let Version {
                major,
                minor,
                patch,
                ..
            } = floor;
            versions.push(Version::new(major, minor, patch));
            // The version just below the bound.
            versions.extend(
                patch
                    .checked_sub(1)
                    .map(|patch| Version::new(major, minor, patch)),
            );
            versions.extend(
                minor
                    .checked_sub(1)
                    .map(|minor| Version::new(major, minor, u64::MAX)),
            );
            versions.extend(
                major
                    .checked_sub(1)
                    .map(|major| Version::new(major, u64::MAX, u64::MAX)),
            );
            versions
        };
        // `*` has no comparators and holds every release.
        let has_any = self
            .0
            .iter()
            .any(|alternative| alternative.comparators.is_empty());
        !has_any && !bounds.flat_map(near).any(|version| self.contains(&version))
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split("||")
            .map(alternative)
            .collect::<Result<_, _>>()
            .map(Range)
    }
}

/// Comparators separated by spaces or commas. One without an operator is a wildcard: `1.2` is
/// `1.2.*`.
fn alternative(text: &str) -> Result<VersionReq, String> {
    let mut comparators: Vec<String> = Vec::new();
    let mut operator = String::new();
    for word in text.split([' ', ',', '\t']).filter(|word| !word.is_empty()) {
        let version = word.trim_start_matches(['<', '>', '=', '^', '~']);
        operator.push_str(&word[..word.len() - version.len()]);
        if version.is_empty() {
            continue;
        }
        let wildcard = version.contains(['*', 'x', 'X']) && !version.contains('-');
        let implied = if operator.is_empty() && !wildcard {
            "="
        } else {
            ""
        };
        comparators.push(format!(
            "{implied}{operator}{}",
            version.strip_prefix('v').unwrap_or(version)
        ));
        operator.clear();
    }
    if !operator.is_empty() {
        return Err(format!("nothing follows {operator}"));
    }
    if comparators.is_empty() {
        return Err("it is empty; write * for every release".into());
    }
    VersionReq::parse(&comparators.join(", ")).map_err(|error| error.to_string())
}

/// Compares by precedence, so `>=1.0.0-0` admits the pre-releases of later versions too. A bound
/// without a pre-release excludes the pre-releases of its version: `<2.0.0` does not admit
/// `2.0.0-rc.1`.
fn holds(comparator: &Comparator, version: &Version) -> bool {
    let floor = floor(comparator);
    let full = comparator.patch.is_some();
    match comparator.op {
        Op::Exact if full => *version == floor,
        Op::Greater if full => *version > floor,
        Op::Greater => *version >= end_of(comparator, parts(comparator)),
        Op::GreaterEq => *version >= floor,
        Op::Less => below(version, &floor),
        Op::LessEq if full => *version <= floor,
        Op::LessEq => below(version, &end_of(comparator, parts(comparator))),
        Op::Tilde => {
            *version >= floor && below(version, &end_of(comparator, parts(comparator).min(2)))
        }
        Op::Caret => {
            *version >= floor && below(version, &end_of(comparator, caret_parts(comparator)))
        }
        _ => *version >= floor && below(version, &end_of(comparator, parts(comparator))),
    }
}

fn floor(comparator: &Comparator) -> Version {
    let (minor, patch) = (comparator.minor.unwrap_or(0), comparator.patch.unwrap_or(0));
    Version {
        major: comparator.major,
        minor,
        patch,
        pre: comparator.pre.clone(),
        build: BuildMetadata::EMPTY,
    }
}

/// How many of major, minor and patch are written.
fn parts(comparator: &Comparator) -> u8 {
    1 + u8::from(comparator.minor.is_some()) + u8::from(comparator.patch.is_some())
}

/// A caret keeps the first part that is not zero.
fn caret_parts(comparator: &Comparator) -> u8 {
    match (comparator.major, comparator.minor, comparator.patch) {
        (1.., _, _) | (0, None, _) => 1,
        (0, Some(1..), _) | (0, Some(0), None) => 2,
        (0, Some(0), Some(_)) => 3,
    }
}

/// The first version after all that share the first `kept` parts.
fn end_of(comparator: &Comparator, kept: u8) -> Version {
    let Version {
        major,
        minor,
        patch,
        ..
    } = floor(comparator);
    let (major, minor, patch) = match kept {
        1 => (major.saturating_add(1), 0, 0),
        2 => (major, minor.saturating_add(1), 0),
        _ => (major, minor, patch.saturating_add(1)),
    };
    Version {
        major,
        minor,
        patch,
        pre: Prerelease::EMPTY,
        build: BuildMetadata::EMPTY,
    }
}

fn below(version: &Version, bound: &Version) -> bool {
    let same =
        (version.major, version.minor, version.patch) == (bound.major, bound.minor, bound.patch);
    version < bound && !(same && bound.pre.is_empty())
}

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
}

impl Selection {
    /// Rules that can never match, each with the reason. `check` reports them as warnings.
    pub fn idle_rules(&self) -> Vec<String> {
        let mut idle = Vec::new();
        let all = [
            ("include", &self.include),
            ("exclude", &self.exclude),
            ("moving", &self.moving),
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
        let excluding = |tag: &Tag| self.exclude.iter().find(|rule| rule.matches(tag));
        for (rule, tag) in self
            .include
            .iter()
            .filter_map(|rule| Some((rule, rule.literal()?)))
        {
            if let Some(other) = excluding(&tag) {
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
            let is_taken =
                self.include.iter().any(|rule| rule.matches(&tag)) && excluding(&tag).is_none();
            if !is_taken && tag.as_str() != "latest" {
                idle.push(format!(
                    "moving: {rule} can never match: include and exclude do not take that tag"
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
        let any = |rules: &[TagRule]| rules.iter().any(|rule| rule.matches(tag));
        !tag.travels_with_subject() && any(&self.include) && !any(&self.exclude)
    }

    /// Whether the tag may name another digest later.
    pub fn is_moving(&self, tag: &Tag) -> bool {
        self.moving.iter().any(|rule| rule.matches(tag))
    }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn rules(texts: &[&str]) -> Vec<TagRule> {
        texts
            .iter()
            .map(|text| {
                text.parse()
                    .unwrap_or_else(|error| panic!("{text}: {error}"))
            })
            .collect()
    }

    fn names(choice: &Choice) -> Vec<&str> {
        choice.chosen.iter().map(Tag::as_str).collect()
    }

    #[test]
    fn a_rule_matches_what_it_says() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("latest", &["latest"], &["latest2", "Latest", "lates"]),
            ("v*", &["v", "v1", "v1.2-rc"], &["1", "av1"]),
            ("*-rc*", &["1-rc", "1-rc.2"], &["rc", "1-r.c"]),
            ("v?.?", &["v1.2"], &["v1.22", "v1x2", "v12"]),
            ("*", &["anything", "1.2.3"], &[]),
            (
                "/^rel-[0-9]+$/",
                &["rel-1", "rel-204"],
                &["rel-", "rel-1a", "xrel-1"],
            ),
            ("/rel/", &["rel", "a-rel-b"], &["re"]),
        ];
        for (rule, yes, no) in table {
            let rule: TagRule = rule.parse().unwrap();
            yes.iter()
                .for_each(|text| assert!(rule.matches(&tag(text)), "{rule} {text}"));
            no.iter()
                .for_each(|text| assert!(!rule.matches(&tag(text)), "{rule} {text}"));
        }
    }

    #[test]
    fn ranges_follow_the_table() {
        let table: &[(&str, &[&str], &[&str])] = &[
            (
                ">=1.2 <3",
                &["1.2.0", "v2.9.9"],
                &["1.1.9", "3.0.0", "2.0.0-rc.1", "1.2", "latest", "v1.2.03"],
            ),
            (">=1.2,<3", &["1.2.0"], &["3.0.0"]),
            (">= 1.2, < 3", &["2.0.0"], &["3.0.0"]),
            (">=v1.2.3", &["1.2.3", "v1.2.4"], &["1.2.2"]),
            ("1.2", &["1.2.0", "1.2.9"], &["1.3.0", "1.1.0"]),
            ("1.2.3", &["1.2.3", "v1.2.3"], &["1.2.4"]),
            ("1.x", &["1.0.0", "1.9.0"], &["2.0.0"]),
            ("1.2.*", &["1.2.7"], &["1.3.0"]),
            ("*", &["0.0.1", "9.9.9"], &["1.0.0-rc.1"]),
            ("^1.2 || ^3", &["1.9.0", "3.1.0"], &["2.0.0", "1.1.0"]),
            ("~1.2.3", &["1.2.9"], &["1.3.0", "1.2.2"]),
            (">1.2", &["1.3.0"], &["1.2.9"]),
            ("<=1.2", &["1.2.9"], &["1.3.0"]),
            (
                ">=1.0.0-0",
                &["1.0.0-rc.1", "1.0.0", "1.5.0-beta"],
                &["0.9.9", "0.9.9-rc.1"],
            ),
            (
                ">=1.0.0-0 <2.0.0",
                &["1.9.0-rc.1"],
                &["2.0.0-rc.1", "2.0.0"],
            ),
            (
                ">=1.0.0-rc.2 <2",
                &["1.0.0-rc.2", "1.0.0-rc.10"],
                &["1.0.0-rc.1", "2.0.0-a"],
            ),
            ("=1.0.0-rc.1", &["v1.0.0-rc.1"], &["1.0.0", "1.0.0-rc.2"]),
        ];
        for (range, yes, no) in table {
            let rule: TagRule = format!("semver:{range}").parse().unwrap();
            yes.iter()
                .for_each(|text| assert!(rule.matches(&tag(text)), "{rule} {text}"));
            no.iter()
                .for_each(|text| assert!(!rule.matches(&tag(text)), "{rule} {text}"));
        }
    }

    #[test]
    fn what_cannot_match_is_refused() {
        for bad in [
            "",
            "a b",
            "rel/1",
            ".*",
            "-*",
            "ü",
            "/abc",
            "/",
            "//",
            "/[/",
            "/(/",
            "/a{999}{999}{999}/",
        ] {
            assert!(bad.parse::<TagRule>().is_err(), "{bad}");
        }
        for bad in [
            "", " ", "one", ">=", ">=1.2 <", "1.2 - 3", "^1 ||", "1.2.3.4", "||",
        ] {
            assert!(format!("semver:{bad}").parse::<TagRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn exclude_always_wins_and_newest_counts_versions_only() {
        let selection = Selection {
            include: rules(&["latest", "semver:>=1.0.0", "nightly-*"]),
            exclude: rules(&["*-debug", "v1.3.0"]),
            newest: NonZeroU32::new(2),
            moving: rules(&["latest", "nightly-*"]),
        };
        let signature = format!("sha256-{}.sig", "a".repeat(64));
        let tags: Vec<Tag> = [
            "v1.0.0",
            "latest",
            "v1.10.0",
            "v1.2.0",
            "v1.3.0",
            "nightly-1",
            "nightly-1-debug",
            "junk",
            &signature,
        ]
        .map(tag)
        .into();
        let choice = selection.choose(tags.iter());
        assert_eq!(names(&choice), ["latest", "v1.10.0", "v1.2.0", "nightly-1"]);
        assert_eq!(
            choice.excluded, 4,
            "v1.0.0, v1.3.0, nightly-1-debug, junk; the signature is not counted"
        );
        assert!(
            selection.allows(&tag("v1.0.0")),
            "newest is a matter of siblings"
        );
        assert!(!selection.allows(&tag("v1.3.0")));
        assert!(!selection.allows(&tag(&signature)));
        assert!(selection.is_moving(&tag("nightly-7")));
        assert!(!selection.is_moving(&tag("v1.2.0")));
    }

    #[test]
    fn a_signature_never_passes_by_rule() {
        let selection = Selection {
            include: rules(&["*"]),
            ..Selection::default()
        };
        let fallback = tag(&format!("sha256-{}", "0".repeat(64)));
        assert_eq!(selection.choose([&fallback].into_iter()), Choice::default());
    }

    fn any_tag() -> impl Strategy<Value = Tag> {
        let texts = prop_oneof![
            (0..4u64, 0..4u64, 0..4u64).prop_map(|(a, b, c)| format!("{a}.{b}.{c}")),
            (0..4u64, 0..4u64, 0..3u64).prop_map(|(a, b, c)| format!("v{a}.{b}.0-rc.{c}")),
            "[a-c]{1,3}(-rc)?",
        ];
        texts.prop_map(|text| text.parse().unwrap())
    }

    proptest! {
        #[test]
        fn no_chosen_tag_is_excluded_and_nothing_gets_lost(tags in prop::collection::vec(any_tag(), 0..40), newest in 0..5u32) {
            let selection = Selection {
                include: rules(&["a*", "semver:>=1.0.0-0"]),
                exclude: rules(&["*-rc", "semver:2.x"]),
                newest: NonZeroU32::new(newest),
                moving: Vec::new(),
            };
            let tags: BTreeSet<Tag> = tags.into_iter().collect();
            let choice = selection.choose(tags.iter());
            prop_assert!(choice.chosen.iter().all(|tag| !selection.exclude.iter().any(|rule| rule.matches(tag))));
            prop_assert_eq!(choice.chosen.len() + choice.excluded, tags.len());
            if newest > 0 {
                prop_assert!(choice.chosen.iter().filter(|tag| version(tag).is_some()).count() <= newest as usize);
            }
        }

        #[test]
        fn the_order_of_a_listing_does_not_matter(
            (tags, shuffled) in prop::collection::btree_set(any_tag(), 0..30).prop_flat_map(|tags| {
                let tags: Vec<Tag> = tags.into_iter().collect();
                (Just(tags.clone()), Just(tags).prop_shuffle())
            }),
        ) {
            let selection = Selection { include: rules(&["*"]), newest: NonZeroU32::new(3), ..Selection::default() };
            let set = |choice: Choice| (choice.chosen.into_iter().collect::<BTreeSet<_>>(), choice.excluded);
            prop_assert_eq!(set(selection.choose(tags.iter())), set(selection.choose(shuffled.iter())));
        }

        #[test]
        fn releases_are_compared_as_the_semver_crate_does(
            operator in prop::sample::select(vec!["=", ">", ">=", "<", "<=", "~", "^"]),
            wanted in "[0-2](\\.[0-2](\\.[0-2])?)?",
            (major, minor, patch) in (0..4u64, 0..4u64, 0..4u64),
        ) {
            let text = format!("{operator}{wanted}");
            let range: Range = text.parse().unwrap();
            let version = Version::new(major, minor, patch);
            prop_assert_eq!(range.contains(&version), VersionReq::parse(&text).unwrap().matches(&version), "{} {}", text, version);
        }

        #[test]
        fn parsing_never_panics(text in "(semver:)?[/*?<>=^~|., v0-9a-z\\[\\](){}+-]{0,30}") {
            let _ = text.parse::<TagRule>();
        }
    }

    #[test]
    fn rules_that_can_never_match_are_found_and_no_others() {
        let rules = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<TagRule>>()
        };
        let selection = |include: &[&str], exclude: &[&str], moving: &[&str]| Selection {
            include: rules(include),
            exclude: rules(exclude),
            newest: None,
            moving: rules(moving),
        };
        for range in [
            "semver:*",
            "semver:>=1.2 <3",
            "semver:1.x",
            "semver:^2.1 || ^3",
            "semver:<1",
            "semver:>1.2.3 <1.2.5",
            "semver:>=1.0.0-0 <1.0.0-5",
            "semver:0.0.x",
        ] {
            assert_eq!(
                selection(&[range], &[], &[]).idle_rules(),
                [""; 0],
                "{range}"
            );
        }
        for range in [
            "semver:>2 <1",
            "semver:>=1.2.3 <1.2.3",
            "semver:>3 <2 || >5 <5",
        ] {
            assert_eq!(
                selection(&[range], &[], &[]).idle_rules().len(),
                1,
                "{range}"
            );
        }
        let companion = format!("sha256-{}.sig", "0".repeat(64));
        for (rules, words) in [
            (
                selection(&["latest", "v*"], &["latest"], &["latest"]),
                "exclude has latest",
            ),
            (
                selection(&["v*"], &[], &["stable", "latest"]),
                "moving: stable",
            ),
            (selection(&["v*"], &["v1*"], &["v1"]), "moving: v1"),
            (
                selection(&["v*", &companion], &[], &[]),
                "travels with its image",
            ),
        ] {
            let idle = rules.idle_rules();
            assert!(idle.len() == 1 && idle[0].contains(words), "{idle:?}");
        }
        assert_eq!(
            selection(&["*"], &["*-rc*"], &["latest", "edge", "v1"]).idle_rules(),
            [""; 0]
        );
    }
}
