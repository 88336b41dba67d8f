//! With what an explicit act works: the stores, and what a config knows of the places that
//! references name.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Error;
use super::directory::{Directory, Side};
use super::reference::Named;
use crate::backend::Repository;
use crate::config::Config;
use crate::endpoint::Repositories as _;
use crate::job::{Gates, Progress, Settled};
use crate::ledger::RunFacts;
use crate::look::topology::Topology;
use crate::parts::{Parts, facts};
use crate::route::Route;
use crate::state::{self, StateLock};
use crate::transfer::Settle;

/// With what an explicit act works.
pub(crate) struct Context {
    pub(super) parts: Parts,
    /// What the config describes, where one was read.
    topology: Option<Arc<Topology>>,
    /// The daemon acts: of hosts that its config does not know it has no credentials.
    knows_config_only: bool,
    _lock: Option<StateLock>,
}

/// What a config lets stand between an act and its destination.
#[derive(Clone, Debug, Default)]
pub(super) struct Guards {
    /// The routes that lead to the destination.
    pub(super) routes: Arc<[Arc<str>]>,
    /// The gates of the first of them.
    pub(super) gates: Arc<Gates>,
}

impl Context {
    /// For a command that runs by itself. What is written where a route of the config leads must be
    /// known to the daemon, so there the config's state is used, unless another one is named.
    ///
    /// # Errors
    /// When a state folder that was named cannot be used, or a registry's settings do not work.
    pub(super) fn open<'n>(
        state: Option<&Path>,
        dry_run: bool,
        config: Option<&Config>,
        mut destinations: impl Iterator<Item = &'n Named>,
    ) -> Result<Context, Error> {
        let routed = config.filter(|config| {
            let directory = Directory::of_config(config);
            destinations.any(|named| directory.is_routed(named))
        });
        let folder = state.or(routed.map(|config| config.daemon.state.as_path()));
        let (lock, parts) = match stores(folder, dry_run) {
            Err(
                error @ Error::State(state::Error::Unusable { .. } | state::Error::Exposed { .. }),
            ) if state.is_none() => {
                tracing::warn!(error = %error, "what is written will count as changed by others: the daemon's ledger is out of reach");
                stores(None, dry_run)?
            }
            opened => opened?,
        };
        let topology = config
            .map(|config| parts.topology(config, None))
            .transpose()?
            .map(Arc::new);
        Ok(Context {
            parts,
            topology,
            knows_config_only: false,
            _lock: lock,
        })
    }

    /// For the daemon, with what its config says now.
    pub(crate) fn of_daemon(parts: Parts, topology: Arc<Topology>) -> Context {
        Context {
            parts,
            topology: Some(topology),
            knows_config_only: true,
            _lock: None,
        }
    }

    /// The repository that a reference names, as the config knows it, else as `unknown` finds it.
    ///
    /// # Errors
    /// In the daemon for a host that its config does not have.
    pub(super) fn repository(
        &self,
        named: &Named,
        side: Side,
        unknown: impl FnOnce(&Parts) -> Result<Repository, Error>,
    ) -> Result<Repository, Error> {
        let found = self.topology.as_deref().and_then(|topology| {
            Some((topology, Directory::of_world(topology).find(named, side)?))
        });
        match found {
            Some((topology, (registry, repository))) => {
                Ok(topology.backend(registry).repository(repository))
            }
            None if self.knows_config_only => Err(Error::Usage(format!(
                "the daemon's config has no registry {}: add it under `registries`, or stop the daemon and try again",
                named.home()
            ))),
            None => unknown(&self.parts),
        }
    }

    /// Whether a route of the config leads there.
    pub(super) fn is_routed(&self, named: &Named) -> bool {
        self.topology
            .as_deref()
            .is_some_and(|topology| Directory::of_world(topology).is_routed(named))
    }

    /// The routes of the config that lead there, with the gates of the first.
    pub(super) fn guards(&self, named: &Named) -> Guards {
        let Some(topology) = self.topology.as_deref() else {
            return Guards::default();
        };
        let routes: Vec<&Route> = Directory::of_world(topology).routes_to(named).collect();
        Guards {
            gates: routes
                .first()
                .map(|route| route.gates.clone())
                .unwrap_or_default(),
            routes: routes.iter().map(|route| route.name.clone()).collect(),
        }
    }

    /// Compares the ledger with what the index knows of it, unless nothing is to be written.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub(super) async fn check_ledger(&self, dry_run: bool) -> Result<(), Error> {
        if dry_run {
            return Ok(());
        }
        let checked = self.parts.check_ledger(None).await;
        checked.map(drop).map_err(Error::Ledger)
    }

    /// How what comes of an act is recorded and shown.
    pub(super) fn settle(
        &self,
        progress: Arc<Progress>,
        listener: Option<mpsc::UnboundedSender<Settled>>,
    ) -> Settle {
        let config_hash = self
            .topology
            .as_deref()
            .map_or("", |topology| topology.facts.config_hash.as_str());
        let facts = RunFacts {
            run_id: crate::watch::run_id(),
            ..facts(config_hash)
        };
        Settle {
            facts: Arc::new(facts),
            progress,
            listener,
        }
    }

    pub(super) async fn close(self) {
        let Context {
            parts, topology, ..
        } = self;
        drop(topology);
        parts.close().await;
    }
}

/// The stores of a state folder, or ones that remember nothing. A dry run needs no lock, since it
/// writes nothing.
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
