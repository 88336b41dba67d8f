//! Backup: before a moving tag moves, another tag of the repository gets what it named.
//!
//! | production's backup tag names | then |
//! |---|---|
//! | nothing, or what blobferry wrote there | it gets the image that the moving tag names |
//! | that image already | nothing is written |
//! | something else | by `drift` and `existing` of the route: it stays and the moving tag stays, or it is written over |
//!
//! The moving tag moves after that alone. A denied image gets no backup, and does not keep its tag
//! from moving away from it. Rollbacks, and the way back of a set, make none.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::name::{NameOrigin, Named, TagMove};
use super::plan::{self, Decision, Facts, Order};
use super::survey::{Image, TagFacts};
use super::{Completion, Promotion};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::job::{Outcome, TagId, TagRules};
use crate::ledger::{Agreement, EqualityUpdate};
use crate::oci::{Digest, Manifest, Tag};

/// Rounds of a backup: another client may move its tag meanwhile.
const ROUNDS: usize = 5;

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Gives what production names to the backup tag, if the route has one. Returns why the moving
    /// tag may not move.
    pub(super) fn back_up(
        &self,
        production: Option<Digest>,
    ) -> BoxFuture<'_, Result<Option<Named>, Fault>> {
        // A future of this type, since naming the backup is a naming within a naming.
        async move {
            let Some((tag, production)) = self.wanted_backup(production)? else {
                return Ok(None);
            };
            let made = self.back_up_as(&tag, production).await;
            made.map_err(|fault| about(&tag, fault))
        }
        .boxed()
    }

    /// What a dry run finds: why the moving tag would stay for want of its backup.
    pub(super) async fn planned_backup(
        &self,
        facts: &TagFacts,
    ) -> Result<Option<Completion>, Fault> {
        let Some((tag, production)) = self.wanted_backup(facts.destination)? else {
            return Ok(None);
        };
        let planned = self.planned_backup_as(&tag, production, facts).await;
        planned.map_err(|fault| about(&tag, fault))
    }

    async fn planned_backup_as(
        &self,
        tag: &Tag,
        production: Digest,
        facts: &TagFacts,
    ) -> Result<Option<Completion>, Fault> {
        if self.is_denied(production).await? {
            return Ok(None);
        }
        let place = self.place_beside(tag);
        let named = self.destination_digest(tag).await?;
        let decision = self.decide_backup(&place, production, named).await?;
        if decision != Decision::Promote {
            let reason = stays(decision);
            return Ok(reason.map(|reason| Completion::without_backup(reason, facts)));
        }
        if let Some(block) = self.block_at(&place, production, None) {
            return Ok(Some(Completion::blocked(block, facts)));
        }
        let is_kept = self.engine.immutable_backups.keeps(&place, named);
        Ok(is_kept.then(|| Completion::without_backup(immutable(tag), facts)))
    }

    /// The backup tag, and the digest that it gets before the moving tag moves.
    fn wanted_backup(&self, production: Option<Digest>) -> Result<Option<(Tag, Digest)>, Fault> {
        let is_wanted = self.planned_rules().moving && self.job.rollback.is_none();
        let backup = self.backup_in_force()?.filter(|_| is_wanted);
        Ok(backup.zip(production))
    }

    async fn back_up_as(&self, tag: &Tag, production: Digest) -> Result<Option<Named>, Fault> {
        if self.is_denied(production).await? {
            self.note_reason(format!("{production} is denied: it gets no backup"));
            return Ok(None);
        }
        let _alone = self.claim_beside(tag, &production).await?;
        let place = self.place_beside(tag);
        let asked = Instant::now();
        let named = self.destination_digest(tag).await?;
        let mut facts = TagFacts::asked_at(asked, None, named);
        for _ in 0..ROUNDS {
            let deciding = self.decide_backup(&place, production, facts.destination);
            let decision = deciding.await?;
            if decision != Decision::Promote {
                return Ok(stays(decision).map(Named::NoBackup));
            }
            let image = Image::alone(self.named_in_production(production).await?);
            let contents = self.former_contents(production, Some(&image)).await?;
            let naming = TagMove {
                place: &place,
                origin: NameOrigin::Backup,
                image: &image,
                contents,
                planned: &facts,
            };
            match self.move_tag(naming).await? {
                Named::Moved => {
                    self.engine.immutable_backups.forget(&place);
                    self.note_reason(format!("{tag} names {production} now, as before the move"));
                    return Ok(None);
                }
                Named::Immutable => {
                    if let Some(kept) = facts.destination {
                        self.engine.immutable_backups.note(&place, kept);
                    }
                    return Ok(Some(Named::NoBackup(immutable(tag))));
                }
                // It was denied meanwhile.
                Named::Blocked(block) if block.outcome == Outcome::Refused => {
                    return Ok(None);
                }
                Named::Blocked(block) => return Ok(Some(Named::Blocked(block))),
                Named::Gated | Named::InSet(_) | Named::NoBackup(_) => {
                    return Ok(Some(Named::Gated));
                }
                Named::Again(newer) => facts = *newer,
            }
        }
        let address = self.destination.address();
        Err(Fault::retryable(format!(
            "another client writes this tag of {address} at the same time"
        )))
    }

    async fn is_denied(&self, production: Digest) -> Result<bool, Fault> {
        let contents = self.former_contents(production, None).await?;
        Ok(self.denial(contents.as_ref()).is_some())
    }

    async fn named_in_production(&self, production: Digest) -> Result<Manifest, Fault> {
        let manifest = self.destination_manifest(production).await?;
        manifest.ok_or_else(|| {
            let reference = self.destination_reference();
            Fault::retryable(format!(
                "{reference} named {production}, and production does not have that manifest now"
            ))
        })
    }

    /// Decides like about a moving tag of the route. What names the image already is ours from then
    /// on.
    async fn decide_backup(
        &self,
        place: &TagId,
        production: Digest,
        named: Option<Digest>,
    ) -> Result<Decision, Fault> {
        let (known, _) = self.known(place, named).await?;
        let facts = Facts::of(Some(production), named, &known);
        let rules = TagRules {
            moving: true,
            ..self.planned_rules()
        };
        let decision = plan::decide(rules, &facts, &Order::default());
        let is_new = known.on_equality(&production) == EqualityUpdate::Agreed;
        if decision == Decision::UpToDate && is_new && !self.job.dry_run {
            let agreement = Agreement {
                tag: place.tag.clone(),
                digest: production,
                known,
            };
            self.engine
                .ledger
                .agree(&place.origin, &place.repository, vec![agreement])
                .await?;
        }
        Ok(with_backup_advice(decision, &place.tag, named))
    }
}

fn about(tag: &Tag, fault: Fault) -> Fault {
    fault.while_doing(format!("the backup tag {tag}"))
}

fn immutable(tag: &Tag) -> String {
    format!("the registry keeps {tag}, the backup, immutable")
}

/// Why a backup tag stays as it is, so that it is none. `None`: it is one already.
fn stays(decision: Decision) -> Option<String> {
    match decision {
        Decision::Promote | Decision::UpToDate | Decision::Gone => None,
        Decision::Drift(reason)
        | Decision::Existing(reason)
        | Decision::Conflict(reason)
        | Decision::Refused(reason) => Some(reason),
    }
}

/// The decision with a reason that fits a backup tag.
fn with_backup_advice(decision: Decision, tag: &Tag, named: Option<Digest>) -> Decision {
    let named = named.map(|named| named.to_string()).unwrap_or_default();
    let advice = format!(
        "so the tag that it is the backup of stays too. Delete {tag} there, or set another `backup`"
    );
    match decision {
        Decision::Drift(_) => Decision::Drift(format!(
            "{tag} was changed in production to {named}; {advice} or `drift: restore`"
        )),
        Decision::Existing(_) => Decision::Existing(format!(
            "{tag} names {named} in production, which is not in the ledger; {advice} or `existing: adopt`"
        )),
        other => other,
    }
}
