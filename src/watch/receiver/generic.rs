//! Our own shape, for scripts and pipelines: `{"repository": "team/app", "tag": "v1"}`, or `tags`
//! with a list; `pushed_at` (RFC 3339) and `pusher` where they are known.

use serde::Deserialize;

use super::fields::{json, repository, tag, time};
use super::{Delivery, MAX_PUSHES, Malformed, Push};

#[derive(Deserialize)]
struct Notification {
    repository: Option<String>,
    tag: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    pushed_at: Option<String>,
    pusher: Option<String>,
}

/// Reads a notification.
pub fn read(body: &[u8]) -> Result<Delivery, Malformed> {
    let notification: Notification = json(body)?;
    let name = notification
        .repository
        .ok_or(Malformed::Missing("repository"))?;
    if notification.tags.len() > MAX_PUSHES {
        return Err(Malformed::TooMany);
    }
    let mut push = Push::to(repository("repository", &name)?)
        .with_tag(tag("tag", notification.tag.as_deref())?)
        .at(time(notification.pushed_at.as_deref()))
        .by(notification.pusher);
    for name in &notification.tags {
        push.tags.extend(tag("tags", Some(name))?);
    }
    Ok(Delivery::Pushes(vec![push]))
}
