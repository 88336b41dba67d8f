//! Series whose time is over.

use std::collections::HashMap;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};

/// Drops the series whose labels `gone` says are gone.
pub fn forget_series<T: MetricVecBuilder>(vec: &MetricVec<T>, gone: impl Fn(&dyn Fn(&str) -> String) -> bool) {
    let families = vec.collect();
    for metric in families.iter().flat_map(|family| family.get_metric()) {
        let labels: HashMap<&str, &str> = metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
        if gone(&|name| labels.get(name).copied().unwrap_or_default().to_owned()) {
            // It was just there; whoever dropped it meanwhile wanted the same.
            let _ = vec.remove(&labels);
        }
    }
}
