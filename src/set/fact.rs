//! What is known of the members of a set.

use std::collections::BTreeSet;

use crate::oci::{Digest, Tag};

/// What is known of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// How far it is.
    pub state: State,
    /// For a moving tag: the fixed tags that name its digest in production.
    pub versions: BTreeSet<Tag>,
}

/// How far a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Production does not name it, and no job has come for it.
    Missing,
    /// Its job ended in this way.
    KeptBack(String),
    /// It has passed all but the set.
    Ready {
        /// What it is to name.
        digest: Digest,
        /// What production names.
        previous: Option<Digest>,
        /// Whether that was judged just now.
        is_fresh: bool,
    },
    /// Production names what it is to name.
    Named(Digest),
}
