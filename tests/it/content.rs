//! Rules of content: what a route asks of a repository, a tag or an image beside gates. Through the
//! program and real registries.

mod at_least;
mod backup;
mod forward_only;
mod observe;
mod platform;

use serde_json::Value;

use crate::decisions::Scene;
use crate::support::*;

/// Two registries that are told what to do, and a route for `app` with more keys.
fn scene(route: Value) -> Scene {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url())
        .route("app", route);
    Scene {
        ferry: Ferry::new(&config),
        staging,
        production,
    }
}
