//! The one source of chance: jitter, and names that must not meet. Not for secrets.
//!
//! Each thread has a generator of its own, seeded from the operating system unless [`seed`] has set
//! it.

use std::cell::RefCell;
use std::hash::{BuildHasher as _, RandomState};

use fastrand::Rng;

thread_local! {
    static GENERATOR: RefCell<Rng> = RefCell::new(Rng::with_seed(unpredictable().hash_one(())));
}

/// Makes everything that this thread draws from here on follow from `seed`.
pub fn seed(seed: u64) {
    GENERATOR.set(Rng::with_seed(seed));
}

/// A number from 0 to 1, without 1.
pub fn fraction() -> f64 {
    GENERATOR.with_borrow_mut(Rng::f64)
}

/// 16 hexadecimal characters.
pub fn name() -> String {
    format!(
        "{:016x}",
        GENERATOR.with_borrow_mut(|generator| generator.u64(..))
    )
}

/// The key of a hash that a peer cannot guess, from the operating system whatever the seed.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that asks the system"
)]
pub fn unpredictable() -> RandomState {
    RandomState::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_all_that_is_drawn_on_its_thread() {
        let draw = || {
            seed(7);
            (fraction(), name(), fraction())
        };
        assert_eq!(draw(), draw());
        assert_eq!(draw(), std::thread::spawn(draw).join().unwrap());
        seed(8);
        assert_ne!(draw().1, std::thread::spawn(name).join().unwrap());
    }

    #[test]
    fn fractions_spread_over_their_whole_range() {
        seed(1);
        let drawn: Vec<f64> = (0..1000).map(|_| fraction()).collect();
        assert!(drawn.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        assert!(
            drawn.iter().any(|fraction| *fraction < 0.1)
                && drawn.iter().any(|fraction| *fraction > 0.9)
        );
    }

    #[test]
    fn threads_without_a_seed_draw_different_names() {
        let names = [0, 1].map(|_| std::thread::spawn(name).join().unwrap());
        assert_ne!(names[0], names[1]);
    }
}
