//! What the proxy shall break, as data: which requests, which of them, and how.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::sync::watch;
use tokio::time::Instant;

use super::proxy::{Entry, Kind};

/// How a connection ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Closed in an orderly way.
    Fin,
    /// Reset.
    Reset,
}

/// What happens to a request that a rule meets.
#[derive(Clone, Debug)]
pub enum Act {
    /// The connection ends after so many bytes of the request's body have gone on.
    CutRequest(u64, Cut),
    /// The connection ends after so many bytes of the answer's body have come back.
    CutAnswer(u64, Cut),
    /// The request waits so long before it goes on.
    Delay(Duration),
    /// The request waits at the gate before it goes on.
    Hold(Gate),
    /// The answer's body stops at the gate after so many bytes.
    HoldAnswer(u64, Gate),
    /// The request's body stops at the gate after so many bytes.
    HoldRequest(u64, Gate),
    /// This answer, and the request goes nowhere.
    Answer(Reply),
    /// One byte of the answer's body is another.
    FlipByte(u64),
    /// The answer ends after so many bytes and says that this is all.
    Truncate(u64),
    /// So many bytes more than there are; the length says so too.
    Extend(u64),
    /// The answer's header has this value, or is missing.
    Header(&'static str, Option<String>),
    /// No answer, ever.
    Silent,
    /// A listing of tags that has always one more page.
    EndlessTags,
    /// 429 and `Retry-After` as a date so many seconds from now.
    BusyUntil(u64),
    /// Beyond so many requests in a window: 429 and `Retry-After` in seconds.
    RateLimit {
        most: usize,
        window: Duration,
        retry_after: u64,
    },
}

/// An answer that is made here.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The connection is closed behind it, whatever the client still sends.
    pub close: bool,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply {
            status: StatusCode::from_u16(status).expect("a status"),
            ..Reply::default()
        }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Reply {
        self.headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_str(value).expect("a header's value"),
        );
        self
    }

    pub fn body(mut self, media_type: &str, body: impl Into<Bytes>) -> Reply {
        self.body = body.into();
        self.header("content-type", media_type)
    }

    /// A page for people where a machine asked.
    pub fn html() -> Reply {
        Reply::status(200).body(
            "text/html",
            "<!doctype html><html><title>Sign in</title><body>Please sign in.</body></html>",
        )
    }

    pub fn redirect(to: &str) -> Reply {
        Reply::status(307).header("location", to)
    }

    pub fn closing(mut self) -> Reply {
        self.close = true;
        self
    }
}

impl From<Reply> for Act {
    fn from(reply: Reply) -> Act {
        Act::Answer(reply)
    }
}

/// Where requests wait until a test lets them on: order without sleeping.
#[derive(Clone, Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
    arrived: watch::Sender<usize>,
}

impl Gate {
    /// A closed gate.
    pub fn closed() -> Gate {
        Gate {
            open: watch::Sender::new(false),
            arrived: watch::Sender::new(0),
        }
    }

    /// Lets everyone on, those who wait and those who come later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until so many have come to the gate; panics after 60 s.
    pub async fn arrived(&self, count: usize) {
        let mut arrived = self.arrived.subscribe();
        let there = arrived.wait_for(|there| *there >= count);
        let there = tokio::time::timeout(Duration::from_secs(60), there).await;
        there
            .unwrap_or_else(|_| panic!("not {count} at the gate within 60 s"))
            .expect("the gate is here");
    }

    pub(super) async fn pass(&self) {
        self.arrived.send_modify(|there| *there += 1);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// Which requests, which of them, and what happens to them.
#[derive(Clone, Debug)]
pub struct Rule {
    kinds: Vec<Kind>,
    part: String,
    first: usize,
    times: usize,
    every: usize,
    acts: Vec<Act>,
    seen: usize,
    window: VecDeque<Instant>,
}

impl Rule {
    /// Every request of these kinds; of any kind when there are none.
    pub fn on(kinds: &[Kind]) -> Rule {
        let kinds = kinds.to_vec();
        Rule {
            kinds,
            part: String::new(),
            first: 0,
            times: usize::MAX,
            every: 1,
            acts: Vec::new(),
            seen: 0,
            window: VecDeque::new(),
        }
    }

    /// Only where the path and query hold this text.
    pub fn path(mut self, part: &str) -> Rule {
        self.part = part.into();
        self
    }

    /// Only from the k-th of them on, counted from 0.
    pub fn from(mut self, first: usize) -> Rule {
        self.first = first;
        self
    }

    /// Only so many of them.
    pub fn times(mut self, times: usize) -> Rule {
        self.times = times;
        self
    }

    /// Only each k-th of those that would be meant.
    pub fn every(mut self, every: usize) -> Rule {
        self.every = every;
        self
    }

    /// What happens; several acts happen in order.
    pub fn act(mut self, act: impl Into<Act>) -> Rule {
        self.acts.push(act.into());
        self
    }

    /// The acts for this request, if it is one of those meant.
    pub(super) fn meets(&mut self, entry: &Entry) -> Vec<Act> {
        if !(self.kinds.is_empty() || self.kinds.contains(&entry.kind))
            || !entry.path.contains(&self.part)
        {
            return Vec::new();
        }
        let turn = self.seen;
        self.seen += 1;
        if turn < self.first
            || turn - self.first >= self.times.saturating_mul(self.every)
            || !(turn - self.first).is_multiple_of(self.every)
        {
            return Vec::new();
        }
        let acts = self.acts.clone();
        acts.into_iter()
            .filter_map(|act| self.limited(act))
            .collect()
    }

    fn limited(&mut self, act: Act) -> Option<Act> {
        if let Act::BusyUntil(seconds) = act {
            let date = blobferry::clock::now() + jiff::SignedDuration::from_secs(seconds as i64);
            let date = jiff::fmt::rfc2822::DateTimePrinter::new()
                .timestamp_to_rfc9110_string(&date)
                .expect("a date of our time");
            return Some(Reply::status(429).header("retry-after", &date).into());
        }
        let Act::RateLimit {
            most,
            window,
            retry_after,
        } = act
        else {
            return Some(act);
        };
        let now = Instant::now();
        while self
            .window
            .front()
            .is_some_and(|then| now.duration_since(*then) >= window)
        {
            self.window.pop_front();
        }
        if self.window.len() < most {
            self.window.push_back(now);
            return None;
        }
        let refusal = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"rate exceeded"}]}"#;
        Some(
            Reply::status(429)
                .header("retry-after", &retry_after.to_string())
                .body("application/json", refusal)
                .into(),
        )
    }
}
