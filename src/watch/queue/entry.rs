//! Entries of the queue: the waiting and running looks of one source repository.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::StrideKey;
use crate::fault::Fault;
use crate::job::{Look, Rank, Remark};
use crate::look::LookRequest;
use crate::oci::Tag;

/// Most single tags of one entry; beyond that it becomes a look at all tags.
pub(super) const TAGS: usize = 256;

/// Most waiting looks of one repository that expect different digests.
pub(super) const APART: usize = 64;

/// Receives the result of a look.
pub type LookSender = mpsc::UnboundedSender<Arc<Look>>;

/// A look that waits.
#[derive(Debug)]
pub struct Waiting {
    /// The request.
    pub request: LookRequest,
    /// The receivers of its result.
    pub senders: Vec<LookSender>,
    /// The earliest start.
    pub not_before: Instant,
    /// When it was added.
    pub since: Instant,
    /// Whether it runs beside a look at everything.
    pub is_beside: bool,
    pub(super) rank: Rank,
}

#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) waiting: Vec<Waiting>,
    pub(super) running: Option<Running>,
    pub(super) beside: Option<Running>,
    pub(super) failures: u32,
    /// Polls are delayed until then.
    pub(super) held: Option<Instant>,
    pub(super) position: Option<Position>,
}

/// A running look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    /// Whether it covers all tags.
    pub(super) is_wide: bool,
    pub(super) pair: usize,
}

/// The position of an entry in the indexes of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Position {
    /// It is due, but it runs.
    Dirty { due: Instant },
    /// It is due.
    Ready {
        due: Instant,
        stride_key: StrideKey,
        since: Instant,
    },
    /// It is due later.
    Later { at: Instant },
}

impl Entry {
    pub(super) fn add(
        &mut self,
        request: LookRequest,
        senders: Option<LookSender>,
        not_before: Instant,
        now: Instant,
    ) {
        let rank = request.rank();
        // A request by name neither waits for a look at everything nor becomes one.
        let is_named = rank == Rank::Named;
        let is_wide = request.tags.is_empty();
        let is_later = not_before > now;
        let is_notified = request.is_notified();
        let is_own = is_poll(&request);
        // A look at single tags and a look at everything, one of them due later: neither makes the
        // other early, wide or strict. The tags were pushed, or rest.
        let is_apart = |waiting: &Waiting| {
            waiting.request.tags.is_empty() != is_wide
                && (waiting.not_before > now || is_later)
                && (waiting.request.is_notified()
                    || is_notified
                    || (is_own && is_poll(&waiting.request)))
        };
        let mut alike = self.waiting.iter_mut().filter(|waiting| {
            waiting.request.digest == request.digest && waiting.is_named() == is_named
        });
        if let Some(waiting) = alike.find(|waiting| !is_apart(waiting)) {
            return waiting.merge(request, rank, senders, not_before);
        }
        if self.waiting.len() >= APART {
            // Requests without an expected digest always merge, so only a request with one gets
            // here.
            let text = "too many different digests are expected of this repository at once; ask again in a moment";
            senders.into_iter().for_each(|senders| {
                drop(senders.send(Arc::new(Look::failed(&Fault::retryable(text)))))
            });
            return;
        }
        let senders = senders.into_iter().collect();
        self.waiting.push(Waiting {
            request,
            senders,
            not_before,
            since: now,
            is_beside: false,
            rank,
        });
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none()
            && self.beside.is_none()
            && self.waiting.is_empty()
            && self.failures == 0
    }

    /// Whether a look may start now or beside the running one.
    pub(super) fn may_start(&self, waiting: &Waiting) -> bool {
        match (self.running, self.beside) {
            (None, None) => true,
            (Some(running), None) => running.is_wide && waiting.is_named(),
            (_, Some(_)) => false,
        }
    }

    /// The waiting look to start first.
    pub(super) fn best(&self, now: Instant) -> Option<usize> {
        let due = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, waiting)| waiting.not_before <= now && self.may_start(waiting));
        due.min_by_key(|(_, waiting)| (waiting.rank, waiting.since))
            .map(|(at, _)| at)
    }

    pub(super) fn position_at(&self, now: Instant, pair: usize) -> Option<Position> {
        let due = self
            .waiting
            .iter()
            .filter(|waiting| waiting.not_before <= now);
        let oldest = due
            .map(|waiting| waiting.since.max(waiting.not_before))
            .min();
        let is_running = self.running.is_some() || self.beside.is_some();
        match (oldest, self.best(now)) {
            (Some(due), Some(best)) => {
                let best = &self.waiting[best];
                Some(Position::Ready {
                    due,
                    stride_key: StrideKey {
                        rank: best.rank,
                        pair,
                    },
                    since: best.since,
                })
            }
            (Some(due), None) => Some(Position::Dirty { due }),
            (None, _) if is_running => None,
            (None, _) => self
                .waiting
                .iter()
                .map(|waiting| Position::Later {
                    at: waiting.not_before,
                })
                .min_by_key(Position::at),
        }
    }
}

impl Position {
    pub(super) fn at(&self) -> Instant {
        match self {
            Position::Dirty { due } | Position::Ready { due, .. } => *due,
            Position::Later { at } => *at,
        }
    }
}

impl Waiting {
    /// Whether it names its tags.
    pub(super) fn is_named(&self) -> bool {
        self.rank == Rank::Named && !self.request.tags.is_empty()
    }

    pub(super) fn merge(
        &mut self,
        request: LookRequest,
        rank: Rank,
        senders: Option<LookSender>,
        not_before: Instant,
    ) {
        if self.senders.len() == self.senders.capacity() {
            self.senders.retain(|asker| !asker.is_closed());
        }
        self.senders.extend(senders);
        self.not_before = self.not_before.min(not_before);
        // The daemon's own looks count no attempts at a push.
        self.request.attempt = match (self.request.is_notified(), request.is_notified()) {
            (true, false) => self.request.attempt,
            (false, true) => request.attempt,
            _ => self.request.attempt.min(request.attempt),
        };
        self.request.news = self.request.news.max(request.news);
        self.request.tags = match (std::mem::take(&mut self.request.tags), request.tags) {
            (ours, theirs) if ours.is_empty() || theirs.is_empty() => Vec::new(),
            (mut ours, theirs) => {
                ours.extend(
                    theirs
                        .into_iter()
                        .filter(|tag| !ours.contains(tag))
                        .collect::<Vec<_>>(),
                );
                if ours.len() > TAGS { Vec::new() } else { ours }
            }
        };
        self.request.options.all |= request.options.all;
        self.request.options.waits |= request.options.waits;
        // The stricter cause wins, whichever came first.
        let ours = self.request.trusts_hints;
        let theirs = request.trusts_hints;
        if (ours && !theirs) || (ours == theirs && rank < self.rank) {
            (self.request.cause, self.request.actor, self.request.run_id) =
                (request.cause, request.actor, request.run_id);
        }
        self.request.trusts_hints &= request.trusts_hints;
        self.request.trusts_source_hints &= request.trusts_source_hints;
        self.request.may_precede |= request.may_precede;
        self.rank = self.rank.min(rank);
        self.merge_push_times(request.pushed);
        self.merge_pushers(request.pushers);
    }

    fn merge_pushers(&mut self, pushers: BTreeMap<Tag, BTreeSet<Remark>>) {
        let ours = &mut self.request.pushers;
        for (tag, names) in pushers {
            if ours.len() < TAGS || ours.contains_key(&tag) {
                ours.entry(tag).or_default().extend(names);
            }
        }
    }

    /// A tag that was pushed twice counts from its newest push.
    fn merge_push_times(&mut self, pushed: BTreeMap<Tag, Timestamp>) {
        let ours = &mut self.request.pushed;
        for (tag, at) in pushed {
            if ours.len() < TAGS || ours.contains_key(&tag) {
                let newest = ours.entry(tag).or_insert(at);
                *newest = at.max(*newest);
            }
        }
    }

    /// Reports to all receivers that the look will not take place.
    pub fn interrupt(self) {
        let look = Arc::new(Look::interrupted());
        for asker in self.senders {
            // The caller may be gone.
            let _ = asker.send(look.clone());
        }
    }
}

/// Whether the request is the daemon's own.
pub(super) fn is_poll(request: &LookRequest) -> bool {
    request.cause.is_routine()
}
