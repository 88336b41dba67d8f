//! Fixed tags in conflict, which refuse their digest to moving tags.

use std::collections::HashSet;
use std::sync::Arc;

use futures::FutureExt as _;
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
        let conflicts = fixed().map(|sibling| self.is_in_conflict(sibling, digest, tally).boxed());
        let mut conflicts = stream::iter(conflicts.collect::<Vec<_>>())
            .buffer_unordered(self.look.topology.settings.tags);
        while let Some(is_in_conflict) = conflicts.next().await {
            if is_in_conflict? {
                let others = self.refused.iter().copied();
                return Ok(Arc::new(others.chain([digest]).collect()));
            }
        }
        Ok(self.refused.clone())
    }

    /// Whether a fixed tag names `digest` at staging and is in conflict over it.
    pub(super) async fn is_in_conflict(
        &self,
        tag: &Tag,
        digest: Digest,
        tally: &Arc<Tally>,
    ) -> Result<bool, Fault> {
        let listed = self.listing.tags.get(tag).and_then(|listed| listed.digest);
        let source = match listed {
            Some(listed) => TagState::At(listed),
            None => self.source_digest(tag, tally).await?,
        };
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
