//! What is asked, how far it is, and what came of it: plain data.
//!
//! Names and shapes here are the ones of reports, the ledger and the HTTP API.

mod actor;
pub mod gates;
mod progress;
mod report;
mod scan;
mod verdict;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub use self::actor::{Actor, NotARemark, Remark, Remarks};
pub use self::gates::{GateKind, Gates};
pub use self::progress::{ActiveBlob, BlobProgress, Progress};
pub use self::report::{
    Failure, Look, NamedTag, Report, Settled, Sight, Totals, Trouble, TroubleClass, tag_of,
};
pub use self::scan::{Ignored, Scan, ScanOrigin, ScanSide};
pub use self::verdict::{Gated, Judgement, NextJudgement, Verdict};
use crate::clock;
use crate::endpoint::{Abilities, Origin, RepositoryId};
use crate::oci::{Digest, RepositoryName, Tag};

/// Names a job: one source tag to one destination under one route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The route's name.
    pub route: Arc<str>,
    /// The source repository.
    pub source: RepositoryName,
    /// The tag in the source repository.
    pub tag: Tag,
    /// Where it goes.
    pub destination: TagId,
}

/// A tag's home in a destination: what the ledger is keyed by, so that renaming a route or a
/// registry in the config loses nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagId {
    /// The registry's canonical origin.
    pub origin: Origin,
    /// The repository.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
}

impl TagId {
    /// A tag of a repository.
    pub fn of(repository: RepositoryId, tag: Tag) -> TagId {
        TagId {
            origin: repository.origin,
            repository: repository.repository,
            tag,
        }
    }

    /// The repository as a key.
    pub fn repository_id(&self) -> RepositoryId {
        RepositoryId {
            origin: self.origin.clone(),
            repository: self.repository.clone(),
        }
    }
}

impl fmt::Display for TagId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.origin, self.repository, self.tag)
    }
}

/// What caused a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The poll of a route.
    Poll,
    /// The sweep that asks production itself.
    Verify,
    /// An HTTP request.
    Ping,
    /// A registry's notification.
    Webhook,
    /// A message of a queue.
    Queue,
    /// A promotion into the source of another route, or of another member of a set.
    Chain,
    /// SIGUSR1.
    Signal,
    /// A command line.
    Cli,
    /// The daemon's start, or a changed config.
    Start,
    /// A decision, or the end of one.
    Decision,
}

impl Cause {
    /// All causes, for series that exist from the start.
    pub const ALL: [Cause; 10] = [
        Cause::Poll,
        Cause::Verify,
        Cause::Ping,
        Cause::Webhook,
        Cause::Queue,
        Cause::Chain,
        Cause::Signal,
        Cause::Cli,
        Cause::Start,
        Cause::Decision,
    ];

    /// The name in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Poll => "poll",
            Cause::Verify => "verify",
            Cause::Ping => "ping",
            Cause::Webhook => "webhook",
            Cause::Queue => "queue",
            Cause::Chain => "chain",
            Cause::Signal => "signal",
            Cause::Cli => "cli",
            Cause::Start => "start",
            Cause::Decision => "decision",
        }
    }

    /// Whether something outside of the daemon asked, or another route.
    pub fn is_event(self) -> bool {
        !matches!(self, Cause::Poll | Cause::Verify | Cause::Start)
    }

    /// Whether it is a look of the daemon's own, at its pace.
    pub fn is_routine(self) -> bool {
        matches!(self, Cause::Poll | Cause::Verify)
    }

    /// Whether it is a reason to try again what was refused. A queue delivers a message again until
    /// the message is done with.
    pub fn is_news(self) -> bool {
        !matches!(self, Cause::Poll | Cause::Verify | Cause::Queue)
    }

    /// Whether a fresh hint about production is good enough: for the routine poll only.
    pub fn trusts_hints(self) -> bool {
        self == Cause::Poll
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How urgent a job is. A lower one goes first where permits are granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Rank {
    /// Asked for by its name: it goes before all others.
    Named,
    /// A person asks for whole repositories, or for all of them.
    Request,
    /// A registry told that there is something new.
    Event,
    /// Found by a poll.
    #[default]
    New,
    /// Everything is looked at: after a start, by a sweep.
    Backfill,
}

impl Rank {
    /// All of them, the most urgent first.
    pub const ALL: [Rank; 5] = [
        Rank::Named,
        Rank::Request,
        Rank::Event,
        Rank::New,
        Rank::Backfill,
    ];

    /// A look, a permit-second or a request of this rank counts so many times where ranks share.
    pub fn cost(self) -> u64 {
        match self {
            Rank::Named | Rank::Request | Rank::Event => 1,
            Rank::New => 2,
            Rank::Backfill => 8,
        }
    }

    /// The rank of what has this cause; `is_named`: the cause names the tag.
    pub fn of(cause: Cause, is_named: bool) -> Rank {
        match cause {
            Cause::Cli | Cause::Ping | Cause::Signal if is_named => Rank::Named,
            Cause::Cli | Cause::Ping | Cause::Signal => Rank::Request,
            Cause::Webhook | Cause::Queue | Cause::Chain | Cause::Decision => Rank::Event,
            Cause::Poll => Rank::New,
            Cause::Verify | Cause::Start => Rank::Backfill,
        }
    }
}

/// How long a job waits for a registry's time before it ends as retryable, where its caller looks
/// again later.
pub const SHORT_WAIT: Duration = Duration::from_secs(5);
/// How long a job waits for a registry's time if its caller waits for the answer.
pub const LONG_WAIT: Duration = Duration::from_secs(300);

/// What happens to a production tag with another digest that we never wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Existing {
    /// It stays, counted, not an error.
    #[default]
    Keep,
    /// A moving tag is promoted over it, a fixed tag is a conflict.
    Adopt,
}

/// What happens to a production tag that we wrote and that was changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drift {
    /// It stays as that person left it, and is reported.
    #[default]
    Keep,
    /// A moving tag is promoted over it, a fixed tag is a conflict.
    Restore,
}

/// The rules that hold for one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TagRules {
    /// Whether the tag may name another digest later.
    pub moving: bool,
    /// For a tag that was there before us.
    pub existing: Existing,
    /// For a tag that was changed since we wrote it.
    pub drift: Drift,
    /// Whether the tag, which is moving, never goes to a lower version.
    pub forward_only: bool,
}

/// What a look has learnt of one side of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagState {
    /// Not asked.
    Unknown,
    /// There is no such tag.
    Absent,
    /// It names this digest.
    At(Digest),
}

impl TagState {
    /// The digest, when one was seen.
    pub fn digest(self) -> Option<Digest> {
        match self {
            TagState::At(digest) => Some(digest),
            TagState::Unknown | TagState::Absent => None,
        }
    }
}

/// What a registry was asked when it told what a tag names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedVia {
    /// The tag itself.
    Tag,
    /// The list of tags.
    List,
    /// The list of tags, which is missing. That proves nothing: the registry may hide the list.
    MissingList,
}

impl ObservedVia {
    /// Whether it is the registry's own word on the tag.
    pub fn is_answer(self, abilities: Abilities) -> bool {
        match self {
            ObservedVia::Tag => true,
            ObservedVia::List => abilities.current_lists,
            ObservedVia::MissingList => false,
        }
    }
}

/// One source tag to one destination, because it differs or is unknown.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub key: Key,
    /// The routes that lead to the destination, for decisions about routes.
    pub routes: Arc<[Arc<str>]>,
    /// The rules of the route for this tag.
    pub rules: TagRules,
    /// The gates of the route.
    pub gates: Arc<Gates>,
    /// The tag that gets what the tag named, before it moves.
    pub backup: Option<Tag>,
    /// What the look saw at the source.
    pub source: TagState,
    /// What the look saw at the destination.
    pub destination: TagState,
    /// What the look asked the destination for.
    pub destination_via: ObservedVia,
    /// When the source was asked about the tag, on tokio's clock. `None`: it was not asked, or only
    /// a listing that may lag has answered.
    pub source_at: Option<Instant>,
    /// When the destination was asked; without meaning where it was not.
    pub destination_at: Instant,
    /// When the look began: what hints have seen since then needs no asking.
    pub look_began: Timestamp,
    /// When there was news last, on tokio's clock: a look that repeats an earlier one keeps its
    /// time. What was refused before is tried again; without news it is not.
    pub news: Option<Instant>,
    /// The destination listing was empty: skip existence checks for anything not in the index.
    pub fresh: bool,
    /// Why.
    pub cause: Cause,
    /// The principal that caused the job.
    pub actor: Actor,
    /// An explicit act of a person: moving tags move, a fixed tag needs `replace`.
    pub explicit: bool,
    /// The decision by which a tag moves back: holds do not stop that, its end does.
    pub rollback: Option<u64>,
    /// The source is this digest, whatever the tag names: a reference by digest was given.
    pub pinned: Option<Digest>,
    /// Only this digest may be promoted.
    pub expect: Option<Digest>,
    /// The production digest that a person allows to be replaced.
    pub replace: Option<Digest>,
    /// Plan, but touch nothing.
    pub dry_run: bool,
    /// Whether it plans alone since its route observes: what it comes to is recorded.
    pub observes: bool,
    /// Digests that are in conflict under a fixed tag of this repository.
    pub refused: Arc<HashSet<Digest>>,
    /// Whether the job ends when staging moves the tag meanwhile: the caller then compares the
    /// fixed tags again and fills [`refused`](Job::refused) anew.
    pub ends_when_moved: bool,
    /// When the tag was pushed to staging, where that is known.
    pub pushed: Option<Timestamp>,
    /// What may travel with the image.
    pub companions: Companions,
    /// How urgent it is.
    pub rank: Rank,
    /// How long it may wait for a registry's time (`Retry-After`, back-off, a closed class of
    /// requests) before it ends as retryable with that time: [`SHORT_WAIT`], or [`LONG_WAIT`] where
    /// the caller waits for the answer.
    pub max_wait: Duration,
}

impl Job {
    /// Whether what it sees and comes to is recorded: not of a plan that was asked for.
    pub fn is_recorded(&self) -> bool {
        !self.dry_run || self.observes
    }

    /// A move of a tag back to a digest, by a decision: whatever staging names, and only if
    /// production still names `from`.
    pub fn back(key: Key, to: Digest, from: Digest, decision: u64, actor: Actor) -> Job {
        Job {
            key,
            routes: Arc::default(),
            rules: TagRules::default(),
            gates: Arc::default(),
            backup: None,
            source: TagState::At(to),
            destination: TagState::Unknown,
            destination_via: ObservedVia::Tag,
            source_at: None,
            destination_at: Instant::now(),
            look_began: clock::now(),
            news: Some(Instant::now()),
            fresh: false,
            cause: Cause::Decision,
            actor,
            explicit: true,
            rollback: Some(decision),
            ends_when_moved: false,
            pinned: Some(to),
            expect: None,
            replace: Some(from),
            dry_run: false,
            observes: false,
            refused: Arc::default(),
            pushed: None,
            companions: Companions::Listed(Arc::default()),
            rank: Rank::Named,
            max_wait: SHORT_WAIT,
        }
    }

    /// Whether it is an act of `copy` or `promote` to a destination where no route leads.
    pub fn is_unguarded(&self) -> bool {
        self.explicit && self.routes.is_empty()
    }
}

/// Tags of a source repository that travel with their subject: signatures and fallback lists.
#[derive(Clone, Debug)]
pub enum Companions {
    /// These, with their digests as far as the listing tells.
    Listed(Arc<BTreeMap<Tag, Option<Digest>>>),
    /// The repository was not listed: each companion is requested by its usual name.
    Unlisted,
}

impl Companions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Companions::Listed(tags) if tags.is_empty())
    }

    /// The tags that belong to `subject`, or, unlisted, may.
    pub fn of(&self, subject: &Digest) -> Vec<Tag> {
        let stem = Tag::fallback(subject);
        match self {
            Companions::Listed(tags) => {
                let from = tags.range(stem.clone()..).map(|(tag, _)| tag);
                from.take_while(|tag| tag.as_str().starts_with(stem.as_str()))
                    .cloned()
                    .collect()
            }
            Companions::Unlisted => stem.with_usual_endings(),
        }
    }

    /// As [`Companions::of`], of something that itself belongs to an image. Unlisted, SBOMs of
    /// signatures and of other SBOMs are not asked for.
    pub fn of_referrer(&self, subject: &Digest) -> Vec<Tag> {
        let mut tags = self.of(subject);
        if matches!(self, Companions::Unlisted) {
            tags.retain(|tag| !tag.as_str().ends_with(".sbom"));
        }
        tags
    }
}

/// What came of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The production tag now names the digest that staging named.
    Promoted,
    /// It already did.
    UpToDate,
    /// A tag that must not move names another digest.
    Conflict,
    /// The tag was changed since we wrote it.
    Drift,
    /// Another digest was there before us.
    Existing,
    /// A rule says no.
    Refused,
    /// The tag vanished from the source.
    Gone,
    /// A rule says not yet.
    Waiting,
    /// A person said not yet.
    Held,
    /// A dry run would promote.
    Planned,
    /// We were asked to stop.
    Interrupted,
    /// It did not work.
    Failed,
}

impl Outcome {
    /// All outcomes, in the order of reports.
    pub const ALL: [Outcome; 12] = [
        Outcome::Promoted,
        Outcome::UpToDate,
        Outcome::Conflict,
        Outcome::Drift,
        Outcome::Existing,
        Outcome::Refused,
        Outcome::Gone,
        Outcome::Waiting,
        Outcome::Held,
        Outcome::Planned,
        Outcome::Interrupted,
        Outcome::Failed,
    ];

    /// The name in reports, the ledger and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Promoted => "promoted",
            Outcome::UpToDate => "up_to_date",
            Outcome::Conflict => "conflict",
            Outcome::Drift => "drift",
            Outcome::Existing => "existing",
            Outcome::Refused => "refused",
            Outcome::Gone => "gone",
            Outcome::Waiting => "waiting",
            Outcome::Held => "held",
            Outcome::Planned => "planned",
            Outcome::Interrupted => "interrupted",
            Outcome::Failed => "failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happened to one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobOutcome {
    /// It was there.
    Present,
    /// The registry took it from another repository.
    Mounted,
    /// Its bytes were sent.
    Copied {
        /// Whether the upload went on from a checkpoint.
        resumed: bool,
    },
}

/// What happened to one referrer or companion tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferrerOutcome {
    /// It was there.
    Present,
    /// It was brought.
    Copied,
    /// The destination refuses it.
    Refused,
}

impl ReferrerOutcome {
    /// All of them, for series that exist from the start.
    pub const ALL: [ReferrerOutcome; 3] = [
        ReferrerOutcome::Present,
        ReferrerOutcome::Copied,
        ReferrerOutcome::Refused,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            ReferrerOutcome::Present => "present",
            ReferrerOutcome::Copied => "copied",
            ReferrerOutcome::Refused => "refused",
        }
    }
}

/// What travels beside the image of a job, by what happened to it. What was refused stands in the
/// reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferrerCounts {
    /// Brought.
    pub copied: u64,
    /// Were there.
    pub present: u64,
}

/// Blobs of a job, by what happened to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobCounts {
    /// Were there.
    pub present: u64,
    /// Taken from another repository.
    pub mounted: u64,
    /// Sent.
    pub copied: u64,
    /// Copied blobs that resumed from a checkpoint.
    pub resumed: u64,
}
