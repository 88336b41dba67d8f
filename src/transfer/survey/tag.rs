//! The survey of a tag: the digests on both sides, and what the ledger knows.

use tokio::time::Instant;

use crate::clock;
use crate::endpoint::{Destination, Source};
use crate::fault::{Class, Fault};
use crate::job::{Job, ObservedVia, TagId, TagRules, TagState};
use crate::ledger::{Agreement, EqualityUpdate, TagRecord};
use crate::oci::{Digest, Manifest, Tag};
use crate::transfer::limits::RequestClass;
use crate::transfer::plan::{self, Decision, Facts, Order};
use crate::transfer::resolve::{Attempts, TagAnswer};
use crate::transfer::{Found, Promotion};

/// The observed digests of a tag on both sides, and when.
#[derive(Clone, Copy, Debug)]
pub(in crate::transfer) struct Observation {
    pub(super) source: TagState,
    pub(super) destination: TagState,
    pub(super) destination_via: ObservedVia,
    pub(super) source_at: Option<Instant>,
    pub(super) destination_at: Instant,
}

impl Observation {
    /// The observation of the look.
    pub(in crate::transfer) fn of(job: &Job) -> Observation {
        Observation {
            source: job.source,
            destination: job.destination,
            destination_via: job.destination_via,
            source_at: job.source_at,
            destination_at: job.destination_at,
        }
    }

    /// No observation: both sides are asked.
    pub(in crate::transfer) fn none() -> Observation {
        let source = TagState::Unknown;
        let destination = TagState::Unknown;
        Observation {
            source,
            destination,
            destination_via: ObservedVia::Tag,
            source_at: None,
            destination_at: Instant::now(),
        }
    }
}

/// The facts about a tag.
#[derive(Clone, Debug)]
pub(in crate::transfer) struct TagFacts {
    /// S.
    pub(in crate::transfer) source: Option<Digest>,
    /// The index from which S was chosen for the platform of the route.
    pub(in crate::transfer) index: Option<Digest>,
    /// P.
    pub(in crate::transfer) destination: Option<Digest>,
    /// When the source was asked about the tag. `None`: only a list that may lag behind has told.
    pub(in crate::transfer) source_at: Option<Instant>,
    /// When the destination was asked.
    pub(in crate::transfer) destination_at: Instant,
    /// What the destination was asked for.
    pub(in crate::transfer) destination_via: ObservedVia,
    /// The manifest, when asking for S has read it already.
    pub(in crate::transfer) manifest: Option<Manifest>,
}

impl TagFacts {
    /// Facts from answers of both sides about the tag itself. They were asked at `asked` or later.
    pub(in crate::transfer) fn asked_at(
        asked: Instant,
        source: Option<Digest>,
        destination: Option<Digest>,
    ) -> TagFacts {
        TagFacts {
            source,
            index: None,
            destination,
            source_at: Some(asked),
            destination_at: asked,
            destination_via: ObservedVia::Tag,
            manifest: None,
        }
    }

    /// Records the source's answer.
    pub(in crate::transfer) fn answered_by_source(&mut self, answer: &TagAnswer) {
        self.source = answer.digest;
        self.index = answer.index;
        self.source_at = Some(answer.at);
    }

    /// Records the destination's answer about the tag itself.
    pub(in crate::transfer) fn answered(&mut self, destination: Option<Digest>, at: Instant) {
        self.destination = destination;
        self.destination_at = at;
        self.destination_via = ObservedVia::Tag;
    }
}

/// What staging says of a tag.
#[derive(Default)]
struct SourceFacts {
    digest: Option<Digest>,
    /// The index that the digest was chosen from.
    index: Option<Digest>,
    at: Option<Instant>,
    manifest: Option<Manifest>,
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Asks both sides for unknown facts.
    pub(in crate::transfer) async fn survey_tag(
        &self,
        observation: Observation,
    ) -> Result<TagFacts, Fault> {
        let now = Instant::now();
        let source = self.survey_source(observation, now).await?;
        let (destination, destination_at, destination_via) = match observation.destination {
            TagState::Unknown => {
                let tag = &self.job.key.destination.tag;
                (self.destination_digest(tag).await?, now, ObservedVia::Tag)
            }
            known => (
                known.digest(),
                observation.destination_at,
                observation.destination_via,
            ),
        };
        Ok(TagFacts {
            source: source.digest,
            index: source.index,
            destination,
            source_at: source.at,
            destination_at,
            destination_via,
            manifest: source.manifest,
        })
    }

    async fn survey_source(
        &self,
        observation: Observation,
        now: Instant,
    ) -> Result<SourceFacts, Fault> {
        // What a look has found of a platform does not say of which index that is a part.
        let observed = match self.source.platform() {
            Some(_) => TagState::Unknown,
            None => observation.source,
        };
        let mut facts = SourceFacts {
            digest: observed.digest(),
            at: match observed {
                TagState::Unknown => Some(now),
                TagState::At(_) | TagState::Absent => observation.source_at,
            },
            ..SourceFacts::default()
        };
        if let Some(pinned) = self.job.pinned {
            let chosen = self.chosen(pinned).await?;
            facts.digest = Some(chosen);
            facts.index = Some(pinned).filter(|pinned| *pinned != chosen);
            return Ok(facts);
        }
        if observed != TagState::Unknown {
            return Ok(facts);
        }
        let tag = &self.job.key.tag;
        let is_absent_there = observation.destination == TagState::Absent;
        // A tag that production lacks has its manifest read anyway: one request instead of two.
        if self.source.platform().is_none() && is_absent_there && !self.job.dry_run {
            facts.manifest = self.tagged_manifest(tag).await?;
            facts.digest = facts.manifest.as_ref().map(|manifest| manifest.digest);
            let newest = &self.engine.newest;
            newest.note(&self.source, tag, facts.digest, Instant::now());
            return Ok(facts);
        }
        let answer = self.source_answer(tag).await?;
        facts.digest = answer.digest;
        facts.index = answer.index;
        Ok(facts)
    }

    /// Decides by the facts, the ledger and the order.
    pub(in crate::transfer) async fn decide(&self, facts: &TagFacts) -> Result<Decision, Fault> {
        let job = self.job;
        let rules = self.rules_in_force()?;
        *self.rules.lock().expect("nothing panics while it notes") = rules;
        let (known, found) = self.known(&job.key.destination, facts.destination).await?;
        if found.is_some() {
            *self.found.lock().expect("nothing panics while it notes") = found;
        }
        let is_answer = facts.destination_via == ObservedVia::Tag && !job.explicit;
        if facts.destination.is_none() && is_answer && known.digest.is_some() {
            self.confirm_absent(&job.key.destination.tag).await?;
        }
        self.is_surely_absent(rules, facts, &known)?;
        let expect = self.expected(facts);
        let facts = Facts::of(facts.source, facts.destination, &known);
        let refused = facts
            .source
            .is_some_and(|source| job.refused.contains(&source));
        let accepted = match job.replace {
            Some(_) => None,
            None => self.accept(&facts).await?,
        };
        let order = Order {
            explicit: job.explicit,
            expect,
            replace: job
                .replace
                .or(facts.destination.filter(|_| accepted.is_some())),
            refused,
        };
        *self.accepted.lock().expect("nothing panics while it notes") = accepted;
        let decision = plan::decide(rules, &facts, &order);
        if decision == Decision::Promote && facts.ledger_agrees {
            self.note_open_intents(&known);
        }
        Ok(decision)
    }

    /// The digest that staging is expected to name: that of the index of a chosen manifest is as
    /// good as its own.
    fn expected(&self, facts: &TagFacts) -> Option<Digest> {
        let expected = self.job.expect?;
        let source = facts.source.filter(|_| facts.index == Some(expected));
        source.or(Some(expected))
    }

    /// Whether a fixed tag that production does not have may get another digest than the ledger
    /// knows of it. Right after a write, a replica may not have the tag yet.
    fn is_surely_absent(
        &self,
        rules: TagRules,
        facts: &TagFacts,
        known: &TagRecord,
    ) -> Result<(), Fault> {
        let job = self.job;
        let is_free = rules.moving || job.rollback.is_some() || facts.destination.is_some();
        let Some(digest) = known.digest.filter(|_| !is_free) else {
            return Ok(());
        };
        let is_meant = job.replace == Some(digest);
        let is_other = facts.source.is_some_and(|source| source != digest);
        let left = known
            .lags_for(clock::now())
            .filter(|_| !is_meant && is_other);
        let Some(left) = left else {
            return Ok(());
        };
        let text = format!(
            "{} is answered as missing, but the ledger has just recorded {digest} under it, and an answer may be older \
             than that: this fixed tag is not named anew before it is asked about again, in {} s",
            self.destination_reference(),
            left.as_secs()
        );
        let after = Some(left);
        Err(Fault::new(Class::Retryable { after }, text))
    }

    /// The ledger's record of a production tag. A write that succeeded although its answer was lost
    /// is recorded first: a later intent must not hide it.
    pub(in crate::transfer) async fn known(
        &self,
        place: &TagId,
        production: Option<Digest>,
    ) -> Result<(TagRecord, Option<Found>), Fault> {
        let ledger = &self.engine.ledger;
        let known = ledger.written(place).await?;
        let Some(digest) =
            production.filter(|production| known.is_found(production) && !self.job.dry_run)
        else {
            return Ok((known, None));
        };
        ledger.found(place, &digest).await?;
        let found = Found {
            digest,
            previous: known.digest,
        };
        Ok((ledger.written(place).await?, Some(found)))
    }

    /// Records in the ledger that both sides name `digest`, if that is new. A registry's claim
    /// about a digest proves nothing, so the manifest of a moving tag is read and hashed before. An
    /// explicit act neither uses nor makes agreements.
    pub(in crate::transfer) async fn agree(
        &self,
        place: &TagId,
        tag: &Tag,
        digest: Digest,
        moving: bool,
    ) -> Result<(), Fault> {
        if self.job.explicit {
            return Ok(());
        }
        let known = self.engine.ledger.written(place).await?;
        match known.on_equality(&digest) {
            EqualityUpdate::None => Ok(()),
            EqualityUpdate::Written => self.engine.ledger.found(place, &digest).await,
            EqualityUpdate::Agreed if moving && !self.proves(place, tag, digest).await? => Ok(()),
            EqualityUpdate::Agreed => {
                let agreement = Agreement {
                    tag: place.tag.clone(),
                    digest,
                    known,
                };
                self.engine
                    .ledger
                    .agree(&place.origin, &place.repository, vec![agreement])
                    .await
            }
        }
    }

    /// Whether the source proves by the bytes that its tag names `digest`.
    pub(super) async fn proves(
        &self,
        place: &TagId,
        tag: &Tag,
        digest: Digest,
    ) -> Result<bool, Fault> {
        if self.engine.is_unproven(place, &digest) {
            return Ok(false);
        }
        let read = self
            .engine
            .read_tag(&self.source, tag, self.manifests_priority(), self.stop)
            .await;
        let proven = match read {
            Ok(read) => read == Some(digest),
            Err(fault) if fault.class() == Class::Corrupt => {
                self.engine.metrics.mismatched(self.source.registry());
                false
            }
            Err(fault) => return Err(fault),
        };
        if !proven {
            self.engine.note_unproven(place, &digest);
        }
        Ok(proven)
    }

    /// The manifest of a tag at the source, as it was pushed.
    pub(in crate::transfer) async fn tagged_manifest(
        &self,
        tag: &Tag,
    ) -> Result<Option<Manifest>, Fault> {
        let Some(manifest) = self.source_manifest(tag.clone().into()).await? else {
            return Ok(None);
        };
        let pushed = self.ask_source(RequestClass::Manifests, |source| {
            let tag = tag.clone();
            let read = manifest.digest;
            async move { source.pushed_digest(&tag, &read).await }
        });
        match pushed.await? {
            Some(digest) if digest == manifest.digest => Ok(Some(manifest)),
            Some(digest) => self.source_manifest(digest.into()).await,
            None => Ok(None),
        }
    }

    /// What is promoted of a pinned digest. A rollback goes to that itself.
    async fn chosen(&self, pinned: Digest) -> Result<Digest, Fault> {
        if self.job.rollback.is_some() || self.source.platform().is_none() {
            return Ok(pinned);
        }
        let chosen = self
            .ask_source(RequestClass::Manifests, |source| async move {
                source.promoted_of(&pinned).await
            })
            .await?;
        // Where it is not there, the reading of the manifest fails.
        Ok(chosen.unwrap_or(pinned))
    }

    /// The source digest of a tag.
    pub(in crate::transfer) async fn source_digest(
        &self,
        tag: &Tag,
    ) -> Result<Option<Digest>, Fault> {
        Ok(self.source_answer(tag).await?.digest)
    }

    async fn source_answer(&self, tag: &Tag) -> Result<TagAnswer, Fault> {
        let answer = self
            .engine
            .ask_tag(
                &self.source,
                tag,
                self.manifests_priority(),
                Attempts::Retried,
                self.stop,
            )
            .await;
        if answer
            .as_ref()
            .is_err_and(|fault| fault.class() == Class::Corrupt)
        {
            self.engine.metrics.mismatched(self.source.registry());
        }
        answer
    }

    /// The destination digest of a tag.
    pub(in crate::transfer) async fn destination_digest(
        &self,
        tag: &Tag,
    ) -> Result<Option<Digest>, Fault> {
        self.engine
            .resolve_tag(
                &self.destination,
                tag,
                self.manifests_priority(),
                Attempts::Retried,
                self.stop,
            )
            .await
    }

    /// Says that an earlier write has no known outcome although production names what it named
    /// before. The write did not arrive, or it arrived and was taken back by hand: both give the
    /// same facts, and the tag moves again.
    fn note_open_intents(&self, known: &TagRecord) {
        let Some(intended) = known.intended.last() else {
            return;
        };
        self.note_reason(format!(
            "an earlier request to move the tag to {intended} got no answer, and production names what it named before: the \
             tag moves again; if a person had moved it back, see \"lost answers\" in the operations guide"
        ));
    }
}
