//! Fixed tags in conflict, which refuse their digest to moving tags.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::{Compared, DestinationLook};
use crate::endpoint::{Repositories, Tally};
use crate::fault::Fault;
use crate::job::TagState;
use crate::ledger::TagRecord;
use crate::oci::{Digest, Tag};
use crate::transfer::plan::{self, Decision, Facts, Order};

/// Fixed tags that a look took for equal without asking staging.
#[derive(Default)]
pub(in crate::look) struct LeftOut {
    tags: Vec<Tag>,
    /// What staging names under them, once a moving tag is to move.
    asked: OnceCell<BTreeMap<Tag, TagState>>,
}

impl LeftOut {
    pub(in crate::look) fn of(tags: Vec<Tag>) -> LeftOut {
        LeftOut {
            tags,
            asked: OnceCell::new(),
        }
    }
}

impl<B: Repositories> DestinationLook<'_, B> {
    /// Digests that a moving tag must not get. Fixed tags that the look has not asked about, and
    /// that name its digest at staging, are compared here: a request for this tag alone looks at no
    /// fixed tag, and a routine look leaves out those that were equal.
    pub(super) async fn refused_by_siblings(
        &self,
        tag: &Tag,
        compared: &Compared,
        tally: &Arc<Tally>,
    ) -> Result<Arc<HashSet<Digest>>, Fault> {
        let asks = self.look.route.selection.is_moving(tag)
            && compared.source != TagState::Absent
            && self.fixed_siblings().next().is_some();
        if !asks {
            return Ok(self.refused.clone());
        }
        let digest = match compared.source {
            TagState::At(digest) => digest,
            TagState::Unknown | TagState::Absent => match self.source_digest(tag, tally).await? {
                TagState::At(digest) => digest,
                TagState::Unknown | TagState::Absent => return Ok(self.refused.clone()),
            },
        };
        // What stays as it is needs no answers. If the job finds otherwise, the digest is refused
        // until the next look.
        if self.stays(tag, digest, compared).await? {
            let others = self.refused.iter().copied();
            return Ok(Arc::new(others.chain([digest]).collect()));
        }
        let left_out = self
            .left_out
            .asked
            .get_or_try_init(|| self.ask_left_out(tally).boxed())
            .await?;
        let siblings = self.fixed_siblings().map(|sibling| {
            let sibling = sibling.clone();
            async move {
                let listed = self.listing.tags.get(&sibling);
                let source = match listed.and_then(|listed| listed.digest) {
                    Some(listed) => TagState::At(listed),
                    None => match left_out.get(&sibling) {
                        Some(source) => *source,
                        None => beside(self.source_digest(&sibling, tally).await)?,
                    },
                };
                self.is_in_conflict(&sibling, source, digest, tally).await
            }
            .boxed()
        });
        self.refused_with(digest, siblings.collect()).await
    }

    /// The fixed tags that the look has not asked about.
    fn fixed_siblings(&self) -> impl Iterator<Item = &Tag> {
        let selection = &self.look.route.selection;
        let siblings = self.listing.siblings.iter();
        siblings
            .filter(|sibling| !selection.is_moving(sibling))
            .chain(&self.left_out.tags)
    }

    /// Whether a routine look leaves production's moving tag as it is: it is reported as drift or
    /// existing, and no accept is in force.
    async fn stays(&self, tag: &Tag, digest: Digest, compared: &Compared) -> Result<bool, Fault> {
        let TagState::At(there) = compared.destination else {
            return Ok(false);
        };
        if !self.look.is_routine() || compared.by_hint {
            return Ok(false);
        }
        let known = self.known.get(&self.there(tag)).cloned();
        let decision = self.decide(tag, digest, Some(there), &known.unwrap_or_default());
        if !matches!(decision, Decision::Drift(_) | Decision::Existing(_)) {
            return Ok(false);
        }
        let in_force = self.look.topology.engine.ledger.in_force().await?;
        let routes = [self.look.route.name.clone()];
        let place = self.place(tag);
        let is_accepted = in_force.accepts_of(&place).next().is_some()
            || in_force
                .accepts_of_all(&routes, Timestamp::MIN)
                .next()
                .is_some();
        Ok(!is_accepted)
    }

    /// What staging names now under the tags that the look has left out. The next look sees those
    /// that name something else.
    async fn ask_left_out(&self, tally: &Arc<Tally>) -> Result<BTreeMap<Tag, TagState>, Fault> {
        let at_once = self.look.topology.settings.tags;
        let tags = &self.left_out.tags;
        let mut answers = stream::iter(tags.clone())
            .map(|tag| {
                async move {
                    let source = beside(self.source_digest(&tag, tally).await)?;
                    Ok::<_, Fault>((tag, source))
                }
                .boxed()
            })
            .buffer_unordered(at_once);
        let mut asked = BTreeMap::new();
        let mut failure = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok((tag, source)) => drop(asked.insert(tag, source)),
                Err(fault) => {
                    failure = Some(fault);
                    break;
                }
            }
        }
        // What was answered before a failure is not asked again.
        self.remember_left_out(&asked).await;
        match failure {
            Some(fault) => Err(fault),
            None => Ok(asked),
        }
    }

    /// The same by answers of now, after staging moved the tag: what the look has read before says
    /// nothing about its new digest.
    pub(super) async fn refused_now(
        &self,
        tag: &Tag,
        tally: &Arc<Tally>,
    ) -> Result<Arc<HashSet<Digest>>, Fault> {
        let TagState::At(digest) = self.resolve(self.source, tag, tally).await? else {
            return Ok(self.refused.clone());
        };
        let look = self.look;
        let engine = &look.topology.engine;
        let tags = engine.source_tags(self.source, look.request.reading(), look.stop);
        let tags = tags.await?.unwrap_or_default();
        let own = |tag: &&Tag| self.side.is_itself(self.source) && self.side.naming.made(tag);
        let selection = &look.route.selection;
        let chosen = selection.choose(tags.keys().filter(|tag| !own(tag))).chosen;
        let fixed = chosen.into_iter().filter(|tag| !selection.is_moving(tag));
        let conflicts = fixed.map(|sibling| {
            let listed = tags.get(&sibling).and_then(|listed| listed.digest);
            async move {
                let source = match listed {
                    Some(listed) => TagState::At(listed),
                    None => beside(self.resolve(self.source, &sibling, tally).await)?,
                };
                self.is_in_conflict(&sibling, source, digest, tally).await
            }
            .boxed()
        });
        self.refused_with(digest, conflicts.collect()).await
    }

    /// Whether a moving tag stands beside fixed tags of its route.
    pub(super) fn has_fixed_beside(&self, tag: &Tag) -> bool {
        let selection = &self.look.route.selection;
        let mut others = self.listing.chosen.iter().chain(&self.listing.siblings);
        selection.is_moving(tag) && others.any(|other| !selection.is_moving(other))
    }

    /// What is refused, with `digest` if one of the fixed tags is in conflict over it.
    async fn refused_with(
        &self,
        digest: Digest,
        conflicts: Vec<BoxFuture<'_, Result<bool, Fault>>>,
    ) -> Result<Arc<HashSet<Digest>>, Fault> {
        let at_once = self.look.topology.settings.tags;
        let mut conflicts = stream::iter(conflicts).buffer_unordered(at_once);
        while let Some(is_in_conflict) = conflicts.next().await {
            if is_in_conflict? {
                let others = self.refused.iter().copied();
                return Ok(Arc::new(others.chain([digest]).collect()));
            }
        }
        Ok(self.refused.clone())
    }

    /// Whether a fixed tag names `digest` at staging, by `source`, and is in conflict over it.
    async fn is_in_conflict(
        &self,
        tag: &Tag,
        source: TagState,
        digest: Digest,
        tally: &Arc<Tally>,
    ) -> Result<bool, Fault> {
        let Some(called) = self
            .side
            .naming
            .name(tag)
            .filter(|_| source == TagState::At(digest))
        else {
            return Ok(false);
        };
        let destination = self
            .resolve(&self.side.repository, &called, tally)
            .await?
            .digest();
        let known = self
            .look
            .topology
            .engine
            .ledger
            .written(&self.place(tag))
            .await?;
        let decision = self.decide(tag, digest, destination, &known);
        Ok(matches!(decision, Decision::Conflict(_)))
    }

    fn decide(
        &self,
        tag: &Tag,
        source: Digest,
        destination: Option<Digest>,
        known: &TagRecord,
    ) -> Decision {
        let facts = Facts::of(Some(source), destination, known);
        plan::decide(self.look.route.rules_for(tag), &facts, &Order::default())
    }
}

/// What staging names under a tag beside the job's. What a rule of the route refuses there names
/// nothing here.
fn beside(answer: Result<TagState, Fault>) -> Result<TagState, Fault> {
    match answer {
        Err(fault) if fault.is_by_rule() => Ok(TagState::Absent),
        answer => answer,
    }
}
