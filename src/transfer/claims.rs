//! Claims: who is busy with what, so that nothing is moved twice.
//!
//! A claim is taken in turn, first come, first served, and ends when its guard is dropped. Whoever holds a claim on a blob
//! of a registry never waits for another claim, and nobody waits for a claim while holding a permit: no circle.
//!
//! Where a mount needs a committed manifest, whoever uploads a blob first leads, until a manifest of its job is there. Jobs are
//! numbered when they first lead or follow, and only a lower number is followed; whoever waits for a leader holds no claim:
//! no circle either.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

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
    leads: Arc<Mutex<HashMap<(Origin, Digest), Leader>>>,
    numbers: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Leader {
    number: u64,
    repository: RepositoryName,
    /// Cancelled when the lead is given up; wakes those that follow in the order in which they came.
    ended: CancellationToken,
}

/// Who uploads a blob to a registry first.
#[derive(Debug)]
pub enum Leading {
    /// This job, until the value is dropped.
    Ours(Lead),
    /// A job with a lower number, for another repository: nothing that it waits for waits for us.
    Earlier(Following),
    /// A job with a higher number, or for the same repository: it is not waited for.
    Later,
}

/// The lead over a blob; dropping it lets the others look again.
#[derive(Debug)]
pub struct Lead {
    claims: Claims,
    key: (Origin, Digest),
}

/// A leader that is waited for.
#[derive(Debug)]
pub struct Following(CancellationToken);

impl Following {
    /// Returns when the leader's manifest is there, or will not be.
    pub async fn ended(self) {
        self.0.cancelled().await;
    }
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

    /// The number of a job that leads or follows for the first time now.
    pub fn enrol(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes the lead over a blob, unless somebody has it.
    pub fn lead(&self, number: u64, origin: &Origin, repository: &RepositoryName, digest: &Digest) -> Leading {
        let mut leads = self.leads.lock().expect("nothing panics while it holds the leads");
        let key = (origin.clone(), *digest);
        match leads.get(&key) {
            Some(leader) if leader.number < number && leader.repository != *repository => {
                Leading::Earlier(Following(leader.ended.clone()))
            }
            Some(_) => Leading::Later,
            None => {
                leads.insert(key.clone(), Leader { number, repository: repository.clone(), ended: CancellationToken::new() });
                Leading::Ours(Lead { claims: self.clone(), key })
            }
        }
    }

    fn register(&self, subject: Subject) -> (Interest, Arc<tokio::sync::Mutex<()>>) {
        let mut held = self.held.lock().expect("nothing panics while it holds the claims");
        let entry = held.entry(subject.clone()).or_default();
        entry.interested += 1;
        let turn = entry.turn.clone();
        (Interest { claims: self.clone(), subject }, turn)
    }
}

impl Lead {
    /// The blob that it is over.
    pub fn digest(&self) -> &Digest {
        &self.key.1
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let leader = self.claims.leads.lock().expect("nothing panics while it holds the leads").remove(&self.key);
        if let Some(leader) = leader {
            leader.ended.cancel();
        }
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

    #[tokio::test]
    async fn only_a_lower_number_for_another_repository_is_followed() {
        let claims = Claims::default();
        let (origin, digest) = (Origin::new("http://a"), Digest::sha256(b"x"));
        let (first, second, third) = (claims.enrol(), claims.enrol(), claims.enrol());
        let lead = |number, repository: &str| claims.lead(number, &origin, &repository.parse().unwrap(), &digest);
        let Leading::Ours(ours) = lead(second, "b") else { panic!("nobody had it") };
        assert_eq!(ours.digest(), &digest);
        assert!(matches!(lead(first, "a"), Leading::Later));
        assert!(matches!(lead(third, "b"), Leading::Later));
        let Leading::Earlier(following) = lead(third, "c") else { panic!("the second has a lower number") };
        let mut ended = std::pin::pin!(following.ended());
        assert!(futures::poll!(&mut ended).is_pending());
        drop(ours);
        ended.await;
        drop(lead(third, "c"));
        assert!(claims.leads.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn followers_wake_in_the_order_in_which_they_came() {
        let claims = Claims::default();
        let (origin, digest) = (Origin::new("http://a"), Digest::sha256(b"x"));
        let Leading::Ours(lead) = claims.lead(0, &origin, &"first".parse().unwrap(), &digest) else { panic!("it is free") };
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut followers = tokio::task::JoinSet::new();
        for number in 1..20 {
            let leading = claims.lead(number, &origin, &format!("r{number}").parse().unwrap(), &digest);
            let Leading::Earlier(following) = leading else { panic!("the first has the lead") };
            let woken = woken.clone();
            followers.spawn(async move {
                following.ended().await;
                woken.lock().unwrap().push(number);
            });
        }
        tokio::task::yield_now().await;
        drop(lead);
        followers.join_all().await;
        assert_eq!(*woken.lock().unwrap(), (1..20).collect::<Vec<_>>());
    }
}
