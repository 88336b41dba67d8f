//! The walk down an image, with its bounds.

use std::collections::{HashMap, HashSet};

use crate::fault::Fault;
use crate::oci::{Descriptor, Digest, Manifest};

/// Most manifests of one image.
pub(super) const MANIFESTS: usize = 10_000;

/// Most bytes of manifests of one image.
pub(super) const BYTES: usize = 32 * 1024 * 1024;

/// The content found so far.
pub(super) struct Walk {
    pub(super) blobs: Vec<Descriptor>,
    pub(super) subjects: Vec<Digest>,
    pub(super) bytes: usize,
    pub(super) seen: HashSet<Digest>,
    pub(super) sizes: HashMap<Digest, u64>,
}

impl Walk {
    pub(super) fn new(top: &Manifest) -> Walk {
        let seen = HashSet::from([top.digest]);
        Walk {
            blobs: Vec::new(),
            subjects: vec![top.digest],
            bytes: 0,
            seen,
            sizes: HashMap::new(),
        }
    }

    /// Adds the content of a manifest. Returns the new children to check.
    pub(super) fn add(&mut self, manifest: &Manifest) -> Result<Vec<Descriptor>, Fault> {
        self.bytes += manifest.bytes.len();
        if self.bytes > BYTES || self.seen.len() > MANIFESTS {
            return Err(Fault::rejected(format!(
                "it has more than {MANIFESTS} manifests or {} MiB of them",
                BYTES / 1024 / 1024
            )));
        }
        for blob in &manifest.blobs {
            self.add_blob(blob);
        }
        let new: Vec<_> = manifest
            .children
            .iter()
            .filter(|child| self.seen.insert(child.digest))
            .cloned()
            .collect();
        self.subjects.extend(
            new.iter()
                .filter(|child| !child.media_type.is_surely_blob())
                .map(|child| child.digest),
        );
        Ok(new)
    }

    /// Adds a blob once. A second size is kept too, so that the false one is detected. Foreign
    /// layers are left out: they are copied only if the destination refuses the manifest without
    /// them.
    pub(super) fn add_blob(&mut self, blob: &Descriptor) {
        if self.sizes.insert(blob.digest, blob.size) == Some(blob.size) {
            return;
        }
        if !blob.media_type.is_foreign_layer() {
            self.blobs.push(blob.clone());
        }
    }
}
