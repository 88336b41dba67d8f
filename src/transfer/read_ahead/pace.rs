//! How fast a body moves.

use std::time::Duration;

use tokio::time::Instant;

/// How fast the body moves, and for what part of the time it waits for the source.
pub(super) struct Pace {
    pub(super) since: Instant,
    pub(super) bytes: u64,
    waited: Duration,
    waiting_since: Option<Instant>,
}

impl Pace {
    pub(super) fn start() -> Pace {
        Pace {
            since: Instant::now(),
            bytes: 0,
            waited: Duration::ZERO,
            waiting_since: None,
        }
    }

    pub(super) fn waits(&mut self) {
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    pub(super) fn passed(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
    }

    /// Bytes a second.
    pub(super) fn rate(&self) -> f64 {
        self.bytes as f64 / self.since.elapsed().as_secs_f64().max(1e-3)
    }

    /// The part of the time in which the source was waited for.
    pub(super) fn share_waited(&self) -> f64 {
        self.waited.as_secs_f64() / self.since.elapsed().as_secs_f64().max(1e-3)
    }
}
