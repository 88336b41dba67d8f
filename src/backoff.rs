//! Backoff: the wait before another try, which doubles with each failure in a row up to a limit.

use std::time::Duration;

/// The first wait and the longest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// A backoff that begins with `first` and does not exceed `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest }
    }

    /// The wait after so many failures in a row; the count starts at one.
    pub fn wait(self, failures: u32) -> Duration {
        let doublings = failures.max(1) - 1;
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// A server's hint, raised to the first wait: a server that names no time at all is not asked
    /// in a tight loop.
    pub fn hinted(self, hint: Duration) -> Duration {
        hint.max(self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_longest_and_never_overflow() {
        let backoff = Backoff::new(SECOND, SECOND * 10);
        let waits: Vec<u64> = (0..7)
            .map(|failures| backoff.wait(failures).as_secs())
            .collect();
        assert_eq!(waits, [1, 1, 2, 4, 8, 10, 10]);
        for failures in [32, 33, u32::MAX] {
            assert_eq!(backoff.wait(failures), SECOND * 10);
        }
        let endless = Backoff::new(Duration::MAX, Duration::MAX);
        assert_eq!(endless.wait(u32::MAX), Duration::MAX);
    }

    #[test]
    fn a_hint_is_kept_unless_it_is_shorter_than_the_first_wait() {
        let backoff = Backoff::new(SECOND, SECOND * 10);
        assert_eq!(backoff.hinted(Duration::ZERO), SECOND);
        assert_eq!(backoff.hinted(SECOND * 700), SECOND * 700);
    }
}
