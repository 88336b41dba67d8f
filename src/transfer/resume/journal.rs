//! The journal of an upload in the index.

use super::UploadState;
use crate::endpoint::{Destination, Source, Upload};
use crate::index::StoredUpload;
use crate::oci::{Descriptor, Hasher};
use crate::transfer::Promotion;
use crate::transfer::verify::Checkpoint;

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// The upload that an earlier attempt or process left.
    pub(in crate::transfer) async fn stored_upload(
        &self,
        blob: &Descriptor,
    ) -> Option<StoredUpload> {
        if !self.is_journalled(blob) {
            return None;
        }
        self.engine
            .index
            .upload(&self.destination.id(), &blob.digest)
            .await
    }

    pub(in crate::transfer) async fn journal_opening(
        &self,
        blob: &Descriptor,
        state: &UploadState,
    ) {
        if self.is_journalled(blob) && state.checkpoints.is_empty() {
            self.engine
                .index
                .open_upload(
                    &self.destination.id(),
                    &blob.digest,
                    blob.size,
                    &state.upload.location,
                )
                .await;
        }
    }

    pub(in crate::transfer) async fn journal_checkpoint(
        &self,
        blob: &Descriptor,
        checkpoint: &Checkpoint,
    ) {
        if self.is_journalled(blob) {
            self.engine
                .index
                .checkpoint(
                    &self.destination.id(),
                    &blob.digest,
                    checkpoint.offset,
                    checkpoint.hasher.save(),
                )
                .await;
        }
    }

    /// Records that the closing request follows: its answer may be lost, so a resumption first asks
    /// for the blob.
    pub(in crate::transfer) async fn journal_finishing(&self, blob: &Descriptor) {
        if self.is_journalled(blob) {
            self.engine
                .index
                .finishing(&self.destination.id(), &blob.digest)
                .await;
        }
    }
}

/// The upload by its journal. How many bytes it holds is the registry's to say.
pub(super) fn restored(blob: &Descriptor, stored: StoredUpload) -> UploadState {
    let algorithm = blob.digest.algorithm();
    let checkpoints = stored.checkpoints.into_iter().filter_map(|checkpoint| {
        Some(Checkpoint {
            offset: checkpoint.offset,
            hasher: Hasher::restore(algorithm, &checkpoint.state)?,
        })
    });
    UploadState {
        checkpoints: checkpoints.collect(),
        taken_up: true,
        ..UploadState::fresh(Upload {
            location: stored.location,
        })
    }
}
