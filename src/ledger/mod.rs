//! The ledger: what happened, and what we wrote where.
//!
//! Append-only rows, one for each change of a job's result, and for each place in a destination the digest that it names by our
//! hand. The plan tells our own tags from those of people by it, so losing it makes us more careful, never less: what we
//! wrote then counts as existing. For the same reason it is never set aside by itself: an unusable one is an error.
//!
//! [`Ledger::intend`] and [`Ledger::record`] return when the disk has it. Between them the tag is moved: whatever instant a crash
//! chooses, what the tag names afterwards is known to be ours.
//!
//! Places are keyed by origin, repository and tag, jobs by route and both sides, so that renaming a registry in the config
//! loses nothing.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::clock;
use crate::endpoint::Origin;
use crate::fault::Fault;
use crate::job::{Key, Outcome, Place, Settled};
use crate::oci::{Digest, RepositoryName};
use crate::sqlite::{Disk, Failure, OpenError, Store};
use crate::state::{FolderCheck, Gone, StateLock};

mod rows;
mod schema;

pub use rows::{Query, Row};

/// The file in the state folder.
const FILE: &str = "ledger.db";
/// Digests that may have been written at one place, at most: the newest are kept.
const MOST_INTENDED: i64 = 32;

/// Why there is no ledger. Each text says the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not ours or broken.
    #[error(
        "the ledger {} is damaged: {reason} (restore a copy of it; or move it away and start without: every tag that was written so far then counts as `existing`)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer program wrote it.
    #[error(
        "the ledger {} was written by a newer version of blobferry (run that one; or restore a copy of the ledger from before it; or move the ledger away and start without: every tag that was written so far then counts as `existing`)",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be reached.
    #[error("the ledger cannot be used: {0}")]
    Unavailable(OpenError),
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Error {
        match error {
            OpenError::Damaged { path, reason } => Error::Damaged { path, reason },
            OpenError::Newer { path, .. } => Error::Newer { path },
            OpenError::Unavailable { .. } | OpenError::Exposed(_) => Error::Unavailable(error),
        }
    }
}

/// What we last wrote at a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The digest recorded as written.
    pub digest: Option<Digest>,
    /// Digests that were announced since, and that a crash or a lost answer may have left there; the oldest first.
    pub intended: Vec<Digest>,
}

impl Written {
    /// Whether the place names `digest` by our hand.
    pub fn is_ours(&self, digest: &Digest) -> bool {
        self.digest.as_ref() == Some(digest) || self.intended.contains(digest)
    }

    /// Whether we wrote, or may have written, anything there.
    pub fn known(&self) -> bool {
        self.digest.is_some() || !self.intended.is_empty()
    }
}

/// What a row says beside the settled job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Names the pass.
    pub run_id: String,
    /// The hash of the config that was in force; empty without one.
    pub config_hash: String,
    /// Version of the program.
    pub version: String,
    /// The machine it ran on.
    pub host: String,
}

/// A job whose newest row is trouble.
#[derive(Clone, Debug)]
pub struct Troubled {
    /// Its name.
    pub key: Key,
    /// The trouble.
    pub result: Outcome,
    /// What staging named.
    pub digest: Option<Digest>,
}

/// A handle on the ledger: cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    store: Store,
    folder: Option<FolderCheck>,
}

impl Ledger {
    /// Opens `ledger.db` in the state folder, created when it is missing. Blocks on the disk.
    pub fn open(folder: &Path) -> Result<Ledger, Error> {
        Ok(Ledger { store: Store::open(&folder.join(FILE), &schema::SCHEMA)?, folder: None })
    }

    /// The same ledger, which refuses every intent once the state folder is no longer the one that was locked.
    pub fn guarded_by(self, lock: &StateLock) -> Result<Ledger, Error> {
        let unavailable = |error: io::Error| {
            let (path, reason) = (lock.folder().join(FILE), error.to_string());
            Error::Unavailable(OpenError::Unavailable { path, reason })
        };
        Ok(Ledger { folder: Some(lock.check().and(FILE).map_err(unavailable)?), ..self })
    }

    /// Whether the state folder is still the one that was locked.
    ///
    /// # Errors
    /// [`Gone`]: what is recorded is lost, and nothing may be named.
    pub fn check_folder(&self) -> Result<(), Gone> {
        self.folder.as_ref().map_or(Ok(()), FolderCheck::check)
    }

    /// Opens the `ledger.db` of the state folder for reading alone. `None`: there is none. Blocks on the disk.
    pub fn open_to_read(folder: &Path) -> Result<Option<Ledger>, Error> {
        let store = Store::open_to_read(&folder.join("ledger.db"), &schema::SCHEMA)?;
        Ok(store.map(|store| Ledger { store, folder: None }))
    }

    /// A ledger that remembers as long as the process lives: for commands without a state folder.
    pub fn in_memory() -> Ledger {
        Ledger { store: Store::in_memory(&schema::SCHEMA), folder: None }
    }

    /// The ledger on a simulator's disk, served as long as the future is polled: see [`Store::on_disk`].
    pub fn on_disk(disk: &Disk) -> (Ledger, impl Future<Output = ()> + Send + use<>) {
        let (store, served) = Store::on_disk(disk, &schema::SCHEMA);
        (Ledger { store, folder: None }, served)
    }

    /// Leaves the file. Every handle is closed by it, and what is asked of one later is refused.
    pub async fn close(self) {
        self.store.close().await;
    }

    /// What we last wrote at a place.
    pub async fn written(&self, place: &Place) -> Result<Written, Fault> {
        let place = place.clone();
        self.store.read(move |db| written(db, &place)).await.map_err(unreadable)
    }

    /// Announces that `place` is about to be moved to `digest`.
    ///
    /// # Errors
    /// When that is not on disk, where the next process finds it.
    pub async fn intend(&self, place: &Place, digest: &Digest) -> Result<(), Fault> {
        let (place, digest) = (place.clone(), *digest);
        self.store.write(move |db| intend(db, &place, &digest)).await.map_err(unwritable)?;
        // After the write: a folder that vanished before it is noticed as well.
        self.check_folder().map_err(|gone| Fault::retryable(gone.to_string()))
    }

    /// Adds a row when a settled job says something that the last row of its key does not: see [`is_news`]. With `written`,
    /// the place now names that digest by our hand, in the same instant as the row. Returns whether a row was added.
    pub async fn record(&self, key: &Key, settled: &Settled, facts: Facts, written: Option<Digest>) -> Result<bool, Fault> {
        let (key, settled) = (key.clone(), settled.clone());
        let act = move |db: &Connection| {
            if let Some(digest) = written {
                wrote(db, &key.destination, &digest)?;
            }
            let last = rows::last(db, &key)?;
            let news = is_news(last.as_ref().map(|row| &row.settled), &settled);
            if news {
                rows::add(db, &key, &settled, &facts)?;
            }
            Ok(news)
        };
        self.store.write(act).await.map_err(unwritable)
    }

    /// The newest row of a key.
    pub async fn last(&self, key: &Key) -> Result<Option<Row>, Fault> {
        let key = key.clone();
        self.store.read(move |db| rows::last(db, &key)).await.map_err(unreadable)
    }

    /// The jobs of a destination repository whose newest row is trouble: neither promoted nor up to date.
    pub async fn troubled(&self, origin: &Origin, repository: &RepositoryName) -> Result<Vec<Troubled>, Fault> {
        let (origin, repository) = (origin.clone(), repository.clone());
        self.store.read(move |db| rows::troubled(db, origin.as_str(), repository.as_str())).await.map_err(unreadable)
    }

    /// Rows, a page at a time.
    pub async fn page(&self, query: Query) -> Result<Vec<Row>, Fault> {
        self.store.read(move |db| rows::page(db, &query)).await.map_err(unreadable)
    }
}

/// Whether a settled job tells more than the last row of its key. A promotion always does: it moved a tag. A dry run never
/// does: nothing happened. To be up to date with what was just promoted is no news, unless a signature or another referrer has
/// been brought since; else a change of the result, of either digest, of the class of the error or of the reasons is.
pub fn is_news(last: Option<&Settled>, settled: &Settled) -> bool {
    let class = |settled: &Settled| settled.error.as_ref().map(|trouble| trouble.class.clone());
    let Some(last) = last else { return settled.result != Outcome::Planned };
    match (settled.result, last.result) {
        (Outcome::Promoted, _) => true,
        (Outcome::Planned, _) => false,
        (Outcome::UpToDate, _) if settled.referrers.copied > 0 => true,
        (Outcome::UpToDate, Outcome::Promoted | Outcome::UpToDate) => settled.digest != last.digest,
        (result, before) => {
            result != before
                || settled.digest != last.digest
                || settled.previous_digest != last.previous_digest
                || settled.reasons != last.reasons
                || class(settled) != class(last)
        }
    }
}

fn written(db: &Connection, place: &Place) -> rusqlite::Result<Written> {
    let digest = db
        .prepare_cached("SELECT digest FROM written WHERE origin = ?1 AND repository = ?2 AND tag = ?3")?
        .query_row(names(place), |row| rows::parsed(row, 0))
        .optional()?;
    let intended = db
        .prepare_cached("SELECT digest FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 ORDER BY id")?
        .query_map(names(place), |row| rows::parsed(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Written { digest, intended })
}

/// An earlier intent stays: its answer may have been lost, and then the place names it still.
fn intend(db: &Connection, place: &Place, digest: &Digest) -> rusqlite::Result<()> {
    let [origin, repository, tag] = names(place);
    db.prepare_cached("INSERT OR REPLACE INTO intents (origin, repository, tag, digest) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![origin, repository, tag, digest.to_string()])?;
    db.prepare_cached(
        "DELETE FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 AND id NOT IN (
             SELECT id FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3 ORDER BY id DESC LIMIT ?4)",
    )?
    .execute(params![origin, repository, tag, MOST_INTENDED])
    .map(drop)
}

fn wrote(db: &Connection, place: &Place, digest: &Digest) -> rusqlite::Result<()> {
    let [origin, repository, tag] = names(place);
    db.prepare_cached("INSERT OR REPLACE INTO written (origin, repository, tag, digest, at) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![origin, repository, tag, digest.to_string(), clock::now().as_millisecond()])?;
    db.prepare_cached("DELETE FROM intents WHERE origin = ?1 AND repository = ?2 AND tag = ?3")?.execute(names(place)).map(drop)
}

fn names(place: &Place) -> [&str; 3] {
    [place.origin.as_str(), place.repository.as_str(), place.tag.as_str()]
}

fn unreadable(failure: Failure) -> Fault {
    Fault::retryable(format!("cannot read the ledger {failure}"))
}

fn unwritable(failure: Failure) -> Fault {
    Fault::retryable(format!("cannot write the ledger {failure}"))
}

#[cfg(test)]
mod tests;
