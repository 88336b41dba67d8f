//! The findings of a registry's own scanner, for the gate `scan`.
//!
//! An index is judged by the scans of its platforms: a scanner leaves the index itself out.

use std::sync::Arc;

use futures::FutureExt as _;
use tokio::time::Instant;

use super::Promotion;
use super::findings::{Access, FindingsReader};
use super::gates::{Judged, signers};
use super::questions::{Answer, HOLDS, Judge};
use super::retry::stoppable;
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::gate::question::Phase;
use crate::job::gates::Signer;
use crate::job::{GateKind, Gates, Scan, ScanOrigin, ScanSide};
use crate::oci::Digest;

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Judges the scan. One in production can be asked for once the content is there. Returns
    /// whether the next gate is to be judged.
    pub(super) async fn judge_scan_of(
        &self,
        gates: &Gates,
        digest: Digest,
        phase: Phase,
        judged: &mut Judged,
    ) -> Result<bool, Fault> {
        let Some(scan) = &gates.scan else {
            return Ok(true);
        };
        let is_in_production = gates.is_scanned_at(ScanSide::Destination);
        if is_in_production && self.job.dry_run {
            self.note_reason("a dry run asks for no scan in production".into());
        }
        let is_early = is_in_production && phase == Phase::Carry;
        if is_early || judged.is_overridden(GateKind::Scan) {
            return Ok(true);
        }
        let answer = self.judge_scan(scan, &signers(gates), digest).await?;
        Ok(judged.add_answer(answer))
    }

    /// Whether a scan in production is judged before the tag moves.
    pub(super) fn awaits_scan_there(&self) -> Result<bool, Fault> {
        let gates = self.gates_in_force()?;
        let mut all = gates.all();
        Ok(all.any(|gates| gates.is_scanned_at(ScanSide::Destination)))
    }

    /// The verdict on the scan of an image. A pass holds for [`HOLDS`].
    async fn judge_scan(
        &self,
        gate: &Scan,
        signers: &Arc<[Signer]>,
        digest: Digest,
    ) -> Result<Answer, Fault> {
        if let Some(passed) = self.scan_passed(gate, digest) {
            return Ok(passed);
        }
        let answer = match &gate.from {
            ScanOrigin::Registry(side) => self.judge_findings(gate, *side, digest).await?,
            ScanOrigin::Statement(by) => {
                let at = Instant::now();
                let judging = self.judge_signed_scan(gate, by, signers, digest).boxed();
                let judgement = stoppable(&self.stop.drain, judging).await??;
                Answer { judgement, at }
            }
        };
        if answer.judgement.is_pass() {
            let passed = (gate.clone(), answer.clone());
            let mut evidence = self.lock_evidence();
            evidence.scans.insert((digest, gate.side()), passed);
        }
        Ok(answer)
    }

    fn scan_passed(&self, gate: &Scan, digest: Digest) -> Option<Answer> {
        let evidence = self.lock_evidence();
        let (by, answer) = evidence.scans.get(&(digest, gate.side()))?;
        (by == gate && answer.at.elapsed() < HOLDS).then(|| answer.clone())
    }

    /// The verdict on what a registry's scanner has found. The findings are read beside the jobs:
    /// they may be many pages.
    async fn judge_findings(
        &self,
        gate: &Scan,
        side: ScanSide,
        digest: Digest,
    ) -> Result<Answer, Fault> {
        let asked = match side {
            ScanSide::Source => self.ask_scanner(&self.source, gate, digest).boxed(),
            ScanSide::Destination => self.ask_scanner(&self.destination, gate, digest).boxed(),
        };
        asked.await
    }

    async fn ask_scanner<R: Source>(
        &self,
        repository: &R,
        gate: &Scan,
        digest: Digest,
    ) -> Result<Answer, Fault> {
        let judge = Judge::Scan {
            gate: Box::new(gate.clone()),
            registry: repository.registry().into(),
            image: digest,
        };
        let id = repository.id();
        let question = format!("{} {} {digest}", id.origin, id.repository);
        let work = async {
            let images = self.platforms(digest).await?;
            let reader = FindingsReader {
                access: Access::of(self.engine, repository.origin(), self.ticket.rank()),
                repository: repository.clone(),
                stop: self.stop.clone(),
                gate: gate.clone(),
                time: self.time_facts(None),
                digest,
                images,
                is_recorded: self.records_scans(),
            };
            Ok(reader.judge().boxed())
        };
        // A dry run says what is waited for.
        let hold = self.engine.settings.retry.hold;
        let patience = match self.job.dry_run {
            true => Some(hold),
            false => self.patience(),
        };
        let key = &self.job.key;
        let questions = &self.engine.questions;
        let answer = questions.ask(&judge, question.as_bytes(), key, patience, work);
        stoppable(&self.stop.drain, answer).await?
    }

    /// Whether it is recorded when a scan is first asked for: not while our clock is wrong.
    fn records_scans(&self) -> bool {
        let is_asked = self.job.is_recorded() && self.job.rollback.is_none();
        is_asked && !self.time_facts(None).is_skewed()
    }

    /// When the signed scan was first asked for, and was not there; recorded now if it has not been.
    pub(super) async fn scan_awaited(
        &self,
        digest: Digest,
    ) -> Result<Option<jiff::Timestamp>, Fault> {
        let (origin, repository) = (self.source.origin(), self.source.repository());
        let ledger = &self.engine.ledger;
        ledger
            .scan_awaited(origin, repository, &digest, self.records_scans())
            .await
    }
}
