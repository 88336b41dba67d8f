//! The index: what we believe registries hold, and the uploads that are open there.
//!
//! The registries hold the truth, this holds hints: losing the index costs requests, never
//! correctness. So nothing here fails a job. When the disk fails, an answer is "don't know", a hint
//! is not kept, the log hears of it once, and [`Index::errors`] counts it. Whether a hint is still
//! fresh enough is the caller's decision: each says when it was seen, and one from the future (the
//! clock was set back) is none.
//!
//! Writes are queued and not waited for, but for the phase `finishing` of an upload. A read sees
//! every write that was queued before it, through any handle: see [`crate::sqlite`].
//!
//! | module | what is there |
//! |---|---|
//! | `hints` | blobs, manifests, tags, when referrers were last looked for |
//! | `uploads` | the journal that uploads are resumed from |
//! | `prune` | how many there are; forgetting the old |
//! | `unfinished` | repositories that were created and are not set up yet |
//! | `schema` | the tables |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};

use crate::clock;
use crate::endpoint::RepositoryId;
use crate::sqlite::{self, Disk, OpenError, Store};

mod health;
mod hints;
mod ledger;
mod prune;
mod schema;
mod unfinished;
mod uploads;

pub use self::ledger::KnownLedger;
pub use hints::{BlobHint, BlobHolder, HeldImage, ManifestHint, TagHint};
pub use prune::Statistics;
pub use uploads::{Checkpoint, StoredUpload};

use health::Health;

/// Why there is no index.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] OpenError),
    /// It is of no use and in the way.
    #[error("cannot move {} out of the way (it is of no use: {reason}); move it away by hand, it holds nothing that cannot be asked again", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// An open index.
#[derive(Debug)]
pub struct Opened {
    /// The index.
    pub index: Index,
    /// The index that was there and could not be used: to be said loudly.
    pub set_aside: Option<SetAside>,
}

/// An index that was moved out of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

/// A handle on the index: cheap to clone.
#[derive(Clone, Debug)]
pub struct Index {
    store: Store,
    health: Arc<Health>,
    positions: Arc<prune::WalkPositions>,
}

impl Index {
    /// Opens `index.db` in the state folder. One that is damaged or was written by a newer version
    /// is set aside, and an empty one takes its place. Blocks on the disk.
    pub fn open(folder: &Path) -> Result<Opened, Error> {
        let path = folder.join("index.db");
        let (store, set_aside) = match Store::open(&path, &schema::SCHEMA) {
            Err(useless @ (OpenError::Damaged { .. } | OpenError::Newer { .. })) => {
                let reason = useless.to_string();
                let aside = sqlite::set_aside(&path).map_err(|source| Error::InTheWay {
                    path: path.clone(),
                    reason: reason.clone(),
                    source,
                })?;
                (
                    Store::open(&path, &schema::SCHEMA)?,
                    Some(SetAside {
                        path: aside,
                        reason,
                    }),
                )
            }
            opened => (opened?, None),
        };
        Ok(Opened {
            index: Index::over(store),
            set_aside,
        })
    }

    /// An index that remembers as long as the process lives: for commands without a state folder.
    pub fn in_memory() -> Index {
        Index::over(Store::in_memory(&schema::SCHEMA))
    }

    /// The index on a simulator's disk, served as long as the future is polled: see
    /// [`Store::on_disk`].
    pub fn on_disk(disk: &Disk) -> (Index, impl Future<Output = ()> + Send + use<>) {
        let (store, served) = Store::on_disk(disk, &schema::SCHEMA);
        (Index::over(store), served)
    }

    /// Writes what was queued and leaves the file. Every handle is closed by it: it knows nothing
    /// and keeps nothing.
    pub async fn close(self) {
        self.store.close().await;
    }

    /// Answers not given and hints not kept because the database failed.
    pub fn errors(&self) -> u64 {
        self.health.errors()
    }

    fn over(store: Store) -> Index {
        Index {
            store,
            health: Arc::default(),
            positions: Arc::default(),
        }
    }

    /// Queues a write.
    async fn queue(&self, act: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        let health = self.health.clone();
        self.store
            .queue(act, move |outcome| health.note_write(outcome))
            .await;
    }

    /// Queues a write for a repository; `act` gets the repository's row id.
    async fn queue_in(
        &self,
        repository: &RepositoryId,
        act: impl FnOnce(&Connection, i64) -> rusqlite::Result<()> + Send + 'static,
    ) {
        let repository = repository.clone();
        self.queue(move |db| act(db, number(db, &repository)?))
            .await;
    }

    /// Reads; "don't know" when that fails.
    async fn read<T: Default + Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> T {
        self.health
            .of_read(self.store.read(act).await)
            .unwrap_or_default()
    }

    /// Reads what belongs to a repository; "don't know" of one that was never heard of.
    async fn read_in<T: Default + Send + 'static>(
        &self,
        repository: &RepositoryId,
        act: impl FnOnce(&Connection, i64) -> rusqlite::Result<T> + Send + 'static,
    ) -> T {
        let repository = repository.clone();
        self.read(move |db| match known_number(db, &repository)? {
            Some(number) => act(db, number),
            None => Ok(T::default()),
        })
        .await
    }
}

fn known_number(db: &Connection, id: &RepositoryId) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT id FROM repositories WHERE origin = ?1 AND name = ?2")?
        .query_row([id.origin.as_str(), id.repository.as_str()], |row| {
            row.get(0)
        })
        .optional()
}

fn number(db: &Connection, id: &RepositoryId) -> rusqlite::Result<i64> {
    if let Some(number) = known_number(db, id)? {
        return Ok(number);
    }
    db.prepare_cached("INSERT INTO repositories (origin, name) VALUES (?1, ?2)")?
        .insert([id.origin.as_str(), id.repository.as_str()])
}

fn now() -> i64 {
    clock::now().as_millisecond()
}

/// The time that is stored as `milliseconds`, unless it has yet to come.
fn seen(milliseconds: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(milliseconds)
        .ok()
        .filter(|_| milliseconds <= now())
}

#[cfg(test)]
mod tests;
