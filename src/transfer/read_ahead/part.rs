//! A part of a blob that is read over a connection of its own.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Body;

use super::PartOpening;
use super::budget::BudgetShare;
use crate::endpoint::BlobBody;
use crate::fault::Fault;
use crate::transfer::admission::ReadingPermit;
use crate::transfer::opening::Opening;

/// Frames of a part that are smaller are gathered into larger ones.
const SMALL: usize = 8 * 1024;
/// The size of those.
const GATHERED: usize = 64 * 1024;

/// A part of the blob: what has come of it, and where the rest comes from.
pub(super) struct Part {
    /// What is still to be passed on.
    pub(super) range: Range<u64>,
    /// Bytes that came and were not passed on.
    pub(super) frames: VecDeque<Bytes>,
    pub(super) buffered: u64,
    from: PartSource,
    /// Whether the connection goes on behind the end of the range.
    is_cut: bool,
    /// Whether it came over a further connection.
    pub(super) is_extra: bool,
    /// Small frames behind `frames`, gathered.
    small: BytesMut,
    permit: Option<ReadingPermit>,
    share: Option<BudgetShare>,
}

pub(super) enum PartSource {
    Opening(Opening),
    Open(BlobBody),
    Failed(Fault),
    Ended,
}

impl Part {
    pub(super) fn new(range: Range<u64>, from: PartSource) -> Part {
        Part {
            range,
            frames: VecDeque::new(),
            buffered: 0,
            from,
            is_cut: false,
            is_extra: false,
            small: BytesMut::new(),
            permit: None,
            share: None,
        }
    }

    pub(super) fn opened(range: Range<u64>, part: PartOpening, share: Option<BudgetShare>) -> Part {
        Part {
            is_extra: share.is_some(),
            permit: part.permit,
            share,
            ..Part::new(range, PartSource::Opening(part.opening))
        }
    }

    /// Asks for what is missing anew.
    pub(super) fn reopened(&mut self, opening: Option<PartOpening>) {
        let gone = || PartSource::Failed(Fault::retryable("the source is read on no more"));
        self.from = opening.map_or_else(gone, |part| PartSource::Opening(part.opening));
        self.is_extra = false;
        self.permit = None;
        // What comes now is passed on as it comes.
        self.share = None;
    }

    /// Bytes that have not come yet.
    pub(super) fn missing(&self) -> u64 {
        self.range
            .end
            .saturating_sub(self.range.start + self.buffered)
    }

    /// Ends the part at `end`, though its connection goes on.
    pub(super) fn cut(&mut self, end: u64) {
        self.is_cut = end < self.range.end;
        self.range.end = end;
    }

    /// Takes a step towards the next frame. `Ready(false)`: nothing more comes.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match &mut self.from {
            PartSource::Opening(opening) => {
                self.from = match ready!(opening.as_mut().poll(cx)) {
                    Ok(body) => PartSource::Open(body),
                    Err(fault) => PartSource::Failed(fault),
                };
            }
            PartSource::Open(body) => match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => self.keep(frame.into_data().unwrap_or_default()),
                Some(Err(fault)) => self.from = PartSource::Failed(fault),
                None => {
                    self.from = PartSource::Ended;
                    self.permit = None;
                }
            },
            PartSource::Failed(_) | PartSource::Ended => return Poll::Ready(false),
        }
        Poll::Ready(true)
    }

    pub(super) fn keep(&mut self, mut bytes: Bytes) {
        if self.is_cut {
            bytes.truncate(usize::try_from(self.missing()).unwrap_or(usize::MAX));
        }
        self.buffered += bytes.len() as u64;
        // A small frame may hold a large buffer.
        if self.is_extra && bytes.len() < SMALL {
            self.small.extend_from_slice(&bytes);
        } else if !bytes.is_empty() {
            self.end_small();
            self.frames.push_back(bytes);
        }
        if self.small.len() >= GATHERED {
            self.end_small();
        }
        if self.is_cut && self.missing() == 0 {
            self.from = PartSource::Ended;
        }
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.frames.push_back(self.small.split().freeze());
        }
    }

    /// Reads what has come.
    pub(super) fn fill(&mut self, cx: &mut Context<'_>) {
        while self.poll_step(cx) == Poll::Ready(true) {}
    }

    /// The next bytes in order. `None`: the part is over.
    pub(super) fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            if self.frames.is_empty() {
                self.end_small();
            }
            if let Some(bytes) = self.frames.pop_front() {
                self.buffered -= bytes.len() as u64;
                self.range.start += bytes.len() as u64;
                return Poll::Ready(Some(Ok(bytes)));
            }
            if ready!(self.poll_step(cx)) {
                continue;
            }
            let ended = std::mem::replace(&mut self.from, PartSource::Ended);
            return Poll::Ready(match ended {
                PartSource::Failed(fault) => Some(Err(fault)),
                _ if self.range.is_empty() => None,
                _ => Some(Err(Fault::retryable(
                    "the source ends before the blob does",
                ))),
            });
        }
    }
}
