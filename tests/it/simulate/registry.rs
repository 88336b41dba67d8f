//! A registry in memory that misbehaves as real ones do, at times that the seed draws.
//!
//! A request takes time to arrive and its answer takes time to come back. The registry acts in
//! between, in a task of its own: what a process has sent may still happen after it was killed.
//! Every request, every answer and every change of a tag is in the trace. The one thing that a
//! registry here never does is answer a question about a tag with what is not so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use blobferry::endpoint::{Abilities, Mount, Origin, Resume};
use blobferry::fault::{Class, Fault};
use blobferry::oci::{Digest, Manifest, RepositoryName, Tag};
use blobferry::registry::profile::{Kind, Quotas};
use bytes::Bytes;
use serde_json::Value;

use super::chance::Chance;
use super::trace::{About, By, Event, Operation, Place, Trace};

mod endpoint;

pub use endpoint::Repository;

/// What a registry is like.
#[derive(Clone, Debug)]
pub struct Settings {
    pub abilities: Abilities,
    /// What its operator documents.
    pub quotas: Quotas,
    /// How long an answer takes, there and back, in milliseconds.
    pub latency: (u64, u64),
    /// Bytes in a second for each body; `None`: as fast as the reader.
    pub rate: Option<u64>,
    /// Lists show what was there so long ago.
    pub lag: Duration,
    /// The list of tags answers 404.
    pub hides_list: bool,
    /// Lists say what tags name.
    pub lists_digests: bool,
    /// HEAD says the digest.
    pub claims_digests: bool,
    /// Tags on a page.
    pub page: usize,
    /// Refuses uploads whose bytes have another digest.
    pub verifies_blobs: bool,
    /// Refuses manifests whose content it lacks.
    pub checks_content: bool,
    /// Tags never move.
    pub immutable: bool,
    /// How it answers questions about referrers.
    pub referrers: Referrers,
    /// Refuses manifests with a subject for good.
    pub refuses_artifacts: bool,
    /// So many offers of a mount in a hundred are refused.
    pub mounts_refused: u64,
    /// Blobs longer than this are refused when they are complete.
    pub quota: Option<u64>,
    /// Tags that nobody here may write.
    pub denied: BTreeSet<String>,
    /// Repositories with a tag of theirs that is refused for good.
    pub refused: BTreeSet<(String, String)>,
    /// Says yes to any digest that it is asked about.
    pub agrees: bool,
    /// One kind of request is refused each time that so many have come.
    pub busy_every: Option<(Operation, u64)>,
    /// What goes wrong at random, and until when.
    pub trouble: Trouble,
    /// What is wrong all the time, and until when.
    pub sick: Option<(Sick, Duration)>,
}

/// How a registry answers questions about referrers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Referrers {
    /// It keeps lists.
    Kept,
    /// It has no such endpoint.
    None,
    /// It keeps lists, and answers 404 for a subject that it lacks.
    MissingSubject,
}

/// Random trouble.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// So many requests in a hundred.
    pub percent: u64,
    /// None begins later.
    pub until: Duration,
    /// Of these kinds.
    pub kinds: Vec<TroubleKind>,
}

/// What may go wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TroubleKind {
    /// 429, without a time.
    Busy,
    /// 429, with a time in seconds.
    BusyFor(u64),
    /// 5xx.
    Broken,
    /// An answer that another try cannot mend, such as a page of a proxy.
    Odd,
    /// The connection breaks before the registry has read the request.
    Reset,
    /// The registry acts, and its answer is lost.
    Lost,
    /// The answer takes half a minute.
    Slow,
    /// A body breaks off somewhere.
    Cut,
    /// A body has one wrong byte.
    Corrupt,
    /// A body comes at so many bytes a second.
    Drip(u64),
    /// The upload session is gone.
    Vanish,
    /// The upload session answers 500 from now on.
    Spoil,
    /// Reading the body panics.
    Panic,
}

impl TroubleKind {
    fn concerns(self, operation: Operation) -> bool {
        match self {
            TroubleKind::Cut => matches!(
                operation,
                Operation::ReadBlob | Operation::SendChunk | Operation::FinishUpload
            ),
            TroubleKind::Corrupt | TroubleKind::Drip(_) | TroubleKind::Panic => {
                operation == Operation::ReadBlob
            }
            TroubleKind::Vanish | TroubleKind::Spoil => {
                matches!(
                    operation,
                    Operation::SendChunk | Operation::FinishUpload | Operation::UploadOffset
                )
            }
            _ => true,
        }
    }
}

/// Lasting trouble of a whole registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sick {
    /// 503 with a time in seconds, for whatever is asked.
    Busy(u64),
    /// Bodies come at so many bytes a second.
    Drip(u64),
    /// No connection.
    Down,
}

impl Settings {
    /// A well-behaved registry of a kind.
    pub fn of(kind: Kind) -> Settings {
        let profile = kind.profile();
        Settings {
            abilities: profile.abilities,
            quotas: profile.quotas,
            latency: (1, 40),
            rate: None,
            lag: Duration::ZERO,
            hides_list: false,
            lists_digests: kind == Kind::Ecr,
            claims_digests: true,
            page: 1000,
            verifies_blobs: true,
            checks_content: true,
            immutable: false,
            referrers: if profile.keeps_referrers {
                Referrers::Kept
            } else {
                Referrers::None
            },
            refuses_artifacts: false,
            mounts_refused: 0,
            quota: None,
            denied: BTreeSet::new(),
            refused: BTreeSet::new(),
            agrees: false,
            busy_every: None,
            trouble: Trouble::default(),
            sick: None,
        }
    }
}

impl Settings {
    /// Whether nothing goes wrong at random.
    pub fn is_steady(&self) -> bool {
        self.trouble.percent == 0 && self.sick.is_none()
    }
}

/// A registry. Cheap to clone; clones are one registry.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    origin: Origin,
    chance: Chance,
    trace: Trace,
    state: Mutex<State>,
}

struct State {
    settings: Settings,
    repositories: BTreeMap<RepositoryName, Content>,
    blobs: BTreeMap<Digest, Blob>,
    sessions: BTreeMap<String, Session>,
    opened: u64,
    /// How often each request has come.
    asked: BTreeMap<(Operation, RepositoryName, About), u64>,
    /// How often each kind of request has come.
    counts: BTreeMap<Operation, u64>,
    /// What its answers have told of its lists of referrers.
    lists_referrers: Option<bool>,
    /// What a script has planned for the next requests of a kind.
    planned: BTreeMap<Operation, VecDeque<TroubleKind>>,
}

#[derive(Clone)]
struct Blob {
    bytes: Bytes,
    /// Its bytes have its digest.
    sound: bool,
}

struct Session {
    process: u32,
    /// Its process was told where it is.
    told: bool,
    bytes: Vec<u8>,
    spoiled: bool,
}

#[derive(Default)]
struct Content {
    blobs: BTreeSet<Digest>,
    manifests: BTreeMap<Digest, Manifest>,
    tags: BTreeMap<Tag, Digest>,
    /// Every change of a tag, with its time.
    history: Vec<(Duration, Tag, Option<Digest>)>,
}

impl Registry {
    /// An empty registry at `memory://name`.
    pub fn new(name: &str, settings: Settings, chance: Chance, trace: &Trace) -> Registry {
        let state = State {
            settings,
            repositories: BTreeMap::new(),
            blobs: BTreeMap::new(),
            sessions: BTreeMap::new(),
            opened: 0,
            asked: BTreeMap::new(),
            counts: BTreeMap::new(),
            lists_referrers: None,
            planned: BTreeMap::new(),
        };
        let origin = Origin::new(&format!("memory://{name}"));
        let trace = trace.clone();
        Registry(Arc::new(Shared {
            name: name.into(),
            origin,
            chance,
            trace,
            state: Mutex::new(state),
        }))
    }

    /// Its name in the config.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Where its blobs live.
    pub fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// A repository as a process sees it, there or not.
    pub fn repository(&self, process: u32, name: &RepositoryName) -> Repository {
        Repository::new(self.clone(), process, name.clone())
    }

    /// Changes what it is like.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.state().settings);
    }

    /// What it is like.
    pub fn settings(&self) -> Settings {
        self.state().settings.clone()
    }

    /// So many of the next requests of a kind go wrong.
    pub fn plan(&self, operation: Operation, kind: TroubleKind, times: usize) {
        self.state()
            .planned
            .entry(operation)
            .or_default()
            .extend(std::iter::repeat_n(kind, times));
    }

    /// Nothing that was planned happens any more.
    pub fn forget_plans(&self) {
        self.state().planned.clear();
    }

    /// Open upload sessions that a process knows of.
    pub fn open_sessions(&self, process: u32) -> usize {
        self.state()
            .sessions
            .values()
            .filter(|session| session.told && session.process == process)
            .count()
    }

    /// Puts a blob there, as a person would.
    pub fn store_blob(&self, repository: &RepositoryName, digest: Digest, bytes: Bytes) {
        let mut state = self.state();
        state.blobs.insert(digest, Blob { bytes, sound: true });
        state.content(repository).blobs.insert(digest);
    }

    /// Puts a manifest there, as a person would.
    pub fn store_manifest(&self, repository: &RepositoryName, manifest: &Manifest) {
        let kept = self.settings().referrers != Referrers::None;
        self.state().content(repository).store(manifest);
        if let Some(subject) = manifest.subject.as_ref().filter(|_| kept) {
            self.attached(repository, subject.digest, manifest.digest);
        }
    }

    /// Lets a tag name a digest, or takes it away, as a person would.
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag, digest: Option<Digest>) {
        let mut state = self.state();
        self.move_tag(&mut state, repository, tag, digest, By::Person);
    }

    /// What a tag names.
    pub fn tagged(&self, repository: &RepositoryName, tag: &Tag) -> Option<Digest> {
        self.state()
            .repositories
            .get(repository)?
            .tags
            .get(tag)
            .copied()
    }

    /// Its repositories.
    pub fn repositories(&self) -> Vec<RepositoryName> {
        self.state().repositories.keys().cloned().collect()
    }

    /// All tags of a repository.
    pub fn tags(&self, repository: &RepositoryName) -> Vec<Tag> {
        self.state()
            .repositories
            .get(repository)
            .map(|content| content.tags.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// Takes a blob or a manifest out of a repository, as a garbage collection would.
    pub fn remove(&self, repository: &RepositoryName, digest: &Digest) {
        let mut state = self.state();
        let content = state.content(repository);
        content.blobs.remove(digest);
        content.manifests.remove(digest);
    }

    /// Takes a whole repository away.
    pub fn remove_repository(&self, repository: &RepositoryName) {
        self.state().repositories.remove(repository);
    }

    /// Gives every blob of that digest one wrong byte, or heals it.
    pub fn rot(&self, digest: &Digest) {
        if let Some(blob) = self.state().blobs.get_mut(digest) {
            blob.sound = false;
        }
    }

    /// Whether a repository holds a manifest or a blob.
    pub fn holds(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        self.state()
            .repositories
            .get(repository)
            .is_some_and(|content| {
                content.blobs.contains(digest) || content.manifests.contains_key(digest)
            })
    }

    /// All that a repository holds.
    pub fn held(&self, repository: &RepositoryName) -> Vec<Digest> {
        let state = self.state();
        let Some(content) = state.repositories.get(repository) else {
            return Vec::new();
        };
        content
            .blobs
            .iter()
            .chain(content.manifests.keys())
            .copied()
            .collect()
    }

    /// The bytes of a manifest.
    pub fn document(&self, repository: &RepositoryName, digest: &Digest) -> Option<Bytes> {
        Some(
            self.state()
                .repositories
                .get(repository)?
                .manifests
                .get(digest)?
                .bytes
                .clone(),
        )
    }

    /// The manifests that name `subject` as theirs.
    pub fn attached_to(&self, repository: &RepositoryName, subject: &Digest) -> Vec<Digest> {
        let state = self.state();
        let Some(content) = state.repositories.get(repository) else {
            return Vec::new();
        };
        content
            .naming(subject)
            .map(|manifest| manifest.digest)
            .collect()
    }

    fn attached(&self, repository: &RepositoryName, subject: Digest, referrer: Digest) {
        let (registry, repository) = (self.0.name.clone(), repository.as_str().into());
        self.0.trace.note(Event::Attached {
            registry,
            repository,
            subject,
            referrer,
        });
    }

    fn move_tag(
        &self,
        state: &mut State,
        repository: &RepositoryName,
        tag: &Tag,
        to: Option<Digest>,
        by: By,
    ) {
        let at = self.0.trace.now();
        let content = state.content(repository);
        let from = content.tags.get(tag).copied();
        match to {
            Some(digest) => content.tags.insert(tag.clone(), digest),
            None => content.tags.remove(tag),
        };
        content.history.push((at, tag.clone(), to));
        let place = Place {
            registry: self.0.name.clone(),
            repository: repository.as_str().into(),
            tag: tag.as_str().into(),
        };
        self.0.trace.note(Event::Moved {
            place,
            from,
            to,
            by,
        });
    }

    /// What is going to happen to a request.
    fn fate(&self, operation: Operation, repository: &RepositoryName, about: &About) -> Fate {
        let now = self.0.trace.now();
        let mut state = self.state();
        let key = (operation, repository.clone(), about.clone());
        let nth = state
            .asked
            .entry(key.clone())
            .and_modify(|count| *count += 1)
            .or_insert(1);
        let mut draw = self
            .0
            .chance
            .of((&*self.0.name, key.0, repository.as_str(), about, *nth));
        let count = state
            .counts
            .entry(operation)
            .and_modify(|count| *count += 1)
            .or_insert(1);
        let count = *count;
        let planned = state
            .planned
            .get_mut(&operation)
            .and_then(VecDeque::pop_front);
        let settings = &state.settings;
        let (least, most) = settings.latency;
        let mut fate = Fate {
            out: draw.millis(least / 2, most / 2),
            back: draw.millis(least / 2, most / 2),
            lands: draw.percent(50),
            at: draw.number(),
            kind: None,
            drip: settings.rate,
        };
        let trouble = &settings.trouble;
        let kinds: Vec<TroubleKind> = trouble
            .kinds
            .iter()
            .copied()
            .filter(|kind| kind.concerns(operation))
            .collect();
        if now < trouble.until && !kinds.is_empty() && draw.percent(trouble.percent) {
            fate.kind = Some(draw.pick(&kinds));
        }
        if settings
            .busy_every
            .is_some_and(|(busy, every)| busy == operation && count.is_multiple_of(every))
        {
            fate.kind = Some(TroubleKind::Busy);
        }
        fate.kind = planned.or(fate.kind);
        match settings.sick.filter(|(_, until)| now < *until) {
            Some((Sick::Busy(after), _)) => fate.kind = Some(TroubleKind::BusyFor(after)),
            Some((Sick::Down, _)) => fate.kind = Some(TroubleKind::Reset),
            Some((Sick::Drip(rate), _)) => fate.drip = Some(rate),
            None => {}
        }
        match fate.kind {
            Some(TroubleKind::Slow) => fate.back += Duration::from_secs(30),
            Some(TroubleKind::Drip(rate)) => fate.drip = Some(rate),
            _ => {}
        }
        fate
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What is going to happen to one request.
#[derive(Clone, Debug)]
struct Fate {
    out: Duration,
    back: Duration,
    /// It happens although the process is gone.
    lands: bool,
    /// Where in a body something happens.
    at: u64,
    kind: Option<TroubleKind>,
    drip: Option<u64>,
}

impl Fate {
    /// The failure that comes instead of an act.
    fn before(&self) -> Option<Fault> {
        let busy = |after| Fault::new(Class::Retryable { after }, "too many requests");
        match self.kind? {
            TroubleKind::Busy => Some(busy(None)),
            TroubleKind::BusyFor(seconds) => Some(busy(Some(Duration::from_secs(seconds)))),
            TroubleKind::Broken => Some(Fault::retryable("internal server error")),
            TroubleKind::Odd => Some(Fault::rejected("the answer is no JSON")),
            TroubleKind::Reset => Some(Fault::retryable("connection reset")),
            _ => None,
        }
    }

    /// The failure that comes instead of the answer.
    fn after(&self) -> Option<Fault> {
        (self.kind == Some(TroubleKind::Lost))
            .then(|| Fault::retryable("connection reset before the answer"))
    }
}

impl State {
    fn content(&mut self, repository: &RepositoryName) -> &mut Content {
        self.repositories.entry(repository.clone()).or_default()
    }

    fn holds_blob(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        self.repositories
            .get(repository)
            .is_some_and(|content| content.blobs.contains(digest))
    }

    fn may_mount(&self, from: &RepositoryName, to: &RepositoryName, digest: &Digest) -> bool {
        if from == to {
            return self.settings.abilities.mount_asks && self.holds_blob(from, digest);
        }
        match self.settings.abilities.mount {
            Mount::Off => false,
            Mount::Held => self.holds_blob(from, digest),
            Mount::Committed => self.holds_blob(from, digest) && self.is_committed(from, digest),
        }
    }

    fn is_committed(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        let Some(content) = self.repositories.get(repository) else {
            return false;
        };
        content
            .manifests
            .values()
            .any(|manifest| references(&manifest.bytes).contains(digest))
    }

    /// What a manifest needs and the repository lacks, as deep as it goes.
    fn missing(&self, repository: &RepositoryName, bytes: &Bytes) -> Vec<Digest> {
        let empty = Content::default();
        let content = self.repositories.get(repository).unwrap_or(&empty);
        let mut missing = BTreeSet::new();
        let mut left = references(bytes);
        while let Some(digest) = left.pop() {
            match content.manifests.get(&digest) {
                Some(manifest) => left.extend(references(&manifest.bytes)),
                None if content.blobs.contains(&digest)
                    && self.blobs.get(&digest).is_some_and(|blob| blob.sound) => {}
                None => {
                    missing.insert(digest);
                }
            }
        }
        missing.into_iter().collect()
    }
}

impl Content {
    fn store(&mut self, manifest: &Manifest) {
        self.manifests.insert(manifest.digest, manifest.clone());
    }

    /// The manifests that name `subject` as theirs.
    fn naming(&self, subject: &Digest) -> impl Iterator<Item = &Manifest> {
        let subject = *subject;
        self.manifests.values().filter(move |manifest| {
            manifest
                .subject
                .as_ref()
                .is_some_and(|named| named.digest == subject)
        })
    }

    /// The tags as they were at that time.
    fn tags_at(&self, at: Duration) -> BTreeMap<Tag, Digest> {
        let mut tags = BTreeMap::new();
        for (_, tag, digest) in self.history.iter().take_while(|(when, ..)| *when <= at) {
            match digest {
                Some(digest) => tags.insert(tag.clone(), *digest),
                None => tags.remove(tag),
            };
        }
        tags
    }
}

/// What a document says that it consists of, read without the product's parser.
pub fn references(bytes: &[u8]) -> Vec<Digest> {
    let Ok(document) = serde_json::from_slice::<Value>(bytes) else {
        return Vec::new();
    };
    let lists = ["manifests", "layers", "blobs"]
        .into_iter()
        .filter_map(|list| document.get(list)?.as_array())
        .flatten();
    let entries = lists.chain(document.get("config"));
    entries
        .filter_map(|entry| entry.get("digest")?.as_str()?.parse().ok())
        .collect()
}

/// Whether a session outlives a body that broke off.
fn survives_a_cut(abilities: &Abilities) -> bool {
    abilities.resume != Resume::Never
}
