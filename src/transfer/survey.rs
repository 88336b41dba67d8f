//! Survey: gathers facts. Of a tag: the digests on both sides and the ledger's record. Of an image:
//! its manifests and blobs, as far as the destination does not hold them already.
//!
//! An image is walked breadth first, with bounds on depth, number and bytes. A subtree that is
//! complete at the destination, by a hint or an answer, is not walked. Each manifest is read at
//! most once.

mod tag;
mod walk;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

pub(super) use self::tag::{Observation, TagFacts};
use self::walk::Walk;
use super::Promotion;
use super::limits::{RequestClass, RequestPriority};
use crate::endpoint::{Destination, Source, missing_manifest};
use crate::fault::{Class, Fault};
use crate::oci::{Descriptor, Digest, Kind, Manifest, Target};

/// Deepest nesting of indexes.
const DEPTH: usize = 8;

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
    /// The destination holds the manifest, perhaps without what is below it.
    Present(Manifest),
    Manifest(Manifest),
    Blob(Descriptor),
}

impl Image {
    /// The manifests that were read: of those that the destination holds only the top one.
    pub(super) fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        std::iter::once(&self.top).chain(self.levels.iter().flatten())
    }

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
    /// Surveys the image that staging names. `None`: staging moved the tag meanwhile, and the facts
    /// are new.
    pub(super) async fn survey_image(&self, facts: &mut TagFacts) -> Result<Option<Image>, Fault> {
        let expected = facts.source.expect("only a tag that exists is promoted");
        let top = match facts.manifest.take() {
            Some(manifest) => Some(manifest),
            None => self.top_manifest(expected).await?,
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
                    Child::Present(manifest) => next.extend(self.below(&mut walk, &manifest)?),
                    Child::Manifest(manifest) => {
                        next.extend(self.below(&mut walk, &manifest)?);
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

    fn below(&self, walk: &mut Walk, manifest: &Manifest) -> Result<Vec<Descriptor>, Fault> {
        walk.add(manifest)
            .map_err(|fault| self.refuse(fault.to_string()))
    }

    /// The manifest that staging names. A rollback takes what production holds.
    async fn top_manifest(&self, digest: Digest) -> Result<Option<Manifest>, Fault> {
        if self.job.rollback.is_some()
            && let Some(manifest) = self.destination_manifest(digest).await?
        {
            return Ok(Some(manifest));
        }
        self.source_manifest(digest.into()).await
    }

    /// Reads a child, unless the destination holds it completely.
    async fn look_at(&self, child: Descriptor) -> Result<Child, Fault> {
        if child.media_type.is_surely_blob() {
            return Ok(Child::Blob(child));
        }
        if self.job.rollback.is_some() {
            // What is long in production may have lost a part.
            if let Some(manifest) = self.destination_manifest(child.digest).await? {
                return Ok(Child::Present(manifest));
            }
        } else if self.is_complete(&child.digest).await
            || self.destination_has(&child.digest).await?
        {
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
        let address = self.source.address();
        let Descriptor { digest, size, .. } = child;
        Fault::corrupt(format!(
            "the index in {address} says that manifest {digest} has {size} bytes, but it has {found}; push the image again"
        ))
    }

    /// Whether a trusted hint says that the destination holds the manifest completely.
    pub(super) async fn is_complete(&self, digest: &Digest) -> bool {
        let hint = self
            .engine
            .index
            .manifest(&self.destination.id(), digest)
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
        self.engine
            .index
            .remember_manifests(&self.destination.id(), digests, true)
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

    /// A manifest by its digest in production.
    pub(super) async fn destination_manifest(
        &self,
        digest: Digest,
    ) -> Result<Option<Manifest>, Fault> {
        let target = Target::Digest(digest);
        self.ask_destination(RequestClass::Manifests, |destination| {
            let target = target.clone();
            async move { destination.manifest(&target).await }
        })
        .await
    }

    pub(super) fn manifests_priority(&self) -> RequestPriority {
        RequestPriority::from(RequestClass::Manifests)
            .of_job(&self.ticket)
            .within(self.engine.settings.retry.hold)
    }

    fn vanished(&self, digest: Digest) -> Fault {
        missing_manifest(&self.source, &digest, &self.job.key.tag)
    }

    fn refuse(&self, why: String) -> Fault {
        Fault::rejected(format!(
            "{} cannot be mirrored: {why}",
            self.source_reference()
        ))
    }
}
