//! Descriptors: media type, digest, size. Image specification, `descriptor.md`.

use serde::Serialize;

use super::digest::Digest;
use super::media_type::MediaType;

/// What a manifest says of a piece of content. The size is a claim until the bytes have been
/// counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The type of the content; empty when the manifest names none.
    pub media_type: MediaType,
    /// The identity of the content.
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size: u64,
    /// `os/architecture[/variant]` for a child of an index, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

impl Descriptor {
    /// A descriptor without a platform.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type,
            digest,
            size,
            platform: None,
        }
    }
}
