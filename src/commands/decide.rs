//! Decisions without a daemon: they are written to the ledger, and the next daemon goes by them.

use std::path::Path;

use jiff::Timestamp;

use super::caller;
use super::resolve::{Unresolved, resolve};
use crate::clock;
use crate::config::Config;
use crate::decision::{Decision, Kind, NotATarget, NotAnEnd, Target, until};
use crate::fault::Fault;
use crate::job::Remarks;
use crate::ledger::{AuditTask, Ledger, Recorded};
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
    #[error("no such decision is in force (`blobferry status` lists those that are)")]
    NotInForce,
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
            DecideError::NotInForce => 5,
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
    let target = match config {
        Some(config) if request.kind != Kind::Release => meant(target, config)?,
        _ => target,
    };
    let lock = StateLock::acquire(state)?;
    let parts = Parts::open(&lock)?;
    let recorded = recorded(&parts, config, request, target, end).await;
    parts.close().await;
    recorded
}

async fn recorded(
    parts: &Parts,
    config: Option<&Config>,
    request: Decide,
    target: Target,
    until: Option<Timestamp>,
) -> Result<Recorded, DecideError> {
    let audit = start_audit(parts, config).await?;
    let recorded = added(&parts.ledger, request, target, until).await;
    if let Some(audit) = audit {
        audit.end().await;
    }
    recorded
}

/// What a target means under the config.
fn meant(target: Target, config: &Config) -> Result<Target, DecideError> {
    match Parts::in_memory()?.topology(config, None) {
        Ok(topology) => Ok(resolve(target, &topology)?.target),
        Err(error) => {
            tracing::warn!(%error, "the target is taken as it is written: the config does not work");
            Ok(target)
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
    let actor = caller(request.remarks);
    if request.kind != Kind::Release {
        let decision = Decision {
            until,
            ..Decision::about(&target, actor)
        };
        return Ok(ledger.decide(request.kind, decision, facts("")).await?);
    }
    let in_force = ledger.in_force().await?;
    let ended = in_force.ended_by(request.id, &target);
    let about = ended.first().map(|numbered| numbered.target.clone());
    let ids = ended.iter().map(|numbered| numbered.id).collect();
    let decision = Decision::about(&about.ok_or(DecideError::NotInForce)?, actor);
    let released = ledger.release(ids, decision, facts("")).await?;
    Ok(Recorded {
        decision: released.ok_or(DecideError::NotInForce)?,
        on_their_way: Vec::new(),
        carried: Vec::new(),
    })
}
