//! `check --online`: does every registry let us read and write what the routes need, and can every
//! queue be read?

mod queues;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt as _;

use self::queues::check_queues;
use crate::backend::{Backend, Repository};
use crate::config::Config;
use crate::endpoint::{Begin, Destination as _, Repositories as _, Source as _};
use crate::fault::{Class, Fault};
use crate::job::ScanSide;
use crate::look::discover::{Catalog, Discovered, Owners, read_catalog};
use crate::look::topology::Topology;
use crate::oci::Digest;
use crate::parts::{self, Parts};
use crate::route::Route;
use crate::transfer::Stop;

/// Repositories of one route that are tried.
const TRIED: usize = 5;

/// One thing that was tried.
#[derive(Clone, Debug)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it works.
    pub ok: bool,
    /// What was found, or what is wrong and the way out.
    pub text: String,
    /// The class of the failure.
    pub class: Option<Class>,
    /// It works, but the operator should look at it.
    pub warns: bool,
}

impl Check {
    pub(super) fn of(name: String, result: Result<String, Fault>) -> Check {
        match result {
            Ok(text) => Check {
                name,
                ok: true,
                text,
                class: None,
                warns: false,
            },
            Err(fault) => Check {
                name,
                ok: false,
                text: fault.chain(),
                class: Some(fault.class()),
                warns: false,
            },
        }
    }

    /// Something that works and that the operator should look at.
    pub fn warning(name: String, text: &str) -> Check {
        Check {
            name,
            ok: true,
            text: text.into(),
            class: None,
            warns: true,
        }
    }
}

/// Tries every registry, and for every route to read from its sources and to write to its
/// destinations: an upload is opened and cancelled, nothing else is changed.
pub async fn check_online(config: &Config) -> Vec<Check> {
    let built: Result<(Parts, Topology), parts::Error> = Parts::in_memory().and_then(|parts| {
        parts
            .topology(config, None)
            .map(|topology| (parts, topology))
    });
    let (_parts, topology) = match built {
        Ok(built) => built,
        Err(error) => {
            return vec![Check {
                name: "config".into(),
                ok: false,
                text: error.to_string(),
                class: Some(Class::Rejected),
                warns: false,
            }];
        }
    };
    let mut checks = Vec::new();
    for backend in topology.backends.values() {
        checks.push(Check::of(
            format!("registry {}", backend.name()),
            greet(backend).await,
        ));
        checks.extend(mounts(&topology, backend).await);
    }
    // Which repositories a route may carry depends on those of all routes: a look judges them in
    // the same way.
    let mut owners = Owners::new(&topology);
    let mut failed = BTreeMap::new();
    let wild = topology
        .routes
        .0
        .iter()
        .filter(|route| !route.from.is_literal());
    let registries: BTreeSet<&Arc<str>> = wild.map(|route| route.from.registry()).collect();
    for registry in registries {
        match read_catalog(&topology, registry, &Catalog::default(), &Stop::default())
            .boxed_local()
            .await
        {
            Ok(reading) => {
                owners.apply(reading.changes);
                owners.read(registry, Some(reading.catalog));
            }
            Err(fault) => drop(failed.insert(registry.clone(), fault)),
        }
    }
    for (position, route) in topology.routes.0.iter().enumerate() {
        match failed
            .get(route.from.registry())
            .filter(|_| !route.from.is_literal())
        {
            Some(fault) => {
                let fault = Fault::new(fault.class(), fault.chain());
                checks.push(Check::of(format!("route {}", route.name), Err(fault)));
            }
            None => checks.extend(
                of_route(&topology, route, &owners.sorted(&topology, position))
                    .boxed_local()
                    .await,
            ),
        }
    }
    checks.extend(check_queues(&config.queues).boxed_local().await);
    checks
}

/// What a route finds, refuses, and may read and write; of many repositories the first few are
/// tried.
async fn of_route(topology: &Topology, route: &Route, found: &Discovered) -> Vec<Check> {
    let name = format!("route {}", route.name);
    let mut checks = vec![match found.repositories.len() {
        0 => Check::warning(
            name.clone(),
            &format!("no repository at {} matches `from`", route.from.registry()),
        ),
        1 => Check::of(name.clone(), Ok("1 source repository".into())),
        count => Check::of(name.clone(), Ok(format!("{count} source repositories"))),
    }];
    checks.extend(
        found
            .trouble
            .iter()
            .map(|trouble| Check::of(name.clone(), Err(Fault::rejected(trouble.text.clone())))),
    );
    let mut tried = BTreeSet::new();
    for repository in found.repositories.iter().take(TRIED) {
        let source = topology.source(route, repository);
        checks.push(Check::of(
            format!("read {}", source.address()),
            read(source.whole()).boxed_local().await,
        ));
        checks.extend(scanned(route, source.whole(), ScanSide::Source).await);
        // The owners have judged the names already.
        for side in topology
            .destinations(route, repository)
            .into_iter()
            .flatten()
        {
            if tried.insert(side.repository.address()) {
                checks.push(write(&side.repository).boxed_local().await);
                checks.extend(scanned(route, &side.repository, ScanSide::Destination).await);
                checks.extend(mutable(&side.repository).await);
            }
        }
    }
    checks
}

async fn greet(backend: &Backend) -> Result<String, Fault> {
    match backend {
        Backend::Registry(registry) => {
            registry.ping().await?;
            let login = match registry.user() {
                Some(user) => format!("logged in as {user}"),
                None => "no login (anonymous)".into(),
            };
            Ok(format!("{} answers; {login}", registry.origin()))
        }
        Backend::Ecr(registry) => {
            registry.inner().ping().await?;
            let caller = registry.caller().await?;
            Ok(format!(
                "{} answers; logged in as {caller}",
                registry.inner().origin()
            ))
        }
        Backend::Layout(root) => Ok(format!("{} is a folder of layouts", root.origin())),
    }
}

async fn read(source: &Repository) -> Result<String, Fault> {
    match source.tags(None).await? {
        Some(page) => Ok(format!(
            "{}{} tags",
            page.entries.len(),
            if page.next.is_some() { "+" } else { "" }
        )),
        None => Err(Fault::not_found(format!(
            "{} does not exist",
            source.address()
        ))),
    }
}

/// Whether the findings of scans can be read where a gate asks for them. No repository has the image
/// that is asked about.
async fn scanned(route: &Route, repository: &Repository, side: ScanSide) -> Option<Check> {
    if !route.gates.is_scanned_at(side) {
        return None;
    }
    let name = format!("scans of {}", repository.address());
    match repository
        .scan_findings(&unknown_digest(), None)
        .boxed_local()
        .await
    {
        // The line about the repository itself says so.
        Err(fault) if fault.class() == Class::NotFound => None,
        asked => Some(Check::of(name, asked.map(|_| "can be read".into()))),
    }
}

/// Whether a registry that is written to uploads what it could mount.
async fn mounts(topology: &Topology, backend: &Backend) -> Option<Check> {
    let Backend::Ecr(registry) = backend else {
        return None;
    };
    let written = topology
        .routes
        .0
        .iter()
        .flat_map(|route| &route.to)
        .any(|to| **to.registry() == *backend.name());
    match registry.mounts_blobs().await {
        Ok(Some(false)) if written => Some(Check::warning(
            format!("registry {}", backend.name()),
            "blob mounting is off: what another of its repositories holds is uploaded again (aws ecr put-account-setting --name BLOB_MOUNTING --value ENABLED)",
        )),
        _ => None,
    }
}

/// Whether a production repository lets tags move that should not.
async fn mutable(destination: &Repository) -> Option<Check> {
    let Repository::Ecr(repository) = destination else {
        return None;
    };
    match repository.has_mutable_tags().await {
        Ok(Some(true)) => Some(Check::warning(
            format!("write {}", destination.address()),
            "its tags are mutable: anybody who may push can move them (aws ecr put-image-tag-mutability --image-tag-mutability IMMUTABLE_WITH_EXCLUSION)",
        )),
        _ => None,
    }
}

/// A check changes nothing: what the first promotion creates is not created here.
async fn write(destination: &Repository) -> Check {
    let name = format!("write {}", destination.address());
    if let Repository::Layout(layout) = destination {
        return match layout.is_there().await {
            Ok(false) => Check::warning(
                name,
                "this layout does not exist yet; the first promotion creates it",
            ),
            Ok(true) => Check::of(name, try_upload(destination).await),
            Err(fault) => Check::of(name, Err(fault)),
        };
    }
    let (destination, creates) = match destination.clone() {
        Repository::Ecr(repository) => {
            let (repository, creates) = repository.as_it_is();
            (Repository::Ecr(repository), creates)
        }
        other => (other, false),
    };
    let tried = match try_upload(&destination).await {
        Err(fault) if creates && fault.class() == Class::NotFound => {
            Ok("does not exist; the first promotion creates it".into())
        }
        tried => tried,
    };
    Check::of(name, tried)
}

/// A digest that no repository has.
fn unknown_digest() -> Digest {
    Digest::sha256(b"blobferry check --online")
}

async fn try_upload(destination: &Repository) -> Result<String, Fault> {
    match destination.begin_upload(&unknown_digest(), None).await? {
        Begin::Mounted => Ok("an upload can be opened".into()),
        Begin::Session(upload) => {
            let cancelled = destination.cancel_upload(upload).await.is_ok();
            Ok(format!(
                "an upload can be opened{}",
                if cancelled {
                    " and cancelled"
                } else {
                    "; it expires by itself"
                }
            ))
        }
    }
}
