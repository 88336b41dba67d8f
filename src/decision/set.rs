//! What decisions know of sets: their tags, and what became of a set that is torn.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::endpoint::Origin;
use crate::job::TagId;
use crate::oci::{Digest, RepositoryName, Tag};

/// A tag of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetName {
    /// The set.
    pub set: Arc<str>,
    /// The tag's name at staging.
    pub tag: Tag,
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.set, self.tag)
    }
}

/// A set of which only a part was named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Torn {
    /// The digests that staging names for the members: another one ends the hold.
    pub staging: Vec<Digest>,
    /// The tags that were named.
    pub moved: Vec<SetMove>,
    /// Whether these go back to what they named before.
    pub goes_back: bool,
}

impl Torn {
    /// What a tag goes back to, while production names what the set moved it to.
    pub fn way_back(&self, place: &TagId, production: &Digest) -> Option<Digest> {
        let mut moved = self.taken_back();
        let own = moved.find(|one| one.is_of(place) && one.digest == *production)?;
        own.previous
    }

    /// The moves that are taken back.
    pub fn taken_back(&self) -> impl Iterator<Item = &SetMove> {
        self.moved.iter().filter(|_| self.goes_back)
    }
}

/// A tag of production that goes from one digest to another with its set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetMove {
    /// The origin of the registry.
    pub origin: String,
    /// The repository.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
    /// What it is to name.
    pub digest: Digest,
    /// What it named before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
}

impl SetMove {
    /// A move of a tag.
    pub fn new(place: &TagId, digest: Digest, previous: Option<Digest>) -> SetMove {
        SetMove {
            origin: place.origin.as_str().into(),
            repository: place.repository.clone(),
            tag: place.tag.clone(),
            digest,
            previous,
        }
    }

    /// The tag.
    pub fn place(&self) -> TagId {
        TagId {
            origin: Origin::new(&self.origin),
            repository: self.repository.clone(),
            tag: self.tag.clone(),
        }
    }

    /// Whether it is of this tag.
    pub fn is_of(&self, place: &TagId) -> bool {
        let repository = (self.origin.as_str(), &self.repository);
        repository == (place.origin.as_str(), &place.repository) && self.tag == place.tag
    }
}
