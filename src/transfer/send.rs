//! The requests that send a blob through an open session: one or two, by the registry's kind.
//!
//! Checkpoints are recorded as bytes pass, and journalled for large blobs, so that a resumption can
//! go on hashing from there.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::mpsc;

use super::Promotion;
use super::admission::BodyPermit;
use super::limits::RequestClass;
use super::resume::{Cut, UploadState};
use super::stall::{self, Wait, Watch};
use super::verify::{Checkpoint, VerifiedBlob};
use crate::byte_threads::ByteThread;
use crate::endpoint::{Destination, Offset, Sent, Source, Upload, UploadStyle};
use crate::fault::{Class, Fault};
use crate::oci::Descriptor;

/// One attempt to send a blob: what is sent, where, and by which right.
pub(super) struct Attempt {
    pub(super) verified: VerifiedBlob,
    /// Its requests run there, from the first byte to the last.
    pub(super) thread: ByteThread,
    /// Each request holds it until it has ended on its thread, also when the job is dropped.
    pub(super) permit: Arc<BodyPermit>,
}

/// The state shared by the requests of one attempt.
struct Request<'a> {
    attempt: &'a Attempt,
    upload: &'a mut Upload,
    /// Bytes that the registry has acknowledged.
    held: &'a mut u64,
    /// Whether the registry accepted the blob before it was sent, now or in an earlier attempt.
    early: &'a mut bool,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Sends the rest of the blob in the destination's upload style, and journals checkpoints.
    pub(super) async fn send_body(
        &self,
        blob: &Descriptor,
        state: &mut UploadState,
        attempt: &Attempt,
        checkpoints: mpsc::UnboundedReceiver<Checkpoint>,
    ) -> Result<(), Cut> {
        let may_be_parted = state.may_be_parted.clone();
        let request = Request {
            attempt,
            upload: &mut state.upload,
            held: &mut state.held,
            early: &mut state.early,
        };
        let requests = pin!(async {
            tokio::select! {
                biased;
                ended = self.requests(blob, request) => ended,
                wait = self.stalled(blob, &attempt.verified) => {
                    // A part may have held up the others.
                    may_be_parted.fetch_and(wait != Wait::Source, Ordering::Relaxed);
                    Err(self.stall(wait).into())
                }
            }
        });
        let kept = &mut state.checkpoints;
        self.journalled(blob, &attempt.verified, requests, checkpoints, kept)
            .await
    }

    /// Ends when too few bytes move, with the side that causes the wait.
    async fn stalled(&self, blob: &Descriptor, verified: &VerifiedBlob) -> Wait {
        let start = verified.sample();
        let mut watch = Watch::new(self.engine.settings.stall, start);
        let mut before = start;
        let motion = self.motion(&blob.digest);
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
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

    async fn requests(&self, blob: &Descriptor, mut request: Request<'_>) -> Result<(), Cut> {
        match self.destination.abilities().upload {
            UploadStyle::Whole => {}
            UploadStyle::Stream => self.stream(blob, &mut request).await?,
        }
        self.close(blob, &mut request).await
    }

    /// Sends the rest in one PATCH.
    async fn stream(&self, blob: &Descriptor, request: &mut Request<'_>) -> Result<(), Cut> {
        self.pause_if_closed()?;
        let offset = *request.held;
        let length = blob.size - offset;
        if length == 0 {
            return Ok(());
        }
        let body = request.attempt.verified.segment(length);
        let destination = self.destination.clone();
        let mut upload = request.upload.clone();
        let chunk = async move {
            let sent = destination.send_chunk(&mut upload, offset, length, body);
            (sent.await, upload)
        };
        match self.body(blob, request, chunk).await? {
            Sent::Accepted {
                reported: Some(reported),
            } if reported != blob.size => Err(Fault::retryable(format!(
                "{} reports {reported} bytes of an upload that holds {}",
                self.destination.registry(),
                blob.size
            ))
            .into()),
            Sent::Accepted { .. } => {
                *request.held = blob.size;
                Ok(())
            }
            other => Err(self.lost(other)),
        }
    }

    async fn close(&self, blob: &Descriptor, request: &mut Request<'_>) -> Result<(), Cut> {
        let attempt = request.attempt;
        let offset = *request.held;
        let length = blob.size - offset;
        if length == 0 && !attempt.verified.is_verified() {
            self.verify_rest(blob, attempt).await?;
        }
        self.pause_if_closed()?;
        self.journal_finishing(blob).await;
        let body = attempt.verified.segment(length);
        let destination = self.destination.clone();
        let mut upload = request.upload.clone();
        let digest = blob.digest;
        let closing = async move {
            let sent = destination.finish_upload(&mut upload, &digest, offset, length, body);
            (sent.await, upload)
        };
        match self.body(blob, request, closing).await? {
            Sent::Accepted { .. } if !*request.early => Ok(()),
            // Only the registry's word for the blob itself counts then.
            Sent::Accepted { .. } | Sent::Early => {
                *request.early = true;
                match self.is_there(blob).await? {
                    true => Ok(()),
                    false => Err(self.lost(Sent::Early)),
                }
            }
            other => Err(self.lost(other)),
        }
    }

    /// Ends the attempt if the registry asks for time: no permit is held during that wait, and a
    /// resumption follows.
    fn pause_if_closed(&self) -> Result<(), Cut> {
        let closed_for = self
            .engine
            .limits
            .of(self.destination.origin())
            .closed_for(RequestClass::Uploads);
        if closed_for.is_zero() {
            return Ok(());
        }
        let after = Some(closed_for);
        Err(Cut::Paused(Fault::new(
            Class::Retryable { after },
            "the registry asks for time",
        )))
    }

    /// Sends an upload request on the attempt's thread once the limiter allows it, and records its
    /// result there.
    async fn body(
        &self,
        blob: &Descriptor,
        request: &mut Request<'_>,
        sending: impl Future<Output = (Result<Sent, Fault>, Upload)> + Send + 'static,
    ) -> Result<Sent, Fault> {
        let Attempt {
            verified,
            thread,
            permit: body_permit,
        } = request.attempt;
        let limiter = self.engine.limits.of(self.destination.origin());
        let permit = limiter.acquire_for_body(RequestClass::Uploads).await;
        let carrying = self.begin_carry(&blob.digest)?;
        let body_permit = body_permit.clone();
        let sent = async move {
            let sent = sending.await;
            drop((carrying, body_permit));
            Ok(sent)
        };
        // Boxed to keep the job's future small.
        let (result, upload) = thread.run(sent.boxed()).await?;
        *request.upload = upload;
        if verified.source_fault().is_none() {
            self.engine
                .metrics
                .rate_limited(self.destination.registry(), permit.record(&result));
        }
        result
    }

    /// Verifies the content if nothing is left to send: an empty blob, or a session that holds all
    /// bytes.
    async fn verify_rest(&self, blob: &Descriptor, attempt: &Attempt) -> Result<(), Fault> {
        let mut rest = attempt.verified.segment(u64::MAX);
        let permit = attempt.permit.clone();
        let read = attempt.thread.run(async move {
            let frame = rest.frame().await;
            drop(permit);
            frame.transpose()
        });
        match read.await? {
            None => Ok(()),
            Some(_) => Err(Fault::corrupt(format!(
                "blob {} is longer than its manifest says",
                blob.digest
            ))),
        }
    }

    fn lost(&self, sent: Sent) -> Cut {
        let registry = self.destination.registry();
        let text = match sent {
            Sent::Misplaced(_) => {
                format!("{registry} holds another length of the upload than was sent")
            }
            Sent::Early => {
                format!("{registry} accepted the blob before it was sent, and does not have it")
            }
            _ => format!("{registry} has lost the upload session"),
        };
        let fault = Fault::retryable(text);
        match sent {
            Sent::Gone | Sent::Early | Sent::Misplaced(Offset::Gone) => Cut::Gone(fault),
            _ => Cut::Lost(fault),
        }
    }

    /// Runs the requests, and records checkpoints meanwhile, in the index for large blobs. During a
    /// drain a request is dropped only if the registry keeps its bytes; else it runs as long as
    /// there is time.
    async fn journalled(
        &self,
        blob: &Descriptor,
        verified: &VerifiedBlob,
        mut requests: Pin<&mut impl Future<Output = Result<(), Cut>>>,
        mut checkpoints: mpsc::UnboundedReceiver<Checkpoint>,
        kept: &mut VecDeque<Checkpoint>,
    ) -> Result<(), Cut> {
        let may_leave = self.can_be_taken_up(blob);
        let ended = async {
            loop {
                tokio::select! {
                    biased;
                    ended = &mut requests => return ended,
                    () = self.stop.abort.cancelled() => return Err(Fault::cancelled().into()),
                    () = self.stop.drain.cancelled(), if may_leave => {
                        return Err(Fault::cancelled().into());
                    }
                    Some(checkpoint) = checkpoints.recv() => {
                        self.journal_checkpoint(blob, &checkpoint).await;
                        kept.push_back(checkpoint);
                    }
                }
            }
        }
        .await;
        // What would be hashed from here on has no checkpoint.
        verified.stop();
        while let Ok(checkpoint) = checkpoints.try_recv() {
            self.journal_checkpoint(blob, &checkpoint).await;
            kept.push_back(checkpoint);
        }
        ended
    }
}
