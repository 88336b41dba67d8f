//! The tags as they were last seen: the newest row of each job, and what production is known to
//! name.

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::Ledger;
use super::raw::{json, parsed};
use crate::fault::Fault;
use crate::job::{Outcome, Settled};
use crate::oci::Digest;

/// Which tags, from where on. Those that changed last come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagsQuery {
    /// Only tags with a newest row before the one of this number; 0: from the start.
    pub after: u64,
    /// Tags of a page.
    pub limit: u32,
    /// Only tags of these routes.
    pub routes: Vec<String>,
    /// Only tags with one of these results; none: any.
    pub results: Vec<Outcome>,
    /// Only tags with this text in `repository:tag` of either side, in capitals or not.
    pub text: Option<String>,
}

/// A tag as it was last seen.
#[derive(Clone, Debug)]
pub struct CurrentTag {
    /// The number of its newest row.
    pub id: u64,
    /// When that was recorded.
    pub at: Timestamp,
    /// What the row says.
    pub settled: Settled,
    /// What production names by our hand or by agreement.
    pub written: Option<Digest>,
    /// Since when.
    pub written_at: Option<Timestamp>,
}

impl Ledger {
    /// Tags as they were last seen, a page at a time.
    pub async fn tags(&self, query: TagsQuery) -> Result<Vec<CurrentTag>, Fault> {
        self.read(move |db| page(db, &query)).await
    }
}

fn page(db: &Connection, query: &TagsQuery) -> rusqlite::Result<Vec<CurrentTag>> {
    let (sql, values) = selection(query)?;
    db.prepare_cached(&sql)?
        .query_map(params_from_iter(values), current)?
        .collect()
}

/// Chooses among the jobs alone, by an index in the order of the list, and then reads the rows of
/// those that are shown. `+route`: no index of routes, which would put all of a route in order.
fn selection(query: &TagsQuery) -> rusqlite::Result<(String, Vec<Value>)> {
    let before = match query.after {
        0 => i64::MAX,
        after => i64::try_from(after).unwrap_or(i64::MAX),
    };
    let routes = json(&query.routes)?;
    let mut values = vec![routes.into(), before.into(), query.limit.into()];
    let mut rest = String::new();
    if let Some(text) = &query.text {
        values.push(text.clone().into());
        rest = " AND (instr(lower(repository || ':' || destination_tag), lower(?4))
            OR instr(lower(source || ':' || tag), lower(?4)))"
            .into();
    }
    let mut choices = Vec::new();
    let mut choose = |condition: &str| {
        choices.push(format!(
            "SELECT * FROM (SELECT id, newest FROM jobs WHERE {condition}newest < ?2
            AND +route IN (SELECT value FROM json_each(?1)){rest} ORDER BY newest DESC LIMIT ?3)"
        ));
    };
    if query.results.is_empty() {
        choose("");
    }
    for result in &query.results {
        values.push(Value::from(result.name().to_owned()));
        choose(&format!("result = ?{} AND ", values.len()));
    }
    let chosen = choices.join(" UNION ");
    let sql = format!(
        "SELECT rows.id, rows.at, content, written.digest, written.at
        FROM (SELECT id FROM ({chosen}) ORDER BY newest DESC LIMIT ?3) AS shown
        JOIN jobs ON jobs.id = shown.id JOIN rows ON rows.id = jobs.newest
        LEFT JOIN written ON written.origin = jobs.origin AND written.repository = jobs.repository
            AND written.tag = jobs.destination_tag
        ORDER BY jobs.newest DESC"
    );
    Ok((sql, values))
}

fn current(row: &rusqlite::Row<'_>) -> rusqlite::Result<CurrentTag> {
    let written: Option<String> = row.get(3)?;
    let written_at: Option<i64> = row.get(4)?;
    Ok(CurrentTag {
        id: row.get::<_, i64>(0)?.unsigned_abs(),
        at: time(row.get(1)?).ok_or(rusqlite::Error::InvalidQuery)?,
        settled: content(row)?,
        written: written.map(|_| parsed(row, 3)).transpose()?,
        written_at: written_at.and_then(time),
    })
}

fn content(row: &rusqlite::Row<'_>) -> rusqlite::Result<Settled> {
    let damaged =
        |error| rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, error);
    let text = row.get_ref(2)?.as_str()?;
    serde_json::from_str(text).map_err(|error| damaged(error.into()))
}

fn time(milliseconds: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(milliseconds).ok()
}

/// How SQLite answers a query, for tests.
#[cfg(test)]
pub(super) fn plan(db: &Connection, query: &TagsQuery) -> rusqlite::Result<String> {
    let (sql, values) = selection(query)?;
    let mut explained = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
    let steps = explained.query_map(params_from_iter(values), |row| row.get::<_, String>(3))?;
    Ok(steps.collect::<Result<Vec<_>, _>>()?.join("\n"))
}
