//! A look at one destination: compares each chosen tag on both sides, runs a job for each
//! difference, and settles the rest.

mod agreements;
mod companions;
mod comparison;
mod estimate;
mod listed;
mod news;
mod remembered;
mod siblings;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;

pub(super) use self::companions::SeenCompanions;
use self::comparison::Compared;
pub(super) use self::comparison::SourceDigests;
use self::remembered::Asked;
pub(super) use self::siblings::LeftOut;
use super::topology::Side;
use super::{DestinationResult, DestinationTags, Listing, RepositoryLook};
use crate::clock;
use crate::endpoint::{Repositories, RouteSource, Source, Tally};
use crate::fault::Fault;
use crate::index::TagHint;
use crate::job::{Companions, Job, Key, Outcome, Settled, TagId, TagState};
use crate::ledger::{Agreement, TagRecord};
use crate::oci::{Digest, Tag};
use crate::status::board::JobStatus;
use crate::status::metrics::SeenTag;
use crate::transfer::Completion;
use crate::transfer::settle::Names;

/// Agreements that are written together.
const AGREEMENTS: usize = 1000;

/// A look at one destination.
pub(super) struct DestinationLook<'a, B: Repositories> {
    pub(super) look: &'a RepositoryLook<'a, B>,
    pub(super) source: &'a RouteSource<B::Repository>,
    pub(super) side: &'a Side<B::Repository>,
    pub(super) listing: &'a Listing,
    pub(super) list: Option<DestinationTags>,
    /// Whether the destination has a list of tags.
    pub(super) has_list: bool,
    pub(super) shared: Option<&'a SourceDigests>,
    pub(super) began: Timestamp,
    pub(super) hints: HashMap<Tag, TagHint>,
    /// The tags that last differed.
    pub(super) troubled: HashSet<Tag>,
    /// What the ledger knew of production's tags when the look began.
    pub(super) known: HashMap<Tag, TagRecord>,
    /// What the ledger is to learn of tags that are equal.
    pub(super) agreements: Mutex<Vec<Agreement>>,
    pub(super) refused: Arc<HashSet<Digest>>,
    /// The fixed tags that this look took for equal without asking staging.
    pub(super) left_out: LeftOut,
    /// The result of [`DestinationLook::compare_manifests`].
    pub(super) behind: tokio::sync::OnceCell<Option<HashSet<Digest>>>,
    /// What jobs have found of companion tags.
    pub(super) companions: SeenCompanions,
}

/// A job begins anew so often when staging moves its tag.
const MOVES: usize = 5;

/// Why a tag is not promoted that a route observes.
const OBSERVES: &str = "the route observes (`mode: observe`): nothing is written";

/// Whether a tag with this outcome is still to be promoted.
fn stays_pending(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Failed
            | Outcome::Waiting
            | Outcome::Held
            | Outcome::Interrupted
            | Outcome::Planned
    )
}

/// The result for one tag.
enum Reconciled {
    Equal(Equal),
    Settled(Box<Settled>),
}

/// Both sides name this digest.
struct Equal {
    digest: Digest,
    /// Whether production was not asked.
    by_hint: bool,
    /// Whether staging was not asked.
    source_by_hint: bool,
}

/// What came of the tags that were compared.
#[derive(Default)]
pub(super) struct ReconciledTags {
    /// The digests in conflict.
    pub(super) conflicts: HashSet<Digest>,
    /// The tags that staging was not asked about.
    pub(super) left_out: Vec<Tag>,
}

impl<'a, B: Repositories> DestinationLook<'a, B> {
    /// A look at a destination of which nothing is known yet.
    pub(super) fn of(
        look: &'a RepositoryLook<'a, B>,
        source: &'a RouteSource<B::Repository>,
        side: &'a Side<B::Repository>,
        listing: &'a Listing,
        shared: Option<&'a SourceDigests>,
        began: Timestamp,
    ) -> DestinationLook<'a, B> {
        DestinationLook {
            look,
            source,
            side,
            listing,
            list: None,
            has_list: false,
            shared,
            began,
            hints: HashMap::new(),
            troubled: HashSet::new(),
            known: HashMap::new(),
            agreements: Mutex::default(),
            refused: Arc::default(),
            left_out: LeftOut::default(),
            behind: tokio::sync::OnceCell::new(),
            companions: SeenCompanions::default(),
        }
    }

    /// Compares tags and runs a job for each that differs.
    pub(super) async fn reconcile(
        &self,
        tags: Vec<Tag>,
        found: &mut DestinationResult,
    ) -> ReconciledTags {
        let mut reconciled = ReconciledTags::default();
        let mut asked = Asked::since(self.began);
        let at_once = self.look.topology.settings.tags;
        let mut tended = stream::iter(tags)
            .map(|tag: Tag| {
                let tended = async move {
                    let asked_at = self.shared.map_or_else(clock::now, |_| self.began);
                    let tended = self.tend_one(&tag).await;
                    // Within the stream: the other tags go on while the ledger writes.
                    self.record_agreements(AGREEMENTS).await;
                    (tended, tag, asked_at)
                };
                tended.boxed()
            })
            .buffer_unordered(at_once);
        while let Some((tended, tag, asked_at)) = tended.next().await {
            asked.at = asked_at;
            match tended {
                Reconciled::Equal(equal) => {
                    self.count(Some(&tag), Outcome::UpToDate, found);
                    self.note_equal(&tag, &equal, &mut asked);
                    if equal.source_by_hint {
                        reconciled.left_out.push(tag);
                    }
                }
                Reconciled::Settled(settled) => {
                    self.count(Some(&tag), settled.result, found);
                    self.note_settled(&tag, &settled, &mut asked);
                    if settled.result == Outcome::Conflict {
                        reconciled.conflicts.extend(settled.digest);
                    }
                    if stays_pending(settled.result) {
                        found.pending.push(tag);
                    }
                    let is_news = settled.result != Outcome::UpToDate
                        || settled.referrers.copied > 0
                        || !settled.reasons.is_empty();
                    if self.look.request.options.all || is_news {
                        found.jobs.push(*settled);
                    }
                }
            }
        }
        self.record_agreements(1).await;
        self.report_companions(found);
        self.remember(asked).await;
        reconciled
    }

    /// Counts a tag. What is up to date among all tags of a repository is counted by its number
    /// alone.
    fn count(&self, tag: Option<&Tag>, outcome: Outcome, found: &mut DestinationResult) {
        found.totals.add(outcome);
        let is_equal = matches!(outcome, Outcome::UpToDate | Outcome::Promoted);
        let Some(tag) = tag.filter(|_| !is_equal || !self.look.is_whole()) else {
            return;
        };
        let known = self.known.get(&self.there(tag));
        found.seen.push(SeenTag {
            tag: tag.clone(),
            outcome,
            is_known: known
                .is_some_and(|record| record.digest.is_some() || record.reported.is_some()),
        });
    }

    async fn tend_one(&self, tag: &Tag) -> Reconciled {
        let tally = Arc::new(Tally::default());
        let alone = self.look.left_alone.get(&self.destination_name(tag));
        // The job failed before its digest was known, so no change can be noticed.
        if let Some(settled) = alone.filter(|settled| settled.digest.is_none()) {
            return Reconciled::Settled(Box::new(settled.clone()));
        }
        let compared = match self.compare(tag, &tally).await {
            Ok(compared) => compared,
            Err(fault) => return self.failed(tag, fault, &tally).await,
        };
        self.seen_in_staging(tag, compared.read_source(), compared.source_at)
            .await;
        if let Some(digest) = compared.equal().filter(|digest| self.is_expected(digest))
            && !self.has_news(tag, &digest, &compared).await
        {
            return self.equal(tag, digest, &compared, &tally).await;
        }
        if let Some(settled) = alone
            && self.is_as_it_was(settled, tag, &compared, &tally).await
        {
            return Reconciled::Settled(Box::new(settled.clone()));
        }
        let refused = match self.refused_by_siblings(tag, &compared, &tally).await {
            Ok(refused) => refused,
            Err(fault) => return self.failed(tag, fault, &tally).await,
        };
        let job = Job {
            refused,
            ends_when_moved: self.has_fixed_beside(tag),
            ..self.job(tag, &compared.without_hint())
        };
        self.run(tag, &job, &tally).await
    }

    /// Settles a tag that could not be compared.
    async fn failed(&self, tag: &Tag, fault: Fault, tally: &Tally) -> Reconciled {
        let job = self.job(tag, &Compared::nothing());
        let completion = Completion::failed(fault, tally.requests());
        self.settle(&job, completion).await
    }

    /// Runs the job of a tag that differs, and settles it.
    async fn run(&self, tag: &Tag, job: &Job, tally: &Arc<Tally>) -> Reconciled {
        let look = self.look;
        let labels = look.labels(self.side);
        if !job.dry_run {
            look.topology.metrics.differs(labels, look.repository, tag);
        }
        let _listed = look.board.start_job(JobStatus {
            route: look.route.name.to_string(),
            source: self.source_name(tag),
            destination: self.destination_name(tag),
            since: clock::now(),
        });
        look.settle
            .progress
            .jobs_planned
            .fetch_add(1, Ordering::Relaxed);
        let mut completion = self.complete(job, tally).await;
        let is_to_come = matches!(
            completion.outcome,
            Outcome::Planned | Outcome::Waiting | Outcome::Held
        );
        if is_to_come && look.route.observes() {
            completion.reasons.push(OBSERVES.into());
        }
        completion.cost.requests += tally.requests();
        self.settle_companions(job, std::mem::take(&mut completion.companions))
            .await;
        if completion.outcome == Outcome::Promoted {
            look.topology.metrics.arrived(labels, look.repository, tag);
        }
        if !stays_pending(completion.outcome) {
            look.topology
                .metrics
                .waits_no_more(labels, look.repository, tag);
        }
        self.settle(job, completion).await
    }

    /// Runs a job. When staging moves its tag meanwhile, the fixed tags are compared again, and the
    /// job begins anew.
    async fn complete(&self, job: &Job, tally: &Arc<Tally>) -> Completion {
        let mut completion = self.execute(job).await;
        for _ in 0..MOVES {
            if !completion.has_moved {
                break;
            }
            let next = match self.refused_now(&job.key.tag, tally).await {
                Ok(refused) => {
                    let compared = Compared::nothing();
                    let anew = Job {
                        refused,
                        ends_when_moved: true,
                        ..self.job(&job.key.tag, &compared)
                    };
                    self.execute(&anew).await
                }
                Err(fault) => Completion::failed(fault, 0),
            };
            completion = completion.followed_by(next);
        }
        completion
    }

    async fn execute(&self, job: &Job) -> Completion {
        let look = self.look;
        let progress = &look.settle.progress;
        let engine = &look.topology.engine;
        engine
            .run(job, self.source, &self.side.repository, progress, look.stop)
            .await
    }

    /// Whether both sides still name what they named when the job failed, as far as they were
    /// asked. If the source cannot be asked, the job runs and reports why.
    async fn is_as_it_was(
        &self,
        failed: &Settled,
        tag: &Tag,
        compared: &Compared,
        tally: &Arc<Tally>,
    ) -> bool {
        let source = match compared.source {
            TagState::Unknown => {
                let asked = Instant::now();
                let source = self.source_digest(tag, tally).await;
                let source = source.unwrap_or(TagState::Unknown);
                self.seen_in_staging(tag, source, Some(asked)).await;
                source
            }
            known => known,
        };
        let destination_moved = match compared.destination {
            TagState::Unknown => false,
            TagState::Absent => failed.previous_digest.is_some(),
            TagState::At(digest) => !compared.by_hint && failed.previous_digest != Some(digest),
        };
        source.digest() == failed.digest && !destination_moved
    }

    /// Whether the digest is the expected one, if the request expects one. Whether that is the index
    /// of a chosen manifest, the job finds.
    fn is_expected(&self, digest: &Digest) -> bool {
        let expected = self.look.request.digest;
        expected.is_none_or(|expected| expected == *digest)
    }

    /// An equal tag needs no job. It is settled only if the report lists it, if its trouble is
    /// over, or if an earlier write turns out to have arrived.
    async fn equal(
        &self,
        tag: &Tag,
        digest: Digest,
        compared: &Compared,
        tally: &Arc<Tally>,
    ) -> Reconciled {
        let found = self.learn(tag, digest, compared, tally).await;
        let job = self.job(tag, compared);
        let engine = &self.look.topology.engine;
        let unmoved = engine.unmoved(&job.key.destination, &digest).await;
        let is_quiet = found.is_none()
            && unmoved.is_none()
            && !self.look.request.options.all
            && (compared.by_hint || !engine.is_in_trouble(&job.key));
        if is_quiet {
            return Reconciled::Equal(Equal {
                digest,
                by_hint: compared.by_hint,
                source_by_hint: compared.source_by_hint,
            });
        }
        self.settle(
            &job,
            Completion {
                found,
                reasons: unmoved.into_iter().collect(),
                ..Completion::equal(digest, tally.requests())
            },
        )
        .await
    }

    async fn settle(&self, job: &Job, completion: Completion) -> Reconciled {
        let sets = &self.look.stop.sets;
        // A job that was not run has not asked.
        let set = completion.set.or_else(|| sets.of(&job.key.destination));
        let completion = Completion { set, ..completion };
        let names = Names {
            source: self.source_name(&job.key.tag),
            destination: self.destination_name(&job.key.tag),
            registry: self.side.registry.to_string(),
        };
        Reconciled::Settled(Box::new(
            self.look
                .topology
                .engine
                .settle(self.look.settle, job, &names, completion)
                .await,
        ))
    }

    /// The tag's name at the destination. The look has left out tags without a name there.
    fn there(&self, tag: &Tag) -> Tag {
        self.side.naming.name(tag).unwrap_or_else(|| tag.clone())
    }

    fn key(&self, tag: &Tag) -> Key {
        Key {
            route: self.look.route.name.clone(),
            source: self.look.repository.clone(),
            tag: tag.clone(),
            destination: self.place(tag),
        }
    }

    /// When there was news: a look may have waited for its turn, and one that repeats another keeps
    /// the time of the first.
    fn news(&self) -> Option<Instant> {
        let request = &self.look.request;
        let is_repeated = request.attempt > 0;
        let news = request.news?;
        Some(if is_repeated { news } else { self.look.began })
    }

    fn job(&self, tag: &Tag, compared: &Compared) -> Job {
        let look = self.look;
        Job {
            key: self.key(tag),
            routes: Arc::from([look.route.name.clone()]),
            rules: look.route.rules_for(tag),
            gates: look.route.gates.clone(),
            backup: look.route.backup_of(tag, &self.there(tag)),
            source: compared.source,
            destination: compared.destination,
            destination_via: compared.destination_via,
            source_at: compared.source_at,
            destination_at: compared.destination_at,
            look_began: self.began,
            news: self.news(),
            fresh: self.list.as_ref().is_some_and(DestinationTags::is_empty),
            cause: look.request.cause,
            actor: look.request.actor.clone(),
            explicit: false,
            rollback: None,
            pinned: None,
            expect: look.request.digest,
            replace: None,
            dry_run: look.plans_alone(),
            observes: look.route.observes() && !look.request.options.dry_run,
            refused: self.refused.clone(),
            ends_when_moved: false,
            pushed: self.pushed(tag),
            companions: Companions::Listed(self.listing.companions.clone()),
            rank: look.request.rank(),
            max_wait: look.request.max_wait(),
        }
    }

    /// When the tag was pushed, as the notification says; a listing may tell when the image was.
    fn pushed(&self, tag: &Tag) -> Option<Timestamp> {
        let told = self.look.request.pushed.get(tag).copied();
        told.or_else(|| self.listing.tags.get(tag)?.pushed)
    }

    fn place(&self, tag: &Tag) -> TagId {
        TagId {
            origin: self.side.repository.origin().clone(),
            repository: self.side.repository.repository().clone(),
            tag: self.there(tag),
        }
    }

    fn source_name(&self, tag: &Tag) -> String {
        format!("{}:{tag}", self.source.address())
    }

    fn destination_name(&self, tag: &Tag) -> String {
        format!("{}:{}", self.side.repository.address(), self.there(tag))
    }
}
