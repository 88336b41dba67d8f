//! Claims: who is busy with what, so that nothing is moved twice.
//!
//! A claim is taken in turn, first come, first served, and ends when its guard is dropped. Whoever holds a claim on a blob
//! of a registry never waits for another claim, and nobody waits for a claim while holding a permit: no circle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

use crate::endpoint::Origin;
use crate::oci::{Digest, RepositoryName, Tag};

/// What can be claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A blob or manifest of one repository: nobody else asks for it, mounts it or uploads it there meanwhile.
    Content(Origin, RepositoryName, Digest),
    /// The first upload of a blob to a registry: the others wait, and mount it.
    Upload(Origin, Digest),
    /// The question whether a registry lists referrers.
    Referrers(Origin),
    /// A tag that is read, changed and written.
    Tag(Origin, RepositoryName, Tag),
}

/// All claims. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    held: Arc<Mutex<HashMap<Subject, Entry>>>,
}

#[derive(Debug, Default)]
struct Entry {
    turn: Arc<tokio::sync::Mutex<()>>,
    interested: usize,
}

/// A claim that is held, or waited for; dropping it gives it up.
#[derive(Debug)]
pub struct Claim {
    // Declared first: the turn is given up before the interest is taken back.
    _guard: OwnedMutexGuard<()>,
    _interest: Interest,
}

#[derive(Debug)]
struct Interest {
    claims: Claims,
    subject: Subject,
}

impl Claims {
    /// Waits for the claim.
    pub async fn take(&self, subject: Subject) -> Claim {
        let (interest, turn) = self.register(subject);
        let guard = turn.lock_owned().await;
        Claim { _guard: guard, _interest: interest }
    }

    fn register(&self, subject: Subject) -> (Interest, Arc<tokio::sync::Mutex<()>>) {
        let mut held = self.held.lock().expect("nothing panics while it holds the claims");
        let entry = held.entry(subject.clone()).or_default();
        entry.interested += 1;
        let turn = entry.turn.clone();
        (Interest { claims: self.clone(), subject }, turn)
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut held = self.claims.held.lock().expect("nothing panics while it holds the claims");
        if let Some(entry) = held.get_mut(&self.subject) {
            entry.interested -= 1;
            if entry.interested == 0 {
                held.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left_behind() {
        let claims = Claims::default();
        let subject = || Subject::Upload(Origin::new("http://a"), Digest::sha256(b"x"));
        let first = claims.take(subject()).await;
        let mut second = tokio::spawn({
            let claims = claims.clone();
            async move { claims.take(subject()).await }
        });
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut second).is_pending());
        let given_up = claims.take(subject());
        drop(given_up);
        drop(first);
        drop(second.await.unwrap());
        assert!(claims.held.lock().unwrap().is_empty());
    }
}
