//! What a look reads before it compares: tag lists, ledger records and hints.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{DestinationTags, RepositoryLook};
use crate::endpoint::{Repositories, RouteSource, Source};
use crate::fault::Fault;
use crate::index::TagHint;
use crate::job::TagId;
use crate::ledger::TagRecord;
use crate::look::rounds::VerifyRounds;
use crate::look::topology::Side;
use crate::oci::{Digest, Tag};
use crate::transfer::pages::ListedTags;

/// A source repository's tags.
pub(super) struct Listing {
    pub(super) at: Instant,
    pub(super) tags: ListedTags,
    pub(super) chosen: Vec<Tag>,
    /// Other tags that the rules select, if the request names tags.
    pub(super) siblings: Vec<Tag>,
    pub(super) companions: Arc<BTreeMap<Tag, Option<Digest>>>,
    pub(super) excluded: u64,
    /// What fixed tags named when they were last asked about, as far as this look need not ask.
    pub(super) remembered: HashMap<Tag, Digest>,
}

/// The tags of a destination. `Ok(None)`: the request names its tags, so nothing was listed.
/// `Ok(Some(None))`: the destination has no list.
pub(super) type DestinationList = Result<Option<Option<DestinationTags>>, Fault>;

impl<B: Repositories> RepositoryLook<'_, B> {
    pub(super) async fn list_source(
        &self,
        source: &RouteSource<B::Repository>,
        sides: &[Side<B::Repository>],
        began: Timestamp,
    ) -> Result<Option<Listing>, Fault> {
        let at = Instant::now();
        let Some(tags) = self
            .topology
            .engine
            .source_tags(source, self.request.reading(), self.stop)
            .await?
        else {
            return Ok(None);
        };
        // Tags that a route wrote into its own source are not sources again.
        let own = |tag: &&Tag| {
            !sides
                .iter()
                .any(|side| side.is_itself(source) && side.naming.made(tag))
        };
        let choice = self.route.selection.choose(tags.keys().filter(own));
        self.are_enough(source, choice.chosen.len())?;
        let named_but_left_out = self
            .request
            .tags
            .iter()
            .filter(|tag| tags.contains_key(*tag) && !choice.chosen.contains(tag))
            .count();
        let excluded = if self.request.tags.is_empty() {
            choice.excluded
        } else {
            named_but_left_out
        };
        let (mut chosen, siblings): (Vec<Tag>, Vec<Tag>) = choice
            .chosen
            .into_iter()
            .partition(|tag| self.request.tags.is_empty() || self.request.tags.contains(tag));
        chosen.sort_unstable();
        let companions = tags.iter().filter(|(tag, _)| tag.travels_with_subject());
        let companions = companions
            .map(|(tag, listed)| (tag.clone(), listed.digest))
            .collect();
        Ok(Some(Listing {
            at,
            chosen,
            siblings,
            companions: Arc::new(companions),
            excluded: excluded as u64,
            remembered: self.remembered_tags(source, &tags, began).await,
            tags,
        }))
    }

    /// A repository with too few chosen tags fails the look, whatever it asks for: one that has
    /// lost its tags would else look like one that is up to date.
    fn are_enough(&self, source: &RouteSource<B::Repository>, chosen: usize) -> Result<(), Fault> {
        let at_least = self.route.selection.at_least;
        if chosen >= at_least {
            return Ok(());
        }
        Err(Fault::rejected(format!(
            "the rules choose {chosen} tags of {}, and `at_least` asks for {at_least}: nothing of it is promoted until \
             they are back or `at_least` is lower (`blobferry copy` takes over one image)",
            source.address()
        )))
    }

    /// Whether it is a look of the daemon's own at all tags.
    pub(super) fn is_routine(&self) -> bool {
        self.request.trusts_source_hints && self.request.tags.is_empty()
    }

    /// Whether a tag of staging is asked about once in a round only: a fixed one without a digest
    /// in the listing.
    pub(super) fn has_rounds(&self, tag: &Tag, listed: Option<Digest>) -> bool {
        listed.is_none() && !self.route.selection.is_moving(tag)
    }

    /// What the index knows of the tags that this look need not ask about. What is no longer listed
    /// is forgotten: a tag that comes back is new.
    async fn remembered_tags(
        &self,
        source: &RouteSource<B::Repository>,
        tags: &ListedTags,
        began: Timestamp,
    ) -> HashMap<Tag, Digest> {
        let has_digests = tags.values().all(|listed| listed.digest.is_some());
        if !self.is_routine() || has_digests {
            return HashMap::new();
        }
        let index = &self.topology.engine.index;
        let repository = source.tags_id();
        let rounds = VerifyRounds::of(&self.topology.intervals);
        let hints = index.tags(&repository).await;
        let gone = hints.keys().filter(|tag| !tags.contains_key(*tag));
        let mut gone: Vec<_> = gone.map(|tag| (tag.clone(), None)).collect();
        gone.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        if !gone.is_empty() {
            index.remember_tags(&repository, gone).await;
        }
        let with_rounds = tags
            .iter()
            .filter(|(tag, listed)| self.has_rounds(tag, listed.digest));
        with_rounds
            .filter_map(|(tag, _)| {
                let hint = hints.get(tag)?;
                let is_in_round = rounds.are_together((&repository, tag), hint.seen, began);
                is_in_round.then(|| (tag.clone(), hint.digest))
            })
            .collect()
    }

    /// The tags of a destination. `None`: the request names its tags.
    pub(super) async fn list_destination(&self, side: &Side<B::Repository>) -> DestinationList {
        if !self.request.tags.is_empty() {
            return Ok(None);
        }
        let tags = self
            .topology
            .engine
            .tags(&side.repository, self.request.reading(), self.stop)
            .await?;
        Ok(Some(tags.map(|tags| {
            tags.into_iter()
                .map(|(tag, listed)| (tag, listed.digest))
                .collect()
        })))
    }

    /// Loads the tags in trouble from the ledger. The routine poll relies on the memory of this
    /// process.
    pub(super) async fn recall_trouble(&self, side: &Side<B::Repository>) -> Result<(), Fault> {
        if self.request.trusts_hints {
            return Ok(());
        }
        let engine = &self.topology.engine;
        let troubled = engine
            .ledger
            .troubled(side.repository.origin(), side.repository.repository())
            .await?;
        engine.remember_trouble(troubled.into_iter().map(|row| row.key));
        Ok(())
    }

    /// The ledger's records of production's tags, read in one query for a whole repository.
    pub(super) async fn known(
        &self,
        side: &Side<B::Repository>,
        listing: &Listing,
    ) -> Result<HashMap<Tag, TagRecord>, Fault> {
        let ledger = &self.topology.engine.ledger;
        let origin = side.repository.origin();
        if self.request.tags.is_empty() {
            return ledger
                .written_in(origin, side.repository.repository())
                .await;
        }
        let mut known = HashMap::new();
        for tag in listing
            .chosen
            .iter()
            .filter_map(|tag| side.naming.name(tag))
        {
            let origin = origin.clone();
            let repository = side.repository.repository().clone();
            let written = ledger
                .written(&TagId {
                    origin,
                    repository,
                    tag: tag.clone(),
                })
                .await?;
            known.insert(tag, written);
        }
        Ok(known)
    }

    /// The index's hints of production's tags, for looks that trust hints.
    pub(super) async fn hints(
        &self,
        side: &Side<B::Repository>,
        listing: &Listing,
    ) -> HashMap<Tag, TagHint> {
        if !self.uses_hints(listing) {
            return HashMap::new();
        }
        let engine = &self.topology.engine;
        engine.index.tags(&side.repository.id()).await
    }

    fn uses_hints(&self, listing: &Listing) -> bool {
        self.request.trusts_hints || !listing.remembered.is_empty()
    }

    /// The tags of production that last differed: no hint counts for them.
    pub(super) fn troubled(&self, side: &Side<B::Repository>, listing: &Listing) -> HashSet<Tag> {
        if !self.uses_hints(listing) {
            return HashSet::new();
        }
        let origin = side.repository.origin();
        let repository = side.repository.repository();
        let engine = &self.topology.engine;
        engine.troubled_tags(&self.route.name, origin, repository)
    }
}
