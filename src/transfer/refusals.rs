//! Refusals: what a destination has refused for good is not sent there again for nothing.
//!
//! A blob that came corrupt twice, one that the registry does not take (quota, size, rights), and a manifest that it refuses
//! are remembered with their cause. The other jobs of the same look, and routine looks, then fail with that cause and move no
//! byte. It is tried again when something changed: another digest, a request by a person or an event, a new process or config,
//! or after a long time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::clock;
use crate::endpoint::Origin;
use crate::fault::{Class, Fault, clip};
use crate::job::Cause;
use crate::oci::{Digest, RepositoryName, Tag};

/// Most refusals that are remembered.
const MOST: usize = 10_000;
/// Longest cause that is kept, in characters.
const LONGEST: usize = 600;
/// After so long a refusal is tried again.
const LONG: Duration = Duration::from_secs(3600);
/// After so long a missing right is tried again: it may be given without a sign.
const LONG_FOR_RIGHTS: Duration = Duration::from_secs(300);

/// What was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) origin: Origin,
    pub(super) repository: RepositoryName,
    pub(super) digest: Digest,
    /// The tag under which a manifest was to be written.
    pub(super) tag: Option<Tag>,
    /// Where content came from that was corrupt: elsewhere it may be whole.
    pub(super) source: Option<(Origin, RepositoryName)>,
}

/// All refusals. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Arc<Mutex<HashMap<Subject, Refusal>>>);

#[derive(Clone, Debug)]
struct Refusal {
    class: Class,
    text: String,
    at: Instant,
    /// The same on the clock of looks.
    noted: Timestamp,
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
                noted: clock::now(),
            };
            refusals.insert(subject, refusal);
        }
    }

    /// It was taken after all.
    pub(super) fn forget(&self, subject: &Subject) {
        self.lock().remove(subject);
    }

    /// The refusal that still holds for a job of this cause, whose look began then.
    pub(super) fn held(
        &self,
        subject: &Subject,
        cause: Cause,
        look_began: Timestamp,
    ) -> Option<Fault> {
        let refusal = self
            .lock()
            .get(subject)
            .filter(|refusal| refusal.lasts())
            .cloned()?;
        if !is_routine(cause) && refusal.noted < look_began {
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

/// Whether looks of this cause come again and again without a sign that anything changed.
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
        refusals.held(&subject(content), cause, Timestamp::MAX)
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
            let same_look = refusals.held(&subject("a"), asked, Timestamp::UNIX_EPOCH);
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
