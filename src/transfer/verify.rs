//! Verified blobs: counts and hashes every byte from a source to a destination.
//!
//! - A blob's last frame is passed on only after the source has ended with the right size and
//!   digest: a destination cannot finish a corrupt blob.
//! - A source that breaks off is opened again at the same offset, within its retry budget. The
//!   destination sees only a pause.
//! - A verified blob outlives its requests. A checkpoint (offset and hasher state) is taken about
//!   every 8 MiB, so that an upload can resume.
//!
//! No byte is copied and nothing is allocated per frame.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::fan_out::Reader;
use super::limits::RegistryLimiter;
use super::metrics::Meter;
pub use super::opening::{Open, Opening};
use super::stall::{Clock, Sample, Wait};
use crate::endpoint::BlobBody;
use crate::fault::{Class, Fault};
use crate::job::ActiveBlob;
use crate::oci::{Descriptor, Digest, Hasher};

/// A point from which an upload can resume: the hasher's state after a number of bytes.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Bytes from the start of the blob.
    pub offset: u64,
    /// The hasher after them.
    pub hasher: Hasher,
}

/// Receivers of checkpoints, progress and throughput.
#[derive(Debug)]
pub struct Watchers {
    /// The receiver of checkpoints.
    pub checkpoints: mpsc::UnboundedSender<Checkpoint>,
    /// Bytes between two checkpoints.
    pub every: u64,
    /// The progress bar.
    pub progress: Option<Arc<ActiveBlob>>,
    /// The throughput of the source.
    pub read: Option<Meter>,
}

enum SourceState {
    Opening(Opening),
    Open(BlobBody),
    /// A read that others share. It has hashed its frames.
    Shared(Reader),
    Ended,
    /// Nothing is read any more, and nothing else comes.
    Stopped,
}

struct State {
    blob: Descriptor,
    source: SourceState,
    open: Open,
    hasher: Option<Hasher>,
    /// Bytes hashed, counted from the start of the blob.
    hashed: u64,
    /// Bytes passed to the destination, or skipped because it holds them.
    passed: u64,
    /// Hashed bytes that wait to be passed on.
    ready: VecDeque<Bytes>,
    checkpointed: u64,
    limiters: [Option<Arc<RegistryLimiter>>; 2],
    pause: Option<Pin<Box<Sleep>>>,
    watchers: Watchers,
    fault: Option<(Class, String)>,
    ended_well: bool,
    clock: Clock,
}

/// A blob in transfer. Cheap to clone; the clones share its state.
#[derive(Clone)]
pub struct VerifiedBlob {
    state: Arc<Mutex<State>>,
}

impl VerifiedBlob {
    /// A blob that starts with the hasher's state at `from`. Bytes below `skip_to` are hashed but
    /// not passed on: the destination holds them.
    pub fn new(
        blob: Descriptor,
        from: Checkpoint,
        skip_to: u64,
        mut open: Open,
        limiters: [Option<Arc<RegistryLimiter>>; 2],
        watchers: Watchers,
    ) -> VerifiedBlob {
        let source = SourceState::Opening(open(from.offset));
        VerifiedBlob::of(blob, from, skip_to, source, open, limiters, watchers)
    }

    fn of(
        blob: Descriptor,
        from: Checkpoint,
        skip_to: u64,
        source: SourceState,
        open: Open,
        limiters: [Option<Arc<RegistryLimiter>>; 2],
        watchers: Watchers,
    ) -> VerifiedBlob {
        let state = State {
            source,
            open,
            hashed: from.offset,
            passed: skip_to,
            checkpointed: from.offset,
            hasher: Some(from.hasher),
            ready: VecDeque::new(),
            limiters,
            pause: None,
            watchers,
            fault: None,
            ended_well: false,
            clock: Clock::start(),
            blob,
        };
        VerifiedBlob {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The blob from its start as a shared read delivers it. Where that ends early, `open` reads on.
    pub(super) fn shared(
        blob: Descriptor,
        reader: Reader,
        open: Open,
        limiters: [Option<Arc<RegistryLimiter>>; 2],
        watchers: Watchers,
    ) -> VerifiedBlob {
        let hasher = Hasher::new(blob.digest.algorithm());
        let from = Checkpoint { offset: 0, hasher };
        let source = SourceState::Shared(reader);
        VerifiedBlob::of(blob, from, 0, source, open, limiters, watchers)
    }

    /// The next `length` bytes as a request body with that exact length.
    pub fn segment(&self, length: u64) -> BlobBody {
        BlobBody::new(Segment {
            verified: self.clone(),
            left: length,
        })
    }

    /// Ends the attempt: nothing is read and hashed any more, and no checkpoint follows those that
    /// were told. The request may still run on another thread until it is aborted.
    pub(super) fn stop(&self) {
        self.lock().source = SourceState::Stopped;
    }

    /// Bytes passed on, from the start of the blob.
    pub fn passed(&self) -> u64 {
        self.lock().passed
    }

    /// The source's failure, if the source ended the transfer.
    pub fn source_fault(&self) -> Option<Fault> {
        self.lock()
            .fault
            .as_ref()
            .map(|(class, text)| Fault::new(*class, text.clone()))
    }

    /// Whether all bytes were hashed and size and digest are right.
    pub fn is_verified(&self) -> bool {
        self.lock().ended_well
    }

    /// The bytes moved so far, and the waits for each side.
    pub(super) fn sample(&self) -> Sample {
        let state = self.lock();
        let (source, destination) = state.clock.spent();
        Sample {
            moved: state.hashed + state.passed,
            source,
            destination,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poll that panicked has ended its request. `poll_frame` sends nothing after it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The next bytes for the destination, at most `most`. `None`: the blob is complete and
    /// verified.
    fn poll_next(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                self.clock.turn_to(Wait::Else);
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            if let Some(bytes) = self.take_ready(most) {
                self.passed += bytes.len() as u64;
                if let Some(progress) = &self.watchers.progress {
                    progress.at(self.passed);
                }
                self.clock.turn_to(if bytes.len() as u64 == most {
                    Wait::Else
                } else {
                    Wait::Destination
                });
                return Poll::Ready(Some(Ok(bytes)));
            }
            if self.ended_well {
                return Poll::Ready(None);
            }
            let read = self.poll_read(cx);
            if read.is_pending() {
                self.clock.turn_to(Wait::Source);
            }
            if let Err(fault) = ready!(read) {
                self.fault = Some((fault.class(), fault.chain()));
                // What has failed is not asked again.
                self.source = SourceState::Ended;
                return Poll::Ready(Some(Err(fault)));
            }
        }
    }

    /// Hashed bytes that may be passed on: all but the last frame, which waits for the digest.
    fn take_ready(&mut self, most: u64) -> Option<Bytes> {
        if self.ready.len() < 2 && !self.ended_well {
            return None;
        }
        let front = self.ready.front_mut()?;
        if front.len() as u64 > most {
            Some(front.split_to(most as usize))
        } else {
            self.ready.pop_front()
        }
    }

    /// Reads, counts and hashes one frame. Opens the source again if it broke off.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let read = match &mut self.source {
            SourceState::Opening(opening) => {
                self.source = SourceState::Open(ready!(opening.as_mut().poll(cx))?);
                return Poll::Ready(Ok(()));
            }
            SourceState::Open(body) => ready!(Pin::new(body).poll_frame(cx))
                .map(|frame| frame.map(|frame| (frame.into_data().unwrap_or_default(), None))),
            SourceState::Shared(reader) => ready!(reader.poll_frame(cx))
                .map(|frame| frame.map(|frame| (frame.bytes, Some(frame.hasher)))),
            SourceState::Ended => Some(Err(Fault::corrupt("the blob was read on after its end"))),
            SourceState::Stopped => return Poll::Pending,
        };
        Poll::Ready(match read {
            Some(Ok((bytes, after))) => self.take(bytes, after),
            // A break after the last byte changes nothing: the digest decides.
            Some(Err(fault)) if fault.class().is_retryable() => self.end(),
            Some(Err(fault)) => Err(fault),
            None => self.end(),
        })
    }

    /// Takes bytes of the source. `after`: the hasher after them, where they have been hashed.
    fn take(&mut self, mut bytes: Bytes, after: Option<Hasher>) -> Result<(), Fault> {
        let length = bytes.len() as u64;
        if self.hashed + length > self.blob.size {
            return Err(self.mismatch(format!(
                "the source sends more than the {} bytes that the manifest names",
                self.blob.size
            )));
        }
        let hasher = self
            .hasher
            .as_mut()
            .expect("the hasher is taken at the end only");
        match after {
            Some(after) => *hasher = after,
            None => hasher.update(&bytes),
        }
        self.hashed += length;
        self.pay(length);
        self.checkpoint();
        let known = self.passed_in(&bytes);
        if known < length {
            self.ready.push_back(bytes.split_off(known as usize));
        }
        Ok(())
    }

    /// How many of the bytes just hashed the destination holds already.
    fn passed_in(&self, bytes: &Bytes) -> u64 {
        if !self.ready.is_empty() {
            return 0;
        }
        let start = self.hashed - bytes.len() as u64;
        self.passed.saturating_sub(start).min(bytes.len() as u64)
    }

    fn pay(&mut self, bytes: u64) {
        if let Some(read) = &self.watchers.read {
            read.add(bytes);
        }
        let wait = self
            .limiters
            .iter()
            .flatten()
            .map(|limiter| limiter.bandwidth(bytes))
            .max()
            .unwrap_or_default();
        if !wait.is_zero() {
            self.pause = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    fn checkpoint(&mut self) {
        if self.hashed - self.checkpointed < self.watchers.every || self.hashed == self.blob.size {
            return;
        }
        self.checkpointed = self.hashed;
        let hasher = self
            .hasher
            .clone()
            .expect("the hasher is taken at the end only");
        // The receiver may be gone.
        let _ = self.watchers.checkpoints.send(Checkpoint {
            offset: self.hashed,
            hasher,
        });
    }

    fn end(&mut self) -> Result<(), Fault> {
        if self.hashed < self.blob.size {
            // Broken off, or ended before the promised length.
            self.source = SourceState::Opening((self.open)(self.hashed));
            return Ok(());
        }
        self.source = SourceState::Ended;
        let digest: Digest = self
            .hasher
            .take()
            .expect("a verified blob ends once")
            .finish();
        if digest != self.blob.digest {
            return Err(self.mismatch(format!("the source sends content with digest {digest}")));
        }
        self.ended_well = true;
        Ok(())
    }

    fn mismatch(&self, found: String) -> Fault {
        Fault::corrupt(format!(
            "{found}; the source is corrupt, push the image again"
        ))
    }
}

/// A part of a blob as the body of one request.
struct Segment {
    verified: VerifiedBlob,
    left: u64,
}

impl Body for Segment {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.verified.state.is_poisoned() {
            return Poll::Ready(Some(Err(Fault::retryable(
                "the transfer broke off unexpectedly",
            ))));
        }
        let left = self.left;
        let next = ready!(self.verified.lock().poll_next(cx, left));
        if let Some(Ok(bytes)) = &next {
            self.left -= bytes.len() as u64;
        }
        Poll::Ready(next.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;
    use crate::oci::{Algorithm, MediaType};

    const FRAME: usize = 1000;

    /// A request that is aborted on its thread may still be polled there: what it hashed then would
    /// have no checkpoint.
    #[tokio::test]
    async fn a_stopped_blob_hashes_nothing_more() {
        let content = vec![7; 10 * FRAME];
        let blob = Descriptor::new(
            MediaType::new("application/octet-stream"),
            Digest::sha256(&content),
            10_000,
        );
        let frames: Vec<Bytes> = content.chunks(FRAME).map(Bytes::copy_from_slice).collect();
        let open: Open = Box::new(move |_| {
            let frames = frames.clone().into_iter().map(Frame::data).map(Ok);
            let body = BlobBody::new(StreamBody::new(futures::stream::iter(frames)));
            Box::pin(std::future::ready(Ok(body)))
        });
        let (checkpoints, mut told) = mpsc::unbounded_channel();
        let watchers = Watchers {
            checkpoints,
            every: FRAME as u64,
            progress: None,
            read: None,
        };
        let hasher = Hasher::new(Algorithm::Sha256);
        let start = Checkpoint { offset: 0, hasher };
        let verified = VerifiedBlob::new(blob, start, 0, open, [None, None], watchers);
        let mut segment = verified.segment(10_000);
        segment.frame().await.unwrap().unwrap();
        verified.stop();
        let before = verified.sample().moved;
        let mut offsets = Vec::new();
        while let Ok(checkpoint) = told.try_recv() {
            offsets.push(checkpoint.offset);
        }
        assert_eq!(offsets, [1000, 2000]);
        // What was hashed before is passed on, and then nothing comes.
        let rest = async { while segment.frame().await.is_some() {} };
        let ended = futures::FutureExt::now_or_never(rest);
        assert_eq!(ended, None);
        assert!(verified.sample().moved <= before + FRAME as u64);
        assert!(told.try_recv().is_err());
    }
}
