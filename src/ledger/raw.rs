//! Rows as their table holds them.

use std::str::FromStr;

use rusqlite::Connection;
use rusqlite::types::FromSqlError;
use serde::Serialize;

use crate::oci::{Digest, RepositoryName};

/// An image in a repository, as the tables about images name it.
pub(super) fn image(origin: &str, repository: &RepositoryName, digest: &Digest) -> [String; 3] {
    [
        origin.to_owned(),
        repository.to_string(),
        digest.to_string(),
    ]
}

/// A row as its table holds it, with its job as an array of the six names.
pub(super) struct RawRow {
    pub(super) id: i64,
    pub(super) kind: String,
    pub(super) job: Option<String>,
    pub(super) at: i64,
    pub(super) run_id: String,
    pub(super) host: String,
    pub(super) config_hash: String,
    pub(super) version: String,
    pub(super) content: String,
    pub(super) whole: String,
    pub(super) kept: String,
    pub(super) hash: String,
}

impl RawRow {
    /// The next rows after `after`, at most `limit`.
    pub(super) fn page(db: &Connection, after: i64, limit: u32) -> rusqlite::Result<Vec<RawRow>> {
        db.prepare_cached(
            "SELECT rows.id, kind, at, run_id, host, config_hash, version, content, whole, kept, hash,
                job, route, source, tag, origin, repository, destination_tag
            FROM rows LEFT JOIN jobs ON jobs.id = rows.job WHERE rows.id > ?1 ORDER BY rows.id LIMIT ?2",
        )?
        .query_map([after, limit.into()], RawRow::read)?
        .collect()
    }

    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<RawRow> {
        let job = match row.get::<_, Option<i64>>(11)? {
            Some(_) => Some(json(&[
                row.get::<_, String>(12)?,
                row.get(13)?,
                row.get(14)?,
                row.get(15)?,
                row.get(16)?,
                row.get(17)?,
            ])?),
            None => None,
        };
        Ok(RawRow {
            id: row.get(0)?,
            kind: row.get(1)?,
            job,
            at: row.get(2)?,
            run_id: row.get(3)?,
            host: row.get(4)?,
            config_hash: row.get(5)?,
            version: row.get(6)?,
            content: row.get(7)?,
            whole: row.get(8)?,
            kept: row.get(9)?,
            hash: row.get(10)?,
        })
    }
}

/// Something as a row keeps it.
pub(super) fn json(content: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(content)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// A text column as the type that it was written from.
pub(super) fn parsed<T>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse()
        .map_err(|error: T::Err| FromSqlError::Other(Box::new(error)).into())
}
