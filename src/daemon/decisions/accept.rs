//! Accept: a tag that differs by conflict, drift or existing is named once after a decision.

use super::Decider;
use super::checks::{end, is_as_named};
use crate::admin::{DecisionAnswer, DecisionRequest, Refusal};
use crate::commands::resolve::Resolved;
use crate::commands::{OneTag, Undecided, routes_write};
use crate::decision::{Decision, Kind};
use crate::job::Actor;
use crate::ledger::Agreement;
use crate::look::topology::Topology;
use crate::oci::Digest;

impl Decider {
    /// Names staging's digest once, over what production names.
    pub(super) async fn accept(
        &self,
        topology: &Topology,
        request: &DecisionRequest,
        resolved: &Resolved,
        actor: Actor,
    ) -> Result<DecisionAnswer, Refusal> {
        let decision = Decision {
            until: end(request)?,
            ..Decision::about(&resolved.target, actor)
        };
        if request.all {
            return self.accept_all(topology, decision, resolved).await;
        }
        let tag = OneTag::of(resolved, topology, &self.ledger).await?;
        let production = tag.production(topology, &self.stop).await?;
        let staging = tag.promoted(topology, &self.stop).await?;
        is_as_named("staging", request.digest, Some(staging))?;
        is_as_named("production", request.replaces, Some(production))?;
        let held_by = match staging == production {
            true => Vec::new(),
            false => self.held_by(topology, &tag, staging).await?,
        };
        let decision = Decision {
            digest: Some(staging),
            replaces: Some(production),
            ..decision
        };
        let facts = (*topology.facts).clone();
        let recorded = self
            .ledger
            .decide(Kind::Accept, decision, facts.clone())
            .await?;
        if staging == production {
            self.agree(&tag, staging).await?;
            let ids = vec![recorded.decision.id];
            let why = "both sides name the digest";
            self.ledger.end_decisions(ids, why, facts).await?;
        }
        Ok(DecisionAnswer {
            held_by: self.in_the_way(&tag, held_by).await,
            ..DecisionAnswer::of(recorded.decision)
        })
    }

    /// Accepts the tags of a route that the ledger shows as existing.
    async fn accept_all(
        &self,
        topology: &Topology,
        decision: Decision,
        resolved: &Resolved,
    ) -> Result<DecisionAnswer, Refusal> {
        routes_write(resolved, topology)?;
        let decision = Decision {
            all: true,
            ..decision
        };
        let tags = self.existing(resolved).await?;
        let facts = (*topology.facts).clone();
        let recorded = self.ledger.decide(Kind::Accept, decision, facts).await?;
        Ok(DecisionAnswer {
            tags: Some(tags),
            ..DecisionAnswer::of(recorded.decision)
        })
    }

    /// How many tags of the routes are existing by their last report. Without one there is nothing
    /// to accept.
    async fn existing(&self, resolved: &Resolved) -> Result<u64, Refusal> {
        let mut tags = 0;
        for route in &resolved.routes {
            tags += self.ledger.count_existing(route).await?;
        }
        if tags == 0 {
            let target = &resolved.target;
            let text = format!("no tag of {target} was reported as existing");
            return Err(Undecided::NotThere(text).into());
        }
        Ok(tags)
    }

    async fn agree(&self, tag: &OneTag, digest: Digest) -> Result<(), Refusal> {
        let place = &tag.place;
        let agreement = Agreement {
            tag: place.tag.clone(),
            digest,
            known: self.ledger.written(place).await?,
        };
        let agreed = self
            .ledger
            .agree(&place.origin, &place.repository, vec![agreement]);
        Ok(agreed.await?)
    }
}
