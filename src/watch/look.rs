//! A look: lists one source repository and its destinations, chooses by the tag rules, finds what differs, and has it carried.
//!
//! Fixed tags go before moving tags, and a digest in conflict is refused under the moving tags of that destination. A tag that
//! cannot be looked at is a failed job of its own; the others go on. Memory: a few hundred bytes for each tag.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use futures::future::{MaybeDone, maybe_done};
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;

use super::board::{Board, JobStatus};
use super::event::Wish;
use super::metrics;
use super::route::Route;
use super::world::{Side, World};
use crate::endpoint::{Cursor, Source, Tally};
use crate::fault::{Class, Fault};
use crate::index::TagHint;
use crate::job::{Actor, Cause, Job, Key, Look, Outcome, Place, Seen, Settled, Totals, Trouble};
use crate::oci::{Digest, RepositoryName, Tag, Target};
use crate::site::Repository;
use crate::transfer::limits::Traffic;
use crate::transfer::settle::Names;
use crate::transfer::{Ending, Settle, Stop, limits};

/// Most tags of one repository: more is a registry that never ends its list.
pub const MOST_TAGS: usize = 200_000;

/// What is asked of a look.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Only these tags; empty means all.
    pub tags: Vec<Tag>,
    /// A digest that the tag is expected to have.
    pub digest: Option<Digest>,
    /// Why.
    pub cause: Cause,
    /// Who.
    pub actor: Actor,
    /// How.
    pub wish: Wish,
    /// Names the pass.
    pub run_id: String,
}

/// One look.
pub struct Looking<'a> {
    /// The world in which it began.
    pub world: &'a World,
    /// The route.
    pub route: &'a Route,
    /// The source repository.
    pub repository: &'a RepositoryName,
    /// What is asked.
    pub ask: &'a Ask,
    /// Where outcomes go.
    pub settle: &'a Settle,
    /// The board.
    pub board: &'a Board,
    /// When to stop.
    pub stop: &'a Stop,
}

/// A destination's tags, with their digests as far as its listing tells.
type There = HashMap<Tag, Option<Digest>>;

/// A source repository's tags.
struct Listing {
    at: Instant,
    tags: HashMap<Tag, (Option<Digest>, Option<Timestamp>)>,
    chosen: Vec<Tag>,
    companions: Arc<BTreeMap<Tag, Option<Digest>>>,
    excluded: u64,
}

/// The tags of a destination, where they are asked for.
type DestinationList = Result<Option<There>, Fault>;

/// What a future that has been polled before comes to.
async fn ended<F: Future + Unpin>(mut future: MaybeDone<F>) -> F::Output {
    (&mut future).await;
    Pin::new(&mut future).take_output().expect("it has ended, and nobody else takes what came of it")
}

/// What one destination's look came to.
#[derive(Default)]
struct Found {
    totals: Totals,
    jobs: Vec<Settled>,
    trouble: Vec<Trouble>,
    pending: Vec<Tag>,
}

impl Looking<'_> {
    /// Looks, and carries what differs.
    pub async fn look(&self) -> Look {
        let began = Timestamp::now();
        let source = self.world.source(self.route, self.repository);
        let sides = match self.world.destinations(self.route, self.repository) {
            Ok(sides) => sides,
            Err(fault) => return self.fruitless(fault),
        };
        let health = &self.world.engine.metrics.health;
        let registries = sides.iter().map(|side| &*side.registry).chain([source.registry()]);
        let mark = health.mark(registries);
        // A destination that does not answer holds up nobody but itself.
        let mut lists: Vec<_> = sides.iter().map(|side| maybe_done(self.list_destination(side).boxed())).collect();
        let mut source_list = std::pin::pin!(self.list_source(&source, &sides));
        let listing = std::future::poll_fn(|cx| {
            for list in &mut lists {
                let _continues_later = list.poll_unpin(cx);
            }
            source_list.as_mut().poll(cx)
        });
        let listing = match listing.await {
            Ok(Some(listing)) => listing,
            Ok(None) => return self.fruitless(self.no_such_repository(&source)),
            Err(fault) => return self.fruitless(fault),
        };
        let shared = (sides.len() > 1).then(SourceDigests::default);
        let mut look = Look { found: self.is_found(&listing), ..Look::default() };
        let each = sides
            .iter()
            .zip(lists)
            .map(|(side, list)| self.look_at(&source, side, &listing, ended(list), shared.as_ref(), began).boxed());
        // What the rules leave out is a matter of the source: counted once, with the first destination.
        let mut excluded = listing.excluded;
        for (side, mut found) in sides.iter().zip(futures::future::join_all(each).await) {
            found.totals.excluded = std::mem::take(&mut excluded);
            self.world.metrics.looked(
                self.route,
                &side.registry,
                self.repository,
                &found.totals,
                self.sight(found.trouble.is_empty()),
                &found.pending,
            );
            look.totals.merge(&found.totals);
            look.jobs.extend(found.jobs);
            look.trouble.extend(found.trouble);
        }
        if look.trouble.is_empty() {
            health.clear(&mark);
        }
        look
    }

    fn sight(&self, everything: bool) -> metrics::Seen {
        metrics::Seen { everything, whole: self.ask.tags.is_empty() && !self.ask.wish.dry_run }
    }

    fn is_found(&self, listing: &Listing) -> bool {
        self.ask.tags.is_empty() || !listing.chosen.is_empty()
    }

    fn no_such_repository(&self, source: &Repository) -> Fault {
        Fault::not_found(format!(
            "{} does not exist at {}; push to it, or mend `from` of route {}",
            source.address(),
            source.registry(),
            self.route.name
        ))
    }

    /// A look that could not see anything.
    fn fruitless(&self, fault: Fault) -> Look {
        let interrupted = u64::from(fault.class() == Class::Cancelled);
        let totals = Totals { interrupted, ..Totals::default() };
        for template in &self.route.to {
            self.world.metrics.looked(self.route, template.registry(), self.repository, &totals, self.sight(false), &[]);
        }
        let text = format!("route {}: {}", self.route.name, fault.chain());
        Look { totals, trouble: vec![Trouble { class: fault.class().name().into(), text }], ..Look::default() }
    }

    async fn list_source(&self, source: &Repository, sides: &[Side]) -> Result<Option<Listing>, Fault> {
        let at = Instant::now();
        let Some(tags) = self.list(source).await? else { return Ok(None) };
        // What a route has named in its own source is never a source again.
        let own = |tag: &&Tag| !sides.iter().any(|side| side.is_itself(source) && side.naming.made(tag));
        let choice = self.route.selection.choose(tags.keys().filter(own));
        let wanted = |tag: &Tag| self.ask.tags.is_empty() || self.ask.tags.contains(tag);
        let named_but_left_out = self.ask.tags.iter().filter(|tag| tags.contains_key(*tag) && !choice.chosen.contains(tag)).count();
        let excluded = if self.ask.tags.is_empty() { choice.excluded } else { named_but_left_out };
        let mut chosen: Vec<Tag> = choice.chosen.into_iter().filter(wanted).collect();
        chosen.sort_unstable();
        let companions =
            tags.iter().filter(|(tag, _)| tag.travels_with_subject()).map(|(tag, (digest, _))| (tag.clone(), *digest)).collect();
        Ok(Some(Listing { at, chosen, companions: Arc::new(companions), excluded: excluded as u64, tags }))
    }

    /// The tags of a destination; `None` where only single tags are asked for.
    async fn list_destination(&self, side: &Side) -> DestinationList {
        if !self.ask.tags.is_empty() {
            return Ok(None);
        }
        let tags = self.list(&side.repository).await?.unwrap_or_default();
        Ok(Some(tags.into_iter().map(|(tag, (digest, _))| (tag, digest)).collect()))
    }

    /// All tags of a repository. `None`: there is no such repository.
    async fn list(&self, repository: &Repository) -> Result<Option<HashMap<Tag, (Option<Digest>, Option<Timestamp>)>>, Fault> {
        let mut tags = HashMap::new();
        let mut cursor: Option<Cursor> = None;
        let mut seen = HashSet::new();
        loop {
            let page = self
                .ask_side(repository, Traffic::Listing, |repository| {
                    let cursor = cursor.clone();
                    async move { repository.tags(cursor.as_ref()).await }
                })
                .await?;
            let Some(page) = page else { return Ok(cursor.is_some().then_some(tags)) };
            let before = tags.len();
            page.entries.into_iter().for_each(|tag| note(&mut tags, tag));
            let Some(next) = page.next else { return Ok(Some(tags)) };
            let stands_still = tags.len() == before && seen.len() > 8;
            if tags.len() > MOST_TAGS || stands_still || !seen.insert(next.0.clone()) {
                let (address, registry) = (repository.address(), repository.registry());
                return Err(Fault::rejected(format!(
                    "{address} at {registry} never ends its list of tags ({} so far); its registry or a proxy before it is broken",
                    tags.len()
                )));
            }
            cursor = Some(next);
        }
    }

    async fn ask_side<T, F>(&self, repository: &Repository, traffic: Traffic, act: impl Fn(Repository) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let engine = &self.world.engine;
        let act = || act(repository.clone());
        engine.ask(repository.origin(), repository.registry(), traffic.of_look(), self.stop, act).await
    }

    /// Looks at one destination and has carried what differs there.
    async fn look_at(
        &self,
        source: &Repository,
        side: &Side,
        listing: &Listing,
        list: impl Future<Output = DestinationList>,
        shared: Option<&SourceDigests>,
        began: Timestamp,
    ) -> Found {
        let known = self.recall_trouble(side);
        let (list, known) = match (list.await, known.await) {
            (Ok(list), Ok(known)) => (list, known),
            (Err(fault), _) | (_, Err(fault)) => return self.blind(fault),
        };
        let view = View {
            looking: self,
            source,
            side,
            listing,
            list,
            shared,
            began,
            hints: self.hints(side).await,
            refused: Arc::default(),
        };
        let mut found = Found::default();
        if let Some(list) = &view.list {
            let named: HashSet<Tag> = listing.tags.keys().filter_map(|tag| side.naming.name(tag)).collect();
            let ours = |tag: &&Tag| side.naming.made(tag) && !tag.travels_with_subject();
            let alone = list.keys().filter(ours).filter(|tag| !named.contains(*tag));
            found.totals.only_in_destination = alone.count() as u64;
        }
        let nameable = |tag: &&Tag| side.naming.name(tag).is_some();
        found.trouble.extend(listing.chosen.iter().filter(|tag| !nameable(tag)).map(|tag| self.nameless(side, tag)));
        let (moving, fixed): (Vec<Tag>, Vec<Tag>) =
            listing.chosen.iter().filter(nameable).cloned().partition(|tag| self.route.selection.is_moving(tag));
        let mut conflicts = view.tend(fixed, &mut found).await;
        // Fixed tags that were not looked at: the ledger knows of their conflicts.
        conflicts.extend(known.iter().filter(|_| !self.ask.tags.is_empty()).copied());
        let view = View { refused: Arc::new(conflicts), ..view };
        view.tend(moving, &mut found).await;
        found
    }

    /// A tag that has no name at the destination.
    fn nameless(&self, side: &Side, tag: &Tag) -> Trouble {
        let address = side.repository.address();
        Trouble::from(&Fault::rejected(format!(
            "route {}: {tag} would be too long a tag under its name in {address}",
            self.route.name
        )))
    }

    /// What the ledger says is in trouble there; returns the digests in conflict. The routine poll goes on from what this process
    /// has seen itself.
    async fn recall_trouble(&self, side: &Side) -> Result<HashSet<Digest>, Fault> {
        if self.ask.cause.trusts_hints() {
            return Ok(HashSet::new());
        }
        let engine = &self.world.engine;
        let troubled = engine.ledger.troubled(side.repository.origin(), side.repository.repository()).await?;
        let conflicts = troubled.iter().filter(|row| row.result == Outcome::Conflict).filter_map(|row| row.digest).collect();
        engine.remember_trouble(troubled.into_iter().map(|row| row.key));
        Ok(conflicts)
    }

    /// What the index says of production's tags: for the routine poll only.
    async fn hints(&self, side: &Side) -> HashMap<Tag, TagHint> {
        if !self.ask.cause.trusts_hints() {
            return HashMap::new();
        }
        self.world.engine.index.tags(side.repository.origin(), side.repository.repository()).await
    }

    fn blind(&self, fault: Fault) -> Found {
        let text = format!("route {}: {}", self.route.name, fault.chain());
        let interrupted = u64::from(fault.class() == Class::Cancelled);
        Found {
            trouble: vec![Trouble { class: fault.class().name().into(), text }],
            totals: Totals { interrupted, ..Totals::default() },
            ..Found::default()
        }
    }
}

/// A tag that moves while its repository is listed may come twice: then only the tag itself tells what it names.
fn note(tags: &mut HashMap<Tag, (Option<Digest>, Option<Timestamp>)>, tag: crate::endpoint::Tag) {
    let entry = tags.entry(tag.name).or_insert((tag.digest, tag.pushed));
    if entry.0 != tag.digest {
        *entry = (None, entry.1.max(tag.pushed));
    }
}

/// Digests of source tags that several destinations need: asked for once.
#[derive(Default)]
struct SourceDigests(tokio::sync::Mutex<HashMap<Tag, Arc<tokio::sync::OnceCell<Option<Digest>>>>>);

/// A look at one destination.
struct View<'a> {
    looking: &'a Looking<'a>,
    source: &'a Repository,
    side: &'a Side,
    listing: &'a Listing,
    list: Option<There>,
    shared: Option<&'a SourceDigests>,
    began: Timestamp,
    hints: HashMap<Tag, TagHint>,
    refused: Arc<HashSet<Digest>>,
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

/// What a tag came to.
enum Tended {
    Equal { digest: Digest, by_hint: bool },
    Settled(Box<Settled>),
}

impl View<'_> {
    /// Compares tags and carries those that differ; returns the digests in conflict.
    async fn tend(&self, tags: Vec<Tag>, found: &mut Found) -> HashSet<Digest> {
        let mut conflicts = HashSet::new();
        let mut equal = Vec::new();
        let at_once = limits::JOBS;
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
                    if matches!(settled.result, Outcome::Failed | Outcome::Waiting | Outcome::Interrupted | Outcome::Planned) {
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
        let (route, destination) = (&looking.route.name, &self.side.registry);
        if !job.dry_run {
            looking.world.metrics.differs(route, destination, looking.repository, tag);
        }
        let _listed = looking.board.start_job(JobStatus {
            route: looking.route.name.to_string(),
            source: self.source_name(tag),
            destination: self.destination_name(tag),
            since: Timestamp::now(),
        });
        looking.settle.progress.jobs_planned.fetch_add(1, Ordering::Relaxed);
        let progress = &looking.settle.progress;
        let mut ending = looking.world.engine.run(&job, self.source, &self.side.repository, progress, looking.stop).await;
        ending.cost.requests += tally.requests();
        if !matches!(ending.outcome, Outcome::Failed | Outcome::Waiting | Outcome::Interrupted | Outcome::Planned) {
            looking.world.metrics.waits_no_more(route, destination, looking.repository, tag);
        }
        self.settle(&job, ending).await
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

    async fn resolve(&self, repository: &Repository, tag: &Tag, tally: &Arc<Tally>) -> Result<Seen, Fault> {
        let target = Target::Tag(tag.clone());
        let counted = repository.counted(tally);
        let resolved = self
            .looking
            .ask_side(&counted, Traffic::Manifests, |side| {
                let target = target.clone();
                async move { side.resolve(&target).await }
            })
            .await?;
        match resolved {
            None => Ok(Seen::Absent),
            Some(resolved) if resolved.digest.is_some() => Ok(resolved.digest.map_or(Seen::Unknown, Seen::At)),
            Some(_) => {
                let manifest = self
                    .looking
                    .ask_side(&counted, Traffic::Manifests, |side| {
                        let target = target.clone();
                        async move { side.manifest(&target).await }
                    })
                    .await?;
                Ok(manifest.map_or(Seen::Absent, |manifest| Seen::At(manifest.digest)))
            }
        }
    }

    /// Whether something that belongs to an equal tag may have come since. The listing shows new tags of that kind for nothing;
    /// whether the referrers API has more is asked by the sweep that verifies, and for tags that are asked about by name: a pass
    /// over tags that are equal stays at two requests for each.
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
        let may_ask = looking.ask.cause == Cause::Verify || !looking.ask.tags.is_empty();
        if !may_ask {
            return false;
        }
        let trust = i64::try_from(engine.settings.trust.as_secs()).unwrap_or(i64::MAX);
        let checked = engine.index.checked(origin, repository, digest).await;
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
            companions: self.listing.companions.clone(),
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
