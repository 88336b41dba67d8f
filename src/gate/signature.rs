//! `signature` and `attestation`: statements of signers that the config trusts, about this very
//! image.
//!
//! A signature is a statement with cosign's predicate, or a signature over the image itself; any
//! other predicate is none. An attestation has the predicate that the gate names. What does not
//! verify is as if it were not there.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::sigstore::{COSIGN_SIGN, SimpleSignature, Verified, verify_bundle, verify_simple};
use crate::job::gates::{Attestation, Signer, Subject, Trusted};
use crate::job::{GateKind, Judgement, NextJudgement};
use crate::oci::Digest;

/// Most rejected statements that are named as evidence.
const MOST_NAMED: usize = 5;

/// What is attached to one manifest.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The manifest.
    pub subject: Digest,
    /// Sigstore bundles, each called by the referrer that holds it.
    pub bundles: Vec<Examined>,
    /// Older signatures of cosign, each called by its payload.
    pub simple: Vec<Examined>,
    /// Statements that there were too many of.
    pub left_out: usize,
}

impl Signed {
    /// A manifest to which nothing is attached.
    pub fn of(subject: Digest) -> Signed {
        Signed {
            subject,
            bundles: Vec::new(),
            simple: Vec::new(),
            left_out: 0,
        }
    }

    /// Whether a statement was not looked into: there are too many, or it is too large.
    pub fn has_unread(&self) -> bool {
        self.left_out > 0 || self.bundles.iter().any(|bundle| bundle.is_left_out)
    }

    /// The statements of a signer with one of these predicates, each with what the ledger keeps of
    /// it.
    pub fn statements_of(&self, signer: &Signer, predicates: &[&str]) -> Vec<(Digest, Value)> {
        let verified = self.bundles.iter().filter_map(|bundle| {
            let verified = bundle.result(signer).ok()?;
            let predicate = verified.predicate.as_deref()?;
            let is_asked = predicates.contains(&predicate);
            is_asked.then(|| {
                (
                    bundle.statement,
                    evidence(self, &bundle.statement, verified),
                )
            })
        });
        verified.collect()
    }
}

/// A statement, with all of its bytes.
#[derive(Clone, Debug)]
pub enum Statement {
    /// A Sigstore bundle.
    Bundle(Bytes),
    /// An older signature of cosign.
    Simple(SimpleSignature),
}

/// A statement as each signer verified it.
#[derive(Clone, Debug)]
pub struct Examined {
    /// What it is called by.
    pub statement: Digest,
    /// The signers.
    pub by: Arc<[Signer]>,
    /// What each of them came to, in their order.
    results: Arc<[Result<Verified, String>]>,
    /// Whether it was not looked into.
    is_left_out: bool,
}

impl Examined {
    /// Verifies a statement about a subject by each signer.
    pub fn by(
        signers: &Arc<[Signer]>,
        called: Digest,
        statement: &Statement,
        subject: &Digest,
    ) -> Examined {
        let results = signers.iter().map(|signer| match statement {
            Statement::Bundle(bundle) => verify_bundle(bundle, subject, signer),
            Statement::Simple(signature) => verify_simple(signature, subject, signer),
        });
        Examined {
            statement: called,
            by: signers.clone(),
            results: results.collect(),
            is_left_out: false,
        }
    }

    /// A statement that is not looked into.
    pub fn left_out(called: Digest, signers: &Arc<[Signer]>, why: &str) -> Examined {
        Examined {
            statement: called,
            by: signers.clone(),
            results: signers.iter().map(|_| Err(why.to_owned())).collect(),
            is_left_out: true,
        }
    }

    /// Whether a signer verified it.
    pub fn has_verified(&self) -> bool {
        self.results.iter().any(Result::is_ok)
    }

    /// What a signer came to.
    fn result(&self, signer: &Signer) -> Result<&Verified, String> {
        let position = self.by.iter().position(|by| by == signer);
        match position.map(|position| &self.results[position]) {
            Some(Ok(verified)) => Ok(verified),
            Some(Err(reason)) => Err(reason.clone()),
            None => Err("it was not examined by this signer".into()),
        }
    }
}

/// What is attached to an image and to its platforms.
#[derive(Clone, Debug)]
pub struct SignedImage {
    /// To the image.
    pub image: Signed,
    /// To the manifest of each platform; of an image that is no index, to that.
    pub platforms: Vec<Signed>,
}

impl SignedImage {
    /// What was left out, for the end of a reason.
    fn left_out(&self) -> String {
        let signed = self.platforms.iter().chain([&self.image]);
        match signed.map(|signed| signed.left_out).sum::<usize>() {
            0 => String::new(),
            count => format!(" ({count} statements were left out: there are too many)"),
        }
    }

    /// What must be signed.
    pub fn subjects(&self, on: Subject) -> &[Signed] {
        match on {
            Subject::Image => std::slice::from_ref(&self.image),
            Subject::Platforms => &self.platforms,
        }
    }
}

/// Statements that did not count, for people.
#[derive(Default)]
struct Rejected(Vec<Value>);

impl Rejected {
    fn add(&mut self, statement: &Digest, reason: String) {
        let rejected = json!({"statement": statement, "reason": reason});
        if self.0.len() < MOST_NAMED && !self.0.contains(&rejected) {
            self.0.push(rejected);
        }
    }
}

/// The verdict on signatures: one of the signers has signed.
pub fn judge_signature(trusted: &[Trusted], signed: &SignedImage) -> Judgement {
    let gate = GateKind::Signature;
    let mut rejected = Rejected::default();
    for trusted in trusted {
        let subjects = signed.subjects(trusted.on);
        let signatures: Option<Vec<Value>> = subjects
            .iter()
            .map(|subject| signature_of(subject, &trusted.signer, &mut rejected))
            .collect();
        if let Some(signatures) = signatures.filter(|signatures| !signatures.is_empty()) {
            let reason = format!("signed by {}", trusted.signer);
            return Judgement::pass(gate, reason, json!({"signatures": signatures}));
        }
    }
    let signers: Vec<String> = trusted
        .iter()
        .map(|trusted| trusted.signer.to_string())
        .collect();
    let reason = format!("no signature by {}", signers.join(" or ")) + &signed.left_out();
    let evidence = json!({"rejected": rejected.0});
    Judgement::wait(gate, reason, evidence, NextJudgement::Poll)
}

/// The verdict on attestations: all of them are there.
pub fn judge_attestation(required: &[Attestation], signed: &SignedImage) -> Judgement {
    let gate = GateKind::Attestation;
    let mut rejected = Rejected::default();
    let mut found = Vec::new();
    for attestation in required {
        let Attestation { predicate, trusted } = attestation;
        let subjects = signed.subjects(trusted.on);
        let statements: Option<Vec<Value>> = subjects
            .iter()
            .map(|subject| statement_of(subject, &trusted.signer, predicate, &mut rejected))
            .collect();
        match statements.filter(|statements| !statements.is_empty()) {
            Some(statements) => found.extend(statements),
            None => {
                let reason = format!("no attestation of {predicate} by {}", trusted.signer);
                let reason = reason + &signed.left_out();
                let evidence = json!({"attestations": found, "rejected": rejected.0});
                return Judgement::wait(gate, reason, evidence, NextJudgement::Poll);
            }
        }
    }
    let predicates: Vec<&str> = required
        .iter()
        .map(|attestation| attestation.predicate.as_str())
        .collect();
    let reason = format!("attested: {}", predicates.join(", "));
    Judgement::pass(gate, reason, json!({"attestations": found}))
}

/// The first signature of a signer.
fn signature_of(signed: &Signed, signer: &Signer, rejected: &mut Rejected) -> Option<Value> {
    for bundle in &signed.bundles {
        match bundle.result(signer) {
            Ok(verified) if is_signature(verified) => {
                return Some(evidence(signed, &bundle.statement, verified));
            }
            Ok(verified) => {
                let predicate = verified.predicate.as_deref().unwrap_or_default();
                rejected.add(&bundle.statement, format!("its predicate is {predicate}"));
            }
            Err(reason) => rejected.add(&bundle.statement, reason),
        }
    }
    for signature in &signed.simple {
        match signature.result(signer) {
            Ok(verified) => return Some(evidence(signed, &signature.statement, verified)),
            Err(reason) => rejected.add(&signature.statement, reason),
        }
    }
    None
}

fn is_signature(verified: &Verified) -> bool {
    let predicate = verified.predicate.as_deref();
    predicate.is_none_or(|predicate| predicate == COSIGN_SIGN)
}

/// The first statement of a signer with this predicate.
fn statement_of(
    signed: &Signed,
    signer: &Signer,
    predicate: &str,
    rejected: &mut Rejected,
) -> Option<Value> {
    for bundle in &signed.bundles {
        match bundle.result(signer) {
            Ok(verified) if verified.predicate.as_deref() == Some(predicate) => {
                return Some(evidence(signed, &bundle.statement, verified));
            }
            Ok(_) => {}
            Err(reason) => rejected.add(&bundle.statement, reason),
        }
    }
    None
}

fn evidence(signed: &Signed, statement: &Digest, verified: &Verified) -> Value {
    let mut evidence = verified.evidence();
    evidence["subject"] = json!(signed.subject);
    evidence["statement"] = json!(statement);
    evidence
}
