//! `POST /v1/copies`: copies and promotions for a command line, over the control socket alone. The
//! daemon locks its state folder, so a command of its own could not record what it wrote.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::App;
use super::access::{AuthContext, Peer};
use super::answer::Refusal;
use super::request_body;
use super::sync::acquire_wait_permit;
use crate::job::{Actor, Remarks, Report};
use crate::oci::Digest;

/// What is to be copied or promoted.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    /// A copy of one reference; else a promotion.
    pub copy: bool,
    /// References, in pairs of source and destination.
    pub images: Vec<(String, String)>,
    /// Every tag of each source.
    pub all_tags: bool,
    /// Only this digest.
    pub expect: Option<Digest>,
    /// The digest that a fixed tag may lose.
    pub replace: Option<Digest>,
    /// Plan, but touch nothing.
    pub dry_run: bool,
    /// What the caller says of itself and of the act.
    pub remarks: Remarks,
}

/// Makes what is ordered; dropped, it stops.
pub type CopyHandler =
    Arc<dyn Fn(CopyRequest, Actor) -> BoxFuture<'static, Result<Report, Refusal>> + Send + Sync>;

/// `POST /v1/copies`.
pub(super) async fn copies(
    State(app): State<Arc<App>>,
    Extension(context): Extension<AuthContext>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Result<Response, Refusal> {
    let Peer::Socket { .. } = context.peer else {
        let text =
            "copies are ordered over the control socket only: run `blobferry copy` on this machine";
        return Err(Refusal::forbidden("socket_only", text));
    };
    let _permit = acquire_wait_permit(&app, context.peer)?;
    let body = request_body::collected(&app, request.into_body()).await?;
    let request: CopyRequest = request_body::json(&body)?;
    let actor = actor.saying(request.remarks.clone());
    let report = (app.services.copies)(request, actor).await?;
    Ok(Json(report).into_response())
}
