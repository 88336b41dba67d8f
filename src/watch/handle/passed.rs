//! The results of a pass.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::job::{Look, Outcome, Report, Settled};

/// The results of a pass. Looks are shared with other passes.
#[derive(Clone, Debug)]
pub(super) struct Passed {
    pub(super) started: Timestamp,
    pub(super) duration: Duration,
    /// Whether the report lists tags that are up to date.
    pub(super) all: bool,
    /// Looks with changes or trouble.
    pub(super) looks: Vec<Arc<Look>>,
    /// All the others in one.
    pub(super) rest: Look,
    /// The totals of a pass without its looks.
    pub(super) exit_code: Option<u8>,
}

impl Passed {
    pub(super) fn begun(started: Timestamp, all: bool) -> Passed {
        Passed {
            started,
            duration: Duration::ZERO,
            all,
            looks: Vec::new(),
            rest: Look::default(),
            exit_code: None,
        }
    }

    /// Adds the looks of a pass. Fewer than queued: the daemon gave them up.
    pub(super) async fn follow(
        mut self,
        mut settled: mpsc::UnboundedReceiver<Arc<Look>>,
        queued: usize,
        received: Instant,
    ) -> Passed {
        let mut count = 0;
        while count < queued {
            let Some(look) = settled.recv().await else {
                self.take(Arc::new(Look::interrupted()));
                break;
            };
            self.take(look);
            count += 1;
        }
        self.duration = received.elapsed();
        self
    }

    pub(super) fn take(&mut self, look: Arc<Look>) {
        if look.jobs.is_empty() && look.trouble.is_empty() {
            self.rest.totals.merge(&look.totals);
            self.rest.found |= look.found;
            self.rest.named.extend(look.named.iter().cloned());
        } else {
            self.looks.push(look);
        }
    }

    /// The report. It lists tags that are up to date only if this pass asked for them, even if a
    /// shared look has them.
    pub(super) fn report(&self, id: &str, whole: bool) -> Report {
        let looks = self
            .looks
            .iter()
            .map(|look| self.listed(look, whole))
            .chain([self.rest.clone()]);
        let report = Report::new(id, self.started, self.duration, looks);
        Report {
            exit_code: self.exit_code.unwrap_or(report.exit_code),
            ..report
        }
    }

    /// A look with the jobs that the report lists.
    fn listed(&self, look: &Look, whole: bool) -> Look {
        let jobs = look
            .jobs
            .iter()
            .filter(|job| whole && (self.all || job.result != Outcome::UpToDate));
        Look {
            jobs: jobs.cloned().collect(),
            totals: look.totals,
            trouble: look.trouble.clone(),
            sight: look.sight,
            found: look.found,
            named: look.named.clone(),
        }
    }

    /// The totals and the exit code alone.
    pub(super) fn brief(&self, id: &str) -> Passed {
        let report = self.report(id, true);
        let rest = Look {
            totals: report.totals,
            found: true,
            ..Look::default()
        };
        Passed {
            looks: Vec::new(),
            rest,
            exit_code: Some(report.exit_code),
            ..*self
        }
    }
}

/// The approximate size of a look in bytes.
pub(super) fn weight(look: &Look) -> usize {
    let trouble = look
        .trouble
        .iter()
        .map(|trouble| trouble.text.len() + 64)
        .sum::<usize>();
    size_of::<Look>() + trouble + look.jobs.iter().map(job_weight).sum::<usize>()
}

fn job_weight(job: &Settled) -> usize {
    let names = job.route.len() + job.source.len() + job.destination.len();
    let reasons = job.reasons.iter().map(|reason| reason.len() + 24);
    let error = job.error.as_ref().map_or(0, |error| error.text.len());
    size_of::<Settled>() + names + reasons.sum::<usize>() + error
}
