//! Alive, and ready.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::answer::Refusal;
use crate::status::board::Status;

/// Routes that the answer names.
const NAMED: usize = 5;

/// 200 as long as the program answers at all.
pub(super) async fn alive() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

/// 200 once every route has been looked at, whatever came of it, and until the daemon drains, loses
/// its state folder, or cannot write its ledger.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, Refusal> {
    let status = app.services.watch.board().snapshot();
    if status.draining {
        return Err(Refusal::draining());
    }
    if let Some(trouble) = status.state_trouble {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "state",
            trouble,
        ));
    }
    if !status.ready {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "starting",
            not_looked_at(&status),
        ));
    }
    Ok(Json(json!({"status": "ready"})))
}

fn not_looked_at(status: &Status) -> String {
    let missing: Vec<&str> = status
        .routes
        .iter()
        .filter(|route| route.last_look.is_none())
        .map(|route| route.name.as_str())
        .collect();
    match missing.len() {
        0 => "the daemon is starting".into(),
        count => {
            let more = if count > NAMED { ", …" } else { "" };
            let names = missing[..count.min(NAMED)].join(", ");
            format!(
                "{count} of {} routes have not been looked at yet: {names}{more}",
                status.routes.len()
            )
        }
    }
}
