//! Whether the state folder is ours, and whether the ledger in it can be written.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Parts;
use crate::status::Board;

/// How often both are checked, beside the intents, which all see for themselves.
const CHECKED_EVERY: Duration = Duration::from_secs(1);
/// A daemon without its state folder ends after so long: a folder that was moved may be put back
/// until then.
const FOLDER_AWAY: Duration = Duration::from_secs(20);

/// What was found at the last check.
#[derive(Default)]
struct StateHealth {
    folder_gone_since: Option<Instant>,
    folder_trouble: Option<String>,
    ledger_trouble: Option<String>,
}

impl Parts {
    /// Says when the state folder vanishes or is replaced, when the ledger cannot be written, and
    /// when that is over. Cancels `lost` when the folder stays away.
    pub(crate) async fn watch_state(self, board: Board, lost: CancellationToken) {
        let mut health = StateHealth::default();
        loop {
            tokio::time::sleep(CHECKED_EVERY).await;
            let has_folder_changed = self.check_folder(&mut health);
            if health
                .folder_gone_since
                .is_some_and(|since| since.elapsed() >= FOLDER_AWAY)
            {
                lost.cancel();
                return;
            }
            if self.check_ledger_writes(&mut health).await || has_folder_changed {
                let folder = health.folder_trouble.clone();
                let trouble = folder.or_else(|| health.ledger_trouble.clone());
                board.update(|status| status.state_trouble = trouble);
            }
        }
    }

    /// Returns whether the folder has gone or come back.
    fn check_folder(&self, health: &mut StateHealth) -> bool {
        let checked = self.ledger.check_folder();
        if checked.is_err() == health.folder_gone_since.is_some() {
            return false;
        }
        health.folder_gone_since = checked.is_err().then(Instant::now);
        self.store.show_folder(checked.is_ok());
        self.watch.set_without_state(checked.is_err());
        match &checked {
            Ok(()) => tracing::info!("the state folder is back; promotion goes on"),
            Err(gone) => {
                let ends_in_seconds = FOLDER_AWAY.as_secs();
                tracing::error!(error = %gone, ends_in_seconds, "the state folder is not ours any more")
            }
        }
        health.folder_trouble = checked.err().map(|gone| gone.to_string());
        true
    }

    /// Returns whether what is known of the ledger has changed. While its newest write has failed,
    /// it is tried again.
    async fn check_ledger_writes(&self, health: &mut StateHealth) -> bool {
        if self.ledger.write_trouble().is_some() {
            self.ledger.try_write().await;
        }
        let trouble = self.ledger.write_trouble();
        let trouble = trouble.map(|text| format!("nothing is promoted: {text}"));
        if trouble == health.ledger_trouble {
            return false;
        }
        self.store.show_ledger(trouble.is_none());
        match &trouble {
            None => tracing::info!("the ledger can be written again; promotion goes on"),
            Some(error) => tracing::error!(%error, "the ledger cannot be written"),
        }
        health.ledger_trouble = trouble;
        true
    }
}
