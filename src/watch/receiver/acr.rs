//! Azure container registry: its webhook, and Event Grid in its own schema and as CloudEvents.
//! <https://learn.microsoft.com/azure/container-registry/container-registry-webhook-reference>
//! <https://learn.microsoft.com/azure/event-grid/event-schema-container-registry>

use http::HeaderMap;
use serde::Deserialize;

use super::fields::{json, repository, tag, time};
use super::{Delivery, Handshake, Malformed, Push, cloud_event};

const PUSHED: &str = "Microsoft.ContainerRegistry.ImagePushed";
const VALIDATION: &str = "Microsoft.EventGrid.SubscriptionValidationEvent";

/// The webhook's body, and `data` of Event Grid's events.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notification {
    #[serde(default)]
    action: String,
    timestamp: Option<String>,
    target: Option<Target>,
    actor: Option<Actor>,
    /// Of Event Grid's handshake.
    validation_code: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    repository: String,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Actor {
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GridEvent {
    #[serde(default)]
    event_type: String,
    event_time: Option<String>,
    data: Notification,
}

/// Reads any of the three shapes.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Delivery, Malformed> {
    if cloud_event::is_cloud_event(headers) {
        let event = cloud_event::read::<Notification>(headers, body)?;
        if event.kind != PUSHED {
            return Ok(Delivery::Ignored("no image was pushed"));
        }
        let push = push(event.data, event.time.as_deref())?;
        return Ok(Delivery::Pushes(vec![push]));
    }
    if body.trim_ascii_start().starts_with(b"[") {
        return grid(json(body)?);
    }
    webhook(json(body)?)
}

fn grid(events: Vec<GridEvent>) -> Result<Delivery, Malformed> {
    let mut pushes = Vec::new();
    for event in events {
        match &*event.event_type {
            VALIDATION => {
                let code = event
                    .data
                    .validation_code
                    .ok_or(Malformed::Missing("data.validationCode"))?;
                return Ok(Delivery::Handshake(Handshake::Validation(code)));
            }
            PUSHED => pushes.push(push(event.data, event.event_time.as_deref())?),
            _ => {}
        }
    }
    Delivery::of(pushes, "no image was pushed")
}

fn webhook(notification: Notification) -> Result<Delivery, Malformed> {
    match &*notification.action {
        "ping" => Ok(Delivery::Handshake(Handshake::Ping)),
        "push" => Ok(Delivery::Pushes(vec![push(notification, None)?])),
        _ => Ok(Delivery::Ignored("no image was pushed")),
    }
}

fn push(notification: Notification, event_time: Option<&str>) -> Result<Push, Malformed> {
    let target = notification.target.ok_or(Malformed::Missing("target"))?;
    let pushed = time(notification.timestamp.as_deref()).or_else(|| time(event_time));
    let push = Push::to(repository("target.repository", &target.repository)?)
        .with_tag(tag("target.tag", target.tag.as_deref())?)
        .at(pushed)
        .by(notification.actor.and_then(|actor| actor.name));
    Ok(push)
}
