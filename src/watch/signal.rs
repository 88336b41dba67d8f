//! Signals: SIGUSR1 asks for a look at everything.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Handle, Scope, Wish};
use crate::job::{Actor, Cause};

/// Asks for a look at everything whenever SIGUSR1 comes, until `stop`.
///
/// # Errors
/// When the signal cannot be listened to.
pub fn looks(handle: Handle, stop: CancellationToken) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut signals = signal(SignalKind::user_defined1())?;
    Ok(async move {
        while let Some(Some(())) = stop.run_until_cancelled(signals.recv()).await {
            tracing::debug!("SIGUSR1: looking at everything");
            if let Err(error) = handle.ask(Scope::default(), Cause::Signal, Actor("signal".into()), Wish::default()).await {
                tracing::warn!(%error, "SIGUSR1 was not taken");
            }
        }
    })
}
