//! One large blob over several connections: from a source with connections that are slow each, and
//! fast together, parts are read ahead of the one that is passed on.
//!
//! - A body begins as one connection. Where what takes the bytes waits for the source most of the
//!   time, and the connection is slow, further parts are opened beside it, and more of them as long
//!   as each step makes it faster. Where the destination is the bound, nothing is read ahead.
//! - A part is opened only with a free permit to read, and its bytes fit into a bound that all bodies
//!   share. The parts are passed on, and hashed, in order.
//! - Where a part fails, or parts make it slower, the body goes on over one connection: what has come
//!   whole is passed on, what is missing is asked for again.

mod budget;
mod pace;
mod part;

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

pub(super) use self::budget::AheadBudget;
use self::pace::Pace;
use self::part::{Part, PartSource};
use super::admission::ReadingPermit;
use super::bounds;
use super::opening::Opening;
use crate::endpoint::BlobBody;
use crate::fault::Fault;

/// The source is the bound where it is waited for at least this part of the time.
const SOURCE_BOUND: f64 = 0.75;
/// The destination is the bound where the source is waited for less than this part of the time.
const DESTINATION_BOUND: f64 = 0.25;
/// Parts are given up where they bring less than this of what was brought without them.
const SLOWER: f64 = 0.5;
/// The same of the first step, whose connections are all new, and grow.
const SLOWER_AT_FIRST: f64 = 0.25;
/// How often a blob is read in parts anew after they were given up.
const TRIES: u8 = 3;
/// What parts that made it slower count for in that.
const SLOW_COSTS: u8 = 2;
/// A connection is in vain where the source is waited for less than this part of the time.
const IDLE: f64 = 0.02;
/// Connections of the first step. A part costs a round trip beside its bytes: two connections bring
/// hardly more than one that is read to the end.
const FIRST: usize = 3;
/// A step that makes it faster by less is undone.
const FASTER: f64 = 1.1;
/// Connections that bring so much more than in the time before still grow: TCP needs many round
/// trips until a new one is as fast as it will be.
const GROWING: f64 = 1.25;
/// Reading ahead is not begun for fewer parts.
pub(super) const LEAST_PARTS: u64 = 8;

/// Opens the bytes of a part.
pub(super) type OpenPart = Box<dyn FnMut(Range<u64>, Connection) -> Option<PartOpening> + Send>;

/// What a part is read over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// The body's own: what no further connection brings.
    Own,
    /// Another one, if it may be opened now.
    Extra,
}

/// A part that is being opened.
pub(super) struct PartOpening {
    pub(super) opening: Opening,
    /// The permit to read over another connection.
    pub(super) permit: Option<ReadingPermit>,
}

/// How many connections a body reads from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// One. `may_try`: more may be tried.
    One { may_try: bool },
    /// Several; with fewer it moved `before` bytes a second. `is_settled`: more do not help.
    Several {
        connections: usize,
        before: f64,
        is_settled: bool,
    },
}

/// As many connections as there are.
fn settled(connections: usize, before: f64) -> Mode {
    Mode::Several {
        connections,
        before,
        is_settled: true,
    }
}

fn fewer(connections: usize, before: f64) -> Mode {
    match connections {
        ..=2 => Mode::One { may_try: false },
        _ => settled(connections - 1, before),
    }
}

/// A blob's bytes from an offset to its end.
pub(super) struct ReadAhead {
    current: Part,
    parts: VecDeque<Part>,
    size: u64,
    mode: Mode,
    /// Whether a part has been opened.
    has_parts: bool,
    /// How often parts may be tried again.
    tries: u8,
    pace: Pace,
    /// Bytes a second in the time measured before. `None`: the number of connections has just changed.
    rate_before: Option<f64>,
    open: OpenPart,
    budget: AheadBudget,
    bounds: bounds::ReadAhead,
    /// Whether the blob may be read in parts: a part that failed ends that.
    may_be_parted: Arc<AtomicBool>,
}

impl ReadAhead {
    /// `body`: the bytes from `offset` on, over one connection.
    pub(super) fn new(
        body: BlobBody,
        offset: u64,
        size: u64,
        open: OpenPart,
        budget: AheadBudget,
        bounds: bounds::ReadAhead,
        may_be_parted: Arc<AtomicBool>,
    ) -> ReadAhead {
        ReadAhead {
            current: Part::new(offset..size, PartSource::Open(body)),
            parts: VecDeque::new(),
            size,
            mode: Mode::One { may_try: true },
            has_parts: false,
            tries: TRIES,
            pace: Pace::start(),
            rate_before: None,
            open,
            budget,
            bounds,
            may_be_parted,
        }
    }

    /// The first byte that no part covers.
    fn end(&self) -> u64 {
        self.parts
            .back()
            .map_or(self.current.range.end, |part| part.range.end)
    }

    /// Chooses the number of connections, once enough has passed to tell.
    fn choose_mode(&mut self) {
        let elapsed = self.pace.since.elapsed();
        if elapsed < self.bounds.measured {
            return;
        }
        let enough = match self.mode {
            Mode::One { .. } => self.bounds.part,
            Mode::Several { connections, .. } => 2 * connections as u64 * self.bounds.part,
        };
        let (rate, waited) = (self.pace.rate(), self.pace.share_waited());
        if self.pace.bytes < enough {
            if waited >= DESTINATION_BOUND {
                self.end_what_is_slow(elapsed, enough);
            }
            return;
        }
        let grows = self
            .rate_before
            .is_none_or(|before| rate >= before * GROWING);
        let mode = match self.mode {
            Mode::One { may_try: true } if self.is_fast(rate, waited) => {
                Mode::One { may_try: false }
            }
            Mode::One { may_try: true } if !grows && self.is_worth_a_try(waited) => {
                self.begin(rate)
            }
            Mode::One { may_try } => Mode::One { may_try },
            Mode::Several {
                connections,
                before,
                is_settled,
            } => match waited {
                ..IDLE => fewer(connections, before),
                _ if is_settled => self.mode,
                ..DESTINATION_BOUND => settled(connections, before),
                _ if rate < before * FASTER && grows => self.mode,
                _ => self.after_step(connections, before, rate),
            },
        };
        self.rate_before = (mode == self.mode).then_some(rate);
        self.mode = mode;
        self.pace = Pace::start();
    }

    /// Gives parts up where fewer than `enough` bytes came in a time in which one connection would
    /// have brought far more. Where the first step already did that, they are not tried again.
    fn end_what_is_slow(&mut self, elapsed: Duration, enough: u64) {
        let Mode::Several {
            connections,
            before,
            is_settled,
        } = self.mode
        else {
            return;
        };
        let is_first_step = connections == FIRST && !is_settled;
        let share = if is_first_step {
            SLOWER_AT_FIRST
        } else {
            SLOWER
        };
        if elapsed.as_secs_f64() * before * share < enough as f64 {
            return;
        }
        let costs = if is_first_step { u8::MAX } else { SLOW_COSTS };
        self.give_up_parts(costs);
    }

    /// Whether the source brings as much as further connections may add. Losses may slow it down
    /// for a while, and then it would be taken for a slow one.
    fn is_fast(&self, rate: f64, waited: f64) -> bool {
        waited >= SOURCE_BOUND && rate > self.bounds.slow as f64
    }

    fn is_worth_a_try(&self, waited: f64) -> bool {
        let left = self.current.range.end - self.current.range.start;
        let is_one = self.parts.is_empty() && self.current.range.end == self.size;
        is_one && waited >= SOURCE_BOUND && left >= LEAST_PARTS * self.bounds.part
    }

    /// The connection reads one more part, the next ones begin behind it.
    fn begin(&mut self, rate: f64) -> Mode {
        let end = self.current.range.start + self.current.buffered + self.bounds.part;
        if !self.open_part(end) {
            return Mode::One { may_try: true };
        }
        self.current.cut(end);
        Mode::Several {
            connections: FIRST,
            before: rate,
            is_settled: false,
        }
    }

    /// More connections if the last ones made it faster, else as many as before them.
    fn after_step(&self, connections: usize, before: f64, rate: f64) -> Mode {
        let helped = rate >= before * FASTER;
        let most = self.bounds.connections;
        match (helped, connections) {
            (true, _) => Mode::Several {
                connections: (connections + 2).min(most),
                before: rate,
                is_settled: connections >= most,
            },
            (false, ..=FIRST) => Mode::One { may_try: false },
            (false, _) => settled(connections - 2, before),
        }
    }

    /// Opens further parts, as many as the mode, the permits and the memory allow.
    fn open_parts(&mut self) {
        let Mode::Several { connections, .. } = self.mode else {
            return;
        };
        while self.busy() < connections && self.open_part(self.end()) {}
    }

    /// How many connections still bring bytes. A part that has come whole only waits for its turn.
    fn busy(&self) -> usize {
        let parts = std::iter::once(&self.current).chain(&self.parts);
        parts.filter(|part| part.missing() > 0).count()
    }

    /// Opens one more part over a further connection. Returns whether it may be opened.
    fn open_part(&mut self, start: u64) -> bool {
        let range = start..(start + self.bounds.part).min(self.size);
        let length = usize::try_from(self.bounds.part).unwrap_or(usize::MAX);
        if range.is_empty() {
            return false;
        }
        let Some(share) = self.budget.take(length, self.bounds.all) else {
            return false;
        };
        let Some(opening) = (self.open)(range.clone(), Connection::Extra) else {
            return false;
        };
        let part = Part::opened(range, opening, Some(share));
        self.parts.push_back(part);
        self.has_parts = true;
        true
    }

    /// Goes on over one connection. What has come whole is passed on, the rest is asked for again.
    fn give_up_parts(&mut self, costs: u8) {
        let is_whole = |part: &&Part| part.missing() == 0;
        let whole = self.parts.iter().take_while(is_whole).count();
        self.parts.truncate(whole);
        if self.current.is_extra && self.current.missing() > 0 {
            if self.parts.is_empty() {
                self.current.range.end = self.size;
            }
            let missing = self.current.range.start + self.current.buffered..self.current.range.end;
            let opening = (self.open)(missing, Connection::Own);
            self.current.reopened(opening);
        }
        let may_try = self.tries >= costs;
        self.tries = self.tries.saturating_sub(costs);
        self.mode = Mode::One { may_try };
        self.rate_before = None;
        self.pace = Pace::start();
    }

    /// A part has failed. A registry that sends no parts is asked for none again.
    fn part_failed(&mut self, fault: &Fault) {
        if !fault.class().is_retryable() {
            self.tries = 0;
            self.may_be_parted.store(false, Ordering::Relaxed);
        }
        self.give_up_parts(1);
    }

    /// The fault that ends the body. Behind a part it proves nothing: the blob is opened again, and
    /// read over one connection.
    fn ends_with(&self, fault: Fault) -> Fault {
        if !self.has_parts {
            return fault;
        }
        self.may_be_parted.store(false, Ordering::Relaxed);
        Fault::retryable(fault.chain())
    }

    /// Goes over to the next part. Where none could be opened beside the last one, one connection
    /// reads the rest. `false`: the blob is over.
    fn next_part(&mut self) -> bool {
        if let Some(part) = self.parts.pop_front() {
            self.current = part;
            return true;
        }
        let rest = self.current.range.end..self.size;
        if rest.is_empty() {
            return false;
        }
        let Some(opening) = (self.open)(rest.clone(), Connection::Own) else {
            return false;
        };
        if let Mode::Several { is_settled, .. } = self.mode {
            let may_try = !is_settled;
            self.mode = Mode::One { may_try };
        }
        self.current = Part::opened(rest, opening, None);
        true
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            self.open_parts();
            let polled = self.current.poll_bytes(cx);
            for part in &mut self.parts {
                part.fill(cx);
            }
            match polled {
                Poll::Ready(Some(Ok(bytes))) => {
                    self.pace.passed(bytes.len());
                    self.choose_mode();
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Poll::Ready(Some(Err(fault))) if self.current.is_extra => {
                    self.part_failed(&fault);
                }
                Poll::Ready(Some(Err(fault))) => {
                    return Poll::Ready(Some(Err(self.ends_with(fault))));
                }
                Poll::Ready(None) if self.next_part() => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    self.pace.waits();
                    return Poll::Pending;
                }
            }
        }
    }

    /// The same as a body.
    pub(super) fn body(self) -> BlobBody {
        BlobBody::new(ReadAheadBody(Mutex::new(self)))
    }
}

/// One owner polls it: the lock only makes it `Sync`, as bodies are.
struct ReadAheadBody(Mutex<ReadAhead>);

impl Body for ReadAheadBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let inner = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.poll_bytes(cx).map_ok(Frame::data)
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        SizeHint::with_exact(inner.size.saturating_sub(inner.current.range.start))
    }
}

#[cfg(test)]
mod tests;
