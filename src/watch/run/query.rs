//! From events to the queue: finds the repositories of an event, and queues looks at them.
//!
//! Each step takes bounded time: a thousand routes or ten thousand repositories are handled in
//! pieces, and other tasks run between them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::vec::IntoIter;

use tokio::time::Instant;

use super::pushed::UNTAGGED_DELAY;
use super::{Done, Task, Watch};
use crate::clock;
use crate::endpoint::Repositories;
use crate::fault::Fault;
use crate::job::{Cause, Remark, Trouble};
use crate::look::LookRequest;
use crate::look::discover::{Catalog, Change, Discovered, Reading, read_catalog};
use crate::look::topology::Topology;
use crate::oci::{RepositoryName, Tag};
use crate::random;
use crate::route::Route;
use crate::watch::event::Event;
use crate::watch::queue::LookKey;

/// Routes and repositories in one piece.
const PIECE: usize = 500;

/// The part of an event for one route. It is answered once the needed catalogs have been read.
pub(super) struct RouteQuery {
    id: u64,
    route: Arc<str>,
    /// Only this repository.
    repository: Option<RepositoryName>,
    /// Other tags than those of the event.
    tags: Option<Vec<Tag>>,
    /// The catalog could not be read.
    failed: Option<Trouble>,
    /// The answer so far.
    answer: Option<Answer>,
}

/// The look that an event asks for, at `tags` where they are not those of the event.
fn request(event: &Event, tags: Option<&[Tag]>) -> LookRequest {
    let of_event = &event.scope.tags;
    // What is told of a push to a destination says nothing of the source.
    let pushed = event.pushed.as_ref().filter(|_| tags.is_none());
    let at = pushed.and_then(|pushed| pushed.at).into_iter();
    let pushers = pushers(event, tags);
    let tags = tags.unwrap_or(of_event).to_vec();
    LookRequest {
        digest: event.scope.digest,
        options: event.options,
        run_id: event.run_id.clone(),
        pushed: at
            .flat_map(|at| of_event.iter().map(move |tag| (tag.clone(), at)))
            .collect(),
        pushers,
        may_precede: pushed.is_some_and(|pushed| pushed.may_precede),
        ..LookRequest::new(tags, event.cause, event.actor.clone())
    }
}

/// The pusher of each tag.
fn pushers(event: &Event, tags: Option<&[Tag]>) -> BTreeMap<Tag, BTreeSet<Remark>> {
    let pusher = event.actor.remarks.claimed_actor.as_ref();
    let is_told = event.pushed.is_some() && tags.is_none();
    let Some(pusher) = pusher.filter(|_| is_told) else {
        return BTreeMap::new();
    };
    let tags = event.scope.tags.iter();
    tags.map(|tag| (tag.clone(), BTreeSet::from([pusher.clone()])))
        .collect()
}

/// An answer, given in one piece or several.
struct Answer {
    discovered: Arc<Discovered>,
    /// The last repository that was queued.
    after: Option<RepositoryName>,
}

/// A catalog that was read, with changes to apply.
pub(super) struct Pending {
    registry: Arc<str>,
    read: Result<(Catalog, IntoIter<Change>), Trouble>,
}

impl<B: Repositories> Watch<B> {
    /// Takes an event. Routes that are known without a catalog are queued at once; the others start
    /// a discovery.
    pub(super) fn take(&mut self, event: Event) {
        if event.pushed.is_some() {
            return self.take_push(event);
        }
        let topology = self.topology();
        let scope = event.scope.clone();
        let matching = topology.matching(&scope.routes, scope.repository.as_ref());
        if matching.is_empty() {
            return self.acknowledge(event, 0);
        }
        let id = self.pending_events.open(event, matching.len());
        for (route, repository) in matching {
            self.ask_route(&topology, id, route, repository);
        }
        self.work();
    }

    /// Takes the event of a push: its repositories are known.
    fn take_push(&mut self, event: Event) {
        let topology = self.topology();
        let Some(pushed) = &event.pushed else {
            return;
        };
        let looks = self.pushed_looks(&topology, pushed, &event.scope.tags);
        if looks.is_empty() {
            return self.acknowledge(event, 0);
        }
        if !looks.iter().all(|look| self.queue.has_room(&look.key())) {
            return topology.metrics.event(event.cause, "limited");
        }
        let id = self.pending_events.open(event, looks.len());
        let questions = looks.into_iter().map(|look| RouteQuery {
            id,
            route: look.route,
            repository: Some(look.repository),
            tags: look.source_tags,
            failed: None,
            answer: None,
        });
        self.questions.extend(questions);
        self.work();
    }

    fn ask_route(
        &mut self,
        topology: &Arc<Topology<B>>,
        id: u64,
        route: &Route,
        repository: Option<RepositoryName>,
    ) {
        if repository.is_some() || route.from.is_literal() {
            let question = RouteQuery {
                id,
                route: route.name.clone(),
                repository,
                tags: None,
                failed: None,
                answer: None,
            };
            return self.questions.push_back(question);
        }
        let registry = route.from.registry();
        if self.pending_events.join(registry, id, route.name.clone()) {
            self.spawn_discovery(topology, registry);
        }
    }

    fn spawn_discovery(&mut self, topology: &Arc<Topology<B>>, registry: &Arc<str>) {
        let task = Task::Discovery {
            registry: registry.clone(),
            topology: topology.clone(),
        };
        let before = self.owners.catalog(registry);
        let topology = topology.clone();
        let registry = registry.clone();
        let stop = self.stop.clone();
        let spawned = self.tasks.spawn(async move {
            Done::Discovered(read_catalog(&*topology, &registry, &before, &stop).await)
        });
        self.running.insert(spawned.id(), task);
    }

    /// Ends the reading of a catalog.
    pub(super) fn discovered(
        &mut self,
        registry: &Arc<str>,
        seen: &Arc<Topology<B>>,
        read: Result<Reading, Fault>,
    ) {
        let topology = self.topology();
        if !Arc::ptr_eq(seen, &topology) {
            return self.discover_anew(&topology, registry);
        }
        let text = read.as_ref().err().map(Fault::chain).unwrap_or_default();
        match (
            self.changes
                .changed(&format!("catalog of {registry}"), &text),
            text.is_empty(),
        ) {
            (true, false) => tracing::warn!(
                registry = &**registry,
                error = text,
                "the catalog could not be read"
            ),
            (true, true) => tracing::info!(registry = &**registry, "the catalog can be read again"),
            (false, _) => {}
        }
        let read = match read {
            Ok(reading) => Ok((reading.catalog, reading.changes.into_iter())),
            Err(fault) => Err(Trouble::from(&fault)),
        };
        self.pending.push_back(Pending {
            registry: registry.clone(),
            read,
        });
        self.work();
    }

    /// The config changed during the reading of a catalog: the waiting routes start over under the
    /// new config.
    fn discover_anew(&mut self, topology: &Arc<Topology<B>>, registry: &Arc<str>) {
        for (id, route) in self.pending_events.outdated(registry) {
            self.ask_anew(topology, id, &route);
        }
        self.work();
    }

    fn ask_anew(&mut self, topology: &Arc<Topology<B>>, id: u64, route: &str) {
        match topology.route(route) {
            Some(route) => self.ask_route(topology, id, route, None),
            None => self.close(id),
        }
    }

    /// The config changed: all open queries start over under the new config.
    pub(super) fn ask_all_anew(&mut self, topology: &Arc<Topology<B>>) {
        let pending = std::mem::take(&mut self.pending);
        for Pending { registry, .. } in pending {
            self.discover_anew(topology, &registry);
        }
        let held = std::mem::take(&mut self.held).into_values().flatten();
        let questions: Vec<RouteQuery> = std::mem::take(&mut self.questions)
            .into_iter()
            .chain(held)
            .collect();
        for question in questions {
            match (&question.repository, &question.answer) {
                (None, None) => self.ask_anew(topology, question.id, &question.route),
                // Its look checks the new config when it starts.
                _ => self.questions.push_back(question),
            }
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.pending.is_empty() || !self.questions.is_empty()
    }

    /// Handles one piece of the waiting work.
    pub(super) fn work(&mut self) {
        let topology = self.topology();
        let mut left = PIECE;
        while left > 0 {
            let done = if let Some(pending) = self.pending.pop_front() {
                self.take_up(&topology, pending, left)
            } else if let Some(question) = self.questions.pop_front() {
                self.answer(&topology, question, left)
            } else {
                break;
            };
            left = left.saturating_sub(done.max(1));
        }
    }

    /// Applies at most `most` changes of a catalog. After the last one, the queries that wait for
    /// it can be answered.
    fn take_up(&mut self, topology: &Arc<Topology<B>>, mut pending: Pending, most: usize) -> usize {
        if let Ok((_, changes)) = &mut pending.read {
            let count = changes.len().min(most);
            self.owners.apply(changes.by_ref().take(most));
            if changes.len() > 0 {
                self.pending.push_front(pending);
                return count;
            }
        }
        let Pending { registry, read } = pending;
        let failed = read.as_ref().err().cloned();
        self.owners
            .read(&registry, read.ok().map(|(catalog, _)| catalog));
        if failed.is_none() {
            self.forget_gone(topology, &registry);
        }
        let (asked, again) = self.pending_events.ended(&registry);
        if again {
            self.spawn_discovery(topology, &registry);
        }
        self.questions
            .extend(self.held.remove(&registry).unwrap_or_default());
        for (id, route) in asked {
            let failed = failed.clone().map(|trouble| Trouble {
                text: format!("route {route}: {}", trouble.text),
                ..trouble
            });
            self.questions.push_back(RouteQuery {
                id,
                route,
                repository: None,
                tags: None,
                failed,
                answer: None,
            });
        }
        most
    }

    /// Answers a query for at most `most` repositories, or stores it until its catalogs are known.
    /// Returns the number of repositories.
    fn answer(&mut self, topology: &Topology<B>, mut question: RouteQuery, most: usize) -> usize {
        let Some(route) = topology.routes.position(&question.route) else {
            self.close(question.id);
            return 1;
        };
        let Answer { discovered, after } = match question.answer.take() {
            Some(answer) => answer,
            None => match self.owners.awaited(route).cloned() {
                Some(registry) => {
                    self.held.entry(registry).or_default().push(question);
                    return 1;
                }
                None => Answer {
                    discovered: self.discover(topology, route, &question),
                    after: None,
                },
            },
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let piece: Vec<RepositoryName> = discovered
            .repositories
            .range((from, Bound::Unbounded))
            .take(most)
            .cloned()
            .collect();
        self.queue_looks(&question, &piece);
        let count = piece.len();
        match piece.into_iter().next_back() {
            Some(last) if discovered.repositories.last() != Some(&last) => {
                question.answer = Some(Answer {
                    discovered,
                    after: Some(last),
                });
                self.questions.push_front(question);
            }
            _ => self.close(question.id),
        }
        count
    }

    /// Finds the repositories of a query, and reports trouble.
    fn discover(
        &mut self,
        topology: &Topology<B>,
        route: usize,
        question: &RouteQuery,
    ) -> Arc<Discovered> {
        let (discovered, fresh) = match (&question.failed, &question.repository) {
            (Some(trouble), _) => {
                self.route_health.undiscovered(&question.route, trouble);
                topology.metrics.undiscovered(&question.route);
                (
                    Arc::new(Discovered {
                        trouble: vec![trouble.clone()],
                        ..Discovered::default()
                    }),
                    false,
                )
            }
            (None, Some(name)) => (Arc::new(self.owners.alone(topology, route, name)), false),
            (None, None) => (self.owners.sorted(topology, route), true),
        };
        if question.repository.is_none() {
            self.show_discovered(&question.route, &discovered, fresh);
        }
        if let Some(pending) = self.pending_events.find(question.id) {
            let look = discovered.as_look();
            pending.count += discovered.repositories.len() + usize::from(look.is_some());
            // A discovery without repositories counts as the look.
            if discovered.repositories.is_empty() && !pending.event.options.dry_run {
                topology.metrics.look_ended(
                    &question.route,
                    pending.event.cause,
                    &discovered.trouble,
                );
            }
            if let (Some(look), Some(reply)) = (look, &pending.event.reply) {
                // The caller may be gone.
                let _ = reply.looks.send(Arc::new(look));
            }
        }
        discovered
    }

    /// Ends the query of one route of an event.
    fn close(&mut self, id: u64) {
        if let Some(pending) = self.pending_events.answered(id) {
            self.acknowledge(pending.event, pending.count);
        }
    }

    fn acknowledge(&self, event: Event, count: usize) {
        self.topology()
            .metrics
            .event(event.cause, if count > 0 { "queued" } else { "ignored" });
        if let Some(reply) = event.reply {
            // The caller may be gone; the looks run all the same.
            let _ = reply.queued.send(count);
        }
    }

    fn queue_looks(&mut self, question: &RouteQuery, repositories: &[RepositoryName]) {
        let Some(pending) = self.pending_events.find(question.id) else {
            return;
        };
        let event = &pending.event;
        let senders = event.reply.as_ref().map(|reply| reply.looks.clone());
        let received = event.received;
        let is_untagged = event.pushed.is_some() && event.scope.tags.is_empty();
        let request = request(event, question.tags.as_deref());
        for repository in repositories {
            let key = LookKey {
                route: question.route.clone(),
                repository: repository.clone(),
                dry_run: request.options.dry_run,
            };
            let cause = self.sharpened(&key, request.cause);
            let request = LookRequest {
                cause,
                trusts_hints: cause.trusts_hints() || is_untagged,
                ..request.clone()
            };
            self.show_event(&key, &request);
            if is_untagged {
                let due = received + UNTAGGED_DELAY;
                self.queue
                    .add_at(key, request, senders.clone(), due, received);
            } else {
                self.queue.add(key, request, senders.clone(), received);
            }
        }
    }

    /// Shows the result of a discovery. `fresh`: it succeeded. An unchanged result is shown
    /// already.
    fn show_discovered(&mut self, route: &Arc<str>, discovered: &Arc<Discovered>, fresh: bool) {
        if fresh && discovered.repositories.is_empty() {
            self.board
                .update_route(route, |entry| entry.last_look = Some(clock::now()));
        }
        if fresh
            && self
                .shown_discovered
                .get(route)
                .is_some_and(|shown| Arc::ptr_eq(shown, discovered))
        {
            return;
        }
        if fresh {
            self.shown_discovered
                .insert(route.clone(), discovered.clone());
            self.log_refused(route, discovered);
            self.route_health.discovered(route, discovered);
            let refused = !discovered.trouble.is_empty();
            self.topology()
                .metrics
                .retain_repositories(route, &discovered.repositories, refused);
            if let Some(verified) = self.verified.get_mut(route) {
                verified.retain(|name, _| discovered.repositories.contains(name));
            }
            self.topology().engine.retain_companions(|kept| {
                kept.route != *route || discovered.repositories.contains(&kept.source)
            });
            self.board.update_route(route, |entry| {
                entry.repositories = discovered.repositories.len()
            });
        } else {
            self.shown_discovered.remove(route);
        }
        let trouble = self.route_health.trouble(route);
        self.board
            .update_route(route, |entry| entry.trouble = trouble);
        self.show_standing(route);
        self.show_ready();
    }

    fn log_refused(&self, route: &Arc<str>, discovered: &Discovered) {
        let text = discovered
            .trouble
            .iter()
            .map(|trouble| trouble.text.as_str())
            .collect::<Vec<_>>()
            .join("; ");
        match (
            self.changes
                .changed(&format!("discovery of {route}"), &text),
            text.is_empty(),
        ) {
            (true, false) => {
                tracing::warn!(route = &**route, error = text, "repositories are left out")
            }
            (true, true) => tracing::info!(route = &**route, "no repository is left out any more"),
            (false, _) => {}
        }
    }

    /// Turns a poll into a verifying look if the last one is long ago. Each repository has its own
    /// time, which spreads them evenly.
    fn sharpened(&mut self, key: &LookKey, cause: Cause) -> Cause {
        let verify = self.topology().intervals.verify;
        let now = Instant::now();
        let verified = self.verified.entry(key.route.clone()).or_default();
        match cause {
            Cause::Poll
                if verified
                    .get(&key.repository)
                    .is_some_and(|last| now.duration_since(*last) < verify) =>
            {
                Cause::Poll
            }
            Cause::Poll => {
                verified.insert(key.repository.clone(), now);
                Cause::Verify
            }
            Cause::Start => {
                // The first verifying look of each repository is at a random time.
                let first = now
                    .checked_sub(verify.mul_f64(0.5 * random::fraction()))
                    .unwrap_or(now);
                verified.insert(key.repository.clone(), first);
                cause
            }
            _ => cause,
        }
    }
}
