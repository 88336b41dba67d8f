//! What is read: metrics, the board, the ledger.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use prometheus::TextEncoder;
use serde::{Deserialize, Serialize};

use super::App;
use super::answer::Refusal;
use crate::ledger;
use crate::oci::Digest;
use crate::status::board::Status;

/// Rows in one page of the ledger at most.
const MOST_ROWS: u32 = 1000;

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    (app.services.before_scrape)();
    let text = TextEncoder::new()
        .encode_to_string(&app.services.metrics.gather())
        .map_err(|error| {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                format!("metrics cannot be written down: {error}"),
            )
        })?;
    Ok((
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response())
}

/// `GET /v1/status`. A caller that sends back the `ETag` gets 304 as long as nothing has changed.
pub(super) async fn status(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let body = serde_json::to_vec(&snapshot(&app)).expect("plain data");
    let tag = format!("\"{}\"", Digest::sha256(&body).encoded());
    let is_known = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known == &*tag);
    if is_known {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let content_type = "application/json".to_owned();
    let headers = [(header::CONTENT_TYPE, content_type), (header::ETAG, tag)];
    (headers, body).into_response()
}

fn snapshot(app: &App) -> Status {
    let mut status = app.services.watch.board().snapshot();
    status.decisions = app.services.ledger.holding();
    status.rows_added = app.services.ledger.rows_added();
    status
}

/// What `GET /v1/promotions` is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Page {
    after: u64,
    limit: u32,
    repository: Option<String>,
    tag: Option<String>,
    since: Option<Timestamp>,
    newest: bool,
}

impl Default for Page {
    fn default() -> Page {
        Page {
            after: 0,
            limit: 100,
            repository: None,
            tag: None,
            since: None,
            newest: false,
        }
    }
}

/// A page of the ledger.
#[derive(Serialize)]
pub(super) struct Promotions {
    promotions: Vec<ledger::Row>,
}

/// `GET /v1/promotions`.
pub(super) async fn promotions(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<Promotions>, Refusal> {
    let Query(page) = Query::<Page>::try_from_uri(&uri)
        .map_err(|error| Refusal::bad_request(error.body_text()))?;
    if !(1..=MOST_ROWS).contains(&page.limit) {
        return Err(Refusal::bad_request(format!(
            "limit is from 1 to {MOST_ROWS}"
        )));
    }
    let Page {
        after,
        limit,
        repository,
        tag,
        since,
        newest: newest_first,
    } = page;
    let query = ledger::Query {
        after,
        limit,
        repository,
        tag,
        since,
        newest_first,
        only_decisions: false,
    };
    Ok(Json(Promotions {
        promotions: app.services.ledger.page(query).await?,
    }))
}
