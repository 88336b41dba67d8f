//! The watch itself: takes events, keeps the queue, runs looks, and asks for looks on its own when the poll's time comes.
//!
//! Discovery and looks run beside the loop in a join set that the loop owns; the loop itself never waits for a registry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::board::{Board, RouteStatus};
use super::discover::{Discovered, Owners, discover};
use super::event::{Event, Reply, Scope, Wish};
use super::handle::run_id;
use super::look::{Ask, Looking};
use super::queue::{LookKey, Queue, Waiting};
use super::world::World;
use crate::fault::{Class, Fault};
use crate::job::{Actor, Cause, Look, Outcome, Progress, Totals, Trouble};
use crate::ledger::Facts;
use crate::oci::RepositoryName;
use crate::telemetry::Changes;
use crate::transfer::retry::random;
use crate::transfer::{Settle, Stop};

/// Looks that run at once.
const LOOKS: usize = 16;
/// Repositories whose trouble is remembered, so that it is logged once per change.
const TROUBLES: usize = 10_000;

/// The watch and what it owns.
pub struct Watch {
    world: watch::Receiver<Arc<World>>,
    board: Board,
    stop: Stop,
    progress: Arc<Progress>,
    queue: Queue,
    owners: Owners,
    polls: BTreeMap<Arc<str>, Poll>,
    verified: HashMap<LookKey, Instant>,
    looked: BTreeSet<Arc<str>>,
    tasks: JoinSet<Done>,
    looks: usize,
    changes: Changes,
}

/// When a route is looked at without being asked.
struct Poll {
    next: Instant,
    first: bool,
}

/// What a task of the watch came to.
enum Done {
    Discovered { event: Event, found: Vec<(Arc<str>, Result<Discovered, Fault>)> },
    Looked { key: LookKey, ask: Ask, tell: Vec<mpsc::UnboundedSender<Look>>, look: Look },
}

impl Watch {
    /// A watch over the world that `world` holds, whatever it is replaced by.
    pub fn new(world: watch::Receiver<Arc<World>>, board: Board, stop: Stop) -> Watch {
        Watch {
            world,
            board,
            stop,
            progress: Arc::default(),
            queue: Queue::default(),
            owners: Owners::default(),
            polls: BTreeMap::new(),
            verified: HashMap::new(),
            looked: BTreeSet::new(),
            tasks: JoinSet::new(),
            looks: 0,
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
            tokio::select! {
                () = self.stop.drain.cancelled() => break,
                Some(event) = events.recv() => self.take(event),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.done(done),
                Ok(()) = self.world.changed() => self.adopt_world(),
                () = tokio::time::sleep_until(wake) => self.poll(),
            }
        }
        drop(events);
        self.drain().await;
    }

    async fn drain(&mut self) {
        while let Some(done) = self.tasks.join_next().await {
            self.done(done);
        }
    }

    fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    /// Takes up a new world: polls of its routes begin, what waits for routes that are gone is forgotten.
    fn adopt_world(&mut self) {
        let world = self.world.borrow_and_update().clone();
        let now = Instant::now();
        let exists = |name: &Arc<str>| world.routes.0.iter().any(|route| route.name == *name);
        self.polls.retain(|name, _| exists(name));
        self.looked.retain(|name| exists(name));
        self.queue.retain(|key| exists(&key.route));
        self.verified.retain(|key, _| exists(&key.route));
        self.owners = Owners::default();
        for route in &world.routes.0 {
            self.polls.insert(route.name.clone(), Poll { next: now, first: true });
        }
        self.show_routes(&world);
    }

    fn show_routes(&self, world: &World) {
        self.board.update(|status| {
            let before = std::mem::take(&mut status.routes);
            status.routes = world
                .routes
                .0
                .iter()
                .map(|route| {
                    let kept = before.iter().find(|entry| entry.name == *route.name).cloned().unwrap_or_default();
                    let to = route.to.iter().map(|to| format!("{}/{}", to.registry(), to.repository())).collect();
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
        let world = self.world();
        let ready = world.routes.0.iter().all(|route| self.looked.contains(&route.name));
        self.board.update(|status| status.ready = ready);
    }

    fn show_queue(&self) {
        let (depth, running, oldest) = self.queue.counts(Instant::now());
        self.world().metrics.queue(depth, oldest);
        self.board.update(|status| {
            status.queue.depth = depth;
            status.queue.running = running;
            status.queue.oldest_seconds = oldest.map_or(0.0, |since| since.elapsed().as_secs_f64());
        });
    }

    /// The next time at which something is due on its own.
    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let poll = self.polls.values().map(|poll| poll.next).min();
        let queue = self.queue.next().filter(|_| self.looks < LOOKS);
        poll.into_iter().chain(queue).min().unwrap_or(far)
    }

    /// Asks for looks at the routes whose time has come.
    fn poll(&mut self) {
        let (world, now) = (self.world(), Instant::now());
        let pace = world.rhythm.poll.unwrap_or(world.rhythm.verify);
        let mut due = Vec::new();
        for (name, poll) in &mut self.polls {
            if poll.next <= now {
                let cause = if poll.first {
                    Cause::Start
                } else if world.rhythm.poll.is_some() {
                    Cause::Poll
                } else {
                    Cause::Verify
                };
                due.push((name.clone(), cause));
                // Up to a tenth early or late, so that many routes do not stay in step.
                *poll = Poll { next: now + pace.mul_f64(0.9 + 0.2 * random()), first: false };
            }
        }
        for (name, cause) in due {
            let scope = Scope { routes: vec![name.to_string()], ..Scope::default() };
            self.show_next_look(&name);
            self.take(Event {
                scope,
                cause,
                actor: Actor::daemon(),
                run_id: run_id(),
                received: now,
                wish: Wish::default(),
                reply: None,
            });
        }
    }

    fn show_next_look(&self, name: &Arc<str>) {
        let wait = self.polls.get(name).map(|poll| poll.next.duration_since(Instant::now()));
        let next = wait.and_then(|wait| Timestamp::now().checked_add(wait).ok());
        self.board.update_route(name, |route| route.next_look = next);
    }

    /// Takes an event: finds out beside the loop which repositories it is about.
    fn take(&mut self, event: Event) {
        let (world, owners, stop) = (self.world(), self.owners.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let mut found = Vec::new();
            for (route, repository) in matching(&world, &event.scope) {
                let discovered = match repository {
                    Some(name) => Ok(Discovered { repositories: BTreeSet::from([name]), trouble: Vec::new() }),
                    None => discover(&world, route, &owners, &stop).await,
                };
                found.push((route.name.clone(), discovered));
            }
            Done::Discovered { event, found }
        });
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Discovered { event, found }) => self.discovered(event, found),
            Ok(Done::Looked { key, ask, tell, look }) => self.settled(key, ask, tell, look),
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(%error, "a look ended in a panic; it is looked at again at the next poll"),
        }
    }

    fn discovered(&mut self, event: Event, found: Vec<(Arc<str>, Result<Discovered, Fault>)>) {
        let Event { scope, cause, actor, run_id, wish, reply, received } = event;
        let (queued, looks) = match reply {
            Some(Reply { queued, looks }) => (Some(queued), Some(looks)),
            None => (None, None),
        };
        let mut count = 0;
        for (route, discovered) in found {
            let (repositories, trouble) = match discovered {
                Ok(discovered) => {
                    if scope.repository.is_none() {
                        self.world().metrics.retain_repositories(&route, &discovered.repositories);
                    }
                    (discovered.repositories, discovered.trouble)
                }
                Err(fault) => (BTreeSet::new(), vec![Trouble::from(&fault)]),
            };
            self.tell_trouble(&route, &trouble, looks.as_ref());
            if scope.repository.is_none() {
                self.board.update_route(&route, |entry| entry.repositories = repositories.len());
            }
            if repositories.is_empty() {
                self.note_looked(&route, &trouble);
            }
            for repository in repositories {
                let key = LookKey { route: route.clone(), repository, dry_run: wish.dry_run };
                let (cause, tags) = (self.sharpened(&key, cause), scope.tag.iter().cloned().collect());
                let ask = Ask { tags, digest: scope.digest, cause, actor: actor.clone(), wish, run_id: run_id.clone() };
                self.queue.ask(key, ask, looks.clone(), received.max(Instant::now()));
                count += 1;
            }
        }
        self.world().metrics.event(cause, if count > 0 { "queued" } else { "matched_nothing" });
        if let Some(queued) = queued {
            // Whoever asked may have gone: the looks are done all the same.
            let _ = queued.send(count);
        }
    }

    /// A poll becomes a look that asks production itself when the last one of that kind is long ago; spread evenly, because
    /// each repository has a clock of its own.
    fn sharpened(&mut self, key: &LookKey, cause: Cause) -> Cause {
        let (verify, now) = (self.world().rhythm.verify, Instant::now());
        let due = |last: &Instant| now.duration_since(*last) >= verify;
        match cause {
            Cause::Poll if self.verified.get(key).is_some_and(|last| !due(last)) => Cause::Poll,
            Cause::Poll => {
                self.verified.insert(key.clone(), now);
                Cause::Verify
            }
            Cause::Start => {
                // The first sweep comes at a time of its own for each repository.
                self.verified.insert(key.clone(), now.checked_sub(verify.mul_f64(0.5 * random())).unwrap_or(now));
                cause
            }
            _ => cause,
        }
    }

    fn tell_trouble(&self, route: &Arc<str>, trouble: &[Trouble], looks: Option<&mpsc::UnboundedSender<Look>>) {
        let text = trouble.iter().map(|trouble| trouble.text.as_str()).collect::<Vec<_>>().join("; ");
        if self.changes.changed(&format!("discovery of {route}"), &text) && !text.is_empty() {
            tracing::warn!(route = &**route, error = text, "repositories could not be found");
        }
        if let (Some(looks), false) = (looks, trouble.is_empty()) {
            let _ = looks.send(Look { trouble: trouble.to_vec(), ..Look::default() });
        }
    }

    /// Starts the looks whose turn has come.
    fn start_looks(&mut self) {
        while self.looks < LOOKS {
            let Some((key, waiting)) = self.queue.start(Instant::now()) else { return };
            let world = self.world();
            if world.route(&key.route).is_none() {
                self.queue.settled(&key, true);
                continue;
            }
            self.looks += 1;
            self.spawn_look(world, key, waiting);
        }
    }

    fn spawn_look(&mut self, world: Arc<World>, key: LookKey, waiting: Waiting) {
        let (board, progress) = (self.board.clone(), self.progress.clone());
        let withdrawn = world.withdrawn.get(&key.route).cloned().unwrap_or_default();
        let stop = Stop { withdrawn, ..self.stop.clone() };
        self.tasks.spawn(async move {
            let Waiting { ask, tell, .. } = waiting;
            let facts = Facts { run_id: ask.run_id.clone(), ..(*world.facts).clone() };
            let settle = Settle { facts: Arc::new(facts), progress, listener: None };
            let look = match world.route(&key.route) {
                Some(route) => {
                    world.metrics.look_begins(&key.route, ask.cause);
                    Looking {
                        world: &world,
                        route,
                        repository: &key.repository,
                        ask: &ask,
                        settle: &settle,
                        board: &board,
                        stop: &stop,
                    }
                    .look()
                    .await
                }
                None => Look::default(),
            };
            Done::Looked { key, ask, tell, look }
        });
    }

    fn settled(&mut self, key: LookKey, ask: Ask, tell: Vec<mpsc::UnboundedSender<Look>>, look: Look) {
        self.looks -= 1;
        let well = !calls_for_another(&look);
        if !well && !key.dry_run && !self.stop.drain.is_cancelled() {
            self.queue.ask_later(
                key.clone(),
                Ask { actor: Actor::daemon(), wish: Wish::default(), run_id: run_id(), ..ask },
                Instant::now(),
            );
        }
        self.queue.settled(&key, well);
        self.log_trouble(&key, &look);
        self.note_looked(&key.route, &look.trouble);
        for asker in tell {
            // Whoever asked may have gone.
            let _ = asker.send(look.clone());
        }
    }

    fn log_trouble(&self, key: &LookKey, look: &Look) {
        let text = look.trouble.iter().map(|trouble| trouble.text.as_str()).collect::<Vec<_>>().join("; ");
        let changed = self.changes.changed(&format!("{} {}", key.route, key.repository), &text);
        match (changed, text.is_empty()) {
            (true, false) => tracing::warn!(route = &*key.route, repository = %key.repository, error = text, "could not look"),
            (true, true) => tracing::info!(route = &*key.route, repository = %key.repository, "looking works again"),
            (false, _) => {}
        }
    }

    fn note_looked(&mut self, route: &Arc<str>, trouble: &[Trouble]) {
        self.looked.insert(route.clone());
        let totals = self.world().metrics.totals(route);
        let now = Timestamp::now();
        let all_equal = self.world().metrics.is_equal(route);
        self.board.update_route(route, |entry| {
            entry.last_look = Some(now);
            entry.tags = Totals { up_to_date: totals.up_to_date + totals.promoted, promoted: 0, ..totals };
            entry.trouble = trouble.to_vec();
            if trouble.is_empty() && all_equal {
                entry.last_success = Some(now);
            }
        });
        self.show_next_look(route);
        self.show_ready();
    }
}

/// Whether trouble in a look may pass by itself.
fn calls_for_another(look: &Look) -> bool {
    let may_pass =
        |class: &str| class == Class::RETRYABLE.name() || class == Class::NotFound.name() || class == Class::Corrupt.name();
    let failed = look.jobs.iter().filter(|job| job.result == Outcome::Failed).filter_map(|job| job.error.as_ref());
    failed.chain(&look.trouble).any(|trouble| may_pass(&trouble.class))
}

/// The routes that a scope is about, with the repository when the scope names one that falls to it.
pub(super) fn matching<'a>(world: &'a World, scope: &Scope) -> Vec<(&'a super::route::Route, Option<RepositoryName>)> {
    let named = |route: &&super::route::Route| scope.routes.is_empty() || scope.routes.iter().any(|name| *name == *route.name);
    let routes = world.routes.0.iter().filter(named);
    match &scope.repository {
        None => routes.map(|route| (route, None)).collect(),
        Some(name) => {
            let has_it = |route: &&super::route::Route| {
                world.routes.of(route.from.registry(), name).is_some_and(|owner| owner.name == route.name)
            };
            routes.filter(has_it).map(|route| (route, Some(name.clone()))).collect()
        }
    }
}
