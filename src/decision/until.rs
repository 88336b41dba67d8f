//! When a decision ends: a time, or a duration from now.

use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};

use crate::fault::clip;

/// Why a text is no end of a decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEnd {
    /// Neither a time nor a duration.
    #[error("\"{0}\" is neither a time (2026-12-07T06:00:00+01:00) nor a duration (36h)")]
    Unreadable(String),
    /// It has passed.
    #[error("{0} is in the past")]
    Past(Timestamp),
}

/// The end that a text names.
///
/// # Errors
/// When it names none, or one that has passed.
pub fn until(text: &str, now: Timestamp) -> Result<Timestamp, NotAnEnd> {
    match end(text.trim(), now) {
        None => Err(NotAnEnd::Unreadable(clip(text, 100))),
        Some(end) if end <= now => Err(NotAnEnd::Past(end)),
        Some(end) => Ok(end),
    }
}

/// A point in time, or the end of a duration that begins now.
fn end(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(end) = text.parse() {
        return Some(end);
    }
    let duration: SignedDuration = text.parse().ok()?;
    match duration.is_positive() {
        true => after(duration, now),
        false => now.checked_add(duration).ok(),
    }
}

/// The end of a duration that begins now: the next whole second, as people read and repeat it.
pub fn after(duration: SignedDuration, now: Timestamp) -> Option<Timestamp> {
    let to_second = TimestampRound::new()
        .smallest(Unit::Second)
        .mode(RoundMode::Ceil);
    now.checked_add(duration).ok()?.round(to_second).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_time_or_a_duration_and_lies_ahead() {
        let now: Timestamp = "2026-12-04T12:00:00Z".parse().unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        for (text, expected) in [
            ("2026-12-07T06:00:00Z", "2026-12-07T06:00:00Z"),
            ("2026-12-07T06:00:00+01:00", "2026-12-07T05:00:00Z"),
            ("36h", "2026-12-06T00:00:00Z"),
            ("1h 30m", "2026-12-04T13:30:00Z"),
        ] {
            assert_eq!(until(text, now), Ok(at(expected)), "{text}");
        }
        let later = at("2026-12-04T12:00:00.123456789Z");
        assert_eq!(until("48h", later), Ok(at("2026-12-06T12:00:01Z")));
        assert!(until("0s", later).is_err());
        for text in ["2026-12-04T12:00:00Z", "2020-01-01T00:00:00Z", "-1h", "0s"] {
            assert!(matches!(until(text, now), Err(NotAnEnd::Past(_))), "{text}");
        }
        for text in ["", "monday", "2026-12-07", "36", "9999999999999h"] {
            let found = until(text, now);
            assert!(
                matches!(found, Err(NotAnEnd::Unreadable(_))),
                "{text}: {found:?}"
            );
        }
    }
}
