//! Whether anything happens at all: what the watchdog is fed by.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Tasks that could run stand still when nothing has happened for so long.
const STILL: Duration = Duration::from_secs(60);

/// When a task last got a permit, a byte, an answer or an error, and how many requests are under
/// way.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds from the start to the last beat.
    last: AtomicU64,
    under_way: AtomicUsize,
    /// Since when tasks have been waiting for permits without a break.
    waiting_since: Mutex<Option<Instant>>,
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse {
            start: Instant::now(),
            last: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            waiting_since: Mutex::default(),
        }
    }
}

impl Pulse {
    /// Something happened.
    pub fn beat(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(millis, Ordering::Relaxed);
    }

    /// A request goes out: what comes of it has a time limit of its own.
    pub fn sent(&self) {
        self.beat();
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has come to its end.
    pub fn ended(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        self.beat();
    }

    /// Whether tasks that could run get nothing any more, while `waiting` of them wait for permits:
    /// no request is under way, and nothing has happened for a minute. To be asked regularly.
    pub fn stands_still(&self, waiting: usize) -> bool {
        let mut since = self
            .waiting_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if waiting == 0 || self.under_way.load(Ordering::Relaxed) > 0 {
            *since = None;
            return false;
        }
        let last = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed));
        let quiet_since = last.max(*since.get_or_insert_with(Instant::now));
        quiet_since.elapsed() >= STILL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_tasks_that_wait_for_permits_while_nothing_happens_stand_still() {
        let pulse = Pulse::default();
        let minute = || tokio::time::advance(STILL);
        minute().await;
        assert!(!pulse.stands_still(0), "nothing is to be done");
        assert!(!pulse.stands_still(3), "they have come just now");
        pulse.sent();
        minute().await;
        assert!(!pulse.stands_still(3), "an answer is waited for");
        pulse.ended();
        assert!(!pulse.stands_still(3));
        tokio::time::advance(STILL / 2).await;
        pulse.beat();
        tokio::time::advance(STILL / 2).await;
        assert!(!pulse.stands_still(3), "a byte came");
        minute().await;
        assert!(pulse.stands_still(3));
    }
}
