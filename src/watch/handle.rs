//! The handle of the watch: sends events, awaits results, and keeps the last passes.
//!
//! Passes share their looks. The stored passes are bounded in number and in bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::queue::interrupted;
use super::{Event, Reply, Scope};
use crate::clock;
use crate::job::{Actor, Cause, Look, Outcome, Report, Settled};
use crate::look::PassOptions;
use crate::status::{Board, Metrics};

/// Passes that are kept for `GET /v1/runs/ID`.
const REMEMBERED: usize = 256;
/// Bytes of looks that all kept passes hold; older passes keep only their totals.
const REMEMBERED_BYTES: usize = 16 << 20;

/// Sends events and follows passes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    events: mpsc::Sender<Event>,
    runs: Arc<Mutex<VecDeque<Run>>>,
    board: Board,
    metrics: Option<Metrics>,
}

/// A pass that was asked for.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name.
    pub id: String,
    /// Its looks.
    pub queued: usize,
    passed: watch::Receiver<Option<Passed>>,
    /// Whether only its totals are kept.
    brief: bool,
}

impl Run {
    /// The report, once all looks have settled.
    pub fn report(&self) -> Option<Arc<Report>> {
        self.passed
            .borrow()
            .as_ref()
            .map(|passed| Arc::new(passed.report(&self.id, !self.brief)))
    }
}

/// A pass that was asked for just now.
#[derive(Debug)]
pub struct Ticket {
    /// The pass.
    pub run: Run,
}

impl Ticket {
    /// Waits until all looks have settled. `None`: the daemon stopped before that.
    pub async fn settled(mut self) -> Option<Arc<Report>> {
        self.run.passed.wait_for(Option::is_some).await.ok()?;
        self.run.report()
    }
}

/// The daemon takes no events: it drains, or its event queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// It is draining.
    #[error("the daemon is stopping")]
    Draining,
    /// Too many events at once.
    #[error("too many events are waiting; try again in a moment")]
    Full,
}

impl Handle {
    /// A handle that sends events to `events`.
    pub fn new(events: mpsc::Sender<Event>, board: Board) -> Handle {
        Handle {
            events,
            runs: Arc::default(),
            board,
            metrics: None,
        }
    }

    /// Counts rejected events.
    pub fn counted_by(self, metrics: Metrics) -> Handle {
        Handle {
            metrics: Some(metrics),
            ..self
        }
    }

    /// The board.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Counts an invalid event.
    pub fn count(&self, cause: Cause, result: &str) {
        if let Some(metrics) = &self.metrics {
            metrics.event(cause, result);
        }
    }

    /// Sends an event. Returns once its looks are queued. The pass continues when the ticket is
    /// dropped.
    ///
    /// # Errors
    /// [`Busy`], and then nothing was queued.
    pub async fn ask(
        &self,
        scope: Scope,
        cause: Cause,
        actor: Actor,
        options: PassOptions,
    ) -> Result<Ticket, Busy> {
        let asked = self.send(scope, cause, actor, options).await;
        if let (Err(_), Some(metrics)) = (&asked, &self.metrics) {
            metrics.event(cause, "limited");
        }
        asked
    }

    async fn send(
        &self,
        scope: Scope,
        cause: Cause,
        actor: Actor,
        options: PassOptions,
    ) -> Result<Ticket, Busy> {
        let (queued, queued_count) = oneshot::channel();
        let (looks, settled) = mpsc::unbounded_channel();
        let (started, id, received) = (clock::now(), run_id(), Instant::now());
        let event = Event {
            scope,
            cause,
            actor,
            run_id: id.clone(),
            received,
            options,
            reply: Some(Reply { queued, looks }),
        };
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Busy::Full,
            mpsc::error::TrySendError::Closed(_) => Busy::Draining,
        })?;
        let queued = queued_count.await.map_err(|_| Busy::Draining)?;
        let (passed, receiver) = watch::channel(None);
        let run = Run {
            id,
            queued,
            passed: receiver,
            brief: false,
        };
        self.remember(run.clone());
        let (handle, blank) = (self.clone(), Passed::begun(started, options.all));
        tokio::spawn(async move {
            // The pass is no longer kept, and its ticket is dropped.
            tokio::select! {
                biased;
                done = blank.follow(settled, queued, received) => {
                    passed.send_replace(Some(done));
                    handle.make_room();
                }
                () = passed.closed() => {}
            }
        });
        Ok(Ticket { run })
    }

    /// A recent pass.
    pub fn run(&self, id: &str) -> Option<Run> {
        self.runs
            .lock()
            .expect("no panic while listing")
            .iter()
            .find(|run| run.id == id)
            .cloned()
    }

    fn remember(&self, run: Run) {
        let mut runs = self.runs.lock().expect("no panic while listing");
        runs.push_back(run);
        if runs.len() > REMEMBERED {
            runs.pop_front();
        }
    }

    /// Drops the looks of older passes beyond the bound. A look shared by two passes counts once.
    fn make_room(&self) {
        let mut runs = self.runs.lock().expect("no panic while listing");
        let mut counted = std::collections::HashSet::new();
        let mut bytes = 0;
        for run in runs.iter_mut().rev().filter(|run| !run.brief) {
            let Some(brief) = run.passed.borrow().as_ref().and_then(|passed| {
                let news = passed
                    .looks
                    .iter()
                    .filter(|look| counted.insert(Arc::as_ptr(look)));
                bytes += news.map(|look| weight(look)).sum::<usize>();
                (bytes > REMEMBERED_BYTES).then(|| passed.brief(&run.id))
            }) else {
                continue;
            };
            run.passed = watch::channel(Some(brief)).1;
            run.brief = true;
        }
    }
}

/// The results of a pass. Looks are shared with other passes.
#[derive(Clone, Debug)]
struct Passed {
    started: Timestamp,
    duration: Duration,
    /// Whether the report lists tags that are up to date.
    all: bool,
    /// Looks with changes or trouble.
    looks: Vec<Arc<Look>>,
    /// All the others in one.
    rest: Look,
    /// The totals of a pass without its looks.
    exit_code: Option<u8>,
}

impl Passed {
    fn begun(started: Timestamp, all: bool) -> Passed {
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
    async fn follow(
        mut self,
        mut settled: mpsc::UnboundedReceiver<Arc<Look>>,
        queued: usize,
        received: Instant,
    ) -> Passed {
        let mut count = 0;
        while count < queued {
            let Some(look) = settled.recv().await else {
                self.take(Arc::new(interrupted()));
                break;
            };
            self.take(look);
            count += 1;
        }
        self.duration = received.elapsed();
        self
    }

    fn take(&mut self, look: Arc<Look>) {
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
    fn report(&self, id: &str, whole: bool) -> Report {
        let listed = |job: &&Settled| whole && (self.all || job.result != Outcome::UpToDate);
        let own = |look: &Arc<Look>| Look {
            jobs: look.jobs.iter().filter(listed).cloned().collect(),
            totals: look.totals,
            trouble: look.trouble.clone(),
            found: look.found,
            named: look.named.clone(),
        };
        let looks = self.looks.iter().map(own).chain([self.rest.clone()]);
        let report = Report::new(id, self.started, self.duration, looks);
        Report {
            exit_code: self.exit_code.unwrap_or(report.exit_code),
            ..report
        }
    }

    /// The totals and the exit code alone.
    fn brief(&self, id: &str) -> Passed {
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
fn weight(look: &Look) -> usize {
    let job = |job: &Settled| {
        let texts = job.route.len() + job.source.len() + job.destination.len();
        let said = job
            .reasons
            .iter()
            .map(|reason| reason.len() + 24)
            .sum::<usize>();
        size_of::<Settled>()
            + texts
            + said
            + job
                .error
                .as_ref()
                .map_or(0, |error| error.text.len() + error.class.len())
    };
    let trouble = look
        .trouble
        .iter()
        .map(|trouble| trouble.text.len() + 64)
        .sum::<usize>();
    size_of::<Look>() + trouble + look.jobs.iter().map(job).sum::<usize>()
}

/// A name for a pass: 16 random hexadecimal characters.
pub fn run_id() -> String {
    crate::random::name()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Totals;

    fn job(result: Outcome, text: usize) -> Settled {
        Settled {
            route: "app".into(),
            source: "s/app:v1".into(),
            destination: "p/app:v1".into(),
            digest: None,
            previous_digest: None,
            cause: Cause::Ping,
            actor: Actor::daemon(),
            result,
            reasons: vec!["x".repeat(text)],
            error: None,
            failure: None,
            blobs: Default::default(),
            referrers: Default::default(),
            bytes_sent: 0,
            bytes_spared: 0,
            requests: 0,
            duration_seconds: 0.0,
            unguarded: false,
            expired: false,
            gates: Vec::new(),
        }
    }

    fn look(results: &[Outcome], text: usize) -> Arc<Look> {
        let mut totals = Totals::default();
        results.iter().for_each(|result| totals.add(*result));
        Arc::new(Look {
            jobs: results.iter().map(|result| job(*result, text)).collect(),
            totals,
            found: true,
            ..Look::default()
        })
    }

    async fn asked(
        handle: &Handle,
        events: &mut mpsc::Receiver<Event>,
        all: bool,
        queued: usize,
    ) -> (Ticket, Reply) {
        let options = PassOptions {
            all,
            ..PassOptions::default()
        };
        let (ticket, looks) = tokio::join!(
            handle.ask(Scope::default(), Cause::Ping, Actor::daemon(), options),
            async {
                let reply = events.recv().await.unwrap().reply.unwrap();
                let _ = reply.queued.send(queued);
                reply.looks
            }
        );
        (
            ticket.unwrap(),
            Reply {
                queued: oneshot::channel().0,
                looks,
            },
        )
    }

    #[tokio::test]
    async fn a_pass_that_was_given_up_is_interrupted() {
        let (sender, mut events) = mpsc::channel(8);
        let handle = Handle::new(sender, Board::default());
        let (ticket, reply) = asked(&handle, &mut events, false, 2).await;
        reply.looks.send(look(&[Outcome::Promoted], 0)).unwrap();
        drop(reply);
        let report = ticket.settled().await.unwrap();
        assert_eq!(
            (
                report.exit_code,
                report.totals.promoted,
                report.totals.interrupted
            ),
            (130, 1, 1)
        );
    }

    #[tokio::test]
    async fn only_who_asked_for_all_reads_of_all() {
        let (sender, mut events) = mpsc::channel(8);
        let handle = Handle::new(sender, Board::default());
        let shared = look(&[Outcome::Promoted, Outcome::UpToDate], 0);
        for (all, listed) in [(true, 2), (false, 1)] {
            let (ticket, reply) = asked(&handle, &mut events, all, 1).await;
            reply.looks.send(shared.clone()).unwrap();
            let report = ticket.settled().await.unwrap();
            assert_eq!((report.jobs.len(), report.totals.up_to_date), (listed, 1));
        }
    }

    #[tokio::test]
    async fn old_passes_keep_their_totals_when_room_is_short() {
        let (sender, mut events) = mpsc::channel(8);
        let handle = Handle::new(sender, Board::default());
        let large = 3 * REMEMBERED_BYTES / 5;
        let shared = look(&[Outcome::Conflict], large);
        let mut ids = Vec::new();
        for shown in [look(&[Outcome::Conflict], large), shared.clone(), shared] {
            let (ticket, reply) = asked(&handle, &mut events, false, 1).await;
            ids.push(ticket.run.id.clone());
            reply.looks.send(shown).unwrap();
            ticket.settled().await.unwrap();
            tokio::task::yield_now().await;
        }
        let reports: Vec<_> = ids
            .iter()
            .map(|id| handle.run(id).unwrap().report().unwrap())
            .collect();
        assert_eq!(
            reports
                .iter()
                .map(|report| report.jobs.len())
                .collect::<Vec<_>>(),
            [0, 1, 1],
            "what is shared counts once"
        );
        assert!(
            reports
                .iter()
                .all(|report| report.exit_code == 4 && report.totals.conflict == 1)
        );
    }

    #[tokio::test]
    async fn a_pass_that_nobody_can_read_of_is_not_followed() {
        let (sender, mut events) = mpsc::channel(8);
        let handle = Handle::new(sender, Board::default());
        let (ticket, first) = asked(&handle, &mut events, false, 1).await;
        drop(ticket);
        for _ in 0..REMEMBERED {
            drop(asked(&handle, &mut events, false, 1).await);
        }
        first.looks.closed().await;
    }
}
