//! What a config lets stand between an explicit act and its destination.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch as channel;

use super::directory::Directory;
use super::reference::Named;
use crate::backend::Repository;
use crate::endpoint::{Origin, Source as _};
use crate::job::{Gates, Key, TagRules};
use crate::look::topology::{self, Topology};
use crate::oci::Tag;
use crate::route::rules::TagRule;
use crate::route::{Naming, Route};
use crate::transfer::retry::{CurrentRules, RulesInForce};

/// What a config lets stand between an act and its destination.
#[derive(Clone, Debug, Default)]
pub(super) struct Guards {
    /// The routes that lead to the destination.
    pub(super) routes: Arc<[Arc<str>]>,
    /// The gates of the one that leads there from this source; without one, those of all.
    pub(super) gates: Arc<Gates>,
    /// The tags that they let only go forward.
    forward_only: Arc<[TagRule]>,
    /// The name of the backup of a moving tag.
    backup: Option<Naming>,
}

impl Guards {
    /// The backup tag of a tag of the destination.
    pub(super) fn backup(&self, there: &Tag) -> Option<Tag> {
        let backup = self.backup.as_ref();
        backup.filter(|_| explicit_rules(there).moving)?.name(there)
    }

    /// The rules of a tag that is ordered by its names on both sides.
    pub(super) fn rules(&self, source: &Tag, there: &Tag) -> TagRules {
        let rules = explicit_rules(there);
        let mut forward_only = self.forward_only.iter();
        TagRules {
            forward_only: rules.moving && forward_only.any(|rule| rule.matches(source)),
            ..rules
        }
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
        let leads_here = |route: &&Route| {
            let there = topology.destinations(route, source);
            there.is_ok_and(|there| there.iter().any(|side| self.is_destination(side)))
        };
        let own = topology.routes_reading(self.from.origin(), source);
        let own: Vec<&Route> = own.filter(leads_here).collect();
        let guarding = if own.is_empty() { &routes } else { &own };
        let forward_only = guarding
            .iter()
            .flat_map(|route| route.selection.forward_only.iter().cloned());
        Guards {
            forward_only: forward_only.collect(),
            backup: guarding.iter().find_map(|route| route.backup.clone()),
            gates: Gates::together(guarding.iter().map(|route| route.gates.clone())),
            routes: routes.iter().map(|route| route.name.clone()).collect(),
        }
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
                tag: guards.rules(&key.tag, &key.destination.tag),
                backup: guards.backup(&key.destination.tag),
                gates: guards.gates,
                observes: false,
                platform: None,
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
