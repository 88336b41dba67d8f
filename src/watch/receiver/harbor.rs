//! Harbor's webhooks, in its own shape and as CloudEvents.
//! <https://goharbor.io/docs/latest/working-with-projects/project-configuration/configure-webhooks/>
//!
//! The push of an index raises several events whose tag is a digest
//! (<https://github.com/goharbor/harbor/issues/11713>).

use http::HeaderMap;
use jiff::Timestamp;
use serde::Deserialize;

use super::fields::{epoch, json, repository, tag, time};
use super::{Delivery, Malformed, Push, cloud_event};

const PUSHED: &str = "PUSH_ARTIFACT";
const PUSHED_CLOUD_EVENT: &str = "harbor.artifact.pushed";

#[derive(Deserialize)]
struct Notification {
    #[serde(rename = "type", default)]
    kind: String,
    occur_at: Option<f64>,
    operator: Option<String>,
    event_data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    resources: Vec<Resource>,
    repository: Option<Repository>,
}

#[derive(Deserialize)]
struct Resource {
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Repository {
    #[serde(default)]
    repo_full_name: String,
}

/// Reads either shape.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Delivery, Malformed> {
    if cloud_event::is_cloud_event(headers) {
        let event = cloud_event::read::<Data>(headers, body)?;
        let pushed = time(event.time.as_deref());
        return pushes(
            event.kind == PUSHED_CLOUD_EVENT,
            event.data,
            pushed,
            event.operator,
        );
    }
    let notification: Notification = json(body)?;
    let data = notification
        .event_data
        .ok_or(Malformed::Missing("event_data"))?;
    let pushed = epoch(notification.occur_at);
    pushes(
        notification.kind == PUSHED,
        data,
        pushed,
        notification.operator,
    )
}

fn pushes(
    is_push: bool,
    data: Data,
    pushed: Option<Timestamp>,
    operator: Option<String>,
) -> Result<Delivery, Malformed> {
    if !is_push {
        return Ok(Delivery::Ignored("no artifact was pushed"));
    }
    let name = data
        .repository
        .ok_or(Malformed::Missing("repository"))?
        .repo_full_name;
    let mut push = Push::to(repository("repository.repo_full_name", &name)?)
        .at(pushed)
        .by(operator);
    for resource in data.resources {
        push.tags
            .extend(tag("resources[].tag", resource.tag.as_deref())?);
    }
    Ok(Delivery::Pushes(vec![push]))
}
