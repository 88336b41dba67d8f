//! What the stores hold, and which build runs.

use prometheus::{IntGauge, IntGaugeVec};

use crate::index::Statistics;
use crate::metrics::{options, registered};

/// What the stores hold.
#[derive(Clone)]
pub(super) struct StoreMetrics {
    entries: IntGaugeVec,
    bytes: IntGauge,
    folder_held: IntGauge,
    ledger_writable: IntGauge,
}

impl StoreMetrics {
    pub(super) fn new(registry: &prometheus::Registry) -> Result<StoreMetrics, prometheus::Error> {
        let entries = options("index_entries", "Entries of the index by kind.");
        let bytes = options("index_bytes", "Size of the index on disk.");
        let folder_held = options(
            "state_folder_held",
            "Whether the state folder is the one that this process locked; while it is 0, nothing is named.",
        );
        let ledger_writable = options(
            "ledger_writable",
            "Whether the newest write of the ledger reached the disk; while it is 0, nothing is named.",
        );
        let entries = registered(registry, IntGaugeVec::new(entries, &["kind"])?)?;
        let bytes = registered(registry, IntGauge::with_opts(bytes)?)?;
        let folder_held = registered(registry, IntGauge::with_opts(folder_held)?)?;
        let ledger_writable = registered(registry, IntGauge::with_opts(ledger_writable)?)?;
        folder_held.set(1);
        ledger_writable.set(1);
        for kind in ["blobs", "manifests", "tags", "uploads"] {
            entries.with_label_values(&[kind]);
        }
        Ok(StoreMetrics {
            entries,
            bytes,
            folder_held,
            ledger_writable,
        })
    }

    pub(super) fn show_index(&self, statistics: &Statistics) {
        let counts = [
            ("blobs", statistics.blobs),
            ("manifests", statistics.manifests),
            ("tags", statistics.tags),
            ("uploads", statistics.uploads),
        ];
        for (kind, count) in counts {
            self.entries.with_label_values(&[kind]).set(count as i64);
        }
        self.bytes.set(statistics.bytes as i64);
    }

    /// Shows whether the state folder is still the locked one.
    pub(super) fn show_folder(&self, is_held: bool) {
        self.folder_held.set(is_held.into());
    }

    /// Shows whether the ledger can be written.
    pub(super) fn show_ledger(&self, is_writable: bool) {
        self.ledger_writable.set(is_writable.into());
    }
}

/// `blobferry_build_info`.
pub(super) fn build_info(registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
    let info = options("build_info", "The build that runs: always 1.");
    let info = IntGaugeVec::new(info, &["version", "revision"])?;
    let info = registered(registry, info)?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), crate::REVISION])
        .set(1);
    Ok(())
}
