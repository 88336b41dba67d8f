//! Sets: what the jobs of this process know of each other's members.
//!
//! A job that has passed all else is *ready*. What production names is read from the ledger. Which
//! members are ready, and what kept the others back, is in memory alone: after a restart the first
//! looks find it again. The job that makes a set complete wakes the others. A job waits for its turn for
//! a few seconds with its permit in hand; else it ends as waiting, and is looked at again when its
//! turn has come. Readiness lasts as long as a verdict of a gate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::questions::HOLDS;
use crate::decision::{Candidate, SetName};
use crate::job::{Key, TagId};
use crate::oci::{Digest, Tag};
use crate::set::{SetTag, Sets, State};

/// Most tags of sets of which something is known. Beyond that what has no job is found again by
/// looks.
const MOST: usize = 20_000;

/// Tells the sets of the config in force.
#[derive(Clone, Default)]
pub struct CurrentSets(Option<Arc<dyn Fn() -> Arc<Sets> + Send + Sync>>);

impl CurrentSets {
    /// Asks `sets` each time.
    pub fn new(sets: impl Fn() -> Arc<Sets> + Send + Sync + 'static) -> CurrentSets {
        CurrentSets(Some(Arc::new(sets)))
    }

    /// The name of the tag of a set that a tag of a destination is part of.
    pub fn name_of(&self, place: &TagId) -> Option<SetName> {
        self.0.as_ref()?().name_of(place)
    }

    /// The tag of a set that a tag of a destination is part of.
    pub fn of(&self, place: &TagId) -> Option<SetTag> {
        let sets = self.0.as_ref()?();
        sets.of(place)
    }
}

impl fmt::Debug for CurrentSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentSets")
    }
}

/// A tag of a set, apart for dry runs: what they find ready is never named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupId {
    name: SetName,
    is_dry_run: bool,
}

impl GroupId {
    pub(super) fn of(set: &SetTag, is_dry_run: bool) -> GroupId {
        GroupId {
            name: set.name.clone(),
            is_dry_run,
        }
    }
}

/// A member that has passed all but the set.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    /// The key of its job.
    pub(super) key: Key,
    pub(super) digest: Digest,
    pub(super) previous: Option<Digest>,
    /// What the decisions in force are asked about.
    pub(super) candidate: Candidate,
    pub(super) at: Instant,
}

impl Ready {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < HOLDS
    }
}

#[derive(Clone, Debug)]
enum Seen {
    Ready(Box<Ready>),
    KeptBack(String),
}

impl Seen {
    fn is_ready_for(&self, digest: &Digest) -> bool {
        match self {
            Seen::Ready(ready) => ready.digest == *digest && ready.is_fresh(),
            Seen::KeptBack(_) => false,
        }
    }

    fn state(&self) -> State {
        match self {
            Seen::Ready(ready) => State::Ready {
                digest: ready.digest,
                previous: ready.previous,
                is_fresh: ready.is_fresh(),
            },
            Seen::KeptBack(how) => State::KeptBack(how.clone()),
        }
    }
}

#[derive(Debug, Default)]
struct Group {
    seen: BTreeMap<TagId, Seen>,
    /// The members with jobs that wait for their turn.
    waiting: BTreeSet<TagId>,
    /// The members with jobs under way that do not wait for the set.
    under_way: BTreeMap<TagId, usize>,
    /// When its first member was named.
    first: Option<Instant>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Memory {
    groups: BTreeMap<GroupId, Group>,
    woken: BTreeSet<Key>,
}

/// What is known of the sets' members. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct SetMembers {
    memory: Arc<Mutex<Memory>>,
    news: Arc<Notify>,
}

/// A job that waits for its turn, until dropped.
pub(super) struct Turn<'a> {
    members: &'a SetMembers,
    id: GroupId,
    place: &'a TagId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut memory = self.members.lock();
        if let Some(group) = memory.groups.get_mut(&self.id) {
            group.waiting.remove(self.place);
        }
    }
}

/// A job of a member that is under way, until dropped.
pub(super) struct UnderWay {
    members: SetMembers,
    id: GroupId,
    place: TagId,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut memory = self.members.lock();
        let Some(group) = memory.groups.get_mut(&self.id) else {
            return;
        };
        if let Some(count) = group.under_way.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                group.under_way.remove(&self.place);
            }
        }
        group.changed.notify_waiters();
    }
}

impl Memory {
    /// What is known of a member. A dry run goes by what it has found, else by what is so.
    fn seen(&self, id: &GroupId, place: &TagId) -> Option<&Seen> {
        let as_it_is = GroupId {
            is_dry_run: false,
            ..id.clone()
        };
        self.seen_in(id, place)
            .or_else(|| self.seen_in(&as_it_is, place))
    }

    fn seen_in(&self, id: &GroupId, place: &TagId) -> Option<&Seen> {
        self.groups.get(id)?.seen.get(place)
    }

    fn group(&mut self, id: &GroupId) -> &mut Group {
        if self.groups.len() >= MOST && !self.groups.contains_key(id) {
            self.groups.retain(|_, group| group.has_jobs());
        }
        self.groups.entry(id.clone()).or_default()
    }
}

impl Group {
    fn has_jobs(&self) -> bool {
        !self.waiting.is_empty() || !self.under_way.is_empty()
    }

    /// Whether nothing is known, and no job is there.
    fn is_idle(&self) -> bool {
        self.seen.is_empty() && !self.has_jobs()
    }
}

impl SetMembers {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job of a member begins.
    pub(super) fn begin(&self, id: GroupId, place: &TagId) -> UnderWay {
        let mut memory = self.lock();
        *memory
            .group(&id)
            .under_way
            .entry(place.clone())
            .or_default() += 1;
        UnderWay {
            members: self.clone(),
            id,
            place: place.clone(),
        }
    }

    /// Whether a job of another member is under way.
    pub(super) fn is_under_way(&self, id: &GroupId, place: &TagId) -> bool {
        let memory = self.lock();
        let group = memory.groups.get(id);
        group.is_some_and(|group| group.under_way.keys().any(|other| other != place))
    }

    /// A member has passed all else.
    pub(super) fn note_ready(&self, id: &GroupId, place: &TagId, ready: Ready) {
        self.note(id, place, Seen::Ready(Box::new(ready)));
    }

    /// A member's job ended without its tag.
    pub(super) fn note_kept_back(&self, id: &GroupId, place: &TagId, how: String) {
        self.note(id, place, Seen::KeptBack(how));
    }

    fn note(&self, id: &GroupId, place: &TagId, seen: Seen) {
        let mut memory = self.lock();
        let group = memory.group(id);
        group.seen.insert(place.clone(), seen);
        group.changed.notify_waiters();
    }

    /// Nothing is known of a member any more but what the ledger says.
    pub(super) fn forget(&self, id: &GroupId, place: &TagId) {
        let mut memory = self.lock();
        if let Some(group) = memory.groups.get_mut(id) {
            group.seen.remove(place);
            group.changed.notify_waiters();
            if group.is_idle() && group.first.is_none() {
                memory.groups.remove(id);
            }
        }
    }

    /// The first member was named.
    pub(super) fn note_first(&self, id: &GroupId) {
        self.lock().group(id).first.get_or_insert_with(Instant::now);
    }

    /// All is over with a tag of a set. Returns when its first member was named.
    pub(super) fn end(&self, id: &GroupId) -> Option<Instant> {
        let mut memory = self.lock();
        let group = memory.groups.get_mut(id)?;
        group.seen.clear();
        group.changed.notify_waiters();
        let first = group.first.take();
        if group.is_idle() {
            memory.groups.remove(id);
        }
        first
    }

    /// What changes with the group. To be had before it is judged.
    pub(super) fn changes(&self, id: &GroupId) -> Arc<Notify> {
        self.lock().group(id).changed.clone()
    }

    /// The members' states as far as memory knows them.
    pub(super) fn states(&self, id: &GroupId, set: &SetTag) -> Vec<Option<State>> {
        let memory = self.lock();
        let places = set.members.iter().map(|member| &member.key.destination);
        places
            .map(|place| memory.seen(id, place).map(Seen::state))
            .collect()
    }

    /// The tags of a destination that a dry run would have name a digest by now: those of other tags
    /// of its set.
    pub(super) fn planned(&self, id: &GroupId, place: &TagId, digest: &Digest) -> Vec<Tag> {
        if !id.is_dry_run {
            return Vec::new();
        }
        let memory = self.lock();
        let of_set = memory
            .groups
            .iter()
            .filter(|(other, _)| other.is_dry_run && other.name.set == id.name.set);
        let seen = of_set.flat_map(|(_, group)| &group.seen);
        let beside = seen.filter(|(other, _)| {
            other.origin == place.origin && other.repository == place.repository
        });
        beside
            .filter(|(_, seen)| seen.is_ready_for(digest))
            .map(|(other, _)| other.tag.clone())
            .collect()
    }

    /// What the ready members are judged by.
    pub(super) fn ready(&self, id: &GroupId) -> Vec<Candidate> {
        let memory = self.lock();
        let seen = memory.groups.get(id).into_iter();
        seen.flat_map(|group| group.seen.values())
            .filter_map(|seen| match seen {
                Seen::Ready(ready) => Some(ready.candidate.clone()),
                Seen::KeptBack(_) => None,
            })
            .collect()
    }

    /// A job waits for its turn from here on.
    pub(super) fn wait_for_turn<'a>(&'a self, id: &GroupId, place: &'a TagId) -> Turn<'a> {
        self.lock().group(id).waiting.insert(place.clone());
        Turn {
            members: self,
            id: id.clone(),
            place,
        }
    }

    /// Has a tag looked at, unless its job waits for its turn or a dry run asks.
    pub(super) fn wake(&self, id: &GroupId, key: &Key) {
        let mut memory = self.lock();
        let group = memory.groups.get(id);
        let is_there = group.is_some_and(|group| group.waiting.contains(&key.destination));
        if !id.is_dry_run && !is_there {
            memory.woken.insert(key.clone());
            self.news.notify_one();
        }
    }

    /// Has the other tags of a set looked at that wait for a version.
    pub(super) fn wake_others(&self, id: &GroupId) {
        let mut memory = self.lock();
        let others = memory.groups.iter().filter(|(other, _)| {
            other.name.set == id.name.set && other.name != id.name && !other.is_dry_run
        });
        let seen = others.flat_map(|(_, group)| group.seen.values());
        let keys: Vec<Key> = seen
            .filter_map(|seen| match seen {
                Seen::Ready(ready) => Some(ready.key.clone()),
                Seen::KeptBack(_) => None,
            })
            .collect();
        memory.woken.extend(keys);
        self.news.notify_one();
    }

    /// The tags to look at again; waits for the first.
    pub(super) async fn woken(&self) -> BTreeSet<Key> {
        loop {
            let woken = self.take_woken();
            if !woken.is_empty() {
                return woken;
            }
            self.news.notified().await;
        }
    }

    /// The tags to look at again, if there are any.
    pub(super) fn take_woken(&self) -> BTreeSet<Key> {
        std::mem::take(&mut self.lock().woken)
    }
}
