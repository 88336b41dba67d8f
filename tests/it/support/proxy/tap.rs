//! A body on its way through the proxy: counted, and altered at marked offsets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::{TryStreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};

use super::super::rules::{Cut, Gate};

pub type Broken = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, Broken>;

/// What happens at an offset.
pub enum Mark {
    /// The connection ends.
    Cut(Cut, Arc<AtomicBool>),
    /// The body waits.
    Hold(Gate),
    /// The next byte is another.
    Flip,
    /// The body ends.
    End,
    /// So many bytes are put in.
    More(u64),
}

struct Tap {
    inner: Incoming,
    marks: std::vec::IntoIter<(u64, Mark)>,
    next: Option<(u64, Mark)>,
    /// Bytes that came but have not gone on.
    waiting: Bytes,
    passed: u64,
    meter: Arc<AtomicU64>,
    flip: bool,
}

/// A body of bytes at hand.
pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The error that ends a connection, in an orderly way or not.
pub fn cut(how: Cut, reset: &AtomicBool) -> Broken {
    reset.store(how == Cut::Reset, Ordering::Relaxed);
    "cut by a rule".into()
}

/// `inner`, counted by `meter` and altered at `marks`. A body that ends before a mark never reaches
/// it, except that a mark at its very end still acts.
pub fn tapped(inner: Incoming, mut marks: Vec<(u64, Mark)>, meter: Arc<AtomicU64>) -> Body {
    marks.sort_by_key(|(at, _)| *at);
    if marks.is_empty() {
        let counted = inner.map_frame(move |frame| {
            meter.fetch_add(
                frame.data_ref().map_or(0, Bytes::len) as u64,
                Ordering::Relaxed,
            );
            frame
        });
        return counted.map_err(Into::into).boxed_unsync();
    }
    let mut marks = marks.into_iter();
    let next = marks.next();
    let tap = Tap {
        inner,
        marks,
        next,
        waiting: Bytes::new(),
        passed: 0,
        meter,
        flip: false,
    };
    let frames = stream::try_unfold(tap, |mut tap| async move {
        Ok::<_, Broken>(tap.frame().await?.map(|bytes| (bytes, tap)))
    });
    StreamBody::new(frames.map_ok(Frame::data)).boxed_unsync()
}

impl Tap {
    async fn frame(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            while self.next.as_ref().is_some_and(|(at, _)| *at == self.passed) {
                let (_, mark) = self.next.take().expect("just looked at");
                self.next = self.marks.next();
                match mark {
                    Mark::Cut(how, reset) => return Err(self.cut(how, &reset).await),
                    Mark::Hold(gate) => gate.pass().await,
                    Mark::Flip => self.flip = true,
                    Mark::End => return Ok(None),
                    Mark::More(count) => return Ok(Some(Bytes::from(vec![b'+'; count as usize]))),
                }
            }
            if !self.waiting.is_empty() {
                return Ok(Some(self.pass()));
            }
            match self.inner.frame().await {
                None => return Ok(None),
                Some(frame) => self.waiting = frame?.into_data().unwrap_or_default(),
            }
        }
    }

    /// What waits, up to the next mark.
    fn pass(&mut self) -> Bytes {
        let most = self
            .next
            .as_ref()
            .map_or(u64::MAX, |(at, _)| at - self.passed)
            .min(self.waiting.len() as u64);
        let mut bytes = self.waiting.split_to(most as usize);
        if std::mem::take(&mut self.flip) {
            let mut changed = BytesMut::from(&bytes[..]);
            changed[0] ^= 0xff;
            bytes = changed.freeze();
        }
        self.passed += most;
        self.meter.fetch_add(most, Ordering::Relaxed);
        bytes
    }

    async fn cut(&self, how: Cut, reset: &AtomicBool) -> Broken {
        // Give the connection its turns to write what has passed: the peer shall have exactly that
        // much.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        cut(how, reset)
    }
}
