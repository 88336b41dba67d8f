//! The rounds of a naming: waiting for the limiters, pausing after a failure, giving up.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::{Namer, Side, Step};
use crate::endpoint::{Destination, Source};
use crate::fault::{Class, Fault};
use crate::transfer::limits::RequestClass;
use crate::transfer::retry::stoppable;

/// Most rounds of one naming.
const ROUNDS: u32 = 10;
/// Longest time for which a registry takes no questions, with a naming permit held. A token is
/// waited for: the questions under a naming permit have the next one.
pub(super) const SOON: Duration = Duration::from_millis(500);

impl<S: Source, D: Destination> Namer<'_, S, D> {
    /// Waits until the limiters admit all requests of this round, with only the job permit held.
    pub(super) async fn admit(&mut self) -> Result<Step, Fault> {
        let promotion = self.promotion;
        let target = promotion.engine.limits.of(promotion.destination.origin());
        let source = promotion.engine.limits.of(promotion.source.origin());
        let mut waits = vec![(Side::Destination, &target, RequestClass::Writes)];
        if self.asks_source() {
            waits.push((Side::Source, &source, RequestClass::Manifests));
        }
        if self.asks_destination() {
            waits.push((Side::Destination, &target, RequestClass::Manifests));
        }
        for (side, limiter, class) in waits {
            while !limiter.admitted_in(class).is_zero() {
                let wait = limiter.admitted_in(class);
                if wait > promotion.engine.settings.retry.hold || wait >= self.rounds.time_left() {
                    let fault = self.closed(side, wait);
                    return self.wait_or_suspend(side, fault, wait).await;
                }
                let stop = if wait > SOON {
                    &promotion.stop.drain
                } else {
                    &promotion.stop.abort
                };
                // The class may be closed for longer meanwhile.
                let hold = promotion.engine.settings.retry.hold;
                let admitted = timeout(hold, limiter.until_admitted(class));
                if stoppable(stop, admitted).await?.is_ok() {
                    break;
                }
            }
        }
        Ok(Step::Ask)
    }

    /// Waits before the next round, or gives up: by the count of failures, by rounds, or by time.
    pub(super) async fn pause(&mut self, side: Side, fault: Fault) -> Result<Step, Fault> {
        let Some(wait) = self.state.next(fault.class()) else {
            return Err(self.gives_up(side, fault));
        };
        let registry = self.registry(side);
        self.promotion
            .engine
            .metrics
            .retried(registry, fault.class());
        tracing::debug!(
            registry,
            tag = %self.naming.place.tag,
            error = %fault.chain(),
            "the tag is asked about and written again"
        );
        self.wait_or_suspend(side, fault, wait).await
    }

    /// Waits for the next round. What takes long is not waited for with the job's permit and its
    /// claims in hand: the job ends, and the one that takes the name up at its time counts the
    /// rounds on.
    async fn wait_or_suspend(
        &mut self,
        side: Side,
        fault: Fault,
        wait: Duration,
    ) -> Result<Step, Fault> {
        let promotion = self.promotion;
        if self.rounds.count >= ROUNDS || wait >= self.rounds.time_left() {
            return Err(self.gives_up(side, fault));
        }
        if wait > promotion.engine.settings.retry.hold {
            promotion
                .engine
                .suspended
                .suspend(self.naming.place, self.rounds);
            let after = Some(wait);
            return Err(Fault::new(Class::Retryable { after }, fault.chain()));
        }
        stoppable(&promotion.stop.drain, tokio::time::sleep(wait)).await?;
        Ok(Step::Judge)
    }

    /// As often and as long as one job may: the queue looks again later, and counts anew.
    fn gives_up(&self, side: Side, fault: Fault) -> Fault {
        self.promotion.gave_up.store(true, Ordering::Relaxed);
        self.heard(side, Some(&fault));
        fault
    }

    /// Tells the health of a registry what came of a request.
    pub(super) fn heard(&self, side: Side, fault: Option<&Fault>) {
        let health = &self.promotion.engine.metrics.health;
        health.heard(self.registry(side), fault);
    }

    /// A registry admits no request for so long.
    fn closed(&self, side: Side, wait: Duration) -> Fault {
        let seconds = wait.as_secs();
        let text = match side {
            Side::Source => format!(
                "{}:{} may not be read in the next {seconds} s",
                self.promotion.source.address(),
                self.source_tag()
            ),
            Side::Destination => {
                format!(
                    "{} may not be written in the next {seconds} s",
                    self.reference()
                )
            }
        };
        let after = Some(wait);
        Fault::new(Class::Retryable { after }, text)
    }

    /// The registry of a side, as metrics and logs name it.
    fn registry(&self, side: Side) -> &str {
        match side {
            Side::Source => self.promotion.source.registry(),
            Side::Destination => self.promotion.destination.registry(),
        }
    }

    /// Ends a round after a permit that came too late. The next round asks again.
    pub(super) fn late(&self, side: Side, why: &str) -> Step {
        Step::Pause(side, self.lateness(why))
    }

    pub(super) fn lateness(&self, why: &str) -> Fault {
        let text = format!(
            "{} could not be named while what was asked about it was fresh: {why}",
            self.reference()
        );
        let after = Some(Duration::ZERO);
        Fault::new(Class::Retryable { after }, text)
    }

    pub(super) fn failed(&self, side: Side, fault: Fault) -> Result<Step, Fault> {
        if matches!(fault.class(), Class::Retryable { .. }) {
            Ok(Step::Pause(side, fault))
        } else {
            Err(fault)
        }
    }
}
