//! The findings of a registry's own scanner, for the gate `scan`.
//!
//! An index is judged by the scans of its platforms: a scanner leaves the index itself out.

use std::sync::Arc;

use futures::FutureExt as _;
use tokio::time::Instant;

use super::Promotion;
use super::gates::{Judged, signers};
use super::limits::RequestClass;
use super::questions::{Answer, HOLDS};
use crate::endpoint::{Cursor, Destination, ScanAnswer, Source};
use crate::fault::Fault;
use crate::gate::question::Phase;
use crate::gate::scan::{Findings, Reading};
use crate::job::gates::Signer;
use crate::job::{GateKind, Gates, Judgement, Scan, ScanOrigin, ScanSide};
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
        let at = Instant::now();
        let judgement = match &gate.from {
            ScanOrigin::Registry(side) => self.judge_findings(gate, *side, digest).await?,
            ScanOrigin::Statement(by) => {
                let judging = self.judge_signed_scan(gate, by, signers, digest);
                judging.boxed().await?
            }
        };
        let answer = Answer { judgement, at };
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

    async fn judge_findings(
        &self,
        gate: &Scan,
        side: ScanSide,
        digest: Digest,
    ) -> Result<Judgement, Fault> {
        let mut findings = Findings::new(gate, self.time_facts(None));
        for image in self.platforms(digest).await? {
            if self.read_findings(side, image, &mut findings).await? {
                break;
            }
        }
        let since = match findings.is_pending() {
            true => self.scan_awaited(side, digest).await?,
            false => None,
        };
        Ok(findings.judge(since))
    }

    /// Reads the findings of one image. Returns whether no more are to be read.
    async fn read_findings(
        &self,
        side: ScanSide,
        image: Digest,
        findings: &mut Findings<'_>,
    ) -> Result<bool, Fault> {
        let registry = match side {
            ScanSide::Source => self.source.registry(),
            ScanSide::Destination => self.destination.registry(),
        };
        let mut cursor = None;
        loop {
            let answer = self.scan_page(side, image, cursor).await?;
            match findings.add(image, registry, answer) {
                Reading::Page(next) => cursor = Some(next),
                Reading::Image => return Ok(false),
                Reading::Done => return Ok(true),
            }
        }
    }

    async fn scan_page(
        &self,
        side: ScanSide,
        image: Digest,
        cursor: Option<Cursor>,
    ) -> Result<ScanAnswer, Fault> {
        let class = RequestClass::Listing;
        match side {
            ScanSide::Source => {
                self.ask_source(class, |source| page_of(source, image, cursor.clone()))
                    .await
            }
            ScanSide::Destination => {
                self.ask_destination(class, |there| page_of(there, image, cursor.clone()))
                    .await
            }
        }
    }

    /// When the scan was first asked for, and was not there; recorded now if it has not been,
    /// unless our clock is wrong.
    pub(super) async fn scan_awaited(
        &self,
        side: ScanSide,
        digest: Digest,
    ) -> Result<Option<jiff::Timestamp>, Fault> {
        let is_asked = self.job.is_recorded() && self.job.rollback.is_none();
        let is_recorded = is_asked && !self.time_facts(None).is_skewed();
        let ledger = &self.engine.ledger;
        let (origin, repository) = match side {
            ScanSide::Source => (self.source.origin(), self.source.repository()),
            ScanSide::Destination => (self.destination.origin(), self.destination.repository()),
        };
        ledger
            .scan_awaited(origin, repository, &digest, is_recorded)
            .await
    }
}

async fn page_of<R: Source>(
    repository: R,
    image: Digest,
    cursor: Option<Cursor>,
) -> Result<ScanAnswer, Fault> {
    repository.scan_findings(&image, cursor.as_ref()).await
}
