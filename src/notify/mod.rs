//! Notifications: an HTTP POST for each change of a result that a receiver wants to hear of.
//!
//! The rows of the ledger are the source and the queue. Each receiver has a [`Follower`] that reads
//! them from where it stood, so nothing waits for a receiver and nothing is told twice after a
//! restart: the last row that was told is kept in the ledger, in a burst for many rows at once. What is too far behind, and what a
//! receiver does not take after some tries, is dropped and counted.
//!
//! | file | what is there |
//! |---|---|
//! | `message` | a row as a message |
//! | `template` | a body of the receiver's own |
//! | `send` | one request, and what its answer means |
//! | `follower` | the rows, one after the other |

mod follower;
mod message;
mod send;
mod template;

use std::fmt;

use prometheus::{Error, IntCounterVec, Registry};
use url::Url;

use crate::job::gates::Token;
use crate::metrics::{options, registered};
use crate::oci::Digest;

pub use follower::{Follower, PACE, Pace};
pub use message::{Event, Field, Message};
pub use template::Template;

/// A receiver, as the config describes it.
#[derive(Clone, PartialEq)]
pub struct Settings {
    /// Where it is told. May hold a secret: never printed.
    pub url: Url,
    /// What it is told of.
    pub on: Vec<Event>,
    /// The body; `None`: all facts as JSON.
    pub template: Option<Template>,
    /// The bearer token.
    pub token: Option<Token>,
}

impl Settings {
    /// Names the receiver in the ledger: a hash of its address and its events.
    pub fn key(&self) -> String {
        let events: Vec<&str> = self.on.iter().map(|event| event.name()).collect();
        let text = format!("{}\n{}", self.url, events.join(","));
        Digest::sha256(text.as_bytes()).encoded()[..32].to_owned()
    }

    /// The host, for logs.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("host", &self.host())
            .field("on", &self.on)
            .finish_non_exhaustive()
    }
}

/// Counts what was told and what was not. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    told: IntCounterVec,
}

impl Metrics {
    /// Registers the instrument.
    ///
    /// # Errors
    /// When it is registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, Error> {
        let told = options("notifications_total", "Notifications by what came of them.");
        let told = registered(registry, IntCounterVec::new(told, &["result"])?)?;
        for result in ["sent", "dropped"] {
            told.with_label_values(&[result]);
        }
        Ok(Metrics { told })
    }

    fn sent(&self, count: u64) {
        self.told.with_label_values(&["sent"]).inc_by(count);
    }

    fn dropped(&self, count: u64) {
        self.told.with_label_values(&["dropped"]).inc_by(count);
    }
}

#[cfg(test)]
pub(crate) mod tests;
