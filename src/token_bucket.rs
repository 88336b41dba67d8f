//! A token bucket: tokens come at a steady rate, and only so many are saved up.

use std::time::Duration;

use tokio::time::Instant;

/// Less than that is the rounding of fractions.
const ROUNDING: f64 = 1e-6;
/// The longest wait that is told at once.
const LONGEST: f64 = 3600.0;

/// Tokens for requests.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: f64,
    most: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// `rate` a second, at most `most` saved up; full at the start.
    pub fn new(rate: f64, most: f64, now: Instant) -> TokenBucket {
        TokenBucket {
            rate,
            most,
            tokens: most,
            at: now,
        }
    }

    /// Tokens that come in a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// How long until a whole token is there.
    pub fn ready_in(&self, now: Instant) -> Duration {
        let missing = 1.0 - self.tokens_at(now);
        if missing < ROUNDING {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((missing / self.rate).min(LONGEST))
    }

    /// Takes a token.
    pub fn take(&mut self, now: Instant) {
        self.fill(now);
        self.tokens -= 1.0;
    }

    /// Takes a token if a whole one is there.
    pub fn try_take(&mut self, now: Instant) -> bool {
        let is_ready = self.ready_in(now).is_zero();
        if is_ready {
            self.take(now);
        }
        is_ready
    }

    /// A token was taken for a request that was not sent.
    pub fn give_back(&mut self, now: Instant) {
        self.fill(now);
        self.tokens = (self.tokens + 1.0).min(self.most);
    }

    fn fill(&mut self, now: Instant) {
        self.tokens = self.tokens_at(now);
        self.at = self.at.max(now);
    }

    fn tokens_at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + passed * self.rate).min(self.most)
    }
}
