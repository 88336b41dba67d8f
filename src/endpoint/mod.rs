//! The seam between the engine and the places that hold images.
//!
//! A [`Source`] is one repository that can be read; a [`Destination`] is one that can be written
//! too. Each function is one request (or one act on a disk): no retries, no waiting beyond the
//! request's own deadlines, no memory of jobs. What can happen normally comes back as a value:
//! absent, mounted, a session instead of a mount, the true offset after a misplaced chunk. Only
//! what should not happen is a [`Fault`]. A 404 alone means absent; every other failure is
//! "unknown".

mod clock_skew;
mod findings;
pub mod rate_limit;
mod route_source;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use jiff::{SignedDuration, Timestamp};

pub use self::clock_skew::{ClockSkew, is_clock_off};
pub use self::findings::{Finding, FindingsPage, ScanAnswer, Severity};
pub use self::route_source::{OnlyPlatform, RouteSource, missing_manifest};
use crate::fault::Fault;
use crate::oci::{self, Descriptor, Digest, Manifest, MediaType, RepositoryName, Target};

/// Where blobs live: scheme, host and port of a registry, or the folder of a layout. Two config
/// names of one registry have one origin; hints are keyed by it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(Arc<str>);

impl Origin {
    /// An origin from its canonical text: `https://host`, `http://host:port`, `layout:/path`.
    pub fn new(text: &str) -> Origin {
        Origin(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host of a registry, with its port. `None`: it is a folder.
    pub fn host(&self) -> Option<&str> {
        self.0.split_once("://").map(|(_, host)| host)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One repository: the key of hints, claims and refusals. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryId {
    /// Where it lies.
    pub origin: Origin,
    /// Its name there.
    pub repository: RepositoryName,
}

/// Requests made on behalf of one job or one look.
#[derive(Debug, Default)]
pub struct Tally {
    requests: AtomicU64,
}

impl Tally {
    /// Counts one request.
    pub fn add(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A tag as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The name.
    pub name: oci::Tag,
    /// What it points at, where the listing says so (layouts, control planes).
    pub digest: Option<Digest>,
    /// When it was pushed, where the listing says so.
    pub pushed: Option<Timestamp>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page<T> {
    /// The entries, in the registry's order, which means nothing.
    pub entries: Vec<T>,
    /// Entries that are no valid names; they are counted, not carried.
    pub invalid: usize,
    /// Where the next page is; `None` after the last.
    pub next: Option<Cursor>,
}

/// The position of the next page of a listing. Only the endpoint that returned it can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub String);

/// What a tag or digest names, without the bytes (HEAD).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The digest that the registry claims; `None` when it claims none and the manifest must be
    /// read.
    pub digest: Option<Digest>,
    /// The claimed media type.
    pub media_type: MediaType,
    /// The claimed length in bytes.
    pub size: Option<u64>,
    /// The index that the tag names, where the digest is that of the manifest that was chosen from
    /// it for a platform.
    pub index: Option<Digest>,
}

/// Whether a repository holds a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It does not.
    Absent,
    /// It does; the claimed size where there is one.
    Present {
        /// Claimed length in bytes.
        size: Option<u64>,
    },
}

/// What came of asking for an upload.
#[derive(Debug)]
pub enum Begin {
    /// The blob is there now without a byte sent: mounted from the repository that was offered.
    Mounted,
    /// An upload session is open; a refused mount ends here too.
    Session(Upload),
}

/// An open upload session.
#[derive(Clone)]
pub struct Upload {
    /// Where the next request of the session goes. It may work like a password: it is never shown
    /// or logged.
    pub location: String,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("location", &"[hidden]")
            .finish()
    }
}

/// How much of a session the registry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// The first so many bytes.
    At(u64),
    /// The session is gone: finished, cancelled, expired or destroyed by a cut.
    Gone,
    /// It does not say.
    Unknown,
}

/// What came of a chunk or of the closing request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Accepted. `reported` is the length that the registry says it holds now; some lie.
    Accepted {
        /// Bytes held, as reported.
        reported: Option<u64>,
    },
    /// The closing request was accepted before all of its body was sent: the registry has the blob
    /// from elsewhere, or has not looked at it.
    Early,
    /// Refused because it does not start where the session ends (416); the true offset where it is
    /// known.
    Misplaced(Offset),
    /// The session is gone (404 on the location).
    Gone,
}

/// What came of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there. `subject` is true when the registry says that it has listed the manifest under
    /// its subject.
    Accepted {
        /// Whether `OCI-Subject` came back.
        subject: bool,
    },
    /// The tag exists and must not move: compare digests to know what that means.
    Immutable,
    /// The registry misses content that the manifest refers to; the digests that it named, maybe
    /// none.
    Missing(Vec<Digest>),
}

/// What takes uploads how: data about a destination that the engine plans by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// The way bodies travel.
    pub upload: UploadStyle,
    /// What a cut leaves behind.
    pub resume: Resume,
    /// When a mount may be tried.
    pub mount: Mount,
    /// Whether a mount from the repository itself asks and opens in one request: 201 when the blob
    /// is there, else a session.
    pub mount_asks: bool,
    /// Whether a list of tags shows what is there at that moment, and not what was there a while
    /// ago.
    pub current_lists: bool,
    /// Whether other programs find the referrers of an image by its fallback tag alone, whatever is
    /// listed here.
    pub needs_fallback_lists: bool,
}

/// The way a blob's body travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadStyle {
    /// One request carries the whole blob: the closing PUT.
    Whole,
    /// One PATCH carries the whole blob, an empty PUT closes.
    Stream,
}

/// What a cut upload can go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The session's status tells the true offset.
    Status,
    /// Nothing: start over.
    Never,
}

/// When a mount may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mount {
    /// From any repository of the registry that holds the blob.
    Held,
    /// Only from a repository with a committed manifest that refers to the blob.
    Committed,
    /// Never.
    Off,
}

/// The bytes of a blob on their way. Ends with a [`Fault`] when the sender fails.
pub struct BlobBody(Pin<Box<dyn Body<Data = Bytes, Error = Fault> + Send + Sync>>);

impl BlobBody {
    /// Wraps a body. Its `size_hint` should be exact: it becomes the `Content-Length`.
    pub fn new(body: impl Body<Data = Bytes, Error = Fault> + Send + Sync + 'static) -> BlobBody {
        BlobBody(Box::pin(body))
    }

    /// A body of bytes at hand.
    pub fn full(bytes: Bytes) -> BlobBody {
        use http_body_util::BodyExt as _;
        BlobBody::new(http_body_util::Full::new(bytes).map_err(|never| match never {}))
    }

    /// The next data frame; `None` at the end.
    pub async fn frame(&mut self) -> Option<Result<Bytes, Fault>> {
        loop {
            let frame = std::future::poll_fn(|cx| self.0.as_mut().poll_frame(cx)).await?;
            match frame.map(Frame::into_data) {
                Ok(Ok(bytes)) => return Some(Ok(bytes)),
                Ok(Err(_trailers)) => continue,
                Err(fault) => return Some(Err(fault)),
            }
        }
    }
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.0.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobBody({:?})", self.0.size_hint().exact())
    }
}

/// A manifest as a list of a whole repository shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedManifest {
    /// Its digest.
    pub digest: Digest,
    /// The manifest that it refers to, if it is a referrer.
    pub subject: Option<Digest>,
}

/// One repository that can be read. A handle: cheap to clone, shared connections behind it.
pub trait Source: Clone + Send + Sync + 'static {
    /// The registry's name in the config: the label of metrics, the word in messages.
    fn registry(&self) -> &str;

    /// Where its blobs live.
    fn origin(&self) -> &Origin;

    /// The repository's path.
    fn repository(&self) -> &RepositoryName;

    /// The repository as a key.
    fn id(&self) -> RepositoryId {
        RepositoryId {
            origin: self.origin().clone(),
            repository: self.repository().clone(),
        }
    }

    /// The repository as a key of what its tags name: with a platform they name something else.
    fn tags_id(&self) -> RepositoryId {
        self.id()
    }

    /// `host/repository` (or `layout:/path/repository`): how people write it.
    fn address(&self) -> String;

    /// The same repository, every request counted in `tally` as well.
    fn counted(&self, tally: &Arc<Tally>) -> Self;

    /// One page of the tags. `None`: there is no such repository.
    fn tags(
        &self,
        cursor: Option<&Cursor>,
    ) -> impl Future<Output = Result<Option<Page<Tag>>, Fault>> + Send;

    /// One page of all manifests of the repository, with or without a tag, where the registry lists
    /// them with their subjects: then it takes no question for each image to find a referrer that
    /// has come. `None`: it has no such list.
    fn listed_manifests(
        &self,
        _cursor: Option<&Cursor>,
    ) -> impl Future<Output = Result<Option<Page<ListedManifest>>, Fault>> + Send {
        std::future::ready(Ok(None))
    }

    /// Whether [`Source::resolve`] tells the digest that a tag names. Where it does not, only the
    /// bytes tell.
    fn tells_digest(&self, _tag: &oci::Tag) -> bool {
        true
    }

    /// What `target` names, without the bytes. `None`: nothing.
    fn resolve(
        &self,
        target: &Target,
    ) -> impl Future<Output = Result<Option<Resolved>, Fault>> + Send;

    /// The manifest that `target` names, at most [`oci::manifest::MAX_SIZE`] bytes. For a digest
    /// target the bytes have been verified against it; for a tag the claimed digest, if any, has.
    /// `None`: nothing.
    fn manifest(
        &self,
        target: &Target,
    ) -> impl Future<Output = Result<Option<Manifest>, Fault>> + Send;

    /// The digest under which the manifest was pushed that `tag` names and that came with the
    /// digest `read`: some registries convert what is asked for by tag, never what is asked for by
    /// digest. `None`: there is no such tag any more.
    fn pushed_digest(
        &self,
        _tag: &oci::Tag,
        read: &Digest,
    ) -> impl Future<Output = Result<Option<Digest>, Fault>> + Send {
        std::future::ready(Ok(Some(*read)))
    }

    /// Whether the registry lists referrers, as far as its answers about the endpoint have told:
    /// what it answers about a subject tells nothing. `None`: nothing has told yet.
    fn lists_referrers(&self) -> Option<bool> {
        None
    }

    /// The platform of the manifests that its tags name. `None`: they name what was pushed.
    fn platform(&self) -> Option<&oci::Platform> {
        None
    }

    /// What is promoted of the manifest with this digest: that of the platform, else itself. `None`:
    /// there is no such manifest.
    fn promoted_of(
        &self,
        digest: &Digest,
    ) -> impl Future<Output = Result<Option<Digest>, Fault>> + Send {
        std::future::ready(Ok(Some(*digest)))
    }

    /// One page of the manifests that name `subject` as theirs. `None`: there is no such list (look
    /// for the fallback tag); whether there is one for any subject is told by
    /// [`Source::lists_referrers`].
    fn referrers(
        &self,
        subject: &Digest,
        cursor: Option<&Cursor>,
    ) -> impl Future<Output = Result<Option<Page<Descriptor>>, Fault>> + Send;

    /// What the registry's own scanner says of the image with that digest: one page of its findings.
    fn scan_findings(
        &self,
        _image: &Digest,
        _cursor: Option<&Cursor>,
    ) -> impl Future<Output = Result<ScanAnswer, Fault>> + Send {
        std::future::ready(Ok(ScanAnswer::NoScanner))
    }

    /// The bytes of a blob from `offset` on, unverified, with an exact size hint of `size -
    /// offset`: an endpoint that offers another length is a fault of class `Corrupt`. `offset <
    /// size`, or both 0. `None`: no such blob.
    fn read_blob(
        &self,
        blob: &Descriptor,
        offset: u64,
    ) -> impl Future<Output = Result<Option<BlobBody>, Fault>> + Send;

    /// The bytes of one part of a blob, unverified, with an exact size hint. `None`: it cannot be
    /// read in parts, or there is no such blob.
    fn read_part(
        &self,
        _blob: &Descriptor,
        _part: Range<u64>,
    ) -> impl Future<Output = Result<Option<BlobBody>, Fault>> + Send {
        std::future::ready(Ok(None))
    }
}

/// One repository that can be written.
pub trait Destination: Source {
    /// How it takes uploads.
    fn abilities(&self) -> Abilities;

    /// Our clock minus the registry's, by its last answer. `None`: it has no clock.
    fn clock_skew(&self) -> Option<SignedDuration> {
        None
    }

    /// Whether a mount of a blob that may be mounted surely works, so that it is worth waiting for.
    fn always_mounts(&self) -> impl Future<Output = bool> + Send {
        std::future::ready(true)
    }

    /// Whether it holds a blob.
    fn has_blob(&self, digest: &Digest) -> impl Future<Output = Result<Presence, Fault>> + Send;

    /// Opens an upload; offers `from`, another repository of the same origin (or this very one), as
    /// mount source.
    fn begin_upload(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> impl Future<Output = Result<Begin, Fault>> + Send;

    /// Sends the `length` bytes from `offset` on, which is where the session must end; updates the
    /// session's location.
    fn send_chunk(
        &self,
        upload: &mut Upload,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> impl Future<Output = Result<Sent, Fault>> + Send;

    /// Closes the session: the content has `digest`. The rest of the blob, `length` bytes from
    /// `offset` on, may travel along; with `offset` 0 that is the whole blob. On `Accepted` the
    /// registry holds the blob.
    fn finish_upload(
        &self,
        upload: &mut Upload,
        digest: &Digest,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> impl Future<Output = Result<Sent, Fault>> + Send;

    /// How much of the session the registry holds; updates the session's location.
    fn upload_offset(
        &self,
        upload: &mut Upload,
    ) -> impl Future<Output = Result<Offset, Fault>> + Send;

    /// Gives the session up. Registries that do not allow it keep it until it expires: not a
    /// failure worth telling.
    fn cancel_upload(&self, upload: Upload) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Gets ready for a write, as far as that takes requests to others than the registry: a token
    /// is fetched ahead. What goes wrong is told by the write.
    fn prepare_push(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Writes a manifest under a digest or a tag.
    fn put_manifest(
        &self,
        target: &Target,
        manifest: &Manifest,
    ) -> impl Future<Output = Result<Put, Fault>> + Send;
}

/// What holds repositories: a registry, or a folder of layouts.
pub trait Repositories: Send + Sync + 'static {
    /// One of its repositories.
    type Repository: Destination;

    /// Its name in the config.
    fn name(&self) -> &str;

    /// Where its blobs live.
    fn origin(&self) -> &Origin;

    /// A handle on one repository; nothing is asked.
    fn repository(&self, name: RepositoryName) -> Self::Repository;

    /// One page of the repositories. `None`: the registry has no catalog for us.
    fn repositories(
        &self,
        cursor: Option<&Cursor>,
    ) -> impl Future<Output = Result<Option<Page<RepositoryName>>, Fault>> + Send;

    /// A handle on a repository that receives what `source` holds. Its first write creates it as
    /// `create` says, where this backend can create repositories.
    fn destination(
        &self,
        name: RepositoryName,
        _create: &Create,
        _source: Self::Repository,
    ) -> Self::Repository {
        self.repository(name)
    }
}

/// What happens when a destination repository is missing.
#[derive(Clone, Debug, Default)]
pub enum Create {
    /// It is an error; registries that create repositories by themselves still do.
    #[default]
    Never,
    /// It is created like this.
    Template(Arc<RepositoryTemplate>),
    /// It is created with the settings of the source repository.
    Clone,
}

/// How a new repository is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepositoryTemplate {
    /// Tags are immutable, except tags that match `except`.
    pub immutable: bool,
    /// Wildcards for tags that are exempt from the rule; at most five.
    pub except: Vec<String>,
    /// Images are scanned when they are pushed.
    pub scan_on_push: bool,
    /// Encrypted with KMS instead of AES-256; the key, or that of the account when empty.
    pub kms_key: Option<String>,
    /// The lifecycle policy, as JSON.
    pub lifecycle: Option<String>,
    /// The access policy, as JSON.
    pub policy: Option<String>,
    /// Resource tags.
    pub tags: Vec<(String, String)>,
}
