//! The loop of the watch: takes events, keeps the queue, runs looks, and starts polls.
//!
//! Discoveries and looks run in a join set that the loop owns; the loop never waits for a registry.
//! Some capacity is reserved for looks that are asked for by name, so a long backfill does not
//! delay them.

mod query;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use self::query::{Pending, RouteQuery};
use super::event::{Event, Scope};
use super::handle::run_id;
use super::pending::PendingEvents;
use super::polls::{PollKey, Polls};
use super::queue::{Capacity, LookKey, LookSender, Queue, RetryDelays, Waiting, fruitless};
use super::resting::{RestingTags, TooMany};
use super::route_health::RouteHealth;
use crate::backend::Backend;
use crate::clock;
use crate::endpoint::Repositories;
use crate::fault::{Class, Fault};
use crate::job::{Actor, Cause, Look, Outcome, Progress, Settled, Totals, Trouble};
use crate::ledger::RunFacts;
use crate::look::PassOptions;
use crate::look::discover::{Discovered, Owners, Reading};
use crate::look::topology::{Settings, Topology};
use crate::look::{LookRequest, RepositoryLook};
use crate::oci::RepositoryName;
use crate::route::{Route, Template};
use crate::status::board::{Board, RouteStatus};
use crate::telemetry::Changes;
use crate::transfer::retry::CurrentRules;
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
    shown: (usize, usize, Instant),
    changes: Changes,
}

/// A running task, kept here so that a panic loses nothing.
enum Task<B: Repositories> {
    Discovery {
        registry: Arc<str>,
        topology: Arc<Topology<B>>,
    },
    Look {
        key: LookKey,
        request: LookRequest,
        senders: Vec<LookSender>,
        is_beside: bool,
    },
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
            board,
            stop,
            progress: Arc::default(),
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
            shown: (usize::MAX, 0, Instant::now()),
            changes: Changes::new(TROUBLES),
        }
    }

    /// Runs until the drain begins and all that runs has settled.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        self.adopt_world();
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

    fn show_routes(&self, topology: &Topology<B>) {
        self.board.update(|status| {
            let before = std::mem::take(&mut status.routes);
            let mut before: HashMap<String, RouteStatus> = before
                .into_iter()
                .map(|entry| (entry.name.clone(), entry))
                .collect();
            status.routes = topology
                .routes
                .0
                .iter()
                .map(|route| {
                    let kept = before.remove(&*route.name).unwrap_or_default();
                    let to = route
                        .to
                        .iter()
                        .map(|to| format!("{}/{}", to.registry(), to.repository()))
                        .collect();
                    RouteStatus {
                        name: route.name.to_string(),
                        from: format!("{}/{}", route.from.registry(), route.from.repository()),
                        to,
                        ..kept
                    }
                })
                .collect();
        });
        self.show_ready();
    }

    fn show_ready(&self) {
        let ready = self.route_health.is_ready();
        self.board.update(|status| status.ready = ready);
    }

    fn show_queue(&mut self) {
        let (now, (depth, running, oldest)) = (Instant::now(), self.queue.counts());
        let (shown_depth, shown_running, at) = self.shown;
        if (depth, running) == (shown_depth, shown_running) && now.duration_since(at) < SHOWN_EVERY
        {
            return;
        }
        self.shown = (depth, running, now);
        self.topology().metrics.queue(depth, oldest);
        self.board.update(|status| {
            status.queue.depth = depth;
            status.queue.running = running;
            status.queue.oldest_seconds = oldest.map_or(0.0, |since| since.elapsed().as_secs_f64());
        });
    }

    /// The next time at which the loop must wake.
    fn next_wake(&self) -> Instant {
        let (now, (depth, _, _)) = (Instant::now(), self.queue.counts());
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
        let (topology, now) = (self.topology(), Instant::now());
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
                scope,
                cause,
                actor: Actor::daemon(),
                run_id: run_id(),
                received: now,
                options: PassOptions::default(),
                reply: None,
            });
        }
    }

    fn show_next_look(&self, name: &Arc<str>) {
        let now = Instant::now();
        let key = self.topology().route(name).map(PollKey::of);
        let poll = key.and_then(|key| self.polls.next_of(&key));
        let next = self.held(name).filter(|held| *held > now).or(poll);
        let wait = next.map(|next| next.duration_since(now));
        let next = wait.and_then(|wait| clock::now().checked_add(wait).ok());
        self.board
            .update_route(name, |route| route.next_look = next);
    }

    /// Until when trouble delays the polls of a literal route.
    fn held(&self, name: &Arc<str>) -> Option<Instant> {
        let repository = self.topology().route(name)?.from.literal()?;
        self.queue.held(&LookKey {
            route: name.clone(),
            repository,
            dry_run: false,
        })
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
            (
                Some(Task::Look {
                    key,
                    request,
                    senders,
                    is_beside,
                }),
                Some(Done::Looked(look)),
            ) => self.settled(key, request, senders, is_beside, look),
            (
                Some(Task::Look {
                    key,
                    request,
                    senders,
                    is_beside,
                }),
                _,
            ) => self.settled(key, request, senders, is_beside, fruitless(&panicked())),
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
        let (topology, now) = (self.topology(), Instant::now());
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
                self.route_health.looked(&key.route, &key.repository, &[]);
                self.show_ready();
            }
        }
    }

    fn spawn_look(&mut self, topology: Arc<Topology<B>>, key: LookKey, waiting: Waiting) {
        let (board, progress) = (self.board.clone(), self.progress.clone());
        let withdrawn = topology
            .withdrawn
            .get(&key.route)
            .cloned()
            .unwrap_or_default();
        let in_force = self.topology.clone();
        let rules = CurrentRules::new(move |key, source| in_force.borrow().rules_of(key, source));
        let stop = Stop {
            withdrawn,
            rules,
            ..self.stop.clone()
        };
        let Waiting {
            request,
            senders,
            is_beside,
            ..
        } = waiting;
        let task = Task::Look {
            key: key.clone(),
            request: request.clone(),
            senders,
            is_beside,
        };
        let resting = self.resting.get(&key).filter(|_| !key.dry_run);
        let left_alone = resting
            .map(|resting| resting.left_alone(request.cause, Instant::now()))
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
            };
            Done::Looked(looking.look().await)
        });
        self.running.insert(spawned.id(), task);
    }

    fn settled(
        &mut self,
        key: LookKey,
        request: LookRequest,
        senders: Vec<LookSender>,
        is_beside: bool,
        look: Look,
    ) {
        let (mut pace, now) = (pace(&look), Instant::now());
        if !key.dry_run && !self.stop.drain.is_cancelled() {
            if self
                .note_failures(&key, &request, &look, pace.is_none(), now)
                .is_err()
            {
                pace = pace.or(Some(RetryDelays::TAGS));
            }
            if let Some(pace) = pace {
                self.queue
                    .add_later(key.clone(), again(&request), pace, now);
            }
        }
        self.queue.settled(&key, is_beside, pace.is_none(), now);
        self.topology()
            .metrics
            .look_ended(&key.route, request.cause, &look.trouble);
        self.log_trouble(&key, &look);
        self.note_looked(&key, request.tags.is_empty(), &look.trouble);
        let look = Arc::new(look);
        for asker in senders {
            // The caller may be gone.
            let _ = asker.send(look.clone());
        }
    }

    /// Records failed tags, and queues a look at them for the end of their rest if the repository
    /// itself is well.
    fn note_failures(
        &mut self,
        key: &LookKey,
        request: &LookRequest,
        look: &Look,
        is_well: bool,
        now: Instant,
    ) -> Result<(), TooMany> {
        let failed = look.jobs.iter().any(|job| job.result == Outcome::Failed);
        if !failed && !self.resting.contains_key(key) {
            return Ok(());
        }
        let resting = self.resting.entry(key.clone()).or_default();
        let noted = resting.note(request, look, now);
        match resting.next() {
            Some((tags, at)) if is_well => self.queue.add_at(
                key.clone(),
                LookRequest {
                    tags,
                    digest: None,
                    ..again(request)
                },
                at,
                now,
            ),
            Some(_) => {}
            None => drop(self.resting.remove(key)),
        }
        noted
    }

    fn log_trouble(&self, key: &LookKey, look: &Look) {
        let text = look
            .trouble
            .iter()
            .map(|trouble| trouble.text.as_str())
            .collect::<Vec<_>>()
            .join("; ");
        let changed = self
            .changes
            .changed(&format!("{} {}", key.route, key.repository), &text);
        match (changed, text.is_empty()) {
            (true, false) => {
                tracing::warn!(route = &*key.route, repository = %key.repository, error = text, "could not look")
            }
            (true, true) => {
                tracing::info!(route = &*key.route, repository = %key.repository, "looking works again")
            }
            (false, _) => {}
        }
    }

    /// Updates the state of the route. Only a look at a whole repository tells its health; a dry
    /// run tells nothing.
    fn note_looked(&mut self, key: &LookKey, whole: bool, trouble: &[Trouble]) {
        if key.dry_run {
            return;
        }
        if whole {
            self.route_health
                .looked(&key.route, &key.repository, trouble);
        }
        let totals = self.topology().metrics.totals(&key.route);
        let (now, trouble) = (clock::now(), self.route_health.trouble(&key.route));
        let has_success = self.topology().metrics.has_success(&key.route);
        self.board.update_route(&key.route, |entry| {
            entry.last_look = Some(now);
            entry.tags = Totals {
                up_to_date: totals.up_to_date + totals.promoted,
                promoted: 0,
                ..totals
            };
            if whole && trouble.is_empty() && has_success {
                entry.last_success = Some(now);
            }
            entry.trouble = trouble;
        });
        self.show_standing(&key.route);
        self.show_next_look(&key.route);
        self.show_ready();
    }
}

impl<B: Repositories> Watch<B> {
    fn show_standing(&self, route: &Arc<str>) {
        let route_health = self.topology().metrics.standing(route);
        self.board.update_route(route, |entry| {
            entry.up = Some(route_health.up);
            entry.pending = route_health.pending;
            entry.pending_since = route_health
                .oldest_pending
                .and_then(|age| clock::now().checked_sub(age).ok());
        });
    }
}

/// The daemon's own look after one in trouble, as strict as that one.
fn again(request: &LookRequest) -> LookRequest {
    let cause = if request.cause.trusts_hints() {
        Cause::Poll
    } else {
        Cause::Verify
    };
    LookRequest {
        cause,
        actor: Actor::daemon(),
        options: PassOptions::default(),
        run_id: run_id(),
        ..request.clone()
    }
}

/// The delays for another look at the whole repository, if its trouble may pass by itself.
fn pace(look: &Look) -> Option<RetryDelays> {
    let whole = |class: Class| {
        look.trouble
            .iter()
            .any(|trouble| trouble.class == class.name())
    };
    if whole(Class::Auth) || is_locked_out(look) {
        Some(RetryDelays::SLOW)
    } else if whole(Class::RETRYABLE) || whole(Class::Corrupt) {
        Some(RetryDelays::WHOLE)
    } else {
        whole(Class::NotFound).then_some(RetryDelays::ABSENT)
    }
}

/// Whether a registry accepts nothing: more than one tag was refused for lack of rights, and none
/// succeeded.
fn is_locked_out(look: &Look) -> bool {
    let is_refused = |job: &&Settled| {
        job.failure
            .as_ref()
            .is_some_and(|failure| failure.class == Class::Auth)
    };
    let went_well = look.totals.promoted + look.totals.up_to_date;
    went_well == 0 && look.jobs.iter().filter(is_refused).count() > 1
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

/// The routes of a scope, in the order of the config, each with the scope's repository if it has
/// one. A repository counts only for the route that owns it.
pub(super) fn matching<'a, B: Repositories>(
    topology: &'a Topology<B>,
    scope: &Scope,
) -> Vec<(&'a Route, Option<RepositoryName>)> {
    let positions: BTreeSet<usize> = match (scope.routes.is_empty(), &scope.repository) {
        (false, _) => scope
            .routes
            .iter()
            .filter_map(|name| topology.routes.position(name))
            .collect(),
        (true, None) => (0..topology.routes.0.len()).collect(),
        (true, Some(name)) => topology
            .backends
            .keys()
            .filter_map(|registry| topology.routes.position_of(registry, name))
            .collect(),
    };
    let routes = positions
        .into_iter()
        .map(|position| &topology.routes.0[position]);
    match &scope.repository {
        None => routes.map(|route| (route, None)).collect(),
        Some(name) => {
            let has_it = |route: &&Route| {
                topology
                    .routes
                    .of(route.from.registry(), name)
                    .is_some_and(|owner| owner.name == route.name)
            };
            routes
                .filter(has_it)
                .map(|route| (route, Some(name.clone())))
                .collect()
        }
    }
}
