//! What was sent to a registry and must not come back in its words.
//!
//! A registry or a debugging proxy may repeat request headers in its answer. Every credential that
//! was sent there is removed from the answer, in the encodings of the request and in the usual
//! encodings of text, before the answer becomes part of a failure: peers' texts before they are cut
//! ([`Secrets::scrub`]), and every failure of a registry as a whole once more
//! ([`Secrets::scrub_fault`]).

use std::borrow::Cow;
use std::collections::VecDeque;
use std::error::Error as _;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use url::{Url, form_urlencoded};

use crate::fault::{Fault, clip};

/// The most recently sent credentials that are remembered.
const MOST_CREDENTIALS: usize = 128;
/// Secret parts of addresses that are remembered.
const MOST_OF_ADDRESSES: usize = 128;
/// The shortest secret that is looked for in a peer's own words.
const SHORTEST: usize = 4;
/// The shortest that is looked for in a whole failure, most of which are our own words.
const SHORTEST_IN_FAULTS: usize = 8;
/// So much of a secret tells it, where a text was cut within.
const TELLING: usize = 12;
/// The shortest part of an address that is taken for a secret.
const SHORTEST_OF_ADDRESS: usize = 16;
/// Parameters of addresses that are made of names and digests.
const KNOWN_PARAMETERS: [&str; 11] = [
    "n",
    "last",
    "mount",
    "from",
    "digest",
    "service",
    "scope",
    "client_id",
    "artifactType",
    "tag",
    "next_page",
];

/// What was sent to one registry and its token servers.
#[derive(Default)]
pub(super) struct Secrets(Mutex<Sent>);

#[derive(Default)]
struct Sent {
    credentials: VecDeque<SecretString>,
    of_addresses: VecDeque<SecretString>,
}

impl Secrets {
    /// Whether no credential was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().credentials.is_empty()
    }

    /// A credential is about to be sent: a password, a token, or what stands in a header.
    pub(super) fn sent(&self, secret: &str) {
        if secret.len() >= SHORTEST {
            keep(&mut self.lock().credentials, secret, MOST_CREDENTIALS);
        }
    }

    /// A request is about to go to an address from an answer. The address itself may grant access.
    pub(super) fn sent_to(&self, url: &Url) {
        let parameters = url
            .query_pairs()
            .filter(|(name, _)| !KNOWN_PARAMETERS.contains(&&**name))
            .map(|(_, value)| value);
        // The last part of an upload's path is the name of its session.
        let session = url
            .path_segments()
            .filter(|_| url.path().contains("/uploads/"))
            .and_then(|mut parts| parts.next_back());
        let found: Vec<Cow<'_, str>> = parameters
            .chain(session.map(Cow::Borrowed))
            .filter(|text| text.len() >= SHORTEST_OF_ADDRESS)
            .filter(|text| !text.starts_with("sha256:") && !text.starts_with("sha512:"))
            .collect();
        if !found.is_empty() {
            let mut sent = self.lock();
            found
                .iter()
                .for_each(|text| keep(&mut sent.of_addresses, text, MOST_OF_ADDRESSES));
        }
    }

    /// A peer's text without what was sent to it.
    pub(super) fn scrub<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.scrub_from(text, SHORTEST)
    }

    /// A failure without what was sent; a cause that repeats it becomes a plain text.
    pub(super) fn scrub_fault(&self, fault: Fault) -> Fault {
        self.scrub_fault_from(fault, SHORTEST_IN_FAULTS)
    }

    /// The same for a failure that is made of a peer's words.
    pub(super) fn scrub_quoting_fault(&self, fault: Fault) -> Fault {
        self.scrub_fault_from(fault, SHORTEST)
    }

    fn scrub_fault_from(&self, fault: Fault, shortest: usize) -> Fault {
        let mut levels = vec![fault.to_string()];
        let mut cause = fault.source();
        while let Some(error) = cause {
            levels.push(error.to_string());
            cause = error.source();
        }
        let scrubbed: Vec<Cow<'_, str>> = levels
            .iter()
            .map(|level| self.scrub_from(level, shortest))
            .collect();
        if scrubbed
            .iter()
            .all(|level| matches!(level, Cow::Borrowed(_)))
        {
            return fault;
        }
        let plain = Fault::new(fault.class(), scrubbed[0].clone());
        if scrubbed.len() == 1 {
            plain
        } else {
            plain.because(scrubbed[1..].join(": "))
        }
    }

    fn scrub_from<'a>(&self, text: &'a str, shortest: usize) -> Cow<'a, str> {
        let mut found: Vec<Range<usize>> = Vec::new();
        {
            let sent = self.lock();
            for secret in sent.credentials.iter().chain(&sent.of_addresses) {
                for written in encodings(secret.expose_secret())
                    .iter()
                    .filter(|written| written.len() >= shortest)
                {
                    found.extend(occurrences(text, written));
                }
            }
        }
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        found.sort_by_key(|range| range.start);
        let mut scrubbed = String::with_capacity(text.len());
        let mut end = 0;
        for range in found {
            if range.start >= end {
                scrubbed.push_str(&text[end..range.start]);
                scrubbed.push_str("[hidden]");
            }
            end = end.max(range.end);
        }
        scrubbed.push_str(&text[end..]);
        Cow::Owned(scrubbed)
    }

    fn lock(&self) -> MutexGuard<'_, Sent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

fn keep(kept: &mut VecDeque<SecretString>, secret: &str, most: usize) {
    match kept
        .iter()
        .position(|known| known.expose_secret() == secret)
    {
        // The newest is at the end.
        Some(at) if at + 1 == kept.len() => {}
        Some(at) => {
            let known = kept.remove(at).expect("it was just found");
            kept.push_back(known);
        }
        None => {
            if kept.len() == most {
                kept.pop_front();
            }
            kept.push_back(secret.into());
        }
    }
}

/// How a text may write a secret.
fn encodings(secret: &str) -> Vec<String> {
    let form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let json = serde_json::to_string(secret).expect("a text is JSON");
    let json = json[1..json.len() - 1].to_owned();
    let html = secret
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;");
    let percent = [
        form.replace('+', "%20"),
        strictly_percent_encoded(secret),
        strictly_percent_encoded(secret).to_lowercase(),
        fully_percent_encoded(secret),
        fully_percent_encoded(secret).to_lowercase(),
        form,
    ];
    let twice = percent.each_ref().map(|once| once.replace('%', "%25"));
    let hex = fully_percent_encoded(secret).replace('%', "");
    let mut all = vec![
        secret.to_owned(),
        hex.to_lowercase(),
        hex,
        json.replace('/', "\\/"),
        json,
        html.replace('\'', "&#39;"),
        html,
        clip(secret, usize::MAX),
        URL_SAFE_NO_PAD.encode(secret),
    ];
    all.extend(percent);
    all.extend(twice);
    all.extend((0..3).filter_map(|offset| within_base64(secret, offset)));
    all.sort();
    all.dedup();
    all
}

fn strictly_percent_encoded(secret: &str) -> String {
    secret
        .bytes()
        .map(|byte| match byte {
            b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

fn fully_percent_encoded(secret: &str) -> String {
    secret.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What the base64 of a longer text shows of a secret that stands `offset` bytes after a multiple
/// of three.
fn within_base64(secret: &str, offset: usize) -> Option<String> {
    let encoded = STANDARD_NO_PAD.encode([&vec![0; offset], secret.as_bytes()].concat());
    // Characters that the neighbours have a share in say nothing.
    let start = [0, 2, 3][offset];
    let end = encoded.len() - usize::from(!(offset + secret.len()).is_multiple_of(3));
    let inner = encoded.get(start..end)?;
    (inner.len() >= SHORTEST_IN_FAULTS).then(|| inner.to_owned())
}

/// Where `secret` stands in `text`, also where only its beginning does.
fn occurrences(text: &str, secret: &str) -> Vec<Range<usize>> {
    let telling = &secret[..secret.floor_char_boundary(TELLING)];
    let telling = if telling.is_empty() { secret } else { telling };
    text.match_indices(telling)
        .map(|(start, _)| start..start + shared_length(&text[start..], secret))
        .collect()
}

/// How many bytes both texts begin with.
fn shared_length(one: &str, other: &str) -> usize {
    let pairs = one.chars().zip(other.chars());
    let shared = pairs.take_while(|(a, b)| a == b);
    shared.map(|(a, _)| a.len_utf8()).sum()
}

/// A user name and a password as `Authorization: Basic` sends them, without the word in front.
pub(super) fn basic(username: &str, password: &str) -> String {
    STANDARD.encode(format!("{username}:{password}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(secrets: &[&str]) -> Secrets {
        let all = Secrets::default();
        secrets.iter().for_each(|secret| all.sent(secret));
        all
    }

    #[test]
    fn a_secret_is_hidden_in_every_encoding() {
        let password = "p/w+ö \"&'x";
        let header = basic("joe", password);
        let secrets = sent(&[password, &header]);
        let percent = "p%2Fw%2B%C3%B6%20%22%26%27x";
        let echoes = [
            password.to_owned(),
            format!("Basic {header}"),
            percent.to_owned(),
            percent.to_lowercase(),
            fully_percent_encoded(password),
            percent.replace("%20", "+"),
            format!("joe:{password}"),
            serde_json::to_string(password).unwrap(),
            "p\\/w+ö \\\"&'x".to_owned(),
            "p/w+ö &quot;&amp;&#39;x".to_owned(),
            percent.replace('%', "%25"),
            fully_percent_encoded(password).replace('%', "%25"),
            hex::encode(password),
            hex::encode_upper(&header),
            STANDARD.encode(password),
            STANDARD.encode(format!("a{password}")),
            STANDARD.encode(format!("Authorization: Basic {header}")),
            URL_SAFE_NO_PAD.encode(password),
            header.trim_end_matches('=').to_owned(),
        ];
        for echo in echoes {
            let text = format!("400 bad header: {echo} (sent)");
            let scrubbed = secrets.scrub(&text);
            assert!(scrubbed.contains("[hidden]"), "{echo}: {scrubbed}");
            assert!(
                scrubbed.starts_with("400 bad header: ") && scrubbed.ends_with("(sent)"),
                "{scrubbed}"
            );
            assert!(
                !scrubbed.contains(password) && !scrubbed.contains(&header[..10]),
                "{scrubbed}"
            );
        }
    }

    #[test]
    fn a_token_that_was_cut_is_hidden() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJqb2UifQ.c2lnbmF0dXJl";
        let secrets = sent(&[token]);
        assert_eq!(
            secrets.scrub(&format!("Bearer {}…", &token[..30])),
            "Bearer [hidden]…"
        );
        assert_eq!(secrets.scrub("a text without it"), "a text without it");
    }

    #[test]
    fn a_failure_and_its_causes_are_scrubbed() {
        let secrets = sent(&["hush-hush-hush"]);
        let fault = Fault::corrupt("its type is hush-hush-hush")
            .because(std::io::Error::other("unknown variant `hush-hush-hush`"));
        let scrubbed = secrets.scrub_fault(fault);
        assert_eq!(scrubbed.class(), crate::fault::Class::Corrupt);
        assert_eq!(
            scrubbed.chain(),
            "its type is [hidden]: unknown variant `[hidden]`"
        );
        let untouched =
            secrets.scrub_fault(Fault::corrupt("x").because(std::io::Error::other("y")));
        assert!(
            untouched
                .source()
                .is_some_and(|source| source.is::<std::io::Error>()),
            "the cause is kept"
        );
    }

    #[test]
    fn what_an_address_allows_is_a_secret_and_names_are_not() {
        let secrets = Secrets::default();
        let digest = format!("sha256:{}", "ab".repeat(32));
        let upload = "https://r.example/v2/app/blobs/uploads/0123456789abcdef-0123?_state=c3RhdGUtc3RhdGUtc3RhdGU&digest=";
        secrets.sent_to(&Url::parse(&format!("{upload}{digest}")).unwrap());
        let scrubbed = secrets
            .scrub("404 0123456789abcdef-0123 c3RhdGUtc3RhdGUtc3RhdGU")
            .into_owned();
        assert_eq!(scrubbed, "404 [hidden] [hidden]");
        assert_eq!(secrets.scrub(&digest), digest);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let secrets = Secrets::default();
        (0..1000).for_each(|number| secrets.sent(&format!("secret-number-{number:04}")));
        assert_eq!(secrets.lock().credentials.len(), MOST_CREDENTIALS);
        assert_eq!(secrets.scrub("secret-number-0999"), "[hidden]");
        assert!(!format!("{secrets:?}").contains("secret-number"));
    }

    proptest! {
        #[test]
        fn no_secret_survives(before in "\\PC{0,20}", secret in "\\PC{4,40}", after in "\\PC{0,20}") {
            let scrubbed = sent(&[&secret]).scrub(&format!("{before}{secret}{after}")).into_owned();
            let is_elsewhere = "[hidden]".contains(&secret) || [before, after].concat().contains(&secret);
            prop_assert!(is_elsewhere || !scrubbed.contains(&secret), "{}", scrubbed);
        }
    }
}
