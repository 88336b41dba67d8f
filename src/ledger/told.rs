//! How far each receiver of notifications has come.

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::watch;

use super::Ledger;
use crate::fault::Fault;

impl Ledger {
    /// Changes with each row that this process adds.
    pub fn additions(&self) -> watch::Receiver<u64> {
        self.audit.additions()
    }

    /// The last row that a receiver was told of; `None` for one that is new.
    pub async fn told(&self, receiver: &str) -> Result<Option<u64>, Fault> {
        let receiver = receiver.to_owned();
        let read = move |db: &Connection| {
            db.prepare_cached("SELECT row FROM told WHERE receiver = ?1")?
                .query_row([&receiver], |row| row.get::<_, i64>(0))
                .optional()
        };
        let row = self.read(read).await?;
        Ok(row.map(i64::unsigned_abs))
    }

    /// A receiver that is new is told of rows after this one.
    pub async fn start_told(&self, receiver: &str, row: u64) -> Result<(), Fault> {
        let sql = "INSERT OR IGNORE INTO told (receiver, row) VALUES (?1, ?2)";
        self.write_told(sql, receiver, row).await
    }

    /// Remembers the last row that a receiver was told of, unless it was forgotten.
    pub async fn set_told(&self, receiver: &str, row: u64) -> Result<(), Fault> {
        let sql = "UPDATE told SET row = ?2 WHERE receiver = ?1";
        self.write_told(sql, receiver, row).await
    }

    async fn write_told(&self, sql: &'static str, receiver: &str, row: u64) -> Result<(), Fault> {
        let receiver = receiver.to_owned();
        let row = i64::try_from(row).unwrap_or(i64::MAX);
        let write = move |db: &Connection| {
            db.prepare_cached(sql)?
                .execute(params![receiver, row])
                .map(drop)
        };
        self.write(write).await
    }

    /// Forgets every receiver but these.
    pub async fn keep_told(&self, receivers: Vec<String>) -> Result<(), Fault> {
        let write = move |db: &Connection| {
            let known: Vec<String> = db
                .prepare_cached("SELECT receiver FROM told")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for gone in known.iter().filter(|known| !receivers.contains(known)) {
                db.execute("DELETE FROM told WHERE receiver = ?1", [gone])?;
            }
            Ok(())
        };
        self.write(write).await
    }
}
