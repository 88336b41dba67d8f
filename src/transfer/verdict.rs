//! Verdict: whether an image may be carried, and whether a tag may be named, now.
//!
//! The decisions in force are asked in the transaction that records the intent and, from memory,
//! directly before each send. They may be about any manifest, config or layer of an image, so while
//! one is about a digest, an image's manifests are all read before it is carried. Without one, none
//! is read that carrying does not need.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::Engine;
use super::Promotion;
use super::refusals;
use super::survey::{Image, TagFacts};
use crate::clock;
use crate::decision::{Block, Candidate, InForce, Verdict, expiry_time};
use crate::endpoint::{Destination, Source, is_clock_off};
use crate::fault::Fault;
use crate::job::{Outcome, TagId};
use crate::ledger::{Carrying, RunFacts};
use crate::oci::{Digest, Manifest};

/// Most images with a stored content.
const MOST_IMAGES: usize = 1000;
/// Most manifests of one image.
const MOST_MANIFESTS: usize = 10_000;

/// The digests of an image: its manifests, configs and layers.
pub(super) type Contents = Arc<HashSet<Digest>>;

/// The contents of images, by digest. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownContents(Arc<Mutex<HashMap<Digest, Contents>>>);

impl KnownContents {
    fn of(&self, digest: &Digest) -> Option<Contents> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).cloned()
    }

    fn note(&self, digest: Digest, contents: Contents) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_IMAGES {
            known.clear();
        }
        known.insert(digest, contents);
    }
}

fn with_indexes(contents: Contents, indexes: impl IntoIterator<Item = Digest>) -> Contents {
    let mut indexes = indexes.into_iter().peekable();
    match indexes.peek() {
        Some(_) => Arc::new(contents.iter().copied().chain(indexes).collect()),
        None => contents,
    }
}

impl Engine {
    /// What is to be done about a tag that still names what a rollback or its torn set replaces.
    pub async fn unmoved(&self, place: &TagId, production: &Digest) -> Option<String> {
        // A ledger that cannot be read is told by what has to be recorded.
        let in_force = self.ledger.in_force().await.ok()?;
        let now = clock::now();
        if let Some((hold, to)) = in_force.way_back(place, production, now) {
            let refusal = self.refused_way_back(place, to);
            let why = refusal.map(|refusal| format!(": {refusal}"));
            return Some(format!(
                "the set is torn (decision {hold}), and the tag is still to go back to {to}{}",
                why.unwrap_or_default()
            ));
        }
        in_force.unmoved(place, production, now)
    }

    /// The refusal of an earlier job to move a tag back, where it still holds for polls.
    pub fn refused_way_back(&self, place: &TagId, to: Digest) -> Option<Fault> {
        let subject = refusals::Subject::of_name(place, to);
        self.refusals.held(&subject, None)
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// The digests of an image, while a decision in force is about a digest: it is part of the index
    /// that it was chosen from. Manifests that a survey has read are not read again. A rollback goes
    /// to what was promoted before.
    pub(super) async fn contents(
        &self,
        top: Digest,
        index: Option<Digest>,
        surveyed: Option<&Image>,
    ) -> Result<Option<Contents>, Fault> {
        if self.job.rollback.is_some() {
            return self.former_contents(top, surveyed).await;
        }
        let contents = self.contents_of(top, surveyed).await?;
        Ok(contents.map(|contents| with_indexes(contents, index)))
    }

    /// The same of an image that was promoted before. The ledger knows of which indexes it was a
    /// part then.
    pub(super) async fn former_contents(
        &self,
        top: Digest,
        surveyed: Option<&Image>,
    ) -> Result<Option<Contents>, Fault> {
        let Some(contents) = self.contents_of(top, surveyed).await? else {
            return Ok(None);
        };
        let place = &self.job.key.destination;
        let indexes = self.engine.ledger.indexes_of(place, &top).await?;
        Ok(Some(with_indexes(contents, indexes)))
    }

    async fn contents_of(
        &self,
        top: Digest,
        surveyed: Option<&Image>,
    ) -> Result<Option<Contents>, Fault> {
        let in_force = self.engine.ledger.in_force().await?;
        if !in_force.is_about_digests(self.expiry_time()) {
            return Ok(None);
        }
        if let Some(known) = self.engine.contents.of(&top) {
            return Ok(Some(known));
        }
        let surveyed = surveyed.map(Image::manifests).into_iter().flatten();
        let surveyed: HashMap<Digest, &Manifest> = surveyed
            .map(|manifest| (manifest.digest, manifest))
            .collect();
        let contents = Arc::new(self.all_digests(top, &surveyed).await?);
        // An image has at least a config: its digest alone means that its manifest was not there.
        if contents.len() > 1 {
            self.engine.contents.note(top, contents.clone());
        }
        Ok(Some(contents))
    }

    async fn all_digests(
        &self,
        top: Digest,
        surveyed: &HashMap<Digest, &Manifest>,
    ) -> Result<HashSet<Digest>, Fault> {
        let mut digests = HashSet::from([top]);
        let mut manifests = 0;
        let mut next = vec![top];
        while let Some(digest) = next.pop() {
            manifests += 1;
            if manifests > MOST_MANIFESTS {
                let reference = self.source_reference();
                let text = format!("{reference} has more than {MOST_MANIFESTS} manifests");
                return Err(Fault::rejected(text));
            }
            let manifest = match surveyed.get(&digest) {
                Some(manifest) => Some((*manifest).clone()),
                None => self.manifest_anywhere(digest).await?,
            };
            let Some(manifest) = manifest else { continue };
            digests.extend(manifest.blobs.iter().map(|blob| blob.digest));
            for child in manifest.children {
                if digests.insert(child.digest) && !child.media_type.is_surely_blob() {
                    next.push(child.digest);
                }
            }
        }
        Ok(digests)
    }

    /// A manifest by its digest. Staging may have lost one that production holds. `None`: neither
    /// has it under the type of a manifest, so it is a blob.
    async fn manifest_anywhere(&self, digest: Digest) -> Result<Option<Manifest>, Fault> {
        if let Some(manifest) = self.source_manifest(digest.into()).await? {
            return Ok(Some(manifest));
        }
        self.destination_manifest(digest).await
    }

    /// Why a denial keeps an image from being carried, if one does.
    pub(super) fn denial(&self, contents: Option<&Contents>) -> Option<Block> {
        let in_force = self.engine.ledger.known_decisions();
        in_force.denied(contents?.iter(), self.expiry_time())
    }

    /// Refuses a part of an image that was denied meanwhile, or that belongs to an image with a
    /// denied part.
    pub(super) fn is_not_denied(&self, digest: &Digest) -> Result<(), Fault> {
        let in_force = self.engine.ledger.known_decisions();
        let now = self.expiry_time();
        let carried = self.carried();
        let denied = in_force.denials(now).filter(|denied| {
            let is_beside = carried.as_ref().is_some_and(|all| all.contains(denied));
            *denied == digest || is_beside
        });
        match in_force.denied(denied.collect::<Vec<_>>(), now) {
            Some(block) => Err(Fault::rejected(block.reasons.join("; "))),
            None => Ok(()),
        }
    }

    /// The digests of the image that is carried, as far as the survey has them.
    pub(super) fn carried(&self) -> Option<Contents> {
        let carried = self.carried.lock().expect("nothing panics while it notes");
        carried.clone()
    }

    /// Counts a request as on its way that brings `digest`, unless a denial stops it: a denial that
    /// comes later waits for its answer.
    pub(super) fn begin_carry(&self, digest: &Digest) -> Result<Carrying, Fault> {
        let carrying = self.engine.ledger.begin_carry(*digest, self.carried());
        self.is_not_denied(digest)?;
        Ok(carrying)
    }

    /// A tag that is about to name an image: the job's own, or one beside it.
    pub(super) fn candidate(
        &self,
        place: &TagId,
        digest: Digest,
        contents: Option<Contents>,
    ) -> Candidate {
        let own = &self.job.key.destination;
        let accepted = self.accepted.lock().expect("nothing panics while it notes");
        let accepted = accepted.as_ref().map(|accept| accept.decision);
        Candidate {
            routes: self.job.routes.clone(),
            registry: self.destination.registry().into(),
            place: place.clone(),
            set: self.stop.sets.name_of(own),
            beside: (place != own).then(|| own.clone()),
            digest,
            index: None,
            rollback: self.job.rollback,
            accepted: accepted.filter(|_| place == own),
            contents,
            is_clock_off: self.is_clock_off(),
        }
    }

    /// Whether our clock is off the destination's: then nothing expires.
    pub(super) fn is_clock_off(&self) -> bool {
        is_clock_off(self.destination.clock_skew())
    }

    /// The time by which decisions about the destination expire.
    pub(super) fn expiry_time(&self) -> Timestamp {
        expiry_time(self.is_clock_off(), clock::now())
    }

    /// Whether the job's own tag may name an image now.
    pub(super) fn verdict(&self, digest: Digest, contents: Option<Contents>) -> Verdict {
        self.verdict_at(&self.job.key.destination, digest, contents)
    }

    fn verdict_at(&self, place: &TagId, digest: Digest, contents: Option<Contents>) -> Verdict {
        let candidate = self.candidate(place, digest, contents);
        let in_force = self.engine.ledger.known_decisions();
        in_force.judge(&candidate, clock::now())
    }

    /// Why nothing is to be named beside an image that is in production, if so.
    pub(super) async fn block_beside(&self, digest: Digest) -> Result<Option<Block>, Fault> {
        self.engine.ledger.in_force().await?;
        Ok(self.block_of(digest, None))
    }

    /// Why a rollback keeps staging's digest out of the job's tag, if one does.
    pub(super) async fn kept_out(&self, facts: &TagFacts) -> Result<Option<Block>, Fault> {
        let Some(staging) = facts.source.filter(|_| self.job.rollback.is_none()) else {
            return Ok(None);
        };
        let place = &self.job.key.destination;
        let in_force = self.engine.ledger.in_force().await?;
        self.end_mended(facts, &in_force).await?;
        let now = self.expiry_time();
        let block = match in_force.kept_out(place, &staging, now) {
            Some(block) => Some(block),
            None => self.comes_back(&staging, &in_force).await?,
        };
        let Some(mut block) = block else {
            return Ok(None);
        };
        let stays = facts.destination.as_ref();
        let unmoved = stays.and_then(|digest| in_force.unmoved(place, digest, now));
        block.reasons.extend(unmoved);
        // What cannot be read of the image ends no rollback.
        let contents = self.contents(staging, facts.index, None).await;
        Ok(Some(
            match self.block_of(staging, contents.ok().flatten()) {
                Some(all) => all.and(block),
                None => block,
            },
        ))
    }

    /// Why an image that was not carried is kept from its tag, if so.
    pub(super) fn block_of(&self, digest: Digest, contents: Option<Contents>) -> Option<Block> {
        self.block_at(&self.job.key.destination, digest, contents)
    }

    /// The same of the job's tag or one beside it.
    pub(super) fn block_at(
        &self,
        place: &TagId,
        digest: Digest,
        contents: Option<Contents>,
    ) -> Option<Block> {
        let contents = contents.unwrap_or_else(|| Arc::new(HashSet::from([digest])));
        match self.verdict_at(place, digest, Some(contents)) {
            Verdict::Blocked(block) => Some(block),
            Verdict::Clear | Verdict::Unknown => None,
        }
    }

    /// Why a digest waits that the tag named before it was rolled back: a replica of staging that
    /// lags may show it. Two looks that find it end the rollback.
    async fn comes_back(
        &self,
        staging: &Digest,
        in_force: &InForce,
    ) -> Result<Option<Block>, Fault> {
        if self.job.explicit {
            return Ok(None);
        }
        let place = &self.job.key.destination;
        let now = self.expiry_time();
        let Some(rollback) = in_force.rollback_of(place, now) else {
            return Ok(None);
        };
        if rollback.decision.digest == Some(*staging) {
            return Ok(None);
        }
        let earlier = self.engine.ledger.digests_of(place, rollback.id).await?;
        Ok(earlier.contains(staging).then(|| {
            let reason = rollback.reason("rolled back", now);
            let waits = "staging names what the tag named before that: a second look, a minute later, has to find it, too";
            Block {
                outcome: Outcome::Held,
                reasons: vec![format!("{reason}; {waits}")],
            }
        }))
    }

    /// Says that both sides name what a rollback of the tag replaces.
    pub(super) async fn note_unmoved(&self, facts: &TagFacts) {
        let Some(named) = facts.destination.filter(|_| self.job.rollback.is_none()) else {
            return;
        };
        let place = &self.job.key.destination;
        let unmoved = self.engine.unmoved(place, &named).await;
        if let Some(reason) = unmoved {
            self.note_reason(reason);
        }
    }

    /// Ends the holds of the tag's torn set, once staging names something else for a member. A list
    /// that lags and what was seen before the hold tell nothing of that, nor does what another
    /// source names.
    async fn end_mended(&self, facts: &TagFacts, in_force: &InForce) -> Result<(), Fault> {
        if in_force.torn(self.expiry_time()).next().is_none() {
            return Ok(());
        }
        let job = self.job;
        let is_told = facts.source_at.is_some() && !job.explicit && !job.dry_run;
        let staging = facts.source.filter(|_| is_told);
        let Some((staging, set)) = staging.zip(self.set()) else {
            return Ok(());
        };
        let mended = in_force.mended(&set.name, &staging, self.expiry_time());
        let mended = mended.iter().filter(|one| one.at < job.look_began);
        let ids: Vec<u64> = mended.map(|one| one.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let why = format!("staging names {staging}");
        let facts = RunFacts::default();
        self.engine.ledger.end_decisions(ids, &why, facts).await?;
        self.engine.wake_members(&set, &job.key);
        Ok(())
    }
}
