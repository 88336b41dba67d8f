//! The engine: job → survey → plan → carry → verdict → name → outcome.
//!
//! - [`survey`](self) gathers facts; [`plan`] decides without side effects; carrying copies blobs,
//!   child manifests and referrers by digest and moves no tag; naming moves the tag with the last
//!   request.
//! - Production is asked about a tag at most two seconds before the tag moves. If a side moved
//!   meanwhile, nothing is named and the job plans again with the new facts.
//! - Retry, limits and claims live here and nowhere else. Nothing here depends on HTTP.

mod absent;
mod admission;
pub mod bandwidth;
mod blob;
mod bounds;
mod carry;
mod chunk;
mod claims;
pub mod companions;
mod fan_out;
pub mod health;
pub mod limits;
pub mod metrics;
mod name;
mod pace;
pub mod pages;
pub mod plan;
mod referrers;
mod refusals;
pub mod resolve;
mod resume;
pub mod retry;
mod send;
pub mod settle;
pub mod stall;
mod survey;
mod suspended;
mod upload;
pub mod verify;

use std::collections::{BTreeMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use self::absent::Absent;
use self::admission::Ticket;
pub use self::bounds::{Bounds, SharedReads};
use self::claims::{Claim, Claimant, Claims, Lead, Motion, Subject};
use self::companions::{CompanionOutcome, KeptCompanions};
use self::fan_out::{FanOut, GroupMember};
pub use self::health::Health;
pub use self::limits::Limits;
use self::limits::{RequestClass, RequestPriority};
pub use self::metrics::Metrics;
use self::name::{NameOrigin, Named, Naming};
use self::plan::Decision;
use self::refusals::Refusals;
pub use self::retry::Stop;
use self::retry::{retry, stoppable};
pub use self::settle::Settle;
use self::suspended::SuspendedNames;
use crate::clock;
use crate::endpoint::{Destination, Origin, Source, Tally};
use crate::fault::{Class, Fault};
use crate::index::Index;
use crate::job::{BlobOutcome, Job, Key, ObservedVia, Outcome, Progress, TagId, TagRules};
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
    /// Pushes before this time do not count towards the time to production.
    started: Timestamp,
    claims: Claims,
    absent: Absent,
    fan_out: FanOut,
    troubled: Arc<Mutex<HashSet<Key>>>,
    kept_companions: KeptCompanions,
    refusals: Refusals,
    tried: Arc<Mutex<HashSet<TagId>>>,
    unproven: Arc<Mutex<HashSet<(TagId, Digest)>>>,
    suspended: SuspendedNames,
}

/// The result of a job, before it is settled.
#[derive(Debug)]
pub struct Completion {
    /// The outcome.
    pub outcome: Outcome,
    /// Staging's digest.
    pub digest: Option<Digest>,
    /// Production's digest before the job.
    pub previous: Option<Digest>,
    /// The reasons, for the report.
    pub reasons: Vec<String>,
    /// The failure, if it failed.
    pub fault: Option<Fault>,
    /// The cost.
    pub cost: Cost,
    /// The digest that this job wrote to the production tag.
    pub written: Option<Digest>,
    /// A write of an earlier job that succeeded although its answer was lost.
    pub found: Option<Found>,
    /// The duration.
    pub took: Duration,
    /// Whether naming reached its bound of rounds or time: the queue looks again later.
    pub gave_up: bool,
    /// What came of the companion tags that it has looked at.
    pub companions: Vec<CompanionOutcome>,
    /// Whether something was brought that is there for good.
    pub has_progressed: bool,
}

fn asks_for_time(closed_for: Duration) -> Fault {
    let text = format!(
        "the registry asked for no such requests in the next {} s",
        closed_for.as_secs()
    );
    let after = Some(closed_for);
    Fault::new(Class::Retryable { after }, text)
}

/// An intended digest that production turned out to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The digest.
    pub digest: Digest,
    /// The ledger's digest before.
    pub previous: Option<Digest>,
}

/// The cost of a job.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Blobs by outcome.
    pub blobs: crate::job::BlobCounts,
    /// Referrers and companion tags by outcome.
    pub referrers: crate::job::ReferrerCounts,
    /// Blob bytes sent to the destination.
    pub bytes_sent: u64,
    /// Sizes of present and mounted blobs.
    pub bytes_spared: u64,
    /// Requests on both sides.
    pub requests: u64,
}

impl Cost {
    /// The sum of two runs of one job. The second run finds present what the first one copied.
    fn plus(self, other: &Cost) -> Cost {
        let brought = self.blobs.mounted + self.blobs.copied;
        let referrers = crate::job::ReferrerCounts {
            copied: self.referrers.copied + other.referrers.copied,
            present: other
                .referrers
                .present
                .saturating_sub(self.referrers.copied),
        };
        let blobs = crate::job::BlobCounts {
            present: other.blobs.present.saturating_sub(brought),
            mounted: self.blobs.mounted + other.blobs.mounted,
            copied: self.blobs.copied + other.blobs.copied,
            resumed: self.blobs.resumed + other.blobs.resumed,
        };
        Cost {
            blobs,
            referrers,
            bytes_sent: self.bytes_sent + other.bytes_sent,
            bytes_spared: other.bytes_spared.saturating_sub(self.bytes_sent),
            requests: self.requests + other.requests,
        }
    }
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
            started: clock::now(),
            claims: Claims::default(),
            absent: Absent::default(),
            fan_out,
            troubled: Arc::default(),
            kept_companions: KeptCompanions::default(),
            refusals: Refusals::default(),
            tried: Arc::default(),
            unproven: Arc::default(),
            suspended: SuspendedNames::default(),
        }
    }

    /// The same engine under other settings.
    pub fn with(&self, settings: Settings) -> Engine {
        Engine {
            settings,
            ..self.clone()
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
        let mut cost = Cost::default();
        loop {
            let began = Instant::now();
            let completion = self
                .run_once(job, source, destination, progress, stop)
                .await;
            cost = cost.plus(&completion.cost);
            if completion.has_progressed {
                waited = Duration::ZERO;
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
                    took,
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
            gave_up: AtomicBool::new(false),
            companions: Mutex::default(),
            has_progressed: AtomicBool::new(false),
        };
        let _in_flight = self.metrics.in_flight();
        // Boxed to keep the caller's future small.
        let claimed = async {
            let (_claim, observation) = promotion
                .claim_tag()
                .await
                .map_err(|stopped| promotion.broken(stopped, None))?;
            promotion.promote(observation).await
        };
        let story = match AssertUnwindSafe(claimed).catch_unwind().boxed().await {
            Ok(story) => story,
            Err(_) => Err(promotion.broken(
                Fault::retryable("a part of the program panicked; the log says where"),
                None,
            )),
        };
        promotion.end(story, tally.requests())
    }
}

impl Completion {
    /// Both sides name `digest`.
    pub fn equal(digest: Digest, requests: u64) -> Completion {
        let cost = Cost {
            requests,
            ..Cost::default()
        };
        Completion {
            outcome: Outcome::UpToDate,
            digest: Some(digest),
            previous: Some(digest),
            fault: None,
            ..Completion::empty(cost)
        }
    }

    /// What a job has found of a companion tag.
    fn of_companion(companion: CompanionOutcome) -> Completion {
        Completion {
            outcome: companion.result,
            digest: companion.digest,
            previous: companion.there,
            reasons: companion.reason.into_iter().collect(),
            ..Completion::empty(Cost::default())
        }
    }

    /// The registry's `Retry-After`, if it named one.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.fault.as_ref()?.class() {
            Class::Retryable { after } => after,
            _ => None,
        }
    }

    /// A failure, or an interruption.
    pub fn failed(fault: Fault, requests: u64) -> Completion {
        let outcome = if fault.class() == Class::Cancelled {
            Outcome::Interrupted
        } else {
            Outcome::Failed
        };
        let fault = (outcome == Outcome::Failed).then_some(fault);
        Completion {
            outcome,
            fault,
            ..Completion::empty(Cost {
                requests,
                ..Cost::default()
            })
        }
    }

    fn empty(cost: Cost) -> Completion {
        Completion {
            outcome: Outcome::Failed,
            digest: None,
            previous: None,
            reasons: Vec::new(),
            fault: None,
            cost,
            written: None,
            found: None,
            took: Duration::ZERO,
            gave_up: false,
            companions: Vec::new(),
            has_progressed: false,
        }
    }
}

/// One job while it runs.
struct Promotion<'a, S, D> {
    engine: &'a Engine,
    job: &'a Job,
    source: S,
    destination: D,
    progress: &'a Arc<Progress>,
    stop: &'a Stop,
    member: GroupMember,
    /// Its rank in the queues for permits.
    ticket: Arc<Ticket>,
    /// Its order among jobs that share blobs, from the first blob they shared.
    number: OnceLock<u64>,
    /// Blobs that other jobs mount once a manifest refers to them.
    leads: Mutex<Vec<Lead>>,
    /// Progress of the blobs that other jobs may wait for.
    motions: Mutex<BTreeMap<Digest, Arc<Motion>>>,
    started: Instant,
    sent: AtomicU64,
    spared: AtomicU64,
    counts: Counts,
    /// Reasons to report for any outcome.
    reasons: Mutex<Vec<String>>,
    /// A write of an earlier job that turned out to have arrived.
    found: Mutex<Option<Found>>,
    /// The rules of the last plan.
    rules: Mutex<TagRules>,
    /// Whether naming reached its bound of rounds or time.
    gave_up: AtomicBool,
    /// What came of the companion tags so far.
    companions: Mutex<Vec<CompanionOutcome>>,
    /// Whether something was brought that is there for good.
    has_progressed: AtomicBool,
}

#[derive(Default)]
struct Counts {
    present: AtomicU64,
    mounted: AtomicU64,
    copied: AtomicU64,
    resumed: AtomicU64,
    referrers_present: AtomicU64,
    referrers_copied: AtomicU64,
    referrers_refused: AtomicU64,
    /// Referrers and companions already counted: a job may meet one twice.
    referrers: Mutex<HashSet<Digest>>,
}

/// A job that ended without a fault.
struct Story {
    outcome: Outcome,
    digest: Option<Digest>,
    previous: Option<Digest>,
    reasons: Vec<String>,
    written: Option<Digest>,
}

/// A job that ended with a fault, and the facts known by then.
struct Broken {
    fault: Fault,
    digest: Option<Digest>,
    previous: Option<Digest>,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Claims the destination tag: a look at one tag may run beside a look at the whole repository.
    /// Taken with the job permit held, so no queued job claims a tag. The look's observation is
    /// discarded if another job held the tag meanwhile.
    async fn claim_tag(&self) -> Result<(Claim, survey::Observation), Fault> {
        let place = &self.job.key.destination;
        let subject = Subject::Tag(
            place.origin.clone(),
            place.repository.clone(),
            place.tag.clone(),
        );
        let motion = Arc::default();
        let claimant = Claimant {
            ticket: self.ticket.clone(),
            source: self.source.origin().clone(),
            motion,
        };
        let mut take = std::pin::pin!(self.engine.claims.take(subject, &claimant));
        match std::future::poll_fn(|cx| Poll::Ready(take.as_mut().poll(cx))).await {
            Poll::Ready(claim) => Ok((claim, survey::Observation::of(self.job))),
            Poll::Pending => Ok((
                retry::stoppable(&self.stop.abort, take).await?,
                survey::Observation::none(),
            )),
        }
    }

    /// Runs the rounds of the job. Each starts from facts; if staging moved in it, it names
    /// nothing.
    async fn promote(&self, observation: survey::Observation) -> Result<Story, Broken> {
        // Nothing has been carried yet: a signal ends the question at once.
        let mut facts = stoppable(&self.stop.drain, self.survey_tag(observation))
            .await
            .flatten()
            .map_err(|fault| self.broken(fault, None))?;
        let rounds = self.engine.settings.bounds.rounds;
        for _ in 0..rounds {
            let known = facts.clone();
            let failed = |fault| self.broken(fault, Some(&known));
            let decision = self.decide(&facts).await.map_err(failed)?;
            if decision == Decision::UpToDate && !self.job.dry_run {
                self.equal(&facts).await.map_err(failed)?;
            }
            if decision != Decision::Promote {
                self.remember_difference(&facts).await;
                return Ok(Story::untouched(decision, &facts));
            }
            if self.job.dry_run {
                return Ok(Story::planned(&facts));
            }
            let image = self.survey_image(&mut facts).await.map_err(failed)?;
            let Some(image) = image else { continue };
            self.carry(&image).await.map_err(failed)?;
            let naming = Naming {
                place: &self.job.key.destination,
                origin: NameOrigin::Job,
                image: &image,
                planned: &facts,
            };
            facts = match self.move_tag(naming).await.map_err(failed)? {
                Named::Moved => return Ok(Story::promoted(&facts, &image)),
                Named::Immutable => {
                    return self
                        .refused_as_immutable(&image, &facts)
                        .await
                        .map_err(failed);
                }
                Named::Again(newer) => *newer,
            };
        }
        let text = format!(
            "staging moved {} {rounds} times while it was carried",
            self.source_reference()
        );
        Err(self.broken(Fault::retryable(text), Some(&facts)))
    }

    /// Records that both sides name the same digest, and copies referrers that came later.
    async fn equal(&self, facts: &survey::TagFacts) -> Result<(), Fault> {
        let key = &self.job.key;
        if let Some(digest) = facts.source {
            self.agree(
                &key.destination,
                &key.tag,
                digest,
                self.planned_rules().moving,
            )
            .await?;
        }
        self.copy_late_referrers(facts).await
    }

    /// Production differs and stays so: updates the index's hint.
    async fn remember_difference(&self, facts: &survey::TagFacts) {
        if facts.destination != facts.source
            && facts.destination_via == ObservedVia::Tag
            && !self.job.dry_run
        {
            self.remember_tag(facts.destination).await;
        }
    }

    /// The registry refuses to change the tag at all, so its digest tells success from conflict.
    async fn refused_as_immutable(
        &self,
        image: &survey::Image,
        facts: &survey::TagFacts,
    ) -> Result<Story, Fault> {
        let seen = self.survey_tag(survey::Observation::none()).await?;
        match seen.destination {
            Some(production) if production == image.top.digest => {
                self.equal(&seen).await?;
                Ok(Story::untouched(Decision::UpToDate, facts))
            }
            Some(production) => Ok(Story::immutable(facts, production)),
            None => Err(Fault::rejected(format!(
                "{} is refused as immutable, but there is no such tag",
                self.destination_reference()
            ))),
        }
    }

    fn broken(&self, fault: Fault, facts: Option<&survey::TagFacts>) -> Broken {
        let digest = facts
            .and_then(|facts| facts.source)
            .or(self.job.source.digest());
        let previous = facts
            .and_then(|facts| facts.destination)
            .or(self.job.destination.digest());
        Broken {
            fault,
            digest,
            previous,
        }
    }

    fn end(&self, story: Result<Story, Broken>, requests: u64) -> Completion {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let blobs = crate::job::BlobCounts {
            present: count(&self.counts.present),
            mounted: count(&self.counts.mounted),
            copied: count(&self.counts.copied),
            resumed: count(&self.counts.resumed),
        };
        let referrers = crate::job::ReferrerCounts {
            copied: count(&self.counts.referrers_copied),
            present: count(&self.counts.referrers_present),
        };
        let cost = Cost {
            blobs,
            referrers,
            bytes_sent: count(&self.sent),
            bytes_spared: count(&self.spared),
            requests,
        };
        let took = self.started.elapsed();
        let told =
            std::mem::take(&mut *self.reasons.lock().expect("nothing panics while it notes"));
        let found = *self.found.lock().expect("nothing panics while it notes");
        let gave_up = self.gave_up.load(Ordering::Relaxed);
        let companions = std::mem::take(
            &mut *self
                .companions
                .lock()
                .expect("nothing panics while it notes"),
        );
        let has_progressed = self.has_progressed.load(Ordering::Relaxed);
        match story {
            Ok(Story {
                outcome,
                digest,
                previous,
                mut reasons,
                written,
            }) => {
                reasons.extend(told);
                Completion {
                    outcome,
                    digest,
                    previous,
                    reasons,
                    fault: None,
                    cost,
                    written,
                    found,
                    took,
                    gave_up,
                    companions,
                    has_progressed,
                }
            }
            Err(Broken {
                fault,
                digest,
                previous,
            }) => Completion {
                digest,
                previous,
                cost,
                found,
                took,
                gave_up,
                companions,
                has_progressed,
                reasons: told,
                ..Completion::failed(fault, requests)
            },
        }
    }

    /// This job as the claimant of a blob or of a referrers request.
    fn claimant(&self, digest: &Digest) -> Claimant {
        Claimant {
            ticket: self.ticket.clone(),
            source: self.source.origin().clone(),
            motion: self.motion(digest),
        }
    }

    fn motion(&self, digest: &Digest) -> Arc<Motion> {
        self.motions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(*digest)
            .or_default()
            .clone()
    }

    /// Sends a request to the source, with limits and retries.
    async fn ask_source<T, F>(&self, class: RequestClass, act: impl Fn(S) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let source = &self.source;
        let priority = RequestPriority::from(class)
            .of_job(&self.ticket)
            .within(self.engine.settings.retry.hold);
        self.engine
            .ask(
                source.origin(),
                source.registry(),
                priority,
                self.stop,
                || act(source.clone()),
            )
            .await
    }

    /// Sends a request to the destination, with limits and retries.
    async fn ask_destination<T, F>(
        &self,
        class: RequestClass,
        act: impl Fn(D) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let destination = &self.destination;
        let priority = RequestPriority::from(class)
            .of_job(&self.ticket)
            .within(self.engine.settings.retry.hold);
        self.engine
            .ask(
                destination.origin(),
                destination.registry(),
                priority,
                self.stop,
                || act(destination.clone()),
            )
            .await
    }

    /// Whether a hint from `seen` can be trusted without a request.
    fn trusts(&self, seen: Timestamp) -> bool {
        let age = self.job.look_began.duration_since(seen).as_secs();
        age <= 0
            || (self.job.cause.trusts_hints()
                && (age as u64) < self.engine.settings.trust.as_secs())
    }

    /// Adds a reason to the report, once.
    fn note_reason(&self, reason: String) {
        let mut reasons = self.reasons.lock().expect("nothing panics while it notes");
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    fn source_reference(&self) -> String {
        format!("{}:{}", self.source.address(), self.job.key.tag)
    }

    fn destination_reference(&self) -> String {
        format!(
            "{}:{}",
            self.destination.address(),
            self.job.key.destination.tag
        )
    }

    fn count_blob(&self, outcome: BlobOutcome, size: u64) {
        let add = |counter: &AtomicU64, by| counter.fetch_add(by, Ordering::Relaxed);
        match outcome {
            BlobOutcome::Present => add(&self.counts.present, 1),
            BlobOutcome::Mounted => add(&self.counts.mounted, 1),
            BlobOutcome::Copied { resumed } => {
                add(&self.counts.resumed, resumed.into());
                add(&self.counts.copied, 1)
            }
        };
        if !matches!(outcome, BlobOutcome::Copied { .. }) {
            add(&self.spared, size);
        }
        if outcome != BlobOutcome::Present {
            self.has_progressed.store(true, Ordering::Relaxed);
        }
        self.engine.metrics.blob(
            &self.job.key.route,
            self.destination.registry(),
            outcome,
            size,
        );
    }
}

impl Story {
    fn untouched(decision: Decision, facts: &survey::TagFacts) -> Story {
        let (outcome, reason) = match decision {
            Decision::UpToDate | Decision::Promote => (Outcome::UpToDate, None),
            Decision::Conflict(reason) => (Outcome::Conflict, Some(reason)),
            Decision::Drift(reason) => (Outcome::Drift, Some(reason)),
            Decision::Existing(reason) => (Outcome::Existing, Some(reason)),
            Decision::Refused(reason) => (Outcome::Refused, Some(reason)),
            Decision::Gone => (Outcome::Gone, None),
        };
        Story {
            outcome,
            digest: facts.source,
            previous: facts.destination,
            reasons: reason.into_iter().collect(),
            written: None,
        }
    }

    fn planned(facts: &survey::TagFacts) -> Story {
        Story {
            outcome: Outcome::Planned,
            digest: facts.source,
            previous: facts.destination,
            reasons: Vec::new(),
            written: None,
        }
    }

    fn immutable(facts: &survey::TagFacts, production: Digest) -> Story {
        let reason = format!(
            "the registry keeps the tag immutable at {production}; push the content under a new tag, or allow the tag to move there"
        );
        Story {
            outcome: Outcome::Conflict,
            digest: facts.source,
            previous: Some(production),
            reasons: vec![reason],
            written: None,
        }
    }

    fn promoted(facts: &survey::TagFacts, image: &survey::Image) -> Story {
        let written = Some(image.top.digest);
        Story {
            outcome: Outcome::Promoted,
            digest: written,
            previous: facts.destination,
            reasons: Vec::new(),
            written,
        }
    }
}
