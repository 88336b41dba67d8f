//! What is asked, how far it is, and what came of it: plain data.
//!
//! Names and shapes here are the ones of reports, the ledger and the HTTP API.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::endpoint::Origin;
use crate::fault::{Class, Fault};
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
    pub destination: Place,
}

/// A tag's home in a destination: what the ledger is keyed by, so that renaming a route or a registry in the config loses
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The registry's canonical origin.
    pub origin: Origin,
    /// The repository.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
}

/// Why somebody looked.
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
    /// SIGUSR1.
    Signal,
    /// A command line.
    Cli,
    /// The daemon's start, or a changed config.
    Start,
}

impl Cause {
    /// All causes, for series that exist from the start.
    pub const ALL: [Cause; 8] =
        [Cause::Poll, Cause::Verify, Cause::Ping, Cause::Webhook, Cause::Queue, Cause::Signal, Cause::Cli, Cause::Start];

    /// The name in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Poll => "poll",
            Cause::Verify => "verify",
            Cause::Ping => "ping",
            Cause::Webhook => "webhook",
            Cause::Queue => "queue",
            Cause::Signal => "signal",
            Cause::Cli => "cli",
            Cause::Start => "start",
        }
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

/// Who caused it: `uid:1000`, `address:127.0.0.1`, `secret`, `daemon`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Actor(pub Arc<str>);

impl Actor {
    /// The daemon itself.
    pub fn daemon() -> Actor {
        Actor("daemon".into())
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What happens to a production tag with another digest that we never wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Existing {
    /// It stays, counted, not an error.
    #[default]
    Keep,
    /// A moving tag is promoted over it, a fixed tag is a conflict.
    Adopt,
}

/// What happens to a production tag that we wrote and someone changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
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
    /// For a tag that someone changed.
    pub drift: Drift,
}

/// What a look has learnt of one side of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not asked.
    Unknown,
    /// There is no such tag.
    Absent,
    /// It names this digest.
    At(Digest),
}

impl Seen {
    /// The digest, when one was seen.
    pub fn digest(self) -> Option<Digest> {
        match self {
            Seen::At(digest) => Some(digest),
            Seen::Unknown | Seen::Absent => None,
        }
    }
}

/// One source tag to one destination, because it differs or is unknown.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub key: Key,
    /// The rules of the route for this tag.
    pub rules: TagRules,
    /// What the look saw at the source.
    pub source: Seen,
    /// What the look saw at the destination.
    pub destination: Seen,
    /// When the older of the two was asked for, on tokio's clock; without meaning where nothing was.
    pub seen_at: tokio::time::Instant,
    /// When the look began: what hints have seen since then needs no asking.
    pub look_began: Timestamp,
    /// The destination repository had no tags at all: what nobody has seen there is not there.
    pub fresh: bool,
    /// Why.
    pub cause: Cause,
    /// Who.
    pub actor: Actor,
    /// An explicit act of a person: moving tags move, a fixed tag needs `replace`.
    pub explicit: bool,
    /// The source is this digest, whatever the tag names: a reference by digest was given.
    pub pinned: Option<Digest>,
    /// Only this digest may be promoted.
    pub expect: Option<Digest>,
    /// The production digest that a person allows to be replaced.
    pub replace: Option<Digest>,
    /// Plan, but touch nothing.
    pub dry_run: bool,
    /// Digests that are in conflict under a fixed tag of this repository.
    pub refused: Arc<HashSet<Digest>>,
    /// When the tag was pushed to staging, where that is known.
    pub pushed: Option<Timestamp>,
    /// What may travel with the image.
    pub companions: Companions,
    /// Order among jobs: lower goes first, and is waited for by higher.
    pub sequence: u64,
}

/// Tags of a source repository that travel with their subject: signatures and fallback lists.
#[derive(Clone, Debug)]
pub enum Companions {
    /// These, with their digests as far as the listing tells.
    Listed(Arc<BTreeMap<Tag, Option<Digest>>>),
    /// Nobody has listed the repository: each is asked for by its usual name.
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
                from.take_while(|tag| tag.as_str().starts_with(stem.as_str())).cloned().collect()
            }
            Companions::Unlisted => stem.with_usual_endings(),
        }
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
    /// Someone changed what we wrote.
    Drift,
    /// Another digest was there before us.
    Existing,
    /// A rule says no.
    Refused,
    /// The tag vanished from the source.
    Gone,
    /// A rule says not yet.
    Waiting,
    /// A dry run would promote.
    Planned,
    /// We were asked to stop.
    Interrupted,
    /// It did not work.
    Failed,
}

impl Outcome {
    /// All outcomes, in the order of reports.
    pub const ALL: [Outcome; 11] = [
        Outcome::Promoted,
        Outcome::UpToDate,
        Outcome::Conflict,
        Outcome::Drift,
        Outcome::Existing,
        Outcome::Refused,
        Outcome::Gone,
        Outcome::Waiting,
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

/// Blobs of a job, by what happened to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobCounts {
    /// Were there.
    pub present: u64,
    /// Taken from another repository.
    pub mounted: u64,
    /// Sent.
    pub copied: u64,
    /// Of the copied, those that went on from a checkpoint.
    pub resumed: u64,
}

/// A failure as reports show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The class's name.
    pub class: String,
    /// What happened, to what, and the way out.
    pub text: String,
}

impl Trouble {
    /// The class of what a rule of the config refuses; every other class is that of a failure.
    pub const REFUSED: &str = "refused";
}

impl From<&Fault> for Trouble {
    fn from(fault: &Fault) -> Trouble {
        Trouble { class: fault.class().name().into(), text: fault.chain() }
    }
}

/// A settled job, as reports show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settled {
    /// The route's name; empty for `copy`.
    pub route: String,
    /// `host/repository:tag` of the source.
    pub source: String,
    /// `host/repository:tag` of the destination.
    pub destination: String,
    /// What staging named.
    pub digest: Option<Digest>,
    /// What production named before.
    pub previous_digest: Option<Digest>,
    /// Why.
    pub cause: Cause,
    /// Who.
    pub actor: Actor,
    /// What came of it.
    pub result: Outcome,
    /// Why it came to this, for people.
    pub reasons: Vec<String>,
    /// The failure, if it failed.
    pub error: Option<Trouble>,
    /// Its blobs.
    pub blobs: BlobCounts,
    /// Blob bytes put on the wire to the destination, repeats included.
    pub bytes_sent: u64,
    /// Sizes of the blobs that were present or mounted.
    pub bytes_spared: u64,
    /// Requests on both sides.
    pub requests: u64,
    /// From start to end.
    pub duration_seconds: f64,
}

/// What a look at one source repository and its destinations came to.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Settled jobs, and with them what is up to date when that was asked for.
    pub jobs: Vec<Settled>,
    /// Tags by result.
    pub totals: Totals,
    /// What ended the look before it could see all, by destination or for the source.
    pub trouble: Vec<Trouble>,
    /// Whether any source repository that was asked for is there.
    pub found: bool,
}

/// Counts of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// See [`Outcome::Promoted`].
    pub promoted: u64,
    /// See [`Outcome::UpToDate`].
    pub up_to_date: u64,
    /// See [`Outcome::Conflict`].
    pub conflict: u64,
    /// See [`Outcome::Drift`].
    pub drift: u64,
    /// See [`Outcome::Existing`].
    pub existing: u64,
    /// See [`Outcome::Refused`].
    pub refused: u64,
    /// See [`Outcome::Gone`].
    pub gone: u64,
    /// See [`Outcome::Waiting`].
    pub waiting: u64,
    /// See [`Outcome::Planned`].
    pub planned: u64,
    /// See [`Outcome::Interrupted`].
    pub interrupted: u64,
    /// See [`Outcome::Failed`].
    pub failed: u64,
    /// Source tags that the rules leave out.
    pub excluded: u64,
    /// Destination tags that the source does not have.
    pub only_in_destination: u64,
}

impl Totals {
    /// Counts one more of `outcome`.
    pub fn add(&mut self, outcome: Outcome) {
        *self.of_mut(outcome) += 1;
    }

    /// The count of `outcome`.
    pub fn of(&self, outcome: Outcome) -> u64 {
        *self.clone().of_mut(outcome)
    }

    fn of_mut(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Promoted => &mut self.promoted,
            Outcome::UpToDate => &mut self.up_to_date,
            Outcome::Conflict => &mut self.conflict,
            Outcome::Drift => &mut self.drift,
            Outcome::Existing => &mut self.existing,
            Outcome::Refused => &mut self.refused,
            Outcome::Gone => &mut self.gone,
            Outcome::Waiting => &mut self.waiting,
            Outcome::Planned => &mut self.planned,
            Outcome::Interrupted => &mut self.interrupted,
            Outcome::Failed => &mut self.failed,
        }
    }

    /// Adds the counts of another look.
    pub fn merge(&mut self, other: &Totals) {
        for outcome in Outcome::ALL {
            *self.of_mut(outcome) += other.of(outcome);
        }
        self.excluded += other.excluded;
        self.only_in_destination += other.only_in_destination;
    }

    /// Takes away the counts of a look that was added before.
    pub fn subtract(&mut self, other: &Totals) {
        for outcome in Outcome::ALL {
            *self.of_mut(outcome) -= other.of(outcome);
        }
        self.excluded -= other.excluded;
        self.only_in_destination -= other.only_in_destination;
    }
}

/// The report of a pass: `sync --json`, a waited-for `/v1/sync`, `/v1/runs/ID`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this shape.
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// Names the pass.
    pub run_id: String,
    /// When it started.
    pub started: Timestamp,
    /// How long it took.
    pub duration_seconds: f64,
    /// What a command line would end with.
    pub exit_code: u8,
    /// Counts.
    pub totals: Totals,
    /// What changed or is in trouble; with `all` every tag and destination.
    pub jobs: Vec<Settled>,
    /// What kept a whole repository or route from being looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trouble: Vec<Trouble>,
}

impl Report {
    /// Puts looks together. The exit code is the first that applies: 130 interrupted, 3 authentication, 1 failed,
    /// 4 conflict, drift or refused, 5 nothing there, 0.
    pub fn new(run_id: &str, started: Timestamp, duration: Duration, looks: impl IntoIterator<Item = Look>) -> Report {
        let mut report = Report {
            schema: 1,
            version: env!("CARGO_PKG_VERSION").into(),
            run_id: run_id.into(),
            started,
            duration_seconds: (duration.as_secs_f64() * 1000.0).round() / 1000.0,
            exit_code: 0,
            totals: Totals::default(),
            jobs: Vec::new(),
            trouble: Vec::new(),
        };
        let mut found = false;
        for look in looks {
            report.totals.merge(&look.totals);
            report.jobs.extend(look.jobs);
            report.trouble.extend(look.trouble);
            found |= look.found;
        }
        report.exit_code = report.judge(found);
        report
    }

    fn judge(&self, found: bool) -> u8 {
        let errors = || self.jobs.iter().filter_map(|job| job.error.as_ref()).chain(&self.trouble);
        let class = |name: &str| errors().any(|error| error.class == name);
        let failed = |trouble: &Trouble| ![Class::NotFound.name(), Trouble::REFUSED].contains(&&*trouble.class);
        let totals = &self.totals;
        if totals.interrupted > 0 || class(Class::Cancelled.name()) {
            130
        } else if class(Class::Auth.name()) {
            3
        } else if totals.failed > 0 || self.trouble.iter().any(failed) {
            1
        } else if totals.conflict + totals.drift + totals.refused > 0 {
            4
        } else if !found || class(Class::NotFound.name()) {
            5
        } else {
            0
        }
    }
}

/// How far things are: written by the engine, read by progress bars and the status.
#[derive(Debug, Default)]
pub struct Progress {
    /// Blob bytes that are to be sent, as far as known.
    pub bytes_planned: AtomicU64,
    /// Blob bytes sent so far, repeats not included.
    pub bytes_done: AtomicU64,
    /// Jobs known so far.
    pub jobs_planned: AtomicU64,
    /// Jobs settled.
    pub jobs_done: AtomicU64,
    next: AtomicU64,
    blobs: Mutex<BTreeMap<u64, Arc<BlobProgress>>>,
}

/// How far one blob is.
#[derive(Debug)]
pub struct BlobProgress {
    /// For people: `repository` and the short digest.
    pub label: String,
    /// Length in bytes.
    pub size: u64,
    /// Bytes sent of it.
    pub done: AtomicU64,
    /// Whether the bytes are sent and the registry's word is awaited.
    pub closing: std::sync::atomic::AtomicBool,
}

impl Progress {
    /// A blob starts to move; it is listed until the guard is dropped.
    pub fn start_blob(self: &Arc<Self>, label: String, size: u64) -> ActiveBlob {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let blob = Arc::new(BlobProgress { label, size, done: AtomicU64::new(0), closing: false.into() });
        self.blobs.lock().expect("no panic while listing").insert(id, blob.clone());
        ActiveBlob { id, blob, furthest: AtomicU64::new(0), progress: self.clone() }
    }

    /// The blobs that are moving now, oldest first, with a number that stays theirs.
    pub fn active(&self) -> Vec<(u64, Arc<BlobProgress>)> {
        self.blobs.lock().expect("no panic while listing").iter().map(|(id, blob)| (*id, blob.clone())).collect()
    }
}

/// A blob that is moving; dropping it ends its listing.
#[derive(Debug)]
pub struct ActiveBlob {
    id: u64,
    /// How far it is.
    pub blob: Arc<BlobProgress>,
    furthest: AtomicU64,
    progress: Arc<Progress>,
}

impl ActiveBlob {
    /// Sets how many bytes of the blob have been sent; bytes that were never sent before count in the total.
    pub fn at(&self, offset: u64) {
        self.blob.done.store(offset, Ordering::Relaxed);
        let before = self.furthest.fetch_max(offset, Ordering::Relaxed);
        self.progress.bytes_done.fetch_add(offset.saturating_sub(before), Ordering::Relaxed);
    }
}

impl Drop for ActiveBlob {
    fn drop(&mut self) {
        self.progress.blobs.lock().expect("no panic while listing").remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(totals: Totals, trouble: Vec<Trouble>, found: bool) -> u8 {
        let look = Look { jobs: Vec::new(), totals, trouble, found };
        Report::new("r", Timestamp::UNIX_EPOCH, Duration::ZERO, [look]).exit_code
    }

    #[test]
    fn bytes_that_are_sent_again_count_once() {
        let progress = Arc::new(Progress::default());
        let blob = progress.start_blob("app".into(), 100);
        for offset in [40, 80, 10, 60, 100] {
            blob.at(offset);
        }
        assert_eq!((progress.bytes_done.load(Ordering::Relaxed), blob.blob.done.load(Ordering::Relaxed)), (100, 100));
        drop(blob);
        assert!(progress.active().is_empty());
    }

    #[test]
    fn the_first_exit_code_that_applies_wins() {
        let trouble = |class: &str| vec![Trouble { class: class.into(), text: String::new() }];
        assert_eq!(report(Totals::default(), vec![], true), 0);
        assert_eq!(report(Totals::default(), vec![], false), 5);
        assert_eq!(report(Totals { existing: 3, only_in_destination: 1, ..Totals::default() }, vec![], true), 0);
        assert_eq!(report(Totals { conflict: 1, ..Totals::default() }, vec![], true), 4);
        assert_eq!(report(Totals { drift: 1, failed: 1, ..Totals::default() }, vec![], true), 1);
        assert_eq!(report(Totals { failed: 1, ..Totals::default() }, trouble("auth"), true), 3);
        assert_eq!(report(Totals { interrupted: 1, ..Totals::default() }, trouble("auth"), true), 130);
        assert_eq!(report(Totals::default(), trouble("not_found"), false), 5);
        assert_eq!(report(Totals::default(), trouble("retryable"), false), 1);
        assert_eq!(report(Totals { refused: 1, ..Totals::default() }, trouble(Trouble::REFUSED), false), 4);
    }
}
