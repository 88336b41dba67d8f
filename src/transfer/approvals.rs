//! The gates that need no evidence of a registry: the time, and approvals. Directly before
//! a tag moves they are judged again, from memory.

use jiff::Timestamp;

use super::Promotion;
use super::survey::TagFacts;
use crate::clock;
use crate::decision::{Approvals, Change, Numbered};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::gate::{self, TimeFacts};
use crate::job::{Gates, Judgement};
use crate::oci::Digest;

/// What these gates judge by, as far as it does not change while a tag is named.
#[derive(Clone, Debug)]
pub(super) struct AtHand {
    digest: Digest,
    production: Option<Digest>,
    /// When the ledger first saw staging name the digest.
    first_seen: Option<Timestamp>,
    /// The names that events gave for its pushes.
    pushers: Vec<String>,
    /// Of a moving tag: the approvals that fixed tags of the digest have used up.
    used: Vec<Numbered>,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Gathers what the gates at hand judge by, and reads the decisions in force into memory.
    pub(super) async fn at_hand(
        &self,
        gates: &Gates,
        facts: &TagFacts,
        digest: Digest,
    ) -> Result<AtHand, Fault> {
        self.engine.ledger.in_force().await?;
        Ok(AtHand {
            digest,
            production: facts.destination,
            first_seen: self.first_seen(gates, digest).await?,
            pushers: self.pushers(gates, digest).await?,
            used: self.used_approvals(gates, digest).await?,
        })
    }

    /// The approvals in force, by memory.
    pub(super) fn approvals(&self, at_hand: &AtHand) -> Approvals {
        let change = Change {
            place: &self.job.key.destination,
            moving: self.planned_rules().moving,
            digest: at_hand.digest,
            production: at_hand.production,
        };
        let in_force = self.engine.ledger.known_decisions();
        in_force.approvals(&change, &at_hand.used, clock::now())
    }

    /// The verdicts of the gates at hand.
    pub(super) fn judge_at_hand(
        &self,
        gates: &Gates,
        at_hand: &AtHand,
        approvals: &Approvals,
    ) -> Vec<Judgement> {
        let time = self.time_facts(at_hand.first_seen);
        let agreed = gates
            .all()
            .filter_map(|gates| gates.approval)
            .map(|gate| gate::approval::judge(gate, approvals, &at_hand.pushers));
        let judged = gate::time_gates(gates, &time).into_iter().chain(agreed);
        judged
            .map(|judgement| match approvals.override_of(judgement.gate) {
                Some(passed) if !judgement.is_pass() => passed.judgement(),
                _ => judgement,
            })
            .collect()
    }

    pub(super) fn time_facts(&self, first_seen: Option<Timestamp>) -> TimeFacts {
        TimeFacts {
            now: clock::now(),
            skew: self.destination.clock_skew(),
            first_seen,
        }
    }

    /// When the ledger first saw staging name the digest; recorded now if it has not, unless our
    /// clock is wrong.
    async fn first_seen(&self, gates: &Gates, digest: Digest) -> Result<Option<Timestamp>, Fault> {
        if gates.all().all(|gates| gates.min_age.is_none()) {
            return Ok(None);
        }
        let is_seen = self.job.is_recorded() && self.job.rollback.is_none();
        let is_recorded = is_seen && !self.time_facts(None).is_skewed();
        let repository = self.source.repository();
        self.engine
            .ledger
            .first_seen(self.source.origin(), repository, &digest, is_recorded)
            .await
    }

    /// The approvals by which a moving tag follows a tag that was named by them.
    async fn used_approvals(&self, gates: &Gates, digest: Digest) -> Result<Vec<Numbered>, Fault> {
        let is_asked = gates.all().any(|gates| gates.approval.is_some());
        if !is_asked || !self.planned_rules().moving {
            return Ok(Vec::new());
        }
        let repository = &self.job.key.destination.repository;
        let ledger = &self.engine.ledger;
        ledger.used_approvals(repository, &digest).await
    }
}
