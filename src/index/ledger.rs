//! The ledger beside the index, as the index knows it: one that is restored from a copy, or lost, is
//! noticed.

use rusqlite::{OptionalExtension as _, params};

use super::Index;

/// A ledger and its last row at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLedger {
    /// Its identity.
    pub id: String,
    /// The number of its last row then.
    pub last_row: u64,
}

impl Index {
    /// The ledger that was beside this index last.
    pub async fn ledger(&self) -> Option<KnownLedger> {
        self.read(|db| {
            db.prepare_cached("SELECT id, last_row FROM ledger")?
                .query_row([], |row| {
                    Ok(KnownLedger {
                        id: row.get(0)?,
                        last_row: row.get::<_, i64>(1)?.unsigned_abs(),
                    })
                })
                .optional()
        })
        .await
    }

    /// Remembers the ledger beside this index.
    pub async fn remember_ledger(&self, known: KnownLedger) {
        self.queue(move |db| {
            let last = i64::try_from(known.last_row).unwrap_or(i64::MAX);
            let is_known: bool = db
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM ledger WHERE id = ?1 AND last_row = ?2)",
                )?
                .query_row(params![known.id, last], |row| row.get(0))?;
            if is_known {
                return Ok(());
            }
            db.execute("DELETE FROM ledger", [])?;
            db.execute(
                "INSERT INTO ledger (id, last_row) VALUES (?1, ?2)",
                params![known.id, last],
            )
            .map(drop)
        })
        .await;
    }
}
