//! Stalls: which side of a transfer is awaited, and when so little moves that the transfer is cut
//! and tried again later.
//!
//! Only time in which a side was to act counts: not our own waits for bandwidth, not the wait for
//! the answer to a request that has all its bytes, which has a limit of its own.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// When a transfer counts as stalled.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes per second that must move.
    pub floor: u64,
    /// The time over which that is judged.
    pub window: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            floor: 10 * 1024,
            window: Duration::from_secs(30),
        }
    }
}

/// For what a road waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Bytes of the source.
    Source,
    /// That the destination takes more.
    Destination,
    /// Our own bandwidth, or the destination's answer after all bytes of a request.
    Else,
}

/// Time spent waiting, by what for.
#[derive(Debug)]
pub(super) struct Clock {
    wait: Wait,
    since: Instant,
    source: Duration,
    destination: Duration,
}

/// What a road came to by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// Bytes that moved: read and handed on.
    pub(super) moved: u64,
    /// Time spent waiting for the source.
    pub(super) source: Duration,
    /// Time spent waiting for the destination.
    pub(super) destination: Duration,
}

impl Clock {
    /// A clock that does not wait yet.
    pub(super) fn start() -> Clock {
        Clock {
            wait: Wait::Else,
            since: Instant::now(),
            source: Duration::ZERO,
            destination: Duration::ZERO,
        }
    }

    /// From now on the road waits for something else.
    pub(super) fn turn_to(&mut self, wait: Wait) {
        if wait != self.wait {
            (self.source, self.destination) = self.spent();
            (self.wait, self.since) = (wait, Instant::now());
        }
    }

    /// Time spent waiting for the source and for the destination.
    pub(super) fn spent(&self) -> (Duration, Duration) {
        let mut spent = (self.source, self.destination);
        match self.wait {
            Wait::Source => spent.0 += self.since.elapsed(),
            Wait::Destination => spent.1 += self.since.elapsed(),
            Wait::Else => {}
        }
        spent
    }
}

/// Looks at a road again and again.
#[derive(Debug)]
pub(super) struct Watch {
    settings: Settings,
    samples: VecDeque<Sample>,
}

impl Watch {
    /// A watch over what happens after `start`.
    pub(super) fn new(settings: Settings, start: Sample) -> Watch {
        Watch {
            settings,
            samples: VecDeque::from([start]),
        }
    }

    /// Takes a sample. `Some` when less than the floor moved over the last window: the side that
    /// was waited for most.
    pub(super) fn see(&mut self, now: Sample) -> Option<Wait> {
        let waited =
            |sample: &Sample| (now.source + now.destination) - (sample.source + sample.destination);
        self.samples.push_back(now);
        // The first sample is the latest of those that are a whole window old.
        while self
            .samples
            .get(1)
            .is_some_and(|next| waited(next) >= self.settings.window)
        {
            self.samples.pop_front();
        }
        let first = self.samples.front()?;
        let least = self.settings.window.as_secs_f64() * self.settings.floor as f64;
        let is_stalled =
            waited(first) >= self.settings.window && ((now.moved - first.moved) as f64) < least;
        let by_source = now.source - first.source > now.destination - first.destination;
        is_stalled.then_some(if by_source {
            Wait::Source
        } else {
            Wait::Destination
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_side_has_its_own_share_of_the_wait() {
        let mut clock = Clock::start();
        for (wait, seconds) in [
            (Wait::Else, 5),
            (Wait::Source, 2),
            (Wait::Destination, 3),
            (Wait::Source, 4),
        ] {
            clock.turn_to(wait);
            tokio::time::advance(SECOND * seconds).await;
        }
        assert_eq!(clock.spent(), (SECOND * 6, SECOND * 3));
        clock.turn_to(Wait::Else);
        tokio::time::advance(SECOND * 100).await;
        assert_eq!(clock.spent(), (SECOND * 6, SECOND * 3));
    }

    /// Feeds one sample a second; returns the second of the stall, and the side that stalls.
    fn calls_out(
        bytes: impl Fn(u32) -> u64,
        source_waits: impl Fn(u32) -> bool,
        active: impl Fn(u32) -> bool,
    ) -> Option<(u32, Wait)> {
        let mut watch = Watch::new(Settings::default(), Sample::default());
        let mut sample = Sample::default();
        (1..=200).find_map(|second| {
            sample.moved += bytes(second);
            if active(second) {
                *(if source_waits(second) {
                    &mut sample.source
                } else {
                    &mut sample.destination
                }) += SECOND;
            }
            watch.see(sample).map(|wait| (second, wait))
        })
    }

    #[test]
    fn a_trickle_is_cut_after_a_window_and_the_slow_side_is_blamed() {
        assert_eq!(
            calls_out(|_| 5000, |_| true, |_| true),
            Some((30, Wait::Source))
        );
        assert_eq!(
            calls_out(|_| 0, |_| false, |_| true),
            Some((30, Wait::Destination))
        );
        assert_eq!(
            calls_out(|_| 0, |second| second % 3 == 0, |_| true),
            Some((30, Wait::Destination))
        );
    }

    #[test]
    fn a_transfer_that_moves_or_waits_for_no_side_is_left_alone() {
        assert_eq!(calls_out(|_| 11_000, |_| true, |_| true), None);
        assert_eq!(
            calls_out(|_| 0, |_| true, |_| false),
            None,
            "the answer to a closing request has a limit of its own"
        );
        assert_eq!(
            calls_out(
                |second| if second % 20 == 0 { 400_000 } else { 0 },
                |_| true,
                |_| true
            ),
            None,
            "bursts are a way to move"
        );
    }

    #[test]
    fn a_transfer_that_dries_up_is_cut_a_window_later() {
        assert_eq!(
            calls_out(
                |second| if second <= 100 { 1 << 20 } else { 0 },
                |_| true,
                |_| true
            ),
            Some((130, Wait::Source))
        );
    }
}
