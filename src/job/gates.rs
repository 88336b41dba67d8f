//! The gates of a route, as the config says them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Scan, ScanSide};
use crate::glob::Glob;
use crate::week::Hours;

/// A kind of gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateKind {
    /// The versions of what a moving tag names: a rule of tags, which is judged like a gate.
    ForwardOnly,
    /// Artifact types that are attached.
    Referrers,
    /// The time since staging was first seen to name the digest.
    MinAge,
    /// The hours of the week in which tags move.
    Window,
    /// Principals agree.
    Approval,
    /// Signatures of trusted signers.
    Signature,
    /// Statements of trusted signers.
    Attestation,
    /// Findings of a scanner.
    Scan,
    /// A program that judges.
    Command,
    /// A service that judges.
    Http,
}

impl GateKind {
    /// All of them.
    pub const ALL: [GateKind; 10] = [
        GateKind::ForwardOnly,
        GateKind::MinAge,
        GateKind::Window,
        GateKind::Approval,
        GateKind::Referrers,
        GateKind::Signature,
        GateKind::Attestation,
        GateKind::Scan,
        GateKind::Command,
        GateKind::Http,
    ];

    /// The name in the config, in reports and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            GateKind::ForwardOnly => "forward_only",
            GateKind::Referrers => "referrers",
            GateKind::MinAge => "min_age",
            GateKind::Window => "window",
            GateKind::Approval => "approval",
            GateKind::Signature => "signature",
            GateKind::Attestation => "attestation",
            GateKind::Scan => "scan",
            GateKind::Command => "command",
            GateKind::Http => "http",
        }
    }

    /// Whether it judges evidence, without which nothing is carried. The others judge the time
    /// and approvals.
    pub fn is_evidence(self) -> bool {
        match self {
            GateKind::ForwardOnly
            | GateKind::Referrers
            | GateKind::Signature
            | GateKind::Attestation
            | GateKind::Scan
            | GateKind::Command
            | GateKind::Http => true,
            GateKind::MinAge | GateKind::Window | GateKind::Approval => false,
        }
    }
}

impl fmt::Display for GateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What must be so before a tag moves. Empty: nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gates {
    /// Artifact types that must be attached to the image.
    pub referrers: Vec<String>,
    /// How long ago the ledger first saw staging name the digest.
    pub min_age: Option<Duration>,
    /// When tags move.
    pub window: Option<Window>,
    /// Principals that must agree.
    pub approval: Option<Approval>,
    /// Signers. One signature by any of them is enough.
    pub signature: Vec<Trusted>,
    /// Statements that must be there.
    pub attestation: Vec<Attestation>,
    /// What a scanner must not have found.
    pub scan: Option<Scan>,
    /// A program that judges.
    pub command: Option<Command>,
    /// A service that judges.
    pub http: Option<Http>,
    /// What the route says otherwise than `defaults`: for `check`.
    pub overrides: Vec<Override>,
    /// The gates of another route to the same destination, which must pass as well.
    pub beside: Option<Arc<Gates>>,
}

/// When tags move, by the wall clock of a zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The zone.
    pub zone: TimeZone,
    /// The hours in which tags move; none: always.
    pub open: Vec<Hours>,
    /// Days on which none moves.
    pub closed: Vec<Dates>,
}

/// Principals that must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Approval {
    /// So many different principals.
    pub people: usize,
}

/// Days from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dates {
    /// The first.
    pub first: Date,
    /// The last.
    pub last: Date,
}

/// A signer, and what it must have signed.
#[derive(Clone, Debug, PartialEq)]
pub struct Trusted {
    /// The signer.
    pub signer: Signer,
    /// What must be signed.
    pub on: Subject,
}

/// A statement that must be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Attestation {
    /// The type of its predicate.
    pub predicate: String,
    /// Its signer.
    pub trusted: Trusted,
}

/// What must be signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// The manifest or index that the tag names.
    #[default]
    Image,
    /// Each manifest of the index.
    Platforms,
}

/// A signer that is trusted.
#[derive(Clone, Debug, PartialEq)]
pub enum Signer {
    /// A public key.
    Key(Key),
    /// An identity in a certificate.
    Identity(Identity),
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Signer::Key(key) => write!(f, "the key {}", key.name),
            Signer::Identity(identity) => f.write_str(identity.pattern.as_str()),
        }
    }
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The name of its file.
    pub name: String,
    /// The key in PEM.
    pub pem: String,
}

/// An identity in a certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The issuer of the identity, exactly.
    pub issuer: String,
    /// The identity.
    pub pattern: Glob,
    /// What its certificate is verified by.
    pub root: Root,
}

/// What certificates are verified by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// The public instance of Sigstore.
    Sigstore,
    /// GitHub's own.
    Github,
    /// The content of a trusted-root file.
    File(Arc<str>),
}

/// A program that judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; not empty.
    pub run: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// All variables that it sees.
    pub environment: Vec<(String, String)>,
}

/// A service that judges.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Where it is asked.
    pub url: Url,
    /// The bearer token.
    pub token: Option<Token>,
    /// How long it may take.
    pub timeout: Duration,
}

/// A token that is not printed.
#[derive(Clone, Debug)]
pub struct Token(SecretString);

impl Token {
    /// The token of a config.
    pub fn new(token: SecretString) -> Token {
        Token(token)
    }

    /// The token, for the request that sends it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        self.expose() == other.expose()
    }
}

/// A gate of `defaults` that a route changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The gate.
    pub gate: GateKind,
    /// Whether the route has none, instead of one of its own.
    pub is_dropped: bool,
}

impl Gates {
    /// The gates that are set, in the order in which they are judged.
    pub fn kinds(&self) -> Vec<GateKind> {
        GateKind::ALL
            .into_iter()
            .filter(|kind| match kind {
                GateKind::ForwardOnly => false,
                GateKind::Referrers => !self.referrers.is_empty(),
                GateKind::MinAge => self.min_age.is_some(),
                GateKind::Window => self.window.is_some(),
                GateKind::Approval => self.approval.is_some(),
                GateKind::Signature => !self.signature.is_empty(),
                GateKind::Attestation => !self.attestation.is_empty(),
                GateKind::Scan => self.scan.is_some(),
                GateKind::Command => self.command.is_some(),
                GateKind::Http => self.http.is_some(),
            })
            .collect()
    }

    /// Whether a gate is set.
    pub fn has(&self, gate: GateKind) -> bool {
        self.kinds().contains(&gate)
    }

    /// Whether a registry's scan is asked for at this side.
    pub fn is_scanned_at(&self, side: ScanSide) -> bool {
        let scan = self.scan.as_ref();
        scan.is_some_and(|scan| scan.side() == Some(side))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all().all(|gates| gates.kinds().is_empty())
    }

    /// These, and those beside them.
    pub fn all(&self) -> impl Iterator<Item = &Gates> {
        std::iter::successors(Some(self), |gates| gates.beside.as_deref())
    }

    /// The gates of several routes, all of which must pass.
    pub fn together(gates: impl DoubleEndedIterator<Item = Arc<Gates>>) -> Arc<Gates> {
        let gates = gates.filter(|gates| !gates.is_empty()).rev();
        let together = gates.reduce(|beside, gates| {
            let beside = Some(beside);
            Arc::new(Gates {
                beside,
                ..(*gates).clone()
            })
        });
        together.unwrap_or_default()
    }

    /// What the route changes of the gates of `defaults`, in words.
    pub fn warnings(&self) -> Vec<String> {
        self.overrides
            .iter()
            .map(|changed| match changed.is_dropped {
                true => format!("gates.{}: off drops the gate of defaults", changed.gate),
                false => format!("gates.{} replaces the gate of defaults", changed.gate),
            })
            .collect()
    }
}

impl Dates {
    /// Whether a day is one of them.
    pub fn contains(&self, day: Date) -> bool {
        (self.first..=self.last).contains(&day)
    }
}
