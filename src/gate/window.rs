//! `window`: the hours in which tags move, by the wall clock of a zone at the moment of the PUT.
//!
//! An hour that a day skips holds for no instant, and one that a day has twice holds twice.

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use serde_json::json;

use crate::job::gates::Window;
use crate::job::{GateKind, Judgement, NextJudgement};
use crate::week::DAY;

/// How many days ahead the next opening is looked for.
const AHEAD: i32 = 400;

/// The verdict on the time of day.
pub fn judge(window: &Window, now: Timestamp) -> Judgement {
    let local = now.to_zoned(window.zone.clone());
    let evidence = json!({"zone": zone_name(window), "local_time": local.strftime("%Y-%m-%dT%H:%M%:z").to_string()});
    if is_open(window, now) {
        return Judgement::pass(GateKind::Window, "the window is open", evidence);
    }
    let Some(opens) = next_opening(window, now) else {
        let reason = format!("the window does not open within {AHEAD} days");
        return Judgement::wait(GateKind::Window, reason, evidence, NextJudgement::Verify);
    };
    let local = opens.to_zoned(window.zone.clone());
    let reason = format!(
        "the window opens at {} ({})",
        local.strftime("%Y-%m-%dT%H:%M:%S%:z"),
        zone_name(window)
    );
    Judgement::wait(GateKind::Window, reason, evidence, NextJudgement::At(opens))
}

fn zone_name(window: &Window) -> String {
    window.zone.iana_name().unwrap_or("local time").to_owned()
}

/// Whether tags move at that time.
pub fn is_open(window: &Window, time: Timestamp) -> bool {
    let local = time.to_zoned(window.zone.clone());
    let day = local.date();
    if window.closed.iter().any(|dates| dates.contains(day)) {
        return false;
    }
    let minute = local.hour() as u16 * 60 + local.minute() as u16;
    window.open.is_empty()
        || window
            .open
            .iter()
            .any(|hours| hours.contains(local.weekday(), minute))
}

/// The first time after `now` at which the window is open.
fn next_opening(window: &Window, now: Timestamp) -> Option<Timestamp> {
    let today = now.to_zoned(window.zone.clone()).date();
    let days = (-1..=AHEAD).filter_map(|ahead| today.checked_add(ahead.days()).ok());
    days.filter_map(|day| {
        let edges = edges(window, day).into_iter();
        edges
            .filter(|edge| *edge > now && is_open(window, *edge))
            .min()
    })
    .next()
}

/// The times of a day at which the window may open: its hours begin, a closed day is over, or the
/// clocks change. No time of another day is among them: the first opening of a day would hide an
/// earlier one.
fn edges(window: &Window, day: Date) -> Vec<Timestamp> {
    let minutes = window.open.iter().map(|hours| hours.from).chain([0]);
    let mut edges = Vec::new();
    for minute in minutes.filter(|minute| *minute < DAY) {
        let time = day.at((minute / 60) as i8, (minute % 60) as i8, 0, 0);
        let ambiguous = window.zone.to_ambiguous_timestamp(time);
        edges.extend(ambiguous.earlier());
        edges.extend(ambiguous.later());
    }
    let Some(first) = edges.iter().min().copied() else {
        return edges;
    };
    let begin = first.saturating_sub(SignedDuration::from_hours(24));
    let end = first.saturating_add(SignedDuration::from_hours(48));
    let (Ok(begin), Ok(end)) = (begin, end) else {
        return edges;
    };
    let changes = window.zone.following(begin);
    let changes = changes.map(|change| change.timestamp());
    let changes = changes.take_while(|change| *change < end);
    edges.extend(changes.filter(|change| change.to_zoned(window.zone.clone()).date() == day));
    edges
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;
    use crate::job::gates::Dates;

    fn zurich(open: &[&str], closed: &[(&str, &str)]) -> Window {
        let dates = |(first, last): &(&str, &str)| Dates {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        };
        Window {
            zone: TimeZone::get("Europe/Zurich").unwrap(),
            open: open.iter().map(|hours| hours.parse().unwrap()).collect(),
            closed: closed.iter().map(dates).collect(),
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn opens(window: &Window, now: &str) -> Option<Timestamp> {
        match judge(window, at(now)).next {
            NextJudgement::At(time) => Some(time),
            NextJudgement::Verify
            | NextJudgement::Poll
            | NextJudgement::PollUntil(_)
            | NextJudgement::Soon => None,
        }
    }

    #[test]
    fn working_hours_are_those_of_the_zone() {
        let window = zurich(&["mon-fri 09:00-16:00"], &[]);
        // The 30th of November 2026 is a Monday; Zurich is one hour ahead of UTC then.
        for (time, open) in [
            ("2026-11-30T07:59:59Z", false),
            ("2026-11-30T08:00:00Z", true),
            ("2026-11-30T14:59:59Z", true),
            ("2026-11-30T15:00:00Z", false),
            ("2026-11-29T10:00:00Z", false),
        ] {
            assert_eq!(is_open(&window, at(time)), open, "{time}");
        }
        let friday = "2026-12-04T15:00:00Z";
        assert_eq!(opens(&window, friday), Some(at("2026-12-07T08:00:00Z")));
        let waits = judge(&window, at(friday));
        assert!(
            waits.reason.contains("2026-12-07T09:00:00+01:00"),
            "{waits:?}"
        );
    }

    #[test]
    fn no_tag_moves_on_closed_days() {
        let window = zurich(
            &["mon-fri 09:00-16:00"],
            &[("2026-12-15", "2027-01-05"), ("2027-01-06", "2027-01-06")],
        );
        assert!(is_open(&window, at("2026-12-14T14:00:00Z")));
        assert!(!is_open(&window, at("2026-12-15T12:00:00Z")));
        assert!(!is_open(&window, at("2027-01-06T12:00:00Z")));
        let next = opens(&window, "2026-12-14T15:00:00Z");
        assert_eq!(next, Some(at("2027-01-07T08:00:00Z")));
        let always = zurich(&[], &[("2026-12-15", "2026-12-15")]);
        let midnight = opens(&always, "2026-12-15T12:00:00Z");
        assert_eq!(midnight, Some(at("2026-12-15T23:00:00Z")));
        let never = zurich(&[], &[("2000-01-01", "2999-12-31")]);
        assert_eq!(opens(&never, "2026-12-15T12:00:00Z"), None);
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let window = zurich(&["fri 22:00-06:00"], &[]);
        assert!(is_open(&window, at("2026-12-04T21:00:00Z")));
        assert!(is_open(&window, at("2026-12-05T04:59:00Z")));
        assert!(!is_open(&window, at("2026-12-05T05:00:00Z")));
        let next = opens(&window, "2026-12-05T05:00:00Z");
        assert_eq!(next, Some(at("2026-12-11T21:00:00Z")));
    }

    #[test]
    fn an_hour_that_a_day_skips_begins_when_the_clocks_have_changed() {
        // On the 29th of March 2026 02:00 to 03:00 does not exist.
        let window = zurich(&["sun 02:30-04:00"], &[]);
        let next = opens(&window, "2026-03-29T00:30:00Z");
        assert_eq!(next, Some(at("2026-03-29T01:00:00Z")), "03:00 local time");
        assert!(!is_open(&window, at("2026-03-29T00:59:59Z")));
        assert!(is_open(&window, at("2026-03-29T01:59:59Z")));
        assert!(!is_open(&window, at("2026-03-29T02:00:00Z")));
        let skipped = zurich(&["sun 02:00-03:00"], &[]);
        let next = opens(&skipped, "2026-03-29T00:30:00Z");
        assert_eq!(next, Some(at("2026-04-05T00:00:00Z")), "a week later");
    }

    #[test]
    fn hours_before_the_clocks_change_are_not_passed_over() {
        let window = zurich(&["sun 00:30-04:00"], &[]);
        let next = opens(&window, "2026-03-22T05:00:00Z");
        assert_eq!(next, Some(at("2026-03-28T23:30:00Z")));
    }

    #[test]
    fn an_hour_that_a_day_has_twice_is_open_twice() {
        // On the 25th of October 2026 02:00 to 03:00 comes twice.
        let window = zurich(&["sun 02:15-02:45"], &[]);
        for (time, open) in [
            ("2026-10-25T00:15:00Z", true),
            ("2026-10-25T00:45:00Z", false),
            ("2026-10-25T01:15:00Z", true),
            ("2026-10-25T01:45:00Z", false),
        ] {
            assert_eq!(is_open(&window, at(time)), open, "{time}");
        }
        let first = opens(&window, "2026-10-24T22:00:00Z");
        assert_eq!(first, Some(at("2026-10-25T00:15:00Z")));
        let second = opens(&window, "2026-10-25T00:45:00Z");
        assert_eq!(second, Some(at("2026-10-25T01:15:00Z")));
    }

    proptest! {
        #[test]
        fn the_next_opening_is_the_first_open_minute(
            minute in 0i64..527_040,
            from in 0u16..24,
            length in 1u16..24,
            day in 0usize..7,
        ) {
            let day = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"][day];
            let window = zurich(
                &[&format!("{day} {from:02}:30-{:02}:00", (from + length) % 24)],
                &[],
            );
            let now = at("2026-01-01T00:00:00Z") + SignedDuration::from_mins(minute);
            prop_assume!(!is_open(&window, now));
            let next = next_opening(&window, now).unwrap();
            prop_assert!(is_open(&window, next));
            let mut time = now;
            while time < next {
                prop_assert!(!is_open(&window, time), "{time} is before {next}");
                time += SignedDuration::from_mins(5);
            }
        }
    }
}
