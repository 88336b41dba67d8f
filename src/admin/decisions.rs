//! Decisions: `POST /v1/decisions` and `GET /v1/decisions`.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::App;
use super::access::{AuthContext, Peer};
use super::answer::Refusal;
use super::request_body;
use crate::decision::{Kind, Numbered, Principal};
use crate::job::{GateKind, Remark};
use crate::ledger;
use crate::oci::Digest;

/// Tags that an answer names at most.
const MOST_NAMED: usize = 100;
/// Rows in one answer at most.
const MOST_ROWS: u32 = 1000;

/// What a person orders.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionRequest {
    /// What is ordered.
    pub kind: Kind,
    /// What it is about; absent: everything.
    #[serde(default)]
    pub target: Option<String>,
    /// Of a release: the number of the decision to end, instead of a target.
    #[serde(default)]
    pub id: Option<u64>,
    /// Of an approve and an accept: what staging names.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// Of an approve and an accept: what production names.
    #[serde(default)]
    pub replaces: Option<Digest>,
    /// Of a rollback: the digest to go back to.
    #[serde(default)]
    pub to: Option<Digest>,
    /// Of an approve: gates that are passed although they are not met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub despite: Vec<GateKind>,
    /// Of an accept: all existing tags of the route that the target names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// When it ends: a time or a duration.
    #[serde(default)]
    pub until: Option<String>,
    /// The reason of the act.
    #[serde(default)]
    pub reason: Option<Remark>,
    /// The name that the caller gives itself.
    #[serde(default)]
    pub actor: Option<Remark>,
}

/// A decision that was recorded.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DecisionAnswer {
    /// The decision.
    #[serde(flatten)]
    pub decision: Numbered,
    /// Tag writes that were sent earlier and have no answer yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_their_way: Vec<String>,
    /// Of a denial: the digests of content that was sent earlier and has no answer yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<String>,
    /// Of an approval and an accept: the decisions and gates that keep the tag from moving for now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<String>,
    /// Of an accept of a route: how many tags it covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<u64>,
}

impl DecisionAnswer {
    /// A decision with the tags that may still move.
    pub fn recorded(recorded: ledger::Recorded) -> DecisionAnswer {
        let on_their_way = recorded.on_their_way.iter().take(MOST_NAMED);
        let carried = recorded.carried.iter().take(MOST_NAMED);
        DecisionAnswer {
            on_their_way: on_their_way.map(ToString::to_string).collect(),
            carried: carried.map(ToString::to_string).collect(),
            ..DecisionAnswer::of(recorded.decision)
        }
    }

    /// A decision that no tag is on its way against.
    pub fn of(decision: Numbered) -> DecisionAnswer {
        DecisionAnswer {
            decision,
            on_their_way: Vec::new(),
            carried: Vec::new(),
            held_by: Vec::new(),
            tags: None,
        }
    }
}

/// Carries decisions out.
pub type DecisionHandler = Arc<
    dyn Fn(DecisionRequest, Principal) -> BoxFuture<'static, Result<DecisionAnswer, Refusal>>
        + Send
        + Sync,
>;

/// `POST /v1/decisions`.
pub(super) async fn decide(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    Extension(context): Extension<AuthContext>,
    request: Request,
) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let body = request_body::collected(&app, body).await?;
    let request: DecisionRequest = request_body::json_object(&head.headers, &body)?;
    // The command line prints the digest that it approves; others say which one they have seen.
    let is_remote = matches!(context.peer, Peer::Tcp(_));
    if request.kind == Kind::Approve && request.digest.is_none() && is_remote {
        let text = "`approve` names the `digest` that is approved";
        return Err(Refusal::bad_request(text));
    }
    let answer = (app.services.decisions)(request, principal).await?;
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// What `GET /v1/decisions` is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    in_force: bool,
}

/// `GET /v1/decisions`.
pub(super) async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Refusal> {
    let Query(asked) = Query::<Asked>::try_from_uri(&uri)
        .map_err(|error| Refusal::bad_request(error.body_text()))?;
    if asked.in_force {
        app.services.ledger.in_force().await?;
        let decisions = app.services.ledger.holding();
        return Ok(Json(json!({"decisions": decisions})).into_response());
    }
    let query = ledger::Query {
        limit: MOST_ROWS,
        newest_first: true,
        since: None,
        only_decisions: true,
        ..ledger::Query::default()
    };
    let rows = app.services.ledger.page(query).await?;
    Ok(Json(json!({"decisions": rows})).into_response())
}
