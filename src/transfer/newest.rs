//! The newest answers about tags, of staging and of production: a job does not name a tag by an
//! older answer while another look or job of the same process has a newer one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::{RepositoryId, Source};
use crate::job::TagId;
use crate::oci::{Digest, Tag};
use crate::transfer::pages::ListedTags;

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

    /// Records the digests that a list of `repository` shows, which came at `at`, for the tags that
    /// have an answer: only those may be about to be named by it.
    pub(super) fn note_listed(&self, repository: &RepositoryId, tags: &ListedTags, at: Instant) {
        let Some(first) = tags.keys().next() else {
            return;
        };
        let RepositoryId { origin, repository } = repository;
        let first = TagId {
            origin: origin.clone(),
            repository: repository.clone(),
            tag: first.clone(),
        };
        let mut answers = self.lock();
        let of_repository = answers
            .range_mut(first..)
            .take_while(|(tag, _)| tag.repository == *repository && tag.origin == *origin);
        for (tag, answer) in of_repository {
            let listed = tags.get(&tag.tag).and_then(|listed| listed.digest);
            if listed.is_some() && answer.at <= at {
                *answer = NewestAnswer { digest: listed, at };
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Origin;
    use crate::transfer::pages::ListedTag;

    fn repository(name: &str) -> RepositoryId {
        RepositoryId {
            origin: Origin::new("https://registry.example"),
            repository: name.parse().unwrap(),
        }
    }

    fn tag(repository: &str, tag: &str) -> TagId {
        TagId::of(self::repository(repository), tag.parse().unwrap())
    }

    fn list(tags: &[(&str, Option<Digest>)]) -> ListedTags {
        let listed = |digest| ListedTag {
            digest,
            pushed: None,
        };
        tags.iter()
            .map(|(tag, digest)| (tag.parse().unwrap(), listed(*digest)))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_list_overtakes_the_answers_of_its_repository() {
        let answers = NewestAnswers::default();
        let asked = Instant::now();
        let one = Digest::sha256(b"one");
        let other = Digest::sha256(b"other");
        let all = [
            "app/edge",
            "app/latest",
            "app/untold",
            "app/older",
            "apq/edge",
        ];
        let answered = |name: &str| {
            let (repository, name) = name.split_once('/').unwrap();
            tag(repository, name)
        };
        for name in all {
            let digest = Some(one);
            let answer = NewestAnswer { digest, at: asked };
            answers.lock().insert(answered(name), answer);
        }
        let later = asked + Duration::from_secs(1);
        let newer = NewestAnswer {
            digest: Some(one),
            at: later + Duration::from_secs(1),
        };
        answers.lock().insert(answered("app/older"), newer);
        let listed = list(&[
            ("edge", Some(other)),
            ("latest", Some(one)),
            ("new", Some(other)),
            ("older", Some(other)),
            ("untold", None),
        ]);
        answers.note_listed(&repository("app"), &listed, later);
        let overtaken = |name: &&&str| answers.differs_at(&answered(name), Some(one), asked);
        let overtaken: Vec<_> = all.iter().filter(overtaken).collect();
        assert_eq!(overtaken, [&"app/edge"]);
        assert_eq!(answers.lock().len(), all.len(), "a list adds no answer");
    }
}
