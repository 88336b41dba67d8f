//! A naming of a set: announced before its first tag moves, so that a restart finds it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::SetTag;
use super::fact::{Fact, State};
use crate::decision::SetMove;
use crate::job::TagId;
use crate::oci::Digest;

/// What the members of a set are to name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    /// When it was announced.
    pub began: Timestamp,
    /// The members' tags, with what they named before.
    pub moves: Vec<SetMove>,
}

impl Naming {
    /// The naming of a set that is complete.
    pub fn of(set: &SetTag, facts: &[Fact], began: Timestamp) -> Naming {
        let moves = set.members.iter().zip(facts).filter_map(|(member, fact)| {
            let (digest, previous) = match &fact.state {
                State::Ready {
                    digest, previous, ..
                } => (*digest, *previous),
                State::Named(digest) => (*digest, Some(*digest)),
                State::Missing | State::KeptBack(_) => return None,
            };
            Some(SetMove::new(&member.key.destination, digest, previous))
        });
        Naming {
            began,
            moves: moves.collect(),
        }
    }

    /// What a tag is to name.
    pub fn goal(&self, place: &TagId) -> Option<Digest> {
        let own = self.moves.iter().find(|one| one.is_of(place));
        own.map(|own| own.digest)
    }

    /// The moves that have been made; `named` is what the members are known to name.
    pub fn made(&self, set: &SetTag, named: &[Option<Digest>]) -> Vec<SetMove> {
        let is_made =
            |one: &&SetMove| one.previous != Some(one.digest) && is_there(one, set, named);
        self.moves.iter().filter(is_made).cloned().collect()
    }

    /// Whether all members name what was announced.
    pub fn is_over(&self, set: &SetTag, named: &[Option<Digest>]) -> bool {
        self.moves.iter().all(|one| is_there(one, set, named))
    }
}

/// Whether the tag of a move names what it was to name.
fn is_there(one: &SetMove, set: &SetTag, named: &[Option<Digest>]) -> bool {
    let mut members = set.members.iter().zip(named);
    members.any(|(member, named)| one.is_of(&member.key.destination) && *named == Some(one.digest))
}
