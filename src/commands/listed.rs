//! What the lists of both sides show to an order of every tag.

use std::sync::Arc;

use tokio::time::Instant;

use crate::job::{Companions, ObservedVia, TagState};
use crate::oci::{Digest, Tag};
use crate::transfer::pages::ListedTags;

/// What the listings show.
pub(super) struct Listed {
    pub(super) source: ListedTags,
    /// `None`: not listed.
    pub(super) destination: Option<ListedTags>,
    pub(super) destination_via: ObservedVia,
    pub(super) companions: Companions,
    pub(super) at: Instant,
}

impl Listed {
    pub(super) fn of(
        source: ListedTags,
        destination: Option<ListedTags>,
        destination_via: ObservedVia,
        companions: Companions,
    ) -> Listed {
        Listed {
            source,
            destination,
            destination_via,
            companions,
            at: Instant::now(),
        }
    }

    pub(super) fn seen_there(&self, tag: &Tag) -> TagState {
        match self.destination.as_ref().map(|tags| tags.get(tag)) {
            None => TagState::Unknown,
            Some(None) => TagState::Absent,
            Some(Some(tag)) => tag.digest.map_or(TagState::Unknown, TagState::At),
        }
    }

    pub(super) fn has_companions(&self, digest: &Digest) -> bool {
        !self.companions.of(digest).is_empty()
    }
}

pub(super) fn companions(tags: &ListedTags) -> Companions {
    let companions = tags
        .iter()
        .filter(|(tag, _)| tag.travels_with_subject())
        .map(|(tag, listed)| (tag.clone(), listed.digest));
    Companions::Listed(Arc::new(companions.collect()))
}
