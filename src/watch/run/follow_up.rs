//! Looks that follow a look in trouble.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tokio::time::Instant;

use super::Watch;
use crate::decision::Revision;
use crate::endpoint::Repositories;
use crate::fault::Class;
use crate::job::{Actor, Cause, Key, Look, Outcome, Sight, TroubleClass};
use crate::look::{LookRequest, PassOptions};
use crate::watch::handle::run_id;
use crate::watch::queue::{LookKey, RetryDelays};
use crate::watch::resting::{LookedUnder, TooMany};

impl<B: Repositories> Watch<B> {
    /// Records failed tags and tags that gates or decisions keep back, and queues a look at them for
    /// the end of their rest if the repository itself is well.
    pub(super) fn note_failures(
        &mut self,
        key: &LookKey,
        request: &LookRequest,
        (look, decisions): (&Look, Revision),
        is_well: bool,
        now: Instant,
    ) -> Result<(), TooMany> {
        if !look
            .jobs
            .iter()
            .any(|job| job.result == Outcome::Failed || job.gated.is_some())
            && !self.resting.contains_key(key)
        {
            return Ok(());
        }
        let under = LookedUnder {
            decisions,
            verify: self.topology().intervals.verify,
        };
        let resting = self.resting.entry(key.clone()).or_default();
        let noted = resting.note(request, look, under, now);
        match resting.next() {
            Some((tags, at)) if is_well => self.queue.add_at(
                key.clone(),
                LookRequest {
                    tags,
                    digest: None,
                    ..again(request)
                },
                None,
                at,
                now,
            ),
            Some(_) => {}
            None if resting.is_empty() => drop(self.resting.remove(key)),
            None => {}
        }
        noted
    }

    /// Queues looks at tags after the answers of their gates, or after other members of their sets.
    pub(super) fn answered(&mut self, cause: Cause, tags: BTreeSet<Key>) {
        let now = Instant::now();
        for tag in tags {
            let key = LookKey {
                route: tag.route,
                repository: tag.source,
                dry_run: false,
            };
            if let Some(resting) = self.resting.get_mut(&key) {
                resting.wake(&tag.tag, now);
            }
            let request = LookRequest {
                run_id: run_id(),
                // What was refused of it stays so.
                news: None,
                ..LookRequest::new(vec![tag.tag], cause, Actor::daemon())
            };
            self.queue.add_at(key, request, None, now, now);
        }
    }
}

/// The daemon's own look after one in trouble, as strict as that one.
pub(super) fn again(request: &LookRequest) -> LookRequest {
    let cause = if request.trusts_hints {
        Cause::Poll
    } else {
        Cause::Verify
    };
    LookRequest {
        cause,
        actor: Actor::daemon(),
        options: PassOptions::default(),
        run_id: run_id(),
        may_precede: false,
        news: None,
        // The engine knows them.
        pushers: BTreeMap::new(),
        ..request.clone()
    }
}

/// The delays for another look at the whole repository, if its trouble may pass by itself. Each
/// look that lacks a list has some, unless the look was stopped: its resting tags wait for it.
pub(super) fn pace(look: &Look) -> Option<RetryDelays> {
    let classes: HashSet<TroubleClass> = look.trouble.iter().map(|trouble| trouble.class).collect();
    if classes.contains(&TroubleClass::Auth) || is_locked_out(look) {
        Some(RetryDelays::SLOW)
    } else if classes.contains(&TroubleClass::Retryable) || classes.contains(&TroubleClass::Corrupt)
    {
        Some(RetryDelays::WHOLE)
    } else if classes.contains(&TroubleClass::NotFound) {
        Some(RetryDelays::ABSENT)
    } else {
        let is_refused = look.sight == Sight::Blind && classes.contains(&TroubleClass::Rejected);
        is_refused.then_some(RetryDelays::REFUSED)
    }
}

/// Whether a registry accepts nothing: more than one tag was refused for lack of rights, and none
/// succeeded.
pub(super) fn is_locked_out(look: &Look) -> bool {
    let went_well = look.totals.promoted + look.totals.up_to_date;
    let failures = look.jobs.iter().filter_map(|job| job.failure.as_ref());
    let refused = failures.filter(|failure| failure.class == Class::Auth);
    went_well == 0 && refused.count() > 1
}
