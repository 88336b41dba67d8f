//! Listed tags that answer 404, and tags that answer and are not listed.

use tokio::time::Instant;

use super::DestinationLook;
use crate::endpoint::{Destination, Repositories, Source};
use crate::job::TagState;
use crate::oci::Tag;

impl<B: Repositories> DestinationLook<'_, B> {
    /// When staging's listing answered for its tags. `None`: the listing may lag behind them.
    pub(super) fn listed_at(&self) -> Option<Instant> {
        let is_current = self.source.whole().abilities().current_lists;
        is_current.then_some(self.listing.at)
    }

    /// Whether production's list shows the tag, so that an answer that it is not there is no proof:
    /// where lists are made from what the registry holds at that moment, and for a tag that the
    /// ledger knows. A list that lags then costs a delay; one wrong 404 would move a fixed tag.
    pub(super) fn is_listed_now(&self, tag: &Tag) -> bool {
        let is_current = self.side.repository.abilities().current_lists;
        let is_listed = self
            .list
            .as_ref()
            .is_some_and(|list| list.contains_key(tag));
        let known = self.known.get(tag);
        is_listed && (is_current || known.is_some_and(|known| known.digest.is_some()))
    }

    /// Whether the tag has answered since production's list, which may lag, lacks it.
    pub(super) fn is_unlisted(&self, called: &Tag) -> bool {
        let repository = &self.side.repository;
        let engine = &self.look.topology.engine;
        !repository.abilities().current_lists && engine.is_unlisted(&repository.id(), called)
    }

    /// Notes whether a tag answers that production's list, which may lag, lacks.
    pub(super) fn note_answer(&self, called: &Tag, answer: TagState) {
        let repository = &self.side.repository;
        if repository.abilities().current_lists {
            return;
        }
        let engine = &self.look.topology.engine;
        match answer {
            TagState::At(_) => engine.note_unlisted(repository.id(), called),
            TagState::Absent | TagState::Unknown => {
                engine.forget_unlisted(&repository.id(), called);
            }
        }
    }

    /// Notes what production's list shows: the tags that it lacked before, or none although the
    /// ledger knows some.
    pub(in crate::look) fn note_list(&self) {
        let Some(list) = &self.list else {
            return;
        };
        let repository = &self.side.repository;
        let engine = &self.look.topology.engine;
        engine.forget_listed(&repository.id(), |tag| list.contains_key(tag));
        let known = self.known.values().filter(|known| known.digest.is_some());
        let unlisted = match list.is_empty() {
            true => known.count(),
            false => 0,
        };
        engine.note_list(repository, unlisted);
    }

    /// Whether the tag's last result was trouble at a registry whose listing may lag. A listing
    /// that predates the trouble does not end it.
    pub(super) fn is_troubled_behind_list(&self, tag: &Tag) -> bool {
        let is_current = self.side.repository.abilities().current_lists;
        !is_current && self.look.topology.engine.is_in_trouble(&self.key(tag))
    }
}
