//! What the watch shows on the board, in the log and in the metrics.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::{SHOWN_EVERY, Watch};
use crate::clock;
use crate::endpoint::Repositories;
use crate::job::{Look, Totals, Trouble};
use crate::look::LookRequest;
use crate::look::topology::Topology;
use crate::status::board::{EVENT_TAGS, EventStatus, RouteStatus};
use crate::watch::polls::PollKey;
use crate::watch::queue::LookKey;

impl<B: Repositories> Watch<B> {
    pub(super) fn show_routes(&self, topology: &Topology<B>) {
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
                        observes: route.observes(),
                        ..kept
                    }
                })
                .collect();
        });
        self.show_ready();
    }

    /// Shows the event that a look is queued for.
    pub(super) fn show_event(&self, key: &LookKey, request: &LookRequest) {
        if key.dry_run || !request.cause.is_event() {
            return;
        }
        let remarks = &request.actor.remarks;
        let event = EventStatus {
            repository: key.repository.to_string(),
            cause: request.cause,
            actor: request.actor.to_string(),
            claimed_actor: remarks.claimed_actor.as_ref().map(ToString::to_string),
            at: clock::now(),
            pushed: request.pushed.values().max().copied(),
            tags: request
                .tags
                .iter()
                .take(EVENT_TAGS)
                .map(ToString::to_string)
                .collect(),
        };
        self.board
            .update_route(&key.route, |route| route.note_event(event));
    }

    pub(super) fn show_ready(&self) {
        let ready = self.route_health.is_ready();
        self.board.update(|status| status.ready = ready);
    }

    pub(super) fn show_queue(&mut self) {
        let now = Instant::now();
        let (depth, running, oldest) = self.queue.counts();
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

    pub(super) fn show_next_look(&self, name: &Arc<str>) {
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
    pub(super) fn held(&self, name: &Arc<str>) -> Option<Instant> {
        let repository = self.topology().route(name)?.from.literal()?;
        self.queue.held(&LookKey {
            route: name.clone(),
            repository,
            dry_run: false,
        })
    }

    pub(super) fn log_trouble(&self, key: &LookKey, look: &Look) {
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
                tracing::warn!(
                    route = &*key.route,
                    repository = %key.repository,
                    error = text,
                    "could not look"
                )
            }
            (true, true) => {
                tracing::info!(
                    route = &*key.route,
                    repository = %key.repository,
                    "looking works again"
                )
            }
            (false, _) => {}
        }
    }

    /// Updates the state of the route. Only a look at a whole repository tells its health; a dry
    /// run tells nothing.
    pub(super) fn note_looked(&mut self, key: &LookKey, whole: bool, trouble: &[Trouble]) {
        if key.dry_run {
            return;
        }
        if whole {
            self.route_health
                .looked(&key.route, &key.repository, trouble);
        }
        let totals = self.topology().metrics.totals(&key.route);
        let now = clock::now();
        let trouble = self.route_health.trouble(&key.route);
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

    pub(super) fn show_standing(&self, route: &Arc<str>) {
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
