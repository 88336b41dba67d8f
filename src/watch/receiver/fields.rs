//! Fields that several kinds share.

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::Malformed;
use crate::oci::{Digest, RepositoryName, Tag};

/// Characters of a pusher's name at most.
const MAX_PUSHER: usize = 128;

/// The body as `T`. serde_json bounds the depth of nesting.
pub fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(body).map_err(|error| Malformed::Json {
        line: error.line(),
        column: error.column(),
    })
}

/// A repository's name without a host.
pub fn repository(field: &'static str, text: &str) -> Result<RepositoryName, Malformed> {
    text.parse().map_err(|_| Malformed::Name(field))
}

/// A tag; `None` where senders put nothing or a digest in its place.
pub fn tag(field: &'static str, text: Option<&str>) -> Result<Option<Tag>, Malformed> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text.parse::<Digest>().is_ok() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Malformed::Name(field))
}

/// The repository of `host/repository`, `host/repository:tag` or `host/repository@digest`.
pub fn without_host(field: &'static str, text: &str) -> Result<RepositoryName, Malformed> {
    let (_, path) = text.split_once('/').ok_or(Malformed::Name(field))?;
    let path = path.split_once('@').map_or(path, |(path, _)| path);
    let path = path.split_once(':').map_or(path, |(path, _)| path);
    repository(field, path)
}

/// A time as RFC 3339.
pub fn time(text: Option<&str>) -> Option<Timestamp> {
    text?.parse().ok()
}

/// A time in seconds since the epoch.
pub fn epoch(seconds: Option<f64>) -> Option<Timestamp> {
    let seconds = seconds.filter(|seconds| seconds.is_finite())?;
    Timestamp::from_millisecond((seconds * 1000.0) as i64).ok()
}

/// A pusher's name that can stand in a log and in the ledger.
pub fn pusher(text: String) -> Option<String> {
    let text: String = text
        .chars()
        .filter(|letter| !letter.is_control())
        .take(MAX_PUSHER)
        .collect();
    Some(text).filter(|text| !text.trim().is_empty())
}
