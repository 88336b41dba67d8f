//! Decisions without a daemon: they are written to the ledger, and the next daemon goes by them.

use std::path::Path;

use jiff::Timestamp;

use super::caller;
use super::release::Released;
use super::resolve::{Unresolved, resolve};
use crate::clock;
use crate::config::Config;
use crate::decision::{Decision, Kind, NotATarget, NotAnEnd, Target, until};
use crate::fault::Fault;
use crate::job::Remarks;
use crate::ledger::{AuditTask, Ledger, Recorded};
use crate::look::topology::Topology;
use crate::parts::{self, Parts, facts};
use crate::state::{self, StateLock};

/// What is ordered.
#[derive(Clone, Debug)]
pub struct Decide {
    /// What kind of decision.
    pub kind: Kind,
    /// What it is about; empty for everything.
    pub target: String,
    /// Of a release: the number of the decision to end.
    pub id: Option<u64>,
    /// When it ends.
    pub until: Option<String>,
    /// What the caller says of itself and of the act.
    pub remarks: Remarks,
}

/// Why a decision was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// The target is none.
    #[error(transparent)]
    Target(#[from] NotATarget),
    /// The end is none.
    #[error("--until: {0}")]
    Until(#[from] NotAnEnd),
    /// A denial of something else than a digest.
    #[error("a denial is of a digest: give the sha256:… of a manifest, a config or a layer")]
    NotADigest,
    /// Nothing that could be released is in force.
    #[error("{0}")]
    NotInForce(String),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The target means nothing under the config, or two things.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// The stores cannot be used.
    #[error(transparent)]
    Parts(#[from] parts::Error),
    /// The ledger cannot be read or written.
    #[error("{0}")]
    Fault(Fault),
}

impl DecideError {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            DecideError::Target(_) | DecideError::Until(_) | DecideError::NotADigest => 2,
            DecideError::State(_) => 2,
            DecideError::Unresolved(Unresolved::Ambiguous { .. }) => 2,
            DecideError::Unresolved(Unresolved::NotThere { .. }) => 5,
            DecideError::NotInForce(_) => 5,
            DecideError::Parts(error) => error.exit_code(),
            DecideError::Fault(_) => 1,
        }
    }
}

impl From<Fault> for DecideError {
    fn from(fault: Fault) -> DecideError {
        DecideError::Fault(fault)
    }
}

/// Records a decision in the ledger of a state folder that no process uses. With the config of its
/// daemon the target must mean something there, and the row goes to the audit file.
///
/// # Errors
/// [`DecideError`], and then nothing was recorded.
pub async fn decide(
    state: &Path,
    config: Option<&Config>,
    request: Decide,
) -> Result<Recorded, DecideError> {
    let target: Target = request.target.parse()?;
    if request.kind == Kind::Deny && target.digest().is_none() {
        return Err(DecideError::NotADigest);
    }
    let end = request.until.as_deref();
    let end = end.map(|text| until(text, clock::now())).transpose()?;
    let topology = config.map(topology).transpose()?.flatten();
    let target = match &topology {
        Some(topology) if request.kind != Kind::Release => resolve(target, topology)?.target,
        _ => target,
    };
    let lock = StateLock::acquire(state)?;
    let parts = Parts::open(&lock)?;
    let audit = start_audit(&parts, config).await;
    let recorded = match audit {
        Ok(audit) => recorded(&parts, audit, request, target, end, topology.as_ref()).await,
        Err(error) => Err(error),
    };
    parts.close().await;
    recorded
}

async fn recorded(
    parts: &Parts,
    audit: Option<AuditTask>,
    request: Decide,
    target: Target,
    until: Option<Timestamp>,
    topology: Option<&Topology>,
) -> Result<Recorded, DecideError> {
    let recorded = match request.kind {
        Kind::Release => released(&parts.ledger, request, target, topology).await,
        _ => added(&parts.ledger, request, target, until).await,
    };
    if let Some(audit) = audit {
        audit.end().await;
    }
    recorded
}

/// With what targets are read, where the config works.
fn topology(config: &Config) -> Result<Option<Topology>, DecideError> {
    match Parts::in_memory()?.topology(config, None) {
        Ok(topology) => Ok(Some(topology)),
        Err(error) => {
            tracing::warn!(%error, "the target is taken as it is written: the config does not work");
            Ok(None)
        }
    }
}

/// A decision does not fail for want of the audit file: the next process writes its row there.
async fn start_audit(
    parts: &Parts,
    config: Option<&Config>,
) -> Result<Option<AuditTask>, DecideError> {
    let audit_file = config.and_then(|config| config.daemon.audit_file.as_deref());
    match parts.start_audit(audit_file).await {
        Err(error @ parts::Error::Audit { .. }) => {
            tracing::warn!(%error, "the decision is not in the audit file yet");
            Ok(parts.start_audit(None).await?)
        }
        started => Ok(started?),
    }
}

async fn added(
    ledger: &Ledger,
    request: Decide,
    target: Target,
    until: Option<Timestamp>,
) -> Result<Recorded, DecideError> {
    let decision = Decision {
        until,
        ..Decision::about(&target, caller(request.remarks))
    };
    Ok(ledger.decide(request.kind, decision, facts("")).await?)
}

async fn released(
    ledger: &Ledger,
    request: Decide,
    target: Target,
    topology: Option<&Topology>,
) -> Result<Recorded, DecideError> {
    let release = Released {
        id: request.id,
        target: &target,
        topology,
    };
    let in_force = ledger.in_force().await?;
    let ends_nothing = || DecideError::NotInForce(release.ends_nothing(&in_force));
    let ended = release.of(&in_force);
    let about = ended.first().ok_or_else(ends_nothing)?;
    let ids = ended.iter().map(|numbered| numbered.id).collect();
    let decision = Decision::about(&about.target, caller(request.remarks));
    let released = ledger.release(ids, decision, facts("")).await?;
    Ok(Recorded {
        decision: released.ok_or_else(ends_nothing)?,
        on_their_way: Vec::new(),
        carried: Vec::new(),
    })
}
