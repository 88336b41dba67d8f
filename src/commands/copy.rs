//! One reference to another place, without a config file: an explicit act of a person.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::order::{Order, Pair};
use super::reference::{Env, Named};
use super::{Error, Observer};
use crate::config::Config;
use crate::fault::shown;
use crate::job::{Actor, Remarks, Report};
use crate::oci::Digest;
use crate::transfer::Stop;

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Copy {
    /// `host/repository:tag`, `host/repository@digest`, `docker://…`, `http://…`, or
    /// `layout:PATH:tag`.
    pub source: String,
    /// The same, but with a tag or nothing after the repository; without a tag, the source's.
    pub destination: String,
    /// Only this digest may be copied.
    pub expect: Option<Digest>,
    /// The digest that a fixed tag of the destination may lose.
    pub replace: Option<Digest>,
    /// Plan, but touch nothing.
    pub dry_run: bool,
    /// A state folder, for hints and the ledger.
    pub state: Option<PathBuf>,
    /// What the caller says of itself and of the act.
    pub remarks: Remarks,
}

impl Copy {
    fn order(self) -> Result<Order, Error> {
        let from: Named = self.source.parse().map_err(Error::Usage)?;
        let to: Named = self.destination.parse().map_err(Error::Usage)?;
        if let (Some(digest), None) = (to.digest(), to.tag()) {
            return Err(Error::Usage(format!(
                "\"{}\" names no tag, and a copy moves one (write the tag instead of the digest; --expect {digest} copies \
                 only that digest)",
                shown(&self.destination, 300)
            )));
        }
        let Some(tag) = to.tag().or(from.tag()).cloned() else {
            return Err(Error::Usage(format!(
                "\"{}\" names no tag, and neither does the source: add one, as in host/repository:tag",
                shown(&self.destination, 300)
            )));
        };
        let source_tag = from.tag().unwrap_or(&tag).clone();
        let pair = Pair {
            pinned: from.digest(),
            expect: self.expect.or(to.digest()),
            tags: Some((source_tag, tag)),
            from,
            to,
        };
        Ok(Order {
            pairs: vec![pair],
            replace: self.replace,
            dry_run: self.dry_run,
            state: self.state,
            remarks: self.remarks,
        })
    }
}

/// Copies one reference, with what a config knows of its hosts.
///
/// # Errors
/// When a reference or the state folder is unusable; what goes wrong with the copy is in the
/// report.
pub async fn copy(
    request: Copy,
    config: Option<&Config>,
    env: Env<'_>,
    observer: Observer,
    stop: CancellationToken,
) -> Result<Report, Error> {
    request.order()?.run(config, env, observer, stop).await
}

/// Copies one reference as the daemon. `None`: no route of its config leads to the destination.
pub(crate) async fn copy_as_daemon(
    context: &Context,
    request: Copy,
    actor: Actor,
    stop: &Stop,
) -> Result<Option<Report>, Error> {
    request.order()?.run_as_daemon(context, actor, stop).await
}
