//! Companion tags: tags that travel with their subject.

use tokio::time::Instant;

use crate::decision::Block;
use crate::endpoint::{Destination, Source};
use crate::fault::{Class, Fault};
use crate::job::{Companions, Outcome, ReferrerOutcome, TagId, TagRules};
use crate::oci::{Digest, Tag};
use crate::transfer::Promotion;
use crate::transfer::claims::{Claim, Subject};
use crate::transfer::companions::CompanionOutcome;
use crate::transfer::name::{NameOrigin, Named, TagMove};
use crate::transfer::plan::{self, Decision, Facts, Order};
use crate::transfer::retry::stoppable;
use crate::transfer::survey::TagFacts;

/// Rounds of a companion: a side may move it while it is carried.
pub(super) const ROUNDS: usize = 5;

/// The result of one round of a companion.
enum CompanionRound {
    /// The companion's digest at the source. `None`: it is not there.
    Settled(Option<Digest>),
    /// A side moved it meanwhile.
    Again(Box<TagFacts>),
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Copies a companion tag. Returns its digest at the source. It moves like a moving tag; what
    /// production has of its own stays, also under `copy` and `promote`: the act names the image's
    /// tag, not this one.
    pub(super) async fn copy_companion(&self, tag: &Tag) -> Result<Option<Digest>, Fault> {
        // Several tags may name the subject: without a claim their jobs write the same tag.
        let _alone = match tag.subject() {
            Some(subject) => Some(self.claim_beside(tag, &subject).await?),
            None => None,
        };
        let mut facts = self.ask_companion(tag).await?;
        for _ in 0..ROUNDS {
            let Some(digest) = facts.source else {
                return Ok(None);
            };
            match self.companion_round(tag, digest, facts).await? {
                CompanionRound::Settled(referrer) => return Ok(referrer),
                CompanionRound::Again(newer) => facts = *newer,
            }
        }
        Err(Fault::retryable(format!(
            "{tag} of {} moved {ROUNDS} times while it was carried",
            self.source.address()
        )))
    }

    /// What a companion tag names on both sides.
    async fn ask_companion(&self, tag: &Tag) -> Result<TagFacts, Fault> {
        let asked = Instant::now();
        let (source, destination) = match self.job.companions {
            Companions::Listed(_) => {
                futures::try_join!(self.source_digest(tag), self.destination_digest(tag))?
            }
            // In most cases there is none.
            Companions::Unlisted => match self.source_digest(tag).await? {
                Some(digest) => (Some(digest), self.destination_digest(tag).await?),
                None => (None, None),
            },
        };
        if source.is_none() {
            self.is_missing_tag(tag);
        }
        Ok(TagFacts::asked_at(asked, source, destination))
    }

    async fn companion_round(
        &self,
        tag: &Tag,
        digest: Digest,
        facts: TagFacts,
    ) -> Result<CompanionRound, Fault> {
        let place = self.place_beside(tag);
        match self
            .decide_companion(&place, digest, facts.destination)
            .await?
        {
            Decision::Promote => {}
            Decision::UpToDate => {
                self.agree(&place, tag, digest, true).await?;
                self.count_referrer(&digest, ReferrerOutcome::Present);
                self.companion_is_equal(tag, digest);
                return Ok(CompanionRound::Settled(Some(digest)));
            }
            decision => {
                self.companion_stays(tag, &facts, decision);
                return Ok(CompanionRound::Settled(Some(digest)));
            }
        }
        let Some(manifest) = self.source_manifest(digest.into()).await? else {
            self.is_missing_tag(tag);
            return Ok(CompanionRound::Settled(None));
        };
        let image = self.walk(manifest).await?;
        let contents = self.contents(image.top.digest, None, Some(&image)).await?;
        if let Some(block) = self.denial(contents.as_ref()) {
            self.companion_is_blocked(tag, &facts, block);
            return Ok(CompanionRound::Settled(Some(digest)));
        }
        let naming = TagMove {
            place: &place,
            origin: NameOrigin::Companion(tag),
            image: &image,
            contents,
            planned: &facts,
        };
        match self.promote_companion(naming).await {
            Ok(Named::Moved) => {
                self.count_referrer(&digest, ReferrerOutcome::Copied);
                self.companion_is_equal(tag, digest);
            }
            Ok(Named::Immutable) => {
                let reason = "the registry keeps the tag immutable; exempt sha256-* there, so that signatures can be added";
                self.companion_stays(tag, &facts, Decision::Conflict(reason.into()));
            }
            Ok(Named::Blocked(block)) => self.companion_is_blocked(tag, &facts, block),
            // The image's own judgement says why.
            Ok(Named::Gated | Named::InSet(_) | Named::NoBackup(_)) => {}
            Ok(Named::Again(newer)) => return Ok(CompanionRound::Again(newer)),
            Err(fault) if fault.class() == Class::Rejected => {
                self.referrer_is_refused(&image.top, fault)?;
            }
            Err(fault) => return Err(fault),
        }
        Ok(CompanionRound::Settled(Some(digest)))
    }

    async fn promote_companion(&self, naming: TagMove<'_>) -> Result<Named, Fault> {
        self.carry_content(naming.image).await?;
        self.move_tag(naming).await
    }

    /// Reports a tag that staging lists and does not have.
    pub(super) fn is_missing_tag(&self, tag: &Tag) {
        if matches!(self.job.companions, Companions::Listed(_)) {
            self.is_missing(&format!("the tag {tag}"));
        }
    }

    /// One job at a time looks at a tag beside `subject` and moves it.
    pub(in crate::transfer) async fn claim_beside(
        &self,
        tag: &Tag,
        subject: &Digest,
    ) -> Result<Claim, Fault> {
        let claimed = Subject::Tag(self.place_beside(tag).repository_id(), tag.clone());
        let claimant = self.claimant(subject);
        let claim = self.engine.claims.take(claimed, &claimant);
        stoppable(&self.stop.drain, claim).await
    }

    pub(super) fn companion_is_equal(&self, tag: &Tag, digest: Digest) {
        self.note_companion(CompanionOutcome {
            tag: tag.clone(),
            result: Outcome::UpToDate,
            digest: Some(digest),
            there: Some(digest),
            reason: None,
        });
    }

    pub(super) fn companion_stays(&self, tag: &Tag, facts: &TagFacts, decision: Decision) {
        let (result, reason) = match decision {
            Decision::Conflict(reason) => (Outcome::Conflict, reason),
            Decision::Drift(reason) => (Outcome::Drift, reason),
            Decision::Existing(reason) => (Outcome::Existing, reason),
            Decision::Refused(reason) => (Outcome::Refused, reason),
            Decision::UpToDate | Decision::Promote | Decision::Gone => return,
        };
        self.note_companion(CompanionOutcome {
            tag: tag.clone(),
            result,
            digest: facts.source,
            there: facts.destination,
            reason: Some(reason),
        });
    }

    fn companion_is_blocked(&self, tag: &Tag, facts: &TagFacts, block: Block) {
        self.note_companion(CompanionOutcome {
            tag: tag.clone(),
            result: block.outcome,
            digest: facts.source,
            there: facts.destination,
            reason: Some(block.reasons.join("; ")),
        });
    }

    pub(in crate::transfer) fn place_beside(&self, tag: &Tag) -> TagId {
        let origin = self.destination.origin().clone();
        let repository = self.destination.repository().clone();
        TagId {
            origin,
            repository,
            tag: tag.clone(),
        }
    }

    pub(super) async fn decide_companion(
        &self,
        place: &TagId,
        source: Digest,
        destination: Option<Digest>,
    ) -> Result<Decision, Fault> {
        let (known, _) = self.known(place, destination).await?;
        let facts = Facts::of(Some(source), destination, &known);
        let rules = TagRules {
            moving: true,
            ..TagRules::default()
        };
        let decision = plan::decide(rules, &facts, &Order::default());
        Ok(with_companion_advice(decision, &facts))
    }
}

/// The decision with a reason that fits a companion: the settings of a route do not concern it.
fn with_companion_advice(decision: Decision, facts: &Facts) -> Decision {
    let (Some(source), Some(production)) = (facts.source, facts.destination) else {
        return decision;
    };
    let advice = format!(
        "it stays. To put {source} there, copy this tag by its name with --replace {production}"
    );
    match decision {
        Decision::Drift(_) => Decision::Drift(format!(
            "the production tag was changed to {production}; {advice}"
        )),
        Decision::Existing(_) => Decision::Existing(format!(
            "production names {production}, which is not in the ledger; {advice}"
        )),
        other => other,
    }
}
