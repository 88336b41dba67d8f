//! A look at one destination: compares each chosen tag on both sides, has carried what differs, settles the rest.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Estimate, Found, Listing, Looking, There};
use crate::clock;
use crate::endpoint::{Backend, Source, Tally};
use crate::fault::Fault;
use crate::index::TagHint;
use crate::job::{Cause, Companions, Job, Key, Outcome, Place, Rank, Seen, Settled};
use crate::ledger::Troubled;
use crate::oci::{Digest, Tag};
use crate::transfer::Ending;
use crate::transfer::limits::Traffic;
use crate::transfer::settle::Names;
use crate::watch::board::JobStatus;
use crate::watch::metrics::Spot;
use crate::watch::world::Side;

/// Digests of source tags that several destinations need: asked for once.
#[derive(Default)]
pub(super) struct SourceDigests(tokio::sync::Mutex<HashMap<Tag, Arc<tokio::sync::OnceCell<Option<Digest>>>>>);

/// A look at one destination.
pub(super) struct View<'a, B: Backend> {
    pub(super) looking: &'a Looking<'a, B>,
    pub(super) source: &'a B::Repository,
    pub(super) side: &'a Side<B::Repository>,
    pub(super) listing: &'a Listing,
    pub(super) list: Option<There>,
    pub(super) shared: Option<&'a SourceDigests>,
    pub(super) began: Timestamp,
    pub(super) hints: HashMap<Tag, TagHint>,
    pub(super) refused: Arc<HashSet<Digest>>,
}

/// What both sides of a tag name, as far as the look knows.
struct Compared {
    source: Seen,
    destination: Seen,
    /// When the older of the two was asked for.
    at: Instant,
    /// Whether production's side is the index's word.
    by_hint: bool,
}

impl Compared {
    fn nothing() -> Compared {
        Compared { source: Seen::Unknown, destination: Seen::Unknown, at: Instant::now(), by_hint: false }
    }

    fn equal(&self) -> Option<Digest> {
        self.source.digest().filter(|_| self.source == self.destination)
    }

    /// What a job may act on: production's own word, or nothing.
    fn without_hint(self) -> Compared {
        if self.by_hint { Compared { destination: Seen::Unknown, by_hint: false, ..self } } else { self }
    }
}

/// Moving tags that staging is asked about while production does not answer.
const MOST_ASKED: usize = 100;

/// Whether a tag with this outcome is still to be promoted.
fn stays_pending(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failed | Outcome::Waiting | Outcome::Held | Outcome::Interrupted | Outcome::Planned)
}

/// What a tag came to.
enum Tended {
    Equal { digest: Digest, by_hint: bool },
    Settled(Box<Settled>),
}

impl<B: Backend> View<'_, B> {
    /// Compares tags and carries those that differ; returns the digests in conflict.
    pub(super) async fn tend(&self, tags: Vec<Tag>, found: &mut Found) -> HashSet<Digest> {
        let mut conflicts = HashSet::new();
        let mut equal = Vec::new();
        let at_once = self.looking.world.settings.tags;
        let mut tended =
            stream::iter(tags).map(|tag: Tag| async move { (self.tend_one(&tag).await, tag) }.boxed()).buffer_unordered(at_once);
        while let Some((tended, tag)) = tended.next().await {
            match tended {
                Tended::Equal { digest, by_hint } => {
                    found.totals.add(Outcome::UpToDate);
                    // A hint does not confirm itself.
                    if !by_hint {
                        equal.push((self.there(&tag), Some(digest)));
                    }
                }
                Tended::Settled(settled) => {
                    found.totals.add(settled.result);
                    if settled.result == Outcome::Conflict {
                        conflicts.extend(settled.digest);
                    }
                    if stays_pending(settled.result) {
                        found.pending.push(tag);
                    }
                    if self.looking.ask.wish.all || settled.result != Outcome::UpToDate {
                        found.jobs.push(*settled);
                    }
                }
            }
        }
        if !equal.is_empty() && !self.looking.ask.wish.dry_run {
            let (origin, repository) = (self.side.repository.origin(), self.side.repository.repository());
            self.looking.world.engine.index.remember_tags(origin, repository, equal).await;
        }
        conflicts
    }

    async fn tend_one(&self, tag: &Tag) -> Tended {
        let tally = Arc::new(Tally::default());
        let compared = match self.compare(tag, &tally).await {
            Ok(compared) => compared,
            Err(fault) => {
                let job = self.job(tag, &Compared::nothing());
                return self.settle(&job, Ending::failed(fault, tally.requests())).await;
            }
        };
        if let Some(digest) = compared.equal().filter(|digest| self.is_expected(digest))
            && !self.has_news(&digest).await
        {
            return self.equal(tag, digest, &compared, tally.requests()).await;
        }
        let job = self.job(tag, &compared.without_hint());
        let looking = self.looking;
        let spot = Spot { route: &looking.route.name, registry: &self.side.registry, to: &self.side.to };
        if !job.dry_run {
            looking.world.metrics.differs(spot, looking.repository, tag);
        }
        let _listed = looking.board.start_job(JobStatus {
            route: looking.route.name.to_string(),
            source: self.source_name(tag),
            destination: self.destination_name(tag),
            since: clock::now(),
        });
        looking.settle.progress.jobs_planned.fetch_add(1, Ordering::Relaxed);
        let progress = &looking.settle.progress;
        let mut ending = looking.world.engine.run(&job, self.source, &self.side.repository, progress, looking.stop).await;
        ending.cost.requests += tally.requests();
        if ending.outcome == Outcome::Promoted {
            looking.world.metrics.arrived(spot, looking.repository, tag);
        }
        if !stays_pending(ending.outcome) {
            looking.world.metrics.waits_no_more(spot, looking.repository, tag);
        }
        self.settle(&job, ending).await
    }

    /// The state of every chosen tag while production does not answer: what staging names now, against what production was
    /// last known to hold and what was last in trouble.
    pub(super) async fn estimate(&self) -> Estimate {
        let looking = self.looking;
        let (origin, repository) = (self.side.repository.origin(), self.side.repository.repository());
        let troubled = looking.world.engine.ledger.troubled(origin, repository).await.unwrap_or_default();
        let of_this_route = |row: &Troubled| row.key.route == looking.route.name && row.key.source == *looking.repository;
        let troubled: BTreeMap<Tag, Outcome> =
            troubled.into_iter().filter(of_this_route).map(|row| (row.key.tag, row.result)).collect();
        let mut estimate = Estimate::default();
        let mut asked = 0;
        for tag in &self.listing.chosen {
            let Some(called) = self.side.naming.name(tag) else { continue };
            let known = self.hints.get(&called).map(|hint| hint.digest);
            let named = match self.listing.tags.get(tag).and_then(|(digest, _)| *digest) {
                // A fixed tag that has arrived names what it named then.
                None if known.is_some() && !looking.route.selection.is_moving(tag) => known,
                None if known.is_some() && asked < MOST_ASKED => {
                    asked += 1;
                    self.source_digest(tag, &Arc::default()).await.ok().and_then(Seen::digest).or(known)
                }
                listed => listed,
            };
            let state = match troubled.get(tag) {
                Some(Outcome::Failed | Outcome::Waiting | Outcome::Held) | None if known.is_some() && known == named => {
                    Some(Outcome::UpToDate)
                }
                Some(trouble @ (Outcome::Conflict | Outcome::Drift | Outcome::Existing | Outcome::Refused)) => Some(*trouble),
                _ => None,
            };
            match state {
                Some(outcome) => estimate.totals.add(outcome),
                None => estimate.pending.push(tag.clone()),
            }
        }
        estimate
    }

    /// Whether the digest is the one that the asker expects, if any: an equal tag with another one is no success.
    fn is_expected(&self, digest: &Digest) -> bool {
        self.looking.ask.digest.is_none_or(|expected| expected == *digest)
    }

    /// An equal tag needs no job; it is settled only when somebody wants to read of it or when its trouble is over.
    async fn equal(&self, tag: &Tag, digest: Digest, compared: &Compared, requests: u64) -> Tended {
        let job = self.job(tag, compared);
        if !self.looking.ask.wish.all && !self.looking.world.engine.is_in_trouble(&job.key) {
            return Tended::Equal { digest, by_hint: compared.by_hint };
        }
        self.settle(&job, Ending::equal(digest, requests)).await
    }

    async fn settle(&self, job: &Job, ending: Ending) -> Tended {
        let names = Names {
            source: self.source_name(&job.key.tag),
            destination: self.destination_name(&job.key.tag),
            registry: self.side.registry.to_string(),
        };
        Tended::Settled(Box::new(self.looking.world.engine.settle(self.looking.settle, job, &names, ending).await))
    }

    /// What a tag is called at the destination. The look has left out what cannot be called so.
    fn there(&self, tag: &Tag) -> Tag {
        self.side.naming.name(tag).unwrap_or_else(|| tag.clone())
    }

    /// What both sides name, as far as it has to be asked here: a tag that production lacks is read by its job anyway.
    async fn compare(&self, tag: &Tag, tally: &Arc<Tally>) -> Result<Compared, Fault> {
        let now = Instant::now();
        let called = &self.there(tag);
        let listed = self.listing.tags.get(tag).and_then(|(digest, _)| *digest);
        if self.list.as_ref().is_some_and(|list| !list.contains_key(called)) {
            let source = match (listed, self.shared) {
                (Some(digest), _) => Seen::At(digest),
                (None, Some(_)) => self.source_digest(tag, tally).await?,
                (None, None) => Seen::Unknown,
            };
            return Ok(Compared { source, destination: Seen::Absent, at: self.listing.at, by_hint: false });
        }
        let source = async {
            match listed {
                Some(digest) => Ok(Seen::At(digest)),
                None => self.source_digest(tag, tally).await,
            }
        };
        let there = self.list.as_ref().and_then(|list| *list.get(called)?);
        let at = if listed.is_some() || there.is_some() || self.shared.is_some() { self.listing.at } else { now };
        let hint = if there.is_none() { self.fresh_hint(called) } else { None };
        if let Some(known) = there.or(hint) {
            return Ok(Compared { source: source.await?, destination: Seen::At(known), at, by_hint: hint.is_some() });
        }
        let (source, destination) = futures::try_join!(source, self.resolve(&self.side.repository, called, tally))?;
        Ok(Compared { source, destination, at, by_hint: false })
    }

    /// What production named not too long ago. Good enough to say that nothing is to be done, never to act on.
    fn fresh_hint(&self, tag: &Tag) -> Option<Digest> {
        let hint = self.hints.get(tag)?;
        let age = self.began.duration_since(hint.seen).as_secs();
        let trust = i64::try_from(self.looking.world.engine.settings.trust.as_secs()).unwrap_or(i64::MAX);
        (0..trust).contains(&age).then_some(hint.digest)
    }

    async fn source_digest(&self, tag: &Tag, tally: &Arc<Tally>) -> Result<Seen, Fault> {
        let Some(shared) = self.shared else { return self.resolve(self.source, tag, tally).await };
        let cell = shared.0.lock().await.entry(tag.clone()).or_default().clone();
        let digest =
            cell.get_or_try_init(|| async { Ok::<_, Fault>(self.resolve(self.source, tag, tally).await?.digest()) }).await?;
        Ok(digest.map_or(Seen::Absent, Seen::At))
    }

    async fn resolve(&self, repository: &B::Repository, tag: &Tag, tally: &Arc<Tally>) -> Result<Seen, Fault> {
        let (engine, errand) = (&self.looking.world.engine, Traffic::Manifests.of_look());
        let resolved = engine.resolve_tag(&repository.counted(tally), tag, errand, self.looking.stop).await?;
        Ok(resolved.map_or(Seen::Absent, Seen::At))
    }

    /// Whether something that belongs to an equal tag may have come since. The listing shows new tags of that kind for nothing.
    /// Whether the referrers API has more, or a signature's tag has moved, is asked by the sweep that verifies, and at once by
    /// `sync` and for tags that are asked about by name: once for each digest, and not where the source keeps no such lists.
    async fn has_news(&self, digest: &Digest) -> bool {
        let looking = self.looking;
        if looking.ask.wish.dry_run {
            return false;
        }
        let engine = &looking.world.engine;
        let stem = Tag::fallback(digest);
        let companions = self.listing.companions.range(stem.clone()..).map(|(tag, _)| tag);
        let missing = |tag: &Tag| self.list.as_ref().is_some_and(|list| !list.contains_key(tag));
        let (origin, repository) = (self.side.repository.origin(), self.side.repository.repository());
        let mut new = companions.take_while(|tag| tag.as_str().starts_with(stem.as_str())).filter(|tag| missing(tag));
        if new.any(|tag| !engine.has_tried(origin, repository, tag)) {
            return true;
        }
        let at_once = looking.ask.cause == Cause::Cli || !looking.ask.tags.is_empty();
        let may_ask = at_once || looking.ask.cause == Cause::Verify;
        let has_none = self.source.lists_referrers() == Some(false) && self.listing.companions.is_empty();
        if !may_ask || has_none {
            return false;
        }
        let checked = engine.index.checked(origin, repository, digest).await;
        if at_once {
            return checked.is_none_or(|at| at < self.began);
        }
        let trust = i64::try_from(engine.settings.trust.as_secs()).unwrap_or(i64::MAX);
        checked.is_none_or(|at| self.began.duration_since(at).as_secs() >= trust)
    }

    fn job(&self, tag: &Tag, compared: &Compared) -> Job {
        static SEQUENCE: AtomicU64 = AtomicU64::new(0);
        let looking = self.looking;
        let place = Place {
            origin: self.side.repository.origin().clone(),
            repository: self.side.repository.repository().clone(),
            tag: self.there(tag),
        };
        Job {
            key: Key {
                route: looking.route.name.clone(),
                source: looking.repository.clone(),
                tag: tag.clone(),
                destination: place,
            },
            rules: looking.route.rules_for(tag),
            source: compared.source,
            destination: compared.destination,
            seen_at: compared.at,
            look_began: self.began,
            fresh: self.list.as_ref().is_some_and(There::is_empty),
            cause: looking.ask.cause,
            actor: looking.ask.actor.clone(),
            explicit: false,
            pinned: None,
            expect: looking.ask.digest,
            replace: None,
            dry_run: looking.ask.wish.dry_run,
            refused: self.refused.clone(),
            pushed: self.listing.tags.get(tag).and_then(|(_, pushed)| *pushed),
            companions: Companions::Listed(self.listing.companions.clone()),
            rank: Rank::of(looking.ask.cause, !looking.ask.tags.is_empty()),
            max_wait: looking.ask.max_wait(),
            sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn source_name(&self, tag: &Tag) -> String {
        format!("{}:{tag}", self.source.address())
    }

    fn destination_name(&self, tag: &Tag) -> String {
        format!("{}:{}", self.side.repository.address(), self.there(tag))
    }
}
