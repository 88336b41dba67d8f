//! How much the index holds, and forgetting what has not been seen for long.

use std::sync::Mutex;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Statement, params};

use super::Index;

/// How much the index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Hints about blobs.
    pub blobs: u64,
    /// Hints about manifests.
    pub manifests: u64,
    /// Hints about tags.
    pub tags: u64,
    /// Open uploads.
    pub uploads: u64,
    /// Length of the database in bytes.
    pub bytes: u64,
}

/// Rows of one table that one call looks at, at most.
const STRIDE: i64 = 10_000;

/// A table of hints, walked in the order of its key.
struct Walk {
    table: &'static str,
    key: &'static str,
    /// Less than every key.
    start: fn() -> WalkPosition,
}

/// Where the walk of a table stands.
type WalkPosition = (Value, Value);

const WALKS: [Walk; 4] = [
    Walk {
        table: "blobs",
        key: "digest, repository",
        start: before_digests,
    },
    Walk {
        table: "manifests",
        key: "digest, repository",
        start: before_digests,
    },
    Walk {
        table: "referrers_checked",
        key: "digest, repository",
        start: before_digests,
    },
    Walk {
        table: "tags",
        key: "repository, tag",
        start: || (Value::Integer(0), Value::Text(String::new())),
    },
];

fn before_digests() -> WalkPosition {
    (Value::Blob(Vec::new()), Value::Integer(0))
}

/// Where each walk stands between calls; `None`: at the start.
#[derive(Debug, Default)]
pub(super) struct WalkPositions(Mutex<[Option<WalkPosition>; WALKS.len()]>);

fn entries(count: &mut Statement<'_>, kind: &str) -> rusqlite::Result<u64> {
    count
        .query_row([kind], |row| row.get::<_, i64>(0))
        .map(i64::unsigned_abs)
}

impl Index {
    /// How much it holds.
    pub async fn statistics(&self) -> Statistics {
        self.read(|db| {
            let mut count = db.prepare_cached("SELECT entries FROM counts WHERE kind = ?1")?;
            Ok(Statistics {
                blobs: entries(&mut count, "blobs")?,
                manifests: entries(&mut count, "manifests")?,
                tags: entries(&mut count, "tags")?,
                uploads: entries(&mut count, "uploads")?,
                bytes: bytes(db)?,
            })
        })
        .await
    }

    /// Forgets hints that were last seen, and uploads that were opened, before `older_than`. One
    /// call looks at a bounded part of each table and the next call goes on from there: called now
    /// and then, it comes round.
    pub async fn prune(&self, older_than: Timestamp) {
        let positions = self.positions.clone();
        let older_than = older_than.as_millisecond();
        self.queue(move |db| {
            let mut positions = positions
                .0
                .lock()
                .expect("nothing panics while it holds the positions");
            for (walk, position) in WALKS.iter().zip(positions.iter_mut()) {
                *position = stride(db, walk, position.take(), older_than)?;
            }
            db.prepare_cached("DELETE FROM uploads WHERE opened < ?1")?
                .execute([older_than])
                .map(drop)
        })
        .await;
    }
}

/// Looks at the next part of a table. Returns where it stopped; `None`: at the end.
fn stride(
    db: &Connection,
    walk: &Walk,
    position: Option<WalkPosition>,
    older_than: i64,
) -> rusqlite::Result<Option<WalkPosition>> {
    let Walk { table, key, start } = walk;
    let (from, within) = position.unwrap_or_else(start);
    let next = db
        .prepare_cached(&format!(
            "SELECT {key} FROM {table} WHERE ({key}) > (?1, ?2) ORDER BY {key} LIMIT 1 OFFSET ?3"
        ))?
        .query_row(params![from, within, STRIDE - 1], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    match &next {
        Some((to, last)) => db
            .prepare_cached(&format!(
                "DELETE FROM {table} WHERE ({key}) > (?1, ?2) AND ({key}) <= (?3, ?4) AND seen < ?5"
            ))?
            .execute(params![from, within, to, last, older_than])?,
        None => db
            .prepare_cached(&format!(
                "DELETE FROM {table} WHERE ({key}) > (?1, ?2) AND seen < ?3"
            ))?
            .execute(params![from, within, older_than])?,
    };
    Ok(next)
}

fn bytes(db: &Connection) -> rusqlite::Result<u64> {
    let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    let page: i64 = db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    Ok(pages.unsigned_abs() * page.unsigned_abs())
}
