//! How far our clock is off a registry's: from the `Date` of its answers.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

const UNKNOWN: i64 = i64::MIN;
/// The clocks may differ by so many seconds.
const MOST: i64 = 60;

/// Whether our clock is too far off a registry's to tell the time by it. A registry without a clock
/// does not contradict ours.
pub fn is_clock_off(skew: Option<SignedDuration>) -> bool {
    skew.is_some_and(|skew| skew.as_secs().abs() > MOST)
}

/// How far our clock is ahead of a registry's, by its last answer.
#[derive(Debug)]
pub struct ClockSkew(AtomicI64);

impl Default for ClockSkew {
    fn default() -> ClockSkew {
        ClockSkew(AtomicI64::new(UNKNOWN))
    }
}

impl ClockSkew {
    /// Records the time that an answer names, which came at `now`.
    pub fn note(&self, theirs: Timestamp, now: Timestamp) {
        let ahead = now.duration_since(theirs).as_secs();
        self.0.store(ahead, Ordering::Relaxed);
    }

    /// How far our clock is ahead. `None`: no answer has named a time.
    pub fn get(&self) -> Option<SignedDuration> {
        let ahead = self.0.load(Ordering::Relaxed);
        (ahead != UNKNOWN).then(|| SignedDuration::from_secs(ahead))
    }
}
