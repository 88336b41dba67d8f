//! One job while it runs.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;

use jiff::Timestamp;
use tokio::time::Instant;

use super::survey::{Image, Observation, TagFacts};
use super::verdict::Contents;
use super::{Completion, Cost, Engine, Found};
use crate::decision::{Approval, Verdict};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::gate::question::Phase;
use crate::job::{
    BlobCounts, BlobOutcome, Job, ObservedVia, Outcome, Progress, ReferrerCounts, TagRules,
    TagState,
};
use crate::oci::Digest;
use crate::transfer::admission::Ticket;
use crate::transfer::claims::{Claim, Claimant, Lead, Motion, Subject};
use crate::transfer::companions::CompanionOutcome;
use crate::transfer::fan_out::GroupMember;
use crate::transfer::gates::{Evidence, Judged, Permission};
use crate::transfer::limits::{RequestClass, RequestPriority};
use crate::transfer::name::{NameOrigin, Named, TagMove};
use crate::transfer::plan::Decision;
use crate::transfer::retry::Stop;
use crate::transfer::retry::stoppable;

/// One job while it runs.
pub(super) struct Promotion<'a, S, D> {
    pub(super) engine: &'a Engine,
    pub(super) job: &'a Job,
    pub(super) source: S,
    pub(super) destination: D,
    pub(super) progress: &'a Arc<Progress>,
    pub(super) stop: &'a Stop,
    pub(super) member: GroupMember,
    /// Its rank in the queues for permits.
    pub(super) ticket: Arc<Ticket>,
    /// Its order among jobs that share blobs, from the first blob they shared.
    pub(super) number: OnceLock<u64>,
    /// Blobs that other jobs mount once a manifest refers to them.
    pub(super) leads: Mutex<Vec<Lead>>,
    /// Progress of the blobs that other jobs may wait for.
    pub(super) motions: Mutex<BTreeMap<Digest, Arc<Motion>>>,
    pub(super) started: Instant,
    pub(super) sent: AtomicU64,
    pub(super) spared: AtomicU64,
    pub(super) counts: Counts,
    /// Reasons to report for any outcome.
    pub(super) reasons: Mutex<Vec<String>>,
    /// A write of an earlier job that turned out to have arrived.
    pub(super) found: Mutex<Option<Found>>,
    /// The rules of the last plan.
    pub(super) rules: Mutex<TagRules>,
    /// The accept that the last plan goes by.
    pub(super) accepted: Mutex<Option<Approval>>,
    /// What the gates came to at last.
    pub(super) judged: Mutex<Option<Judged>>,
    /// What was gathered for them.
    pub(super) evidence: Mutex<Evidence>,
    /// Whether naming reached its bound of rounds or time.
    pub(super) gave_up: AtomicBool,
    /// Whether a request to move the tag was sent, and what came of it is not known.
    pub(super) may_have_moved: AtomicBool,
    /// What came of the companion tags so far.
    pub(super) companions: Mutex<Vec<CompanionOutcome>>,
    /// Whether something was brought that is there for good.
    pub(super) has_progressed: AtomicBool,
    /// The digests of the image that is carried, as far as the survey has them.
    pub(super) carried: Mutex<Option<Contents>>,
}

/// The result of one round.
enum Round {
    Complete(Box<Completion>),
    /// A side moved: the new facts.
    Again(Box<TagFacts>),
}

impl Round {
    fn complete(completion: Completion) -> Round {
        Round::Complete(Box::new(completion))
    }
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) present: AtomicU64,
    pub(super) mounted: AtomicU64,
    pub(super) copied: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) referrers_present: AtomicU64,
    pub(super) referrers_copied: AtomicU64,
    pub(super) referrers_refused: AtomicU64,
    /// Listed by staging, and not there.
    pub(super) referrers_missing: AtomicU64,
    /// Referrers and companions already counted: a job may meet one twice.
    pub(super) referrers: Mutex<HashSet<Digest>>,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Claims the destination tag: a look at one tag may run beside a look at the whole repository.
    /// Taken with the job permit held, so no queued job claims a tag. The look's observation is
    /// discarded if another job held the tag meanwhile, or is older than such a job's answer. A
    /// rollback waits for other rollbacks alone: its decision keeps out what a job may be carrying
    /// to the tag.
    async fn claim_tag(&self) -> Result<(Claim, Observation), Fault> {
        let place = &self.job.key.destination;
        let (repository, tag) = (place.repository_id(), place.tag.clone());
        let subject = match self.job.rollback {
            Some(_) => Subject::Rollback(repository, tag),
            None => Subject::Tag(repository, tag),
        };
        let motion = Arc::default();
        let claimant = Claimant {
            ticket: self.ticket.clone(),
            source: self.source.origin().clone(),
            motion,
        };
        let mut take = std::pin::pin!(self.engine.claims.take(subject, &claimant));
        match std::future::poll_fn(|cx| Poll::Ready(take.as_mut().poll(cx))).await {
            Poll::Ready(claim) => Ok((claim, self.observation())),
            Poll::Pending => Ok((
                stoppable(&self.stop.abort, take).await?,
                Observation::none(),
            )),
        }
    }

    /// The look's observation, unless this process has a newer answer of production that differs:
    /// another job may have named the tag and be done.
    fn observation(&self) -> Observation {
        let job = self.job;
        let is_overtaken = job.destination != TagState::Unknown
            && self.engine.newest.differs(
                &self.destination,
                &job.key.destination.tag,
                job.destination.digest(),
                job.destination_at,
            );
        if is_overtaken {
            Observation::none()
        } else {
            Observation::of(job)
        }
    }

    /// Claims the destination tag and runs the job.
    pub(super) async fn run(&self) -> Completion {
        match self.claim_tag().await {
            Ok((_claim, observation)) => self.promote(observation).await,
            Err(stopped) => self.failed(stopped, None),
        }
    }

    /// Runs the rounds of the job. Each starts from facts; if staging moved in it, it names
    /// nothing.
    async fn promote(&self, observation: Observation) -> Completion {
        // Nothing has been carried yet: a signal ends the question at once.
        let surveyed = stoppable(&self.stop.drain, self.survey_tag(observation)).await;
        let mut facts = match surveyed.flatten() {
            Ok(facts) => facts,
            Err(fault) => return self.failed(fault, None),
        };
        let rounds = self.engine.settings.bounds.rounds;
        let planned = self.job.source.digest().or(facts.source);
        for _ in 0..rounds {
            if self.has_moved(planned, facts.source) {
                return self.moved(&facts);
            }
            match self.round(facts.clone()).await {
                Ok(Round::Complete(completion)) => return *completion,
                Ok(Round::Again(newer)) => facts = *newer,
                Err(fault) => return self.failed_or_denied(fault, &facts),
            }
        }
        let text = format!(
            "staging moved {} {rounds} times while it was carried",
            self.source_reference()
        );
        self.failed(Fault::retryable(text), Some(&facts))
    }

    /// Whether staging names another digest than the one to which the caller compared the fixed
    /// tags.
    fn has_moved(&self, planned: Option<Digest>, source: Option<Digest>) -> bool {
        let is_other = source.is_some() && planned.is_some() && source != planned;
        self.job.ends_when_moved && self.planned_rules().moving && is_other
    }

    /// Staging moved the tag while it waited or was carried.
    fn moved(&self, facts: &TagFacts) -> Completion {
        let text = format!(
            "staging moved {} while it was carried",
            self.source_reference()
        );
        Completion {
            has_moved: true,
            ..self.failed(Fault::retryable(text), Some(facts))
        }
    }

    /// One round: decides, carries and names.
    async fn round(&self, mut facts: TagFacts) -> Result<Round, Fault> {
        self.end_own_accepts(&facts).await?;
        self.end_own_outlived(&facts).await?;
        self.note_own_pushers(&facts).await?;
        let decision = self.decide(&facts).await?;
        if decision == Decision::UpToDate {
            if !self.job.dry_run {
                self.equal(&facts).await?;
            }
            self.note_unmoved(&facts).await;
        } else if let Some(block) = self.kept_out(&facts).await? {
            return Ok(Round::complete(Completion::blocked(block, &facts)));
        }
        if decision != Decision::Promote {
            self.remember_difference(&facts).await;
            return Ok(Round::complete(Completion::untouched(decision, &facts)));
        }
        let permission = self.judge(&facts, Phase::Carry).await?;
        if self.job.dry_run || permission == Permission::Nothing {
            let planned = self.planned(&facts, permission).await?;
            return Ok(Round::complete(planned));
        }
        let Some(image) = self.survey_image(&mut facts).await? else {
            return Ok(Round::Again(Box::new(facts)));
        };
        let named = self.carry_and_name(&image, &facts, permission).await?;
        Ok(Round::complete(match named {
            Named::Moved => {
                self.note_platform(&facts);
                if self.job.rollback.is_some() {
                    self.record_verdicts(&facts).await;
                }
                Completion::promoted(&facts, &image)
            }
            Named::Immutable => self.refused_as_immutable(&image, &facts).await?,
            Named::Blocked(block) => Completion::blocked(block, &facts),
            Named::Again(newer) => return Ok(Round::Again(newer)),
            Named::Gated => self.gated(&facts),
            Named::InSet(wait) => Completion::waits_for_set(&facts, wait),
            Named::NoBackup(reason) => Completion::without_backup(reason, &facts),
        }))
    }

    async fn carry_and_name(
        &self,
        image: &Image,
        facts: &TagFacts,
        permission: Permission,
    ) -> Result<Named, Fault> {
        let contents = self
            .contents(image.top.digest, facts.index, Some(image))
            .await?;
        self.note_carried(image, facts.index);
        if let Some(block) = self.denial(contents.as_ref()) {
            return Ok(Named::Blocked(block));
        }
        self.carry_content(image).await?;
        // What travels beside the image waits with it.
        if let Verdict::Blocked(block) = self.verdict(image.top.digest, contents.clone()) {
            return Ok(Named::Blocked(block));
        }
        if permission == Permission::Carry || !self.is_scanned_there(image, facts).await? {
            return Ok(Named::Gated);
        }
        if let Some(wait) = self.waits_for_set(facts, contents.clone()).await? {
            return Ok(Named::InSet(wait));
        }
        self.bring_referrers(&image.subjects).await?;
        self.move_tag(TagMove {
            place: &self.job.key.destination,
            origin: NameOrigin::Job,
            image,
            contents,
            planned: facts,
        })
        .await
    }

    /// Whether a scan in production, where one is asked for, lets the tag move: what belongs to the
    /// image is not carried before.
    async fn is_scanned_there(&self, image: &Image, facts: &TagFacts) -> Result<bool, Fault> {
        if !self.awaits_scan_there()? {
            return Ok(true);
        }
        self.carry_top(image).await?;
        Ok(self.judge(facts, Phase::Name).await? == Permission::Name)
    }

    /// What is said of a tag that would be promoted, before anything is carried.
    async fn planned(&self, facts: &TagFacts, permission: Permission) -> Result<Completion, Fault> {
        if let Some(digest) = facts.source {
            let contents = self.contents(digest, facts.index, None).await?;
            if let Some(block) = self.block_of(digest, contents) {
                return Ok(Completion::blocked(block, facts));
            }
        }
        if permission != Permission::Name {
            return Ok(self.gated(facts));
        }
        if let Some(wait) = self.waits_for_set(facts, None).await? {
            return Ok(Completion::waits_for_set(facts, wait));
        }
        let without_backup = self.planned_backup(facts).await?;
        Ok(without_backup.unwrap_or_else(|| Completion::planned(facts)))
    }

    /// Says of which index the promoted manifest is a part.
    fn note_platform(&self, facts: &TagFacts) {
        if let Some((platform, index)) = self.source.platform().zip(facts.index) {
            self.note_reason(format!("{platform}: a manifest of the index {index}"));
        }
    }

    fn note_carried(&self, image: &Image, index: Option<Digest>) {
        let manifests = image.manifests().map(|manifest| manifest.digest);
        let blobs = image.blobs.iter().map(|blob| blob.digest);
        let mut carried = self.carried.lock().expect("nothing panics while it notes");
        *carried = Some(Arc::new(manifests.chain(blobs).chain(index).collect()));
    }

    /// The completion of a job that failed; a denial of what it carried is told instead.
    fn failed_or_denied(&self, fault: Fault, facts: &TagFacts) -> Completion {
        match self.denial(self.carried().as_ref()) {
            Some(block) => Completion::blocked(block, facts),
            None => self.failed(fault, Some(facts)),
        }
    }

    /// Gates keep the job from its tag.
    fn gated(&self, facts: &TagFacts) -> Completion {
        let judged = self.lock_judged();
        let outcome = judged.as_ref().map_or(Outcome::Waiting, Judged::outcome);
        Completion::gated(facts, outcome)
    }

    /// Records that both sides name the same digest, and copies referrers that came later.
    pub(super) async fn equal(&self, facts: &TagFacts) -> Result<(), Fault> {
        let key = &self.job.key;
        if let Some(digest) = facts.source {
            self.agree(
                &key.destination,
                &key.tag,
                digest,
                self.planned_rules().moving,
            )
            .await?;
            if let Some(block) = self.block_beside(digest).await? {
                self.note_reason(format!(
                    "what belongs to the image waits: {}",
                    block.reasons.join("; ")
                ));
                return Ok(());
            }
        }
        self.copy_late_referrers(facts).await
    }

    /// Production differs and stays so: updates the index's hint.
    pub(super) async fn remember_difference(&self, facts: &TagFacts) {
        if facts.destination != facts.source
            && facts.destination_via == ObservedVia::Tag
            && !self.job.dry_run
        {
            self.remember_tag(facts.destination).await;
        }
    }

    /// The registry refuses to change the tag at all, so its digest tells success from conflict.
    pub(super) async fn refused_as_immutable(
        &self,
        image: &Image,
        facts: &TagFacts,
    ) -> Result<Completion, Fault> {
        let seen = self.survey_tag(Observation::none()).await?;
        match seen.destination {
            Some(production) if production == image.top.digest => {
                self.equal(&seen).await?;
                Ok(Completion::untouched(Decision::UpToDate, facts))
            }
            Some(production) => Ok(Completion::immutable(facts, production)),
            None => Err(Fault::rejected(format!(
                "{} is refused as immutable, but there is no such tag",
                self.destination_reference()
            ))),
        }
    }

    /// The completion of a failed job, with the facts known by then.
    pub(super) fn failed(&self, fault: Fault, facts: Option<&TagFacts>) -> Completion {
        let digest = facts
            .and_then(|facts| facts.source)
            .or(self.job.source.digest());
        let previous = facts
            .and_then(|facts| facts.destination)
            .or(self.job.destination.digest());
        Completion {
            digest,
            index: facts.and_then(|facts| facts.index),
            previous,
            ..Completion::failed(fault, 0)
        }
    }

    /// Adds the cost, the reasons and the rest of what the job recorded on its way.
    pub(super) fn completed(&self, completion: Completion, requests: u64) -> Completion {
        let mut reasons = completion.reasons;
        reasons.append(&mut self.reasons.lock().expect("nothing panics while it notes"));
        let judged = self.lock_judged().take();
        // All reasons are shown; the first decides the result.
        let is_kept_back =
            completion.is_gated || matches!(completion.outcome, Outcome::Held | Outcome::Refused);
        if let Some(judged) = judged.as_ref().filter(|_| is_kept_back) {
            reasons.extend(judged.reasons());
        }
        let accepted = self
            .accepted
            .lock()
            .expect("nothing panics while it notes")
            .take();
        let accept = accepted.as_ref();
        reasons.extend(accept.map(|accept| accept.shown("accepted")));
        let approved = judged.iter().flat_map(Judged::agreed).cloned().collect();
        let mut companions = self
            .companions
            .lock()
            .expect("nothing panics while it notes");
        Completion {
            reasons,
            approved,
            accepted,
            cost: self.cost(requests),
            found: *self.found.lock().expect("nothing panics while it notes"),
            took: self.started.elapsed(),
            gave_up: self.gave_up.load(Ordering::Relaxed),
            may_have_moved: self.may_have_moved.load(Ordering::Relaxed),
            companions: std::mem::take(&mut *companions),
            has_progressed: self.has_progressed.load(Ordering::Relaxed),
            gates: judged.map(|judged| judged.judgements).unwrap_or_default(),
            set: self.set(),
            ..completion
        }
    }

    fn cost(&self, requests: u64) -> Cost {
        let blobs = BlobCounts {
            present: read(&self.counts.present),
            mounted: read(&self.counts.mounted),
            copied: read(&self.counts.copied),
            resumed: read(&self.counts.resumed),
        };
        let referrers = ReferrerCounts {
            copied: read(&self.counts.referrers_copied),
            present: read(&self.counts.referrers_present),
        };
        Cost {
            blobs,
            referrers,
            bytes_sent: read(&self.sent),
            bytes_spared: read(&self.spared),
            requests,
        }
    }

    /// This job as the claimant of a blob or of a referrers request.
    pub(super) fn claimant(&self, digest: &Digest) -> Claimant {
        Claimant {
            ticket: self.ticket.clone(),
            source: self.source.origin().clone(),
            motion: self.motion(digest),
        }
    }

    pub(super) fn motion(&self, digest: &Digest) -> Arc<Motion> {
        self.motions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(*digest)
            .or_default()
            .clone()
    }

    /// Sends a request to the source, with limits and retries.
    pub(super) async fn ask_source<T, F>(
        &self,
        class: RequestClass,
        act: impl Fn(S) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        self.ask(&self.source, class, act).await
    }

    /// Sends a request to the destination, with limits and retries.
    pub(super) async fn ask_destination<T, F>(
        &self,
        class: RequestClass,
        act: impl Fn(D) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        self.ask(&self.destination, class, act).await
    }

    async fn ask<R: Source, T, F>(
        &self,
        repository: &R,
        class: RequestClass,
        act: impl Fn(R) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let priority = RequestPriority::from(class)
            .of_job(&self.ticket)
            .within(self.engine.settings.retry.hold);
        self.engine
            .ask(
                repository.origin(),
                repository.registry(),
                priority,
                self.stop,
                || act(repository.clone()),
            )
            .await
    }

    /// Whether a hint from `seen` can be trusted without a request. A rollback trusts none: it goes
    /// back to what may be long in production.
    pub(super) fn trusts(&self, seen: Timestamp) -> bool {
        if self.job.rollback.is_some() {
            return false;
        }
        let age = self.job.look_began.duration_since(seen).as_secs();
        age <= 0
            || (self.job.cause.trusts_hints()
                && (age as u64) < self.engine.settings.trust.as_secs())
    }

    /// Adds a reason to the report, once.
    pub(super) fn note_reason(&self, reason: String) {
        let mut reasons = self.reasons.lock().expect("nothing panics while it notes");
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    pub(super) fn source_reference(&self) -> String {
        format!("{}:{}", self.source.address(), self.job.key.tag)
    }

    pub(super) fn destination_reference(&self) -> String {
        format!(
            "{}:{}",
            self.destination.address(),
            self.job.key.destination.tag
        )
    }

    pub(super) fn count_blob(&self, outcome: BlobOutcome, size: u64) {
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

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
