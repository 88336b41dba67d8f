//! Settle: turns a completion into ledger row, metrics, log line and progress. Nothing else does.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Completion, Engine, Found};
use crate::clock;
use crate::endpoint::Origin;
use crate::fault::Fault;
use crate::job::{
    Actor, BlobCounts, Cause, Failure, Gated, Job, Key, NextJudgement, Outcome, Progress, Settled,
    TagId, Trouble,
};
use crate::ledger::RunFacts;
use crate::oci::{Digest, RepositoryName, Tag};

/// Most keys remembered as in trouble, so that the end of the trouble is reported.
const TROUBLED: usize = 100_000;

/// The receivers of a pass's outcomes, and the facts that the ledger records with them.
#[derive(Clone, Debug)]
pub struct Settle {
    /// Facts of every ledger row besides the job.
    pub facts: Arc<RunFacts>,
    /// The progress counters.
    pub progress: Arc<Progress>,
    /// Receives every settled job as it happens.
    pub listener: Option<mpsc::UnboundedSender<Settled>>,
}

/// Display names of both sides, and the destination registry's label.
#[derive(Clone, Debug)]
pub struct Names {
    /// `host/repository:tag`.
    pub source: String,
    /// `host/repository:tag`.
    pub destination: String,
    /// The destination's name in the config.
    pub registry: String,
}

impl Engine {
    /// Settles a job. Returns its entry for reports.
    pub async fn settle(
        &self,
        settle: &Settle,
        job: &Job,
        names: &Names,
        completion: Completion,
    ) -> Settled {
        let settled = report_entry(job, names, &completion);
        for judged in &settled.gates {
            self.metrics
                .judged(&job.key.route, judged.gate, judged.verdict);
        }
        if settled.result == Outcome::Promoted {
            let since_push = job
                .pushed
                .filter(|pushed| *pushed >= self.started)
                .map(|pushed| clock::now().duration_since(pushed))
                .and_then(|since| Duration::try_from(since).ok());
            self.metrics.promoted(
                &job.key.route,
                &names.registry,
                job.key.destination.repository.as_str(),
                completion.took,
                since_push,
            );
        }
        if let Some(found) = completion.found {
            self.record_found(settle, job, &settled, found).await;
        }
        let is_news = self.record(settle, job, &settled, &completion).await;
        // Boxed to keep the caller's future small.
        let in_set = self.settle_in_set(job, &completion, &settle.facts);
        in_set.boxed().await;
        // A registry may tell of a push before the tag can be read: only a known tag can be gone.
        if settled.result != Outcome::Gone || is_news {
            self.metrics
                .counted(&job.key.route, &names.registry, settled.result);
        }
        settle.progress.jobs_done.fetch_add(1, Ordering::Relaxed);
        if let Some(listener) = &settle.listener {
            // The listener may be gone.
            let _ = listener.send(settled.clone());
        }
        settled
    }

    /// Whether a newer answer than that of `at` says that a tag names something else.
    pub fn is_outdated(&self, tag: &TagId, digest: Digest, at: Instant) -> bool {
        self.newest.differs_at(tag, Some(digest), at)
    }

    /// Whether the last outcome under this key was trouble.
    pub fn is_in_trouble(&self, key: &Key) -> bool {
        self.troubled
            .lock()
            .expect("nothing panics while it notes")
            .contains(key)
    }

    /// The destination tags of a route in one repository with trouble as the last outcome.
    pub fn troubled_tags(
        &self,
        route: &str,
        origin: &Origin,
        repository: &RepositoryName,
    ) -> HashSet<Tag> {
        let troubled = self.troubled.lock().expect("nothing panics while it notes");
        troubled
            .iter()
            .filter(|key| {
                &*key.route == route
                    && key.destination.repository == *repository
                    && key.destination.origin == *origin
            })
            .map(|key| key.destination.tag.clone())
            .collect()
    }

    /// Adds keys in trouble from the ledger, for a process that has just started.
    pub fn remember_trouble(&self, keys: impl Iterator<Item = Key>) {
        let mut troubled = self.troubled.lock().expect("nothing panics while it notes");
        let room = TROUBLED.saturating_sub(troubled.len());
        troubled.extend(keys.take(room));
    }

    /// Updates whether the key is in trouble. Returns whether it was.
    fn note_trouble(&self, job: &Job, result: Outcome) -> bool {
        let mut troubled = self.troubled.lock().expect("nothing panics while it notes");
        match result {
            Outcome::Promoted | Outcome::UpToDate => troubled.remove(&job.key),
            Outcome::Planned | Outcome::Interrupted => troubled.contains(&job.key),
            Outcome::Conflict
            | Outcome::Drift
            | Outcome::Existing
            | Outcome::Refused
            | Outcome::Gone
            | Outcome::Waiting
            | Outcome::Held
            | Outcome::Failed => troubled.len() < TROUBLED && !troubled.insert(job.key.clone()),
        }
    }

    /// Records a write that succeeded although its answer was lost. The digest itself was recorded
    /// when it was found.
    async fn record_found(&self, settle: &Settle, job: &Job, settled: &Settled, found: Found) {
        let promoted = Settled {
            digest: Some(found.digest),
            index: settled
                .index
                .filter(|_| settled.digest == Some(found.digest)),
            previous_digest: found.previous,
            result: Outcome::Promoted,
            reasons: vec![
                "the answer to the request that moved the tag was lost; the tag was found moved"
                    .into(),
            ],
            error: None,
            blobs: BlobCounts::default(),
            bytes_sent: 0,
            bytes_spared: 0,
            requests: 0,
            duration_seconds: 0.0,
            ..settled.clone()
        };
        match self
            .ledger
            .record(&job.key, &promoted, (*settle.facts).clone(), None)
            .await
        {
            Ok(_) if settle.listener.is_none() => log_settled(&promoted),
            Ok(_) => {}
            Err(fault) => self.unwritable(&promoted, &fault),
        }
    }

    fn unwritable(&self, settled: &Settled, fault: &Fault) {
        let Settled {
            destination,
            result,
            ..
        } = settled;
        tracing::error!(
            destination,
            %result,
            error = %fault.chain(),
            "the ledger could not be written"
        );
    }

    /// Writes the ledger row and the log line if the result changed: a quiet daemon logs nothing.
    /// Returns whether a row was added.
    async fn record(
        &self,
        settle: &Settle,
        job: &Job,
        settled: &Settled,
        completion: &Completion,
    ) -> bool {
        if !job.is_recorded() {
            return false;
        }
        // A digest from outside is only compared: that it is another one says nothing of the tag.
        let is_other = job.expect.is_some() && job.expect != settled.digest;
        if settled.result == Outcome::Refused && is_other && !job.explicit {
            if settle.listener.is_none() {
                log_settled(settled);
            }
            return false;
        }
        // What is equal by an old answer ends no trouble that a newer one has shown.
        let seen_at = completion.seen_at.unwrap_or(job.destination_at);
        let is_equal = settled
            .digest
            .filter(|_| settled.result == Outcome::UpToDate);
        if is_equal.is_some_and(|equal| self.is_outdated(&job.key.destination, equal, seen_at)) {
            return false;
        }
        let was_in_trouble = self.note_trouble(job, settled.result);
        let lasting = match settled.result {
            Outcome::Planned | Outcome::Interrupted => false,
            Outcome::UpToDate => was_in_trouble || settled.referrers.copied > 0,
            Outcome::Promoted
            | Outcome::Conflict
            | Outcome::Drift
            | Outcome::Existing
            | Outcome::Refused
            | Outcome::Gone
            | Outcome::Waiting
            | Outcome::Held
            | Outcome::Failed => true,
        };
        if !lasting {
            return false;
        }
        let facts = (*settle.facts).clone();
        let written = completion.written;
        let recorded = self.ledger.record(&job.key, settled, facts, written).await;
        // A listener reports the job itself.
        if matches!(recorded, Ok(true)) && settle.listener.is_none() {
            log_settled(settled);
        }
        recorded.unwrap_or_else(|fault| {
            self.unwritable(settled, &fault);
            false
        })
    }
}

fn report_entry(job: &Job, names: &Names, completion: &Completion) -> Settled {
    Settled {
        route: job.key.route.to_string(),
        source: names.source.clone(),
        destination: names.destination.clone(),
        digest: completion.digest,
        index: completion.index,
        previous_digest: completion.previous.filter(|previous| {
            Some(*previous) != completion.digest || completion.outcome != Outcome::Promoted
        }),
        cause: job.cause,
        actor: actor(job, completion),
        result: completion.outcome,
        reasons: completion.reasons.clone(),
        error: completion.fault.as_ref().map(Trouble::from),
        failure: completion.fault.as_ref().map(|fault| Failure {
            tag: job.key.tag.clone(),
            class: fault.class(),
        }),
        blobs: completion.cost.blobs,
        referrers: completion.cost.referrers,
        bytes_sent: completion.cost.bytes_sent,
        bytes_spared: completion.cost.bytes_spared,
        requests: completion.cost.requests,
        duration_seconds: (completion.took.as_secs_f64() * 1000.0).round() / 1000.0,
        unguarded: job.is_unguarded(),
        expired: false,
        gated: gated(job, completion),
        gates: completion.gates.clone(),
    }
}

/// The principal of a job, with what it said. What goes by a decision is the act of its principal,
/// whatever has started the look.
fn actor(job: &Job, completion: &Completion) -> Actor {
    let caused = &job.actor;
    if job.explicit || job.rollback.is_some() {
        return caused.clone();
    }
    if let Some(accept) = &completion.accepted {
        return accept.by.clone();
    }
    let mut approved = completion.approved.iter();
    if job.cause == Cause::Decision {
        // Its look finds other tags, too: of those it has said nothing.
        let own = approved.rfind(|actor| actor.name == caused.name);
        return own
            .cloned()
            .unwrap_or_else(|| Actor::named(caused.name.clone()));
    }
    let is_named = completion.outcome == Outcome::Promoted;
    let newest = approved.next_back().filter(|_| is_named);
    newest.unwrap_or(caused).clone()
}

/// When to look again at what gates kept from its tag.
fn gated(job: &Job, completion: &Completion) -> Option<Gated> {
    let not_passed = completion.gates.iter().filter(|judged| !judged.is_pass());
    // Members that go first wake it. A naming that does not go on is noticed by a look.
    let wait = completion.set_wait.iter();
    let turn = wait.filter(|wait| wait.is_complete);
    let turn = turn.map(|_| NextJudgement::Soon);
    completion.is_gated.then(|| Gated {
        tag: job.key.tag.clone(),
        next: not_passed.map(|judged| judged.next).chain(turn).collect(),
    })
}

fn log_settled(settled: &Settled) {
    let Settled {
        route,
        source,
        destination,
        cause,
        actor,
        result,
        bytes_sent,
        duration_seconds,
        ..
    } = settled;
    let digest = settled
        .digest
        .map(|digest| digest.to_string())
        .unwrap_or_default();
    let reasons = settled.reasons.join("; ");
    let error = settled
        .error
        .as_ref()
        .map(|error| error.text.as_str())
        .unwrap_or_default();
    let referrers = settled.referrers.copied;
    match result {
        Outcome::Promoted => {
            tracing::info!(
                route,
                source,
                destination,
                digest,
                %cause,
                %actor,
                bytes_sent,
                referrers,
                duration_seconds,
                reasons,
                "promoted"
            );
        }
        Outcome::UpToDate if referrers > 0 => {
            tracing::info!(
                route,
                source,
                destination,
                digest,
                %cause,
                %actor,
                referrers,
                "referrers brought later"
            );
        }
        Outcome::UpToDate => tracing::info!(route, source, destination, digest, "equal again"),
        Outcome::Existing | Outcome::Gone => {
            tracing::debug!(
                route,
                source,
                destination,
                digest,
                %result,
                reasons,
                "left alone"
            )
        }
        Outcome::Failed => {
            tracing::warn!(
                route,
                source,
                destination,
                digest,
                %cause,
                error,
                "failed"
            )
        }
        Outcome::Conflict
        | Outcome::Drift
        | Outcome::Refused
        | Outcome::Waiting
        | Outcome::Held
        | Outcome::Planned
        | Outcome::Interrupted => {
            tracing::warn!(
                route,
                source,
                destination,
                digest,
                %result,
                reasons,
                "not promoted"
            )
        }
    }
}
