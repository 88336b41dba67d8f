//! One blob: claim → trust a fresh hint or ask → mount, take up an upload of before or open one →
//! send → hint.
//!
//! A blob that many jobs need moves once to each registry that mounts: the first job uploads, the
//! others wait for it, or for its manifest where a mount needs one, and mount. The session that a
//! refused mount leaves is used. No permit is held while waiting for a claim or for the next try.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Promotion;
use super::claims::{Following, Leading, Subject};
use super::limits::RequestClass;
use super::refusals;
use super::resume::{Cut, UploadState};
use super::retry::stoppable;
use crate::endpoint::{Begin, Destination, Mount, Presence, RepositoryId, Resume, Source};
use crate::fault::{Class, Fault};
use crate::index::{BlobHint, StoredUpload};
use crate::job::BlobOutcome;
use crate::oci::{Descriptor, Digest, RepositoryName};

/// Holders of a blob that are looked at for one that may be offered as mount source.
const HOLDERS: usize = 8;
/// How long a job waits for another job's manifest.
const NEAR: Duration = Duration::from_secs(600);

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Makes the destination repository hold the blob.
    pub(super) async fn blob(&self, blob: &Descriptor) -> Result<(), Fault> {
        let brought = match self.is_not_denied(&blob.digest) {
            Ok(()) => self.ensure_blob(blob).await,
            Err(denied) => Err(denied),
        };
        self.settle_blob(blob, brought)
    }

    /// Counts a blob that the destination holds now. A denial is told instead.
    pub(super) fn settle_blob(
        &self,
        blob: &Descriptor,
        brought: Result<BlobOutcome, Fault>,
    ) -> Result<(), Fault> {
        self.member.settled(&blob.digest);
        let outcome = brought.map_err(|fault| self.about(blob, fault))?;
        self.count_blob(outcome, blob.size);
        Ok(())
    }

    async fn ensure_blob(&self, blob: &Descriptor) -> Result<BlobOutcome, Fault> {
        let origin = self.destination.origin();
        let content = Subject::Content(self.destination.id(), blob.digest);
        let claimant = self.claimant(&blob.digest);
        let claims = &self.engine.claims;
        let stall = &self.engine.settings.stall;
        let mut near = Instant::now() + NEAR;
        loop {
            let claim = claims.take_unless_slow(content.clone(), &claimant, stall);
            let one = stoppable(&self.stop.drain, claim).await?;
            let stored = self.stored_upload(blob).await;
            if self.is_held(blob).await? {
                self.forget_upload(blob, stored).await;
                return Ok(BlobOutcome::Present);
            }
            let mut offers = self.offers(blob).await;
            let mut turn = None;
            if offers.is_empty() && self.destination.abilities().mount == Mount::Held {
                // No repository holds it: the first job that claims the upload sends it, the others
                // wait here and mount.
                let upload = Subject::Upload(origin.clone(), blob.digest);
                let claim = claims.take_unless_slow(upload, &claimant, stall);
                turn = stoppable(&self.stop.drain, claim).await?;
                offers = self.offers(blob).await;
            }
            if let Some(from) = offers.first() {
                drop(turn);
                return self.mount(blob, from, stored).await;
            }
            let Some(leader) = self.leader(blob, near).await else {
                return self.send_all(blob, stored).await;
            };
            // A waiting job holds no permit that the leader may need.
            drop(one);
            if leader.has_other_source {
                near = near.min(Instant::now() + stall.window);
            }
            let ended = stoppable(
                &self.stop.drain,
                tokio::time::timeout_at(near, leader.ended()),
            );
            let _late = ended.await?;
        }
    }

    /// Sends it, in company where each repository needs the bytes.
    async fn send_all(
        &self,
        blob: &Descriptor,
        stored: Option<StoredUpload>,
    ) -> Result<BlobOutcome, Fault> {
        self.is_not_refused(blob)?;
        if self.destination.abilities().mount != Mount::Held {
            self.member.needs(&blob.digest);
        }
        match stored {
            Some(stored) => self.take_up(blob, stored).await,
            None => self.upload_afresh(blob).await,
        }
    }

    /// What is remembered as refused at the destination under this digest.
    pub(super) fn refusal_of(&self, digest: &Digest) -> refusals::Subject {
        refusals::Subject {
            origin: self.destination.origin().clone(),
            repository: self.destination.repository().clone(),
            digest: *digest,
            tag: None,
            source: None,
        }
    }

    /// The same of content that came corrupt from our source.
    pub(super) fn corruption_of(&self, digest: &Digest) -> refusals::Subject {
        refusals::Subject {
            source: Some(self.source.id()),
            ..self.refusal_of(digest)
        }
    }

    /// Fails where moving the blob has been refused for good and nothing has changed since.
    fn is_not_refused(&self, blob: &Descriptor) -> Result<(), Fault> {
        let refusals = &self.engine.refusals;
        [
            self.refusal_of(&blob.digest),
            self.corruption_of(&blob.digest),
        ]
        .iter()
        .find_map(|subject| refusals.held(subject, self.job.news))
        .map_or(Ok(()), Err)
    }

    /// Remembers a refusal that moving the bytes again would not change.
    /// `passed`: bytes that were sent.
    pub(super) fn note_refusal(&self, blob: &Descriptor, cut: &Cut, passed: u64) {
        if self.is_not_denied(&blob.digest).is_err() {
            return;
        }
        let subject = match (cut.fault().class(), cut.is_by_source()) {
            (Class::Corrupt, true) => self.corruption_of(&blob.digest),
            (Class::Corrupt | Class::Rejected, false) => self.refusal_of(&blob.digest),
            // Some word a quota so. A right that is missing shows before the bytes are sent.
            (Class::Auth, false) if passed > 0 => self.refusal_of(&blob.digest),
            _ => return,
        };
        self.engine.refusals.note(subject, cut.fault());
    }

    /// The job to wait for, since its manifest lets the blob be mounted. Without one, other jobs
    /// may wait for ours.
    async fn leader(&self, blob: &Descriptor, near: Instant) -> Option<Following> {
        let waits = self.destination.abilities().mount == Mount::Committed
            && blob.size >= self.engine.settings.bounds.worth_waiting;
        if !waits || Instant::now() >= near {
            return None;
        }
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        let number = *self.number.get_or_init(|| self.engine.claims.enrol());
        match self.engine.claims.lead(
            number,
            self.source.origin(),
            origin,
            repository,
            &blob.digest,
        ) {
            Leading::Ours(lead) => self
                .leads
                .lock()
                .expect("nothing panics while it holds the leads")
                .push(lead),
            Leading::Earlier(leader) if self.destination.always_mounts().await => {
                return Some(leader);
            }
            Leading::Earlier(_) | Leading::Later => {}
        }
        None
    }

    /// Sends a blob that the destination repository, or a hint, claimed to be there and that a
    /// manifest then missed. Neither hint nor HEAD is trusted any more.
    pub(super) async fn resend_blob(&self, blob: &Descriptor) -> Result<(), Fault> {
        let content = Subject::Content(self.destination.id(), blob.digest);
        let _one = stoppable(
            &self.stop.drain,
            self.engine
                .claims
                .take(content, &self.claimant(&blob.digest)),
        )
        .await?;
        self.is_not_denied(&blob.digest)?;
        self.is_not_refused(blob)?;
        let sent = match self.open_upload(blob, None).await {
            Ok(Begin::Session(upload)) => self.send(blob, UploadState::fresh(upload)).await,
            Ok(Begin::Mounted) => Err(self.mounts_unasked()),
            Err(fault) => Err(fault),
        };
        self.count_blob(sent.map_err(|fault| self.about(blob, fault))?, blob.size);
        Ok(())
    }

    /// Whether the repository holds the blob: by a fresh hint, else by a HEAD. No HEAD is sent to a
    /// repository without any known content, nor where the request that opens an upload answers the
    /// same question.
    async fn is_held(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let hint = self
            .engine
            .index
            .blob(&self.destination.id(), &blob.digest)
            .await;
        if hint.is_some_and(|hint| self.shows_held(&hint, blob)) {
            return Ok(true);
        }
        let need_not_ask = self.job.fresh || self.destination.abilities().mount_asks;
        if hint.is_none() && need_not_ask && self.job.rollback.is_none() {
            return Ok(false);
        }
        self.ask_whether_held(blob).await
    }

    /// Whether a hint is trusted to say that the repository holds the blob.
    pub(super) fn shows_held(&self, hint: &BlobHint, blob: &Descriptor) -> bool {
        self.trusts(hint.seen) && hint.size == blob.size
    }

    /// What the index knows of blobs. A rollback trusts none of it.
    pub(super) async fn blob_hints(&self, blobs: &[Descriptor]) -> HashMap<Digest, BlobHint> {
        if blobs.is_empty() || self.job.rollback.is_some() {
            return HashMap::new();
        }
        let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        let repository = self.destination.id();
        self.engine.index.blobs(&repository, &digests).await
    }

    async fn ask_whether_held(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let digest = blob.digest;
        match self
            .ask_destination(RequestClass::Blobs, |destination| async move {
                destination.has_blob(&digest).await
            })
            .await?
        {
            Presence::Present { size } => {
                self.of_size(blob, size)?;
                self.remember_blob(blob).await;
                Ok(true)
            }
            Presence::Absent => {
                self.engine
                    .index
                    .forget_blobs(&self.destination.id(), vec![digest])
                    .await;
                Ok(false)
            }
        }
    }

    /// The content is what its digest says; a manifest that names another length for it lies.
    fn of_size(&self, blob: &Descriptor, found: Option<u64>) -> Result<(), Fault> {
        match found.filter(|found| *found != blob.size) {
            None => Ok(()),
            Some(found) => {
                self.engine.metrics.mismatched(self.source.registry());
                Err(Fault::corrupt(format!(
                    "the manifest says that it has {} bytes, but it has {found}; push the image again",
                    blob.size
                )))
            }
        }
    }

    /// Repositories of the destination's registry that hold the blob and may be mounted from.
    async fn offers(&self, blob: &Descriptor) -> Vec<RepositoryName> {
        let mount = self.destination.abilities().mount;
        if mount == Mount::Off {
            return Vec::new();
        }
        let own = self.destination.repository();
        let holders = self
            .engine
            .index
            .holders(self.destination.origin(), &blob.digest, HOLDERS)
            .await;
        let usable = holders
            .into_iter()
            .filter(|holder| holder.committed || mount == Mount::Held);
        let mut offers: Vec<_> = usable
            .map(|holder| holder.repository)
            .filter(|repository| repository != own)
            .collect();
        if self.source.origin() == self.destination.origin() && self.source.repository() != own {
            offers.insert(0, self.source.repository().clone());
        }
        offers
    }

    /// Offers a mount source. A refusal leaves a session: it is used, unless an earlier process
    /// left one with bytes in it.
    async fn mount(
        &self,
        blob: &Descriptor,
        from: &RepositoryName,
        stored: Option<StoredUpload>,
    ) -> Result<BlobOutcome, Fault> {
        match (self.open_upload(blob, Some(from)).await?, stored) {
            (Begin::Mounted, stored) => {
                self.forget_upload(blob, stored).await;
                self.mounted(blob, from).await
            }
            (Begin::Session(upload), None) => {
                if let Err(fault) = self.is_not_refused(blob) {
                    self.cancel(upload).await;
                    return Err(fault);
                }
                self.send(blob, UploadState::fresh(upload)).await
            }
            (Begin::Session(upload), Some(stored)) => {
                self.cancel(upload).await;
                self.take_up(blob, stored).await
            }
        }
    }

    /// The content of a mount is what its digest says; the length is compared with what was learnt
    /// when it came here.
    async fn mounted(
        &self,
        blob: &Descriptor,
        from: &RepositoryName,
    ) -> Result<BlobOutcome, Fault> {
        let from = RepositoryId {
            repository: from.clone(),
            ..self.destination.id()
        };
        let known = self.engine.index.blob(&from, &blob.digest).await;
        if known.is_some_and(|known| known.size != blob.size)
            && !self.ask_whether_held(blob).await?
        {
            return Err(Fault::retryable("it was mounted and is gone"));
        }
        self.remember_blob(blob).await;
        Ok(BlobOutcome::Mounted)
    }

    /// Opens an upload, with the own repository as mount source where that asks whether the blob is
    /// there.
    async fn upload_afresh(&self, blob: &Descriptor) -> Result<BlobOutcome, Fault> {
        let own = self
            .destination
            .abilities()
            .mount_asks
            .then(|| self.destination.repository().clone());
        match self.open_upload(blob, own.as_ref()).await? {
            Begin::Session(upload) => self.send(blob, UploadState::fresh(upload)).await,
            Begin::Mounted if own.is_none() => Err(self.mounts_unasked()),
            // It was there, but no answer told its length.
            Begin::Mounted if self.ask_whether_held(blob).await? => Ok(BlobOutcome::Present),
            Begin::Mounted => Err(Fault::retryable("it was there and is gone")),
        }
    }

    pub(super) fn mounts_unasked(&self) -> Fault {
        Fault::retryable(format!(
            "{} mounts what it was not offered",
            self.destination.registry()
        ))
    }

    pub(super) async fn open_upload(
        &self,
        blob: &Descriptor,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        let digest = blob.digest;
        self.ask_destination(RequestClass::Uploads, |destination| {
            let from = from.cloned();
            async move {
                let _carrying = self.begin_carry(&digest)?;
                destination.begin_upload(&digest, from.as_ref()).await
            }
        })
        .await
    }

    pub(super) async fn remember_blob(&self, blob: &Descriptor) {
        self.engine
            .index
            .remember_blobs(
                &self.destination.id(),
                vec![(blob.digest, blob.size)],
                false,
            )
            .await;
    }

    pub(super) fn is_journalled(&self, blob: &Descriptor) -> bool {
        blob.size > self.engine.settings.bounds.checkpoint
    }

    /// Whether an upload of the blob that is left here can be gone on with later.
    pub(super) fn can_be_taken_up(&self, blob: &Descriptor) -> bool {
        self.is_journalled(blob) && self.destination.abilities().resume != Resume::Never
    }

    fn about(&self, blob: &Descriptor, fault: Fault) -> Fault {
        if fault.class() == Class::Cancelled {
            return fault;
        }
        let (from, to) = (self.source.registry(), self.destination.registry());
        fault.while_doing(format_args!(
            "{from} → {to}: blob {} of {}",
            blob.digest,
            self.source_reference()
        ))
    }
}
