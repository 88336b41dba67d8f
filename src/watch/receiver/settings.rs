//! A receiver as the config describes it.

use std::sync::Arc;

use super::secret::{Refused, Secrets, Unverified};
use super::{Kind, Notifier};

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
    /// Not at all: every client that reaches the listener may ask for looks.
    Nothing,
}

impl Settings {
    /// Deliveries in a second unless the config says otherwise.
    pub const LIMIT: u32 = 2_000;

    /// Whether the proof covers the body, which must be read before it can be checked.
    pub fn signs_body(&self) -> bool {
        match self.authentication {
            Authentication::Secrets(_) => self.kind.signs_body(),
            Authentication::Nothing => false,
        }
    }

    /// Whether the delivery comes from the sender.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn authenticate(&self, delivery: Unverified<'_>) -> Result<(), Refused> {
        match &self.authentication {
            Authentication::Secrets(secrets) => secrets.check(self.kind, delivery),
            Authentication::Nothing => Ok(()),
        }
    }
}
