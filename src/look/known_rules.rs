//! What the config in force says of the jobs of a look. A job asks several times, the last time
//! directly before its tag moves, and the config seldom changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::topology::Topology;
use crate::endpoint::{Origin, Repositories};
use crate::job::Key;
use crate::transfer::retry::{CurrentRules, RulesInForce};

/// Most jobs with remembered rules: more than run at once.
const JOBS: usize = 256;

/// The rules under one config, as far as they were asked for.
struct KnownRules<B: Repositories> {
    topology: Arc<Topology<B>>,
    /// By job, with the origin of its source.
    rules: HashMap<Key, (Origin, Option<RulesInForce>)>,
}

impl<B: Repositories> KnownRules<B> {
    fn under(topology: Arc<Topology<B>>) -> KnownRules<B> {
        KnownRules {
            topology,
            rules: HashMap::new(),
        }
    }

    fn of(&mut self, key: &Key, source: &Origin) -> Option<RulesInForce> {
        if let Some((origin, rules)) = self.rules.get(key)
            && origin == source
        {
            return rules.clone();
        }
        let rules = self.topology.rules_of(key, source);
        if self.rules.len() >= JOBS {
            self.rules.clear();
        }
        self.rules
            .insert(key.clone(), (source.clone(), rules.clone()));
        rules
    }
}

/// The rules of jobs by the config in force, whichever that is when they are asked for.
pub fn rules_in_force<B: Repositories>(
    in_force: watch::Receiver<Arc<Topology<B>>>,
) -> CurrentRules {
    let began = in_force.borrow().clone();
    let known = Mutex::new(KnownRules::under(began));
    CurrentRules::new(move |key, source| {
        let topology = in_force.borrow().clone();
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.topology, &topology) {
            *known = KnownRules::under(topology);
        }
        known.of(key, source)
    })
}
