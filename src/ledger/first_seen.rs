//! When staging was first seen to name a digest, and when its scan was first asked for.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::Ledger;
use super::raw::image;
use crate::clock;
use crate::endpoint::Origin;
use crate::fault::Fault;
use crate::oci::{Digest, RepositoryName};

impl Ledger {
    /// When staging was first seen to name the digest in a source repository. Where that is not
    /// recorded: now, recorded, or with `is_recorded` false nothing.
    pub async fn first_seen(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
        digest: &Digest,
        is_recorded: bool,
    ) -> Result<Option<Timestamp>, Fault> {
        let place = image(origin.as_str(), repository, digest);
        self.first_time(place, is_recorded).await
    }

    /// When the findings of a scan of that digest in a repository were first asked for, and were
    /// not there. As for [`Ledger::first_seen`], in rows of the same table: no origin begins so.
    pub async fn scan_awaited(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
        digest: &Digest,
        is_recorded: bool,
    ) -> Result<Option<Timestamp>, Fault> {
        let place = image(&format!("scan {origin}"), repository, digest);
        self.first_time(place, is_recorded).await
    }

    async fn first_time(
        &self,
        place: [String; 3],
        is_recorded: bool,
    ) -> Result<Option<Timestamp>, Fault> {
        let key = place.clone();
        let known = self.read(move |db| of(db, &key)).await?;
        if known.is_some() || !is_recorded {
            return Ok(known);
        }
        let now = clock::now();
        self.write(move |db| note(db, &place, now)).await
    }
}

fn of(db: &Connection, place: &[String; 3]) -> rusqlite::Result<Option<Timestamp>> {
    let at = db
        .prepare_cached(
            "SELECT at FROM first_seen WHERE origin = ?1 AND repository = ?2 AND digest = ?3",
        )?
        .query_row(params![place[0], place[1], place[2]], |row| {
            row.get::<_, i64>(0)
        })
        .optional()?;
    Ok(at.and_then(|at| Timestamp::from_millisecond(at).ok()))
}

fn note(
    db: &Connection,
    place: &[String; 3],
    now: Timestamp,
) -> rusqlite::Result<Option<Timestamp>> {
    let [origin, repository, digest] = place;
    db.prepare_cached(
        "INSERT OR IGNORE INTO first_seen (origin, repository, digest, at) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![origin, repository, digest, now.as_millisecond()])?;
    of(db, place)
}
