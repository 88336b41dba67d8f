//! An ECR registry and its repositories: the distribution client, with the control plane where that
//! is cheaper or knows more.
//!
//! | what | how | when the permission is missing |
//! |---|---|---|
//! | tags | DescribeImages: names, digests and push times, a thousand at a time | the registry's list, then a request for each tag |
//! | repositories | DescribeRepositories | the registry's catalog |
//! | whether blobs are there | BatchCheckLayerAvailability for all that are asked about at one moment | a HEAD for each |
//! | mounts | GetAccountSetting tells whether they work at all | they are tried |
//! | findings of scans | DescribeImageScanFindings | the gate cannot be judged |
//! | everything else | the registry | |
//!
//! A missing permission is logged once and tried again after 15 minutes. Nothing is written before
//! the caller matches `identity` of the config.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::SignedDuration;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Login;
use super::control::{Answer, Control, Images, MOST_LAYERS};
use super::create::Creation;
use super::handle::RepositoryHandle;
use super::shared::{BatchError, LayerQuery, Shared};
use super::unfinished::Unfinished;
use crate::endpoint::{
    Abilities, Begin, BlobBody, Cursor, Destination, ListedManifest, Mount, Offset, Origin, Page,
    Presence, Put, Resolved, Resume, ScanAnswer, Sent, Source, Tag, Tally, Upload,
};
use crate::fault::{Class, Fault};
use crate::oci::{self, Descriptor, Digest, Manifest, RepositoryName, Target};
use crate::registry::{self, Metrics};

/// How long after its creation a repository may still be unknown to the registry.
const SETTLING: Duration = Duration::from_secs(30);
/// Where no chunk can belong: a blob of ECR has 52,000 MiB at most.
const BEYOND: u64 = 1 << 40;

/// An ECR registry. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: registry::Registry,
    shared: Arc<Shared>,
}

impl Registry {
    /// The registry `inner`, to which `login` belongs.
    pub fn new(
        inner: registry::Registry,
        login: Login,
        metrics: &Metrics,
        unfinished: Arc<dyn Unfinished>,
    ) -> Registry {
        let control = Control::new(login, inner.name(), metrics);
        let shared = Shared::new(control, unfinished);
        Registry {
            inner,
            shared: Arc::new(shared),
        }
    }

    /// The registry itself.
    pub fn inner(&self) -> &registry::Registry {
        &self.inner
    }

    /// One of its repositories.
    pub fn repository(&self, name: RepositoryName) -> Repository {
        Repository {
            inner: self.inner.repository(name),
            registry: self.clone(),
            tally: None,
            creation: None,
        }
    }

    /// One page of the repositories. `None`: neither the control plane nor the registry lists them
    /// for us.
    ///
    /// # Errors
    /// As any request.
    pub async fn repositories(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<RepositoryName>>, Fault> {
        const ACTION: &str = "DescribeRepositories";
        if is_of_registry(cursor) || !self.shared.may(ACTION) {
            return self.inner.repositories(cursor).await;
        }
        match self
            .shared
            .control
            .repositories(cursor.map(|cursor| cursor.0.as_str()))
            .await?
        {
            Answer::Given(page) => {
                self.shared.allow(ACTION);
                Ok(Some(page))
            }
            Answer::Denied(fault) => {
                self.shared
                    .deny(ACTION, &fault, "the registry's catalog is read instead");
                self.inner.repositories(None).await
            }
        }
    }

    /// The caller's ARN, from GetCallerIdentity.
    ///
    /// # Errors
    /// `Auth` when AWS does not recognise the caller, or when the caller is not the principal that
    /// the config requires.
    pub async fn caller(&self) -> Result<String, Fault> {
        let (arn, _) = self.shared.control.login().caller().await?;
        self.shared.check_caller(&arn)?;
        Ok(arn)
    }

    /// Whether blobs are mounted between its repositories; `None` when we may not know, or when it
    /// is the registry of another account.
    ///
    /// # Errors
    /// As any request.
    pub async fn mounts_blobs(&self) -> Result<Option<bool>, Fault> {
        if !self.shared.is_ours().await {
            return Ok(None);
        }
        match self.shared.control.mounts_blobs().await? {
            Answer::Given(mounts) => Ok(Some(mounts)),
            Answer::Denied(_) => Ok(None),
        }
    }
}

/// Cursors of the registry's own listings are addresses; AWS's are opaque words.
fn is_of_registry(cursor: Option<&Cursor>) -> bool {
    cursor.is_some_and(|cursor| cursor.0.starts_with("http://") || cursor.0.starts_with("https://"))
}

/// One repository of an ECR registry. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    inner: registry::Repository,
    registry: Registry,
    tally: Option<Arc<Tally>>,
    creation: Option<Arc<Creation>>,
}

impl Repository {
    /// The same repository, created by the first write when it is missing.
    pub fn created_by(self, creation: Arc<Creation>) -> Repository {
        Repository {
            creation: Some(creation),
            ..self
        }
    }

    /// The same repository, left alone when it is missing. The flag: a write would have created it.
    pub fn as_it_is(self) -> (Repository, bool) {
        let creates = self.creation.is_some();
        (
            Repository {
                creation: None,
                ..self
            },
            creates,
        )
    }

    /// The repository as the control plane addresses it.
    pub fn handle(&self) -> RepositoryHandle {
        RepositoryHandle {
            shared: self.registry.shared.clone(),
            id: self.inner.id(),
            address: self.inner.address(),
            tally: self.tally.clone(),
        }
    }

    /// The repository without its control plane.
    pub fn inner(&self) -> &registry::Repository {
        &self.inner
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.registry.shared
    }

    pub(super) fn control(&self) -> &Control {
        &self.registry.shared.control
    }

    pub(super) fn tally(&self) -> Option<&Tally> {
        self.tally.as_deref()
    }

    /// Whether tags of this repository may move; `None` when it is missing or we may not know.
    ///
    /// # Errors
    /// As any request.
    pub async fn has_mutable_tags(&self) -> Result<Option<bool>, Fault> {
        match self
            .control()
            .repository(self.inner.repository(), self.tally())
            .await?
        {
            Answer::Given(repository) => Ok(repository.as_ref().map(super::control::is_mutable)),
            Answer::Denied(_) => Ok(None),
        }
    }

    async fn listed(&self, cursor: Option<&Cursor>) -> Result<Option<Page<Tag>>, Fault> {
        const ACTION: &str = "DescribeImages";
        if is_of_registry(cursor) || !self.shared().may(ACTION) {
            return self
                .with_principal(
                    "ListImages",
                    self.inner
                        .tags(cursor.filter(|_| is_of_registry(cursor)))
                        .await,
                )
                .await;
        }
        let cursor = cursor.map(|cursor| cursor.0.as_str());
        match self
            .control()
            .images(self.inner.repository(), cursor, self.tally())
            .await?
        {
            Answer::Given(None) => self.check_account().await.map(|()| None),
            Answer::Given(Some(images)) => {
                self.shared().allow(ACTION);
                self.note_archived(&images);
                Ok(Some(images.page))
            }
            Answer::Denied(fault) => {
                self.shared().deny(
                    ACTION,
                    &fault,
                    "the registry's own list is read instead: a request for each tag",
                );
                self.with_principal("ListImages", self.inner.tags(None).await)
                    .await
            }
        }
    }

    /// An account that only the config names may be the wrong one: then its control plane misses
    /// what the registry has.
    async fn check_account(&self) -> Result<(), Fault> {
        let Some(account) = self.control().login().presumed_account() else {
            return Ok(());
        };
        match self.inner.tags(None).await {
            Ok(Some(_)) => Err(Fault::rejected(format!(
                "{} is there, but not in account {account}, which `account` of {} names: mend it",
                self.address(),
                self.registry()
            ))),
            // What is missing on both sides is missing.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Whether the repository holds a blob, asked together with all others that are asked about at
    /// this moment.
    async fn has_blob_batched(&self, digest: &Digest) -> Result<Presence, Fault> {
        const ACTION: &str = "BatchCheckLayerAvailability";
        if !self.shared().may(ACTION) {
            return self
                .with_principal(
                    "BatchCheckLayerAvailability",
                    self.inner.has_blob(digest).await,
                )
                .await;
        }
        let (tell, told) = oneshot::channel();
        let first = {
            let mut known = self.shared().known();
            let asked = known
                .asked
                .entry(self.inner.repository().clone())
                .or_default();
            asked.push((*digest, tell));
            asked.len() == 1
        };
        if first {
            self.flush_queries().await;
        }
        match told.await {
            Ok(Ok(presence)) => Ok(presence),
            Ok(Err(BatchError::Failed(class, text))) => Err(Fault::new(class, text)),
            // The request that was to send the batch has been dropped.
            Ok(Err(BatchError::AskRegistry)) | Err(_) => {
                self.with_principal(
                    "BatchCheckLayerAvailability",
                    self.inner.has_blob(digest).await,
                )
                .await
            }
        }
    }

    /// Sends the questions that have come together. Others get their turn first, so that theirs are
    /// among them.
    async fn flush_queries(&self) {
        let leave = QueryGuard(self);
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let questions = leave.take();
        drop(leave);
        for batch in questions.chunks_into(MOST_LAYERS) {
            self.query_batch(batch).await;
        }
    }

    async fn query_batch(&self, batch: Vec<LayerQuery>) {
        const ACTION: &str = "BatchCheckLayerAvailability";
        let digests: Vec<Digest> = batch.iter().map(|(digest, _)| *digest).collect();
        let answer = self
            .control()
            .layers(self.inner.repository(), &digests, self.tally())
            .await;
        let another_way = match &answer {
            Ok(Answer::Denied(fault)) => Some(fault),
            // Emulators break down over what they do not know; throttling is for the caller to wait
            // out.
            Err(fault)
                if !matches!(
                    fault.class(),
                    Class::Auth | Class::Retryable { after: Some(_) }
                ) =>
            {
                Some(fault)
            }
            _ => None,
        };
        match another_way {
            Some(fault) => self.shared().deny(
                ACTION,
                fault,
                "the registry is asked about each blob instead",
            ),
            None if answer.is_ok() => self.shared().allow(ACTION),
            None => {}
        }
        for (digest, tell) in batch {
            let told = match &answer {
                Ok(Answer::Given(found)) => {
                    Ok(found.get(&digest).copied().unwrap_or(Presence::Absent))
                }
                _ if another_way.is_some() => Err(BatchError::AskRegistry),
                Ok(Answer::Denied(_)) => Err(BatchError::AskRegistry),
                Err(fault) => Err(BatchError::Failed(fault.class(), fault.chain())),
            };
            // The receiver may have been dropped.
            let _ = tell.send(told);
        }
    }

    /// Before anything is written: the caller is the right one, and the repository is there.
    async fn prepare(&self) -> Result<(), Fault> {
        self.shared().check_identity().await?;
        let Some(creation) = &self.creation else {
            return Ok(());
        };
        let name = self.inner.repository();
        if self.shared().is_there(name) {
            return Ok(());
        }
        let _alone = self.shared().creating.lock().await;
        if self.shared().is_there(name) {
            return Ok(());
        }
        let created = creation.ensure(&self.handle()).await?;
        self.shared()
            .known()
            .there
            .insert(name.clone(), created.then(Instant::now));
        Ok(())
    }

    /// A repository that was created a moment ago may not be known everywhere yet; one that is
    /// missing says what to do.
    fn explain_missing(&self, fault: Fault) -> Fault {
        let missing = fault.class() == Class::NotFound;
        let name = self.inner.repository();
        let created = self.shared().known().there.get(name).copied().flatten();
        match created {
            _ if !missing => fault,
            Some(at) if at.elapsed() < SETTLING => fault.with_class(Class::RETRYABLE),
            _ if self.creation.is_some() => {
                // The repository was deleted since.
                self.shared().known().there.remove(name);
                fault
            }
            _ => Fault::not_found(format!(
                "{} does not exist: create it, or say `create: template` or `create: clone` in the route and allow ecr:CreateRepository",
                self.address()
            ))
            .because(fault),
        }
    }

    /// Adds the principal, the action and the resource to a refusal: the registry's own text lacks
    /// them.
    async fn with_principal<T>(&self, action: &str, answer: Result<T, Fault>) -> Result<T, Fault> {
        match answer {
            Err(fault) if fault.class() == Class::Auth => Err(self
                .shared()
                .explain_refusal(action, self.inner.repository(), fault)
                .await),
            answer => answer,
        }
    }

    /// The offset of a session, from the refusal of a chunk that lies beyond every blob.
    async fn probe(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        let byte = BlobBody::full(bytes::Bytes::from_static(&[0]));
        match self.inner.send_chunk(upload, BEYOND, 1, byte).await {
            Ok(Sent::Misplaced(offset)) => Ok(offset),
            Ok(Sent::Gone) => Ok(Offset::Gone),
            // A registry that takes such a chunk has spoilt the session.
            Ok(Sent::Accepted { .. } | Sent::Early) => Ok(Offset::Unknown),
            Err(fault) if fault.class() == Class::Rejected => Ok(Offset::Unknown),
            Err(fault) => Err(fault),
        }
    }

    /// Records which images a listing shows as archived or as restored.
    fn note_archived(&self, images: &Images) {
        self.shared()
            .known()
            .note_archived(self.inner.repository(), images);
    }

    /// Archived images cannot be read until they are restored. A listing tells; where none has for
    /// a while, reading does.
    fn check_not_archived(&self, digest: &Digest) -> Result<(), Fault> {
        match self
            .shared()
            .known()
            .is_archived(self.inner.repository(), digest)
        {
            false => Ok(()),
            true => Err(Fault::rejected(format!(
                "{}@{digest} is archived and cannot be read: restore it (aws ecr update-image-storage-class --target-storage-class STANDARD), or exclude its tag",
                self.address()
            ))),
        }
    }

    fn warn_mounting_off(&self, bytes_of: &Digest) {
        let mut known = self.shared().known();
        if !std::mem::replace(&mut known.hinted, true) {
            tracing::warn!(
                registry = self.registry(),
                blob = %bytes_of,
                "the registry holds blobs that are uploaded again: blob mounting is off in this account and region; aws ecr put-account-setting --name BLOB_MOUNTING --value ENABLED spares them"
            );
        }
    }
}

/// Discards the queries when the request that sends the batch is dropped: the other requests then
/// ask the registry themselves.
struct QueryGuard<'a>(&'a Repository);

impl QueryGuard<'_> {
    fn take(&self) -> LayerQueries {
        LayerQueries(
            self.0
                .shared()
                .known()
                .asked
                .remove(self.0.inner.repository())
                .unwrap_or_default(),
        )
    }
}

impl Drop for QueryGuard<'_> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

struct LayerQueries(Vec<LayerQuery>);

impl LayerQueries {
    fn chunks_into(self, most: usize) -> impl Iterator<Item = Vec<LayerQuery>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let next = rest.split_off(rest.len().saturating_sub(most));
            (!next.is_empty()).then_some(next)
        })
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Source for Repository {
    fn registry(&self) -> &str {
        self.inner.registry()
    }

    fn origin(&self) -> &Origin {
        self.inner.origin()
    }

    fn repository(&self) -> &RepositoryName {
        self.inner.repository()
    }

    fn address(&self) -> String {
        self.inner.address()
    }

    fn counted(&self, tally: &Arc<Tally>) -> Self {
        Repository {
            inner: self.inner.counted(tally),
            tally: Some(tally.clone()),
            ..self.clone()
        }
    }

    async fn tags(&self, cursor: Option<&Cursor>) -> Result<Option<Page<Tag>>, Fault> {
        self.listed(cursor).await
    }

    async fn listed_manifests(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<ListedManifest>>, Fault> {
        const ACTION: &str = "DescribeImages";
        if !self.shared().may(ACTION) {
            return Ok(None);
        }
        let cursor = cursor.map(|cursor| cursor.0.as_str());
        match self
            .control()
            .manifests(self.inner.repository(), cursor, self.tally())
            .await?
        {
            Answer::Given(page) => Ok(page),
            Answer::Denied(fault) => {
                self.shared().deny(
                    ACTION,
                    &fault,
                    "late signatures are asked for image by image",
                );
                Ok(None)
            }
        }
    }

    /// The registry answers a HEAD without a digest.
    fn tells_digest(&self, _tag: &oci::Tag) -> bool {
        false
    }

    async fn resolve(&self, target: &Target) -> Result<Option<Resolved>, Fault> {
        self.with_principal("BatchGetImage", self.inner.resolve(target).await)
            .await
    }

    async fn manifest(&self, target: &Target) -> Result<Option<Manifest>, Fault> {
        if let Target::Digest(digest) = target {
            self.check_not_archived(digest)?;
        }
        let manifest = self
            .with_principal("BatchGetImage", self.inner.manifest(target).await)
            .await?;
        if let (Target::Digest(digest), Some(_)) = (target, &manifest) {
            self.shared().note_pushed(self.inner.repository(), digest);
        }
        Ok(manifest)
    }

    async fn pushed_digest(&self, tag: &oci::Tag, read: &Digest) -> Result<Option<Digest>, Fault> {
        let name = self.inner.repository();
        if self
            .shared()
            .known()
            .pushed
            .contains(&(name.clone(), *read))
        {
            return Ok(Some(*read));
        }
        // A document that is not there under its own digest was never pushed; the control plane
        // knows which one was.
        if self.inner.resolve(&Target::Digest(*read)).await?.is_some() {
            self.shared().note_pushed(name, read);
            return Ok(Some(*read));
        }
        match self.control().digest_of(name, tag, self.tally()).await? {
            Answer::Given(digest) => Ok(digest),
            Answer::Denied(fault) => Err(Fault::rejected(format!(
                "{}:{tag} is another document by tag than was pushed: allow ecr:DescribeImages, which tells its digest, or name the digest",
                self.address()
            ))
            .because(fault)),
        }
    }

    fn lists_referrers(&self) -> Option<bool> {
        self.inner.lists_referrers()
    }

    async fn referrers(
        &self,
        subject: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        self.with_principal("BatchGetImage", self.inner.referrers(subject, cursor).await)
            .await
    }

    async fn scan_findings(
        &self,
        image: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<ScanAnswer, Fault> {
        let cursor = cursor.map(|cursor| cursor.0.as_str());
        self.control()
            .scan_findings(self.inner.repository(), image, cursor, self.tally())
            .await
    }

    async fn read_blob(&self, blob: &Descriptor, offset: u64) -> Result<Option<BlobBody>, Fault> {
        self.with_principal(
            "GetDownloadUrlForLayer",
            self.inner.read_blob(blob, offset).await,
        )
        .await
    }

    async fn read_part(
        &self,
        blob: &Descriptor,
        part: Range<u64>,
    ) -> Result<Option<BlobBody>, Fault> {
        let read = self.inner.read_part(blob, part).await;
        self.with_principal("GetDownloadUrlForLayer", read).await
    }
}

impl Destination for Repository {
    fn clock_skew(&self) -> Option<SignedDuration> {
        self.inner.clock_skew()
    }

    fn abilities(&self) -> Abilities {
        // The status of a session says nothing, but a chunk in the wrong place tells the true
        // offset.
        let abilities = Abilities {
            resume: Resume::Status,
            ..self.inner.abilities()
        };
        match self.shared().known().mounts {
            Some((false, _)) => Abilities {
                mount: Mount::Off,
                ..abilities
            },
            _ => abilities,
        }
    }

    async fn always_mounts(&self) -> bool {
        self.shared().mounting_enabled().await == Some(true)
    }

    async fn has_blob(&self, digest: &Digest) -> Result<Presence, Fault> {
        self.has_blob_batched(digest).await
    }

    async fn begin_upload(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        self.prepare().boxed().await?;
        let works = match from {
            Some(_) => self.shared().mounting_enabled().await,
            None => None,
        };
        if works == Some(false) {
            self.warn_mounting_off(digest);
        }
        let from = from.filter(|_| works != Some(false));
        let begun = self
            .inner
            .begin_upload(digest, from)
            .await
            .map_err(|fault| self.explain_missing(fault));
        self.with_principal("InitiateLayerUpload", begun).await
    }

    async fn send_chunk(
        &self,
        upload: &mut Upload,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        self.with_principal(
            "UploadLayerPart",
            self.inner.send_chunk(upload, offset, length, body).await,
        )
        .await
    }

    async fn finish_upload(
        &self,
        upload: &mut Upload,
        digest: &Digest,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        self.with_principal(
            "CompleteLayerUpload",
            self.inner
                .finish_upload(upload, digest, offset, length, body)
                .await,
        )
        .await
    }

    async fn upload_offset(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        self.probe(upload).await
    }

    async fn cancel_upload(&self, upload: Upload) -> Result<(), Fault> {
        self.inner.cancel_upload(upload).await
    }

    async fn prepare_push(&self) {
        self.inner.prepare_push().await;
    }

    async fn put_manifest(&self, target: &Target, manifest: &Manifest) -> Result<Put, Fault> {
        self.prepare().boxed().await?;
        let put = self
            .inner
            .put_manifest(target, manifest)
            .await
            .map_err(|fault| self.explain_missing(fault));
        let put = self.with_principal("PutImage", put).await?;
        if matches!(put, Put::Accepted { .. }) {
            self.shared()
                .note_pushed(self.inner.repository(), &manifest.digest);
        }
        Ok(put)
    }
}
