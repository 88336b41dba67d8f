//! Tags that a destination answers for although its list, which may lag, lacks them.
//!
//! A hint may be behind the deletion of a tag that a list lacks, so such a tag is asked about. Once
//! it has answered, hints about it count as about any other, until a list shows it again. A list
//! without any tag is said once, since each of its tags has cost a question.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Engine;
use crate::endpoint::{RepositoryId, Source};
use crate::oci::Tag;

/// Most tags that are kept. A further one is asked about by each look.
const KEPT: usize = 100_000;

/// What lists lack. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct UnlistedTags(Arc<Mutex<Unlisted>>);

#[derive(Debug, Default)]
struct Unlisted {
    tags: HashMap<RepositoryId, HashSet<Tag>>,
    /// Repositories with an empty list.
    empty: HashSet<RepositoryId>,
}

impl Unlisted {
    fn has(&self, repository: &RepositoryId, tag: &Tag) -> bool {
        let tags = self.tags.get(repository);
        tags.is_some_and(|tags| tags.contains(tag))
    }

    fn count(&self) -> usize {
        self.tags.values().map(HashSet::len).sum()
    }

    /// Keeps the tags of a repository for which this holds.
    fn retain(&mut self, repository: &RepositoryId, holds: impl Fn(&Tag) -> bool) {
        if let Some(tags) = self.tags.get_mut(repository) {
            tags.retain(holds);
            if tags.is_empty() {
                self.tags.remove(repository);
            }
        }
    }
}

impl UnlistedTags {
    fn lock(&self) -> MutexGuard<'_, Unlisted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// The tag is there, and the list lacks it.
    pub(crate) fn note_unlisted(&self, repository: RepositoryId, tag: &Tag) {
        let mut unlisted = self.unlisted.lock();
        if !unlisted.has(&repository, tag) && unlisted.count() < KEPT {
            let tags = unlisted.tags.entry(repository).or_default();
            tags.insert(tag.clone());
        }
    }

    /// The tag is gone.
    pub(crate) fn forget_unlisted(&self, repository: &RepositoryId, tag: &Tag) {
        self.unlisted.lock().retain(repository, |kept| kept != tag);
    }

    /// The list shows some tags again.
    pub(crate) fn forget_listed(
        &self,
        repository: &RepositoryId,
        is_listed: impl Fn(&Tag) -> bool,
    ) {
        let mut unlisted = self.unlisted.lock();
        unlisted.retain(repository, |tag| !is_listed(tag));
    }

    /// Whether the tag has answered since the list lacks it.
    pub(crate) fn is_unlisted(&self, repository: &RepositoryId, tag: &Tag) -> bool {
        self.unlisted.lock().has(repository, tag)
    }

    /// A list came. `known`: how many tags the ledger knows there, where it shows none. The first such
    /// list is said.
    pub(crate) fn note_list<R: Source>(&self, repository: &R, known: usize) {
        let mut unlisted = self.unlisted.lock();
        if known == 0 {
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
