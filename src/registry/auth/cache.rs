//! The tokens of one registry, by the exact set of scopes: some registries refuse a token of
//! another set, and a token of everything would outgrow their headers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use url::Url;

use super::scope::Scopes;
use super::token::Token;
use crate::single_flight::SingleFlight;

/// How many sets of scopes are remembered.
const MOST: usize = 1024;
/// How long a living token is used after an attempt to renew it failed, before the next attempt.
const PAUSE: Duration = Duration::from_secs(10);

/// A Bearer challenge with an accepted realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenServer {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
}

/// The tokens and what else is known of each set of scopes.
#[derive(Default)]
pub(super) struct Cache {
    slots: HashMap<Scopes, Slot>,
    uses: u64,
}

/// What is known of one set of scopes.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) token: Option<Arc<Token>>,
    /// The token server that the registry named for these scopes, and the scopes in its words.
    pub(super) challenge: Option<(TokenServer, Arc<[String]>)>,
    /// The one request that may be under way.
    pub(super) renewal: Arc<SingleFlight<Arc<Token>>>,
    /// What is known led nowhere: the registry is to be asked how to authorize before it is used
    /// again.
    pub(super) in_doubt: bool,
    paused: Option<Instant>,
    used: u64,
}

impl Cache {
    /// The slot of `scopes`; the one used least lately makes room for a new one.
    pub(super) fn slot(&mut self, scopes: &Scopes) -> &mut Slot {
        if self.slots.len() >= MOST && !self.slots.contains_key(scopes) {
            let oldest = self
                .slots
                .iter()
                .min_by_key(|(_, slot)| slot.used)
                .map(|(scopes, _)| scopes.clone());
            oldest.map(|oldest| self.slots.remove(&oldest));
        }
        self.uses += 1;
        let slot = self.slots.entry(scopes.clone()).or_default();
        slot.used = self.uses;
        slot
    }

    /// The slot of `scopes`, if there is one.
    pub(super) fn known(&self, scopes: &Scopes) -> Option<&Slot> {
        self.slots.get(scopes)
    }

    /// When the living token that ends soonest does.
    pub(super) fn expiry(&self) -> Option<Timestamp> {
        let tokens = self.slots.values().filter_map(|slot| slot.token.as_ref());
        tokens
            .filter(|token| token.is_alive())
            .map(|token| token.expires)
            .min()
    }
}

impl Slot {
    /// Takes in what the registry says now.
    pub(super) fn set_challenge(&mut self, challenge: Option<(TokenServer, Arc<[String]>)>) {
        self.challenge = challenge;
        self.in_doubt = false;
    }

    /// The token, if it can be sent without renewing it first.
    pub(super) fn usable(&self) -> Option<Arc<Token>> {
        let paused = self.paused.is_some_and(|until| Instant::now() < until);
        self.token
            .clone()
            .filter(|token| token.is_fresh() || (paused && token.is_alive()))
    }

    /// The token if it lives on although it could not be renewed; it is left in peace for a moment.
    pub(super) fn survivor(&mut self) -> Option<Arc<Token>> {
        self.paused = Some(Instant::now() + PAUSE);
        self.token.clone().filter(|token| token.is_alive())
    }

    /// Takes in a new token.
    pub(super) fn keep(&mut self, token: &Arc<Token>) {
        self.token = Some(Arc::clone(token));
        self.paused = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_forgets_what_was_used_least_lately() {
        let scopes = |number: usize| Scopes::pull(&format!("r{number}").parse().unwrap());
        let mut cache = Cache::default();
        for number in 0..MOST {
            cache.slot(&scopes(number));
        }
        cache.slot(&scopes(0));
        cache.slot(&scopes(MOST));
        assert_eq!(cache.slots.len(), MOST);
        assert!(cache.known(&scopes(0)).is_some() && cache.known(&scopes(1)).is_none());
    }
}
