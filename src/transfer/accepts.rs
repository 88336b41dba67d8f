//! Accepts: what a person accepted of a tag, and when that is over.

use jiff::Timestamp;

use super::plan::Facts;
use super::survey::TagFacts;
use super::{Engine, Promotion};
use crate::clock;
use crate::decision::{Approval, Decision, Numbered};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::job::TagId;
use crate::ledger::RunFacts;
use crate::oci::Digest;

/// What both sides were seen to name. `None`: what was seen of a side tells nothing of now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Staging's digest.
    pub staging: Option<Digest>,
    /// Production's digest.
    pub production: Option<Digest>,
}

impl Seen {
    /// Why an accept is over, if it is. Where production names what was accepted, it is used up.
    fn ends(&self, accept: &Decision) -> Option<String> {
        let production = other(self.production, accept.replaces);
        let staging = other(self.staging, accept.digest);
        match (production, staging) {
            (Some(digest), _) => Some(format!("production names {digest}")),
            (None, Some(digest)) => Some(format!("staging names {digest}")),
            (None, None) => None,
        }
    }
}

/// What was seen, if it is not what was accepted.
fn other(seen: Option<Digest>, accepted: Option<Digest>) -> Option<Digest> {
    seen.filter(|digest| Some(*digest) != accepted)
}

impl Engine {
    /// Ends the accepts of a tag that met another digest than theirs, in a look that began after
    /// them.
    pub async fn end_accepts(
        &self,
        place: &TagId,
        seen: Seen,
        look_began: Timestamp,
    ) -> Result<(), Fault> {
        let in_force = self.ledger.in_force().await?;
        let before = |one: &&Numbered| one.at < look_began;
        for accept in in_force.accepts_of(place).filter(before) {
            if let Some(why) = seen.ends(&accept.decision) {
                let ids = vec![accept.id];
                let facts = RunFacts::default();
                self.ledger.end_decisions(ids, &why, facts).await?;
            }
        }
        Ok(())
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// The decision in force that accepts that the tag goes from production's digest to staging's.
    /// While our clock is off the destination's, one that is past its end waits: it neither ends nor
    /// acts.
    pub(super) async fn accept(&self, facts: &Facts) -> Result<Option<Approval>, Fault> {
        let acting = self.accept_at(facts, clock::now()).await?;
        if acting.is_some() || !self.is_clock_off() {
            return Ok(acting);
        }
        if let Some(accept) = self.accept_at(facts, self.expiry_time()).await? {
            let id = accept.decision;
            self.note_reason(format!(
                "the accept (decision {id}) is past its end by our clock, which is more than 60 s off the destination's: it waits"
            ));
        }
        Ok(None)
    }

    /// The accept that is in force at a time.
    async fn accept_at(&self, facts: &Facts, now: Timestamp) -> Result<Option<Approval>, Fault> {
        let (Some(staging), Some(production)) = (facts.source, facts.destination) else {
            return Ok(None);
        };
        let key = &self.job.key;
        let ledger = &self.engine.ledger;
        let in_force = ledger.in_force().await?;
        let accept = in_force.accept(&key.destination, &staging, &production, now);
        if let Some(accept) = accept {
            return Ok(Some(accept.agreement()));
        }
        for accept in in_force.accepts_of_all(&self.job.routes, now) {
            let was_existing = ledger.was_existing(key, accept.id, staging, production);
            if was_existing.await? {
                return Ok(Some(accept.agreement()));
            }
        }
        Ok(None)
    }

    /// Ends the accepts of the job's tag that met another digest than theirs. A list that lags
    /// tells nothing of that, nor does what another source names.
    pub(super) async fn end_own_accepts(&self, facts: &TagFacts) -> Result<(), Fault> {
        let job = self.job;
        if job.explicit || job.dry_run || job.rollback.is_some() {
            return Ok(());
        }
        let is_answer = facts
            .destination_via
            .is_answer(self.destination.abilities());
        let seen = Seen {
            staging: facts.source.filter(|_| facts.source_at.is_some()),
            production: facts.destination.filter(|_| is_answer),
        };
        self.engine
            .end_accepts(&job.key.destination, seen, job.look_began)
            .await
    }
}
