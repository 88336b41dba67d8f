//! Bearer tokens: each stands for a principal with rights.

use std::sync::{Arc, PoisonError, RwLock};

use secrecy::ExposeSecret as _;

use crate::decision::{Principal, Token};
use crate::watch::receiver::secret::is_equal;

/// The tokens, or that there are none. Clones share them: what is put in place holds from the next
/// request on.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Arc<RwLock<Arc<[Token]>>>);

impl Tokens {
    /// Starts with these.
    pub fn new(tokens: Vec<Token>) -> Tokens {
        Tokens(Arc::new(RwLock::new(tokens.into())))
    }

    /// Puts others in place; returns whether they differ from those before.
    pub fn replace(&self, tokens: Vec<Token>) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_same =
            current.len() == tokens.len() && current.iter().zip(&tokens).all(|(a, b)| a.is_same(b));
        *current = tokens.into();
        !is_same
    }

    /// Whether one has no characters.
    pub(super) fn has_empty(&self) -> bool {
        self.read()
            .iter()
            .any(|token| token.secret.expose_secret().trim().is_empty())
    }

    pub(super) fn is_set(&self) -> bool {
        !self.read().is_empty()
    }

    /// The principal of the token that an `Authorization` header shows. Every token is compared, so
    /// that the time tells nothing.
    pub(super) fn principal(&self, authorization: &[u8]) -> Option<Principal> {
        let (scheme, shown) = authorization.split_first_chunk::<7>()?;
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer ");
        let mut found = None;
        for token in self.read().iter() {
            let is_shown = is_equal(token.secret.expose_secret().as_bytes(), shown.trim_ascii());
            if is_shown && is_bearer {
                found = Some(token.principal.clone());
            }
        }
        found
    }

    fn read(&self) -> Arc<[Token]> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
