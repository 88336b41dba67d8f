//! The chain of rows: each row's hash covers its facts, its content and the hash of the row before.
//!
//! The first row continues the ledger's identity. A row's content counts twice: as it was recorded,
//! and as it is once its texts are dropped. So dropping texts leaves every hash as it is, and what
//! stays of the row is still covered. Promotions, decisions and evidence have one form alone.

use rusqlite::{Connection, OptionalExtension as _};
use serde_json::{Value, json};

use super::Ledger;
use super::raw::{self, RawRow};
use crate::fault::Fault;
use crate::job::Outcome;
use crate::oci::Digest;

/// Rows that one step of a verification reads.
const STRIDE: u32 = 1000;

/// The kind of a row with the result of a job.
pub(super) const OUTCOME: &str = "outcome";
/// The kind of a row for a reading of the config.
pub(super) const RELOAD: &str = "reload";

/// The hashes of a row's content.
pub(super) struct ContentHashes {
    /// As it was recorded.
    pub(super) whole: Digest,
    /// Without its texts; the same where it never loses them.
    pub(super) kept: Digest,
}

impl ContentHashes {
    pub(super) fn of(kind: &str, content: &str) -> rusqlite::Result<ContentHashes> {
        let whole = Digest::sha256(content.as_bytes());
        let kept = match cut(kind, content)? {
            Some(kept) => Digest::sha256(kept.as_bytes()),
            None => whole,
        };
        Ok(ContentHashes { whole, kept })
    }
}

/// A content without the texts that people and registries wrote. `None`: it has lost them already,
/// or never loses them.
pub(super) fn cut(kind: &str, content: &str) -> rusqlite::Result<Option<String>> {
    let mut content: Value = parsed(content)?;
    if is_cut(&content) || !loses_texts(kind, &content) {
        return Ok(None);
    }
    let Some(fields) = content.as_object_mut() else {
        return Ok(None);
    };
    fields.remove("claimed_actor");
    for (name, value) in fields.iter_mut() {
        match (name.as_str(), &mut *value) {
            ("reasons", _) => *value = json!([]),
            ("reason", _) => *value = Value::Null,
            ("error", Value::Object(error)) => drop(error.insert("text".into(), "".into())),
            ("error", Value::String(text)) => text.clear(),
            _ => {}
        }
    }
    fields.insert("expired".into(), true.into());
    Ok(Some(content.to_string()))
}

fn is_cut(content: &Value) -> bool {
    content["expired"] == true
}

fn loses_texts(kind: &str, content: &Value) -> bool {
    let has_evidence = content["gates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty());
    match kind {
        OUTCOME => content["result"] != Outcome::Promoted.name() && !has_evidence,
        RELOAD => true,
        _ => false,
    }
}

fn parsed(content: &str) -> rusqlite::Result<Value> {
    serde_json::from_str(content)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// The hash of a row that follows one with the hash `previous`.
pub(super) fn hash(previous: &str, row: &RawRow) -> Digest {
    let facts = json!([
        previous,
        row.id,
        row.kind,
        row.job,
        row.at,
        row.run_id,
        row.host,
        row.config_hash,
        row.version,
        row.whole,
        row.kept,
    ]);
    Digest::sha256(facts.to_string().as_bytes())
}

/// Gives the ledger its identity, and each row its hashes that has none.
pub(super) fn seal(db: &Connection) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO identity (id) SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM identity)",
        [crate::random::name()],
    )?;
    let mut previous = identity(db)?;
    let mut after = 0;
    loop {
        let page = RawRow::page(db, after, STRIDE)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = last.id;
        for mut row in page {
            if !row.hash.is_empty() {
                previous = row.hash;
                continue;
            }
            let hashes = ContentHashes::of(&row.kind, &row.content)?;
            row.whole = hashes.whole.to_string();
            row.kept = hashes.kept.to_string();
            previous = hash(&previous, &row).to_string();
            db.prepare_cached("UPDATE rows SET whole = ?2, kept = ?3, hash = ?4 WHERE id = ?1")?
                .execute(rusqlite::params![row.id, row.whole, row.kept, previous])?;
        }
    }
}

/// What the first row follows.
pub(super) fn identity(db: &Connection) -> rusqlite::Result<String> {
    db.prepare_cached("SELECT id FROM identity")?
        .query_row([], |row| row.get(0))
}

/// The hash of the last row, else the ledger's identity.
pub(super) fn end(db: &Connection) -> rusqlite::Result<String> {
    db.prepare_cached(
        "SELECT coalesce((SELECT hash FROM rows ORDER BY id DESC LIMIT 1), id) FROM identity",
    )?
    .query_row([], |row| row.get(0))
}

/// The number and the hash of the last row.
pub(super) fn last_row(db: &Connection) -> rusqlite::Result<Option<(u64, Digest)>> {
    db.prepare_cached("SELECT id, hash FROM rows ORDER BY id DESC LIMIT 1")?
        .query_row([], |row| {
            Ok((row.get::<_, i64>(0)?.unsigned_abs(), raw::parsed(row, 1)?))
        })
        .optional()
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// Every row is as it was recorded.
    Whole {
        /// The rows.
        rows: u64,
        /// The ledger's identity.
        ledger: String,
        /// The last row.
        last: u64,
    },
    /// A row is not.
    Broken {
        /// The first such row.
        row: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// How far a verification is.
#[derive(Default)]
struct Position {
    after: i64,
    previous: Option<String>,
    rows: u64,
}

impl Ledger {
    /// Checks the chain from the first row to the last.
    pub async fn verify(&self) -> Result<Verified, Fault> {
        let mut position = Position::default();
        loop {
            position = match self.read(move |db| position.step(db)).await? {
                Step::More(position) => position,
                Step::Ended(verified) => return Ok(verified),
            };
        }
    }
}

enum Step {
    More(Position),
    Ended(Verified),
}

impl Position {
    fn step(mut self, db: &Connection) -> rusqlite::Result<Step> {
        let ledger = identity(db)?;
        let mut previous = self.previous.take().unwrap_or_else(|| ledger.clone());
        let page = RawRow::page(db, self.after, STRIDE)?;
        if page.is_empty() {
            return Ok(Step::Ended(self.end(db, ledger)?));
        }
        for row in page {
            if let Some(reason) = self.fault_of(&previous, &row) {
                let row = row.id.unsigned_abs();
                return Ok(Step::Ended(Verified::Broken { row, reason }));
            }
            self.after = row.id;
            self.rows += 1;
            previous = row.hash;
        }
        self.previous = Some(previous);
        Ok(Step::More(self))
    }

    fn fault_of(&self, previous: &str, row: &RawRow) -> Option<&'static str> {
        let content = parsed(&row.content).unwrap_or_default();
        let is_cut = is_cut(&content) && loses_texts(&row.kind, &content);
        let expected = if is_cut { &row.kept } else { &row.whole };
        if row.id != self.after + 1 {
            return Some("rows before it are missing");
        }
        if Digest::sha256(row.content.as_bytes()).to_string() != *expected {
            return Some("its content was changed");
        }
        (hash(previous, row).to_string() != row.hash)
            .then_some("it was changed, or the row before it was replaced")
    }

    /// Rows that were removed from the end leave the highest number that was given.
    fn end(&self, db: &Connection, ledger: String) -> rusqlite::Result<Verified> {
        let given: i64 = db
            .prepare_cached(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'rows'",
            )?
            .query_row([], |row| row.get(0))?;
        let last = self.after.unsigned_abs();
        Ok(if given > self.after {
            Verified::Broken {
                row: last + 1,
                reason: "it and what follows it are missing",
            }
        } else {
            let rows = self.rows;
            Verified::Whole { rows, ledger, last }
        })
    }
}
