//! What follows from decisions without a caller: looks at their ends, and denials in the log.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch as channel;
use tokio::time::sleep;

use super::{Decider, MOST_NAMED, shown};
use crate::clock;
use crate::commands::resolve::resolve;
use crate::decision::Numbered;
use crate::fault::Fault;
use crate::job::Actor;
use crate::ledger::Ledger;
use crate::look::topology::Topology;
use crate::transfer::Stop;
use crate::watch::Handle;

/// Looks at what a decision was about once that has ended by itself, until dropped.
pub(in crate::daemon) async fn wake_at_ends(
    ledger: Ledger,
    topology: channel::Receiver<Arc<Topology>>,
    watch: Handle,
    stop: Stop,
) {
    let decider = Decider {
        ledger,
        topology,
        watch,
        stop,
    };
    let mut version = decider.ledger.decisions_version();
    loop {
        let in_force = decider.ledger.known_decisions();
        let now = clock::now();
        let next = in_force.next_end(now);
        let wait = next.map(|end| end.duration_since(now).unsigned_abs());
        let ended = async {
            match wait {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = version.changed() => if changed.is_err() { return },
            () = ended => decider.ended(&in_force.decisions, next).await,
        }
    }
}

impl Decider {
    async fn ended(&self, decisions: &[Numbered], end: Option<Timestamp>) {
        let topology = self.topology.borrow().clone();
        for numbered in decisions.iter().filter(|one| one.decision.until == end) {
            tracing::info!(
                decision = numbered.id,
                kind = %numbered.kind,
                target = numbered.decision.shown_target(),
                "the decision has ended"
            );
            if let Ok(resolved) = resolve(numbered.target.clone(), &topology) {
                self.wake(&topology, &resolved, &Actor::daemon()).await;
            }
        }
    }
}

/// Says in the log which production tags name a denied digest, until dropped.
pub(in crate::daemon) async fn watch_denied(ledger: Ledger, show: impl Fn(usize)) {
    let mut version = ledger.decisions_version();
    let mut told = Vec::new();
    loop {
        match ledger.denied_in_production().await {
            Ok(denied) => {
                show(denied.len());
                for tag in denied
                    .iter()
                    .filter(|tag| !told.contains(*tag))
                    .take(MOST_NAMED)
                {
                    tracing::warn!(
                        tag = shown(&tag.place),
                        digest = %tag.digest,
                        "production names a denied digest"
                    );
                }
                told = denied;
            }
            Err(fault) => tracing::debug!(error = %Fault::chain(&fault), "the ledger was not read"),
        }
        let pause = sleep(Duration::from_secs(15));
        tokio::select! {
            biased;
            changed = version.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}
