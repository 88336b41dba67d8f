//! Companion tags: what earlier looks found of them, and what they add to a report.

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock};

use super::DestinationLook;
use crate::endpoint::{Repositories, Source};
use crate::job::{Job, Settled, tag_of};
use crate::look::DestinationResult;
use crate::oci::{Digest, Tag};
use crate::transfer::companions::{Addresses, CompanionOutcome};

/// Companion tags that the jobs of a look have asked about.
#[derive(Default)]
pub(in crate::look) struct SeenCompanions {
    pub(super) asked: Mutex<HashSet<Tag>>,
    /// Those that stay as they are, and are not in the report yet.
    pub(super) kept: Mutex<Vec<Settled>>,
    /// See [`DestinationLook::unread_companions`].
    pub(super) unread: OnceLock<HashSet<Digest>>,
}

impl<B: Repositories> DestinationLook<'_, B> {
    /// Settles the companions that a job has looked at, each once in a look: several tags may name
    /// one image.
    pub(super) async fn settle_companions(&self, job: &Job, companions: Vec<CompanionOutcome>) {
        let new: Vec<CompanionOutcome> = {
            let mut asked = self
                .companions
                .asked
                .lock()
                .expect("nothing panics while it notes");
            companions
                .into_iter()
                .filter(|companion| asked.insert(companion.tag.clone()))
                .collect()
        };
        let addresses = Addresses {
            source: &self.source.address(),
            destination: &self.side.repository.address(),
            registry: &self.side.registry,
        };
        let kept = self
            .look
            .topology
            .engine
            .settle_companions(self.look.settle, job, addresses, new)
            .await;
        self.companions
            .kept
            .lock()
            .expect("nothing panics while it notes")
            .extend(kept);
    }

    /// The subjects of companions that an earlier process has found to stay as they are: this one
    /// asks about them once.
    pub(super) fn unread_companions(&self) -> &HashSet<Digest> {
        self.companions.unread.get_or_init(|| {
            let engine = &self.look.topology.engine;
            let route = &self.look.route.name;
            let origin = self.side.repository.origin();
            let repository = self.side.repository.repository();
            let there = (origin, repository);
            let read: HashSet<Tag> = engine
                .kept_companions(route, self.look.repository, there)
                .into_iter()
                .map(|(tag, _)| tag)
                .collect();
            engine
                .troubled_tags(route, origin, repository)
                .iter()
                .filter(|tag| self.listing.companions.contains_key(*tag) && !read.contains(*tag))
                .filter_map(Tag::subject)
                .collect()
        })
    }

    /// Reports the companions that stay as they are, as this look has found them.
    pub(super) fn report_companions(&self, found: &mut DestinationResult) {
        let kept = std::mem::take(
            &mut *self
                .companions
                .kept
                .lock()
                .expect("nothing panics while it notes"),
        );
        for settled in kept {
            let tag = tag_of(&settled.destination).and_then(|tag| tag.parse().ok());
            self.count(tag.as_ref(), settled.result, found);
            found.jobs.push(settled);
        }
    }

    /// Reports the companions that an earlier look has found to stay as they are, and that this one
    /// had no reason to ask about. Those that the source no longer lists are forgotten.
    pub(in crate::look) fn report_kept_companions(&self, found: &mut DestinationResult) {
        let destination = &self.side.repository;
        let engine = &self.look.topology.engine;
        let kept = engine.kept_companions(
            &self.look.route.name,
            self.look.repository,
            (destination.origin(), destination.repository()),
        );
        let mut tags = kept.iter().map(|(tag, _)| tag);
        if !tags.all(|tag| self.listing.companions.contains_key(tag)) {
            engine.retain_companions(|key| {
                key.route != self.look.route.name
                    || key.source != *self.look.repository
                    || self.listing.companions.contains_key(&key.tag)
            });
        }
        let asked = self
            .companions
            .asked
            .lock()
            .expect("nothing panics while it notes");
        for (tag, settled) in kept {
            if self.listing.companions.contains_key(&tag) && !asked.contains(&tag) {
                self.count(Some(&tag), settled.result, found);
                found.jobs.push(settled);
            }
        }
    }
}
