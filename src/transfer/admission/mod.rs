//! Admission: the order in which jobs, bodies, requests and names get their permits.
//!
//! Each kind has a pure core: events and the time in, grants out. A thin shell around it keeps the
//! wakers and hands out permits. Dropping a waiter or a permit is always safe: its place or its
//! share is given to the next one.
//!
//! A holder waits only for what comes later in this order, so that no circle closes: job, content
//! claim, upload claim of the same digest, body, request. A naming permit is taken with no claim
//! and no body held.

mod fair_order;
mod pools;
mod pulse;
mod requests;
mod wakers;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

use self::fair_order::RequestQueue;
pub use self::pools::Settings;
use self::pools::{Flow, Grant, Held, Pools, Want};
pub(super) use self::pools::{Room, Side};
pub use self::pulse::Pulse;
pub(super) use self::requests::{Ask, Requests};
pub(super) use self::wakers::Wakers;
use crate::endpoint::Origin;
use crate::job::Rank;

/// The permits of jobs and bodies. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission {
    state: Arc<Mutex<State>>,
    /// How often a job has become more urgent: requests that wait look again.
    raises: Arc<AtomicU64>,
    pulse: Arc<Pulse>,
}

#[derive(Debug, Default)]
struct State {
    pools: Pools,
    granted: BTreeMap<u64, Grant>,
    wakers: Wakers,
}

impl State {
    fn pump(&mut self) {
        let now = Instant::now();
        let kept = self.pools.kept();
        while let Some((id, grant)) = self.pools.grant(now) {
            self.granted.insert(id, grant);
            self.wakers.wake(id);
        }
        // The one for which a share is kept sees to it that this ends.
        if let Some((id, _)) = self.pools.kept().filter(|_| self.pools.kept() != kept) {
            self.wakers.wake(id);
        }
    }
}

impl Admission {
    pub(super) fn new(settings: Settings) -> Admission {
        let state = State {
            pools: Pools::new(settings),
            ..State::default()
        };
        Admission {
            state: Arc::new(Mutex::new(state)),
            raises: Arc::default(),
            pulse: Arc::default(),
        }
    }

    /// No step under this lock leaves the state half changed, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// How many tasks wait for the permit of a job or a body.
    pub(super) fn waiting(&self) -> usize {
        self.lock().pools.waiting()
    }

    /// Whether no job is there, and no permit is out.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.pools.is_idle() && state.granted.is_empty()
    }

    /// A job of that route between these registries comes.
    pub(super) fn enter(
        &self,
        route: &Arc<str>,
        source: &Origin,
        destination: &Origin,
        rank: Rank,
    ) -> Arc<Ticket> {
        let flow = Flow {
            route: route.clone(),
            source: source.clone(),
            destination: destination.clone(),
        };
        let id = self.lock().pools.enter(flow, rank);
        Arc::new(Ticket {
            admission: self.clone(),
            id,
            rank: AtomicU8::new(rank as u8),
            behind: Mutex::default(),
        })
    }

    /// The queue in which the requests of a job stand now.
    pub(super) fn queue_of(&self, ticket: u64) -> Option<RequestQueue> {
        let (flow, rank) = self.lock().pools.queue_of(ticket)?;
        Some((Some(flow), rank))
    }

    /// How often a job has become more urgent.
    pub(super) fn raises(&self) -> u64 {
        self.raises.load(Ordering::Relaxed)
    }

    /// The registry has room for so many bodies from now on.
    pub(super) fn set_room(&self, origin: &Origin, side: Side, room: Room) {
        let mut state = self.lock();
        state.pools.set_room(origin, side, room);
        state.pump();
    }

    /// A read that several bodies share.
    pub(super) fn share(&self) -> Share {
        Share {
            admission: self.clone(),
            id: self.lock().pools.open_share(),
        }
    }

    /// The right to read a body over one more connection, if no body waits for it.
    pub(super) fn read_ahead(&self, source: &Origin) -> Option<ReadingPermit> {
        let held = self.lock().pools.read_ahead(source)?;
        Some(ReadingPermit {
            _permit: Permit::new(self, held),
        })
    }

    fn release(&self, held: Held) {
        let mut state = self.lock();
        state.pools.release(held, Instant::now());
        state.pump();
    }
}

/// A job in the lines, until dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    admission: Admission,
    id: u64,
    rank: AtomicU8,
    /// Jobs for whose claims it waits.
    behind: Mutex<Vec<Weak<Ticket>>>,
}

impl Ticket {
    /// Its number, for requests.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// How urgent the job is by now.
    pub(super) fn rank(&self) -> Rank {
        let rank = self.rank.load(Ordering::Relaxed);
        Rank::ALL
            .into_iter()
            .find(|known| *known as u8 == rank)
            .unwrap_or(Rank::Backfill)
    }

    /// Makes the job at least so urgent, with all for which it waits.
    pub(super) fn raise(&self, rank: Rank) {
        if self.rank.fetch_min(rank as u8, Ordering::Relaxed) <= rank as u8 {
            return;
        }
        let mut state = self.admission.lock();
        state.pools.raise(self.id, rank, Instant::now());
        state.pump();
        drop(state);
        self.admission.raises.fetch_add(1, Ordering::Relaxed);
        let behind: Vec<_> = self.behind().iter().filter_map(Weak::upgrade).collect();
        behind.iter().for_each(|holder| holder.raise(rank));
    }

    /// The job waits for what `holder` has: that becomes as urgent as it is.
    pub(super) fn follow(&self, holder: &Arc<Ticket>) {
        let mut behind = self.behind();
        behind.retain(|other| other.strong_count() > 0 && other.as_ptr() != Arc::as_ptr(holder));
        behind.push(Arc::downgrade(holder));
        drop(behind);
        holder.raise(self.rank());
    }

    fn behind(&self) -> MutexGuard<'_, Vec<Weak<Ticket>>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, want: Want) -> AdmissionWait {
        let mut state = self.admission.lock();
        let id = state.pools.ask(self.id, want, Instant::now());
        state.pump();
        AdmissionWait {
            admission: self.admission.clone(),
            id: Some(id),
            timer: None,
        }
    }

    /// Waits for the permit to run.
    pub(super) async fn job(&self) -> JobPermit {
        match self.ask(Want::Job).await {
            Grant::Job(held) => JobPermit(Permit::new(&self.admission, held)),
            Grant::Body { .. } => unreachable!("a job was asked for"),
        }
    }

    /// Waits for all that a body needs. `is_large`: it needs a slot; `share`: the shared read that
    /// it belongs to.
    pub(super) async fn body(&self, is_large: bool, share: Option<&Share>) -> BodyPermit {
        let want = Want::Body {
            slot: is_large,
            share: share.map(|share| share.id),
        };
        match self.ask(want).await {
            Grant::Body { reading, writing } => BodyPermit {
                reading: reading.map(|held| ReadingPermit {
                    _permit: Permit::new(&self.admission, held),
                }),
                _writing: Permit::new(&self.admission, writing),
            },
            Grant::Job(_) => unreachable!("a body was asked for"),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.lock().pools.leave(self.id);
    }
}

/// The permit to run one job, until dropped.
#[derive(Debug)]
pub(super) struct JobPermit(#[expect(dead_code, reason = "held, not read")] Permit);

/// The permit to move one body, until dropped.
#[derive(Debug)]
pub(super) struct BodyPermit {
    /// The right to read from the source; in a shared read one body brings it for all.
    pub(super) reading: Option<ReadingPermit>,
    _writing: Permit,
}

/// The right to read one blob, until dropped.
#[derive(Debug)]
pub(super) struct ReadingPermit {
    _permit: Permit,
}

#[derive(Debug)]
struct Permit {
    admission: Admission,
    held: Option<Held>,
}

impl Permit {
    fn new(admission: &Admission, held: Held) -> Permit {
        Permit {
            admission: admission.clone(),
            held: Some(held),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.admission.release(held);
        }
    }
}

/// A read that several bodies share: one of them has the right to read for all. Over when dropped.
#[derive(Debug)]
pub(super) struct Share {
    admission: Admission,
    id: u64,
}

impl Share {
    /// The source has been read to its end: no body needs the right to read any more.
    pub(super) fn free(&self) {
        let mut state = self.admission.lock();
        state.pools.free_share(self.id);
        state.pump();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.admission.lock().pools.close_share(self.id);
    }
}

/// A place in a line.
struct AdmissionWait {
    admission: Admission,
    /// Taken when the grant is.
    id: Option<u64>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for AdmissionWait {
    type Output = Grant;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Grant> {
        let id = self.id.expect("it is not polled after its end");
        let admission = self.admission.clone();
        let mut state = admission.lock();
        loop {
            if let Some(grant) = state.granted.remove(&id) {
                state.wakers.forget(id);
                admission.pulse.beat();
                self.id = None;
                return Poll::Ready(grant);
            }
            state.wakers.wait(id, cx.waker());
            let Some((_, until)) = state.pools.kept().filter(|(kept, _)| *kept == id) else {
                break;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(until)));
            timer.as_mut().reset(until);
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
            state.pump();
        }
        Poll::Pending
    }
}

impl Drop for AdmissionWait {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut state = self.admission.lock();
        state.wakers.forget(id);
        state.pools.cancel(id);
        match state.granted.remove(&id) {
            Some(Grant::Job(held)) => state.pools.release(held, Instant::now()),
            Some(Grant::Body { reading, writing }) => {
                let held = reading.into_iter().chain([writing]);
                held.for_each(|held| state.pools.release(held, Instant::now()));
            }
            None => {}
        }
        state.pump();
    }
}

#[cfg(test)]
mod tests;
