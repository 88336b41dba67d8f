//! `--actor` and `--reason`: what a caller says of itself and of its act, for reports and the
//! ledger.

use clap::Args;

use crate::job::{Remark, Remarks};

#[derive(Clone, Debug, Default, Args)]
pub(super) struct Said {
    /// Who asks, stored as said beside the user that asks
    #[arg(long, value_name = "NAME")]
    actor: Option<Remark>,
    /// Why, stored as said
    #[arg(long, value_name = "TEXT")]
    reason: Option<Remark>,
}

impl Said {
    pub(super) fn remarks(&self) -> Remarks {
        Remarks {
            reason: self.reason.clone(),
            claimed_actor: self.actor.clone(),
        }
    }
}
