//! Rollback: a tag goes back to what it named before, and stays there.
//!
//! The decision is in force before the tag moves, so that no look puts back what is replaced. It
//! ends by itself where the tag could not be moved. Neither holds nor gates stop it; what the gates
//! come to is recorded with the promotion.

mod goal;

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::goal::is_done_by;
use super::context::stores;
use super::one_tag::OneTag;
use super::resolve::{Resolved, resolve};
use super::undecided::Undecided;
use super::{Error, caller, stop_of};
use crate::backend::Repository;
use crate::clock;
use crate::config::Config;
use crate::decision::{Decision, Kind, Numbered, Target};
use crate::endpoint::Source;
use crate::fault::{Class, Fault};
use crate::job::{Actor, Companions, Job, Key, LONG_WAIT, Outcome, Remarks, TagId, TagRules};
use crate::ledger::{Ledger, RunFacts};
use crate::look::topology::Topology;
use crate::oci::Digest;
use crate::transfer::settle::Names;
use crate::transfer::{Completion, Settle, Stop};
use crate::watch::run_id;

/// What is to be rolled back.
#[derive(Clone, Debug)]
pub struct Rollback {
    /// The destination tag.
    pub target: Target,
    /// The digest to go back to; absent: what the tag named before.
    pub to: Option<Digest>,
    /// When the decision ends by itself.
    pub until: Option<Timestamp>,
    /// What the caller says of itself and of the act.
    pub remarks: Remarks,
}

/// Rolls a tag back in this process, while no daemon uses the state folder.
///
/// # Errors
/// When the state folder cannot be used, or the tag was not moved.
pub async fn roll_back(
    config: &Config,
    rollback: Rollback,
    stop: CancellationToken,
) -> Result<Result<Numbered, Undecided>, Error> {
    let (_lock, parts) = stores(Some(&config.daemon.state), false)?;
    let parts = parts.on_threads(config.daemon.threads);
    let audit_file = config.daemon.audit_file.as_deref();
    let audit = parts.start_audit(audit_file).await?;
    let topology = parts.topology(config, None)?;
    let stop = stop_of(stop);
    let actor = caller(rollback.remarks.clone());
    let moved = match resolve(rollback.target.clone(), &topology) {
        Ok(resolved) => {
            let act = Act::new(&topology, &parts.ledger, &stop, actor);
            act.roll_back(&resolved, rollback.to, rollback.until).await
        }
        Err(unresolved) => Err(unresolved.into()),
    };
    drop(topology);
    if let Some(audit) = audit {
        audit.end().await;
    }
    parts.close().await;
    Ok(moved.map(|moved| moved.decision))
}

/// A tag that was moved back.
pub(crate) struct RolledBack {
    /// The decision, which is in force.
    pub(crate) decision: Numbered,
    /// The tag.
    pub(crate) place: TagId,
}

/// With what a rollback is carried out.
pub(crate) struct Act<'a> {
    topology: &'a Topology,
    ledger: &'a Ledger,
    stop: &'a Stop,
    actor: Actor,
    /// All rows of the act are of one run.
    facts: RunFacts,
}

/// A tag, and the digests between which it moves.
struct Way {
    tag: OneTag,
    production: Digest,
    to: Digest,
    /// The number of the decision.
    decision: u64,
    /// Whether staging has answered.
    has_staging: bool,
}

impl<'a> Act<'a> {
    pub(crate) fn new(
        topology: &'a Topology,
        ledger: &'a Ledger,
        stop: &'a Stop,
        actor: Actor,
    ) -> Act<'a> {
        let facts = RunFacts {
            run_id: run_id(),
            ..(*topology.facts).clone()
        };
        Act {
            topology,
            ledger,
            stop,
            actor,
            facts,
        }
    }

    /// Moves a tag back: to a digest, or to what it named before. The decision is in force
    /// afterwards, until a time if there is one.
    pub(crate) async fn roll_back(
        &self,
        resolved: &Resolved,
        to: Option<Digest>,
        until: Option<Timestamp>,
    ) -> Result<RolledBack, Undecided> {
        let tag = OneTag::of(resolved, self.topology, self.ledger).await?;
        let production = tag.production(self.topology, self.stop).await?;
        let in_force = self.ledger.in_force().await?;
        let unfinished = self.unfinished(&tag, &in_force).await?;
        if let Some(decision) = unfinished.filter(|one| is_done_by(one, to, production)) {
            return Ok(RolledBack {
                decision: decision.clone(),
                place: tag.place,
            });
        }
        let begun = unfinished.filter(|one| one.decision.replaces == Some(production));
        let to = match (to, begun.and_then(|one| one.decision.digest)) {
            (None, Some(goal)) => goal,
            (to, _) => self.goal(to, &tag, production, &in_force).await?,
        };
        let indexes = self.ledger.indexes_of(&tag.place, &to).await?;
        if let Some(block) = in_force.denied(indexes.iter().chain([&to]), clock::now()) {
            return Err(Undecided::Conflict(block.reasons.join("; ")));
        }
        let staging = self.staging(&tag).await;
        let earlier = in_force.rollbacks_of(&tag.place);
        let keeps_out: BTreeSet<Digest> = earlier
            .iter()
            .flat_map(|one| one.decision.keeps_out.iter().copied())
            .chain([production])
            .chain(self.named_at_staging(&tag, &staging).await?)
            .filter(|digest| *digest != to)
            .collect();
        let decision = Decision {
            digest: Some(to),
            replaces: Some(production),
            keeps_out: keeps_out.into_iter().collect(),
            until,
            ..Decision::about(&resolved.target, self.actor.clone())
        };
        let recorded = self
            .ledger
            .decide(Kind::Rollback, decision, self.facts.clone())
            .await?;
        let way = Way {
            tag,
            production,
            to,
            decision: recorded.decision.id,
            has_staging: staging.is_ok(),
        };
        self.carry_out(&way).await?;
        let superseded = earlier.iter().map(|one| one.id).collect();
        let by = format!("decision {} takes its place", way.decision);
        self.end(superseded, &by).await?;
        Ok(RolledBack {
            decision: recorded.decision,
            place: way.tag.place,
        })
    }

    /// Moves the tag. Where that fails, the decision ends, unless the tag may have moved.
    async fn carry_out(&self, way: &Way) -> Result<(), Undecided> {
        let completion = self.moved(way).await;
        let outcome = completion.outcome;
        let is_done = is_done(&completion);
        let may_have_moved = completion.may_have_moved;
        let why = why(&completion);
        self.settle(way, completion).await;
        if is_done {
            return Ok(());
        }
        if may_have_moved {
            return Err(unknown(way, &why));
        }
        self.end(vec![way.decision], "the tag could not be moved")
            .await?;
        Err(self.not_moved(way, outcome, &why).await?)
    }

    /// What was not rolled back, and to what it could be.
    async fn not_moved(
        &self,
        way: &Way,
        outcome: Outcome,
        why: &str,
    ) -> Result<Undecided, Undecided> {
        let candidates = self.complete_candidates(way).await?;
        let shown = way.tag.shown();
        let could = if candidates.is_empty() {
            "nothing else that the ledger shows under this tag is complete".to_owned()
        } else {
            format!("complete, and named before: {}", candidates.join(", "))
        };
        let to = way.to;
        let text = format!("{shown} was not moved to {to} ({outcome}): {why}; {could}");
        Ok(match outcome {
            Outcome::Refused | Outcome::Held | Outcome::Conflict => Undecided::Conflict(text),
            Outcome::Gone => Undecided::NotThere(text),
            _ => Undecided::Failed(text),
        })
    }

    /// What staging names. It is asked once: a rollback must not wait for it.
    async fn staging(&self, tag: &OneTag) -> Result<Option<Digest>, Fault> {
        let staging = tag.staging_at_once(self.topology, self.stop).await;
        if let Err(fault) = &staging {
            tracing::warn!(
                tag = tag.shown(),
                error = %fault.chain(),
                "staging does not answer; the rollback goes by production and the ledger"
            );
        }
        staging
    }

    /// What staging names, or was last seen to name.
    async fn named_at_staging(
        &self,
        tag: &OneTag,
        staging: &Result<Option<Digest>, Fault>,
    ) -> Result<Vec<Digest>, Fault> {
        match staging {
            Ok(named) => Ok(Vec::from_iter(*named)),
            Err(_) => self.ledger.last_seen_of(&tag.place).await,
        }
    }

    /// Moves the tag. What production lacks of the image and of what travels with it comes from
    /// staging; where staging does not do, from production alone.
    async fn moved(&self, way: &Way) -> Completion {
        let there = &way.tag.there;
        let complete = self.job(way, Companions::Unlisted);
        let alone = self.job(way, Companions::Listed(Arc::default()));
        let Some(from) = way.tag.from.as_ref().map(|from| &from.repository) else {
            return self.run(&alone, there, there).await;
        };
        if way.has_staging {
            let first = self.run(&complete, from, there).await;
            if !may_do_without(&first) {
                return first;
            }
            tracing::warn!(
                tag = way.tag.shown(),
                error = why(&first),
                "staging does not complete the image; production alone is tried"
            );
            let second = self.run(&alone, there, there).await;
            return if is_done(&second) || second.may_have_moved {
                second
            } else {
                first
            };
        }
        let first = self.run(&alone, there, there).await;
        if is_missing(&first) && !first.may_have_moved {
            return self.run(&complete, from, there).await;
        }
        first
    }

    async fn run(&self, job: &Job, source: &impl Source, there: &Repository) -> Completion {
        let progress = Arc::default();
        self.topology
            .engine
            .run(job, source, there, &progress, self.stop)
            .await
    }

    fn job(&self, way: &Way, companions: Companions) -> Job {
        let place = &way.tag.place;
        let from = way.tag.from.as_ref();
        let key = match from {
            Some(from) => Key {
                route: from.route.clone(),
                source: from.repository.repository().clone(),
                tag: from.tag.clone(),
                destination: place.clone(),
            },
            None => Key {
                route: "".into(),
                source: place.repository.clone(),
                tag: place.tag.clone(),
                destination: place.clone(),
            },
        };
        let actor = self.actor.clone();
        let rules = TagRules {
            forward_only: from.is_some_and(|from| from.forward_only),
            ..TagRules::default()
        };
        Job {
            rules,
            routes: way.tag.routes.clone(),
            gates: from.map(|from| from.gates.clone()).unwrap_or_default(),
            companions,
            max_wait: LONG_WAIT,
            ..Job::back(key, way.to, way.production, way.decision, actor)
        }
    }

    async fn settle(&self, way: &Way, completion: Completion) {
        let job = self.job(way, Companions::Unlisted);
        let there = &way.tag.there;
        let from = way.tag.from.as_ref();
        let source = from.map_or_else(|| there.address(), |from| from.repository.address());
        let names = Names {
            source: format!("{source}:{}", job.key.tag),
            destination: way.tag.shown(),
            registry: there.registry().into(),
        };
        let settle = Settle {
            facts: Arc::new(self.facts.clone()),
            progress: Arc::default(),
            listener: None,
        };
        self.topology
            .engine
            .settle(&settle, &job, &names, completion)
            .await;
    }

    /// Ends decisions that are over.
    async fn end(&self, ids: Vec<u64>, why: &str) -> Result<(), Fault> {
        let ended = self.ledger.end_decisions(ids, why, self.facts.clone());
        ended.await.map(drop)
    }
}

fn is_done(completion: &Completion) -> bool {
    matches!(completion.outcome, Outcome::Promoted | Outcome::UpToDate)
}

/// Whether a rollback that failed may work without staging.
fn may_do_without(completion: &Completion) -> bool {
    let is_failed = matches!(completion.outcome, Outcome::Failed | Outcome::Gone);
    is_failed && !completion.may_have_moved
}

/// What is said where the answer to the request that moves the tag was lost.
fn unknown(way: &Way, why: &str) -> Undecided {
    let Way { to, decision, .. } = way;
    let shown = way.tag.shown();
    Undecided::Failed(format!(
        "{shown} may have moved to {to}: the answer to the request that moves it was lost ({why}); \
         decision {decision} stays in force and keeps out what it replaces. Once production answers, \
         repeat the rollback, or end it with `blobferry release {decision}`"
    ))
}

/// Whether content was missing, so that another source may help.
fn is_missing(completion: &Completion) -> bool {
    let class = completion.fault.as_ref().map(Fault::class);
    completion.outcome == Outcome::Gone || matches!(class, Some(Class::NotFound | Class::Corrupt))
}

fn why(completion: &Completion) -> String {
    let fault = completion.fault.iter().map(|fault| fault.chain());
    let reasons = completion.reasons.iter().cloned();
    fault.chain(reasons).collect::<Vec<_>>().join("; ")
}
