//! The wakers of tasks that wait for a grant, woken in the order of the grants.

use std::collections::BTreeMap;
use std::task::Waker;

/// Tasks that wait, by the number of their request.
#[derive(Debug, Default)]
pub(super) struct Wakers(BTreeMap<u64, Entry>);

#[derive(Debug, Default)]
struct Entry {
    is_granted: bool,
    waker: Option<Waker>,
}

impl Wakers {
    /// Notes that `id` waits, and how to wake it.
    pub(super) fn wait(&mut self, id: u64, waker: &Waker) {
        let entry = self.0.entry(id).or_default();
        if !entry.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            entry.waker = Some(waker.clone());
        }
    }

    /// Notes a grant and wakes its task.
    pub(super) fn grant(&mut self, id: u64) {
        let entry = self.0.entry(id).or_default();
        entry.is_granted = true;
        if let Some(waker) = entry.waker.take() {
            waker.wake();
        }
    }

    /// Takes the grant of `id`, if it has one.
    pub(super) fn take(&mut self, id: u64) -> bool {
        let is_granted = self.0.get(&id).is_some_and(|entry| entry.is_granted);
        if is_granted {
            self.0.remove(&id);
        }
        is_granted
    }

    /// Forgets `id`. Returns whether it had a grant that was not taken.
    pub(super) fn forget(&mut self, id: u64) -> bool {
        self.0.remove(&id).is_some_and(|entry| entry.is_granted)
    }
}
