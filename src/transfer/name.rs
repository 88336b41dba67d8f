//! Name: moves a tag. Every PUT by tag goes through [`Promotion::move_tag`]: the image's own tag,
//! companion tags, fallback lists and backups, for the daemon, `copy` and `promote` alike.
//!
//! | step | does | next |
//! |---|---|---|
//! | [`Prepare`](Step::Prepare) | makes the intent durable, has the push token at hand | judge |
//! | [`Judge`](Step::Judge) | asks the rules and the decisions in force, judges the gates, waits for its turn in its set | back up |
//! | [`BackUp`](Step::BackUp) | gives what the tag names to its backup tag, if it has one | admit |
//! | [`Admit`](Step::Admit) | waits for the rate limiters, with nothing but the job's permit | ask |
//! | [`Ask`](Step::Ask) | takes a naming permit, resolves staging and production at once, one attempt each, where the answer is old | send, or the plan again |
//! | [`Send`](Step::Send) | the PUT, repeated after a refusal while production's answer is fresh | done, repair, or pause |
//! | [`Repair`](Step::Repair) | brings content that the registry misses | judge |
//! | [`Pause`](Step::Pause) | waits after a refusal, a lost answer or a late one | judge |
//!
//! Before each send production's answer is at most [`Settings::fresh`](super::Settings::fresh) old,
//! and between the two only memory is read. Staging's answer lasts five times as long, so two
//! registries that refuse every other request do not make each other's answers expire. A listing
//! that may lag is no answer of staging. An answer that another job of the process got later and
//! that differs is a reason to ask again. A naming permit is held during the resolves and the PUT
//! alone. A wait that is longer than the job holds its permit for ends the job; the job that goes
//! on counts its rounds on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::OptionFuture;
use tokio::time::{Instant, timeout, timeout_at};

use super::gates::Permission;
use super::limits::{NamingPermit, RequestClass, RequestPriority};
use super::resolve::{Attempts, TagAnswer};
use super::retry::{RetryState, RulesInForce, stoppable};
use super::set_naming::SetWait;
use super::survey::{Image, TagFacts};
use super::suspended::Rounds;
use super::verdict::Contents;
use super::{Promotion, refusals};
use crate::clock;
use crate::decision::{Block, Candidate, Verdict};
use crate::endpoint::{Destination, Put, Source};
use crate::fault::{Class, Fault};
use crate::gate::question::Phase;
use crate::index::TagHint;
use crate::job::{Gates, TagId, TagRules};
use crate::ledger::Intended;
use crate::oci::{Digest, Tag, Target};

/// Most rounds of one naming.
const ROUNDS: u32 = 10;
/// Longest time for which a registry takes no questions, with a naming permit held. A token is
/// waited for: the questions under a naming permit have the next one.
const SOON: Duration = Duration::from_millis(500);

/// A tag and its new manifest.
pub(super) struct TagMove<'a> {
    /// The tag.
    pub(super) place: &'a TagId,
    /// What must not change at staging meanwhile.
    pub(super) origin: NameOrigin<'a>,
    /// Its new content, carried already.
    pub(super) image: &'a Image,
    /// The digests of that content, where a decision is about a digest.
    pub(super) contents: Option<Contents>,
    /// The facts of the plan.
    pub(super) planned: &'a TagFacts,
}

/// The origin of a tag at staging.
#[derive(Clone, Copy)]
pub(super) enum NameOrigin<'a> {
    /// The job's own tag at staging, or the digest that it is pinned to.
    Job,
    /// A tag that travels with its subject.
    Companion(&'a Tag),
    /// A list that the engine made.
    List,
    /// Production itself: what the job's tag names there.
    Backup,
}

/// The result of naming.
pub(super) enum Named {
    /// The tag names the manifest now.
    Moved,
    /// The registry refuses to change the tag at all.
    Immutable,
    /// A decision keeps the tag from being named.
    Blocked(Block),
    /// A side or the rules in force changed: the new facts. Nothing was named.
    Again(Box<TagFacts>),
    /// Gates keep the tag from moving. Nothing was named.
    Gated,
    /// It waits for its set. Nothing was named.
    InSet(SetWait),
    /// Its backup tag stays as it is. Nothing was named.
    NoBackup(String),
}

/// The answer of one side about the tag. `None`: the side was not asked.
type Answer = Result<Option<TagAnswer>, Fault>;

/// The registry that a failed step is about.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

enum Step {
    Prepare,
    Judge,
    BackUp,
    Admit,
    Ask,
    Send(NamingPermit),
    Repair(Vec<Digest>),
    Pause(Side, Fault),
    Done(Named),
}

/// The state of one naming.
struct Namer<'a, S, D> {
    promotion: &'a Promotion<'a, S, D>,
    naming: TagMove<'a>,
    /// The newest answers of both sides.
    facts: TagFacts,
    rounds: Rounds,
    repairs: usize,
    state: RetryState,
    /// Whether what the tag names has its backup.
    is_backed_up: bool,
    /// Whether this job made the intent, so that it may remove it.
    is_new_intent: bool,
    /// Whether a PUT was sent that is not known to have been refused.
    may_have_arrived: bool,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Moves a tag to carried content, unless a side or the rules changed meanwhile.
    pub(super) async fn move_tag(&self, naming: TagMove<'_>) -> Result<Named, Fault> {
        let mut namer = Namer {
            promotion: self,
            facts: naming.planned.clone(),
            rounds: self.engine.suspended.resume(naming.place),
            naming,
            repairs: 0,
            state: RetryState::new(self.engine.settings.retry),
            is_backed_up: false,
            is_new_intent: false,
            may_have_arrived: false,
        };
        // Boxed to keep the job's future small.
        let named = namer.run().boxed().await;
        let has_moved = matches!(named, Ok(Named::Moved));
        let is_own = matches!(namer.naming.origin, NameOrigin::Job);
        if is_own && namer.may_have_arrived && !has_moved {
            self.may_have_moved.store(true, Ordering::Relaxed);
        }
        if namer.is_new_intent && !namer.may_have_arrived && !has_moved {
            // The intent was never written: production naming it later is another client's doing.
            let ledger = &self.engine.ledger;
            let digest = namer.digest();
            if let Err(fault) = ledger.forget_intent(namer.naming.place, &digest).await {
                let tag = &namer.naming.place.tag;
                tracing::warn!(
                    %tag,
                    error = %fault.chain(),
                    "an intent that was not written stays in the ledger"
                );
            }
        }
        named
    }

    /// The rules for the job by the config in force; read again before every decision and write.
    ///
    /// # Errors
    /// `Cancelled` when the config in force does not allow the job any more.
    pub(super) fn rules_in_force(&self) -> Result<TagRules, Fault> {
        self.in_force().map(|rules| rules.tag)
    }

    /// The gates for the job by the config in force.
    ///
    /// # Errors
    /// As [`Promotion::rules_in_force`].
    pub(super) fn gates_in_force(&self) -> Result<Arc<Gates>, Fault> {
        self.in_force().map(|rules| rules.gates)
    }

    /// The backup tag of the job's own tag by the config in force.
    ///
    /// # Errors
    /// As [`Promotion::rules_in_force`].
    pub(super) fn backup_in_force(&self) -> Result<Option<Tag>, Fault> {
        self.in_force().map(|rules| rules.backup)
    }

    fn in_force(&self) -> Result<RulesInForce, Fault> {
        let is_withdrawn = self.stop.withdrawn.is_cancelled();
        let rules = self
            .stop
            .rules
            .of(self.job, self.source.origin())
            .filter(|rules| !is_withdrawn && (self.job.dry_run || !rules.observes))
            .filter(|rules| rules.platform.is(self.source.platform()));
        rules.ok_or_else(Fault::cancelled)
    }

    /// The rules of the last plan.
    pub(super) fn planned_rules(&self) -> TagRules {
        *self.rules.lock().expect("nothing panics while it notes")
    }

    pub(super) async fn remember_tag(&self, digest: Option<Digest>) {
        let tag = self.job.key.destination.tag.clone();
        let seen = clock::now();
        let hint = digest.map(|digest| TagHint { digest, seen });
        self.engine
            .index
            .remember_tags(&self.destination.id(), vec![(tag, hint)])
            .await;
    }
}

impl<S: Source, D: Destination> Namer<'_, S, D> {
    async fn run(&mut self) -> Result<Named, Fault> {
        let mut step = Step::Prepare;
        loop {
            step = match step {
                Step::Prepare => self.prepare().await?,
                Step::Judge => self.judge().await?,
                Step::BackUp => self.back_up().await?,
                Step::Admit => self.admit().await?,
                Step::Ask => self.ask().await?,
                Step::Send(permit) => self.send(permit).await?,
                Step::Repair(missing) => self.repair(&missing).await?,
                Step::Pause(side, fault) => self.pause(side, fault).await?,
                Step::Done(named) => return Ok(named),
            };
        }
    }

    fn digest(&self) -> Digest {
        self.naming.image.top.digest
    }

    /// The key of a permanent refusal.
    fn refusal(&self) -> refusals::Subject {
        let tag = Some(self.naming.place.tag.clone());
        refusals::Subject {
            tag,
            ..self.promotion.refusal_of(&self.digest())
        }
    }

    async fn prepare(&mut self) -> Result<Step, Fault> {
        let promotion = self.promotion;
        if let Some(fault) = promotion.engine.refusals.held(
            &self.refusal(),
            promotion.job.cause,
            promotion.job.look_began,
        ) {
            return Err(fault);
        }
        let replaces = self.naming.planned.destination;
        match promotion
            .engine
            .ledger
            .intend(self.candidate(), replaces)
            .await?
        {
            Intended::Announced { is_new } => self.is_new_intent = is_new,
            Intended::Stopped(verdict) => return Ok(self.stopped(verdict)),
        }
        // Without one the PUT itself asks for it.
        stoppable(
            &self.promotion.stop.abort,
            self.promotion.destination.prepare_push(),
        )
        .await?;
        Ok(Step::Judge)
    }

    /// Reads the rules and the decisions in force and judges the gates, without a permit of a
    /// registry.
    async fn judge(&mut self) -> Result<Step, Fault> {
        self.rounds.count += 1;
        if !self.rules_hold()? {
            return Ok(self.again());
        }
        if let verdict @ (Verdict::Blocked(_) | Verdict::Unknown) = self.verdict() {
            return Ok(self.stopped(verdict));
        }
        let may_move = match self.naming.origin {
            NameOrigin::Job => {
                self.promotion.judge(&self.facts, Phase::Name).await? == Permission::Name
            }
            NameOrigin::Companion(_) | NameOrigin::List | NameOrigin::Backup => {
                self.promotion.companions_may_move()
            }
        };
        if !may_move {
            return Ok(Step::Done(Named::Gated));
        }
        let wait = match self.naming.origin {
            NameOrigin::Job => self.promotion.turn_in_set(self.digest()).await?,
            NameOrigin::Companion(_) | NameOrigin::List | NameOrigin::Backup => None,
        };
        Ok(match wait {
            Some(wait) => Step::Done(Named::InSet(wait)),
            None => Step::BackUp,
        })
    }

    /// Backs up what the job's own tag names, once.
    async fn back_up(&mut self) -> Result<Step, Fault> {
        let is_own = matches!(self.naming.origin, NameOrigin::Job);
        if !is_own || self.is_backed_up {
            return Ok(Step::Admit);
        }
        let production = self.naming.planned.destination;
        Ok(match self.promotion.back_up(production).await? {
            Some(named) => Step::Done(named),
            None => {
                self.is_backed_up = true;
                Step::Admit
            }
        })
    }

    fn candidate(&self) -> Candidate {
        let TagMove {
            place, contents, ..
        } = &self.naming;
        let candidate = self
            .promotion
            .candidate(place, self.digest(), contents.clone());
        Candidate {
            index: self.naming.planned.index,
            ..candidate
        }
    }

    /// Whether the decisions in force clear the tag, by memory.
    fn verdict(&self) -> Verdict {
        let in_force = self.promotion.engine.ledger.known_decisions();
        in_force.judge(&self.candidate(), clock::now())
    }

    /// The end of a naming that is not cleared. Where the content has to be known first, the job
    /// plans again and reads it.
    fn stopped(&self, verdict: Verdict) -> Step {
        match verdict {
            Verdict::Blocked(block) => Step::Done(Named::Blocked(block)),
            Verdict::Clear | Verdict::Unknown => self.again(),
        }
    }

    /// Whether the verdicts of the gates that let the name begin still hold.
    fn verdicts_hold(&self) -> Result<bool, Fault> {
        match self.naming.origin {
            NameOrigin::Job => self.promotion.verdicts_hold(),
            NameOrigin::Companion(_) | NameOrigin::List | NameOrigin::Backup => Ok(true),
        }
    }

    /// Whether the rules in force are still those of the plan. Companions and lists only need the
    /// job to be allowed.
    fn rules_hold(&self) -> Result<bool, Fault> {
        let rules = self.promotion.rules_in_force()?;
        Ok(!matches!(self.naming.origin, NameOrigin::Job)
            || rules == self.promotion.planned_rules())
    }

    /// Waits until the limiters admit all requests of this round, with only the job permit held.
    async fn admit(&mut self) -> Result<Step, Fault> {
        let promotion = self.promotion;
        let target = promotion.engine.limits.of(promotion.destination.origin());
        let source = promotion.engine.limits.of(promotion.source.origin());
        let mut waits = vec![(Side::Destination, &target, RequestClass::Writes)];
        if self.asks_source() {
            waits.push((Side::Source, &source, RequestClass::Manifests));
        }
        if self.asks_destination() {
            waits.push((Side::Destination, &target, RequestClass::Manifests));
        }
        for (side, limiter, class) in waits {
            while !limiter.admitted_in(class).is_zero() {
                let wait = limiter.admitted_in(class);
                if wait > promotion.engine.settings.retry.hold || wait >= self.rounds.time_left() {
                    let fault = self.closed(side, wait);
                    return self.wait_or_suspend(side, fault, wait).await;
                }
                let stop = if wait > SOON {
                    &promotion.stop.drain
                } else {
                    &promotion.stop.abort
                };
                // The class may be closed for longer meanwhile.
                let hold = promotion.engine.settings.retry.hold;
                let admitted = timeout(hold, limiter.until_admitted(class));
                if stoppable(stop, admitted).await?.is_ok() {
                    break;
                }
            }
        }
        Ok(Step::Ask)
    }

    /// A registry admits no request for so long.
    fn closed(&self, side: Side, wait: Duration) -> Fault {
        let seconds = wait.as_secs();
        let text = match side {
            Side::Source => format!(
                "{}:{} may not be read in the next {seconds} s",
                self.promotion.source.address(),
                self.source_tag()
            ),
            Side::Destination => {
                format!(
                    "{} may not be written in the next {seconds} s",
                    self.reference()
                )
            }
        };
        let after = Some(wait);
        Fault::new(Class::Retryable { after }, text)
    }

    /// The registry of a side, as metrics and logs name it.
    fn registry(&self, side: Side) -> &str {
        match side {
            Side::Source => self.promotion.source.registry(),
            Side::Destination => self.promotion.destination.registry(),
        }
    }

    /// Resolves the tag at each side whose answer is too old.
    async fn ask(&mut self) -> Result<Step, Fault> {
        let promotion = self.promotion;
        let target = promotion.engine.limits.of(promotion.destination.origin());
        let permit = stoppable(
            &promotion.stop.abort,
            target.naming(promotion.ticket.rank(), promotion.started),
        )
        .await?;
        let source = promotion.engine.limits.of(promotion.source.origin());
        let asks_source = self.asks_source();
        let asks_destination = self.asks_destination();
        if asks_source && source.closed_for(RequestClass::Manifests) > SOON {
            return Ok(self.late(Side::Source, "staging's turn came late"));
        }
        if asks_destination && target.closed_for(RequestClass::Manifests) > SOON {
            return Ok(self.late(Side::Destination, "production's turn came late"));
        }
        let (source, destination) = self.answers(asks_source, asks_destination).await;
        // An answer counts, whatever came of the other question.
        let destination = destination.map(|answer| {
            if let Some(answer) = answer {
                self.facts.answered(answer.digest, answer.at);
            }
        });
        match source {
            Ok(None) => {}
            Ok(Some(answer)) => self.facts.answered_by_source(&answer),
            Err(fault) => return self.failed(Side::Source, fault),
        }
        let planned = self.naming.planned;
        // Gates and decisions go by the index, too.
        if (self.facts.source, self.facts.index) != (planned.source, planned.index) {
            return Ok(self.again());
        }
        if let Err(fault) = destination {
            return self.failed(Side::Destination, fault);
        }
        if self.may_have_arrived && self.facts.destination == Some(self.digest()) {
            return Ok(self.moved().await);
        }
        if self.facts.destination != planned.destination {
            return Ok(self.again());
        }
        Ok(Step::Send(permit))
    }

    /// Asks both sides at once, so that neither answer ages during the other request. After a
    /// failed round staging is asked first: a registry that refuses every other request would
    /// always refuse the same side.
    async fn answers(&self, asks_source: bool, asks_destination: bool) -> (Answer, Answer) {
        let source = asks_source.then(|| self.within(self.source_answer(), "staging"));
        let source = OptionFuture::from(source).map(Option::transpose);
        let destination =
            asks_destination.then(|| self.within(self.destination_answer(), "production"));
        let destination = OptionFuture::from(destination).map(Option::transpose);
        if self.rounds.count == 1 {
            return futures::join!(source, destination);
        }
        match source.await {
            Err(fault) => (Err(fault), Ok(None)),
            answer => (answer, destination.await),
        }
    }

    /// Sends the PUT. Between production's answer and it only memory is read.
    async fn send(&mut self, permit: NamingPermit) -> Result<Step, Fault> {
        let promotion = self.promotion;
        let until = self.fresh_until();
        loop {
            let Ok(request) =
                timeout_at(until, stoppable(&promotion.stop.abort, permit.request())).await
            else {
                return Ok(self.late(Side::Destination, "the turn to write came late"));
            };
            let request = request?;
            if Instant::now() > until {
                return Ok(self.late(Side::Destination, "the turn to write came late"));
            }
            if !self.rules_hold()? {
                return Ok(self.again());
            }
            if !self.verdicts_hold()? {
                return Ok(Step::Judge);
            }
            if self.is_source_overtaken() || self.is_destination_overtaken() {
                return Ok(self.late(Side::Destination, "another job has a newer answer"));
            }
            // The last look at the decisions: one that comes later waits for this request's answer.
            let sending = match promotion.engine.ledger.begin_send(&self.candidate()) {
                Ok(sending) => sending,
                Err(verdict) => return Ok(self.stopped(verdict)),
            };
            let earlier = std::mem::replace(&mut self.may_have_arrived, true);
            let target = Target::Tag(self.naming.place.tag.clone());
            let put = stoppable(
                &promotion.stop.abort,
                promotion
                    .destination
                    .put_manifest(&target, &self.naming.image.top),
            )
            .await?;
            if !put.as_ref().is_err_and(|fault| !is_refusal(fault)) {
                sending.answered();
            }
            promotion
                .engine
                .metrics
                .rate_limited(promotion.destination.registry(), request.record(&put));
            drop(request);
            let fault = match put {
                Ok(Put::Accepted { .. }) => {
                    promotion
                        .engine
                        .metrics
                        .health
                        .heard(promotion.destination.registry(), None);
                    return Ok(self.moved().await);
                }
                Ok(Put::Immutable) => {
                    self.may_have_arrived = earlier;
                    return Ok(Step::Done(Named::Immutable));
                }
                Ok(Put::Missing(missing)) => {
                    self.may_have_arrived = earlier;
                    return Ok(Step::Repair(missing));
                }
                Err(fault) => fault,
            };
            let is_refusal = is_refusal(&fault);
            self.may_have_arrived = earlier || !is_refusal;
            if fault.class() == Class::Rejected {
                promotion.engine.refusals.note(self.refusal(), &fault);
            }
            if !matches!(fault.class(), Class::Retryable { .. }) {
                promotion
                    .engine
                    .metrics
                    .health
                    .heard(promotion.destination.registry(), Some(&fault));
                return Err(fault);
            }
            if !is_refusal || Instant::now() + permit.admitted_in() > until {
                return Ok(Step::Pause(Side::Destination, fault));
            }
            promotion
                .engine
                .metrics
                .retried(promotion.destination.registry(), fault.class());
        }
    }

    async fn repair(&mut self, missing: &[Digest]) -> Result<Step, Fault> {
        let image = self.naming.image;
        let promotion = self.promotion;
        if self.repairs == promotion.engine.settings.bounds.repairs {
            return Err(promotion.misses(&image.top, missing));
        }
        self.repairs += 1;
        // Nothing is repaired for a name that is not cleared any more.
        if let verdict @ (Verdict::Blocked(_) | Verdict::Unknown) = self.verdict() {
            return Ok(self.stopped(verdict));
        }
        promotion.repair(image, &image.top, missing).await?;
        Ok(Step::Judge)
    }

    /// Waits before the next round, or gives up: by the count of failures, by rounds, or by time.
    async fn pause(&mut self, side: Side, fault: Fault) -> Result<Step, Fault> {
        let Some(wait) = self.state.next(fault.class()) else {
            return Err(self.gives_up(side, fault));
        };
        let registry = self.registry(side);
        self.promotion
            .engine
            .metrics
            .retried(registry, fault.class());
        tracing::debug!(
            registry,
            tag = %self.naming.place.tag,
            error = %fault.chain(),
            "the tag is asked about and written again"
        );
        self.wait_or_suspend(side, fault, wait).await
    }

    /// Waits for the next round. What takes long is not waited for with the job's permit and its
    /// claims in hand: the job ends, and the one that takes the name up at its time counts the
    /// rounds on.
    async fn wait_or_suspend(
        &mut self,
        side: Side,
        fault: Fault,
        wait: Duration,
    ) -> Result<Step, Fault> {
        let promotion = self.promotion;
        if self.rounds.count >= ROUNDS || wait >= self.rounds.time_left() {
            return Err(self.gives_up(side, fault));
        }
        if wait > promotion.engine.settings.retry.hold {
            promotion
                .engine
                .suspended
                .suspend(self.naming.place, self.rounds);
            let after = Some(wait);
            return Err(Fault::new(Class::Retryable { after }, fault.chain()));
        }
        stoppable(&promotion.stop.drain, tokio::time::sleep(wait)).await?;
        Ok(Step::Judge)
    }

    /// As often and as long as one job may: the queue looks again later, and counts anew.
    fn gives_up(&self, side: Side, fault: Fault) -> Fault {
        self.promotion.gave_up.store(true, Ordering::Relaxed);
        let registry = self.registry(side);
        self.promotion
            .engine
            .metrics
            .health
            .heard(registry, Some(&fault));
        fault
    }

    /// The manifest is there under its tag.
    async fn moved(&self) -> Step {
        let promotion = self.promotion;
        let image = self.naming.image;
        let place = self.naming.place;
        let digest = Some(image.top.digest);
        promotion
            .engine
            .newest
            .note(&promotion.destination, &place.tag, digest, Instant::now());
        promotion
            .committed(&image.top, Put::Accepted { subject: false })
            .await;
        match self.naming.origin {
            NameOrigin::Job => {
                promotion.remember_manifests(image.subjects.clone()).await;
                promotion.remember_tag(Some(image.top.digest)).await;
            }
            NameOrigin::Companion(_) | NameOrigin::List | NameOrigin::Backup => {
                if let Err(fault) = promotion
                    .engine
                    .ledger
                    .found(place, &image.top.digest)
                    .await
                {
                    // The intent says it as well.
                    tracing::warn!(
                        tag = %place.tag,
                        error = %fault.chain(),
                        "the ledger could not be written"
                    );
                }
            }
        }
        Step::Done(Named::Moved)
    }

    fn again(&self) -> Step {
        Step::Done(Named::Again(Box::new(TagFacts {
            manifest: None,
            ..self.facts.clone()
        })))
    }

    /// Ends a round after a permit that came too late. The next round asks again.
    fn late(&self, side: Side, why: &str) -> Step {
        Step::Pause(side, self.lateness(why))
    }

    fn lateness(&self, why: &str) -> Fault {
        let text = format!(
            "{} could not be named while what was asked about it was fresh: {why}",
            self.reference()
        );
        let after = Some(Duration::ZERO);
        Fault::new(Class::Retryable { after }, text)
    }

    fn failed(&self, side: Side, fault: Fault) -> Result<Step, Fault> {
        if matches!(fault.class(), Class::Retryable { .. }) {
            Ok(Step::Pause(side, fault))
        } else {
            Err(fault)
        }
    }

    fn reference(&self) -> String {
        format!(
            "{}:{}",
            self.promotion.destination.address(),
            self.naming.place.tag
        )
    }

    /// How long staging's answer lasts, and the longest time an answer may take.
    fn lasting(&self) -> Duration {
        self.promotion.engine.settings.fresh * 5
    }

    /// Whether staging must still name what the plan goes by.
    fn needs_source(&self) -> bool {
        match self.naming.origin {
            NameOrigin::Job => self.promotion.job.pinned.is_none(),
            NameOrigin::Companion(_) => true,
            NameOrigin::List | NameOrigin::Backup => false,
        }
    }

    /// Whether another look or job of this process has a newer answer of staging that differs.
    fn is_source_overtaken(&self) -> bool {
        let promotion = self.promotion;
        let source = self.facts.source;
        let newest = &promotion.engine.newest;
        let at = self.facts.source_at.filter(|_| self.needs_source());
        at.is_some_and(|at| newest.differs(&promotion.source, self.source_tag(), source, at))
    }

    /// Whether another look or job of this process has a newer answer of production that differs:
    /// it may have written the tag itself.
    fn is_destination_overtaken(&self) -> bool {
        let promotion = self.promotion;
        let facts = &self.facts;
        let newest = &promotion.engine.newest;
        let tag = &self.naming.place.tag;
        newest.differs(
            &promotion.destination,
            tag,
            facts.destination,
            facts.destination_at,
        )
    }

    fn source_tag(&self) -> &Tag {
        match self.naming.origin {
            NameOrigin::Companion(tag) => tag,
            NameOrigin::Job | NameOrigin::List | NameOrigin::Backup => &self.promotion.job.key.tag,
        }
    }

    fn asks_source(&self) -> bool {
        let lasting = self.lasting();
        let is_old = self.facts.source_at.is_none_or(|at| at.elapsed() > lasting);
        self.needs_source() && (is_old || self.is_source_overtaken())
    }

    /// When the first of the answers that the name goes by is too old.
    fn fresh_until(&self) -> Instant {
        let production = self.facts.destination_at + self.promotion.engine.settings.fresh;
        let staging = self.facts.source_at.filter(|_| self.needs_source());
        staging.map_or(production, |at| production.min(at + self.lasting()))
    }

    fn asks_destination(&self) -> bool {
        let is_answer = self
            .facts
            .destination_via
            .is_answer(self.promotion.destination.abilities());
        !is_answer
            || self.may_have_arrived
            || self.is_destination_overtaken()
            || self.facts.destination_at.elapsed() > self.promotion.engine.settings.fresh / 2
    }

    /// The answer of one side. One that takes longer than it would last is not waited for.
    async fn within<T>(
        &self,
        question: impl Future<Output = Result<T, Fault>>,
        side: &str,
    ) -> Result<T, Fault> {
        stoppable(
            &self.promotion.stop.abort,
            timeout(self.lasting(), question),
        )
        .await?
        .unwrap_or_else(|_| Err(self.lateness(&format!("{side} answered late"))))
    }

    async fn source_answer(&self) -> Result<TagAnswer, Fault> {
        let promotion = self.promotion;
        let tag = self.source_tag();
        let priority = promotion.naming_priority(RequestClass::Manifests);
        promotion
            .engine
            .ask_tag(
                &promotion.source,
                tag,
                priority,
                Attempts::Once,
                promotion.stop,
            )
            .await
    }

    async fn destination_answer(&self) -> Result<TagAnswer, Fault> {
        let tag = &self.naming.place.tag;
        if self.naming.planned.destination.is_none()
            && !self.may_have_arrived
            && !self.is_destination_overtaken()
            && let Some(at) = self.promotion.listed_absent(tag).await
        {
            return Ok(TagAnswer {
                digest: None,
                index: None,
                at,
            });
        }
        let promotion = self.promotion;
        let priority = promotion.naming_priority(RequestClass::Manifests);
        promotion
            .engine
            .ask_tag(
                &promotion.destination,
                tag,
                priority,
                Attempts::Once,
                promotion.stop,
            )
            .await
    }
}

/// Whether the answer to a PUT means that nothing was written. After any other fault the tag may
/// have moved, or may move yet.
fn is_refusal(fault: &Fault) -> bool {
    match fault.class() {
        Class::Retryable { after } => after.is_some(),
        Class::Auth | Class::Rejected | Class::NotFound => true,
        Class::Corrupt | Class::Cancelled => false,
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// A request under a naming permit.
    pub(super) fn naming_priority(&self, class: RequestClass) -> RequestPriority {
        RequestPriority {
            is_naming: true,
            ..RequestPriority::from(class).of_job(&self.ticket)
        }
    }
}
