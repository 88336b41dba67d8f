//! The digest that a rollback goes back to.

use super::{Act, Way};
use crate::clock;
use crate::commands::complete::Holders;
use crate::commands::one_tag::OneTag;
use crate::commands::undecided::Undecided;
use crate::decision::{InForce, Numbered};
use crate::fault::Fault;
use crate::oci::Digest;

/// Digests that a refusal lists at most.
const MOST_LISTED: usize = 5;
/// Digests that are looked at for that list.
const MOST_ASKED: usize = 10;

/// Whether an earlier rollback has moved its tag as this one is to, although nothing told so: its
/// process was killed, or the answer was lost. A repetition goes no further back.
pub(super) fn is_done_by(earlier: &Numbered, to: Option<Digest>, production: Digest) -> bool {
    earlier.decision.digest == Some(production) && to.is_none_or(|to| to == production)
}

impl Act<'_> {
    /// The newest rollback of a tag, where the ledger does not show that it has moved the tag.
    pub(super) async fn unfinished<'f>(
        &self,
        tag: &OneTag,
        in_force: &'f InForce,
    ) -> Result<Option<&'f Numbered>, Fault> {
        let Some(newest) = in_force.rollbacks_of(&tag.place).pop() else {
            return Ok(None);
        };
        let Some(goal) = newest.decision.digest else {
            return Ok(None);
        };
        let moved = self.ledger.has_moved_since(newest.id, &tag.place, &goal);
        Ok((!moved.await?).then_some(newest))
    }

    /// The digest to go back to.
    pub(super) async fn goal(
        &self,
        to: Option<Digest>,
        tag: &OneTag,
        production: Digest,
        in_force: &InForce,
    ) -> Result<Digest, Undecided> {
        let earlier = self.ledger.digests_of(&tag.place, u64::MAX).await?;
        let shown = tag.shown();
        let Some(to) = to else {
            let now = clock::now();
            let mut others = earlier.into_iter().filter(|digest| *digest != production);
            let goal = others.find(|digest| in_force.kept_out(&tag.place, digest, now).is_none());
            return goal.ok_or_else(|| {
                Undecided::NotThere(format!(
                    "the ledger shows nothing else that {shown} named before; say `to`"
                ))
            });
        };
        if to == production {
            return Err(Undecided::Conflict(format!("{shown} names {to} already")));
        }
        if earlier.contains(&to) || self.has_named_fixed(tag, &to).await? {
            return Ok(to);
        }
        Err(Undecided::NotThere(format!(
            "the ledger shows {to} neither under this tag nor under a fixed tag of its repository"
        )))
    }

    /// Whether a fixed tag of the repository has named a digest.
    async fn has_named_fixed(&self, tag: &OneTag, digest: &Digest) -> Result<bool, Fault> {
        let named_by = self.ledger.named_by(&tag.place, digest).await?;
        Ok(named_by.iter().any(|key| {
            let route = self.topology.route(&key.route);
            route.is_some_and(|route| !route.selection.is_moving(&key.tag))
        }))
    }

    /// Digests that the tag named before, and to which it could go.
    pub(super) async fn complete_candidates(&self, way: &Way) -> Result<Vec<String>, Fault> {
        let tag = &way.tag;
        let from = tag.from.iter().map(|from| from.repository.whole());
        let in_force = &self.ledger.in_force().await?;
        let holders = Holders {
            engine: &self.topology.engine,
            repositories: [&tag.there].into_iter().chain(from).collect(),
            stop: self.stop,
            in_force,
        };
        let named = self.ledger.digests_of(&tag.place, u64::MAX).await?;
        let others = named
            .into_iter()
            .filter(|digest| *digest != way.to && *digest != way.production);
        let mut complete = Vec::new();
        for digest in others.take(MOST_ASKED) {
            let indexes = self.ledger.indexes_of(&tag.place, &digest).await?;
            let is_denied = in_force.denied(&indexes, clock::now()).is_some();
            if !is_denied && complete.len() < MOST_LISTED && holders.have(digest).await {
                complete.push(digest.to_string());
            }
        }
        Ok(complete)
    }
}
