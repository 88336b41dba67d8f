//! Answers that are not a route's own: refusals as JSON, and what every answer has in common.

use std::panic::AssertUnwindSafe;

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::routes;
use crate::fault::{Class, Fault, clip};

/// A request that is not fulfilled: `{"error":{"code","text"}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// For programs: lower case, underscores.
    pub code: &'static str,
    /// For people: what is wrong and the way out.
    pub text: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: StatusCode, code: &'static str, text: impl Into<String>) -> Refusal {
        Refusal {
            status,
            code,
            text: text.into(),
        }
    }

    /// The request cannot be understood.
    pub fn bad_request(text: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "bad_request", text)
    }

    /// The caller may not have or do this.
    pub fn forbidden(code: &'static str, text: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::FORBIDDEN, code, text)
    }

    /// The daemon is stopping.
    pub fn draining() -> Refusal {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "the daemon is stopping: ask again once it runs",
        )
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        let status = match fault.class() {
            Class::Retryable { .. } | Class::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            Class::Auth | Class::NotFound | Class::Corrupt | Class::Rejected => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Refusal::new(status, fault.class().name(), fault.chain())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({"error": {"code": self.code, "text": self.text}});
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"blobferry\""),
                );
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // The rest of the body is not wanted.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// No such path: says which there are.
pub async fn unknown_path(method: Method, uri: Uri) -> Refusal {
    let text = format!(
        "there is no {method} {}; there are {}",
        clip(uri.path(), 200),
        routes::listed()
    );
    Refusal::new(StatusCode::NOT_FOUND, "not_found", text)
}

/// The path is there, the method is not; `Allow` says which are.
pub async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let text = format!(
        "{} does not take {method}; see the Allow header",
        clip(uri.path(), 200)
    );
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

/// Around everything: a panic in a route is answered 500, and no answer is cached, guessed at or
/// embedded by a browser.
pub async fn shield(request: Request, next: Next) -> Response {
    let path = clip(request.uri().path(), 200);
    let mut response = AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| {
            tracing::error!(path, "a route panicked");
            let text = "this should not have happened; the log says more";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text).into_response()
        });
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("same-origin"),
    );
    response
}
