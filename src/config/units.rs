//! Durations and amounts as people write them.

use std::time::Duration;

use jiff::SignedDuration;

use super::problem::complaint;
use crate::fault::clip;

/// Whether a text has ASCII letters, digits and these marks alone.
pub(super) fn is_made_of(text: &str, marks: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
}

/// `30s`, `5m`, `1h 30m`, `250ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text
        .trim()
        .parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok());
    parsed.ok_or_else(|| {
        complaint(
            text,
            "is not a duration (examples: 30s, 5m, 1h 30m; a day is 24h)",
        )
    })
}

/// A duration of at least `least` and at most `most`.
pub(super) fn duration_within(
    text: &str,
    least: Duration,
    most: Duration,
) -> Result<Duration, String> {
    let duration = duration(text)?;
    if (least..=most).contains(&duration) {
        return Ok(duration);
    }
    Err(format!(
        "\"{}\" is not between {} and {}",
        clip(text, 100),
        plain(least),
        plain(most)
    ))
}

fn plain(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => "0s".into(),
        _ if milliseconds.is_multiple_of(3_600_000) => format!("{}h", milliseconds / 3_600_000),
        _ if milliseconds.is_multiple_of(1000) => format!("{}s", milliseconds / 1000),
        _ => format!("{milliseconds}ms"),
    }
}

/// Bytes: `52428800`, `50MiB`, `1.5 GB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || {
        complaint(
            text,
            "is not an amount of bytes (examples: 50MiB, 1.5GB, 52428800)",
        )
    };
    let text = text.trim();
    let (number, unit) = text.split_at(
        text.find(|character: char| character.is_ascii_alphabetic())
            .unwrap_or(text.len()),
    );
    let unit: f64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" | "k" => 1024.0,
        "mib" | "m" => 1024.0 * 1024.0,
        "gib" | "g" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(wrong()),
    };
    let amount = number.trim().parse::<f64>().map_err(|_| wrong())? * unit;
    // Far above any network, far below where a float loses whole numbers.
    let sensible = amount.is_finite() && (1.0..=1e15).contains(&amount);
    if sensible {
        Ok(amount as u64)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let table = [
            ("60s", 60_000),
            ("1h 30m", 5_400_000),
            ("250ms", 250),
            ("PT5M", 300_000),
            ("0s", 0),
            ("2 minutes", 120_000),
        ];
        for (text, milliseconds) in table {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for bad in ["", "60", "-5s", "2d", "soon", "5s ago", "1x"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        let within =
            |text| duration_within(text, Duration::from_millis(100), Duration::from_secs(7200));
        assert_eq!(within("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(
            within("3h"),
            Err("\"3h\" is not between 100ms and 2h".into())
        );
    }

    #[test]
    fn amounts_are_read_as_people_write_them() {
        let table = [
            ("1", 1),
            ("50MiB", 52_428_800),
            ("1.5 GB", 1_500_000_000),
            ("10k", 10_240),
            ("1gib", 1 << 30),
            ("7 B", 7),
        ];
        for (text, amount) in table {
            assert_eq!(bytes(text), Ok(amount), "{text}");
        }
        for bad in [
            "", "0", "-1", "MiB", "1 TiBs", "1e400", "nan", "inf", "0.5", "1e20",
        ] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
