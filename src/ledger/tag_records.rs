//! What is known of production tags: what we wrote or both sides agreed on, what was announced,
//! what was reported.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::raw::parsed;
use super::{TagRecord, names};
use crate::clock;
use crate::endpoint::Origin;
use crate::job::TagId;
use crate::oci::{Digest, Tag};

/// Digests that may have been written at one place, at most: the newest are kept.
const MOST_INTENDED: i64 = 32;

pub(super) fn of_place(db: &Connection, place: &TagId) -> rusqlite::Result<TagRecord> {
    let mut known = db
        .prepare_cached("SELECT digest, agreed, at FROM written WHERE origin = ?1 AND repository = ?2 AND tag = ?3")?
        .query_row(names(place), |row| recorded(row, 0))
        .optional()?
        .unwrap_or_default();
    let mut intents = db.prepare_cached(
        "SELECT digest, replaces FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 ORDER BY id",
    )?;
    for intent in intents.query_map(names(place), |row| intent(row, 0))? {
        known.add(intent?);
    }
    known.reported = db
        .prepare_cached(
            "SELECT digest FROM reported WHERE origin = ?1 AND repository = ?2 AND tag = ?3",
        )?
        .query_row(names(place), |row| parsed(row, 0))
        .optional()?;
    Ok(known)
}

pub(super) fn of_repository(
    db: &Connection,
    origin: &str,
    repository: &str,
) -> rusqlite::Result<HashMap<Tag, TagRecord>> {
    let mut known = db
        .prepare_cached(
            "SELECT tag, digest, agreed, at FROM written WHERE origin = ?1 AND repository = ?2",
        )?
        .query_map([origin, repository], |row| {
            Ok((parsed::<Tag>(row, 0)?, recorded(row, 1)?))
        })?
        .collect::<rusqlite::Result<HashMap<Tag, TagRecord>>>()?;
    let mut intents = db.prepare_cached(
        "SELECT tag, digest, replaces FROM intents WHERE origin = ?1 AND repository = ?2 ORDER BY id",
    )?;
    for intended in intents.query_map([origin, repository], intended)? {
        let (tag, intent) = intended?;
        known.entry(tag).or_default().add(intent);
    }
    let mut reports = db
        .prepare_cached("SELECT tag, digest FROM reported WHERE origin = ?1 AND repository = ?2")?;
    for report in reports.query_map([origin, repository], reported)? {
        let (tag, digest) = report?;
        known.entry(tag).or_default().reported = Some(digest);
    }
    Ok(known)
}

/// The columns `tag, digest, replaces`.
fn intended(row: &Row<'_>) -> rusqlite::Result<(Tag, Intent)> {
    Ok((parsed(row, 0)?, intent(row, 1)?))
}

/// The columns `tag, digest`.
fn reported(row: &Row<'_>) -> rusqlite::Result<(Tag, Digest)> {
    Ok((parsed(row, 0)?, parsed(row, 1)?))
}

/// The columns `digest, agreed, at`, from `column` on.
fn recorded(row: &Row<'_>, column: usize) -> rusqlite::Result<TagRecord> {
    let at = Timestamp::from_millisecond(row.get(column + 2)?).ok();
    Ok(TagRecord {
        digest: Some(parsed(row, column)?),
        agreed: row.get(column + 1)?,
        at,
        ..TagRecord::default()
    })
}

/// An announced digest, and what the place named then.
struct Intent {
    digest: Digest,
    replaces: Option<Digest>,
}

/// The columns `digest, replaces`, from `column` on.
fn intent(row: &Row<'_>, column: usize) -> rusqlite::Result<Intent> {
    let replaces: Option<String> = row.get(column + 1)?;
    Ok(Intent {
        digest: parsed(row, column)?,
        replaces: replaces.map(|_| parsed(row, column + 1)).transpose()?,
    })
}

impl TagRecord {
    /// Adds an intent, the oldest first.
    fn add(&mut self, intent: Intent) {
        let is_first = self.intended.is_empty();
        self.replaced = intent
            .replaces
            .filter(|replaces| is_first || self.replaced.as_ref() == Some(replaces));
        self.intended.push(intent.digest);
    }
}

/// An earlier intent stays: its answer may have been lost, and then the place names it still. One
/// that was announced over another digest may have arrived over that. Returns whether it is new.
pub(super) fn intend(
    db: &Connection,
    place: &TagId,
    digest: &Digest,
    replaces: Option<&Digest>,
) -> rusqlite::Result<bool> {
    let [origin, repository, tag] = names(place);
    let earlier = db
        .prepare_cached(
            "SELECT digest, replaces FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 AND digest = ?4",
        )?
        .query_row(params![origin, repository, tag, digest.to_string()], |row| intent(row, 0))
        .optional()?;
    let replaces = replaces.filter(|replaces| {
        let earlier = earlier.as_ref();
        earlier.is_none_or(|earlier| earlier.replaces.as_ref() == Some(replaces))
    });
    db.prepare_cached(
        "INSERT OR REPLACE INTO intents (origin, repository, tag, digest, replaces) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![origin, repository, tag, digest.to_string(), replaces.map(Digest::to_string)])?;
    db.prepare_cached(
        "DELETE FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 AND id NOT IN (
             SELECT id FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 ORDER BY id DESC LIMIT ?4)",
    )?
    .execute(params![origin, repository, tag, MOST_INTENDED])?;
    Ok(earlier.is_none())
}

/// The newest intents.
pub(super) fn intents(db: &Connection, most: usize) -> rusqlite::Result<Vec<(TagId, Digest)>> {
    db.prepare_cached(
        "SELECT origin, repository, tag, digest FROM intents ORDER BY id DESC LIMIT ?1",
    )?
    .query_map([most as i64], |row| {
        let place = TagId {
            origin: Origin::new(row.get_ref(0)?.as_str()?),
            repository: parsed(row, 1)?,
            tag: parsed(row, 2)?,
        };
        Ok((place, parsed(row, 3)?))
    })?
    .collect()
}

pub(super) fn forget_intent(
    db: &Connection,
    place: &TagId,
    digest: &Digest,
) -> rusqlite::Result<()> {
    let [origin, repository, tag] = names(place);
    db.prepare_cached(
        "DELETE FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 AND digest = ?4",
    )?
    .execute(params![origin, repository, tag, digest.to_string()])
    .map(drop)
}

/// Intents up to the one that was written are over; a newer one may still arrive.
pub(super) fn wrote(db: &Connection, place: &TagId, digest: &Digest) -> rusqlite::Result<()> {
    let [origin, repository, tag] = names(place);
    db.prepare_cached(
        "DELETE FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 AND id <= coalesce(
             (SELECT id FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 AND digest = ?4),
             9223372036854775807)",
    )?
    .execute(params![origin, repository, tag, digest.to_string()])?;
    knows(db, place, digest, false)
}

/// The place is known to name `digest`, if the ledger still knows what it knew when the sides were
/// asked. Intents over that digest stay, and our write `hidden` becomes one: it may not show yet.
pub(super) fn agree(
    db: &Connection,
    place: &TagId,
    digest: &Digest,
    known: &TagRecord,
    hidden: Option<&Digest>,
) -> rusqlite::Result<()> {
    if of_place(db, place)? != *known {
        return Ok(());
    }
    if !known.intended.is_empty() {
        let [origin, repository, tag] = names(place);
        db.prepare_cached(
            "DELETE FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 AND replaces IS NOT ?4",
        )?
        .execute(params![origin, repository, tag, digest.to_string()])?;
    }
    if known.digest.as_ref() == Some(digest) {
        return settle_report(db, place);
    }
    if let Some(hidden) = hidden {
        intend(db, place, hidden, Some(digest))?;
    }
    knows(db, place, digest, true)
}

/// Production names `digest`, and that was reported as drift or existing.
pub(super) fn report(db: &Connection, place: &TagId, digest: &Digest) -> rusqlite::Result<()> {
    let [origin, repository, tag] = names(place);
    db.prepare_cached(
        "INSERT INTO reported (origin, repository, tag, digest) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET digest = ?4 WHERE digest <> ?4",
    )?
    .execute(params![origin, repository, tag, digest.to_string()])
    .map(drop)
}

fn knows(db: &Connection, place: &TagId, digest: &Digest, agreed: bool) -> rusqlite::Result<()> {
    let [origin, repository, tag] = names(place);
    let at = clock::now().as_millisecond();
    db.prepare_cached(
        "INSERT OR REPLACE INTO written (origin, repository, tag, digest, at, agreed) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![origin, repository, tag, digest.to_string(), at, agreed])?;
    settle_report(db, place)
}

fn settle_report(db: &Connection, place: &TagId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM reported WHERE origin = ?1 AND repository = ?2 AND tag = ?3")?
        .execute(names(place))
        .map(drop)
}
