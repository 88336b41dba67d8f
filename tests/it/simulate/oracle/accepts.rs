//! Accepts: a tag goes once from production's digest to staging's, although the table keeps it.

use std::time::Duration;

use blobferry::oci::Digest;

use super::super::trace::Place;
use super::Oracle;

impl Oracle {
    /// Whether a tag may go to a digest by an accept, over what production names by the newest
    /// answer.
    pub(super) fn is_accepted(
        &self,
        place: &Place,
        digest: Digest,
        production: Option<Digest>,
    ) -> bool {
        let over = production.filter(|there| *there != digest);
        over.is_some_and(|replaces| self.guards.may_accept(place, digest, replaces))
    }

    /// Whether an accept is surely in force, of which neither digest has moved since.
    pub(super) fn is_surely_accepted(
        &self,
        source: &Place,
        destination: &Place,
        staging: Digest,
        production: Option<Digest>,
    ) -> bool {
        let Some(replaces) = production else {
            return false;
        };
        let since = self.guards.accepted_since(destination, staging, replaces);
        since.is_some_and(|since| {
            let sides = [source, destination];
            sides
                .into_iter()
                .all(|place| !self.has_moved_since(place, since))
        })
    }

    fn has_moved_since(&self, place: &Place, since: Duration) -> bool {
        let last = self.truth.get(place).and_then(|changes| changes.last());
        last.is_some_and(|change| change.at >= since)
    }
}
