//! One reference to another place, without a config file: an explicit act of a person.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::context::Context;
use super::directory::Side;
use super::reference::{Env, Named, known_by};
use super::{Error, Observer, caller, stop_of};
use crate::backend::Repository;
use crate::clock;
use crate::config::Config;
use crate::endpoint::Source as _;
use crate::fault::{Class, Fault, shown};
use crate::job::{
    Actor, Cause, Companions, Job, Key, Look, NamedTag, ObservedVia, Outcome, Remarks, Report,
    Settled, TagId, TagRules, TagState, Totals,
};
use crate::oci::{Digest, Tag, Target};
use crate::parts::Parts;
use crate::transfer::companions::Addresses;
use crate::transfer::limits::RequestClass;
use crate::transfer::pages::Reading;
use crate::transfer::settle::Names;
use crate::transfer::{Completion, Settle, Stop};

/// Most tags of a list that is read for one tag: a page or a few.
const SHORT: usize = 1000;

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Copy {
    /// `host/repository:tag`, `host/repository@digest`, `docker://…`, `http://…`, or
    /// `layout:PATH:tag`.
    pub source: String,
    /// The same; without a tag, the source's.
    pub destination: String,
    /// Only this digest may be copied.
    pub expect: Option<Digest>,
    /// The digest that a fixed tag of the destination may lose.
    pub replace: Option<Digest>,
    /// Plan, but touch nothing.
    pub dry_run: bool,
    /// A state folder, for hints and the ledger.
    pub state: Option<PathBuf>,
    /// What the caller says of itself and of the act.
    pub remarks: Remarks,
}

/// Copies one reference, with what a config knows of its hosts.
///
/// # Errors
/// When a reference or the state folder is unusable; what goes wrong with the copy is in the
/// report.
pub async fn copy(
    request: Copy,
    config: Option<&Config>,
    env: Env<'_>,
    observer: Observer,
    stop: tokio_util::sync::CancellationToken,
) -> Result<Report, Error> {
    let way = Way::of(&request)?;
    let context = Context::open(
        request.state.as_deref(),
        request.dry_run,
        config,
        [&way.destination].into_iter(),
    )?;
    let settle = context.settle(observer.progress, Some(observer.settled));
    let report = copied(
        &context,
        &request,
        &way,
        &settle,
        caller(request.remarks.clone()),
        env,
        &stop_of(stop),
    )
    .await;
    context.close().await;
    report
}

/// Copies one reference as the daemon. `None`: no route of its config leads to the destination.
pub(crate) async fn copy_as_daemon(
    context: &Context,
    request: Copy,
    actor: Actor,
    stop: &Stop,
) -> Result<Option<Report>, Error> {
    let way = Way::of(&request)?;
    if !context.is_routed(&way.destination) {
        return Ok(None);
    }
    let settle = context.settle(Arc::default(), None);
    copied(context, &request, &way, &settle, actor, &|_| None, stop)
        .await
        .map(Some)
}

async fn copied(
    context: &Context,
    request: &Copy,
    way: &Way,
    settle: &Settle,
    actor: Actor,
    env: Env<'_>,
    stop: &Stop,
) -> Result<Report, Error> {
    let parts = &context.parts;
    let open = |named: &Named, side, label: &'static str| {
        context.repository(named, side, |parts| {
            named.open_with(label, parts, |host| known_by(host, env))
        })
    };
    let from = open(&way.source, Side::Source, "source")?;
    let to = open(&way.destination, Side::Destination, "destination")?;
    let started = clock::now();
    let clock = Instant::now();
    settle
        .progress
        .jobs_planned
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let job = Job {
        routes: context.routes_to(&way.destination),
        gates: context.gates(&way.destination),
        ..way.job(request, (&from, &to), actor, started)
    };
    let facts = async {
        let elsewhere = names_another(parts, &way.source, &from, stop).await?;
        Ok::<_, Fault>((elsewhere, companions(parts, &from, stop).await?))
    };
    let (job, mut completion) = match facts.await {
        Ok((Some(reason), _)) => (job, gone(reason)),
        Ok((None, companions)) => {
            let job = Job { companions, ..job };
            let completion = parts
                .engine()
                .run(&job, &from, &to, &settle.progress, stop)
                .await;
            (job, completion)
        }
        Err(fault) => (job, Completion::failed(fault, 0)),
    };
    let addresses = Addresses {
        source: &from.address(),
        destination: &to.address(),
        registry: "destination",
    };
    let companions = std::mem::take(&mut completion.companions);
    let kept = parts
        .engine()
        .settle_companions(settle, &job, addresses, companions)
        .await;
    let settled = parts
        .engine()
        .settle(settle, &job, &way.names(&from, &to), completion)
        .await;
    let unguarded = !context.is_routed(&way.destination);
    let looks = [settled].into_iter().chain(kept).map(|settled| {
        let settled = Settled {
            unguarded,
            ..settled
        };
        as_look(settled, &way.source_tag)
    });
    Ok(Report::new(
        &settle.facts.run_id,
        started,
        clock.elapsed(),
        looks,
    ))
}

/// Why a source that is named by tag and digest is not there: the tag names another digest, or
/// nothing.
pub(super) async fn names_another(
    parts: &Parts,
    named: &Named,
    from: &Repository,
    stop: &Stop,
) -> Result<Option<String>, Fault> {
    let (Some(tag), Some(digest)) = (named.tag(), named.digest()) else {
        return Ok(None);
    };
    let target = Target::Tag(tag.clone());
    let read = parts.engine().ask(
        from.origin(),
        from.registry(),
        RequestClass::Manifests,
        stop,
        || {
            let from = from.clone();
            let target = target.clone();
            async move { from.manifest(&target).await }
        },
    );
    Ok(match read.await?.map(|manifest| manifest.digest) {
        Some(found) if found == digest => None,
        Some(found) => Some(format!(
            "{}:{tag} names {found}, not {digest}",
            from.address()
        )),
        None => Some(format!("{}:{tag} is not there", from.address())),
    })
}

/// What was named is not there.
pub(super) fn gone(reason: String) -> Completion {
    Completion {
        outcome: Outcome::Gone,
        reasons: vec![reason],
        ..Completion::failed(Fault::cancelled(), 0)
    }
}

/// From where to where, and under which tags.
struct Way {
    source: Named,
    destination: Named,
    source_tag: Tag,
    tag: Tag,
}

impl Way {
    fn of(request: &Copy) -> Result<Way, Error> {
        let source: Named = request.source.parse().map_err(Error::Usage)?;
        let destination: Named = request.destination.parse().map_err(Error::Usage)?;
        let Some(tag) = destination.tag().or(source.tag()).cloned() else {
            return Err(Error::Usage(format!(
                "\"{}\" names no tag, and neither does the source",
                shown(&request.destination, 300)
            )));
        };
        let source_tag = source.tag().unwrap_or(&tag).clone();
        Ok(Way {
            source,
            destination,
            source_tag,
            tag,
        })
    }

    fn job(
        &self,
        request: &Copy,
        (from, to): (&Repository, &Repository),
        actor: Actor,
        look_began: Timestamp,
    ) -> Job {
        let place = TagId {
            origin: to.origin().clone(),
            repository: to.repository().clone(),
            tag: self.tag.clone(),
        };
        Job {
            key: Key {
                route: "".into(),
                source: from.repository().clone(),
                tag: self.source_tag.clone(),
                destination: place,
            },
            routes: Arc::default(),
            rules: TagRules {
                moving: self.tag.as_str() == "latest",
                ..TagRules::default()
            },
            gates: Arc::default(),
            source: TagState::Unknown,
            destination: TagState::Unknown,
            destination_via: ObservedVia::Tag,
            source_at: None,
            destination_at: Instant::now(),
            look_began,
            fresh: false,
            cause: Cause::Cli,
            actor,
            explicit: true,
            pinned: self.source.digest(),
            expect: request.expect.or(self.destination.digest()),
            replace: request.replace,
            dry_run: request.dry_run,
            refused: Arc::default(),
            pushed: None,
            companions: Companions::Unlisted,
            rank: crate::job::Rank::Named,
            max_wait: crate::job::LONG_WAIT,
        }
    }

    fn names(&self, from: &Repository, to: &Repository) -> Names {
        let source = match self.source.digest() {
            Some(digest) => format!("{}@{digest}", from.address()),
            None => format!("{}:{}", from.address(), self.source_tag),
        };
        Names {
            source,
            destination: format!("{}:{}", to.address(), self.tag),
            registry: "destination".into(),
        }
    }
}

fn as_look(settled: Settled, tag: &Tag) -> Look {
    let named = NamedTag {
        name: tag.clone(),
        missing: None,
    };
    let mut totals = Totals::default();
    totals.add(settled.result);
    let found = settled.result != Outcome::Gone;
    Look {
        totals,
        named: vec![named],
        jobs: vec![settled],
        found,
        ..Look::default()
    }
}

/// Signatures and fallback lists beside the source. A short list shows them all at once; beside one
/// tag among many, those of the image are asked for by their names.
async fn companions(parts: &Parts, source: &Repository, stop: &Stop) -> Result<Companions, Fault> {
    let reading = Reading::by_name().at_most(SHORT);
    let tags = match parts.engine().tags(source, reading, stop).await {
        Ok(Some(tags)) => tags,
        Ok(None) => return Ok(Companions::Unlisted),
        Err(fault) if matches!(fault.class(), Class::Rejected | Class::NotFound) => {
            return Ok(Companions::Unlisted);
        }
        Err(fault) => return Err(fault),
    };
    let companions = tags
        .into_iter()
        .filter(|(tag, _)| tag.travels_with_subject())
        .map(|(tag, listed)| (tag, listed.digest));
    Ok(Companions::Listed(Arc::new(companions.collect())))
}
