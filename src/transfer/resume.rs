//! Resumption: finds out how much of an upload the registry holds, and continues from there.
//!
//! A registry's offset counts only if two readings apart in time agree (bytes of a dead connection
//! may still arrive) and if it is not beyond the bytes sent. The greatest checkpoint at or below the
//! offset gives the hasher; the bytes between are read and hashed but not sent. In all other cases
//! a new session starts.
//!
//! A session is replaced if it is gone, if it answers with an error when asked, or if it has taken
//! no further byte in two attempts. The new session is opened first: if that fails, the registry
//! itself is down, and the old session is kept.

mod journal;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::journal::restored;
use super::Promotion;
use super::limits::RequestClass;
use super::retry::stoppable;
use super::verify::Checkpoint;
use crate::endpoint::{Begin, Destination, Offset, Presence, Resume, Source, Upload};
use crate::fault::{Class, Fault};
use crate::index::StoredUpload;
use crate::job::BlobOutcome;
use crate::oci::{Descriptor, Hasher};

/// Time between two readings of a session's offset.
const APART: Duration = Duration::from_millis(300);
/// Readings that may differ before a session is given up.
const READINGS: usize = 20;

/// Why an attempt to send the rest of a blob ended.
pub(super) enum Cut {
    /// The source ended it.
    Source(Fault),
    /// The registry asks for time. The session stands as it was.
    Paused(Fault),
    /// The registry reported the session gone.
    Gone(Fault),
    /// A request failed; the session may hold some of its bytes.
    Lost(Fault),
}

impl Cut {
    pub(super) fn fault(&self) -> &Fault {
        match self {
            Cut::Source(fault) | Cut::Paused(fault) | Cut::Gone(fault) | Cut::Lost(fault) => fault,
        }
    }

    pub(super) fn into_fault(self) -> Fault {
        match self {
            Cut::Source(fault) | Cut::Paused(fault) | Cut::Gone(fault) | Cut::Lost(fault) => fault,
        }
    }

    pub(super) fn is_by_source(&self) -> bool {
        matches!(self, Cut::Source(_))
    }
}

impl From<Fault> for Cut {
    fn from(fault: Fault) -> Cut {
        Cut::Lost(fault)
    }
}

/// The state of an upload.
pub(super) struct UploadState {
    /// The session.
    pub(super) upload: Upload,
    /// Bytes that the registry has acknowledged.
    pub(super) held: u64,
    /// Points from which hashing can continue, in rising order.
    pub(super) checkpoints: VecDeque<Checkpoint>,
    /// Bytes handed to the last request, from the start of the blob.
    pub(super) passed: u64,
    /// Whether bytes of an earlier attempt are kept.
    pub(super) resumed: bool,
    /// Whether another process has sent an unknown number of bytes to the session.
    taken_up: bool,
    /// Whether the registry has accepted the blob before it was sent: its word for that counts no
    /// more.
    pub(super) early: bool,
    /// Whether its bytes are not those of the blob.
    pub(super) is_corrupt: bool,
    /// Whether parts of the blob may be read over further connections.
    pub(super) may_be_parted: Arc<AtomicBool>,
    /// Bytes that the session held when the last attempt began.
    pub(super) held_before: u64,
    /// Attempts in a row without a further byte.
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
            checkpoints: VecDeque::new(),
            passed: 0,
            resumed: false,
            taken_up: false,
            early: false,
            is_corrupt: false,
            may_be_parted: Arc::new(AtomicBool::new(true)),
            held_before: 0,
            fruitless: 0,
        }
    }

    /// Whether the session has no bytes that another try could go on from.
    pub(super) fn is_empty(&self) -> bool {
        self.held == 0 && self.passed == 0 && !self.taken_up
    }

    /// Bytes that the last attempt handed on.
    pub(super) fn sent(&self) -> u64 {
        self.passed.saturating_sub(self.held_before)
    }

    /// The checkpoint that leaves the fewest bytes to hash again.
    pub(super) fn greatest_checkpoint(&self, blob: &Descriptor) -> Checkpoint {
        self.checkpoints
            .iter()
            .filter(|checkpoint| checkpoint.offset <= self.held)
            .max_by_key(|checkpoint| checkpoint.offset)
            .cloned()
            .unwrap_or_else(|| Checkpoint {
                offset: 0,
                hasher: Hasher::new(blob.digest.algorithm()),
            })
    }

    /// The same session with `held` bytes; later checkpoints are dropped.
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
            ..self
        }
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Continues after a cut, in the session or in a new one. `None`: the blob is there; the cut
    /// came after the registry had closed the session.
    pub(super) async fn go_on(
        &self,
        blob: &Descriptor,
        mut state: UploadState,
        is_gone: bool,
    ) -> Result<Option<UploadState>, Fault> {
        if state.passed >= blob.size && self.is_there(blob).await? {
            return Ok(None);
        }
        let most = if state.taken_up {
            blob.size
        } else {
            state.passed
        };
        let offset = if is_gone {
            None
        } else {
            self.offset_to_go_on(&mut state.upload).await?
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

    /// The offset of the session. `None` also if it answers with an error, as a broken session
    /// does: opening a new one shows whether the whole registry is down.
    async fn offset_to_go_on(&self, upload: &mut Upload) -> Result<Option<u64>, Fault> {
        if self.destination.abilities().resume == Resume::Never {
            return Ok(None);
        }
        match self.settled_offset(upload).await {
            Err(fault)
                if matches!(
                    fault.class(),
                    Class::Retryable { after: None } | Class::Rejected | Class::NotFound
                ) =>
            {
                tracing::debug!(
                    destination = %self.destination.address(),
                    error = %fault.chain(),
                    "an upload session does not tell where it stands"
                );
                Ok(None)
            }
            offset => offset,
        }
    }

    /// Opens a new session and drops the old one. Where none can be opened, the old one is kept only
    /// if a later try can go on with it.
    pub(super) async fn start_over(
        &self,
        blob: &Descriptor,
        state: UploadState,
    ) -> Result<UploadState, Fault> {
        let opened = self.open_upload(blob, None).await;
        if opened.is_ok() || !self.can_be_taken_up(blob) || state.is_corrupt {
            self.drop_upload(blob, state.upload).await;
        }
        match opened? {
            Begin::Session(upload) => {
                let fresh = UploadState {
                    early: state.early,
                    may_be_parted: state.may_be_parted,
                    ..UploadState::fresh(upload)
                };
                self.journal_opening(blob, &fresh).await;
                Ok(fresh)
            }
            Begin::Mounted => Err(self.mounts_unasked()),
        }
    }

    /// Drops a session from the index and at the registry.
    pub(super) async fn drop_upload(&self, blob: &Descriptor, upload: Upload) {
        self.engine
            .index
            .close_upload(&self.destination.id(), &blob.digest)
            .await;
        self.cancel(upload).await;
    }

    /// Cancels a session. A refusal is only logged.
    pub(super) async fn cancel(&self, upload: Upload) {
        if let Err(fault) = self.destination.cancel_upload(upload).await {
            tracing::debug!(
                destination = %self.destination.address(),
                error = %fault.chain(),
                "an upload session could not be cancelled"
            );
        }
    }

    /// Drops an upload that is not needed: the blob is there already.
    pub(super) async fn forget_upload(&self, blob: &Descriptor, stored: Option<StoredUpload>) {
        let Some(stored) = stored else { return };
        let location = stored.location;
        if stored.finishing {
            // Its closing request may have created the blob.
            self.engine
                .index
                .close_upload(&self.destination.id(), &blob.digest)
                .await;
        } else {
            self.drop_upload(blob, Upload { location }).await;
        }
    }

    /// Continues the upload that an earlier attempt or process left, or a new one. If the registry
    /// does not answer, the upload stays for the next attempt.
    pub(super) async fn take_up(
        &self,
        blob: &Descriptor,
        stored: StoredUpload,
    ) -> Result<BlobOutcome, Fault> {
        if stored.finishing && self.is_there(blob).await? {
            self.engine
                .index
                .close_upload(&self.destination.id(), &blob.digest)
                .await;
            return Ok(BlobOutcome::Copied { resumed: true });
        }
        let size = stored.size;
        let mut state = restored(blob, stored);
        let state = match self.offset_to_go_on(&mut state.upload).await? {
            Some(held) if held > 0 && held <= blob.size && size == blob.size => {
                self.engine.metrics.resumed(held);
                tracing::info!(
                    destination = %self.destination.address(),
                    blob = %blob.digest,
                    held,
                    size = blob.size,
                    "going on with an upload of before"
                );
                state.at(held)
            }
            _ => self.start_over(blob, state).await?,
        };
        self.send(blob, state).await
    }

    pub(super) async fn is_there(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let digest = blob.digest;
        let presence = self
            .ask_destination(RequestClass::Blobs, |destination| async move {
                destination.has_blob(&digest).await
            })
            .await?;
        let there = matches!(presence, Presence::Present { size } if size.is_none_or(|size| size == blob.size));
        if there {
            self.remember_blob(blob).await;
        }
        Ok(there)
    }

    /// The offset on which two readings apart in time agree. `None`: there is none.
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
        let (offset, newer) = self
            .ask_destination(RequestClass::Uploads, |destination| {
                let mut upload = upload.clone();
                async move {
                    destination
                        .upload_offset(&mut upload)
                        .await
                        .map(|offset| (offset, upload))
                }
            })
            .await?;
        *upload = newer;
        Ok(offset)
    }
}
