//! Bandwidth: the blob bytes a second that a registry may cost, by weekday and time of day.
//!
//! A [`Plan`] is data; the meter enforces it. Bytes that were moved are a debt, paid by waiting at
//! the rate in force while it is paid. When a window ends, running transfers continue at the next
//! rate, waits included.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use tokio::time::Instant;

use crate::clock;
use crate::week::{DAY, Hours};

/// Rates by time. Empty: no limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    windows: Arc<[Window]>,
    /// The time zone of the windows.
    zone: TimeZone,
}

/// Hours of the week with their rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The hours.
    pub hours: Hours,
    /// Bytes per second; `None`: no limit.
    pub rate: Option<u64>,
}

impl Window {
    /// Always.
    pub const fn always(rate: Option<u64>) -> Window {
        Window {
            hours: Hours::ALL,
            rate,
        }
    }
}

impl Plan {
    /// One rate at all times, in bytes per second.
    pub fn constant(rate: u64) -> Plan {
        Plan::new([Window::always(Some(rate))], TimeZone::UTC)
    }

    /// Windows. The first that contains the time applies; outside of all there is no limit.
    pub fn new(windows: impl IntoIterator<Item = Window>, zone: TimeZone) -> Plan {
        Plan {
            windows: windows.into_iter().collect(),
            zone,
        }
    }

    /// The rate at a time, and how long it applies at least.
    fn at(&self, time: Timestamp) -> Span {
        let local: Zoned = time.to_zoned(self.zone.clone());
        let minute = local.hour() as u16 * 60 + local.minute() as u16;
        let rate = self
            .windows
            .iter()
            .find(|window| window.hours.contains(local.weekday(), minute))
            .and_then(|window| window.rate);
        let edges = self
            .windows
            .iter()
            .flat_map(|window| [window.hours.from, window.hours.to]);
        let next = edges.filter(|edge| *edge > minute).min().unwrap_or(DAY);
        let into = SignedDuration::new(i64::from(local.second()), local.subsec_nanosecond());
        let left = SignedDuration::from_mins(i64::from(next - minute)) - into;
        Span {
            rate: rate.map(|rate| rate as f64),
            lasts: left.unsigned_abs().max(Duration::from_millis(1)),
        }
    }
}

/// A span of time with one rate.
#[derive(Clone, Copy, Debug)]
struct Span {
    rate: Option<f64>,
    lasts: Duration,
}

/// Longest time between two readings of the wall clock, which may be set meanwhile.
const LOOK: Duration = Duration::from_secs(60);
/// Longest wait that is returned at once.
const LONGEST: Duration = Duration::from_secs(3600);

/// Enforces a plan.
#[derive(Debug)]
pub(super) struct Meter {
    plan: Plan,
    clock: fn(Instant) -> Timestamp,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes that may be sent at once; below zero they are a debt.
    saved: f64,
    at: Instant,
    rate: Option<f64>,
    /// When the rate may change.
    until: Instant,
}

impl Meter {
    pub(super) fn new(plan: Plan) -> Meter {
        Meter::by(plan, |_| clock::now())
    }

    fn by(plan: Plan, clock: fn(Instant) -> Timestamp) -> Meter {
        let now = Instant::now();
        let span = plan.at(clock(now));
        let state = State {
            saved: burst(span.rate),
            at: now,
            rate: span.rate,
            until: now + span.lasts.min(LOOK),
        };
        Meter {
            plan,
            clock,
            state: Mutex::new(state),
        }
    }

    /// Takes bytes. Returns the wait until they are paid for.
    pub(super) fn take(&self, bytes: u64) -> Duration {
        let mut state = self
            .state
            .lock()
            .expect("nothing panics while it holds the meter");
        let now = Instant::now();
        if now >= state.until {
            let known = state.until;
            state.earn(known);
            let span = self.plan.at((self.clock)(now));
            (state.rate, state.until) = (span.rate, now + span.lasts.min(LOOK));
        }
        state.earn(now);
        state.saved -= bytes as f64;
        let debt = -state.saved;
        drop(state);
        self.wait(debt, (self.clock)(now))
    }

    /// How long a debt takes to be paid from `time` on.
    fn wait(&self, mut debt: f64, mut time: Timestamp) -> Duration {
        let mut waited = Duration::ZERO;
        // Less than that is the rounding of fractions.
        while debt >= 1e-6 && waited < LONGEST {
            let Span {
                rate: Some(rate),
                lasts,
            } = self.plan.at(time)
            else {
                break;
            };
            let paid = rate * lasts.as_secs_f64();
            if paid >= debt {
                waited += Duration::from_secs_f64(debt / rate);
                break;
            }
            debt -= paid;
            waited += lasts;
            time = time.saturating_add(lasts).unwrap_or(Timestamp::MAX);
        }
        waited.min(LONGEST)
    }
}

impl State {
    fn earn(&mut self, now: Instant) {
        let most = burst(self.rate);
        self.saved = match self.rate {
            Some(rate) => {
                (self.saved + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(most)
            }
            None => most,
        };
        self.at = self.at.max(now);
    }
}

/// Largest credit at a rate: a quarter of a second, and one frame.
fn burst(rate: Option<f64>) -> f64 {
    (rate.unwrap_or_default() / 4.0).max(65536.0)
}

#[cfg(test)]
mod tests {
    use jiff::civil::{Weekday, date};
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::week::Days;

    const MIB: u64 = 1024 * 1024;

    fn window(days: Days, from: u16, to: u16, rate: u64) -> Window {
        let hours = Hours {
            days,
            from: from * 60,
            to: to * 60,
        };
        Window {
            hours,
            rate: Some(rate),
        }
    }

    fn weekdays() -> Days {
        Days::NONE.and(Weekday::Monday, Weekday::Friday)
    }

    #[test]
    fn the_first_window_that_holds_counts_and_outside_there_is_no_limit() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let plan = Plan::new(
            [
                window(weekdays(), 8, 18, 10),
                window(Days::NONE.and(Weekday::Friday, Weekday::Friday), 22, 6, 20),
                window(
                    Days::NONE.and(Weekday::Saturday, Weekday::Monday),
                    12,
                    13,
                    30,
                ),
                window(weekdays(), 17, 19, 40),
            ],
            zone.clone(),
        );
        let rate = |day: i8, hour: i8, minute: i8| {
            let time = date(2026, 11, day)
                .at(hour, minute, 30, 0)
                .to_zoned(zone.clone())
                .unwrap();
            let Span { rate, lasts } = plan.at(time.timestamp());
            (rate.map(|rate| rate as u64), lasts.as_secs())
        };
        // The 20th is a Friday.
        assert_eq!(rate(20, 7, 59), (None, 30));
        assert_eq!(rate(20, 8, 0), (Some(10), 4 * 3600 - 30));
        assert_eq!(rate(20, 17, 59), (Some(10), 30));
        assert_eq!(rate(20, 18, 0), (Some(40), 3600 - 30));
        assert_eq!(rate(20, 19, 0).0, None);
        assert_eq!(rate(20, 22, 0), (Some(20), 2 * 3600 - 30));
        assert_eq!(rate(21, 5, 59), (Some(20), 30));
        assert_eq!(rate(21, 6, 0).0, None);
        assert_eq!(
            (
                rate(21, 12, 0).0,
                rate(22, 12, 59).0,
                rate(23, 12, 0).0,
                rate(24, 12, 0).0
            ),
            (Some(30), Some(30), Some(10), Some(10))
        );
        assert_eq!(rate(21, 23, 0).0, None, "the night of Saturday");
    }

    /// Five seconds before eight on a Friday, then by the test's own clock.
    fn near_eight(now: Instant) -> Timestamp {
        thread_local!(static BEGIN: Instant = Instant::now());
        let begin = BEGIN.with(|begin| *begin);
        let eight = date(2026, 11, 20)
            .at(7, 59, 55, 0)
            .to_zoned(TimeZone::UTC)
            .unwrap()
            .timestamp();
        eight + now.saturating_duration_since(begin)
    }

    async fn seconds_for(meter: &Meter, mebibytes: u64) -> f64 {
        let start = Instant::now();
        for _ in 0..mebibytes * 16 {
            sleep(meter.take(MIB / 16)).await;
        }
        start.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_at_a_windows_edge_goes_on_at_the_next_rate() {
        let plan = Plan::new(
            [
                window(weekdays(), 8, 18, MIB),
                Window::always(Some(10 * MIB)),
            ],
            TimeZone::UTC,
        );
        let meter = Meter::by(plan, near_eight);
        near_eight(Instant::now());
        let took = seconds_for(&meter, 60).await;
        assert!(
            (12.0..13.0).contains(&took),
            "2.5 MiB at once, 50 MiB in 5 s, 7.5 MiB in 7.5 s: {took}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_a_window_of_more_begins() {
        let plan = Plan::new([window(weekdays(), 7, 8, 10)], TimeZone::UTC);
        let meter = Meter::by(plan, near_eight);
        near_eight(Instant::now());
        let wait = meter.take(MIB);
        assert!(
            (4.9..5.1).contains(&wait.as_secs_f64()),
            "a MiB at ten bytes a second: {wait:?}"
        );
        advance(wait).await;
        assert!(
            meter.take(1000 * MIB).is_zero(),
            "there is no limit any more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_is_told_beyond_an_hour() {
        assert_eq!(Meter::new(Plan::constant(1)).take(u64::MAX), LONGEST);
        assert!(
            Meter::new(Plan::new([], TimeZone::UTC))
                .take(u64::MAX)
                .is_zero()
        );
    }
}
