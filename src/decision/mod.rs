//! Decisions: what people ordered about images and tags, and what follows from it. Pure.
//!
//! | kind | effect |
//! |---|---|
//! | hold | looks and carrying go on, naming waits |
//! | deny | a manifest, config or layer is never carried, named or repaired |
//! | approve | counts for the gate `approval`, or passes gates that are not met |
//! | accept | names staging's digest once over what production names |
//! | rollback | moves a tag back, and keeps what was replaced and what staging names out of it |
//! | release | ends other decisions |
//!
//! A denial comes before a hold and what is kept out; all reasons are shown, and the first decides
//! the result.

mod approvals;
mod in_force;
mod right;
mod set;
mod target;
mod until;

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::approvals::{Approval, Approvals, Change, GateOverride};
pub use self::in_force::{Block, Candidate, InForce, Numbered, Revision, Verdict, expiry_time};
pub use self::right::{NamePattern, Principal, Right, Rights};
pub use self::set::{SetMove, SetName, Torn};
pub use self::target::{Destination, NotATarget, Target};
pub use self::until::{NotAnEnd, after, until};
use crate::job::{Actor, GateKind};
use crate::oci::{Digest, RepositoryName, Tag};

/// What a decision orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Naming waits.
    Hold,
    /// A person agrees that a tag goes to a digest.
    Approve,
    /// Content is never carried, named or repaired.
    Deny,
    /// Staging's digest is named once, over what production names.
    Accept,
    /// A tag is moved back.
    Rollback,
    /// Ends other decisions.
    Release,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] = [
        Kind::Hold,
        Kind::Approve,
        Kind::Deny,
        Kind::Accept,
        Kind::Rollback,
        Kind::Release,
    ];

    /// The name in the ledger, the HTTP API and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Hold => "hold",
            Kind::Approve => "approve",
            Kind::Deny => "deny",
            Kind::Accept => "accept",
            Kind::Rollback => "rollback",
            Kind::Release => "release",
        }
    }

    /// The kind of that name.
    pub fn of_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The right that it takes. A release takes the rights of what it ends.
    pub fn right(self) -> Option<Right> {
        match self {
            Kind::Hold => Some(Right::Hold),
            Kind::Approve => Some(Right::Approve),
            Kind::Deny => Some(Right::Deny),
            Kind::Accept => Some(Right::Accept),
            Kind::Rollback => Some(Right::Rollback),
            Kind::Release => None,
        }
    }

    /// Whether it may only be ordered with a reason.
    pub fn needs_reason(self) -> bool {
        matches!(self, Kind::Deny | Kind::Accept | Kind::Rollback)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A decision as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What it is about, in its canonical form; empty for everything.
    pub target: String,
    /// The origin of the registry that the target names, where a config told it: a registry that
    /// is renamed there keeps its decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The destination repository, where the target names exactly one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
    /// The destination tag, where the target names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// The digest that it is about: of an approve and an accept that of staging, of a rollback the
    /// one to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Of an approve, an accept and a rollback: what production named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Digest>,
    /// Of a rollback: what the tag may not name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keeps_out: Vec<Digest>,
    /// Of an approve: the gates that are passed although they are not met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub despite: Vec<GateKind>,
    /// Of an accept: all tags of the route that were reported as existing before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Of a release: the numbers of the decisions that it ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<u64>,
    /// Of a hold of the daemon's own: the set of which only a part was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn: Option<Torn>,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The principal, and what it said.
    #[serde(flatten)]
    pub actor: Actor,
}

impl Decision {
    /// A decision about a target, by a principal.
    pub fn about(target: &Target, actor: Actor) -> Decision {
        Decision {
            target: target.to_string(),
            origin: target.origin().map(|origin| origin.as_str().into()),
            repository: target.repository(),
            tag: target.tag().cloned(),
            digest: target.digest(),
            replaces: None,
            keeps_out: Vec::new(),
            despite: Vec::new(),
            all: false,
            ends: Vec::new(),
            torn: None,
            until: None,
            actor,
        }
    }

    /// What it is about, as reports and lists show it.
    pub fn shown_target(&self) -> &str {
        if self.target.is_empty() {
            "everything"
        } else {
            &self.target
        }
    }

    /// Whether it is over by itself.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// A decision that was not recorded, because it may not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedDecision {
    /// What was asked for.
    pub decision: Kind,
    /// What it was about.
    pub target: String,
    /// Why it was refused.
    pub text: String,
    /// The principal, and what it said.
    #[serde(flatten)]
    pub actor: Actor,
}
