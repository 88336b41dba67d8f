//! Claims: which source repository writes to which destination repository.
//!
//! A source claims all of its destinations or none. Of two sources with one destination, the first
//! by the routes' order in the config, then by name, has it, whichever was found first. The cost of
//! a change is that of the sources that share a destination with it, directly or through others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::endpoint::Origin;
use crate::oci::RepositoryName;

/// A destination repository.
pub type DestinationKey = (Origin, RepositoryName);

/// A source repository of a route. Lower ones claim first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Claimant {
    /// The position of its route in the config.
    pub route: usize,
    /// Its name.
    pub source: RepositoryName,
}

/// The destinations that a source claims; empty if it may claim none.
pub type DestinationKeys = Arc<[DestinationKey]>;

/// The claims of all sources.
#[derive(Debug, Default)]
pub struct Claims {
    wanted: BTreeMap<Claimant, DestinationKeys>,
    claimants: HashMap<DestinationKey, BTreeSet<Claimant>>,
    owners: HashMap<DestinationKey, Claimant>,
}

impl Claims {
    /// The source that owns a destination.
    pub fn owner(&self, destination: &DestinationKey) -> Option<&Claimant> {
        self.owners.get(destination)
    }

    /// Updates the destinations of sources; `None` removes the source. Returns the positions of
    /// routes with a possible change of [`Claims::owner`].
    pub fn update(
        &mut self,
        changes: impl IntoIterator<Item = (Claimant, Option<DestinationKeys>)>,
    ) -> BTreeSet<usize> {
        let mut routes = BTreeSet::new();
        let mut touched = Vec::new();
        for (claimant, destinations) in changes {
            routes.insert(claimant.route);
            let before = match destinations.clone() {
                Some(destinations) => self.wanted.insert(claimant.clone(), destinations),
                None => self.wanted.remove(&claimant),
            };
            for destination in before.iter().flat_map(|destinations| destinations.iter()) {
                self.withdraw(destination, &claimant);
                touched.push(destination.clone());
            }
            for destination in destinations
                .iter()
                .flat_map(|destinations| destinations.iter())
            {
                self.claimants
                    .entry(destination.clone())
                    .or_default()
                    .insert(claimant.clone());
                touched.push(destination.clone());
            }
        }
        let claimants = self.release_all_connected(touched);
        routes.extend(claimants.iter().map(|claimant| claimant.route));
        claimants
            .into_iter()
            .for_each(|claimant| self.claim(claimant));
        routes
    }

    fn withdraw(&mut self, destination: &DestinationKey, claimant: &Claimant) {
        if let Some(claimants) = self.claimants.get_mut(destination) {
            claimants.remove(claimant);
            if claimants.is_empty() {
                self.claimants.remove(destination);
            }
        }
    }

    /// Removes the owners of these destinations and of all connected through common claimants.
    /// Returns the claimants, in order.
    fn release_all_connected(
        &mut self,
        mut destinations: Vec<DestinationKey>,
    ) -> BTreeSet<Claimant> {
        let mut connected = BTreeSet::new();
        let mut seen = BTreeSet::new();
        while let Some(destination) = destinations.pop() {
            if !seen.insert(destination.clone()) {
                continue;
            }
            self.owners.remove(&destination);
            for claimant in self.claimants.get(&destination).into_iter().flatten() {
                if connected.insert(claimant.clone()) {
                    destinations.extend(
                        self.wanted
                            .get(claimant)
                            .into_iter()
                            .flat_map(|destinations| destinations.iter())
                            .cloned(),
                    );
                }
            }
        }
        connected
    }

    fn claim(&mut self, claimant: Claimant) {
        let Some(destinations) = self.wanted.get(&claimant) else {
            return;
        };
        if destinations
            .iter()
            .all(|destination| !self.owners.contains_key(destination))
        {
            for destination in destinations.iter() {
                self.owners.insert(destination.clone(), claimant.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claimant(route: usize, source: u8) -> Claimant {
        Claimant {
            route,
            source: format!("s{source}").parse().unwrap(),
        }
    }

    fn destination(number: u8) -> DestinationKey {
        (
            Origin::new("production.example"),
            format!("p{number}").parse().unwrap(),
        )
    }

    fn destinations(numbers: &[u8]) -> Option<DestinationKeys> {
        Some(numbers.iter().map(|number| destination(*number)).collect())
    }

    /// The expected owners: all sources claim from scratch, in order.
    fn from_nothing(
        wanted: &BTreeMap<Claimant, DestinationKeys>,
    ) -> BTreeMap<DestinationKey, Claimant> {
        let mut owners = BTreeMap::new();
        for (claimant, destinations) in wanted {
            if destinations
                .iter()
                .all(|destination| !owners.contains_key(destination))
            {
                owners.extend(
                    destinations
                        .iter()
                        .map(|destination| (destination.clone(), claimant.clone())),
                );
            }
        }
        owners
    }

    proptest! {
        #[test]
        fn changes_one_by_one_come_to_the_same_as_all_at_once(
            changes in prop::collection::vec(
                (0..4_usize, 0..5_u8, prop::option::weighted(0.8, prop::collection::vec(0..8_u8, 0..3))), 1..60),
            together in 1..5_usize,
        ) {
            let mut claims = Claims::default();
            let mut wanted = BTreeMap::new();
            for changes in changes.chunks(together) {
                let before: Vec<_> = (0..8).map(|number| claims.owner(&destination(number)).cloned()).collect();
                let changes: Vec<_> = changes.iter().map(|(route, source, numbers)| {
                    (claimant(*route, *source), numbers.as_deref().and_then(destinations))
                }).collect();
                for (claimant, destinations) in &changes {
                    match destinations {
                        Some(destinations) => drop(wanted.insert(claimant.clone(), destinations.clone())),
                        None => drop(wanted.remove(claimant)),
                    }
                }
                let told = claims.update(changes);
                let expected = from_nothing(&wanted);
                for number in 0..8 {
                    let owner = claims.owner(&destination(number));
                    prop_assert_eq!(owner, expected.get(&destination(number)));
                    let before = before[number as usize].as_ref();
                    if owner != before {
                        let routes = owner.into_iter().chain(before).map(|claimant| claimant.route);
                        prop_assert!(routes.into_iter().all(|route| told.contains(&route)), "a change that is not told");
                    }
                }
            }
            let all: Vec<_> = wanted.into_keys().map(|claimant| (claimant, None)).collect();
            claims.update(all);
            prop_assert!(claims.wanted.is_empty() && claims.claimants.is_empty() && claims.owners.is_empty());
        }
    }

    #[test]
    fn a_source_that_lacks_one_destination_leaves_the_others_to_the_next() {
        let mut claims = Claims::default();
        claims.update([
            (claimant(2, 0), destinations(&[3])),
            (claimant(1, 0), destinations(&[2, 3])),
            (claimant(0, 0), destinations(&[1, 2])),
        ]);
        assert_eq!(claims.owner(&destination(3)), Some(&claimant(2, 0)));
        let told = claims.update([(claimant(0, 0), None)]);
        assert_eq!(claims.owner(&destination(3)), Some(&claimant(1, 0)));
        assert_eq!(told, BTreeSet::from([0, 1, 2]));
    }
}
