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

mod answers;
mod put;
mod rounds;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt as _;

use super::carry::own_blobs;
use super::gates::Permission;
use super::limits::{NamingPermit, RequestClass, RequestPriority};
use super::retry::{RetryState, RulesInForce, stoppable};
use super::set_naming::SetWait;
use super::survey::{Image, TagFacts};
use super::suspended::Rounds;
use super::verdict::Contents;
use super::{Promotion, refusals};
use crate::clock;
use crate::decision::{Block, Candidate, Verdict};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::gate::question::Phase;
use crate::index::{HeldImage, TagHint};
use crate::job::{Gates, TagId, TagRules};
use crate::ledger::Intended;
use crate::oci::{Digest, Tag};

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

    /// The job's own tag names an image now, with all its content.
    async fn remember_named(&self, image: &Image) {
        let hint = TagHint {
            digest: image.top.digest,
            seen: clock::now(),
        };
        let held = HeldImage {
            blobs: own_blobs(&image.top),
            manifests: image.subjects.clone(),
            tag: self.job.key.destination.tag.clone(),
            hint,
        };
        self.engine
            .index
            .remember_image(&self.destination.id(), held)
            .await;
        self.end_leads(&image.top);
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
        refusals::Subject::of_name(self.naming.place, self.digest())
    }

    async fn prepare(&mut self) -> Result<Step, Fault> {
        let promotion = self.promotion;
        let refusals = &promotion.engine.refusals;
        if let Some(fault) = refusals.held(&self.refusal(), promotion.job.news) {
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

    fn again(&self) -> Step {
        Step::Done(Named::Again(Box::new(TagFacts {
            manifest: None,
            ..self.facts.clone()
        })))
    }

    fn reference(&self) -> String {
        format!(
            "{}:{}",
            self.promotion.destination.address(),
            self.naming.place.tag
        )
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
