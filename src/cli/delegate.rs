//! The common part of `copy` and `promote`: a running daemon with a route to the destination makes
//! the copy, since it alone can record what was written. Without one, the command makes it, with
//! the credentials of the config.

use http::StatusCode;

use super::pass::Show;
use super::progress::{ProgressMode, say};
use super::socket::{Socket, refusal};
use super::sync::{at_work, report};
use super::{Arguments, Failure};
use crate::admin::CopyRequest;
use crate::config::Config;
use crate::job::Report;

/// The report of the daemon. `None`: there is none, or no route of its config leads there.
pub(super) async fn by_daemon(
    arguments: &Arguments,
    request: &CopyRequest,
    mode: ProgressMode,
    show: Show<'_>,
) -> Result<Option<Report>, Failure> {
    let Some(folder) = arguments.state_folder() else {
        return Ok(None);
    };
    let socket = Socket::in_state(&folder);
    let body = serde_json::to_value(request).map_err(|error| Failure::new(1, error))?;
    let answer = socket.offer("/v1/copies", body);
    let left = "stopped; what the registries have kept of it is used next time";
    match at_work(&socket, mode, show, left, answer).await? {
        None => Ok(None),
        Some((StatusCode::OK, body)) => report(StatusCode::OK, body).map(Some),
        Some((StatusCode::NOT_FOUND, _)) => Ok(None),
        Some((status, body)) => Err(refusal(status, &body)),
    }
}

/// The config, where there is one: these commands need none. One that was named must be right; one
/// that is found and cannot be used is left out, and the command says so.
pub(super) fn config(arguments: &Arguments) -> Result<Option<Config>, Failure> {
    if arguments.config.is_some() {
        return arguments.config().map(Some);
    }
    let path = arguments.config_path();
    if !path.exists() {
        return Ok(None);
    }
    match arguments.config() {
        Ok(config) => Ok(Some(config)),
        Err(failure) => {
            let text = failure.to_string();
            let first = text.lines().next().unwrap_or_default();
            say(&format!(
                "the config is not used, and what is written is not known to its daemon: {first}"
            ));
            Ok(None)
        }
    }
}
