//! Events: reasons to look. Every trigger produces the same value; a lost or repeated event is
//! harmless.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::job::{Actor, Cause, Look};
use crate::look::PassOptions;
use crate::oci::{Digest, RepositoryName, Tag};
use crate::random;

/// Which part of the topology to look at; empty means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only these routes.
    pub routes: Vec<String>,
    /// Only this source repository.
    pub repository: Option<RepositoryName>,
    /// Only these tags; empty means all.
    pub tags: Vec<Tag>,
    /// A digest that the sender expects the tags to have: compared, never written from.
    pub digest: Option<Digest>,
}

/// Where a registry says that something was pushed. With it, a [`Scope`] has tags alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedTo {
    /// The registry's name in the config.
    pub registry: Arc<str>,
    /// The names under which routes may know the repository, the likeliest first.
    pub repositories: Vec<RepositoryName>,
    /// When it was pushed.
    pub at: Option<Timestamp>,
    /// Whether the registry may tell before its tags name what was pushed.
    pub may_precede: bool,
    /// Whether it is no push, but a scan of an image that has ended.
    pub is_scan: bool,
}

/// A reason to look.
#[derive(Debug)]
pub struct Event {
    /// The scope.
    pub scope: Scope,
    /// The push that a registry told of.
    pub pushed: Option<PushedTo>,
    /// The cause.
    pub cause: Cause,
    /// The actor.
    pub actor: Actor,
    /// The name of the pass.
    pub run_id: String,
    /// When it arrived.
    pub received: Instant,
    /// The options of the pass.
    pub options: PassOptions,
    /// Receives the number of queued looks, then their results.
    pub reply: Option<Reply>,
}

impl Event {
    /// A reason of the daemon's own.
    pub fn of_daemon(scope: Scope, cause: Cause) -> Event {
        Event {
            scope,
            pushed: None,
            cause,
            actor: Actor::daemon(),
            run_id: random::name(),
            received: Instant::now(),
            options: PassOptions::default(),
            reply: None,
        }
    }
}

/// Where the answer to an event goes.
#[derive(Debug)]
pub struct Reply {
    /// The number of looks for the event, once they are queued. A route with refused repositories
    /// counts as one more.
    pub queued: oneshot::Sender<usize>,
    /// One message for each look that started after the event arrived and has settled. Fewer than
    /// queued: the pass was given up.
    pub looks: mpsc::UnboundedSender<Arc<Look>>,
}

/// Receives the answer to an event.
#[derive(Debug)]
pub struct ReplyReceiver {
    /// As [`Reply::queued`].
    pub queued: oneshot::Receiver<usize>,
    /// As [`Reply::looks`].
    pub looks: mpsc::UnboundedReceiver<Arc<Look>>,
}

impl Reply {
    /// A reply with its receiver.
    pub fn new() -> (Reply, ReplyReceiver) {
        let (queued, queued_count) = oneshot::channel();
        let (looks, settled) = mpsc::unbounded_channel();
        let receiver = ReplyReceiver {
            queued: queued_count,
            looks: settled,
        };
        (Reply { queued, looks }, receiver)
    }
}
