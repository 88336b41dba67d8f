//! The classes of failure, and what each asks of the caller.
//!
//! Everything that can happen normally is a value; a [`Fault`] is what should not have happened.
//! Callers decide by [`Class`] and never by text. The text is for people: it names the thing and
//! the way out, and never holds a secret.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// What a failure asks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Worth another try: `transfer::retry` waits the longer of its backoff and `after`.
    Retryable {
        /// The least time to wait, when the peer named one.
        after: Option<Duration>,
    },
    /// The registry does not accept us. The job fails; the registry counts as down for us.
    Auth,
    /// Something that was named is not there. Survey again once.
    NotFound,
    /// Bytes are not what their digest or size promised. Fetch afresh once, then fail loudly; never
    /// name.
    Corrupt,
    /// The peer understood and refused, or answered in a way that another try cannot mend.
    Rejected,
    /// We were asked to stop.
    Cancelled,
}

impl Class {
    /// Retryable without a word on when.
    pub const RETRYABLE: Class = Class::Retryable { after: None };

    /// The name in reports, the ledger and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Class::Retryable { .. } => "retryable",
            Class::Auth => "auth",
            Class::NotFound => "not_found",
            Class::Corrupt => "corrupt",
            Class::Rejected => "rejected",
            Class::Cancelled => "cancelled",
        }
    }

    /// Whether another try may help.
    pub fn is_retryable(self) -> bool {
        matches!(self, Class::Retryable { .. })
    }
}

/// A failure: its class, a sentence, and what caused it.
pub struct Fault {
    class: Class,
    text: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    is_by_rule: bool,
}

impl Fault {
    /// A failure of `class`; `text` names the thing and the way out, lower case, without a full
    /// stop.
    pub fn new(class: Class, text: impl Into<String>) -> Fault {
        Fault {
            class,
            text: text.into(),
            source: None,
            is_by_rule: false,
        }
    }

    /// A rule of the config refuses it: nothing failed.
    pub fn by_rule(text: impl Into<String>) -> Fault {
        Fault {
            is_by_rule: true,
            ..Fault::new(Class::Rejected, text)
        }
    }

    /// Whether a rule of the config refuses it.
    pub fn is_by_rule(&self) -> bool {
        self.is_by_rule
    }

    /// Worth another try.
    pub fn retryable(text: impl Into<String>) -> Fault {
        Fault::new(Class::RETRYABLE, text)
    }

    /// Bytes are not what was promised.
    pub fn corrupt(text: impl Into<String>) -> Fault {
        Fault::new(Class::Corrupt, text)
    }

    /// Refused, or beyond mending.
    pub fn rejected(text: impl Into<String>) -> Fault {
        Fault::new(Class::Rejected, text)
    }

    /// Not there.
    pub fn not_found(text: impl Into<String>) -> Fault {
        Fault::new(Class::NotFound, text)
    }

    /// We were asked to stop.
    pub fn cancelled() -> Fault {
        Fault::new(Class::Cancelled, "interrupted")
    }

    /// Adds what caused it.
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Fault {
        self.source = Some(source.into());
        self
    }

    /// Puts what was being done in front: `"{doing}: {text}"`.
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Fault {
        self.text = format!("{doing}: {}", self.text);
        self
    }

    /// What it asks of the caller.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The same failure under another class.
    pub fn with_class(mut self, class: Class) -> Fault {
        self.class = class;
        self
    }

    /// The same class and text for another caller; the chain becomes plain text.
    pub fn duplicate(&self) -> Fault {
        Fault {
            is_by_rule: self.is_by_rule,
            ..Fault::new(self.class, self.chain())
        }
    }

    /// The whole chain in one line, bounded in length.
    pub fn chain(&self) -> String {
        let mut text = self.text.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let level = error.to_string();
            // Wrappers often repeat their cause: say each thing once.
            if !text.contains(&level) {
                text.push_str(": ");
                text.push_str(&level);
            }
            cause = error.source();
        }
        clip(&text, 2000)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.name(), self.chain())
    }
}

impl StdError for Fault {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// A text of a peer, made fit for a log line or a message: control characters escaped, at most
/// `most` characters.
pub fn clip(text: &str, most: usize) -> String {
    let mut clipped = String::with_capacity(text.len().min(most) + 4);
    for (count, character) in text.chars().enumerate() {
        if count == most {
            clipped.push('…');
            break;
        }
        if is_unfit(character) {
            clipped.extend(character.escape_default())
        } else {
            clipped.push(character)
        }
    }
    clipped
}

/// Moves the cursor, breaks the line, or changes the direction of the text around it.
fn is_unfit(character: char) -> bool {
    let formats = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    character.is_control() || formats
}

/// What a person wrote where a reference or an address belongs, made fit for a message: as
/// [`clip`], and without what stands before an `@`, which may be a password (`user:password@host`).
/// Digests and paths of layouts stay.
pub fn shown(text: &str, most: usize) -> String {
    if text.starts_with("layout:") {
        return clip(text, most);
    }
    let mut ats = text
        .rmatch_indices('@')
        .map(|(at, _)| at)
        .filter(|at| !names_a_digest(&text[at + 1..]));
    let Some(at) = ats.next() else {
        return clip(text, most);
    };
    let scheme = text[..at].find("://").map_or(0, |end| end + 3);
    clip(&format!("{}[hidden]{}", &text[..scheme], &text[at..]), most)
}

fn names_a_digest(text: &str) -> bool {
    let (algorithm, hex) = text.split_once(':').unwrap_or_default();
    algorithm.starts_with("sha")
        && hex.len() >= 32
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A message, line by line, with [`shown`] in place of every word that looks like an address with a
/// password, and without control characters.
pub fn without_passwords(message: &str) -> String {
    let mut safe = String::with_capacity(message.len());
    for piece in message.split_inclusive(ends_a_word) {
        let (word, end) = match piece.char_indices().next_back() {
            Some((at, last)) if ends_a_word(last) => piece.split_at(at),
            _ => (piece, ""),
        };
        safe.push_str(&if holds_a_password(word) {
            hidden(word)
        } else {
            clip(word, usize::MAX)
        });
        safe.push_str(&if end == "\n" {
            end.to_owned()
        } else {
            clip(end, 1)
        });
    }
    safe
}

fn ends_a_word(character: char) -> bool {
    character.is_whitespace() || "\"'`(),".contains(character)
}

fn holds_a_password(word: &str) -> bool {
    let Some((before, _)) = word.rsplit_once('@') else {
        return false;
    };
    let is_a_path = word.starts_with(['/', '.']) || word.starts_with("layout:");
    !is_a_path && before.contains(':')
}

/// `NAME=` and `--option=` in front stay.
fn hidden(word: &str) -> String {
    let named = word.split_once('=').filter(|(name, _)| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    });
    match named {
        Some((name, value)) => format!("{name}={}", shown(value, usize::MAX)),
        None => shown(word, usize::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_each_thing_once() {
        let inner = Fault::retryable("connection reset");
        let outer = Fault::retryable("GET blob: connection reset").because(inner);
        assert_eq!(outer.chain(), "GET blob: connection reset");
        let outer = Fault::rejected("cannot push").because(std::io::Error::other("disk full"));
        assert_eq!(
            outer.while_doing("tag v1").chain(),
            "tag v1: cannot push: disk full"
        );
    }

    #[test]
    fn what_peers_say_cannot_break_a_log_line() {
        assert_eq!(clip("a\nb\u{1b}[31m", 100), "a\\nb\\u{1b}[31m");
        assert_eq!(clip("abcdef", 3), "abc…");
    }

    #[test]
    fn what_people_write_is_shown_without_passwords() {
        let digest = format!("registry.example/app:v1@sha256:{}", "0".repeat(64));
        let table = [
            ("user:pw@host/app:v1", "[hidden]@host/app:v1"),
            ("https://user:p@w@host/app", "https://[hidden]@host/app"),
            ("user:p/w@host", "[hidden]@host"),
            ("token@host/app", "[hidden]@host/app"),
            (&format!("u:pw@{digest}"), &format!("[hidden]@{digest}")),
            (&digest, &digest),
            ("layout:/a@b:v1", "layout:/a@b:v1"),
            ("a\u{1b}[2Jb\u{202e}", "a\\u{1b}[2Jb\\u{202e}"),
        ];
        for (text, expected) in table {
            assert_eq!(shown(text, 300), expected, "{text}");
        }
    }

    #[test]
    fn a_message_is_printed_without_passwords() {
        let digest = format!("\"registry.example/app:v1@sha256:{}\"", "0".repeat(64));
        let table = [
            (
                "\"user:pw@host\" is no host\nnext line",
                "\"[hidden]@host\" is no host\nnext line",
            ),
            (
                "DOCKER_REG=user:p=w@host/app",
                "DOCKER_REG=[hidden]@host/app",
            ),
            ("--expect=user:pw@host", "--expect=[hidden]@host"),
            (
                "/etc/blobferry@prod.yaml:3:5: url: broken",
                "/etc/blobferry@prod.yaml:3:5: url: broken",
            ),
            ("mail joe@example.com", "mail joe@example.com"),
            (
                "bell \u{7} \u{1b}[31m\rred",
                "bell \\u{7} \\u{1b}[31m\\rred",
            ),
            (&digest, &digest),
        ];
        for (text, expected) in table {
            assert_eq!(without_passwords(text), expected, "{text}");
        }
    }
}
