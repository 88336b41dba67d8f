//! A receiver as the config describes it.

use std::sync::Arc;

use http::header::AUTHORIZATION;

use super::secret::{self, Secrets, Unverified};
use super::{Kind, Notifier};
use crate::oidc::{self, Verifier};

/// A receiver.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name, the last part of its path.
    pub name: Arc<str>,
    /// What sends to it.
    pub kind: Kind,
    /// The registry that the sender tells of.
    pub notifier: Notifier,
    /// How the sender is authenticated.
    pub authentication: Authentication,
    /// Authenticated deliveries in a second, on average.
    pub limit: u32,
}

/// How a sender is authenticated.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// By a secret that both know.
    Secrets(Secrets),
    /// By a token of an identity provider in `Authorization`.
    Oidc(Verifier),
    /// Not at all: every client that reaches the listener may ask for looks.
    Nothing,
}

/// Why a delivery is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// For its signature or secret.
    #[error(transparent)]
    Secret(#[from] secret::Refused),
    /// For its token.
    #[error(transparent)]
    Token(#[from] oidc::Refused),
}

impl Refused {
    /// Whether it may be accepted later.
    pub fn may_pass(&self) -> bool {
        *self == Refused::Token(oidc::Refused::Unreachable)
    }
}

fn bearer<'a>(delivery: &Unverified<'a>) -> Option<&'a str> {
    let value = delivery.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

impl Settings {
    /// Deliveries in a second unless the config says otherwise.
    pub const LIMIT: u32 = 2_000;

    /// Whether the proof covers the body, which must be read before it can be checked.
    pub fn signs_body(&self) -> bool {
        match self.authentication {
            Authentication::Secrets(_) => self.kind.signs_body(),
            Authentication::Oidc(_) | Authentication::Nothing => false,
        }
    }

    /// Whether the delivery comes from the sender.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn authenticate(&self, delivery: Unverified<'_>) -> Result<(), Refused> {
        match &self.authentication {
            Authentication::Secrets(secrets) => Ok(secrets.check(self.kind, delivery)?),
            Authentication::Oidc(verifier) => {
                let token = bearer(&delivery).ok_or(oidc::Refused::Missing)?;
                verifier.verify(token).await?;
                Ok(())
            }
            Authentication::Nothing => Ok(()),
        }
    }
}
