//! Stride scheduling: fair shares of the capacity between registry pairs and ranks.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::job::Rank;

/// The unit of stride scheduling: a rank within a registry pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StrideKey {
    pub(super) rank: Rank,
    pub(super) pair: usize,
}

/// The registry pairs, by number, and their strides. Numbers outlive a config.
#[derive(Debug, Default)]
pub(super) struct RegistryPairs {
    pub(super) numbers: BTreeMap<String, usize>,
    pub(super) of_routes: BTreeMap<Arc<str>, usize>,
    /// The number of pairs in the config.
    pub(super) count: usize,
    /// Running looks of each.
    pub(super) running: Vec<usize>,
    /// The pass value of each key: the lowest goes first.
    pub(super) passes: BTreeMap<StrideKey, u64>,
    /// The highest pass value of a start: it never goes back.
    pub(super) pass: u64,
}

/// How many looks may run.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// In total.
    pub all: usize,
    /// The part of `all` that is reserved for looks that name their tags.
    pub by_name: usize,
}

impl Capacity {
    /// Most running looks of one pair, if there are others.
    pub(super) fn per_pair(self, rank: Rank) -> usize {
        let others = self.all.saturating_sub(self.by_name);
        if rank == Rank::Named {
            others.max(1)
        } else {
            others.div_ceil(2).max(1)
        }
    }

    /// Most running looks of all pairs.
    pub(super) fn in_total(self, rank: Rank) -> usize {
        if rank == Rank::Named {
            self.all
        } else {
            self.all.saturating_sub(self.by_name)
        }
    }
}

impl RegistryPairs {
    pub(super) fn of(&self, route: &str) -> usize {
        self.of_routes.get(route).copied().unwrap_or(0)
    }

    pub(super) fn pass_of(&self, stride_key: &StrideKey) -> u64 {
        self.passes.get(stride_key).copied().unwrap_or(self.pass)
    }

    /// A key that was empty gets an entry: its unused share is lost.
    pub(super) fn begin(&mut self, stride_key: StrideKey) {
        let pass = self.pass_of(&stride_key).max(self.pass);
        self.passes.insert(stride_key, pass);
    }

    pub(super) fn start(&mut self, stride_key: StrideKey) {
        if stride_key.rank != Rank::Named {
            // A pair that its cap held back has an old pass, and its unused share is lost.
            self.pass = self.pass_of(&stride_key).max(self.pass);
            self.passes
                .insert(stride_key, self.pass + stride_key.rank.cost());
        }
        if self.running.len() <= stride_key.pair {
            self.running.resize(stride_key.pair + 1, 0);
        }
        self.running[stride_key.pair] += 1;
    }

    pub(super) fn end(&mut self, pair: usize) {
        if let Some(running) = self.running.get_mut(pair) {
            *running = running.saturating_sub(1);
        }
    }
}
