//! Rollback: a tag goes back to what it named before, and stays there.
//!
//! The decision is in force before the tag moves, so that no look puts back what is replaced. It
//! ends by itself where the tag could not be moved. Neither holds nor gates stop it; what the gates
//! come to is recorded with the promotion.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::complete::Holders;
use super::context::stores;
use super::one_tag::OneTag;
use super::resolve::{Resolved, resolve};
use super::undecided::Undecided;
use super::{Error, caller, stop_of};
use crate::backend::Repository;
use crate::clock;
use crate::config::Config;
use crate::decision::{Decision, InForce, Kind, Numbered, Target};
use crate::endpoint::Source as _;
use crate::fault::{Class, Fault};
use crate::job::{
    Actor, Cause, Companions, Job, Key, LONG_WAIT, ObservedVia, Outcome, Rank, Remarks, TagId,
    TagRules, TagState,
};
use crate::ledger::{Ledger, RunFacts};
use crate::look::topology::Topology;
use crate::oci::Digest;
use crate::transfer::settle::Names;
use crate::transfer::{Completion, Settle, Stop};
use crate::watch::run_id;

/// Digests that a refusal lists at most.
const MOST_LISTED: usize = 5;
/// Digests that are looked at for that list.
const MOST_ASKED: usize = 10;

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
    let audit_file = config.daemon.audit_file.as_deref();
    let audit = parts.start_audit(audit_file).await?;
    let topology = parts.topology(config, None)?;
    let stop = stop_of(stop);
    let actor = caller(rollback.remarks.clone());
    let moved = match resolve(rollback.target.clone(), &topology) {
        Ok(resolved) => {
            let act = Act {
                topology: &topology,
                ledger: &parts.ledger,
                stop: &stop,
                actor,
            };
            act.roll_back(&resolved, &rollback).await
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
    pub(crate) topology: &'a Topology,
    pub(crate) ledger: &'a Ledger,
    pub(crate) stop: &'a Stop,
    pub(crate) actor: Actor,
}

/// A tag, and the digests between which it moves.
struct Way {
    tag: OneTag,
    production: Digest,
    to: Digest,
}

impl Act<'_> {
    /// Moves a tag back. The decision is in force afterwards.
    pub(crate) async fn roll_back(
        &self,
        resolved: &Resolved,
        rollback: &Rollback,
    ) -> Result<RolledBack, Undecided> {
        let tag = OneTag::of(resolved, self.topology, self.ledger).await?;
        let production = tag.production(self.topology, self.stop).await?;
        let in_force = self.ledger.in_force().await?;
        let to = self.goal(rollback.to, &tag, production, &in_force).await?;
        if let Some(block) = in_force.denied([&to], clock::now()) {
            return Err(Undecided::Conflict(block.reasons.join("; ")));
        }
        let staging = tag.staging(self.topology, self.stop).await?;
        let earlier = in_force.rollbacks_of(&tag.place);
        let mut keeps_out: Vec<Digest> = earlier
            .iter()
            .flat_map(|one| one.decision.keeps_out.iter().copied())
            .chain([production])
            .chain(staging)
            .filter(|digest| *digest != to)
            .collect();
        keeps_out.sort();
        keeps_out.dedup();
        let decision = Decision {
            digest: Some(to),
            replaces: Some(production),
            keeps_out,
            until: rollback.until,
            ..Decision::about(&resolved.target, self.actor.clone())
        };
        let recorded = self
            .ledger
            .decide(Kind::Rollback, decision, self.facts())
            .await?;
        let way = Way {
            tag,
            production,
            to,
        };
        let completion = self.moved(&way).await;
        let outcome = completion.outcome;
        let why = why(&completion);
        self.settle(&way, completion).await;
        if matches!(outcome, Outcome::Promoted | Outcome::UpToDate) {
            let superseded = earlier.iter().map(|one| one.id).collect();
            let by = format!("decision {} takes its place", recorded.decision.id);
            self.end(superseded, &by).await?;
            return Ok(RolledBack {
                decision: recorded.decision,
                place: way.tag.place,
            });
        }
        self.end(vec![recorded.decision.id], "the tag could not be moved")
            .await?;
        Err(self.not_moved(&way, outcome, &why).await?)
    }

    /// The digest to go back to.
    async fn goal(
        &self,
        to: Option<Digest>,
        tag: &OneTag,
        production: Digest,
        in_force: &InForce,
    ) -> Result<Digest, Undecided> {
        let earlier = self.ledger.digests_of(&tag.place).await?;
        let shown = tag.shown();
        let Some(to) = to else {
            let now = clock::now();
            let is_meant = |digest: &Digest| {
                *digest != production && in_force.kept_out(&tag.place, digest, now).is_none()
            };
            return earlier.into_iter().find(is_meant).ok_or_else(|| {
                Undecided::NotThere(format!(
                    "the ledger shows nothing else that {shown} named before; say `to`"
                ))
            });
        };
        if to == production {
            return Err(Undecided::Conflict(format!("{shown} names {to} already")));
        }
        if earlier.contains(&to) || self.has_named_fixed(tag, &to).await? {
            return Ok(to);
        }
        Err(Undecided::NotThere(format!(
            "the ledger shows {to} neither under this tag nor under a fixed tag of its repository"
        )))
    }

    /// Whether a fixed tag of the repository has named a digest.
    async fn has_named_fixed(&self, tag: &OneTag, digest: &Digest) -> Result<bool, Fault> {
        let named_by = self.ledger.named_by(&tag.place, digest).await?;
        let is_fixed = |key: &Key| {
            let route = self.topology.route(&key.route);
            route.is_some_and(|route| !route.selection.is_moving(&key.tag))
        };
        Ok(named_by.iter().any(is_fixed))
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

    async fn complete_candidates(&self, way: &Way) -> Result<Vec<String>, Fault> {
        let tag = &way.tag;
        let from = tag.from.iter().map(|from| &from.repository);
        let holders = Holders {
            engine: &self.topology.engine,
            repositories: [&tag.there].into_iter().chain(from).collect(),
            stop: self.stop,
        };
        let named = self.ledger.digests_of(&tag.place).await?;
        let others = named
            .into_iter()
            .filter(|digest| *digest != way.to && *digest != way.production);
        let mut complete = Vec::new();
        for digest in others.take(MOST_ASKED) {
            if complete.len() < MOST_LISTED && holders.have(digest).await {
                complete.push(digest.to_string());
            }
        }
        Ok(complete)
    }

    /// Moves the tag, with content of production, else of staging.
    async fn moved(&self, way: &Way) -> Completion {
        let there = &way.tag.there;
        let alone = self.job(way, Companions::Listed(Arc::default()));
        let first = self.run(&alone, there, there).await;
        match &way.tag.from {
            Some(from) if is_missing(&first) => {
                let complete = self.job(way, Companions::Unlisted);
                self.run(&complete, &from.repository, there).await
            }
            _ => first,
        }
    }

    async fn run(&self, job: &Job, source: &Repository, there: &Repository) -> Completion {
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
        Job {
            key,
            routes: way.tag.routes.clone(),
            rules: TagRules::default(),
            gates: from.map(|from| from.gates.clone()).unwrap_or_default(),
            source: TagState::At(way.to),
            destination: TagState::Unknown,
            destination_via: ObservedVia::Tag,
            source_at: None,
            destination_at: Instant::now(),
            look_began: clock::now(),
            fresh: false,
            cause: Cause::Decision,
            actor: self.actor.clone(),
            explicit: true,
            is_rollback: true,
            ends_when_moved: false,
            pinned: Some(way.to),
            expect: None,
            replace: Some(way.production),
            dry_run: false,
            refused: Arc::default(),
            pushed: None,
            pushers: BTreeSet::new(),
            companions,
            rank: Rank::Named,
            max_wait: LONG_WAIT,
        }
    }

    async fn settle(&self, way: &Way, completion: Completion) {
        let job = self.job(way, Companions::Unlisted);
        let there = &way.tag.there;
        let from = way.tag.from.as_ref();
        let source = from.map_or(there, |from| &from.repository);
        let names = Names {
            source: format!("{}:{}", source.address(), job.key.tag),
            destination: way.tag.shown(),
            registry: there.registry().into(),
        };
        let settle = Settle {
            facts: Arc::new(self.facts()),
            progress: Arc::default(),
            listener: None,
        };
        self.topology
            .engine
            .settle(&settle, &job, &names, completion)
            .await;
    }

    fn facts(&self) -> RunFacts {
        RunFacts {
            run_id: run_id(),
            ..(*self.topology.facts).clone()
        }
    }

    /// Ends decisions that are over.
    async fn end(&self, ids: Vec<u64>, why: &str) -> Result<(), Fault> {
        let ended = self.ledger.end_decisions(ids, why, self.facts());
        ended.await.map(drop)
    }
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
