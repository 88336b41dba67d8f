//! What keeps the tag of an approval or an accept from moving, as far as it is known when a person
//! decides.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::timeout;

use super::Decider;
use crate::clock;
use crate::commands::{OneTag, Undecided};
use crate::daemon::why::{Question, SourceTag};
use crate::decision::{Candidate, Verdict};
use crate::endpoint::Source as _;
use crate::job::Outcome;
use crate::look::topology::Topology;
use crate::oci::Digest;

/// The longest time that a decision's answer waits for what a look would come to.
const PLANNING: Duration = Duration::from_secs(5);

impl Decider {
    /// The decisions that hold a tag.
    ///
    /// # Errors
    /// Where nothing comes of the decision: the digest is denied, or the rules leave the tag out.
    pub(super) async fn held_by(
        &self,
        topology: &Topology,
        tag: &OneTag,
        staging: Digest,
    ) -> Result<Vec<String>, Undecided> {
        is_taken(topology, tag)?;
        let in_force = self.ledger.in_force().await?;
        let candidate = Candidate {
            routes: tag.routes.clone(),
            registry: tag.there.registry().into(),
            place: tag.place.clone(),
            set: topology.sets.name_of(&tag.place),
            beside: None,
            digest: staging,
            index: None,
            rollback: None,
            accepted: None,
            contents: Some(Arc::default()),
            is_clock_off: false,
        };
        match in_force.judge(&candidate, clock::now()) {
            Verdict::Blocked(block) if block.outcome == Outcome::Refused => {
                Err(Undecided::Conflict(block.reasons.join("; ")))
            }
            Verdict::Blocked(block) => Ok(block.reasons),
            Verdict::Clear | Verdict::Unknown => Ok(Vec::new()),
        }
    }

    /// What else keeps a tag from moving, where a look says so in time; else what is known to hold it.
    pub(super) async fn in_the_way(&self, tag: &OneTag, held_by: Vec<String>) -> Vec<String> {
        let Some(from) = &tag.from else {
            return held_by;
        };
        let question = Question {
            ledger: self.ledger.clone(),
            topology: self.topology.borrow().clone(),
            watch: self.watch.clone(),
            stop: self.stop.clone(),
        };
        let asked = SourceTag {
            route: from.route.clone(),
            repository: from.repository.repository().clone(),
            tag: from.tag.clone(),
        };
        // Boxed to keep the decision's future small.
        let asked = question.kept_back(&asked, tag.shown()).boxed();
        match timeout(PLANNING, asked).await {
            Ok(Ok(Some(reasons))) => reasons,
            Ok(Ok(None) | Err(_)) | Err(_) => held_by,
        }
    }
}

/// Whether the rules of the route take the tag.
fn is_taken(topology: &Topology, tag: &OneTag) -> Result<(), Undecided> {
    let Some(from) = &tag.from else {
        return Ok(());
    };
    let route = topology.route(&from.route);
    if route.is_none_or(|route| route.selection.allows(&from.tag)) {
        return Ok(());
    }
    Err(Undecided::NotThere(format!(
        "the rules of route {} leave {} out",
        from.route,
        tag.shown()
    )))
}
