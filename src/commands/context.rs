//! With what an explicit act works: the stores, and what a config knows of the places that
//! references name.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{mpsc, watch as channel};

use super::Error;
use super::directory::{Directory, Side};
use super::guards::{Ends, Guards};
use super::reference::Named;
use crate::backend::{Backend, Repository};
use crate::byte_threads;
use crate::config::Config;
use crate::endpoint::Repositories as _;
use crate::job::{Progress, Settled};
use crate::ledger::{AuditTask, RunFacts};
use crate::look::topology::Topology;
use crate::parts::{Parts, facts};
use crate::state::{self, StateLock};
use crate::transfer::sets::CurrentSets;
use crate::transfer::{Settle, Stop};

/// With what an explicit act works.
pub(crate) struct Context {
    pub(super) parts: Parts,
    /// What the config describes, where one was read.
    topology: Option<Arc<Topology>>,
    /// The daemon acts, and this follows its config. Of hosts that it does not know it has no
    /// credentials.
    in_force: Option<channel::Receiver<Arc<Topology>>>,
    audit: Option<AuditTask>,
    _lock: Option<StateLock>,
}

impl Context {
    /// For a command that runs by itself. Where a config is read, its state is used unless another
    /// one is named: the daemon then knows what was written, and the decisions there hold.
    ///
    /// # Errors
    /// When a state folder that was named cannot be used, a route leads to a destination and the
    /// daemon cannot be asked for it, or a registry's settings do not work.
    pub(super) async fn open<'n>(
        state: Option<&Path>,
        dry_run: bool,
        config: Option<&Config>,
        destinations: impl Iterator<Item = &'n Named>,
    ) -> Result<Context, Error> {
        let (lock, parts) = match (state, config) {
            (Some(folder), _) => stores(Some(folder), dry_run)?,
            (None, Some(config)) => stores_of(config, dry_run, destinations).await?,
            (None, None) => stores(None, dry_run)?,
        };
        let threads = config.map_or_else(byte_threads::usual, |config| config.daemon.threads);
        let parts = parts.on_threads(threads);
        let audit_file = config.and_then(|config| config.daemon.audit_file.as_deref());
        let audit = match &lock {
            Some(_) => parts.start_audit(audit_file).await?,
            None => None,
        };
        Ok(Context {
            audit,
            _lock: lock,
            ..Context::over(parts, config)?
        })
    }

    /// For a command that only reads registries: no state is used.
    ///
    /// # Errors
    /// When a registry's settings do not work.
    pub(super) fn to_inspect(config: Option<&Config>) -> Result<Context, Error> {
        let parts = Parts::in_memory()?;
        Context::over(parts, config)
    }

    fn over(parts: Parts, config: Option<&Config>) -> Result<Context, Error> {
        let topology = config
            .map(|config| parts.topology(config, None))
            .transpose()?;
        Ok(Context {
            parts,
            topology: topology.map(Arc::new),
            in_force: None,
            audit: None,
            _lock: None,
        })
    }

    /// For the daemon, with what its config says now, and later.
    pub(crate) fn of_daemon(parts: Parts, in_force: channel::Receiver<Arc<Topology>>) -> Context {
        let topology = in_force.borrow().clone();
        Context {
            parts,
            topology: Some(topology),
            in_force: Some(in_force),
            audit: None,
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
            None if self.in_force.is_some() => Err(Error::Usage(format!(
                "the daemon's config has no registry {}: add it under `registries`, or stop the daemon and try again",
                named.home()
            ))),
            None => unknown(&self.parts),
        }
    }

    /// The registry of that name in the config.
    pub(super) fn backend(&self, name: &str) -> Option<&Backend> {
        self.topology.as_deref()?.backends.get(name)
    }

    /// The registry of the config that a reference names.
    pub(super) fn backend_of(&self, named: &Named) -> Option<&Backend> {
        let topology = self.topology.as_deref()?;
        let (registry, _) = Directory::of_world(topology).find(named, Side::Source)?;
        Some(topology.backend(registry))
    }

    /// Whether the config has the registry.
    pub(super) fn knows(&self, named: &Named, side: Side) -> bool {
        self.topology
            .as_deref()
            .is_some_and(|topology| Directory::of_world(topology).find(named, side).is_some())
    }

    /// Whether a route of the config leads there.
    pub(super) fn is_routed(&self, named: &Named) -> bool {
        self.topology
            .as_deref()
            .is_some_and(|topology| Directory::of_world(topology).is_routed(named))
    }

    /// What the config lets stand between a source and a destination.
    pub(super) fn guards(&self, ends: &Ends) -> Guards {
        let topology = self.topology.as_deref();
        topology.map_or_else(Guards::default, |topology| ends.guards(topology))
    }

    /// When an act stops: as `stop` says, and by the rules of the config in force, which the daemon
    /// may read again while it acts.
    pub(super) fn stop_of(&self, ends: &Ends, guards: &Guards, stop: &Stop) -> Stop {
        match (&self.in_force, &self.topology) {
            (Some(in_force), _) => {
                let topology = in_force.clone();
                Stop {
                    rules: ends.rules_in_force(guards, in_force.clone()),
                    sets: CurrentSets::new(move || topology.borrow().sets.clone()),
                    ..stop.clone()
                }
            }
            (None, Some(topology)) => {
                let sets = topology.sets.clone();
                Stop {
                    sets: CurrentSets::new(move || sets.clone()),
                    ..stop.clone()
                }
            }
            (None, None) => stop.clone(),
        }
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
            parts,
            topology,
            audit,
            ..
        } = self;
        drop(topology);
        if let Some(audit) = audit {
            audit.end().await;
        }
        parts.close().await;
    }
}

/// The stores of a config's state folder, as far as they can be had. Beside a daemon that cannot
/// reach the destination, and that no route obliges to, its decisions hold, and it does not learn
/// of the act.
async fn stores_of<'n>(
    config: &Config,
    dry_run: bool,
    mut destinations: impl Iterator<Item = &'n Named>,
) -> Result<(Option<StateLock>, Parts), Error> {
    let folder = &config.daemon.state;
    let directory = Directory::of_config(config);
    let is_routed = destinations.any(|named| directory.is_routed(named));
    match stores(Some(folder), dry_run) {
        Err(Error::State(state::Error::Held { .. })) if !is_routed => {
            Ok((None, Parts::under_decisions_of(folder).await?))
        }
        Err(error @ Error::State(state::Error::Unusable { .. } | state::Error::Exposed { .. })) => {
            tracing::warn!(error = %error, "what is written will count as changed by others, and decisions are not known: the daemon's ledger is out of reach");
            stores(None, dry_run)
        }
        opened => opened,
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
