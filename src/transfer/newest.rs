//! The newest answers about tags, of staging and of production: a job does not name a tag by an
//! older answer while another look or job of the same process has a newer one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::Source;
use crate::job::TagId;
use crate::oci::{Digest, Tag};

/// Most tags that are kept. Beyond that a further tag is not recorded: each job still asks by
/// itself.
const KEPT: usize = 16_384;
/// How long an answer counts: no job names a tag by an older one.
const COUNTS: Duration = Duration::from_secs(10);

/// The newest answer about each tag. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct NewestAnswers(Arc<Mutex<BTreeMap<TagId, NewestAnswer>>>);

#[derive(Clone, Copy)]
struct NewestAnswer {
    digest: Option<Digest>,
    at: Instant,
}

impl NewestAnswers {
    /// Records an answer that came at `at`.
    pub(super) fn note<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        digest: Option<Digest>,
        at: Instant,
    ) {
        let key = key(repository, tag);
        let mut answers = self.lock();
        if let Some(answer) = answers.get_mut(&key) {
            if answer.at <= at {
                *answer = NewestAnswer { digest, at };
            }
            return;
        }
        if answers.len() >= KEPT {
            answers.retain(|_, answer| answer.at + COUNTS > at);
        }
        if answers.len() < KEPT {
            answers.insert(key, NewestAnswer { digest, at });
        }
    }

    /// Whether an answer came after `at` that is not `digest`.
    pub(super) fn differs<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        digest: Option<Digest>,
        at: Instant,
    ) -> bool {
        self.differs_at(&key(repository, tag), digest, at)
    }

    /// The same of a tag that is known by its id.
    pub(super) fn differs_at(&self, tag: &TagId, digest: Option<Digest>, at: Instant) -> bool {
        self.lock()
            .get(tag)
            .is_some_and(|newest| newest.at > at && newest.digest != digest)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TagId, NewestAnswer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key<R: Source>(repository: &R, tag: &Tag) -> TagId {
    TagId::of(repository.tags_id(), tag.clone())
}
