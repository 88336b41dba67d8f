//! The trace: all that happened in one simulated world, in order, with its virtual time. The oracle
//! reads nothing else.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use blobferry::job::{Drift, Existing, Outcome};
use blobferry::oci::Digest;
use tokio::time::Instant;

use super::chance::Fnv;
use super::guards::{GateRules, Guarded};
use super::progress;

/// A tag's home: registry, repository, tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub registry: Arc<str>,
    pub repository: Arc<str>,
    pub tag: Arc<str>,
}

impl Place {
    /// Whether it is in that repository.
    pub fn is_in(&self, (registry, repository): &(Arc<str>, Arc<str>)) -> bool {
        (&self.registry, &self.repository) == (registry, repository)
    }
}

/// The requests that an endpoint makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Tags,
    Resolve,
    Manifest,
    Referrers,
    ReadBlob,
    HasBlob,
    BeginUpload,
    SendChunk,
    FinishUpload,
    UploadOffset,
    CancelUpload,
    PutManifest,
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum About {
    Repository,
    Tag(Arc<str>),
    Content(Digest),
}

/// A request as it leaves a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    pub process: u32,
    pub registry: Arc<str>,
    pub repository: Arc<str>,
    pub operation: Operation,
    pub about: About,
    /// Of a manifest that is written: its digest.
    pub content: Option<Digest>,
}

impl Call {
    /// A tag of the repository that it is sent to.
    pub fn place(&self, tag: &Arc<str>) -> Place {
        Place {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: tag.clone(),
        }
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// What a tag or digest names.
    Names(Option<Digest>),
    /// A page of tags with their digests as far as it says so; `None`: there is no such repository.
    /// `first`: no page came before, `last`: none follows.
    Listed {
        tags: Option<Vec<(Arc<str>, Option<Digest>)>>,
        first: bool,
        last: bool,
    },
    /// A manifest was accepted, refused as immutable, or refused for missing content.
    Accepted,
    Immutable,
    Missing,
    /// Whatever else went well, with the bytes of blobs that moved.
    Done {
        bytes: u64,
    },
    /// A failure: its class, and the least time to wait in seconds.
    Failed {
        class: &'static str,
        after: Option<u64>,
    },
}

/// What moved a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    Process(u32),
    Person,
}

/// What the name of a backup tag begins with.
pub const BACKUP: &str = "previous-";

/// The rules of a route as its process goes by them, for one source repository and one destination
/// repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    pub route: Arc<str>,
    pub source: (Arc<str>, Arc<str>),
    pub destination: (Arc<str>, Arc<str>),
    /// Names, or prefixes that end in `*`.
    pub include: Vec<Arc<str>>,
    pub exclude: Vec<Arc<str>>,
    pub moving: Vec<Arc<str>>,
    pub existing: Existing,
    pub drift: Drift,
    /// The route is written with wildcards.
    pub wild: bool,
    pub gates: GateRules,
    /// The route writes nothing.
    pub observes: bool,
    /// Moving tags that go to no lower version.
    pub forward_only: Vec<Arc<str>>,
    /// The set that the route belongs to.
    pub set: Option<Arc<str>>,
    /// What a moving tag named is kept under another tag before it moves.
    pub backs_up: bool,
}

impl Rules {
    /// Whether the route takes the tag.
    pub fn takes(&self, tag: &str) -> bool {
        matches_any(&self.include, tag) && !matches_any(&self.exclude, tag)
    }

    /// Whether the tag may move.
    pub fn is_moving(&self, tag: &str) -> bool {
        matches_any(&self.moving, tag)
    }

    /// Whether the tag goes to no lower version.
    pub fn is_forward_only(&self, tag: &str) -> bool {
        self.is_moving(tag) && matches_any(&self.forward_only, tag)
    }

    /// Whether it matters what its moving tags named before.
    pub fn follows_moves(&self) -> bool {
        self.backs_up || !self.forward_only.is_empty()
    }

    /// Leaves out these tags, and backups.
    pub fn exclude_alone(&mut self, pattern: &str) {
        let backups = format!("{BACKUP}*");
        self.exclude.retain(|excluded| **excluded == *backups);
        self.exclude.insert(0, pattern.into());
    }

    /// The tag that is kept by this one.
    pub fn backed_up<'t>(&self, tag: &'t str) -> Option<&'t str> {
        let original = tag.strip_prefix(BACKUP).filter(|_| self.backs_up);
        original.filter(|original| self.is_moving(original))
    }

    /// Whether the route leads to the repository.
    pub fn leads_to(&self, registry: &str, repository: &str) -> bool {
        (&*self.destination.0, &*self.destination.1) == (registry, repository)
    }
}

fn matches_any(patterns: &[Arc<str>], tag: &str) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => tag.starts_with(prefix),
            None => **pattern == *tag,
        })
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A registry: whether its lists are always current, whether it takes manifests with a subject,
    /// and whether it has no trouble.
    Registry {
        name: Arc<str>,
        current_lists: bool,
        takes_artifacts: bool,
        is_steady: bool,
    },
    /// An image that cannot be promoted, to that registry or at all.
    Hopeless {
        registry: Option<Arc<str>>,
        digest: Digest,
    },
    /// A tag that may not be written.
    Closed { place: Place },
    /// A request leaves its process.
    Sent { request: u64, call: Call },
    /// A manifest got a name at a registry that lacked some of what belongs to it.
    Incomplete { request: u64, missing: Vec<Digest> },
    /// The answer is with the process.
    Answered { request: u64, answer: Answer },
    /// The process waits no longer; so many bytes of a body had moved.
    Abandoned { request: u64, bytes: u64 },
    /// A body that was read has ended or was dropped.
    BodyEnded {
        request: u64,
        bytes: u64,
        whole: bool,
    },
    /// The truth about a tag changed.
    Moved {
        place: Place,
        from: Option<Digest>,
        to: Option<Digest>,
        by: By,
    },
    /// A manifest that belongs to another image was pushed beside it.
    Attached {
        registry: Arc<str>,
        repository: Arc<str>,
        subject: Digest,
        referrer: Digest,
    },
    /// A person does something, in words.
    Person { text: String },
    /// A process starts, with an intact ledger or with none.
    Started { process: u32, ledger: bool },
    /// The rules that a process goes by from now on.
    Configured { process: u32, rules: Vec<Rules> },
    /// A process is gone from one moment to the next.
    Killed { process: u32 },
    /// A process has drained.
    Stopped { process: u32 },
    /// Upload sessions of the last process that are open in the end, at a registry that had no
    /// trouble.
    Left { registry: Arc<str>, sessions: usize },
    /// A process has drained, and its engine holds permits or claims.
    Held { process: u32 },
    /// In a calm time a process sent more requests than its polls explain.
    Restless { requests: u64, explained: u64 },
    /// A job has come to something.
    Settled {
        process: u32,
        source: Place,
        destination: Place,
        result: Outcome,
        digest: Option<Digest>,
        error: Option<String>,
    },
    /// A process is told of a push.
    Notified,
    /// The clock is set back: hints are from a time that has yet to come.
    SetBack,
    /// What happens to gates, decisions and orders.
    Guard(Guarded),
    /// A registry forgets what no tag of a repository needs.
    Collected {
        registry: Arc<str>,
        repository: Arc<str>,
    },
    /// From now on registries do what they should, and no person interferes.
    Calm,
}

/// An event with its virtual time since the beginning.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub at: Duration,
    pub event: Event,
}

/// The trace of a world. Cheap to clone.
#[derive(Clone)]
pub struct Trace(Arc<Shared>);

struct Shared {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    requests: u64,
    /// What people call a digest.
    names: BTreeMap<Digest, String>,
}

impl Trace {
    /// An empty trace that begins now.
    pub fn begin() -> Trace {
        Trace(Arc::new(Shared {
            began: Instant::now(),
            state: Mutex::default(),
        }))
    }

    /// The virtual time since the beginning.
    pub fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// The moment at which so much virtual time will have passed.
    pub fn moment(&self, at: Duration) -> Instant {
        self.0.began + at
    }

    /// Notes what happened just now.
    pub fn note(&self, event: Event) {
        progress::made();
        let at = self.now();
        self.state().entries.push(Entry { at, event });
    }

    /// Notes a request that leaves; returns its number.
    pub fn sent(&self, call: Call) -> u64 {
        progress::made();
        let at = self.now();
        let mut state = self.state();
        state.requests += 1;
        let request = state.requests;
        state.entries.push(Entry {
            at,
            event: Event::Sent { request, call },
        });
        request
    }

    /// Gives a digest a name for people.
    pub fn call(&self, digest: Digest, name: impl Into<String>) {
        self.state()
            .names
            .entry(digest)
            .or_insert_with(|| name.into());
    }

    /// All that happened so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.state().entries.clone()
    }

    /// How many things have happened.
    pub fn length(&self) -> usize {
        self.state().entries.len()
    }

    /// How many requests have left.
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// The names of digests.
    pub fn names(&self) -> BTreeMap<Digest, String> {
        self.state().names.clone()
    }

    /// A number that two runs of one seed share when they did the same.
    pub fn hash(&self) -> u64 {
        let mut hasher = Fnv::default();
        self.state().entries.hash(&mut hasher);
        hasher.finish()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while it notes")
    }
}
