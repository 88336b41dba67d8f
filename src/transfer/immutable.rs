//! Backup tags that a registry has refused to move: what a plan says of them before the next
//! attempt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::job::TagId;
use crate::oci::Digest;

/// Most tags that are kept. Of a further one a plan says that it would move.
const KEPT: usize = 16_384;

/// The digest at which each tag was kept. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct ImmutableBackups(Arc<Mutex<HashMap<TagId, Digest>>>);

impl ImmutableBackups {
    /// The registry keeps the tag at this digest.
    pub(super) fn note(&self, place: &TagId, digest: Digest) {
        let mut tags = self.lock();
        if tags.len() < KEPT || tags.contains_key(place) {
            tags.insert(place.clone(), digest);
        }
    }

    /// The tag was written: it is not kept.
    pub(super) fn forget(&self, place: &TagId) {
        self.lock().remove(place);
    }

    /// Whether the registry kept the tag at the digest that it names now.
    pub(super) fn keeps(&self, place: &TagId, named: Option<Digest>) -> bool {
        named.is_some() && self.lock().get(place).copied() == named
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TagId, Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
