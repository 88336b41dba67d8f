//! Reads a blob from its source: again wherever it breaks off, and over further connections where one
//! is slow.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::admission::{Admission, ReadingPermit};
use super::limits::{RegistryLimiter, RequestClass, RequestPriority};
use super::opening::{Open, Opening};
use super::read_ahead::{AheadBudget, Connection, OpenPart, PartOpening, ReadAhead};
use super::retry::{Retry, RetryState, Stop, stoppable};
use super::{Metrics, Promotion, bounds, read_ahead};
use crate::endpoint::{BlobBody, Destination, Source};
use crate::fault::Fault;
use crate::oci::Descriptor;

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Opens the source at an offset. It is opened again whenever it breaks off; bytes that have
    /// come in between are progress. `last`: where it was opened before. `may_be_parted`: whether
    /// parts of it may be read.
    pub(super) fn opener(
        &self,
        blob: Descriptor,
        mut last: Option<u64>,
        may_be_parted: Arc<AtomicBool>,
    ) -> Open {
        // What waits here holds the permit of a body.
        let state = RetryState::new(self.engine.settings.retry.holding());
        let state = Arc::new(Mutex::new(state));
        let reading = self.blob_reading(blob);
        Box::new(move |offset| {
            let before = last.replace(offset);
            let (reading, state) = (reading.clone(), state.clone());
            let may_be_parted = may_be_parted.clone();
            let opening: Opening = Box::pin(async move {
                let body = reading.opened(&state, before, offset).await?;
                Ok(reading.read_ahead(body, offset, may_be_parted))
            });
            opening
        })
    }

    fn blob_reading(&self, blob: Descriptor) -> BlobReading<S> {
        BlobReading {
            limiter: self.engine.limits.of(self.source.origin()),
            source: self.source.clone(),
            blob,
            metrics: self.engine.metrics.clone(),
            stop: self.stop.clone(),
            priority: RequestPriority::from(RequestClass::Blobs).of_job(&self.ticket),
            admission: self.engine.limits.admission().clone(),
            budget: self.engine.ahead.clone(),
            bounds: self.engine.settings.bounds.read_ahead,
        }
    }
}

/// All that it takes to read a blob, also on another thread. Cheap to clone.
#[derive(Clone)]
struct BlobReading<S> {
    source: S,
    blob: Descriptor,
    limiter: Arc<RegistryLimiter>,
    metrics: Metrics,
    stop: Stop,
    priority: RequestPriority,
    admission: Admission,
    budget: AheadBudget,
    bounds: bounds::ReadAhead,
}

impl<S: Source> BlobReading<S> {
    /// The bytes from `offset` on. `before`: where the source was opened last.
    async fn opened(
        &self,
        state: &Mutex<RetryState>,
        before: Option<u64>,
        offset: u64,
    ) -> Result<BlobBody, Fault> {
        let source = &self.source;
        let reads = Retry {
            metrics: &self.metrics,
            limiter: &self.limiter,
            registry: source.registry(),
            priority: self.priority,
            stop: &self.stop,
        };
        let mut tried = lock(state).clone();
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
            .send(&mut tried, || source.read_blob(&self.blob, offset))
            .await;
        *lock(state) = tried;
        read?.ok_or_else(|| {
            Fault::not_found(format!(
                "{} lists it but does not have it; push the image again",
                source.address()
            ))
        })
    }

    /// The body, which reads ahead over further connections where that makes it faster.
    fn read_ahead(self, body: BlobBody, offset: u64, may_be_parted: Arc<AtomicBool>) -> BlobBody {
        let bounds = self.bounds;
        let is_long = self.blob.size - offset > read_ahead::LEAST_PARTS * bounds.part;
        if bounds.connections < 2 || !is_long || !may_be_parted.load(Ordering::Relaxed) {
            return body;
        }
        let (size, budget) = (self.blob.size, self.budget.clone());
        let open: OpenPart = Box::new(move |part, connection| self.clone().part(part, connection));
        ReadAhead::new(body, offset, size, open, budget, bounds, may_be_parted).body()
    }

    /// The right to a further connection, if its request would go at once and no body waits.
    fn further_connection(&self) -> Option<ReadingPermit> {
        let goes_at_once = self.limiter.admitted_in(RequestClass::Blobs).is_zero();
        goes_at_once.then(|| self.admission.read_ahead(self.source.origin()))?
    }

    /// Opens a part. `None`: no further connection may be opened now.
    fn part(self, part: Range<u64>, connection: Connection) -> Option<PartOpening> {
        let permit = match connection {
            Connection::Own => None,
            Connection::Extra => Some(self.further_connection()?),
        };
        let opening: Opening = Box::pin(async move {
            let abort = &self.stop.abort;
            let permit = stoppable(abort, self.limiter.acquire(self.priority)).await?;
            let read = stoppable(abort, self.source.read_part(&self.blob, part)).await?;
            self.metrics
                .rate_limited(self.source.registry(), permit.record(&read));
            read?.ok_or_else(|| Fault::rejected("it cannot be read in parts"))
        });
        Some(PartOpening { opening, permit })
    }
}

fn lock(state: &Mutex<RetryState>) -> MutexGuard<'_, RetryState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
