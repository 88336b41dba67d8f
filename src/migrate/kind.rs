//! The formats, and which of them a text has.

use std::fmt;
use std::str::FromStr;

use super::tree::{Map, Wrong};
use crate::config::yaml::{Node, Value};

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `regsync.yml` of regclient.
    Regsync,
    /// The config of ocync.
    Ocync,
    /// The file of `skopeo sync --src yaml`.
    Skopeo,
    /// The config of dregsy.
    Dregsy,
    /// `images.yaml`, `auth.yaml` or both in one, of image-syncer.
    ImageSyncer,
    /// `.images.yaml` of sinker.
    Sinker,
    /// A buildspec, or lines of a shell.
    Script,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 7] = [
        Kind::Regsync,
        Kind::Ocync,
        Kind::Skopeo,
        Kind::Dregsy,
        Kind::ImageSyncer,
        Kind::Sinker,
        Kind::Script,
    ];

    /// As `--from` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Regsync => "regsync",
            Kind::Ocync => "ocync",
            Kind::Skopeo => "skopeo",
            Kind::Dregsy => "dregsy",
            Kind::ImageSyncer => "image-syncer",
            Kind::Sinker => "sinker",
            Kind::Script => "script",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| "is no format that is read".to_owned())
    }
}

/// Programs that pull, tag and push.
pub(super) const ENGINES: [&str; 3] = ["docker", "podman", "nerdctl"];

/// Programs that copy from one registry to another.
pub(super) const COPIERS: [&str; 4] = ["skopeo", "crane", "gcrane", "regctl"];

/// What a script does with images.
const COMMANDS: [&str; 7] = [
    "skopeo copy",
    "crane cp",
    "crane copy",
    "regctl image copy",
    "regctl image cp",
    "imagetools create",
    "get-login-password",
];

/// Whether a command that does something with images is in the text.
pub(super) fn has_commands(text: &str) -> bool {
    const ACTS: [&str; 6] = [
        "pull",
        "push",
        "tag",
        "image pull",
        "image push",
        "image tag",
    ];
    let mut of_engines = ENGINES
        .into_iter()
        .flat_map(|engine| ACTS.iter().map(move |act| format!("{engine} {act}")));
    of_engines.any(|command| text.contains(&command))
        || COMMANDS.iter().any(|command| text.contains(command))
}

/// The one format that the text has, which is this YAML document or none.
pub(super) fn recognise(text: &str, document: &Result<Node, Wrong>) -> Result<Kind, Wrong> {
    let has_commands = has_commands(text);
    let root = match document {
        Ok(root) => root,
        Err(_) if has_commands => return Ok(Kind::Script),
        Err(wrong) => return Err(wrong.clone()),
    };
    let mut kinds = match &root.value {
        Value::Map(_) => of_map(&Map::of(root, "the file")?)?,
        _ => Vec::new(),
    };
    if kinds.is_empty() && has_commands {
        kinds.push(Kind::Script);
    }
    match kinds[..] {
        [kind] => Ok(kind),
        [] => Err(Wrong::whole(format!(
            "is none of the formats that are read; name the one that it is: --from {}",
            names(&Kind::ALL)
        ))),
        _ => Err(Wrong::whole(format!(
            "could be more than one format; name the one that it is: --from {}",
            names(&kinds)
        ))),
    }
}

fn names(kinds: &[Kind]) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    names.join("|")
}

fn of_map(root: &Map<'_>) -> Result<Vec<Kind>, Wrong> {
    if root.has("routes") && root.has("registries") {
        return Err(Wrong::whole(
            "is a config of blobferry already: blobferry check -c FILE",
        ));
    }
    let rules = [
        (Kind::Regsync, root.has("sync")),
        (Kind::Ocync, root.has("mappings")),
        (Kind::Dregsy, root.has("tasks")),
        (
            Kind::Sinker,
            root.has("target") && (root.has("sources") || root.has("images")),
        ),
        (Kind::Script, root.has("phases")),
        (Kind::Skopeo, is_skopeo(root)),
        (Kind::ImageSyncer, is_image_syncer(root)),
    ];
    let found = rules.into_iter().filter(|(_, holds)| *holds);
    Ok(found.map(|(kind, _)| kind).collect())
}

/// Every key is a registry with images.
fn is_skopeo(root: &Map<'_>) -> bool {
    let mut entries = root.entries().peekable();
    entries.peek().is_some()
        && entries.all(|(_, node)| {
            has_key(node, "images")
                || has_key(node, "images-by-tag-regex")
                || has_key(node, "images-by-semver")
        })
}

/// Pairs of references, or logins, or a mapping of each.
fn is_image_syncer(root: &Map<'_>) -> bool {
    let is_old = root.map("images").is_ok_and(|images| images.is_some())
        && root
            .entries()
            .all(|(key, _)| ["auth", "images"].contains(&key));
    let is_empty = root.entries().next().is_none();
    is_old
        || !is_empty
            && root
                .entries()
                .all(|(key, node)| is_pair(key, node) || is_login(node))
}

fn is_pair(key: &str, node: &Node) -> bool {
    key.contains(['/', ':']) && matches!(node.value, Value::Text(_) | Value::List(_) | Value::Null)
}

fn is_login(node: &Node) -> bool {
    has_key(node, "username") || has_key(node, "insecure")
}

fn has_key(node: &Node, key: &str) -> bool {
    Map::of(node, key).is_ok_and(|map| map.has(key))
}
