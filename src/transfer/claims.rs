//! Claims: which job is busy with what, so that nothing is moved twice.
//!
//! A claim is taken in turn, what is asked for by name first, and ends when its guard is dropped.
//! The holder of an upload claim never waits for another claim, and no claim is waited for with the
//! permit of a body or a request: no circle. A holder is as urgent as what waits for it, and one
//! that hardly moves loses what waits for it and has another source.
//!
//! Where a mount needs a committed manifest, the first job to upload a blob leads, until a manifest
//! of its own is there. Jobs are numbered when they first lead or follow, and only a lower number
//! is followed; a job that waits for a leader holds no claim: no circle either.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admission::{Ticket, Wakers};
use super::stall;
use crate::endpoint::{Origin, RepositoryId};
use crate::job::Rank;
use crate::oci::{Digest, RepositoryName, Tag};

/// What can be claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A blob or manifest of one repository: no other job asks for it, mounts it or uploads it
    /// there meanwhile.
    Content(RepositoryId, Digest),
    /// The first upload of a blob to a registry: the others wait, and mount it.
    Upload(Origin, Digest),
    /// The question whether a registry lists referrers.
    Referrers(Origin),
    /// A tag that is read, changed and written.
    Tag(RepositoryId, Tag),
    /// A tag that a rollback moves.
    Rollback(RepositoryId, Tag),
}

/// All claims. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    held: Arc<Mutex<Table>>,
    leads: Arc<Mutex<HashMap<(Origin, Digest), Leader>>>,
    numbers: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Subject, Entry>,
    wakers: Wakers,
    next: u64,
}

/// A subject that is claimed: by the holder, and by what waits behind it.
#[derive(Debug)]
struct Entry {
    holder: Claimant,
    number: u64,
    waiting: BTreeMap<u64, Claimant>,
}

/// A job that claims something.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// Its place in the lines for permits.
    pub ticket: Arc<Ticket>,
    /// The registry that it reads from.
    pub source: Origin,
    /// How the blob moves for which it claims something.
    pub motion: Arc<Motion>,
}

/// How a blob moves, as far as jobs that wait for it want to know.
#[derive(Debug)]
pub struct Motion(Mutex<Moved>);

#[derive(Debug)]
struct Moved {
    /// When it was looked at, and how much had moved by then; the first one is the latest that is a
    /// window old.
    samples: VecDeque<(Instant, u64)>,
    /// Bytes that are left, and whether it waits for its source more than for its destination.
    left: u64,
    waits_for_source: bool,
}

/// How long a motion is watched before it is judged by the time that it would take.
const JUDGED_AFTER: Duration = Duration::from_secs(5);

impl Default for Motion {
    fn default() -> Motion {
        let samples = VecDeque::from([(Instant::now(), 0)]);
        Motion(Mutex::new(Moved {
            samples,
            left: 0,
            waits_for_source: false,
        }))
    }
}

impl Motion {
    /// Bytes have moved, or not.
    pub fn note(&self, moved: u64, left: u64, waits_for_source: bool, stall: &stall::Settings) {
        let now = Instant::now();
        let mut state = self.lock();
        (state.left, state.waits_for_source) = (left, waits_for_source);
        state.samples.push_back((now, moved));
        while state
            .samples
            .get(1)
            .is_some_and(|(at, _)| now.duration_since(*at) >= stall.window)
        {
            state.samples.pop_front();
        }
    }

    /// Whether a job with another source goes on without it: too little has moved over a window, or
    /// a slow source would keep it for longer than a window.
    pub fn is_slow(&self, stall: &stall::Settings) -> bool {
        let state = self.lock();
        let Some((began, before)) = state.samples.front().copied() else {
            return false;
        };
        let watched = began.elapsed();
        let moved = state
            .samples
            .back()
            .map_or(0, |(_, moved)| moved.saturating_sub(before));
        let rate = moved as f64 / watched.as_secs_f64().max(0.001);
        if watched >= stall.window && rate < stall.floor as f64 {
            return true;
        }
        let takes = state.left as f64 / rate.max(1.0);
        watched >= JUDGED_AFTER && state.waits_for_source && takes > stall.window.as_secs_f64()
    }

    fn lock(&self) -> MutexGuard<'_, Moved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Leader {
    number: u64,
    repository: RepositoryName,
    source: Origin,
    /// Cancelled when the lead is given up; wakes those that follow in the order in which they
    /// came.
    ended: CancellationToken,
}

/// Which job uploads a blob to a registry first.
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
pub struct Following {
    ends: CancellationToken,
    /// Whether the leader reads from another registry: what is wrong there need not hold us up.
    pub has_other_source: bool,
}

impl Following {
    /// Returns when the leader's manifest is there, or will not be.
    pub async fn ended(self) {
        self.ends.cancelled().await;
    }
}

/// A claim that is held; dropping it gives it up.
#[derive(Debug)]
pub struct Claim {
    claims: Claims,
    subject: Subject,
    number: u64,
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is claimed.
    pub fn is_empty(&self) -> bool {
        self.lock().entries.is_empty()
    }

    /// Waits for the claim. What is asked for by name goes first, and its holder becomes as urgent
    /// as what waits for it.
    pub async fn take(&self, subject: Subject, claimant: &Claimant) -> Claim {
        let number = self.ask(&subject, claimant);
        ClaimWait {
            claims: self,
            claim: Some((subject, number)),
        }
        .await
    }

    /// Waits for the claim, but not for a holder with another source that hardly moves. `None`: go
    /// on without the claim.
    pub async fn take_unless_slow(
        &self,
        subject: Subject,
        claimant: &Claimant,
        stall: &stall::Settings,
    ) -> Option<Claim> {
        let number = self.ask(&subject, claimant);
        let mut waiting = ClaimWait {
            claims: self,
            claim: Some((subject.clone(), number)),
        };
        loop {
            tokio::select! {
                biased;
                claim = &mut waiting => return Some(claim),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            if self.is_slow(&subject, claimant, stall) {
                return None;
            }
        }
    }

    fn is_slow(&self, subject: &Subject, claimant: &Claimant, stall: &stall::Settings) -> bool {
        let table = self.lock();
        let holder = table.entries.get(subject).map(|entry| &entry.holder);
        holder
            .is_some_and(|holder| holder.source != claimant.source && holder.motion.is_slow(stall))
    }

    /// Takes the claim or a place behind it; the number of either.
    fn ask(&self, subject: &Subject, claimant: &Claimant) -> u64 {
        let mut table = self.lock();
        table.next += 1;
        let number = table.next;
        match table.entries.get_mut(subject) {
            None => {
                let entry = Entry {
                    holder: claimant.clone(),
                    number,
                    waiting: BTreeMap::new(),
                };
                table.entries.insert(subject.clone(), entry);
            }
            Some(entry) => {
                entry.waiting.insert(number, claimant.clone());
                claimant.ticket.follow(&entry.holder.ticket);
            }
        }
        number
    }

    /// Gives the claim to the next in line.
    fn pass_on(&self, subject: &Subject, number: u64) {
        let mut table = self.lock();
        let Some(entry) = table
            .entries
            .get_mut(subject)
            .filter(|entry| entry.number == number)
        else {
            return;
        };
        let order =
            |number: u64, claimant: &Claimant| (claimant.ticket.rank() != Rank::Named, number);
        let Some(next) = entry
            .waiting
            .iter()
            .map(|(number, claimant)| order(*number, claimant))
            .min()
        else {
            table.entries.remove(subject);
            return;
        };
        if let Some(holder) = entry.waiting.remove(&next.1) {
            (entry.holder, entry.number) = (holder, next.1);
        }
        entry
            .waiting
            .values()
            .for_each(|other| other.ticket.follow(&entry.holder.ticket));
        table.wakers.wake(next.1);
    }

    /// The number of a job that leads or follows for the first time now.
    pub fn enrol(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes the lead over a blob, unless another job has it.
    pub fn lead(
        &self,
        number: u64,
        source: &Origin,
        origin: &Origin,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Leading {
        let mut leads = self.leads.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (origin.clone(), *digest);
        match leads.get(&key) {
            Some(leader) if leader.number < number && leader.repository != *repository => {
                Leading::Earlier(Following {
                    ends: leader.ended.clone(),
                    has_other_source: leader.source != *source,
                })
            }
            Some(_) => Leading::Later,
            None => {
                let (repository, source) = (repository.clone(), source.clone());
                leads.insert(
                    key.clone(),
                    Leader {
                        number,
                        repository,
                        source,
                        ended: CancellationToken::new(),
                    },
                );
                Leading::Ours(Lead {
                    claims: self.clone(),
                    key,
                })
            }
        }
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
        let leader = self
            .claims
            .leads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
        if let Some(leader) = leader {
            leader.ended.cancel();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.pass_on(&self.subject, self.number);
    }
}

/// A place in the line for a claim, or the claim that nothing has taken yet.
struct ClaimWait<'a> {
    claims: &'a Claims,
    /// Taken when the claim is.
    claim: Option<(Subject, u64)>,
}

impl Future for ClaimWait<'_> {
    type Output = Claim;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Claim> {
        let (subject, number) = self.claim.take().expect("it is not polled after its end");
        let mut table = self.claims.lock();
        if table
            .entries
            .get(&subject)
            .is_some_and(|entry| entry.number == number)
        {
            table.wakers.forget(number);
            return Poll::Ready(Claim {
                claims: self.claims.clone(),
                subject,
                number,
            });
        }
        table.wakers.wait(number, cx.waker());
        drop(table);
        self.claim = Some((subject, number));
        Poll::Pending
    }
}

impl Drop for ClaimWait<'_> {
    fn drop(&mut self) {
        let Some((subject, number)) = self.claim.take() else {
            return;
        };
        let mut table = self.claims.lock();
        table.wakers.forget(number);
        let is_waiting = table
            .entries
            .get_mut(&subject)
            .is_some_and(|entry| entry.waiting.remove(&number).is_some());
        drop(table);
        if !is_waiting {
            self.claims.pass_on(&subject, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::admission::Admission;

    fn claimant(admission: &Admission, source: &str, rank: Rank) -> Claimant {
        let (source, destination) = (Origin::new(source), Origin::new("http://a"));
        let ticket = admission.enter(&"r".into(), &source, &destination, rank);
        Claimant {
            ticket,
            source,
            motion: Arc::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_nothing_is_left_behind() {
        let claims = Claims::default();
        let job = claimant(&Admission::default(), "http://s", Rank::New);
        let subject = || Subject::Upload(Origin::new("http://a"), Digest::sha256(b"x"));
        let first = claims.take(subject(), &job).await;
        let mut second = tokio::spawn({
            let (claims, job) = (claims.clone(), job.clone());
            async move { claims.take(subject(), &job).await }
        });
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut second).is_pending());
        let mut given_up = Box::pin(claims.take(subject(), &job));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        drop(first);
        drop(second.await.unwrap());
        assert!(claims.lock().entries.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_by_name_goes_first_and_makes_its_holder_urgent() {
        let (claims, admission) = (Claims::default(), Admission::default());
        let subject = || Subject::Upload(Origin::new("http://a"), Digest::sha256(b"x"));
        let [holder, early, named] = [Rank::Backfill, Rank::New, Rank::Named]
            .map(|rank| claimant(&admission, "http://s", rank));
        let first = claims.take(subject(), &holder).await;
        let mut second = std::pin::pin!(claims.take(subject(), &early));
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(holder.ticket.rank(), Rank::New);
        let mut third = std::pin::pin!(claims.take(subject(), &named));
        assert!(futures::poll!(&mut third).is_pending());
        assert_eq!(holder.ticket.rank(), Rank::Named);
        drop(first);
        assert!(futures::poll!(&mut second).is_pending());
        drop(third.await);
        drop(second.await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_whose_source_drips_loses_what_has_another_source() {
        let (claims, admission) = (Claims::default(), Admission::default());
        let subject = || Subject::Upload(Origin::new("http://a"), Digest::sha256(b"x"));
        let [sick, same, other] = ["http://sick", "http://sick", "http://well"]
            .map(|source| claimant(&admission, source, Rank::New));
        let stall = stall::Settings::default();
        let _held = claims.take(subject(), &sick).await;
        let drips = async {
            for second in 1..3600 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sick.motion.note(second * 15_000, 1 << 40, true, &stall);
            }
        };
        let start = Instant::now();
        let waits = async {
            (
                claims
                    .take_unless_slow(subject(), &other, &stall)
                    .await
                    .is_none(),
                start.elapsed(),
            )
        };
        let stays = claims.take_unless_slow(subject(), &same, &stall);
        tokio::select! {
            biased;
            () = drips => panic!("it did not go on without the claim"),
            _ = stays => panic!("it has no other source"),
            (left, took) = waits => assert!(left && took < Duration::from_secs(10), "{took:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_does_not_move_at_all_is_waited_for_for_a_window() {
        let (claims, admission) = (Claims::default(), Admission::default());
        let subject = || Subject::Upload(Origin::new("http://a"), Digest::sha256(b"x"));
        let [stuck, other] =
            ["http://sick", "http://well"].map(|source| claimant(&admission, source, Rank::New));
        let _held = claims.take(subject(), &stuck).await;
        let start = Instant::now();
        assert!(
            claims
                .take_unless_slow(subject(), &other, &stall::Settings::default())
                .await
                .is_none()
        );
        assert!(
            (30..33).contains(&start.elapsed().as_secs()),
            "{:?}",
            start.elapsed()
        );
    }

    #[tokio::test]
    async fn only_a_lower_number_for_another_repository_is_followed() {
        let claims = Claims::default();
        let (origin, digest) = (Origin::new("http://a"), Digest::sha256(b"x"));
        let (first, second, third) = (claims.enrol(), claims.enrol(), claims.enrol());
        let lead = |number, repository: &str| {
            claims.lead(
                number,
                &origin,
                &origin,
                &repository.parse().unwrap(),
                &digest,
            )
        };
        let Leading::Ours(ours) = lead(second, "b") else {
            panic!("it was free")
        };
        assert_eq!(ours.digest(), &digest);
        assert!(matches!(lead(first, "a"), Leading::Later));
        assert!(matches!(lead(third, "b"), Leading::Later));
        let Leading::Earlier(following) = lead(third, "c") else {
            panic!("the second has a lower number")
        };
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
        let Leading::Ours(lead) =
            claims.lead(0, &origin, &origin, &"first".parse().unwrap(), &digest)
        else {
            panic!("it is free")
        };
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut followers = tokio::task::JoinSet::new();
        for number in 1..20 {
            let leading = claims.lead(
                number,
                &origin,
                &origin,
                &format!("r{number}").parse().unwrap(),
                &digest,
            );
            let Leading::Earlier(following) = leading else {
                panic!("the first has the lead")
            };
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
