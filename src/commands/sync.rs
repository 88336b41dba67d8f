//! One pass over the routes of a config.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::context::stores;
use super::{Error, Observer, caller, stop_of};
use crate::config::Config;
use crate::job::{Remarks, Report};
use crate::ledger;
use crate::look::PassOptions;
use crate::transfer::sets::CurrentSets;
use crate::transfer::{Settle, Stop};
use crate::watch::{self, Scope, pass};

/// One pass over the routes in this process, asking both sides.
///
/// # Errors
/// When the state folder cannot be used; what goes wrong with tags is in the report.
pub async fn sync(
    config: &Config,
    scope: Scope,
    options: PassOptions,
    remarks: Remarks,
    observer: Observer,
    stop: CancellationToken,
) -> Result<Report, Error> {
    let (_lock, parts) = stores(Some(&config.daemon.state), options.dry_run)?;
    let parts = parts.on_threads(config.daemon.threads);
    let audit_file = config.daemon.audit_file.as_deref();
    let audit = match options.dry_run {
        true => None,
        false => parts.start_audit(audit_file).await?,
    };
    let topology = parts.topology(config, None)?;
    let facts = ledger::RunFacts {
        run_id: watch::run_id(),
        ..(*topology.facts).clone()
    };
    let settle = Settle {
        facts: Arc::new(facts),
        progress: observer.progress,
        listener: Some(observer.settled),
    };
    let sets = topology.sets.clone();
    let stop = Stop {
        sets: CurrentSets::new(move || sets.clone()),
        ..stop_of(stop)
    };
    let report = pass(&topology, &scope, options, caller(remarks), &settle, &stop).await;
    drop((topology, settle));
    if let Some(audit) = audit {
        audit.end().await;
    }
    parts.close().await;
    Ok(report)
}
