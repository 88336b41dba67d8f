//! What is shown of decisions.

use prometheus::{IntCounter, IntGauge, IntGaugeVec};

use crate::decision::{Kind, Numbered};
use crate::metrics::{options, registered};

/// The instruments of decisions.
#[derive(Clone)]
pub(super) struct DecisionMetrics {
    in_force: IntGaugeVec,
    denied: IntGauge,
    overrides: IntCounter,
}

impl DecisionMetrics {
    pub(super) fn new(
        registry: &prometheus::Registry,
    ) -> Result<DecisionMetrics, prometheus::Error> {
        let in_force = options("decisions_in_force", "Decisions in force by kind.");
        let denied = options(
            "denied_in_production",
            "Production tags that are known to name a denied digest.",
        );
        let overrides = options(
            "overrides_total",
            "Approvals that pass gates which are not met.",
        );
        let metrics = DecisionMetrics {
            in_force: registered(registry, IntGaugeVec::new(in_force, &["kind"])?)?,
            denied: registered(registry, IntGauge::with_opts(denied)?)?,
            overrides: registered(registry, IntCounter::with_opts(overrides)?)?,
        };
        metrics.show(&[]);
        Ok(metrics)
    }

    pub(super) fn show(&self, holding: &[Numbered]) {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Release) {
            let count = holding.iter().filter(|one| one.kind == kind).count();
            self.in_force
                .with_label_values(&[kind.name()])
                .set(count as i64);
        }
    }

    pub(super) fn overridden(&self) {
        self.overrides.inc();
    }

    pub(super) fn show_denied(&self, tags: usize) {
        self.denied.set(tags as i64);
    }
}
