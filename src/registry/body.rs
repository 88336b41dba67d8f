//! The body of an upload, watched: what was taken, when, and how it ended.
//!
//! The connection takes the body; the request waits for the answer. Between them stands a
//! [`BodyMonitor`]: it tells a stall of the destination from a slow source, keeps the source's own
//! failure, and stops the body once no reader is left (answers may come early, requests may
//! be dropped).

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use prometheus::IntCounter;
use tokio::time::Instant;

use crate::endpoint::BlobBody;
use crate::fault::Fault;

/// What is known of a body on its way.
pub(super) struct BodyMonitor {
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    flow: Flow,
    fault: Option<Fault>,
    taken: u64,
    waker: Option<Waker>,
}

#[derive(Clone, Copy)]
enum Phase {
    /// The connection has been given something and has not come back for more since then.
    Handed(Instant),
    /// The connection waits for the source, which has its own deadlines.
    Waiting,
    /// The connection has all of it.
    Whole(Instant),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Running,
    Paused,
    Stopped,
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The next take of the body.
    Take,
    /// The answer after the whole body.
    Answer,
}

impl BodyMonitor {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The failure of the body itself, once.
    pub(super) fn take_fault(&self) -> Option<Fault> {
        self.state().fault.take()
    }

    /// Bytes taken, and whether that is all.
    pub(super) fn taken(&self) -> (u64, bool) {
        let state = self.state();
        (state.taken, matches!(state.phase, Phase::Whole(_)))
    }

    /// Holds the body back while an early answer is read.
    pub(super) fn pause(&self) {
        self.state().flow = Flow::Paused;
    }

    /// Ends when the destination has let a deadline pass: `idle` between two takes, `close` after
    /// the last.
    pub(super) async fn overdue(&self, idle: Duration, close: Duration) -> Overdue {
        loop {
            let now = Instant::now();
            let (due, what) = match self.state().phase {
                Phase::Handed(since) => (since + idle, Overdue::Take),
                Phase::Whole(since) => (since + close, Overdue::Answer),
                // Whatever happens next is due a whole `idle` later.
                Phase::Waiting => (now + idle, Overdue::Take),
            };
            if due <= now {
                return what;
            }
            // The first stretch after the last byte may be shorter than `idle`.
            tokio::time::sleep_until(due.min(now + idle.min(close))).await;
        }
    }

    fn stop(&self) {
        let mut state = self.state();
        state.flow = Flow::Stopped;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// Ends a body when the request that sends it ends, however that comes.
pub(super) struct MonitorGuard(Arc<BodyMonitor>);

impl Deref for MonitorGuard {
    type Target = BodyMonitor;

    fn deref(&self) -> &BodyMonitor {
        &self.0
    }
}

impl Drop for MonitorGuard {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A body of exactly so many bytes under a [`BodyMonitor`].
pub(super) struct MonitoredBody {
    inner: BlobBody,
    left: u64,
    watch: Arc<BodyMonitor>,
    sent: IntCounter,
}

/// Puts `body`, which must be `length` bytes long, under watch; every byte taken is counted in
/// `sent`.
pub(super) fn watched(
    body: BlobBody,
    length: u64,
    sent: IntCounter,
) -> (MonitoredBody, MonitorGuard) {
    let phase = if length == 0 {
        Phase::Whole(Instant::now())
    } else {
        Phase::Handed(Instant::now())
    };
    let state = State {
        phase,
        flow: Flow::Running,
        fault: None,
        taken: 0,
        waker: None,
    };
    let watch = Arc::new(BodyMonitor {
        state: Mutex::new(state),
    });
    (
        MonitoredBody {
            inner: body,
            left: length,
            watch: watch.clone(),
            sent,
        },
        MonitorGuard(watch),
    )
}

/// The connection is told to give up; the reason stands in the watch.
#[derive(Debug)]
pub(super) struct BodyStopped;

impl fmt::Display for BodyStopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body was ended")
    }
}

impl std::error::Error for BodyStopped {}

impl MonitoredBody {
    fn fail(&self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, BodyStopped>>> {
        let mut state = self.watch.state();
        state.fault = Some(fault);
        state.phase = Phase::Waiting;
        Poll::Ready(Some(Err(BodyStopped)))
    }

    fn hand(&mut self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyStopped>>> {
        let length = bytes.len() as u64;
        if length > self.left {
            return self.fail(Fault::corrupt(
                "the source sent more bytes than it announced",
            ));
        }
        self.left -= length;
        self.sent.inc_by(length);
        let mut state = self.watch.state();
        state.taken += length;
        state.phase = if self.left == 0 {
            Phase::Whole(Instant::now())
        } else {
            Phase::Handed(Instant::now())
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    /// Whether the body may flow; keeps the waker for when that changes.
    fn flow(&self, cx: &Context<'_>) -> Flow {
        let mut state = self.watch.state();
        state.waker = Some(cx.waker().clone());
        if state.flow == Flow::Running && !matches!(state.phase, Phase::Whole(_)) {
            state.phase = Phase::Waiting;
        }
        state.flow
    }
}

impl Body for MonitoredBody {
    type Data = Bytes;
    type Error = BodyStopped;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyStopped>>> {
        match self.flow(cx) {
            Flow::Stopped => return Poll::Ready(Some(Err(BodyStopped))),
            Flow::Paused => return Poll::Pending,
            Flow::Running => {}
        }
        loop {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return self.hand(bytes),
                    _ => continue,
                },
                Some(Err(fault)) => return self.fail(fault),
                None if self.left > 0 => {
                    let text = format!("the source ended {} bytes early", self.left);
                    return self.fail(Fault::retryable(text));
                }
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Waits for `answer` unless the destination lets a deadline pass first.
pub(super) async fn answered<T>(
    answer: impl Future<Output = T>,
    watch: &BodyMonitor,
    idle: Duration,
    close: Duration,
) -> Result<T, Overdue> {
    tokio::select! {
        biased;
        answer = answer => Ok(answer),
        overdue = watch.overdue(idle, close) => Err(overdue),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Class;
    use http_body_util::{BodyExt as _, StreamBody};

    const IDLE: Duration = Duration::from_secs(30);
    const CLOSE: Duration = Duration::from_secs(900);

    fn counter() -> IntCounter {
        IntCounter::new("sent", "bytes").unwrap()
    }

    fn body(pieces: Vec<Result<&'static str, Fault>>) -> BlobBody {
        let frames = pieces
            .into_iter()
            .map(|piece| piece.map(|text| Frame::data(Bytes::from(text))));
        let stream = futures::stream::iter(frames.collect::<Vec<_>>());
        BlobBody::new(StreamBody::new(stream))
    }

    #[tokio::test]
    async fn every_byte_taken_is_counted() {
        let sent = counter();
        let (mut sending, hold) = watched(body(vec![Ok("ab"), Ok(""), Ok("cde")]), 5, sent.clone());
        assert_eq!(sending.size_hint().exact(), Some(5));
        assert_eq!(
            sending.frame().await.unwrap().unwrap().into_data().unwrap(),
            "ab"
        );
        assert_eq!(hold.taken(), (2, false));
        assert_eq!(
            sending.frame().await.unwrap().unwrap().into_data().unwrap(),
            "cde"
        );
        assert_eq!((hold.taken(), sent.get()), ((5, true), 5));
        assert!(sending.is_end_stream());
    }

    #[tokio::test]
    async fn the_failure_of_the_source_is_kept() {
        let table = [
            (
                body(vec![Ok("ab"), Err(Fault::corrupt("digest differs"))]),
                5,
                Class::Corrupt,
            ),
            (body(vec![Ok("ab")]), 5, Class::RETRYABLE),
            (body(vec![Ok("abcdef")]), 5, Class::Corrupt),
        ];
        for (body, length, class) in table {
            let (mut sending, hold) = watched(body, length, counter());
            while let Some(Ok(_)) = sending.frame().await {}
            assert_eq!(hold.take_fault().unwrap().class(), class);
        }
    }

    #[tokio::test]
    async fn a_dropped_request_ends_its_body() {
        let (mut sending, hold) = watched(body(vec![Ok("ab"), Ok("cd")]), 4, counter());
        assert!(sending.frame().await.unwrap().is_ok());
        drop(hold);
        assert!(sending.frame().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_destination_can_be_overdue() {
        let (mut sending, hold) = watched(body(vec![Ok("ab"), Ok("cd")]), 4, counter());
        assert!(sending.frame().await.unwrap().is_ok());
        assert_eq!(
            hold.overdue(IDLE, CLOSE).await,
            Overdue::Take,
            "nobody comes for the rest"
        );
        assert!(sending.frame().await.unwrap().is_ok());
        let before = Instant::now();
        assert_eq!(hold.overdue(IDLE, CLOSE).await, Overdue::Answer);
        assert_eq!(before.elapsed().as_secs(), CLOSE.as_secs());
        let slow = BlobBody::new(StreamBody::new(futures::stream::pending::<
            Result<Frame<Bytes>, Fault>,
        >()));
        let (mut sending, hold) = watched(slow, 4, counter());
        tokio::select! {
            biased;
            _ = sending.frame() => panic!("the source never sends"),
            _ = hold.overdue(IDLE, CLOSE) => panic!("a slow source is not the destination's fault"),
            () = tokio::time::sleep(CLOSE * 2) => {}
        }
    }
}
