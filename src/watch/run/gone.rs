//! Source repositories that are gone. A look at one is followed by others, ever less often, until a
//! catalog that does not list it has been read: names that events bring cost a bounded number of
//! looks.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::Watch;
use crate::endpoint::Repositories;
use crate::job::Look;
use crate::look::topology::Topology;
use crate::watch::queue::{LookKey, RetryDelays};

impl<B: Repositories> Watch<B> {
    /// Records whether the source of a look was there.
    pub(super) fn note_source(&mut self, key: &LookKey, look: &Look, pace: Option<RetryDelays>) {
        if !look.found && pace == Some(RetryDelays::ABSENT) {
            self.gone.insert(key.clone());
        } else {
            self.gone.remove(key);
        }
    }

    /// Forgets the repositories that were not there and that the catalog of `registry`, just read,
    /// does not list. Waiting requests for them stay.
    pub(super) fn forget_gone(&mut self, topology: &Topology<B>, registry: &Arc<str>) {
        let owners = &self.owners;
        let gone: BTreeSet<LookKey> = self
            .gone
            .extract_if(.., |key| {
                topology
                    .routes
                    .position(&key.route)
                    .filter(|route| topology.routes.0[*route].from.registry() == registry)
                    .is_some_and(|route| !owners.knows(route, &key.repository))
            })
            .collect();
        if gone.is_empty() {
            return;
        }
        for key in &gone {
            self.forget(topology, key);
        }
        topology.engine.retain_companions(|kept| {
            !gone.contains(&LookKey {
                route: kept.route.clone(),
                repository: kept.source.clone(),
                dry_run: false,
            })
        });
        self.show_ready();
    }

    fn forget(&mut self, topology: &Topology<B>, key: &LookKey) {
        let LookKey {
            route, repository, ..
        } = key;
        self.queue.forget(key, Instant::now());
        self.resting.remove(key);
        if let Some(verified) = self.verified.get_mut(route) {
            verified.remove(repository);
        }
        self.route_health.forget(route, repository);
        topology.metrics.forget_repository(route, repository);
        let trouble = self.route_health.trouble(route);
        self.board
            .update_route(route, |entry| entry.trouble = trouble);
        self.show_standing(route);
    }
}
