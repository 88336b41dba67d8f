//! What both sides answer about the tag, and how long an answer counts.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::OptionFuture;
use tokio::time::{Instant, timeout};

use super::rounds::SOON;
use super::{NameOrigin, Namer, Side, Step};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::oci::Tag;
use crate::transfer::limits::RequestClass;
use crate::transfer::resolve::{Attempts, TagAnswer};
use crate::transfer::retry::stoppable;

/// The answer of one side about the tag. `None`: the side was not asked.
type Answer = Result<Option<TagAnswer>, Fault>;

impl<S: Source, D: Destination> Namer<'_, S, D> {
    /// Resolves the tag at each side that has too old an answer.
    pub(super) async fn ask(&mut self) -> Result<Step, Fault> {
        let promotion = self.promotion;
        let target = promotion.engine.limits.of(promotion.destination.origin());
        let permit = stoppable(
            &promotion.stop.abort,
            target.naming(promotion.ticket.rank(), promotion.started),
        )
        .await?;
        let source = promotion.engine.limits.of(promotion.source.origin());
        let asks_source = self.asks_source();
        let asks_destination = self.asks_destination();
        if asks_source && source.closed_for(RequestClass::Manifests) > SOON {
            return Ok(self.late(Side::Source, "staging's turn came late"));
        }
        if asks_destination && target.closed_for(RequestClass::Manifests) > SOON {
            return Ok(self.late(Side::Destination, "production's turn came late"));
        }
        let (source, destination) = self.answers(asks_source, asks_destination).await;
        // An answer counts, whatever came of the other question.
        let destination = destination.map(|answer| {
            if let Some(answer) = answer {
                self.facts.answered(answer.digest, answer.at);
            }
        });
        match source {
            Ok(None) => {}
            Ok(Some(answer)) => self.facts.answered_by_source(&answer),
            Err(fault) => return self.failed(Side::Source, fault),
        }
        let planned = self.naming.planned;
        // Gates and decisions go by the index, too.
        if (self.facts.source, self.facts.index) != (planned.source, planned.index) {
            return Ok(self.again());
        }
        if let Err(fault) = destination {
            return self.failed(Side::Destination, fault);
        }
        if self.may_have_arrived && self.facts.destination == Some(self.digest()) {
            return Ok(self.moved().await);
        }
        if self.facts.destination != planned.destination {
            return Ok(self.again());
        }
        Ok(Step::Send(permit))
    }

    /// Asks both sides at once, so that neither answer ages during the other request. After a
    /// failed round staging is asked first: a registry that refuses every other request would
    /// always refuse the same side.
    async fn answers(&self, asks_source: bool, asks_destination: bool) -> (Answer, Answer) {
        let source = asks_source.then(|| self.within(self.source_answer(), "staging"));
        let source = OptionFuture::from(source).map(Option::transpose);
        let destination =
            asks_destination.then(|| self.within(self.destination_answer(), "production"));
        let destination = OptionFuture::from(destination).map(Option::transpose);
        if self.rounds.count == 1 {
            return futures::join!(source, destination);
        }
        match source.await {
            Err(fault) => (Err(fault), Ok(None)),
            answer => (answer, destination.await),
        }
    }

    /// The answer of one side. One that takes longer than it would last is not waited for.
    async fn within<T>(
        &self,
        question: impl Future<Output = Result<T, Fault>>,
        side: &str,
    ) -> Result<T, Fault> {
        stoppable(
            &self.promotion.stop.abort,
            timeout(self.lasting(), question),
        )
        .await?
        .unwrap_or_else(|_| Err(self.lateness(&format!("{side} answered late"))))
    }

    async fn source_answer(&self) -> Result<TagAnswer, Fault> {
        let promotion = self.promotion;
        let tag = self.source_tag();
        let priority = promotion.naming_priority(RequestClass::Manifests);
        promotion
            .engine
            .ask_tag(
                &promotion.source,
                tag,
                priority,
                Attempts::Once,
                promotion.stop,
            )
            .await
    }

    async fn destination_answer(&self) -> Result<TagAnswer, Fault> {
        let tag = &self.naming.place.tag;
        if self.naming.planned.destination.is_none()
            && !self.may_have_arrived
            && !self.is_destination_overtaken()
            && let Some(at) = self.promotion.listed_absent(tag).await
        {
            return Ok(TagAnswer {
                digest: None,
                index: None,
                at,
            });
        }
        let promotion = self.promotion;
        let priority = promotion.naming_priority(RequestClass::Manifests);
        promotion
            .engine
            .ask_tag(
                &promotion.destination,
                tag,
                priority,
                Attempts::Once,
                promotion.stop,
            )
            .await
    }

    /// How long staging's answer lasts, and the longest time an answer may take.
    fn lasting(&self) -> Duration {
        self.promotion.engine.settings.fresh * 5
    }

    /// Whether staging must still name what the plan goes by.
    fn needs_source(&self) -> bool {
        match self.naming.origin {
            NameOrigin::Job => self.promotion.job.pinned.is_none(),
            NameOrigin::Companion(_) => true,
            NameOrigin::List | NameOrigin::Backup => false,
        }
    }

    /// Whether another look or job of this process has a newer answer of staging that differs.
    pub(super) fn is_source_overtaken(&self) -> bool {
        let promotion = self.promotion;
        let source = self.facts.source;
        let newest = &promotion.engine.newest;
        let at = self.facts.source_at.filter(|_| self.needs_source());
        at.is_some_and(|at| newest.differs(&promotion.source, self.source_tag(), source, at))
    }

    /// Whether another look or job of this process has a newer answer of production that differs:
    /// it may have written the tag itself.
    pub(super) fn is_destination_overtaken(&self) -> bool {
        let promotion = self.promotion;
        let facts = &self.facts;
        let newest = &promotion.engine.newest;
        let tag = &self.naming.place.tag;
        newest.differs(
            &promotion.destination,
            tag,
            facts.destination,
            facts.destination_at,
        )
    }

    pub(super) fn source_tag(&self) -> &Tag {
        match self.naming.origin {
            NameOrigin::Companion(tag) => tag,
            NameOrigin::Job | NameOrigin::List | NameOrigin::Backup => &self.promotion.job.key.tag,
        }
    }

    pub(super) fn asks_source(&self) -> bool {
        let lasting = self.lasting();
        let is_old = self.facts.source_at.is_none_or(|at| at.elapsed() > lasting);
        self.needs_source() && (is_old || self.is_source_overtaken())
    }

    pub(super) fn asks_destination(&self) -> bool {
        let is_answer = self
            .facts
            .destination_via
            .is_answer(self.promotion.destination.abilities());
        !is_answer
            || self.may_have_arrived
            || self.is_destination_overtaken()
            || self.facts.destination_at.elapsed() > self.promotion.engine.settings.fresh / 2
    }

    /// When the first of the answers that the name goes by is too old.
    pub(super) fn fresh_until(&self) -> Instant {
        let production = self.facts.destination_at + self.promotion.engine.settings.fresh;
        let staging = self.facts.source_at.filter(|_| self.needs_source());
        staging.map_or(production, |at| production.min(at + self.lasting()))
    }
}
