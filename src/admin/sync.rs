//! Triggers and passes: `POST /v1/sync` and `GET /v1/runs/ID`.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http_body::Body as _;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::access::{AuthContext, Peer};
use super::answer::Refusal;
use super::request_body;
use crate::fault::clip;
use crate::job::{Actor, Cause, Remark, Remarks, Report, Trouble};
use crate::look::PassOptions;
use crate::oci::{Digest, RepositoryName, Tag};
use crate::watch::{Busy, Run, Scope};

/// Names in one list at most.
const MOST_NAMES: usize = 256;
/// Characters of the list of known routes that a refusal shows.
const MOST_NAMED: usize = 500;

/// The body of `POST /v1/sync`; without one, everything is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SyncRequest {
    /// A route's name, or a list of them.
    #[serde(deserialize_with = "one_or_many")]
    route: Vec<String>,
    repository: Option<RepositoryName>,
    /// A tag, or a list of them.
    #[serde(deserialize_with = "one_or_many")]
    tag: Vec<Tag>,
    /// What the tag is expected to name.
    digest: Option<Digest>,
    /// Answer when all looks have settled.
    wait: bool,
    dry_run: bool,
    all: bool,
    /// The name that the caller gives itself.
    actor: Option<Remark>,
    /// The reason of the act.
    reason: Option<Remark>,
}

/// `POST /v1/sync`.
pub(super) async fn sync(
    State(app): State<Arc<App>>,
    Extension(context): Extension<AuthContext>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Result<Response, Refusal> {
    let body = read(&app, request)
        .await
        .inspect_err(|refusal| count(&app, context.peer, refusal))?;
    let place = if body.wait {
        Some(acquire_wait_permit(&app, context.peer)?)
    } else {
        None
    };
    let cause = cause(context.peer);
    let options = PassOptions {
        dry_run: body.dry_run,
        all: body.all,
        waits: body.wait,
    };
    let missing = missing(&app, &body);
    let nothing = nothing_matches(&missing, body.repository.as_ref());
    let actor = actor.saying(Remarks {
        reason: body.reason,
        claimed_actor: body.actor,
    });
    let scope = Scope {
        routes: body.route,
        repository: body.repository,
        tags: body.tag,
        digest: body.digest,
    };
    let ticket = app.services.watch.ask(scope, cause, actor, options).await?;
    if place.is_some() {
        let is_empty = ticket.run.queued == 0 && missing.is_empty();
        let report = ticket.settled().await.ok_or_else(Refusal::draining)?;
        let missing = if is_empty {
            vec![Trouble::not_found(nothing)]
        } else {
            missing
        };
        return Ok(settled(&Report::clone(&report).with_missing(missing)));
    }
    queued(&ticket.run, nothing)
}

fn cause(peer: Peer) -> Cause {
    match peer {
        Peer::Tcp(_) => Cause::Ping,
        Peer::Socket { .. } => Cause::Cli,
    }
}

/// Counts a request with a body that could not be read.
fn count(app: &App, peer: Peer, refusal: &Refusal) {
    let result = if refusal.status == StatusCode::PAYLOAD_TOO_LARGE {
        "too_large"
    } else {
        "malformed"
    };
    app.services.watch.count(cause(peer), result);
}

/// `GET /v1/runs/ID`.
pub(super) async fn run(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    let Path(id) = id.map_err(|_| unknown_run())?;
    let run = app.services.watch.run(&id).ok_or_else(unknown_run)?;
    Ok(match run.report() {
        Some(report) => Json(&*report).into_response(),
        None => {
            let body = json!({
                "run_id": run.id,
                "queued": run.queued,
                "done": false,
            });
            (StatusCode::ACCEPTED, Json(body)).into_response()
        }
    })
}

fn unknown_run() -> Refusal {
    let text = "no such run; only the newest are remembered";
    Refusal::new(StatusCode::NOT_FOUND, "unknown_run", text)
}

impl From<Busy> for Refusal {
    fn from(busy: Busy) -> Refusal {
        match busy {
            Busy::Draining => Refusal::draining(),
            Busy::Full => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", busy.to_string()),
        }
    }
}

/// Routes and repositories that were named and that the config does not have.
fn missing(app: &App, body: &SyncRequest) -> Vec<Trouble> {
    let status = app.services.watch.board().snapshot();
    let names: Vec<&str> = status
        .routes
        .iter()
        .map(|route| route.name.as_str())
        .collect();
    let unknown = body
        .route
        .iter()
        .filter(|name| !names.contains(&name.as_str()));
    let known = clip(&names.join(", "), MOST_NAMED);
    unknown
        .map(|name| {
            let name = clip(name, 128);
            let text = format!("there is no route \"{name}\" (the config has: {known})");
            Trouble::not_found(text)
        })
        .collect()
}

/// What is said when no look was queued.
fn nothing_matches(missing: &[Trouble], repository: Option<&RepositoryName>) -> String {
    match (missing.first(), repository) {
        (Some(missing), _) => missing.text.clone(),
        (None, Some(name)) => {
            format!("no route has the source repository {name}; `GET /v1/status` lists the routes")
        }
        (None, None) => "no route has a source repository; `GET /v1/status` shows why".into(),
    }
}

fn queued(run: &Run, nothing: String) -> Result<Response, Refusal> {
    if run.queued == 0 {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "nothing_matched",
            nothing,
        ));
    }
    let location = [(header::LOCATION, format!("/v1/runs/{}", run.id))];
    Ok((
        StatusCode::ACCEPTED,
        location,
        Json(json!({"run_id": run.id, "queued": run.queued})),
    )
        .into_response())
}

/// A report that was waited for: its exit code as a status.
fn settled(report: &Report) -> Response {
    let status = match report.exit_code {
        0 => StatusCode::OK,
        4 => StatusCode::CONFLICT,
        5 => StatusCode::NOT_FOUND,
        130 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    (status, Json(report)).into_response()
}

pub(super) fn acquire_wait_permit(app: &App, peer: Peer) -> Result<OwnedSemaphorePermit, Refusal> {
    let places = match peer {
        Peer::Tcp(_) => &app.waiting_tcp,
        Peer::Socket { .. } => &app.waiting_socket,
    };
    places.clone().try_acquire_owned().map_err(|_| {
        let text = "too many requests are waiting for their pass; ask without `wait` and follow `/v1/runs/ID`";
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", text)
    })
}

async fn read(app: &App, request: Request) -> Result<SyncRequest, Refusal> {
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return Ok(SyncRequest::default());
    }
    let body = request_body::collected(app, body).await?;
    if body.is_empty() {
        return Ok(SyncRequest::default());
    }
    let body: SyncRequest = request_body::json_object(&head.headers, &body)?;
    if body.digest.is_some() && body.tag.len() != 1 {
        return Err(Refusal::bad_request(
            "`digest` says what one tag should name: give one `tag` with it",
        ));
    }
    Ok(body)
}

fn one_or_many<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "`route` and `tag` are a name or a list of names"
    )]
    enum Names {
        None(()),
        One(String),
        Many(Vec<String>),
    }
    let names = match Names::deserialize(deserializer)? {
        Names::None(()) => Vec::new(),
        Names::One(name) => vec![name],
        Names::Many(names) => names,
    };
    if names.len() > MOST_NAMES {
        return Err(serde::de::Error::custom(format!(
            "at most {MOST_NAMES} names at once"
        )));
    }
    names
        .iter()
        .map(|name| name.parse().map_err(serde::de::Error::custom))
        .collect()
}
