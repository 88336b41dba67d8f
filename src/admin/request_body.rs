//! Bodies of requests: read in time, bounded, and as JSON objects.

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::App;
use super::answer::Refusal;

/// Bytes of a request's body at most.
const MOST_BODY: usize = 64 << 10;

/// Reads a body of at most 64 KiB.
pub(super) async fn collected(app: &App, body: Body) -> Result<Bytes, Refusal> {
    in_time(app, collect(body)).await
}

/// Reads a body within the time that one may take.
pub(super) async fn in_time(
    app: &App,
    reading: impl Future<Output = Result<Bytes, Refusal>>,
) -> Result<Bytes, Refusal> {
    let deadline = app.deadlines.body;
    timeout(deadline, reading).await.unwrap_or_else(|_| {
        let text = format!(
            "the body took longer than {} s: send it in one piece",
            deadline.as_secs_f64()
        );
        Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", text))
    })
}

/// Reads a JSON object.
pub(super) fn json_object<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<T, Refusal> {
    if !is_json(headers) {
        let text = "a body needs `content-type: application/json`";
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            text,
        ));
    }
    // Serde would take a list of the fields' values as well.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::bad_request(
            "the body is not a JSON object, such as {\"tag\": \"v1\"}",
        ));
    }
    json(body)
}

/// Reads JSON, whatever the headers call it.
pub(super) fn json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the body is not right: {error}")))
}

async fn collect(body: Body) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > MOST_BODY as u64 {
        return Err(too_large());
    }
    match Limited::new(body, MOST_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Refusal::bad_request("the body broke off: send it again")),
    }
}

fn too_large() -> Refusal {
    let text = format!("a body has at most {MOST_BODY} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text)
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("application/json")
}
