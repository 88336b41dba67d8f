//! Verdict: gathers the facts of the gates and keeps what they came to.
//!
//! Evidence is asked of staging. A gate that cannot be asked is a failure of its registry, never a
//! pass. Directly before a tag moves only memory is read: the gates of the config in force, the
//! time of day, and how old the verdicts are.

use std::collections::BTreeMap;
use std::iter;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures::FutureExt as _;
use serde::Deserialize;
use tokio::time::Instant;

use super::Promotion;
use super::approvals::AtHand;
use super::questions::{Answer, Asked, HOLDS, Judge};
use super::retry::stoppable;
use super::survey::TagFacts;
use crate::decision::{Approvals, GateOverride};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::gate;
use crate::gate::question::{self, Phase, Question};
use crate::gate::referrers::Attached;
use crate::gate::signature;
use crate::job::gates::{Signer, Subject};
use crate::job::{Actor, GateKind, Gates, Judgement, Outcome, Scan, ScanSide, Verdict};
use crate::oci::{Digest, Manifest, MediaType};

/// A pass of a scan, and the gate that it was judged by.
type PassedScan = (Scan, Answer);

/// What was gathered for the gates of a job. Manifests do not change under their digest.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Referrers; `None`: it names another subject.
    referrers: BTreeMap<Digest, Option<Attached>>,
    /// The media types of images.
    media_types: BTreeMap<Digest, MediaType>,
    /// Statements that verified, with the gates that they verified by.
    verified: BTreeMap<(Digest, GateKind), (Arc<Gates>, Judgement)>,
    /// Scans without a finding that refuses.
    pub(super) scans: BTreeMap<(Digest, Option<ScanSide>), PassedScan>,
}

/// What the gates came to.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    gates: Arc<Gates>,
    at_hand: AtHand,
    approvals: Approvals,
    pub(super) judgements: Vec<Judgement>,
    /// When the oldest answer of a program or a service came.
    answered: Option<Instant>,
}

/// What the verdicts allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// The tag may move.
    Name,
    /// Only the time has not come: content may be carried.
    Carry,
    /// Nothing.
    Nothing,
}

impl Judged {
    /// Adds a verdict. Returns whether the next gate is to be judged.
    fn add(&mut self, judgement: Judgement) -> bool {
        let is_pass = judgement.is_pass();
        self.judgements.push(judgement);
        is_pass
    }

    /// Adds an answer. Returns whether the next gate is to be judged.
    pub(super) fn add_answer(&mut self, answer: Answer) -> bool {
        self.answered = Some(self.answered.map_or(answer.at, |at| at.min(answer.at)));
        self.add(answer.judgement)
    }

    /// Whether a person passes a gate, which is set. Then it is not asked.
    pub(super) fn is_overridden(&mut self, gate: GateKind) -> bool {
        let passed = self.approvals.override_of(gate);
        let judgement = passed.map(GateOverride::judgement);
        let is_overridden = judgement.is_some();
        self.judgements.extend(judgement);
        is_overridden
    }

    /// The principals that approve, with what they said.
    pub(super) fn agreed(&self) -> impl Iterator<Item = &Actor> {
        self.approvals.people.iter().map(|approval| &approval.by)
    }

    /// What the verdicts allow.
    pub(super) fn permission(&self) -> Permission {
        let not_passed = self.judgements.iter().filter(|judged| !judged.is_pass());
        let blocks = |judged: &Judgement| judged.gate.is_evidence();
        let mut permission = Permission::Name;
        for judged in not_passed {
            if blocks(judged) {
                return Permission::Nothing;
            }
            permission = Permission::Carry;
        }
        permission
    }

    /// The outcome of a job that may not move its tag.
    pub(super) fn outcome(&self) -> Outcome {
        let verdicts = self.judgements.iter().map(|judged| judged.verdict);
        match verdicts.max() {
            Some(Verdict::Refuse) => Outcome::Refused,
            Some(Verdict::Wait | Verdict::Pass) | None => Outcome::Waiting,
        }
    }

    /// Why the tag may not move.
    pub(super) fn reasons(&self) -> Vec<String> {
        let not_passed = self.judgements.iter().filter(|judged| !judged.is_pass());
        not_passed
            .map(|judged| format!("{}: {}", judged.gate, judged.reason))
            .collect()
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Judges the gates in force on the digest that staging names. Time comes first, since it is
    /// cheap. While only the time is missing evidence is judged too, so that content may be
    /// carried; directly before the tag it is not asked for in vain.
    pub(super) async fn judge(&self, facts: &TagFacts, phase: Phase) -> Result<Permission, Fault> {
        if self.job.rollback.is_some() {
            return Ok(Permission::Name);
        }
        self.judge_gates(facts, phase).await
    }

    /// Judges the gates of a tag that a rollback has moved, for the record: they did not stop it,
    /// and it did not wait for them.
    pub(super) async fn record_verdicts(&self, facts: &TagFacts) {
        if let Err(fault) = self.judge_gates(facts, Phase::Name).await {
            self.note_reason(format!("the gates could not be judged: {}", fault.chain()));
        }
    }

    async fn judge_gates(&self, facts: &TagFacts, phase: Phase) -> Result<Permission, Fault> {
        let gates = self.gates_in_force()?;
        let is_judged = !gates.is_empty() || self.planned_rules().forward_only;
        let Some(digest) = facts.source.filter(|_| is_judged) else {
            *self.lock_judged() = None;
            return Ok(Permission::Name);
        };
        let at_hand = self.at_hand(&gates, facts, digest).await?;
        let approvals = self.approvals(&at_hand);
        let mut judged = Judged {
            judgements: self.judge_at_hand(&gates, &at_hand, &approvals),
            at_hand,
            approvals,
            gates,
            answered: None,
        };
        let is_wanted = phase == Phase::Carry || self.job.rollback.is_some();
        if is_wanted || judged.permission() == Permission::Name {
            let evidence = self.judge_evidence(facts, digest, phase, &mut judged);
            // Boxed to keep the job's future small.
            evidence.boxed().await?;
        }
        let permission = judged.permission();
        *self.lock_judged() = Some(judged);
        Ok(permission)
    }

    /// Judges the evidence until a gate does not pass.
    async fn judge_evidence(
        &self,
        facts: &TagFacts,
        digest: Digest,
        phase: Phase,
        judged: &mut Judged,
    ) -> Result<(), Fault> {
        if self.planned_rules().forward_only && !judged.is_overridden(GateKind::ForwardOnly) {
            let answer = self.judge_versions(facts, digest, phase).await?;
            if !judged.add_answer(answer) {
                return Ok(());
            }
        }
        // What is attached to the index of a chosen manifest is attached to that.
        let subject = facts.index.unwrap_or(digest);
        let first = judged.gates.clone();
        for gates in iter::successors(Some(first), |gates| gates.beside.clone()) {
            self.judge_route(&gates, facts, digest, subject, phase, judged)
                .await?;
            if judged.permission() == Permission::Nothing {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Judges the evidence that one route asks for, the cheap gates first, until one does not pass.
    async fn judge_route(
        &self,
        gates: &Arc<Gates>,
        facts: &TagFacts,
        digest: Digest,
        subject: Digest,
        phase: Phase,
        judged: &mut Judged,
    ) -> Result<(), Fault> {
        let mut attached = None;
        if !gates.referrers.is_empty() && !judged.is_overridden(GateKind::Referrers) {
            let found = self.attached(&subject).await?;
            let judgement = gate::referrers::judge(&gates.referrers, &found);
            attached = Some(found);
            if !judged.add(judgement) {
                return Ok(());
            }
        }
        let statements: Vec<GateKind> = [GateKind::Signature, GateKind::Attestation]
            .into_iter()
            .filter(|gate| gates.has(*gate) && !judged.is_overridden(*gate))
            .collect();
        for judgement in self.judge_statements(gates, subject, &statements).await? {
            if !judged.add(judgement) {
                return Ok(());
            }
        }
        // A scanner knows manifests that can be run; a statement is about what it is attached to.
        let scanned = match gates.scan.as_ref().and_then(Scan::side) {
            Some(_) => digest,
            None => subject,
        };
        if !self.judge_scan_of(gates, scanned, phase, judged).await? {
            return Ok(());
        }
        let command = gates.command.clone().map(Asked::Command);
        let command = command.filter(|_| !judged.is_overridden(GateKind::Command));
        let http = gates.http.clone().map(Asked::Http);
        let http = http.filter(|_| !judged.is_overridden(GateKind::Http));
        if command.is_none() && http.is_none() {
            return Ok(());
        }
        if self.job.dry_run {
            self.note_reason(question::NOT_ASKED.into());
            return Ok(());
        }
        let attached = match attached {
            Some(attached) => attached,
            None => self.attached(&subject).await?,
        };
        let media_type = self.media_type(facts, digest).await?;
        let question = Question {
            schema: question::SCHEMA,
            phase,
            route: &self.job.key.route,
            source: self.source_reference(),
            destination: self.destination_reference(),
            digest,
            previous_digest: facts.destination,
            media_type: media_type.as_str(),
            referrers: &attached,
        };
        for asked in command.into_iter().chain(http) {
            let answer = self.ask_gate(asked, &question).await?;
            if !judged.add_answer(answer) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The verdicts on signatures and attestations. What verified holds while the digest and the
    /// gates are the same.
    async fn judge_statements(
        &self,
        gates: &Arc<Gates>,
        digest: Digest,
        asked: &[GateKind],
    ) -> Result<Vec<Judgement>, Fault> {
        let known = |gate: &GateKind| self.verified_before(gates, digest, *gate);
        let known: Vec<Option<Judgement>> = asked.iter().map(known).collect();
        if let Some(known) = known.into_iter().collect() {
            return Ok(known);
        }
        let trusted = gates.signature.iter();
        let trusted = trusted.chain(gates.attestation.iter().map(|one| &one.trusted));
        let platforms = trusted
            .map(|trusted| trusted.on)
            .any(|on| on == Subject::Platforms);
        let signers = signers(gates);
        let signed = self.signed_image(digest, platforms, &signers);
        let signed = stoppable(&self.stop.drain, signed).await??;
        let judgements: Vec<Judgement> = asked
            .iter()
            .map(|gate| match gate {
                GateKind::Signature => signature::judge_signature(&gates.signature, &signed),
                _ => signature::judge_attestation(&gates.attestation, &signed),
            })
            .collect();
        let mut evidence = self.lock_evidence();
        for judgement in judgements.iter().filter(|judged| judged.is_pass()) {
            let key = (digest, judgement.gate);
            let verified = (gates.clone(), judgement.clone());
            evidence.verified.insert(key, verified);
        }
        Ok(judgements)
    }

    fn verified_before(
        &self,
        gates: &Arc<Gates>,
        digest: Digest,
        gate: GateKind,
    ) -> Option<Judgement> {
        let evidence = self.lock_evidence();
        let (by, judgement) = evidence.verified.get(&(digest, gate))?;
        (by == gates).then(|| judgement.clone())
    }

    /// The answer of a program or a service. A pass for naming is one for carrying, too: a slow
    /// gate would otherwise never be asked about both in time.
    async fn ask_gate(&self, asked: Asked, question: &Question<'_>) -> Result<Answer, Fault> {
        let questions = &self.engine.questions;
        let judge = Judge::Asked(asked.clone());
        let naming = Question {
            phase: Phase::Name,
            ..question.clone()
        };
        if let Some(passed) = questions.passed(&judge, &naming.to_json()) {
            return Ok(passed);
        }
        let question = question.to_json();
        let work = async { Ok(questions.work(&asked, question.clone())) };
        let key = &self.job.key;
        let answer = questions.ask(&judge, &question, key, self.patience(), work);
        stoppable(&self.stop.drain, answer).await?
    }

    /// How long the job waits for an answer. `None`: until it is there.
    pub(super) fn patience(&self) -> Option<Duration> {
        let hold = self.engine.settings.retry.hold;
        (self.job.max_wait <= hold).then_some(hold)
    }

    /// Whether the last verdicts still let the tag move: by the config in force, the time of day,
    /// and their age. Without gates they do.
    pub(super) fn verdicts_hold(&self) -> Result<bool, Fault> {
        if self.job.rollback.is_some() {
            return Ok(true);
        }
        let gates = self.gates_in_force()?;
        let judged = self.lock_judged();
        let Some(judged) = judged.as_ref() else {
            return Ok(gates.is_empty() && !self.planned_rules().forward_only);
        };
        let is_old = judged.answered.is_some_and(|at| at.elapsed() >= HOLDS);
        if is_old || judged.gates != gates || judged.permission() != Permission::Name {
            return Ok(false);
        }
        let approvals = self.approvals(&judged.at_hand);
        let judgements = self.judge_at_hand(&gates, &judged.at_hand, &approvals);
        Ok(approvals == judged.approvals && judgements.iter().all(Judgement::is_pass))
    }

    /// The gate that has passed by one of these digests: a referrer, or a layer of it, which holds a
    /// simple signature of cosign.
    pub(super) fn gate_passed_by(
        &self,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Option<GateKind> {
        let judged = self.lock_judged();
        let passed = judged.as_ref()?.judgements.iter();
        let passed: Vec<&Judgement> = passed.filter(|judgement| judgement.is_pass()).collect();
        digests.into_iter().find_map(|digest| {
            let passed = passed.iter().find(|judgement| judgement.names(&digest));
            passed.map(|judgement| judgement.gate)
        })
    }

    /// Whether companions may be named: they follow the last verdicts on their image. What has none
    /// is in production already.
    pub(super) fn companions_may_move(&self) -> bool {
        let judged = self.lock_judged();
        judged
            .as_ref()
            .is_none_or(|judged| judged.permission() == Permission::Name)
    }

    pub(super) fn lock_judged(&self) -> MutexGuard<'_, Option<Judged>> {
        self.judged.lock().expect("nothing panics while it notes")
    }

    pub(super) fn lock_evidence(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().expect("nothing panics while it notes")
    }

    /// The media type of an image, which may have been read already.
    async fn media_type(&self, facts: &TagFacts, digest: Digest) -> Result<MediaType, Fault> {
        let read = facts.manifest.as_ref();
        if let Some(manifest) = read.filter(|manifest| manifest.digest == digest) {
            let media_type = manifest.media_type.clone();
            let known = media_type.clone();
            self.lock_evidence().media_types.insert(digest, known);
            return Ok(media_type);
        }
        if let Some(known) = self.lock_evidence().media_types.get(&digest) {
            return Ok(known.clone());
        }
        let manifest = self.source_manifest(digest.into()).await?;
        let media_type = manifest.map(|manifest| manifest.media_type);
        media_type.ok_or_else(|| {
            let address = self.source.address();
            Fault::not_found(format!(
                "{address} does not have manifest {digest} any more"
            ))
        })
    }

    /// What is attached to the image in staging. Lists have named wrong artifact types
    /// (<https://github.com/sigstore/cosign/issues/4641>), so each manifest is read, once.
    async fn attached(&self, subject: &Digest) -> Result<Vec<Attached>, Fault> {
        let mut attached = Vec::new();
        for referrer in self.list_referrers(subject).await? {
            let known = self
                .lock_evidence()
                .referrers
                .get(&referrer.digest)
                .cloned();
            let found = match known {
                Some(known) => known,
                None => self.read_referrer(subject, referrer.digest).await?,
            };
            attached.extend(found);
        }
        Ok(attached)
    }

    /// Reads a manifest that a list names as a referrer of `subject`.
    async fn read_referrer(
        &self,
        subject: &Digest,
        digest: Digest,
    ) -> Result<Option<Attached>, Fault> {
        let Some(manifest) = self.source_manifest(digest.into()).await? else {
            return Ok(None);
        };
        let named = manifest.subject.as_ref().map(|named| named.digest);
        let attached = (named == Some(*subject)).then(|| Attached {
            digest,
            artifact_type: artifact_type(&manifest),
        });
        let known = attached.clone();
        self.lock_evidence().referrers.insert(digest, known);
        Ok(attached)
    }
}

/// All signers of the gates: what is known of a statement is known by all of them.
pub(super) fn signers(gates: &Gates) -> Arc<[Signer]> {
    let trusted = gates.signature.iter();
    let trusted = trusted.chain(gates.attestation.iter().map(|one| &one.trusted));
    let trusted = trusted.chain(gates.scan.iter().filter_map(Scan::trusted));
    trusted.map(|trusted| trusted.signer.clone()).collect()
}

/// The artifact type of a referrer, else the media type of its config: image specification,
/// `manifest.md`.
fn artifact_type(manifest: &Manifest) -> String {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Document {
        artifact_type: String,
        config: Config,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Config {
        media_type: String,
    }
    let document: Document = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
    if document.artifact_type.is_empty() {
        document.config.media_type
    } else {
        document.artifact_type
    }
}
