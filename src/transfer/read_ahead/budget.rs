//! The bytes that may be read ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes that all bodies together may have read ahead. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::transfer) struct AheadBudget(pub(super) Arc<AtomicUsize>);

/// The share of one part in the budget, until dropped.
#[derive(Debug)]
pub(super) struct BudgetShare {
    budget: AheadBudget,
    bytes: usize,
}

impl AheadBudget {
    pub(super) fn take(&self, bytes: usize, most: usize) -> Option<BudgetShare> {
        let more = |used: usize| (used + bytes <= most).then_some(used + bytes);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| BudgetShare {
            budget: self.clone(),
            bytes,
        })
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
