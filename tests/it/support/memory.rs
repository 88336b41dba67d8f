//! A registry in memory, for tests of the engine: what it can is data, what goes wrong with it is
//! data, and it keeps a log of every call.
//!
//! Faults are one-shot and fire in the order in which they were set. A [`Hold`] stops a call before
//! it does anything, so that a test decides what happens first; [`Registry::before_next`] changes
//! the world at that very moment.

#![allow(dead_code, reason = "each test uses the parts that it needs")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use blobferry::endpoint::{
    Abilities, Begin, BlobBody, Destination, Mount, Offset, Origin, Put, Resume, Source,
    UploadStyle,
};
use blobferry::fault::{Class, Fault};
use blobferry::oci::{
    self, Algorithm, Descriptor, Digest, Manifest, MediaType, RepositoryName, Target,
};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

mod repository;

pub use repository::Repository;

/// The functions of the two traits that are requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Tags,
    Resolve,
    Manifest,
    Referrers,
    ReadBlob,
    ReadPart,
    HasBlob,
    BeginUpload,
    SendChunk,
    FinishUpload,
    UploadOffset,
    CancelUpload,
    PutManifest,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub operation: Operation,
    pub repository: String,
    /// The target, digest or session that it was about.
    pub about: String,
    /// Where it began, for reads and uploads.
    pub offset: u64,
    pub at: Instant,
}

/// What the registry is like.
#[derive(Clone, Debug)]
pub struct Settings {
    pub abilities: Abilities,
    /// Hashes what was uploaded and refuses another digest.
    pub verifies_blobs: bool,
    /// Refuses manifests whose content it lacks.
    pub checks_content: bool,
    /// A tag never moves.
    pub immutable_tags: bool,
    /// Keeps lists of referrers.
    pub referrers: bool,
    /// Listings say what tags point at.
    pub lists_digests: bool,
    /// HEAD says the digest and the length.
    pub claims_digests: bool,
    /// A refused chunk tells the true offset.
    pub tells_offset: bool,
    /// Tags on one page.
    pub page: usize,
    /// Bytes that it takes in a second in each upload; exact under a clock that leaps.
    pub rate: Option<u64>,
    /// Bytes that each connection brings in a second.
    pub read_rate: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            abilities: Abilities {
                upload: UploadStyle::Whole,
                resume: Resume::Status,
                mount: Mount::Held,
                mount_asks: true,
                current_lists: true,
                needs_fallback_lists: false,
            },
            verifies_blobs: true,
            checks_content: true,
            immutable_tags: false,
            referrers: true,
            lists_digests: false,
            claims_digests: true,
            tells_offset: true,
            page: 1000,
            rate: None,
            read_rate: None,
        }
    }
}

/// A registry. Cheap to clone; clones are one registry.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    name: String,
    origin: Origin,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    settings: Settings,
    repositories: BTreeMap<RepositoryName, Content>,
    blobs: HashMap<Digest, Bytes>,
    sessions: HashMap<String, Vec<u8>>,
    sessions_opened: u64,
    claims: HashMap<(RepositoryName, oci::Tag), Digest>,
    log: Vec<Call>,
    planned: HashMap<Operation, VecDeque<Planned>>,
    read_faults: HashMap<Digest, VecDeque<ReadFault>>,
    rotten: HashSet<Digest>,
    upload_cuts: VecDeque<u64>,
    slow_uploads: VecDeque<(u64, u64)>,
}

#[derive(Default)]
struct Content {
    blobs: HashSet<Digest>,
    manifests: HashMap<Digest, (MediaType, Bytes)>,
    tags: BTreeMap<oci::Tag, Digest>,
}

enum Planned {
    Nothing,
    Fail(Class),
    LoseAnswer(Class),
    Hold {
        reached: oneshot::Sender<()>,
        go_on: oneshot::Receiver<()>,
    },
    Before(Box<dyn FnOnce(&Registry) + Send>),
}

#[derive(Clone, Copy)]
enum ReadFault {
    CutAfter(u64),
    Corrupt,
    SlowAfter(u64, u64),
    PanicAfter(u64),
}

/// A call that waits until the test lets it go on. Dropping it lets it go on too.
pub struct Hold {
    reached: oneshot::Receiver<()>,
    go_on: oneshot::Sender<()>,
}

impl Hold {
    /// Returns once the call is there.
    pub async fn reached(&mut self) {
        (&mut self.reached)
            .await
            .expect("the registry outlives the hold");
    }

    /// Lets the call go on.
    pub fn release(self) {
        let _ = self.go_on.send(());
    }
}

impl Registry {
    /// An empty registry at `memory://name`.
    pub fn new(name: &str) -> Registry {
        let origin = Origin::new(&format!("memory://{name}"));
        Registry(Arc::new(Shared {
            name: name.to_owned(),
            origin,
            state: Mutex::default(),
        }))
    }

    /// One of its repositories, there or not.
    pub fn repository(&self, name: &str) -> Repository {
        Repository {
            registry: self.clone(),
            name: name.parse().expect("a test names its repositories well"),
            tally: None,
        }
    }

    /// Changes what it is like.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.state().settings);
    }

    /// The next call of `operation` fails without doing anything.
    pub fn fail_next(&self, operation: Operation, class: Class) {
        self.plan(operation, Planned::Fail(class));
    }

    /// The next call of `operation` does its work, and its answer is lost on the way.
    pub fn lose_next_answer(&self, operation: Operation, class: Class) {
        self.plan(operation, Planned::LoseAnswer(class));
    }

    /// The next call of `operation` happens as it should: to plan a fault for a later one.
    pub fn pass_next(&self, operation: Operation) {
        self.plan(operation, Planned::Nothing);
    }

    /// The next call of `operation` waits before it does anything.
    pub fn hold_next(&self, operation: Operation) -> Hold {
        let (reached, was_reached) = oneshot::channel();
        let (release, go_on) = oneshot::channel();
        self.plan(operation, Planned::Hold { reached, go_on });
        Hold {
            reached: was_reached,
            go_on: release,
        }
    }

    /// Something happens right before the next call of `operation` does its work.
    pub fn before_next(
        &self,
        operation: Operation,
        happens: impl FnOnce(&Registry) + Send + 'static,
    ) {
        self.plan(operation, Planned::Before(Box::new(happens)));
    }

    /// Forgets what was planned.
    pub fn forget_plans(&self) {
        self.state().planned.clear();
    }

    /// HEAD tells the truth again.
    pub fn forget_claims(&self) {
        self.state().claims.clear();
    }

    fn plan(&self, operation: Operation, planned: Planned) {
        self.state()
            .planned
            .entry(operation)
            .or_default()
            .push_back(planned);
    }

    /// The next body of this blob breaks after so many of its bytes.
    pub fn cut_next_read(&self, digest: &Digest, after: u64) {
        self.state()
            .read_faults
            .entry(*digest)
            .or_default()
            .push_back(ReadFault::CutAfter(after));
    }

    /// The next body of this blob has one wrong byte.
    pub fn corrupt_next_read(&self, digest: &Digest) {
        self.state()
            .read_faults
            .entry(*digest)
            .or_default()
            .push_back(ReadFault::Corrupt);
    }

    /// From now on every body of this blob or manifest has one wrong byte.
    pub fn rot(&self, digest: &Digest) {
        self.state().rotten.insert(*digest);
    }

    /// The next upload body breaks after so many of its bytes.
    pub fn cut_next_upload(&self, after: u64) {
        self.state().upload_cuts.push_back(after);
    }

    /// After so many bytes the next body of this blob brings only `rate` bytes a second.
    pub fn slow_next_read(&self, digest: &Digest, after: u64, rate: u64) {
        self.state()
            .read_faults
            .entry(*digest)
            .or_default()
            .push_back(ReadFault::SlowAfter(after, rate));
    }

    /// The body of the next read of the blob panics when it is polled after so many bytes.
    pub fn panic_next_read(&self, digest: &Digest, after: u64) {
        let mut state = self.state();
        let faults = state.read_faults.entry(*digest).or_default();
        faults.push_back(ReadFault::PanicAfter(after));
    }

    /// After so many bytes the next upload body is taken at only `rate` bytes a second.
    pub fn slow_next_upload(&self, after: u64, rate: u64) {
        self.state().slow_uploads.push_back((after, rate));
    }

    /// Every open session is lost.
    pub fn drop_sessions(&self) {
        self.state().sessions.clear();
    }

    /// Sessions that are open.
    pub fn open_sessions(&self) -> usize {
        self.state().sessions.len()
    }

    /// Every call so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.state().log.clone()
    }

    /// How many calls of one operation there were.
    pub fn count(&self, operation: Operation) -> usize {
        self.state()
            .log
            .iter()
            .filter(|call| call.operation == operation)
            .count()
    }

    /// Forgets the calls.
    pub fn clear_calls(&self) {
        self.state().log.clear();
    }

    /// Puts a blob into a repository without a call.
    pub fn store_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::new(
            MediaType::new("application/vnd.oci.image.layer.v1.tar"),
            Digest::sha256(&bytes),
            bytes.len() as u64,
        );
        let mut state = self.state();
        state.blobs.insert(descriptor.digest, bytes);
        state.content(repository).blobs.insert(descriptor.digest);
        descriptor
    }

    /// Puts a manifest into a repository without a call, under a tag where one is given.
    pub fn store_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        document: &serde_json::Value,
    ) -> Manifest {
        let bytes = Bytes::from(document.to_string());
        let manifest = Manifest::parse(bytes, None, Algorithm::Sha256)
            .expect("a test writes readable manifests");
        let mut state = self.state();
        let content = state.content(repository);
        content.manifests.insert(
            manifest.digest,
            (manifest.media_type.clone(), manifest.bytes.clone()),
        );
        if let Some(tag) = tag {
            content.tags.insert(
                tag.parse().expect("a test names its tags well"),
                manifest.digest,
            );
        }
        manifest
    }

    /// Points a tag at a digest, as somebody else might.
    pub fn tag(&self, repository: &str, tag: &str, digest: &Digest) {
        self.state()
            .content(repository)
            .tags
            .insert(tag.parse().expect("a test names its tags well"), *digest);
    }

    /// From now on HEAD says that a tag names `digest`, whatever it names.
    pub fn claim(&self, repository: &str, tag: &str, digest: &Digest) {
        let repository = repository
            .parse()
            .expect("a test names its repositories well");
        let tag = tag.parse().expect("a test names its tags well");
        self.state().claims.insert((repository, tag), *digest);
    }

    /// Takes a tag away, as somebody else might.
    pub fn untag(&self, repository: &str, tag: &str) {
        self.state()
            .content(repository)
            .tags
            .retain(|name, _| name.as_str() != tag);
    }

    /// Takes a blob or manifest out of a repository, as a garbage collection might.
    pub fn remove(&self, repository: &str, digest: &Digest) {
        let mut state = self.state();
        let content = state.content(repository);
        content.blobs.remove(digest);
        content.manifests.remove(digest);
    }

    /// What a tag points at.
    pub fn tagged(&self, repository: &str, tag: &str) -> Option<Digest> {
        self.state()
            .content(repository)
            .tags
            .iter()
            .find(|(name, _)| name.as_str() == tag)
            .map(|(_, digest)| *digest)
    }

    /// The blobs and manifests that a repository holds.
    pub fn held(&self, repository: &str) -> BTreeSet<Digest> {
        let mut state = self.state();
        let content = state.content(repository);
        content
            .blobs
            .iter()
            .chain(content.manifests.keys())
            .copied()
            .collect()
    }

    /// The children of an index that a repository holds.
    pub fn children(&self, repository: &str, digest: &Digest) -> Vec<Digest> {
        let (media_type, bytes) = self
            .state()
            .content(repository)
            .manifests
            .get(digest)
            .expect("it is held")
            .clone();
        let manifest = Manifest::parse(bytes, Some(media_type.as_str()), digest.algorithm())
            .expect("a manifest that was taken is one");
        manifest.children.iter().map(|child| child.digest).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .expect("no test panics while it holds the registry")
    }
}

impl State {
    fn content(&mut self, repository: &str) -> &mut Content {
        self.repositories
            .entry(
                repository
                    .parse()
                    .expect("a test names its repositories well"),
            )
            .or_default()
    }

    fn holds(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        self.repositories
            .get(repository)
            .is_some_and(|content| content.blobs.contains(digest))
    }

    fn digest_of(&self, repository: &RepositoryName, target: &Target) -> Option<Digest> {
        let content = self.repositories.get(repository)?;
        match target {
            Target::Tag(tag) => content.tags.get(tag).copied(),
            Target::Digest(digest) => Some(*digest),
        }
    }

    fn manifest(
        &self,
        repository: &RepositoryName,
        target: &Target,
    ) -> Option<(Digest, MediaType, Bytes)> {
        let digest = self.digest_of(repository, target)?;
        let (media_type, bytes) = self.repositories.get(repository)?.manifests.get(&digest)?;
        Some((digest, media_type.clone(), bytes.clone()))
    }

    fn may_mount(&self, from: &RepositoryName, to: &RepositoryName, digest: &Digest) -> bool {
        let abilities = &self.settings.abilities;
        if from == to {
            return abilities.mount_asks && self.holds(from, digest);
        }
        match abilities.mount {
            Mount::Off => false,
            Mount::Held => self.holds(from, digest),
            Mount::Committed => self.holds(from, digest) && self.is_committed(from, digest),
        }
    }

    fn is_committed(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        let manifests = self
            .repositories
            .get(repository)
            .into_iter()
            .flat_map(|content| content.manifests.values());
        let mut parsed = manifests.filter_map(|(served, bytes)| {
            Manifest::parse(bytes.clone(), Some(served.as_str()), Algorithm::Sha256).ok()
        });
        parsed.any(|manifest| manifest.blobs.iter().any(|blob| blob.digest == *digest))
    }

    fn put(&mut self, repository: &RepositoryName, target: &Target, manifest: &Manifest) -> Put {
        let missing = if self.settings.checks_content {
            self.missing(repository, manifest)
        } else {
            Vec::new()
        };
        if !missing.is_empty() {
            return Put::Missing(missing);
        }
        let digest = match target {
            Target::Digest(digest) => *digest,
            Target::Tag(_) => manifest.digest,
        };
        let immutable = self.settings.immutable_tags;
        let content = self.repositories.entry(repository.clone()).or_default();
        if let Target::Tag(tag) = target {
            if immutable && content.tags.contains_key(tag) {
                return Put::Immutable;
            }
            content.tags.insert(tag.clone(), digest);
        }
        content.manifests.insert(
            digest,
            (manifest.media_type.clone(), manifest.bytes.clone()),
        );
        Put::Accepted {
            subject: self.settings.referrers && manifest.subject.is_some(),
        }
    }

    fn missing(&self, repository: &RepositoryName, manifest: &Manifest) -> Vec<Digest> {
        let known = |digest: &Digest| {
            self.repositories.get(repository).is_some_and(|content| {
                content.blobs.contains(digest) || content.manifests.contains_key(digest)
            })
        };
        let needed = manifest
            .children
            .iter()
            .chain(&manifest.blobs)
            .filter(|entry| !entry.media_type.is_foreign_layer());
        needed
            .map(|entry| entry.digest)
            .filter(|digest| !known(digest))
            .collect()
    }
}

#[tokio::test]
async fn what_a_test_plans_happens_once_and_in_order() {
    let registry = Registry::new("memory");
    let repository = registry.repository("app");
    let blob = registry.store_blob("app", vec![7; 100_000]);
    let read = async || {
        let mut body = repository.read_blob(&blob, 0).await?.expect("it is there");
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame),
                Err(_) => return Ok((bytes, false)),
            }
        }
        Ok::<_, Fault>((bytes, true))
    };
    registry.fail_next(Operation::ReadBlob, Class::RETRYABLE);
    registry.cut_next_read(&blob.digest, 70_000);
    registry.corrupt_next_read(&blob.digest);
    assert!(read().await.unwrap_err().class().is_retryable());
    assert_eq!(read().await.unwrap(), (vec![7; 70_000], false));
    assert_ne!(read().await.unwrap(), (vec![7; 100_000], true));
    assert_eq!(read().await.unwrap(), (vec![7; 100_000], true));
    assert_eq!(registry.count(Operation::ReadBlob), 4);

    let other = Digest::sha256(b"other");
    let Begin::Session(mut session) = repository.begin_upload(&other, None).await.unwrap() else {
        panic!("nothing to mount")
    };
    registry.cut_next_upload(3);
    assert!(
        repository
            .send_chunk(
                &mut session,
                0,
                5,
                BlobBody::full(Bytes::from_static(b"other"))
            )
            .await
            .is_err()
    );
    assert_eq!(
        repository.upload_offset(&mut session).await.unwrap(),
        Offset::At(3)
    );
    registry.lose_next_answer(Operation::FinishUpload, Class::RETRYABLE);
    let rest = BlobBody::full(Bytes::from_static(b"er"));
    assert!(
        repository
            .finish_upload(&mut session, &other, 3, 2, rest)
            .await
            .is_err()
    );
    assert!(
        registry.held("app").contains(&other),
        "the work was done, only its answer was lost"
    );

    let mut hold = registry.hold_next(Operation::Tags);
    registry.before_next(Operation::Tags, |registry| {
        registry.tag("app", "v2", &Digest::sha256(b"x"))
    });
    let listing = tokio::spawn({
        let repository = repository.clone();
        async move { repository.tags(None).await }
    });
    hold.reached().await;
    registry.tag("app", "v1", &Digest::sha256(b"x"));
    hold.release();
    assert_eq!(listing.await.unwrap().unwrap().unwrap().entries.len(), 1);
    assert_eq!(
        repository.tags(None).await.unwrap().unwrap().entries.len(),
        2
    );
}
