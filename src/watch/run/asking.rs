//! From events to the queue: finds out, beside the loop, which repositories an event is about, and asks for looks at them.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Done, Question, Task, Watch, matching};
use crate::clock;
use crate::endpoint::Backend;
use crate::fault::Fault;
use crate::job::{Cause, Trouble};
use crate::oci::RepositoryName;
use crate::random;
use crate::watch::discover::{Discovered, discover};
use crate::watch::event::Event;
use crate::watch::look::Ask;
use crate::watch::queue::LookKey;
use crate::watch::route::Route;
use crate::watch::world::World;

impl<B: Backend> Watch<B> {
    /// Takes an event: what the config or an earlier discovery says is asked of the queue at once; what takes a catalog is found
    /// out beside the loop.
    pub(super) fn take(&mut self, event: Event) {
        let world = self.world();
        let scope = event.scope.clone();
        let matching = matching(&world, &scope);
        if matching.is_empty() {
            return self.acknowledge(event, 0);
        }
        let id = self.inquiries.open(event, matching.len());
        for (route, repository) in matching {
            if repository.is_some() || route.from.is_literal() {
                self.held.push(Question { id, route: route.name.clone(), repository, failed: None });
            } else if self.inquiries.join(&route.name, id) {
                self.spawn_discovery(&world, &route.name);
            }
        }
        self.answer();
    }

    fn spawn_discovery(&mut self, world: &Arc<World<B>>, name: &Arc<str>) {
        let (world, route, stop) = (world.clone(), name.clone(), self.stop.clone());
        let task = Task::Discovery { route: route.clone(), world: world.clone() };
        let spawned = self.tasks.spawn(async move {
            Done::Discovered(match world.route(&route) {
                Some(route) => discover(&world, route, &stop).await,
                None => Ok(BTreeSet::new()),
            })
        });
        self.running.insert(spawned.id(), task);
    }

    pub(super) fn discovered(&mut self, name: &Arc<str>, seen: &Arc<World<B>>, found: Result<BTreeSet<RepositoryName>, Fault>) {
        let world = self.world();
        if !Arc::ptr_eq(seen, &world) {
            return self.discover_anew(&world, name);
        }
        let failed = found.as_ref().err().map(Trouble::from);
        if let Some(route) = world.route(name) {
            self.owners.note(&world, route, found.ok());
        }
        let (asked, again) = self.inquiries.ended(name);
        if again {
            self.spawn_discovery(&world, name);
        }
        let question = |id| Question { id, route: name.clone(), repository: None, failed: failed.clone() };
        self.held.extend(asked.into_iter().map(question));
        self.answer();
    }

    /// The config has changed while a discovery ran: who waits for it is answered from the new one.
    fn discover_anew(&mut self, world: &Arc<World<B>>, name: &Arc<str>) {
        let is_wild = world.route(name).is_some_and(|route| !route.from.is_literal());
        let mut begin = false;
        for id in self.inquiries.outdated(name) {
            if is_wild {
                begin |= self.inquiries.join(name, id);
            } else {
                self.held.push(Question { id, route: name.clone(), repository: None, failed: None });
            }
        }
        if begin {
            self.spawn_discovery(world, name);
        }
        self.answer();
    }

    /// Answers the questions about routes of which it is known who comes first in their destinations.
    pub(super) fn answer(&mut self) {
        let world = self.world();
        for question in std::mem::take(&mut self.held) {
            match world.route(&question.route) {
                Some(route) if !self.owners.awaited(&world, route).is_empty() => self.held.push(question),
                Some(route) => self.queue_looks(&world, route, question),
                None => self.close(question.id),
            }
        }
    }

    /// One of the routes of an event has been answered for.
    fn close(&mut self, id: u64) {
        if let Some(inquiry) = self.inquiries.answered(id) {
            self.acknowledge(inquiry.event, inquiry.count);
        }
    }

    fn acknowledge(&self, event: Event, count: usize) {
        self.world().metrics.event(event.cause, if count > 0 { "queued" } else { "ignored" });
        if let Some(reply) = event.reply {
            // Whoever asked may have gone: the looks are done all the same.
            let _ = reply.queued.send(count);
        }
    }

    fn queue_looks(&mut self, world: &World<B>, route: &Route, question: Question) {
        let (discovered, fresh) = match (question.failed, &question.repository) {
            (Some(trouble), _) => {
                self.standing.undiscovered(&route.name, &trouble);
                world.metrics.undiscovered(&route.name);
                (Arc::new(Discovered { trouble: vec![trouble], ..Discovered::default() }), false)
            }
            (None, Some(name)) => (Arc::new(self.owners.alone(world, route, name)), false),
            (None, None) => (self.owners.sorted(world, route), true),
        };
        if question.repository.is_none() {
            self.show_discovered(&route.name, &discovered, fresh);
        }
        let Some(inquiry) = self.inquiries.find(question.id) else { return };
        let Event { scope, cause, actor, run_id, wish, received, reply } = &inquiry.event;
        let (tell, cause, wish) = (reply.as_ref().map(|reply| reply.looks.clone()), *cause, *wish);
        let tags = scope.tags.clone();
        let ask = Ask { tags, digest: scope.digest, cause, actor: actor.clone(), wish, run_id: run_id.clone() };
        let (look, received) = (discovered.as_look(), *received);
        inquiry.count += discovered.repositories.len() + usize::from(look.is_some());
        // A discovery that found nothing to look at is the look.
        if discovered.repositories.is_empty() && !wish.dry_run {
            world.metrics.look_ended(&route.name, cause, &discovered.trouble);
        }
        if let (Some(look), Some(tell)) = (look, &tell) {
            // Whoever asked may have gone.
            let _ = tell.send(Arc::new(look));
        }
        for repository in &discovered.repositories {
            let key = LookKey { route: route.name.clone(), repository: repository.clone(), dry_run: wish.dry_run };
            let ask = Ask { cause: self.sharpened(&key, cause), ..ask.clone() };
            self.queue.ask(key, ask, tell.clone(), received);
        }
        self.close(question.id);
    }

    /// What a discovery came to; `fresh`: it went well.
    fn show_discovered(&mut self, route: &Arc<str>, discovered: &Discovered, fresh: bool) {
        let text = discovered.trouble.iter().map(|trouble| trouble.text.as_str()).collect::<Vec<_>>().join("; ");
        match (self.changes.changed(&format!("discovery of {route}"), &text), text.is_empty()) {
            (true, false) => tracing::warn!(route = &**route, error = text, "repositories could not be found"),
            (true, true) => tracing::info!(route = &**route, "repositories are found again"),
            (false, _) => {}
        }
        if fresh {
            self.standing.discovered(route, discovered);
            let refused = !discovered.trouble.is_empty();
            self.world().metrics.retain_repositories(route, &discovered.repositories, refused);
            self.verified.retain(|key, _| key.route != *route || discovered.repositories.contains(&key.repository));
            self.board.update_route(route, |entry| {
                entry.repositories = discovered.repositories.len();
                if discovered.repositories.is_empty() {
                    entry.last_look = Some(clock::now());
                }
            });
        }
        let trouble = self.standing.trouble(route);
        self.board.update_route(route, |entry| entry.trouble = trouble);
        self.show_standing(route);
        self.show_ready();
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
                self.verified.insert(key.clone(), now.checked_sub(verify.mul_f64(0.5 * random::fraction())).unwrap_or(now));
                cause
            }
            _ => cause,
        }
    }
}
