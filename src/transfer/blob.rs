//! One blob: claim → trust a fresh hint or ask → mount, take up an upload of before or open one → send → hint.
//!
//! A blob that many jobs need moves once to each registry that mounts: the first job uploads, the others wait for it, or for
//! its manifest where a mount needs one, and mount. The session that a refused mount leaves is used. No permit is held while
//! waiting for a claim or for the next try.
//!
//! An upload that fails is left behind only where it can be gone on with: what is small, corrupt or kept nowhere is cancelled.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Promotion;
use super::admission::BodyPermit;
use super::claims::{Following, Leading, Subject};
use super::fan_out::Reader;
use super::limits::{self, Errand, Traffic};
use super::refusals;
use super::resume::UploadState;
use super::retry::{Budget, opened, stoppable};
use super::verify::{Checkpoint, Opening, VerifiedBlob, Watchers};
use crate::endpoint::{Begin, BlobBody, Destination, Mount, Presence, Resume, Source};
use crate::fault::{Class, Fault};
use crate::index::StoredUpload;
use crate::job::{ActiveBlob, BlobOutcome};
use crate::oci::{Descriptor, Digest, RepositoryName};

/// Holders of a blob that are looked at for one that may be offered as mount source.
const HOLDERS: usize = 8;
/// How long somebody's manifest is waited for.
const NEAR: Duration = Duration::from_secs(600);

/// What is left of the patience with one blob.
struct Patience {
    budget: Budget,
    /// The most that the registry has ever held of it.
    best: u64,
    /// Whether it has been fetched afresh because it came corrupt.
    afresh: bool,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Makes the destination repository hold the blob.
    pub(super) async fn blob(&self, blob: &Descriptor) -> Result<(), Fault> {
        let brought = self.ensure_blob(blob).await;
        self.member.settled(&blob.digest);
        let outcome = brought.map_err(|fault| self.about(blob, fault))?;
        self.count_blob(outcome, blob.size);
        Ok(())
    }

    async fn ensure_blob(&self, blob: &Descriptor) -> Result<BlobOutcome, Fault> {
        let (origin, repository) = (
            self.destination.origin().clone(),
            self.destination.repository().clone(),
        );
        let content = Subject::Content(origin.clone(), repository, blob.digest);
        let (claimant, stall) = (self.claimant(&blob.digest), &self.engine.settings.stall);
        let take = |subject| {
            self.engine
                .claims
                .take_unless_slow(subject, &claimant, stall)
        };
        let mut near = Instant::now() + NEAR;
        loop {
            let one = stoppable(&self.stop.drain, take(content.clone())).await?;
            let stored = self.stored_upload(blob).await;
            if self.is_held(blob).await? {
                self.forget_upload(blob, stored).await;
                return Ok(BlobOutcome::Present);
            }
            let mut offers = self.offers(blob).await;
            let mut turn = None;
            if offers.is_empty() && self.destination.abilities().mount == Mount::Held {
                // Nobody holds it: the first to claim the upload sends it, the others wait here and mount.
                turn = stoppable(
                    &self.stop.drain,
                    take(Subject::Upload(origin.clone(), blob.digest)),
                )
                .await?;
                offers = self.offers(blob).await;
            }
            if let Some(from) = offers.first() {
                drop(turn);
                return self.mount(blob, from, stored).await;
            }
            let Some(leader) = self.leader(blob, near).await else {
                return self.send_all(blob, stored).await;
            };
            // Whoever waits here holds nothing that the leader may need.
            drop(one);
            if leader.has_other_source {
                near = near.min(Instant::now() + stall.window);
            }
            let ended = stoppable(
                &self.stop.drain,
                tokio::time::timeout_at(near, leader.ended()),
            );
            let _late = ended.await?;
        }
    }

    /// Sends it, in company where each repository needs the bytes.
    async fn send_all(
        &self,
        blob: &Descriptor,
        stored: Option<StoredUpload>,
    ) -> Result<BlobOutcome, Fault> {
        self.is_not_refused(blob)?;
        if self.destination.abilities().mount != Mount::Held {
            self.member.needs(&blob.digest);
        }
        match stored {
            Some(stored) => self.take_up(blob, stored).await,
            None => self.upload_afresh(blob).await,
        }
    }

    /// What is remembered as refused at the destination under this digest.
    pub(super) fn refusal_of(&self, digest: &Digest) -> refusals::Subject {
        let (origin, repository) = (
            self.destination.origin().clone(),
            self.destination.repository().clone(),
        );
        refusals::Subject {
            origin,
            repository,
            digest: *digest,
            tag: None,
            source: None,
        }
    }

    /// The same of content that came corrupt from our source.
    fn corruption_of(&self, digest: &Digest) -> refusals::Subject {
        let source = Some((
            self.source.origin().clone(),
            self.source.repository().clone(),
        ));
        refusals::Subject {
            source,
            ..self.refusal_of(digest)
        }
    }

    /// Fails where moving the blob has been refused for good and nothing has changed since.
    fn is_not_refused(&self, blob: &Descriptor) -> Result<(), Fault> {
        let refusals = &self.engine.refusals;
        let held = |subject| refusals.held(&subject, self.job.cause, self.job.look_began);
        match held(self.refusal_of(&blob.digest)).or_else(|| held(self.corruption_of(&blob.digest)))
        {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Remembers a refusal that moving the bytes again would not change.
    fn note_refusal(&self, blob: &Descriptor, state: &UploadState, fault: &Fault) {
        let (refusals, class) = (&self.engine.refusals, fault.class());
        match class {
            Class::Corrupt if state.source_failed => {
                refusals.note(self.corruption_of(&blob.digest), fault)
            }
            Class::Corrupt | Class::Rejected if !state.source_failed => {
                refusals.note(self.refusal_of(&blob.digest), fault)
            }
            // Some word a quota so. A right that is missing shows before the bytes are sent.
            Class::Auth if !state.source_failed && state.passed > 0 => {
                refusals.note(self.refusal_of(&blob.digest), fault);
            }
            _ => {}
        }
    }

    /// Whose manifest is worth waiting for, since it lets the blob be mounted. Otherwise others may wait for ours.
    async fn leader(&self, blob: &Descriptor, near: Instant) -> Option<Following> {
        let waits = self.destination.abilities().mount == Mount::Committed
            && blob.size >= self.engine.settings.bounds.worth_waiting;
        if !waits || Instant::now() >= near {
            return None;
        }
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        let number = *self.number.get_or_init(|| self.engine.claims.enrol());
        match self.engine.claims.lead(
            number,
            self.source.origin(),
            origin,
            repository,
            &blob.digest,
        ) {
            Leading::Ours(lead) => self
                .leads
                .lock()
                .expect("nothing panics while it holds the leads")
                .push(lead),
            Leading::Earlier(leader) if self.destination.always_mounts().await => {
                return Some(leader);
            }
            Leading::Earlier(_) | Leading::Later => {}
        }
        None
    }

    /// Makes the destination repository hold a blob that it said to hold, or was believed to, and then missed: nobody is
    /// believed or asked any more.
    pub(super) async fn resend_blob(&self, blob: &Descriptor) -> Result<(), Fault> {
        let content = Subject::Content(
            self.destination.origin().clone(),
            self.destination.repository().clone(),
            blob.digest,
        );
        let _one = stoppable(
            &self.stop.drain,
            self.engine
                .claims
                .take(content, &self.claimant(&blob.digest)),
        )
        .await?;
        self.is_not_refused(blob)?;
        let sent = match self.open_upload(blob, None).await {
            Ok(Begin::Session(upload)) => self.send(blob, UploadState::fresh(upload)).await,
            Ok(Begin::Mounted) => Err(self.mounts_unasked()),
            Err(fault) => Err(fault),
        };
        self.count_blob(sent.map_err(|fault| self.about(blob, fault))?, blob.size);
        Ok(())
    }

    /// Whether the repository holds the blob: by a hint that needs no asking, or by its own word. Not asked where nobody
    /// has seen anything yet, nor where the request that opens an upload asks at the same time.
    async fn is_held(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let hint = self
            .engine
            .index
            .blob(
                self.destination.origin(),
                self.destination.repository(),
                &blob.digest,
            )
            .await;
        if let Some(hint) = &hint
            && self.trusts(hint.seen)
            && hint.size == blob.size
        {
            return Ok(true);
        }
        if hint.is_none() && (self.job.fresh || self.destination.abilities().mount_asks) {
            return Ok(false);
        }
        self.ask_whether_held(blob).await
    }

    async fn ask_whether_held(&self, blob: &Descriptor) -> Result<bool, Fault> {
        let digest = blob.digest;
        match self
            .ask_destination(Traffic::Blobs, |destination| async move {
                destination.has_blob(&digest).await
            })
            .await?
        {
            Presence::Present { size } => {
                self.of_size(blob, size)?;
                self.remember_blob(blob).await;
                Ok(true)
            }
            Presence::Absent => {
                self.engine
                    .index
                    .forget_blobs(
                        self.destination.origin(),
                        self.destination.repository(),
                        vec![digest],
                    )
                    .await;
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

    /// Repositories of the destination's registry that hold the blob and may be mounted from.
    async fn offers(&self, blob: &Descriptor) -> Vec<RepositoryName> {
        let mount = self.destination.abilities().mount;
        if mount == Mount::Off {
            return Vec::new();
        }
        let own = self.destination.repository();
        let holders = self
            .engine
            .index
            .holders(self.destination.origin(), &blob.digest, HOLDERS)
            .await;
        let usable = holders
            .into_iter()
            .filter(|holder| holder.committed || mount == Mount::Held);
        let mut offers: Vec<_> = usable
            .map(|holder| holder.repository)
            .filter(|repository| repository != own)
            .collect();
        if self.source.origin() == self.destination.origin() && self.source.repository() != own {
            offers.insert(0, self.source.repository().clone());
        }
        offers
    }

    /// Offers a mount source. A refusal leaves a session: it is used, unless an earlier process left one with bytes in it.
    async fn mount(
        &self,
        blob: &Descriptor,
        from: &RepositoryName,
        stored: Option<StoredUpload>,
    ) -> Result<BlobOutcome, Fault> {
        match (self.open_upload(blob, Some(from)).await?, stored) {
            (Begin::Mounted, stored) => {
                self.forget_upload(blob, stored).await;
                self.mounted(blob, from).await
            }
            (Begin::Session(upload), None) => {
                if let Err(fault) = self.is_not_refused(blob) {
                    self.cancel(upload).await;
                    return Err(fault);
                }
                self.send(blob, UploadState::fresh(upload)).await
            }
            (Begin::Session(upload), Some(stored)) => {
                self.cancel(upload).await;
                self.take_up(blob, stored).await
            }
        }
    }

    /// The content of a mount is what its digest says; the length is compared with what was learnt when it came here.
    async fn mounted(
        &self,
        blob: &Descriptor,
        from: &RepositoryName,
    ) -> Result<BlobOutcome, Fault> {
        let known = self
            .engine
            .index
            .blob(self.destination.origin(), from, &blob.digest)
            .await;
        if known.is_some_and(|known| known.size != blob.size)
            && !self.ask_whether_held(blob).await?
        {
            return Err(Fault::retryable("it was mounted and is gone"));
        }
        self.remember_blob(blob).await;
        Ok(BlobOutcome::Mounted)
    }

    /// Opens an upload, with the own repository as mount source where that asks whether the blob is there.
    async fn upload_afresh(&self, blob: &Descriptor) -> Result<BlobOutcome, Fault> {
        let own = self
            .destination
            .abilities()
            .mount_asks
            .then(|| self.destination.repository().clone());
        match self.open_upload(blob, own.as_ref()).await? {
            Begin::Session(upload) => self.send(blob, UploadState::fresh(upload)).await,
            Begin::Mounted if own.is_none() => Err(self.mounts_unasked()),
            // It was there, but nobody has said how long it is.
            Begin::Mounted if self.ask_whether_held(blob).await? => Ok(BlobOutcome::Present),
            Begin::Mounted => Err(Fault::retryable("it was there and is gone")),
        }
    }

    pub(super) fn mounts_unasked(&self) -> Fault {
        Fault::retryable(format!(
            "{} mounts what it was not offered",
            self.destination.registry()
        ))
    }

    pub(super) async fn open_upload(
        &self,
        blob: &Descriptor,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        let digest = blob.digest;
        self.ask_destination(Traffic::Uploads, |destination| {
            let from = from.cloned();
            async move { destination.begin_upload(&digest, from.as_ref()).await }
        })
        .await
    }

    /// Sends the blob through a session, from where it stands; goes on after cuts as far as the registry allows.
    pub(super) async fn send(
        &self,
        blob: &Descriptor,
        mut state: UploadState,
    ) -> Result<BlobOutcome, Fault> {
        self.journal_opening(blob, &state).await;
        let mut patience = Patience {
            budget: Budget::new(self.engine.settings.retry.holding()),
            best: state.held,
            afresh: false,
        };
        let mut shown = None;
        let resumed = loop {
            let resumed = state.resumed;
            match self.send_once(blob, &mut state, &mut shown).await {
                Ok(()) => break resumed,
                Err(fault) if state.paused => {
                    self.wait_until_open(blob, &mut state, fault, &mut patience)
                        .await?
                }
                Err(fault) => match self.recover(blob, state, fault, &mut patience).await? {
                    Some(next) => state = next,
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

    /// What to do after an attempt that failed: go on, start over, or give up. `None`: the blob is there all the same.
    async fn recover(
        &self,
        blob: &Descriptor,
        state: UploadState,
        fault: Fault,
        patience: &mut Patience,
    ) -> Result<Option<UploadState>, Fault> {
        match fault.class() {
            Class::Corrupt if !patience.afresh => {
                patience.afresh = true;
                self.start_over(blob, state).await.map(Some)
            }
            class @ Class::Retryable { .. } if !state.source_failed => {
                match patience.budget.next(class) {
                    Some(wait) => self.go_on_later(blob, state, fault, wait, patience).await,
                    None => self.give_up(blob, state, fault).await,
                }
            }
            _ => self.give_up(blob, state, fault).await,
        }
    }

    /// Waits without the permits of a body until the destination takes uploads again.
    async fn wait_until_open(
        &self,
        blob: &Descriptor,
        state: &mut UploadState,
        fault: Fault,
        patience: &mut Patience,
    ) -> Result<(), Fault> {
        let lane = self.engine.limits.lane(self.destination.origin());
        state.paused = false;
        match opened(&lane, Traffic::Uploads, &patience.budget.left(), self.stop).await {
            Ok(waited) => patience.budget.excuse(waited),
            Err(cancelled) if cancelled.class() == Class::Cancelled => return Err(cancelled),
            Err(_) if !self.can_be_taken_up(blob) => {
                self.drop_upload(blob, state.upload.clone()).await;
                return Err(fault);
            }
            Err(_) => return Err(fault),
        }
        Ok(())
    }

    async fn go_on_later(
        &self,
        blob: &Descriptor,
        state: UploadState,
        fault: Fault,
        wait: Duration,
        patience: &mut Patience,
    ) -> Result<Option<UploadState>, Fault> {
        self.engine
            .metrics
            .retried(self.destination.registry(), fault.class());
        tracing::debug!(destination = %self.destination.address(), blob = %blob.digest, error = %fault.chain(), "an upload broke off");
        stoppable(&self.stop.drain, tokio::time::sleep(wait)).await?;
        let next = self.go_on(blob, state).await?;
        if let Some(next) = next.as_ref().filter(|next| next.held > patience.best) {
            patience.best = next.held;
            patience.budget.progress();
        }
        Ok(next)
    }

    /// Leaves behind what another try, maybe of another process, can go on with, and nothing else.
    async fn give_up(
        &self,
        blob: &Descriptor,
        state: UploadState,
        fault: Fault,
    ) -> Result<Option<UploadState>, Fault> {
        let blamed = if state.source_failed {
            self.source.registry()
        } else {
            self.destination.registry()
        };
        self.engine.metrics.health.heard(blamed, Some(&fault));
        self.note_refusal(blob, &state, &fault);
        let wrong = matches!(
            fault.class(),
            Class::Corrupt | Class::Rejected | Class::NotFound
        );
        if wrong || !self.can_be_taken_up(blob) && fault.class() != Class::Cancelled {
            self.drop_upload(blob, state.upload).await;
        }
        Err(fault)
    }

    /// All that moving one blob takes, once both registries let us. A shared read has one right to read for all.
    async fn permit(&self, size: u64, reader: Option<&Reader>) -> Result<BodyPermit, Fault> {
        let source = self.engine.limits.lane(self.source.origin());
        let destination = self.engine.limits.lane(self.destination.origin());
        let patience = &self.engine.settings.retry.holding();
        let is_large = size > limits::SMALL;
        loop {
            opened(&source, Traffic::Blobs, patience, self.stop).await?;
            opened(&destination, Traffic::Uploads, patience, self.stop).await?;
            let asked = Instant::now();
            let mut permit = stoppable(
                &self.stop.drain,
                self.ticket.body(is_large, reader.map(Reader::share)),
            )
            .await?;
            self.engine.metrics.waited.body(asked);
            let is_open = source.closed_for(Traffic::Blobs).is_zero()
                && destination.closed_for(Traffic::Uploads).is_zero();
            if is_open && reader.is_none_or(|reader| reader.admit(permit.reading.take())) {
                return Ok(permit);
            }
        }
    }

    /// The right to move the blob, and from its start on a seat in a shared read, if there is one. Whoever loses the seat while
    /// standing in line takes another one, with all who lost theirs.
    async fn admitted(
        &self,
        blob: &Descriptor,
        from_start: bool,
    ) -> Result<(Option<Reader>, BodyPermit), Fault> {
        if !from_start {
            self.member.settled(&blob.digest);
        }
        loop {
            let reader = || {
                self.member
                    .reader(&blob.digest, blob.size, || self.opener(blob.clone(), None))
            };
            let reader = if from_start { reader() } else { None };
            let permit = self.permit(blob.size, reader.as_ref()).await?;
            if !reader.as_ref().is_some_and(Reader::is_lost) {
                return Ok((reader, permit));
            }
        }
    }

    /// One attempt from where the session stands to the end of the blob. Permits are held for its length only, not while
    /// waiting for the next.
    async fn send_once(
        &self,
        blob: &Descriptor,
        state: &mut UploadState,
        shown: &mut Option<Arc<ActiveBlob>>,
    ) -> Result<(), Fault> {
        let from_start = state.held == 0 && state.checkpoints.is_empty();
        let (reader, _permit) = self.admitted(blob, from_start).await?;
        let (sender, checkpoints) = mpsc::unbounded_channel();
        let progress = shown.get_or_insert_with(|| self.show(blob)).clone();
        let verified = self.verified(blob, state, reader, sender.clone(), progress);
        let start = state.held;
        state.held_before = start;
        let sent = self
            .send_body(blob, state, &verified, sender, checkpoints)
            .await;
        self.sent
            .fetch_add(verified.passed().saturating_sub(start), Ordering::Relaxed);
        state.passed = verified.passed();
        state.source_failed = verified.source_fault().is_some();
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
        state: &UploadState,
        reader: Option<Reader>,
        sender: mpsc::UnboundedSender<Checkpoint>,
        progress: Arc<ActiveBlob>,
    ) -> VerifiedBlob {
        let lane = |origin| Some(self.engine.limits.lane(origin));
        // What is read once is counted and paid for once.
        let reads = reader.as_ref().is_none_or(|reader| reader.is_first);
        let lanes = [
            lane(self.source.origin()).filter(|_| reads),
            lane(self.destination.origin())
                .filter(|_| self.source.origin() != self.destination.origin()),
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
            state.greatest_checkpoint(blob),
            state.held,
            self.opener(blob.clone(), reader),
            lanes,
            watchers,
        )
    }

    /// Opens the source at an offset, first of all by the seat in a shared read; opens it again with patience that starts
    /// anew whenever bytes have come.
    fn opener(&self, blob: Descriptor, mut reader: Option<Reader>) -> super::verify::Open {
        // What waits here holds the permit of a body.
        let settings = self.engine.settings.retry.holding();
        let (source, metrics) = (self.source.clone(), self.engine.metrics.clone());
        let (stop, lane) = (self.stop.clone(), self.engine.limits.lane(source.origin()));
        let rank = self.ticket.rank();
        let mut budget = Budget::new(settings);
        let mut last = None;
        Box::new(move |offset| {
            if let Some(reader) = reader.take() {
                last = Some(offset);
                return Box::pin(std::future::ready(Ok(BlobBody::new(reader))));
            }
            let wait = match last.replace(offset) {
                None => Some(Duration::ZERO),
                Some(before) => {
                    if before < offset {
                        budget.progress();
                    }
                    budget.next(Class::RETRYABLE)
                }
            };
            let (source, blob, metrics, mut budget) = (
                source.clone(),
                blob.clone(),
                metrics.clone(),
                budget.clone(),
            );
            let (stop, lane) = (stop.clone(), lane.clone());
            let opening: Opening = Box::pin(async move {
                let Some(mut wait) = wait else {
                    return Err(Fault::retryable(format!(
                        "{} breaks off again and again at byte {offset}",
                        source.address()
                    )));
                };
                loop {
                    stoppable(&stop.drain, tokio::time::sleep(wait)).await?;
                    budget.excuse(opened(&lane, Traffic::Blobs, &budget.left(), &stop).await?);
                    let errand = Errand::from(Traffic::Blobs).ranked(rank);
                    let asked = Instant::now();
                    let Ok(turn) = lane.turn_within(errand, settings.hinted).await else {
                        continue;
                    };
                    metrics.waited.request(asked);
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

    pub(super) async fn remember_blob(&self, blob: &Descriptor) {
        let (origin, repository) = (self.destination.origin(), self.destination.repository());
        self.engine
            .index
            .remember_blobs(origin, repository, vec![(blob.digest, blob.size)], false)
            .await;
    }

    pub(super) fn is_journalled(&self, blob: &Descriptor) -> bool {
        blob.size > self.engine.settings.bounds.checkpoint
    }

    /// Whether an upload of the blob that is left here can be gone on with later.
    pub(super) fn can_be_taken_up(&self, blob: &Descriptor) -> bool {
        self.is_journalled(blob) && self.destination.abilities().resume != Resume::Never
    }

    fn about(&self, blob: &Descriptor, fault: Fault) -> Fault {
        if fault.class() == Class::Cancelled {
            return fault;
        }
        let (from, to) = (self.source.registry(), self.destination.registry());
        fault.while_doing(format_args!(
            "{from} → {to}: blob {} of {}",
            blob.digest,
            self.source_reference()
        ))
    }
}
