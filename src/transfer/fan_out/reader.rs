//! A reader of a shared read.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::time::{Instant, Sleep};

use super::Expected;
use super::GroupMember;
use super::read::{HashedFrame, Read, SharedSource, State};
use crate::byte_threads::ByteThread;
use crate::fault::{Class, Fault};
use crate::transfer::admission::{ReadingPermit, Share};

/// One destination's reader of a shared read, from the start of the blob.
pub(in crate::transfer) struct Reader {
    read: Arc<Read>,
    number: u64,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether it opened the read: metrics of the read are counted for it.
    pub(in crate::transfer) is_first: bool,
    /// Whether its own source is another repository than the one that is read: a failure there may
    /// not apply here.
    is_foreign: bool,
}

impl Reader {
    /// Joins `read` at its start, if that is still kept.
    pub(super) fn join(
        read: &Arc<Read>,
        member: &GroupMember,
        size: u64,
        slow: bool,
    ) -> Option<Reader> {
        let number = read.join(member, size, slow)?;
        Some(Reader {
            read: read.clone(),
            number,
            timer: None,
            is_first: number == 0,
            is_foreign: member.key.1 != read.repository,
        })
    }

    /// The shared read, for admission.
    pub(in crate::transfer) fn share(&self) -> &Share {
        &self.read.share
    }

    /// The thread of the shared read: the readers of one read take its frames without a change of
    /// threads. The first one chooses it.
    pub(in crate::transfer) fn byte_thread(
        &self,
        choose: impl FnOnce() -> ByteThread,
    ) -> ByteThread {
        self.read.thread.get_or_init(choose).clone()
    }

    /// Admits the reader with the permit of its body. `false`: the shared reading permit is
    /// released, and the body has none of its own.
    pub(in crate::transfer) fn admit(&self, reading: Option<ReadingPermit>) -> bool {
        let mut state = self.read.lock();
        let is_over = matches!(state.source, SharedSource::Ended | SharedSource::Failed(..));
        if reading.is_none() && state.permit.is_none() && !is_over {
            return false;
        }
        let Some(place) = state.readers.get_mut(&self.number) else {
            return true;
        };
        place.is_admitted = true;
        if let Some(reading) = reading.filter(|_| !is_over) {
            state.permit = Some(reading);
        }
        true
    }

    /// Whether the reader was dropped before it had taken a frame.
    pub(in crate::transfer) fn is_lost(&self) -> bool {
        !self.read.lock().readers.contains_key(&self.number)
    }

    /// The next frame. Each turn of the loop ends it, takes a step of the source, or makes room in a full window.
    pub(in crate::transfer) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HashedFrame, Fault>>> {
        let read = self.read.clone();
        let mut state = read.lock();
        loop {
            let first = state.first;
            let Some(place) = state.readers.get_mut(&self.number) else {
                return Poll::Ready(Some(Err(Fault::retryable(
                    "left behind by the other destinations",
                ))));
            };
            // A reader that is polled has its permits.
            place.is_admitted = true;
            let ahead = place.next - first;
            if let Some(frame) = state.frames.get(ahead as usize).cloned() {
                self.advance(&mut state);
                drop(state);
                read.wakers.wake_all();
                return Poll::Ready(Some(Ok(frame)));
            }
            match &state.source {
                SharedSource::Ended => return Poll::Ready(None),
                SharedSource::Failed(class, text) => {
                    return Poll::Ready(Some(Err(self.failed(*class, text))));
                }
                _ => {}
            }
            state.stop_lingering();
            read.wakers.register(cx.waker());
            if state.is_blocked() {
                let missing = ready!(self.poll_room(&mut state, cx));
                drop(state);
                read.fan_out.note_slow(&read.group, missing);
                state = read.lock();
            } else {
                let waker = Waker::from(read.wakers.clone());
                ready!(state.poll_source(&mut Context::from_waker(&waker)));
                self.read.release_permit(&mut state);
            }
            self.timer = None;
            read.wakers.wake_all();
            read.wakers.register(cx.waker());
        }
    }

    fn advance(&self, state: &mut State) {
        if let Some(place) = state.readers.get_mut(&self.number) {
            place.next += 1;
        }
        state.trim();
    }

    /// Makes room in a full window for a reader that has taken all of it: ends lingering, then
    /// drops queued readers, then waits for slow readers and drops them. Returns the slow ones.
    fn poll_room(&mut self, state: &mut State, cx: &mut Context<'_>) -> Poll<BTreeSet<Expected>> {
        state.end_lingering();
        if state.is_blocked() {
            self.drop_queued_readers(state);
        }
        if !state.is_blocked() {
            return Poll::Ready(BTreeSet::new());
        }
        ready!(self.poll_slow_readers(state, cx));
        Poll::Ready(state.drop_slowest())
    }

    fn drop_queued_readers(&self, state: &mut State) {
        if let Some(destination) = state
            .readers
            .get(&self.number)
            .map(|place| place.destination.clone())
        {
            state.drop_queued_readers(&destination);
        }
    }

    /// The failure of the shared read, as it applies to this destination.
    fn failed(&self, class: Class, text: &str) -> Fault {
        let text = if text.is_empty() {
            "the shared read broke off unexpectedly"
        } else {
            text
        };
        if self.is_foreign {
            Fault::retryable(text.to_owned())
        } else {
            Fault::new(class, text.to_owned())
        }
    }

    /// Waits for slow readers. Their progress wakes this one.
    fn poll_slow_readers(&mut self, state: &mut State, cx: &mut Context<'_>) -> Poll<()> {
        let remaining_wait = state.remaining_wait();
        let due = Instant::now() + remaining_wait;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        timer.as_mut().reset(due);
        if remaining_wait.is_zero() {
            Poll::Ready(())
        } else {
            timer.as_mut().poll(cx)
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let is_over = {
            let mut state = self.read.lock();
            state.readers.remove(&self.number);
            state.trim();
            self.read.release_permit(&mut state);
            state.readers.is_empty()
        };
        self.read.wakers.wake_all();
        if is_over {
            let mut table = self.read.fan_out.lock();
            let is_this = table
                .reads
                .get(&self.read.key)
                .is_some_and(|read| Arc::ptr_eq(read, &self.read));
            let is_needed = {
                let state = self.read.lock();
                !state.readers.is_empty() || (!state.expected.is_empty() && state.is_over())
            };
            let forgotten = if is_this && !is_needed {
                table.reads.remove(&self.read.key)
            } else {
                None
            };
            drop(table);
            drop(forgotten);
        }
    }
}
