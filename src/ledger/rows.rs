//! The rows: added once, read a page at a time.

use jiff::Timestamp;
use rusqlite::types::{FromSqlError, Type, Value};
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};
use serde::{Deserialize, Serialize};

use super::{RunFacts, UnsettledJob, names};
use crate::clock;
use crate::endpoint::Origin;
use crate::job::{Key, Outcome, Settled, TagId};

/// A change of a job's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Rises from row to row.
    pub id: u64,
    /// When it was recorded.
    pub at: Timestamp,
    /// Names the pass.
    pub run_id: String,
    /// The machine.
    pub host: String,
    /// The hash of the config that was in force.
    pub config_hash: String,
    /// Version of the program.
    pub version: String,
    /// What came of the job.
    #[serde(flatten)]
    pub settled: Settled,
}

/// Which rows, from where on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Only rows after the one of this number in the order asked for; 0: from the start.
    pub after: u64,
    /// Rows of a page, 1 to 1000; what is outside is taken as the nearest.
    pub limit: u32,
    /// Only this source or destination repository.
    pub repository: Option<String>,
    /// Only this tag.
    pub tag: Option<String>,
    /// The newest first instead of the oldest.
    pub newest_first: bool,
}

const COLUMNS: &str = "outcomes.id, at, run_id, host, config_hash, version, settled";

pub(super) fn add(
    db: &Connection,
    key: &Key,
    settled: &Settled,
    facts: &RunFacts,
) -> rusqlite::Result<()> {
    let job = match job(db, key)? {
        Some(job) => job,
        None => {
            let [origin, repository, tag] = names(&key.destination);
            db.prepare_cached(
                "INSERT INTO jobs (route, source, tag, origin, repository, destination_tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .insert([&*key.route, key.source.as_str(), key.tag.as_str(), origin, repository, tag])?
        }
    };
    let json = json(settled)?;
    let RunFacts {
        run_id,
        config_hash,
        version,
        host,
    } = facts;
    db.prepare_cached(
        "INSERT INTO outcomes (job, at, run_id, host, config_hash, version, settled) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![job, clock::now().as_millisecond(), run_id, host, config_hash, version, json])
    .map(drop)
}

/// A settled job as a row keeps it.
pub(super) fn json(settled: &Settled) -> rusqlite::Result<String> {
    serde_json::to_string(settled)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// The next rows, at most `limit`.
pub(super) fn after(db: &Connection, id: u64, limit: u32) -> rusqlite::Result<Vec<Row>> {
    let query = Query {
        after: id,
        limit,
        ..Query::default()
    };
    page(db, &query)
}

pub(super) fn last(db: &Connection, key: &Key) -> rusqlite::Result<Option<Row>> {
    let Some(job) = job(db, key)? else {
        return Ok(None);
    };
    db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM outcomes WHERE job = ?1 ORDER BY id DESC LIMIT 1"
    ))?
    .query_row([job], row)
    .optional()
}

/// The jobs of a destination repository with a newest row that is neither promoted nor up to date.
pub(super) fn troubled(
    db: &Connection,
    origin: &str,
    repository: &str,
) -> rusqlite::Result<Vec<UnsettledJob>> {
    let sql = "SELECT jobs.route, jobs.source, jobs.tag, jobs.destination_tag,
            json_extract(newest.settled, '$.result'), json_extract(newest.settled, '$.digest')
        FROM jobs JOIN outcomes newest ON newest.id = (SELECT max(id) FROM outcomes WHERE job = jobs.id)
        WHERE jobs.origin = ?1 AND jobs.repository = ?2
            AND json_extract(newest.settled, '$.result') NOT IN ('promoted', 'up_to_date')";
    let text = |row: &rusqlite::Row<'_>, at: usize| row.get::<_, String>(at);
    let read = |row: &rusqlite::Row<'_>| {
        Ok([
            text(row, 0)?,
            text(row, 1)?,
            text(row, 2)?,
            text(row, 3)?,
            text(row, 4)?,
            row.get::<_, Option<String>>(5)?.unwrap_or_default(),
        ])
    };
    let rows = db
        .prepare_cached(sql)?
        .query_map([origin, repository], read)?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(rows
        .into_iter()
        .filter_map(|row| UnsettledJob::read(row, origin, repository))
        .collect())
}

impl UnsettledJob {
    /// `None` for a row that no current version writes.
    fn read(
        [route, source, tag, destination, result, digest]: [String; 6],
        origin: &str,
        repository: &str,
    ) -> Option<UnsettledJob> {
        let place = TagId {
            origin: Origin::new(origin),
            repository: repository.parse().ok()?,
            tag: destination.parse().ok()?,
        };
        let key = Key {
            route: route.into(),
            source: source.parse().ok()?,
            tag: tag.parse().ok()?,
            destination: place,
        };
        let result = Outcome::ALL
            .into_iter()
            .find(|outcome| outcome.name() == result)?;
        Some(UnsettledJob {
            key,
            result,
            digest: digest.parse().ok(),
        })
    }
}

pub(super) fn page(db: &Connection, query: &Query) -> rusqlite::Result<Vec<Row>> {
    let (sql, values) = selection(query);
    db.prepare_cached(&sql)?
        .query_map(params_from_iter(values), row)?
        .collect()
}

fn selection(query: &Query) -> (String, Vec<Value>) {
    let (order, beyond) = if query.newest_first {
        ("DESC", "<")
    } else {
        ("ASC", ">")
    };
    let mut sql = format!("SELECT {COLUMNS} FROM outcomes WHERE true");
    let mut values = Vec::new();
    if query.after > 0 {
        values.push(Value::from(i64::try_from(query.after).unwrap_or(i64::MAX)));
        sql += &format!(" AND outcomes.id {beyond} ?{}", values.len());
    }
    if let Some(repository) = &query.repository {
        values.push(Value::from(repository.clone()));
        sql += &format!(
            " AND job IN (SELECT id FROM jobs WHERE source = ?{0} OR repository = ?{0})",
            values.len()
        );
    }
    if let Some(tag) = &query.tag {
        values.push(Value::from(tag.clone()));
        sql += &format!(
            " AND job IN (SELECT id FROM jobs WHERE tag = ?{0} OR destination_tag = ?{0})",
            values.len()
        );
    }
    values.push(Value::from(query.limit.clamp(1, 1000)));
    sql += &format!(" ORDER BY outcomes.id {order} LIMIT ?{}", values.len());
    (sql, values)
}

fn job(db: &Connection, key: &Key) -> rusqlite::Result<Option<i64>> {
    let [origin, repository, tag] = names(&key.destination);
    db.prepare_cached(
        "SELECT id FROM jobs WHERE route = ?1 AND source = ?2 AND tag = ?3 AND origin = ?4 AND repository = ?5 AND destination_tag = ?6",
    )?
    .query_row([&*key.route, key.source.as_str(), key.tag.as_str(), origin, repository, tag], |row| row.get(0))
    .optional()
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let damaged =
        |column, error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error);
    Ok(Row {
        id: row.get::<_, i64>(0)?.unsigned_abs(),
        at: Timestamp::from_millisecond(row.get(1)?).map_err(|error| damaged(1, error.into()))?,
        run_id: row.get(2)?,
        host: row.get(3)?,
        config_hash: row.get(4)?,
        version: row.get(5)?,
        settled: serde_json::from_str(row.get_ref(6)?.as_str()?)
            .map_err(|error| damaged(6, error.into()))?,
    })
}

/// A text column as the type that it was written from.
pub(super) fn parsed<T>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse()
        .map_err(|error: T::Err| FromSqlError::Other(Box::new(error)).into())
}
