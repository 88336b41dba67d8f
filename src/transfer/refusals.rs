//! Refusals: content that a destination refused permanently is not sent again without a reason.
//!
//! Remembered with their cause are: a blob that was corrupt twice, a blob that the registry does
//! not take (quota, size, rights), and a manifest that it refuses. Other jobs of the same look and
//! looks without news then fail with that cause and move no byte. A retry follows another digest,
//! an explicit request, an event, a new process or config, or a long time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::{Origin, RepositoryId};
use crate::fault::{Class, Fault, clip};
use crate::job::TagId;
use crate::oci::{Digest, RepositoryName, Tag};

/// Most refusals that are remembered.
const MOST: usize = 10_000;
/// Longest cause that is kept, in characters.
const LONGEST: usize = 600;
/// After this time a refusal is tried again.
const LONG: Duration = Duration::from_secs(3600);
/// After this time a missing right is tried again: rights may be granted without a sign.
const LONG_FOR_RIGHTS: Duration = Duration::from_secs(300);

/// The refused content and its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) origin: Origin,
    pub(super) repository: RepositoryName,
    pub(super) digest: Digest,
    /// The tag under which a manifest was to be written.
    pub(super) tag: Option<Tag>,
    /// The source of corrupt content: another source may be intact.
    pub(super) source: Option<RepositoryId>,
}

impl Subject {
    /// A manifest that a tag was to name.
    pub(super) fn of_name(place: &TagId, digest: Digest) -> Subject {
        Subject {
            origin: place.origin.clone(),
            repository: place.repository.clone(),
            digest,
            tag: Some(place.tag.clone()),
            source: None,
        }
    }
}

/// All refusals. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Arc<Mutex<HashMap<Subject, Refusal>>>);

#[derive(Clone, Debug)]
struct Refusal {
    class: Class,
    text: String,
    at: Instant,
}

impl Refusal {
    fn lasts(&self) -> bool {
        self.at.elapsed()
            < if self.class == Class::Auth {
                LONG_FOR_RIGHTS
            } else {
                LONG
            }
    }
}

impl Refusals {
    /// Remembers a refusal.
    pub(super) fn note(&self, subject: Subject, fault: &Fault) {
        let mut refusals = self.lock();
        if refusals.len() >= MOST {
            refusals.retain(|_, refusal| refusal.lasts());
        }
        if refusals.len() < MOST {
            let refusal = Refusal {
                class: fault.class(),
                text: clip(&fault.chain(), LONGEST),
                at: Instant::now(),
            };
            refusals.insert(subject, refusal);
        }
    }

    /// Removes a refusal: the content was accepted.
    pub(super) fn forget(&self, subject: &Subject) {
        self.lock().remove(subject);
    }

    /// The refusal that applies to a job. `news`: when there was a reason to try again.
    pub(super) fn held(&self, subject: &Subject, news: Option<Instant>) -> Option<Fault> {
        let refusal = self
            .lock()
            .get(subject)
            .filter(|refusal| refusal.lasts())
            .cloned()?;
        if news.is_some_and(|news| refusal.at < news) {
            return None;
        }
        let text = format!(
            "{} (refused before: nothing is sent again until it is asked for, or an hour has passed)",
            refusal.text
        );
        Some(Fault::new(refusal.class, text))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Subject, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(content: &str) -> Subject {
        Subject {
            origin: Origin::new("https://production.example"),
            repository: "app".parse().unwrap(),
            digest: Digest::sha256(content.as_bytes()),
            tag: None,
            source: None,
        }
    }

    /// What holds for a look without news.
    fn held(refusals: &Refusals, content: &str) -> Option<Fault> {
        refusals.held(&subject(content), None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_holds_for_routine_looks_until_something_changed() {
        let refusals = Refusals::default();
        refusals.note(subject("a"), &Fault::rejected("no space left"));
        let refusal = held(&refusals, "a").unwrap();
        assert_eq!(refusal.class(), Class::Rejected);
        assert!(
            refusal.to_string().starts_with("no space left"),
            "{refusal}"
        );
        assert!(held(&refusals, "b").is_none(), "another digest");
        let at = |seconds| Some(Instant::now() + Duration::from_secs(seconds));
        assert!(refusals.held(&subject("a"), at(1)).is_none(), "news");
        assert!(
            refusals.held(&subject("a"), at(0)).is_some(),
            "the other jobs of the look that was refused"
        );
        tokio::time::advance(LONG).await;
        assert!(held(&refusals, "a").is_none(), "a long time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_right_is_asked_about_sooner() {
        let refusals = Refusals::default();
        refusals.note(subject("a"), &Fault::new(Class::Auth, "denied"));
        assert!(held(&refusals, "a").is_some());
        tokio::time::advance(LONG_FOR_RIGHTS).await;
        assert!(held(&refusals, "a").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_is_no_longer_refused_and_memory_is_bounded() {
        let refusals = Refusals::default();
        for number in 0..MOST + 10 {
            refusals.note(subject(&number.to_string()), &Fault::rejected("no"));
        }
        assert_eq!(refusals.lock().len(), MOST);
        assert!(held(&refusals, "0").is_some(), "the old ones stay");
        refusals.forget(&subject("0"));
        assert!(held(&refusals, "0").is_none());
    }
}
