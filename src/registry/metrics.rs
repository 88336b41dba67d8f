//! What the registry client counts: requests, their time, blob bytes, the end of credentials.
//!
//! Labels are closed sets: the registry's config name, an [`Operation`], the class of a status.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, core::Collector, exponential_buckets,
};

use crate::telemetry::{Names, forget_series};

/// What a request is for: the endpoint's name in the distribution specification, or our word where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// end-1: the version check.
    Ping,
    /// end-2: a blob, or whether there is one.
    Blob,
    /// end-3: a manifest, or what a tag names.
    Manifest,
    /// end-4a: an upload session is opened.
    Open,
    /// end-5: a chunk.
    Chunk,
    /// end-6: an upload session is closed.
    Close,
    /// end-7: a manifest is written.
    PutManifest,
    /// end-8: tags.
    Tags,
    /// end-11: a mount is tried.
    Mount,
    /// end-12: referrers.
    Referrers,
    /// end-13: how much of a session is there.
    Offset,
    /// end-14: a session is given up.
    Cancel,
    /// The list of repositories.
    Catalog,
    /// A request to a token server.
    Token,
    /// A request that followed a redirect, whatever the first one was for.
    Redirect,
}

impl Operation {
    /// All of them, for series that exist from the start.
    pub const ALL: [Operation; 15] = [
        Operation::Ping,
        Operation::Blob,
        Operation::Manifest,
        Operation::Open,
        Operation::Chunk,
        Operation::Close,
        Operation::PutManifest,
        Operation::Tags,
        Operation::Mount,
        Operation::Referrers,
        Operation::Offset,
        Operation::Cancel,
        Operation::Catalog,
        Operation::Token,
        Operation::Redirect,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Ping => "end-1",
            Operation::Blob => "end-2",
            Operation::Manifest => "end-3",
            Operation::Open => "end-4a",
            Operation::Chunk => "end-5",
            Operation::Close => "end-6",
            Operation::PutManifest => "end-7a",
            Operation::Tags => "end-8",
            Operation::Mount => "end-11",
            Operation::Referrers => "end-12",
            Operation::Offset => "end-13",
            Operation::Cancel => "end-14",
            Operation::Catalog => "catalog",
            Operation::Token => "token",
            Operation::Redirect => "redirect",
        }
    }
}

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
    names: Names,
}

impl Metrics {
    /// Creates the instruments and registers them.
    ///
    /// # Errors
    /// When instruments of these names are registered already.
    pub fn new(registry: &prometheus::Registry) -> Result<Metrics, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help).namespace("blobferry");
        let durations =
            HistogramOpts::new("http_request_duration_seconds", "Time from sending a request to the head of its answer.")
                .namespace("blobferry")
                .buckets(exponential_buckets(0.005, 3.0, 11)?);
        let requests = opts("http_requests_total", "Requests to registries by endpoint and class of status.");
        let bytes = opts("transfer_bytes_total", "Blob bytes read from and sent to registries.");
        let expiry = opts("credential_expiry_timestamp_seconds", "When the credentials in use end, in seconds since the epoch.");
        let metrics = Metrics {
            requests: IntCounterVec::new(requests, &["registry", "operation", "status"])?,
            durations: HistogramVec::new(durations, &["registry", "operation"])?,
            bytes: IntCounterVec::new(bytes, &["registry", "direction"])?,
            expiry: IntGaugeVec::new(expiry, &["registry"])?,
            names: Names::default(),
        };
        let collectors: [Box<dyn Collector>; 4] = [
            Box::new(metrics.requests.clone()),
            Box::new(metrics.durations.clone()),
            Box::new(metrics.bytes.clone()),
            Box::new(metrics.expiry.clone()),
        ];
        collectors.into_iter().try_for_each(|collector| registry.register(collector))?;
        Ok(metrics)
    }

    /// Creates the counters of the registry called `name` at 0, so that the first failure is already an increase.
    pub fn prepare(&self, name: &str) {
        self.names.take_up(name);
        for operation in Operation::ALL {
            for status in STATUSES {
                self.requests.with_label_values(&[name, operation.name(), status]);
            }
        }
        for direction in ["read", "sent"] {
            self.bytes.with_label_values(&[name, direction]);
        }
    }

    /// One call of a control plane: the AWS action, its status if it got an answer, and how long that took.
    pub fn action(&self, registry: &str, action: &'static str, status: Option<u16>, took: Duration) {
        self.observe([registry, action, status_label(status)], took);
    }

    fn observe(&self, labels: [&str; 3], took: Duration) {
        if !self.names.is_gone(labels[0]) {
            self.requests.with_label_values(&labels).inc();
            self.durations.with_label_values(&labels[..2]).observe(took.as_secs_f64());
        }
    }

    /// Forgets the registries that are not in `known`. Their requests that still run bring nothing back.
    pub fn retain(&self, known: &HashSet<&str>) {
        self.names.retain(known);
        let gone = |label: &dyn Fn(&str) -> String| !known.contains(&*label("registry"));
        [&self.requests, &self.bytes].into_iter().for_each(|vec| forget_series(vec, gone));
        forget_series(&self.durations, gone);
        forget_series(&self.expiry, gone);
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
        self.metrics.observe([self.name.as_str(), operation.name(), status_label(status)], took);
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
        let count = |name: &str| families.iter().find(|family| family.name() == name).map(|family| family.get_metric().len());
        assert_eq!(count("blobferry_http_requests_total"), Some(Operation::ALL.len() * STATUSES.len()));
        assert_eq!(count("blobferry_transfer_bytes_total"), Some(2));
        metrics.meter("staging").observe(Operation::Blob, None, Duration::from_millis(1));
        assert_eq!(metrics.requests.with_label_values(&["staging", "end-2", "error"]).get(), 1);
        metrics.retain(&HashSet::from(["staging"]));
        assert_eq!(registry.gather().len(), families.len() + 1, "the durations came");
        let meter = metrics.meter("staging");
        metrics.retain(&HashSet::new());
        meter.observe(Operation::Blob, None, Duration::from_millis(1));
        meter.expiry(clock::now());
        metrics.action("staging", "DescribeImages", None, Duration::from_millis(1));
        assert!(registry.gather().is_empty(), "what still runs brings nothing back");
        metrics.prepare("staging");
        metrics.action("staging", "DescribeImages", None, Duration::from_millis(1));
        assert!(!registry.gather().is_empty());
    }

    #[test]
    fn every_status_has_a_class() {
        for (status, label) in [(Some(204), "2xx"), (Some(307), "3xx"), (Some(416), "4xx"), (Some(503), "5xx"), (None, "error")] {
            assert_eq!(status_label(status), label);
        }
    }
}
