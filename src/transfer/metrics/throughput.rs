//! Throughput: bytes per second over a sliding window.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::Gauge;
use tokio::time::Instant;

/// The window of the throughput gauges.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Rate {
    pub(super) key: String,
    pub(super) gauge: Gauge,
    pub(super) window: [(u64, u64); WINDOW.as_secs() as usize],
    pub(super) started: Instant,
}

impl Rate {
    pub(super) fn second(&self) -> u64 {
        self.started.elapsed().as_secs() + 1
    }

    pub(super) fn add(&mut self, bytes: u64) {
        let second = self.second();
        let slot = &mut self.window[(second % WINDOW.as_secs()) as usize];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 += bytes;
    }

    pub(super) fn per_second(&self) -> f64 {
        let now = self.second();
        let recent = self
            .window
            .iter()
            .filter(|(second, _)| *second + WINDOW.as_secs() > now);
        recent.map(|(_, bytes)| *bytes as f64).sum::<f64>() / WINDOW.as_secs_f64()
    }
}

/// Counts bytes for a throughput gauge.
#[derive(Clone, Debug)]
pub struct Meter {
    pub(super) rates: Arc<Mutex<Vec<Rate>>>,
    pub(super) at: usize,
}

impl Meter {
    /// Counts bytes.
    pub fn add(&self, bytes: u64) {
        if let Some(rate) = self
            .rates
            .lock()
            .expect("nothing panics while it counts")
            .get_mut(self.at)
        {
            rate.add(bytes);
        }
    }
}
