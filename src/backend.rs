//! Any place that holds images: a registry or a folder of layouts, behind one type, so that a route
//! can lead from one to the other.

use std::ops::Range;
use std::sync::Arc;

use futures::FutureExt as _;
use jiff::SignedDuration;

use crate::ecr;
use crate::endpoint::{
    Abilities, Begin, BlobBody, Create, Cursor, Destination, ListedManifest, Offset, Origin, Page,
    Presence, Put, Repositories, Resolved, ScanAnswer, Sent, Source, Tag, Tally, Upload,
};
use crate::fault::Fault;
use crate::layout;
use crate::oci::{self, Descriptor, Digest, Manifest, RepositoryName, Target};
use crate::registry;

/// A registry or a folder of layouts.
#[derive(Clone)]
pub enum Backend {
    /// A registry.
    Registry(registry::Registry),
    /// A registry with a control plane.
    Ecr(ecr::Registry),
    /// A folder of layouts.
    Layout(layout::Root),
}

/// One repository of a backend.
#[derive(Clone)]
pub enum Repository {
    /// Of a registry.
    Registry(registry::Repository),
    /// Of a registry with a control plane.
    Ecr(ecr::Repository),
    /// Of a folder of layouts.
    Layout(layout::Repository),
}

impl Backend {
    /// How far our clock is ahead of its. `None`: it has no clock, or has not answered yet.
    pub fn clock_skew(&self) -> Option<SignedDuration> {
        match self {
            Backend::Registry(registry) => registry.clock_skew(),
            Backend::Ecr(registry) => registry.inner().clock_skew(),
            Backend::Layout(_) => None,
        }
    }
}

impl Repositories for Backend {
    type Repository = Repository;

    fn name(&self) -> &str {
        match self {
            Backend::Registry(registry) => registry.name(),
            Backend::Ecr(registry) => registry.inner().name(),
            Backend::Layout(root) => root.name(),
        }
    }

    fn origin(&self) -> &Origin {
        match self {
            Backend::Registry(registry) => registry.origin(),
            Backend::Ecr(registry) => registry.inner().origin(),
            Backend::Layout(root) => root.origin(),
        }
    }

    fn repository(&self, name: RepositoryName) -> Repository {
        match self {
            Backend::Registry(registry) => Repository::Registry(registry.repository(name)),
            Backend::Ecr(registry) => Repository::Ecr(registry.repository(name)),
            Backend::Layout(root) => Repository::Layout(root.repository(name)),
        }
    }

    async fn repositories(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<RepositoryName>>, Fault> {
        match self {
            Backend::Registry(registry) => registry.repositories(cursor).await,
            Backend::Ecr(registry) => registry.repositories(cursor).boxed().await,
            Backend::Layout(root) => root.repositories(cursor).await,
        }
    }

    fn destination(&self, name: RepositoryName, create: &Create, source: Repository) -> Repository {
        let there = match self.repository(name) {
            Repository::Ecr(there) => there,
            there @ (Repository::Registry(_) | Repository::Layout(_)) => return there,
        };
        let creation = match (create, source) {
            (Create::Template(template), _) => ecr::Creation::Template(template.clone()),
            (Create::Clone, Repository::Ecr(model)) => ecr::Creation::Clone(model.handle()),
            // The config refuses to clone anything else.
            (Create::Never | Create::Clone, _) => return Repository::Ecr(there),
        };
        Repository::Ecr(there.created_by(Arc::new(creation)))
    }
}

/// Passes a call on to whichever it is.
macro_rules! either {
    ($self:ident, $repository:ident => $call:expr) => {
        match $self {
            Repository::Registry($repository) => $call,
            Repository::Ecr($repository) => $call,
            Repository::Layout($repository) => $call,
        }
    };
}

/// As above, for requests. The way through the AWS SDK is long, and its future large: boxed, it
/// does not make the requests to all other registries as large.
macro_rules! ask {
    ($self:ident, $repository:ident => $call:expr) => {
        match $self {
            Repository::Registry($repository) => $call.await,
            Repository::Ecr($repository) => $call.boxed().await,
            Repository::Layout($repository) => $call.await,
        }
    };
}

impl Source for Repository {
    fn registry(&self) -> &str {
        either!(self, repository => repository.registry())
    }

    fn origin(&self) -> &Origin {
        either!(self, repository => repository.origin())
    }

    fn repository(&self) -> &RepositoryName {
        either!(self, repository => repository.repository())
    }

    fn address(&self) -> String {
        either!(self, repository => repository.address())
    }

    fn counted(&self, tally: &Arc<Tally>) -> Self {
        match self {
            Repository::Registry(repository) => Repository::Registry(repository.counted(tally)),
            Repository::Ecr(repository) => Repository::Ecr(repository.counted(tally)),
            Repository::Layout(repository) => Repository::Layout(repository.counted(tally)),
        }
    }

    fn lists_referrers(&self) -> Option<bool> {
        either!(self, repository => repository.lists_referrers())
    }

    async fn tags(&self, cursor: Option<&Cursor>) -> Result<Option<Page<Tag>>, Fault> {
        ask!(self, repository => repository.tags(cursor))
    }

    async fn listed_manifests(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<ListedManifest>>, Fault> {
        ask!(self, repository => repository.listed_manifests(cursor))
    }

    fn tells_digest(&self, tag: &oci::Tag) -> bool {
        either!(self, repository => repository.tells_digest(tag))
    }

    async fn resolve(&self, target: &Target) -> Result<Option<Resolved>, Fault> {
        ask!(self, repository => repository.resolve(target))
    }

    async fn manifest(&self, target: &Target) -> Result<Option<Manifest>, Fault> {
        ask!(self, repository => repository.manifest(target))
    }

    async fn pushed_digest(&self, tag: &oci::Tag, read: &Digest) -> Result<Option<Digest>, Fault> {
        ask!(self, repository => repository.pushed_digest(tag, read))
    }

    async fn referrers(
        &self,
        subject: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        ask!(self, repository => repository.referrers(subject, cursor))
    }

    async fn scan_findings(
        &self,
        image: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<ScanAnswer, Fault> {
        ask!(self, repository => repository.scan_findings(image, cursor))
    }

    async fn read_blob(&self, blob: &Descriptor, offset: u64) -> Result<Option<BlobBody>, Fault> {
        ask!(self, repository => repository.read_blob(blob, offset))
    }

    async fn read_part(
        &self,
        blob: &Descriptor,
        part: Range<u64>,
    ) -> Result<Option<BlobBody>, Fault> {
        ask!(self, repository => repository.read_part(blob, part))
    }
}

impl Destination for Repository {
    fn abilities(&self) -> Abilities {
        either!(self, repository => repository.abilities())
    }

    fn clock_skew(&self) -> Option<SignedDuration> {
        either!(self, repository => repository.clock_skew())
    }

    async fn always_mounts(&self) -> bool {
        ask!(self, repository => repository.always_mounts())
    }

    async fn has_blob(&self, digest: &Digest) -> Result<Presence, Fault> {
        ask!(self, repository => repository.has_blob(digest))
    }

    async fn begin_upload(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        ask!(self, repository => repository.begin_upload(digest, from))
    }

    async fn send_chunk(
        &self,
        upload: &mut Upload,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        ask!(self, repository => repository.send_chunk(upload, offset, length, body))
    }

    async fn finish_upload(
        &self,
        upload: &mut Upload,
        digest: &Digest,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        ask!(self, repository => repository.finish_upload(upload, digest, offset, length, body))
    }

    async fn upload_offset(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        ask!(self, repository => repository.upload_offset(upload))
    }

    async fn cancel_upload(&self, upload: Upload) -> Result<(), Fault> {
        ask!(self, repository => repository.cancel_upload(upload))
    }

    async fn prepare_push(&self) {
        ask!(self, repository => repository.prepare_push());
    }

    async fn put_manifest(&self, target: &Target, manifest: &Manifest) -> Result<Put, Fault> {
        ask!(self, repository => repository.put_manifest(target, manifest))
    }
}
