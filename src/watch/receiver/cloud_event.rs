//! CloudEvents over HTTP in both modes: attributes in `ce-` headers with the data as body (binary),
//! or one JSON document (structured).
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Malformed;
use super::fields::json;

/// The media type of structured mode.
const STRUCTURED: &str = "application/cloudevents+json";

/// An event with its data.
#[derive(Debug)]
pub struct CloudEvent<T> {
    /// What happened.
    pub kind: String,
    /// When.
    pub time: Option<String>,
    /// Where it happened.
    pub source: Option<String>,
    /// The attribute `operator` that Harbor adds.
    pub operator: Option<String>,
    /// The data.
    pub data: T,
}

#[derive(Deserialize)]
struct Structured<T> {
    #[serde(rename = "type")]
    kind: String,
    time: Option<String>,
    source: Option<String>,
    operator: Option<String>,
    data: T,
}

/// Whether the request is a CloudEvents message of either mode.
pub fn is_cloud_event(headers: &HeaderMap) -> bool {
    header(headers, "ce-type").is_some() || is_structured(headers)
}

/// Reads either mode.
pub fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<CloudEvent<T>, Malformed> {
    if let Some(kind) = header(headers, "ce-type") {
        return Ok(CloudEvent {
            kind,
            time: header(headers, "ce-time"),
            source: header(headers, "ce-source"),
            operator: header(headers, "ce-operator"),
            data: json(body)?,
        });
    }
    if !is_structured(headers) {
        return Err(Malformed::NoCloudEvent);
    }
    structured(body)
}

/// Reads structured mode where no header can tell: in the body of a queue's message, in an
/// envelope of SNS.
pub fn structured<T: DeserializeOwned>(body: &[u8]) -> Result<CloudEvent<T>, Malformed> {
    let event: Structured<T> = json(body)?;
    Ok(CloudEvent {
        kind: event.kind,
        time: event.time,
        source: event.source,
        operator: event.operator,
        data: event.data,
    })
}

fn is_structured(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    content_type.is_some_and(|text| {
        let media_type = text.split(';').next().unwrap_or_default().trim();
        media_type.eq_ignore_ascii_case(STRUCTURED)
    })
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
