//! Requests for looks.

use std::time::Duration;

use crate::job::{self, Actor, Cause};
use crate::oci::{Digest, Tag};

/// Options of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// Plan, but touch nothing.
    pub dry_run: bool,
    /// List tags that are up to date as well.
    pub all: bool,
    /// The caller waits for the answer, so jobs wait for a registry's `Retry-After`.
    pub waits: bool,
}

/// The request for a look.
#[derive(Clone, Debug)]
pub struct LookRequest {
    /// Only these tags; empty means all.
    pub tags: Vec<Tag>,
    /// A digest that the tag is expected to have.
    pub digest: Option<Digest>,
    /// The cause.
    pub cause: Cause,
    /// The actor.
    pub actor: Actor,
    /// The options.
    pub options: PassOptions,
    /// The name of the pass.
    pub run_id: String,
}

impl LookRequest {
    /// The longest wait of a job for a registry's `Retry-After`.
    pub fn max_wait(&self) -> Duration {
        if self.cause == Cause::Cli || self.options.waits {
            job::LONG_WAIT
        } else {
            job::SHORT_WAIT
        }
    }
}
