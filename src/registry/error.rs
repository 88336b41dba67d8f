//! Statuses and wire codes → a [`Fault`] with a class and a way out, in one table.
//!
//! The status decides first, with two exceptions: a code that says "too many requests" is a reason
//! to wait under any status, and a code that says "not retryable" beats a 5xx (distribution answers
//! 500 with MANIFEST_BLOB_UNKNOWN). Texts of peers are clipped; queries of URLs are never shown.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;

use super::rate_limit_headers::reset;
use super::redirect::Refused;
use super::secrets::Secrets;
use crate::clock;
use crate::fault::{Class, Fault, clip};

/// Longest wait that a registry may ask for.
const MOST_WAIT: Duration = Duration::from_secs(3600);

/// What was being done, for the sentence of a failure.
#[derive(Clone, Debug)]
pub(super) struct ErrorContext {
    doing: &'static str,
    registry: Arc<str>,
    place: Arc<str>,
    writes: bool,
}

impl ErrorContext {
    /// `doing` at `registry`; `place` is `host/repository[:tag|@digest]`.
    pub(super) fn new(doing: &'static str, registry: &Arc<str>, place: String) -> ErrorContext {
        ErrorContext {
            doing,
            registry: registry.clone(),
            place: place.into(),
            writes: false,
        }
    }

    /// The same, of something that changes the registry.
    pub(super) fn writing(self) -> ErrorContext {
        ErrorContext {
            writes: true,
            ..self
        }
    }

    /// A failure of `class` in this.
    pub(super) fn fault(&self, class: Class, text: impl AsRef<str>) -> Fault {
        Fault::new(
            class,
            format!(
                "{} at {} ({}): {}",
                self.doing,
                self.registry,
                self.place,
                text.as_ref()
            ),
        )
    }

    /// Worth another try.
    pub(super) fn retryable(&self, text: impl AsRef<str>) -> Fault {
        self.fault(Class::RETRYABLE, text)
    }

    /// Beyond mending.
    pub(super) fn rejected(&self, text: impl AsRef<str>) -> Fault {
        self.fault(Class::Rejected, text)
    }

    /// Not what was promised.
    pub(super) fn corrupt(&self, text: impl AsRef<str>) -> Fault {
        self.fault(Class::Corrupt, text)
    }
}

/// One entry of an error body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The code, upper case.
    pub(super) code: String,
    /// The sentence.
    pub(super) message: String,
    /// Whatever else it says, as JSON text.
    pub(super) detail: String,
}

/// An answer that is no success, as read.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    after: Option<Duration>,
    /// Whether the request had no credentials to send.
    is_anonymous: bool,
    pub(super) entries: Vec<Entry>,
}

impl Entry {
    fn without(self, secrets: &Secrets) -> Entry {
        Entry {
            code: secrets.scrub(&self.code).into_owned(),
            message: secrets.scrub(&self.message).into_owned(),
            detail: secrets.scrub(&self.detail).into_owned(),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    errors: Option<serde_json::Value>,
    #[serde(default)]
    message: Option<serde_json::Value>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

impl Refusal {
    /// Reads an answer. The body may be JSON of the specification, other JSON, XML of a storage
    /// service, HTML, text or nothing.
    ///
    /// `secrets` have been sent with the request, and are nowhere in what is read.
    pub(super) fn read(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &Secrets,
    ) -> Refusal {
        let entries = entries(body, secrets)
            .into_iter()
            .map(|entry| entry.without(secrets))
            .collect();
        Refusal {
            status,
            after: retry_after(headers, clock::now()),
            is_anonymous: secrets.is_empty(),
            entries,
        }
    }

    /// The status.
    pub(super) fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// Whether one of the entries has this code.
    pub(super) fn has(&self, code: &str) -> bool {
        self.entries.iter().any(|entry| entry.code == code)
    }

    /// Whether a code, message or detail holds `words`, in any case.
    pub(super) fn mentions(&self, words: &str) -> bool {
        let words = words.to_ascii_lowercase();
        self.entries.iter().any(|entry| {
            [&entry.code, &entry.message, &entry.detail]
                .into_iter()
                .any(|text| text.to_ascii_lowercase().contains(&words))
        })
    }

    /// Whether the token that came with the request has expired: ECR says so with a 403.
    pub(super) fn says_expired(&self) -> bool {
        self.mentions("authorization token has expired")
    }

    /// Whether it says that an amount of storage or of objects is used up. Registries say so with
    /// 403 (Harbor, Quay, GitLab, GitHub), 412 (older Harbor) or 413; a 429 speaks of requests.
    fn says_quota(&self) -> bool {
        const WORDS: [&str; 5] = [
            "quota",
            "storage limit",
            "configured upper limit",
            "storage space",
            "maximum storage",
        ];
        let may_be =
            (400..=499).contains(&self.status()) && !matches!(self.status(), 401 | 404 | 429);
        may_be && !self.has("TOOMANYREQUESTS") && WORDS.iter().any(|words| self.mentions(words))
    }

    /// The class.
    pub(super) fn class(&self) -> Class {
        // Understood and refused: no right is missing.
        if self.says_quota() {
            return Class::Rejected;
        }
        // A 429 without `Retry-After` still asks for a pause.
        let after = self.after.or((self.status() == 429).then_some(MOMENT));
        class_of(
            self.status(),
            self.entries.iter().map(|entry| entry.code.as_str()),
            after,
        )
    }

    /// The failure, told in full.
    pub(super) fn fault(&self, about: &ErrorContext) -> Fault {
        let class = self.class();
        let mut text = self.status().to_string();
        // The entry that decides comes first: distribution puts UNKNOWN before the code that
        // explains.
        let telling = self
            .entries
            .iter()
            .find(|entry| code_class(&entry.code).is_some())
            .or(self.entries.first());
        if let Some(entry) = telling {
            if !entry.code.is_empty() {
                text.push_str(&format!(" {}", clip(&entry.code, 60)));
            }
            if !entry.message.is_empty() {
                text.push_str(&format!(": {}", clip(&entry.message, 400)));
            }
        } else if let Some(reason) = self.status.canonical_reason() {
            text.push_str(&format!(" {reason}"));
        }
        if let Some(way_out) = self.way_out(about) {
            text.push_str(&format!("; {way_out}"));
        }
        about.fault(class, text)
    }

    fn way_out(&self, about: &ErrorContext) -> Option<String> {
        let registry = &about.registry;
        if self.has("NAME_UNKNOWN") && about.writes {
            return Some(format!(
                "the repository does not exist in {registry}; create it"
            ));
        }
        if self.says_quota() {
            return Some(format!(
                "the quota of {registry} is used up; free space there, or have the quota raised"
            ));
        }
        let text = match self.status() {
            401 if self.is_anonymous => format!(
                "{registry} wants credentials; set `username` and `password_file`, or log in with `docker login`"
            ),
            401 => format!("{registry} does not accept the credentials; check them"),
            // IAM names the action, the resource, and the policy.
            403 if self.mentions("resource-based policy") => {
                format!(
                    "the repository's policy in {registry} allows it to others only: add us there (`blobferry iam` prints it)"
                )
            }
            403 if self.mentions("is not authorized to perform") => {
                "allow it (`blobferry iam` prints what is needed)".to_string()
            }
            403 => format!("the credentials for {registry} lack this right; grant it"),
            404 if about.writes => {
                format!("the repository does not exist in {registry}; create it")
            }
            405 => format!(
                "{registry} does not offer this; set its `kind`, or check what stands in front of it"
            ),
            407 => "the proxy in between wants credentials of its own; put them into its address"
                .to_string(),
            411 => "something in between drops Content-Length; check the proxies on the way"
                .to_string(),
            413 => format!(
                "raise the largest request body that {registry}, or a proxy in front of it, accepts"
            ),
            429 => format!(
                "{registry} limits the rate of requests; lower `requests_per_second` for it"
            ),
            507 => format!("{registry} has no space left"),
            300..=399 => "the answer leads nowhere; check the registry's `url`".to_string(),
            _ => return None,
        };
        Some(text)
    }
}

/// The table: what an answer with this status and these codes asks of the caller.
pub(super) fn class_of<'a>(
    status: u16,
    codes: impl IntoIterator<Item = &'a str>,
    after: Option<Duration>,
) -> Class {
    let waits = Class::Retryable { after };
    // Too many requests: the caller has to wait, even when the registry names no time.
    let asks = Class::Retryable {
        after: after.or(Some(Duration::ZERO)),
    };
    let said: Vec<Class> = codes.into_iter().filter_map(code_class).collect();
    let refused = said.iter().find(|class| !class.is_retryable());
    let busy = said.iter().any(|class| class.is_retryable());
    match status {
        401 => Class::Auth,
        _ if busy => asks,
        403 => Class::Auth,
        404 => Class::NotFound,
        408 | 425 => waits,
        429 => asks,
        500..=599 if refused.is_some() => *refused.expect("just seen"),
        // 520 to 530 are a CDN's words for trouble behind it.
        500 | 502 | 503 | 504 | 520..=530 => waits,
        _ => Class::Rejected,
    }
}

/// What a code says by itself. `None`: nothing beyond the status.
fn code_class(code: &str) -> Option<Class> {
    let class = match code {
        "TOOMANYREQUESTS" => Class::RETRYABLE,
        "UNAUTHORIZED" | "DENIED" => Class::Auth,
        "BLOB_UNKNOWN"
        | "MANIFEST_BLOB_UNKNOWN"
        | "MANIFEST_UNKNOWN"
        | "NAME_UNKNOWN"
        | "BLOB_UPLOAD_UNKNOWN" => Class::NotFound,
        "DIGEST_INVALID" => Class::Corrupt,
        "BLOB_UPLOAD_INVALID"
        | "MANIFEST_INVALID"
        | "MANIFEST_UNVERIFIED"
        | "NAME_INVALID"
        | "SIZE_INVALID"
        | "TAG_INVALID" => Class::Rejected,
        "UNSUPPORTED" | "PAGINATION_NUMBER_INVALID" | "RANGE_INVALID" => Class::Rejected,
        // UNKNOWN and UNAVAILABLE are no reasons, and codes outside the specification are no
        // promises.
        _ => return None,
    };
    Some(class)
}

/// `Retry-After` in seconds or as a date, else `RateLimit-Reset`; at most an hour.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let named = headers
        .get("retry-after")
        .and_then(|value| value.to_str().ok());
    let wait = match named {
        Some(text) => named_wait(text, now)?,
        None => reset(headers, now)?,
    };
    Some(wait.min(MOST_WAIT))
}

/// The wait that the text of a `Retry-After` header names: seconds, or until a date. `None`: it is
/// neither.
pub fn named_wait(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let dates = jiff::fmt::rfc2822::DateTimeParser::new();
    let date = dates.parse_timestamp(text).ok()?;
    let seconds = date.as_second().saturating_sub(now.as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// The least wait after a 429 that names none.
const MOMENT: Duration = Duration::from_secs(1);
/// Most entries that are looked at.
const MOST_ENTRIES: usize = 64;

fn entries(body: &[u8], secrets: &Secrets) -> Vec<Entry> {
    match serde_json::from_slice::<Document>(body) {
        Ok(document) => document_entries(document, secrets),
        Err(_) => plain_entry(&secrets.scrub(&String::from_utf8_lossy(body)))
            .into_iter()
            .collect(),
    }
}

fn document_entries(document: Document, secrets: &Secrets) -> Vec<Entry> {
    if let Some(serde_json::Value::Array(errors)) = &document.errors {
        return errors
            .iter()
            .take(MOST_ENTRIES)
            .map(|error| spec_entry(error, secrets))
            .collect();
    }
    let words: Vec<String> = [document.error, document.message, document.errors]
        .iter()
        .flatten()
        .map(text_of)
        .collect();
    if words.is_empty() {
        Vec::new()
    } else {
        vec![Entry {
            message: words.join(": "),
            ..Entry::default()
        }]
    }
}

fn spec_entry(value: &serde_json::Value, secrets: &Secrets) -> Entry {
    Entry {
        code: secrets.scrub(&text_of(&value["code"])).to_ascii_uppercase(),
        message: text_of(&value["message"]),
        detail: text_of(&value["detail"]),
    }
}

fn text_of(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn plain_entry(text: &str) -> Option<Entry> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    if let Some(code) = between(text, "<Code>", "</Code>") {
        let message = between(text, "<Message>", "</Message>")
            .unwrap_or_default()
            .to_string();
        return Some(Entry {
            code: code.to_string(),
            message,
            detail: String::new(),
        });
    }
    if text.starts_with('<') {
        let title = between(text, "<title>", "</title>")
            .unwrap_or("without a title")
            .trim();
        return Some(Entry {
            message: format!("an HTML page ({})", clip(title, 100)),
            ..Entry::default()
        });
    }
    Some(Entry {
        message: clip(text, 400),
        ..Entry::default()
    })
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(inner, _)| inner)
}

/// Whether bytes that should be JSON are a page for people.
pub(super) fn looks_like_html(bytes: &[u8]) -> bool {
    let start = bytes
        .iter()
        .position(|byte| !byte.is_ascii_whitespace())
        .unwrap_or(0);
    bytes.get(start) == Some(&b'<')
}

/// A request that got no answer, or an answer that broke off: told by what caused it. `when`
/// follows the sentence.
pub(super) fn broken(error: reqwest::Error, about: &ErrorContext, host: &str, when: &str) -> Fault {
    let error = error.without_url();
    if let Some(refused) = cause::<Refused>(&error) {
        return about.rejected(refused.to_string());
    }
    let chain = chain(&error);
    let (class, text) = reason(&error, &chain, host);
    about.fault(class, text + when).because(error)
}

fn reason(error: &reqwest::Error, chain: &str, host: &str) -> (Class, String) {
    let kind = cause::<io::Error>(error).map(io::Error::kind);
    if chain.contains("invalid peer certificate") {
        return (
            Class::Rejected,
            format!("the certificate of {host} is not trusted; name its CA with `ca_file`"),
        );
    }
    if chain.contains("received fatal alert")
        && (chain.contains("ertificate") || chain.contains("UnknownCA"))
    {
        return (
            Class::Rejected,
            format!(
                "{host} does not accept our certificate; check `client_cert_file` and `client_key_file`"
            ),
        );
    }
    let text = match kind {
        _ if error.is_dns() => format!("the name of {host} does not resolve"),
        Some(io::ErrorKind::ConnectionRefused) => format!("{host} refuses connections"),
        _ if chain.contains("InvalidContentType") => {
            format!("{host} does not speak TLS on this port; is its `url` http://?")
        }
        _ if error.is_timeout() && error.is_connect() => {
            format!("{host} does not take the connection in time")
        }
        _ if error.is_timeout() => format!("{host} does not answer in time"),
        _ if error.is_connect() => format!("no connection to {host}"),
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            format!("{host} closed the connection")
        }
        _ => format!("the connection to {host} broke"),
    };
    (Class::RETRYABLE, text)
}

fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error as &(dyn StdError + 'static));
    while let Some(error) = next {
        text.push_str(&error.to_string());
        text.push(' ');
        next = error.source();
    }
    text
}

/// What caused an error, of this type.
pub(super) fn cause<T: StdError + 'static>(error: &reqwest::Error) -> Option<&T> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // An I/O error hides what it was made from one level deeper than `source` shows.
        if let Some(found) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref())
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, header};
    use proptest::prelude::*;

    fn about() -> ErrorContext {
        ErrorContext::new(
            "read the manifest",
            &"staging".into(),
            "host.example/app:v1".to_string(),
        )
    }

    fn refusal(status: u16, body: &str) -> Refusal {
        Refusal::read(
            StatusCode::from_u16(status).unwrap(),
            &HeaderMap::new(),
            body.as_bytes(),
            &Secrets::default(),
        )
    }

    const WAITS: [u16; 18] = [
        408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526, 527, 528, 529, 530,
    ];

    fn expected(status: u16) -> Class {
        match status {
            401 | 403 => Class::Auth,
            404 => Class::NotFound,
            429 => Class::Retryable {
                after: Some(Duration::ZERO),
            },
            status if WAITS.contains(&status) => Class::RETRYABLE,
            _ => Class::Rejected,
        }
    }

    #[test]
    fn every_status_and_every_code_has_one_class() {
        let silent = ["", "UNKNOWN", "UNAVAILABLE", "SOMETHING_ELSE"];
        let decided = [
            ("BLOB_UNKNOWN", Class::NotFound),
            ("MANIFEST_BLOB_UNKNOWN", Class::NotFound),
            ("MANIFEST_UNKNOWN", Class::NotFound),
            ("NAME_UNKNOWN", Class::NotFound),
            ("BLOB_UPLOAD_UNKNOWN", Class::NotFound),
            ("UNAUTHORIZED", Class::Auth),
            ("DENIED", Class::Auth),
            ("DIGEST_INVALID", Class::Corrupt),
            ("BLOB_UPLOAD_INVALID", Class::Rejected),
            ("MANIFEST_INVALID", Class::Rejected),
            ("MANIFEST_UNVERIFIED", Class::Rejected),
            ("NAME_INVALID", Class::Rejected),
            ("SIZE_INVALID", Class::Rejected),
            ("TAG_INVALID", Class::Rejected),
            ("UNSUPPORTED", Class::Rejected),
            ("PAGINATION_NUMBER_INVALID", Class::Rejected),
            ("RANGE_INVALID", Class::Rejected),
        ];
        for status in 400..=599 {
            for code in silent {
                assert_eq!(
                    class_of(status, [code], None),
                    expected(status),
                    "{status} {code}"
                );
            }
            for (code, class) in decided {
                let expected = if status >= 500 {
                    class
                } else {
                    expected(status)
                };
                assert_eq!(
                    class_of(status, ["UNKNOWN", code], None),
                    expected,
                    "{status} {code}"
                );
            }
            let expected = if status == 401 {
                Class::Auth
            } else {
                Class::Retryable {
                    after: Some(Duration::ZERO),
                }
            };
            assert_eq!(
                class_of(status, ["TOOMANYREQUESTS"], None),
                expected,
                "{status} TOOMANYREQUESTS"
            );
        }
    }

    #[test]
    fn the_code_that_explains_is_the_one_that_is_told() {
        let body = r#"{"errors":[{"code":"UNKNOWN"},{"code":"manifest_blob_unknown","message":"blob unknown","detail":{"digest":"x"}}]}"#;
        let fault = refusal(500, body).fault(&about());
        assert_eq!(fault.class(), Class::NotFound);
        assert_eq!(
            fault.to_string(),
            "read the manifest at staging (host.example/app:v1): 500 MANIFEST_BLOB_UNKNOWN: blob unknown"
        );
    }

    #[test]
    fn failures_name_the_way_out() {
        let table = [
            (401, "", "set `username` and `password_file`"),
            (
                403,
                r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
                "grant it",
            ),
            (413, "", "raise the largest request body"),
            (429, "", "requests_per_second"),
            (
                404,
                r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#,
                "does not exist in staging; create it",
            ),
        ];
        for (status, body, words) in table {
            let text = refusal(status, body).fault(&about().writing()).to_string();
            assert!(text.contains(words), "{text}");
        }
        let secrets = Secrets::default();
        secrets.sent("a password");
        let refused = Refusal::read(StatusCode::UNAUTHORIZED, &HeaderMap::new(), b"", &secrets);
        let text = refused.fault(&about()).to_string();
        assert!(text.contains("check them"), "{text}");
        assert!(
            !refusal(404, "")
                .fault(&about())
                .to_string()
                .contains("create it")
        );
    }

    #[test]
    fn a_quota_that_is_used_up_is_no_missing_right_and_no_large_body() {
        let full = [
            (
                403,
                r#"{"errors":[{"code":"DENIED","message":"adding 2.1 GiB of storage resource, which when updated to current usage of 9.4 GiB will exceed the configured upper limit of 10.0 GiB."}]}"#,
            ),
            (
                403,
                r#"{"errors":[{"code":"DENIED","detail":{},"message":"Quota has been exceeded on namespace"}]}"#,
            ),
            (
                412,
                r#"{"errors":[{"code":"PRECONDITION","message":"quota exceeded"}]}"#,
            ),
            (413, "the storage limit of this plan is reached"),
        ];
        for (status, body) in full {
            let fault = refusal(status, body).fault(&about().writing());
            assert_eq!(fault.class(), Class::Rejected, "{fault}");
            let text = fault.to_string();
            assert!(text.contains("have the quota raised"), "{text}");
            assert!(
                !text.contains("grant it") && !text.contains("request body"),
                "{text}"
            );
        }
        let requests = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Quota exceeded for quota metric 'Requests'"}]}"#;
        for status in [403, 429] {
            let fault = refusal(status, requests).fault(&about());
            assert!(fault.class().is_retryable(), "{fault}");
            assert!(
                !fault.to_string().contains("have the quota raised"),
                "{fault}"
            );
        }
        let forbidden = refusal(403, r#"{"errors":[{"code":"DENIED"}]}"#).fault(&about());
        assert_eq!(forbidden.class(), Class::Auth);
    }

    #[test]
    fn any_body_is_read() {
        let message = |body: &str| {
            refusal(400, body)
                .entries
                .first()
                .map(|entry| entry.message.clone())
        };
        assert_eq!(message(""), None);
        assert_eq!(message("{}"), None);
        assert_eq!(
            message(r#"{"errors":null,"message":"gone"}"#).as_deref(),
            Some("gone")
        );
        assert_eq!(
            message("<html><title> Sign in </title>").as_deref(),
            Some("an HTML page (Sign in)")
        );
        assert_eq!(
            message("plain\u{1b}[1m words").as_deref(),
            Some("plain\\u{1b}[1m words")
        );
        let storage = refusal(
            403,
            "<?xml?><Error><Code>ExpiredToken</Code><Message>late</Message></Error>",
        );
        assert!(storage.has("ExpiredToken") && storage.mentions("LATE"));
        assert!(
            refusal(
                403,
                r#"{"errors":[{"message":"Your Authorization Token has expired. Retry"}]}"#
            )
            .says_expired()
        );
        let strange = refusal(400, r#"{"errors":["text",7,{"code":5,"message":{"a":1}}]}"#);
        assert_eq!(strange.entries.len(), 3);
    }

    #[test]
    fn waits_are_read_in_both_forms_and_bounded() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let wait = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait("86400"), Some(3600));
        assert_eq!(wait("Sat, 21 Nov 2026 10:00:09 GMT"), Some(9));
        assert_eq!(wait("Sat, 21 Nov 2026 09:00:00 GMT"), Some(0));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
        for (reset, seconds) in [
            ("12".to_string(), 12),
            ((now.as_second() + 30).to_string(), 30),
        ] {
            let headers = HeaderMap::from_iter([(
                header::HeaderName::from_static("ratelimit-reset"),
                HeaderValue::from_str(&reset).unwrap(),
            )]);
            assert_eq!(
                retry_after(&headers, now).map(|wait| wait.as_secs()),
                Some(seconds)
            );
        }
    }

    #[test]
    fn html_is_told_from_json() {
        assert!(looks_like_html(b" \n<!doctype html>"));
        assert!(!looks_like_html(b" {}") && !looks_like_html(b""));
    }

    proptest! {
        #[test]
        fn reading_never_panics(body in proptest::collection::vec(any::<u8>(), 0..300), status in 100u16..=999) {
            let refusal = Refusal::read(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), &body, &Secrets::default());
            let _ = refusal.fault(&about());
        }
    }
}
