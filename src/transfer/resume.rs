//! Going on: where an upload stands, found out after a cut or after a dead process, and taken up from there.
//!
//! The registry's offset is believed only when two readings apart in time agree (bytes of a dead connection may still
//! arrive) and when it is not beyond what was sent. The greatest checkpoint at or below it gives the hasher; the bytes between
//! are read and hashed again but not sent. Everything else starts over with a new session.

use std::collections::VecDeque;
use std::time::Duration;

use super::Trip;
use super::limits::Traffic;
use super::retry::stoppable;
use super::verify::Checkpoint;
use crate::endpoint::{Begin, Destination, Offset, Resume, Source, Upload};
use crate::fault::Fault;
use crate::index::StoredUpload;
use crate::job::BlobOutcome;
use crate::oci::{Descriptor, Hasher};

/// Time between two readings of a session's offset.
const APART: Duration = Duration::from_millis(300);
/// Readings that may differ before the session is given up.
const READINGS: usize = 20;

/// Where an upload stands.
pub(super) struct Standing {
    /// The session.
    pub(super) upload: Upload,
    /// Bytes that it holds.
    pub(super) offset: u64,
    /// From where hashing can go on, in rising order.
    pub(super) checkpoints: VecDeque<Checkpoint>,
    /// Bytes handed to the last request, counted from the start.
    pub(super) passed: u64,
    /// Whether it was the source that ended the last attempt.
    pub(super) source_failed: bool,
    /// Whether bytes of an earlier attempt were kept.
    pub(super) resumed: bool,
}

impl Standing {
    /// A new session.
    pub(super) fn fresh(upload: Upload) -> Standing {
        Standing { upload, offset: 0, checkpoints: VecDeque::new(), passed: 0, source_failed: false, resumed: false }
    }

    /// The checkpoint from which the fewest bytes are hashed again.
    pub(super) fn greatest_checkpoint(&self, blob: &Descriptor) -> Checkpoint {
        let fits = |checkpoint: &&Checkpoint| checkpoint.offset <= self.offset;
        let start = || Checkpoint { offset: 0, hasher: Hasher::new(blob.digest.algorithm()) };
        self.checkpoints.iter().filter(fits).max_by_key(|checkpoint| checkpoint.offset).cloned().unwrap_or_else(start)
    }

    /// The same session with `offset` bytes in it; checkpoints beyond are forgotten.
    fn at(mut self, offset: u64) -> Standing {
        self.checkpoints.retain(|checkpoint| checkpoint.offset <= offset);
        Standing { offset, resumed: offset > 0, source_failed: false, ..self }
    }
}

impl<S: Source, D: Destination> Trip<'_, S, D> {
    /// After a cut: goes on in the session where it stands, or in a new one. `None`: the blob is there, the cut came after
    /// the registry had closed the session.
    pub(super) async fn go_on(&self, blob: &Descriptor, mut standing: Standing) -> Result<Option<Standing>, Fault> {
        if standing.passed >= blob.size && self.is_there(blob).await? {
            return Ok(None);
        }
        match self.true_offset(&mut standing.upload).await? {
            Some(offset) if offset <= standing.passed && offset > 0 => {
                self.engine.metrics.resumed(offset);
                Ok(Some(standing.at(offset)))
            }
            _ => self.start_over(blob, standing).await.map(Some),
        }
    }

    /// Gives the session up and opens a new one.
    pub(super) async fn start_over(&self, blob: &Descriptor, standing: Standing) -> Result<Standing, Fault> {
        self.drop_upload(blob, standing.upload).await;
        match self.open_upload(blob, None).await? {
            Begin::Session(upload) => {
                let fresh = Standing::fresh(upload);
                self.journal_opening(blob, &fresh).await;
                Ok(fresh)
            }
            Begin::Mounted => Err(Fault::retryable(format!("{} mounts what it was not offered", self.destination.registry()))),
        }
    }

    /// Cancels a session; that a registry does not allow it is not worth telling.
    pub(super) async fn drop_upload(&self, blob: &Descriptor, upload: Upload) {
        self.engine.index.close_upload(self.destination.origin(), self.destination.repository(), &blob.digest).await;
        if let Err(fault) = self.destination.cancel_upload(upload).await {
            tracing::debug!(destination = %self.destination.address(), error = %fault.chain(), "an upload session could not be cancelled");
        }
    }

    /// The upload that an earlier process left, if it can be gone on with.
    pub(super) async fn standing_upload(&self, blob: &Descriptor) -> Result<Option<StoredUpload>, Fault> {
        if !self.is_journalled(blob) {
            return Ok(None);
        }
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        let stored = self.engine.index.upload(origin, repository, &blob.digest).await;
        let Some(stored) = stored else { return Ok(None) };
        let usable = stored.size == blob.size && self.destination.abilities().resume == Resume::Status;
        if !usable {
            self.engine.index.close_upload(origin, repository, &blob.digest).await;
        }
        Ok(usable.then_some(stored))
    }

    /// Goes on with the upload of an earlier process.
    pub(super) async fn take_up(&self, blob: &Descriptor, stored: StoredUpload) -> Result<BlobOutcome, Fault> {
        if stored.finishing && self.is_there(blob).await? {
            self.engine.index.close_upload(self.destination.origin(), self.destination.repository(), &blob.digest).await;
            return Ok(BlobOutcome::Copied { resumed: true });
        }
        let algorithm = blob.digest.algorithm();
        let restore = |checkpoint: crate::index::Checkpoint| {
            Some(Checkpoint { offset: checkpoint.offset, hasher: Hasher::restore(algorithm, &checkpoint.state)? })
        };
        let mut standing = Standing::fresh(Upload { location: stored.location, chunk_min: None });
        standing.checkpoints = stored.checkpoints.into_iter().filter_map(restore).collect();
        let standing = match self.true_offset(&mut standing.upload).await {
            Ok(Some(offset)) if offset > 0 && offset <= blob.size => {
                self.engine.metrics.resumed(offset);
                tracing::info!(destination = %self.destination.address(), blob = %blob.digest, offset, size = blob.size, "going on with an upload of before");
                standing.at(offset)
            }
            _ => self.start_over(blob, standing).await?,
        };
        self.send(blob, standing).await
    }

    async fn is_there(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let digest = blob.digest;
        let presence =
            self.ask_destination(Traffic::Blobs, |destination| async move { destination.has_blob(&digest).await }).await?;
        let there = matches!(presence, crate::endpoint::Presence::Present { size } if size.is_none_or(|size| size == blob.size));
        if there {
            self.remember_blob(blob).await;
        }
        Ok(there)
    }

    /// The offset on which two readings apart in time agree. `None`: there is none to go on from.
    async fn true_offset(&self, upload: &mut Upload) -> Result<Option<u64>, Fault> {
        if self.destination.abilities().resume != Resume::Status {
            return Ok(None);
        }
        let mut last = None;
        for _ in 0..READINGS {
            match self.read_offset(upload).await? {
                Offset::At(offset) if last == Some(offset) => return Ok(Some(offset)),
                Offset::At(offset) => last = Some(offset),
                Offset::Gone | Offset::Unknown => return Ok(None),
            }
            stoppable(&self.stop.drain, tokio::time::sleep(APART)).await?;
        }
        Ok(None)
    }

    async fn read_offset(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        let read = |destination: D| {
            let mut upload = upload.clone();
            async move { destination.upload_offset(&mut upload).await.map(|offset| (offset, upload)) }
        };
        let (offset, newer) = self.ask_destination(Traffic::Uploads, read).await?;
        *upload = newer;
        Ok(offset)
    }

    pub(super) async fn journal_opening(&self, blob: &Descriptor, standing: &Standing) {
        if self.is_journalled(blob) && standing.checkpoints.is_empty() {
            let (origin, repository) = (self.destination.origin(), self.destination.repository());
            self.engine.index.open_upload(origin, repository, &blob.digest, blob.size, &standing.upload.location).await;
        }
    }

    pub(super) async fn journal_checkpoint(&self, blob: &Descriptor, checkpoint: &Checkpoint) {
        if self.is_journalled(blob) {
            let (origin, repository) = (self.destination.origin(), self.destination.repository());
            self.engine.index.checkpoint(origin, repository, &blob.digest, checkpoint.offset, checkpoint.hasher.save(), None).await;
        }
    }

    pub(super) async fn journal_location(&self, blob: &Descriptor, upload: &Upload) {
        if self.is_journalled(blob) {
            let (origin, repository) = (self.destination.origin(), self.destination.repository());
            self.engine.index.update_location(origin, repository, &blob.digest, &upload.location).await;
        }
    }

    /// After this the answer to the closing request may be lost: whoever goes on asks for the blob first.
    pub(super) async fn journal_finishing(&self, blob: &Descriptor) {
        if self.is_journalled(blob) {
            self.engine.index.finishing(self.destination.origin(), self.destination.repository(), &blob.digest).await;
        }
    }
}
