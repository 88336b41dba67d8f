//! One reference to another place, without a config file: an explicit act of a person.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;
use url::Url;

use super::build::Parts;
use super::context::Context;
use super::directory::Side;
use super::{Error, Observer, caller, stop_of};
use crate::backend::{Backend, Repository};
use crate::clock;
use crate::config::Config;
use crate::ecr;
use crate::endpoint::{Repositories as _, Source as _};
use crate::fault::{Class, Fault, clip, shown};
use crate::job::{
    self, Actor, Cause, Job, Key, Look, ObservedVia, Outcome, Report, TagId, TagRules, TagState,
    Totals,
};
use crate::layout;
use crate::oci::{Digest, Host, Reference, RepositoryName, Tag, Target};
use crate::registry::profile::Kind;
use crate::registry::{self, auth};
use crate::state::StateLock;
use crate::transfer::limits::Traffic;
use crate::transfer::pages::ListedTags;
use crate::transfer::settle::Names;
use crate::transfer::{Ending, Settle, Stop};

/// Reads the environment.
pub(super) type Env<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Copy {
    /// `host/repository:tag`, `host/repository@digest`, `docker://…`, `http://…`, or `layout:PATH:tag`.
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
}

/// A place as a command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Registry {
        scheme: &'static str,
        /// The scheme was written.
        said: bool,
        reference: Reference,
    },
    Layout {
        path: PathBuf,
        tag: Option<Tag>,
        digest: Option<Digest>,
    },
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("layout:") {
            return layout_reference(rest);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some("http"), rest),
            Some(("https", rest)) => (Some("https"), rest),
            Some(("docker", rest)) => (None, rest),
            Some((other, _)) => {
                let (text, other) = (shown(text, 300), clip(other, 20));
                return Err(format!(
                    "\"{text}\": {other}:// is not known (http://, https://, docker://, or layout:PATH:tag)"
                ));
            }
            None => (None, text),
        };
        let reference: Reference = rest
            .parse()
            .map_err(|error| format!("\"{}\": {error}", shown(text, 300)))?;
        let usual = if reference.host.is_loopback() {
            "http"
        } else {
            "https"
        };
        Ok(Named::Registry {
            scheme: scheme.unwrap_or(usual),
            said: scheme.is_some(),
            reference,
        })
    }
}

fn layout_reference(text: &str) -> Result<Named, String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(
                digest
                    .parse()
                    .map_err(|error| format!("\"layout:{}\": {error}", clip(text, 300)))?,
            ),
        ),
        None => (text, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (
            path,
            Some(
                tag.parse()
                    .map_err(|error| format!("\"layout:{}\": {error}", clip(text, 300)))?,
            ),
        ),
        _ => (rest, None),
    };
    if path.is_empty() {
        return Err(format!(
            "\"layout:{}\" names no folder (expected layout:PATH:tag)",
            clip(text, 300)
        ));
    }
    Ok(Named::Layout {
        path: path.into(),
        tag,
        digest,
    })
}

impl Named {
    pub(super) fn tag(&self) -> Option<&Tag> {
        match self {
            Named::Registry { reference, .. } => reference.tag.as_ref(),
            Named::Layout { tag, .. } => tag.as_ref(),
        }
    }

    pub(super) fn digest(&self) -> Option<Digest> {
        match self {
            Named::Registry { reference, .. } => reference.digest,
            Named::Layout { digest, .. } => *digest,
        }
    }

    /// The host, or the folder.
    pub(super) fn home(&self) -> String {
        match self {
            Named::Registry { reference, .. } => reference.host.to_string(),
            Named::Layout { path, .. } => format!("layout:{}", path.display()),
        }
    }

    /// The repository, with what `known` says of its host.
    pub(super) fn open_with(
        &self,
        label: &str,
        parts: &Parts,
        known: impl FnOnce(&Host) -> Known,
    ) -> Result<Repository, Error> {
        let name = |text: &str| RepositoryName::from_str(text).expect("a constant name");
        match self {
            Named::Layout { path, .. } => {
                Ok(Backend::Layout(layout::Root::single(label, path)).repository(name("layout")))
            }
            Named::Registry {
                scheme, reference, ..
            } => {
                let settings = settings(label, scheme, &reference.host, known(&reference.host))?;
                Ok(parts
                    .remote(settings)
                    .map_err(Error::Registry)?
                    .repository(reference.repository.clone()))
            }
        }
    }
}

/// What is to be known of a host before it is asked anything.
pub(super) struct Known {
    pub(super) credentials: auth::Credentials,
    pub(super) kind: Option<Kind>,
}

/// Who we are at a host is found from its name.
pub(super) fn known_by(host: &Host, env: &dyn Fn(&str) -> Option<String>) -> Known {
    let credentials = match ecr::host::recognise(host.name()) {
        // Anybody may read the public registry, and writes to it with the Docker config.
        Some(ecr) if !ecr.public => {
            auth::Credentials::Ecr(ecr::Login::new(ecr::Settings::default(), host.name()))
        }
        _ => auth::Credentials::DockerConfig(auth::docker::Store::standard(env)),
    };
    Known {
        credentials,
        kind: None,
    }
}

/// A registry of which only the host is known.
fn settings(
    label: &str,
    scheme: &str,
    host: &Host,
    known: Known,
) -> Result<registry::Settings, Error> {
    let url: Url = format!("{scheme}://{host}")
        .parse()
        .map_err(|_| Error::Usage(format!("\"{host}\" is not a registry host")))?;
    Ok(registry::Settings {
        name: label.into(),
        url,
        credentials: known.credentials,
        kind: known.kind,
        tls: registry::Tls::default(),
        token_realms: Vec::new(),
        insecure: false,
        deadlines: registry::Deadlines::default(),
    })
}

/// Copies one reference, with what a config knows of its hosts.
///
/// # Errors
/// When a reference or the state folder is unusable; what goes wrong with the copy is in the report.
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
        caller(),
        env,
        &stop_of(stop),
    )
    .await;
    context.close().await;
    report
}

/// Copies one reference as the daemon. `None`: no route of its config leads to the destination.
pub(super) async fn ordered(
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
    let (started, clock) = (clock::now(), Instant::now());
    settle
        .progress
        .jobs_planned
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let job = way.job(request, (&from, &to), actor, (started, clock));
    let facts = async {
        let elsewhere = names_another(parts, &way.source, &from, stop).await?;
        Ok::<_, Fault>((elsewhere, companions(parts, &from, stop).await?))
    };
    let (job, ending) = match facts.await {
        Ok((Some(reason), _)) => (job, gone(reason)),
        Ok((None, companions)) => {
            let job = Job {
                companions: job::Companions::Listed(Arc::new(companions)),
                ..job
            };
            let ending = parts
                .engine()
                .run(&job, &from, &to, &settle.progress, stop)
                .await;
            (job, ending)
        }
        Err(fault) => (job, Ending::failed(fault, 0)),
    };
    let mut settled = parts
        .engine()
        .settle(settle, &job, &way.names(&from, &to), ending)
        .await;
    settled.unguarded = !context.is_routed(&way.destination);
    Ok(Report::new(
        &settle.facts.run_id,
        started,
        clock.elapsed(),
        [as_look(settled)],
    ))
}

/// Why a source that is named by tag and digest is not there: the tag names another digest, or nothing.
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
        Traffic::Manifests,
        stop,
        || {
            let (from, target) = (from.clone(), target.clone());
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
pub(super) fn gone(reason: String) -> Ending {
    Ending {
        outcome: Outcome::Gone,
        reasons: vec![reason],
        ..Ending::failed(Fault::cancelled(), 0)
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
        (look_began, seen_at): (Timestamp, Instant),
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
            rules: TagRules {
                moving: self.tag.as_str() == "latest",
                ..TagRules::default()
            },
            source: TagState::Unknown,
            destination: TagState::Unknown,
            destination_via: ObservedVia::Tag,
            seen_at,
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
            companions: job::Companions::Unlisted,
            rank: crate::job::Rank::Named,
            max_wait: crate::job::LONG_WAIT,
            sequence: 0,
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

fn as_look(settled: crate::job::Settled) -> Look {
    let mut totals = Totals::default();
    totals.add(settled.result);
    let found = settled.result != Outcome::Gone;
    Look {
        totals,
        jobs: vec![settled],
        found,
        ..Look::default()
    }
}

/// Signatures and fallback lists in the source's listing. A registry that does not list tags has none that could be found.
async fn companions(parts: &Parts, source: &Repository, stop: &Stop) -> Result<Companions, Fault> {
    let tags = match parts
        .engine()
        .tags(source, crate::job::LONG_WAIT, stop)
        .await
    {
        Ok(tags) => tags.unwrap_or_default(),
        Err(fault) if matches!(fault.class(), Class::Rejected | Class::NotFound) => {
            ListedTags::new()
        }
        Err(fault) => return Err(fault),
    };
    Ok(tags
        .into_iter()
        .filter(|(tag, _)| tag.travels_with_subject())
        .map(|(tag, listed)| (tag, listed.digest))
        .collect())
}

/// Tags that travel with their subject, with their digests as far as a listing tells.
pub(super) type Companions = BTreeMap<Tag, Option<Digest>>;

/// The stores of a state folder, or ones that remember nothing. A dry run needs no lock, since it writes nothing.
pub(super) fn stores(
    state: Option<&Path>,
    dry_run: bool,
) -> Result<(Option<StateLock>, Parts), Error> {
    match state {
        None => Ok((None, Parts::in_memory()?)),
        Some(folder) if dry_run => Ok((None, Parts::to_read(folder)?)),
        Some(folder) => {
            let lock = StateLock::acquire(folder)?;
            let parts = Parts::open(&lock)?;
            Ok((Some(lock), parts))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_people_write_them() {
        let scheme = |text: &str| match text.parse::<Named>().unwrap() {
            Named::Registry {
                scheme, reference, ..
            } => format!("{scheme} {reference}"),
            Named::Layout { path, tag, .. } => {
                format!(
                    "layout {} {}",
                    path.display(),
                    tag.map(|tag| tag.to_string()).unwrap_or_default()
                )
            }
        };
        assert_eq!(
            scheme("registry.example/app:v1"),
            "https registry.example/app:v1"
        );
        assert_eq!(
            scheme("docker://registry.example/app:v1"),
            "https registry.example/app:v1"
        );
        assert_eq!(
            scheme("localhost:5000/app:v1"),
            "http localhost:5000/app:v1"
        );
        assert_eq!(
            scheme("https://127.0.0.1:5000/app:v1"),
            "https 127.0.0.1:5000/app:v1"
        );
        assert_eq!(
            scheme("http://registry.example/app:v1"),
            "http registry.example/app:v1"
        );
        assert_eq!(scheme("layout:/a/b:v1"), "layout /a/b v1");
        assert_eq!(scheme("layout:a/b"), "layout a/b ");
        for bad in [
            "app:v1",
            "ftp://registry.example/app",
            "layout::v1",
            "registry.example/App:v1",
        ] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
    }
}
