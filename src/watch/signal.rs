//! Signals: SIGUSR1 asks for a look at everything.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Handle, Scope};
use crate::job::{Actor, Cause};
use crate::look::PassOptions;

/// SIGUSR1, from now on.
///
/// # Errors
/// When the signal cannot be listened to.
pub fn listen() -> std::io::Result<Signal> {
    signal(SignalKind::user_defined1())
}

/// Asks for a look at everything whenever SIGUSR1 comes, until `stop`.
pub async fn looks(mut signals: Signal, handle: Handle, stop: CancellationToken) {
    while let Some(Some(())) = stop.run_until_cancelled(signals.recv()).await {
        tracing::debug!("SIGUSR1: looking at everything");
        if let Err(error) = handle
            .ask(
                Scope::default(),
                Cause::Signal,
                Actor::named("signal"),
                PassOptions::default(),
            )
            .await
        {
            tracing::warn!(%error, "SIGUSR1 was not taken");
        }
    }
}
