//! One upload: the attempts that carry a blob through its session, and what follows each that
//! fails.
//!
//! An attempt holds the permits of a body until its last request has ended on its thread; the waits
//! between attempts hold none. An upload that fails is left behind only where it can be gone on
//! with: what is small, empty, corrupt or kept nowhere is cancelled.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Promotion;
use super::admission::BodyPermit;
use super::fan_out::Reader;
use super::limits::{self, RegistryLimiter, RequestClass, RequestPriority};
use super::resume::{Cut, UploadState};
use super::retry::{Retry, RetryState, stoppable};
use super::send::Attempt;
use super::stall;
use super::verify::{Checkpoint, VerifiedBlob, Watchers};
use crate::byte_threads::ByteThread;
use crate::endpoint::{Destination, Source};
use crate::fault::{Class, Fault};
use crate::job::{ActiveBlob, BlobOutcome};
use crate::oci::Descriptor;

/// An upload between its open session and the committed blob. Each step returns the next stage.
enum Stage {
    /// The next attempt sends what the session does not hold.
    Open(UploadState),
    /// The last attempt was cut.
    Broken(UploadState, Cut),
    /// The registry has committed the blob.
    Committed {
        /// Whether bytes of an earlier attempt were kept.
        resumed: bool,
    },
}

/// How often the upload of one blob may fail.
struct Budget {
    retries: RetryState,
    /// What the registry held of it at first, and when it last held so much more that this counts
    /// as progress.
    first: u64,
    best: u64,
    since: Instant,
    /// Whether it has been fetched afresh because it came corrupt.
    is_afresh: bool,
}

/// The part of what an attempt sends that must be kept for it to count as progress.
const KEPT_PART: u64 = 16;

impl Budget {
    /// Whether the registry holds so much more that the attempt was progress: what the floor asks
    /// for in the time since the last progress, and a part of what was sent. A session that gains a
    /// byte with every attempt would go on without end.
    fn is_progress(&self, held: u64, sent: u64, stall: &stall::Settings) -> bool {
        let time = self.since.elapsed().min(stall.window);
        let floor = (time.as_secs_f64() * stall.floor as f64) as u64;
        let gained = held.saturating_sub(self.best);
        gained > 0 && gained >= floor.max(sent / KEPT_PART)
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Sends the blob through a session, from where it stands; goes on after cuts as far as the
    /// registry allows.
    pub(super) async fn send(
        &self,
        blob: &Descriptor,
        upload: UploadState,
    ) -> Result<BlobOutcome, Fault> {
        self.journal_opening(blob, &upload).await;
        let mut budget = Budget {
            retries: RetryState::new(self.engine.settings.retry.holding()),
            first: upload.held,
            best: upload.held,
            since: Instant::now(),
            is_afresh: false,
        };
        let mut shown = None;
        let mut stage = Stage::Open(upload);
        let resumed = loop {
            stage = match stage {
                Stage::Open(upload) => self.send_once(blob, upload, &mut shown).await,
                Stage::Broken(upload, cut) => self.recover(blob, upload, cut, &mut budget).await?,
                Stage::Committed { resumed } => break resumed,
            };
        };
        self.engine
            .index
            .close_upload(&self.destination.id(), &blob.digest)
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

    /// The stage after an attempt that was cut: goes on, starts over, or gives up.
    async fn recover(
        &self,
        blob: &Descriptor,
        mut upload: UploadState,
        cut: Cut,
        budget: &mut Budget,
    ) -> Result<Stage, Fault> {
        if cut.fault().class() == Class::Corrupt && !budget.is_afresh {
            budget.is_afresh = true;
            upload.is_corrupt = true;
            // The whole may be right where parts of it are not.
            upload.may_be_parted.store(false, Ordering::Relaxed);
            return self.start_over(blob, upload).await.map(Stage::Open);
        }
        let limiter = self.engine.limits.of(self.destination.origin());
        let uploads = self.uploads(&limiter);
        let may_go_on = match &cut {
            Cut::Source(_) => false,
            Cut::Paused(_) => match uploads.opened(&mut budget.retries).await {
                Ok(()) => return Ok(Stage::Open(upload)),
                Err(cancelled) if cancelled.class() == Class::Cancelled => return Err(cancelled),
                Err(_) => false,
            },
            Cut::Gone(fault) | Cut::Lost(fault) => {
                uploads.wait_after(&mut budget.retries, fault).await?
            }
        };
        if !may_go_on {
            return Err(self.give_up(blob, upload, cut, budget).await);
        }
        let resumed = upload.resumed;
        let sent = upload.sent();
        let is_gone = matches!(cut, Cut::Gone(_));
        let Some(next) = self.go_on(blob, upload, is_gone).await? else {
            // The cut came after the registry had committed the blob.
            return Ok(Stage::Committed { resumed });
        };
        if budget.is_progress(next.held, sent, &self.engine.settings.stall) {
            budget.best = next.held;
            budget.since = Instant::now();
            budget.retries.progress();
        }
        Ok(Stage::Open(next))
    }

    /// Leaves behind what another try, maybe of another process, can go on with, and nothing else.
    async fn give_up(
        &self,
        blob: &Descriptor,
        upload: UploadState,
        cut: Cut,
        budget: &Budget,
    ) -> Fault {
        let stall = &self.engine.settings.stall;
        let has_progressed =
            budget.best > budget.first || budget.is_progress(upload.held, upload.sent(), stall);
        if has_progressed && self.can_be_taken_up(blob) {
            self.has_progressed.store(true, Ordering::Relaxed);
        }
        let blamed = if cut.is_by_source() {
            self.source.registry()
        } else {
            self.destination.registry()
        };
        self.note_refusal(blob, &cut, upload.passed);
        let fault = cut.into_fault();
        self.engine.metrics.health.heard(blamed, Some(&fault));
        let wrong = matches!(
            fault.class(),
            Class::Corrupt | Class::Rejected | Class::NotFound
        );
        let is_useless = !self.can_be_taken_up(blob) || upload.is_empty();
        if wrong || is_useless && fault.class() != Class::Cancelled {
            self.drop_upload(blob, upload.upload).await;
        }
        fault
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
        upload: &UploadState,
        from_start: bool,
    ) -> Result<(Option<Reader>, BodyPermit), Fault> {
        if !from_start {
            self.member.settled(&blob.digest);
        }
        loop {
            let reader = if from_start {
                let open = || self.opener(blob.clone(), None, upload.may_be_parted.clone());
                self.member.reader(&blob.digest, blob.size, open)
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
        mut upload: UploadState,
        shown: &mut Option<Arc<ActiveBlob>>,
    ) -> Stage {
        let from_start = upload.held == 0 && upload.checkpoints.is_empty();
        let (reader, permit) = match self.admitted(blob, &upload, from_start).await {
            Ok(admitted) => admitted,
            Err(fault) => return Stage::Broken(upload, Cut::Lost(fault)),
        };
        let thread = self.byte_thread(blob, reader.as_ref());
        let (sender, checkpoints) = mpsc::unbounded_channel();
        let progress = shown.get_or_insert_with(|| self.show(blob)).clone();
        let attempt = Attempt {
            verified: self.verified(blob, &upload, reader, sender, progress),
            thread,
            permit: Arc::new(permit),
        };
        let verified = &attempt.verified;
        let start = upload.held;
        upload.held_before = start;
        let sent = self
            .send_body(blob, &mut upload, &attempt, checkpoints)
            .await;
        upload.passed = verified.passed();
        let passed = upload.passed.saturating_sub(start);
        self.sent.fetch_add(passed, Ordering::Relaxed);
        match (sent, verified.source_fault()) {
            (Ok(()), _) => Stage::Committed {
                resumed: upload.resumed,
            },
            (Err(_), Some(fault)) => Stage::Broken(upload, Cut::Source(self.blame_source(fault))),
            (Err(cut), None) => Stage::Broken(upload, cut),
        }
    }

    /// Where an attempt moves its bytes. A small blob takes round trips, not processor time.
    fn byte_thread(&self, blob: &Descriptor, reader: Option<&Reader>) -> ByteThread {
        if blob.size <= limits::SMALL {
            return ByteThread::deciding();
        }
        let choose = || self.engine.threads.least_loaded();
        match reader {
            Some(reader) => reader.byte_thread(choose),
            None => choose(),
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
        let may_be_parted = upload.may_be_parted.clone();
        match reader {
            Some(reader) => {
                // The shared read stands for the first opening.
                let open = self.opener(blob.clone(), Some(0), may_be_parted);
                VerifiedBlob::shared(blob.clone(), reader, open, limiters, watchers)
            }
            None => VerifiedBlob::new(
                blob.clone(),
                upload.greatest_checkpoint(blob),
                upload.held,
                self.opener(blob.clone(), None, may_be_parted),
                limiters,
                watchers,
            ),
        }
    }
}
