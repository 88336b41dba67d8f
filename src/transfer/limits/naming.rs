//! Naming permits of one registry: how many jobs ask about their tag for the last time and move it
//! at once.
//!
//! A permit is granted by rank, then to the job that waits for its name the longest. Jobs that are
//! asked for by name have permits beyond the limit of the others. The wait for
//! the rate limiters comes before, without a permit: [`RegistryLimiter::until_admitted`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::{RegistryLimiter, RequestClass, RequestPermit, RequestPriority};
use crate::job::Rank;

/// The permit to ask about a tag for the last time and to move it, until dropped.
#[derive(Debug)]
pub struct NamingPermit {
    limiter: Arc<RegistryLimiter>,
}

impl NamingPermit {
    /// How long the registry's limits hold up the PUT; zero: it would go at once.
    pub fn admitted_in(&self) -> Duration {
        self.limiter.admitted_in(RequestClass::Writes)
    }

    /// The permit for the PUT: it has the next token of its class.
    pub async fn request(&self) -> RequestPermit<'_> {
        let priority = RequestPriority {
            is_naming: true,
            ..RequestPriority::from(RequestClass::Writes)
        };
        self.limiter.acquire(priority).await
    }
}

impl Drop for NamingPermit {
    fn drop(&mut self) {
        let mut state = self.limiter.names().lock();
        state.core.release();
        state.pump(self.limiter.names_at_once());
    }
}

impl RegistryLimiter {
    /// There may be more permits than before.
    pub(in crate::transfer) fn grant_names(&self) {
        self.names().lock().pump(self.names_at_once());
    }

    /// Waits for a naming permit. `since` is when the job began to wait for its name: it keeps its
    /// place over all rounds.
    pub async fn naming(self: &Arc<RegistryLimiter>, rank: Rank, since: Instant) -> NamingPermit {
        let id = {
            let mut state = self.names().lock();
            state.next += 1;
            let id = state.next;
            state.core.ask(rank, since, id);
            state.pump(self.names_at_once());
            id
        };
        NamingWait {
            limiter: Some(self.clone()),
            rank,
            since,
            id,
        }
        .await
    }

    /// A naming permit, if one is free and no other job waits for it.
    pub fn try_naming(self: &Arc<RegistryLimiter>) -> Option<NamingPermit> {
        let mut state = self.names().lock();
        if !state.core.waiting.is_empty() || state.core.held >= self.names_at_once() {
            return None;
        }
        state.core.held += 1;
        Some(NamingPermit {
            limiter: self.clone(),
        })
    }
}

struct NamingWait {
    /// Taken when the permit is.
    limiter: Option<Arc<RegistryLimiter>>,
    rank: Rank,
    since: Instant,
    id: u64,
}

impl Future for NamingWait {
    type Output = NamingPermit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<NamingPermit> {
        let id = self.id;
        let limiter = self.limiter.take().expect("it is not polled after its end");
        let mut state = limiter.names().lock();
        if state.core.granted.remove(&id) {
            state.wakers.forget(id);
            drop(state);
            return Poll::Ready(NamingPermit { limiter });
        }
        state.wakers.wait(id, cx.waker());
        drop(state);
        self.limiter = Some(limiter);
        Poll::Pending
    }
}

impl Drop for NamingWait {
    fn drop(&mut self) {
        let Some(limiter) = self.limiter.take() else {
            return;
        };
        let mut state = limiter.names().lock();
        state.wakers.forget(self.id);
        if state.core.granted.remove(&self.id) {
            state.core.release();
        } else {
            state.core.cancel(self.rank, self.since, self.id);
        }
        state.pump(limiter.names_at_once());
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;
    use crate::endpoint::Origin;
    use crate::registry::profile::Quotas;
    use crate::transfer::limits::{Limits, Settings};

    fn limiter(settings: Settings) -> Arc<RegistryLimiter> {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        limits.set(&origin, settings);
        limits.of(&origin)
    }

    #[tokio::test(start_paused = true)]
    async fn permits_go_by_rank_then_to_the_oldest_and_survive_dropped_waiters() {
        let limiter = limiter(Settings {
            concurrency: Some(3),
            ..Settings::default()
        });
        let now = Instant::now();
        let first = limiter.naming(Rank::Backfill, now).await;
        let second = limiter.naming(Rank::Named, now).await;
        assert!(limiter.try_naming().is_none(), "a third of three is one");
        let mut late = pin!(limiter.naming(Rank::Event, now + Duration::from_secs(9)));
        let mut early = pin!(limiter.naming(Rank::Event, now + Duration::from_secs(1)));
        let mut named = Box::pin(limiter.naming(Rank::Named, now + Duration::from_secs(20)));
        assert!(
            poll!(&mut late).is_pending()
                && poll!(&mut early).is_pending()
                && poll!(&mut named).is_pending()
        );
        drop(second);
        drop(named);
        assert!(poll!(&mut late).is_pending() && poll!(&mut early).is_pending());
        drop(first);
        assert!(poll!(&mut late).is_pending());
        let Poll::Ready(early) = poll!(&mut early) else {
            panic!("a dropped grant goes to the next one")
        };
        drop(early);
        assert!(poll!(&mut late).is_ready());
    }

    /// Names that took 20 s each held all permits: a hotfix waited for them.
    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_by_name_has_permits_beyond_those_of_slow_names() {
        let limiter = limiter(Settings {
            concurrency: Some(6),
            ..Settings::default()
        });
        let now = Instant::now();
        let take = async |rank| {
            let mut held = Vec::new();
            loop {
                let mut permit = Box::pin(limiter.naming(rank, now));
                match poll!(&mut permit) {
                    Poll::Ready(permit) => held.push(permit),
                    Poll::Pending => return held,
                }
            }
        };
        let slow = take(Rank::Backfill).await;
        let named = take(Rank::Named).await;
        assert_eq!((slow.len(), named.len()), (2, 2));
        drop(named);
        assert!(take(Rank::New).await.is_empty(), "these are kept");
        drop(slow);
        assert_eq!(take(Rank::New).await.len(), 2);
    }

    #[test]
    fn a_registry_names_what_it_writes_in_half_a_second() {
        let quota = |writes| Quotas {
            writes,
            ..Quotas::default()
        };
        for (concurrency, writes, at_once) in [
            (None, Some(10), 4),
            (None, None, 21),
            (Some(2), None, 1),
            (Some(200), Some(1), 1),
        ] {
            let settings = Settings {
                concurrency,
                quotas: quota(writes),
                ..Settings::default()
            };
            assert_eq!(
                limiter(settings).names_at_once(),
                at_once,
                "{concurrency:?} at once, {writes:?} a second"
            );
        }
    }
}
