//! Going on: where an upload stands, found out after a cut or after a dead process, and taken up from there.
//!
//! Where a registry tells how much of a session it holds, that is believed only when two readings apart in time agree (bytes
//! of a dead connection may still arrive) and when it is not beyond what was sent. Where it does not, our own account of
//! acknowledged chunks counts, corrected by what a refusal says. The greatest checkpoint at or below the offset gives the
//! hasher; the bytes between are read and hashed again but not sent. Everything else starts over with a new session.
//!
//! A session is not gone on with for ever: one that is gone, that answers with an error when it is asked about, or that has
//! taken no further byte in two attempts is replaced, whatever kind of registry it is. The new session is opened first: where
//! that fails it is the registry that does not answer, and the session is kept for later.

use std::collections::VecDeque;
use std::time::Duration;

use super::Promotion;
use super::limits::Traffic;
use super::retry::stoppable;
use super::verify::Checkpoint;
use crate::endpoint::{Begin, Destination, Offset, Resume, Source, Upload};
use crate::fault::{Class, Fault};
use crate::index::StoredUpload;
use crate::job::BlobOutcome;
use crate::oci::{Descriptor, Hasher};

/// Time between two readings of a session's offset.
const APART: Duration = Duration::from_millis(300);
/// Readings that may differ before the session is given up.
const READINGS: usize = 20;

/// Where an upload stands.
pub(super) struct UploadState {
    /// The session.
    pub(super) upload: Upload,
    /// Bytes that it holds, as far as the registry has acknowledged them.
    pub(super) held: u64,
    /// The length that a refusal told.
    pub(super) reported_length: Option<u64>,
    /// From where hashing can go on, in rising order.
    pub(super) checkpoints: VecDeque<Checkpoint>,
    /// Bytes handed to the last request, counted from the start.
    pub(super) passed: u64,
    /// Whether it was the source that ended the last attempt.
    pub(super) source_failed: bool,
    /// Whether the last attempt ended because the registry asks for time, with nothing lost.
    pub(super) paused: bool,
    /// Whether bytes of an earlier attempt were kept.
    pub(super) resumed: bool,
    /// Whether another process has sent to the session, nobody knows how much.
    taken_up: bool,
    /// Whether the registry has said that the session is no more.
    pub(super) gone: bool,
    /// Bytes that the session held when the last attempt began.
    pub(super) held_before: u64,
    /// Attempts in a row after which it held no more than before.
    fruitless: u32,
}

/// Attempts without a further byte after which a session is replaced.
const FRUITLESS: u32 = 2;

impl UploadState {
    /// A new session.
    pub(super) fn fresh(upload: Upload) -> UploadState {
        UploadState {
            upload,
            held: 0,
            reported_length: None,
            checkpoints: VecDeque::new(),
            passed: 0,
            source_failed: false,
            paused: false,
            resumed: false,
            taken_up: false,
            gone: false,
            held_before: 0,
            fruitless: 0,
        }
    }

    /// The checkpoint from which the fewest bytes are hashed again.
    pub(super) fn greatest_checkpoint(&self, blob: &Descriptor) -> Checkpoint {
        let fits = |checkpoint: &&Checkpoint| checkpoint.offset <= self.held;
        let start = || Checkpoint {
            offset: 0,
            hasher: Hasher::new(blob.digest.algorithm()),
        };
        self.checkpoints
            .iter()
            .filter(fits)
            .max_by_key(|checkpoint| checkpoint.offset)
            .cloned()
            .unwrap_or_else(start)
    }

    /// The same session with `held` bytes in it; checkpoints beyond are forgotten.
    fn at(mut self, held: u64) -> UploadState {
        self.checkpoints
            .retain(|checkpoint| checkpoint.offset <= held);
        let fruitless = if held > self.held_before {
            0
        } else {
            self.fruitless
        };
        UploadState {
            held,
            fruitless,
            resumed: held > 0,
            source_failed: false,
            ..self
        }
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// After a cut: goes on in the session where it stands, or in a new one. `None`: the blob is there, the cut came after
    /// the registry had closed the session.
    pub(super) async fn go_on(
        &self,
        blob: &Descriptor,
        mut state: UploadState,
    ) -> Result<Option<UploadState>, Fault> {
        if state.passed >= blob.size && self.is_there(blob).await? {
            return Ok(None);
        }
        let most = if state.taken_up {
            blob.size
        } else {
            state.passed
        };
        let offset = if state.gone {
            None
        } else {
            self.offset_to_go_on(&mut state).await?
        };
        state.fruitless += 1;
        match offset {
            Some(held)
                if held <= most
                    && held > 0
                    && (held > state.held_before || state.fruitless < FRUITLESS) =>
            {
                self.engine.metrics.resumed(held);
                Ok(Some(state.at(held)))
            }
            _ => self.start_over(blob, state).await.map(Some),
        }
    }

    /// The offset of the session. `None` also for one that answers with an error, as a session that is broken does: whether it
    /// is the whole registry shows when a new one is opened.
    async fn offset_to_go_on(&self, state: &mut UploadState) -> Result<Option<u64>, Fault> {
        match self.true_offset(state).await {
            Err(fault)
                if matches!(
                    fault.class(),
                    Class::Retryable { after: None } | Class::Rejected | Class::NotFound
                ) =>
            {
                tracing::debug!(destination = %self.destination.address(), error = %fault.chain(), "an upload session does not tell where it stands");
                Ok(None)
            }
            offset => offset,
        }
    }

    /// Opens a new session and gives the old one up.
    pub(super) async fn start_over(
        &self,
        blob: &Descriptor,
        state: UploadState,
    ) -> Result<UploadState, Fault> {
        match self.open_upload(blob, None).await? {
            Begin::Session(upload) => {
                self.drop_upload(blob, state.upload).await;
                let fresh = UploadState::fresh(upload);
                self.journal_opening(blob, &fresh).await;
                Ok(fresh)
            }
            Begin::Mounted => Err(self.mounts_unasked()),
        }
    }

    /// Gives a session up, here and there.
    pub(super) async fn drop_upload(&self, blob: &Descriptor, upload: Upload) {
        self.engine
            .index
            .close_upload(
                self.destination.origin(),
                self.destination.repository(),
                &blob.digest,
            )
            .await;
        self.cancel(upload).await;
    }

    /// Cancels a session; that a registry does not allow it is not worth telling.
    pub(super) async fn cancel(&self, upload: Upload) {
        if let Err(fault) = self.destination.cancel_upload(upload).await {
            tracing::debug!(destination = %self.destination.address(), error = %fault.chain(), "an upload session could not be cancelled");
        }
    }

    /// The upload that an earlier attempt or process left.
    pub(super) async fn stored_upload(&self, blob: &Descriptor) -> Option<StoredUpload> {
        if !self.is_journalled(blob) {
            return None;
        }
        self.engine
            .index
            .upload(
                self.destination.origin(),
                self.destination.repository(),
                &blob.digest,
            )
            .await
    }

    /// The blob is there on another way: an upload that was left is of no use any more.
    pub(super) async fn forget_upload(&self, blob: &Descriptor, stored: Option<StoredUpload>) {
        let Some(stored) = stored else { return };
        let upload = Upload {
            location: stored.location,
            chunk_min: None,
        };
        if stored.finishing {
            // Its closing request may have been what brought the blob.
            self.engine
                .index
                .close_upload(
                    self.destination.origin(),
                    self.destination.repository(),
                    &blob.digest,
                )
                .await;
        } else {
            self.drop_upload(blob, upload).await;
        }
    }

    /// Goes on with the upload that an earlier attempt or process left, or in a new session. A registry that does not answer
    /// now leaves the upload as it is, for the next try.
    pub(super) async fn take_up(
        &self,
        blob: &Descriptor,
        stored: StoredUpload,
    ) -> Result<BlobOutcome, Fault> {
        if stored.finishing && self.is_there(blob).await? {
            self.engine
                .index
                .close_upload(
                    self.destination.origin(),
                    self.destination.repository(),
                    &blob.digest,
                )
                .await;
            return Ok(BlobOutcome::Copied { resumed: true });
        }
        let size = stored.size;
        let mut state = restored(blob, stored);
        let state = match self.offset_to_go_on(&mut state).await? {
            Some(held) if held > 0 && held <= blob.size && size == blob.size => {
                self.engine.metrics.resumed(held);
                tracing::info!(destination = %self.destination.address(), blob = %blob.digest, held, size = blob.size, "going on with an upload of before");
                state.at(held)
            }
            _ => self.start_over(blob, state).await?,
        };
        self.send(blob, state).await
    }

    async fn is_there(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let digest = blob.digest;
        let presence = self
            .ask_destination(Traffic::Blobs, |destination| async move {
                destination.has_blob(&digest).await
            })
            .await?;
        let there = matches!(presence, crate::endpoint::Presence::Present { size } if size.is_none_or(|size| size == blob.size));
        if there {
            self.remember_blob(blob).await;
        }
        Ok(there)
    }

    /// How much of the upload is there to go on from, as far as this registry's kind lets anybody know. `None`: nothing.
    async fn true_offset(&self, state: &mut UploadState) -> Result<Option<u64>, Fault> {
        match self.destination.abilities().resume {
            Resume::Status => self.settled_offset(&mut state.upload).await,
            // Our own account, unless a refusal knew better.
            Resume::Journal => Ok(Some(state.reported_length.unwrap_or(state.held))),
            Resume::Never => Ok(None),
        }
    }

    /// The offset on which two readings apart in time agree. `None`: there is none to go on from.
    async fn settled_offset(&self, upload: &mut Upload) -> Result<Option<u64>, Fault> {
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
            async move {
                destination
                    .upload_offset(&mut upload)
                    .await
                    .map(|offset| (offset, upload))
            }
        };
        let (offset, newer) = self.ask_destination(Traffic::Uploads, read).await?;
        *upload = newer;
        Ok(offset)
    }

    pub(super) async fn journal_opening(&self, blob: &Descriptor, state: &UploadState) {
        if self.is_journalled(blob) && state.checkpoints.is_empty() {
            let (origin, repository) = (self.destination.origin(), self.destination.repository());
            self.engine
                .index
                .open_upload(
                    origin,
                    repository,
                    &blob.digest,
                    blob.size,
                    &state.upload.location,
                )
                .await;
        }
    }

    pub(super) async fn journal_checkpoint(&self, blob: &Descriptor, checkpoint: &Checkpoint) {
        if self.is_journalled(blob) {
            let (origin, repository) = (self.destination.origin(), self.destination.repository());
            self.engine
                .index
                .checkpoint(
                    origin,
                    repository,
                    &blob.digest,
                    checkpoint.offset,
                    checkpoint.hasher.save(),
                    None,
                )
                .await;
        }
    }

    /// A chunk was acknowledged: the session has a new location, and the hasher's state at its end is known.
    pub(super) async fn journal_chunk(
        &self,
        blob: &Descriptor,
        upload: &Upload,
        end: Option<&Checkpoint>,
    ) {
        if !self.is_journalled(blob) {
            return;
        }
        let (index, location) = (&self.engine.index, upload.location.clone());
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        match end {
            Some(end) => {
                index
                    .checkpoint(
                        origin,
                        repository,
                        &blob.digest,
                        end.offset,
                        end.hasher.save(),
                        Some(location),
                    )
                    .await
            }
            None => {
                index
                    .update_location(origin, repository, &blob.digest, &location)
                    .await
            }
        }
    }

    /// After this the answer to the closing request may be lost: whoever goes on asks for the blob first.
    pub(super) async fn journal_finishing(&self, blob: &Descriptor) {
        if self.is_journalled(blob) {
            self.engine
                .index
                .finishing(
                    self.destination.origin(),
                    self.destination.repository(),
                    &blob.digest,
                )
                .await;
        }
    }
}

/// The upload as its journal knows it. Where only our own account counts, chunks alone are journalled: the greatest
/// checkpoint is what was acknowledged.
fn restored(blob: &Descriptor, stored: StoredUpload) -> UploadState {
    let algorithm = blob.digest.algorithm();
    let restore = |checkpoint: crate::index::Checkpoint| {
        Some(Checkpoint {
            offset: checkpoint.offset,
            hasher: Hasher::restore(algorithm, &checkpoint.state)?,
        })
    };
    let checkpoints: VecDeque<Checkpoint> =
        stored.checkpoints.into_iter().filter_map(restore).collect();
    let held = checkpoints
        .iter()
        .map(|checkpoint| checkpoint.offset)
        .max()
        .unwrap_or(0);
    UploadState {
        held,
        checkpoints,
        taken_up: true,
        ..UploadState::fresh(Upload {
            location: stored.location,
            chunk_min: None,
        })
    }
}
