//! A process of the product, run in the simulated world: the watch with its queue, looks, engine,
//! index and ledger. It can be killed, stopped, started again on what it left behind, and given
//! another config.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blobferry::decision::{Decision, Kind, Target};
use blobferry::endpoint::{Create, Cursor, Origin, Page, Repositories, Source as _};
use blobferry::fault::Fault;
use blobferry::gate::http::Service;
use blobferry::index::Index;
use blobferry::job::{
    Actor, Cause, Companions, Job, Key, LONG_WAIT, ObservedVia, Outcome, Rank, TagId, TagRules,
    TagState,
};
use blobferry::ledger::{Content, Ledger, Query, Row, RunFacts};
use blobferry::look::PassOptions;
use blobferry::look::topology;
use blobferry::look::topology::Intervals;
use blobferry::oci::{Digest, RepositoryName, Tag};
use blobferry::route::rules::{Selection, TagRule};
use blobferry::route::{Mode, Naming, Pattern, Route, Routes, Template};
use blobferry::set::Set;
use blobferry::sqlite::{Behaviour, Disk, QueueKind};
use blobferry::status;
use blobferry::status::Board;
use blobferry::status::board::Status;
use blobferry::transfer::limits::Settings as LaneSettings;
use blobferry::transfer::sets::CurrentSets;
use blobferry::transfer::settle::Names;
use blobferry::transfer::{self, Bounds, Engine, Limits, Settle, SharedReads, Stop};
use blobferry::watch::{Handle, Scope, Watch};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::chance::{Chance, Draw};
use super::guards::{Accept, Covers, Guarded, TornSet};
use super::notices::Notice;
use super::registry::{Registry, Repository};
use super::trace::{BACKUP, Event, Place, Rules, Trace};

/// How often the rows of the ledger are read into the trace.
const READ: Duration = Duration::from_secs(1);
/// A row is written at most so many readings after the last that the trace saw of its job.
const READINGS: u32 = 4;

/// What a process is like: drawn once for a world.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Between two polls.
    pub poll: Duration,
    /// Between two looks that ask production itself.
    pub verify: Duration,
    /// Requests at once to one registry.
    pub concurrency: Option<usize>,
    /// How much at once.
    pub bounds: Bounds,
    /// How much the watch does at once.
    pub watch: topology::Settings,
}

impl Nature {
    /// What the program runs with.
    pub fn usual() -> Nature {
        Nature {
            poll: Duration::from_secs(60),
            verify: Duration::from_secs(3600),
            concurrency: None,
            bounds: Bounds::default(),
            watch: topology::Settings::default(),
        }
    }

    /// Draws one.
    pub fn draw(draw: &mut Draw) -> Nature {
        let mut nature = Nature::usual();
        nature.poll = Duration::from_secs(draw.pick(&[5, 10, 20, 60]));
        nature.verify = nature.poll * draw.pick(&[1, 3, 10]);
        nature.concurrency = draw.pick(&[None, None, Some(1), Some(2), Some(8)]);
        nature
    }

    /// The same, with bounds drawn as well: small ones are where queues form.
    pub fn bounded(self, draw: &mut Draw) -> Nature {
        let frame = 32 * 1024;
        let window = draw.pick(&[1, 2 * frame, 8 << 20]);
        let shared_reads = SharedReads {
            window,
            all_windows: window * draw.pick(&[1, 2, 4]),
            linger: draw.pick(&[1, frame, 4 << 20]),
            grace: draw.millis(0, 2000),
        };
        let bounds = Bounds {
            children: draw.pick(&[1, 2, 8]),
            blobs: draw.pick(&[1, 2, 16]),
            manifests: draw.pick(&[1, 8]),
            referrers: draw.pick(&[1, 4]),
            checkpoint: draw.pick(&[500, 20_000, 8 << 20]),
            worth_waiting: draw.pick(&[0, 2_000, 1 << 20]),
            shared_reads,
            ..Bounds::default()
        };
        let looks = draw.pick(&[1, 2, 4, 16]);
        let reserved = draw.below(looks as u64 / 2 + 1) as usize;
        let watch = topology::Settings {
            looks,
            reserved,
            tags: draw.pick(&[1, 3, 64]),
            events: draw.pick(&[1, 4, 256]),
        };
        Nature {
            bounds,
            watch,
            ..self
        }
    }
}

/// What outlives a process: its disks.
pub struct Stores {
    index: Disk,
    ledger: Disk,
    chance: Chance,
    slow: bool,
    /// Milliseconds that each write takes at least.
    writes_take: Arc<AtomicU64>,
    /// The newest row of the ledger that is in the trace.
    read: Arc<Mutex<u64>>,
    /// No state was lost since the last process started.
    is_kept: AtomicBool,
}

impl Stores {
    /// Empty ones.
    pub fn new(chance: Chance, slow: bool) -> Stores {
        let writes_take = Arc::<AtomicU64>::default();
        let disk = |name| {
            let writes_take = writes_take.clone();
            Disk::new(Platter {
                name,
                chance,
                slow,
                writes_take,
            })
        };
        Stores {
            index: disk("index"),
            ledger: disk("ledger"),
            chance,
            slow,
            writes_take,
            read: Arc::default(),
            is_kept: AtomicBool::new(true),
        }
    }

    /// From now on each write takes so long.
    pub fn slow_down(&self, writes_take: Duration) {
        let millis = writes_take.as_millis() as u64;
        self.writes_take.store(millis, Ordering::Relaxed);
    }

    /// Somebody deletes the state folder.
    pub fn lose(&mut self) {
        *self = Stores {
            is_kept: AtomicBool::new(false),
            ..Stores::new(self.chance, self.slow)
        };
    }

    /// The power fails while no process runs: the index goes back to what was synced.
    pub fn cut_power(&self) {
        self.index.cut_power();
        self.ledger.cut_power();
    }
}

/// How a simulated disk behaves.
struct Platter {
    name: &'static str,
    chance: Chance,
    slow: bool,
    writes_take: Arc<AtomicU64>,
}

impl Behaviour for Platter {
    fn delay(&self, queue_kind: QueueKind, number: u64) -> Duration {
        if queue_kind == QueueKind::Write {
            let least = self.writes_take.load(Ordering::Relaxed);
            if least > 0 {
                return Duration::from_millis(least);
            }
        }
        if !self.slow {
            return Duration::ZERO;
        }
        let most = if queue_kind == QueueKind::Write {
            300
        } else {
            20
        };
        self.chance
            .of((self.name, queue_kind, number))
            .millis(0, most)
    }

    fn is_synced(&self, number: u64) -> bool {
        self.chance.of((self.name, "synced", number)).percent(10)
    }
}

/// What a process is started with.
pub struct Setting<'a> {
    pub stores: &'a Stores,
    pub nature: Nature,
    pub registries: &'a [Registry],
    pub routes: &'a [Rules],
    pub trace: &'a Trace,
    /// What gates ask.
    pub gate_service: Option<Arc<dyn Service>>,
}

/// The registries as one process sees them.
#[derive(Clone)]
pub struct Backend {
    registry: Registry,
    process: u32,
}

impl Repositories for Backend {
    type Repository = Repository;

    fn name(&self) -> &str {
        self.registry.name()
    }

    fn origin(&self) -> &Origin {
        self.registry.origin()
    }

    fn repository(&self, name: RepositoryName) -> Repository {
        self.registry.repository(self.process, &name)
    }

    async fn repositories(
        &self,
        _cursor: Option<&Cursor>,
    ) -> Result<Option<Page<RepositoryName>>, Fault> {
        Ok(Some(Page {
            entries: self.registry.repositories(),
            invalid: 0,
            next: None,
        }))
    }
}

/// A running process.
pub struct Process {
    number: u32,
    trace: Trace,
    stop: Stop,
    handle: Handle,
    board: Board,
    watch: JoinHandle<()>,
    disks: JoinHandle<()>,
    reader: JoinHandle<()>,
    ledger: Ledger,
    read: Arc<Mutex<u64>>,
    topology: channel::Sender<Arc<topology::Topology<Backend>>>,
    /// What people have ordered of it.
    orders: Mutex<Vec<JoinHandle<()>>>,
}

impl Process {
    /// Starts one.
    pub fn start(number: u32, setting: &Setting<'_>) -> Process {
        let Setting { stores, trace, .. } = setting;
        trace.note(Event::Started {
            process: number,
            ledger: stores.is_kept.swap(true, Ordering::Relaxed),
        });
        trace.note(Event::Configured {
            process: number,
            rules: setting.routes.to_vec(),
        });
        let (index, index_served) = Index::on_disk(&stores.index);
        let (ledger, ledger_served) = Ledger::on_disk(&stores.ledger);
        let disks = tokio::spawn(async move {
            tokio::join!(index_served, ledger_served);
        });
        let (sender, receiver) =
            channel::channel(Arc::new(world(number, setting, index, ledger.clone())));
        let (events, received) = mpsc::channel(64);
        let (board, stop) = (Board::default(), Stop::default());
        let watch = tokio::spawn(Watch::new(receiver, board.clone(), stop.clone()).run(received));
        let read = stores.read.clone();
        let reader = tokio::spawn(read_rows(
            number,
            ledger.clone(),
            read.clone(),
            (*trace).clone(),
        ));
        let handle = Handle::new(events, board.clone());
        Process {
            number,
            trace: (*trace).clone(),
            stop,
            handle,
            board,
            watch,
            disks,
            reader,
            ledger,
            read,
            topology: sender,
            orders: Mutex::default(),
        }
    }

    /// Which one it is.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What it shows of itself.
    pub fn status(&self) -> Status {
        self.board.snapshot()
    }

    /// Its engine.
    pub fn engine(&self) -> Engine {
        self.topology.borrow().engine.clone()
    }

    /// Goes by other routes from now on.
    pub fn reload(&self, rules: &[Rules]) {
        let before = self.topology.borrow().clone();
        let routes = routes(rules);
        let goes_on = |route: &Route| {
            let now = routes.named(&route.name);
            now.is_some_and(|now| holds_still(route, now))
        };
        let (kept, gone): (Vec<&Route>, Vec<&Route>) =
            before.routes.0.iter().partition(|route| goes_on(route));
        let token = |route: &&Route| before.withdrawn.get(&route.name).cloned();
        gone.iter()
            .filter_map(token)
            .for_each(|token| token.cancel());
        let mut withdrawn: BTreeMap<Arc<str>, CancellationToken> = BTreeMap::new();
        for route in &routes.0 {
            let kept = kept.iter().find(|kept| kept.name == route.name);
            let token = kept.and_then(token).unwrap_or_default();
            withdrawn.insert(route.name.clone(), token);
            before.metrics.prepare(route);
        }
        before.metrics.retain_routes(&routes);
        self.trace.note(Event::Configured {
            process: self.number,
            rules: rules.to_vec(),
        });
        let members = topology::members_of(&sets(rules), &routes, &before.backends);
        self.topology.send_replace(Arc::new(topology::Topology {
            backends: before.backends.clone(),
            routes,
            sets: Arc::new(members),
            engine: before.engine.clone(),
            metrics: before.metrics.clone(),
            facts: before.facts.clone(),
            intervals: before.intervals,
            settings: before.settings,
            withdrawn,
        }));
    }

    /// Asks for a look, as a person or a notification does; what comes of it is not waited for.
    pub fn ask(&self, scope: Scope, cause: Cause) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            // A process that is gone, or has too many events, does not look: nothing is promised
            // then.
            let _ = handle
                .ask(scope, cause, Actor::daemon(), PassOptions::default())
                .await;
        });
    }

    /// Tells it of a push, after a while. A notification that nothing takes is lost.
    pub fn notify(&self, notice: Notice) {
        let (handle, trace) = (self.handle.clone(), self.trace.clone());
        tokio::spawn(async move {
            tokio::time::sleep(notice.delay).await;
            trace.note(Event::Notified);
            let _ = handle
                .notify(
                    &notice.notifier,
                    Cause::Webhook,
                    "receiver:sim",
                    notice.push,
                )
                .await;
        });
    }

    /// Decides, as a person does through the daemon; what comes of it is not waited for.
    pub fn decide(&self, number: u64, covers: Covers) {
        let ledger = self.ledger.clone();
        let trace = self.trace.clone();
        let handle = self.handle.clone();
        let origin = match &covers {
            Covers::Accept(Accept { place, .. }) => Some(self.origin(&place.registry)),
            _ => None,
        };
        tokio::spawn(async move {
            let kind = match covers {
                Covers::Image(_) => Kind::Deny,
                Covers::Rollback(..) => Kind::Rollback,
                Covers::Accept(_) => Kind::Accept,
                Covers::Everything | Covers::Route(_) | Covers::Tag(_) => Kind::Hold,
            };
            let target: Target = covers.target().parse().expect("a world decides well");
            let about = Decision::about(&target.at(origin), Actor::daemon());
            let decision = match &covers {
                Covers::Accept(accept) => Decision {
                    digest: Some(accept.digest),
                    replaces: Some(accept.replaces),
                    ..about
                },
                _ => about,
            };
            trace.note(Event::Guard(Guarded::Deciding { number, covers }));
            // A process that is gone decides nothing, or its answer is lost.
            let decided = ledger.decide(kind, decision, RunFacts::default()).await;
            if let Ok(recorded) = decided {
                let id = recorded.decision.id;
                trace.note(Event::Guard(Guarded::Decided { number, id }));
                wake(&handle).await;
            }
        });
    }

    /// Ends one of the decisions in force; what comes of it is not waited for.
    pub fn release_one(&self, draw: &Draw) {
        let ledger = self.ledger.clone();
        let trace = self.trace.clone();
        let handle = self.handle.clone();
        let mut draw = draw.clone();
        tokio::spawn(async move {
            let ids = in_force(&ledger).await;
            if !ids.is_empty() && release(&ledger, &trace, vec![draw.pick(&ids)]).await {
                wake(&handle).await;
            }
        });
    }

    /// Ends all decisions in force.
    pub async fn release_all(&self) {
        let ids = in_force(&self.ledger).await;
        if ids.is_empty() || release(&self.ledger, &self.trace, ids).await {
            self.trace.note(Event::Guard(Guarded::AllReleased));
            wake(&self.handle).await;
        }
    }

    /// Promotes a tag by hand, as `promote` does through the daemon; what comes of it is not waited
    /// for.
    pub fn promote(&self, number: u64, rules: &Rules, tag: &Tag, replace: Option<Digest>) {
        let topology = self.topology.borrow().clone();
        let source = self.repository(&rules.source);
        let destination = self.repository(&rules.destination);
        let names = names(rules, tag, &source, &destination);
        let job = by_hand(rules, tag, replace, &source, &destination);
        let ordered = Guarded::Ordered {
            number,
            process: self.number,
            source: place(&names.source),
            place: place(&names.destination),
            replace,
        };
        let engine = topology.engine.clone();
        let in_force = self.topology.subscribe();
        let stop = Stop {
            sets: CurrentSets::new(move || in_force.borrow().sets.clone()),
            ..self.stop.clone()
        };
        let trace = self.trace.clone();
        let order = tokio::spawn(async move {
            trace.note(Event::Guard(ordered));
            let settle = Settle {
                facts: Arc::default(),
                progress: Arc::default(),
                listener: None,
            };
            let completion = engine
                .run(&job, &source, &destination, &settle.progress, &stop)
                .await;
            engine.settle(&settle, &job, &names, completion).await;
            trace.note(Event::Guard(Guarded::OrderEnded { number }));
        });
        self.orders().push(order);
    }

    /// Rolls a tag back by a decision, as `rollback` does; what comes of it is not waited for.
    pub fn roll_back(&self, number: u64, rollback: Rollback) {
        let topology = self.topology.borrow().clone();
        let (engine, ledger) = (topology.engine.clone(), self.ledger.clone());
        let process = self.number;
        let (stop, trace, handle) = (self.stop.clone(), self.trace.clone(), self.handle.clone());
        let (source, there) = (
            self.repository(&rollback.rules.source),
            self.repository(&rollback.rules.destination),
        );
        let order = tokio::spawn(async move {
            let place = place(&format!("{}:{}", there.address(), rollback.tag));
            let covers = Covers::Rollback(place.clone(), rollback.keeps_out.clone());
            trace.note(Event::Guard(Guarded::Deciding {
                number,
                covers: covers.clone(),
            }));
            let target: Target = covers.target().parse().expect("a world decides well");
            let target = target.at(Some(there.origin().clone()));
            let decision = Decision {
                digest: Some(rollback.to),
                replaces: Some(rollback.production),
                keeps_out: rollback.keeps_out.clone(),
                ..Decision::about(&target, Actor::daemon())
            };
            let decided = ledger.decide(Kind::Rollback, decision, RunFacts::default());
            // A process that is gone decides nothing.
            let Ok(recorded) = decided.await else { return };
            let id = recorded.decision.id;
            trace.note(Event::Guard(Guarded::Decided { number, id }));
            trace.note(Event::Guard(Guarded::RollingBack {
                number,
                process,
                place,
                to: rollback.to,
            }));
            let job = rollback.job(id, &source, &there);
            let settle = Settle {
                facts: Arc::default(),
                progress: Arc::default(),
                listener: None,
            };
            let completion = engine
                .run(&job, &source, &there, &settle.progress, &stop)
                .await;
            let is_done = matches!(completion.outcome, Outcome::Promoted | Outcome::UpToDate);
            let may_have_moved = completion.may_have_moved;
            let names = names(&rollback.rules, &rollback.tag, &source, &there);
            engine.settle(&settle, &job, &names, completion).await;
            trace.note(Event::Guard(Guarded::OrderEnded { number }));
            if !is_done && !may_have_moved {
                let ids = vec![id];
                trace.note(Event::Guard(Guarded::Releasing { ids: ids.clone() }));
                let ended = ledger.end_decisions(ids.clone(), "not moved", RunFacts::default());
                if ended.await.is_ok() {
                    trace.note(Event::Guard(Guarded::Released { ids }));
                }
            }
            wake(&handle).await;
        });
        self.orders().push(order);
    }

    fn origin(&self, registry: &str) -> Origin {
        self.topology.borrow().backends[registry].origin().clone()
    }

    fn repository(&self, (registry, repository): &(Arc<str>, Arc<str>)) -> Repository {
        let name = repository.parse().expect("a world names repositories well");
        self.topology.borrow().backends[&**registry].repository(name)
    }

    fn orders(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.orders.lock().expect("nothing panics while it notes")
    }

    /// Ends it from one moment to the next; returns its number.
    pub async fn kill(self) -> u32 {
        self.trace.note(Event::Killed {
            process: self.number,
        });
        self.disks.abort();
        self.ended().await
    }

    /// Lets it drain; returns its number.
    pub async fn stop(mut self) -> u32 {
        self.stop.drain.cancel();
        // Like the daemon: what does not end in time is dropped.
        let drained = tokio::time::timeout(Duration::from_secs(30), &mut self.watch)
            .await
            .is_ok();
        self.orders().iter().for_each(JoinHandle::abort);
        self.trace.note(Event::Stopped {
            process: self.number,
        });
        if drained {
            self.watch = tokio::spawn(std::future::ready(()));
        }
        self.ended().await
    }

    async fn ended(self) -> u32 {
        self.watch.abort();
        self.reader.abort();
        let orders = std::mem::take(&mut *self.orders());
        orders.iter().for_each(JoinHandle::abort);
        // They are gone; how they ended says nothing.
        for order in orders {
            let _ = order.await;
        }
        let _ = self.watch.await;
        let _ = self.reader.await;
        read_new_rows(self.number, &self.ledger, &self.read, &self.trace).await;
        self.disks.abort();
        let _ = self.disks.await;
        self.number
    }
}

/// The decisions in force.
async fn in_force(ledger: &Ledger) -> Vec<u64> {
    let in_force = ledger.in_force().await;
    let decisions = in_force.map(|in_force| in_force.decisions.clone());
    let decisions = decisions.unwrap_or_default();
    decisions.iter().map(|decision| decision.id).collect()
}

/// Ends decisions. Returns whether it is known to have happened.
async fn release(ledger: &Ledger, trace: &Trace, ids: Vec<u64>) -> bool {
    trace.note(Event::Guard(Guarded::Releasing { ids: ids.clone() }));
    let target = "".parse().expect("everything is a target");
    let decision = Decision::about(&target, Actor::daemon());
    let released = ledger.release(ids.clone(), decision, RunFacts::default());
    let is_released = released.await.is_ok();
    if is_released {
        trace.note(Event::Guard(Guarded::Released { ids }));
    }
    is_released
}

/// Asks for a look because of a decision. A process that is gone does not look.
async fn wake(handle: &Handle) {
    let asked = handle.ask(
        Scope::default(),
        Cause::Decision,
        Actor::daemon(),
        PassOptions::default(),
    );
    let _ = asked.await;
}

/// The job of `promote` for one tag.
/// A tag that a person rolls back.
pub struct Rollback {
    pub rules: Rules,
    pub tag: Tag,
    /// What production names.
    pub production: Digest,
    pub to: Digest,
    pub keeps_out: Vec<Digest>,
}

impl Rollback {
    fn job(&self, decision: u64, source: &Repository, there: &Repository) -> Job {
        let place = TagId::of(there.id(), self.tag.clone());
        let key = Key {
            route: self.rules.route.clone(),
            source: source.repository().clone(),
            tag: self.tag.clone(),
            destination: place,
        };
        Job {
            routes: Arc::from([self.rules.route.clone()]),
            gates: self.rules.gates.gates(),
            companions: Companions::Unlisted,
            max_wait: LONG_WAIT,
            ..Job::back(key, self.to, self.production, decision, Actor::daemon())
        }
    }
}

/// What is said of a job.
fn names(rules: &Rules, tag: &Tag, source: &Repository, destination: &Repository) -> Names {
    Names {
        source: format!("{}:{tag}", source.address()),
        destination: format!("{}:{tag}", destination.address()),
        registry: rules.destination.0.to_string(),
    }
}

fn by_hand(
    rules: &Rules,
    tag: &Tag,
    replace: Option<Digest>,
    source: &Repository,
    destination: &Repository,
) -> Job {
    let place = TagId::of(destination.id(), tag.clone());
    Job {
        key: Key {
            route: "".into(),
            source: source.repository().clone(),
            tag: tag.clone(),
            destination: place,
        },
        routes: Arc::from([rules.route.clone()]),
        rules: TagRules {
            moving: tag.as_str() == "latest",
            forward_only: rules.is_forward_only(tag.as_str()),
            ..TagRules::default()
        },
        gates: rules.gates.gates(),
        backup: route(&[rules]).backup_of(tag, tag),
        source: TagState::Unknown,
        destination: TagState::Unknown,
        destination_via: ObservedVia::Tag,
        source_at: None,
        destination_at: tokio::time::Instant::now(),
        look_began: blobferry::clock::now(),
        news: Some(tokio::time::Instant::now()),
        fresh: false,
        cause: Cause::Cli,
        actor: Actor::daemon(),
        explicit: true,
        rollback: None,
        ends_when_moved: false,
        pinned: None,
        expect: None,
        replace,
        dry_run: false,
        observes: false,
        refused: Arc::default(),
        pushed: None,
        companions: Companions::Unlisted,
        rank: Rank::Named,
        max_wait: LONG_WAIT,
    }
}

fn world(
    process: u32,
    setting: &Setting<'_>,
    index: Index,
    ledger: Ledger,
) -> topology::Topology<Backend> {
    let Setting {
        nature,
        registries,
        routes,
        ..
    } = setting;
    let instruments = prometheus::Registry::new();
    let metrics = transfer::Metrics::new(&instruments).expect("a fresh registry takes all");
    let limits = Limits::default();
    for registry in *registries {
        let quotas = registry.settings().quotas;
        limits.set(
            registry.origin(),
            LaneSettings {
                concurrency: nature.concurrency,
                quotas,
                ..LaneSettings::default()
            },
        );
    }
    let settings = transfer::Settings {
        trust: nature.verify,
        bounds: nature.bounds,
        ..transfer::Settings::default()
    };
    let backends = registries.iter().map(|registry| {
        (
            registry.name().to_string(),
            Backend {
                registry: registry.clone(),
                process,
            },
        )
    });
    let sets = self::sets(routes);
    let routes = self::routes(routes);
    let backends: BTreeMap<String, Backend> = backends.collect();
    let members = topology::members_of(&sets, &routes, &backends);
    let withdrawn = routes
        .0
        .iter()
        .map(|route| (route.name.clone(), CancellationToken::new()));
    let withdrawn = withdrawn.collect();
    let seen = status::Metrics::new(&instruments).expect("a fresh registry takes all");
    routes.0.iter().for_each(|route| seen.prepare(route));
    let engine = Engine::new(settings, index, ledger, limits, metrics);
    let engine = match &setting.gate_service {
        Some(gate_service) => engine.with_gate_service(gate_service.clone()),
        None => engine,
    };
    topology::Topology {
        backends,
        routes,
        sets: Arc::new(members),
        engine,
        metrics: seen,
        facts: Arc::new(RunFacts::default()),
        intervals: Intervals {
            poll: Some(nature.poll),
            verify: nature.verify,
        },
        settings: nature.watch,
        withdrawn,
    }
}

/// The sets of a config: each has two routes at least.
fn sets(all: &[Rules]) -> Vec<Set> {
    let mut sets: BTreeMap<&Arc<str>, Vec<Arc<str>>> = BTreeMap::new();
    for rules in all {
        let Some(name) = &rules.set else { continue };
        let routes = sets.entry(name).or_default();
        if !routes.contains(&rules.route) {
            routes.push(rules.route.clone());
        }
    }
    let sets = sets.into_iter().filter(|(_, routes)| routes.len() > 1);
    sets.map(|(name, routes)| Set {
        name: name.clone(),
        routes,
    })
    .collect()
}

/// The routes of a config. Rules of one route have their sources and tags in common.
fn routes(all: &[Rules]) -> Routes {
    let mut names: Vec<&Arc<str>> = all.iter().map(|rules| &rules.route).collect();
    names.dedup();
    let of = |name: &Arc<str>| {
        let of_it: Vec<&Rules> = all.iter().filter(|rules| rules.route == *name).collect();
        route(&of_it)
    };
    Routes::new(names.into_iter().map(of).collect())
}

fn route(all: &[&Rules]) -> Route {
    let rules = all[0];
    let text = |(registry, repository): &(Arc<str>, Arc<str>)| format!("{registry}/{repository}");
    // A wildcard stands for the last part of both names.
    let last = rules.source.1.rsplit('/').next().unwrap_or_default();
    let wildcard = |name: String, written: &str| match rules.wild {
        true => {
            name.strip_suffix(last)
                .expect("both sides end alike")
                .to_owned()
                + written
        }
        false => name,
    };
    let from = wildcard(text(&rules.source), "*");
    let from = Pattern::parse(&from).expect("a world writes routes well");
    let to = |rules: &&Rules| {
        let to = wildcard(text(&rules.destination), "{1}");
        Template::parse(&to, &from).expect("a world writes routes well")
    };
    let tags = |patterns: &[Arc<str>]| -> Vec<TagRule> {
        patterns
            .iter()
            .map(|pattern| pattern.parse().expect("a world writes rules well"))
            .collect()
    };
    let selection = Selection {
        include: tags(&rules.include),
        exclude: tags(&rules.exclude),
        moving: tags(&rules.moving),
        forward_only: tags(&rules.forward_only),
        ..Selection::default()
    };
    Route {
        name: rules.route.clone(),
        to: all.iter().map(to).collect(),
        from,
        selection,
        existing: rules.existing,
        drift: rules.drift,
        backup: rules.backs_up.then(backup_naming),
        mode: match rules.observes {
            true => Mode::Observe,
            false => Mode::Promote,
        },
        platform: None,
        create: Create::Never,
        gates: rules.gates.gates(),
    }
}

fn backup_naming() -> Naming {
    Naming::parse(&format!("{BACKUP}{{tag}}")).expect("it has the tag once")
}

/// Whether a route reads and writes where it did.
fn holds_still(before: &Route, now: &Route) -> bool {
    let places = |route: &Route| {
        let to: Vec<String> = route.to.iter().map(ToString::to_string).collect();
        (
            route.from.registry().clone(),
            route.from.repository().to_string(),
            to,
        )
    };
    places(before) == places(now)
}

/// Reads rows of the ledger into the trace for as long as its process lives.
async fn read_rows(process: u32, ledger: Ledger, read: Arc<Mutex<u64>>, trace: Trace) {
    let (mut length, mut left) = (0, READINGS);
    loop {
        if trace.length() != length {
            (length, left) = (trace.length(), READINGS);
        }
        if left > 0 {
            left -= 1;
            read_new_rows(process, &ledger, &read, &trace).await;
        }
        tokio::time::sleep(READ).await;
    }
}

async fn read_new_rows(process: u32, ledger: &Ledger, read: &Mutex<u64>, trace: &Trace) {
    let after = *read.lock().expect("nothing panics while it reads");
    let query = Query {
        after,
        limit: 1000,
        ..Query::default()
    };
    let Ok(rows) = ledger.page(query).await else {
        return;
    };
    for Row { id, content, .. } in rows {
        *read.lock().expect("nothing panics while it reads") = id;
        let settled = match content {
            Content::Outcome(settled) => settled,
            Content::Decision(_, decision) => {
                let torn = torn_set(id, *decision);
                torn.into_iter().for_each(|torn| {
                    trace.note(Event::Guard(Guarded::Torn(torn)));
                });
                continue;
            }
            Content::Reload(_) | Content::RefusedDecision(_) => continue,
        };
        trace.note(Event::Settled {
            process,
            source: place(&settled.source),
            destination: place(&settled.destination),
            result: settled.result,
            digest: settled.digest,
            error: settled.error.map(|error| error.text),
        });
    }
}

/// What a hold of the process's own says of a torn set.
fn torn_set(id: u64, decision: Decision) -> Option<TornSet> {
    let torn = decision.torn?;
    let target = decision.target.parse::<Target>();
    let Ok(Target::Set(set, Some(tag))) = target else {
        return None;
    };
    let moves = torn.moved.iter().map(|moved| {
        let registry = moved.origin.strip_prefix("memory://").unwrap_or_default();
        let place = Place {
            registry: registry.into(),
            repository: moved.repository.as_str().into(),
            tag: moved.tag.as_str().into(),
        };
        (place, moved.digest, moved.previous)
    });
    Some(TornSet {
        id,
        set,
        tag: tag.as_str().into(),
        moves: moves.collect(),
        goes_back: torn.goes_back,
        staging: torn.staging,
    })
}

/// `registry/repository:tag`, taken apart.
pub fn place(text: &str) -> Place {
    let (registry, rest) = text.split_once('/').expect("an address names a registry");
    let (repository, tag) = rest.rsplit_once(':').expect("a row names a tag");
    Place {
        registry: registry.into(),
        repository: repository.into(),
        tag: tag.into(),
    }
}
