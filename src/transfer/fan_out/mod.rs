//! Fan-out: one read of a blob feeds all destinations that need it now.
//!
//! - Jobs for the same source tag are a [`Party`]. Who reads a blob first opens a shared read; the others of the party take a
//!   seat in it, also a little later: its window holds the start of the blob until nobody is expected any more.
//! - Nobody is held back for long: who goes ahead waits for the slower ones for a bounded time, then they are left behind
//!   and go on by themselves. Who fails or leaves is not waited for.
//! - Memory is bounded: by a window for each read, and by a sum over all of them.
//!
//! Each seat is a body like any other: every destination's own road counts, hashes and judges it.

mod read;
mod seat;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OnceCell, OwnedSemaphorePermit};

use self::read::{ALL_WINDOWS, Read};
pub(super) use self::seat::Seat;
use super::verify::Open;
use crate::endpoint::Origin;
use crate::oci::{Digest, RepositoryName, Tag};

/// All shared reads. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct FanOut(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    parties: HashMap<PartyKey, Arc<Party>>,
    reads: HashMap<ReadKey, Arc<Read>>,
    kept: Arc<AtomicUsize>,
    next: u64,
}

type PartyKey = (Origin, RepositoryName, Tag);
type ReadKey = (Origin, RepositoryName, Digest);

/// The jobs that bring one source tag to several destinations at the same time.
#[derive(Default)]
struct Party {
    /// One right to run for all of them: they come and go together.
    right: OnceCell<OwnedSemaphorePermit>,
    state: Mutex<Guests>,
}

#[derive(Default)]
struct Guests {
    members: BTreeMap<u64, Origin>,
    /// Blobs that a destination needs no more, or reads already.
    settled: HashSet<(Origin, Digest)>,
    /// Destinations that were left behind: they are not waited for again.
    slow: HashSet<Origin>,
}

/// A job's place in its party, until dropped.
pub(super) struct Member {
    fan_out: FanOut,
    party: Arc<Party>,
    key: PartyKey,
    number: u64,
    destination: Origin,
}

impl FanOut {
    /// Joins the jobs for the same source tag.
    pub(super) fn enter(&self, source: &Origin, repository: &RepositoryName, tag: &Tag, destination: &Origin) -> Member {
        let key = (source.clone(), repository.clone(), tag.clone());
        let mut table = self.lock();
        table.next += 1;
        let (number, party) = (table.next, table.parties.entry(key.clone()).or_default().clone());
        party.lock().members.insert(number, destination.clone());
        Member { fan_out: self.clone(), party, key, number, destination: destination.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("nothing panics while it holds the table")
    }

    /// Nobody needs to wait for this destination any more.
    fn excuse(&self, party: &Arc<Party>, destination: &Origin, digest: Option<&Digest>) {
        let concerns = |read: &Read| Arc::ptr_eq(&read.party, party) && digest.is_none_or(|digest| read.key.2 == *digest);
        self.lock().reads.retain(|_, read| !concerns(read) || read.excuse(destination));
    }
}

impl Party {
    fn lock(&self) -> MutexGuard<'_, Guests> {
        self.state.lock().expect("nothing panics while it holds the guests")
    }
}

impl Member {
    /// Waits for the right to run, which `right` gives once for all of the party.
    pub(super) async fn admitted(&self, right: impl Future<Output = OwnedSemaphorePermit>) {
        self.party.right.get_or_init(|| right).await;
    }

    /// A seat in a shared read of the blob from its start. `None`: nobody else needs it now.
    pub(super) fn seat(&self, digest: &Digest, size: u64, open: impl FnOnce() -> Open) -> Option<Seat> {
        let key = (self.key.0.clone(), self.key.1.clone(), *digest);
        let mut table = self.fan_out.lock();
        let expected = self.expected(digest);
        if let Some(seat) = table.reads.get(&key).and_then(|read| read.join(&self.destination, size)) {
            return Some(seat);
        }
        if expected.is_empty() {
            return None;
        }
        table.shed();
        let read = Read::new(self.fan_out.clone(), key.clone(), self.party.clone(), expected, table.kept.clone(), open());
        table.reads.insert(key, read.clone());
        read.join(&self.destination, size)
    }

    /// The other destinations of the party that may still need the blob; this one needs no more waiting for.
    fn expected(&self, digest: &Digest) -> HashSet<Origin> {
        let mut guests = self.party.lock();
        if guests.members.len() < 2 {
            return HashSet::new();
        }
        guests.settled.insert((self.destination.clone(), *digest));
        let waits = |origin: &&Origin| !guests.slow.contains(*origin) && !guests.settled.contains(&((*origin).clone(), *digest));
        guests.members.values().filter(waits).cloned().collect()
    }

    /// The destination needs no more of the blob, whatever came of it.
    pub(super) fn settled(&self, digest: &Digest) {
        let mut guests = self.party.lock();
        if guests.members.len() > 1 {
            guests.settled.insert((self.destination.clone(), *digest));
            drop(guests);
            self.fan_out.excuse(&self.party, &self.destination, Some(digest));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut table = self.fan_out.lock();
        let mut guests = self.party.lock();
        guests.members.remove(&self.number);
        let is_last = guests.members.is_empty();
        drop(guests);
        if is_last {
            table.parties.remove(&self.key);
        }
        drop(table);
        self.fan_out.excuse(&self.party, &self.destination, None);
    }
}

impl Table {
    /// Forgets what ended reads keep for those who never came, where memory is short.
    fn shed(&mut self) {
        if self.kept.load(Ordering::Relaxed) >= ALL_WINDOWS {
            self.reads.retain(|_, read| !read.lock().is_over());
        }
    }
}

#[cfg(test)]
mod tests;
