//! The journal of an upload in the index.

use std::collections::VecDeque;

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
            .upload(
                self.destination.origin(),
                self.destination.repository(),
                &blob.digest,
            )
            .await
    }

    pub(in crate::transfer) async fn journal_opening(
        &self,
        blob: &Descriptor,
        state: &UploadState,
    ) {
        if self.is_journalled(blob) && state.checkpoints.is_empty() {
            let origin = self.destination.origin();
            let repository = self.destination.repository();
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

    pub(in crate::transfer) async fn journal_checkpoint(
        &self,
        blob: &Descriptor,
        checkpoint: &Checkpoint,
    ) {
        if self.is_journalled(blob) {
            let origin = self.destination.origin();
            let repository = self.destination.repository();
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

    /// Records an acknowledged chunk: the session's new location, and the hasher's state at its
    /// end.
    pub(in crate::transfer) async fn journal_chunk(
        &self,
        blob: &Descriptor,
        upload: &Upload,
        end: Option<&Checkpoint>,
    ) {
        if !self.is_journalled(blob) {
            return;
        }
        let index = &self.engine.index;
        let location = upload.location.clone();
        let origin = self.destination.origin();
        let repository = self.destination.repository();
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

    /// Records that the closing request follows: its answer may be lost, so a resumption first asks
    /// for the blob.
    pub(in crate::transfer) async fn journal_finishing(&self, blob: &Descriptor) {
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

/// The upload by its journal. Where only acknowledged chunks count, no other checkpoint is
/// journalled, so the greatest one is the acknowledged length.
pub(super) fn restored(blob: &Descriptor, stored: StoredUpload) -> UploadState {
    let algorithm = blob.digest.algorithm();
    let checkpoints: VecDeque<Checkpoint> = stored
        .checkpoints
        .into_iter()
        .filter_map(|checkpoint| {
            Some(Checkpoint {
                offset: checkpoint.offset,
                hasher: Hasher::restore(algorithm, &checkpoint.state)?,
            })
        })
        .collect();
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
