//! Rate-limit state from response headers: written by the client, read by the limiter.
//!
//! Registries that count requests say with each answer how many are left (`RateLimit-Remaining`),
//! and when there will be more: by a time (`RateLimit-Reset`), or only by the length of their
//! window (`;w=SECONDS`). Nothing here waits.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// Kinds of requests that registries limit apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    /// Lists of tags, repositories and referrers.
    Listing,
    /// Manifests that are read or asked for.
    Manifests,
    /// Blobs that are read or asked for.
    Blobs,
    /// Upload sessions: mounts, bodies and what belongs to them.
    Uploads,
    /// Manifests that are written.
    Writes,
}

/// What one answer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitHeader {
    /// Requests that are left.
    pub remaining: u64,
    /// The time until there will be more.
    pub reset: Option<Duration>,
    /// The length of the window that is counted in.
    pub window: Option<Duration>,
}

/// Longest wait where the registry names its end.
const LONGEST: Duration = Duration::from_secs(3600);
/// Longest wait where only the window's length is known: it may have begun long before we first saw
/// it, or slide.
const UNSURE: Duration = Duration::from_secs(300);

/// What one registry still allows. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub struct RateLimit(Arc<Mutex<[Count; 5]>>);

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// Since when the window is known, and what was left in it at last.
    window: Option<(Instant, u64)>,
    spent_until: Option<Instant>,
}

impl RateLimit {
    /// Notes what an answer to such a request said.
    pub fn note(&self, class: RequestClass, said: RateLimitHeader) {
        let now = Instant::now();
        let count = &mut self.lock()[class as usize];
        let length = said.window.unwrap_or_default();
        let since = count
            .window
            .filter(|(since, before)| {
                said.remaining <= *before && now < *since + length.min(LONGEST * 24)
            })
            .map_or(now, |(since, _)| since);
        count.window = Some((since, said.remaining));
        let wait = said.reset.map(|reset| reset.min(LONGEST)).or_else(|| {
            said.window
                .map(|window| window.saturating_sub(now - since).min(UNSURE))
        });
        count.spent_until = wait.filter(|_| said.remaining == 0).map(|wait| now + wait);
    }

    /// How long such requests would be refused, as far as the registry has said.
    pub fn spent_for(&self, class: RequestClass) -> Duration {
        let until = self.lock()[class as usize].spent_until;
        until
            .map(|until| until.saturating_duration_since(Instant::now()))
            .unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, [Count; 5]> {
        self.0.lock().expect("nothing panics while it notes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(remaining: u64, reset: Option<u64>, window: Option<u64>) -> RateLimitHeader {
        RateLimitHeader {
            remaining,
            reset: reset.map(Duration::from_secs),
            window: window.map(Duration::from_secs),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_spent_allowance_lasts_until_the_time_that_was_named_at_most_an_hour() {
        let table = [
            (said(0, Some(30), None), 30),
            (said(0, Some(30), Some(60)), 30),
            (said(1, Some(30), Some(60)), 0),
            (said(0, None, None), 0),
            (said(0, Some(u64::MAX), Some(u64::MAX)), 3600),
            (said(0, None, Some(60)), 60),
            (said(0, None, Some(21_600)), 300),
            (said(0, None, Some(u64::MAX)), 300),
        ];
        for (said, seconds) in table {
            let rate_limit = RateLimit::default();
            rate_limit.note(RequestClass::Manifests, said);
            assert_eq!(
                rate_limit.spent_for(RequestClass::Manifests).as_secs(),
                seconds,
                "{said:?}"
            );
            assert!(rate_limit.spent_for(RequestClass::Blobs).is_zero());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_is_counted_from_its_first_answer() {
        let rate_limit = RateLimit::default();
        rate_limit.note(RequestClass::Listing, said(2, None, Some(60)));
        tokio::time::advance(Duration::from_secs(40)).await;
        rate_limit.note(RequestClass::Listing, said(0, None, Some(60)));
        assert_eq!(rate_limit.spent_for(RequestClass::Listing).as_secs(), 20);
        tokio::time::advance(Duration::from_secs(25)).await;
        assert!(rate_limit.spent_for(RequestClass::Listing).is_zero());
        rate_limit.note(RequestClass::Listing, said(0, None, Some(60)));
        assert_eq!(
            rate_limit.spent_for(RequestClass::Listing).as_secs(),
            60,
            "another window"
        );
        rate_limit.note(RequestClass::Listing, said(3, None, Some(60)));
        assert!(
            rate_limit.spent_for(RequestClass::Listing).is_zero(),
            "there is more already"
        );
    }
}
