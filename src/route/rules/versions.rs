//! Versions and ranges of versions.

use std::str::FromStr;

use semver::{BuildMetadata, Comparator, Op, Prerelease, Version, VersionReq};

use crate::oci::Tag;

/// The version of a tag: `MAJOR.MINOR.PATCH`, optionally with a pre-release and a leading `v`.
pub fn version(tag: &Tag) -> Option<Version> {
    let text = tag.as_str();
    Version::parse(text.strip_prefix('v').unwrap_or(text)).ok()
}

/// Alternatives, each a list of comparators that must all hold.
#[derive(Clone, Debug)]
pub(super) struct Range(Vec<VersionReq>);

impl Range {
    pub(super) fn contains(&self, version: &Version) -> bool {
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
    pub(super) fn is_empty(&self) -> bool {
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
pub(super) fn alternative(text: &str) -> Result<VersionReq, String> {
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
pub(super) fn holds(comparator: &Comparator, version: &Version) -> bool {
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

pub(super) fn floor(comparator: &Comparator) -> Version {
    let minor = comparator.minor.unwrap_or(0);
    let patch = comparator.patch.unwrap_or(0);
    Version {
        major: comparator.major,
        minor,
        patch,
        pre: comparator.pre.clone(),
        build: BuildMetadata::EMPTY,
    }
}

/// How many of major, minor and patch are written.
pub(super) fn parts(comparator: &Comparator) -> u8 {
    1 + u8::from(comparator.minor.is_some()) + u8::from(comparator.patch.is_some())
}

/// A caret keeps the first part that is not zero.
pub(super) fn caret_parts(comparator: &Comparator) -> u8 {
    match (comparator.major, comparator.minor, comparator.patch) {
        (1.., _, _) | (0, None, _) => 1,
        (0, Some(1..), _) | (0, Some(0), None) => 2,
        (0, Some(0), Some(_)) => 3,
    }
}

/// The first version after all that share the first `kept` parts.
pub(super) fn end_of(comparator: &Comparator, kept: u8) -> Version {
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

pub(super) fn below(version: &Version, bound: &Version) -> bool {
    let same =
        (version.major, version.minor, version.patch) == (bound.major, bound.minor, bound.patch);
    version < bound && !(same && bound.pre.is_empty())
}
