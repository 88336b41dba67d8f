//! What gates came to, as reports and the ledger show it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::GateKind;
use crate::oci::{Digest, Tag};

/// What a gate came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The tag may move.
    Pass,
    /// Not yet.
    Wait,
    /// No.
    Refuse,
}

impl Verdict {
    /// All of them, for series that exist from the start.
    pub const ALL: [Verdict; 3] = [Verdict::Pass, Verdict::Wait, Verdict::Refuse];

    /// The name in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Wait => "wait",
            Verdict::Refuse => "refuse",
        }
    }
}

/// A gate's verdict with its reason and its evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The gate.
    pub gate: GateKind,
    /// The verdict.
    pub verdict: Verdict,
    /// Why, for people. It changes only when something else did.
    pub reason: String,
    /// What was found.
    #[serde(default)]
    pub evidence: Value,
    /// When to judge again what waits or is refused.
    #[serde(skip)]
    pub next: NextJudgement,
}

/// When a gate that did not pass is judged again without an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NextJudgement {
    /// At the sweep of `verify`.
    #[default]
    Verify,
    /// At that time.
    At(Timestamp),
    /// At each poll for an hour, then at the sweep.
    Poll,
    /// At each poll for an hour, then at the sweep, and at that time.
    PollUntil(Timestamp),
    /// After seconds, then less often, after an hour at the sweep.
    Soon,
}

/// A job that gates kept from its tag, for what decides when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gated {
    /// The source tag.
    pub tag: Tag,
    /// When each gate that did not pass is judged again.
    pub next: Vec<NextJudgement>,
}

impl Judgement {
    /// A gate that lets the tag move.
    pub fn pass(gate: GateKind, reason: impl Into<String>, evidence: Value) -> Judgement {
        Judgement {
            gate,
            verdict: Verdict::Pass,
            reason: reason.into(),
            evidence,
            next: NextJudgement::Verify,
        }
    }

    /// A gate that waits.
    pub fn wait(
        gate: GateKind,
        reason: impl Into<String>,
        evidence: Value,
        next: NextJudgement,
    ) -> Judgement {
        Judgement {
            verdict: Verdict::Wait,
            next,
            ..Judgement::pass(gate, reason, evidence)
        }
    }

    /// A gate that refuses.
    pub fn refuse(gate: GateKind, reason: impl Into<String>, evidence: Value) -> Judgement {
        Judgement {
            verdict: Verdict::Refuse,
            ..Judgement::pass(gate, reason, evidence)
        }
    }

    /// A gate that a program or a service has answered for. One that waits is asked again soon.
    pub fn answered(
        gate: GateKind,
        verdict: Verdict,
        reason: String,
        evidence: Value,
    ) -> Judgement {
        let next = match verdict {
            Verdict::Wait => NextJudgement::Soon,
            Verdict::Pass | Verdict::Refuse => NextJudgement::Verify,
        };
        Judgement {
            gate,
            verdict,
            reason,
            evidence,
            next,
        }
    }

    /// Whether its evidence names a referrer.
    pub fn names(&self, referrer: &Digest) -> bool {
        let referrer = referrer.to_string();
        let lists = ["referrers", "signatures", "attestations"];
        let lists = lists
            .into_iter()
            .filter_map(|list| self.evidence[list].as_array());
        let mut named = lists.flatten();
        named.any(|named| named["digest"] == *referrer || named["statement"] == *referrer)
    }

    /// Whether the tag may move by this gate.
    pub fn is_pass(&self) -> bool {
        self.verdict == Verdict::Pass
    }
}
