//! Reads push notifications of registries: what was pushed, and when.
//!
//! A notification is only a hint where to look (principle: the tag is resolved again with our own
//! credentials), so digests in a body are read past. [`secret::Secrets::check`] checks the sender
//! first, on the raw bytes; [`Kind::read`] then turns headers and body into a [`Delivery`]. Both
//! are pure: nothing here waits, logs or looks.
//!
//! | kind | sender |
//! |---|---|
//! | `acr` | Azure container registry: webhook and Event Grid |
//! | `artifactory` | JFrog Artifactory |
//! | `distribution` | distribution 2.8 and 3, GitLab's registry |
//! | `dockerhub` | Docker Hub |
//! | `ecr` | Amazon ECR through EventBridge, plain, in an SNS envelope or as CloudEvents |
//! | `gar` | Google Artifact Registry through Pub/Sub push, wrapped and unwrapped |
//! | `generic` | any script: `{"repository", "tag"}` |
//! | `ghcr` | GitHub's registry |
//! | `gitea` | Gitea and Forgejo |
//! | `harbor` | Harbor, default and CloudEvents payload |
//! | `nexus` | Sonatype Nexus |
//! | `quay` | Quay |
//! | `zot` | zot, CloudEvents in binary and structured mode |

mod acr;
mod artifactory;
mod cloud_event;
mod distribution;
mod dockerhub;
mod ecr;
mod fields;
mod gar;
mod generic;
mod ghcr;
mod gitea;
mod harbor;
mod nexus;
mod notifier;
mod quay;
pub mod secret;
pub mod settings;
#[cfg(test)]
mod tests;
mod zot;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use http::HeaderMap;
use jiff::Timestamp;

pub use self::notifier::Notifier;

use crate::oci::{RepositoryName, Tag};

/// Pushes that one delivery may name; a sender that names more is refused.
pub const MAX_PUSHES: usize = 1_000;

/// Which registry sends, and so the shape of the body and how the sender is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Azure container registry.
    Acr,
    /// JFrog Artifactory.
    Artifactory,
    /// distribution and GitLab's registry.
    Distribution,
    /// Docker Hub.
    Dockerhub,
    /// Amazon ECR through EventBridge.
    Ecr,
    /// Google Artifact Registry through Pub/Sub.
    Gar,
    /// Our own shape.
    Generic,
    /// GitHub's registry.
    Ghcr,
    /// Gitea and Forgejo.
    Gitea,
    /// Harbor.
    Harbor,
    /// Sonatype Nexus.
    Nexus,
    /// Quay.
    Quay,
    /// zot.
    Zot,
}

impl Kind {
    /// All kinds, by name.
    pub const ALL: [Kind; 13] = [
        Kind::Acr,
        Kind::Artifactory,
        Kind::Distribution,
        Kind::Dockerhub,
        Kind::Ecr,
        Kind::Gar,
        Kind::Generic,
        Kind::Ghcr,
        Kind::Gitea,
        Kind::Harbor,
        Kind::Nexus,
        Kind::Quay,
        Kind::Zot,
    ];

    /// The name in the config.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Acr => "acr",
            Kind::Artifactory => "artifactory",
            Kind::Distribution => "distribution",
            Kind::Dockerhub => "dockerhub",
            Kind::Ecr => "ecr",
            Kind::Gar => "gar",
            Kind::Generic => "generic",
            Kind::Ghcr => "ghcr",
            Kind::Gitea => "gitea",
            Kind::Harbor => "harbor",
            Kind::Nexus => "nexus",
            Kind::Quay => "quay",
            Kind::Zot => "zot",
        }
    }

    /// Whether the sender's proof covers the body.
    pub fn signs_body(self) -> bool {
        match self {
            Kind::Artifactory | Kind::Generic | Kind::Ghcr | Kind::Gitea | Kind::Nexus => true,
            Kind::Acr
            | Kind::Distribution
            | Kind::Dockerhub
            | Kind::Ecr
            | Kind::Gar
            | Kind::Harbor
            | Kind::Quay
            | Kind::Zot => false,
        }
    }

    /// Reads a delivery whose sender is authenticated.
    ///
    /// # Errors
    /// [`Malformed`] when the body is not what this kind sends.
    pub fn read(self, headers: &HeaderMap, body: &[u8]) -> Result<Delivery, Malformed> {
        match self {
            Kind::Acr => acr::read(headers, body),
            Kind::Artifactory => artifactory::read(body),
            Kind::Distribution => distribution::read(body),
            Kind::Dockerhub => dockerhub::read(body),
            Kind::Ecr => ecr::read(headers, body),
            Kind::Gar => gar::read(headers, body),
            Kind::Generic => generic::read(body),
            Kind::Ghcr => ghcr::read(headers, body),
            Kind::Gitea => gitea::read(headers, body),
            Kind::Harbor => harbor::read(headers, body),
            Kind::Nexus => nexus::read(body),
            Kind::Quay => quay::read(body),
            Kind::Zot => zot::read(headers, body),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The config names a kind that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such kind of receiver")]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Kind, UnknownKind> {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or(UnknownKind)
    }
}

/// What a delivery came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Where to look; never empty.
    Pushes(Vec<Push>),
    /// The sender tries the connection: answer 200.
    Handshake(Handshake),
    /// Nothing that a look would find: a pull, a deletion, another kind of package.
    Ignored(&'static str),
}

impl Delivery {
    /// The pushes, or why there is nothing to look at.
    fn of(pushes: Vec<Push>, otherwise: &'static str) -> Result<Delivery, Malformed> {
        match pushes.len() {
            0 => Ok(Delivery::Ignored(otherwise)),
            1..=MAX_PUSHES => Ok(Delivery::Pushes(pushes)),
            _ => Err(Malformed::TooMany),
        }
    }
}

/// What a handshake expects in the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Any 200.
    Ping,
    /// Event Grid's subscription validation: the code as `validationResponse`.
    Validation(String),
}

/// Something was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// The repository under the names that routes may know it by, the likeliest first; never empty.
    pub repositories: Vec<RepositoryName>,
    /// The tags; empty when the push named a digest alone: a child of an index, or a referrer.
    pub tags: Vec<Tag>,
    /// When it was pushed.
    pub pushed: Option<Timestamp>,
    /// The account that pushed, as the registry calls it.
    pub pusher: Option<String>,
    /// The AWS account and region, where the event names them.
    pub aws: Option<AwsOrigin>,
    /// Whether the sender may tell before its tags name what was pushed.
    pub may_precede: bool,
    /// Whether it is no push, but a scan of an image that has ended.
    pub is_scan: bool,
}

impl Push {
    /// A push to `repository`.
    fn to(repository: RepositoryName) -> Push {
        Push {
            repositories: vec![repository],
            tags: Vec::new(),
            pushed: None,
            pusher: None,
            aws: None,
            may_precede: false,
            is_scan: false,
        }
    }

    /// The pushes of one delivery, those to one repository as one: an index is pushed in parts.
    pub fn merged(pushes: Vec<Push>) -> Vec<Push> {
        let mut merged: Vec<Push> = Vec::new();
        let mut positions: BTreeMap<_, usize> = BTreeMap::new();
        for push in pushes {
            let is_tagged = !push.tags.is_empty();
            let key = (push.repositories.clone(), push.aws.clone(), is_tagged);
            match positions.get(&key) {
                Some(position) => merged[*position].absorb(push),
                None => {
                    positions.insert(key, merged.len());
                    merged.push(push);
                }
            }
        }
        merged
    }

    fn absorb(&mut self, push: Push) {
        self.tags.extend(push.tags);
        self.pushed = self.pushed.max(push.pushed);
        self.pusher = self.pusher.take().or(push.pusher);
        self.is_scan |= push.is_scan;
    }

    fn with_tag(mut self, tag: Option<Tag>) -> Push {
        self.tags.extend(tag);
        self
    }

    fn at(mut self, pushed: Option<Timestamp>) -> Push {
        self.pushed = pushed;
        self
    }

    fn by(mut self, pusher: Option<String>) -> Push {
        self.pusher = pusher.and_then(fields::pusher);
        self
    }
}

/// The ECR registry that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AwsOrigin {
    /// The account.
    pub account: String,
    /// The region.
    pub region: String,
}

/// The body is not what the kind sends. No text of the body is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, nested too deeply, or a field of another type.
    #[error(
        "the body is not the JSON that this kind of receiver takes (line {line}, column {column})"
    )]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// A required field is missing.
    #[error("the body has no `{0}`")]
    Missing(&'static str),
    /// A name that the distribution specification does not allow.
    #[error("`{0}` is not a name that a registry can have")]
    Name(&'static str),
    /// Neither mode of CloudEvents.
    #[error(
        "not a CloudEvents message: neither `ce-type` nor an `application/cloudevents+json` body with a `type`"
    )]
    NoCloudEvent,
    /// Base64 that is none.
    #[error("`{0}` is not base64")]
    Base64(&'static str),
    /// More pushes than [`MAX_PUSHES`].
    #[error("more than {MAX_PUSHES} pushes in one body")]
    TooMany,
}
