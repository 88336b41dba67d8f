//! The PUT of a tag, and what comes of it.

use tokio::time::{Instant, timeout_at};

use super::{NameOrigin, Named, Namer, Side, Step};
use crate::decision::Verdict;
use crate::endpoint::{Destination, Put, Source};
use crate::fault::{Class, Fault};
use crate::oci::{Digest, Target};
use crate::transfer::limits::NamingPermit;
use crate::transfer::retry::stoppable;

impl<S: Source, D: Destination> Namer<'_, S, D> {
    /// Sends the PUT. Between production's answer and it only memory is read.
    pub(super) async fn send(&mut self, permit: NamingPermit) -> Result<Step, Fault> {
        let promotion = self.promotion;
        let until = self.fresh_until();
        loop {
            let turn = timeout_at(until, stoppable(&promotion.stop.abort, permit.request())).await;
            let turn = turn.ok().transpose()?;
            let Some(request) = turn.filter(|_| Instant::now() <= until) else {
                return Ok(self.late(Side::Destination, "the turn to write came late"));
            };
            if let Some(step) = self.instead_of_put()? {
                return Ok(step);
            }
            // The last look at the decisions: one that comes later waits for this request's answer.
            let sending = match promotion.engine.ledger.begin_send(&self.candidate()) {
                Ok(sending) => sending,
                Err(verdict) => return Ok(self.stopped(verdict)),
            };
            let earlier = std::mem::replace(&mut self.may_have_arrived, true);
            let target = Target::Tag(self.naming.place.tag.clone());
            let put = stoppable(
                &promotion.stop.abort,
                promotion
                    .destination
                    .put_manifest(&target, &self.naming.image.top),
            )
            .await?;
            if !put.as_ref().is_err_and(|fault| !is_refusal(fault)) {
                sending.answered();
            }
            let metrics = &promotion.engine.metrics;
            let registry = promotion.destination.registry();
            metrics.rate_limited(registry, request.record(&put));
            drop(request);
            let fault = match put {
                Ok(Put::Accepted { .. }) => {
                    self.heard(Side::Destination, None);
                    return Ok(self.moved().await);
                }
                Ok(Put::Immutable) => {
                    self.may_have_arrived = earlier;
                    return Ok(Step::Done(Named::Immutable));
                }
                Ok(Put::Missing(missing)) => {
                    self.may_have_arrived = earlier;
                    return Ok(Step::Repair(missing));
                }
                Err(fault) => fault,
            };
            let is_refusal = is_refusal(&fault);
            self.may_have_arrived = earlier || !is_refusal;
            let fault = self.retryable(fault)?;
            if !is_refusal || Instant::now() + permit.admitted_in() > until {
                return Ok(Step::Pause(Side::Destination, fault));
            }
            metrics.retried(registry, fault.class());
        }
    }

    /// The step that is due instead of the PUT, by memory alone.
    fn instead_of_put(&self) -> Result<Option<Step>, Fault> {
        if !self.rules_hold()? {
            return Ok(Some(self.again()));
        }
        if !self.verdicts_hold()? {
            return Ok(Some(Step::Judge));
        }
        if self.is_source_overtaken() || self.is_destination_overtaken() {
            let why = "another job has a newer answer";
            return Ok(Some(self.late(Side::Destination, why)));
        }
        Ok(None)
    }

    /// A fault after which the PUT may be sent again. Any other ends the naming.
    fn retryable(&self, fault: Fault) -> Result<Fault, Fault> {
        match fault.class() {
            Class::Retryable { .. } => return Ok(fault),
            Class::Rejected => {
                let refusals = &self.promotion.engine.refusals;
                refusals.note(self.refusal(), &fault);
            }
            Class::Auth | Class::NotFound | Class::Corrupt | Class::Cancelled => {}
        }
        self.heard(Side::Destination, Some(&fault));
        Err(fault)
    }

    pub(super) async fn repair(&mut self, missing: &[Digest]) -> Result<Step, Fault> {
        let image = self.naming.image;
        let promotion = self.promotion;
        if self.repairs == promotion.engine.settings.bounds.repairs {
            return Err(promotion.misses(&image.top, missing));
        }
        self.repairs += 1;
        // Nothing is repaired for a name that is not cleared any more.
        if let verdict @ (Verdict::Blocked(_) | Verdict::Unknown) = self.verdict() {
            return Ok(self.stopped(verdict));
        }
        promotion.repair(image, &image.top, missing).await?;
        Ok(Step::Judge)
    }

    /// The manifest is there under its tag.
    pub(super) async fn moved(&self) -> Step {
        let promotion = self.promotion;
        let image = self.naming.image;
        let place = self.naming.place;
        let digest = Some(image.top.digest);
        promotion
            .engine
            .newest
            .note(&promotion.destination, &place.tag, digest, Instant::now());
        match self.naming.origin {
            NameOrigin::Job => promotion.remember_named(image).await,
            NameOrigin::Companion(_) | NameOrigin::List | NameOrigin::Backup => {
                promotion.committed(&image.top).await;
                if let Err(fault) = promotion
                    .engine
                    .ledger
                    .found(place, &image.top.digest)
                    .await
                {
                    // The intent says it as well.
                    tracing::warn!(
                        tag = %place.tag,
                        error = %fault.chain(),
                        "the ledger could not be written"
                    );
                }
            }
        }
        Step::Done(Named::Moved)
    }
}

/// Whether the answer to a PUT means that nothing was written. After any other fault the tag may
/// have moved, or may move yet.
fn is_refusal(fault: &Fault) -> bool {
    match fault.class() {
        Class::Retryable { after } => after.is_some(),
        Class::Auth | Class::Rejected | Class::NotFound => true,
        Class::Corrupt | Class::Cancelled => false,
    }
}
