//! Media types and what kind of document each one stands for.
//!
//! Unknown types are carried like any other: the image specification forbids failing on them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI artifact manifest: in the release candidates of 1.1 only, still found in the wild.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// The artifact manifest before OCI took it over.
pub const ORAS_ARTIFACT: &str = "application/vnd.cncf.oras.artifact.manifest.v1+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image manifest, schema 1, signed.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Docker image manifest, schema 1.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// What blob bodies are sent as.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// The `Accept` header of every manifest request, HEAD and GET alike: a registry that sees another
/// list may answer with another document, and so with another digest. The range at the end is for
/// tags whose type is not listed here: distribution answers those with 404, as if there were no
/// such tag. It is the least wanted, so that no registry prefers a converted document to a listed
/// type.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, \
application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.v2+json, \
application/vnd.docker.distribution.manifest.v1+prettyjws, \
application/vnd.docker.distribution.manifest.v1+json, \
application/vnd.oci.artifact.manifest.v1+json, \
application/vnd.cncf.oras.artifact.manifest.v1+json, \
*/*;q=0.1";

/// A media type without its parameters, lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MediaType(Arc<str>);

/// What a document of a media type is to a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Lists other manifests.
    Index,
    /// Lists a config and layers.
    Image,
    /// Lists blobs (the artifact manifests that never made it into a release).
    Artifact,
    /// Docker's first schema: its digest cannot be verified from its bytes.
    Schema1,
    /// Anything else: a blob, as far as we know.
    Other,
}

impl MediaType {
    /// Reads a `Content-Type` or `mediaType` value: parameters dropped, lower case.
    pub fn new(text: &str) -> MediaType {
        let bare = text.split(';').next().unwrap_or_default().trim();
        MediaType(
            bare.chars()
                .take(255)
                .collect::<String>()
                .to_ascii_lowercase()
                .into(),
        )
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a document of this type is.
    pub fn kind(&self) -> Kind {
        match &*self.0 {
            OCI_INDEX | DOCKER_LIST => Kind::Index,
            OCI_MANIFEST | DOCKER_MANIFEST => Kind::Image,
            OCI_ARTIFACT | ORAS_ARTIFACT => Kind::Artifact,
            DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED => Kind::Schema1,
            _ => Kind::Other,
        }
    }

    /// Whether a layer of this type is normally fetched from elsewhere and not held by registries.
    /// Decided by the type alone: the image specification forbids to take `urls` as the sign.
    pub fn is_foreign_layer(&self) -> bool {
        self.0
            .starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
            || self
                .0
                .starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
    }

    /// Whether a descriptor of this type in an index surely names a blob: layers and configs, which
    /// some indexes (build caches) list directly.
    pub fn is_surely_blob(&self) -> bool {
        self.0.starts_with("application/vnd.oci.image.layer.")
            || self.0.starts_with("application/vnd.docker.image.rootfs.")
            || self.0.starts_with("application/vnd.buildkit.cacheconfig.")
            || matches!(
                &*self.0,
                "application/vnd.oci.image.config.v1+json"
                    | "application/vnd.docker.container.image.v1+json"
                    | "application/vnd.oci.empty.v1+json"
                    | OCTET_STREAM
            )
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for MediaType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for MediaType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| MediaType::new(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_matter() {
        let parsed = MediaType::new("Application/vnd.OCI.image.index.v1+json; charset=utf-8");
        assert_eq!(parsed.as_str(), OCI_INDEX);
        assert_eq!(parsed.kind(), Kind::Index);
    }

    #[test]
    fn every_accepted_type_has_a_kind() {
        let listed = ACCEPT
            .strip_suffix(", */*;q=0.1")
            .expect("any other type is accepted last");
        for text in listed.split(", ") {
            assert_ne!(MediaType::new(text).kind(), Kind::Other, "{text}");
        }
    }

    #[test]
    fn foreign_is_decided_by_type() {
        assert!(
            MediaType::new("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
                .is_foreign_layer()
        );
        assert!(
            MediaType::new("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd")
                .is_foreign_layer()
        );
        assert!(!MediaType::new("application/vnd.oci.image.layer.v1.tar+gzip").is_foreign_layer());
    }
}
