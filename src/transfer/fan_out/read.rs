//! One read of a blob, its window, and the expected readers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use tokio::time::Instant;

use super::{Expected, FanOut, GroupMember, ReadGroup, ReadKey};
use crate::byte_threads::ByteThread;
use crate::endpoint::{BlobBody, Origin};
use crate::fault::{Class, Fault};
use crate::oci::{Hasher, RepositoryName};
use crate::transfer::SharedReads;
use crate::transfer::admission::{ReadingPermit, Share};
use crate::transfer::opening::{Open, Opening};

/// A read that several destinations share.
pub(super) struct Read {
    pub(super) fan_out: FanOut,
    pub(super) key: ReadKey,
    pub(super) group: Arc<ReadGroup>,
    /// The source repository.
    pub(super) repository: RepositoryName,
    pub(super) share: Share,
    /// Where all readers' bodies move.
    pub(super) thread: OnceLock<ByteThread>,
    pub(super) wakers: Arc<ReaderWakers>,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) open: Open,
    pub(super) source: SharedSource,
    /// The reading permit, until the source has ended or no reader is admitted.
    pub(super) permit: Option<ReadingPermit>,
    pub(super) frames: VecDeque<HashedFrame>,
    /// The hasher after all bytes that came from the source.
    hasher: Hasher,
    /// The number of the first frame that is kept, and the bytes of all that are.
    pub(super) first: u64,
    pub(super) bytes: usize,
    pub(super) kept: Arc<AtomicUsize>,
    pub(super) bounds: SharedReads,
    /// Bytes that came from the source.
    pub(super) read: u64,
    pub(super) size: u64,
    pub(super) readers: BTreeMap<u64, ReaderState>,
    pub(super) next_reader: u64,
    /// Readers that may still join at the start.
    pub(super) expected: BTreeSet<Expected>,
    /// Whether the start is kept for a while without expected readers.
    pub(super) lingers: bool,
    pub(super) began: Instant,
    pub(super) waited: Duration,
    pub(super) waiting_since: Option<Instant>,
}

/// A part of a blob, hashed once for all readers.
#[derive(Clone)]
pub(in crate::transfer) struct HashedFrame {
    pub(in crate::transfer) bytes: Bytes,
    /// The hasher after the last of these bytes.
    pub(in crate::transfer) hasher: Hasher,
}

/// The state of one reader.
pub(super) struct ReaderState {
    /// The number of its next frame.
    pub(super) next: u64,
    /// Whether it has its permits. Before that it is queued for them.
    pub(super) is_admitted: bool,
    pub(super) destination: Origin,
    job: u64,
    /// Whether it belongs to the group that opened the read.
    is_same_group: bool,
    /// Whether it was dropped before: then no reader waits for it.
    slow: bool,
}

pub(super) enum SharedSource {
    Closed,
    Opening(Opening),
    Open(BlobBody),
    Ended,
    Failed(Class, String),
}

/// The wakers of all readers that wait for the read.
#[derive(Default)]
pub(super) struct ReaderWakers(Mutex<Vec<Waker>>);

impl ReaderWakers {
    pub(super) fn register(&self, waker: &Waker) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    pub(super) fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Wake for ReaderWakers {
    fn wake(self: Arc<ReaderWakers>) {
        self.wake_all();
    }
}

impl Read {
    /// A read that is not open yet, for the job of `member`.
    pub(super) fn new(
        member: &GroupMember,
        key: ReadKey,
        expected: BTreeSet<Expected>,
        lingers: bool,
        kept: Arc<AtomicUsize>,
        bounds: SharedReads,
        open: Open,
    ) -> Arc<Read> {
        let state = State {
            open,
            source: SharedSource::Closed,
            permit: None,
            frames: VecDeque::new(),
            hasher: Hasher::new(key.1.algorithm()),
            first: 0,
            bytes: 0,
            kept,
            bounds,
            read: 0,
            size: 0,
            readers: BTreeMap::new(),
            next_reader: 0,
            expected,
            lingers,
            began: Instant::now(),
            waited: Duration::ZERO,
            waiting_since: None,
        };
        let (fan_out, group, repository) = (
            member.fan_out.clone(),
            member.group.clone(),
            member.key.1.clone(),
        );
        let share = fan_out.admission.share();
        Arc::new(Read {
            fan_out,
            key,
            group,
            repository,
            share,
            thread: OnceLock::new(),
            wakers: Arc::default(),
            state: Mutex::new(state),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the reading permit once it is unused.
    pub(super) fn release_permit(&self, state: &mut State) {
        if !state.is_permit_unused() {
            return;
        }
        state.close_source();
        if matches!(state.source, SharedSource::Ended) {
            self.share.free();
        }
        state.permit = None;
    }

    /// The number of a reader that joins at the start, if that is still kept.
    pub(super) fn join(&self, member: &GroupMember, size: u64, slow: bool) -> Option<u64> {
        let mut state = self.lock();
        if !state.has_start() || (state.size != size && state.next_reader > 0) {
            return None;
        }
        state.size = size;
        state
            .expected
            .remove(&Expected::Registry(member.destination.clone()));
        state.expected.remove(&Expected::Job(member.number));
        let number = state.next_reader;
        state.next_reader += 1;
        let (is_same_group, destination) = (
            Arc::ptr_eq(&self.group, &member.group),
            member.destination.clone(),
        );
        state.readers.insert(
            number,
            ReaderState {
                next: 0,
                is_admitted: false,
                destination,
                job: member.number,
                is_same_group,
                slow,
            },
        );
        Some(number)
    }

    /// Keeps the start for an expected reader, if it is still kept.
    pub(super) fn expect(&self, expected: Expected) {
        let mut state = self.lock();
        if state.has_start() {
            state.expected.insert(expected);
        }
    }

    /// Removes a job from the expected readers. Returns whether the read is still needed.
    pub(super) fn excuse(&self, member: &GroupMember) -> bool {
        let mut state = self.lock();
        let mut excused = state.expected.remove(&Expected::Job(member.number));
        if Arc::ptr_eq(&self.group, &member.group) {
            excused |= state
                .expected
                .remove(&Expected::Registry(member.destination.clone()));
        }
        if excused {
            state.trim();
            self.wakers.wake_all();
        }
        !(state.readers.is_empty() && (state.expected.is_empty() || !state.is_over()))
    }
}

impl State {
    pub(super) fn is_over(&self) -> bool {
        self.readers.is_empty()
            && matches!(self.source, SharedSource::Ended | SharedSource::Failed(..))
    }

    fn has_start(&self) -> bool {
        self.first == 0 && !matches!(self.source, SharedSource::Failed(..))
    }

    /// Whether nothing more may be read before kept frames are dropped.
    pub(super) fn is_blocked(&self) -> bool {
        let is_full = self.bytes >= self.bounds.window
            || self.kept.load(Ordering::Relaxed) >= self.bounds.all_windows;
        is_full && !self.frames.is_empty()
    }

    fn push(&mut self, bytes: Bytes) {
        self.read += bytes.len() as u64;
        self.bytes += bytes.len();
        self.kept.fetch_add(bytes.len(), Ordering::Relaxed);
        self.hasher.update(&bytes);
        let hasher = self.hasher.clone();
        self.frames.push_back(HashedFrame { bytes, hasher });
    }

    /// Drops frames that all readers have taken.
    pub(super) fn trim(&mut self) {
        if self.first == 0 && (!self.expected.is_empty() || self.lingers) {
            return;
        }
        let end = self.first + self.frames.len() as u64;
        let needed = self
            .readers
            .values()
            .map(|place| place.next)
            .min()
            .unwrap_or(end);
        while self.first < needed {
            let Some(frame) = self.frames.pop_front() else {
                break;
            };
            self.first += 1;
            self.bytes -= frame.bytes.len();
            self.kept.fetch_sub(frame.bytes.len(), Ordering::Relaxed);
            if let Some(since) = self.waiting_since.take() {
                self.waited += since.elapsed();
            }
        }
    }

    /// How much longer fast readers wait for slow ones.
    pub(super) fn remaining_wait(&mut self) -> Duration {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let allowed = self.bounds.grace + self.began.elapsed() / 20;
        allowed.saturating_sub(self.waited + since.elapsed())
    }

    /// Stops keeping the start for unannounced readers, once that takes much memory.
    pub(super) fn stop_lingering(&mut self) {
        if self.lingers
            && (self.bytes >= self.bounds.linger
                || self.kept.load(Ordering::Relaxed) >= self.bounds.all_windows / 2)
        {
            self.end_lingering();
        }
    }

    pub(super) fn end_lingering(&mut self) {
        self.lingers = false;
        self.trim();
    }

    /// Drops slow readers, and readers queued for an upload permit of `destination` that the reader
    /// ahead may hold.
    pub(super) fn drop_queued_readers(&mut self, destination: &Origin) {
        let first = self.first;
        self.readers.retain(|_, reader| {
            let may_progress = reader.is_admitted || reader.destination != *destination;
            reader.next > first || (!reader.slow && may_progress)
        });
        self.trim();
    }

    /// Drops the slowest readers: the expected ones that did not join, else the ones that hold the
    /// window. Frames that do not linger are kept for one of them.
    pub(super) fn drop_slowest(&mut self) -> BTreeSet<Expected> {
        let mut slow = std::mem::take(&mut self.expected);
        if slow.is_empty() {
            let first = self.first;
            for (_, place) in self.readers.extract_if(.., |_, place| place.next == first) {
                slow.insert(Expected::Job(place.job));
                slow.extend(
                    place
                        .is_same_group
                        .then_some(Expected::Registry(place.destination)),
                );
            }
        }
        debug_assert!(!slow.is_empty(), "frames are kept for no reader");
        self.trim();
        slow
    }

    /// Polls the source for one frame. Opens it again where it broke off.
    pub(super) fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A poll that panics leaves a failed read behind, not a partial state.
        match std::mem::replace(
            &mut self.source,
            SharedSource::Failed(Class::RETRYABLE, String::new()),
        ) {
            SharedSource::Closed => self.reopen(),
            SharedSource::Opening(mut opening) => match opening.as_mut().poll(cx) {
                Poll::Ready(Ok(body)) => self.source = SharedSource::Open(body),
                Poll::Ready(Err(fault)) => self.fail(fault),
                Poll::Pending => {
                    self.source = SharedSource::Opening(opening);
                    return Poll::Pending;
                }
            },
            SharedSource::Open(mut body) => match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.source = SharedSource::Open(body);
                    self.take(frame);
                }
                Poll::Ready(Some(Err(fault))) if !fault.class().is_retryable() => self.fail(fault),
                Poll::Ready(_) if self.read < self.size => self.reopen(),
                Poll::Ready(_) => self.source = SharedSource::Ended,
                Poll::Pending => {
                    self.source = SharedSource::Open(body);
                    return Poll::Pending;
                }
            },
            over @ (SharedSource::Ended | SharedSource::Failed(..)) => self.source = over,
        }
        Poll::Ready(())
    }

    fn reopen(&mut self) {
        self.source = SharedSource::Opening((self.open)(self.read));
    }

    fn take(&mut self, frame: http_body::Frame<Bytes>) {
        match frame.into_data() {
            Ok(bytes) if self.read + bytes.len() as u64 > self.size => {
                self.fail(Fault::corrupt("it is longer than its manifest says"));
            }
            Ok(bytes) if !bytes.is_empty() => self.push(bytes),
            _ => {}
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.source = SharedSource::Failed(fault.class(), fault.chain());
    }

    /// Whether the reading permit is unused: nothing is left to read, or no reader is admitted.
    pub(super) fn is_permit_unused(&self) -> bool {
        let is_over = matches!(self.source, SharedSource::Ended | SharedSource::Failed(..));
        is_over || !self.readers.values().any(|place| place.is_admitted)
    }

    /// Closes the source, since the permit is released. The next permit opens it at the same
    /// offset.
    pub(super) fn close_source(&mut self) {
        if matches!(
            self.source,
            SharedSource::Opening(_) | SharedSource::Open(_)
        ) {
            self.source = SharedSource::Closed;
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.kept.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
