//! Referrers: signatures, SBOMs and attestations travel with their subject and arrive before its
//! tag.
//!
//! They are found through the referrers API, else through the fallback tag, and through cosign's
//! tags: in the source's listing, or by name without one. Referrers of referrers and of companions
//! are found likewise, to a bounded depth. A failed look-up is a failure, never "no referrers".
//!
//! Whether a registry lists referrers is learnt from its answers, for each side separately. If the
//! destination does, no fallback tag is written there. If it does not, and in layouts, the fallback
//! tag is updated by one writer at a time, with staging's own list if that is equal. A referrer
//! that the destination refuses is reported and does not fail its subject.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Promotion;
use super::claims::{Claim, Subject};
use super::companions::CompanionOutcome;
use super::limits::{RequestClass, RequestPriority};
use super::name::{NameOrigin, Named, Naming};
use super::pages::{List, Reading};
use super::plan::{self, Decision, Facts, Order};
use super::retry::stoppable;
use super::survey::{Image, TagFacts};
use crate::endpoint::{Destination, Put, Source};
use crate::fault::{Class, Fault};
use crate::job::{Companions, Outcome, ReferrerOutcome, TagId, TagRules};
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Algorithm, Descriptor, Digest, Kind, Manifest, Tag, Target};

/// How far referrers of referrers are followed, and indexes in indexes.
const DEPTH: usize = 4;
/// Most referrers of one image.
const MOST: usize = 1000;
/// Most referrers of one subject at the destination, where others may have put more.
const MOST_THERE: usize = 10_000;
/// Rounds of a companion: a side may move it while it is carried.
const ROUNDS: usize = 5;
/// Writes of one list before the job yields to another writer.
const WRITES: usize = 4;
/// Most refused referrers of a job that are reported one by one.
const REFUSALS_TOLD: u64 = 8;

/// The referrers that the destination lists under a subject.
enum ListedThere {
    /// Its list of referrers.
    Kept(HashSet<Digest>),
    /// By the fallback tag, as far as it holds them: it keeps no lists.
    UnderFallback(HashSet<Digest>),
    /// Unknown: it may lack the subject, and no answer shows whether it keeps lists.
    Unclear,
}

impl ListedThere {
    fn has(&self, digest: &Digest) -> bool {
        match self {
            ListedThere::Kept(listed) | ListedThere::UnderFallback(listed) => {
                listed.contains(digest)
            }
            ListedThere::Unclear => false,
        }
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Copies the referrers of `subjects`, and their referrers.
    pub(super) async fn copy_referrers(&self, subjects: &[Digest]) -> Result<(), Fault> {
        let mut seen: HashSet<Digest> = subjects.iter().copied().collect();
        let mut level = subjects.to_vec();
        for depth in 0..DEPTH {
            let found = stream::iter(level)
                .map(|subject| self.copy_referrers_of(subject, depth > 0).boxed())
                .buffer_unordered(self.engine.settings.bounds.referrers);
            let found: Vec<Vec<Digest>> = found.try_collect().await?;
            level = found
                .into_iter()
                .flatten()
                .filter(|digest| seen.insert(*digest))
                .collect();
            if seen.len() > subjects.len() + MOST {
                return Err(Fault::rejected(format!(
                    "{} has more than {MOST} referrers",
                    self.source_reference()
                )));
            }
            if level.is_empty() {
                return Ok(());
            }
        }
        tracing::warn!(
            source = self.source_reference(),
            "referrers of referrers are followed {DEPTH} levels deep, and there are more"
        );
        Ok(())
    }

    /// Copies referrers of a tag that is up to date: signatures often come after the image. The
    /// look found that a check is due.
    pub(super) async fn copy_late_referrers(&self, facts: &TagFacts) -> Result<(), Fault> {
        let Some(top) = facts.source else {
            return Ok(());
        };
        if self.job.companions.is_empty() && !self.source_lists_referrers(&top).await? {
            self.mark_checked(&top).await;
            return Ok(());
        }
        let Some(manifest) = self.source_manifest(top.into()).await? else {
            return Ok(());
        };
        self.copy_referrers(&self.manifests_below(manifest).await?)
            .await
    }

    /// The possible subjects of an image's referrers: its manifest, and for an index all manifests
    /// below it.
    pub(super) async fn manifests_below(&self, top: Manifest) -> Result<Vec<Digest>, Fault> {
        let mut subjects = vec![top.digest];
        let mut indexes = vec![top];
        for _ in 0..DEPTH {
            let mut below = Vec::new();
            for child in indexes.iter().flat_map(|index| &index.children) {
                if child.media_type.is_surely_blob() || subjects.contains(&child.digest) {
                    continue;
                }
                subjects.push(child.digest);
                if child.media_type.kind() == Kind::Index {
                    below.extend(self.source_manifest(child.digest.into()).await?);
                }
            }
            if below.is_empty() {
                break;
            }
            indexes = below;
        }
        Ok(subjects)
    }

    /// Whether the source lists referrers; asked with `subject` if unknown.
    async fn source_lists_referrers(&self, subject: &Digest) -> Result<bool, Fault> {
        if self.source.lists_referrers().is_none() {
            self.list_referrers(subject).await?;
        }
        Ok(self.source.lists_referrers() != Some(false))
    }

    async fn mark_checked(&self, subject: &Digest) {
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        self.engine
            .index
            .mark_checked(origin, repository, subject)
            .await;
    }

    /// Copies the referrers and companions of one subject. Returns them.
    async fn copy_referrers_of(
        &self,
        subject: Digest,
        is_referrer: bool,
    ) -> Result<Vec<Digest>, Fault> {
        let listed = self.list_referrers(&subject).await?;
        if !listed.is_empty() {
            self.copy_listed(&subject, &listed).await?;
        }
        let all = &self.job.companions;
        let companions = if is_referrer {
            all.of_referrer(&subject)
        } else {
            all.of(&subject)
        };
        let besides = companions
            .iter()
            .filter(|tag| **tag != Tag::fallback(&subject));
        let bring = besides
            .map(|tag| self.copy_companion(tag).boxed())
            .collect::<Vec<_>>();
        let at_once = self.engine.settings.bounds.referrers;
        let brought: Vec<Option<Digest>> = stream::iter(bring)
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        self.mark_checked(&subject).await;
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        self.engine.note_tried(origin, repository, companions);
        Ok(listed
            .into_iter()
            .map(|descriptor| descriptor.digest)
            .chain(brought.into_iter().flatten())
            .collect())
    }

    /// Copies the referrers that the destination does not list under their subject.
    async fn copy_listed(&self, subject: &Digest, listed: &[Descriptor]) -> Result<(), Fault> {
        let mut unknown = Vec::new();
        for descriptor in listed {
            if self.is_complete(&descriptor.digest).await {
                self.count_referrer(&descriptor.digest, ReferrerOutcome::Present);
            } else {
                unknown.push(descriptor);
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let there = self.listed_there(subject, &unknown).await?;
        let mut brought = Vec::new();
        let mut unlisted = Vec::new();
        for descriptor in unknown {
            if there.has(&descriptor.digest) {
                self.count_referrer(&descriptor.digest, ReferrerOutcome::Present);
                continue;
            }
            let Some(manifest) = self.source_manifest(descriptor.digest.into()).await? else {
                continue;
            };
            if manifest
                .subject
                .as_ref()
                .is_none_or(|named| named.digest != *subject)
            {
                // Some registries list manifests that do not name the subject.
                continue;
            }
            let image = self.walk(manifest).await?;
            let says_listed = match self.copy_by_digest(&image).await {
                Ok(says_listed) => says_listed,
                // ECR has refused some with 405 or 400:
                // https://github.com/aws/containers-roadmap/issues/2783
                Err(fault) if fault.class() == Class::Rejected => {
                    self.referrer_is_refused(&image.top, &fault);
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            self.count_referrer(&image.top.digest, ReferrerOutcome::Copied);
            brought.push(image.top.digest);
            if !self
                .is_listed_now(subject, &image.top.digest, &there, says_listed)
                .await?
            {
                unlisted.push(image.top);
            }
        }
        if !unlisted.is_empty() {
            self.list_under_fallback(subject, &unlisted).await?;
        }
        self.remember_manifests(brought).await;
        Ok(())
    }

    /// Whether the destination lists a referrer that it has just accepted. ECR has confirmed the
    /// subject without keeping lists: <https://github.com/sigstore/sigstore-js/issues/1183>
    async fn is_listed_now(
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

    fn referrer_is_refused(&self, referrer: &Manifest, fault: &Fault) {
        let told = self.counts.referrers_refused.load(Ordering::Relaxed);
        self.count_referrer(&referrer.digest, ReferrerOutcome::Refused);
        if told < REFUSALS_TOLD {
            let registry = self.destination.registry();
            self.note_reason(format!(
                "{registry} refuses the referrer {}: {}",
                referrer.digest,
                fault.chain()
            ));
        }
        tracing::debug!(destination = %self.destination.address(), referrer = %referrer.digest, error = %fault.chain(), "a referrer is refused");
    }

    fn count_referrer(&self, referrer: &Digest, outcome: ReferrerOutcome) {
        if !self
            .counts
            .referrers
            .lock()
            .expect("nothing panics while it counts")
            .insert(*referrer)
        {
            return;
        }
        let counter = match outcome {
            ReferrerOutcome::Present => &self.counts.referrers_present,
            ReferrerOutcome::Copied => &self.counts.referrers_copied,
            ReferrerOutcome::Refused => &self.counts.referrers_refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.engine
            .metrics
            .referrer(&self.job.key.route, self.destination.registry(), outcome);
    }

    /// The referrers that the destination holds and lists under the subject.
    async fn listed_there(
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
        let mut there = HashSet::new();
        for descriptor in referrers
            .iter()
            .filter(|descriptor| named.contains(&descriptor.digest))
        {
            if self.destination_has(&descriptor.digest).await? {
                there.insert(descriptor.digest);
            }
        }
        Ok(ListedThere::UnderFallback(there))
    }

    /// The destination's own list. Without one, the fallback tag is not read.
    async fn list_kept_there(&self, subject: &Digest) -> Result<ListedThere, Fault> {
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
        let read = |cursor| {
            let destination = destination.clone();
            async move {
                destination
                    .referrers(subject, Option::as_ref(&cursor))
                    .await
            }
        };
        let take = |entry: Descriptor| there.insert(entry.digest);
        let has_list = self
            .engine
            .pages_read(self.reading(MOST_THERE), list, read, take)
            .await?;
        Ok(match (has_list, destination.lists_referrers()) {
            (true, _) | (false, Some(true)) => ListedThere::Kept(there),
            (false, Some(false)) => ListedThere::UnderFallback(HashSet::new()),
            (false, None) => ListedThere::Unclear,
        })
    }

    fn reading(&self, most: usize) -> Reading {
        Reading {
            priority: RequestPriority::from(RequestClass::Listing)
                .of_job(&self.ticket)
                .within(self.engine.settings.retry.hold),
            most,
        }
    }

    async fn fallback_there(&self, tag: &Tag) -> Result<Option<Manifest>, Fault> {
        let target = Target::Tag(tag.clone());
        let read = |destination: D| {
            let target = target.clone();
            async move { destination.manifest(&target).await }
        };
        self.ask_destination(RequestClass::Manifests, read).await
    }

    /// The referrers of `subject` at the source. The first job that needs it finds out whether the
    /// registry lists referrers.
    async fn list_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Fault> {
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
        let read = |cursor| async move { source.referrers(subject, Option::as_ref(&cursor)).await };
        let take = |entry: Descriptor| {
            let is_new = digests.insert(entry.digest);
            if is_new {
                listed.push(entry);
            }
            is_new
        };
        let has_list = self
            .engine
            .pages_read(self.reading(MOST), list, read, take)
            .await?;
        drop(asking);
        if has_list {
            Ok(listed)
        } else {
            self.list_fallback(subject).await
        }
    }

    async fn list_fallback(&self, subject: &Digest) -> Result<Vec<Descriptor>, Fault> {
        let tag = Tag::fallback(subject);
        if !self.job.companions.of(subject).contains(&tag) {
            return Ok(Vec::new());
        }
        let listed = self
            .source_manifest(tag.into())
            .await?
            .map(|index| index.children)
            .unwrap_or_default();
        if listed.len() > MOST {
            let address = self.source.address();
            return Err(Fault::rejected(format!(
                "the referrers of {subject} in {address} are more than {MOST} entries"
            )));
        }
        Ok(listed)
    }

    /// Copies a companion tag. Returns its digest at the source. It moves like a moving tag; a
    /// change made in production stays.
    async fn copy_companion(&self, tag: &Tag) -> Result<Option<Digest>, Fault> {
        // Several tags may name the subject: without a claim their jobs write the same tag.
        let _alone = match tag.subject() {
            Some(subject) => Some(self.claim_beside(tag, &subject).await?),
            None => None,
        };
        let asked = Instant::now();
        let (source, destination) = match self.job.companions {
            Companions::Listed(_) => {
                futures::try_join!(self.source_digest(tag), self.destination_digest(tag))?
            }
            // In most cases there is none.
            Companions::Unlisted => match self.source_digest(tag).await? {
                Some(digest) => (Some(digest), self.destination_digest(tag).await?),
                None => return Ok(None),
            },
        };
        let place = self.place_beside(tag);
        let mut facts = TagFacts::asked_at(asked, source, destination);
        for _ in 0..ROUNDS {
            let Some(digest) = facts.source else {
                return Ok(None);
            };
            match self
                .decide_companion(&place, digest, facts.destination)
                .await?
            {
                Decision::Promote => {}
                Decision::UpToDate => {
                    self.agree(&place, tag, digest, true).await?;
                    self.count_referrer(&digest, ReferrerOutcome::Present);
                    self.companion_is_equal(tag, digest);
                    return Ok(Some(digest));
                }
                decision => {
                    self.companion_stays(tag, &facts, decision);
                    return Ok(Some(digest));
                }
            }
            let Some(manifest) = self.source_manifest(digest.into()).await? else {
                return Ok(None);
            };
            let image = self.walk(manifest).await?;
            let named = match self.carry_content(&image).await {
                Ok(()) => {
                    let origin = NameOrigin::Companion(tag);
                    self.move_tag(Naming {
                        place: &place,
                        origin,
                        image: &image,
                        planned: &facts,
                    })
                    .await
                }
                Err(fault) => Err(fault),
            };
            match named {
                Ok(Named::Moved) => {
                    self.count_referrer(&digest, ReferrerOutcome::Copied);
                    self.companion_is_equal(tag, digest);
                }
                Ok(Named::Immutable) => {
                    let reason = "the registry keeps the tag immutable; exempt sha256-* there, so that signatures can be added";
                    self.companion_stays(tag, &facts, Decision::Conflict(reason.into()));
                }
                Ok(Named::Again(newer)) => {
                    facts = *newer;
                    continue;
                }
                Err(fault) if fault.class() == Class::Rejected => {
                    self.referrer_is_refused(&image.top, &fault)
                }
                Err(fault) => return Err(fault),
            }
            return Ok(Some(digest));
        }
        Err(Fault::retryable(format!(
            "{tag} of {} moved {ROUNDS} times while it was carried",
            self.source.address()
        )))
    }

    /// One job at a time looks at a tag beside `subject` and moves it.
    async fn claim_beside(&self, tag: &Tag, subject: &Digest) -> Result<Claim, Fault> {
        let TagId {
            origin, repository, ..
        } = self.place_beside(tag);
        let claimed = Subject::Tag(origin, repository, tag.clone());
        let claimant = self.claimant(subject);
        let claim = self.engine.claims.take(claimed, &claimant);
        stoppable(&self.stop.drain, claim).await
    }

    fn companion_is_equal(&self, tag: &Tag, digest: Digest) {
        self.note_companion(CompanionOutcome {
            tag: tag.clone(),
            result: Outcome::UpToDate,
            digest: Some(digest),
            there: Some(digest),
            reason: None,
        });
    }

    fn companion_stays(&self, tag: &Tag, facts: &TagFacts, decision: Decision) {
        let (result, reason) = match decision {
            Decision::Conflict(reason) => (Outcome::Conflict, reason),
            Decision::Drift(reason) => (Outcome::Drift, reason),
            Decision::Existing(reason) => (Outcome::Existing, reason),
            Decision::Refused(reason) => (Outcome::Refused, reason),
            Decision::UpToDate | Decision::Promote | Decision::Gone => return,
        };
        self.note_companion(CompanionOutcome {
            tag: tag.clone(),
            result,
            digest: facts.source,
            there: facts.destination,
            reason: Some(reason),
        });
    }

    fn place_beside(&self, tag: &Tag) -> TagId {
        let (origin, repository) = (
            self.destination.origin().clone(),
            self.destination.repository().clone(),
        );
        TagId {
            origin,
            repository,
            tag: tag.clone(),
        }
    }

    async fn decide_companion(
        &self,
        place: &TagId,
        source: Digest,
        destination: Option<Digest>,
    ) -> Result<Decision, Fault> {
        let (known, _) = self.known(place, destination).await?;
        let facts = Facts {
            source: Some(source),
            destination,
            ledger_known: known.known(),
            ledger_agrees: destination.is_some_and(|there| known.is_ours(&there)),
        };
        let rules = TagRules {
            moving: true,
            ..TagRules::default()
        };
        let order = Order {
            explicit: self.job.explicit,
            ..Order::default()
        };
        Ok(plan::decide(rules, &facts, &order))
    }

    /// Carries a referrer under its digest. Returns whether the registry confirmed its subject.
    async fn copy_by_digest(&self, image: &Image) -> Result<bool, Fault> {
        self.carry_content(image).await?;
        match self.put(image, &image.top).await? {
            Put::Accepted { subject } => Ok(subject),
            Put::Immutable | Put::Missing(_) => {
                let address = self.destination.address();
                Err(Fault::rejected(format!(
                    "{address} does not take {}, which belongs to the image",
                    image.top.digest
                )))
            }
        }
    }

    /// The fallback list of a subject at staging. If it equals the list to write, its bytes are
    /// used.
    async fn staged_list(&self, subject: &Digest) -> Result<Option<Manifest>, Fault> {
        let tag = Tag::fallback(subject);
        match self.job.companions.of(subject).contains(&tag) {
            true => self.source_manifest(tag.into()).await,
            false => Ok(None),
        }
    }

    /// Adds referrers to the subject's fallback list at the destination. Registries have no
    /// conditional write: the list is read again, and written again if another writer has changed
    /// it.
    async fn list_under_fallback(
        &self,
        subject: &Digest,
        referrers: &[Manifest],
    ) -> Result<(), Fault> {
        let tag = Tag::fallback(subject);
        let place = self.place_beside(&tag);
        let _alone = self.claim_beside(&tag, subject).await?;
        let staged = self.staged_list(subject).await?;
        for _ in 0..WRITES {
            let asked = Instant::now();
            let current = self.fallback_there(&tag).await?;
            let digest = current.as_ref().map(|current| current.digest);
            let planned = TagFacts::asked_at(asked, None, digest);
            let Some(index) = merged(current.as_ref(), referrers)? else {
                return Ok(());
            };
            let index = staged
                .clone()
                .filter(|staged| lists_the_same(staged, &index))
                .unwrap_or(index);
            let image = Image::alone(index);
            let naming = Naming {
                place: &place,
                origin: NameOrigin::List,
                image: &image,
                planned: &planned,
            };
            match self.move_tag(naming).await? {
                Named::Moved | Named::Again(_) => {}
                Named::Immutable => {
                    return Err(Fault::rejected(format!(
                        "{} does not take the referrers list {tag}",
                        self.destination.address()
                    )));
                }
            }
        }
        let address = self.destination.address();
        Err(Fault::retryable(format!(
            "another program writes the referrers list {tag} of {address} at the same time"
        )))
    }
}

/// Whether two lists name the same manifests and may stand for each other.
fn lists_the_same(one: &Manifest, other: &Manifest) -> bool {
    let named = |list: &Manifest| -> HashSet<(Digest, u64)> {
        list.children
            .iter()
            .map(|child| (child.digest, child.size))
            .collect()
    };
    one.media_type.as_str() == OCI_INDEX
        && one.children.len() == other.children.len()
        && named(one) == named(other)
}

/// The list with the referrers added. `None`: it has them all.
fn merged(current: Option<&Manifest>, referrers: &[Manifest]) -> Result<Option<Manifest>, Fault> {
    let malformed = |error: serde_json::Error| {
        Fault::rejected("the referrers list at the destination is not an index").because(error)
    };
    let mut index = match current {
        Some(current) => serde_json::from_slice(&current.bytes).map_err(malformed)?,
        None => json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
    };
    let listed: HashSet<Digest> = current
        .map(|current| current.children.iter().map(|child| child.digest).collect())
        .unwrap_or_default();
    let new: Vec<Value> = referrers
        .iter()
        .filter(|referrer| !listed.contains(&referrer.digest))
        .map(entry)
        .collect();
    if new.is_empty() {
        return Ok(None);
    }
    let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(Fault::rejected(
            "the referrers list at the destination is not an index",
        ));
    };
    entries.extend(new);
    let bytes = Bytes::from(index.to_string());
    Manifest::parse(bytes, Some(OCI_INDEX), Algorithm::Sha256)
        .map(Some)
        .map_err(|error| Fault::rejected("the referrers list").because(error))
}

/// The descriptor of a referrer in its subject's list:
/// <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers>
fn entry(referrer: &Manifest) -> Value {
    let document: Value = serde_json::from_slice(&referrer.bytes).unwrap_or_default();
    let own = document
        .get("artifactType")
        .filter(|own| own.as_str().is_some_and(|own| !own.is_empty()));
    let mut entry = json!({"mediaType": referrer.media_type, "digest": referrer.digest, "size": referrer.bytes.len()});
    if let Some(artifact_type) = own.or_else(|| document.pointer("/config/mediaType")) {
        entry["artifactType"] = artifact_type.clone();
    }
    if let Some(annotations) = document
        .get("annotations")
        .filter(|annotations| annotations.is_object())
    {
        entry["annotations"] = annotations.clone();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(name: &str) -> Manifest {
        let document = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "x/y",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::sha256(b"{}"), "size": 2},
            "layers": [], "annotations": {"n": name}});
        Manifest::parse(document.to_string().into(), None, Algorithm::Sha256).unwrap()
    }

    #[test]
    fn lists_are_the_same_whatever_their_bytes() {
        let both = merged(None, &[referrer("a"), referrer("b")])
            .unwrap()
            .unwrap();
        let turned = merged(None, &[referrer("b"), referrer("a")])
            .unwrap()
            .unwrap();
        let first = merged(None, &[referrer("a")]).unwrap().unwrap();
        assert!(both.digest != turned.digest && lists_the_same(&both, &turned));
        assert!(!lists_the_same(&both, &first) && !lists_the_same(&first, &both));
    }

    #[test]
    fn a_list_keeps_what_it_has_and_gains_what_is_new() {
        let first = merged(None, &[referrer("a")]).unwrap().unwrap();
        assert_eq!(first.children.len(), 1);
        assert!(merged(Some(&first), &[referrer("a")]).unwrap().is_none());
        let second = merged(Some(&first), &[referrer("a"), referrer("b")])
            .unwrap()
            .unwrap();
        assert_eq!(second.children.len(), 2);
        let document: Value = serde_json::from_slice(&second.bytes).unwrap();
        assert_eq!(document["manifests"][1]["artifactType"], "x/y");
        assert_eq!(document["manifests"][1]["annotations"]["n"], "b");
    }
}
