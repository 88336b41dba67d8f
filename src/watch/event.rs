//! Events: somebody says "look here". Every trigger produces the same value, and losing one or getting it twice is harmless.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::job::{Actor, Cause, Look};
use crate::look::PassOptions;
use crate::oci::{Digest, RepositoryName, Tag};

/// Which part of the topology to look at; empty means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only these routes.
    pub routes: Vec<String>,
    /// Only this source repository.
    pub repository: Option<RepositoryName>,
    /// Only these tags; empty means all.
    pub tags: Vec<Tag>,
    /// A digest that somebody outside expects the tags to have: compared, never written from.
    pub digest: Option<Digest>,
}

/// "Look here."
#[derive(Debug)]
pub struct Event {
    /// Where.
    pub scope: Scope,
    /// Why.
    pub cause: Cause,
    /// Who.
    pub actor: Actor,
    /// Names the pass that it asks for.
    pub run_id: String,
    /// When it arrived.
    pub received: Instant,
    /// What the asker wants of it.
    pub options: PassOptions,
    /// Told how many looks were queued, then what came of them.
    pub reply: Option<Reply>,
}

/// Where the answer to an event goes.
#[derive(Debug)]
pub struct Reply {
    /// The number of looks that the event stands for, as soon as they are queued; a route some of whose repositories cannot
    /// be looked at counts as one more.
    pub queued: oneshot::Sender<usize>,
    /// One message for each look that started after the event arrived and has settled; fewer than were queued are a
    /// pass that was given up.
    pub looks: mpsc::UnboundedSender<Arc<Look>>,
}
