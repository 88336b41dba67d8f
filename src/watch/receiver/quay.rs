//! Quay's `repo_push` notification.
//! <https://docs.quay.io/guides/notifications.html>
//!
//! `updated_tags` is a list today and was an object in older versions.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::fields::{json, repository, tag, without_host};
use super::{Delivery, MAX_PUSHES, Malformed, Push};
use crate::oci::RepositoryName;

#[derive(Deserialize)]
struct Notification {
    repository: Option<String>,
    docker_url: Option<String>,
    updated_tags: Option<Tags>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Tags {
    List(Vec<String>),
    Object(BTreeMap<String, IgnoredAny>),
}

impl Tags {
    fn names(self) -> Vec<String> {
        match self {
            Tags::List(names) => names,
            Tags::Object(tags) => tags.into_keys().collect(),
        }
    }
}

/// Reads a notification.
pub fn read(body: &[u8]) -> Result<Delivery, Malformed> {
    let notification: Notification = json(body)?;
    let name = name(&notification)?;
    let Some(tags) = notification.updated_tags else {
        return Ok(Delivery::Ignored("no tag was updated"));
    };
    let names = tags.names();
    if names.len() > MAX_PUSHES {
        return Err(Malformed::TooMany);
    }
    let mut push = Push::to(name);
    for name in names {
        push.tags.extend(tag("updated_tags", Some(&name))?);
    }
    Ok(Delivery::Pushes(vec![push]))
}

fn name(notification: &Notification) -> Result<RepositoryName, Malformed> {
    if let Some(name) = &notification.repository {
        return repository("repository", name);
    }
    let url = notification
        .docker_url
        .as_deref()
        .ok_or(Malformed::Missing("repository"))?;
    without_host("docker_url", url)
}
