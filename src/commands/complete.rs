//! Whether an image is complete: each of its manifests and blobs in one of two repositories.

use std::collections::BTreeSet;

use crate::backend::Repository;
use crate::clock;
use crate::decision::InForce;
use crate::endpoint::{Destination as _, Presence, Source as _};
use crate::fault::Fault;
use crate::job::LONG_WAIT;
use crate::oci::{Digest, Kind, Manifest, Target};
use crate::transfer::limits::{RequestClass, RequestPriority};
use crate::transfer::{Engine, Stop};

/// Most manifests of an image that are read.
const MOST_MANIFESTS: usize = 500;

/// The repositories that may hold an image.
pub(super) struct Holders<'a> {
    pub(super) engine: &'a Engine,
    pub(super) repositories: Vec<&'a Repository>,
    pub(super) stop: &'a Stop,
    pub(super) in_force: &'a InForce,
}

impl Holders<'_> {
    /// Whether all of an image is in one of the repositories or the other, and none of it denied.
    /// What cannot be asked counts as missing.
    pub(super) async fn have(&self, image: Digest) -> bool {
        self.have_all(image).await.unwrap_or(false)
    }

    async fn have_all(&self, image: Digest) -> Result<bool, Fault> {
        let mut blobs = BTreeSet::new();
        let mut seen = BTreeSet::from([image]);
        let Some(top) = self.manifest(image).await? else {
            return Ok(false);
        };
        let mut next = vec![top];
        while let Some(manifest) = next.pop() {
            blobs.extend(manifest.blobs.iter().map(|blob| blob.digest));
            for child in manifest.children {
                if !seen.insert(child.digest) {
                    continue;
                }
                if child.media_type.is_surely_blob() {
                    blobs.insert(child.digest);
                    continue;
                }
                match self.manifest(child.digest).await? {
                    Some(manifest) if seen.len() <= MOST_MANIFESTS => next.push(manifest),
                    None if child.media_type.kind() == Kind::Other => {
                        blobs.insert(child.digest);
                    }
                    Some(_) | None => return Ok(false),
                }
            }
        }
        let now = clock::now();
        if self.in_force.denied(blobs.union(&seen), now).is_some() {
            return Ok(false);
        }
        for blob in blobs {
            if !self.have_blob(blob).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn manifest(&self, digest: Digest) -> Result<Option<Manifest>, Fault> {
        let target = Target::Digest(digest);
        for repository in &self.repositories {
            let read = self
                .ask(repository, || repository.manifest(&target))
                .await?;
            if read.is_some() {
                return Ok(read);
            }
        }
        Ok(None)
    }

    async fn have_blob(&self, digest: Digest) -> Result<bool, Fault> {
        for repository in &self.repositories {
            let presence = self
                .ask(repository, || repository.has_blob(&digest))
                .await?;
            if !matches!(presence, Presence::Absent) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn ask<T, F>(&self, repository: &Repository, act: impl FnMut() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let priority = RequestPriority::from(RequestClass::Manifests).within(LONG_WAIT);
        let origin = repository.origin();
        let registry = repository.registry();
        self.engine
            .ask(origin, registry, priority, self.stop, act)
            .await
    }
}
