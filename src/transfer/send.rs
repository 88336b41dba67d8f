//! The requests that send a blob through an open session: one, two, or one for each chunk, by the
//! registry's kind.
//!
//! Acknowledged bytes are recorded as they come, and journalled for large blobs, so that a
//! resumption knows the offset.

use std::collections::VecDeque;
use std::pin::{Pin, pin};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Promotion;
use super::chunk::Chunks;
use super::limits::RequestClass;
use super::resume::UploadState;
use super::stall::{self, Wait, Watch};
use super::verify::{Checkpoint, VerifiedBlob};
use crate::endpoint::{Destination, Offset, Sent, Source, Upload, UploadStyle};
use crate::fault::{Class, Fault};
use crate::oci::Descriptor;

/// The state shared by the requests of one attempt.
struct Request<'a> {
    verified: &'a VerifiedBlob,
    upload: &'a mut Upload,
    /// Bytes that the registry has acknowledged.
    held: &'a mut u64,
    /// The length that a refusal reported.
    reported_length: &'a mut Option<u64>,
    /// Whether the registry reported the session gone.
    gone: &'a mut bool,
    /// Whether the attempt ends only because the registry asks for time.
    paused: &'a mut bool,
    acknowledged: mpsc::UnboundedSender<Checkpoint>,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Sends the rest of the blob in the destination's upload style, and journals checkpoints.
    pub(super) async fn send_body(
        &self,
        blob: &Descriptor,
        state: &mut UploadState,
        verified: &VerifiedBlob,
        acknowledged: mpsc::UnboundedSender<Checkpoint>,
        checkpoints: mpsc::UnboundedReceiver<Checkpoint>,
    ) -> Result<(), Fault> {
        let UploadState {
            upload,
            held,
            reported_length,
            gone,
            paused,
            checkpoints: kept,
            ..
        } = state;
        *reported_length = None;
        let request = Request {
            verified,
            upload,
            held,
            reported_length,
            gone,
            paused,
            acknowledged,
        };
        let requests = pin!(async {
            tokio::select! {
                biased;
                ended = self.requests(blob, request) => ended,
                wait = self.stalled(blob, verified) => Err(self.stall(wait)),
            }
        });
        self.journalled(blob, requests, checkpoints, kept).await
    }

    /// Ends when too few bytes move, with the side that causes the wait.
    async fn stalled(&self, blob: &Descriptor, verified: &VerifiedBlob) -> Wait {
        let start = verified.sample();
        let mut watch = Watch::new(self.engine.settings.stall, start);
        let mut before = start;
        let motion = self.motion(&blob.digest);
        loop {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            let now = verified.sample();
            let waits_for_source =
                now.source - before.source > now.destination - before.destination;
            let passed = verified.passed();
            let stall = &self.engine.settings.stall;
            motion.note(
                passed,
                blob.size.saturating_sub(passed),
                waits_for_source,
                stall,
            );
            if now.moved > before.moved {
                self.engine.limits.pulse().beat();
            }
            before = now;
            if let Some(wait) = watch.see(now) {
                return wait;
            }
        }
    }

    fn stall(&self, wait: Wait) -> Fault {
        let (registry, address, direction, does) = match wait {
            Wait::Source => (
                self.source.registry(),
                self.source.address(),
                "read",
                "sends",
            ),
            _ => (
                self.destination.registry(),
                self.destination.address(),
                "sent",
                "takes",
            ),
        };
        self.engine.metrics.stalled(registry, direction);
        let stall::Settings { floor, window } = self.engine.settings.stall;
        Fault::retryable(format!(
            "{address} {does} less than {} KiB/s over {} s; the transfer was cut",
            floor / 1024,
            window.as_secs()
        ))
    }

    async fn requests(&self, blob: &Descriptor, mut request: Request<'_>) -> Result<(), Fault> {
        match self.destination.abilities().upload {
            UploadStyle::Whole => {}
            UploadStyle::Stream => self.chunk(blob, &mut request, blob.size).await?,
            UploadStyle::Chunked {
                least,
                most,
                last_in_put,
            } => {
                let mut chunks = Chunks::new(least, most, request.upload.chunk_min);
                while blob.size - *request.held > if last_in_put { chunks.size() } else { 0 } {
                    if self.stop.drain.is_cancelled() && self.can_be_taken_up(blob) {
                        return Err(Fault::cancelled());
                    }
                    let (began, before, held) =
                        (Instant::now(), request.verified.sample(), *request.held);
                    self.chunk(blob, &mut request, chunks.size()).await?;
                    let took = began.elapsed();
                    let after = request.verified.sample();
                    let moving = (after.source + after.destination)
                        .saturating_sub(before.source + before.destination);
                    chunks.acknowledged(*request.held - held, took, took.saturating_sub(moving));
                }
            }
        }
        self.close(blob, &mut request).await
    }

    /// Sends the next bytes, at most so many.
    async fn chunk(
        &self,
        blob: &Descriptor,
        request: &mut Request<'_>,
        most: u64,
    ) -> Result<(), Fault> {
        self.pause_if_closed(request.paused)?;
        let Request {
            verified,
            upload,
            held,
            ..
        } = request;
        let length = most.min(blob.size - **held);
        if length == 0 {
            return Ok(());
        }
        let end = **held + length;
        verified.mark(end);
        match self
            .body(
                verified,
                self.destination
                    .send_chunk(upload, **held, length, verified.segment(length)),
            )
            .await?
        {
            Sent::Accepted {
                reported: Some(reported),
            } if self.destination.abilities().reports_offset && reported != end => {
                Err(Fault::retryable(format!(
                    "{} reports {reported} bytes of an upload that holds {end}",
                    self.destination.registry()
                )))
            }
            Sent::Accepted { .. } => {
                **held = end;
                self.journal_chunk(blob, upload, verified.marked().as_ref())
                    .await;
                if let Some(checkpoint) = verified.marked() {
                    // The receiver lives as long as this request.
                    let _ = request.acknowledged.send(checkpoint);
                }
                Ok(())
            }
            other => Err(self.lost(other, request.reported_length, request.gone)),
        }
    }

    async fn close(&self, blob: &Descriptor, request: &mut Request<'_>) -> Result<(), Fault> {
        let Request {
            verified,
            upload,
            held,
            ..
        } = request;
        let length = blob.size - **held;
        if length == 0 && !verified.is_verified() {
            self.verify_rest(blob, verified).await?;
        }
        self.pause_if_closed(request.paused)?;
        self.journal_finishing(blob).await;
        match self
            .body(
                verified,
                self.destination.finish_upload(
                    upload,
                    &blob.digest,
                    **held,
                    length,
                    verified.segment(length),
                ),
            )
            .await?
        {
            Sent::Accepted { .. } => Ok(()),
            other => Err(self.lost(other, request.reported_length, request.gone)),
        }
    }

    /// Ends the attempt if the registry asks for time: no permit is held during that wait, and a
    /// resumption follows.
    fn pause_if_closed(&self, paused: &mut bool) -> Result<(), Fault> {
        let closed_for = self
            .engine
            .limits
            .of(self.destination.origin())
            .closed_for(RequestClass::Uploads);
        *paused = !closed_for.is_zero();
        match *paused {
            true => Err(Fault::new(
                Class::Retryable {
                    after: Some(closed_for),
                },
                "the registry asks for time",
            )),
            false => Ok(()),
        }
    }

    /// Sends an upload request once the limiter allows it, and records its result there.
    async fn body<T>(
        &self,
        verified: &VerifiedBlob,
        request: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let limiter = self.engine.limits.of(self.destination.origin());
        let permit = limiter.acquire_for_body(RequestClass::Uploads).await;
        let result = request.await;
        if verified.source_fault().is_none() {
            self.engine
                .metrics
                .rate_limited(self.destination.registry(), permit.record(&result));
        }
        result
    }

    /// Verifies the content if nothing is left to send: an empty blob, or a session that holds all
    /// bytes.
    async fn verify_rest(&self, blob: &Descriptor, verified: &VerifiedBlob) -> Result<(), Fault> {
        let mut rest = verified.segment(u64::MAX);
        match rest.frame().await {
            None => Ok(()),
            Some(Err(fault)) => Err(fault),
            Some(Ok(_)) => Err(Fault::corrupt(format!(
                "blob {} is longer than its manifest says",
                blob.digest
            ))),
        }
    }

    fn lost(&self, sent: Sent, reported_length: &mut Option<u64>, gone: &mut bool) -> Fault {
        let registry = self.destination.registry();
        *gone = matches!(sent, Sent::Gone | Sent::Misplaced(Offset::Gone));
        match sent {
            Sent::Misplaced(offset) => {
                *reported_length = match offset {
                    Offset::At(offset) => Some(offset),
                    Offset::Gone | Offset::Unknown => None,
                };
                Fault::retryable(format!(
                    "{registry} holds another length of the upload than was sent"
                ))
            }
            _ => Fault::retryable(format!("{registry} has lost the upload session")),
        }
    }

    /// Runs the requests, and records checkpoints meanwhile, in the index for large blobs. During a
    /// drain a request is dropped only if the registry keeps its bytes; else it runs as long as
    /// there is time.
    async fn journalled(
        &self,
        blob: &Descriptor,
        mut requests: Pin<&mut impl Future<Output = Result<(), Fault>>>,
        mut checkpoints: mpsc::UnboundedReceiver<Checkpoint>,
        kept: &mut VecDeque<Checkpoint>,
    ) -> Result<(), Fault> {
        let in_chunks = matches!(
            self.destination.abilities().upload,
            UploadStyle::Chunked { .. }
        );
        let may_leave = self.can_be_taken_up(blob) && !in_chunks;
        let ended = async {
            loop {
                tokio::select! {
                    biased;
                    ended = &mut requests => return ended,
                    () = self.stop.abort.cancelled() => return Err(Fault::cancelled()),
                    () = self.stop.drain.cancelled(), if may_leave => return Err(Fault::cancelled()),
                    Some(checkpoint) = checkpoints.recv() => {
                        if !in_chunks {
                            self.journal_checkpoint(blob, &checkpoint).await;
                        }
                        kept.push_back(checkpoint);
                    }
                }
            }
        }
        .await;
        while let Ok(checkpoint) = checkpoints.try_recv() {
            if !in_chunks {
                self.journal_checkpoint(blob, &checkpoint).await;
            }
            kept.push_back(checkpoint);
        }
        ended
    }
}
