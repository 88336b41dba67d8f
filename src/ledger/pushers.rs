//! The names that registries gave for pushes of a digest.

use rusqlite::Connection;

use super::Ledger;
use super::raw::image;
use crate::endpoint::Origin;
use crate::fault::Fault;
use crate::oci::{Digest, RepositoryName};

/// Most names of one digest.
const MOST: usize = 100;

impl Ledger {
    /// Records the pushers of a digest to a source repository.
    pub async fn note_pushers(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
        digest: &Digest,
        pushers: Vec<String>,
    ) -> Result<(), Fault> {
        let place = image(origin.as_str(), repository, digest);
        self.write(move |db| {
            let room = MOST.saturating_sub(of(db, &place)?.len());
            let [origin, repository, digest] = &place;
            pushers.iter().take(room).try_for_each(|pusher| {
                db.prepare_cached(
                    "INSERT OR IGNORE INTO pushers (origin, repository, digest, pusher) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute([origin, repository, digest, pusher])
                .map(drop)
            })
        })
        .await
    }

    /// The names that were recorded for a digest.
    pub async fn pushers(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Vec<String>, Fault> {
        let place = image(origin.as_str(), repository, digest);
        self.read(move |db| of(db, &place)).await
    }
}

fn of(db: &Connection, place: &[String; 3]) -> rusqlite::Result<Vec<String>> {
    db.prepare_cached(
        "SELECT pusher FROM pushers WHERE origin = ?1 AND repository = ?2 AND digest = ?3 ORDER BY pusher",
    )?
    .query_map(place.each_ref(), |row| row.get(0))?
    .collect()
}
