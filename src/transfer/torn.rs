//! Torn sets: a part was named, and the rest will not be. The tag of the set is held, and moving tags
//! go back.

use std::collections::BTreeSet;
use std::time::Duration;

use super::judged_set::JudgedSet;
use super::sets::GroupId;
use super::{Completion, Engine};
use crate::clock;
use crate::decision::{Decision, Kind, Target, Torn};
use crate::fault::{Class, Fault, clip};
use crate::job::{Actor, Outcome, Remarks};
use crate::ledger::RunFacts;
use crate::oci::Digest;
use crate::set::{MemberTag, Naming, SetTag, State};

/// After so long a naming that does not go on is torn.
const LONGEST: Duration = Duration::from_secs(300);

impl Engine {
    /// The naming ends before all members are named. Where a part was named the set is torn: it is
    /// held from here on.
    pub(super) async fn tear(
        &self,
        id: &GroupId,
        set: &SetTag,
        judged: &JudgedSet,
        culprit: &MemberTag,
        why: &str,
        facts: &RunFacts,
    ) -> Result<(), Fault> {
        let made = judged.begun.iter();
        let moved: Vec<_> = made.flat_map(|one| one.made(set, &judged.named)).collect();
        let named: Vec<String> = set
            .members
            .iter()
            .filter(|member| moved.iter().any(|one| one.is_of(&member.key.destination)))
            .map(MemberTag::shown)
            .collect();
        let text = format!(
            "the set is torn: {} named, {} not ({why})",
            named.join(", "),
            culprit.shown()
        );
        let torn = Torn {
            staging: staging_digests(judged),
            moved: moved.clone(),
            goes_back: set.is_moving,
        };
        // A remark is one line.
        let said = clip(&text.replace(char::is_control, " "), 800);
        let remarks = Remarks {
            reason: said.parse().ok(),
            claimed_actor: None,
        };
        let target = Target::Set(set.name.set.clone(), Some(set.name.tag.clone()));
        let decision = Decision {
            torn: Some(torn),
            ..Decision::about(&target, Actor::daemon().saying(remarks))
        };
        // In this order: a kill between the two leaves a set that is held.
        self.hold_torn(set, decision, &text, facts).await?;
        self.ledger.end_set(&set.name).await?;
        self.sets.end(id);
        for member in &set.members {
            self.sets.wake(id, &member.key);
        }
        Ok(())
    }

    /// Holds a torn set, unless an earlier process was killed after it did so.
    async fn hold_torn(
        &self,
        set: &SetTag,
        decision: Decision,
        text: &str,
        facts: &RunFacts,
    ) -> Result<(), Fault> {
        let in_force = self.ledger.in_force().await?;
        let mut torn = in_force.torn(clock::now());
        if torn.any(|one| one.target.covers_in_set(&set.name)) {
            return Ok(());
        }
        let held = self
            .ledger
            .decide(Kind::Hold, decision, facts.clone())
            .await?;
        let decision = held.decision.id;
        tracing::error!(set = %set.name, decision, reason = text, "a set is torn");
        Ok(())
    }
}

/// The digests that staging names for the members, as far as their jobs have told.
fn staging_digests(judged: &JudgedSet) -> Vec<Digest> {
    let now = judged.facts.iter().filter_map(|fact| match &fact.state {
        State::Ready { digest, .. } | State::Named(digest) => Some(*digest),
        State::Missing | State::KeptBack(_) => None,
    });
    let begun = judged.begun.iter().flat_map(|begun| &begun.moves);
    let all: BTreeSet<Digest> = now.chain(begun.map(|one| one.digest)).collect();
    all.into_iter().collect()
}

/// Whether a job will not name its tag without a change or a decision.
pub(super) fn ends_for_good(completion: &Completion) -> bool {
    match completion.outcome {
        Outcome::Refused
        | Outcome::Held
        | Outcome::Conflict
        | Outcome::Drift
        | Outcome::Existing
        | Outcome::Gone => true,
        Outcome::Failed => {
            let class = completion.fault.as_ref().map(Fault::class);
            !completion.may_have_moved && !matches!(class, Some(Class::Retryable { .. }) | None)
        }
        Outcome::Promoted
        | Outcome::UpToDate
        | Outcome::Waiting
        | Outcome::Planned
        | Outcome::Interrupted => false,
    }
}

/// Whether a naming has not gone on for long.
pub(super) fn is_overdue(begun: &Naming, completion: &Completion) -> bool {
    let elapsed = clock::now().duration_since(begun.began);
    let is_long = Duration::try_from(elapsed).is_ok_and(|elapsed| elapsed >= LONGEST);
    is_long && matches!(completion.outcome, Outcome::Waiting | Outcome::Failed)
}
