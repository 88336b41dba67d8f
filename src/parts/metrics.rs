//! What the stores hold, and which build runs.

use crate::index::Statistics;
use prometheus::{IntGauge, IntGaugeVec, Opts};

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
        let entries = IntGaugeVec::new(
            Opts::new("blobferry_index_entries", "Entries of the index by kind."),
            &["kind"],
        )?;
        let bytes = IntGauge::new("blobferry_index_bytes", "Size of the index on disk.")?;
        let help = "Whether the state folder is the one that this process locked; while it is 0, nothing is named.";
        let folder_held = IntGauge::new("blobferry_state_folder_held", help)?;
        folder_held.set(1);
        let help = "Whether the newest write of the ledger reached the disk; while it is 0, nothing is named.";
        let ledger_writable = IntGauge::new("blobferry_ledger_writable", help)?;
        ledger_writable.set(1);
        registry.register(Box::new(entries.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(folder_held.clone()))?;
        registry.register(Box::new(ledger_writable.clone()))?;
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
    let info = IntGaugeVec::new(
        Opts::new("blobferry_build_info", "The build that runs: always 1."),
        &["version", "revision"],
    )?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), crate::REVISION])
        .set(1);
    registry.register(Box::new(info))
}
