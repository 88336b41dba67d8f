//! Namings of sets that have begun: what a restart goes on with, or reports.

use rusqlite::{OptionalExtension as _, params};

use super::raw::json;
use super::{Ledger, tag_records};
use crate::decision::SetName;
use crate::endpoint::Origin;
use crate::fault::Fault;
use crate::job::TagId;
use crate::oci::{Digest, RepositoryName, Tag};
use crate::set::Naming;

impl Ledger {
    /// Announces that a set is about to be named.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn begin_set(&self, name: &SetName, naming: &Naming) -> Result<(), Fault> {
        let name = name.clone();
        let naming = naming.clone();
        self.write(move |db| {
            db.prepare_cached(
                "INSERT OR REPLACE INTO set_namings (name, tag, content) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![&*name.set, name.tag.as_str(), json(&naming)?])
            .map(drop)
        })
        .await
    }

    /// The naming of a set that has begun and is not over.
    pub async fn set_naming(&self, name: &SetName) -> Result<Option<Naming>, Fault> {
        let name = name.clone();
        self.read(move |db| {
            let content: Option<String> = db
                .prepare_cached("SELECT content FROM set_namings WHERE name = ?1 AND tag = ?2")?
                .query_row(params![&*name.set, name.tag.as_str()], |row| row.get(0))
                .optional()?;
            // What a later version wrote is none: its members are then judged anew.
            Ok(content.and_then(|content| serde_json::from_str(&content).ok()))
        })
        .await
    }

    /// The naming of a set is over.
    pub async fn end_set(&self, name: &SetName) -> Result<(), Fault> {
        let name = name.clone();
        self.write(move |db| {
            db.prepare_cached("DELETE FROM set_namings WHERE name = ?1 AND tag = ?2")?
                .execute(params![&*name.set, name.tag.as_str()])
                .map(drop)
        })
        .await
    }

    /// The tags of a destination repository that are known to name a digest.
    pub async fn tags_at(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
        digest: Digest,
    ) -> Result<Vec<Tag>, Fault> {
        let place = (origin.clone(), repository.clone());
        self.read(move |db| {
            let (origin, repository) = &place;
            db.prepare_cached(
                "SELECT tag FROM written WHERE origin = ?1 AND repository = ?2 AND digest = ?3 ORDER BY tag",
            )?
            .query_map(
                [origin.as_str(), repository.as_str(), &digest.to_string()],
                |row| super::raw::parsed(row, 0),
            )?
            .collect()
        }).await
    }

    /// What each of some tags is known to name, where nothing was reported of it since.
    pub async fn named_at(&self, places: Vec<TagId>) -> Result<Vec<Option<Digest>>, Fault> {
        self.read(move |db| {
            let named = places.iter().map(|place| {
                let record = tag_records::of_place(db, place)?;
                Ok(record.digest.filter(|_| record.reported.is_none()))
            });
            named.collect()
        })
        .await
    }
}
