//! Where requests begin and end in the bytes of an HTTP/1.1 client, and which of them a link
//! answers by itself.
//!
//! A head is held back until it is whole, so that a refused request never reaches the registry, not
//! even in part.

use std::sync::Mutex;
use std::time::Duration;

use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::{RoundMode, SignedDuration, TimestampRound, Unit};
use tokio::time::Instant;

/// The bytes of one client's connection.
#[derive(Default)]
pub struct Requests {
    state: Part,
    refused: bool,
}

enum Part {
    Head(Vec<u8>),
    Body(u64),
    ChunkSize(Vec<u8>),
    Chunk(u64),
    Trailer(Vec<u8>),
    /// No HTTP at all: a client that tries TLS first must hear what the registry says to that.
    Opaque,
}

impl Default for Part {
    fn default() -> Part {
        Part::Head(Vec::new())
    }
}

impl Requests {
    /// Takes a piece and gives what of it goes on. `refuse` is asked once for each request, with
    /// its head.
    pub fn pass(&mut self, piece: Vec<u8>, mut refuse: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
        if let (Part::Body(left) | Part::Chunk(left), false) = (&mut self.state, self.refused)
            && *left > piece.len() as u64
        {
            *left -= piece.len() as u64;
            return piece;
        }
        if matches!(&self.state, Part::Head(text) if text.is_empty())
            && !piece.first().is_some_and(u8::is_ascii_uppercase)
        {
            self.state = Part::Opaque;
            self.refused = false;
        }
        let (mut rest, mut on) = (&piece[..], Vec::with_capacity(piece.len()));
        while !rest.is_empty() {
            let (taken, left) = rest.split_at(self.state.take(rest));
            rest = left;
            if !self.refused && !matches!(self.state, Part::Head(_)) {
                on.extend_from_slice(taken);
            }
            if let Some(next) = self.state.next() {
                if let Part::Head(head) = &self.state {
                    self.refused = refuse(head);
                    on.extend_from_slice(if self.refused { &[] } else { head });
                }
                self.state = next;
            }
        }
        on
    }
}

impl Part {
    /// How many of these bytes belong to this part.
    fn take(&mut self, bytes: &[u8]) -> usize {
        match self {
            Part::Body(left) | Part::Chunk(left) => {
                let taken = (*left).min(bytes.len() as u64);
                *left -= taken;
                taken as usize
            }
            Part::Opaque => bytes.len(),
            Part::Head(text) | Part::ChunkSize(text) | Part::Trailer(text) => {
                let end = bytes
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .map_or(bytes.len(), |at| at + 1);
                text.extend_from_slice(&bytes[..end]);
                end
            }
        }
    }

    /// What comes after this part, once it has ended.
    fn next(&self) -> Option<Part> {
        match self {
            Part::Body(0) => Some(Part::default()),
            Part::Chunk(0) => Some(Part::ChunkSize(Vec::new())),
            Part::Head(text) if text.ends_with(b"\r\n\r\n") => {
                Some(body_of(&String::from_utf8_lossy(text).to_ascii_lowercase()))
            }
            Part::ChunkSize(text) if text.ends_with(b"\n") => {
                let line = String::from_utf8_lossy(text);
                let digits = line.trim().split(';').next().unwrap_or_default();
                match u64::from_str_radix(digits, 16).unwrap_or(0) {
                    0 => Some(Part::Trailer(Vec::new())),
                    size => Some(Part::Chunk(size + 2)),
                }
            }
            Part::Trailer(text) if text == b"\r\n" || text.ends_with(b"\r\n\r\n") => {
                Some(Part::default())
            }
            _ => None,
        }
    }
}

fn body_of(head: &str) -> Part {
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    if field("transfer-encoding:").is_some_and(|coding| coding.contains("chunked")) {
        return Part::ChunkSize(Vec::new());
    }
    match field("content-length:")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0)
    {
        0 => Part::default(),
        length => Part::Body(length),
    }
}

/// A time in which every other request is refused: one with a number of seconds, the next with a
/// date.
pub struct Storm {
    lasts: Duration,
    sky: Mutex<Sky>,
}

#[derive(Default)]
struct Sky {
    ends: Option<Instant>,
    requests: u64,
}

impl Storm {
    /// One that begins with the first request.
    pub fn new(lasts: Duration) -> Storm {
        Storm {
            lasts,
            sky: Mutex::default(),
        }
    }

    /// The answer to this request, when it is refused.
    pub fn refusal(&self, head: &[u8]) -> Option<Vec<u8>> {
        let mut sky = self.sky.lock().expect("nobody panics with it");
        let now = Instant::now();
        let ends = *sky.ends.get_or_insert(now + self.lasts);
        sky.requests += 1;
        (now < ends && sky.requests.is_multiple_of(2))
            .then(|| too_many(head, sky.requests.is_multiple_of(4)))
    }
}

fn too_many(head: &[u8], dated: bool) -> Vec<u8> {
    let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"too many requests"}]}"#;
    let ahead = blobferry::clock::now() + SignedDuration::from_secs(1);
    let at = ahead
        .round(
            TimestampRound::new()
                .smallest(Unit::Second)
                .mode(RoundMode::Ceil),
        )
        .unwrap_or(ahead);
    let date = DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&at)
        .unwrap_or_else(|_| "1".into());
    let after = if dated { date } else { "1".into() };
    let content = if head.starts_with(b"HEAD ") { "" } else { body };
    format!(
        "HTTP/1.1 429 Too Many Requests\r\nRetry-After: {after}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{content}",
        body.len()
    )
    .into_bytes()
}
