//! Webhooks for packages of Gitea and Forgejo.
//! <https://docs.gitea.com/usage/webhooks>

use http::HeaderMap;
use serde::Deserialize;

use super::fields::{json, repository, tag, time};
use super::{Delivery, Malformed, Push};

const EVENT_HEADERS: [&str; 3] = ["x-forgejo-event", "x-gitea-event", "x-github-event"];

#[derive(Deserialize)]
struct Notification {
    #[serde(default)]
    action: String,
    package: Option<Package>,
    sender: Option<User>,
}

#[derive(Deserialize)]
struct Package {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    name: String,
    /// A tag or a digest.
    version: Option<String>,
    owner: Option<User>,
    created_at: Option<String>,
}

/// Gitea writes both names, <https://github.com/go-gitea/gitea/blob/main/modules/structs/user.go>.
#[derive(Deserialize)]
struct User {
    login: Option<String>,
    username: Option<String>,
}

impl User {
    fn name(self) -> Option<String> {
        self.login.or(self.username)
    }
}

/// Reads a delivery.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Delivery, Malformed> {
    let event = EVENT_HEADERS
        .iter()
        .find_map(|name| headers.get(*name)?.to_str().ok());
    if event != Some("package") {
        return Ok(Delivery::Ignored("not an event about a package"));
    }
    let notification: Notification = json(body)?;
    let package = notification.package.ok_or(Malformed::Missing("package"))?;
    if notification.action != "created" || package.kind != "container" {
        return Ok(Delivery::Ignored("no container image was created"));
    }
    let owner = package
        .owner
        .and_then(User::name)
        .ok_or(Malformed::Missing("package.owner.login"))?;
    let name = format!("{owner}/{}", package.name).to_lowercase();
    let push = Push::to(repository("package.name", &name)?)
        .with_tag(tag("package.version", package.version.as_deref())?)
        .at(time(package.created_at.as_deref()))
        .by(notification.sender.and_then(User::name));
    Ok(Delivery::Pushes(vec![push]))
}
