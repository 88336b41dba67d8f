//! What a registry is spared: requests at once and in a second, and bandwidth by day and time.

use std::num::NonZeroUsize;

use jiff::tz::TimeZone;

use super::keys::keys;
use super::problem::complaint;
use super::section::{Item, optional};
use super::shapes::{Number, OneOrMany};
use super::units;
use crate::transfer::bandwidth::{Plan, Window};
use crate::week::{self, DAY, Days, Hours};

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

keys! {
    Spared, LimitsKeys {
        /// Requests at once, 1 to 256.
        concurrency: Option<Number>,
        /// Requests in a second, on average.
        requests_per_second: Option<Number>,
        /// Bytes in a second: `50MiB`; or windows, of which the first that holds counts. Default: no
        /// limit.
        bandwidth: Option<Bandwidth>,
    }
}

/// One rate, or rates by day and time.
#[derive(schemars::JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "never filled: only its schema is used")]
enum Bandwidth {
    Always(Number),
    Windows(#[schemars(length(min = 1, max = 50))] Vec<WindowOfRate>),
}

keys! {
    WindowOfRate, WindowKeys {
        /// The days on which it begins: `sat`, `mon-fri`, or a list of such. Default: all.
        days: Option<OneOrMany>,
        /// When it begins, by the clock of this machine's time zone: `08:00`. Default: the whole day.
        #[schemars(regex(pattern = "^[0-9]{2}:[0-9]{2}$"))]
        from: Option<String>,
        /// When it is over; before `from`: on the next day.
        #[schemars(regex(pattern = "^[0-9]{2}:[0-9]{2}$"))]
        to: Option<String>,
        /// Bytes in a second: `50MiB`, or `off` for no limit.
        rate: Number = "bytes in a second (50MiB), or off for no limit",
    }
}

/// `None` after a complaint.
pub(super) fn limits(keys: &LimitsKeys<'_>) -> Option<Limits> {
    let concurrency = optional(&keys.concurrency, |item| item.parse(at_once));
    let requests_per_second = optional(&keys.requests_per_second, |item| item.parse(rate));
    let bandwidth = optional(&keys.bandwidth, bandwidth);
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
    number.ok_or_else(|| complaint(text, &format!("is not a number from 1 to {MOST_AT_ONCE}")))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|rate| (0.01..=100_000.0).contains(rate));
    rate.ok_or_else(|| complaint(text, "is not a number from 0.01 to 100000"))
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
    let covered = windows.iter().position(|window| {
        window
            .as_ref()
            .is_some_and(|window| window.hours.is_always())
    });
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
    let keys: WindowKeys<'_> = item.keys()?;
    let days = optional(&keys.days, days);
    let rate = keys.rate.and_then(|item| item.parse(amount));
    let times = match (&keys.from, &keys.to) {
        (Some(from), Some(to)) => times(from, to),
        (None, None) => Some((0, DAY)),
        (Some(_), None) => complain(item, "to", "is missing: from needs it"),
        (None, Some(_)) => complain(item, "from", "is missing: to needs it"),
    };
    let (from, to) = times?;
    let hours = Hours {
        days: days?.unwrap_or(Days::ALL),
        from,
        to,
    };
    Some(Window { hours, rate: rate? })
}

fn complain<T>(item: &Item<'_>, key: &str, text: &str) -> Option<T> {
    item.missing(key, text);
    None
}

fn times(from: &Item<'_>, to: &Item<'_>) -> Option<(u16, u16)> {
    // Both are parsed before either ends the function, so that both are reported.
    let begin = from.parse(|text| week::time(text, DAY - 1));
    let end = to.parse(|text| week::time(text, DAY));
    let begin = begin?;
    let end = end?;
    let span = week::span(begin, end);
    if span.is_none() {
        to.wrong("is the time at which the window begins; leave both away for the whole day");
    }
    span
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
        item.parse(week::stretch)
            .map(|(first, last)| days.and(first, last))
    })
}
