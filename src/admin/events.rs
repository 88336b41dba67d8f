//! `POST /v1/events/NAME`: notifications of registries.
//!
//! | answer | when |
//! |---|---|
//! | 202 | taken, also when no route has the repository |
//! | 200 | a handshake of the sender, and OPTIONS |
//! | 400 | not what the kind of the receiver sends |
//! | 401 | the proof of the sender is missing or wrong |
//! | 404 | no receiver of that name |
//! | 408, 413 | the body takes too long or is too large |
//! | 429 | more deliveries in a second than the receiver takes |
//! | 503 | the daemon drains, too much waits, or the keys of the sender's issuer cannot be read |
//!
//! A proof that does not cover the body is checked before the body is read. Only authenticated
//! deliveries count towards the limit, so a stranger uses up nothing of it. No text of a delivery
//! is logged or answered, and the query, which may hold a secret, is never shown.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http_body::Body as _;
use serde_json::json;
use tokio::sync::Semaphore;

use super::App;
use super::access::UNVERIFIABLE;
use super::answer::Refusal;
use super::receivers::Receiver;
use super::request_body;
use crate::clock;
use crate::job::Cause;
use crate::watch::receiver::secret::Unverified;
use crate::watch::receiver::settings::Refused;
use crate::watch::receiver::{Delivery, Handshake, Push};

/// Bytes of a delivery at most.
const MOST_BODY: usize = 1 << 20;
/// Bytes of a body that need no permit.
const SMALL_BODY: usize = 64 << 10;
/// What a CloudEvents sender asks permission for.
/// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection>
const REQUEST_ORIGIN: &str = "webhook-request-origin";

/// `POST /v1/events/NAME`.
pub(super) async fn receive(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let receiver = named(&app, name)?;
    let (head, body) = request.into_parts();
    let delivery = deliver(&app, &receiver, &head, body)
        .await
        .inspect_err(|refusal| count(&app, refusal))?;
    let settings = &receiver.settings;
    match delivery {
        Delivery::Handshake(handshake) => Ok(greeted(handshake)),
        Delivery::Ignored(reason) => {
            app.services.watch.count(Cause::Webhook, "ignored");
            Ok(accepted(json!({"ignored": reason})))
        }
        Delivery::Pushes(pushes) => {
            let principal = format!("receiver:{}", settings.name);
            for push in Push::merged(pushes) {
                let watch = &app.services.watch;
                watch
                    .notify(&settings.notifier, Cause::Webhook, &principal, push)
                    .await?;
            }
            Ok(accepted(json!({"accepted": true})))
        }
    }
}

/// `OPTIONS /v1/events/NAME`: a CloudEvents sender asks whether it may send.
pub(super) async fn permit(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let receiver = named(&app, name)?;
    let mut permitted = HeaderMap::new();
    permitted.insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    if let Some(origin) = headers.get(REQUEST_ORIGIN) {
        let per_minute = u64::from(receiver.settings.limit) * 60;
        permitted.insert("webhook-allowed-origin", origin.clone());
        permitted.insert("webhook-allowed-rate", per_minute.into());
    }
    Ok((StatusCode::OK, permitted).into_response())
}

fn named(app: &App, name: Result<Path<String>, PathRejection>) -> Result<Arc<Receiver>, Refusal> {
    let Path(name) = name.map_err(|_| unknown_receiver())?;
    app.receivers.named(&name).ok_or_else(unknown_receiver)
}

fn unknown_receiver() -> Refusal {
    let text = "there is no receiver of that name: see `receivers` in the config";
    Refusal::new(StatusCode::NOT_FOUND, "unknown_receiver", text)
}

/// An authenticated delivery within the limit.
async fn deliver(
    app: &App,
    receiver: &Receiver,
    head: &Parts,
    body: Body,
) -> Result<Delivery, Refusal> {
    let settings = &receiver.settings;
    if !settings.signs_body() {
        settings.authenticate(unverified(head, b"")).await?;
    }
    let body = request_body::in_time(app, collected(&receiver.large_bodies, body)).await?;
    if settings.signs_body() {
        settings.authenticate(unverified(head, &body)).await?;
    }
    if !receiver.admits() {
        let text = format!(
            "more than {} notifications in a second for this receiver (`limit`): send it again",
            settings.limit
        );
        let status = StatusCode::TOO_MANY_REQUESTS;
        return Err(Refusal::new(status, "limited", text));
    }
    settings
        .kind
        .read(&head.headers, &body)
        .map_err(|malformed| Refusal::bad_request(malformed.to_string()))
}

fn unverified<'a>(head: &'a Parts, body: &'a [u8]) -> Unverified<'a> {
    Unverified {
        headers: &head.headers,
        query: head.uri.query(),
        body,
        arrived: clock::now(),
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        let (status, code) = match refused.may_pass() {
            true => (StatusCode::SERVICE_UNAVAILABLE, UNVERIFIABLE),
            false => (StatusCode::UNAUTHORIZED, "unauthenticated"),
        };
        Refusal::new(status, code, refused.to_string())
    }
}

/// Counts a delivery that was refused. The watch counts those that it refuses itself.
fn count(app: &App, refusal: &Refusal) {
    let result = match refusal.status {
        StatusCode::SERVICE_UNAVAILABLE if refusal.code == UNVERIFIABLE => UNVERIFIABLE,
        StatusCode::UNAUTHORIZED => "unauthenticated",
        StatusCode::PAYLOAD_TOO_LARGE => "too_large",
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => "limited",
        _ => "malformed",
    };
    app.services.watch.count(Cause::Webhook, result);
    tracing::debug!(code = refusal.code, "notification refused");
}

fn too_large() -> Refusal {
    let text = format!("a notification has at most {MOST_BODY} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text)
}

/// The body. Beyond [`SMALL_BODY`] it needs a permit, so that strangers cannot fill the memory.
async fn collected(large: &Semaphore, body: Body) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > MOST_BODY as u64 {
        return Err(too_large());
    }
    let mut frames = body.into_data_stream();
    let mut read = BytesMut::new();
    let mut permit = None;
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|_| Refusal::bad_request("the body broke off: send it again"))?;
        if read.len() + frame.len() > MOST_BODY {
            return Err(too_large());
        }
        if read.len() + frame.len() > SMALL_BODY && permit.is_none() {
            permit = Some(large.acquire().await.map_err(|_| {
                let text = "too many large notifications at once; send it again";
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", text)
            })?);
        }
        read.extend_from_slice(&frame);
    }
    Ok(read.freeze())
}

fn greeted(handshake: Handshake) -> Response {
    match handshake {
        Handshake::Ping => Json(json!({"status": "ok"})).into_response(),
        Handshake::Validation(code) => Json(json!({"validationResponse": code})).into_response(),
    }
}

fn accepted(body: serde_json::Value) -> Response {
    (StatusCode::ACCEPTED, Json(body)).into_response()
}
