//! Refusals: content that a destination refused permanently is not sent again without a reason.
//!
//! Remembered with their cause are: a blob that was corrupt twice, a blob that the registry does
//! not take (quota, size, rights), and a manifest that it refuses. Other jobs of the same look and
//! routine looks then fail with that cause and move no byte. A retry follows another digest, an
//! explicit request, an event, a new process or config, or a long time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::{Origin, RepositoryId};
use crate::fault::{Class, Fault, clip};
use crate::job::{Cause, TagId};
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

    /// The refusal that applies to a job of this cause that was asked for at that time.
    pub(super) fn held(&self, subject: &Subject, cause: Cause, asked: Instant) -> Option<Fault> {
        let refusal = self
            .lock()
            .get(subject)
            .filter(|refusal| refusal.lasts())
            .cloned()?;
        if !is_routine(cause) && refusal.at < asked {
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

/// Whether looks of this cause repeat without a sign of change.
fn is_routine(cause: Cause) -> bool {
    matches!(cause, Cause::Poll | Cause::Verify | Cause::Queue)
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

    fn held(refusals: &Refusals, content: &str, cause: Cause) -> Option<Fault> {
        let asked = Instant::now() + Duration::from_secs(1);
        refusals.held(&subject(content), cause, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_holds_for_routine_looks_until_something_changed() {
        let refusals = Refusals::default();
        refusals.note(subject("a"), &Fault::rejected("no space left"));
        let refusal = held(&refusals, "a", Cause::Poll).unwrap();
        assert_eq!(refusal.class(), Class::Rejected);
        assert!(
            refusal.to_string().starts_with("no space left"),
            "{refusal}"
        );
        assert!(
            held(&refusals, "b", Cause::Poll).is_none(),
            "another digest"
        );
        for asked in [
            Cause::Cli,
            Cause::Ping,
            Cause::Webhook,
            Cause::Signal,
            Cause::Start,
        ] {
            assert!(held(&refusals, "a", asked).is_none(), "{asked}");
            let same_look = refusals.held(&subject("a"), asked, Instant::now());
            assert!(
                same_look.is_some(),
                "{asked}: the other jobs of the look that was refused"
            );
        }
        tokio::time::advance(LONG).await;
        assert!(held(&refusals, "a", Cause::Poll).is_none(), "a long time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_right_is_asked_about_sooner() {
        let refusals = Refusals::default();
        refusals.note(subject("a"), &Fault::new(Class::Auth, "denied"));
        assert!(held(&refusals, "a", Cause::Verify).is_some());
        tokio::time::advance(LONG_FOR_RIGHTS).await;
        assert!(held(&refusals, "a", Cause::Verify).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_is_no_longer_refused_and_memory_is_bounded() {
        let refusals = Refusals::default();
        for number in 0..MOST + 10 {
            refusals.note(subject(&number.to_string()), &Fault::rejected("no"));
        }
        assert_eq!(refusals.lock().len(), MOST);
        assert!(
            held(&refusals, "0", Cause::Poll).is_some(),
            "the old ones stay"
        );
        refusals.forget(&subject("0"));
        assert!(held(&refusals, "0", Cause::Poll).is_none());
    }
}
