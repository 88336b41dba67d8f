//! What a decision takes: the right over what it is about, and the parts that its kind has.

use std::sync::Arc;

use axum::http::StatusCode;
use jiff::Timestamp;

use crate::admin::{DecisionRequest, Refusal};
use crate::clock;
use crate::commands::Undecided;
use crate::commands::resolve::{Resolved, resolve};
use crate::decision::{Kind, Principal, Right, Target, until};
use crate::job::GateKind;
use crate::look::topology::Topology;
use crate::oci::Digest;
use crate::route::Route;

/// Whether a principal has a right over what covers these routes.
pub(super) fn may(
    principal: &Principal,
    right: Option<Right>,
    routes: &[Arc<str>],
) -> Result<(), Refusal> {
    let forbidden = |text: String| Refusal::new(StatusCode::FORBIDDEN, "no_right", text);
    if let Some(right) = right.filter(|right| !principal.rights.has(*right)) {
        let name = &principal.name;
        return Err(forbidden(format!(
            "{name} has not the right `{right}`: add it to `may` of its token"
        )));
    }
    if !principal.may_decide_on(routes) {
        let about = if routes.is_empty() {
            "more than the routes of its token".to_owned()
        } else {
            format!("routes {}", routes.join(", "))
        };
        let name = &principal.name;
        return Err(forbidden(format!(
            "{name} may not decide about {about}: see `routes` of its token"
        )));
    }
    Ok(())
}

/// What the target of a decision means, where the principal may decide on that and nothing is
/// missing.
pub(super) fn permitted(
    topology: &Topology,
    request: &DecisionRequest,
    target: Target,
    principal: &Principal,
) -> Result<Resolved, Refusal> {
    let resolved = resolve(target, topology)?;
    may(principal, request.kind.right(), &resolved.routes)?;
    if !request.despite.is_empty() {
        may(principal, Some(Right::Override), &resolved.routes)?;
    }
    check(request, &resolved.target)?;
    Ok(resolved)
}

/// Refuses what a kind of decision does not have.
pub(super) fn fits(request: &DecisionRequest) -> Result<(), Refusal> {
    let is_accept = request.kind == Kind::Accept;
    let is_approve = request.kind == Kind::Approve;
    let has_digests = is_accept || is_approve;
    let foreign = [
        ("digest", request.digest.is_some() && !has_digests),
        ("replaces", request.replaces.is_some() && !has_digests),
        ("despite", !request.despite.is_empty() && !is_approve),
        ("to", request.to.is_some() && request.kind != Kind::Rollback),
        ("all", request.all && !is_accept),
    ];
    match foreign.into_iter().find(|(_, is_foreign)| *is_foreign) {
        Some((key, _)) => {
            let kind = request.kind;
            Err(Refusal::bad_request(format!("`{kind}` has no `{key}`")))
        }
        None => Ok(()),
    }
}

/// What a kind of decision needs.
fn check(request: &DecisionRequest, target: &Target) -> Result<(), Refusal> {
    if request.kind == Kind::Deny && target.digest().is_none() {
        let text = "a denial is of a digest: the `sha256:…` of a manifest, a config or a layer";
        return Err(Refusal::bad_request(text));
    }
    if request.all {
        let is_route = matches!(target, Target::Route(_));
        let names_digests = request.digest.is_some() || request.replaces.is_some();
        if !is_route || names_digests {
            let text = "`all` is for a target `route:NAME`, without digests";
            return Err(Refusal::bad_request(text));
        }
    }
    let needs_reason = request.kind.needs_reason() || !request.despite.is_empty();
    if needs_reason && request.reason.is_none() {
        let text = match request.despite.is_empty() {
            true => format!("`{}` needs a `reason`", request.kind),
            false => "`despite` needs a `reason`".into(),
        };
        return Err(Refusal::bad_request(text));
    }
    Ok(())
}

pub(super) fn end(request: &DecisionRequest) -> Result<Option<Timestamp>, Refusal> {
    let read = |text: &String| until(text, clock::now());
    request
        .until
        .as_ref()
        .map(read)
        .transpose()
        .map_err(|error| Refusal::bad_request(format!("`until`: {error}")))
}

pub(super) fn not_in_force(text: String) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_in_force", text)
}

/// Refuses to pass gates that none of the routes has.
pub(super) fn are_gates_of(
    routes: &[Arc<str>],
    despite: &[GateKind],
    topology: &Topology,
) -> Result<(), Refusal> {
    let found = routes.iter().filter_map(|name| topology.route(name));
    let mut gates: Vec<GateKind> = found.flat_map(Route::gate_kinds).collect();
    gates.sort();
    gates.dedup();
    let foreign = despite.iter().find(|gate| !gates.contains(gate));
    let Some(foreign) = foreign else {
        return Ok(());
    };
    let routes = routes.join(", ");
    let gates: Vec<&str> = gates.iter().map(|gate| gate.name()).collect();
    let gates = match gates.as_slice() {
        [] => "it has none".to_owned(),
        gates => format!("its gates are {}", gates.join(", ")),
    };
    let text = format!("`despite`: route {routes} has no gate `{foreign}`; {gates}");
    Err(Refusal::bad_request(text))
}

/// Refuses where a side names another digest than the one that was decided about.
pub(super) fn is_as_named(
    side: &str,
    named: Option<Digest>,
    found: Option<Digest>,
) -> Result<(), Undecided> {
    let Some(named) = named.filter(|named| Some(*named) != found) else {
        return Ok(());
    };
    let found = found.map_or_else(|| "nothing".to_owned(), |found| found.to_string());
    let text = format!("{side} names {found}, not {named}: look again");
    Err(Undecided::Conflict(text))
}
