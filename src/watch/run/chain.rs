//! Chains: a promotion into a repository that another route reads is an event for that route.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Watch;
use crate::endpoint::{Repositories, Source as _};
use crate::job::{Cause, Look, Outcome, Settled};
use crate::look::topology::Side;
use crate::oci::{RepositoryName, Tag};
use crate::watch::event::{Event, Scope};
use crate::watch::queue::LookKey;

/// The tags that a look has promoted, by the route that reads them next and its repository.
type Next = BTreeMap<(Arc<str>, RepositoryName), Vec<Tag>>;

impl<B: Repositories> Watch<B> {
    /// Looks at what other routes read of the promotions of a look.
    pub(super) fn follow_chains(&mut self, key: &LookKey, look: &Look) {
        for ((route, repository), tags) in self.next_in_chains(key, look) {
            let scope = Scope {
                routes: vec![route.to_string()],
                repository: Some(repository),
                tags,
                digest: None,
            };
            self.take(Event::of_daemon(scope, Cause::Chain));
        }
    }

    fn next_in_chains(&self, key: &LookKey, look: &Look) -> Next {
        let mut next = Next::new();
        let promoted: Vec<&Settled> = look
            .jobs
            .iter()
            .filter(|job| job.result == Outcome::Promoted)
            .collect();
        let topology = self.topology();
        let Some(route) = topology.route(&key.route).filter(|_| !promoted.is_empty()) else {
            return next;
        };
        let sides = topology.destinations(route, &key.repository);
        for side in sides.unwrap_or_default() {
            let there = &side.repository;
            let readers = topology
                .routes_reading(there.origin(), there.repository())
                .filter(|reader| reader.name != route.name);
            for reader in readers {
                let tags = promoted.iter().filter_map(|job| promoted_tag(&side, job));
                let of_reader = (reader.name.clone(), there.repository().clone());
                next.entry(of_reader).or_default().extend(tags);
            }
        }
        next.retain(|_, tags| !tags.is_empty());
        next
    }
}

/// The tag that a job has moved in a destination. What travels with an image comes along.
fn promoted_tag<R: crate::endpoint::Source>(side: &Side<R>, job: &Settled) -> Option<Tag> {
    let address = side.repository.address();
    let name = job.destination.strip_prefix(&*address)?.strip_prefix(':')?;
    let tag: Tag = name.parse().ok()?;
    (!tag.travels_with_subject()).then_some(tag)
}
