//! Bearer tokens: each stands for a principal with rights.

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};

use super::Principal;

/// A bearer token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its name in the config.
    pub name: Arc<str>,
    /// What a request shows.
    pub secret: SecretString,
    /// What it stands for.
    pub principal: Principal,
}

impl Token {
    /// Whether nothing differs.
    pub fn is_same(&self, other: &Token) -> bool {
        self.name == other.name
            && self.principal == other.principal
            && self.secret.expose_secret() == other.secret.expose_secret()
    }
}
