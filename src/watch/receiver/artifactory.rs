//! JFrog Artifactory's webhooks for Docker repositories.
//! <https://jfrog.com/help/r/jfrog-platform-administration-documentation/domain-docker>
//!
//! `repo_key` is the local repository, even when clients push through a virtual one: the receiver's
//! `rewrite` maps it.

use serde::Deserialize;

use super::fields::{json, repository, tag};
use super::{Delivery, Malformed, Push};

#[derive(Deserialize)]
struct Notification {
    #[serde(default)]
    domain: String,
    #[serde(default)]
    event_type: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    repo_key: String,
    #[serde(default)]
    image_name: String,
    tag: Option<String>,
}

/// Reads a notification.
pub fn read(body: &[u8]) -> Result<Delivery, Malformed> {
    let notification: Notification = json(body)?;
    let is_push = matches!(&*notification.event_type, "pushed" | "promoted");
    if notification.domain != "docker" || !is_push {
        return Ok(Delivery::Ignored("no image was pushed"));
    }
    let data = notification.data.ok_or(Malformed::Missing("data"))?;
    let name = format!("{}/{}", data.repo_key, data.image_name);
    let push = Push::to(repository("data.image_name", &name)?)
        .with_tag(tag("data.tag", data.tag.as_deref())?);
    Ok(Delivery::Pushes(vec![push]))
}
