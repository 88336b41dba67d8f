//! Whether an equal tag may lack referrers or companions at the destination.

use std::collections::{HashMap, HashSet};

use futures::FutureExt as _;

use super::{Compared, DestinationLook};
use crate::endpoint::{Repositories, Source};
use crate::fault::Fault;
use crate::job::Cause;
use crate::oci::{Digest, Tag};

/// Most steps from a referrer up to its image.
pub(super) const OWNERS: usize = 8;

impl<B: Repositories> DestinationLook<'_, B> {
    /// Whether a referrer or companion of an equal tag may be missing. The listing shows new
    /// companions. The referrers API is asked when the tag is verified, and at once by `sync` and for
    /// tags named in the request or a notification: once for each digest, unless the source keeps no such lists or
    /// the lists of both repositories show nothing new.
    pub(super) async fn has_news(&self, tag: &Tag, digest: &Digest, compared: &Compared) -> bool {
        let look = self.look;
        if look.plans_alone() {
            return false;
        }
        let engine = &look.topology.engine;
        let stem = Tag::fallback(digest);
        let companions = self
            .listing
            .companions
            .range(stem.clone()..)
            .map(|(tag, _)| tag);
        let missing = |tag: &Tag| {
            self.list
                .as_ref()
                .is_some_and(|list| !list.contains_key(tag))
        };
        let origin = self.side.repository.origin();
        let repository = self.side.repository.repository();
        let mut new = companions
            .take_while(|tag| tag.as_str().starts_with(stem.as_str()))
            .filter(|tag| missing(tag));
        if new.any(|tag| !engine.has_tried(origin, repository, tag)) {
            return true;
        }
        if self.unread_companions().contains(digest) {
            return true;
        }
        let at_once = look.request.cause == Cause::Cli || !look.request.tags.is_empty();
        // A push without a tag may be a referrer: the manifest lists name its subject, at a bounded
        // cost.
        let is_told = look.request.is_notified();
        let may_ask = at_once || is_told || self.is_verified(tag, compared);
        let has_none =
            self.source.lists_referrers() == Some(false) && self.listing.companions.is_empty();
        if !may_ask || has_none {
            return false;
        }
        let checked = engine
            .index
            .checked(&self.side.repository.id(), digest)
            .await;
        let is_due = match checked {
            None => true,
            Some(at) if at_once || is_told => at < self.began,
            // Several tags may name the digest, each with a time of its own.
            Some(at) => self.began.duration_since(at).as_secs() >= self.trust() / 2,
        };
        if !is_due {
            return false;
        }
        let behind = self
            .behind
            .get_or_init(|| self.compare_manifests().boxed())
            .await;
        match behind {
            Some(images) => images.contains(digest),
            None => at_once || !is_told,
        }
    }

    /// The tagged images for which the destination lacks a referrer or a companion, by the manifest
    /// lists that some registries serve. `None`: the lists cannot tell, so each image is asked
    /// about.
    pub(super) async fn compare_manifests(&self) -> Option<HashSet<Digest>> {
        let there_by_tag = self.list.as_ref()?;
        let engine = &self.look.topology.engine;
        let stop = self.look.stop;
        let reading = self.look.request.reading();
        let failed = |fault: &Fault| tracing::debug!(error = %fault.chain(), "the manifests of a repository could not be listed");
        let here = engine
            .listed_manifests(self.source, reading, stop)
            .await
            .inspect_err(failed)
            .ok()??;
        let there = engine
            .listed_manifests(&self.side.repository, reading, stop)
            .await
            .inspect_err(failed)
            .ok()?
            .unwrap_or_default();
        let mut owners: HashMap<Digest, Digest> = here
            .iter()
            .filter_map(|(digest, subject)| Some((*digest, (*subject)?)))
            .collect();
        let mut images = HashSet::new();
        let mut behind = Vec::new();
        for (tag, listed) in &self.listing.tags {
            let digest = listed.digest?;
            if !tag.travels_with_subject() {
                images.insert(digest);
                continue;
            }
            let owner = tag.subject()?;
            if there_by_tag.get(tag) != Some(&Some(digest)) {
                behind.push(owner);
            }
            if owners
                .insert(digest, owner)
                .is_some_and(|other| other != owner)
            {
                return None;
            }
        }
        behind.extend(
            here.iter()
                .filter_map(|(digest, subject)| subject.filter(|_| !there.contains_key(digest))),
        );
        let mut tagged = HashSet::new();
        for digest in behind {
            let owners = std::iter::successors(Some(digest), |digest| owners.get(digest).copied());
            let chain: Vec<Digest> = owners.take(OWNERS).collect();
            let of_images: Vec<Digest> = chain
                .iter()
                .filter(|digest| images.contains(*digest))
                .copied()
                .collect();
            // It may belong to a platform's manifest of any image. A manifest that staging lacks
            // belongs to none.
            if of_images.is_empty() && chain.last().is_some_and(|top| here.contains_key(top)) {
                return None;
            }
            tagged.extend(of_images);
        }
        Some(tagged)
    }
}
