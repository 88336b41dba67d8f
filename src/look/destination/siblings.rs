//! Fixed tags in conflict, which refuse their digest to moving tags.

use std::collections::HashSet;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};

use super::{Compared, DestinationLook};
use crate::endpoint::{Repositories, Tally};
use crate::fault::Fault;
use crate::job::TagState;
use crate::oci::{Digest, Tag};
use crate::transfer::plan::{self, Decision, Facts, Order};

impl<B: Repositories> DestinationLook<'_, B> {
    /// Digests that a moving tag must not get. A request for this tag alone does not look at the
    /// fixed tags, so fixed tags with the same digest at staging are compared here.
    pub(super) async fn refused_by_siblings(
        &self,
        tag: &Tag,
        compared: &Compared,
        tally: &Arc<Tally>,
    ) -> Result<Arc<HashSet<Digest>>, Fault> {
        let selection = &self.look.route.selection;
        let fixed = || {
            self.listing
                .siblings
                .iter()
                .filter(|sibling| !selection.is_moving(sibling))
        };
        let asks = selection.is_moving(tag)
            && compared.source != TagState::Absent
            && fixed().next().is_some();
        if !asks {
            return Ok(self.refused.clone());
        }
        let digest = match compared.source {
            TagState::At(digest) => digest,
            TagState::Unknown | TagState::Absent => match self.source_digest(tag, tally).await? {
                TagState::At(digest) => digest,
                TagState::Unknown | TagState::Absent => return Ok(self.refused.clone()),
            },
        };
        let conflicts = fixed().map(|sibling| {
            let sibling = sibling.clone();
            async move {
                let listed = self.listing.tags.get(&sibling);
                let source = match listed.and_then(|listed| listed.digest) {
                    Some(listed) => TagState::At(listed),
                    None => self.source_digest(&sibling, tally).await?,
                };
                self.is_in_conflict(&sibling, source, digest, tally).await
            }
            .boxed()
        });
        self.refused_with(digest, conflicts.collect()).await
    }

    /// The same by answers of now, after staging moved the tag: what the look has read before says
    /// nothing about its new digest.
    pub(super) async fn refused_now(
        &self,
        tag: &Tag,
        tally: &Arc<Tally>,
    ) -> Result<Arc<HashSet<Digest>>, Fault> {
        let TagState::At(digest) = self.resolve(self.source, tag, tally).await? else {
            return Ok(self.refused.clone());
        };
        let look = self.look;
        let engine = &look.topology.engine;
        let tags = engine.tags(self.source, look.request.reading(), look.stop);
        let tags = tags.await?.unwrap_or_default();
        let own = |tag: &&Tag| self.side.is_itself(self.source) && self.side.naming.made(tag);
        let selection = &look.route.selection;
        let chosen = selection.choose(tags.keys().filter(|tag| !own(tag))).chosen;
        let fixed = chosen.into_iter().filter(|tag| !selection.is_moving(tag));
        let conflicts = fixed.map(|sibling| {
            let listed = tags.get(&sibling).and_then(|listed| listed.digest);
            async move {
                let source = match listed {
                    Some(listed) => TagState::At(listed),
                    None => self.resolve(self.source, &sibling, tally).await?,
                };
                self.is_in_conflict(&sibling, source, digest, tally).await
            }
            .boxed()
        });
        self.refused_with(digest, conflicts.collect()).await
    }

    /// Whether a moving tag stands beside fixed tags of its route.
    pub(super) fn has_fixed_beside(&self, tag: &Tag) -> bool {
        let selection = &self.look.route.selection;
        let mut others = self.listing.chosen.iter().chain(&self.listing.siblings);
        selection.is_moving(tag) && others.any(|other| !selection.is_moving(other))
    }

    /// What is refused, with `digest` if one of the fixed tags is in conflict over it.
    async fn refused_with(
        &self,
        digest: Digest,
        conflicts: Vec<BoxFuture<'_, Result<bool, Fault>>>,
    ) -> Result<Arc<HashSet<Digest>>, Fault> {
        let at_once = self.look.topology.settings.tags;
        let mut conflicts = stream::iter(conflicts).buffer_unordered(at_once);
        while let Some(is_in_conflict) = conflicts.next().await {
            if is_in_conflict? {
                let others = self.refused.iter().copied();
                return Ok(Arc::new(others.chain([digest]).collect()));
            }
        }
        Ok(self.refused.clone())
    }

    /// Whether a fixed tag names `digest` at staging, by `source`, and is in conflict over it.
    async fn is_in_conflict(
        &self,
        tag: &Tag,
        source: TagState,
        digest: Digest,
        tally: &Arc<Tally>,
    ) -> Result<bool, Fault> {
        let Some(called) = self
            .side
            .naming
            .name(tag)
            .filter(|_| source == TagState::At(digest))
        else {
            return Ok(false);
        };
        let destination = self
            .resolve(&self.side.repository, &called, tally)
            .await?
            .digest();
        let known = self
            .look
            .topology
            .engine
            .ledger
            .written(&self.place(tag))
            .await?;
        let facts = Facts {
            source: Some(digest),
            destination,
            ledger_known: known.is_known(destination.as_ref()),
            ledger_agrees: destination.is_some_and(|there| known.is_ours(&there)),
        };
        let decision = plan::decide(self.look.route.rules_for(tag), &facts, &Order::default());
        Ok(matches!(decision, Decision::Conflict(_)))
    }
}
