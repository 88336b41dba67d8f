//! How many requests to one registry may be under way at once.

/// Requests that are asked for by name and have room beyond the others.
const NAMED: usize = 4;

/// The limits of the config. What is asked for by name has room that nothing else uses, so that a
/// repository with slow answers does not hold it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transfer) struct Concurrency {
    /// Of every rank.
    pub(in crate::transfer) usual: usize,
    /// With what is asked for by name.
    pub(in crate::transfer) most: usize,
}

impl Concurrency {
    /// The config names no limit: what is asked for by name goes above the usual one.
    pub(in crate::transfer) fn unlimited(usual: usize) -> Concurrency {
        Concurrency {
            usual,
            most: usual + NAMED,
        }
    }

    /// The config's limit holds for all together: an eighth of it, and at most four, is kept for
    /// what is asked for by name.
    pub(in crate::transfer) fn configured(most: usize) -> Concurrency {
        Concurrency {
            usual: most - (most / 8).min(NAMED),
            most,
        }
    }

    /// As many may be under way while the others have no more than `width`. Congestion leaves less
    /// room above as well.
    pub(super) fn with_named(self, width: usize) -> usize {
        self.most.min(width + width.min(NAMED))
    }
}
