//! The tags of one route at one destination.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::{RepositoryKey, is_success};
use crate::job::{Outcome, Totals};
use crate::oci::{RepositoryName, Tag};

/// Most tags of a destination with a stored state.
const STATES_KEPT: usize = 100_000;

/// What a look has seen of one tag.
#[derive(Clone, Debug)]
pub struct SeenTag {
    /// The source tag.
    pub tag: Tag,
    /// What came of it.
    pub outcome: Outcome,
    /// Whether an earlier look has found both sides equal or production changed, so that it counts
    /// already.
    pub is_known: bool,
}

impl SeenTag {
    /// Whether a later look at this tag alone must know its state. Tags that are up to date are
    /// known by the ledger.
    fn is_kept(&self) -> bool {
        match self.outcome {
            Outcome::Conflict
            | Outcome::Drift
            | Outcome::Existing
            | Outcome::Refused
            | Outcome::Waiting
            | Outcome::Held
            | Outcome::Failed => true,
            Outcome::Promoted
            | Outcome::UpToDate
            | Outcome::Gone
            | Outcome::Planned
            | Outcome::Interrupted => false,
        }
    }
}

/// What is known of a route in one registry.
#[derive(Debug, Default)]
pub(super) struct DestinationState {
    /// The entries of the route's `to` in this registry.
    pub(super) to: BTreeSet<Arc<str>>,
    pub(super) repositories: BTreeMap<RepositoryKey, RepositoryState>,
    /// The sum over the repositories.
    pub(super) sum: Totals,
    /// Ways that have not been seen whole by their last look.
    pub(super) unseen: usize,
    /// The repositories with an incomplete last look.
    pub(super) blind: usize,
    /// The repositories of the route could not be found.
    pub(super) undiscovered: bool,
    /// Some repositories of the route were refused.
    pub(super) refused: bool,
    /// A look at the route has ended.
    pub(super) looked: bool,
    /// Pending tags on all repositories.
    pub(super) pending: usize,
    /// Tags with a stored state on all repositories.
    states_kept: usize,
}

/// What is known of a source repository, seen from one destination.
#[derive(Debug, Default)]
pub(super) struct RepositoryState {
    /// Totals of the last look that saw everything, and of looks at single tags since.
    pub(super) totals: Totals,
    /// The tags among them that are neither up to date nor pending.
    states: BTreeMap<Tag, Outcome>,
    /// The last look saw everything.
    pub(super) seen: bool,
    /// The last look could not see everything.
    pub(super) blind: bool,
    /// Since when a tag is known to differ.
    pub(super) pending: BTreeMap<Tag, Instant>,
}

impl DestinationState {
    pub(super) fn known(&mut self, key: &RepositoryKey) -> &mut RepositoryState {
        if !self.repositories.contains_key(key) {
            self.unseen += 1;
        }
        self.repositories.entry(key.clone()).or_default()
    }

    /// Keeps only these repositories, and forgets destinations that the route no longer has.
    pub(super) fn keep(&mut self, is_kept: impl Fn(&RepositoryName) -> bool) {
        let DestinationState {
            to,
            repositories,
            sum,
            unseen,
            blind,
            pending,
            states_kept,
            ..
        } = self;
        for (_, known) in
            repositories.extract_if(.., |(name, entry), _| !is_kept(name) || !to.contains(entry))
        {
            sum.subtract(&known.totals);
            *unseen -= usize::from(!known.seen);
            *blind -= usize::from(known.blind);
            *pending -= known.pending.len();
            *states_kept -= known.states.len();
        }
    }

    pub(super) fn set_seen(&mut self, key: &RepositoryKey, seen: bool) {
        let known = self.known(key);
        let seen_before = std::mem::replace(&mut known.seen, seen);
        let blind_before = std::mem::replace(&mut known.blind, !seen);
        self.unseen = self.unseen + usize::from(seen_before) - usize::from(seen);
        self.blind = self.blind + usize::from(!seen) - usize::from(blind_before);
    }

    pub(super) fn set_totals(&mut self, key: &RepositoryKey, totals: &Totals) {
        let before = std::mem::replace(&mut self.known(key).totals, *totals);
        self.sum.subtract(&before);
        self.sum.merge(totals);
    }

    /// Sets the states of single tags, as far as there is room.
    pub(super) fn set_states(&mut self, key: &RepositoryKey, seen: &[SeenTag]) {
        let before = std::mem::take(&mut self.known(key).states);
        self.states_kept -= before.len();
        let room = STATES_KEPT.saturating_sub(self.states_kept);
        let kept = seen.iter().filter(|seen| seen.is_kept()).take(room);
        let states: BTreeMap<Tag, Outcome> =
            kept.map(|seen| (seen.tag.clone(), seen.outcome)).collect();
        self.states_kept += states.len();
        self.known(key).states = states;
    }

    /// Counts a tag that was looked at alone under its new state instead of the one before.
    pub(super) fn set_state(&mut self, key: &RepositoryKey, seen: &SeenTag) {
        if matches!(seen.outcome, Outcome::Planned | Outcome::Interrupted) {
            return;
        }
        let has_room = self.states_kept < STATES_KEPT;
        let known = self.known(key);
        let kept_before = known.states.len();
        let before = known.states.remove(&seen.tag);
        let mut totals = known.totals;
        if let Some(before) = before.or(seen.is_known.then_some(Outcome::UpToDate)) {
            totals.remove(before);
        }
        if seen.outcome != Outcome::Gone {
            totals.add(seen.outcome);
        }
        if seen.is_kept() && has_room {
            known.states.insert(seen.tag.clone(), seen.outcome);
        }
        let kept = known.states.len();
        self.states_kept = self.states_kept + kept - kept_before;
        self.set_totals(key, &totals);
    }

    /// Sets the pending tags, at most `room` of them. Tags that were pending keep their time.
    pub(super) fn set_pending(&mut self, key: &RepositoryKey, tags: &[Tag], room: usize) {
        let before = std::mem::take(&mut self.known(key).pending);
        self.pending -= before.len();
        let now = Instant::now();
        let room = room.saturating_sub(self.pending);
        let pending: BTreeMap<Tag, Instant> = tags
            .iter()
            .take(room)
            .map(|tag| {
                let since = before.get(tag).copied().unwrap_or(now);
                (tag.clone(), since)
            })
            .collect();
        self.pending += pending.len();
        self.known(key).pending = pending;
    }

    /// Whether the tag was not pending before.
    pub(super) fn note_pending(&mut self, key: &RepositoryKey, tag: &Tag) -> bool {
        let pending = &mut self.known(key).pending;
        let is_new = !pending.contains_key(tag);
        if is_new {
            pending.insert(tag.clone(), Instant::now());
        }
        self.pending += usize::from(is_new);
        is_new
    }

    /// Since when the tag was pending, if it was.
    pub(super) fn drop_pending(&mut self, key: &RepositoryKey, tag: &Tag) -> Option<Instant> {
        let since = self
            .repositories
            .get_mut(key)
            .and_then(|known| known.pending.remove(tag));
        self.pending -= usize::from(since.is_some());
        since
    }

    /// Since when the tag is pending, if it is.
    pub(super) fn pending_since(&self, key: &RepositoryKey, tag: &Tag) -> Option<Instant> {
        self.repositories.get(key)?.pending.get(tag).copied()
    }

    /// Pending tags that are in no other state.
    pub(super) fn only_pending(&self) -> u64 {
        (self.pending as u64).saturating_sub(self.sum.failed + self.sum.waiting + self.sum.held)
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        // Called after every look: the cost must not grow with repositories that have no pending
        // tags.
        if self.pending == 0 {
            return None;
        }
        self.repositories
            .values()
            .flat_map(|known| known.pending.values())
            .min()
            .copied()
    }

    /// Whether the newest look at every repository was complete, as far as there was one.
    pub(super) fn is_up(&self) -> bool {
        self.looked && self.blind == 0 && !self.undiscovered && !self.refused
    }

    pub(super) fn has_success(&self) -> bool {
        self.is_up() && self.unseen == 0 && self.pending == 0 && is_success(&self.sum)
    }
}
