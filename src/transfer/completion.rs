//! The result and the cost of a job.

use std::time::Duration;

use tokio::time::Instant;

use super::survey::{Image, TagFacts};
use crate::decision::{Approval, Block};
use crate::fault::{Class, Fault};
use crate::job::{Actor, BlobCounts, Judgement, Outcome, ReferrerCounts};
use crate::oci::Digest;
use crate::set::SetTag;
use crate::transfer::companions::CompanionOutcome;
use crate::transfer::plan::Decision;
use crate::transfer::set_naming::SetWait;

/// The result of a job, before it is settled.
#[derive(Debug)]
pub struct Completion {
    /// The outcome.
    pub outcome: Outcome,
    /// Staging's digest.
    pub digest: Option<Digest>,
    /// The index from which it was chosen for the platform of the route.
    pub index: Option<Digest>,
    /// Production's digest before the job.
    pub previous: Option<Digest>,
    /// When production answered, if the job asked again.
    pub seen_at: Option<Instant>,
    /// The reasons, for the report.
    pub reasons: Vec<String>,
    /// The failure, if it failed.
    pub fault: Option<Fault>,
    /// The cost.
    pub cost: Cost,
    /// The digest that this job wrote to the production tag.
    pub written: Option<Digest>,
    /// A write of an earlier job that succeeded although its answer was lost.
    pub found: Option<Found>,
    /// The duration.
    pub took: Duration,
    /// Whether naming reached its bound of rounds or time: the queue looks again later.
    pub gave_up: bool,
    /// Whether a request to move the tag was sent, and what came of it is not known.
    pub may_have_moved: bool,
    /// What came of the companion tags that it has looked at.
    pub companions: Vec<CompanionOutcome>,
    /// Whether something was brought that is there for good.
    pub has_progressed: bool,
    /// What the gates came to.
    pub gates: Vec<Judgement>,
    /// The principals that approve it, with what they said; the newest one comes last.
    pub approved: Vec<Actor>,
    /// The accept that it goes by.
    pub accepted: Option<Approval>,
    /// Whether gates or decisions kept the job from its tag.
    pub is_gated: bool,
    /// The set that the tag is part of.
    pub set: Option<SetTag>,
    /// Why it waits for its set.
    pub set_wait: Option<SetWait>,
    /// Whether it ended because staging moved the tag meanwhile.
    pub has_moved: bool,
}

/// An intended digest that production turned out to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The digest.
    pub digest: Digest,
    /// The ledger's digest before.
    pub previous: Option<Digest>,
}

/// The cost of a job.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Blobs by outcome.
    pub blobs: BlobCounts,
    /// Referrers and companion tags by outcome.
    pub referrers: ReferrerCounts,
    /// Blob bytes sent to the destination.
    pub bytes_sent: u64,
    /// Sizes of present and mounted blobs.
    pub bytes_spared: u64,
    /// Requests on both sides.
    pub requests: u64,
}

impl Cost {
    /// The sum of two runs of one job. The second run finds present what the first one copied.
    pub(super) fn plus(self, other: &Cost) -> Cost {
        let brought = self.blobs.mounted + self.blobs.copied;
        let referrers = ReferrerCounts {
            copied: self.referrers.copied + other.referrers.copied,
            present: other
                .referrers
                .present
                .saturating_sub(self.referrers.copied),
        };
        let blobs = BlobCounts {
            present: other.blobs.present.saturating_sub(brought),
            mounted: self.blobs.mounted + other.blobs.mounted,
            copied: self.blobs.copied + other.blobs.copied,
            resumed: self.blobs.resumed + other.blobs.resumed,
        };
        Cost {
            blobs,
            referrers,
            bytes_sent: self.bytes_sent + other.bytes_sent,
            bytes_spared: other.bytes_spared.saturating_sub(self.bytes_sent),
            requests: self.requests + other.requests,
        }
    }
}

impl Completion {
    /// Both sides name `digest`.
    pub fn equal(digest: Digest, requests: u64) -> Completion {
        let cost = Cost {
            requests,
            ..Cost::default()
        };
        Completion {
            outcome: Outcome::UpToDate,
            digest: Some(digest),
            previous: Some(digest),
            fault: None,
            ..Completion::empty(cost)
        }
    }

    /// What a job has found of a companion tag.
    pub(super) fn of_companion(companion: CompanionOutcome) -> Completion {
        Completion {
            outcome: companion.result,
            digest: companion.digest,
            previous: companion.there,
            reasons: companion.reason.into_iter().collect(),
            ..Completion::empty(Cost::default())
        }
    }

    /// The registry's `Retry-After`, if it named one.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.fault.as_ref()?.class() {
            Class::Retryable { after } => after,
            Class::Auth | Class::NotFound | Class::Corrupt | Class::Rejected | Class::Cancelled => {
                None
            }
        }
    }

    /// A failure, or an interruption.
    pub fn failed(fault: Fault, requests: u64) -> Completion {
        let outcome = match fault.class() {
            Class::Cancelled => Outcome::Interrupted,
            _ if fault.is_by_rule() => Outcome::Refused,
            _ => Outcome::Failed,
        };
        let reason = (outcome == Outcome::Refused).then(|| fault.chain());
        let fault = (outcome == Outcome::Failed).then_some(fault);
        Completion {
            outcome,
            fault,
            reasons: reason.into_iter().collect(),
            ..Completion::empty(Cost {
                requests,
                ..Cost::default()
            })
        }
    }

    pub(super) fn empty(cost: Cost) -> Completion {
        Completion {
            outcome: Outcome::Failed,
            digest: None,
            index: None,
            previous: None,
            seen_at: None,
            reasons: Vec::new(),
            fault: None,
            cost,
            written: None,
            found: None,
            took: Duration::ZERO,
            gave_up: false,
            may_have_moved: false,
            companions: Vec::new(),
            has_progressed: false,
            gates: Vec::new(),
            approved: Vec::new(),
            accepted: None,
            is_gated: false,
            set: None,
            set_wait: None,
            has_moved: false,
        }
    }

    /// The completion of a job that began anew after this one: with what this one has cost and
    /// found.
    pub(crate) fn followed_by(self, next: Completion) -> Completion {
        let mut companions = self.companions;
        companions.extend(next.companions);
        Completion {
            cost: self.cost.plus(&next.cost),
            found: self.found.or(next.found),
            took: self.took + next.took,
            companions,
            has_progressed: self.has_progressed || next.has_progressed,
            ..next
        }
    }

    /// The decision leaves the tag as it is.
    pub(super) fn untouched(decision: Decision, facts: &TagFacts) -> Completion {
        let (outcome, reason) = match decision {
            Decision::UpToDate | Decision::Promote => (Outcome::UpToDate, None),
            Decision::Conflict(reason) => (Outcome::Conflict, Some(reason)),
            Decision::Drift(reason) => (Outcome::Drift, Some(reason)),
            Decision::Existing(reason) => (Outcome::Existing, Some(reason)),
            Decision::Refused(reason) => (Outcome::Refused, Some(reason)),
            Decision::Gone => (Outcome::Gone, None),
        };
        Completion {
            outcome,
            reasons: reason.into_iter().collect(),
            ..Completion::of(facts)
        }
    }

    /// A decision keeps the tag from being named.
    pub(super) fn blocked(block: Block, facts: &TagFacts) -> Completion {
        Completion {
            outcome: block.outcome,
            reasons: block.reasons,
            is_gated: true,
            ..Completion::of(facts)
        }
    }

    /// The backup tag stays, and so does the tag.
    pub(super) fn without_backup(reason: String, facts: &TagFacts) -> Completion {
        Completion {
            is_gated: true,
            ..Completion::untouched(Decision::Refused(reason), facts)
        }
    }

    /// A dry run would promote.
    pub(super) fn planned(facts: &TagFacts) -> Completion {
        Completion {
            outcome: Outcome::Planned,
            ..Completion::of(facts)
        }
    }

    /// Gates keep the job from its tag.
    pub(super) fn gated(facts: &TagFacts, outcome: Outcome) -> Completion {
        Completion {
            outcome,
            is_gated: true,
            ..Completion::of(facts)
        }
    }

    /// The tag waits for the other members of its set.
    pub(super) fn waits_for_set(facts: &TagFacts, wait: SetWait) -> Completion {
        Completion {
            reasons: vec![wait.reason.clone()],
            set_wait: Some(wait),
            ..Completion::gated(facts, Outcome::Waiting)
        }
    }

    /// The same, now that the set lacks something else.
    pub(super) fn waiting_for(mut self, reason: String) -> Completion {
        if let Some(wait) = &mut self.set_wait {
            let said = self.reasons.iter_mut().find(|said| **said == wait.reason);
            said.into_iter().for_each(|said| said.clone_from(&reason));
            wait.reason = reason;
        }
        self
    }

    /// Whether it waits for members of its set that have not passed.
    pub(super) fn waits_for_members(&self) -> bool {
        self.set_wait.as_ref().is_some_and(|wait| !wait.is_complete)
    }

    /// The registry keeps the tag immutable at `production`.
    pub(super) fn immutable(facts: &TagFacts, production: Digest) -> Completion {
        let reason = format!(
            "the registry keeps the tag immutable at {production}; push the content under a new tag, or allow the tag to move there"
        );
        Completion {
            outcome: Outcome::Conflict,
            previous: Some(production),
            reasons: vec![reason],
            ..Completion::of(facts)
        }
    }

    /// The tag names the image now.
    pub(super) fn promoted(facts: &TagFacts, image: &Image) -> Completion {
        let written = Some(image.top.digest);
        Completion {
            outcome: Outcome::Promoted,
            digest: written,
            written,
            ..Completion::of(facts)
        }
    }

    fn of(facts: &TagFacts) -> Completion {
        Completion {
            digest: facts.source,
            index: facts.index,
            previous: facts.destination,
            seen_at: Some(facts.destination_at),
            ..Completion::empty(Cost::default())
        }
    }
}
