//! The commands that work without a daemon: one pass, copy, promote, check, probe. They build the
//! same parts, act once and close them.

mod check;
mod complete;
mod context;
mod copy;
mod decide;
mod directory;
mod guards;
mod hosts;
mod inspect;
mod listed;
mod one_tag;
mod order;
mod probe;
pub mod promote;
mod reach;
mod reference;
pub(crate) mod release;
pub(crate) mod resolve;
mod rollback;
mod sync;
mod undecided;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::check::{Check, check_online};
pub(crate) use self::context::Context;
pub(crate) use self::copy::copy_as_daemon;
pub use self::copy::{Copy, copy};
pub use self::decide::{Decide, DecideError, decide};
pub(crate) use self::directory::leads_to;
pub use self::inspect::{Inspect, InspectError};
pub(crate) use self::one_tag::{OneTag, named_by, routes_write};
pub use self::probe::probe;
pub(crate) use self::promote::promote_as_daemon;
pub use self::promote::{Promote, promote};
pub use self::reach::check_receivers;
pub(crate) use self::rollback::Act;
pub use self::rollback::{Rollback, roll_back};
pub use self::sync::sync;
pub use self::undecided::Undecided;
use crate::job::{Actor, Progress, Remarks, Settled};
use crate::parts;
use crate::state;
use crate::transfer::Stop;
use crate::user;

/// Why a command cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments are unusable.
    #[error("{0}")]
    Usage(String),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The parts cannot be built.
    #[error(transparent)]
    Parts(#[from] parts::Error),
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Parts(error) => error.exit_code(),
            Error::Usage(_) | Error::State(_) => 2,
        }
    }
}

/// The observer of a command that runs in this process.
#[derive(Clone, Debug)]
pub struct Observer {
    /// How far things are.
    pub progress: Arc<Progress>,
    /// Told of every settled job, as it happens.
    pub settled: mpsc::UnboundedSender<Settled>,
}

/// A stop that drains when `stop` is cancelled. A second signal ends the process.
fn stop_of(stop: CancellationToken) -> Stop {
    Stop {
        drain: stop,
        ..Stop::default()
    }
}

/// The user of this process, with what the command line says.
fn caller(remarks: Remarks) -> Actor {
    let uid = rustix::process::getuid().as_raw();
    let process = rustix::process::getpid().as_raw_pid();
    Actor::named(user::principal(uid, user::login_uid(process))).saying(remarks)
}
