//! Requests for looks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::job::{self, Actor, Cause, Rank, Remark};
use crate::oci::{Digest, Tag};
use crate::transfer::limits::{RequestClass, RequestPriority};
use crate::transfer::pages::Reading;

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
    /// Whether a fresh hint about production is good enough: for a poll, and where a push named no
    /// tag.
    pub trusts_hints: bool,
    /// Whether a fresh hint about a fixed tag of staging is good enough in a look at all tags: for
    /// the routine looks of the daemon.
    pub trusts_source_hints: bool,
    /// When tags were pushed, where a registry told.
    pub pushed: BTreeMap<Tag, Timestamp>,
    /// The pushers of tags, where a registry told.
    pub pushers: BTreeMap<Tag, BTreeSet<Remark>>,
    /// Whether a registry may tell before its tags name what was pushed.
    pub may_precede: bool,
    /// Looks before this one that did not see what was pushed.
    pub attempt: u8,
    /// When the news came that it is for, also where a look is repeated; `None`: there is no news. On
    /// tokio's clock: the wall clock may be set back meanwhile.
    pub news: Option<Instant>,
}

impl LookRequest {
    /// A look at these tags, or at all where none is named.
    pub fn new(tags: Vec<Tag>, cause: Cause, actor: Actor) -> LookRequest {
        LookRequest {
            tags,
            digest: None,
            cause,
            actor,
            options: PassOptions::default(),
            run_id: String::new(),
            trusts_hints: cause.trusts_hints(),
            trusts_source_hints: cause.is_routine(),
            pushed: BTreeMap::new(),
            pushers: BTreeMap::new(),
            may_precede: false,
            attempt: 0,
            news: cause.is_news().then(Instant::now),
        }
    }

    /// How urgent its jobs and its own requests are.
    pub fn rank(&self) -> Rank {
        Rank::of(self.cause, !self.tags.is_empty())
    }

    /// What the look's own requests of a class keep to.
    pub fn priority(&self, class: RequestClass) -> RequestPriority {
        class.of_look().ranked(self.rank()).within(self.max_wait())
    }

    /// How the look reads lists.
    pub fn reading(&self) -> Reading {
        Reading::of(self.priority(RequestClass::Listing))
    }

    /// Whether a person asks, or the config is new.
    pub fn is_asked_for(&self) -> bool {
        matches!(
            self.cause,
            Cause::Ping | Cause::Signal | Cause::Cli | Cause::Start
        )
    }

    /// Whether a registry, or another route, told of a push.
    pub fn is_notified(&self) -> bool {
        matches!(self.cause, Cause::Webhook | Cause::Queue | Cause::Chain)
    }

    /// The longest wait of a job for a registry's `Retry-After`.
    pub fn max_wait(&self) -> Duration {
        if self.cause == Cause::Cli || self.options.waits {
            job::LONG_WAIT
        } else {
            job::SHORT_WAIT
        }
    }
}
