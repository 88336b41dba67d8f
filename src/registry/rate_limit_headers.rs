//! What the headers of an answer say: what the registry still allows, and what time it is there.
//!
//! `RateLimit-Remaining: 76;w=21600` and `RateLimit-Limit: 100;w=21600` as Docker Hub sends them,
//! `RateLimit-Reset` as the drafts of the header have it, and the same names after `X-`, where the
//! reset is mostly a time and not a duration.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;

use super::metrics::Operation;
use crate::endpoint::rate_limit::{RateLimitHeader, RequestClass};

/// What an answer says; `None`: nothing that could be understood.
pub(super) fn rate_limit_header(headers: &HeaderMap, now: Timestamp) -> Option<RateLimitHeader> {
    ["ratelimit", "x-ratelimit"].into_iter().find_map(|prefix| {
        let (remaining, window) = amount(text(headers, &format!("{prefix}-remaining"))?)?;
        let limit = text(headers, &format!("{prefix}-limit")).and_then(amount);
        let window = window.or(limit.and_then(|(_, window)| window));
        let reset = text(headers, &format!("{prefix}-reset"));
        let reset = reset.and_then(|reset| until(reset, now));
        Some(RateLimitHeader {
            remaining,
            reset,
            window,
        })
    })
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The time until the reset that an answer names.
pub(super) fn reset(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    ["ratelimit-reset", "x-ratelimit-reset"]
        .into_iter()
        .find_map(|name| until(text(headers, name)?, now))
}

/// The time at which an answer was made: RFC 9110, section 6.6.1.
pub(super) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(http::header::DATE)?.to_str().ok()?;
    let zoned = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(zoned.timestamp())
}

/// `76;w=21600`: how many, and the window in seconds.
fn amount(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(',').next()?.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok());
    Some((number, window.map(Duration::from_secs)))
}

/// Seconds from now; some say when instead of how long.
fn until(text: &str, now: Timestamp) -> Option<Duration> {
    let seconds = text.trim().parse::<u64>().ok()?;
    let is_time = seconds >= 1_000_000_000;
    Some(Duration::from_secs(if is_time {
        seconds.saturating_sub(now.as_second().max(0) as u64)
    } else {
        seconds
    }))
}

/// What a request counts as.
pub(super) fn request_class(operation: Operation) -> Option<RequestClass> {
    match operation {
        Operation::TagList | Operation::Catalog | Operation::ReferrerList => {
            Some(RequestClass::Listing)
        }
        Operation::ManifestGet | Operation::ManifestHead => Some(RequestClass::Manifests),
        Operation::BlobGet | Operation::BlobHead => Some(RequestClass::Blobs),
        Operation::UploadOpen
        | Operation::BlobMount
        | Operation::UploadChunk
        | Operation::UploadFinish
        | Operation::UploadStatus
        | Operation::UploadCancel => Some(RequestClass::Uploads),
        Operation::ManifestPut => Some(RequestClass::Writes),
        Operation::Ping | Operation::Token | Operation::Redirect => None,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn what_registries_send_is_understood() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let seconds = Duration::from_secs;
        let at = (now.as_second() + 90).to_string();
        type Expected = Option<(u64, Option<u64>, Option<u64>)>;
        let table: [(&[(&str, &str)], Expected); 8] = [
            (
                &[
                    ("ratelimit-limit", "100;w=21600"),
                    ("ratelimit-remaining", "76;w=21600"),
                ],
                Some((76, None, Some(21_600))),
            ),
            (
                &[("ratelimit-remaining", "0"), ("ratelimit-reset", "30")],
                Some((0, Some(30), None)),
            ),
            (
                &[
                    ("ratelimit-limit", "10, 10;w=60"),
                    ("ratelimit-remaining", " 3 "),
                ],
                Some((3, None, None)),
            ),
            (
                &[
                    ("ratelimit-limit", "10 ; w=60"),
                    ("ratelimit-remaining", "3"),
                ],
                Some((3, None, Some(60))),
            ),
            (
                &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &at)],
                Some((0, Some(90), None)),
            ),
            (&[("ratelimit-remaining", "-1;w=60")], None),
            (&[("ratelimit-remaining", "many")], None),
            (&[("ratelimit-reset", "30")], None),
        ];
        for (pairs, expected) in table {
            let expected = expected.map(|(remaining, reset, window)| RateLimitHeader {
                remaining,
                reset: reset.map(seconds),
                window: window.map(seconds),
            });
            assert_eq!(
                rate_limit_header(&headers(pairs), now),
                expected,
                "{pairs:?}"
            );
        }
        assert_eq!(
            reset(&headers(&[("x-ratelimit-reset", &at)]), now),
            Some(seconds(90))
        );
    }

    proptest! {
        #[test]
        fn reading_never_panics(value in "[ -~]{0,40}") {
            let now = clock::now();
            let _ = rate_limit_header(&headers(&[("ratelimit-remaining", &value), ("ratelimit-limit", &value), ("ratelimit-reset", &value)]), now);
            let _ = rate_limit_header(&headers(&[("ratelimit-remaining", "0"), ("ratelimit-limit", &value), ("ratelimit-reset", &value)]), now);
        }
    }

    #[test]
    fn the_date_of_an_answer_is_read() {
        let table = [
            (
                "Sun, 06 Nov 1994 08:49:37 GMT",
                Some("1994-11-06T08:49:37Z"),
            ),
            (
                "Mon, 30 Nov 2026 07:00:00 GMT",
                Some("2026-11-30T07:00:00Z"),
            ),
            ("yesterday", None),
            ("", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|time| time.parse().unwrap());
            assert_eq!(date(&headers(&[("date", text)])), expected, "{text}");
        }
        assert_eq!(date(&headers(&[])), None);
    }
}
