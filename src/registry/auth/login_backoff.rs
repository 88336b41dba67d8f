//! Backoff for refused logins. A login that a server refused is not sent again for a while: many
//! failed attempts with an old password can lock the account.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::scope::Scopes;
use crate::backoff::Backoff;
use crate::fault::{Class, Fault};

/// How long a refused login rests.
const REST: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(600));
/// How long one try may keep the others waiting for its result.
const TRIAL: Duration = Duration::from_secs(30);
/// How many logins are remembered.
const MOST: usize = 1024;

/// Proven and refused logins, by fingerprint; some are refused for one set of scopes only.
#[derive(Default)]
pub(super) struct LoginBackoff {
    proven: HashSet<u64>,
    refused: HashMap<(u64, Option<Scopes>), Refusal>,
}

struct Refusal {
    until: Instant,
    /// How often it was refused in a row.
    count: u32,
    text: String,
}

impl LoginBackoff {
    /// Whether a server has accepted the login and none has refused it since.
    pub(super) fn is_proven(&self, login: u64) -> bool {
        self.proven.contains(&login)
    }

    /// Whether the login was refused altogether and has not been accepted since.
    pub(super) fn is_refused(&self, login: u64) -> bool {
        self.refused.contains_key(&(login, None))
    }

    /// Leave to show the login for `scopes`.
    ///
    /// # Errors
    /// `Auth` with the words of the refusal, while it rests. When the rest is over, one caller may
    /// try; the others are still refused.
    pub(super) fn check(&mut self, login: u64, scopes: &Scopes) -> Result<(), Fault> {
        let now = Instant::now();
        let keys = [(login, None), (login, Some(scopes.clone()))];
        for key in &keys {
            if let Some(refusal) = self.refused.get(key).filter(|refusal| now < refusal.until) {
                return Err(refusal.fault(now));
            }
        }
        // A rest of the scopes does not use up the one try of the login.
        for key in &keys {
            if let Some(refusal) = self.refused.get_mut(key) {
                refusal.until = now + TRIAL;
            }
        }
        Ok(())
    }

    /// The login must be proven again.
    pub(super) fn doubt(&mut self, login: u64) {
        self.proven.remove(&login);
    }

    /// The login was accepted for `scopes`.
    pub(super) fn accept(&mut self, login: u64, scopes: &Scopes) {
        self.refused.remove(&(login, None));
        self.refused.remove(&(login, Some(scopes.clone())));
        if self.proven.len() >= MOST {
            self.proven.clear();
        }
        self.proven.insert(login);
    }

    /// Records that the login was refused, altogether or for `scopes` only. Returns the fault that
    /// [`LoginBackoff::check`] returns from now on, so that the first refusal and later ones have
    /// the same text.
    pub(super) fn refuse(&mut self, login: u64, scopes: Option<&Scopes>, text: &str) -> Fault {
        if scopes.is_none() {
            self.doubt(login);
        }
        self.make_room();
        let now = Instant::now();
        let refusal = Refusal {
            until: now + REST.wait(1),
            count: 1,
            text: text.to_owned(),
        };
        let refusal = self
            .refused
            .entry((login, scopes.cloned()))
            .and_modify(|refusal| {
                refusal.count = refusal.count.saturating_add(1);
                refusal.until = now + REST.wait(refusal.count);
                text.clone_into(&mut refusal.text);
            })
            .or_insert(refusal);
        refusal.fault(now)
    }

    fn make_room(&mut self) {
        if self.refused.len() >= MOST {
            let soonest = self
                .refused
                .iter()
                .min_by_key(|(_, refusal)| refusal.until)
                .map(|(key, _)| key.clone());
            soonest.map(|key| self.refused.remove(&key));
        }
    }
}

impl Refusal {
    fn fault(&self, now: Instant) -> Fault {
        let left = (self.until - now).as_secs() + 1;
        Fault::new(
            Class::Auth,
            format!("{} (not tried again for {left} s)", self.text),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn advance(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_login_rests_longer_each_time_and_is_then_tried_once() {
        let mut backoff = LoginBackoff::default();
        let scopes = Scopes::none();
        let mut rests = Vec::new();
        for _ in 0..6 {
            backoff.refuse(1, None, "refused");
            let mut rest = 0;
            while backoff.check(1, &scopes).is_err() {
                advance(10).await;
                rest += 10;
            }
            rests.push(rest);
            assert!(
                backoff.check(1, &Scopes::catalog()).is_err(),
                "one try at a time"
            );
        }
        assert_eq!(rests, [60, 120, 240, 480, 600, 600]);
        backoff.accept(1, &scopes);
        assert!(
            backoff.is_proven(1)
                && backoff.check(1, &scopes).is_ok()
                && backoff.check(1, &scopes).is_ok()
        );
        backoff.refuse(1, None, "refused");
        advance(61).await;
        assert!(
            !backoff.is_proven(1) && backoff.check(1, &scopes).is_ok(),
            "starts from the shortest rest again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_touches_what_was_refused_only() {
        let mut backoff = LoginBackoff::default();
        backoff.refuse(1, Some(&Scopes::catalog()), "no listing");
        let fault = backoff.check(1, &Scopes::catalog()).unwrap_err();
        assert!(
            fault.class() == Class::Auth && fault.to_string().contains("no listing"),
            "{fault}"
        );
        assert!(backoff.check(1, &Scopes::none()).is_ok());
        assert!(backoff.check(2, &Scopes::catalog()).is_ok());
        for login in 10..10 + 2 * MOST as u64 {
            backoff.refuse(login, None, "x");
        }
        assert!(backoff.refused.len() <= MOST);
    }
}
