//! What follows from decisions without a caller: looks at their ends, and denials in the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::OptionFuture;
use jiff::Timestamp;
use tokio::sync::watch as channel;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Decider, MOST_NAMED};
use crate::backoff::Backoff;
use crate::clock;
use crate::commands::resolve::resolve;
use crate::decision::{Numbered, Target};
use crate::endpoint::{Repositories as _, is_clock_off};
use crate::fault::Fault;
use crate::job::Actor;
use crate::ledger::{ClockDoubt, Ledger};
use crate::look::topology::Topology;
use crate::route::Template;
use crate::transfer::Stop;
use crate::watch::Handle;

/// After so long the clocks are compared again, while ours is off.
const COMPARED: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(3600));

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
    let mut doubtful = DoubtfulEnds::default();
    loop {
        let in_force = decider.ledger.known_decisions();
        let decisions = &in_force.decisions;
        let now = clock::now();
        let next = in_force.next_end(now);
        let wait = next.map(|end| end.duration_since(now).unsigned_abs());
        let compare = doubtful.at;
        tokio::select! {
            biased;
            changed = version.changed() => if changed.is_err() { return },
            Some(end) = OptionFuture::from(wait.map(sleep)).map(|slept| slept.and(next)) => {
                decider.ended(decisions, end).await;
                if decider.is_clock_off() {
                    doubtful.add(end);
                }
            }
            Some(()) = OptionFuture::from(compare.map(sleep_until)) => {
                decider.wake_ended(decisions, &doubtful.ends).await;
                doubtful.compared(decider.is_clock_off());
            }
        }
    }
}

/// Tells whether our clock is off that of a destination that a decision is about.
pub(in crate::daemon) fn clock_doubt(topology: channel::Receiver<Arc<Topology>>) -> ClockDoubt {
    Box::new(move |decision| {
        let topology = topology.borrow();
        let target = &decision.target;
        let routes = topology.routes.0.iter().filter(|route| match target {
            Target::Route(name) => *name == route.name,
            _ => true,
        });
        let mut registries = routes.flat_map(|route| &route.to).map(Template::registry);
        registries.any(|registry| {
            let backend = topology.backend(registry);
            let is_meant = target
                .origin()
                .is_none_or(|origin| backend.origin() == origin);
            is_meant && is_clock_off(backend.clock_skew())
        })
    })
}

/// Ends that came while our clock was off a registry's: whatever names tags there goes by the
/// decisions all the same, so what they cover is looked at again until the clocks agree.
#[derive(Default)]
struct DoubtfulEnds {
    ends: BTreeSet<Timestamp>,
    comparisons: u32,
    /// When the clocks are compared next.
    at: Option<Instant>,
}

impl DoubtfulEnds {
    fn add(&mut self, end: Timestamp) {
        if self.ends.len() < MOST_NAMED {
            self.ends.insert(end);
        }
        self.comparisons = 0;
        self.compared(true);
    }

    /// The clocks were compared. Once they agree, what was looked at before was the last time.
    fn compared(&mut self, is_clock_off: bool) {
        if !is_clock_off {
            *self = DoubtfulEnds::default();
            return;
        }
        self.comparisons += 1;
        self.at = Some(Instant::now() + COMPARED.wait(self.comparisons));
    }
}

impl Decider {
    async fn ended(&self, decisions: &[Numbered], end: Timestamp) {
        let ended = decisions
            .iter()
            .filter(|one| one.decision.until == Some(end));
        for numbered in ended {
            tracing::info!(
                decision = numbered.id,
                kind = %numbered.kind,
                target = numbered.decision.shown_target(),
                "the decision has ended"
            );
        }
        self.wake_ended(decisions, &BTreeSet::from([end])).await;
    }

    /// Asks for a look at what the decisions with these ends were about.
    async fn wake_ended(&self, decisions: &[Numbered], ends: &BTreeSet<Timestamp>) {
        let topology = self.topology.borrow().clone();
        for numbered in decisions.iter().filter(|one| {
            let until = one.decision.until;
            until.is_some_and(|until| ends.contains(&until))
        }) {
            if let Ok(resolved) = resolve(numbered.target.clone(), &topology) {
                self.wake(&topology, &resolved, &Actor::daemon()).await;
            }
        }
    }

    /// Whether our clock is off that of a registry.
    fn is_clock_off(&self) -> bool {
        let topology = self.topology.borrow();
        let mut backends = topology.backends.values();
        backends.any(|backend| is_clock_off(backend.clock_skew()))
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
                        tag = %tag.place,
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
