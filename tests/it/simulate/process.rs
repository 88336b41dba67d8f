//! A process of the product, run in the simulated world: started, killed, stopped.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blobferry::endpoint::Source as _;
use blobferry::index::Index;
use blobferry::job::{self, Actor, Cause, Companions, Job, Key, Outcome, Progress, Seen, TagRules};
use blobferry::ledger::{Facts, Ledger};
use blobferry::transfer::limits::Settings as LaneSettings;
use blobferry::transfer::settle::Names;
use blobferry::transfer::{Engine, Limits, Metrics, Settings, Settle, Stop};
use futures::future::join_all;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::chance::{Chance, Draw};
use super::people::{name, place, tag};
use super::registry::Registry;
use super::trace::{Event, Place, Rules, Trace};

/// What a process is like: drawn once for a world.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Between two polls.
    pub poll: Duration,
    /// Requests at once to one registry.
    pub concurrency: Option<usize>,
}

impl Nature {
    /// Draws one.
    pub fn draw(draw: &mut Draw) -> Nature {
        let concurrency = draw.pick(&[None, None, Some(1), Some(2), Some(8)]);
        Nature { poll: Duration::from_secs(draw.pick(&[2, 10, 30, 60])), concurrency }
    }
}

/// What outlives a process.
pub struct Stores {
    index: Index,
    ledger: Ledger,
}

impl Stores {
    /// Empty ones.
    pub fn new() -> Stores {
        Stores { index: Index::in_memory(), ledger: Ledger::in_memory() }
    }
}

/// A running process.
pub struct Process {
    number: u32,
    trace: Trace,
    stop: Stop,
    idle: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Process {
    /// Starts one.
    pub fn start(
        number: u32,
        stores: &Stores,
        nature: &Nature,
        registries: &[Registry],
        routes: &[Rules],
        trace: &Trace,
        _chance: Chance,
    ) -> Process {
        trace.note(Event::Started { process: number, ledger: true });
        trace.note(Event::Configured { process: number, rules: routes.to_vec() });
        let metrics = Metrics::new(&prometheus::Registry::new()).expect("a fresh registry takes all");
        let limits = Limits::default();
        for registry in registries {
            limits.set(registry.origin(), LaneSettings { concurrency: nature.concurrency, ..LaneSettings::default() });
        }
        let (index, ledger) = (stores.index.clone(), stores.ledger.clone());
        let engine = Engine::new(Settings::default(), index, ledger, limits, metrics);
        let (stop, idle) = (Stop::default(), Arc::new(AtomicU64::new(0)));
        let poller = Poller {
            number,
            engine,
            registries: registries.to_vec(),
            routes: routes.to_vec(),
            trace: trace.clone(),
            stop: stop.clone(),
            idle: idle.clone(),
        };
        let poll = nature.poll;
        let task = tokio::spawn(async move {
            loop {
                poller.pass().await;
                tokio::time::sleep(poll).await;
            }
        });
        Process { number, trace: trace.clone(), stop, idle, task }
    }

    /// Ends it from one moment to the next; returns its number.
    pub async fn kill(self) -> u32 {
        self.trace.note(Event::Killed { process: self.number });
        self.task.abort();
        // The task is gone; how it ended says nothing.
        let _ = self.task.await;
        self.number
    }

    /// Lets it end; returns its number.
    pub async fn stop(self) -> u32 {
        self.stop.drain.cancel();
        self.task.abort();
        let _ = self.task.await;
        self.trace.note(Event::Stopped { process: self.number });
        self.number
    }

    /// Whether it has found nothing to do for a while.
    pub fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed) >= 3
    }
}

/// A simple stand-in for looks: runs a job for every tag that the rules take.
struct Poller {
    number: u32,
    engine: Engine,
    registries: Vec<Registry>,
    routes: Vec<Rules>,
    trace: Trace,
    stop: Stop,
    /// Passes in a row that found everything settled.
    idle: Arc<AtomicU64>,
}

impl Poller {
    async fn pass(&self) {
        let quiet = join_all(self.routes.iter().map(|rules| self.look(rules))).await;
        if quiet.into_iter().all(|quiet| quiet) {
            self.idle.fetch_add(1, Ordering::Relaxed);
        } else {
            self.idle.store(0, Ordering::Relaxed);
        }
    }

    fn registry(&self, name: &str) -> &Registry {
        self.registries.iter().find(|registry| **registry.name() == *name).expect("routes name registries that are there")
    }

    /// Whether there was nothing to do.
    async fn look(&self, rules: &Rules) -> bool {
        let source = self.registry(&rules.source.0);
        let from = name(&rules.source.1);
        let tags = source.tags(&from);
        let companions = tags.iter().filter(|tag| tag.travels_with_subject()).map(|tag| (tag.clone(), None)).collect();
        let companions = Companions::Listed(Arc::new(companions));
        let (mut quiet, mut refused) = (true, Arc::new(HashSet::new()));
        for moving in [false, true] {
            let taken = |tag: &&blobferry::oci::Tag| {
                !tag.travels_with_subject() && rules.takes(tag.as_str()) && rules.is_moving(tag.as_str()) == moving
            };
            let jobs = tags.iter().filter(taken).map(|tag| self.job(rules, tag.as_str(), companions.clone(), refused.clone()));
            let settled = join_all(jobs.map(|job| self.run(rules, job))).await;
            quiet &=
                settled.iter().all(|(result, _)| !matches!(result, Outcome::Promoted | Outcome::Failed | Outcome::Interrupted));
            let conflicts = settled.into_iter().filter(|(result, _)| *result == Outcome::Conflict).filter_map(|(_, digest)| digest);
            refused = Arc::new(conflicts.collect());
        }
        quiet
    }

    fn job(&self, rules: &Rules, called: &str, companions: Companions, refused: Arc<HashSet<blobferry::oci::Digest>>) -> Job {
        let destination = job::Place {
            origin: self.registry(&rules.destination.0).origin().clone(),
            repository: name(&rules.destination.1),
            tag: tag(called),
        };
        let key = Key { route: rules.route.clone(), source: name(&rules.source.1), tag: tag(called), destination };
        let rules = TagRules { moving: rules.is_moving(called), existing: rules.existing, drift: rules.drift };
        Job {
            key,
            rules,
            source: Seen::Unknown,
            destination: Seen::Unknown,
            seen_at: Instant::now(),
            look_began: Timestamp::now(),
            fresh: false,
            cause: Cause::Poll,
            actor: Actor::daemon(),
            explicit: false,
            pinned: None,
            expect: None,
            replace: None,
            dry_run: false,
            refused,
            pushed: None,
            companions,
            sequence: 0,
        }
    }

    async fn run(&self, rules: &Rules, job: Job) -> (Outcome, Option<blobferry::oci::Digest>) {
        let (from, to) = (self.registry(&rules.source.0), self.registry(&rules.destination.0));
        let source = from.repository(self.number, &job.key.source);
        let destination = to.repository(self.number, &job.key.destination.repository);
        let progress: Arc<Progress> = Arc::default();
        let ending = self.engine.run(&job, &source, &destination, &progress, &self.stop).await;
        let names = Names {
            source: format!("{}:{}", source.address(), job.key.tag),
            destination: format!("{}:{}", destination.address(), job.key.tag),
            registry: to.name().to_string(),
        };
        let settle = Settle { facts: Arc::new(Facts::default()), progress, listener: None };
        let settled = self.engine.settle(&settle, &job, &names, ending).await;
        let places: [Place; 2] =
            [place(from.name(), &job.key.source, &job.key.tag), place(to.name(), &job.key.destination.repository, &job.key.tag)];
        let [source, destination] = places;
        self.trace.note(Event::Settled {
            process: self.number,
            source,
            destination,
            result: settled.result,
            digest: settled.digest,
            error: settled.error.as_ref().map(|error| error.text.clone()),
        });
        (settled.result, settled.digest)
    }
}
