//! GitHub's webhooks for packages, from GHCR.
//! <https://docs.github.com/en/webhooks/webhook-events-and-payloads#package>
//!
//! Accepted are the events `package` and `registry_package`, since organisations get one or the
//! other. An older shape has the tag as `version`
//! (<https://github.com/google/go-github/issues/2033>).

use http::HeaderMap;
use serde::Deserialize;

use super::fields::{json, repository, tag, time, without_host};
use super::{Delivery, Handshake, Malformed, Push};
use crate::oci::{RepositoryName, Tag};

#[derive(Deserialize)]
struct Notification {
    #[serde(default)]
    action: String,
    #[serde(alias = "registry_package")]
    package: Option<Package>,
    sender: Option<User>,
}

#[derive(Deserialize)]
struct Package {
    #[serde(default)]
    name: String,
    #[serde(default)]
    package_type: String,
    owner: Option<User>,
    package_version: Option<Version>,
}

#[derive(Deserialize)]
struct User {
    login: Option<String>,
}

#[derive(Deserialize)]
struct Version {
    version: Option<String>,
    package_url: Option<String>,
    updated_at: Option<String>,
    created_at: Option<String>,
    container_metadata: Option<ContainerMetadata>,
}

#[derive(Deserialize)]
struct ContainerMetadata {
    tag: Option<ContainerTag>,
}

#[derive(Deserialize)]
struct ContainerTag {
    name: Option<String>,
}

/// Reads a delivery; the event's name is in `X-GitHub-Event`.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Delivery, Malformed> {
    match headers
        .get("x-github-event")
        .and_then(|value| value.to_str().ok())
    {
        Some("ping") => return Ok(Delivery::Handshake(Handshake::Ping)),
        Some("package" | "registry_package") => {}
        _ => return Ok(Delivery::Ignored("not an event about a package")),
    }
    let notification: Notification = json(body)?;
    let package = notification.package.ok_or(Malformed::Missing("package"))?;
    let is_push = matches!(&*notification.action, "published" | "updated");
    let is_container = package.package_type.eq_ignore_ascii_case("container")
        || package.package_type.eq_ignore_ascii_case("docker");
    if !is_push || !is_container {
        return Ok(Delivery::Ignored("no container image was published"));
    }
    let sender = notification.sender.and_then(|sender| sender.login);
    let version = package.package_version.as_ref();
    let pushed = version.and_then(|version| {
        time(version.updated_at.as_deref()).or_else(|| time(version.created_at.as_deref()))
    });
    let push = Push::to(name(&package)?)
        .with_tag(pushed_tag(version)?)
        .at(pushed)
        .by(sender);
    Ok(Delivery::Pushes(vec![push]))
}

/// From the package's URL, where it is there, else owner and name in lower case.
fn name(package: &Package) -> Result<RepositoryName, Malformed> {
    let url = package
        .package_version
        .as_ref()
        .and_then(|version| version.package_url.as_deref())
        .filter(|url| !url.is_empty());
    if let Some(url) = url {
        let url = url.strip_prefix("https://").unwrap_or(url);
        return without_host("package.package_version.package_url", url);
    }
    let owner = package
        .owner
        .as_ref()
        .and_then(|owner| owner.login.as_deref())
        .ok_or(Malformed::Missing("package.owner.login"))?;
    let name = format!("{owner}/{}", package.name).to_lowercase();
    repository("package.name", &name)
}

fn pushed_tag(version: Option<&Version>) -> Result<Option<Tag>, Malformed> {
    let Some(version) = version else {
        return Ok(None);
    };
    let metadata = version
        .container_metadata
        .as_ref()
        .and_then(|metadata| metadata.tag.as_ref());
    if let Some(named) = metadata {
        return tag("container_metadata.tag.name", named.name.as_deref());
    }
    tag("package_version.version", version.version.as_deref())
}
