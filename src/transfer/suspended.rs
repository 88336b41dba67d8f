//! Names that wait for a registry's time without their job: what is kept of each is how often and
//! how long it was tried.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::job::TagId;

/// The time after which a name is given up for now.
const LONGEST: Duration = Duration::from_secs(300);
/// Names that are remembered.
const MOST: usize = 10_000;

/// The rounds that a name has had, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    began: Instant,
    /// How many rounds.
    pub(super) count: u32,
}

impl Rounds {
    fn first() -> Rounds {
        Rounds {
            began: Instant::now(),
            count: 0,
        }
    }

    /// How long the name may still be tried for.
    pub(super) fn time_left(&self) -> Duration {
        LONGEST.saturating_sub(self.began.elapsed())
    }
}

/// Names whose jobs ended to wait for a registry's time: the jobs that take them up count on. Cheap
/// to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct SuspendedNames(Arc<Mutex<BTreeMap<TagId, Rounds>>>);

impl SuspendedNames {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TagId, Rounds>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job ends; another one takes the name up.
    pub(super) fn suspend(&self, place: &TagId, rounds: Rounds) {
        let mut names = self.lock();
        if names.len() >= MOST {
            names.retain(|_, rounds| !rounds.time_left().is_zero());
        }
        if names.len() < MOST {
            names.insert(place.clone(), rounds);
        }
    }

    /// The rounds of before, unless their time is over.
    pub(super) fn resume(&self, place: &TagId) -> Rounds {
        let rounds = self.lock().remove(place);
        let rounds = rounds.filter(|rounds| !rounds.time_left().is_zero());
        rounds.unwrap_or_else(Rounds::first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Origin;

    fn place(number: usize) -> TagId {
        TagId {
            origin: Origin::new("http://d"),
            repository: "app".parse().unwrap(),
            tag: format!("v{number}").parse().unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_taken_up_once_with_its_count_and_its_time() {
        let names = SuspendedNames::default();
        let mut rounds = names.resume(&place(1));
        rounds.count = 3;
        tokio::time::advance(Duration::from_secs(100)).await;
        names.suspend(&place(1), rounds);
        tokio::time::advance(Duration::from_secs(50)).await;
        let resumed = names.resume(&place(1));
        assert_eq!((resumed.count, resumed.time_left().as_secs()), (3, 150));
        assert_eq!(names.resume(&place(1)).count, 0, "it was taken up");
        names.suspend(&place(1), resumed);
        tokio::time::advance(Duration::from_secs(150)).await;
        assert_eq!(names.resume(&place(1)).count, 0, "its time is over");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let names = SuspendedNames::default();
        for number in 0..=MOST {
            names.suspend(&place(number), Rounds::first());
        }
        assert_eq!(names.lock().len(), MOST);
        tokio::time::advance(LONGEST).await;
        names.suspend(&place(MOST), Rounds::first());
        assert_eq!(names.lock().len(), 1);
    }
}
