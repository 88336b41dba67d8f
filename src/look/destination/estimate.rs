//! The estimate of a destination that does not answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::DestinationLook;
use crate::endpoint::{Repositories, Source};
use crate::fault::{Class, Fault};
use crate::job::{Outcome, TagState};
use crate::look::Estimate;
use crate::oci::Tag;
use crate::status::metrics::SeenTag;

/// Most moving tags that staging is asked about while production does not answer.
pub(super) const MOST_ASKED: usize = 100;

impl<B: Repositories> DestinationLook<'_, B> {
    /// The state of every chosen tag while production does not answer: staging's present digest
    /// against production's last known digest and the last trouble.
    pub(in crate::look) async fn estimate(&self) -> Estimate {
        let look = self.look;
        let origin = self.side.repository.origin();
        let repository = self.side.repository.repository();
        let troubled = look
            .topology
            .engine
            .ledger
            .troubled(origin, repository)
            .await
            .unwrap_or_default();
        let troubled: BTreeMap<Tag, Outcome> = troubled
            .into_iter()
            .filter(|row| row.key.route == look.route.name && row.key.source == *look.repository)
            .map(|row| (row.key.tag, row.result))
            .collect();
        let mut estimate = Estimate::default();
        let mut asked = 0;
        for tag in &self.listing.chosen {
            let Some(called) = self.side.naming.name(tag) else {
                continue;
            };
            let known = self.hints.get(&called).map(|hint| hint.digest);
            let named = match self.listing.tags.get(tag).and_then(|listed| listed.digest) {
                // A fixed tag that was promoted still names the same digest.
                None if known.is_some() && !look.route.selection.is_moving(tag) => known,
                None if known.is_some() && asked < MOST_ASKED => {
                    let answer = self.source_digest(tag, &Arc::default()).await;
                    asked = match &answer {
                        Err(fault) if fails_for_all(fault) => MOST_ASKED,
                        _ => asked + 1,
                    };
                    answer.ok().and_then(TagState::digest).or(known)
                }
                listed => listed,
            };
            let is_equal = known.is_some() && known == named;
            let state = match troubled.get(tag) {
                Some(
                    trouble @ (Outcome::Conflict
                    | Outcome::Drift
                    | Outcome::Existing
                    | Outcome::Refused),
                ) => Some(*trouble),
                Some(Outcome::Failed | Outcome::Waiting | Outcome::Held) | None => {
                    is_equal.then_some(Outcome::UpToDate)
                }
                // No trouble that a ledger keeps, or one that another look settles.
                Some(
                    Outcome::Promoted
                    | Outcome::UpToDate
                    | Outcome::Gone
                    | Outcome::Planned
                    | Outcome::Interrupted,
                ) => None,
            };
            match state {
                Some(outcome) => {
                    estimate.totals.add(outcome);
                    estimate.seen.push(SeenTag {
                        tag: tag.clone(),
                        outcome,
                        is_known: true,
                    });
                }
                None => estimate.pending.push(tag.clone()),
            }
        }
        estimate
    }
}

/// Whether other tags would fail like this one: the failure is about their registry.
fn fails_for_all(fault: &Fault) -> bool {
    match fault.class() {
        Class::Retryable { .. } | Class::Auth | Class::Cancelled => true,
        Class::NotFound | Class::Corrupt | Class::Rejected => false,
    }
}
