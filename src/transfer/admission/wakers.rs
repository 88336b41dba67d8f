//! The wakers of tasks that wait for a grant, woken in the order of the grants.

use std::collections::BTreeMap;
use std::task::Waker;

/// Tasks that wait, by the number of their request.
#[derive(Debug, Default)]
pub(in crate::transfer) struct Wakers(BTreeMap<u64, Waker>);

impl Wakers {
    /// Notes how to wake the task of `id`.
    pub(in crate::transfer) fn wait(&mut self, id: u64, waker: &Waker) {
        match self.0.get_mut(&id) {
            Some(known) => known.clone_from(waker),
            None => _ = self.0.insert(id, waker.clone()),
        }
    }

    /// Wakes the task of `id`, if it waits.
    pub(in crate::transfer) fn wake(&mut self, id: u64) {
        if let Some(waker) = self.0.remove(&id) {
            waker.wake();
        }
    }

    /// The task of `id` waits no more.
    pub(in crate::transfer) fn forget(&mut self, id: u64) {
        self.0.remove(&id);
    }
}
