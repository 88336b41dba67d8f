//! One upload: the attempts that carry a blob through its session, and what follows each that
//! fails.
//!
//! An attempt holds the permits of a body; the waits between attempts hold none. An upload that
//! fails is left behind only where it can be gone on with: what is small, corrupt or kept nowhere
//! is cancelled.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Promotion;
use super::admission::BodyPermit;
use super::fan_out::Reader;
use super::limits::{self, RegistryLimiter, RequestClass, RequestPriority};
use super::resume::UploadState;
use super::retry::{Retry, RetryState, stoppable};
use super::verify::{Checkpoint, Opening, VerifiedBlob, Watchers};
use crate::endpoint::{BlobBody, Destination, Source};
use crate::fault::{Class, Fault};
use crate::job::{ActiveBlob, BlobOutcome};
use crate::oci::Descriptor;

/// What has been tried with one blob.
struct Attempts {
    state: RetryState,
    /// What the registry held of it at first, and the most that it has ever held.
    first: u64,
    best: u64,
    /// Whether it has been fetched afresh because it came corrupt.
    is_afresh: bool,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Sends the blob through a session, from where it stands; goes on after cuts as far as the
    /// registry allows.
    pub(super) async fn send(
        &self,
        blob: &Descriptor,
        mut upload: UploadState,
    ) -> Result<BlobOutcome, Fault> {
        self.journal_opening(blob, &upload).await;
        let mut attempts = Attempts {
            state: RetryState::new(self.engine.settings.retry.holding()),
            first: upload.held,
            best: upload.held,
            is_afresh: false,
        };
        let mut shown = None;
        let resumed = loop {
            let resumed = upload.resumed;
            match self.send_once(blob, &mut upload, &mut shown).await {
                Ok(()) => break resumed,
                Err(fault) => match self.recover(blob, upload, fault, &mut attempts).await? {
                    Some(next) => upload = next,
                    // The cut came after the registry had closed the session.
                    None => break resumed,
                },
            }
        };
        self.engine
            .index
            .close_upload(
                self.destination.origin(),
                self.destination.repository(),
                &blob.digest,
            )
            .await;
        self.engine.refusals.forget(&self.refusal_of(&blob.digest));
        self.engine
            .refusals
            .forget(&self.corruption_of(&blob.digest));
        self.remember_blob(blob).await;
        Ok(BlobOutcome::Copied { resumed })
    }

    /// The uploads of this job, sent until one works.
    fn uploads<'a>(&'a self, limiter: &'a RegistryLimiter) -> Retry<'a> {
        Retry {
            metrics: &self.engine.metrics,
            limiter,
            registry: self.destination.registry(),
            priority: RequestPriority::from(RequestClass::Uploads).of_job(&self.ticket),
            stop: self.stop,
        }
    }

    /// What to do after an attempt that failed: go on, start over, or give up. `None`: the blob is
    /// there all the same.
    async fn recover(
        &self,
        blob: &Descriptor,
        mut upload: UploadState,
        fault: Fault,
        attempts: &mut Attempts,
    ) -> Result<Option<UploadState>, Fault> {
        if fault.class() == Class::Corrupt && !attempts.is_afresh {
            attempts.is_afresh = true;
            return self.start_over(blob, upload).await.map(Some);
        }
        if upload.source_failed {
            return self.give_up(blob, upload, fault, attempts).await;
        }
        let limiter = self.engine.limits.of(self.destination.origin());
        let uploads = self.uploads(&limiter);
        if upload.paused {
            // Nothing was lost: the attempt goes on from where it stands.
            return match uploads.opened(&mut attempts.state).await {
                Ok(()) => {
                    upload.paused = false;
                    Ok(Some(upload))
                }
                Err(cancelled) if cancelled.class() == Class::Cancelled => Err(cancelled),
                Err(_) => self.give_up(blob, upload, fault, attempts).await,
            };
        }
        if !uploads.wait_after(&mut attempts.state, &fault).await? {
            return self.give_up(blob, upload, fault, attempts).await;
        }
        let next = self.go_on(blob, upload).await?;
        if let Some(next) = next.as_ref().filter(|next| next.held > attempts.best) {
            attempts.best = next.held;
            attempts.state.progress();
        }
        Ok(next)
    }

    /// Leaves behind what another try, maybe of another process, can go on with, and nothing else.
    async fn give_up(
        &self,
        blob: &Descriptor,
        upload: UploadState,
        fault: Fault,
        attempts: &Attempts,
    ) -> Result<Option<UploadState>, Fault> {
        if upload.held > attempts.first && self.can_be_taken_up(blob) {
            self.has_progressed.store(true, Ordering::Relaxed);
        }
        let blamed = if upload.source_failed {
            self.source.registry()
        } else {
            self.destination.registry()
        };
        self.engine.metrics.health.heard(blamed, Some(&fault));
        self.note_refusal(blob, &upload, &fault);
        let wrong = matches!(
            fault.class(),
            Class::Corrupt | Class::Rejected | Class::NotFound
        );
        if wrong || !self.can_be_taken_up(blob) && fault.class() != Class::Cancelled {
            self.drop_upload(blob, upload.upload).await;
        }
        Err(fault)
    }

    fn reads<'a>(&'a self, limiter: &'a RegistryLimiter) -> Retry<'a> {
        Retry {
            registry: self.source.registry(),
            priority: RequestPriority::from(RequestClass::Blobs).of_job(&self.ticket),
            ..self.uploads(limiter)
        }
    }

    /// All that moving one blob takes, once both registries let us. A shared read has one right to
    /// read for all.
    async fn permit(&self, size: u64, reader: Option<&Reader>) -> Result<BodyPermit, Fault> {
        let source = self.engine.limits.of(self.source.origin());
        let destination = self.engine.limits.of(self.destination.origin());
        let settings = self.engine.settings.retry.holding();
        let mut reading = RetryState::new(settings);
        let mut writing = RetryState::new(settings);
        let is_large = size > limits::SMALL;
        let mut share = reader.map(Reader::share);
        loop {
            self.reads(&source).opened(&mut reading).await?;
            self.uploads(&destination).opened(&mut writing).await?;
            let asked = Instant::now();
            let body = self.ticket.body(is_large, share);
            let mut permit = stoppable(&self.stop.drain, body).await?;
            self.engine.metrics.waited.body(asked);
            let is_open = source.closed_for(RequestClass::Blobs).is_zero()
                && destination.closed_for(RequestClass::Uploads).is_zero();
            if !is_open {
                continue;
            }
            if reader.is_none_or(|reader| reader.admit(permit.reading.take())) {
                return Ok(permit);
            }
            // The body that has the right to read for all has not begun, and may not be polled
            // before this one waits: asking for a part of that right again would go on without end.
            share = None;
        }
    }

    /// The right to move the blob, and from its start on a reader in a shared read, if there is
    /// one. An upload that loses its reader while it waits takes another one, with all others that
    /// lost theirs.
    async fn admitted(
        &self,
        blob: &Descriptor,
        from_start: bool,
    ) -> Result<(Option<Reader>, BodyPermit), Fault> {
        if !from_start {
            self.member.settled(&blob.digest);
        }
        loop {
            let reader = if from_start {
                let opener = || self.opener(blob.clone(), None);
                self.member.reader(&blob.digest, blob.size, opener)
            } else {
                None
            };
            let permit = self.permit(blob.size, reader.as_ref()).await?;
            if !reader.as_ref().is_some_and(Reader::is_lost) {
                return Ok((reader, permit));
            }
        }
    }

    /// One attempt from where the session stands to the end of the blob. Permits are held for its
    /// length only, not while waiting for the next.
    async fn send_once(
        &self,
        blob: &Descriptor,
        upload: &mut UploadState,
        shown: &mut Option<Arc<ActiveBlob>>,
    ) -> Result<(), Fault> {
        let from_start = upload.held == 0 && upload.checkpoints.is_empty();
        let (reader, _permit) = self.admitted(blob, from_start).await?;
        let (sender, checkpoints) = mpsc::unbounded_channel();
        let progress = shown.get_or_insert_with(|| self.show(blob)).clone();
        let verified = self.verified(blob, upload, reader, sender.clone(), progress);
        let start = upload.held;
        upload.held_before = start;
        let sent = self
            .send_body(blob, upload, &verified, sender, checkpoints)
            .await;
        self.sent
            .fetch_add(verified.passed().saturating_sub(start), Ordering::Relaxed);
        upload.passed = verified.passed();
        upload.source_failed = verified.source_fault().is_some();
        match (sent, verified.source_fault()) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(fault)) => Err(self.blame_source(fault)),
            (Err(fault), None) => Err(fault),
        }
    }

    fn show(&self, blob: &Descriptor) -> Arc<ActiveBlob> {
        self.progress
            .bytes_planned
            .fetch_add(blob.size, Ordering::Relaxed);
        Arc::new(self.progress.start_blob(
            format!("{} {}", self.destination.repository(), blob.digest.short()),
            blob.size,
        ))
    }

    fn blame_source(&self, fault: Fault) -> Fault {
        if fault.class() == Class::Corrupt {
            self.engine.metrics.mismatched(self.source.registry());
        }
        fault
    }

    fn verified(
        &self,
        blob: &Descriptor,
        upload: &UploadState,
        reader: Option<Reader>,
        sender: mpsc::UnboundedSender<Checkpoint>,
        progress: Arc<ActiveBlob>,
    ) -> VerifiedBlob {
        let (source, destination) = (self.source.origin(), self.destination.origin());
        // What is read once is counted and paid for once.
        let reads = reader.as_ref().is_none_or(|reader| reader.is_first);
        let limits = &self.engine.limits;
        let limiters = [
            reads.then(|| limits.of(source)),
            (source != destination).then(|| limits.of(destination)),
        ];
        let read = reads.then(|| self.engine.metrics.meter(self.source.registry(), "read"));
        let watchers = Watchers {
            checkpoints: sender,
            every: self.engine.settings.bounds.checkpoint,
            progress: Some(progress),
            read,
        };
        VerifiedBlob::new(
            blob.clone(),
            upload.greatest_checkpoint(blob),
            upload.held,
            self.opener(blob.clone(), reader),
            limiters,
            watchers,
        )
    }

    /// Opens the source at an offset, first of all by the reader in a shared read. It is opened
    /// again whenever it breaks off; bytes that have come in between are progress.
    fn opener(&self, blob: Descriptor, mut reader: Option<Reader>) -> super::verify::Open {
        // What waits here holds the permit of a body.
        let state = RetryState::new(self.engine.settings.retry.holding());
        let state = Arc::new(Mutex::new(state));
        let source = self.source.clone();
        let metrics = self.engine.metrics.clone();
        let stop = self.stop.clone();
        let limiter = self.engine.limits.of(source.origin());
        let priority = RequestPriority::from(RequestClass::Blobs).of_job(&self.ticket);
        let mut last = None;
        Box::new(move |offset| {
            let before = last.replace(offset);
            if let Some(reader) = reader.take() {
                return Box::pin(std::future::ready(Ok(BlobBody::new(reader))));
            }
            let (source, blob, metrics) = (source.clone(), blob.clone(), metrics.clone());
            let (stop, limiter, state) = (stop.clone(), limiter.clone(), state.clone());
            let opening: Opening = Box::pin(async move {
                let reads = Retry {
                    metrics: &metrics,
                    limiter: &limiter,
                    registry: source.registry(),
                    priority,
                    stop: &stop,
                };
                let mut tried = lock(&state).clone();
                if let Some(before) = before {
                    let fault = Fault::retryable(format!(
                        "{} breaks off again and again at byte {offset}",
                        source.address()
                    ));
                    if before < offset {
                        tried.progress();
                    }
                    if !reads.wait_after(&mut tried, &fault).await? {
                        return Err(fault);
                    }
                }
                let read = reads
                    .send(&mut tried, || source.read_blob(&blob, offset))
                    .await;
                *lock(&state) = tried;
                read?.ok_or_else(|| {
                    Fault::not_found(format!(
                        "{} lists it but does not have it; push the image again",
                        source.address()
                    ))
                })
            });
            opening
        })
    }
}

fn lock(state: &Mutex<RetryState>) -> std::sync::MutexGuard<'_, RetryState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
