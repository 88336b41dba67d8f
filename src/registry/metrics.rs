//! What the registry client counts: requests, their time, blob bytes, the end of credentials.
//!
//! Labels are closed sets: the registry's config name, an [`Operation`], the class of a status.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use prometheus::core::{MetricVec, MetricVecBuilder};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::metrics::{LabelNames, forget_series, options, registered};

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// end-2, GET: a blob's bytes.
    BlobGet,
    /// end-2, HEAD: whether there is a blob.
    BlobHead,
    /// end-3, GET: a manifest's bytes.
    ManifestGet,
    /// end-3, HEAD: what a tag names.
    ManifestHead,
    /// end-7: a manifest is written.
    ManifestPut,
    /// end-8: tags.
    TagList,
    /// The list of repositories.
    Catalog,
    /// end-12: referrers.
    ReferrerList,
    /// end-4a: an upload session is opened.
    UploadOpen,
    /// end-5: a chunk.
    UploadChunk,
    /// end-6: an upload session is closed.
    UploadFinish,
    /// end-13: how much of a session is there.
    UploadStatus,
    /// end-14: a session is given up.
    UploadCancel,
    /// end-11: a mount is tried.
    BlobMount,
    /// A request that followed a redirect, whatever the first one was for.
    Redirect,
    /// end-1: the version check.
    Ping,
    /// A request to a token server.
    Token,
}

impl Operation {
    /// All of them, for series that exist from the start.
    pub const ALL: [Operation; 17] = [
        Operation::BlobGet,
        Operation::BlobHead,
        Operation::ManifestGet,
        Operation::ManifestHead,
        Operation::ManifestPut,
        Operation::TagList,
        Operation::Catalog,
        Operation::ReferrerList,
        Operation::UploadOpen,
        Operation::UploadChunk,
        Operation::UploadFinish,
        Operation::UploadStatus,
        Operation::UploadCancel,
        Operation::BlobMount,
        Operation::Redirect,
        Operation::Ping,
        Operation::Token,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Operation::BlobGet => "blob_get",
            Operation::BlobHead => "blob_head",
            Operation::ManifestGet => "manifest_get",
            Operation::ManifestHead => "manifest_head",
            Operation::ManifestPut => "manifest_put",
            Operation::TagList => "tag_list",
            Operation::Catalog => "catalog",
            Operation::ReferrerList => "referrer_list",
            Operation::UploadOpen => "upload_open",
            Operation::UploadChunk => "upload_chunk",
            Operation::UploadFinish => "upload_finish",
            Operation::UploadStatus => "upload_status",
            Operation::UploadCancel => "upload_cancel",
            Operation::BlobMount => "blob_mount",
            Operation::Redirect => "redirect",
            Operation::Ping => "ping",
            Operation::Token => "token",
        }
    }
}

/// Bounds of the time to an answer: from a HEAD nearby to the close of a large upload.
const REQUEST_SECONDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// The status label of a request that got no answer.
const NO_ANSWER: &str = "error";
const STATUSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", NO_ANSWER];

fn status_label(status: Option<u16>) -> &'static str {
    match status {
        Some(100..=299) => "2xx",
        Some(300..=399) => "3xx",
        Some(400..=499) => "4xx",
        Some(_) => "5xx",
        None => NO_ANSWER,
    }
}

/// The instruments, shared by all registries.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    bytes: IntCounterVec,
    expiry: IntGaugeVec,
    names: LabelNames,
}

impl Metrics {
    /// Creates the instruments and registers them.
    ///
    /// # Errors
    /// When instruments of these names are registered already.
    pub fn new(registry: &prometheus::Registry) -> Result<Metrics, prometheus::Error> {
        let durations = HistogramOpts::new(
            "http_request_duration_seconds",
            "Time from sending a request to the head of its answer.",
        )
        .namespace("blobferry")
        .buckets(REQUEST_SECONDS.to_vec());
        let requests = options(
            "http_requests_total",
            "Requests to registries by operation and class of status.",
        );
        let bytes = options(
            "transfer_bytes_total",
            "Blob bytes read from and sent to registries.",
        );
        let expiry = options(
            "credential_expiry_timestamp_seconds",
            "When the credentials in use end, in seconds since the epoch.",
        );
        let requests = IntCounterVec::new(requests, &["registry", "operation", "status"])?;
        let durations = HistogramVec::new(durations, &["registry", "operation"])?;
        let bytes = IntCounterVec::new(bytes, &["registry", "direction"])?;
        let expiry = IntGaugeVec::new(expiry, &["registry"])?;
        Ok(Metrics {
            requests: registered(registry, requests)?,
            durations: registered(registry, durations)?,
            bytes: registered(registry, bytes)?,
            expiry: registered(registry, expiry)?,
            names: LabelNames::default(),
        })
    }

    /// Creates the counters of the registry called `name` at 0, so that the first failure is
    /// already an increase.
    pub fn prepare(&self, name: &str) {
        self.names.take_up(name);
        for operation in Operation::ALL {
            for status in STATUSES {
                self.requests
                    .with_label_values(&[name, operation.name(), status]);
            }
        }
        for direction in ["read", "sent"] {
            self.bytes.with_label_values(&[name, direction]);
        }
    }

    /// One call of a control plane: the AWS action, its status if it got an answer, and how long
    /// that took.
    pub fn action(
        &self,
        registry: &str,
        action: &'static str,
        status: Option<u16>,
        took: Duration,
    ) {
        self.observe([registry, action, status_label(status)], took);
    }

    fn observe(&self, labels: [&str; 3], took: Duration) {
        if !self.names.is_gone(labels[0]) {
            self.requests.with_label_values(&labels).inc();
            self.durations
                .with_label_values(&labels[..2])
                .observe(took.as_secs_f64());
        }
    }

    /// Forgets the registries that are not in `known`. Their requests that still run bring nothing
    /// back.
    pub fn retain(&self, known: &HashSet<&str>) {
        self.names.retain(known);
        forget_registries(&self.requests, known);
        forget_registries(&self.bytes, known);
        forget_registries(&self.durations, known);
        forget_registries(&self.expiry, known);
    }

    /// The instruments of one registry.
    pub(super) fn meter(&self, name: &str) -> Meter {
        Meter {
            name: name.to_string(),
            read: self.bytes.with_label_values(&[name, "read"]),
            sent: self.bytes.with_label_values(&[name, "sent"]),
            metrics: self.clone(),
        }
    }
}

fn forget_registries<T: MetricVecBuilder>(vec: &MetricVec<T>, known: &HashSet<&str>) {
    forget_series(vec, |label| !known.contains(&*label("registry")));
}

/// The instruments of one registry.
#[derive(Clone)]
pub(super) struct Meter {
    name: String,
    metrics: Metrics,
    /// Blob bytes received.
    pub(super) read: IntCounter,
    /// Blob bytes handed to the connection.
    pub(super) sent: IntCounter,
}

impl Meter {
    /// One request: what for, its status if it got an answer, and how long that took.
    pub(super) fn observe(&self, operation: Operation, status: Option<u16>, took: Duration) {
        self.metrics.observe(
            [self.name.as_str(), operation.name(), status_label(status)],
            took,
        );
    }

    /// When the credentials in use end.
    pub(super) fn expiry(&self, at: Timestamp) {
        if !self.metrics.names.is_gone(&self.name) {
            let gauge: IntGauge = self.metrics.expiry.with_label_values(&[self.name.as_str()]);
            gauge.set(at.as_second());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn counters_exist_before_the_first_request() {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.prepare("staging");
        let families = registry.gather();
        let count = |name: &str| {
            families
                .iter()
                .find(|family| family.name() == name)
                .map(|family| family.get_metric().len())
        };
        assert_eq!(
            count("blobferry_http_requests_total"),
            Some(Operation::ALL.len() * STATUSES.len())
        );
        assert_eq!(count("blobferry_transfer_bytes_total"), Some(2));
        metrics
            .meter("staging")
            .observe(Operation::BlobGet, None, Duration::from_millis(1));
        assert_eq!(
            metrics
                .requests
                .with_label_values(&["staging", "blob_get", "error"])
                .get(),
            1
        );
        metrics.retain(&HashSet::from(["staging"]));
        assert_eq!(
            registry.gather().len(),
            families.len() + 1,
            "the durations came"
        );
        let meter = metrics.meter("staging");
        metrics.retain(&HashSet::new());
        meter.observe(Operation::BlobGet, None, Duration::from_millis(1));
        meter.expiry(clock::now());
        metrics.action("staging", "DescribeImages", None, Duration::from_millis(1));
        assert!(
            registry.gather().is_empty(),
            "what still runs brings nothing back"
        );
        metrics.prepare("staging");
        metrics.action("staging", "DescribeImages", None, Duration::from_millis(1));
        assert!(!registry.gather().is_empty());
    }

    #[test]
    fn every_status_has_a_class() {
        for (status, label) in [
            (Some(204), "2xx"),
            (Some(307), "3xx"),
            (Some(416), "4xx"),
            (Some(503), "5xx"),
            (None, "error"),
        ] {
            assert_eq!(status_label(status), label);
        }
    }
}
