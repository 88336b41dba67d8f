//! What a registry is spared: requests at once and in a second, and bandwidth by day and time.

use std::num::NonZeroUsize;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;

use super::section::{Item, Section, optional};
use super::units;
use crate::fault::clip;
use crate::transfer::bandwidth::{DAY, Days, Plan, Window};

/// Most requests at once to one registry.
const MOST_AT_ONCE: usize = 256;
/// Most windows of one registry.
const MOST_WINDOWS: usize = 50;

/// What a registry is spared. `None`: what its profile says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Requests at once, 1 to 256.
    pub concurrency: Option<NonZeroUsize>,
    /// Requests in a second, on average.
    pub requests_per_second: Option<f64>,
    /// Bytes in a second, both ways together.
    pub bandwidth: Option<Plan>,
}

pub(super) fn limits(section: &mut Section<'_>) -> Option<Limits> {
    let concurrency = optional(&section.item("concurrency"), |item| item.parse(at_once));
    let requests_per_second = optional(&section.item("requests_per_second"), |item| {
        item.parse(rate)
    });
    let bandwidth = optional(&section.item("bandwidth"), bandwidth);
    Some(Limits {
        concurrency: concurrency?,
        requests_per_second: requests_per_second?,
        bandwidth: bandwidth?,
    })
}

fn at_once(text: &str) -> Result<NonZeroUsize, String> {
    let number = text
        .trim()
        .parse::<NonZeroUsize>()
        .ok()
        .filter(|number| number.get() <= MOST_AT_ONCE);
    number.ok_or_else(|| {
        format!(
            "\"{}\" is not a number from 1 to {MOST_AT_ONCE}",
            clip(text, 100)
        )
    })
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|rate| (0.01..=100_000.0).contains(rate));
    rate.ok_or_else(|| {
        format!(
            "\"{}\" is not a number from 0.01 to 100000",
            clip(text, 100)
        )
    })
}

/// One amount, or a list of windows.
fn bandwidth(item: &Item<'_>) -> Option<Plan> {
    if !item.is_list() {
        return item.parse(units::bytes).map(Plan::constant);
    }
    let items = item.items();
    if items.is_empty() || items.len() > MOST_WINDOWS {
        item.wrong(format!(
            "has {} windows: give 1 to {MOST_WINDOWS}",
            items.len()
        ));
        return None;
    }
    let windows: Vec<Option<Window>> = items.iter().map(window).collect();
    let covered = windows
        .iter()
        .position(|window| window.as_ref().is_some_and(Window::is_always));
    if let Some(hidden) = covered.and_then(|covered| items.get(covered + 1)) {
        hidden.wrong(
            "never holds: the window before it always does, and the first that holds counts",
        );
        return None;
    }
    Some(Plan::new(
        windows.into_iter().collect::<Option<Vec<_>>>()?,
        TimeZone::system(),
    ))
}

fn window(item: &Item<'_>) -> Option<Window> {
    let mut section = item.section()?;
    let days = optional(&section.item("days"), days);
    let from = section.item("from");
    let to = section.item("to");
    let rate = section
        .required("rate", "bytes in a second (50MiB), or off for no limit")
        .and_then(|item| item.parse(amount));
    section.finish(|_| false);
    let times = match (&from, &to) {
        (Some(from), Some(to)) => times(from, to),
        (None, None) => Some((0, DAY)),
        (Some(_), None) => complain(item, "to", "is missing: from needs it"),
        (None, Some(_)) => complain(item, "from", "is missing: to needs it"),
    };
    let (from, to) = times?;
    Some(Window {
        days: days?.unwrap_or(Days::ALL),
        from,
        to,
        rate: rate?,
    })
}

fn complain<T>(item: &Item<'_>, key: &str, text: &str) -> Option<T> {
    item.missing(key, text);
    None
}

fn times(from: &Item<'_>, to: &Item<'_>) -> Option<(u16, u16)> {
    // Both are parsed before either ends the function, so that both are reported.
    let begin = from.parse(|text| time(text, DAY - 1));
    let end = to.parse(|text| time(text, DAY));
    let begin = begin?;
    let end = end?;
    if begin == end {
        to.wrong("is the time at which the window begins; leave both away for the whole day");
        return None;
    }
    // The end of the day is the start of the next.
    Some((begin, if end == 0 { DAY } else { end }))
}

/// Minutes since midnight.
fn time(text: &str, most: u16) -> Result<u16, String> {
    let number = |text: &str| {
        (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse().ok())?
    };
    let parts = text
        .trim()
        .split_once(':')
        .and_then(|(hour, minute)| Some((number(hour)?, number(minute)?)));
    let minutes = parts
        .filter(|(_, minute): &(u16, u16)| *minute < 60)
        .map(|(hour, minute)| hour * 60 + minute);
    minutes.filter(|minutes| *minutes <= most).ok_or_else(|| {
        format!(
            "\"{}\" is not a time of day (example: 08:00)",
            clip(text, 100)
        )
    })
}

fn amount(text: &str) -> Result<Option<u64>, String> {
    if text.trim() == "off" {
        Ok(None)
    } else {
        units::bytes(text).map(Some)
    }
}

/// `sat`, `mon-fri`, or a list of such.
fn days(item: &Item<'_>) -> Option<Days> {
    let items = item.items();
    if items.is_empty() {
        item.wrong("is empty; leave it away for all days");
        return None;
    }
    items.iter().try_fold(Days::NONE, |days, item| {
        item.parse(stretch)
            .map(|(first, last)| days.and(first, last))
    })
}

fn stretch(text: &str) -> Result<(Weekday, Weekday), String> {
    let (first, last) = text
        .trim()
        .split_once('-')
        .unwrap_or((text.trim(), text.trim()));
    let days = weekday(first.trim_end()).zip(weekday(last.trim_start()));
    days.ok_or_else(|| {
        format!(
            "\"{}\" is no day and no stretch of days (examples: sat, mon-fri)",
            clip(text, 100)
        )
    })
}

fn weekday(text: &str) -> Option<Weekday> {
    let day = match text.to_ascii_lowercase().as_str() {
        "mon" => Weekday::Monday,
        "tue" => Weekday::Tuesday,
        "wed" => Weekday::Wednesday,
        "thu" => Weekday::Thursday,
        "fri" => Weekday::Friday,
        "sat" => Weekday::Saturday,
        "sun" => Weekday::Sunday,
        _ => return None,
    };
    Some(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_days_are_read_strictly() {
        for (text, minutes) in [
            ("00:00", 0),
            ("08:30", 510),
            (" 23:59 ", 1439),
            ("24:00", 1440),
        ] {
            assert_eq!(time(text, DAY), Ok(minutes), "{text}");
        }
        for bad in [
            "", "8:00", "08:60", "24:01", "25:00", "08", "08:00:00", "+8:00", "ab:cd", "99:99",
        ] {
            assert!(time(bad, DAY).is_err(), "{bad}");
        }
        assert!(
            time("24:00", DAY - 1).is_err(),
            "no window begins when the day is over"
        );
        assert_eq!(stretch("mon-fri"), Ok((Weekday::Monday, Weekday::Friday)));
        assert_eq!(
            stretch("Sat - mon"),
            Ok((Weekday::Saturday, Weekday::Monday))
        );
        assert_eq!(stretch("sun"), Ok((Weekday::Sunday, Weekday::Sunday)));
        for bad in ["", "monday", "mon-", "-", "mon-fri-sun", "mon,tue"] {
            assert!(stretch(bad).is_err(), "{bad}");
        }
    }
}
