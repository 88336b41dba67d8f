//! Approvals in force: which principals agree to a digest under a tag, and which gates it passes
//! although they are not met.

use jiff::Timestamp;
use serde_json::json;

use super::{InForce, Kind, Numbered};
use crate::job::{Actor, GateKind, Judgement, TagId};
use crate::oci::Digest;

/// A tag that is to name a digest.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// The tag.
    pub place: &'a TagId,
    /// Whether it is a moving tag: an approval of the same digest in its repository covers it.
    pub moving: bool,
    /// What staging names.
    pub digest: Digest,
    /// What production names.
    pub production: Option<Digest>,
}

/// A principal that agrees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// The principal, and what it said.
    pub by: Actor,
    /// The number of its decision.
    pub decision: u64,
}

/// A gate that is passed although it is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateOverride {
    /// The gate.
    pub gate: GateKind,
    /// `passed by user:alice: reason (decision 12)`.
    pub reason: String,
    /// The number of the decision.
    pub decision: u64,
}

/// The approvals of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    /// By their numbers.
    pub people: Vec<Approval>,
    /// By the numbers of their decisions.
    pub overrides: Vec<GateOverride>,
}

impl Approval {
    /// `accepted by user:alice: reason (decision 12)`; `how` is the first word.
    pub fn shown(&self, how: &str) -> String {
        let said = self.by.remarks.said();
        format!("{how} by {}{said} (decision {})", self.by, self.decision)
    }
}

impl Approvals {
    /// The override of a gate.
    pub fn override_of(&self, gate: GateKind) -> Option<&GateOverride> {
        self.overrides.iter().find(|passed| passed.gate == gate)
    }
}

impl GateOverride {
    /// The verdict that it stands for.
    pub fn judgement(&self) -> Judgement {
        let evidence = json!({"decision": self.decision});
        Judgement::pass(self.gate, self.reason.clone(), evidence)
    }
}

impl InForce {
    /// The approvals of a change. `used`: those that other tags have used up longer ago.
    pub fn approvals(&self, change: &Change<'_>, used: &[Numbered], now: Timestamp) -> Approvals {
        let mut approvals = Approvals::default();
        let is_of_another =
            |one: &&Numbered| !one.decision.has_expired(now) && !one.target.is_tag(change.place);
        let used = used.iter().chain(&self.used).filter(is_of_another);
        let all = used.chain(self.now(now));
        for numbered in all.filter(|one| one.approves(change)) {
            approvals.people.push(numbered.agreement());
            approvals.overrides.extend(numbered.overrides());
        }
        approvals
    }
}

impl Numbered {
    /// Its principal as one that agrees.
    pub fn agreement(&self) -> Approval {
        Approval {
            by: self.decision.actor.clone(),
            decision: self.id,
        }
    }

    /// Whether it agrees to a change: of its own tag, while production names what it named then, or
    /// of a moving tag of the same repository to the same digest.
    fn approves(&self, change: &Change<'_>) -> bool {
        if self.kind != Kind::Approve || self.decision.digest != Some(change.digest) {
            return false;
        }
        let replaces = self.decision.replaces;
        let is_as_then = replaces.is_none_or(|replaced| change.production == Some(replaced));
        (self.target.is_tag(change.place) && is_as_then)
            || (change.moving && self.target.is_beside(change.place))
    }

    fn overrides(&self) -> impl Iterator<Item = GateOverride> {
        let reason = self.agreement().shown("passed");
        self.decision.despite.iter().map(move |gate| GateOverride {
            gate: *gate,
            reason: reason.clone(),
            decision: self.id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Decision;
    use crate::endpoint::Origin;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn place(repository: &str, tag: &str) -> TagId {
        TagId {
            origin: Origin::new("https://p.example"),
            repository: repository.parse().unwrap(),
            tag: tag.parse().unwrap(),
        }
    }

    #[test]
    fn an_approval_covers_its_tag_and_moving_tags_of_the_same_digest() {
        let approve = Decision {
            digest: Some(digest("new")),
            replaces: Some(digest("old")),
            ..Decision::about(&"app:v1".parse().unwrap(), Actor::named("user:alice"))
        };
        let now = Timestamp::UNIX_EPOCH;
        let in_force = InForce {
            version: 1,
            decisions: vec![Numbered::new(1, now, Kind::Approve, approve)],
            used: Vec::new(),
        };
        let count = |repository: &str, tag: &str, moving, name: &str, production: &str| {
            let change = Change {
                place: &place(repository, tag),
                moving,
                digest: digest(name),
                production: Some(digest(production)),
            };
            in_force.approvals(&change, &[], now).people.len()
        };
        assert_eq!(count("app", "v1", false, "new", "old"), 1);
        assert_eq!(count("app", "v1", false, "new", "other"), 0);
        assert_eq!(count("app", "v1", false, "newer", "old"), 0);
        assert_eq!(count("app", "latest", true, "new", "other"), 1);
        assert_eq!(count("app", "v2", false, "new", "old"), 0);
        assert_eq!(count("web", "latest", true, "new", "old"), 0);
        // Used up, it is for moving tags alone.
        let ended = InForce::default();
        let used = |tag: &str, moving| {
            let change = Change {
                place: &place("app", tag),
                moving,
                digest: digest("new"),
                production: Some(digest("old")),
            };
            let approvals = ended.approvals(&change, &in_force.decisions, now);
            approvals.people.len()
        };
        let cases = [("v1", false), ("v1", true), ("v2", false), ("latest", true)];
        assert_eq!(cases.map(|(tag, moving)| used(tag, moving)), [0, 0, 0, 1]);
    }
}
