//! A source repository as a route reads it: whole, or with the manifest of one platform under each
//! tag.
//!
//! With a platform a tag names the child of its index that is for this platform, and everything that
//! compares, carries and names goes by that child. A tag of a single manifest names that manifest,
//! if its config says this platform. What has no such manifest is refused by the rule, in words.
//! What a digest names is what it always names.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    BlobBody, Cursor, ListedManifest, Origin, Page, RepositoryId, Resolved, ScanAnswer, Source,
    Tag, Tally,
};
use crate::fault::Fault;
use crate::oci::{
    self, Descriptor, Digest, Hasher, Kind, Manifest, Platform, RepositoryName, Target,
};

/// Most manifests that are kept in memory. Beyond that all are forgotten and read again.
const KEPT: usize = 20_000;
/// Most bytes of an image's config.
const CONFIG: u64 = 4 << 20;

/// The platform of a route, with what was found for it.
#[derive(Debug)]
pub struct OnlyPlatform {
    platform: Platform,
    /// The manifest for the platform in each index. That does not change.
    chosen: Mutex<BTreeMap<Digest, Result<Digest, String>>>,
}

impl OnlyPlatform {
    /// Nothing was read yet.
    pub fn new(platform: Platform) -> OnlyPlatform {
        OnlyPlatform {
            platform,
            chosen: Mutex::default(),
        }
    }

    /// The platform.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    fn chosen(&self, top: &Digest) -> Option<Result<Digest, String>> {
        lock(&self.chosen).get(top).cloned()
    }

    fn choose(&self, top: Digest, chosen: Result<Digest, String>) {
        let mut known = lock(&self.chosen);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(top, chosen);
    }

    /// A tag of a list. A digest that the list shows is that of the index.
    fn listed(&self, tag: Tag) -> Tag {
        if tag.name.travels_with_subject() {
            return tag;
        }
        Tag {
            digest: tag.digest.and_then(|top| self.chosen(&top)?.ok()),
            ..tag
        }
    }

    /// The child of an index that is for the platform.
    fn child(&self, index: &Manifest) -> Result<Digest, String> {
        let platform = &self.platform;
        let children: Vec<&Descriptor> = index
            .children
            .iter()
            .filter(|child| is_for(child, platform))
            .collect();
        match children.as_slice() {
            [child] if child.media_type.kind() == Kind::Index => Err(format!(
                "what {} lists for {platform} is an index itself",
                index.digest
            )),
            [child] => Ok(child.digest),
            [] => Err(format!("{} has no manifest for {platform}", index.digest)),
            _ => Err(format!(
                "{} has several manifests for {platform}, and which is meant cannot be told",
                index.digest
            )),
        }
    }
}

fn is_for(child: &Descriptor, platform: &Platform) -> bool {
    let text = child.platform.as_deref().unwrap_or_default();
    text.parse()
        .is_ok_and(|of_child: Platform| of_child == *platform)
}

impl PartialEq for OnlyPlatform {
    fn eq(&self, other: &OnlyPlatform) -> bool {
        self.platform == other.platform
    }
}

fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A source repository as a route reads it. Cheap to clone.
#[derive(Clone)]
pub struct RouteSource<R> {
    whole: R,
    only: Option<Arc<OnlyPlatform>>,
}

impl<R: Source> RouteSource<R> {
    /// The repository, with one platform alone if there is one.
    pub fn new(whole: R, only: Option<Arc<OnlyPlatform>>) -> RouteSource<R> {
        RouteSource { whole, only }
    }

    /// The repository as it is.
    pub fn whole(&self) -> &R {
        &self.whole
    }

    /// The platform of a tag. One that travels with its subject is as it was pushed.
    fn only_of(&self, tag: &oci::Tag) -> Option<&OnlyPlatform> {
        let only = self.only.as_deref();
        only.filter(|_| !tag.travels_with_subject())
    }

    /// The tag of a target that names the manifest of a platform.
    fn tag_of<'a>(&'a self, target: &'a Target) -> Option<(&'a OnlyPlatform, &'a oci::Tag)> {
        match target {
            Target::Tag(tag) => Some((self.only_of(tag)?, tag)),
            Target::Digest(_) => None,
        }
    }

    /// The manifest for the platform in what has the digest `top`, which may have been read.
    async fn choose(
        &self,
        only: &OnlyPlatform,
        top: Digest,
        read: Option<&Manifest>,
    ) -> Result<Option<Digest>, Fault> {
        if let Some(chosen) = only.chosen(&top) {
            return chosen.map(Some).map_err(|text| self.refused(&text));
        }
        let fetched = match read.filter(|read| read.digest == top) {
            Some(_) => None,
            None => self.whole.manifest(&Target::Digest(top)).await?,
        };
        let Some(manifest) = fetched.as_ref().or(read) else {
            return Ok(None);
        };
        let chosen = match manifest.kind == Kind::Index {
            true => only.child(manifest),
            false => self.single(only, manifest).await?,
        };
        only.choose(top, chosen.clone());
        chosen.map(Some).map_err(|text| self.refused(&text))
    }

    /// A single manifest, if its config says the platform.
    async fn single(
        &self,
        only: &OnlyPlatform,
        manifest: &Manifest,
    ) -> Result<Result<Digest, String>, Fault> {
        let platform = only.platform();
        let digest = manifest.digest;
        let config = manifest
            .blobs
            .first()
            .filter(|_| manifest.kind == Kind::Image);
        let said = match config.filter(|config| config.size <= CONFIG) {
            Some(config) => self.config_platform(config).await?,
            None => None,
        };
        Ok(match said {
            Some(said) if said == *platform => Ok(digest),
            Some(said) => Err(format!("{digest} is for {said}, not for {platform}")),
            None => Err(format!("{digest} does not say that it is for {platform}")),
        })
    }

    async fn config_platform(&self, config: &Descriptor) -> Result<Option<Platform>, Fault> {
        #[derive(serde::Deserialize)]
        struct Config {
            os: String,
            architecture: String,
            variant: Option<String>,
        }
        let Some(mut body) = self.whole.read_blob(config, 0).await? else {
            let address = self.whole.address();
            let digest = config.digest;
            let text = format!("{address} does not have the config {digest}; push the image again");
            return Err(Fault::not_found(text));
        };
        let mut bytes = Vec::new();
        let mut hasher = Hasher::new(config.digest.algorithm());
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            if (bytes.len() + frame.len()) as u64 > config.size {
                return Err(self.corrupt(config));
            }
            hasher.update(&frame);
            bytes.extend_from_slice(&frame);
        }
        if hasher.finish() != config.digest {
            return Err(self.corrupt(config));
        }
        let config: Option<Config> = serde_json::from_slice(&bytes).ok();
        Ok(config.map(|said| Platform::new(&said.os, &said.architecture, said.variant.as_deref())))
    }

    fn corrupt(&self, blob: &Descriptor) -> Fault {
        let address = self.whole.address();
        Fault::corrupt(format!("{address} sends another blob than {}", blob.digest))
    }

    fn refused(&self, text: &str) -> Fault {
        Fault::by_rule(format!("platform: in {}, {text}", self.whole.address()))
    }

    /// The manifest that a tag names, as it was pushed.
    async fn tagged(&self, tag: &oci::Tag) -> Result<Option<Manifest>, Fault> {
        let Some(read) = self.whole.manifest(&Target::Tag(tag.clone())).await? else {
            return Ok(None);
        };
        match self.whole.pushed_digest(tag, &read.digest).await? {
            Some(pushed) if pushed == read.digest => Ok(Some(read)),
            Some(pushed) => self.whole.manifest(&Target::Digest(pushed)).await,
            None => Ok(None),
        }
    }

    async fn resolve_tag(
        &self,
        only: &OnlyPlatform,
        tag: &oci::Tag,
    ) -> Result<Option<Resolved>, Fault> {
        let Some(resolved) = self.whole.resolve(&Target::Tag(tag.clone())).await? else {
            return Ok(None);
        };
        let (top, read) = match resolved.digest {
            Some(top) => (top, None),
            None => match self.tagged(tag).await? {
                Some(read) => (read.digest, Some(read)),
                None => return Ok(None),
            },
        };
        let chosen = self.choose(only, top, read.as_ref()).await?;
        Ok(chosen.map(|digest| Resolved {
            digest: Some(digest),
            size: None,
            index: Some(top).filter(|top| *top != digest),
            ..resolved
        }))
    }

    async fn tagged_manifest(
        &self,
        only: &OnlyPlatform,
        tag: &oci::Tag,
    ) -> Result<Option<Manifest>, Fault> {
        let Some(top) = self.tagged(tag).await? else {
            return Ok(None);
        };
        let chosen = self.choose(only, top.digest, Some(&top)).await?;
        match chosen {
            Some(digest) if digest == top.digest => Ok(Some(top)),
            Some(digest) => self.listed(top.digest, digest).await.map(Some),
            None => Ok(None),
        }
    }

    /// A manifest that an index lists. Without it the tag is there and cannot be promoted: it is not
    /// gone.
    async fn listed(&self, index: Digest, digest: Digest) -> Result<Manifest, Fault> {
        let manifest = self.whole.manifest(&Target::Digest(digest)).await?;
        manifest.ok_or_else(|| missing_manifest(&self.whole, &digest, &index))
    }
}

/// The failure of a source that lists a manifest under a tag or an index and does not have it.
pub fn missing_manifest(source: &impl Source, digest: &Digest, under: &impl Display) -> Fault {
    let address = source.address();
    Fault::not_found(format!(
        "{address} lists manifest {digest} under {under} but does not have it; push the image again"
    ))
}

impl<R: Source> Source for RouteSource<R> {
    fn registry(&self) -> &str {
        self.whole.registry()
    }

    fn origin(&self) -> &Origin {
        self.whole.origin()
    }

    fn repository(&self) -> &RepositoryName {
        self.whole.repository()
    }

    fn tags_id(&self) -> RepositoryId {
        let id = self.whole.id();
        match self.platform() {
            // No origin begins so.
            Some(platform) => RepositoryId {
                origin: Origin::new(&format!("{platform} of {}", id.origin)),
                ..id
            },
            None => id,
        }
    }

    fn address(&self) -> String {
        self.whole.address()
    }

    fn counted(&self, tally: &Arc<Tally>) -> Self {
        RouteSource {
            whole: self.whole.counted(tally),
            only: self.only.clone(),
        }
    }

    fn lists_referrers(&self) -> Option<bool> {
        self.whole.lists_referrers()
    }

    async fn tags(&self, cursor: Option<&Cursor>) -> Result<Option<Page<Tag>>, Fault> {
        let page = self.whole.tags(cursor).await?;
        let Some(only) = &self.only else {
            return Ok(page);
        };
        Ok(page.map(|page| Page {
            entries: page
                .entries
                .into_iter()
                .map(|tag| only.listed(tag))
                .collect(),
            ..page
        }))
    }

    async fn listed_manifests(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<ListedManifest>>, Fault> {
        self.whole.listed_manifests(cursor).await
    }

    fn tells_digest(&self, tag: &oci::Tag) -> bool {
        self.only_of(tag).is_some() || self.whole.tells_digest(tag)
    }

    async fn resolve(&self, target: &Target) -> Result<Option<Resolved>, Fault> {
        match self.tag_of(target) {
            Some((only, tag)) => self.resolve_tag(only, tag).await,
            None => self.whole.resolve(target).await,
        }
    }

    async fn manifest(&self, target: &Target) -> Result<Option<Manifest>, Fault> {
        match self.tag_of(target) {
            Some((only, tag)) => self.tagged_manifest(only, tag).await,
            None => self.whole.manifest(target).await,
        }
    }

    async fn pushed_digest(&self, tag: &oci::Tag, read: &Digest) -> Result<Option<Digest>, Fault> {
        match self.only_of(tag) {
            Some(_) => Ok(Some(*read)),
            None => self.whole.pushed_digest(tag, read).await,
        }
    }

    async fn referrers(
        &self,
        subject: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        self.whole.referrers(subject, cursor).await
    }

    async fn scan_findings(
        &self,
        image: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<ScanAnswer, Fault> {
        self.whole.scan_findings(image, cursor).await
    }

    async fn read_blob(&self, blob: &Descriptor, offset: u64) -> Result<Option<BlobBody>, Fault> {
        self.whole.read_blob(blob, offset).await
    }

    async fn read_part(
        &self,
        blob: &Descriptor,
        part: Range<u64>,
    ) -> Result<Option<BlobBody>, Fault> {
        self.whole.read_part(blob, part).await
    }

    async fn promoted_of(&self, digest: &Digest) -> Result<Option<Digest>, Fault> {
        match &self.only {
            Some(only) => self.choose(only, *digest, None).await,
            None => Ok(Some(*digest)),
        }
    }

    fn platform(&self) -> Option<&Platform> {
        self.only.as_ref().map(|only| only.platform())
    }
}
