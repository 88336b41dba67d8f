//! What `command` and `http` are asked.

use serde::Serialize;

use super::referrers::Attached;
use crate::oci::Digest;

/// The version of the shape.
pub const SCHEMA: u32 = 1;

/// What is said where nothing is asked.
pub const NOT_ASKED: &str = "a dry run asks neither `command` nor `http`";

/// Longest reason of an answer, in characters.
pub(super) const LONGEST_REASON: usize = 300;

/// When a gate is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before anything is carried.
    Carry,
    /// Directly before the tag moves.
    Name,
}

/// The question about one tag, as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Question<'a> {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it is asked.
    pub phase: Phase,
    /// The route's name; empty for `copy` and `promote`.
    pub route: &'a str,
    /// `host/repository:tag` of the source.
    pub source: String,
    /// `host/repository:tag` of the destination.
    pub destination: String,
    /// What staging names.
    pub digest: Digest,
    /// What production names.
    pub previous_digest: Option<Digest>,
    /// The media type of the image.
    pub media_type: &'a str,
    /// What is attached to the image in staging.
    pub referrers: &'a [Attached],
}

impl Question<'_> {
    /// The JSON, with the end of a line.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("texts and digests are JSON");
        json.push(b'\n');
        json
    }
}
