//! How metrics are registered, and series that end: of routes and registries that a config no longer has.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{Error, Opts, Registry};

/// The options of an instrument: its name begins with the program's.
pub fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("blobferry")
}

/// Registers an instrument.
///
/// # Errors
/// When one of its name is registered already.
pub fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    instrument: C,
) -> Result<C, Error> {
    registry.register(Box::new(instrument.clone()))?;
    Ok(instrument)
}

/// Drops the series with labels for which `gone` holds.
pub fn forget_series<T: MetricVecBuilder>(
    vec: &MetricVec<T>,
    gone: impl Fn(&dyn Fn(&str) -> String) -> bool,
) {
    let families = vec.collect();
    for metric in families.iter().flat_map(|family| family.get_metric()) {
        let labels: HashMap<&str, &str> = metric
            .get_label()
            .iter()
            .map(|label| (label.name(), label.value()))
            .collect();
        if gone(&|name| labels.get(name).copied().unwrap_or_default().to_owned()) {
            // It was there a moment ago; another drop in the meantime has the same effect.
            let _ = vec.remove(&labels);
        }
    }
}

/// LabelNames that labels may have. What still runs for a name that was given up is counted
/// nowhere: it must not bring the series back. A name that was never heard of is no such name.
/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LabelNames(Arc<Mutex<HashMap<String, bool>>>);

impl LabelNames {
    /// The name has series from now on.
    pub fn take_up(&self, name: &str) {
        self.lock().insert(name.to_owned(), true);
    }

    /// Gives up all names that are not `known`.
    pub fn retain(&self, known: &HashSet<&str>) {
        self.lock()
            .iter_mut()
            .for_each(|(name, lasts)| *lasts &= known.contains(name.as_str()));
    }

    /// Whether the name was given up.
    pub fn is_gone(&self, name: &str) -> bool {
        self.lock().get(name) == Some(&false)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.0
            .lock()
            .expect("nothing panics while it looks up a name")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_gone_from_its_end_until_it_is_taken_up_again() {
        let names = LabelNames::default();
        names.take_up("a");
        names.take_up("b");
        names.retain(&HashSet::from(["b"]));
        assert_eq!(
            ["a", "b", "c"].map(|name| names.is_gone(name)),
            [true, false, false]
        );
        names.take_up("a");
        assert!(!names.is_gone("a"));
    }
}
