//! Scans that statements of a signer hold, for the gate `scan`.
//!
//! Which statements verify is known; their findings are read anew for each verdict, and not kept:
//! there may be as many as a statement has room for.

use std::sync::Arc;

use super::Promotion;
use super::retry::stoppable;
use super::signed::LARGE;
use crate::endpoint::{Destination, FindingsPage, Source};
use crate::fault::Fault;
use crate::gate::scan::{Findings, SignedScan};
use crate::gate::signature::Signed;
use crate::gate::sigstore;
use crate::gate::vulnerabilities::{self, PREDICATES};
use crate::job::gates::{Signer, Subject, Trusted};
use crate::job::{Judgement, Scan};
use crate::oci::Digest;

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// The verdict on the scans that statements about an image hold.
    pub(super) async fn judge_signed_scan(
        &self,
        gate: &Scan,
        by: &Trusted,
        signers: &Arc<[Signer]>,
        digest: Digest,
    ) -> Result<Judgement, Fault> {
        let platforms = by.on == Subject::Platforms;
        let signed = self.signed_image(digest, platforms, signers).await?;
        let mut findings = Findings::new(gate, self.time_facts(None));
        let signer = by.signer.to_string();
        for subject in signed.subjects(by.on) {
            let scans = self.scans_of(subject, &by.signer).await?;
            findings.add_signed(subject.subject, &signer, scans);
        }
        let since = match findings.is_pending() {
            true => self.scan_awaited(digest).await?,
            false => None,
        };
        Ok(findings.judge(since))
    }

    /// The scans that a signer's statements about a manifest hold.
    async fn scans_of(&self, signed: &Signed, signer: &Signer) -> Result<Vec<SignedScan>, Fault> {
        let mut scans = Vec::new();
        for (statement, evidence) in signed.statements_of(signer, &PREDICATES) {
            let page = self.scan_in(statement, signed.subject).await?;
            scans.push(SignedScan { evidence, page });
        }
        if signed.has_unread() {
            let why = "the newest scan may be among the statements that are left out";
            let page = Err(why.into());
            let evidence = serde_json::Value::Null;
            scans.push(SignedScan { evidence, page });
        }
        Ok(scans)
    }

    /// The scan in a statement that has been verified.
    async fn scan_in(
        &self,
        referrer: Digest,
        subject: Digest,
    ) -> Result<Result<FindingsPage, String>, Fault> {
        let gone = || Ok(Err(format!("statement {referrer} is not there any more")));
        let Some(found) = self.bundle_of(referrer, subject).await? else {
            return gone();
        };
        let hold = self.engine.settings.retry.hold;
        let room = self.engine.statements.room(found.blob.size, hold);
        let room = stoppable(&self.stop.drain, room).await??;
        let Some(bytes) = self.statement(&found.blob).await? else {
            return gone();
        };
        let read = move || {
            let page = sigstore::statement(&bytes).and_then(|text| vulnerabilities::read(&text));
            drop((bytes, room));
            page
        };
        if found.blob.size < LARGE {
            return Ok(read());
        }
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|_| Fault::rejected(format!("statement {referrer} could not be read")))
    }
}
