//! The comparison of a tag: the digests of both sides.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::DestinationLook;
use crate::clock;
use crate::endpoint::{Destination, Repositories, Source, Tally};
use crate::fault::Fault;
use crate::job::{ObservedVia, TagState};
use crate::oci::{Digest, Tag};
use crate::transfer::absent::contradiction;
use crate::transfer::limits::RequestClass;
use crate::transfer::resolve::Attempts;

/// Digests of source tags that several destinations need. Each is asked for once.
#[derive(Default)]
pub(in crate::look) struct SourceDigests(
    tokio::sync::Mutex<HashMap<Tag, Arc<tokio::sync::OnceCell<Option<Digest>>>>>,
);

/// The digests of a tag on both sides, as far as the look knows them.
pub(super) struct Compared {
    pub(super) source: TagState,
    pub(super) destination: TagState,
    /// What production was asked for.
    pub(super) destination_via: ObservedVia,
    /// When the source was asked about the tag. `None`: only a listing that may lag has answered.
    pub(super) source_at: Option<Instant>,
    /// When production was asked.
    pub(super) destination_at: Instant,
    /// Whether production's digest comes from the index.
    pub(super) by_hint: bool,
    /// Whether staging's digest comes from the index.
    pub(super) source_by_hint: bool,
}

impl Compared {
    pub(super) fn nothing() -> Compared {
        let source = TagState::Unknown;
        let destination = TagState::Unknown;
        Compared {
            source,
            destination,
            destination_via: ObservedVia::Tag,
            source_at: None,
            destination_at: Instant::now(),
            by_hint: false,
            source_by_hint: false,
        }
    }

    /// Whether a side was not asked.
    pub(super) fn is_by_hint(&self) -> bool {
        self.by_hint || self.source_by_hint
    }

    pub(super) fn equal(&self) -> Option<Digest> {
        self.source
            .digest()
            .filter(|_| self.source == self.destination)
    }

    /// What staging was found to name: a hint is no answer.
    pub(super) fn read_source(&self) -> TagState {
        if self.source_by_hint {
            TagState::Unknown
        } else {
            self.source
        }
    }

    /// What a job may act on: answers, never hints.
    pub(super) fn without_hint(self) -> Compared {
        let unless = |by_hint: bool, state| if by_hint { TagState::Unknown } else { state };
        Compared {
            source: unless(self.source_by_hint, self.source),
            destination: unless(self.by_hint, self.destination),
            by_hint: false,
            source_by_hint: false,
            ..self
        }
    }
}

impl<B: Repositories> DestinationLook<'_, B> {
    /// Compares both sides. The source digest of a tag that production lacks stays unknown: its job
    /// reads the manifest anyway.
    pub(super) async fn compare(&self, tag: &Tag, tally: &Arc<Tally>) -> Result<Compared, Fault> {
        let now = Instant::now();
        let called = &self.there(tag);
        let listed = self.listing.tags.get(tag).and_then(|listed| listed.digest);
        let there = self.list.as_ref().and_then(|list| *list.get(called)?);
        let may_be_behind = self.may_be_behind(called, there);
        let source_at = if listed.is_some() {
            self.listed_at()
        } else {
            Some(self.shared.map_or(now, |_| self.listing.at))
        };
        let list = self.list.as_ref();
        let is_missing = list.is_some_and(|list| !list.contains_key(called));
        // One wrong list would move a tag that the ledger knows: the tag itself is asked as well.
        let known = self.known.get(called);
        let is_known = known.is_some_and(|known| known.digest.is_some());
        if is_missing && !may_be_behind && !is_known {
            let source = match (listed, self.shared) {
                (Some(digest), _) => TagState::At(digest),
                (None, Some(_)) => self.source_digest(tag, tally).await?,
                (None, None) => TagState::Unknown,
            };
            let destination_via = if self.has_list {
                ObservedVia::List
            } else {
                ObservedVia::MissingList
            };
            return Ok(Compared {
                source,
                destination: TagState::Absent,
                destination_via,
                source_at,
                destination_at: self.listing.at,
                by_hint: false,
                source_by_hint: false,
            });
        }
        let there = there.filter(|_| !may_be_behind);
        // Where a list lacks the tag, a hint may be behind its deletion.
        let hint = match there {
            None if !is_missing || self.is_unlisted(called) => self.fresh_hint(tag),
            _ => None,
        };
        let source = |remembered: Option<Digest>| async move {
            match listed.or(remembered) {
                Some(digest) => Ok(TagState::At(digest)),
                None => self.source_digest(tag, tally).await,
            }
        };
        if let Some(known) = there.or(hint) {
            let remembered = self.remembered(tag).filter(|digest| *digest == known);
            let compared = Compared {
                source: source(remembered).await?,
                destination: TagState::At(known),
                destination_via: ObservedVia::List,
                source_at: source_at.filter(|_| remembered.is_none()),
                destination_at: self.listing.at,
                by_hint: hint.is_some(),
                source_by_hint: remembered.is_some(),
            };
            if compared.equal().is_none() || !self.is_troubled_behind_list(tag) {
                return Ok(compared);
            }
            return Ok(Compared {
                destination_at: Instant::now(),
                destination: self.resolve(&self.side.repository, called, tally).await?,
                destination_via: ObservedVia::Tag,
                by_hint: false,
                ..compared
            });
        }
        let (source, destination) = futures::try_join!(
            source(None),
            self.resolve(&self.side.repository, called, tally)
        )?;
        if destination == TagState::Absent && self.is_listed_now(called) {
            return Err(contradiction(&self.side.repository.address(), called));
        }
        if is_missing {
            self.note_answer(called, destination);
        }
        Ok(Compared {
            source,
            destination,
            destination_via: ObservedVia::Tag,
            source_at,
            destination_at: now,
            by_hint: false,
            source_by_hint: false,
        })
    }

    /// Whether production's listing may predate an earlier write. Then the tag itself is asked.
    pub(super) fn may_be_behind(&self, tag: &Tag, listed: Option<Digest>) -> bool {
        let is_current = self.side.repository.abilities().current_lists;
        !is_current
            && self
                .known
                .get(tag)
                .is_some_and(|known| known.may_be_behind(listed, clock::now()))
    }

    pub(super) async fn source_digest(
        &self,
        tag: &Tag,
        tally: &Arc<Tally>,
    ) -> Result<TagState, Fault> {
        let Some(shared) = self.shared else {
            return self.resolve(self.source, tag, tally).await;
        };
        let cell = shared
            .0
            .lock()
            .await
            .entry(tag.clone())
            .or_default()
            .clone();
        let digest = cell
            .get_or_try_init(|| async {
                Ok::<_, Fault>(self.resolve(self.source, tag, tally).await?.digest())
            })
            .await?;
        Ok(digest.map_or(TagState::Absent, TagState::At))
    }

    pub(super) async fn resolve<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        tally: &Arc<Tally>,
    ) -> Result<TagState, Fault> {
        let engine = &self.look.topology.engine;
        let priority = self.look.request.priority(RequestClass::Manifests);
        let resolved = engine
            .resolve_tag(
                &repository.counted(tally),
                tag,
                priority,
                Attempts::Retried,
                self.look.stop,
            )
            .await?;
        Ok(resolved.map_or(TagState::Absent, TagState::At))
    }
}
