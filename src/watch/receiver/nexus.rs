//! Sonatype Nexus: component events of Docker repositories.
//! <https://help.sonatype.com/en/working-with-webhooks.html>
//!
//! A client addresses an image by its name alone (a port or host for each repository) or below the
//! repository's name (path-based routing): both are candidates.

use serde::Deserialize;

use super::fields::{json, repository, tag, time};
use super::{Delivery, Malformed, Push};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notification {
    #[serde(default)]
    action: String,
    #[serde(default)]
    repository_name: String,
    timestamp: Option<String>,
    initiator: Option<String>,
    component: Option<Component>,
}

#[derive(Deserialize)]
struct Component {
    #[serde(default)]
    format: String,
    #[serde(default)]
    name: String,
    version: Option<String>,
}

/// Reads a notification.
pub fn read(body: &[u8]) -> Result<Delivery, Malformed> {
    let notification: Notification = json(body)?;
    let Some(component) = notification.component else {
        return Ok(Delivery::Ignored("not an event about a component"));
    };
    let is_push = matches!(&*notification.action, "CREATED" | "UPDATED");
    if component.format != "docker" || !is_push {
        return Ok(Delivery::Ignored("no image was pushed"));
    }
    let below = format!("{}/{}", notification.repository_name, component.name);
    let mut push = Push::to(repository("component.name", &component.name)?)
        .with_tag(tag("component.version", component.version.as_deref())?)
        .at(time(notification.timestamp.as_deref()))
        .by(notification.initiator);
    push.repositories
        .extend(repository("repositoryName", &below).ok());
    Ok(Delivery::Pushes(vec![push]))
}
