//! The rows: added once, read a page at a time.

use jiff::Timestamp;
use rusqlite::types::{Type, Value};
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};
use serde::{Deserialize, Serialize, Serializer};

use super::chain::{self, ContentHashes};
use super::raw::{RawRow, json, parsed};
use super::{RunFacts, UnsettledJob, names};
use crate::clock;
use crate::decision::{Decision, Kind, RefusedDecision};
use crate::endpoint::Origin;
use crate::job::{Actor, Key, Outcome, Settled, TagId};
use crate::oci::Digest;

/// A row of the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "Shape", try_from = "Shape")]
pub struct Row {
    /// Rises by one from row to row.
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
    /// Covers the row and, through the hash of the row before, all earlier ones.
    pub hash: Digest,
    /// What was recorded.
    pub content: Content,
}

/// What a row records.
#[derive(Clone, Debug)]
pub enum Content {
    /// A change of a job's result.
    Outcome(Box<Settled>),
    /// A reading of the config while the daemon ran.
    Reload(Box<Reload>),
    /// A decision.
    Decision(Kind, Box<Decision>),
    /// A decision that was refused.
    RefusedDecision(Box<RefusedDecision>),
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Content::Outcome(settled) => settled.serialize(serializer),
            Content::Reload(reload) => reload.serialize(serializer),
            Content::Decision(_, decision) => decision.serialize(serializer),
            Content::RefusedDecision(refused) => refused.serialize(serializer),
        }
    }
}

/// A row as JSON: its facts, a `kind`, and the content beside them.
#[derive(Clone, Serialize, Deserialize)]
struct Shape {
    id: u64,
    at: Timestamp,
    run_id: String,
    host: String,
    config_hash: String,
    version: String,
    hash: Digest,
    kind: String,
    #[serde(flatten)]
    content: serde_json::Value,
}

impl From<Row> for Shape {
    fn from(row: Row) -> Shape {
        Shape {
            id: row.id,
            at: row.at,
            run_id: row.run_id,
            host: row.host,
            config_hash: row.config_hash,
            version: row.version,
            hash: row.hash,
            kind: row.content.kind().into(),
            content: serde_json::to_value(&row.content).unwrap_or_default(),
        }
    }
}

impl TryFrom<Shape> for Row {
    type Error = serde_json::Error;

    fn try_from(shape: Shape) -> Result<Row, serde_json::Error> {
        Ok(Row {
            id: shape.id,
            at: shape.at,
            run_id: shape.run_id,
            host: shape.host,
            config_hash: shape.config_hash,
            version: shape.version,
            hash: shape.hash,
            content: Content::parse(&shape.kind, &shape.content.to_string())?,
        })
    }
}

/// A reading of the config while the daemon ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Whether it came into force; else the one before stays.
    pub accepted: bool,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Decisions that cover nothing under it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The principal, and what it said.
    #[serde(flatten)]
    pub actor: Actor,
    /// Older than `daemon.retention`, without its texts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
}

impl Row {
    /// What came of a job, if the row records that.
    pub fn settled(&self) -> Option<&Settled> {
        match &self.content {
            Content::Outcome(settled) => Some(settled),
            Content::Reload(_) | Content::Decision(..) | Content::RefusedDecision(_) => None,
        }
    }
}

impl Content {
    fn kind(&self) -> &'static str {
        match self {
            Content::Outcome(_) => chain::OUTCOME,
            Content::Reload(_) => chain::RELOAD,
            Content::Decision(kind, _) => kind.name(),
            Content::RefusedDecision(_) => REFUSED_DECISION,
        }
    }

    fn parse(kind: &str, content: &str) -> serde_json::Result<Content> {
        Ok(match (kind, Kind::of_name(kind)) {
            (chain::OUTCOME, _) => Content::Outcome(serde_json::from_str(content)?),
            (chain::RELOAD, _) => Content::Reload(serde_json::from_str(content)?),
            (REFUSED_DECISION, _) => Content::RefusedDecision(serde_json::from_str(content)?),
            (_, Some(kind)) => Content::Decision(kind, serde_json::from_str(content)?),
            (unknown, None) => {
                let text = format!("there are no rows of the kind {unknown}");
                return Err(serde::de::Error::custom(text));
            }
        })
    }
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
    /// Only rows that were recorded at this time or later.
    pub since: Option<Timestamp>,
    /// The newest first instead of the oldest.
    pub newest_first: bool,
    /// Only decisions and refused ones.
    pub only_decisions: bool,
}

/// The kind of a row for a decision that was refused.
const REFUSED_DECISION: &str = "refused_decision";

const COLUMNS: &str = "rows.id, at, run_id, host, config_hash, version, hash, kind, content";

/// Adds a row for a change of a job's result.
pub(super) fn add(
    db: &Connection,
    key: &Key,
    settled: &Settled,
    facts: &RunFacts,
) -> rusqlite::Result<u64> {
    let job = match job(db, key)? {
        Some(job) => job,
        None => db
            .prepare_cached(
                "INSERT INTO jobs (route, source, tag, origin, repository, destination_tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .insert(job_names(key))?,
    };
    let content = Content::Outcome(Box::new(settled.clone()));
    let row = append(db, &content, Some((job, key)), facts)?;
    db.prepare_cached("UPDATE jobs SET newest = ?2, result = ?3 WHERE id = ?1")?
        .execute(params![job, row.cast_signed(), settled.result.name()])?;
    Ok(row)
}

/// Adds a row at the end of the chain. Returns its number.
pub(super) fn append(
    db: &Connection,
    content: &Content,
    job: Option<(i64, &Key)>,
    facts: &RunFacts,
) -> rusqlite::Result<u64> {
    let kind = content.kind();
    let content = json(content)?;
    let hashes = ContentHashes::of(kind, &content)?;
    let previous = chain::end(db)?;
    let id: i64 = db
        .prepare_cached(
            "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'rows'",
        )?
        .query_row([], |row| row.get(0))?;
    let names = job.map(|(_, key)| json(&job_names(key))).transpose()?;
    let RunFacts {
        run_id,
        config_hash,
        version,
        host,
    } = facts.clone();
    let row = RawRow {
        id,
        kind: kind.into(),
        job: names,
        at: clock::now().as_millisecond(),
        run_id,
        host,
        config_hash,
        version,
        content,
        whole: hashes.whole.to_string(),
        kept: hashes.kept.to_string(),
        hash: String::new(),
    };
    let hash = chain::hash(&previous, &row).to_string();
    let job = job.map(|(job, _)| job);
    db.prepare_cached(
        "INSERT INTO rows (id, kind, job, at, run_id, host, config_hash, version, content, whole, kept, hash)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        row.id,
        row.kind,
        job,
        row.at,
        row.run_id,
        row.host,
        row.config_hash,
        row.version,
        row.content,
        row.whole,
        row.kept,
        hash
    ])?;
    Ok(id.unsigned_abs())
}

fn job_names(key: &Key) -> [&str; 6] {
    let [origin, repository, tag] = names(&key.destination);
    [
        &key.route,
        key.source.as_str(),
        key.tag.as_str(),
        origin,
        repository,
        tag,
    ]
}

pub(super) fn last(db: &Connection, key: &Key) -> rusqlite::Result<Option<Row>> {
    let Some(job) = job(db, key)? else {
        return Ok(None);
    };
    db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM rows WHERE job = ?1 ORDER BY id DESC LIMIT 1"
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
            json_extract(newest.content, '$.result'), json_extract(newest.content, '$.digest')
        FROM jobs JOIN rows newest ON newest.id = (SELECT max(id) FROM rows WHERE job = jobs.id)
        WHERE jobs.origin = ?1 AND jobs.repository = ?2
            AND json_extract(newest.content, '$.result') NOT IN ('promoted', 'up_to_date')";
    let rows = db
        .prepare_cached(sql)?
        .query_map([origin, repository], UnsettledJob::columns)?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(rows
        .into_iter()
        .filter_map(|row| UnsettledJob::read(row, origin, repository))
        .collect())
}

impl UnsettledJob {
    fn columns(row: &rusqlite::Row<'_>) -> rusqlite::Result<[String; 6]> {
        let digest: Option<String> = row.get(5)?;
        Ok([
            row.get(0)?,
            row.get(1)?,
            row.get(2)?,
            row.get(3)?,
            row.get(4)?,
            digest.unwrap_or_default(),
        ])
    }

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
    let mut sql = format!("SELECT {COLUMNS} FROM rows WHERE true");
    let mut values = Vec::new();
    if query.after > 0 {
        values.push(Value::from(i64::try_from(query.after).unwrap_or(i64::MAX)));
        sql += &format!(" AND rows.id {beyond} ?{}", values.len());
    }
    if let Some(repository) = &query.repository {
        values.push(Value::from(repository.clone()));
        sql += &if repository.starts_with("layout:") {
            of_layout(values.len())
        } else {
            format!(
                " AND (job IN (SELECT id FROM jobs WHERE source = ?{0} OR repository = ?{0})
                    OR rows.id IN (SELECT row FROM decisions WHERE repository = ?{0}))",
                values.len()
            )
        };
    }
    if let Some(tag) = &query.tag {
        values.push(Value::from(tag.clone()));
        sql += &format!(
            " AND (job IN (SELECT id FROM jobs WHERE tag = ?{0} OR destination_tag = ?{0})
                OR rows.id IN (SELECT row FROM decisions WHERE tag = ?{0} OR tag IS NULL))",
            values.len()
        );
    }
    if let Some(since) = query.since {
        values.push(Value::from(since.as_millisecond()));
        sql += &format!(" AND at >= ?{}", values.len());
    }
    if query.only_decisions {
        sql += " AND kind NOT IN ('outcome', 'reload')";
    }
    values.push(Value::from(query.limit.clamp(1, 1000)));
    sql += &format!(" ORDER BY rows.id {order} LIMIT ?{}", values.len());
    (sql, values)
}

/// Rows with a side in the layout that this parameter names by its path: jobs know a layout by its
/// root.
fn of_layout(parameter: usize) -> String {
    let sides = ["source", "destination"].map(|side| {
        format!(
            "instr(replace(json_extract(content, '$.{side}'), '@', ':'), ?{parameter} || ':') = 1"
        )
    });
    format!(" AND ({})", sides.join(" OR "))
}

fn job(db: &Connection, key: &Key) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached(
        "SELECT id FROM jobs WHERE route = ?1 AND source = ?2 AND tag = ?3 AND origin = ?4 AND repository = ?5 AND destination_tag = ?6",
    )?
    .query_row(job_names(key), |row| row.get(0))
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
        hash: parsed(row, 6)?,
        content: Content::parse(row.get_ref(7)?.as_str()?, row.get_ref(8)?.as_str()?)
            .map_err(|error| damaged(8, error.into()))?,
    })
}

/// The newest job that wrote to a place.
pub(super) fn newest_job(db: &Connection, place: &TagId) -> rusqlite::Result<Option<Key>> {
    db.prepare_cached(
        "SELECT route, source, jobs.tag FROM jobs WHERE origin = ?1 AND repository = ?2 AND destination_tag = ?3
        ORDER BY (SELECT max(id) FROM rows WHERE job = jobs.id) DESC LIMIT 1",
    )?
    .query_row(names(place), |row| {
        Ok(Key {
            route: row.get_ref(0)?.as_str()?.into(),
            source: parsed(row, 1)?,
            tag: parsed(row, 2)?,
            destination: place.clone(),
        })
    })
    .optional()
}

/// What staging was last seen to name for a place: by the newest row of a route, and by the newest
/// that no decision caused. A row that a decision caused is that of a look that it woke, or of its
/// own act, which may be about something else.
pub(super) fn last_seen_of(db: &Connection, place: &TagId) -> rusqlite::Result<Vec<Digest>> {
    let [origin, repository, tag] = names(place);
    let mut seen = Vec::new();
    for is_any in [true, false] {
        let digest: Option<String> = db
            .prepare_cached(
                "SELECT json_extract(content, '$.digest') FROM rows JOIN jobs ON jobs.id = rows.job
                WHERE origin = ?1 AND repository = ?2 AND destination_tag = ?3
                    AND json_extract(content, '$.digest') IS NOT NULL
                    AND (?4 OR json_extract(content, '$.cause') <> 'decision') AND route <> ''
                ORDER BY rows.id DESC LIMIT 1",
            )?
            .query_row(params![origin, repository, tag, is_any], |row| row.get(0))
            .optional()?;
        seen.extend(digest.and_then(|text| text.parse::<Digest>().ok()));
    }
    Ok(seen)
}

/// Whether the act of a decision has named a digest at a place after a row.
pub(super) fn has_moved_since(
    db: &Connection,
    row: u64,
    place: &TagId,
    digest: &Digest,
) -> rusqlite::Result<bool> {
    let [origin, repository, tag] = names(place);
    let row = i64::try_from(row).unwrap_or(i64::MAX);
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM rows JOIN jobs ON jobs.id = rows.job
        WHERE origin = ?1 AND repository = ?2 AND destination_tag = ?3 AND rows.id > ?4
            AND json_extract(content, '$.result') = 'promoted'
            AND json_extract(content, '$.cause') = 'decision'
            AND json_extract(content, '$.digest') = ?5)",
    )?
    .query_row(
        params![origin, repository, tag, row, digest.to_string()],
        |row| row.get(0),
    )
}

/// What the newest promotion of a place replaced, where it named `digest`.
pub(super) fn replaced_by(
    db: &Connection,
    place: &TagId,
    digest: &Digest,
) -> rusqlite::Result<Option<Digest>> {
    let newest = db
        .prepare_cached(
            "SELECT json_extract(content, '$.digest'), json_extract(content, '$.previous_digest')
            FROM rows JOIN jobs ON jobs.id = rows.job
            WHERE origin = ?1 AND repository = ?2 AND destination_tag = ?3
                AND json_extract(content, '$.result') = 'promoted' ORDER BY rows.id DESC LIMIT 1",
        )?
        .query_row(names(place), |row| {
            Ok([row.get::<_, Option<String>>(0)?, row.get(1)?])
        })
        .optional()?;
    let [named, replaced] = newest.unwrap_or_default();
    let is_meant = named.is_some_and(|named| named == digest.to_string());
    Ok(replaced
        .filter(|_| is_meant)
        .and_then(|text| text.parse().ok()))
}

/// What promotions of a place named, and what they replaced, the newest first.
pub(super) fn digests_of(
    db: &Connection,
    place: &TagId,
    before: u64,
) -> rusqlite::Result<Vec<Digest>> {
    let [origin, repository, tag] = names(place);
    let before = i64::try_from(before).unwrap_or(i64::MAX);
    let mut read = db.prepare_cached(
        "SELECT json_extract(content, '$.digest'), json_extract(content, '$.previous_digest'),
            json_extract(content, '$.actor') = 'daemon' AND instr(json_extract(content, '$.source'), '@') > 0
        FROM rows JOIN jobs ON jobs.id = rows.job
        WHERE origin = ?1 AND repository = ?2 AND destination_tag = ?3 AND rows.id < ?4
            AND json_extract(content, '$.result') = 'promoted' ORDER BY rows.id DESC LIMIT 1000",
    )?;
    let moves = read.query_map(params![origin, repository, tag, before], |row| {
        let texts: [Option<String>; 2] = [row.get(0)?, row.get(1)?];
        Ok((texts, row.get::<_, bool>(2)?))
    })?;
    let mut digests: Vec<Digest> = Vec::new();
    let mut taken_back: Vec<Option<String>> = Vec::new();
    for found in moves {
        let ([named, replaced], is_way_back) = found?;
        if is_way_back {
            taken_back.push(replaced);
            continue;
        }
        if let Some(at) = taken_back.iter().position(|digest| *digest == named) {
            taken_back.remove(at);
            continue;
        }
        let texts = [named, replaced].into_iter().flatten();
        for digest in texts.filter_map(|text| text.parse().ok()) {
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
    }
    Ok(digests)
}

/// The jobs that promoted a digest into the repository of a place.
pub(super) fn named_by(
    db: &Connection,
    place: &TagId,
    digest: &Digest,
) -> rusqlite::Result<Vec<Key>> {
    let [origin, repository, _] = names(place);
    let mut read = db.prepare_cached(
        "SELECT DISTINCT route, source, jobs.tag, destination_tag FROM rows JOIN jobs ON jobs.id = rows.job
        WHERE origin = ?1 AND repository = ?2 AND json_extract(content, '$.result') = 'promoted'
            AND json_extract(content, '$.digest') = ?3 ORDER BY jobs.id LIMIT 1000",
    )?;
    read.query_map([origin, repository, &digest.to_string()], |row| {
        Ok(Key {
            route: row.get_ref(0)?.as_str()?.into(),
            source: parsed(row, 1)?,
            tag: parsed(row, 2)?,
            destination: TagId {
                tag: parsed(row, 3)?,
                ..place.clone()
            },
        })
    })?
    .collect()
}

/// How many jobs of a route have a newest row that says existing.
pub(super) fn count_existing(db: &Connection, route: &str) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM jobs
        JOIN rows newest ON newest.id = (SELECT max(id) FROM rows WHERE job = jobs.id)
        WHERE jobs.route = ?1 AND json_extract(newest.content, '$.result') = 'existing'";
    let count: i64 = db
        .prepare_cached(sql)?
        .query_row([route], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Whether the last row of a key before `before` reports these digests as existing, and it has not
/// been promoted since.
pub(super) fn was_existing(
    db: &Connection,
    key: &Key,
    before: u64,
    staging: &Digest,
    production: &Digest,
) -> rusqlite::Result<bool> {
    let Some(job) = job(db, key)? else {
        return Ok(false);
    };
    let before = i64::try_from(before).unwrap_or(i64::MAX);
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM rows
            WHERE id = (SELECT max(id) FROM rows WHERE job = ?1 AND id < ?2)
                AND json_extract(content, '$.result') = 'existing'
                AND json_extract(content, '$.digest') = ?3
                AND json_extract(content, '$.previous_digest') = ?4)
        AND NOT EXISTS (SELECT 1 FROM rows WHERE job = ?1 AND id > ?2
            AND json_extract(content, '$.result') = 'promoted')",
    )?
    .query_row(
        params![job, before, staging.to_string(), production.to_string()],
        |row| row.get(0),
    )
}
