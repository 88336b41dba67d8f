//! The ledger beside the index, as the index knows it: one that is restored from a copy, or lost, is
//! noticed.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::Index;
use super::schema::{StoredDigest, stored_length};
use crate::oci::Digest;

/// A ledger and its last row at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownLedger {
    /// Its identity.
    pub id: String,
    /// The number of its last row then.
    pub last_row: u64,
    /// The hash of that row; unknown where an older version wrote it, and where there was no row.
    pub hash: Option<Digest>,
}

impl Index {
    /// The ledger that was beside this index last.
    pub async fn ledger(&self) -> Option<KnownLedger> {
        self.read(known).await
    }

    /// Remembers the ledger beside this index.
    pub async fn remember_ledger(&self, ledger: KnownLedger) {
        self.queue(move |db| {
            if known(db)?.as_ref() == Some(&ledger) {
                return Ok(());
            }
            let last = stored_length(ledger.last_row);
            let hash = ledger.hash.map(StoredDigest);
            db.execute("DELETE FROM ledger", [])?;
            db.execute(
                "INSERT INTO ledger (id, last_row, hash) VALUES (?1, ?2, ?3)",
                params![ledger.id, last, hash],
            )
            .map(drop)
        })
        .await;
    }
}

fn known(db: &Connection) -> rusqlite::Result<Option<KnownLedger>> {
    db.prepare_cached("SELECT id, last_row, hash FROM ledger")?
        .query_row([], |row| {
            let hash: Option<StoredDigest> = row.get(2)?;
            Ok(KnownLedger {
                id: row.get(0)?,
                last_row: row.get::<_, i64>(1)?.unsigned_abs(),
                hash: hash.map(|hash| hash.0),
            })
        })
        .optional()
}
