//! The journal that uploads are resumed from: the session, and the hasher's state at offsets along
//! the blob.
//!
//! At most one upload of a blob into a repository is open. A state is true of the content alone, so
//! checkpoints of an upload stay true whatever becomes of its session. The phase `finishing` says
//! that the closing request may have reached the registry: then the first question is whether the
//! blob is there.

use std::fmt;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::schema::{StoredDigest, stored_length};
use super::{Index, now};
use crate::endpoint::RepositoryId;
use crate::oci::Digest;

/// Checkpoints of one upload, at most: enough for 64 GiB without a gap. Beyond it the older half is
/// thinned out, since an upload goes on near its end.
const MOST_CHECKPOINTS: i64 = 8192;

/// An upload that is, or was, open.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredUpload {
    /// Where its next request goes. It may work like a password: it is never shown or logged, and
    /// credentials go to it only after its origin has been checked again.
    pub location: String,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Whether the closing request may have reached the registry.
    pub finishing: bool,
    /// When the session was opened.
    pub opened: Timestamp,
    /// Where it can go on from, by ascending offset.
    pub checkpoints: Vec<Checkpoint>,
}

impl fmt::Debug for StoredUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredUpload")
            .field("location", &"[hidden]")
            .field("size", &self.size)
            .field("finishing", &self.finishing)
            .field("opened", &self.opened)
            .field("checkpoints", &self.checkpoints)
            .finish()
    }
}

/// An offset that an upload can go on from.
#[derive(Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Bytes from the start of the blob.
    pub offset: u64,
    /// The hasher after them, as [`crate::oci::digest::Hasher::save`] wrote it.
    pub state: Vec<u8>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({})", self.offset)
    }
}

impl Index {
    /// A session for a blob of `size` bytes has been opened; what was known of an earlier one is
    /// dropped.
    pub async fn open_upload(
        &self,
        repository: &RepositoryId,
        digest: &Digest,
        size: u64,
        location: &str,
    ) {
        let digest = *digest;
        let location = location.to_owned();
        self.queue_in(repository, move |db, repository| {
            close(db, repository, &digest)?;
            db.prepare_cached("INSERT INTO uploads (repository, digest, size, location, opened) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![repository, StoredDigest(digest), stored_length(size), location, now()])
                .map(drop)
        })
        .await;
    }

    /// The upload can go on after `offset` bytes with the hasher in `state`. Nothing is kept for an
    /// upload that is not open.
    pub async fn checkpoint(
        &self,
        repository: &RepositoryId,
        digest: &Digest,
        offset: u64,
        state: Vec<u8>,
    ) {
        let digest = *digest;
        self.queue_in(repository, move |db, repository| {
            let Some(upload) = number(db, repository, &digest)? else {
                return Ok(());
            };
            db.prepare_cached(
                "INSERT OR REPLACE INTO checkpoints (upload, sent, state) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![upload, stored_length(offset), state])?;
            thin_out(db, upload, MOST_CHECKPOINTS)
        })
        .await;
    }

    /// The closing request is about to be sent. Returns when that is on the disk (or the disk has
    /// failed).
    pub async fn finishing(&self, repository: &RepositoryId, digest: &Digest) {
        let repository = repository.clone();
        let digest = *digest;
        let noted = self.store.write(move |db| {
            let Some(repository) = super::known_number(db, &repository)? else {
                return Ok(());
            };
            db.prepare_cached(
                "UPDATE uploads SET finishing = 1 WHERE repository = ?1 AND digest = ?2",
            )?
            .execute(params![repository, StoredDigest(digest)])
            .map(drop)
        });
        self.health.note_write(noted.await);
    }

    /// The upload of a blob that was left open, if there is one.
    pub async fn upload(&self, repository: &RepositoryId, digest: &Digest) -> Option<StoredUpload> {
        let digest = *digest;
        self.read_in(repository, move |db, repository| {
            let Some(upload) = number(db, repository, &digest)? else {
                return Ok(None);
            };
            let checkpoints = checkpoints(db, upload)?;
            db.prepare_cached(
                "SELECT location, size, finishing, opened FROM uploads WHERE id = ?1",
            )?
            .query_row([upload], |row| {
                Ok(StoredUpload {
                    location: row.get(0)?,
                    size: row.get::<_, i64>(1)?.unsigned_abs(),
                    finishing: row.get(2)?,
                    opened: Timestamp::from_millisecond(row.get(3)?)
                        .unwrap_or(Timestamp::UNIX_EPOCH),
                    checkpoints,
                })
            })
            .optional()
        })
        .await
    }

    /// The upload has ended, well or not: nothing is left to go on from.
    pub async fn close_upload(&self, repository: &RepositoryId, digest: &Digest) {
        let digest = *digest;
        self.queue_in(repository, move |db, repository| {
            close(db, repository, &digest)
        })
        .await;
    }
}

fn number(db: &Connection, repository: i64, digest: &Digest) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT id FROM uploads WHERE repository = ?1 AND digest = ?2")?
        .query_row(params![repository, StoredDigest(*digest)], |row| row.get(0))
        .optional()
}

fn checkpoints(db: &Connection, upload: i64) -> rusqlite::Result<Vec<Checkpoint>> {
    db.prepare_cached("SELECT sent, state FROM checkpoints WHERE upload = ?1 ORDER BY sent")?
        .query_map([upload], |row| {
            Ok(Checkpoint {
                offset: row.get::<_, i64>(0)?.unsigned_abs(),
                state: row.get(1)?,
            })
        })?
        .collect()
}

fn close(db: &Connection, repository: i64, digest: &Digest) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM uploads WHERE repository = ?1 AND digest = ?2")?
        .execute(params![repository, StoredDigest(*digest)])
        .map(drop)
}

fn thin_out(db: &Connection, upload: i64, most: i64) -> rusqlite::Result<()> {
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM checkpoints WHERE upload = ?1")?
        .query_row([upload], |row| row.get(0))?;
    if count <= most {
        return Ok(());
    }
    db.prepare_cached(
        "DELETE FROM checkpoints WHERE upload = ?1 AND sent IN (
             SELECT sent FROM (SELECT sent, row_number() OVER (ORDER BY sent) AS place FROM checkpoints WHERE upload = ?1)
             WHERE place <= ?2 AND place % 2 = 1)",
    )?
    .execute([upload, count / 2])
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_newer_half_and_every_second_of_the_older() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE checkpoints (upload, sent, state)")
            .unwrap();
        for sent in 1..=10 {
            db.execute("INSERT INTO checkpoints VALUES (1, ?1, x'')", [sent])
                .unwrap();
        }
        db.execute("INSERT INTO checkpoints VALUES (2, 1, x'')", [])
            .unwrap();
        thin_out(&db, 1, 10).unwrap();
        assert_eq!(checkpoints(&db, 1).unwrap().len(), 10);
        thin_out(&db, 1, 9).unwrap();
        let left: Vec<_> = checkpoints(&db, 1)
            .unwrap()
            .iter()
            .map(|checkpoint| checkpoint.offset)
            .collect();
        assert_eq!(left, [2, 4, 6, 7, 8, 9, 10]);
        assert_eq!(checkpoints(&db, 2).unwrap().len(), 1);
    }
}
