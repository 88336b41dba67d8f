//! Decisions that the daemon is asked for: the rights that they need, their targets, and the looks
//! that they wake.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::watch as channel;
use tokio::time::sleep;

use crate::admin::{DecisionAnswer, DecisionHandler, DecisionRequest, Refusal};
use crate::clock;
use crate::commands::resolve::{Resolved, Unresolved, resolve};
use crate::decision::{
    Decision, Kind, NotATarget, Numbered, Principal, RefusedDecision, Right, Target, until,
};
use crate::fault::{Fault, clip};
use crate::job::{Actor, Cause, Remarks, TagId};
use crate::ledger::Ledger;
use crate::look::PassOptions;
use crate::look::topology::Topology;
use crate::watch::{Handle, Scope};

/// Tags that an answer or a log line names at most.
const MOST_NAMED: usize = 100;

/// With what decisions are carried out.
#[derive(Clone)]
struct Decider {
    ledger: Ledger,
    topology: channel::Receiver<Arc<Topology>>,
    watch: Handle,
}

/// What `POST /v1/decisions` is served with.
pub(super) fn handler(
    ledger: &Ledger,
    topology: channel::Receiver<Arc<Topology>>,
    watch: Handle,
) -> DecisionHandler {
    let decider = Decider {
        ledger: ledger.clone(),
        topology,
        watch,
    };
    Arc::new(move |request, principal| {
        let decider = decider.clone();
        async move { decider.decide(request, principal).await }.boxed()
    })
}

impl Decider {
    async fn decide(
        &self,
        request: DecisionRequest,
        principal: Principal,
    ) -> Result<DecisionAnswer, Refusal> {
        let topology = self.topology.borrow().clone();
        let actor = Actor::named(principal.name.clone()).saying(Remarks {
            reason: request.reason.clone(),
            claimed_actor: request.actor.clone(),
        });
        let decided = self.decided(&topology, &request, &principal, actor.clone());
        let refusal = match decided.await {
            Ok((answer, resolved)) => {
                tracing::info!(
                    decision = answer.decision.id,
                    kind = %answer.decision.kind,
                    target = answer.decision.decision.shown_target(),
                    %actor,
                    "decided"
                );
                self.wake(&topology, &resolved, &actor).await;
                return Ok(answer);
            }
            Err(refusal) => refusal,
        };
        if matches!(refusal.status, StatusCode::FORBIDDEN | StatusCode::CONFLICT) {
            self.record_refusal(&topology, &request, &refusal, actor)
                .await;
        }
        Err(refusal)
    }

    async fn decided(
        &self,
        topology: &Topology,
        request: &DecisionRequest,
        principal: &Principal,
        actor: Actor,
    ) -> Result<(DecisionAnswer, Resolved), Refusal> {
        let target: Target = request
            .target
            .as_deref()
            .unwrap_or_default()
            .parse()
            .map_err(|error: NotATarget| Refusal::bad_request(error.to_string()))?;
        if request.kind == Kind::Release {
            return self
                .release(topology, request, target, principal, actor)
                .await;
        }
        if request.id.is_some() {
            return Err(Refusal::bad_request("`id` is for a release alone"));
        }
        let resolved = resolve(target, topology)?;
        may(principal, request.kind.right(), &resolved.routes)?;
        check(request, &resolved.target)?;
        let decision = Decision {
            until: end(request)?,
            ..Decision::about(&resolved.target, actor)
        };
        let facts = (*topology.facts).clone();
        let recorded = self.ledger.decide(request.kind, decision, facts).await?;
        let on_their_way = recorded.on_their_way.iter().take(MOST_NAMED);
        let answer = DecisionAnswer {
            decision: recorded.decision,
            on_their_way: on_their_way.map(shown).collect(),
        };
        Ok((answer, resolved))
    }

    async fn release(
        &self,
        topology: &Topology,
        request: &DecisionRequest,
        target: Target,
        principal: &Principal,
        actor: Actor,
    ) -> Result<(DecisionAnswer, Resolved), Refusal> {
        if request.until.is_some() {
            return Err(Refusal::bad_request("a release has no `until`"));
        }
        if request.id.is_some() && request.target.is_some() {
            return Err(Refusal::bad_request("give `id` or `target`, not both"));
        }
        let in_force = self.ledger.in_force().await?;
        let ended = in_force.ended_by(request.id, &target);
        let mut routes = Vec::new();
        for numbered in &ended {
            // A decision about a removed route needs the right to release everything.
            let covered = resolve(numbered.target.clone(), topology);
            let covered = covered.map(|resolved| resolved.routes).unwrap_or_default();
            may(principal, numbered.kind.right(), &covered)?;
            routes.extend(covered);
        }
        let about = ended.first().map(|numbered| numbered.target.clone());
        let ids: Vec<u64> = ended.iter().map(|numbered| numbered.id).collect();
        let about = about.ok_or_else(|| nothing_in_force(request, &target))?;
        let decision = Decision::about(&about, actor);
        let facts = (*topology.facts).clone();
        let released = self.ledger.release(ids, decision, facts).await?;
        let released = released.ok_or_else(|| nothing_in_force(request, &target))?;
        let answer = DecisionAnswer {
            decision: released,
            on_their_way: Vec::new(),
        };
        let resolved = Resolved {
            target: about,
            routes,
        };
        Ok((answer, resolved))
    }

    async fn record_refusal(
        &self,
        topology: &Topology,
        request: &DecisionRequest,
        refusal: &Refusal,
        actor: Actor,
    ) {
        let target = match request.id {
            Some(id) => format!("decision {id}"),
            None => request.target.clone().unwrap_or_default(),
        };
        tracing::warn!(
            kind = %request.kind,
            target,
            %actor,
            reason = refusal.text,
            "a decision was refused"
        );
        let refused = RefusedDecision {
            decision: request.kind,
            target: clip(&target, 600),
            text: refusal.text.clone(),
            actor,
        };
        let facts = (*topology.facts).clone();
        if let Err(fault) = self.ledger.refuse_decision(refused, facts).await {
            tracing::error!(error = %fault.chain(), "the ledger could not be written");
        }
    }

    /// Asks for a look at what a decision is about.
    async fn wake(&self, topology: &Topology, resolved: &Resolved, actor: &Actor) {
        let scope = scope(topology, resolved);
        let asked = self.watch.ask(
            scope,
            Cause::Decision,
            actor.clone(),
            PassOptions::default(),
        );
        if let Err(error) = asked.await {
            tracing::warn!(%error, "a decision woke no look; the next poll sees it");
        }
    }
}

/// What is looked at because of a decision.
fn scope(topology: &Topology, resolved: &Resolved) -> Scope {
    let keeps_names = |name: &Arc<str>| {
        let route = topology.route(name);
        route.is_some_and(|route| route.to.iter().all(|to| to.naming().keeps()))
    };
    let tag = resolved.target.tag();
    let tag = tag.filter(|_| resolved.routes.iter().all(keeps_names));
    Scope {
        routes: resolved.routes.iter().map(ToString::to_string).collect(),
        tags: tag.cloned().into_iter().collect(),
        ..Scope::default()
    }
}

/// Looks at what a decision was about once that has ended by itself, until dropped.
pub(super) async fn wake_at_ends(
    ledger: Ledger,
    topology: channel::Receiver<Arc<Topology>>,
    watch: Handle,
) {
    let decider = Decider {
        ledger,
        topology,
        watch,
    };
    let mut version = decider.ledger.decisions_version();
    loop {
        let in_force = decider.ledger.known_decisions();
        let now = clock::now();
        let next = in_force.next_end(now);
        let wait = next.map(|end| end.duration_since(now).unsigned_abs());
        let ended = async {
            match wait {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = version.changed() => if changed.is_err() { return },
            () = ended => decider.ended(&in_force.decisions, next).await,
        }
    }
}

impl Decider {
    async fn ended(&self, decisions: &[Numbered], end: Option<Timestamp>) {
        let topology = self.topology.borrow().clone();
        for numbered in decisions.iter().filter(|one| one.decision.until == end) {
            tracing::info!(
                decision = numbered.id,
                kind = %numbered.kind,
                target = numbered.decision.shown_target(),
                "the decision has ended"
            );
            if let Ok(resolved) = resolve(numbered.target.clone(), &topology) {
                self.wake(&topology, &resolved, &Actor::daemon()).await;
            }
        }
    }
}

/// Whether a principal has a right over what covers these routes.
fn may(principal: &Principal, right: Option<Right>, routes: &[Arc<str>]) -> Result<(), Refusal> {
    let forbidden = |text: String| Refusal::new(StatusCode::FORBIDDEN, "no_right", text);
    if let Some(right) = right.filter(|right| !principal.rights.has(*right)) {
        let name = &principal.name;
        return Err(forbidden(format!("{name} has not the right `{right}`")));
    }
    if !principal.may_decide_on(routes) {
        let about = if routes.is_empty() {
            "more than the routes of its token".to_owned()
        } else {
            format!("routes {}", routes.join(", "))
        };
        let name = &principal.name;
        return Err(forbidden(format!("{name} may not decide about {about}")));
    }
    Ok(())
}

/// What a kind of decision needs.
fn check(request: &DecisionRequest, target: &Target) -> Result<(), Refusal> {
    if request.kind == Kind::Deny && target.digest().is_none() {
        let text = "a denial is of a digest: the `sha256:…` of a manifest, a config or a layer";
        return Err(Refusal::bad_request(text));
    }
    if request.kind.needs_reason() && request.reason.is_none() {
        let text = format!("`{}` needs a `reason`", request.kind);
        return Err(Refusal::bad_request(text));
    }
    Ok(())
}

fn end(request: &DecisionRequest) -> Result<Option<Timestamp>, Refusal> {
    let read = |text: &String| until(text, clock::now());
    request
        .until
        .as_ref()
        .map(read)
        .transpose()
        .map_err(|error| Refusal::bad_request(format!("`until`: {error}")))
}

fn nothing_in_force(request: &DecisionRequest, target: &Target) -> Refusal {
    let text = match request.id {
        Some(id) => format!("no decision {id} is in force"),
        None if *target == Target::Everything => {
            "no decision about everything is in force (`blobferry status` lists those that are)"
                .into()
        }
        None => format!(
            "no decision in force has exactly the target {target} (`blobferry status` lists them)"
        ),
    };
    Refusal::new(StatusCode::NOT_FOUND, "not_in_force", text)
}

fn shown(place: &TagId) -> String {
    format!("{}/{}:{}", place.origin, place.repository, place.tag)
}

impl From<Unresolved> for Refusal {
    fn from(unresolved: Unresolved) -> Refusal {
        let text = unresolved.to_string();
        match unresolved {
            Unresolved::Ambiguous { .. } => Refusal::bad_request(text),
            Unresolved::NotThere { .. } => {
                Refusal::new(StatusCode::NOT_FOUND, "unknown_target", text)
            }
        }
    }
}

/// Says in the log which production tags name a denied digest, until dropped.
pub(super) async fn watch_denied(ledger: Ledger, show: impl Fn(usize)) {
    let mut version = ledger.decisions_version();
    let mut told = Vec::new();
    loop {
        match ledger.denied_in_production().await {
            Ok(denied) => {
                show(denied.len());
                for tag in denied
                    .iter()
                    .filter(|tag| !told.contains(*tag))
                    .take(MOST_NAMED)
                {
                    tracing::warn!(
                        tag = shown(&tag.place),
                        digest = %tag.digest,
                        "production names a denied digest"
                    );
                }
                told = denied;
            }
            Err(fault) => tracing::debug!(error = %Fault::chain(&fault), "the ledger was not read"),
        }
        let pause = sleep(Duration::from_secs(15));
        tokio::select! {
            biased;
            changed = version.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}
