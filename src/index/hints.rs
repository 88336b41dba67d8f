//! Hints: blobs, manifests and tags that were seen in a repository, and when.

use std::collections::HashMap;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::schema::{StoredDigest, stored_length};
use super::{Index, now, seen};
use crate::endpoint::{Origin, RepositoryId};
use crate::job::TagId;
use crate::oci::{Digest, RepositoryName, Tag};

/// A blob that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobHint {
    /// Length in bytes.
    pub size: u64,
    /// When the registry last said, or showed, that it holds it.
    pub seen: Timestamp,
}

/// A repository that may hold a blob: something to offer as mount source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobHolder {
    /// The repository.
    pub repository: RepositoryName,
    /// Whether a manifest in it refers to the blob.
    pub committed: bool,
}

/// A manifest that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestHint {
    /// When the registry last said, or showed, that it holds it.
    pub seen: Timestamp,
    /// Whether all its content was known to be there too.
    pub complete: bool,
}

/// What a tag was seen to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagHint {
    /// The digest.
    pub digest: Digest,
    /// When.
    pub seen: Timestamp,
}

/// An image that a tag names, with all its content.
#[derive(Clone, Debug)]
pub struct HeldImage {
    /// Each with its length in bytes.
    pub blobs: Vec<(Digest, u64)>,
    /// All of it.
    pub manifests: Vec<Digest>,
    /// The tag.
    pub tag: Tag,
    /// What it names.
    pub hint: TagHint,
}

/// Blobs.
impl Index {
    /// What is known of a blob in a repository.
    pub async fn blob(&self, repository: &RepositoryId, digest: &Digest) -> Option<BlobHint> {
        let digest = *digest;
        self.read_in(repository, move |db, repository| {
            blob(db, repository, &digest)
        })
        .await
    }

    /// Hints for many blobs of a repository. Blobs without a hint are left out.
    pub async fn blobs(
        &self,
        repository: &RepositoryId,
        digests: &[Digest],
    ) -> HashMap<Digest, BlobHint> {
        let digests = digests.to_vec();
        self.read_in(repository, move |db, repository| {
            digests
                .into_iter()
                .map(|digest| Ok(blob(db, repository, &digest)?.map(|hint| (digest, hint))))
                .filter_map(Result::transpose)
                .collect()
        })
        .await
    }

    /// Repositories of a registry that may hold a blob, at most so many, the newest seen first.
    pub async fn holders(&self, origin: &Origin, digest: &Digest, most: usize) -> Vec<BlobHolder> {
        let origin = origin.clone();
        let digest = *digest;
        self.read(move |db| {
            let mut holders = db.prepare_cached(
                "SELECT name, committed FROM blobs JOIN repositories ON id = repository
                 WHERE digest = ?1 AND origin = ?2 ORDER BY seen DESC, id DESC LIMIT ?3",
            )?;
            let found =
                holders.query_map(
                    params![
                        StoredDigest(digest),
                        origin.as_str(),
                        stored_length(most as u64)
                    ],
                    |row| {
                        Ok(parsed::<RepositoryName>(row, 0)?
                            .map(|repository| (repository, row.get(1))))
                    },
                )?;
            found
                .filter_map(Result::transpose)
                .map(|found| {
                    found.and_then(|(repository, committed)| {
                        Ok(BlobHolder {
                            repository,
                            committed: committed?,
                        })
                    })
                })
                .collect()
        })
        .await
    }

    /// Blobs, each with its length in bytes, are in a repository now; `committed`: a manifest there
    /// refers to them.
    pub async fn remember_blobs(
        &self,
        repository: &RepositoryId,
        blobs: Vec<(Digest, u64)>,
        committed: bool,
    ) {
        self.queue_in(repository, move |db, repository| {
            add_blobs(db, repository, &blobs, committed)
        })
        .await;
    }

    /// Blobs are not in a repository, whatever was believed.
    pub async fn forget_blobs(&self, repository: &RepositoryId, digests: Vec<Digest>) {
        self.queue_in(repository, move |db, repository| {
            let mut forget =
                db.prepare_cached("DELETE FROM blobs WHERE digest = ?1 AND repository = ?2")?;
            digests.into_iter().try_for_each(|digest| {
                forget
                    .execute(params![StoredDigest(digest), repository])
                    .map(drop)
            })
        })
        .await;
    }
}

/// Manifests.
impl Index {
    /// What is known of a manifest in a repository.
    pub async fn manifest(
        &self,
        repository: &RepositoryId,
        digest: &Digest,
    ) -> Option<ManifestHint> {
        let digest = *digest;
        self.read_in(repository, move |db, repository| {
            let row = db
                .prepare_cached(
                    "SELECT seen, complete FROM manifests WHERE digest = ?1 AND repository = ?2",
                )?
                .query_row(params![StoredDigest(digest), repository], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            Ok(row.and_then(|(at, complete)| {
                Some(ManifestHint {
                    seen: seen(at)?,
                    complete,
                })
            }))
        })
        .await
    }

    /// Manifests are in a repository now; `complete`: with all their content. A manifest that was
    /// complete stays so.
    pub async fn remember_manifests(
        &self,
        repository: &RepositoryId,
        digests: Vec<Digest>,
        complete: bool,
    ) {
        self.queue_in(repository, move |db, repository| {
            add_manifests(db, repository, &digests, complete)
        })
        .await;
    }

    /// A manifest is not in a repository, or not with all its content, whatever was believed.
    pub async fn forget_manifest(&self, repository: &RepositoryId, digest: &Digest) {
        let digest = *digest;
        self.queue_in(repository, move |db, repository| {
            db.prepare_cached("DELETE FROM manifests WHERE digest = ?1 AND repository = ?2")?
                .execute(params![StoredDigest(digest), repository])
                .map(drop)
        })
        .await;
    }

    /// When the referrers of a subject were last looked for in a repository.
    pub async fn checked(&self, repository: &RepositoryId, digest: &Digest) -> Option<Timestamp> {
        let digest = *digest;
        self.read_in(repository, move |db, repository| {
            let at = db
                .prepare_cached(
                    "SELECT seen FROM referrers_checked WHERE digest = ?1 AND repository = ?2",
                )?
                .query_row(params![StoredDigest(digest), repository], |row| row.get(0))
                .optional()?;
            Ok(at.and_then(seen))
        })
        .await
    }

    /// The referrers of a subject have been looked for in a repository now.
    pub async fn mark_checked(&self, repository: &RepositoryId, digest: &Digest) {
        let digest = *digest;
        self.queue_in(repository, move |db, repository| {
            db.prepare_cached("INSERT OR REPLACE INTO referrers_checked (digest, repository, seen) VALUES (?1, ?2, ?3)")?
                .execute(params![StoredDigest(digest), repository, now()])
                .map(drop)
        })
        .await;
    }
}

/// Tags.
impl Index {
    /// What a tag was last seen to name.
    pub async fn tag(&self, place: &TagId) -> Option<TagHint> {
        let tag = place.tag.clone();
        self.read_in(&place.repository_id(), move |db, repository| {
            let row = db
                .prepare_cached("SELECT digest, seen FROM tags WHERE repository = ?1 AND tag = ?2")?
                .query_row(params![repository, tag.as_str()], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            Ok(row.and_then(|(StoredDigest(digest), at)| {
                Some(TagHint {
                    digest,
                    seen: seen(at)?,
                })
            }))
        })
        .await
    }

    /// What every tag of a repository was last seen to name.
    pub async fn tags(&self, repository: &RepositoryId) -> HashMap<Tag, TagHint> {
        self.read_in(repository, |db, repository| {
            let mut tags =
                db.prepare_cached("SELECT tag, digest, seen FROM tags WHERE repository = ?1")?;
            tags.query_map([repository], |row| {
                let (tag, StoredDigest(digest), at) =
                    (parsed::<Tag>(row, 0)?, row.get(1)?, row.get(2)?);
                Ok(tag
                    .zip(seen(at))
                    .map(|(tag, seen)| (tag, TagHint { digest, seen })))
            })?
            .filter_map(Result::transpose)
            .collect()
        })
        .await
    }

    /// What tags of a repository were seen to name; `None`: there is no such tag. What was seen
    /// later stays, unless its time has yet to come.
    pub async fn remember_tags(
        &self,
        repository: &RepositoryId,
        tags: Vec<(Tag, Option<TagHint>)>,
    ) {
        self.queue_in(repository, move |db, repository| {
            set_tags(db, repository, tags.iter().map(|(tag, hint)| (tag, *hint)))
        })
        .await;
    }

    /// A tag names an image now, and the repository holds all of it.
    pub async fn remember_image(&self, repository: &RepositoryId, image: HeldImage) {
        self.queue_in(repository, move |db, repository| {
            add_blobs(db, repository, &image.blobs, true)?;
            add_manifests(db, repository, &image.manifests, true)?;
            set_tags(db, repository, [(&image.tag, Some(image.hint))])
        })
        .await;
    }

    /// Forgets what a tag names.
    pub async fn forget_tag(&self, place: &TagId) {
        let tag = place.tag.clone();
        self.queue_in(&place.repository_id(), move |db, repository| {
            forget_tag(db, repository, &tag)
        })
        .await;
    }
}

fn add_blobs(
    db: &Connection,
    repository: i64,
    blobs: &[(Digest, u64)],
    committed: bool,
) -> rusqlite::Result<()> {
    let mut remember = db.prepare_cached(
        "INSERT INTO blobs (digest, repository, size, seen, committed) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET size = ?3, seen = ?4, committed = max(committed, ?5)",
    )?;
    let now = now();
    blobs.iter().try_for_each(|(digest, size)| {
        let digest = StoredDigest(*digest);
        remember
            .execute(params![
                digest,
                repository,
                stored_length(*size),
                now,
                committed
            ])
            .map(drop)
    })
}

fn add_manifests(
    db: &Connection,
    repository: i64,
    digests: &[Digest],
    complete: bool,
) -> rusqlite::Result<()> {
    let mut remember = db.prepare_cached(
        "INSERT INTO manifests (digest, repository, seen, complete) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET seen = ?3, complete = max(complete, ?4)",
    )?;
    let now = now();
    digests.iter().try_for_each(|digest| {
        remember
            .execute(params![StoredDigest(*digest), repository, now, complete])
            .map(drop)
    })
}

fn set_tags<'a>(
    db: &Connection,
    repository: i64,
    tags: impl IntoIterator<Item = (&'a Tag, Option<TagHint>)>,
) -> rusqlite::Result<()> {
    let mut remember = db.prepare_cached(
        "INSERT INTO tags (repository, tag, digest, seen) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET digest = ?3, seen = ?4 WHERE seen <= ?4 OR seen > ?5",
    )?;
    let now = now();
    for (tag, hint) in tags {
        let Some(TagHint { digest, seen }) = hint else {
            forget_tag(db, repository, tag)?;
            continue;
        };
        let digest = StoredDigest(digest);
        let seen = seen.as_millisecond();
        remember.execute(params![repository, tag.as_str(), digest, seen, now])?;
    }
    Ok(())
}

fn blob(db: &Connection, repository: i64, digest: &Digest) -> rusqlite::Result<Option<BlobHint>> {
    let row = db
        .prepare_cached("SELECT size, seen FROM blobs WHERE digest = ?1 AND repository = ?2")?
        .query_row(params![StoredDigest(*digest), repository], |row| {
            Ok((row.get::<_, i64>(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(row.and_then(|(size, at)| {
        Some(BlobHint {
            size: u64::try_from(size).ok()?,
            seen: seen(at)?,
        })
    }))
}

fn forget_tag(db: &Connection, repository: i64, tag: &Tag) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM tags WHERE repository = ?1 AND tag = ?2")?
        .execute(params![repository, tag.as_str()])
        .map(drop)
}

/// A name of a column, unless the grammar has become narrower since it was stored.
fn parsed<T: FromStr>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    Ok(row.get_ref(column)?.as_str()?.parse().ok())
}
