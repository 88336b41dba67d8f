//! zot's events: CloudEvents, binary mode by default. Unordered, one attempt each.
//! <https://zotregistry.dev/latest/articles/events/>

use http::HeaderMap;
use serde::Deserialize;

use super::fields::{repository, tag, time};
use super::{Delivery, Malformed, Push, cloud_event};

const UPDATED: &str = "zotregistry.image.updated";

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    name: String,
    /// A tag or a digest.
    reference: Option<String>,
    actor: Option<Actor>,
}

#[derive(Deserialize)]
struct Actor {
    name: Option<String>,
}

/// Reads an event.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Delivery, Malformed> {
    let event = cloud_event::read::<Data>(headers, body)?;
    if event.kind != UPDATED {
        return Ok(Delivery::Ignored("no image was updated"));
    }
    let push = Push::to(repository("data.name", &event.data.name)?)
        .with_tag(tag("data.reference", event.data.reference.as_deref())?)
        .at(time(event.time.as_deref()))
        .by(event.data.actor.and_then(|actor| actor.name));
    Ok(Delivery::Pushes(vec![push]))
}
