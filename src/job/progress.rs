//! How far things are: written by the engine, read by progress bars and the status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How far things are: written by the engine, read by progress bars and the status.
#[derive(Debug, Default)]
pub struct Progress {
    /// Blob bytes that are to be sent, as far as known.
    pub bytes_planned: AtomicU64,
    /// Blob bytes sent so far, repeats not included.
    pub bytes_done: AtomicU64,
    /// Jobs known so far.
    pub jobs_planned: AtomicU64,
    /// Jobs settled.
    pub jobs_done: AtomicU64,
    next: AtomicU64,
    blobs: Mutex<BTreeMap<u64, Arc<BlobProgress>>>,
}

/// How far one blob is.
#[derive(Debug)]
pub struct BlobProgress {
    /// For people: `repository` and the short digest.
    pub label: String,
    /// Length in bytes.
    pub size: u64,
    /// Bytes sent of it.
    pub done: AtomicU64,
    /// Whether the bytes are sent and the registry's word is awaited.
    pub closing: AtomicBool,
}

impl Progress {
    /// A blob starts to move; it is listed until the guard is dropped.
    pub fn start_blob(self: &Arc<Self>, label: String, size: u64) -> ActiveBlob {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let blob = Arc::new(BlobProgress {
            label,
            size,
            done: AtomicU64::new(0),
            closing: false.into(),
        });
        self.blobs
            .lock()
            .expect("no panic while listing")
            .insert(id, blob.clone());
        ActiveBlob {
            id,
            blob,
            furthest: AtomicU64::new(0),
            progress: self.clone(),
        }
    }

    /// The blobs that are moving now, oldest first, with a number that stays theirs.
    pub fn active(&self) -> Vec<(u64, Arc<BlobProgress>)> {
        self.blobs
            .lock()
            .expect("no panic while listing")
            .iter()
            .map(|(id, blob)| (*id, blob.clone()))
            .collect()
    }
}

/// A blob that is moving; dropping it ends its listing.
#[derive(Debug)]
pub struct ActiveBlob {
    id: u64,
    /// How far it is.
    pub blob: Arc<BlobProgress>,
    furthest: AtomicU64,
    progress: Arc<Progress>,
}

impl ActiveBlob {
    /// Sets how many bytes of the blob have been sent; bytes that were never sent before count in
    /// the total.
    pub fn at(&self, offset: u64) {
        self.blob.done.store(offset, Ordering::Relaxed);
        let before = self.furthest.fetch_max(offset, Ordering::Relaxed);
        self.progress
            .bytes_done
            .fetch_add(offset.saturating_sub(before), Ordering::Relaxed);
    }
}

impl Drop for ActiveBlob {
    fn drop(&mut self) {
        self.progress
            .blobs
            .lock()
            .expect("no panic while listing")
            .remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_sent_again_count_once() {
        let progress = Arc::new(Progress::default());
        let blob = progress.start_blob("app".into(), 100);
        for offset in [40, 80, 10, 60, 100] {
            blob.at(offset);
        }
        assert_eq!(
            (
                progress.bytes_done.load(Ordering::Relaxed),
                blob.blob.done.load(Ordering::Relaxed)
            ),
            (100, 100)
        );
        drop(blob);
        assert!(progress.active().is_empty());
    }
}
