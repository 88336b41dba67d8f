//! Rules of content: what a route asks of a repository, a tag or an image beside gates. Through the
//! program and real registries.

mod at_least;
mod backup;
mod forward_only;
mod observe;
mod platform;
mod platform_acts;

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

fn image(number: u64) -> Image {
    Image::oci(number, &[1000])
}

/// Waits until so many more polls have listed staging.
async fn polled(staging: &Scripted, polls: usize) {
    staging.forget_requests();
    staging.seen(Kind::Tags, polls).await;
}

/// What was asked that no comparison of tags asks.
fn asked_beyond_comparison(registry: &Scripted) -> Vec<String> {
    let log = registry.log().into_iter();
    let more = log.filter(|record| !matches!(record.kind, Kind::Tags | Kind::ManifestHead));
    more.map(|record| record.path).collect()
}
