//! Tags that a destination answers for although its list, which may lag, lacks them.
//!
//! A hint may be behind the deletion of a tag that a list lacks, so such a tag is asked about. Once
//! it has answered, hints about it count as about any other, until a list shows it again. A list
//! without any tag is said once, since each of its tags has cost a question.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Engine;
use crate::endpoint::{RepositoryId, Source};
use crate::job::TagId;

/// Most tags that are kept. A further one is asked about by each look.
const KEPT: usize = 100_000;

/// What lists lack. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct UnlistedTags(Arc<Mutex<Unlisted>>);

#[derive(Debug, Default)]
struct Unlisted {
    tags: HashSet<TagId>,
    /// Repositories whose list is empty.
    empty: HashSet<RepositoryId>,
}

impl UnlistedTags {
    fn lock(&self) -> MutexGuard<'_, Unlisted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// The tag is there, and the list lacks it.
    pub(crate) fn note_unlisted(&self, place: TagId) {
        let mut unlisted = self.unlisted.lock();
        if unlisted.tags.len() < KEPT {
            unlisted.tags.insert(place);
        }
    }

    /// The list shows the tag, or it is gone.
    pub(crate) fn forget_unlisted(&self, place: &TagId) {
        self.unlisted.lock().tags.remove(place);
    }

    /// Whether the tag has answered since the list lacks it.
    pub(crate) fn is_unlisted(&self, place: &TagId) -> bool {
        self.unlisted.lock().tags.contains(place)
    }

    /// A list that shows `listed` tags came, and the ledger knows `known`. The first one without any
    /// is said.
    pub(crate) fn note_list<R: Source>(&self, repository: &R, listed: usize, known: usize) {
        let mut unlisted = self.unlisted.lock();
        if listed > 0 || known == 0 {
            unlisted.empty.remove(&repository.id());
        } else if unlisted.empty.insert(repository.id()) {
            tracing::warn!(
                repository = repository.address(),
                known,
                "production lists no tags, but the ledger knows some: each is asked about"
            );
        }
    }
}
