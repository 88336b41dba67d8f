//! Amazon ECR's events through EventBridge: plain, in an SNS envelope, or as CloudEvents made by an
//! input transformer. A message of a queue has no headers, so a structured CloudEvent is known by
//! its `specversion`, too.
//! <https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-eventbridge.html>
//!
//! | detail type | is about |
//! |---|---|
//! | ECR Image Action | a push, also of the children of an index, which have no tag; a restored image |
//! | ECR Referrer Action | a signature or another referrer |
//! | ECR Image Scan, Inspector2 Scan | findings that a scan gate waits for |

use http::HeaderMap;
use jiff::Timestamp;
use serde::Deserialize;

use super::cloud_event::CloudEvent;
use super::fields::{json, repository, tag, time};
use super::{AwsOrigin, Delivery, Malformed, Push, cloud_event};

const PUSHED_CLOUD_EVENT: &str = "com.amazon.ecr.image.push";

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "detail-type")]
    detail_type: Option<String>,
    account: Option<String>,
    region: Option<String>,
    time: Option<String>,
    detail: Option<Detail>,
    /// Of a CloudEvent.
    #[serde(rename = "specversion")]
    spec_version: Option<String>,
    /// Of an SNS envelope, with the event as its text.
    #[serde(rename = "Message")]
    message: Option<String>,
}

impl Envelope {
    /// The text of the event within.
    fn enclosed(&self) -> Option<&str> {
        let is_event = self.detail_type.is_some() || self.spec_version.is_some();
        self.message.as_deref().filter(|_| !is_event)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Detail {
    result: Option<String>,
    action_type: Option<String>,
    target_storage_class: Option<String>,
    #[serde(default)]
    repository_name: String,
    image_tag: Option<String>,
    #[serde(default)]
    image_tags: Vec<String>,
}

/// `data` of the CloudEvents that the transformer of Argo CD Image Updater's documentation makes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transformed {
    #[serde(default)]
    repository_name: String,
    image_tag: Option<String>,
    registry_id: Option<String>,
}

/// Reads an event.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Delivery, Malformed> {
    if cloud_event::is_cloud_event(headers) {
        return transformed(cloud_event::read(headers, body)?);
    }
    let envelope: Envelope = json(body)?;
    match envelope.enclosed() {
        // Unwrapped once: a message inside of a message is no event.
        Some(message) => event(json(message.as_bytes())?, message.as_bytes()),
        None => event(envelope, body),
    }
}

/// Reads an event of which no header says more, with its text.
fn event(envelope: Envelope, text: &[u8]) -> Result<Delivery, Malformed> {
    if envelope.spec_version.is_some() {
        return transformed(cloud_event::structured(text)?);
    }
    let kind = envelope
        .detail_type
        .ok_or(Malformed::Missing("detail-type"))?;
    let detail = envelope.detail.ok_or(Malformed::Missing("detail"))?;
    let is_scan = matches!(&*kind, "ECR Image Scan" | "Inspector2 Scan");
    let is_action = matches!(&*kind, "ECR Image Action" | "ECR Referrer Action");
    let is_wanted = is_scan || is_action && is_arrival(&detail);
    if !is_wanted {
        return Ok(Delivery::Ignored("nothing was pushed, restored or scanned"));
    }
    let mut push = Push::to(repository("detail.repository-name", name(&detail))?)
        .with_tag(tag("detail.image-tag", detail.image_tag.as_deref())?)
        .at(pushed(&kind, envelope.time.as_deref()));
    for name in &detail.image_tags {
        push.tags.extend(tag("detail.image-tags", Some(name))?);
    }
    push.is_scan = is_scan;
    push.aws = envelope
        .account
        .zip(envelope.region)
        .map(|(account, region)| AwsOrigin { account, region });
    Ok(Delivery::Pushes(vec![push]))
}

/// A push, or an image that came back from the archive.
fn is_arrival(detail: &Detail) -> bool {
    let is_success = detail
        .result
        .as_deref()
        .is_none_or(|result| result == "SUCCESS");
    let is_restored = detail.target_storage_class.as_deref() == Some("STANDARD");
    match detail.action_type.as_deref() {
        Some("PUSH") => is_success,
        Some("UPDATE_STORAGE_CLASS") => is_success && is_restored,
        _ => false,
    }
}

/// Inspector gives the repository's ARN.
fn name(detail: &Detail) -> &str {
    let name = &*detail.repository_name;
    name.split_once(":repository/")
        .map_or(name, |(_, name)| name)
}

/// The time of a scan is not the time of the push.
fn pushed(kind: &str, at: Option<&str>) -> Option<Timestamp> {
    if kind == "ECR Image Action" {
        time(at)
    } else {
        None
    }
}

fn transformed(event: CloudEvent<Transformed>) -> Result<Delivery, Malformed> {
    if event.kind != PUSHED_CLOUD_EVENT {
        return Ok(Delivery::Ignored("no image was pushed"));
    }
    let data = event.data;
    let mut push = Push::to(repository("data.repositoryName", &data.repository_name)?)
        .with_tag(tag("data.imageTag", data.image_tag.as_deref())?)
        .at(time(event.time.as_deref()));
    // The source is `urn:aws:ecr:REGION:ACCOUNT:repository/NAME`.
    let region = event
        .source
        .and_then(|source| source.split(':').nth(3).map(str::to_owned))
        .filter(|region| !region.is_empty());
    push.aws = data
        .registry_id
        .zip(region)
        .map(|(account, region)| AwsOrigin { account, region });
    Ok(Delivery::Pushes(vec![push]))
}
