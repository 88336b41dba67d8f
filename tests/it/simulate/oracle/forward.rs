//! `forward_only`, from its text: the version of an image is the highest version tag that names it
//! in staging, else in production, and a moving tag goes to no lower one. What has no version waits.

use std::cmp::Reverse;
use std::time::Duration;

use blobferry::oci::Digest;

use super::super::trace::{Place, Rules};
use super::{Oracle, Repository};

/// A process may go by tags and lists that were so this long ago: a verdict holds for a minute, and
/// a list lags for another.
const SEEN: Duration = Duration::from_secs(130);

/// Major, minor, patch, and the number of the pre-release: the release itself has the highest.
type Version = (u64, u64, u64, u64);

fn version(tag: &str) -> Option<Version> {
    let text = tag.strip_prefix('v').unwrap_or(tag);
    let (numbers, candidate) = match text.split_once("-rc.") {
        Some((numbers, candidate)) => (numbers, candidate.parse().ok()?),
        None => (text, u64::MAX),
    };
    let numbers: Result<Vec<u64>, _> = numbers.split('.').map(str::parse).collect();
    let [major, minor, patch] = numbers.ok()?[..] else {
        return None;
    };
    Some((major, minor, patch, candidate))
}

impl Oracle {
    /// A moving tag goes from production's digest to another.
    pub(super) fn judge_versions(
        &mut self,
        rules: &Rules,
        place: &Place,
        digest: Digest,
        production: Option<Digest>,
    ) {
        if !rules.is_forward_only(&place.tag) {
            return;
        }
        let times = self.times(rules);
        let to = times
            .iter()
            .filter_map(|at| self.highest_at(&rules.source, digest, *at));
        let highest = to.max();
        let lowest = production.map(|there| {
            let from = times.iter();
            let versions = from.filter_map(|at| self.version_at(rules, there, *at));
            versions.min()
        });
        let may_go = match (highest, lowest) {
            (Some(_), None) => true,
            (Some(to), Some(Some(from))) => to >= from,
            (None, _) | (_, Some(None)) => false,
        };
        if !may_go {
            let text = format!("from version {lowest:?} to {highest:?}");
            self.find(
                "a tag that only goes forward goes to no lower version",
                Some(place),
                text,
            );
        }
    }

    /// Whether a tag may go to staging's digest in the end.
    pub(super) fn goes_forward(
        &self,
        rules: &Rules,
        place: &Place,
        staging: Digest,
        production: Option<Digest>,
    ) -> bool {
        if !rules.is_forward_only(&place.tag) {
            return true;
        }
        let to = self.highest_at(&rules.source, staging, self.at);
        let from = production.map(|there| self.version_at(rules, there, self.at));
        match (to, from) {
            (Some(_), None) => true,
            (Some(to), Some(Some(from))) => to >= from,
            (None, _) | (_, Some(None)) => false,
        }
    }

    /// The times at which other tags of either side named something else, as far as they matter.
    fn times(&self, rules: &Rules) -> Vec<Duration> {
        let since = self.at.saturating_sub(SEEN);
        let sides = [&rules.source, &rules.destination];
        let here = self.truth.iter().filter(|(place, _)| {
            version(&place.tag).is_some() && sides.into_iter().any(|side| place.is_in(side))
        });
        let changes = here.flat_map(|(_, changes)| changes);
        let times = changes.map(|change| change.at).filter(|at| *at > since);
        times.chain([since, self.at]).collect()
    }

    /// The version of what production names, at some time.
    fn version_at(&self, rules: &Rules, digest: Digest, at: Duration) -> Option<Version> {
        let in_staging = self.highest_at(&rules.source, digest, at);
        in_staging.or_else(|| self.highest_at(&rules.destination, digest, at))
    }

    fn highest_at(&self, side: &Repository, digest: Digest, at: Duration) -> Option<Version> {
        let here = self.truth.iter().filter(|(place, _)| place.is_in(side));
        let named = here.filter(|(place, _)| self.named_at(place, at) == Some(digest));
        let versions = named.filter_map(|(place, _)| version(&place.tag));
        versions.min_by_key(|version| Reverse(*version))
    }

    /// What a tag named at some time.
    pub(super) fn named_at(&self, place: &Place, at: Duration) -> Option<Digest> {
        let changes = self.truth.get(place)?;
        let before = changes.iter().rfind(|change| change.at <= at)?;
        before.to
    }
}

#[test]
fn versions_are_compared_by_their_numbers() {
    let in_order = ["v1.2.0-rc.1", "1.2.0", "v1.10.0", "v2.0.0"];
    let versions = in_order.map(|tag| version(tag).expect("a version"));
    assert!(versions.is_sorted());
    for other in ["v1", "latest", "v1.2", "1.2.3.4"] {
        assert_eq!(version(other), None);
    }
}
