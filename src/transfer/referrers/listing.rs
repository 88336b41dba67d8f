//! Lists of referrers on both sides.

use std::collections::HashSet;

use super::MOST;
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::oci::{Descriptor, Digest, Tag};
use crate::transfer::Promotion;
use crate::transfer::claims::Subject;
use crate::transfer::limits::{RequestClass, RequestPriority};
use crate::transfer::pages::{List, Reading};
use crate::transfer::retry::stoppable;

/// Most referrers of one subject at the destination, where others may have put more.
pub(super) const MOST_THERE: usize = 10_000;

/// The referrers that the destination lists under a subject. Whether it has them is another
/// question.
pub(super) enum ListedThere {
    /// Its list of referrers.
    Kept(HashSet<Digest>),
    /// By the fallback tag, as far as it holds them: it keeps no lists.
    UnderFallback(HashSet<Digest>),
    /// Unknown: it may lack the subject, and no answer shows whether it keeps lists.
    Unclear,
}

impl ListedThere {
    pub(super) fn has(&self, digest: &Digest) -> bool {
        match self {
            ListedThere::Kept(listed) | ListedThere::UnderFallback(listed) => {
                listed.contains(digest)
            }
            ListedThere::Unclear => false,
        }
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Whether the source lists referrers; asked with `subject` if unknown.
    pub(super) async fn source_lists_referrers(&self, subject: &Digest) -> Result<bool, Fault> {
        if self.source.lists_referrers().is_none() {
            self.list_referrers(subject).await?;
        }
        Ok(self.source.lists_referrers() != Some(false))
    }

    /// Whether the destination lists a referrer that it has just accepted. ECR has confirmed the
    /// subject without keeping lists: <https://github.com/sigstore/sigstore-js/issues/1183>
    pub(super) async fn is_listed_now(
        &self,
        subject: &Digest,
        referrer: &Digest,
        there: &ListedThere,
        says_listed: bool,
    ) -> Result<bool, Fault> {
        Ok(match there {
            ListedThere::UnderFallback(_) => false,
            ListedThere::Kept(_) | ListedThere::Unclear if says_listed => true,
            ListedThere::Unclear => false,
            ListedThere::Kept(_) => self.list_kept_there(subject).await?.has(referrer),
        })
    }

    /// The referrers that the destination lists under the subject.
    pub(super) async fn listed_there(
        &self,
        subject: &Digest,
        referrers: &[&Descriptor],
    ) -> Result<ListedThere, Fault> {
        match self.list_kept_there(subject).await? {
            ListedThere::UnderFallback(_) => {}
            kept => return Ok(kept),
        }
        let list = self.fallback_there(&Tag::fallback(subject)).await?;
        let named: HashSet<Digest> = list
            .map(|list| list.children.iter().map(|child| child.digest).collect())
            .unwrap_or_default();
        let listed = referrers.iter().map(|descriptor| descriptor.digest);
        let there = listed.filter(|digest| named.contains(digest)).collect();
        Ok(ListedThere::UnderFallback(there))
    }

    /// The destination's own list. Without one, the fallback tag is not read.
    pub(super) async fn list_kept_there(&self, subject: &Digest) -> Result<ListedThere, Fault> {
        let is_kept = self.destination.lists_referrers() != Some(false);
        if !is_kept || self.destination.abilities().needs_fallback_lists {
            return Ok(ListedThere::UnderFallback(HashSet::new()));
        }
        let mut there = HashSet::new();
        let destination = &self.destination;
        let list = List {
            what: format!("the referrers of {subject} in {}", destination.address()),
            origin: destination.origin(),
            registry: destination.registry(),
            stop: self.stop,
        };
        let has_list = self
            .engine
            .pages_read(
                self.reading(MOST_THERE),
                list,
                |cursor| {
                    let destination = destination.clone();
                    async move {
                        destination
                            .referrers(subject, Option::as_ref(&cursor))
                            .await
                    }
                },
                |entry| there.insert(entry.digest),
            )
            .await?;
        Ok(match (has_list, destination.lists_referrers()) {
            (true, _) | (false, Some(true)) => ListedThere::Kept(there),
            (false, Some(false)) => ListedThere::UnderFallback(HashSet::new()),
            (false, None) => ListedThere::Unclear,
        })
    }

    pub(super) fn reading(&self, most: usize) -> Reading {
        Reading {
            priority: RequestPriority::from(RequestClass::Listing)
                .of_job(&self.ticket)
                .within(self.engine.settings.retry.hold),
            most,
        }
    }

    /// The referrers of `subject` at the source. The first job that needs it finds out whether the
    /// registry lists referrers.
    pub(in crate::transfer) async fn list_referrers(
        &self,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, Fault> {
        let source = &self.source;
        let mut asking = None;
        if source.lists_referrers().is_none() {
            let claimant = self.claimant(subject);
            let claim = self
                .engine
                .claims
                .take(Subject::Referrers(source.origin().clone()), &claimant);
            asking = Some(stoppable(&self.stop.drain, claim).await?);
        }
        if source.lists_referrers() == Some(false) {
            return self.list_fallback(subject).await;
        }
        let mut listed = Vec::new();
        let mut digests = HashSet::new();
        let list = List {
            what: format!("the referrers of {subject} in {}", source.address()),
            origin: source.origin(),
            registry: source.registry(),
            stop: self.stop,
        };
        let has_list = self
            .engine
            .pages_read(
                self.reading(MOST),
                list,
                |cursor| async move { source.referrers(subject, Option::as_ref(&cursor)).await },
                |entry| {
                    let is_new = digests.insert(entry.digest);
                    if is_new {
                        listed.push(entry);
                    }
                    is_new
                },
            )
            .await?;
        drop(asking);
        if has_list {
            Ok(listed)
        } else {
            self.list_fallback(subject).await
        }
    }
}
