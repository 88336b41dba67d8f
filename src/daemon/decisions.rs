//! Decisions that the daemon is asked for: the rights that they need, their targets, and the looks
//! that they wake.

mod accept;
mod approve;
mod checks;
mod follow;
mod held_by;

use std::sync::Arc;

use axum::http::StatusCode;
use futures::FutureExt as _;
use tokio::sync::watch as channel;

use self::checks::{end, fits, may, not_in_force, permitted};
pub(super) use self::follow::{clock_doubt, wake_at_ends, watch_denied};
use crate::admin::{DecisionAnswer, DecisionHandler, DecisionRequest, Refusal};
use crate::commands::release::Released;
use crate::commands::resolve::{Resolved, Unresolved, resolve};
use crate::commands::{Act, Undecided};
use crate::decision::{Decision, Kind, NotATarget, Principal, RefusedDecision, Target};
use crate::fault::clip;
use crate::job::{Actor, Cause, Remarks, TagId};
use crate::ledger::Ledger;
use crate::look::PassOptions;
use crate::look::topology::Topology;
use crate::parts::Parts;
use crate::route::Route;
use crate::transfer::Stop;
use crate::watch::{Handle, Scope};

/// Tags that an answer or a log line names at most.
const MOST_NAMED: usize = 100;

/// With what decisions are carried out.
#[derive(Clone)]
struct Decider {
    ledger: Ledger,
    topology: channel::Receiver<Arc<Topology>>,
    watch: Handle,
    stop: Stop,
}

/// What `POST /v1/decisions` is served with.
pub(super) fn handler(
    parts: &Parts,
    topology: channel::Receiver<Arc<Topology>>,
    watch: Handle,
    stop: Stop,
) -> DecisionHandler {
    let parts = parts.clone();
    let decider = Decider {
        ledger: parts.ledger.clone(),
        topology,
        watch,
        stop,
    };
    Arc::new(move |request, principal| {
        let decider = decider.clone();
        // What has begun ends, whether its caller waits or not.
        let decided = tokio::spawn(async move { decider.decide(request, principal).await });
        let parts = parts.clone();
        async move {
            let ended = decided.await;
            let answer = ended.unwrap_or_else(|_| Err(Refusal::draining()))?;
            if !answer.decision.decision.despite.is_empty() {
                parts.overridden();
            }
            Ok(answer)
        }
        .boxed()
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
        if request.kind != Kind::Release && request.id.is_some() {
            return Err(Refusal::bad_request("`id` is for a release alone"));
        }
        fits(request)?;
        if request.kind == Kind::Release {
            return self
                .release(topology, request, target, principal, actor)
                .await;
        }
        let resolved = permitted(topology, request, target, principal)?;
        let answer = match request.kind {
            Kind::Approve => self.approve(topology, request, &resolved, actor).boxed(),
            Kind::Accept => self.accept(topology, request, &resolved, actor).boxed(),
            Kind::Rollback => self.roll_back(topology, request, &resolved, actor).boxed(),
            Kind::Hold | Kind::Deny | Kind::Release => {
                self.record(topology, request, &resolved, actor).boxed()
            }
        };
        // Boxed to keep the decision's future small.
        Ok((answer.await?, resolved))
    }

    async fn record(
        &self,
        topology: &Topology,
        request: &DecisionRequest,
        resolved: &Resolved,
        actor: Actor,
    ) -> Result<DecisionAnswer, Refusal> {
        let decision = Decision {
            until: end(request)?,
            ..Decision::about(&resolved.target, actor)
        };
        let facts = (*topology.facts).clone();
        let recorded = self.ledger.decide(request.kind, decision, facts).await?;
        Ok(DecisionAnswer::recorded(recorded))
    }

    /// Moves a tag back.
    async fn roll_back(
        &self,
        topology: &Topology,
        request: &DecisionRequest,
        resolved: &Resolved,
        actor: Actor,
    ) -> Result<DecisionAnswer, Refusal> {
        let act = Act::new(topology, &self.ledger, &self.stop, actor);
        let moved = act.roll_back(resolved, request.to, end(request)?).await?;
        self.follow_chain(topology, &moved.place).await;
        Ok(DecisionAnswer::of(moved.decision))
    }

    /// Asks for looks by the routes that read what a rollback has moved.
    async fn follow_chain(&self, topology: &Topology, place: &TagId) {
        let readers = topology.routes_reading(&place.origin, &place.repository);
        let routes: Vec<String> = readers.map(|route| route.name.to_string()).collect();
        if routes.is_empty() {
            return;
        }
        let scope = Scope {
            routes,
            repository: Some(place.repository.clone()),
            tags: vec![place.tag.clone()],
            ..Scope::default()
        };
        self.ask(scope, Cause::Chain, &Actor::daemon()).await;
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
        let release = Released {
            id: request.id,
            target: &target,
            topology: Some(topology),
        };
        let ended = release.of(&in_force);
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
        let ends_nothing = || not_in_force(release.ends_nothing(&in_force));
        let about = about.ok_or_else(ends_nothing)?;
        let decision = Decision::about(&about, actor);
        let facts = (*topology.facts).clone();
        let released = self.ledger.release(ids, decision, facts).await?;
        let released = released.ok_or_else(ends_nothing)?;
        let answer = DecisionAnswer::of(released);
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
        self.ask(scope(topology, resolved), Cause::Decision, actor)
            .await;
    }

    async fn ask(&self, scope: Scope, cause: Cause, actor: &Actor) {
        let options = PassOptions::default();
        let asked = self.watch.ask(scope, cause, actor.clone(), options);
        if let Err(error) = asked.await {
            tracing::warn!(%error, "a decision woke no look; the next poll sees it");
        }
    }
}

/// What is looked at because of a decision.
fn scope(topology: &Topology, resolved: &Resolved) -> Scope {
    let keeps_names = |name: &Arc<str>| topology.route(name).is_some_and(Route::keeps_names);
    let tag = match &resolved.target {
        Target::Set(_, tag) => tag.as_ref(),
        target => target
            .tag()
            .filter(|_| resolved.routes.iter().all(keeps_names)),
    };
    let routes = resolved.routes.iter();
    // What is about a backup tag is about the moving tag that waits for it.
    let backed_up = routes.filter_map(|name| {
        let route = topology.route(name)?;
        route.backed_up(tag?, route.to.first()?.naming())
    });
    Scope {
        routes: resolved.routes.iter().map(ToString::to_string).collect(),
        tags: tag.cloned().into_iter().chain(backed_up).collect(),
        ..Scope::default()
    }
}

impl From<Undecided> for Refusal {
    fn from(undecided: Undecided) -> Refusal {
        let text = undecided.to_string();
        match undecided {
            Undecided::Target(_) => Refusal::bad_request(text),
            Undecided::NotThere(_) => Refusal::new(StatusCode::NOT_FOUND, "not_there", text),
            Undecided::Conflict(_) => Refusal::new(StatusCode::CONFLICT, "conflict", text),
            Undecided::Failed(_) | Undecided::Fault(_) => {
                Refusal::new(StatusCode::BAD_GATEWAY, "failed", text)
            }
        }
    }
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
