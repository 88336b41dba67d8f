//! The engine: job → survey → plan → carry → name → settle.
//!
//! - [`survey`](self) gathers facts; [`plan`] decides without side effects; carrying copies blobs,
//!   child manifests and referrers by digest and moves no tag; naming moves the tag with the last
//!   request.
//! - Production is asked about a tag at most two seconds before the tag moves. If a side moved
//!   meanwhile, nothing is named and the job plans again with the new facts.
//! - Retry, limits and claims live here and nowhere else. Nothing here depends on HTTP.

pub mod absent;
pub mod accepts;
mod admission;
mod approvals;
mod backup;
pub mod bandwidth;
mod blob;
mod bounds;
mod carry;
mod claims;
pub mod companions;
mod completion;
mod fan_out;
mod findings;
mod gates;
pub mod health;
mod immutable;
mod judged_set;
pub mod limits;
pub mod metrics;
pub mod moves;
mod name;
mod newest;
mod opening;
mod pace;
pub mod pages;
pub mod plan;
mod promotion;
mod pushers;
mod questions;
mod read_ahead;
mod reading;
mod referrers;
mod refusals;
pub mod resolve;
mod resume;
pub mod retry;
mod scan;
mod send;
mod set_naming;
pub mod sets;
pub mod settle;
mod signed;
mod signed_scan;
pub mod stall;
mod statements;
mod survey;
mod suspended;
mod torn;
mod unlisted;
mod upload;
mod verdict;
pub mod verify;
mod versions;

use std::collections::{BTreeSet, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use self::absent::Absent;
pub use self::bounds::{Bounds, ReadAhead, SharedReads};
use self::claims::Claims;
use self::companions::KeptCompanions;
pub use self::completion::{Completion, Cost, Found};
use self::fan_out::FanOut;
pub use self::health::Health;
use self::immutable::ImmutableBackups;
pub use self::limits::Limits;
use self::limits::RequestPriority;
pub use self::metrics::Metrics;
use self::moves::Moves;
use self::newest::NewestAnswers;
use self::promotion::{Counts, Promotion};
use self::pushers::ToldPushers;
use self::questions::Questions;
use self::read_ahead::AheadBudget;
use self::refusals::Refusals;
pub use self::retry::Stop;
use self::retry::{retry, stoppable};
pub use self::set_naming::SetWait;
use self::sets::SetMembers;
pub use self::settle::Settle;
use self::statements::Statements;
use self::suspended::SuspendedNames;
use self::unlisted::UnlistedTags;
use self::verdict::KnownContents;
use self::versions::KnownVersions;
use crate::byte_threads::ByteThreads;
use crate::clock;
use crate::endpoint::{Destination, Origin, Source, Tally};
use crate::fault::{Class, Fault};
use crate::gate::http::Service;
use crate::index::Index;
use crate::job::{Cause, Job, Key, Progress, TagId};
use crate::ledger::Ledger;
use crate::oci::{Digest, RepositoryName, Tag};

/// Settings of the engine.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Retries.
    pub retry: retry::Settings,
    /// When a transfer counts as stalled.
    pub stall: stall::Settings,
    /// How long the routine poll trusts a hint about production.
    pub trust: Duration,
    /// How old production's answer about a tag may be when the tag moves; staging's may be five
    /// times as old.
    pub fresh: Duration,
    /// Concurrency and sizes.
    pub bounds: Bounds,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            retry: retry::Settings::default(),
            stall: stall::Settings::default(),
            trust: Duration::from_secs(3600),
            fresh: Duration::from_secs(2),
            bounds: Bounds::default(),
        }
    }
}

/// Most companion tags remembered as tried.
const TRIED: usize = 100_000;
/// Most equal tags remembered as unproven by the source.
const UNPROVEN: usize = 10_000;

/// The engine: shared by all jobs. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    /// Settings.
    pub settings: Settings,
    /// Hints and open uploads.
    pub index: Index,
    /// Outcomes and decisions.
    pub ledger: Ledger,
    /// Rate and concurrency limits.
    pub limits: Limits,
    /// Metrics.
    pub metrics: Metrics,
    threads: ByteThreads,
    /// Pushes before this time do not count towards the time to production.
    started: Timestamp,
    claims: Claims,
    absent: Absent,
    newest: NewestAnswers,
    immutable_backups: ImmutableBackups,
    unlisted: UnlistedTags,
    ahead: AheadBudget,
    moves: Moves,
    pushers: ToldPushers,
    fan_out: FanOut,
    troubled: Arc<Mutex<HashSet<Key>>>,
    kept_companions: KeptCompanions,
    refusals: Refusals,
    tried: Arc<Mutex<HashSet<TagId>>>,
    unproven: Arc<Mutex<HashSet<(TagId, Digest)>>>,
    suspended: SuspendedNames,
    contents: KnownContents,
    versions: KnownVersions,
    questions: Questions,
    statements: Statements,
    sets: SetMembers,
}

fn asks_for_time(closed_for: Duration) -> Fault {
    let text = format!(
        "the registry asked for no such requests in the next {} s",
        closed_for.as_secs()
    );
    let after = Some(closed_for);
    Fault::new(Class::Retryable { after }, text)
}

impl Engine {
    /// An engine over its stores.
    pub fn new(
        settings: Settings,
        index: Index,
        ledger: Ledger,
        limits: Limits,
        metrics: Metrics,
    ) -> Engine {
        let fan_out = FanOut::new(settings.bounds.shared_reads, limits.admission());
        Engine {
            settings,
            index,
            ledger,
            limits,
            metrics,
            threads: ByteThreads::default(),
            started: clock::now(),
            claims: Claims::default(),
            absent: Absent::default(),
            newest: NewestAnswers::default(),
            immutable_backups: ImmutableBackups::default(),
            unlisted: UnlistedTags::default(),
            ahead: AheadBudget::default(),
            moves: Moves::default(),
            pushers: ToldPushers::default(),
            fan_out,
            troubled: Arc::default(),
            kept_companions: KeptCompanions::default(),
            refusals: Refusals::default(),
            tried: Arc::default(),
            unproven: Arc::default(),
            suspended: SuspendedNames::default(),
            contents: KnownContents::default(),
            versions: KnownVersions::default(),
            questions: Questions::default(),
            statements: Statements::default(),
            sets: SetMembers::default(),
        }
    }

    /// The same engine with threads that move the bytes.
    pub fn on_threads(self, threads: ByteThreads) -> Engine {
        Engine { threads, ..self }
    }

    /// Ends the threads that move the bytes, once no job runs.
    pub async fn end_threads(&self) {
        self.threads.end().await;
    }

    /// Whether no job holds or waits for a permit or a claim.
    pub fn is_idle(&self) -> bool {
        self.limits.admission().is_idle() && self.claims.is_empty()
    }

    /// The same engine under other settings.
    pub fn with(&self, settings: Settings) -> Engine {
        Engine {
            settings,
            ..self.clone()
        }
    }

    /// The tags to look at again, since a gate has answered after their jobs, or their sets may be
    /// named, and what causes these looks; waits for the first.
    pub async fn answered(&self) -> (Cause, BTreeSet<Key>) {
        tokio::select! {
            biased;
            tags = self.questions.answered() => (Cause::Poll, tags),
            tags = self.sets.woken() => (Cause::Chain, tags),
        }
    }

    /// The same engine with this service for `http` gates.
    pub fn with_gate_service(self, service: Arc<dyn Service>) -> Engine {
        Engine {
            questions: Questions::asked_by(service),
            ..self
        }
    }

    /// Sends a request once the limiter allows it, with retries.
    ///
    /// # Errors
    /// The last failure, or one of class `Cancelled`.
    pub async fn ask<T, F>(
        &self,
        origin: &Origin,
        registry: &str,
        priority: impl Into<RequestPriority>,
        stop: &Stop,
        act: impl FnMut() -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        retry(self, &self.limits.of(origin), registry, priority, stop, act).await
    }

    /// Sends a request once the limiter allows it, without retries.
    ///
    /// # Errors
    /// The failure, or one of class `Cancelled`.
    pub async fn ask_once<T>(
        &self,
        origin: &Origin,
        registry: &str,
        priority: impl Into<RequestPriority>,
        stop: &Stop,
        request: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let limiter = self.limits.of(origin);
        let asked = Instant::now();
        let acquired = limiter.acquire_within(priority.into(), self.settings.retry.hold);
        let permit = stoppable(&stop.abort, acquired)
            .await?
            .map_err(asks_for_time)?;
        self.metrics.waited.request(asked);
        let result = stoppable(&stop.abort, request).await?;
        self.metrics.rate_limited(registry, permit.record(&result));
        self.metrics.health.heard(registry, result.as_ref().err());
        result
    }

    /// Whether a companion tag that the destination lacks has been tried. Some are never copied: a
    /// registry that lists referrers itself needs no fallback list.
    pub fn has_tried(&self, origin: &Origin, repository: &RepositoryName, tag: &Tag) -> bool {
        let place = TagId {
            origin: origin.clone(),
            repository: repository.clone(),
            tag: tag.clone(),
        };
        self.tried
            .lock()
            .expect("nothing panics while it notes")
            .contains(&place)
    }

    fn note_tried(&self, origin: &Origin, repository: &RepositoryName, tags: Vec<Tag>) {
        let mut tried = self.tried.lock().expect("nothing panics while it notes");
        if tried.len() >= TRIED {
            tried.clear();
        }
        tried.extend(tags.into_iter().map(|tag| TagId {
            origin: origin.clone(),
            repository: repository.clone(),
            tag,
        }));
    }

    /// Whether the source has failed to prove that its tag names production's digest.
    pub fn is_unproven(&self, place: &TagId, digest: &Digest) -> bool {
        self.unproven
            .lock()
            .expect("nothing panics while it notes")
            .contains(&(place.clone(), *digest))
    }

    /// Remembers that the source has failed to prove a digest, so that looks do not read it again.
    pub fn note_unproven(&self, place: &TagId, digest: &Digest) {
        let mut unproven = self.unproven.lock().expect("nothing panics while it notes");
        if unproven.len() >= UNPROVEN {
            unproven.clear();
        }
        unproven.insert((place.clone(), *digest));
    }

    /// Runs a job. Faults are part of the completion. A registry's distant `Retry-After` is waited
    /// for without permits and claims, within [`Job::max_wait`]; beyond that the completion names
    /// it.
    pub async fn run<S: Source, D: Destination>(
        &self,
        job: &Job,
        source: &S,
        destination: &D,
        progress: &Arc<Progress>,
        stop: &Stop,
    ) -> Completion {
        let started = Instant::now();
        let hold = self.settings.retry.hold;
        let mut waited = Duration::ZERO;
        let mut set_waited = Duration::ZERO;
        let mut cost = Cost::default();
        let mut found = None;
        let mut may_have_moved = false;
        loop {
            let began = Instant::now();
            let under_way = self.enter_set(job, stop);
            let mut completion = self
                .run_once(job, source, destination, progress, stop)
                .await;
            drop(under_way);
            cost = cost.plus(&completion.cost);
            // The ledger knows it by now: no later run finds it again.
            found = found.or(completion.found);
            may_have_moved |= completion.may_have_moved;
            if completion.has_progressed {
                waited = Duration::ZERO;
            }
            let is_caller_waiting = job.max_wait > hold && set_waited < job.max_wait;
            if completion.waits_for_members() && is_caller_waiting {
                let asked = Instant::now();
                let left = job.max_wait - set_waited;
                let reason = self.still_waits(job, stop, left).await;
                set_waited += asked.elapsed();
                let Some(reason) = reason else {
                    continue;
                };
                completion = completion.waiting_for(reason);
            }
            // The wait for permits is not the registry's.
            waited += began.elapsed().min(hold);
            let may_wait = job.max_wait > hold && !completion.gave_up;
            let wait = completion.retry_after().filter(|_| may_wait);
            let wait = wait.filter(|wait| waited + *wait <= job.max_wait);
            let is_resumed = match wait {
                Some(wait) => {
                    waited += wait;
                    let slept = stoppable(&stop.drain, tokio::time::sleep(wait)).await;
                    slept.is_ok()
                }
                None => false,
            };
            if !is_resumed {
                let took = started.elapsed();
                return Completion {
                    cost,
                    found,
                    took,
                    may_have_moved,
                    ..completion
                };
            }
        }
    }

    /// Runs a job until it completes or has to wait for long.
    async fn run_once<S: Source, D: Destination>(
        &self,
        job: &Job,
        source: &S,
        destination: &D,
        progress: &Arc<Progress>,
        stop: &Stop,
    ) -> Completion {
        let member = self.fan_out.enter(
            source.origin(),
            source.repository(),
            &job.key.tag,
            destination.origin(),
        );
        let ticket = self.limits.admission().enter(
            &job.key.route,
            source.origin(),
            destination.origin(),
            job.rank,
        );
        let asked = Instant::now();
        member.admitted(&ticket).await;
        self.metrics.waited.job(asked);
        let tally = Arc::new(Tally::default());
        let promotion = Promotion {
            engine: self,
            job,
            source: source.counted(&tally),
            destination: destination.counted(&tally),
            progress,
            stop,
            member,
            ticket,
            number: OnceLock::new(),
            leads: Mutex::default(),
            motions: Mutex::default(),
            started: asked,
            sent: AtomicU64::new(0),
            spared: AtomicU64::new(0),
            counts: Counts::default(),
            reasons: Mutex::default(),
            found: Mutex::default(),
            rules: Mutex::new(job.rules),
            accepted: Mutex::default(),
            judged: Mutex::default(),
            evidence: Mutex::default(),
            gave_up: AtomicBool::new(false),
            may_have_moved: AtomicBool::new(false),
            companions: Mutex::default(),
            has_progressed: AtomicBool::new(false),
            carried: Mutex::default(),
        };
        let _in_flight = self.metrics.in_flight();
        // Boxed to keep the caller's future small.
        let ended = AssertUnwindSafe(promotion.run())
            .catch_unwind()
            .boxed()
            .await;
        let completion = ended.unwrap_or_else(|_| {
            let text = "a part of the program panicked; the log says where";
            promotion.failed(Fault::retryable(text), None)
        });
        promotion.completed(completion, tally.requests())
    }
}

#[cfg(test)]
impl Engine {
    /// An engine with empty stores and usual settings, for unit tests.
    pub(crate) fn in_memory() -> Engine {
        Engine::new(
            Settings::default(),
            Index::in_memory(),
            Ledger::in_memory(),
            Default::default(),
            Metrics::new(&prometheus::Registry::new()).unwrap(),
        )
    }
}
