//! Why a tag is, or is not, in production: a look that plans alone, what the ledger knows, and the
//! decisions in force.

mod last_verdicts;

use std::sync::Arc;

use axum::http::StatusCode;
use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::watch as channel;

use crate::admin::{KnownTag, Refusal, TagQuery, TagView, TagsHandler};
use crate::backend::Repository;
use crate::commands::{leads_to, named_by};
use crate::decision::{Numbered, Target};
use crate::endpoint::{Origin, Repositories as _, RouteSource, Source};
use crate::fault::{Fault, shown};
use crate::job::{Actor, Cause, GateKind, Key, Outcome, Report, Settled, TagId};
use crate::ledger::{Ledger, Query, Row};
use crate::look::PassOptions;
use crate::look::topology::{Side, Topology};
use crate::oci::{Digest, RepositoryName, Tag};
use crate::route::Route;
use crate::transfer::Stop;
use crate::transfer::resolve::Attempts;
use crate::watch::{Handle, Scope};

/// Tags of staging that one question is about at most.
const MOST: usize = 10;
/// Rows of the ledger that tell since when a tag waits, at most.
const MOST_ROWS: u32 = 100;

/// What `GET /v1/tags` is served with.
pub(super) fn handler(
    ledger: &Ledger,
    topology: channel::Receiver<Arc<Topology>>,
    watch: Handle,
    stop: Stop,
) -> TagsHandler {
    let ledger = ledger.clone();
    Arc::new(move |query| {
        let question = Question {
            ledger: ledger.clone(),
            topology: topology.borrow().clone(),
            watch: watch.clone(),
            stop: stop.clone(),
        };
        async move { question.answer(query).await }.boxed()
    })
}

pub(super) struct Question {
    pub(super) ledger: Ledger,
    pub(super) topology: Arc<Topology>,
    pub(super) watch: Handle,
    pub(super) stop: Stop,
}

/// A tag of staging that a route reads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SourceTag {
    pub(super) route: Arc<str>,
    pub(super) repository: RepositoryName,
    pub(super) tag: Tag,
}

impl Question {
    async fn answer(&self, query: TagQuery) -> Result<Vec<TagView>, Refusal> {
        let mut tags = self.tags(&query).await?;
        tags.sort();
        tags.dedup();
        if tags.is_empty() {
            let text = format!(
                "no route reads or writes {}:{} (`blobferry status` lists the routes)",
                shown(&query.repository, 200),
                query.tag
            );
            return Err(Refusal::new(StatusCode::NOT_FOUND, "nothing_matched", text));
        }
        let mut views = Vec::new();
        for tag in tags.iter().take(MOST) {
            views.extend(self.views(tag).await?);
        }
        Ok(views)
    }

    /// The tags of staging that a query means, by either side.
    async fn tags(&self, query: &TagQuery) -> Result<Vec<SourceTag>, Fault> {
        let mut tags = Vec::new();
        for (registry, backend) in &self.topology.backends {
            for repository in readings(&query.repository, registry, backend.origin()) {
                if let Some(route) = self.topology.routes.of(registry, &repository) {
                    tags.push(SourceTag {
                        route: route.name.clone(),
                        repository: repository.clone(),
                        tag: query.tag.clone(),
                    });
                }
                let place = TagId {
                    origin: backend.origin().clone(),
                    repository,
                    tag: query.tag.clone(),
                };
                tags.extend(self.promoted_to(registry, &place).await?);
            }
        }
        Ok(tags)
    }

    /// The tags of staging that go to a place: that of the ledger's newest job, and those of routes
    /// with one source.
    async fn promoted_to(&self, registry: &str, place: &TagId) -> Result<Vec<SourceTag>, Fault> {
        let routes: Vec<&Route> = self
            .topology
            .routes
            .0
            .iter()
            .filter(|route| leads_to(route, registry, &place.repository))
            .collect();
        let newest = self.ledger.newest_job(place).await?;
        let newest = newest.filter(|key| routes.iter().any(|route| route.name == key.route));
        if let Some(key) = newest {
            return Ok(vec![SourceTag {
                route: key.route,
                repository: key.source,
                tag: key.tag,
            }]);
        }
        Ok(routes
            .iter()
            .filter_map(|route| {
                Some(SourceTag {
                    route: route.name.clone(),
                    repository: route.only_source()?,
                    tag: place.tag.clone(),
                })
            })
            .collect())
    }

    /// What bears on a tag, at each destination of its route.
    async fn views(&self, tag: &SourceTag) -> Result<Vec<TagView>, Refusal> {
        let Some(route) = self.topology.route(&tag.route) else {
            return Ok(Vec::new());
        };
        let planned = self.plan(tag).await?;
        let source = self.topology.source(route, &tag.repository);
        let mut views = Vec::new();
        for side in self.topology.destinations(route, &tag.repository)? {
            views.push(self.view(route, tag, &source, &side, &planned).await?);
        }
        Ok(views)
    }

    /// Why a tag does not move to a destination. `None`: it cannot be told.
    pub(super) async fn kept_back(
        &self,
        tag: &SourceTag,
        destination: String,
    ) -> Result<Option<Vec<String>>, Refusal> {
        let views = self.views(tag).await?.into_iter();
        let view = views.filter(|view| view.destination == destination).last();
        Ok(view.and_then(|view| match view.result? {
            Outcome::Planned | Outcome::Promoted | Outcome::UpToDate => Some(Vec::new()),
            Outcome::Failed | Outcome::Interrupted => None,
            _ => Some(view.reasons),
        }))
    }

    /// A look at the tag that plans alone.
    async fn plan(&self, tag: &SourceTag) -> Result<Arc<Report>, Refusal> {
        let scope = Scope {
            routes: vec![tag.route.to_string()],
            repository: Some(tag.repository.clone()),
            tags: vec![tag.tag.clone()],
            digest: None,
        };
        let options = PassOptions {
            dry_run: true,
            all: true,
            waits: true,
        };
        let asked = self.watch.ask(scope, Cause::Ping, Actor::daemon(), options);
        asked.await?.settled().await.ok_or_else(Refusal::draining)
    }

    async fn view(
        &self,
        route: &Route,
        tag: &SourceTag,
        source: &RouteSource<Repository>,
        side: &Side<Repository>,
        planned: &Report,
    ) -> Result<TagView, Refusal> {
        let there = &side.repository;
        let name = side.naming.name(&tag.tag);
        let place = TagId {
            origin: there.origin().clone(),
            repository: there.repository().clone(),
            tag: name.unwrap_or_else(|| tag.tag.clone()),
        };
        let destination = format!("{}:{}", there.address(), place.tag);
        let job = planned
            .jobs
            .iter()
            .find(|job| job.destination == destination);
        let key = Key {
            route: tag.route.clone(),
            source: tag.repository.clone(),
            tag: tag.tag.clone(),
            destination: place.clone(),
        };
        let last = self.ledger.last(&key).await?;
        let mut view = TagView {
            route: tag.route.to_string(),
            source: format!("{}:{}", source.address(), tag.tag),
            destination,
            digest: None,
            production: None,
            known: Some(self.known(&place).await?),
            moving: Some(route.selection.is_moving(&tag.tag)),
            result: job.map(|job| job.result),
            result_since: None,
            reasons: job.map(|job| job.reasons.clone()).unwrap_or_default(),
            error: job.and_then(|job| job.error.clone()),
            gates: job.map(|job| job.gates.clone()).unwrap_or_default(),
            decisions: Vec::new(),
            last,
            next_look: self.next_look(route),
        };
        match job {
            // Nothing could be compared. Why is a reason already.
            Some(job) if job.digest.is_none() && job.result == Outcome::Refused => {
                let whole = source.whole();
                view.digest = self.named(whole, &tag.tag, &mut view.reasons).await;
                view.production = self.named(there, &place.tag, &mut view.reasons).await;
            }
            Some(job) => {
                view.digest = job.digest;
                view.production = job.previous_digest;
            }
            None => {
                view.reasons = planned.trouble.clone();
                view.digest = self.named(source, &tag.tag, &mut view.reasons).await;
                view.production = self.named(there, &place.tag, &mut view.reasons).await;
            }
        }
        last_verdicts::add(&mut view, &self.gates_of(&side.registry, &place));
        view.note_result_since(&self.rows(&place).await?);
        let named = self.digests(&place, &view, job).await?;
        view.decisions = self
            .decisions(route, &side.registry, &place, &named)
            .await?;
        Ok(view)
    }

    /// The gates of the routes that lead to a place.
    fn gates_of(&self, registry: &str, place: &TagId) -> Vec<GateKind> {
        let routes = self.topology.routes.0.iter();
        let routes = routes.filter(|route| leads_to(route, registry, &place.repository));
        routes.flat_map(Route::gate_kinds).collect()
    }

    /// The newest rows about a place.
    async fn rows(&self, place: &TagId) -> Result<Vec<Row>, Fault> {
        let query = Query {
            limit: MOST_ROWS,
            repository: Some(place.repository.to_string()),
            tag: Some(place.tag.to_string()),
            newest_first: true,
            ..Query::default()
        };
        self.ledger.page(query).await
    }

    async fn known(&self, place: &TagId) -> Result<KnownTag, Fault> {
        let known = self.ledger.written(place).await?;
        Ok(KnownTag {
            digest: known.digest,
            agreed: known.agreed,
            at: known.at,
            reported: known.reported,
        })
    }

    /// What a tag names. Why it cannot be told is a reason.
    async fn named(
        &self,
        repository: &impl Source,
        tag: &Tag,
        reasons: &mut Vec<String>,
    ) -> Option<Digest> {
        let attempts = Attempts::Retried;
        let named = named_by(&self.topology, repository, tag, attempts, &self.stop);
        named.await.unwrap_or_else(|fault| {
            reasons.push(fault.chain());
            None
        })
    }

    /// What either side names, and the indexes of which that is a part.
    async fn digests(
        &self,
        place: &TagId,
        view: &TagView,
        job: Option<&Settled>,
    ) -> Result<Vec<Digest>, Fault> {
        let named = view.digest.into_iter().chain(view.production);
        let mut digests: Vec<Digest> = named.collect();
        if let Some(production) = &view.production {
            digests.extend(self.ledger.indexes_of(place, production).await?);
        }
        digests.extend(job.and_then(|job| job.index));
        Ok(digests)
    }

    /// The decisions in force that cover the tag, or one of the digests.
    async fn decisions(
        &self,
        route: &Route,
        registry: &str,
        place: &TagId,
        digests: &[Digest],
    ) -> Result<Vec<Numbered>, Fault> {
        self.ledger.in_force().await?;
        let routes = [route.name.clone()];
        let set = self.topology.sets.of(place);
        let covers = |target: &Target| match target {
            Target::Digest(digest) => digests.contains(digest),
            Target::Set(..) => set
                .as_ref()
                .is_some_and(|set| target.covers_in_set(&set.name)),
            _ => target.covers(&routes, registry, place),
        };
        let holding = self.ledger.holding().into_iter();
        Ok(holding.filter(|one| covers(&one.target)).collect())
    }

    fn next_look(&self, route: &Route) -> Option<Timestamp> {
        let status = self.watch.board().snapshot();
        let routes = status.routes.into_iter();
        let status = routes.into_iter().find(|known| known.name == *route.name);
        status?.next_look
    }
}

/// The repositories of a registry that a text may name: all of it, or what follows the registry's
/// name or host.
fn readings(text: &str, registry: &str, origin: &Origin) -> Vec<RepositoryName> {
    let host = origin.host().unwrap_or(origin.as_str());
    let after = |first: &str| text.strip_prefix(first)?.strip_prefix('/');
    let mut readings: Vec<RepositoryName> = [Some(text), after(registry), after(host)]
        .into_iter()
        .flatten()
        .filter_map(|name| name.parse().ok())
        .collect();
    readings.sort();
    readings.dedup();
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_may_stand_in_front_by_its_name_or_host() {
        let read = |text: &str| -> Vec<String> {
            let origin = Origin::new("http://127.0.0.1:5000");
            let readings = readings(text, "production", &origin);
            readings.iter().map(ToString::to_string).collect()
        };
        assert_eq!(read("pay/api"), ["pay/api"]);
        assert_eq!(read("production/api"), ["api", "production/api"]);
        assert_eq!(read("127.0.0.1:5000/pay/api"), ["pay/api"]);
        assert_eq!(read("Other"), Vec::<String>::new());
    }
}
