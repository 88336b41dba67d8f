//! Texts of old rows: what people and registries wrote is dropped after `daemon.retention`; the row,
//! its number and its hash stay.
//!
//! Promotions, decisions and evidence keep all they say, whatever their age. One task drops the
//! texts, a bounded number of rows at a time, so that no other write waits for long.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::watch;

use super::raw::RawRow;
use super::{Ledger, chain};
use crate::clock;
use crate::fault::Fault;

/// Rows that one step reads.
const STRIDE: u32 = 500;
/// Between two steps.
const BETWEEN_STEPS: Duration = Duration::from_millis(200);
/// Between the end of the old rows and the next search for more.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(3600);

/// Whether more rows may be old enough after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The step has read as many rows as it may.
    More,
    /// The next row is too young, or there is none.
    End,
}

impl Ledger {
    /// Drops the texts of rows that are older than `retention`, until dropped itself.
    pub async fn drop_old_texts(self, retention: watch::Receiver<Duration>) {
        loop {
            let kept = *retention.borrow();
            let pause = match self.drop_texts_before(limit(kept)).await {
                Ok(Step::More) => BETWEEN_STEPS,
                Ok(Step::End) => BETWEEN_ROUNDS,
                Err(error) => {
                    tracing::warn!(%error, "the texts of old rows of the ledger stay for now");
                    BETWEEN_ROUNDS
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Drops the texts of the next rows that were recorded before `limit` and may lose them. It
    /// goes on where the last step ended, also one of an earlier process.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn drop_texts_before(&self, limit: Timestamp) -> Result<Step, Fault> {
        let now = clock::now();
        self.write(move |db| step(db, limit.as_millisecond(), now.as_millisecond()))
            .await
    }
}

/// Rows before this time are older than `retention`.
fn limit(retention: Duration) -> Timestamp {
    SignedDuration::try_from(retention)
        .ok()
        .and_then(|kept| clock::now().checked_sub(kept).ok())
        .unwrap_or(Timestamp::MIN)
}

fn step(db: &Connection, limit: i64, now: i64) -> rusqlite::Result<Step> {
    let page = page(db, read_to(db)?, now)?;
    let is_full = page.len() == STRIDE as usize;
    let mut last = None;
    for row in page.iter().take_while(|row| row.at < limit) {
        drop_texts(db, row)?;
        last = Some(row.id);
    }
    if let Some(last) = last {
        db.prepare_cached("UPDATE texts_dropped SET read_to = ?1")?
            .execute([last])?;
    }
    let is_end = !is_full || last != page.last().map(|row| row.id);
    Ok(if is_end { Step::End } else { Step::More })
}

/// The last row that was read and was old enough.
fn read_to(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT read_to FROM texts_dropped")?
        .query_row([], |row| row.get(0))
}

/// The next rows. A clock that was wrong may have dated some of them after `now`: such a row is at
/// least as old as the next one that is not.
fn page(db: &Connection, read_to: i64, now: i64) -> rusqlite::Result<Vec<RawRow>> {
    let mut page = RawRow::page(db, read_to, STRIDE)?;
    let mut next = None;
    for row in page.iter_mut().rev() {
        if row.at > now {
            row.at = match next {
                Some(at) => at,
                None => at_after(db, row.id, now)?,
            };
        }
        next = Some(row.at);
    }
    Ok(page)
}

/// The time of the first row after `id` that is not dated after `now`; without one, `now`.
fn at_after(db: &Connection, id: i64, now: i64) -> rusqlite::Result<i64> {
    let sql = "SELECT at FROM rows WHERE id > ?1 AND at <= ?2 ORDER BY id LIMIT 1";
    let at = db
        .prepare_cached(sql)?
        .query_row([id, now], |row| row.get(0))
        .optional()?;
    Ok(at.unwrap_or(now))
}

/// Drops the texts of a row. One that cannot be read stays as it is.
fn drop_texts(db: &Connection, row: &RawRow) -> rusqlite::Result<()> {
    match chain::cut(&row.kind, &row.content) {
        Ok(Some(content)) => db
            .prepare_cached("UPDATE rows SET content = ?2 WHERE id = ?1")?
            .execute(params![row.id, content])
            .map(drop),
        Ok(None) => Ok(()),
        Err(error) => {
            tracing::warn!(
                row = row.id,
                %error,
                "a row of the ledger cannot be read; its texts stay"
            );
            Ok(())
        }
    }
}
