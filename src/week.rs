//! Hours of the week: days, and a time of day. The rates of a registry and the windows of a route
//! are written and judged by them.

use std::str::FromStr;

use jiff::civil::Weekday;

use crate::fault::clip;

/// Minutes of a day.
pub const DAY: u16 = 24 * 60;

/// Days of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days(u8);

impl Days {
    /// All seven.
    pub const ALL: Days = Days(0x7f);
    /// None of them, to add to.
    pub const NONE: Days = Days(0);

    /// These and the days from `first` to `last` inclusive, across the week's end if `last` is
    /// earlier.
    #[must_use]
    pub fn and(self, first: Weekday, last: Weekday) -> Days {
        let count = last.since(first);
        Days((0..=count).fold(self.0, |days, ahead| {
            days | Days::bit(first.wrapping_add(ahead))
        }))
    }

    /// Whether a day is one of them.
    pub fn contains(self, day: Weekday) -> bool {
        self.0 & Days::bit(day) != 0
    }

    fn bit(day: Weekday) -> u8 {
        1 << day.to_monday_zero_offset()
    }
}

/// A part of each of some days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// The days on which it begins.
    pub days: Days,
    /// Its first minute of the day, 0 to 1439.
    pub from: u16,
    /// Its end, a minute from 1 to 1440. An end not after `from` lies on the next day.
    pub to: u16,
}

impl Hours {
    /// The whole week.
    pub const ALL: Hours = Hours {
        days: Days::ALL,
        from: 0,
        to: DAY,
    };

    /// Whether they are the whole week.
    pub fn is_always(&self) -> bool {
        self.days == Days::ALL && self.from == self.to % DAY
    }

    /// Whether a minute of a day is among them.
    pub fn contains(&self, day: Weekday, minute: u16) -> bool {
        let is_today = self.days.contains(day);
        if self.from < self.to {
            return is_today && (self.from..self.to).contains(&minute);
        }
        let is_since_yesterday = self.days.contains(day.previous());
        is_today && minute >= self.from || is_since_yesterday && minute < self.to
    }
}

/// `mon-fri 09:00-16:00`, `sat,sun`, `22:00-06:00`.
impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Hours, String> {
        let mut hours = Hours::ALL;
        let mut words = text.split_whitespace().peekable();
        if words
            .peek()
            .is_some_and(|word| word.starts_with(|first: char| first.is_ascii_alphabetic()))
        {
            let word = words.next().unwrap_or_default();
            hours.days = word.split(',').try_fold(Days::NONE, |days, part| {
                stretch(part).map(|(first, last)| days.and(first, last))
            })?;
        } else if words.peek().is_none() {
            return Err(no_hours(text));
        }
        if let Some(word) = words.next() {
            let (from, to) = word.split_once('-').ok_or_else(|| no_hours(text))?;
            (hours.from, hours.to) = span(time(from, DAY - 1)?, time(to, DAY)?)
                .ok_or_else(|| format!("\"{}\" begins when it ends", clip(text, 100)))?;
        }
        match words.next() {
            Some(_) => Err(no_hours(text)),
            None => Ok(hours),
        }
    }
}

fn no_hours(text: &str) -> String {
    format!(
        "\"{}\" is no part of the week (examples: mon-fri 09:00-16:00, sat,sun, 22:00-06:00)",
        clip(text, 100)
    )
}

/// First minute and end of a time of day; `None`: it has no length. The end of the day is the
/// start of the next.
pub fn span(from: u16, to: u16) -> Option<(u16, u16)> {
    (from != to).then_some((from, if to == 0 { DAY } else { to }))
}

fn two_digits(text: &str) -> Option<u16> {
    let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// Minutes since midnight, at most `most`.
///
/// # Errors
/// Text that is no such time.
pub fn time(text: &str, most: u16) -> Result<u16, String> {
    let parts = text
        .trim()
        .split_once(':')
        .and_then(|(hour, minute)| Some((two_digits(hour)?, two_digits(minute)?)));
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

/// `sat` or `mon-fri`: the first day and the last.
///
/// # Errors
/// Text that is neither.
pub fn stretch(text: &str) -> Result<(Weekday, Weekday), String> {
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

    #[test]
    fn hours_are_read_strictly() {
        let weekend = Days::NONE.and(Weekday::Saturday, Weekday::Sunday);
        let weekdays = Days::NONE.and(Weekday::Monday, Weekday::Friday);
        let hours = |days, from, to| Ok(Hours { days, from, to });
        for (text, expected) in [
            ("mon-fri 09:00-16:00", hours(weekdays, 540, 960)),
            ("sat,sun", hours(weekend, 0, DAY)),
            ("22:00-06:00", hours(Days::ALL, 1320, 360)),
            ("sat-sun 00:00-24:00", hours(weekend, 0, DAY)),
            ("sat-sun 20:00-00:00", hours(weekend, 1200, DAY)),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for bad in [
            "",
            "mon-fri 9-16",
            "mon-fri 09:00",
            "mon 09:00-09:00",
            "mon 09:00-10:00 x",
            "09:00-10:00 mon",
            "always",
        ] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }

    #[test]
    fn always_is_always() {
        let tenth = Hours {
            from: 600,
            to: 600,
            ..Hours::ALL
        };
        assert!(Hours::ALL.is_always() && tenth.is_always());
        for hours in ["mon-fri", "00:00-23:00"] {
            assert!(!hours.parse::<Hours>().unwrap().is_always(), "{hours}");
        }
        for minute in [0, 599, 600, DAY - 1] {
            for hours in [Hours::ALL, tenth] {
                assert!(hours.contains(Weekday::Sunday, minute), "{minute}");
            }
        }
    }
}
