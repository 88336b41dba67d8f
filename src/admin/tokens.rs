//! Bearer tokens: each stands for a principal with rights.
//!
//! A token is a secret of its own, or it comes from an identity provider. The issuer that such a
//! token names decides which entries of the config judge it; of those the first that accepts it
//! counts.

use std::sync::{Arc, PoisonError, RwLock};

use secrecy::{ExposeSecret as _, SecretString};

use crate::decision::{NamePattern, Principal, Rights};
use crate::oidc;
use crate::oidc::Verifier;
use crate::watch::receiver::secret::SecretHash;

/// A bearer token of the config.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its name in the config.
    pub name: Arc<str>,
    /// What a request shows.
    pub proof: Proof,
    /// The user that owns it, as a principal: `user:alice`.
    pub user: Option<Arc<str>>,
    /// What it may.
    pub rights: Rights,
    /// The routes that its decisions may be about. `None`: all of them.
    pub routes: Option<Arc<[NamePattern]>>,
}

/// What a request shows as its bearer token.
#[derive(Clone, Debug)]
pub enum Proof {
    /// This secret.
    Secret(SecretString),
    /// A token of an identity provider.
    Oidc(Verifier),
}

impl Token {
    /// The principal that it stands for, unless a user owns it.
    fn principal(&self, established: Arc<str>) -> Principal {
        Principal {
            name: self.user.clone().unwrap_or(established),
            rights: self.rights.clone(),
            routes: self.routes.clone(),
        }
    }

    /// Whether nothing differs.
    fn is_same(&self, other: &Token) -> bool {
        self.name == other.name
            && self.proof.is_same(&other.proof)
            && self.user == other.user
            && self.rights == other.rights
            && self.routes == other.routes
    }
}

impl Proof {
    /// Whether whatever shows one shows the other as well.
    pub fn is_same(&self, other: &Proof) -> bool {
        match (self, other) {
            (Proof::Secret(one), Proof::Secret(other)) => {
                one.expose_secret() == other.expose_secret()
            }
            (Proof::Oidc(one), Proof::Oidc(other)) => one.settings() == other.settings(),
            _ => false,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Proof::Secret(secret) => secret.expose_secret().trim().is_empty(),
            Proof::Oidc(_) => false,
        }
    }
}

/// What a request showed as its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretCheck {
    /// Nothing.
    Missing,
    /// Something that is no token of ours.
    Wrong,
    /// A token of an issuer that the config names, which is refused.
    Refused(oidc::Refused),
    /// The token of this principal.
    Valid(Principal),
}

impl SecretCheck {
    pub(super) fn is_valid(&self) -> bool {
        matches!(self, SecretCheck::Valid(_))
    }
}

/// The tokens, or that there are none. Clones share them: what is put in place holds from the next
/// request on.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Arc<RwLock<Arc<[HashedToken]>>>);

/// A token with the hash that requests are compared with.
#[derive(Debug)]
struct HashedToken {
    token: Token,
    hash: Option<SecretHash>,
}

impl HashedToken {
    fn of(token: Token) -> HashedToken {
        let hash = match &token.proof {
            Proof::Secret(secret) => Some(SecretHash::of(secret.expose_secret().as_bytes())),
            Proof::Oidc(_) => None,
        };
        HashedToken { token, hash }
    }
}

impl Tokens {
    /// Starts with these.
    pub fn new(tokens: Vec<Token>) -> Tokens {
        let tokens = tokens.into_iter().map(HashedToken::of).collect();
        Tokens(Arc::new(RwLock::new(tokens)))
    }

    /// Puts others in place; returns whether they differ from those before. Where nothing differs,
    /// the keys that were read from issuers are kept.
    pub fn replace(&self, tokens: Vec<Token>) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut both = current.iter().zip(&tokens);
        let is_same =
            current.len() == tokens.len() && both.all(|(before, now)| before.token.is_same(now));
        if !is_same {
            *current = tokens.into_iter().map(HashedToken::of).collect();
        }
        !is_same
    }

    /// Whether one has no characters.
    pub(super) fn has_empty(&self) -> bool {
        self.read()
            .iter()
            .any(|hashed| hashed.token.proof.is_empty())
    }

    pub(super) fn is_set(&self) -> bool {
        !self.read().is_empty()
    }

    /// What an `Authorization` header shows, as far as secrets tell. Every secret is compared, so
    /// that the time tells nothing.
    pub(super) fn secret(&self, authorization: &[u8]) -> SecretCheck {
        let Some(shown) = bearer(authorization) else {
            return SecretCheck::Wrong;
        };
        let shown = SecretHash::of(shown);
        let mut found = SecretCheck::Wrong;
        for HashedToken { token, hash } in self.read().iter() {
            if hash.as_ref().is_some_and(|hash| hash.is_equal(&shown)) {
                found = SecretCheck::Valid(token.principal(token.name.clone()));
            }
        }
        found
    }

    /// What an `Authorization` header shows that holds no secret: it may be a token of an issuer.
    /// Reads the issuer's keys if they are not known.
    pub(super) async fn issued(&self, authorization: &[u8]) -> SecretCheck {
        let shown = bearer(authorization).and_then(|shown| str::from_utf8(shown).ok());
        let Some(shown) = shown else {
            return SecretCheck::Wrong;
        };
        let mut found = SecretCheck::Wrong;
        // Of several tokens of one issuer the first reads its keys.
        let mut claims = None;
        for HashedToken { token, .. } in self.read().iter() {
            let Proof::Oidc(verifier) = &token.proof else {
                continue;
            };
            let claims = match &claims {
                Some(known) => known,
                None => match verifier.signed(shown).await {
                    Ok(signed) => &*claims.insert(signed),
                    Err(oidc::Refused::NotAToken | oidc::Refused::Issuer) => continue,
                    Err(refused) => return SecretCheck::Refused(refused),
                },
            };
            let accepted = verifier.accept(claims);
            match accepted.and_then(|accepted| accepted.principal()) {
                Ok(principal) => return SecretCheck::Valid(token.principal(principal.into())),
                Err(oidc::Refused::Issuer) => {}
                Err(refused) => found = SecretCheck::Refused(refused),
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

/// The credentials of the scheme `Bearer`.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, shown) = authorization.split_first_chunk::<7>()?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer ");
    is_bearer.then(|| shown.trim_ascii())
}
