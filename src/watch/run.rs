//! The loop of the watch: takes events, keeps the queue, runs looks, and starts polls.
//!
//! Discoveries and looks run in a join set that the loop owns; the loop never waits for a registry.
//! Some capacity is reserved for looks that name their tags, so a long backfill does not delay
//! them.

mod chain;
mod follow_up;
mod gone;
mod pushed;
mod query;
mod show;
mod unseen;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use self::follow_up::{again, pace};
use self::query::{Pending, RouteQuery};
use self::unseen::unseen;
use super::event::{Event, Scope};
use super::pending::PendingEvents;
use super::polls::{PollKey, Polls};
use super::queue::{Capacity, LookKey, LookSender, Queue, RetryDelays, Waiting};
use super::resting::RestingTags;
use super::route_health::RouteHealth;
use crate::backend::Backend;
use crate::clock;
use crate::decision::Revision;
use crate::endpoint::Repositories;
use crate::fault::Fault;
use crate::job::{Cause, Look, Progress};
use crate::ledger::RunFacts;
use crate::look::discover::{Discovered, Owners, Reading};
use crate::look::topology::{Settings, Topology};
use crate::look::{LookRequest, RepositoryLook, rules_in_force};
use crate::oci::RepositoryName;
use crate::route::{Route, Template};
use crate::status::board::Board;
use crate::telemetry::Changes;
use crate::transfer::sets::CurrentSets;
use crate::transfer::{Settle, Stop};

/// Most repositories with stored trouble, so that each change is logged once.
const TROUBLES: usize = 10_000;
/// Shortest time between two updates of the shown queue while only its age changes.
const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// The watch and what it owns.
pub struct Watch<B: Repositories = Backend> {
    topology: watch::Receiver<Arc<Topology<B>>>,
    board: Board,
    stop: Stop,
    progress: Arc<Progress>,
    queue: Queue,
    owners: Owners,
    pending_events: PendingEvents,
    /// Catalogs with changes to apply.
    pending: VecDeque<Pending>,
    /// Queries to answer.
    questions: VecDeque<RouteQuery>,
    /// Queries that wait for a catalog, by its registry.
    held: BTreeMap<Arc<str>, Vec<RouteQuery>>,
    shown_discovered: HashMap<Arc<str>, Arc<Discovered>>,
    polls: Polls,
    /// When production itself was last asked, by route and repository.
    verified: HashMap<Arc<str>, HashMap<RepositoryName, Instant>>,
    route_health: RouteHealth,
    tasks: JoinSet<Done>,
    running: HashMap<Id, Task<B>>,
    /// Repositories with tags that failed.
    resting: HashMap<LookKey, RestingTags>,
    /// Repositories that had no source at their last look.
    gone: BTreeSet<LookKey>,
    shown: (usize, usize, Instant),
    changes: Changes,
}

/// A running task, kept here so that a panic loses nothing.
enum Task<B: Repositories> {
    Discovery {
        registry: Arc<str>,
        topology: Arc<Topology<B>>,
    },
    Look(Box<LookTask>),
}

/// A running look.
struct LookTask {
    key: LookKey,
    request: LookRequest,
    senders: Vec<LookSender>,
    is_beside: bool,
    /// The decisions in force when it began.
    decisions: Revision,
}

/// The result of a task.
enum Done {
    Discovered(Result<Reading, Fault>),
    Looked(Look),
}

impl<B: Repositories> Watch<B> {
    /// A watch over the topology in `topology` and its replacements.
    pub fn new(topology: watch::Receiver<Arc<Topology<B>>>, board: Board, stop: Stop) -> Watch<B> {
        Watch {
            topology,
            progress: board.progress(),
            board,
            stop,
            queue: Queue::default(),
            owners: Owners::default(),
            pending_events: PendingEvents::default(),
            pending: VecDeque::new(),
            questions: VecDeque::new(),
            held: BTreeMap::new(),
            shown_discovered: HashMap::new(),
            polls: Polls::default(),
            verified: HashMap::new(),
            route_health: RouteHealth::default(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            resting: HashMap::new(),
            gone: BTreeSet::new(),
            shown: (usize::MAX, 0, Instant::now()),
            changes: Changes::new(TROUBLES),
        }
    }

    /// Runs until the drain begins and all that runs has settled.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        self.adopt_world();
        let engine = self.topology().engine.clone();
        loop {
            self.start_looks();
            self.show_queue();
            let wake = self.next_wake();
            let most_events = self.topology.borrow().settings.events;
            // Events come last: they may be endless, while all other branches are bounded.
            tokio::select! {
                biased;
                () = self.stop.drain.cancelled() => break,
                Ok(()) = self.topology.changed() => self.adopt_world(),
                Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.done(done),
                () = tokio::time::sleep_until(wake) => self.poll(),
                (cause, tags) = engine.answered() => self.answered(cause, tags),
                () = tokio::task::yield_now(), if self.has_work() => self.work(),
                Some(event) = events.recv(), if self.pending_events.len() < most_events => self.take(event),
            }
        }
        drop(events);
        self.drain().await;
    }

    /// Drops all waiting work; running looks settle.
    async fn drain(&mut self) {
        self.pending_events.clear();
        self.pending.clear();
        self.questions.clear();
        self.held.clear();
        self.queue.retain(|_| false, Instant::now());
        while let Some(done) = self.tasks.join_next_with_id().await {
            self.done(done);
        }
        self.show_queue();
    }

    fn topology(&self) -> Arc<Topology<B>> {
        self.topology.borrow().clone()
    }

    /// Applies a new topology: its polls start, and waiting work of removed routes is dropped.
    fn adopt_world(&mut self) {
        let topology = self.topology.borrow_and_update().clone();
        let now = Instant::now();
        let exists = |name: &Arc<str>| topology.routes.named(name).is_some();
        self.route_health
            .adopt(topology.routes.0.iter().map(|route| &route.name));
        self.queue.retain(|key| exists(&key.route), now);
        self.verified.retain(|route, _| exists(route));
        self.gone.retain(|key| exists(&key.route));
        topology.engine.retain_companions(|key| exists(&key.route));
        self.shown_discovered.clear();
        // A new config is a reason for a new attempt.
        self.resting.clear();
        self.queue.set_registry_pairs(
            topology
                .routes
                .0
                .iter()
                .map(|route| (&route.name, lane(route))),
        );
        self.owners = Owners::new(&topology);
        self.polls
            .begin(topology.routes.0.iter().map(PollKey::of), now);
        self.show_routes(&topology);
        self.ask_all_anew(&topology);
        self.work();
    }

    /// The next time at which the loop must wake.
    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let (depth, _, _) = self.queue.counts();
        let show = (depth > 0).then(|| self.shown.2 + SHOWN_EVERY);
        let far = now + Duration::from_secs(3600);
        [self.polls.next(), self.queue.next(), show]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(far)
    }

    /// Starts the polls that are due.
    fn poll(&mut self) {
        let topology = self.topology();
        let now = Instant::now();
        let pace = topology.intervals.poll.unwrap_or(topology.intervals.verify);
        while let Some((key, is_first)) = self.polls.take_due(now, pace) {
            let cause = match (is_first, topology.intervals.poll) {
                (true, _) => Cause::Start,
                (false, Some(_)) => Cause::Poll,
                (false, None) => Cause::Verify,
            };
            let routes = polled(&topology, &key);
            routes.iter().for_each(|name| self.show_next_look(name));
            // Polls do not accumulate behind a slow catalog.
            let is_running = matches!(&key, PollKey::Catalog(registry) if self.pending_events.is_running(registry));
            if is_running && !is_first {
                continue;
            }
            let scope = Scope {
                routes: routes.iter().map(ToString::to_string).collect(),
                ..Scope::default()
            };
            self.take(Event {
                received: now,
                ..Event::of_daemon(scope, cause)
            });
        }
    }

    /// Ends a task, also one that panicked.
    fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        let (id, came) = match done {
            Ok((id, done)) => (id, Some(done)),
            Err(error) => {
                tracing::error!(%error, "a task of the watch ended in a panic");
                (error.id(), None)
            }
        };
        let panicked = || {
            Fault::retryable(
                "ended in a panic, which is a defect of this program; the log says where",
            )
        };
        match (self.running.remove(&id), came) {
            (Some(Task::Look(task)), Some(Done::Looked(look))) => self.settled(*task, look),
            (Some(Task::Look(task)), _) => self.settled(*task, Look::failed(&panicked())),
            (Some(Task::Discovery { registry, topology }), Some(Done::Discovered(read))) => {
                self.discovered(&registry, &topology, read)
            }
            (Some(Task::Discovery { registry, topology }), _) => {
                self.discovered(&registry, &topology, Err(panicked()))
            }
            (None, _) => {}
        }
    }

    /// Starts looks as far as the capacity allows.
    fn start_looks(&mut self) {
        let topology = self.topology();
        let now = Instant::now();
        let Settings {
            looks, reserved, ..
        } = topology.settings;
        let capacity = Capacity {
            all: looks,
            by_name: reserved,
        };
        self.queue.advance(now);
        while let Some((key, waiting)) = self.queue.start(now, capacity) {
            let owner = topology
                .route(&key.route)
                .and_then(|route| topology.routes.of(route.from.registry(), &key.repository));
            if owner.is_some_and(|owner| owner.name == key.route) {
                self.spawn_look(topology.clone(), key, waiting);
            } else {
                self.queue.settled(&key, waiting.is_beside, true, now);
                waiting.interrupt();
                self.gone.remove(&key);
                self.route_health.looked(&key.route, &key.repository, &[]);
                self.show_ready();
            }
        }
    }

    fn spawn_look(&mut self, topology: Arc<Topology<B>>, key: LookKey, waiting: Waiting) {
        let board = self.board.clone();
        let progress = self.progress.clone();
        let withdrawn = topology
            .withdrawn
            .get(&key.route)
            .cloned()
            .unwrap_or_default();
        let rules = rules_in_force(self.topology.clone());
        let in_force = self.topology.clone();
        let sets = CurrentSets::new(move || in_force.borrow().sets.clone());
        let stop = Stop {
            withdrawn,
            rules,
            sets,
            ..self.stop.clone()
        };
        let Waiting {
            request,
            senders,
            is_beside,
            ..
        } = waiting;
        let decisions = topology.engine.ledger.known_decisions();
        let decisions = decisions.revision(clock::now());
        let task = LookTask {
            key: key.clone(),
            request: request.clone(),
            senders,
            is_beside,
            decisions,
        };
        let resting = self.resting.get(&key).filter(|_| !key.dry_run);
        let left_alone = resting
            .map(|resting| resting.left_alone(request.cause, decisions, Instant::now()))
            .unwrap_or_default();
        let spawned = self.tasks.spawn(async move {
            let facts = RunFacts {
                run_id: request.run_id.clone(),
                ..(*topology.facts).clone()
            };
            let settle = Settle {
                facts: Arc::new(facts),
                progress,
                listener: None,
            };
            let Some(route) = topology.route(&key.route) else {
                return Done::Looked(Look::default());
            };
            let looking = RepositoryLook {
                topology: &topology,
                route,
                repository: &key.repository,
                request: &request,
                settle: &settle,
                board: &board,
                stop: &stop,
                left_alone: &left_alone,
                began: Instant::now(),
            };
            Done::Looked(looking.look().await)
        });
        self.running
            .insert(spawned.id(), Task::Look(Box::new(task)));
    }

    fn settled(&mut self, task: LookTask, look: Look) {
        let LookTask {
            key,
            request,
            senders,
            is_beside,
            decisions,
        } = task;
        let mut pace = pace(&look);
        let now = Instant::now();
        if !key.dry_run && !self.stop.drain.is_cancelled() {
            self.note_source(&key, &look, pace);
            if self
                .note_failures(&key, &request, (&look, decisions), pace.is_none(), now)
                .is_err()
            {
                pace = pace.or(Some(RetryDelays::TAGS));
            }
            if let Some(pace) = pace {
                self.queue
                    .add_later(key.clone(), again(&request), pace, now);
            }
            if let Some((next, delay)) = unseen(&request, &look) {
                self.queue.add_at(key.clone(), next, None, now + delay, now);
            }
        }
        self.queue.settled(&key, is_beside, pace.is_none(), now);
        self.topology()
            .metrics
            .look_ended(&key.route, request.cause, &look.trouble);
        self.log_trouble(&key, &look);
        self.note_looked(&key, request.tags.is_empty(), &look.trouble);
        if !self.stop.drain.is_cancelled() {
            self.follow_chains(&key, &look);
        }
        let look = Arc::new(look);
        for asker in senders {
            // The caller may be gone.
            let _ = asker.send(look.clone());
        }
    }
}

/// The name of the registry pair of a route.
fn lane(route: &Route) -> String {
    let mut lane = route.from.registry().to_string();
    let to: BTreeSet<&Arc<str>> = route.to.iter().map(Template::registry).collect();
    for registry in to {
        lane.push('/');
        lane.push_str(registry);
    }
    lane
}

/// The routes of one poll.
fn polled<B: Repositories>(topology: &Topology<B>, key: &PollKey) -> Vec<Arc<str>> {
    match key {
        PollKey::Route(name) => vec![name.clone()],
        PollKey::Catalog(registry) => {
            let of_it =
                |route: &&Route| !route.from.is_literal() && route.from.registry() == registry;
            topology
                .routes
                .0
                .iter()
                .filter(of_it)
                .map(|route| route.name.clone())
                .collect()
        }
    }
}
