//! The findings of a registry's own scanner, read page by page beside the jobs.
//!
//! A list may have a thousand pages, and each may take long: one deadline holds for all of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Engine;
use super::limits::{RegistryLimiter, RequestClass, RequestPriority};
use super::metrics::Metrics;
use super::retry::{self, Retry, RetryState, Stop, stoppable};
use crate::endpoint::{Cursor, Origin, ScanAnswer, Source};
use crate::fault::Fault;
use crate::gate::TimeFacts;
use crate::gate::scan::{Findings, Reading};
use crate::job::{Judgement, Rank, Scan};
use crate::ledger::Ledger;
use crate::oci::Digest;

/// Longest time for all pages of an image and its platforms.
const LONGEST: Duration = Duration::from_secs(300);

/// What of the engine a reading needs.
pub(super) struct Access {
    ledger: Ledger,
    metrics: Metrics,
    limiter: Arc<RegistryLimiter>,
    /// Without long waits for the registry's time.
    retries: retry::Settings,
    /// How urgent the job is that asked first. The reading outlives the job's ticket.
    rank: Rank,
}

impl Access {
    /// Of a registry.
    pub(super) fn of(engine: &Engine, origin: &Origin, rank: Rank) -> Access {
        let settings = engine.settings.retry;
        Access {
            ledger: engine.ledger.clone(),
            metrics: engine.metrics.clone(),
            limiter: engine.limits.of(origin),
            retries: settings.holding(),
            rank,
        }
    }

    fn page_priority(&self) -> RequestPriority {
        RequestPriority::from(RequestClass::Listing).ranked(self.rank)
    }
}

/// Reads what a scanner has found in an image, or in the platforms of an index.
pub(super) struct FindingsReader<R> {
    pub(super) access: Access,
    pub(super) repository: R,
    pub(super) stop: Stop,
    pub(super) gate: Scan,
    pub(super) time: TimeFacts,
    /// What the gate judges.
    pub(super) digest: Digest,
    /// What a scanner knows of it.
    pub(super) images: Vec<Digest>,
    /// Whether it is recorded when a scan is first asked for, and is not there.
    pub(super) is_recorded: bool,
}

impl<R: Source> FindingsReader<R> {
    /// The verdict. A list that does not end in time counts as a scan that is not there yet.
    pub(super) async fn judge(self) -> Result<Judgement, Fault> {
        let mut findings = Findings::new(&self.gate, self.time);
        let reading = timeout(LONGEST, self.read(&mut findings));
        match stoppable(&self.stop.drain, reading).await? {
            Ok(read) => read?,
            Err(_) => {
                let seconds = LONGEST.as_secs();
                let why = format!("its findings could not be read within {seconds} s");
                findings.add(self.digest, "", ScanAnswer::Pending(why));
            }
        }
        let since = match findings.is_pending() {
            true => self.awaited().await?,
            false => None,
        };
        Ok(findings.judge(since))
    }

    async fn read(&self, findings: &mut Findings<'_>) -> Result<(), Fault> {
        for image in &self.images {
            if self.read_image(*image, findings).await? {
                break;
            }
        }
        Ok(())
    }

    /// Reads the findings of one image. Returns whether no more are to be read.
    async fn read_image(&self, image: Digest, findings: &mut Findings<'_>) -> Result<bool, Fault> {
        let mut cursor = None;
        loop {
            let answer = self.page(image, cursor).await?;
            match findings.add(image, self.repository.registry(), answer) {
                Reading::Page(next) => cursor = Some(next),
                Reading::Image => return Ok(false),
                Reading::Done => return Ok(true),
            }
        }
    }

    async fn page(&self, image: Digest, cursor: Option<Cursor>) -> Result<ScanAnswer, Fault> {
        let retry = Retry {
            metrics: &self.access.metrics,
            limiter: &self.access.limiter,
            registry: self.repository.registry(),
            priority: self.access.page_priority(),
            stop: &self.stop,
        };
        let mut state = RetryState::new(self.access.retries);
        let page = || self.repository.scan_findings(&image, cursor.as_ref());
        retry.send(&mut state, page).await
    }

    /// When the scan was first asked for, and was not there.
    async fn awaited(&self) -> Result<Option<jiff::Timestamp>, Fault> {
        let (origin, repository) = (self.repository.origin(), self.repository.repository());
        let ledger = &self.access.ledger;
        ledger
            .scan_awaited(origin, repository, &self.digest, self.is_recorded)
            .await
    }
}
