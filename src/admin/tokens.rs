//! Bearer tokens: each stands for a principal with rights.

use std::sync::{Arc, PoisonError, RwLock};

use secrecy::ExposeSecret as _;

use crate::decision::{Principal, Token};
use crate::watch::receiver::secret::SecretHash;

/// The tokens, or that there are none. Clones share them: what is put in place holds from the next
/// request on.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Arc<RwLock<Arc<[HashedToken]>>>);

/// A token with the hash that requests are compared with.
#[derive(Debug)]
struct HashedToken {
    token: Token,
    hash: SecretHash,
}

impl HashedToken {
    fn of(token: Token) -> HashedToken {
        let hash = SecretHash::of(token.secret.expose_secret().as_bytes());
        HashedToken { token, hash }
    }
}

impl Tokens {
    /// Starts with these.
    pub fn new(tokens: Vec<Token>) -> Tokens {
        let tokens = tokens.into_iter().map(HashedToken::of).collect();
        Tokens(Arc::new(RwLock::new(tokens)))
    }

    /// Puts others in place; returns whether they differ from those before.
    pub fn replace(&self, tokens: Vec<Token>) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut both = current.iter().zip(&tokens);
        let is_same =
            current.len() == tokens.len() && both.all(|(before, now)| before.token.is_same(now));
        *current = tokens.into_iter().map(HashedToken::of).collect();
        !is_same
    }

    /// Whether one has no characters.
    pub(super) fn has_empty(&self) -> bool {
        self.read()
            .iter()
            .any(|hashed| hashed.token.secret.expose_secret().trim().is_empty())
    }

    pub(super) fn is_set(&self) -> bool {
        !self.read().is_empty()
    }

    /// The principal of the token that an `Authorization` header shows. Every token is compared, so
    /// that the time tells nothing.
    pub(super) fn principal(&self, authorization: &[u8]) -> Option<Principal> {
        let (scheme, shown) = authorization.split_first_chunk::<7>()?;
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer ");
        let shown = SecretHash::of(shown.trim_ascii());
        let mut found = None;
        for hashed in self.read().iter() {
            let is_shown = hashed.hash.is_equal(&shown);
            if is_shown && is_bearer {
                found = Some(hashed.token.principal.clone());
            }
        }
        found
    }

    fn read(&self) -> Arc<[HashedToken]> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
