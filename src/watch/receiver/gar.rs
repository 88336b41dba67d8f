//! Google Artifact Registry: messages of the Pub/Sub topic `gcr`, pushed wrapped or unwrapped.
//! <https://cloud.google.com/artifact-registry/docs/configure-notifications>
//! <https://cloud.google.com/pubsub/docs/payload-unwrapping>

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde::Deserialize;

use super::fields::{json, tag, time, without_host};
use super::{Delivery, Malformed, Push};

/// Set on unwrapped deliveries when the subscription writes metadata.
const PUBLISH_TIME: &str = "x-goog-pubsub-publish-time";

#[derive(Deserialize)]
struct Delivered {
    message: Option<Message>,
    #[serde(flatten)]
    unwrapped: Notification,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    #[serde(default)]
    data: String,
    publish_time: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Notification {
    action: String,
    /// `host/project/repository/image@digest`.
    digest: Option<String>,
    /// `host/project/repository/image:tag`.
    tag: Option<String>,
}

/// Reads either form.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Delivery, Malformed> {
    let delivered: Delivered = json(body)?;
    let Some(message) = delivered.message else {
        let published = headers
            .get(PUBLISH_TIME)
            .and_then(|value| value.to_str().ok());
        return push(&delivered.unwrapped, published);
    };
    let data = STANDARD
        .decode(&message.data)
        .map_err(|_| Malformed::Base64("message.data"))?;
    push(&json(&data)?, message.publish_time.as_deref())
}

fn push(notification: &Notification, published: Option<&str>) -> Result<Delivery, Malformed> {
    if notification.action.is_empty() {
        return Err(Malformed::Missing("action"));
    }
    if notification.action != "INSERT" {
        return Ok(Delivery::Ignored("nothing was inserted"));
    }
    let reference = notification
        .tag
        .as_deref()
        .or(notification.digest.as_deref())
        .ok_or(Malformed::Missing("tag"))?;
    let named = notification
        .tag
        .as_deref()
        .and_then(|reference| Some(reference.rsplit_once(':')?.1));
    let push = Push::to(without_host("tag", reference)?)
        .with_tag(tag("tag", named)?)
        .at(time(published));
    Ok(Delivery::Pushes(vec![push]))
}
