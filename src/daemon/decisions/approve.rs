//! Approve: a principal agrees that a tag goes to the digest that staging names, or passes gates
//! that are not met.

use jiff::{SignedDuration, Timestamp};

use super::Decider;
use super::checks::{are_gates_of, end, is_as_named};
use crate::admin::{DecisionAnswer, DecisionRequest, Refusal};
use crate::clock;
use crate::commands::OneTag;
use crate::commands::resolve::Resolved;
use crate::decision::{Decision, Kind, after};
use crate::job::{Actor, GateKind};
use crate::look::topology::Topology;

/// The longest time for which gates are passed.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);

impl Decider {
    /// Records an approval of staging's digest.
    pub(super) async fn approve(
        &self,
        topology: &Topology,
        request: &DecisionRequest,
        resolved: &Resolved,
        actor: Actor,
    ) -> Result<DecisionAnswer, Refusal> {
        let until = until(request)?;
        are_gates_of(&resolved.routes, &request.despite, topology)?;
        let tag = OneTag::of(resolved, topology, &self.ledger).await?;
        let staging = tag.promoted(topology, &self.stop).await?;
        let production = tag.found(topology, &self.stop).await?;
        is_as_named("staging", request.digest, Some(staging))?;
        is_as_named("production", request.replaces, production)?;
        let held_by = self.held_by(topology, &tag, staging).await?;
        let decision = Decision {
            digest: Some(staging),
            replaces: production,
            despite: despite(request),
            until,
            ..Decision::about(&resolved.target, actor)
        };
        let facts = (*topology.facts).clone();
        let recorded = self.ledger.decide(Kind::Approve, decision, facts).await?;
        Ok(DecisionAnswer {
            held_by: self.in_the_way(&tag, held_by).await,
            ..DecisionAnswer::of(recorded.decision)
        })
    }
}

fn despite(request: &DecisionRequest) -> Vec<GateKind> {
    let mut despite = request.despite.clone();
    despite.sort();
    despite.dedup();
    despite
}

/// The end. Gates are not passed for long.
fn until(request: &DecisionRequest) -> Result<Option<Timestamp>, Refusal> {
    let end = end(request)?;
    if request.despite.is_empty() {
        return Ok(end);
    }
    let latest = after(LONGEST, clock::now()).unwrap_or(Timestamp::MAX);
    match end {
        Some(end) if end > latest => {
            let text = "`until`: gates are passed for 24 hours at most";
            Err(Refusal::bad_request(text))
        }
        Some(end) => Ok(Some(end)),
        None => Ok(Some(latest)),
    }
}
