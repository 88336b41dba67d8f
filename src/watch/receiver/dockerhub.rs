//! Docker Hub's webhooks.
//! <https://docs.docker.com/docker-hub/repos/manage/webhooks/>
//!
//! A push of several platforms is several calls
//! (<https://github.com/docker/hub-feedback/issues/2148>).

use serde::Deserialize;

use super::fields::{epoch, json, repository, tag};
use super::{Delivery, Malformed, Push};

#[derive(Deserialize)]
struct Notification {
    push_data: Option<PushData>,
    repository: Option<Repository>,
}

#[derive(Deserialize)]
struct PushData {
    tag: Option<String>,
    pusher: Option<String>,
    pushed_at: Option<f64>,
}

#[derive(Deserialize)]
struct Repository {
    #[serde(default)]
    repo_name: String,
}

/// Reads a notification.
pub fn read(body: &[u8]) -> Result<Delivery, Malformed> {
    let notification: Notification = json(body)?;
    let data = notification
        .push_data
        .ok_or(Malformed::Missing("push_data"))?;
    let name = notification
        .repository
        .ok_or(Malformed::Missing("repository"))?
        .repo_name;
    let push = Push::to(repository("repository.repo_name", &name)?)
        .with_tag(tag("push_data.tag", data.tag.as_deref())?)
        .at(epoch(data.pushed_at))
        .by(data.pusher);
    Ok(Delivery::Pushes(vec![push]))
}
