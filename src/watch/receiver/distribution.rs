//! distribution's notifications, which GitLab's registry sends as well.
//! <https://distribution.github.io/distribution/about/notifications/>
//!
//! The event of a manifest is sent before its tag is written. One envelope may hold unrelated events. Blobs raise `push` events, too; our own pulls raise
//! `pull`.

use serde::Deserialize;

use super::fields::{json, repository, tag, time};
use super::{Delivery, Malformed, Push};
use crate::oci::MediaType;
use crate::oci::media_type::Kind as ContentKind;

#[derive(Deserialize)]
struct Envelope {
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    action: String,
    timestamp: Option<String>,
    target: Option<Target>,
    actor: Option<Actor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    repository: String,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Actor {
    name: Option<String>,
}

/// Reads an envelope.
pub fn read(body: &[u8]) -> Result<Delivery, Malformed> {
    let envelope: Envelope = json(body)?;
    let pushes: Result<Vec<Push>, Malformed> = envelope
        .events
        .into_iter()
        .filter(|event| event.action == "push")
        .filter_map(|event| push(event).transpose())
        .collect();
    Delivery::of(pushes?, "no manifest was pushed")
}

fn push(event: Event) -> Result<Option<Push>, Malformed> {
    let target = event.target.ok_or(Malformed::Missing("events[].target"))?;
    if MediaType::new(&target.media_type).kind() == ContentKind::Other {
        return Ok(None);
    }
    let repository = repository("events[].target.repository", &target.repository)?;
    let tag = tag("events[].target.tag", target.tag.as_deref())?;
    let push = Push::to(repository)
        .with_tag(tag)
        .at(time(event.timestamp.as_deref()))
        .by(event.actor.and_then(|actor| actor.name));
    Ok(Some(Push {
        may_precede: true,
        ..push
    }))
}
