//! Why a decision about a tag was not carried out.

use super::resolve::Unresolved;
use crate::fault::Fault;

/// Why a decision about a tag was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Undecided {
    /// The target is not one tag of a destination.
    #[error("{0}")]
    Target(String),
    /// What it names is not there.
    #[error("{0}")]
    NotThere(String),
    /// A side names another digest, or a denial stops it.
    #[error("{0}")]
    Conflict(String),
    /// It did not work.
    #[error("{0}")]
    Failed(String),
    /// A registry or the ledger could not be asked.
    #[error("{}", .0.chain())]
    Fault(Fault),
}

impl From<Fault> for Undecided {
    fn from(fault: Fault) -> Undecided {
        Undecided::Fault(fault)
    }
}

impl From<Unresolved> for Undecided {
    fn from(unresolved: Unresolved) -> Undecided {
        let text = unresolved.to_string();
        match unresolved {
            Unresolved::Ambiguous { .. } => Undecided::Target(text),
            Unresolved::NotThere { .. } => Undecided::NotThere(text),
        }
    }
}

impl Undecided {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Undecided::Target(_) => 2,
            Undecided::NotThere(_) => 5,
            Undecided::Conflict(_) => 4,
            Undecided::Failed(_) | Undecided::Fault(_) => 1,
        }
    }
}
