//! Draws: every number that a simulated world needs comes from a hash of the seed and of what it is
//! for.
//!
//! A fault is drawn for (seed, registry, operation, target, n-th), so a seed that fails goes on
//! failing when the code before that request changes a little.

use std::hash::{Hash, Hasher};
use std::time::Duration;

/// A seed that draws are made from.
#[derive(Clone, Copy, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The draws of one seed.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// The numbers for one purpose: the same for the same seed and purpose, whatever else was
    /// drawn.
    pub fn of(&self, purpose: impl Hash) -> Draw {
        let mut hasher = Fnv::default();
        self.0.hash(&mut hasher);
        purpose.hash(&mut hasher);
        Draw(hasher.finish())
    }
}

/// A sequence of numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// A number from `from` up to and with `to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    pub fn pick<T: Clone>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize].clone()
    }

    /// A time between two numbers of milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }
}

fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A hash that is the same in every process and on every machine (FNV-1a); the standard library's
/// is seeded anew each time.
#[derive(Clone, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        mixed(self.0)
    }
}
