//! An explicit act of a person or a build: images from one repository to another, each pair on a
//! road of its own.
//!
//! A moving tag (`latest`) moves, any other tag that names another digest is a conflict unless the
//! act names what it replaces. Fixed tags go before moving ones; a digest in conflict is refused
//! under the moving tags of that repository. Every tag: both sides are listed, and what the
//! listings show to be equal costs no request of its own. One tag: it and what belongs to its image
//! are read by name, and nothing is listed.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::directory::Side;
use super::guards::{Ends, Guards, explicit_rules};
use super::hosts::Hosts;
use super::listed::{Listed, companions};
use super::reference::{Env, Named};
use super::{Error, Observer, caller, stop_of};
use crate::backend::Repository;
use crate::clock;
use crate::config::Config;
use crate::endpoint::{Destination as _, RouteSource, Source};
use crate::fault::Fault;
use crate::job::{
    Actor, Cause, Companions, Job, Key, LONG_WAIT, Look, NamedTag, ObservedVia, Outcome, Rank,
    Remarks, Report, Settled, TagId, TagState, Trouble,
};
use crate::oci::{Digest, Tag, Target};
use crate::parts::Parts;
use crate::transfer::companions::Addresses;
use crate::transfer::limits::RequestClass;
use crate::transfer::pages::{ListedTags, Reading};
use crate::transfer::settle::Names;
use crate::transfer::{Completion, Settle, Stop, limits};

/// What is to be copied or promoted.
pub(super) struct Order {
    pub(super) pairs: Vec<Pair>,
    /// The digest that a fixed tag of the destination may lose.
    pub(super) replace: Option<Digest>,
    pub(super) dry_run: bool,
    /// A state folder, for hints and the ledger.
    pub(super) state: Option<PathBuf>,
    pub(super) remarks: Remarks,
}

/// From one repository to another.
pub(super) struct Pair {
    pub(super) from: Named,
    pub(super) to: Named,
    /// The tag there and here; `None`: every tag keeps its name.
    pub(super) tags: Option<(Tag, Tag)>,
    pub(super) pinned: Option<Digest>,
    pub(super) expect: Option<Digest>,
}

impl Order {
    /// Carries the order out in this process.
    pub(super) async fn run(
        self,
        config: Option<&Config>,
        env: Env<'_>,
        observer: Observer,
        stop: CancellationToken,
    ) -> Result<Report, Error> {
        let destinations = self.pairs.iter().map(|pair| &pair.to);
        let state = self.state.as_deref();
        let context = Context::open(state, self.dry_run, config, destinations).await?;
        let settle = context.settle(observer.progress, Some(observer.settled));
        let actor = caller(self.remarks.clone());
        let stop = stop_of(stop);
        let report = self.fulfil(&context, &settle, &actor, env, &stop).await;
        context.close().await;
        report
    }

    /// Carries the order out as the daemon. `None`: no route of its config leads to any of the
    /// destinations, and its config does not have all of their registries.
    pub(super) async fn run_as_daemon(
        self,
        context: &Context,
        actor: Actor,
        stop: &Stop,
    ) -> Result<Option<Report>, Error> {
        let is_routed = self.pairs.iter().any(|pair| context.is_routed(&pair.to));
        let are_known = self.pairs.iter().all(|pair| {
            context.knows(&pair.from, Side::Source) && context.knows(&pair.to, Side::Destination)
        });
        if !is_routed && !are_known {
            return Ok(None);
        }
        let settle = context.settle(Arc::default(), None);
        let report = self.fulfil(context, &settle, &actor, &|_| None, stop);
        report.await.map(Some)
    }

    async fn fulfil(
        &self,
        context: &Context,
        settle: &Settle,
        actor: &Actor,
        env: Env<'_>,
        stop: &Stop,
    ) -> Result<Report, Error> {
        let parts = &context.parts;
        let hosts = Hosts::new(env);
        let mut open = Vec::new();
        for pair in &self.pairs {
            let from = context.repository(&pair.from, Side::Source, |parts| {
                pair.from
                    .open_with("source", parts, |host| hosts.known(host))
            })?;
            let to = context.repository(&pair.to, Side::Destination, |parts| {
                pair.to
                    .open_with("destination", parts, |host| hosts.known(host))
            })?;
            open.push((pair, from, to));
        }
        let started = clock::now();
        let clock = Instant::now();
        let steps = open.iter().map(|(pair, from, to)| {
            let ends = Ends {
                from: from.clone(),
                to: to.clone(),
                named: pair.to.clone(),
            };
            let guards = context.guards(&ends);
            let promotion = PairPromotion {
                parts,
                order: self,
                pair,
                from: RouteSource::new(from.clone(), guards.platform()),
                to,
                settle,
                stop: context.stop_of(&ends, &guards, stop),
                actor,
                guards,
                began: started,
                asked: clock,
                kept: Mutex::default(),
            };
            async move { promotion.take().await }.boxed()
        });
        let looks = futures::future::join_all(steps).await;
        Ok(Report::new(
            &settle.facts.run_id,
            started,
            clock.elapsed(),
            looks,
        ))
    }
}

/// The promotion of one pair.
struct PairPromotion<'a> {
    parts: &'a Parts,
    order: &'a Order,
    pair: &'a Pair,
    from: RouteSource<Repository>,
    to: &'a Repository,
    settle: &'a Settle,
    stop: Stop,
    actor: &'a Actor,
    /// What guards the destination.
    guards: Guards,
    began: Timestamp,
    asked: Instant,
    /// Companion tags that stay as they are.
    kept: Mutex<Vec<Settled>>,
}

impl PairPromotion<'_> {
    async fn take(&self) -> Look {
        match &self.pair.tags {
            Some((tag, there)) => self.one(tag, there).await,
            None => self.every().await,
        }
    }

    async fn list(&self, repository: &impl Source) -> Result<Option<ListedTags>, Fault> {
        self.parts
            .engine()
            .tags(repository, Reading::by_name(), &self.stop)
            .await
    }

    /// One tag, by name.
    async fn one(&self, tag: &Tag, there: &Tag) -> Look {
        let listed = Listed::of(
            ListedTags::new(),
            None,
            ObservedVia::Tag,
            Companions::Unlisted,
        );
        let elsewhere = match self.names_another().await {
            Ok(None) => {
                return self.named(
                    tag,
                    [self.carry(tag, there, &listed, &Arc::default()).await],
                );
            }
            Ok(Some(reason)) => Completion {
                outcome: Outcome::Gone,
                reasons: vec![reason],
                ..Completion::failed(Fault::cancelled(), 0)
            },
            Err(fault) => Completion::failed(fault, 0),
        };
        let job = self.job(tag, there, &listed, &Arc::default());
        self.named(tag, [self.settled(&job, tag, there, elsewhere).await])
    }

    /// Why a source that is named by tag and digest is not there: the tag names another digest, or
    /// nothing.
    async fn names_another(&self) -> Result<Option<String>, Fault> {
        let from = self.from.whole();
        let (Some(tag), Some(digest)) = (self.pair.from.tag(), self.pair.from.digest()) else {
            return Ok(None);
        };
        let target = Target::Tag(tag.clone());
        let read = self.parts.engine().ask(
            from.origin(),
            from.registry(),
            RequestClass::Manifests,
            &self.stop,
            || {
                let from = from.clone();
                let target = target.clone();
                async move { from.manifest(&target).await }
            },
        );
        let address = from.address();
        Ok(match read.await?.map(|manifest| manifest.digest) {
            Some(found) if found == digest => None,
            Some(found) => Some(format!("{address}:{tag} names {found}, not {digest}")),
            None => Some(format!("{address}:{tag} is not there")),
        })
    }

    /// Every tag, fixed ones first.
    async fn every(&self) -> Look {
        let (source, destination) = futures::join!(self.list(&self.from), self.list(self.to));
        let (source, destination) = match (source, destination) {
            (Ok(Some(source)), Ok(destination)) => (source, destination),
            (Ok(None), _) => {
                return Look::failed(&Fault::not_found(format!(
                    "{} does not exist",
                    self.from.address()
                )));
            }
            (Err(fault), _) | (_, Err(fault)) => return Look::failed(&fault),
        };
        let companions = companions(&source);
        let destination_via = if destination.is_some() {
            ObservedVia::List
        } else {
            ObservedVia::MissingList
        };
        let listed = Listed::of(
            source,
            Some(destination.unwrap_or_default()),
            destination_via,
            companions,
        );
        let tags = listed
            .source
            .keys()
            .filter(|tag| !tag.travels_with_subject())
            .cloned();
        let (moving, fixed): (Vec<Tag>, Vec<Tag>) =
            tags.partition(|tag| explicit_rules(tag).moving);
        let mut settled = self.carry_all(fixed, &listed, HashSet::new()).await;
        let conflicts = settled
            .iter()
            .filter(|job| job.result == Outcome::Conflict)
            .filter_map(|job| job.digest)
            .collect();
        settled.extend(self.carry_all(moving, &listed, conflicts).await);
        let mut look = self.look(settled);
        look.found = listed.source.keys().any(|tag| !tag.travels_with_subject());
        if !look.found {
            let text = format!("{} has no tags", self.from.address());
            look.trouble.push(Trouble::not_found(text));
        }
        look.totals.only_in_destination = listed
            .destination
            .iter()
            .flat_map(ListedTags::keys)
            .filter(|tag| !listed.source.contains_key(*tag) && !tag.travels_with_subject())
            .count() as u64;
        look.jobs.retain(|job| job.result != Outcome::UpToDate);
        look
    }

    async fn carry_all(
        &self,
        tags: Vec<Tag>,
        listed: &Listed,
        refused: HashSet<Digest>,
    ) -> Vec<Settled> {
        let refused = Arc::new(refused);
        stream::iter(tags)
            .map(|tag| {
                let refused = refused.clone();
                async move { self.carry(&tag, &tag, listed, &refused).await }.boxed()
            })
            .buffered(limits::JOBS)
            .collect()
            .await
    }

    async fn carry(
        &self,
        tag: &Tag,
        there: &Tag,
        listed: &Listed,
        refused: &Arc<HashSet<Digest>>,
    ) -> Settled {
        let mut job = self.job(tag, there, listed, refused);
        let engine = self.parts.engine();
        self.settle
            .progress
            .jobs_planned
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut completion = match self.equal_by_lists(&mut job, listed).await {
            Ok(Some(digest)) => Completion::equal(digest, 0),
            Ok(None) => {
                engine
                    .run(&job, &self.from, self.to, &self.settle.progress, &self.stop)
                    .await
            }
            Err(fault) => Completion::failed(fault, 0),
        };
        let addresses = Addresses {
            source: &self.from.address(),
            destination: &self.to.address(),
            registry: "destination",
        };
        let companions = std::mem::take(&mut completion.companions);
        let kept = engine
            .settle_companions(self.settle, &job, addresses, companions)
            .await;
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(kept);
        self.settled(&job, tag, there, completion).await
    }

    async fn settled(&self, job: &Job, tag: &Tag, there: &Tag, completion: Completion) -> Settled {
        let source = match self.pair.pinned {
            Some(digest) => format!("{}@{digest}", self.from.address()),
            None => format!("{}:{tag}", self.from.address()),
        };
        let names = Names {
            source,
            destination: format!("{}:{there}", self.to.address()),
            registry: "destination".into(),
        };
        self.parts
            .engine()
            .settle(self.settle, job, &names, completion)
            .await
    }

    /// What both listings name, if nothing travels with it. A listing that may be behind our own
    /// write says nothing.
    async fn equal_by_lists(
        &self,
        job: &mut Job,
        listed: &Listed,
    ) -> Result<Option<Digest>, Fault> {
        let (TagState::At(source), TagState::At(there)) = (job.source, job.destination) else {
            return Ok(None);
        };
        if !self.to.abilities().current_lists {
            let known = self
                .parts
                .engine()
                .ledger
                .written(&job.key.destination)
                .await?;
            if known.may_be_behind(Some(there), clock::now()) {
                job.destination = TagState::Unknown;
                return Ok(None);
            }
        }
        Ok(Some(source).filter(|source| *source == there && !listed.has_companions(source)))
    }

    fn job(&self, tag: &Tag, there: &Tag, listed: &Listed, refused: &Arc<HashSet<Digest>>) -> Job {
        let place = TagId {
            origin: self.to.origin().clone(),
            repository: self.to.repository().clone(),
            tag: there.clone(),
        };
        let source = listed.source.get(tag);
        Job {
            key: Key {
                route: "".into(),
                source: self.from.repository().clone(),
                tag: tag.clone(),
                destination: place,
            },
            routes: self.guards.routes.clone(),
            gates: self.guards.gates.clone(),
            backup: self.guards.backup(there),
            rules: self.guards.rules(there),
            source: source
                .and_then(|tag| tag.digest)
                .map_or(TagState::Unknown, TagState::At),
            destination: listed.seen_there(there),
            destination_via: listed.destination_via,
            source_at: (self.from.whole().abilities().current_lists).then_some(listed.at),
            destination_at: listed.at,
            look_began: self.began,
            news: Some(self.asked),
            fresh: listed
                .destination
                .as_ref()
                .is_some_and(ListedTags::is_empty),
            cause: Cause::Cli,
            actor: self.actor.clone(),
            explicit: true,
            rollback: None,
            ends_when_moved: false,
            pinned: self.pair.pinned,
            expect: self.pair.expect,
            replace: self.order.replace,
            dry_run: self.order.dry_run,
            observes: false,
            refused: refused.clone(),
            pushed: source.and_then(|tag| tag.pushed),
            companions: listed.companions.clone(),
            rank: Rank::Named,
            max_wait: LONG_WAIT,
        }
    }

    /// A look at a tag that was named.
    fn named(&self, tag: &Tag, settled: [Settled; 1]) -> Look {
        let named = NamedTag {
            name: tag.clone(),
            missing: None,
            is_absent: false,
        };
        Look {
            named: vec![named],
            ..self.look(settled)
        }
    }

    fn look(&self, settled: impl IntoIterator<Item = Settled>) -> Look {
        let mut kept =
            std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        // Several tags may name one image.
        kept.sort_by(|one, other| one.destination.cmp(&other.destination));
        kept.dedup_by(|one, other| one.destination == other.destination);
        let mut look = Look {
            jobs: settled.into_iter().chain(kept).collect(),
            ..Look::default()
        };
        look.jobs.iter().for_each(|job| look.totals.add(job.result));
        look.found = look.totals.gone == 0;
        look
    }
}
