//! Texts of old rows: what people and registries wrote is dropped after `daemon.retention`; the row,
//! its number and its hash stay.
//!
//! Promotions, decisions and evidence keep all they say, whatever their age. One task drops the texts, a bounded number of
//! rows at a time, so that no other write waits for long.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};
use tokio::sync::watch;

use super::raw::RawRow;
use super::{Ledger, chain, unwritable};
use crate::clock;
use crate::fault::Fault;

/// Rows that one step reads.
const STRIDE: u32 = 500;
/// Between two steps.
const BETWEEN_STEPS: Duration = Duration::from_millis(200);
/// Between the end of the old rows and the next search for more.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(3600);

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The last row that was read and is old enough; the next step begins after it.
    pub read_to: u64,
    /// Whether more rows may be old enough.
    pub is_more: bool,
}

impl Ledger {
    /// Drops the texts of rows that are older than `retention`, until dropped itself.
    pub async fn drop_old_texts(self, retention: watch::Receiver<Duration>) {
        let mut read_to = 0;
        loop {
            let kept = *retention.borrow();
            let pause = match self.drop_texts_before(limit(kept), read_to).await {
                Ok(step) => {
                    read_to = step.read_to;
                    if step.is_more {
                        BETWEEN_STEPS
                    } else {
                        BETWEEN_ROUNDS
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the texts of old rows of the ledger stay for now");
                    BETWEEN_ROUNDS
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Drops the texts of the next rows after `read_to` that were recorded before `limit` and may
    /// lose them.
    pub async fn drop_texts_before(&self, limit: Timestamp, read_to: u64) -> Result<Step, Fault> {
        self.store
            .write(move |db| step(db, limit, read_to))
            .await
            .map_err(unwritable)
    }
}

/// Rows before this time are older than `retention`.
fn limit(retention: Duration) -> Timestamp {
    SignedDuration::try_from(retention)
        .ok()
        .and_then(|kept| clock::now().checked_sub(kept).ok())
        .unwrap_or(Timestamp::MIN)
}

fn step(db: &Connection, limit: Timestamp, read_to: u64) -> rusqlite::Result<Step> {
    let after = i64::try_from(read_to).unwrap_or(i64::MAX);
    let page = RawRow::page(db, after, STRIDE)?;
    let is_full = page.len() == STRIDE as usize;
    let mut step = Step {
        read_to,
        is_more: is_full,
    };
    for row in page {
        if row.at >= limit.as_millisecond() {
            step.is_more = false;
            break;
        }
        step.read_to = row.id.unsigned_abs();
        if let Some(content) = chain::cut(&row.kind, &row.content)? {
            db.prepare_cached("UPDATE rows SET content = ?2 WHERE id = ?1")?
                .execute(params![row.id, content])?;
        }
    }
    Ok(step)
}
