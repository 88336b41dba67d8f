//! The wall clock: the one source of the time of day.
//!
//! Durations and deadlines are measured by tokio's clock, which a test can pause. The time of day
//! comes from the system, except on a thread that simulates it: there it follows tokio's clock from
//! a given start, and can be set forward or back as an operator or a time server does.

use std::cell::Cell;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

thread_local! {
    static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) };
}

/// The time of day at one instant of tokio's clock.
#[derive(Clone, Copy)]
struct Simulated {
    at: Instant,
    time: Timestamp,
}

/// The time of day.
pub fn now() -> Timestamp {
    SIMULATED
        .get()
        .map_or_else(system, |simulated| simulated.now())
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that asks the system"
)]
fn system() -> Timestamp {
    Timestamp::now()
}

/// From now on this thread's time of day is `time` and follows tokio's clock. Calling it again sets
/// that clock anew.
pub fn simulate(time: Timestamp) {
    SIMULATED.set(Some(Simulated {
        at: Instant::now(),
        time,
    }));
}

/// Sets the simulated time of day forward or back, while tokio's clock goes on as before. Does
/// nothing to the system's clock.
pub fn step(by: SignedDuration) {
    if let Some(simulated) = SIMULATED.get() {
        simulate(
            simulated
                .now()
                .saturating_add(by)
                .expect("a duration without units of the calendar"),
        );
    }
}

impl Simulated {
    fn now(self) -> Timestamp {
        self.time
            .saturating_add(self.at.elapsed())
            .expect("a duration without units of the calendar")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_time_of_day_follows_tokio_and_can_be_set() {
        let start: Timestamp = "2026-11-24T09:00:00Z".parse().unwrap();
        simulate(start);
        assert_eq!(now(), start);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(now(), start + SignedDuration::from_secs(90));
        step(SignedDuration::from_secs(-3600));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(now(), start + SignedDuration::from_secs(91 - 3600));
    }

    #[test]
    fn the_system_decides_on_a_thread_that_simulates_nothing() {
        let before = system();
        step(SignedDuration::from_hours(5));
        assert!((before..before + SignedDuration::from_hours(1)).contains(&now()));
    }
}
