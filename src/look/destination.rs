//! A look at one destination: compares each chosen tag on both sides, runs a job for each
//! difference, and settles the rest.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;

use super::topology::Side;
use super::{DestinationResult, DestinationTags, Estimate, Listing, RepositoryLook};
use crate::clock;
use crate::endpoint::{Destination, Repositories, Source, Tally};
use crate::fault::{Class, Fault};
use crate::index::TagHint;
use crate::job::{
    Cause, Companions, Job, Key, ObservedVia, Outcome, Rank, Settled, TagId, TagState,
};
use crate::ledger::{Agreement, EqualityUpdate, TagRecord, UnsettledJob};
use crate::oci::{Digest, Tag};
use crate::status::board::JobStatus;
use crate::status::metrics::DestinationLabels;
use crate::transfer::companions::{Addresses, CompanionOutcome};
use crate::transfer::limits::RequestClass;
use crate::transfer::plan::{self, Decision, Facts, Order};
use crate::transfer::resolve::Attempts;
use crate::transfer::settle::Names;
use crate::transfer::{Completion, Found};

/// Agreements that are written together.
const AGREEMENTS: usize = 1000;

/// Digests of source tags that several destinations need. Each is asked for once.
#[derive(Default)]
pub(super) struct SourceDigests(
    tokio::sync::Mutex<HashMap<Tag, Arc<tokio::sync::OnceCell<Option<Digest>>>>>,
);

/// A look at one destination.
pub(super) struct DestinationLook<'a, B: Repositories> {
    pub(super) look: &'a RepositoryLook<'a, B>,
    pub(super) source: &'a B::Repository,
    pub(super) side: &'a Side<B::Repository>,
    pub(super) listing: &'a Listing,
    pub(super) list: Option<DestinationTags>,
    /// Whether the destination has a list of tags.
    pub(super) has_list: bool,
    pub(super) shared: Option<&'a SourceDigests>,
    pub(super) began: Timestamp,
    pub(super) hints: HashMap<Tag, TagHint>,
    /// What the ledger knew of production's tags when the look began.
    pub(super) known: HashMap<Tag, TagRecord>,
    /// What the ledger is to learn of tags that are equal.
    pub(super) agreements: Mutex<Vec<Agreement>>,
    pub(super) refused: Arc<HashSet<Digest>>,
    /// The result of [`DestinationLook::compare_manifests`].
    pub(super) behind: tokio::sync::OnceCell<Option<HashSet<Digest>>>,
    /// What jobs have found of companion tags.
    pub(super) companions: SeenCompanions,
}

/// Companion tags that the jobs of a look have asked about.
#[derive(Default)]
pub(super) struct SeenCompanions {
    asked: Mutex<HashSet<Tag>>,
    /// Those that stay as they are, and are not in the report yet.
    kept: Mutex<Vec<Settled>>,
    /// See [`DestinationLook::unread_companions`].
    unread: std::sync::OnceLock<HashSet<Digest>>,
}

/// The digests of a tag on both sides, as far as the look knows them.
struct Compared {
    source: TagState,
    destination: TagState,
    /// What production was asked for.
    destination_via: ObservedVia,
    /// When the source was asked about the tag. `None`: only a listing that may lag has answered.
    source_at: Option<Instant>,
    /// When production was asked.
    destination_at: Instant,
    /// Whether production's digest comes from the index.
    by_hint: bool,
}

impl Compared {
    fn nothing() -> Compared {
        let (source, destination) = (TagState::Unknown, TagState::Unknown);
        Compared {
            source,
            destination,
            destination_via: ObservedVia::Tag,
            source_at: None,
            destination_at: Instant::now(),
            by_hint: false,
        }
    }

    fn equal(&self) -> Option<Digest> {
        self.source
            .digest()
            .filter(|_| self.source == self.destination)
    }

    /// What a job may act on: an answer of production, never a hint.
    fn without_hint(self) -> Compared {
        if self.by_hint {
            Compared {
                destination: TagState::Unknown,
                by_hint: false,
                ..self
            }
        } else {
            self
        }
    }
}

/// Most moving tags that staging is asked about while production does not answer.
const MOST_ASKED: usize = 100;

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

/// Most steps from a referrer up to its image.
const OWNERS: usize = 8;

/// The result for one tag.
enum Reconciled {
    Equal { digest: Digest, by_hint: bool },
    Settled(Box<Settled>),
}

impl<'a, B: Repositories> DestinationLook<'a, B> {
    /// A look at a destination of which nothing is known yet.
    pub(super) fn of(
        look: &'a RepositoryLook<'a, B>,
        source: &'a B::Repository,
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
            known: HashMap::new(),
            agreements: Mutex::default(),
            refused: Arc::default(),
            behind: tokio::sync::OnceCell::new(),
            companions: SeenCompanions::default(),
        }
    }

    /// Compares tags and runs a job for each that differs. Returns the digests in conflict.
    pub(super) async fn reconcile(
        &self,
        tags: Vec<Tag>,
        found: &mut DestinationResult,
    ) -> HashSet<Digest> {
        let mut conflicts = HashSet::new();
        let mut equal = Vec::new();
        let at_once = self.look.topology.settings.tags;
        let mut tended = stream::iter(tags)
            .map(|tag: Tag| async move { (self.tend_one(&tag).await, tag) }.boxed())
            .buffer_unordered(at_once);
        while let Some((tended, tag)) = tended.next().await {
            self.record_agreements(AGREEMENTS).await;
            match tended {
                Reconciled::Equal { digest, by_hint } => {
                    found.totals.add(Outcome::UpToDate);
                    // A hint does not confirm itself.
                    if !by_hint {
                        equal.push((self.there(&tag), Some(digest)));
                    }
                }
                Reconciled::Settled(settled) => {
                    found.totals.add(settled.result);
                    if settled.result == Outcome::Conflict {
                        conflicts.extend(settled.digest);
                    }
                    if stays_pending(settled.result) {
                        found.pending.push(tag);
                    }
                    let is_news =
                        settled.result != Outcome::UpToDate || settled.referrers.copied > 0;
                    if self.look.request.options.all || is_news {
                        found.jobs.push(*settled);
                    }
                }
            }
        }
        self.record_agreements(1).await;
        self.report_companions(found);
        if !equal.is_empty() && !self.look.request.options.dry_run {
            let (origin, repository) = (
                self.side.repository.origin(),
                self.side.repository.repository(),
            );
            self.look
                .topology
                .engine
                .index
                .remember_tags(origin, repository, equal)
                .await;
        }
        conflicts
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
            Err(fault) => {
                let job = self.job(tag, &Compared::nothing());
                return self
                    .settle(&job, Completion::failed(fault, tally.requests()))
                    .await;
            }
        };
        if let Some(digest) = compared.equal().filter(|digest| self.is_expected(digest))
            && !self.has_news(&digest).await
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
            Err(fault) => {
                let job = self.job(tag, &Compared::nothing());
                return self
                    .settle(&job, Completion::failed(fault, tally.requests()))
                    .await;
            }
        };
        let job = Job {
            refused,
            ..self.job(tag, &compared.without_hint())
        };
        let look = self.look;
        let labels = DestinationLabels {
            route: &look.route.name,
            registry: &self.side.registry,
            to: &self.side.to,
        };
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
        let progress = &look.settle.progress;
        let mut completion = look
            .topology
            .engine
            .run(
                &job,
                self.source,
                &self.side.repository,
                progress,
                look.stop,
            )
            .await;
        completion.cost.requests += tally.requests();
        self.settle_companions(&job, std::mem::take(&mut completion.companions))
            .await;
        if completion.outcome == Outcome::Promoted {
            look.topology.metrics.arrived(labels, look.repository, tag);
        }
        if !stays_pending(completion.outcome) {
            look.topology
                .metrics
                .waits_no_more(labels, look.repository, tag);
        }
        self.settle(&job, completion).await
    }

    /// Settles the companions that a job has looked at, each once in a look: several tags may name
    /// one image.
    async fn settle_companions(&self, job: &Job, companions: Vec<CompanionOutcome>) {
        let new: Vec<CompanionOutcome> = {
            let mut asked = self
                .companions
                .asked
                .lock()
                .expect("nothing panics while it notes");
            companions
                .into_iter()
                .filter(|companion| asked.insert(companion.tag.clone()))
                .collect()
        };
        let addresses = Addresses {
            source: &self.source.address(),
            destination: &self.side.repository.address(),
            registry: &self.side.registry,
        };
        let kept = self
            .look
            .topology
            .engine
            .settle_companions(self.look.settle, job, addresses, new)
            .await;
        self.companions
            .kept
            .lock()
            .expect("nothing panics while it notes")
            .extend(kept);
    }

    /// The subjects of companions that an earlier process has found to stay as they are: this one
    /// asks about them once.
    fn unread_companions(&self) -> &HashSet<Digest> {
        self.companions.unread.get_or_init(|| {
            let engine = &self.look.topology.engine;
            let route = &self.look.route.name;
            let origin = self.side.repository.origin();
            let repository = self.side.repository.repository();
            let there = (origin, repository);
            let read: HashSet<Tag> = engine
                .kept_companions(route, self.look.repository, there)
                .into_iter()
                .map(|(tag, _)| tag)
                .collect();
            engine
                .troubled_tags(route, origin, repository)
                .iter()
                .filter(|tag| self.listing.companions.contains_key(*tag) && !read.contains(*tag))
                .filter_map(Tag::subject)
                .collect()
        })
    }

    /// Reports the companions that stay as they are, as this look has found them.
    fn report_companions(&self, found: &mut DestinationResult) {
        let kept = std::mem::take(
            &mut *self
                .companions
                .kept
                .lock()
                .expect("nothing panics while it notes"),
        );
        for settled in kept {
            found.totals.add(settled.result);
            found.jobs.push(settled);
        }
    }

    /// Reports the companions that an earlier look has found to stay as they are, and that this one
    /// had no reason to ask about.
    pub(super) fn report_kept_companions(&self, found: &mut DestinationResult) {
        let destination = &self.side.repository;
        let kept = self.look.topology.engine.kept_companions(
            &self.look.route.name,
            self.look.repository,
            (destination.origin(), destination.repository()),
        );
        let asked = self
            .companions
            .asked
            .lock()
            .expect("nothing panics while it notes");
        for (tag, settled) in kept {
            if self.listing.companions.contains_key(&tag) && !asked.contains(&tag) {
                found.totals.add(settled.result);
                found.jobs.push(settled);
            }
        }
    }

    /// The state of every chosen tag while production does not answer: staging's present digest
    /// against production's last known digest and the last trouble.
    pub(super) async fn estimate(&self) -> Estimate {
        let look = self.look;
        let (origin, repository) = (
            self.side.repository.origin(),
            self.side.repository.repository(),
        );
        let troubled = look
            .topology
            .engine
            .ledger
            .troubled(origin, repository)
            .await
            .unwrap_or_default();
        let of_this_route = |row: &UnsettledJob| {
            row.key.route == look.route.name && row.key.source == *look.repository
        };
        let troubled: BTreeMap<Tag, Outcome> = troubled
            .into_iter()
            .filter(of_this_route)
            .map(|row| (row.key.tag, row.result))
            .collect();
        let mut estimate = Estimate::default();
        let mut asked = 0;
        for tag in &self.listing.chosen {
            let Some(called) = self.side.naming.name(tag) else {
                continue;
            };
            let known = self.hints.get(&called).map(|hint| hint.digest);
            let named = match self.listing.tags.get(tag).and_then(|listed| listed.digest) {
                // A fixed tag that was promoted still names the same digest.
                None if known.is_some() && !look.route.selection.is_moving(tag) => known,
                None if known.is_some() && asked < MOST_ASKED => {
                    asked += 1;
                    self.source_digest(tag, &Arc::default())
                        .await
                        .ok()
                        .and_then(TagState::digest)
                        .or(known)
                }
                listed => listed,
            };
            let state = match troubled.get(tag) {
                Some(Outcome::Failed | Outcome::Waiting | Outcome::Held) | None
                    if known.is_some() && known == named =>
                {
                    Some(Outcome::UpToDate)
                }
                Some(
                    trouble @ (Outcome::Conflict
                    | Outcome::Drift
                    | Outcome::Existing
                    | Outcome::Refused),
                ) => Some(*trouble),
                _ => None,
            };
            match state {
                Some(outcome) => estimate.totals.add(outcome),
                None => estimate.pending.push(tag.clone()),
            }
        }
        estimate
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
            TagState::Unknown => self
                .source_digest(tag, tally)
                .await
                .unwrap_or(TagState::Unknown),
            known => known,
        };
        let destination_moved = match compared.destination {
            TagState::Unknown => false,
            TagState::Absent => failed.previous_digest.is_some(),
            TagState::At(digest) => !compared.by_hint && failed.previous_digest != Some(digest),
        };
        source.digest() == failed.digest && !destination_moved
    }

    /// Whether the digest is the expected one, if the request expects one.
    fn is_expected(&self, digest: &Digest) -> bool {
        self.look
            .request
            .digest
            .is_none_or(|expected| expected == *digest)
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
        let is_quiet = found.is_none()
            && !self.look.request.options.all
            && !self.look.topology.engine.is_in_trouble(&job.key);
        if is_quiet {
            return Reconciled::Equal {
                digest,
                by_hint: compared.by_hint,
            };
        }
        self.settle(
            &job,
            Completion {
                found,
                ..Completion::equal(digest, tally.requests())
            },
        )
        .await
    }

    /// Records in the ledger that both sides name `digest`. Returns an earlier write that is found
    /// this way.
    async fn learn(
        &self,
        tag: &Tag,
        digest: Digest,
        compared: &Compared,
        tally: &Arc<Tally>,
    ) -> Option<Found> {
        // A hint does not confirm itself.
        if compared.by_hint || self.look.request.options.dry_run {
            return None;
        }
        let called = self.there(tag);
        let known = self.known.get(&called).cloned().unwrap_or_default();
        match known.on_equality(&digest) {
            EqualityUpdate::None => None,
            EqualityUpdate::Written => {
                let found = self
                    .look
                    .topology
                    .engine
                    .ledger
                    .found(&self.place(tag), &digest)
                    .await;
                self.noted(found).map(|()| Found {
                    digest,
                    previous: known.digest,
                })
            }
            EqualityUpdate::Agreed => {
                if !self.look.route.selection.is_moving(tag)
                    || self.proves(tag, digest, tally).await
                {
                    let agreement = Agreement {
                        tag: called,
                        digest,
                        known,
                    };
                    self.agreements
                        .lock()
                        .expect("nothing panics while it notes")
                        .push(agreement);
                }
                None
            }
        }
    }

    /// Whether the source proves by the bytes that its moving tag names `digest`. A registry's
    /// claim about a digest proves nothing. A source without proof is not asked again for that
    /// digest.
    async fn proves(&self, tag: &Tag, digest: Digest, tally: &Arc<Tally>) -> bool {
        let (engine, place) = (&self.look.topology.engine, self.place(tag));
        if engine.is_unproven(&place, &digest) {
            return false;
        }
        let (source, priority) = (
            self.source.counted(tally),
            RequestClass::Manifests.of_look(),
        );
        let proven = match engine
            .read_tag(&source, tag, priority, self.look.stop)
            .await
        {
            Ok(read) => read == Some(digest),
            Err(fault) if fault.class() == Class::Corrupt => {
                engine.metrics.mismatched(self.source.registry());
                false
            }
            Err(fault) => {
                tracing::debug!(source = self.source_name(tag), error = %fault.chain(), "the manifest of an equal tag could not be read");
                return false;
            }
        };
        if !proven {
            engine.note_unproven(&place, &digest);
        }
        proven
    }

    /// Writes the collected agreements once there are `least` of them.
    async fn record_agreements(&self, least: usize) {
        let agreements = {
            let mut agreements = self
                .agreements
                .lock()
                .expect("nothing panics while it notes");
            if agreements.len() < least {
                Vec::new()
            } else {
                std::mem::take(&mut *agreements)
            }
        };
        if !agreements.is_empty() {
            let (origin, repository) = (
                self.side.repository.origin(),
                self.side.repository.repository(),
            );
            self.noted(
                self.look
                    .topology
                    .engine
                    .ledger
                    .agree(origin, repository, agreements)
                    .await,
            );
        }
    }

    /// Logs a failed write. The next look tries again.
    fn noted(&self, written: Result<(), Fault>) -> Option<()> {
        let told = |fault: &Fault| tracing::error!(destination = %self.side.repository.address(), error = %fault.chain(), "the ledger could not be written");
        written.inspect_err(told).ok()
    }

    /// Digests that a moving tag must not get. A request for this tag alone does not look at the
    /// fixed tags, so fixed tags with the same digest at staging are compared here.
    async fn refused_by_siblings(
        &self,
        tag: &Tag,
        compared: &Compared,
        tally: &Arc<Tally>,
    ) -> Result<Arc<HashSet<Digest>>, Fault> {
        let selection = &self.look.route.selection;
        let fixed = || {
            self.listing
                .siblings
                .iter()
                .filter(|sibling| !selection.is_moving(sibling))
        };
        let asks = selection.is_moving(tag)
            && compared.source != TagState::Absent
            && fixed().next().is_some();
        if !asks {
            return Ok(self.refused.clone());
        }
        let digest = match compared.source {
            TagState::At(digest) => digest,
            TagState::Unknown | TagState::Absent => match self.source_digest(tag, tally).await? {
                TagState::At(digest) => digest,
                TagState::Unknown | TagState::Absent => return Ok(self.refused.clone()),
            },
        };
        let conflicts = fixed().map(|sibling| self.is_in_conflict(sibling, digest, tally).boxed());
        let mut conflicts = stream::iter(conflicts.collect::<Vec<_>>())
            .buffer_unordered(self.look.topology.settings.tags);
        while let Some(is_in_conflict) = conflicts.next().await {
            if is_in_conflict? {
                let others = self.refused.iter().copied();
                return Ok(Arc::new(others.chain([digest]).collect()));
            }
        }
        Ok(self.refused.clone())
    }

    /// Whether a fixed tag names `digest` at staging and is in conflict over it.
    async fn is_in_conflict(
        &self,
        tag: &Tag,
        digest: Digest,
        tally: &Arc<Tally>,
    ) -> Result<bool, Fault> {
        let listed = self.listing.tags.get(tag).and_then(|listed| listed.digest);
        let source = match listed {
            Some(listed) => TagState::At(listed),
            None => self.source_digest(tag, tally).await?,
        };
        let Some(called) = self
            .side
            .naming
            .name(tag)
            .filter(|_| source == TagState::At(digest))
        else {
            return Ok(false);
        };
        let destination = self
            .resolve(&self.side.repository, &called, tally)
            .await?
            .digest();
        let known = self
            .look
            .topology
            .engine
            .ledger
            .written(&self.place(tag))
            .await?;
        let facts = Facts {
            source: Some(digest),
            destination,
            ledger_known: known.known(),
            ledger_agrees: destination.is_some_and(|there| known.is_ours(&there)),
        };
        let decision = plan::decide(self.look.route.rules_for(tag), &facts, &Order::default());
        Ok(matches!(decision, Decision::Conflict(_)))
    }

    async fn settle(&self, job: &Job, completion: Completion) -> Reconciled {
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

    /// Compares both sides. The source digest of a tag that production lacks stays unknown: its job
    /// reads the manifest anyway.
    async fn compare(&self, tag: &Tag, tally: &Arc<Tally>) -> Result<Compared, Fault> {
        let now = Instant::now();
        let called = &self.there(tag);
        let listed = self.listing.tags.get(tag).and_then(|listed| listed.digest);
        let there = self.list.as_ref().and_then(|list| *list.get(called)?);
        let may_be_behind = self.may_be_behind(called, there);
        let source_at = if listed.is_some() {
            self.listed_at()
        } else {
            Some(self.shared.map_or(now, |_| self.listing.at))
        };
        if !may_be_behind
            && self
                .list
                .as_ref()
                .is_some_and(|list| !list.contains_key(called))
        {
            let source = match (listed, self.shared) {
                (Some(digest), _) => TagState::At(digest),
                (None, Some(_)) => self.source_digest(tag, tally).await?,
                (None, None) => TagState::Unknown,
            };
            let destination_via = if self.has_list {
                ObservedVia::List
            } else {
                ObservedVia::MissingList
            };
            return Ok(Compared {
                source,
                destination: TagState::Absent,
                destination_via,
                source_at,
                destination_at: self.listing.at,
                by_hint: false,
            });
        }
        let source = async {
            match listed {
                Some(digest) => Ok(TagState::At(digest)),
                None => self.source_digest(tag, tally).await,
            }
        };
        let there = there.filter(|_| !may_be_behind);
        let hint = if there.is_none() {
            self.fresh_hint(called)
        } else {
            None
        };
        if let Some(known) = there.or(hint) {
            let compared = Compared {
                source: source.await?,
                destination: TagState::At(known),
                destination_via: ObservedVia::List,
                source_at,
                destination_at: self.listing.at,
                by_hint: hint.is_some(),
            };
            if compared.equal().is_none() || !self.is_troubled_behind_list(tag) {
                return Ok(compared);
            }
            return Ok(Compared {
                destination_at: Instant::now(),
                destination: self.resolve(&self.side.repository, called, tally).await?,
                destination_via: ObservedVia::Tag,
                by_hint: false,
                ..compared
            });
        }
        let (source, destination) =
            futures::try_join!(source, self.resolve(&self.side.repository, called, tally))?;
        if destination == TagState::Absent && self.is_listed_now(called) {
            return Err(self.contradiction(called));
        }
        Ok(Compared {
            source,
            destination,
            destination_via: ObservedVia::Tag,
            source_at,
            destination_at: now,
            by_hint: false,
        })
    }

    /// When staging's listing answered for its tags. `None`: the listing may lag behind them.
    fn listed_at(&self) -> Option<Instant> {
        let is_current = self.source.abilities().current_lists;
        is_current.then_some(self.listing.at)
    }

    /// Whether production's list shows the tag, where lists are made from what the registry holds
    /// at that moment.
    fn is_listed_now(&self, tag: &Tag) -> bool {
        let is_current = self.side.repository.abilities().current_lists;
        let is_listed = || {
            self.list
                .as_ref()
                .is_some_and(|list| list.contains_key(tag))
        };
        is_current && is_listed()
    }

    /// The list shows the tag, and its manifest is answered with 404: it was deleted between the
    /// two questions, or what it names cannot be served. Nothing is written over what is not known;
    /// the next look asks both again.
    fn contradiction(&self, tag: &Tag) -> Fault {
        let address = self.side.repository.address();
        Fault::retryable(format!(
            "{address} lists the tag {tag}, but answers that its manifest does not exist: what the tag names is not known, so \
             it is left alone. If this stays, the registry has lost the manifest or cannot serve it: repair or delete the tag \
             there"
        ))
    }

    /// Whether production's listing may predate an earlier write. Then the tag itself is asked.
    fn may_be_behind(&self, tag: &Tag, listed: Option<Digest>) -> bool {
        let is_current = self.side.repository.abilities().current_lists;
        !is_current
            && self
                .known
                .get(tag)
                .is_some_and(|known| known.may_be_behind(listed, clock::now()))
    }

    /// Whether the tag's last result was trouble at a registry whose listing may lag. A listing
    /// that predates the trouble does not end it.
    fn is_troubled_behind_list(&self, tag: &Tag) -> bool {
        let is_current = self.side.repository.abilities().current_lists;
        !is_current && self.look.topology.engine.is_in_trouble(&self.key(tag))
    }

    /// Production's digest by the index, if it is recent. It proves only that nothing is to be
    /// done. A tag reported as drift or existing gets no hint.
    fn fresh_hint(&self, tag: &Tag) -> Option<Digest> {
        if self
            .known
            .get(tag)
            .is_some_and(|known| known.reported.is_some())
        {
            return None;
        }
        let hint = self.hints.get(tag)?;
        let age = self.began.duration_since(hint.seen).as_secs();
        let trust =
            i64::try_from(self.look.topology.engine.settings.trust.as_secs()).unwrap_or(i64::MAX);
        (0..trust).contains(&age).then_some(hint.digest)
    }

    async fn source_digest(&self, tag: &Tag, tally: &Arc<Tally>) -> Result<TagState, Fault> {
        let Some(shared) = self.shared else {
            return self.resolve(self.source, tag, tally).await;
        };
        let cell = shared
            .0
            .lock()
            .await
            .entry(tag.clone())
            .or_default()
            .clone();
        let digest = cell
            .get_or_try_init(|| async {
                Ok::<_, Fault>(self.resolve(self.source, tag, tally).await?.digest())
            })
            .await?;
        Ok(digest.map_or(TagState::Absent, TagState::At))
    }

    async fn resolve(
        &self,
        repository: &B::Repository,
        tag: &Tag,
        tally: &Arc<Tally>,
    ) -> Result<TagState, Fault> {
        let engine = &self.look.topology.engine;
        let priority = RequestClass::Manifests
            .of_look()
            .within(self.look.request.max_wait());
        let resolved = engine
            .resolve_tag(
                &repository.counted(tally),
                tag,
                priority,
                Attempts::Retried,
                self.look.stop,
            )
            .await?;
        Ok(resolved.map_or(TagState::Absent, TagState::At))
    }

    /// Whether a referrer or companion of an equal tag may be missing. The listing shows new
    /// companions. The referrers API is asked by the verifying sweep, and at once by `sync` and for
    /// tags named in the request: once for each digest, unless the source keeps no such lists or
    /// the lists of both repositories show nothing new.
    async fn has_news(&self, digest: &Digest) -> bool {
        let look = self.look;
        if look.request.options.dry_run {
            return false;
        }
        let engine = &look.topology.engine;
        let stem = Tag::fallback(digest);
        let companions = self
            .listing
            .companions
            .range(stem.clone()..)
            .map(|(tag, _)| tag);
        let missing = |tag: &Tag| {
            self.list
                .as_ref()
                .is_some_and(|list| !list.contains_key(tag))
        };
        let (origin, repository) = (
            self.side.repository.origin(),
            self.side.repository.repository(),
        );
        let mut new = companions
            .take_while(|tag| tag.as_str().starts_with(stem.as_str()))
            .filter(|tag| missing(tag));
        if new.any(|tag| !engine.has_tried(origin, repository, tag)) {
            return true;
        }
        if self.unread_companions().contains(digest) {
            return true;
        }
        let at_once = look.request.cause == Cause::Cli || !look.request.tags.is_empty();
        let may_ask = at_once || look.request.cause == Cause::Verify;
        let has_none =
            self.source.lists_referrers() == Some(false) && self.listing.companions.is_empty();
        if !may_ask || has_none {
            return false;
        }
        let checked = engine.index.checked(origin, repository, digest).await;
        let trust = i64::try_from(engine.settings.trust.as_secs()).unwrap_or(i64::MAX);
        let is_due = |at: Timestamp| {
            if at_once {
                at < self.began
            } else {
                self.began.duration_since(at).as_secs() >= trust
            }
        };
        if !checked.is_none_or(is_due) {
            return false;
        }
        let behind = self
            .behind
            .get_or_init(|| self.compare_manifests().boxed())
            .await;
        behind.as_ref().is_none_or(|images| images.contains(digest))
    }

    /// The tagged images for which the destination lacks a referrer or a companion, by the manifest
    /// lists that some registries serve. `None`: the lists cannot tell, so each image is asked
    /// about.
    async fn compare_manifests(&self) -> Option<HashSet<Digest>> {
        let there_by_tag = self.list.as_ref()?;
        let (engine, stop) = (&self.look.topology.engine, self.look.stop);
        let failed = |fault: &Fault| tracing::debug!(error = %fault.chain(), "the manifests of a repository could not be listed");
        let here = engine
            .listed_manifests(self.source, stop)
            .await
            .inspect_err(failed)
            .ok()??;
        let there = engine
            .listed_manifests(&self.side.repository, stop)
            .await
            .inspect_err(failed)
            .ok()?
            .unwrap_or_default();
        let mut owners: HashMap<Digest, Digest> = here
            .iter()
            .filter_map(|(digest, subject)| Some((*digest, (*subject)?)))
            .collect();
        let mut images = HashSet::new();
        let mut behind = Vec::new();
        for (tag, listed) in &self.listing.tags {
            let digest = listed.digest?;
            if !tag.travels_with_subject() {
                images.insert(digest);
                continue;
            }
            let owner = tag.subject()?;
            if there_by_tag.get(tag) != Some(&Some(digest)) {
                behind.push(owner);
            }
            if owners
                .insert(digest, owner)
                .is_some_and(|other| other != owner)
            {
                return None;
            }
        }
        let missing = |(digest, subject): (&Digest, &Option<Digest>)| {
            subject.filter(|_| !there.contains_key(digest))
        };
        behind.extend(here.iter().filter_map(missing));
        let mut tagged = HashSet::new();
        for digest in behind {
            let owners = std::iter::successors(Some(digest), |digest| owners.get(digest).copied());
            let chain: Vec<Digest> = owners.take(OWNERS).collect();
            let of_images: Vec<Digest> = chain
                .iter()
                .filter(|digest| images.contains(*digest))
                .copied()
                .collect();
            // It may belong to a platform's manifest of any image. A manifest that staging lacks
            // belongs to none.
            if of_images.is_empty() && chain.last().is_some_and(|top| here.contains_key(top)) {
                return None;
            }
            tagged.extend(of_images);
        }
        Some(tagged)
    }

    fn key(&self, tag: &Tag) -> Key {
        Key {
            route: self.look.route.name.clone(),
            source: self.look.repository.clone(),
            tag: tag.clone(),
            destination: self.place(tag),
        }
    }

    fn job(&self, tag: &Tag, compared: &Compared) -> Job {
        let look = self.look;
        Job {
            key: self.key(tag),
            rules: look.route.rules_for(tag),
            source: compared.source,
            destination: compared.destination,
            destination_via: compared.destination_via,
            source_at: compared.source_at,
            destination_at: compared.destination_at,
            look_began: self.began,
            fresh: self.list.as_ref().is_some_and(DestinationTags::is_empty),
            cause: look.request.cause,
            actor: look.request.actor.clone(),
            explicit: false,
            pinned: None,
            expect: look.request.digest,
            replace: None,
            dry_run: look.request.options.dry_run,
            refused: self.refused.clone(),
            pushed: self.listing.tags.get(tag).and_then(|listed| listed.pushed),
            companions: Companions::Listed(self.listing.companions.clone()),
            rank: Rank::of(look.request.cause, !look.request.tags.is_empty()),
            max_wait: look.request.max_wait(),
        }
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
