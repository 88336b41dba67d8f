//! Referrers: signatures, SBOMs and attestations travel with their subject and arrive before its tag.
//!
//! They are found through the referrers API, else through the fallback tag, and through cosign's tags: in the source's
//! listing, or by their names where nobody has listed it. A bounded depth is followed. A look-up that fails is a failure, never "no referrers". Where the destination does not list a referrer
//! under its subject, the fallback tag there is brought up to date, one writer at a time.

use std::collections::HashSet;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use super::Trip;
use super::claims::Subject;
use super::limits::Traffic;
use super::plan::{self, Decision, Facts, Order};
use super::retry::stoppable;
use super::survey::TagFacts;
use crate::endpoint::{Cursor, Destination, Page, Put, Source};
use crate::fault::Fault;
use crate::job::{Companions, Place, TagRules};
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Algorithm, Descriptor, Digest, Manifest, Tag, Target};

/// How far referrers of referrers are followed.
const DEPTH: usize = 4;
/// Most referrers of one image.
const MOST: usize = 1000;
/// Writes of one list before another writer is given way to.
const WRITES: usize = 4;

impl<S: Source, D: Destination> Trip<'_, S, D> {
    /// Brings what refers to any of `subjects`, and what refers to that.
    pub(super) async fn bring_referrers(&self, subjects: &[Digest]) -> Result<(), Fault> {
        let mut seen: HashSet<Digest> = subjects.iter().copied().collect();
        let mut level = subjects.to_vec();
        for _ in 0..DEPTH {
            let found = stream::iter(level)
                .map(|subject| self.bring_referrers_of(subject).boxed())
                .buffer_unordered(self.engine.settings.bounds.referrers);
            let found: Vec<Vec<Digest>> = found.try_collect().await?;
            level = found.into_iter().flatten().filter(|digest| seen.insert(*digest)).collect();
            if seen.len() > subjects.len() + MOST {
                return Err(Fault::rejected(format!("{} has more than {MOST} referrers", self.source_reference())));
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

    /// For a tag that is up to date already: signatures often come after the image. The look has found that it is time.
    pub(super) async fn bring_referrers_later(&self, facts: &TagFacts) -> Result<(), Fault> {
        let Some(top) = facts.source else { return Ok(()) };
        if self.job.companions.is_empty() && !self.source_lists_referrers(&top).await? {
            self.mark_checked(&top).await;
            return Ok(());
        }
        let Some(manifest) = self.source_manifest(top.into()).await? else { return Ok(()) };
        let children = manifest.children.iter().filter(|child| !child.media_type.is_surely_blob()).map(|child| child.digest);
        let subjects: Vec<Digest> = std::iter::once(top).chain(children).collect();
        self.bring_referrers(&subjects).await
    }

    /// Whether the source lists referrers at all; found out with `subject` where nobody knows.
    async fn source_lists_referrers(&self, subject: &Digest) -> Result<bool, Fault> {
        let origin = self.source.origin();
        if self.engine.lists_referrers(origin).is_none() {
            self.list_referrers(subject).await?;
        }
        Ok(self.engine.lists_referrers(origin) != Some(false))
    }

    async fn mark_checked(&self, subject: &Digest) {
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        self.engine.index.mark_checked(origin, repository, subject).await;
    }

    /// Brings the referrers of one subject; returns them.
    async fn bring_referrers_of(&self, subject: Digest) -> Result<Vec<Digest>, Fault> {
        let listed = self.list_referrers(&subject).await?;
        if !listed.is_empty() {
            self.bring_listed(&subject, &listed).await?;
        }
        let companions = self.job.companions.of(&subject);
        let besides = companions.iter().filter(|tag| **tag != Tag::fallback(&subject));
        let bring = besides.map(|tag| self.bring_companion(tag).boxed()).collect::<Vec<_>>();
        stream::iter(bring).buffer_unordered(self.engine.settings.bounds.referrers).try_collect::<()>().await?;
        self.mark_checked(&subject).await;
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        self.engine.note_tried(origin, repository, companions);
        Ok(listed.into_iter().map(|descriptor| descriptor.digest).collect())
    }

    /// Brings those of the referrers that the destination does not list under their subject.
    async fn bring_listed(&self, subject: &Digest, listed: &[Descriptor]) -> Result<(), Fault> {
        let mut unknown = Vec::new();
        for descriptor in listed {
            if !self.is_complete(&descriptor.digest).await {
                unknown.push(descriptor);
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let (there, keeps_lists) = self.listed_there(subject, &unknown).await?;
        let (mut brought, mut unlisted) = (Vec::new(), Vec::new());
        for descriptor in unknown.into_iter().filter(|descriptor| !there.contains(&descriptor.digest)) {
            let Some(manifest) = self.source_manifest(descriptor.digest.into()).await? else { continue };
            if manifest.subject.as_ref().is_none_or(|named| named.digest != *subject) {
                // Some registries answer with manifests that say nothing about the subject.
                continue;
            }
            brought.push(manifest.digest);
            let says_so = self.bring_manifest(manifest.clone(), None).await? == (Put::Accepted { subject: true });
            // ECR has said so without keeping lists.
            if !(says_so && keeps_lists) {
                unlisted.push(manifest);
            }
        }
        if !unlisted.is_empty() {
            self.list_under_fallback(subject, &unlisted).await?;
        }
        self.remember_manifests(brought).await;
        Ok(())
    }

    /// Which of the referrers the destination holds and lists under the subject, and whether it keeps such lists itself.
    async fn listed_there(&self, subject: &Digest, referrers: &[&Descriptor]) -> Result<(HashSet<Digest>, bool), Fault> {
        if let Some(there) = self.list_kept_there(subject).await? {
            return Ok((there, true));
        }
        let list = self.fallback_there(&Tag::fallback(subject)).await?;
        let named: HashSet<Digest> = list.map(|list| list.children.iter().map(|child| child.digest).collect()).unwrap_or_default();
        let mut there = HashSet::new();
        for descriptor in referrers.iter().filter(|descriptor| named.contains(&descriptor.digest)) {
            if self.destination_has(&descriptor.digest).await? {
                there.insert(descriptor.digest);
            }
        }
        Ok((there, false))
    }

    /// What the destination lists under the subject. `None`: it keeps no such lists.
    async fn list_kept_there(&self, subject: &Digest) -> Result<Option<HashSet<Digest>>, Fault> {
        let origin = self.destination.origin();
        if self.engine.lists_referrers(origin) == Some(false) {
            return Ok(None);
        }
        let mut there = HashSet::new();
        let mut cursor: Option<Cursor> = None;
        loop {
            let ask = |destination: D| {
                let (subject, cursor) = (*subject, cursor.clone());
                async move { destination.referrers(&subject, cursor.as_ref()).await }
            };
            let page = self.ask_destination(Traffic::Listing, ask).await?;
            self.engine.note_lists_referrers(origin, page.is_some());
            let Some(page) = page else { return Ok(None) };
            there.extend(page.entries.into_iter().map(|entry| entry.digest));
            cursor = page.next;
            if cursor.is_none() || there.len() > MOST {
                return Ok(Some(there));
            }
        }
    }

    async fn fallback_there(&self, tag: &Tag) -> Result<Option<Manifest>, Fault> {
        let target = Target::Tag(tag.clone());
        let read = |destination: D| {
            let target = target.clone();
            async move { destination.manifest(&target).await }
        };
        self.ask_destination(Traffic::Manifests, read).await
    }

    /// Who refers to `subject` at the source. Whether the registry lists referrers at all is asked once, by the first who wants
    /// to know.
    async fn list_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Fault> {
        let origin = self.source.origin();
        let mut asking = None;
        if self.engine.lists_referrers(origin).is_none() {
            asking = Some(stoppable(&self.stop.drain, self.engine.claims.take(Subject::Referrers(origin.clone()))).await?);
        }
        if self.engine.lists_referrers(origin) == Some(false) {
            return self.list_fallback(subject).await;
        }
        let first = self.referrers_page(subject, None).await?;
        self.engine.note_lists_referrers(origin, first.is_some());
        drop(asking);
        let Some(mut page) = first else { return self.list_fallback(subject).await };
        let mut listed = Vec::new();
        loop {
            listed.extend(page.entries);
            if listed.len() > MOST {
                return Err(Fault::rejected(format!("{} lists more than {MOST} referrers of {subject}", self.source.address())));
            }
            let Some(next) = page.next else { return Ok(listed) };
            match self.referrers_page(subject, Some(next)).await? {
                Some(next) => page = next,
                None => return Ok(listed),
            }
        }
    }

    async fn referrers_page(&self, subject: &Digest, cursor: Option<Cursor>) -> Result<Option<Page<Descriptor>>, Fault> {
        self.ask_source(Traffic::Listing, |source| {
            let cursor = cursor.clone();
            async move { source.referrers(subject, cursor.as_ref()).await }
        })
        .await
    }

    async fn list_fallback(&self, subject: &Digest) -> Result<Vec<Descriptor>, Fault> {
        let tag = Tag::fallback(subject);
        if !self.job.companions.of(subject).contains(&tag) {
            return Ok(Vec::new());
        }
        Ok(self.source_manifest(tag.into()).await?.map(|index| index.children).unwrap_or_default())
    }

    /// Brings a tag that travels with its subject. It may move as its subject's signatures grow; what somebody else has put
    /// there stays, as with every moving tag.
    async fn bring_companion(&self, tag: &Tag) -> Result<(), Fault> {
        let (source, destination) = match self.job.companions {
            Companions::Listed(_) => futures::try_join!(self.source_digest(tag), self.destination_digest(tag))?,
            // Mostly there is none.
            Companions::Unlisted => match self.source_digest(tag).await? {
                Some(digest) => (Some(digest), self.destination_digest(tag).await?),
                None => return Ok(()),
            },
        };
        let Some(digest) = source else { return Ok(()) };
        let (origin, repository) = (self.destination.origin().clone(), self.destination.repository().clone());
        let place = Place { origin, repository, tag: tag.clone() };
        let decision = self.decide_companion(&place, digest, destination).await?;
        if decision != Decision::Promote {
            if decision != Decision::UpToDate {
                tracing::debug!(destination = %self.destination.address(), %tag, ?decision, "a tag beside the image stays as it is");
            }
            return Ok(());
        }
        let Some(manifest) = self.source_manifest(digest.into()).await? else { return Ok(()) };
        self.engine.ledger.intend(&place, &manifest.digest).await?;
        if self.bring_manifest(manifest, Some(tag)).await? == Put::Immutable {
            tracing::warn!(destination = %self.destination.address(), %tag, "the registry keeps a tag beside the image immutable; exempt sha256-* there");
        }
        Ok(())
    }

    async fn decide_companion(&self, place: &Place, source: Digest, destination: Option<Digest>) -> Result<Decision, Fault> {
        let written = self.engine.ledger.written(place).await?;
        let mut facts = Facts {
            source: Some(source),
            destination,
            written_known: written.known(),
            written_by_us: destination.is_some_and(|there| written.is_ours(&there)),
            staging_holds: false,
        };
        let rules = TagRules { moving: true, ..TagRules::default() };
        let order = Order { explicit: self.job.explicit, ..Order::default() };
        if let Some(there) = destination.filter(|_| plan::needs_holding(rules, &facts, &order)) {
            facts.staging_holds = self.resolve_source(there.into()).await?.is_some();
        }
        Ok(plan::decide(rules, &facts, &order))
    }

    /// Carries a manifest with all that belongs to it, under its digest or a tag.
    async fn bring_manifest(&self, manifest: Manifest, tag: Option<&Tag>) -> Result<Put, Fault> {
        let image = self.walk(manifest).await?;
        self.carry_content(&image).await?;
        let target = tag.map_or(Target::Digest(image.top.digest), |tag| Target::Tag(tag.clone()));
        match self.put(&image, &target, &image.top).await? {
            put @ Put::Accepted { .. } => Ok(put),
            Put::Immutable if tag.is_some() => Ok(Put::Immutable),
            Put::Immutable | Put::Missing(_) => {
                Err(Fault::rejected(format!("{} does not take {target}, which belongs to the image", self.destination.address())))
            }
        }
    }

    /// Adds referrers to the fallback list of their subject at the destination. Registries have no conditional write: the list is
    /// read again, and written again when somebody else has written in between.
    async fn list_under_fallback(&self, subject: &Digest, referrers: &[Manifest]) -> Result<(), Fault> {
        let tag = Tag::fallback(subject);
        let (origin, repository) = (self.destination.origin().clone(), self.destination.repository().clone());
        let claim = self.engine.claims.take(Subject::Tag(origin, repository, tag.clone()));
        let _alone = stoppable(&self.stop.drain, claim).await?;
        for _ in 0..WRITES {
            let current = self.fallback_there(&tag).await?;
            let Some(index) = merged(current.as_ref(), referrers)? else { return Ok(()) };
            let write = |destination: D| {
                let (target, index) = (Target::Tag(tag.clone()), index.clone());
                async move { destination.put_manifest(&target, &index).await }
            };
            match self.ask_destination(Traffic::Writes, write).await? {
                Put::Accepted { .. } => {}
                Put::Immutable | Put::Missing(_) => {
                    return Err(Fault::rejected(format!("{} does not take the referrers list {tag}", self.destination.address())));
                }
            }
        }
        let address = self.destination.address();
        Err(Fault::retryable(format!("somebody else writes the referrers list {tag} of {address} at the same time")))
    }
}

/// The list with the referrers added; `None` when it has them all.
fn merged(current: Option<&Manifest>, referrers: &[Manifest]) -> Result<Option<Manifest>, Fault> {
    let malformed =
        |error: serde_json::Error| Fault::rejected("the referrers list at the destination is not an index").because(error);
    let mut index = match current {
        Some(current) => serde_json::from_slice(&current.bytes).map_err(malformed)?,
        None => json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
    };
    let listed: HashSet<Digest> =
        current.map(|current| current.children.iter().map(|child| child.digest).collect()).unwrap_or_default();
    let new: Vec<Value> = referrers.iter().filter(|referrer| !listed.contains(&referrer.digest)).map(entry).collect();
    if new.is_empty() {
        return Ok(None);
    }
    let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(Fault::rejected("the referrers list at the destination is not an index"));
    };
    entries.extend(new);
    let bytes = Bytes::from(index.to_string());
    Manifest::parse(bytes, Some(OCI_INDEX), Algorithm::Sha256)
        .map(Some)
        .map_err(|error| Fault::rejected("the referrers list").because(error))
}

/// A referrer as its subject's list shows it: distribution specification, "Listing Referrers".
fn entry(referrer: &Manifest) -> Value {
    let document: Value = serde_json::from_slice(&referrer.bytes).unwrap_or_default();
    let own = document.get("artifactType").filter(|own| own.as_str().is_some_and(|own| !own.is_empty()));
    let mut entry = json!({"mediaType": referrer.media_type, "digest": referrer.digest, "size": referrer.bytes.len()});
    if let Some(artifact_type) = own.or_else(|| document.pointer("/config/mediaType")) {
        entry["artifactType"] = artifact_type.clone();
    }
    if let Some(annotations) = document.get("annotations").filter(|annotations| annotations.is_object()) {
        entry["annotations"] = annotations.clone();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(name: &str) -> Manifest {
        let document = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "x/y", "layers": [], "annotations": {"n": name}});
        Manifest::parse(document.to_string().into(), None, Algorithm::Sha256).unwrap()
    }

    #[test]
    fn a_list_keeps_what_it_has_and_gains_what_is_new() {
        let first = merged(None, &[referrer("a")]).unwrap().unwrap();
        assert_eq!(first.children.len(), 1);
        assert!(merged(Some(&first), &[referrer("a")]).unwrap().is_none());
        let second = merged(Some(&first), &[referrer("a"), referrer("b")]).unwrap().unwrap();
        assert_eq!(second.children.len(), 2);
        let document: Value = serde_json::from_slice(&second.bytes).unwrap();
        assert_eq!(document["manifests"][1]["artifactType"], "x/y");
        assert_eq!(document["manifests"][1]["annotations"]["n"], "b");
    }
}
