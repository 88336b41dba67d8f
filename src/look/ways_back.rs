//! Ways back: moving tags of a torn set go back to what they named before, where they are still
//! ours.
//!
//! The hold of the set says which. A look at a destination finds them, also after a restart.

use std::sync::Arc;

use futures::FutureExt as _;

use super::RepositoryLook;
use super::topology::Side;
use crate::clock;
use crate::decision::{Numbered, Torn};
use crate::endpoint::{Repositories, Source};
use crate::fault::Fault;
use crate::job::{Actor, Job, Key, Settled, TagId};
use crate::oci::Digest;
use crate::transfer::Stop;
use crate::transfer::retry::CurrentRules;
use crate::transfer::settle::Names;

/// A tag that goes back.
struct WayBack {
    place: TagId,
    /// The number of the hold.
    hold: u64,
    from: Digest,
    to: Digest,
}

impl WayBack {
    /// The moves that a hold takes back.
    fn of(hold: &Numbered) -> impl Iterator<Item = WayBack> {
        let torn = hold.decision.torn.iter();
        torn.flat_map(Torn::taken_back).filter_map(|moved| {
            Some(WayBack {
                place: moved.place(),
                hold: hold.id,
                from: moved.digest,
                to: moved.previous?,
            })
        })
    }
}

impl<B: Repositories> RepositoryLook<'_, B> {
    /// Moves the tags of torn sets back. A refusal is not asked for again by a routine look.
    pub(super) async fn go_back(&self, side: &Side<B::Repository>) -> Result<Vec<Settled>, Fault> {
        let mut gone = Vec::new();
        if self.request.options.dry_run {
            return Ok(gone);
        }
        let engine = &self.topology.engine;
        for way in self.ways_back(side).await? {
            let refusal = engine.refused_way_back(&way.place, way.to);
            if refusal.is_some() && self.request.cause.is_routine() {
                continue;
            }
            // Boxed to keep the look's future small.
            gone.push(self.go_one_back(side, &way).boxed().await);
        }
        Ok(gone)
    }

    async fn ways_back(&self, side: &Side<B::Repository>) -> Result<Vec<WayBack>, Fault> {
        let ledger = &self.topology.engine.ledger;
        let in_force = ledger.in_force().await?;
        let here = side.repository.id();
        let ways: Vec<WayBack> = in_force
            .torn(clock::now())
            .flat_map(WayBack::of)
            .filter(|way| way.place.repository_id() == here)
            .collect();
        if ways.is_empty() {
            return Ok(ways);
        }
        let places = ways.iter().map(|way| way.place.clone()).collect();
        let named = ledger.named_at(places).await?.into_iter();
        let still_ours = ways
            .into_iter()
            .zip(named)
            .filter(|(way, named)| *named == Some(way.from));
        Ok(still_ours.map(|(way, _)| way).collect())
    }

    async fn go_one_back(&self, side: &Side<B::Repository>, way: &WayBack) -> Settled {
        let engine = &self.topology.engine;
        let there = &side.repository;
        let job = self.way_back(side, way);
        let progress = &self.settle.progress;
        // It does not come from staging, so no route has rules for it.
        let stop = Stop {
            rules: CurrentRules::default(),
            ..self.stop.clone()
        };
        let mut completion = engine.run(&job, there, there, progress, &stop).await;
        completion.reasons.push(format!(
            "the set is torn (decision {}): back to what the tag named before",
            way.hold
        ));
        let address = there.address();
        let names = Names {
            source: format!("{address}@{}", way.to),
            destination: format!("{address}:{}", way.place.tag),
            registry: side.registry.to_string(),
        };
        engine.settle(self.settle, &job, &names, completion).await
    }

    fn way_back(&self, side: &Side<B::Repository>, way: &WayBack) -> Job {
        let tag = side.naming.original(&way.place.tag);
        let key = Key {
            route: self.route.name.clone(),
            source: self.repository.clone(),
            tag: tag.unwrap_or_else(|| way.place.tag.clone()),
            destination: way.place.clone(),
        };
        let back = Job::back(key, way.to, way.from, way.hold, Actor::daemon());
        let routes = Arc::from([self.route.name.clone()]);
        Job { routes, ..back }
    }
}
