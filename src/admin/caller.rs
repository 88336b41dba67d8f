//! `GET /v1/caller`: the principal of the request, and what it may do.

use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::decision::{NamePattern, Principal};

/// `GET /v1/caller`.
pub(super) async fn caller(Extension(principal): Extension<Principal>) -> Json<Value> {
    let routes: Option<Vec<&str>> = principal
        .routes
        .as_ref()
        .map(|patterns| patterns.iter().map(NamePattern::as_str).collect());
    Json(json!({
        "actor": &*principal.name,
        "rights": principal.rights.names(),
        "routes": routes,
    }))
}
