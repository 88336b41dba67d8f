//! Moves of staging: when a rollback or an approval of a tag is over, because staging names
//! something else.
//!
//! One look is not enough. A replica of staging may answer what a tag named before, and a rollback
//! that ended by such an answer would let in again what it keeps out. So two looks have to find the
//! move, and no look between them the opposite.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::survey::TagFacts;
use super::{Engine, Promotion};
use crate::decision::{Kind, Numbered};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::job::TagId;
use crate::ledger::RunFacts;
use crate::oci::Digest;

/// At least so long a replica that lags has to agree with the others, before a rollback ends.
const LAG: Duration = Duration::from_secs(60);
/// Most decisions with a first sighting. Beyond that all of them are seen anew.
const MOST: usize = 10_000;

/// What a look found staging to name.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// The digest.
    pub digest: Digest,
    /// When staging was asked.
    pub asked: Instant,
    /// When the look began.
    pub look_began: Timestamp,
}

/// The first sightings of moves, by the numbers of the decisions. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Moves(Arc<Mutex<BTreeMap<u64, Sighting>>>);

impl Moves {
    /// Records that staging has moved on from what a decision is about. Returns whether an earlier
    /// look had found so.
    fn confirms(&self, decision: &Numbered, seen: Sighting) -> bool {
        let mut moves = self.lock();
        if let Some(first) = moves.get(&decision.id) {
            return first.look_began < seen.look_began
                && first.asked + patience(decision.kind) <= seen.asked;
        }
        if moves.len() >= MOST {
            moves.clear();
        }
        moves.insert(decision.id, seen);
        false
    }

    /// Staging names what the decision is about.
    fn forget(&self, decision: &Numbered) {
        self.lock().remove(&decision.id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Sighting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long staging has to name something else. An approval that ends too late is of the same
/// content as before.
fn patience(kind: Kind) -> Duration {
    match kind {
        Kind::Rollback => LAG,
        _ => Duration::ZERO,
    }
}

impl Engine {
    /// Ends the rollbacks and approvals of a tag that staging has moved on from, once a second look
    /// confirms it. What was seen before the decision tells nothing of that.
    ///
    /// # Errors
    /// Where the ledger cannot be read or written.
    pub async fn end_outlived(&self, place: &TagId, seen: Sighting) -> Result<(), Fault> {
        let in_force = self.ledger.in_force().await?;
        let mut over = Vec::new();
        for one in in_force.of_tag(place) {
            if one.at >= seen.look_began {
                continue;
            }
            if !one.is_outlived_by(&seen.digest) {
                self.moves.forget(one);
            } else if self.moves.confirms(one, seen) {
                over.push(one.id);
            }
        }
        if over.is_empty() {
            return Ok(());
        }
        let why = format!("staging names {}", seen.digest);
        let facts = RunFacts::default();
        self.ledger.end_decisions(over, &why, facts).await
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Ends the rollbacks and approvals of the job's tag that staging has moved on from. A list that
    /// lags tells nothing of that, nor does what another source names.
    pub(super) async fn end_own_outlived(&self, facts: &TagFacts) -> Result<(), Fault> {
        let job = self.job;
        if job.explicit || job.dry_run || job.rollback.is_some() {
            return Ok(());
        }
        let Some(digest) = facts.source else {
            return Ok(());
        };
        let Some(asked) = facts.source_at else {
            return Ok(());
        };
        let seen = Sighting {
            digest,
            asked,
            look_began: job.look_began,
        };
        let place = &job.key.destination;
        self.engine.end_outlived(place, seen).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Decision;
    use crate::job::Actor;

    fn decision(kind: Kind) -> Numbered {
        let about = Decision::about(&"app:v1".parse().unwrap(), Actor::named("user:alice"));
        Numbered::new(1, Timestamp::UNIX_EPOCH, kind, about)
    }

    fn seen(start: Instant, second: u64) -> Sighting {
        Sighting {
            digest: Digest::sha256(b"other"),
            asked: start + Duration::from_secs(second),
            look_began: Timestamp::from_second(second as i64).unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rollback_ends_by_two_looks_a_minute_apart_and_none_between_that_disagrees() {
        let start = Instant::now();
        let moves = Moves::default();
        let rollback = decision(Kind::Rollback);
        let confirms = |second| moves.confirms(&rollback, seen(start, second));
        assert_eq!([0, 0, 59, 60].map(confirms), [false, false, false, true]);
        moves.forget(&rollback);
        assert_eq!([61, 120, 121].map(confirms), [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_approval_ends_by_a_second_look_and_not_by_a_second_answer_to_the_first() {
        let start = Instant::now();
        let moves = Moves::default();
        let approval = decision(Kind::Approve);
        let same_look = Sighting {
            look_began: seen(start, 0).look_began,
            ..seen(start, 5)
        };
        assert!(!moves.confirms(&approval, seen(start, 0)));
        assert!(!moves.confirms(&approval, same_look));
        assert!(moves.confirms(&approval, seen(start, 1)));
    }
}
