//! Fan-out: one read of a blob feeds all destinations that need it now.
//!
//! - Jobs for the same source tag form a [`ReadGroup`]. The first reader of a blob opens a shared
//!   read; the others join it, also a little later: its window keeps the start of the blob until no
//!   job of the group is expected.
//! - Where a registry does not mount, each of its repositories needs the bytes. Jobs that have
//!   begun with a blob announce it and are expected too, whatever their tag and source repository.
//!   The start stays a little longer for jobs that begin a moment later; no reader waits for them.
//! - A fast reader waits for slow ones for a bounded time. Then the slow ones are dropped, continue
//!   by themselves, and are not waited for again. Readers that failed, left, or are queued for an
//!   upload permit of the fast reader's destination are not waited for.
//! - Memory is bounded by a window for each read and by a sum over all reads.
//!
//! The read hashes each byte once. Each frame carries the hasher after it, so every destination's
//! [`VerifiedBlob`](super::verify::VerifiedBlob) counts and checks what it takes, and can go on by
//! itself at any frame.

mod read;
mod reader;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use self::read::Read;
pub(super) use self::reader::Reader;
use super::SharedReads;
use super::admission::{Admission, JobPermit, Ticket};
use super::opening::Open;
use crate::endpoint::Origin;
use crate::oci::{Digest, RepositoryName, Tag};

/// All shared reads. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct FanOut {
    table: Arc<Mutex<Table>>,
    admission: Admission,
}

#[derive(Default)]
struct Table {
    groups: HashMap<GroupKey, Arc<ReadGroup>>,
    reads: BTreeMap<ReadKey, Arc<Read>>,
    /// Jobs that have begun with a blob, where the destination does not mount.
    needs: BTreeMap<ReadKey, BTreeMap<u64, Need>>,
    /// Jobs that were dropped as slow: they are not waited for again.
    slow: HashSet<u64>,
    /// Jobs by the registry that they read from.
    readers: HashMap<Origin, usize>,
    kept: Arc<AtomicUsize>,
    bounds: SharedReads,
    next: u64,
}

type GroupKey = (Origin, RepositoryName, Tag);
/// A blob has the same content in all repositories of its registry.
type ReadKey = (Origin, Digest);

/// The state of a job that needs a blob.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// It will join a read.
    Coming,
    /// It has joined one.
    Reading,
}

/// A reader that may still join at the start of a blob.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Expected {
    /// The first job of the group for that registry.
    Registry(Origin),
    /// That job.
    Job(u64),
}

/// Jobs that promote one source tag to several destinations at the same time.
#[derive(Default)]
struct ReadGroup {
    /// One job permit for all of them: they start and end together.
    permit: OnceCell<JobPermit>,
    state: Mutex<GroupState>,
}

#[derive(Default)]
struct GroupState {
    members: BTreeMap<u64, Origin>,
    /// The members' queue tickets: all get the rank of the most urgent one.
    tickets: BTreeMap<u64, Arc<Ticket>>,
    /// Blobs that a destination no longer needs, or reads already.
    settled: HashSet<(Origin, Digest)>,
    /// Destinations that were dropped as slow: they are not waited for again.
    slow: HashSet<Origin>,
}

/// A job's membership in its group, until dropped.
pub(super) struct GroupMember {
    fan_out: FanOut,
    group: Arc<ReadGroup>,
    key: GroupKey,
    number: u64,
    destination: Origin,
}

impl FanOut {
    /// Shared reads within these bounds. Their bodies get permits from `admission`.
    pub(super) fn new(bounds: SharedReads, admission: &Admission) -> FanOut {
        FanOut {
            table: Arc::new(Mutex::new(Table {
                bounds,
                ..Table::default()
            })),
            admission: admission.clone(),
        }
    }

    /// Joins the jobs for the same source tag.
    pub(super) fn enter(
        &self,
        source: &Origin,
        repository: &RepositoryName,
        tag: &Tag,
        destination: &Origin,
    ) -> GroupMember {
        let key = (source.clone(), repository.clone(), tag.clone());
        let mut table = self.lock();
        table.next += 1;
        *table.readers.entry(source.clone()).or_default() += 1;
        let number = table.next;
        let group = table.groups.entry(key.clone()).or_default().clone();
        group.lock().members.insert(number, destination.clone());
        GroupMember {
            fan_out: self.clone(),
            group,
            key,
            number,
            destination: destination.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records readers that were too slow for a read of `group`: they are not waited for again.
    fn note_slow(&self, group: &ReadGroup, missing: BTreeSet<Expected>) {
        for expected in missing {
            match expected {
                Expected::Registry(origin) => group.lock().slow.insert(origin),
                Expected::Job(number) => self.lock().slow.insert(number),
            };
        }
    }
}

impl ReadGroup {
    fn lock(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GroupMember {
    /// Waits for the job permit, which one job gets for the whole group.
    pub(super) async fn admitted(&self, ticket: &Arc<Ticket>) {
        let members: Vec<Arc<Ticket>> = {
            let mut state = self.group.lock();
            state.tickets.insert(self.number, ticket.clone());
            state.tickets.values().cloned().collect()
        };
        if let Some(rank) = members.iter().map(|member| member.rank()).min() {
            members.iter().for_each(|member| member.raise(rank));
        }
        self.group.permit.get_or_init(|| ticket.job()).await;
    }

    /// Announces that the job needs the bytes of a blob, even if another repository of its
    /// destination gets them.
    pub(super) fn needs(&self, digest: &Digest) {
        let key = self.read_key(digest);
        let mut table = self.fan_out.lock();
        if let Some(read) = table
            .reads
            .get(&key)
            .filter(|_| !table.slow.contains(&self.number))
        {
            read.expect(Expected::Job(self.number));
        }
        table
            .needs
            .entry(key)
            .or_default()
            .insert(self.number, Need::Coming);
    }

    /// Joins a shared read of the blob at its start. `None`: no other job needs it now.
    pub(super) fn reader(
        &self,
        digest: &Digest,
        size: u64,
        open: impl FnOnce() -> Open,
    ) -> Option<Reader> {
        let key = self.read_key(digest);
        let mut table = self.fan_out.lock();
        let mut expected = self.expected(digest);
        let lingers = table.take_need(&key, self.number)
            && table
                .readers
                .get(&key.0)
                .is_some_and(|readers| *readers > 1);
        expected.extend(table.coming(&key));
        let slow =
            table.slow.contains(&self.number) || self.group.lock().slow.contains(&self.destination);
        if let Some(reader) = table
            .reads
            .get(&key)
            .and_then(|read| Reader::join(read, self, size, slow))
        {
            return Some(reader);
        }
        if expected.is_empty() && !lingers {
            return None;
        }
        table.shed();
        let read = Read::new(
            self,
            key.clone(),
            expected,
            lingers,
            table.kept.clone(),
            table.bounds,
            open(),
        );
        table.reads.insert(key, read.clone());
        Reader::join(&read, self, size, slow)
    }

    /// The other destinations of the group that may still need the blob. This one is no longer
    /// expected.
    fn expected(&self, digest: &Digest) -> BTreeSet<Expected> {
        let mut state = self.group.lock();
        if state.members.len() < 2 {
            return BTreeSet::new();
        }
        state.settled.insert((self.destination.clone(), *digest));
        state
            .members
            .values()
            .filter(|origin| {
                !state.slow.contains(*origin)
                    && !state.settled.contains(&((*origin).clone(), *digest))
            })
            .cloned()
            .map(Expected::Registry)
            .collect()
    }

    /// Records that the destination no longer needs the blob, for any reason.
    pub(super) fn settled(&self, digest: &Digest) {
        let has_others = {
            let mut state = self.group.lock();
            let has_others = state.members.len() > 1;
            if has_others {
                state.settled.insert((self.destination.clone(), *digest));
            }
            has_others
        };
        let key = self.read_key(digest);
        let mut table = self.fan_out.lock();
        let needed = table.forget_need(&key, self.number);
        if !needed && !has_others {
            return;
        }
        let is_over = table.reads.get(&key).is_some_and(|read| !read.excuse(self));
        let forgotten = if is_over {
            table.reads.remove(&key)
        } else {
            None
        };
        drop(table);
        drop(forgotten);
    }

    fn read_key(&self, digest: &Digest) -> ReadKey {
        (self.key.0.clone(), *digest)
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        let mut table = self.fan_out.lock();
        let mut state = self.group.lock();
        state.members.remove(&self.number);
        let ticket = state.tickets.remove(&self.number);
        let is_last = state.members.is_empty();
        drop(state);
        drop(ticket);
        if is_last {
            table.groups.remove(&self.key);
        }
        table.leave(&self.key.0, self.number);
        table.reads.retain(|_, read| read.excuse(self));
    }
}

impl Table {
    /// Drops ended reads that are kept for expected readers, if memory is short.
    fn shed(&mut self) {
        if self.kept.load(Ordering::Relaxed) >= self.bounds.all_windows {
            self.reads.retain(|_, read| !read.lock().is_over());
        }
    }

    /// Jobs that have begun with the blob and have not joined a read.
    fn coming(&self, key: &ReadKey) -> impl Iterator<Item = Expected> {
        let needs = self.needs.get(key).into_iter().flatten();
        needs
            .filter(|(job, need)| **need == Need::Coming && !self.slow.contains(job))
            .map(|(job, _)| Expected::Job(*job))
    }

    /// Records that a job joins a read. Returns whether it was announced.
    fn take_need(&mut self, key: &ReadKey, job: u64) -> bool {
        let need = self
            .needs
            .get_mut(key)
            .and_then(|needs| needs.get_mut(&job));
        need.map(|need| *need = Need::Reading).is_some()
    }

    /// Removes a job's need of the blob. Returns whether it was announced.
    fn forget_need(&mut self, key: &ReadKey, job: u64) -> bool {
        let Some(needs) = self.needs.get_mut(key) else {
            return false;
        };
        let needed = needs.remove(&job).is_some();
        if needs.is_empty() {
            self.needs.remove(key);
        }
        needed
    }

    fn leave(&mut self, source: &Origin, job: u64) {
        self.slow.remove(&job);
        self.needs.retain(|_, needs| {
            needs.remove(&job);
            !needs.is_empty()
        });
        if let Some(readers) = self.readers.get_mut(source) {
            *readers -= 1;
            if *readers == 0 {
                self.readers.remove(source);
            }
        }
    }
}

#[cfg(test)]
mod tests;
