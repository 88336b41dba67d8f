//! The index's tables.
//!
//! Content is keyed by digest, then repository: one tree answers both "does this repository hold
//! it" and "which repositories hold it". A hint takes about 50 bytes. A digest is one byte for its
//! algorithm and then its raw bytes; times are milliseconds since 1970. The counts are kept by
//! triggers, so that asking for them does not walk a million rows.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};

use crate::oci::Digest;
use crate::sqlite::Schema;

pub(super) const SCHEMA: Schema = Schema {
    name: "index",
    durable: false,
    application: 0x62_66_69_78,
    migrations: &[VERSION_1, VERSION_2, VERSION_3, VERSION_4],
    fill: |_| Ok(()),
};

const VERSION_1: &str = "
    CREATE TABLE repositories (
        id INTEGER PRIMARY KEY,
        origin TEXT NOT NULL,
        name TEXT NOT NULL,
        UNIQUE (origin, name)
    ) STRICT;

    CREATE TABLE blobs (
        digest BLOB NOT NULL,
        repository INTEGER NOT NULL REFERENCES repositories (id),
        size INTEGER NOT NULL,
        seen INTEGER NOT NULL,
        committed INTEGER NOT NULL,  -- whether a manifest of the repository refers to it
        PRIMARY KEY (digest, repository)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE manifests (
        digest BLOB NOT NULL,
        repository INTEGER NOT NULL REFERENCES repositories (id),
        seen INTEGER NOT NULL,
        complete INTEGER NOT NULL,  -- whether all its content is there
        PRIMARY KEY (digest, repository)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE referrers_checked (
        digest BLOB NOT NULL,
        repository INTEGER NOT NULL REFERENCES repositories (id),
        seen INTEGER NOT NULL,
        PRIMARY KEY (digest, repository)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE tags (
        repository INTEGER NOT NULL REFERENCES repositories (id),
        tag TEXT NOT NULL,
        digest BLOB NOT NULL,
        seen INTEGER NOT NULL,
        PRIMARY KEY (repository, tag)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE uploads (
        id INTEGER PRIMARY KEY,
        repository INTEGER NOT NULL REFERENCES repositories (id),
        digest BLOB NOT NULL,
        size INTEGER NOT NULL,
        location TEXT NOT NULL,
        finishing INTEGER NOT NULL DEFAULT 0,
        opened INTEGER NOT NULL,
        UNIQUE (repository, digest)
    ) STRICT;

    CREATE TABLE checkpoints (
        upload INTEGER NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
        sent INTEGER NOT NULL,  -- bytes from the start of the blob
        state BLOB NOT NULL,  -- the hasher after them
        PRIMARY KEY (upload, sent)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE counts (kind TEXT PRIMARY KEY, entries INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO counts VALUES ('blobs', 0), ('manifests', 0), ('tags', 0), ('uploads', 0);
    CREATE TRIGGER more_blobs AFTER INSERT ON blobs BEGIN
        UPDATE counts SET entries = entries + 1 WHERE kind = 'blobs'; END;
    CREATE TRIGGER fewer_blobs AFTER DELETE ON blobs BEGIN
        UPDATE counts SET entries = entries - 1 WHERE kind = 'blobs'; END;
    CREATE TRIGGER more_manifests AFTER INSERT ON manifests BEGIN
        UPDATE counts SET entries = entries + 1 WHERE kind = 'manifests'; END;
    CREATE TRIGGER fewer_manifests AFTER DELETE ON manifests BEGIN
        UPDATE counts SET entries = entries - 1 WHERE kind = 'manifests'; END;
    CREATE TRIGGER more_tags AFTER INSERT ON tags BEGIN
        UPDATE counts SET entries = entries + 1 WHERE kind = 'tags'; END;
    CREATE TRIGGER fewer_tags AFTER DELETE ON tags BEGIN
        UPDATE counts SET entries = entries - 1 WHERE kind = 'tags'; END;
    CREATE TRIGGER more_uploads AFTER INSERT ON uploads BEGIN
        UPDATE counts SET entries = entries + 1 WHERE kind = 'uploads'; END;
    CREATE TRIGGER fewer_uploads AFTER DELETE ON uploads BEGIN
        UPDATE counts SET entries = entries - 1 WHERE kind = 'uploads'; END;
";

const VERSION_2: &str = "
    -- repositories that we created and that are not set up yet
    CREATE TABLE unfinished (
        repository INTEGER PRIMARY KEY REFERENCES repositories (id),
        since INTEGER NOT NULL
    ) STRICT;
";

const VERSION_3: &str = "
    -- the ledger beside this index and its last row, as of some time; at most one row
    CREATE TABLE ledger (id TEXT NOT NULL, last_row INTEGER NOT NULL) STRICT;
";

const VERSION_4: &str = "
    -- the hash of that row: another row may have its number
    ALTER TABLE ledger ADD COLUMN hash BLOB;
";

/// A digest as the tables hold it.
pub(super) struct StoredDigest(pub Digest);

impl ToSql for StoredDigest {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let (algorithm, bytes): (u8, &[u8]) = match &self.0 {
            Digest::Sha256(bytes) => (1, bytes),
            Digest::Sha512(bytes) => (2, bytes),
        };
        Ok([&[algorithm], bytes].concat().into())
    }
}

impl FromSql for StoredDigest {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<StoredDigest> {
        let digest = match value.as_blob()? {
            [1, bytes @ ..] => bytes.try_into().ok().map(Digest::Sha256),
            [2, bytes @ ..] => bytes.try_into().ok().map(Digest::Sha512),
            _ => None,
        };
        digest.map(StoredDigest).ok_or(FromSqlError::InvalidType)
    }
}

/// SQLite's integers are signed; no length that we meet is beyond them.
pub(super) fn stored_length(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use rusqlite::Connection;

    #[test]
    fn a_digest_comes_back_as_it_went_in() {
        let db = Connection::open_in_memory().unwrap();
        let read_back = |value: &dyn ToSql| {
            db.query_row("SELECT ?1", [value], |row| row.get::<_, StoredDigest>(0))
        };
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"content");
            assert_eq!(read_back(&StoredDigest(digest)).unwrap().0, digest);
        }
        for damaged in [&[][..], &[1], &[3; 33], &[1; 34]] {
            assert!(read_back(&damaged).is_err());
        }
    }
}
