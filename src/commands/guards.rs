//! What a config lets stand between an explicit act and its destination.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch as channel;

use super::directory::Directory;
use super::reference::Named;
use crate::backend::Repository;
use crate::endpoint::{OnlyPlatform, Origin, Source as _};
use crate::job::{Gates, Key, TagRules};
use crate::look::topology::{self, Topology};
use crate::oci::Tag;
use crate::route::Route;
use crate::transfer::retry::{CurrentRules, PlatformNow, RulesInForce};

/// What a config lets stand between an act and its destination.
#[derive(Clone, Debug, Default)]
pub(super) struct Guards {
    /// The routes that lead to the destination.
    pub(super) routes: Arc<[Arc<str>]>,
    /// The gates of the one that leads there from this source; without one, those of all.
    pub(super) gates: Arc<Gates>,
    /// The routes with these gates.
    guarding: Arc<[Route]>,
}

impl Guards {
    /// The backup tag of a tag of the destination.
    pub(super) fn backup(&self, there: &Tag) -> Option<Tag> {
        self.sources(there)
            .find_map(|(route, tag)| route.backup_of(&tag, there))
    }

    /// The platform that production gets alone, where a route promises one.
    pub(super) fn platform(&self) -> Option<Arc<OnlyPlatform>> {
        let mut guarding = self.guarding.iter();
        guarding.find_map(|route| route.platform.clone())
    }

    /// The rules of a tag of the destination that is ordered by name.
    pub(super) fn rules(&self, there: &Tag) -> TagRules {
        let mut sources = self.sources(there);
        TagRules {
            forward_only: sources.any(|(route, tag)| route.selection.is_forward_only(&tag)),
            ..explicit_rules(there)
        }
    }

    /// The guarding routes, with the tags that they would name so.
    fn sources(&self, there: &Tag) -> impl Iterator<Item = (&Route, Tag)> {
        let guarding = self.guarding.iter();
        guarding.flat_map(move |route| {
            let originals = route.to.iter().map(|to| to.naming().original(there));
            originals.flatten().map(move |tag| (route, tag))
        })
    }
}

/// An act's source and destination, for what guards it.
#[derive(Clone)]
pub(super) struct Ends {
    pub(super) from: Repository,
    pub(super) to: Repository,
    pub(super) named: Named,
}

impl Ends {
    /// What a config lets stand between them.
    pub(super) fn guards(&self, topology: &Topology) -> Guards {
        let routes: Vec<&Route> = Directory::of_world(topology)
            .routes_to(&self.named)
            .collect();
        let source = self.from.repository();
        let own: Vec<&Route> = topology
            .routes_reading(self.from.origin(), source)
            .filter(|route| self.is_end_of(route, topology))
            .collect();
        let guarding = if own.is_empty() { &routes } else { &own };
        Guards {
            guarding: guarding.iter().copied().cloned().collect(),
            gates: Gates::together(guarding.iter().map(|route| route.gates.clone())),
            routes: routes.iter().map(|route| route.name.clone()).collect(),
        }
    }

    fn is_end_of(&self, route: &Route, topology: &Topology) -> bool {
        let there = topology.destinations(route, self.from.repository());
        there.is_ok_and(|there| there.iter().any(|side| self.is_destination(side)))
    }

    fn is_destination(&self, side: &topology::Side) -> bool {
        let there = &side.repository;
        there.origin() == self.to.origin() && there.repository() == self.to.repository()
    }

    /// The rules of the config in force. None: routes led there, and none does any more.
    pub(super) fn rules_in_force(
        &self,
        began: &Guards,
        in_force: channel::Receiver<Arc<Topology>>,
    ) -> CurrentRules {
        let ends = self.clone();
        let was_routed = !began.routes.is_empty();
        // A job asks often, and the config seldom changes.
        let known: Mutex<Option<(Arc<Topology>, Guards)>> = Mutex::default();
        CurrentRules::new(move |key: &Key, _source: &Origin| {
            let topology = in_force.borrow().clone();
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let guards = match known.take() {
                Some((by, guards)) if Arc::ptr_eq(&by, &topology) => guards,
                _ => ends.guards(&topology),
            };
            *known = Some((topology, guards.clone()));
            let is_withdrawn = was_routed && guards.routes.is_empty();
            (!is_withdrawn).then(|| RulesInForce {
                tag: guards.rules(&key.destination.tag),
                backup: guards.backup(&key.destination.tag),
                platform: PlatformNow::of(guards.platform().as_deref()),
                gates: guards.gates,
                observes: false,
            })
        })
    }
}

/// The rules of a tag that was ordered by name: `latest` moves.
pub(super) fn explicit_rules(tag: &Tag) -> TagRules {
    TagRules {
        moving: tag.as_str() == "latest",
        ..TagRules::default()
    }
}
