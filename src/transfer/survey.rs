//! Survey: gathers facts. Of a tag: the digests on both sides and the ledger's record. Of an image:
//! its manifests and blobs, as far as the destination does not hold them already.
//!
//! An image is walked breadth first, with bounds on depth, number and bytes. A subtree that is
//! complete at the destination, by a hint or an answer, is not walked. Each manifest is read at
//! most once.

use std::collections::{HashMap, HashSet};

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use super::limits::{RequestClass, RequestPriority};
use super::plan::{self, Decision, Facts, Order};
use super::resolve::Attempts;
use super::{Found, Promotion};
use crate::endpoint::{Destination, Source};
use crate::fault::{Class, Fault};
use crate::job::{Job, ObservedVia, TagId, TagState};
use crate::ledger::{Agreement, EqualityUpdate, TagRecord};
use crate::oci::{Descriptor, Digest, Kind, Manifest, Tag, Target};

/// Deepest nesting of indexes.
const DEPTH: usize = 8;
/// Most manifests of one image.
const MANIFESTS: usize = 10_000;
/// Most bytes of manifests of one image.
const BYTES: usize = 32 * 1024 * 1024;

/// The observed digests of a tag on both sides, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    source: TagState,
    destination: TagState,
    destination_via: ObservedVia,
    source_at: Option<Instant>,
    destination_at: Instant,
}

impl Observation {
    /// The observation of the look.
    pub(super) fn of(job: &Job) -> Observation {
        Observation {
            source: job.source,
            destination: job.destination,
            destination_via: job.destination_via,
            source_at: job.source_at,
            destination_at: job.destination_at,
        }
    }

    /// No observation: both sides are asked.
    pub(super) fn none() -> Observation {
        let (source, destination) = (TagState::Unknown, TagState::Unknown);
        Observation {
            source,
            destination,
            destination_via: ObservedVia::Tag,
            source_at: None,
            destination_at: Instant::now(),
        }
    }
}

/// The facts about a tag.
#[derive(Clone, Debug)]
pub(super) struct TagFacts {
    /// S.
    pub(super) source: Option<Digest>,
    /// P.
    pub(super) destination: Option<Digest>,
    /// When the source was asked about the tag. `None`: only a list that may lag behind has told.
    pub(super) source_at: Option<Instant>,
    /// When the destination was asked.
    pub(super) destination_at: Instant,
    /// What the destination was asked for.
    pub(super) destination_via: ObservedVia,
    /// The manifest, when asking for S has read it already.
    pub(super) manifest: Option<Manifest>,
}

impl TagFacts {
    /// Facts from answers of both sides about the tag itself. They were asked at `asked` or later.
    pub(super) fn asked_at(
        asked: Instant,
        source: Option<Digest>,
        destination: Option<Digest>,
    ) -> TagFacts {
        TagFacts {
            source,
            destination,
            source_at: Some(asked),
            destination_at: asked,
            destination_via: ObservedVia::Tag,
            manifest: None,
        }
    }

    /// Records the destination's answer about the tag itself.
    pub(super) fn answered(&mut self, destination: Option<Digest>, at: Instant) {
        self.destination = destination;
        self.destination_at = at;
        self.destination_via = ObservedVia::Tag;
    }
}

/// An image to carry.
#[derive(Debug)]
pub(super) struct Image {
    /// The manifest that the tag names.
    pub(super) top: Manifest,
    /// The manifests below it that the destination lacks, by level, the top's children first.
    pub(super) levels: Vec<Vec<Manifest>>,
    /// The blobs of all of them, once each.
    pub(super) blobs: Vec<Descriptor>,
    /// All manifests of the image, including present ones: the possible subjects of referrers.
    pub(super) subjects: Vec<Digest>,
}

/// A child of an index after a check.
enum Child {
    Held,
    Manifest(Manifest),
    Blob(Descriptor),
}

impl Image {
    /// A manifest with its content at the destination.
    pub(super) fn alone(top: Manifest) -> Image {
        Image {
            subjects: vec![top.digest],
            levels: Vec::new(),
            blobs: Vec::new(),
            top,
        }
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Asks both sides for unknown facts.
    pub(super) async fn survey_tag(&self, observation: Observation) -> Result<TagFacts, Fault> {
        let mut manifest = None;
        let now = Instant::now();
        let source_at = if observation.source == TagState::Unknown {
            Some(now)
        } else {
            observation.source_at
        };
        let is_asked = observation.destination == TagState::Unknown;
        let destination_at = if is_asked {
            now
        } else {
            observation.destination_at
        };
        let destination_via = if is_asked {
            ObservedVia::Tag
        } else {
            observation.destination_via
        };
        let source = match observation.source {
            _ if self.job.pinned.is_some() => self.job.pinned,
            TagState::At(digest) => Some(digest),
            TagState::Absent => None,
            // A tag that production lacks has its manifest read anyway: one request instead of two.
            TagState::Unknown
                if observation.destination == TagState::Absent && !self.job.dry_run =>
            {
                manifest = self.tagged_manifest(&self.job.key.tag).await?;
                manifest.as_ref().map(|manifest| manifest.digest)
            }
            TagState::Unknown => self.own_source_digest().await?,
        };
        let destination = match observation.destination {
            TagState::At(digest) => Some(digest),
            TagState::Absent => None,
            TagState::Unknown => {
                self.destination_digest(&self.job.key.destination.tag)
                    .await?
            }
        };
        Ok(TagFacts {
            source,
            destination,
            source_at,
            destination_at,
            destination_via,
            manifest,
        })
    }

    /// Decides by the facts, the ledger and the order.
    pub(super) async fn decide(&self, facts: &TagFacts) -> Result<Decision, Fault> {
        let job = self.job;
        let rules = self.rules_in_force()?;
        *self.rules.lock().expect("nothing panics while it notes") = rules;
        let (known, found) = self.known(&job.key.destination, facts.destination).await?;
        if found.is_some() {
            *self.found.lock().expect("nothing panics while it notes") = found;
        }
        let ledger_agrees = facts
            .destination
            .is_some_and(|production| known.is_ours(&production));
        let ledger_known = known.known();
        let facts = Facts {
            source: facts.source,
            destination: facts.destination,
            ledger_known,
            ledger_agrees,
        };
        let refused = facts
            .source
            .is_some_and(|source| job.refused.contains(&source));
        let order = Order {
            explicit: job.explicit,
            expect: job.expect,
            replace: job.replace,
            refused,
        };
        let decision = plan::decide(rules, &facts, &order);
        if decision == Decision::Promote && ledger_agrees {
            self.note_open_intents(&known);
        }
        Ok(decision)
    }

    /// Says that an earlier write has no known outcome although production names what it named
    /// before. The write did not arrive, or it arrived and was taken back by hand: both give the
    /// same facts, and the tag moves again.
    fn note_open_intents(&self, known: &TagRecord) {
        let Some(intended) = known.intended.last() else {
            return;
        };
        self.note_reason(format!(
            "an earlier request to move the tag to {intended} got no answer, and production names what it named before: the \
             tag moves again; if a person had moved it back, see \"lost answers\" in the operations guide"
        ));
    }

    /// The ledger's record of a production tag. A write that succeeded although its answer was lost
    /// is recorded first: a later intent must not hide it.
    pub(super) async fn known(
        &self,
        place: &TagId,
        production: Option<Digest>,
    ) -> Result<(TagRecord, Option<Found>), Fault> {
        let ledger = &self.engine.ledger;
        let known = ledger.written(place).await?;
        let Some(digest) =
            production.filter(|production| known.is_found(production) && !self.job.dry_run)
        else {
            return Ok((known, None));
        };
        ledger.found(place, &digest).await?;
        let found = Found {
            digest,
            previous: known.digest,
        };
        Ok((ledger.written(place).await?, Some(found)))
    }

    /// Records in the ledger that both sides name `digest`, if that is new. A registry's claim
    /// about a digest proves nothing, so the manifest of a moving tag is read and hashed before. An
    /// explicit act neither uses nor makes agreements.
    pub(super) async fn agree(
        &self,
        place: &TagId,
        tag: &Tag,
        digest: Digest,
        moving: bool,
    ) -> Result<(), Fault> {
        if self.job.explicit {
            return Ok(());
        }
        let known = self.engine.ledger.written(place).await?;
        match known.on_equality(&digest) {
            EqualityUpdate::None => Ok(()),
            EqualityUpdate::Written => self.engine.ledger.found(place, &digest).await,
            EqualityUpdate::Agreed if moving && !self.proves(place, tag, digest).await? => Ok(()),
            EqualityUpdate::Agreed => {
                let agreement = Agreement {
                    tag: place.tag.clone(),
                    digest,
                    known,
                };
                self.engine
                    .ledger
                    .agree(&place.origin, &place.repository, vec![agreement])
                    .await
            }
        }
    }

    /// Whether the source proves by the bytes that its tag names `digest`.
    async fn proves(&self, place: &TagId, tag: &Tag, digest: Digest) -> Result<bool, Fault> {
        if self.engine.is_unproven(place, &digest) {
            return Ok(false);
        }
        let read = self
            .engine
            .read_tag(&self.source, tag, self.manifests_priority(), self.stop)
            .await;
        let proven = match read {
            Ok(read) => read == Some(digest),
            Err(fault) if fault.class() == Class::Corrupt => {
                self.engine.metrics.mismatched(self.source.registry());
                false
            }
            Err(fault) => return Err(fault),
        };
        if !proven {
            self.engine.note_unproven(place, &digest);
        }
        Ok(proven)
    }

    /// Surveys the image that staging names. `None`: staging moved the tag meanwhile, and the facts
    /// are new.
    pub(super) async fn survey_image(&self, facts: &mut TagFacts) -> Result<Option<Image>, Fault> {
        let expected = facts.source.expect("only a tag that exists is promoted");
        let top = match facts.manifest.take() {
            Some(manifest) => Some(manifest),
            None => self.source_manifest(expected.into()).await?,
        };
        let Some(top) = top else {
            // Deleted or moved between two requests: the next round uses the new facts.
            *facts = self.survey_tag(Observation::none()).await?;
            return if facts.source == Some(expected) {
                Err(self.vanished(expected))
            } else {
                Ok(None)
            };
        };
        if self.is_complete(&top.digest).await {
            let subjects = self.manifests_below(top.clone()).await?;
            return Ok(Some(Image {
                subjects,
                levels: Vec::new(),
                blobs: Vec::new(),
                top,
            }));
        }
        self.walk(top).await.map(Some)
    }

    /// Walks down from `top`.
    pub(super) async fn walk(&self, top: Manifest) -> Result<Image, Fault> {
        let mut walk = Walk::new(&top);
        let mut next = walk.add(&top)?;
        let mut levels = Vec::new();
        while !next.is_empty() {
            if levels.len() == DEPTH {
                return Err(self.refuse(format!("its indexes are nested more than {DEPTH} deep")));
            }
            let looked_at = stream::iter(next)
                .map(|child| self.look_at(child).boxed())
                .buffered(self.engine.settings.bounds.children);
            let children: Vec<Child> = looked_at.try_collect().await?;
            let mut level = Vec::new();
            next = Vec::new();
            for child in children {
                match child {
                    Child::Held => {}
                    Child::Blob(blob) => walk.add_blob(&blob),
                    Child::Manifest(manifest) => {
                        next.extend(
                            walk.add(&manifest)
                                .map_err(|fault| self.refuse(fault.to_string()))?,
                        );
                        level.push(manifest);
                    }
                }
            }
            levels.push(level);
        }
        let Walk {
            blobs, subjects, ..
        } = walk;
        Ok(Image {
            top,
            levels,
            blobs,
            subjects,
        })
    }

    /// Reads a child, unless the destination holds it completely.
    async fn look_at(&self, child: Descriptor) -> Result<Child, Fault> {
        if child.media_type.is_surely_blob() {
            return Ok(Child::Blob(child));
        }
        if self.is_complete(&child.digest).await || self.destination_has(&child.digest).await? {
            return Ok(Child::Held);
        }
        match self.source_manifest(child.digest.into()).await? {
            Some(manifest) if manifest.bytes.len() as u64 != child.size => {
                Err(self.lies(&child, manifest.bytes.len()))
            }
            Some(manifest) => Ok(Child::Manifest(manifest)),
            None if child.media_type.kind() == Kind::Other => Ok(Child::Blob(child)),
            None => Err(self.vanished(child.digest)),
        }
    }

    fn lies(&self, child: &Descriptor, found: usize) -> Fault {
        self.engine.metrics.mismatched(self.source.registry());
        let (address, Descriptor { digest, size, .. }) = (self.source.address(), child);
        Fault::corrupt(format!(
            "the index in {address} says that manifest {digest} has {size} bytes, but it has {found}; push the image again"
        ))
    }

    /// Whether a trusted hint says that the destination holds the manifest completely.
    pub(super) async fn is_complete(&self, digest: &Digest) -> bool {
        let hint = self
            .engine
            .index
            .manifest(
                self.destination.origin(),
                self.destination.repository(),
                digest,
            )
            .await;
        hint.is_some_and(|hint| hint.complete && self.trusts(hint.seen))
    }

    /// Asks the destination for a child manifest: a registry that holds it also holds its content.
    /// Not asked in a repository without tags.
    pub(super) async fn destination_has(&self, digest: &Digest) -> Result<bool, Fault> {
        if self.job.fresh {
            return Ok(false);
        }
        let target = Target::Digest(*digest);
        let held = self
            .ask_destination(RequestClass::Manifests, |destination| {
                let target = target.clone();
                async move { destination.resolve(&target).await }
            })
            .await?
            .is_some();
        if held {
            self.remember_manifests(vec![*digest]).await;
        }
        Ok(held)
    }

    pub(super) async fn remember_manifests(&self, digests: Vec<Digest>) {
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        self.engine
            .index
            .remember_manifests(origin, repository, digests, true)
            .await;
    }

    pub(super) async fn source_manifest(&self, target: Target) -> Result<Option<Manifest>, Fault> {
        let read = self
            .ask_source(RequestClass::Manifests, |source| {
                let target = target.clone();
                async move { source.manifest(&target).await }
            })
            .await;
        if read
            .as_ref()
            .is_err_and(|fault| fault.class() == Class::Corrupt)
        {
            self.engine.metrics.mismatched(self.source.registry());
        }
        read
    }

    /// The manifest of a tag at the source, as it was pushed.
    async fn tagged_manifest(&self, tag: &Tag) -> Result<Option<Manifest>, Fault> {
        let Some(manifest) = self.source_manifest(tag.clone().into()).await? else {
            return Ok(None);
        };
        let pushed = self.ask_source(RequestClass::Manifests, |source| {
            let (tag, read) = (tag.clone(), manifest.digest);
            async move { source.pushed_digest(&tag, &read).await }
        });
        match pushed.await? {
            Some(digest) if digest == manifest.digest => Ok(Some(manifest)),
            Some(digest) => self.source_manifest(digest.into()).await,
            None => Ok(None),
        }
    }

    /// The source digest of the job's own tag, or the pinned digest.
    pub(super) async fn own_source_digest(&self) -> Result<Option<Digest>, Fault> {
        if self.job.pinned.is_some() {
            Ok(self.job.pinned)
        } else {
            self.source_digest(&self.job.key.tag).await
        }
    }

    /// The source digest of a tag.
    pub(super) async fn source_digest(&self, tag: &Tag) -> Result<Option<Digest>, Fault> {
        let resolved = self
            .engine
            .resolve_tag(
                &self.source,
                tag,
                self.manifests_priority(),
                Attempts::Retried,
                self.stop,
            )
            .await;
        if resolved
            .as_ref()
            .is_err_and(|fault| fault.class() == Class::Corrupt)
        {
            self.engine.metrics.mismatched(self.source.registry());
        }
        resolved
    }

    /// The destination digest of a tag.
    pub(super) async fn destination_digest(&self, tag: &Tag) -> Result<Option<Digest>, Fault> {
        self.engine
            .resolve_tag(
                &self.destination,
                tag,
                self.manifests_priority(),
                Attempts::Retried,
                self.stop,
            )
            .await
    }

    pub(super) fn manifests_priority(&self) -> RequestPriority {
        RequestPriority::from(RequestClass::Manifests)
            .of_job(&self.ticket)
            .within(self.engine.settings.retry.hold)
    }

    fn vanished(&self, digest: Digest) -> Fault {
        let address = self.source.address();
        Fault::not_found(format!(
            "{address} lists manifest {digest} under {} but does not have it; push the image again",
            self.job.key.tag
        ))
    }

    fn refuse(&self, why: String) -> Fault {
        Fault::rejected(format!(
            "{} cannot be mirrored: {why}",
            self.source_reference()
        ))
    }
}

/// The content found so far.
struct Walk {
    blobs: Vec<Descriptor>,
    subjects: Vec<Digest>,
    bytes: usize,
    seen: HashSet<Digest>,
    sizes: HashMap<Digest, u64>,
}

impl Walk {
    fn new(top: &Manifest) -> Walk {
        let seen = HashSet::from([top.digest]);
        Walk {
            blobs: Vec::new(),
            subjects: vec![top.digest],
            bytes: 0,
            seen,
            sizes: HashMap::new(),
        }
    }

    /// Adds the content of a manifest. Returns the new children to check.
    fn add(&mut self, manifest: &Manifest) -> Result<Vec<Descriptor>, Fault> {
        self.bytes += manifest.bytes.len();
        if self.bytes > BYTES || self.seen.len() > MANIFESTS {
            return Err(Fault::rejected(format!(
                "it has more than {MANIFESTS} manifests or {} MiB of them",
                BYTES / 1024 / 1024
            )));
        }
        for blob in &manifest.blobs {
            self.add_blob(blob);
        }
        let new: Vec<_> = manifest
            .children
            .iter()
            .filter(|child| self.seen.insert(child.digest))
            .cloned()
            .collect();
        self.subjects.extend(
            new.iter()
                .filter(|child| !child.media_type.is_surely_blob())
                .map(|child| child.digest),
        );
        Ok(new)
    }

    /// Adds a blob once. A second size is kept too, so that the false one is detected. Foreign
    /// layers are left out: they are copied only if the destination refuses the manifest without
    /// them.
    fn add_blob(&mut self, blob: &Descriptor) {
        if self.sizes.insert(blob.digest, blob.size) == Some(blob.size) {
            return;
        }
        if !blob.media_type.is_foreign_layer() {
            self.blobs.push(blob.clone());
        }
    }
}
