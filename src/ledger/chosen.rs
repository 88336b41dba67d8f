//! Of which indexes the manifests are parts that were chosen for a platform.

use rusqlite::{Connection, params_from_iter};

use super::Ledger;
use super::raw::{image, parsed};
use crate::fault::Fault;
use crate::job::TagId;
use crate::oci::Digest;

impl Ledger {
    /// The indexes from which a digest was chosen for a platform, for tags of a place's repository.
    pub async fn indexes_of(&self, place: &TagId, digest: &Digest) -> Result<Vec<Digest>, Fault> {
        let chosen = image(place.origin.as_str(), &place.repository, digest);
        self.read(move |db| of(db, &chosen)).await
    }
}

fn of(db: &Connection, chosen: &[String; 3]) -> rusqlite::Result<Vec<Digest>> {
    let mut read = db.prepare_cached(
        "SELECT whole FROM chosen WHERE origin = ?1 AND repository = ?2 AND digest = ?3",
    )?;
    read.query_map(params_from_iter(chosen), |row| parsed(row, 0))?
        .collect()
}

pub(super) fn note(
    db: &Connection,
    place: &TagId,
    digest: &Digest,
    index: &Digest,
) -> rusqlite::Result<()> {
    let [origin, repository, digest] = image(place.origin.as_str(), &place.repository, digest);
    db.prepare_cached(
        "INSERT OR IGNORE INTO chosen (origin, repository, digest, whole) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute([origin, repository, digest, index.to_string()])
    .map(drop)
}
