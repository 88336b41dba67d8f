//! One blob: claim → trust a fresh hint or ask → mount or open an upload → send → hint.
//!
//! A blob that many jobs need moves once to each registry: the first job uploads, the others wait for it and mount. The
//! session that a refused mount leaves is used. No permit is held while waiting for a claim.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::Trip;
use super::claims::Subject;
use super::limits::Traffic;
use super::resume::Standing;
use super::retry::{Budget, opened, stoppable};
use super::verify::{Checkpoint, Opening, Road, Watchers};
use crate::endpoint::{Begin, BlobBody, Destination, Mount, Presence, Sent, Source, Upload, UploadStyle};
use crate::fault::{Class, Fault};
use crate::job::{ActiveBlob, BlobOutcome};
use crate::oci::{Descriptor, RepositoryName};

/// Repositories among which a mount source is looked for.
const HOLDERS: usize = 8;
/// Blobs larger than this are journalled, so that another process can go on with them.
const JOURNALLED: u64 = super::verify::CHECKPOINT;

/// How a mount was answered.
enum Asked {
    Done(BlobOutcome),
    Session(Upload),
}

/// What is left of the patience with one blob.
struct Patience {
    budget: Budget,
    /// The most that the registry has ever held of it.
    best: u64,
    /// Whether it has been fetched afresh because it came corrupt.
    afresh: bool,
}

impl<S: Source, D: Destination> Trip<'_, S, D> {
    /// Makes the destination repository hold the blob.
    pub(super) async fn blob(&self, blob: &Descriptor) -> Result<(), Fault> {
        let outcome = self.bring(blob).await.map_err(|fault| self.about(blob, fault))?;
        self.count_blob(outcome, blob.size);
        Ok(())
    }

    async fn bring(&self, blob: &Descriptor) -> Result<BlobOutcome, Fault> {
        let (origin, repository) = (self.destination.origin().clone(), self.destination.repository().clone());
        let content = Subject::Content(origin.clone(), repository, blob.digest);
        let _one = stoppable(&self.stop.drain, self.engine.claims.take(content)).await?;
        if self.is_held(blob).await? {
            return Ok(BlobOutcome::Present);
        }
        if let Some(standing) = self.standing_upload(blob).await? {
            return self.take_up(blob, standing).await;
        }
        if let Some(outcome) = self.offer_mount(blob).await? {
            return Ok(outcome);
        }
        // Nobody holds it: the first to claim the upload sends it, the others wait here and mount.
        let upload = stoppable(&self.stop.drain, self.engine.claims.take(Subject::Upload(origin, blob.digest))).await?;
        let somebody_was_first = self.offer(blob).await.is_some();
        if somebody_was_first {
            drop(upload);
            if let Some(outcome) = self.offer_mount(blob).await? {
                return Ok(outcome);
            }
        }
        self.upload_afresh(blob).await
    }

    /// Whether the repository holds the blob: by a hint that needs no asking, or by its own word. Not asked where nobody
    /// has seen anything yet, nor where the mount request asks at the same time.
    async fn is_held(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let hint = self.engine.index.blob(self.destination.origin(), self.destination.repository(), &blob.digest).await;
        if let Some(hint) = &hint
            && self.trusts(hint.seen)
        {
            return self.of_size(blob, Some(hint.size)).map(|()| true);
        }
        if hint.is_none() && (self.job.fresh || self.destination.abilities().mount_asks) {
            return Ok(false);
        }
        self.ask_whether_held(blob).await
    }

    async fn ask_whether_held(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let digest = blob.digest;
        match self.ask_destination(Traffic::Blobs, |destination| async move { destination.has_blob(&digest).await }).await? {
            Presence::Present { size } => {
                self.of_size(blob, size)?;
                self.remember_blob(blob).await;
                Ok(true)
            }
            Presence::Absent => {
                self.engine.index.forget_blobs(self.destination.origin(), self.destination.repository(), vec![digest]).await;
                Ok(false)
            }
        }
    }

    /// The content is what its digest says; a manifest that names another length for it lies.
    fn of_size(&self, blob: &Descriptor, found: Option<u64>) -> Result<(), Fault> {
        match found.filter(|found| *found != blob.size) {
            None => Ok(()),
            Some(found) => {
                self.engine.metrics.mismatched(self.source.registry());
                Err(Fault::corrupt(format!(
                    "the manifest says that it has {} bytes, but it has {found}; push the image again",
                    blob.size
                )))
            }
        }
    }

    /// A repository of the destination's registry that holds the blob and may be mounted from. One is enough: the session
    /// that a refusal leaves is used.
    async fn offer(&self, blob: &Descriptor) -> Option<RepositoryName> {
        let mount = self.destination.abilities().mount;
        if mount == Mount::Off {
            return None;
        }
        let own = self.destination.repository();
        if self.source.origin() == self.destination.origin() && self.source.repository() != own {
            return Some(self.source.repository().clone());
        }
        let holders = self.engine.index.holders(self.destination.origin(), &blob.digest, HOLDERS).await;
        let mut usable = holders.into_iter().filter(|holder| holder.committed || mount == Mount::Held);
        usable.find(|holder| holder.repository != *own).map(|holder| holder.repository)
    }

    /// Offers a mount source, where there is one; the session that a refusal leaves is used for the upload.
    async fn offer_mount(&self, blob: &Descriptor) -> Result<Option<BlobOutcome>, Fault> {
        let Some(repository) = self.offer(blob).await else { return Ok(None) };
        match self.ask_for(blob, Some(&repository)).await? {
            Asked::Done(outcome) => Ok(Some(outcome)),
            Asked::Session(upload) => self.send(blob, Standing::fresh(upload)).await.map(Some),
        }
    }

    /// Opens an upload, with the own repository as mount source where that asks whether the blob is there.
    async fn upload_afresh(&self, blob: &Descriptor) -> Result<BlobOutcome, Fault> {
        let asks = self.destination.abilities().mount_asks && !self.job.fresh;
        let own = asks.then(|| self.destination.repository().clone());
        match self.ask_for(blob, own.as_ref()).await? {
            Asked::Done(outcome) => Ok(outcome),
            Asked::Session(upload) => self.send(blob, Standing::fresh(upload)).await,
        }
    }

    async fn ask_for(&self, blob: &Descriptor, from: Option<&RepositoryName>) -> Result<Asked, Fault> {
        match self.open_upload(blob, from).await? {
            Begin::Session(upload) => Ok(Asked::Session(upload)),
            Begin::Mounted if from == Some(self.destination.repository()) => {
                // It was there, but nobody has said how long it is.
                let held = self.ask_whether_held(blob).await?;
                if held { Ok(Asked::Done(BlobOutcome::Present)) } else { Err(Fault::retryable("it was there and is gone")) }
            }
            Begin::Mounted => {
                self.remember_blob(blob).await;
                Ok(Asked::Done(BlobOutcome::Mounted))
            }
        }
    }

    pub(super) async fn open_upload(&self, blob: &Descriptor, from: Option<&RepositoryName>) -> Result<Begin, Fault> {
        let digest = blob.digest;
        self.ask_destination(Traffic::Uploads, |destination| {
            let from = from.cloned();
            async move { destination.begin_upload(&digest, from.as_ref()).await }
        })
        .await
    }

    /// Sends the blob through a session, from where it stands; goes on after cuts as far as the registry allows.
    pub(super) async fn send(&self, blob: &Descriptor, mut standing: Standing) -> Result<BlobOutcome, Fault> {
        self.progress.bytes_planned.fetch_add(blob.size, Ordering::Relaxed);
        self.journal_opening(blob, &standing).await;
        let mut patience = Patience { budget: Budget::new(self.engine.settings.retry), best: standing.offset, afresh: false };
        let resumed = loop {
            let permits = self.permits().await?;
            let sent = self.send_once(blob, &mut standing).await;
            drop(permits);
            match sent {
                Ok(()) => break standing.resumed,
                Err(fault) => match self.after(blob, standing, fault, &mut patience).await? {
                    Some(next) => standing = next,
                    // The cut came after the registry had closed the session.
                    None => break false,
                },
            }
        };
        self.engine.index.close_upload(self.destination.origin(), self.destination.repository(), &blob.digest).await;
        self.remember_blob(blob).await;
        Ok(BlobOutcome::Copied { resumed })
    }

    /// The right to move one blob, once both registries let us.
    async fn permits(&self) -> Result<impl Sized + use<S, D>, Fault> {
        let limits = &self.engine.limits;
        let (source, destination) = (limits.lane(self.source.origin()), limits.lane(self.destination.origin()));
        let (patience, drain) = (&self.engine.settings.retry, &self.stop.drain);
        loop {
            opened(&source, Traffic::Blobs, patience, self.stop).await?;
            opened(&destination, Traffic::Uploads, patience, self.stop).await?;
            let permits = (
                stoppable(drain, source.read()).await?,
                stoppable(drain, destination.write()).await?,
                stoppable(drain, limits.blob()).await?,
            );
            if source.closed_for(Traffic::Blobs).is_zero() && destination.closed_for(Traffic::Uploads).is_zero() {
                return Ok(permits);
            }
        }
    }

    /// What to do after an attempt that failed: go on, start over, or give up. `None`: the blob is there all the same.
    async fn after(
        &self,
        blob: &Descriptor,
        standing: Standing,
        fault: Fault,
        patience: &mut Patience,
    ) -> Result<Option<Standing>, Fault> {
        match fault.class() {
            Class::Corrupt if !patience.afresh => {
                patience.afresh = true;
                self.start_over(blob, standing).await.map(Some)
            }
            Class::Corrupt => {
                self.drop_upload(blob, standing.upload).await;
                Err(fault)
            }
            class @ Class::Retryable { .. } if !standing.source_failed => {
                let Some(wait) = patience.budget.next(class) else { return Err(fault) };
                self.engine.metrics.retried(self.destination.registry(), class);
                tracing::debug!(destination = %self.destination.address(), blob = %blob.digest, error = %fault.chain(), "an upload broke off");
                stoppable(&self.stop.drain, tokio::time::sleep(wait)).await?;
                let next = self.go_on(blob, standing).await?;
                if let Some(next) = next.as_ref().filter(|next| next.offset > patience.best) {
                    patience.best = next.offset;
                    patience.budget.progress();
                }
                Ok(next)
            }
            _ => Err(fault),
        }
    }

    /// One attempt from where the session stands to the end of the blob.
    async fn send_once(&self, blob: &Descriptor, standing: &mut Standing) -> Result<(), Fault> {
        let (sender, checkpoints) = mpsc::unbounded_channel();
        let progress = self.progress.start_blob(format!("{} {}", self.destination.repository(), blob.digest.short()), blob.size);
        let road = self.road(blob, standing, sender, progress);
        let sent = self.travel(blob, standing, &road, checkpoints).await;
        self.sent.fetch_add(road.passed().saturating_sub(standing.offset), Ordering::Relaxed);
        standing.passed = road.passed();
        standing.source_failed = road.source_fault().is_some();
        match (sent, road.source_fault()) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(fault)) => Err(self.blame_source(fault)),
            (Err(fault), None) => Err(fault),
        }
    }

    fn blame_source(&self, fault: Fault) -> Fault {
        if fault.class() == Class::Corrupt {
            self.engine.metrics.mismatched(self.source.registry());
        }
        fault
    }

    fn road(
        &self,
        blob: &Descriptor,
        standing: &Standing,
        sender: mpsc::UnboundedSender<Checkpoint>,
        progress: ActiveBlob,
    ) -> Road {
        let lane = |origin| Some(self.engine.limits.lane(origin));
        let lanes = [
            lane(self.source.origin()),
            lane(self.destination.origin()).filter(|_| self.source.origin() != self.destination.origin()),
        ];
        let read = Some(self.engine.metrics.meter(self.source.registry(), "read"));
        let watchers = Watchers { checkpoints: sender, progress: Some(progress), read };
        Road::new(blob.clone(), standing.greatest_checkpoint(blob), standing.offset, self.opener(blob.clone()), lanes, watchers)
    }

    /// Opens the source at an offset; opens it again with patience that starts anew whenever bytes have come.
    fn opener(&self, blob: Descriptor) -> super::verify::Open {
        let (source, settings, metrics) = (self.source.clone(), self.engine.settings.retry, self.engine.metrics.clone());
        let (stop, lane) = (self.stop.clone(), self.engine.limits.lane(source.origin()));
        let mut budget = Budget::new(settings);
        let mut last = None;
        Box::new(move |offset| {
            let wait = match last.replace(offset) {
                None => Some(std::time::Duration::ZERO),
                Some(before) => {
                    if before < offset {
                        budget.progress();
                    }
                    budget.next(Class::RETRYABLE)
                }
            };
            let (source, blob, metrics, mut budget) = (source.clone(), blob.clone(), metrics.clone(), budget.clone());
            let (stop, lane) = (stop.clone(), lane.clone());
            let opening: Opening = Box::pin(async move {
                let Some(mut wait) = wait else {
                    return Err(Fault::retryable(format!("{} breaks off again and again at byte {offset}", source.address())));
                };
                loop {
                    stoppable(&stop.drain, tokio::time::sleep(wait)).await?;
                    budget.excuse(opened(&lane, Traffic::Blobs, &settings, &stop).await?);
                    let turn = lane.turn(Traffic::Blobs).await;
                    let read = source.read_blob(&blob, offset).await;
                    metrics.rate_limited(source.registry(), turn.learn(&read));
                    drop(turn);
                    match read {
                        Ok(Some(body)) => return Ok::<BlobBody, Fault>(body),
                        Ok(None) => {
                            return Err(Fault::not_found(format!(
                                "{} lists it but does not have it; push the image again",
                                source.address()
                            )));
                        }
                        Err(fault) => match budget.next(fault.class()) {
                            Some(next) => {
                                metrics.retried(source.registry(), fault.class());
                                wait = next;
                            }
                            None => return Err(fault),
                        },
                    }
                }
            });
            opening
        })
    }

    /// Sends the rest of the blob in the destination's way, journalling checkpoints as they come.
    async fn travel(
        &self,
        blob: &Descriptor,
        standing: &mut Standing,
        road: &Road,
        checkpoints: mpsc::UnboundedReceiver<Checkpoint>,
    ) -> Result<(), Fault> {
        let Standing { upload, offset, checkpoints: kept, .. } = standing;
        let request = self.requests(blob, upload, *offset, road);
        self.journalled(blob, request, checkpoints, kept).await
    }

    async fn requests(&self, blob: &Descriptor, upload: &mut Upload, offset: u64, road: &Road) -> Result<(), Fault> {
        let left = blob.size - offset;
        match self.destination.abilities().upload {
            UploadStyle::Whole => self.close(blob, upload, offset, left, road).await,
            UploadStyle::Stream => {
                self.chunk(blob, upload, offset, left, road).await?;
                self.close(blob, upload, blob.size, 0, road).await
            }
            UploadStyle::Chunked { least, most, last_in_put } => {
                let size = upload.chunk_min.unwrap_or(0).max(least).clamp(1, most.max(upload.chunk_min.unwrap_or(0)));
                let mut offset = offset;
                while blob.size - offset > if last_in_put { size } else { 0 } {
                    let length = size.min(blob.size - offset);
                    self.chunk(blob, upload, offset, length, road).await?;
                    offset += length;
                }
                self.close(blob, upload, offset, blob.size - offset, road).await
            }
        }
    }

    async fn chunk(&self, blob: &Descriptor, upload: &mut Upload, offset: u64, length: u64, road: &Road) -> Result<(), Fault> {
        let end = offset + length;
        match self.body(road, self.destination.send_chunk(upload, offset, length, road.leg(length))).await? {
            Sent::Accepted { reported: Some(reported) } if self.destination.abilities().reports_offset && reported != end => Err(
                Fault::retryable(format!("{} reports {reported} bytes of an upload that holds {end}", self.destination.registry())),
            ),
            Sent::Accepted { .. } => {
                self.journal_location(blob, upload).await;
                Ok(())
            }
            other => Err(self.lost(other)),
        }
    }

    async fn close(&self, blob: &Descriptor, upload: &mut Upload, offset: u64, length: u64, road: &Road) -> Result<(), Fault> {
        if length == 0 && !road.is_verified() {
            self.verify_rest(blob, road).await?;
        }
        self.journal_finishing(blob).await;
        match self.body(road, self.destination.finish_upload(upload, &blob.digest, offset, length, road.leg(length))).await? {
            Sent::Accepted { .. } => Ok(()),
            other => Err(self.lost(other)),
        }
    }

    /// Sends a request of an upload that has its permits, when the registry lets us, and learns from what comes of it.
    async fn body<T>(&self, road: &Road, request: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let lane = self.engine.limits.lane(self.destination.origin());
        let turn = lane.part(Traffic::Uploads).await;
        let result = request.await;
        if road.source_fault().is_none() {
            self.engine.metrics.rate_limited(self.destination.registry(), turn.learn(&result));
        }
        result
    }

    /// Nothing is left to send, but the verdict on the content is still out: a blob of no bytes, or an upload that had all of
    /// them.
    async fn verify_rest(&self, blob: &Descriptor, road: &Road) -> Result<(), Fault> {
        let mut rest = road.leg(u64::MAX);
        match rest.frame().await {
            None => Ok(()),
            Some(Err(fault)) => Err(fault),
            Some(Ok(_)) => Err(Fault::corrupt(format!("blob {} is longer than its manifest says", blob.digest))),
        }
    }

    fn lost(&self, sent: Sent) -> Fault {
        let registry = self.destination.registry();
        match sent {
            Sent::Misplaced(_) => Fault::retryable(format!("{registry} holds another length of the upload than was sent")),
            _ => Fault::retryable(format!("{registry} has lost the upload session")),
        }
    }

    /// Runs requests while checkpoints are kept, and in the index for large blobs; ends early when we drain.
    async fn journalled(
        &self,
        blob: &Descriptor,
        requests: impl Future<Output = Result<(), Fault>>,
        mut checkpoints: mpsc::UnboundedReceiver<Checkpoint>,
        kept: &mut VecDeque<Checkpoint>,
    ) -> Result<(), Fault> {
        let mut requests = std::pin::pin!(requests);
        loop {
            tokio::select! {
                biased;
                () = self.stop.drain.cancelled() => return Err(Fault::cancelled()),
                ended = &mut requests => return ended,
                Some(checkpoint) = checkpoints.recv() => {
                    self.journal_checkpoint(blob, &checkpoint).await;
                    kept.push_back(checkpoint);
                }
            }
        }
    }

    pub(super) async fn remember_blob(&self, blob: &Descriptor) {
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        self.engine.index.remember_blobs(origin, repository, vec![(blob.digest, blob.size)], false).await;
    }

    pub(super) fn is_journalled(&self, blob: &Descriptor) -> bool {
        blob.size > JOURNALLED
    }

    fn about(&self, blob: &Descriptor, fault: Fault) -> Fault {
        if fault.class() == Class::Cancelled {
            return fault;
        }
        let (from, to) = (self.source.registry(), self.destination.registry());
        fault.while_doing(format_args!("{from} → {to}: blob {} of {}", blob.digest, self.source_reference()))
    }
}
