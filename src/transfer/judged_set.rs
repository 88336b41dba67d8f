//! The state of a set: its members by ledger and memory, and what that comes to.

use std::collections::BTreeSet;

use super::Engine;
use super::sets::GroupId;
use crate::fault::Fault;
use crate::oci::{Digest, Tag};
use crate::set::{Fact, MemberTag, Naming, SetTag, State, Verdict, judge};

/// The state of a set by ledger and memory.
pub(super) struct JudgedSet {
    pub(super) verdict: Verdict,
    pub(super) facts: Vec<Fact>,
    /// What the members are known to name.
    pub(super) named: Vec<Option<Digest>>,
    pub(super) begun: Option<Naming>,
}

impl Engine {
    /// Judges a tag of a set.
    pub(super) async fn judge_set(&self, id: &GroupId, set: &SetTag) -> Result<JudgedSet, Fault> {
        // Memory before the ledger: memory forgets a job after the ledger has recorded it.
        let seen = self.sets.states(id, set);
        let places = set.members.iter().map(|one| one.key.destination.clone());
        let named = self.ledger.named_at(places.collect()).await?;
        let mut facts = Vec::new();
        for ((member, seen), named) in set.members.iter().zip(seen).zip(&named) {
            let state = state(seen, *named);
            let versions = match set.is_moving {
                true => self.versions(id, member, &state).await?,
                false => BTreeSet::new(),
            };
            facts.push(Fact { state, versions });
        }
        // Of what was announced and did not begin nothing is left.
        let begun = self.ledger.set_naming(&set.name).await?;
        let begun = begun.filter(|begun| !begun.made(set, &named).is_empty());
        Ok(JudgedSet {
            verdict: judge(set, &facts, begun.as_ref()),
            facts,
            named,
            begun,
        })
    }

    /// The fixed tags of production that name what a member names or is to name. For a dry run those
    /// count, too, that it has planned.
    async fn versions(
        &self,
        id: &GroupId,
        member: &MemberTag,
        state: &State,
    ) -> Result<BTreeSet<Tag>, Fault> {
        let digest = match state {
            State::Ready { digest, .. } | State::Named(digest) => *digest,
            State::Missing | State::KeptBack(_) => return Ok(BTreeSet::new()),
        };
        let place = &member.key.destination;
        let tags = self
            .ledger
            .tags_at(&place.origin, &place.repository, digest);
        let mut tags = tags.await?;
        tags.extend(self.sets.planned(id, place, &digest));
        Ok(tags
            .iter()
            .filter_map(|tag| member.member.version(tag))
            .collect())
    }
}

/// The state of a member by what memory has seen and what the ledger knows production to name.
fn state(seen: Option<State>, named: Option<Digest>) -> State {
    match (seen, named) {
        (Some(State::Ready { digest, .. }), Some(named)) if digest == named => State::Named(named),
        (Some(seen), _) => seen,
        (None, Some(named)) => State::Named(named),
        (None, None) => State::Missing,
    }
}
