//! What all jobs together hold of statements: room for their bytes, and what has been examined.
//!
//! A statement is read and verified with all of its bytes in memory. The bytes of all jobs share one
//! room; a job waits for its part without any other resource but its permit. What an examination
//! came to is kept, since it changes only with the statement, its subject or the signers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::fault::{Class, Fault};
use crate::gate::signature::Examined;
use crate::job::gates::Signer;
use crate::oci::{Descriptor, Digest};

/// Bytes in memory for the statements of all jobs.
const ROOM: u64 = 64 * 1024 * 1024;
/// So many times its size a statement takes while it is verified: its text, its payload, and what
/// is signed of it.
const COPIES: u64 = 4;
/// Largest statement, in bytes: an SBOM may be the predicate.
pub(super) const MOST_BYTES: u64 = ROOM / COPIES;
/// The unit of [`ROOM`], in bytes.
const UNIT: u64 = 1024;
/// Most examined statements and referrers that are kept, each.
const MOST_KEPT: usize = 10_000;
/// How long a statement that did not verify is not examined again.
const REJECTED: Duration = Duration::from_secs(3600);

/// A statement about a subject: the manifest that holds it, its blob, the subject.
pub(super) type Key = (Digest, Digest, Digest);

/// What all jobs together hold of statements. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Statements {
    room: Arc<Semaphore>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The bundle that a referrer of a subject holds, if it holds one.
    bundles: HashMap<(Digest, Digest), Option<Descriptor>>,
    examined: HashMap<Key, (Examined, Instant)>,
}

impl Default for Statements {
    fn default() -> Statements {
        Statements {
            room: Arc::new(Semaphore::new((ROOM / UNIT) as usize)),
            kept: Arc::default(),
        }
    }
}

impl Statements {
    /// Takes the room for a statement of at most [`MOST_BYTES`].
    ///
    /// # Errors
    /// When there is none in that time: the job ends, and is taken up again.
    pub(super) async fn room(
        &self,
        size: u64,
        hold: Duration,
    ) -> Result<OwnedSemaphorePermit, Fault> {
        let units = (size * COPIES).div_ceil(UNIT) as u32;
        let taken = self.room.clone().acquire_many_owned(units);
        let taken = timeout(hold, taken).await.map_err(|_| {
            let after = Some(hold);
            let text = "the statements of other images are being verified";
            Fault::new(Class::Retryable { after }, text)
        })?;
        Ok(taken.expect("the room is never closed"))
    }

    /// The bundle that a referrer holds about a subject, where that is known.
    pub(super) fn bundle(&self, referrer: Digest, subject: Digest) -> Option<Option<Descriptor>> {
        self.lock().bundles.get(&(referrer, subject)).cloned()
    }

    pub(super) fn keep_bundle(
        &self,
        referrer: Digest,
        subject: Digest,
        bundle: Option<Descriptor>,
    ) {
        let mut kept = self.lock();
        if kept.bundles.len() >= MOST_KEPT {
            kept.bundles.clear();
        }
        kept.bundles.insert((referrer, subject), bundle);
    }

    /// What an examination by these signers came to.
    pub(super) fn examined(&self, key: &Key, signers: &[Signer]) -> Option<Examined> {
        let kept = self.lock();
        let (examined, at) = kept.examined.get(key)?;
        let is_fresh = at.elapsed() < REJECTED || examined.has_verified();
        (is_fresh && *examined.by == *signers).then(|| examined.clone())
    }

    pub(super) fn keep_examined(&self, key: Key, examined: Examined) {
        let mut kept = self.lock();
        if kept.examined.len() >= MOST_KEPT {
            kept.examined.clear();
        }
        kept.examined.insert(key, (examined, Instant::now()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two of the largest statements: the second one waits for the room of the first.
    #[tokio::test(start_paused = true)]
    async fn statements_share_one_room() {
        let statements = Statements::default();
        let hold = Duration::from_secs(5);
        let first = statements.room(MOST_BYTES, hold).await.unwrap();
        let late = statements.room(1, hold).await.unwrap_err();
        assert!(matches!(late.class(), Class::Retryable { after: Some(_) }));
        drop(first);
        let many: Vec<_> =
            futures::future::join_all((0..4).map(|_| statements.room(MOST_BYTES / 4, hold))).await;
        assert!(many.iter().all(Result::is_ok));
        assert!(statements.room(1, hold).await.is_err(), "it is full");
    }
}
