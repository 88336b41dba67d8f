//! The versions of images: the highest version tag that names each, for `forward_only`.
//!
//! A repository's list says which version tags there are. From the highest downwards they are asked
//! what they name, until all images are found; a list with digests says it by itself. What a tag
//! named is kept in memory for as long as a hint is trusted. Directly before the tag moves, memory
//! counts for nothing; where an image is not found, the highest tags are asked anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use semver::Version;
use tokio::time::Instant;

use super::Promotion;
use super::limits::{RequestClass, RequestPriority};
use super::pages::{ListedTag, Reading};
use super::questions::Answer;
use super::resolve::Attempts;
use super::survey::TagFacts;
use crate::clock;
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::gate::forward_only::{self, Versioned, Versions};
use crate::gate::question::Phase;
use crate::job::TagId;
use crate::oci::{Digest, Tag};
use crate::route::rules::version;

/// Most tags that are kept in memory. Beyond that all are forgotten and asked again.
const KEPT: usize = 16_384;
/// Tags that are asked at once: the highest two are most often those that are looked for.
const AT_ONCE: usize = 4;
/// Tags that are asked anew where an image was not found: a build pushes its version again, or a
/// replica lagged behind.
const ASKED_ANEW: usize = 16;

/// What version tags were found to name. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct KnownVersions(Arc<Mutex<BTreeMap<TagId, KnownVersion>>>);

#[derive(Clone, Copy)]
struct KnownVersion {
    digest: Option<Digest>,
    seen: Timestamp,
}

impl KnownVersions {
    fn of(&self, tag: &TagId) -> Option<KnownVersion> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(tag).copied()
    }

    fn note(&self, tag: TagId, digest: Option<Digest>) {
        let seen = clock::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(tag, KnownVersion { digest, seen });
    }
}

/// A version tag of a repository's list.
struct Candidate {
    version: Version,
    tag: Tag,
    /// As staging calls it.
    name: Tag,
    listed: ListedTag,
}

impl Candidate {
    /// `None`: its name is no version.
    fn named(name: Tag, tag: Tag, listed: ListedTag) -> Option<Candidate> {
        Some(Candidate {
            version: version(&name)?,
            tag,
            name,
            listed,
        })
    }
}

/// How many of the highest tags are asked although memory knows them.
#[derive(Clone, Copy)]
enum Anew {
    None,
    Highest,
    All,
}

impl Anew {
    fn covers(self, place: usize) -> bool {
        match self {
            Anew::None => false,
            Anew::Highest => place < ASKED_ANEW,
            Anew::All => true,
        }
    }
}

fn has_all(found: &BTreeMap<Digest, Tag>, wanted: &[Digest]) -> bool {
    wanted.iter().all(|digest| found.contains_key(digest))
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// The verdict on the move of the job's tag to `digest`.
    pub(super) async fn judge_versions(
        &self,
        facts: &TagFacts,
        digest: Digest,
        phase: Phase,
    ) -> Result<Answer, Fault> {
        let at = Instant::now();
        // Boxed to keep the job's future small.
        let versions = self.versions(facts, digest, phase).boxed().await?;
        let judgement = forward_only::judge(&versions);
        Ok(Answer { judgement, at })
    }

    async fn versions(
        &self,
        facts: &TagFacts,
        digest: Digest,
        phase: Phase,
    ) -> Result<Versions, Fault> {
        let wanted: Vec<Digest> = facts.destination.into_iter().chain([digest]).collect();
        let mut found = self
            .highest(&self.source, &wanted, phase, |tag| Some(tag.clone()))
            .await?;
        // Staging may have dropped the tags of what production still names.
        if let Some(production) = facts.destination.filter(|there| !found.contains_key(there)) {
            let there = self
                .highest(&self.destination, &[production], phase, |tag| {
                    self.name_at_source(tag)
                })
                .await?;
            found.extend(there);
        }
        let versioned = |digest: Digest| Versioned {
            digest,
            tag: found.get(&digest).cloned(),
        };
        Ok(Versions {
            staging: versioned(digest),
            production: facts.destination.map(versioned),
        })
    }

    /// The highest version tag that names each of these images, as staging calls it.
    async fn highest<R: Source>(
        &self,
        repository: &R,
        wanted: &[Digest],
        phase: Phase,
        name: impl Fn(&Tag) -> Option<Tag>,
    ) -> Result<BTreeMap<Digest, Tag>, Fault> {
        let candidates = self.candidates(repository, name).await?;
        if phase == Phase::Name {
            return self
                .named_by(repository, &candidates, wanted, Anew::All)
                .await;
        }
        let found = self
            .named_by(repository, &candidates, wanted, Anew::None)
            .await?;
        if has_all(&found, wanted) {
            return Ok(found);
        }
        self.named_by(repository, &candidates, wanted, Anew::Highest)
            .await
    }

    /// The first of the candidates that names each of these images.
    async fn named_by<R: Source>(
        &self,
        repository: &R,
        candidates: &[Arc<Candidate>],
        wanted: &[Digest],
        anew: Anew,
    ) -> Result<BTreeMap<Digest, Tag>, Fault> {
        let candidates = candidates.iter().cloned().enumerate();
        let mut asked = stream::iter(candidates)
            .map(|(place, candidate)| {
                async move {
                    let is_anew = anew.covers(place);
                    let named = self.named(repository, &candidate, wanted, is_anew).await?;
                    Ok::<_, Fault>((candidate, named))
                }
                .boxed()
            })
            .buffered(AT_ONCE);
        let mut found = BTreeMap::new();
        while let Some(answer) = asked.next().await {
            let (candidate, named) = answer?;
            if let Some(digest) = named.filter(|named| wanted.contains(named)) {
                found
                    .entry(digest)
                    .or_insert_with(|| candidate.name.clone());
            }
            if has_all(&found, wanted) {
                break;
            }
        }
        Ok(found)
    }

    /// The version tags of a repository, the highest first. One without a list has none.
    async fn candidates<R: Source>(
        &self,
        repository: &R,
        name: impl Fn(&Tag) -> Option<Tag>,
    ) -> Result<Vec<Arc<Candidate>>, Fault> {
        let priority = RequestPriority::from(RequestClass::Listing)
            .of_job(&self.ticket)
            .within(self.engine.settings.retry.hold);
        let tags = self
            .engine
            .tags(repository, Reading::of(priority), self.stop)
            .await?;
        let named = tags
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(tag, listed)| Candidate::named(name(&tag)?, tag, listed));
        let mut candidates: Vec<Arc<Candidate>> = named.map(Arc::new).collect();
        candidates.sort_by(|one, other| {
            let by_version = other.version.cmp(&one.version);
            by_version.then_with(|| one.tag.cmp(&other.tag))
        });
        Ok(candidates)
    }

    /// What a version tag names: by the list or by memory. `is_anew`: memory does not count, nor does
    /// the list where it names one of these images.
    async fn named<R: Source>(
        &self,
        repository: &R,
        candidate: &Candidate,
        wanted: &[Digest],
        is_anew: bool,
    ) -> Result<Option<Digest>, Fault> {
        let place = TagId::of(repository.tags_id(), candidate.tag.clone());
        let listed = candidate.listed.digest;
        if let Some(listed) = listed.filter(|listed| !is_anew || !wanted.contains(listed)) {
            return Ok(Some(listed));
        }
        let known = self.engine.versions.of(&place).filter(|_| !is_anew);
        if let Some(known) = known.filter(|known| self.trusts(known.seen)) {
            return Ok(known.digest);
        }
        let priority = self.manifests_priority();
        let resolved = self.engine.resolve_tag(
            repository,
            &candidate.tag,
            priority,
            Attempts::Retried,
            self.stop,
        );
        let named = match resolved.await {
            // Another tag is refused by a rule of the route: it names nothing that is compared.
            Err(fault) if fault.is_by_rule() => None,
            named => named?,
        };
        self.engine.versions.note(place, named);
        Ok(named)
    }

    /// What staging calls a tag of production, by the names of the job's own tag on both sides.
    fn name_at_source(&self, tag: &Tag) -> Option<Tag> {
        let key = &self.job.key;
        let (own, there) = (key.tag.as_str(), key.destination.tag.as_str());
        let mut places = there.match_indices(own);
        places.find_map(|(at, _)| {
            let inner = tag.as_str().strip_prefix(&there[..at])?;
            inner.strip_suffix(&there[at + own.len()..])?.parse().ok()
        })
    }
}
