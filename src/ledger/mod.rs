//! The ledger: what happened, and what is known of each production tag.
//!
//! Append-only rows, one for each change of a job's result, each decision and each reading of the
//! config, each
//! with a hash that covers it and all earlier ones ([`Ledger::verify`]; old ones lose their texts:
//! see [`Ledger::drop_old_texts`]). For each place in a destination the digest that we wrote or that
//! both sides agreed on. The plan distinguishes these tags from tags
//! that people changed, so losing the ledger makes the daemon more careful, never less: a tag that
//! differs then counts as existing. For the same reason it is never set aside by itself: an
//! unusable one is an error.
//!
//! [`Ledger::intend`] and [`Ledger::record`] return when the disk has it. Between them the tag is
//! moved: whatever instant a crash chooses, what the tag names afterwards is known to be ours.
//!
//! Places are keyed by origin, repository and tag, jobs by route and both sides, so that renaming a
//! registry in the config loses nothing.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

use crate::clock;
use crate::decision::{Candidate, InForce, Verdict};
use crate::endpoint::Origin;
use crate::fault::Fault;
use crate::job::{Key, Outcome, Settled, TagId};
use crate::oci::{Digest, RepositoryName, Tag};
use crate::sqlite::{Disk, Failure, OpenError, Store};
use crate::state::{FolderCheck, FolderReplaced, StateLock};

mod audit;
mod chain;
mod chosen;
mod current;
mod decisions;
mod first_seen;
mod pushers;
mod raw;
mod retention;
mod rows;
mod schema;
mod sets;
mod tag_records;
mod told;

pub use audit::{AuditFile, AuditTask, KnownEnd};
pub use chain::Verified;
pub use current::{CurrentTag, TagsQuery};
pub use decisions::{Carrying, ClockDoubt, DeniedTag, Recorded, Sending};
pub use retention::Step;
pub use rows::{Content, Query, Reload, Row};

/// The file in the state folder.
const FILE: &str = "ledger.db";
/// For so many seconds after a write a listing or a replica may show what was there before; ECR's
/// list was seen to for six.
const READS_LAG: i64 = 60;

/// Whether a state folder has a ledger.
pub fn exists_in(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

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

/// What is known of a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagRecord {
    /// The digest that we wrote or that both sides agreed on.
    pub digest: Option<Digest>,
    /// Whether it was agreed on, not written.
    pub agreed: bool,
    /// When that was recorded.
    pub at: Option<Timestamp>,
    /// Digests that were announced since, and that a crash or a lost answer may have left there;
    /// the oldest first.
    pub intended: Vec<Digest>,
    /// What production named when each of `intended` was announced, where that is one digest: while
    /// production names it, none of them has arrived.
    pub replaced: Option<Digest>,
    /// What production named when the place was last reported as drift or existing, while no
    /// decision has settled that.
    pub reported: Option<Digest>,
}

/// What the ledger has to learn from both sides naming one digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EqualityUpdate {
    /// Nothing: it knows, or it has to keep what it knows.
    None,
    /// The digest was announced, and the answer was lost: it was written.
    Written,
    /// Both sides agree on a digest that it does not know, or older intents and reports are over.
    /// Intents over that very digest are not: none of them has arrived yet.
    Agreed,
}

impl TagRecord {
    /// Whether the place names `digest` by our hand or by agreement.
    pub fn is_ours(&self, digest: &Digest) -> bool {
        self.digest.as_ref() == Some(digest) || self.is_found(digest)
    }

    /// Whether anything is known of the place, which names `production`. An announced write is
    /// nothing while production names what it named before.
    pub fn is_known(&self, production: Option<&Digest>) -> bool {
        let may_have_arrived = self.replaced.is_none() || self.replaced.as_ref() != production;
        self.digest.is_some() || (!self.intended.is_empty() && may_have_arrived)
    }

    /// Whether production naming `digest` shows that an announced write arrived.
    pub fn is_found(&self, digest: &Digest) -> bool {
        self.digest.as_ref() != Some(digest) && self.intended.contains(digest)
    }

    /// Whether a listing that shows `listed` may show what was there before our own write, or
    /// before what was reported.
    pub fn may_be_behind(&self, listed: Option<Digest>, now: Timestamp) -> bool {
        let is_recent = self
            .at
            .is_some_and(|at| now.duration_since(at).as_secs() < READS_LAG);
        let was_just_written = !self.agreed && is_recent && listed != self.digest;
        let was_reported_otherwise = self.reported.is_some() && listed != self.reported;
        was_just_written || was_reported_otherwise || !self.intended.is_empty()
    }

    /// For how much longer an answer may show what was there before the record. `None`: answers
    /// count. A record from a distant future tells of a clock that was set back.
    pub fn lags_for(&self, now: Timestamp) -> Option<Duration> {
        let age = now.duration_since(self.at?).as_secs();
        let left = READS_LAG - age.max(0);
        let is_recent = age > -READS_LAG && left > 0;
        is_recent.then(|| Duration::from_secs(left.unsigned_abs()))
    }

    /// Our own write, while answers may still show what was there before it.
    fn hidden_write(&self, now: Timestamp) -> Option<Digest> {
        let is_recent = !self.agreed && self.lags_for(now).is_some();
        self.digest.filter(|_| is_recent)
    }

    /// What to record when both sides name `digest`. A tag that was reported as drift or existing
    /// under this digest stays reported: staging reached that digest without a decision.
    pub fn on_equality(&self, digest: &Digest) -> EqualityUpdate {
        if self.is_found(digest) {
            return EqualityUpdate::Written;
        }
        if self.reported.as_ref() == Some(digest) {
            return EqualityUpdate::None;
        }
        let is_open = !self.intended.is_empty() && self.replaced.as_ref() != Some(digest);
        let settled = self.digest.as_ref() == Some(digest) && !is_open && self.reported.is_none();
        if settled {
            EqualityUpdate::None
        } else {
            EqualityUpdate::Agreed
        }
    }
}

/// Both sides name `digest` under `tag`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The tag at the destination.
    pub tag: Tag,
    /// What both sides name.
    pub digest: Digest,
    /// What the ledger knew when the sides were asked: recorded only if that is still so.
    pub known: TagRecord,
}

/// What a row says beside the settled job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFacts {
    /// Names the pass.
    pub run_id: String,
    /// The hash of the config that was in force; empty without one.
    pub config_hash: String,
    /// Version of the program.
    pub version: String,
    /// The machine it ran on.
    pub host: String,
}

/// A job with a newest row other than promoted or up to date.
#[derive(Clone, Debug)]
pub struct UnsettledJob {
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
    decisions: Arc<decisions::Memory>,
    audit: Arc<audit::AuditState>,
}

/// What came of announcing a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intended {
    /// It is announced.
    Announced {
        /// Whether it had not been announced before.
        is_new: bool,
    },
    /// The decisions in force do not clear it: nothing is announced.
    Stopped(Verdict),
}

impl Ledger {
    /// Opens `ledger.db` in the state folder, created when it is missing. Blocks on the disk.
    pub fn open(folder: &Path) -> Result<Ledger, Error> {
        Ok(Ledger::over(Store::open(
            &folder.join(FILE),
            &schema::SCHEMA,
        )?))
    }

    /// The same ledger, which refuses every intent once the state folder is no longer the one that
    /// was locked.
    pub fn guarded_by(self, lock: &StateLock) -> Result<Ledger, Error> {
        let unavailable = |error: io::Error| {
            let path = lock.folder().join(FILE);
            let reason = error.to_string();
            Error::Unavailable(OpenError::Unavailable { path, reason })
        };
        Ok(Ledger {
            folder: Some(lock.check().and(FILE).map_err(unavailable)?),
            ..self
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        self.store.read(act).await.map_err(unreadable)
    }

    async fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        self.store.write(act).await.map_err(unwritable)
    }

    /// Whether the state folder is still the one that was locked.
    ///
    /// # Errors
    /// [`FolderReplaced`]: what is recorded is lost, and nothing may be named.
    pub fn check_folder(&self) -> Result<(), FolderReplaced> {
        self.folder.as_ref().map_or(Ok(()), FolderCheck::check)
    }

    /// Why the disk did not take the newest write. `None`: it did.
    pub fn write_trouble(&self) -> Option<String> {
        self.store
            .write_trouble()
            .map(|failure| failure.to_string())
    }

    /// Writes what is there already: shows whether the disk takes writes.
    pub async fn try_write(&self) {
        let rewritten = self.store.write(|db| {
            let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
            db.pragma_update(None, "user_version", version)
        });
        // What came of it is remembered with the store.
        let _ = rewritten.await;
    }

    /// Opens the `ledger.db` of the state folder for reading alone. `None`: there is none. Blocks
    /// on the disk.
    pub fn open_to_read(folder: &Path) -> Result<Option<Ledger>, Error> {
        let store = Store::open_to_read(&folder.join(FILE), &schema::SCHEMA)?;
        Ok(store.map(Ledger::over))
    }

    /// A ledger that remembers as long as the process lives: for commands without a state folder.
    pub fn in_memory() -> Ledger {
        Ledger::over(Store::in_memory(&schema::SCHEMA))
    }

    /// The same, under the decisions that are in force in another ledger.
    pub fn in_memory_under(in_force: &InForce) -> Ledger {
        let ledger = Ledger::in_memory();
        ledger.decisions.adopt(InForce {
            version: 0,
            ..in_force.clone()
        });
        ledger
    }

    /// The ledger on a simulator's disk, served as long as the future is polled: see
    /// [`Store::on_disk`].
    pub fn on_disk(disk: &Disk) -> (Ledger, impl Future<Output = ()> + Send + use<>) {
        let (store, served) = Store::on_disk(disk, &schema::SCHEMA);
        (Ledger::over(store), served)
    }

    fn over(store: Store) -> Ledger {
        Ledger {
            store,
            folder: None,
            decisions: Arc::default(),
            audit: Arc::default(),
        }
    }

    /// Leaves the file. Every handle is closed by it, and what is asked of one later is refused.
    pub async fn close(self) {
        self.store.close().await;
    }

    /// What is known of a place.
    pub async fn written(&self, place: &TagId) -> Result<TagRecord, Fault> {
        let place = place.clone();
        self.read(move |db| tag_records::of_place(db, &place)).await
    }

    /// What is known of all tags of a destination repository; a tag that is missing is not known.
    pub async fn written_in(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
    ) -> Result<HashMap<Tag, TagRecord>, Fault> {
        let origin = origin.clone();
        let repository = repository.clone();
        self.read(move |db| tag_records::of_repository(db, origin.as_str(), repository.as_str()))
            .await
    }

    /// Records what both sides agree on, each only if the ledger still knows what it knew then.
    /// Intents before an agreement no longer count, except those over the digest that is agreed on:
    /// they may still arrive. So may a write of the last minute, where the sides name what it
    /// replaced.
    pub async fn agree(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
        agreements: Vec<Agreement>,
    ) -> Result<(), Fault> {
        let origin = origin.clone();
        let repository = repository.clone();
        let now = clock::now();
        self.write(move |db| {
            for Agreement { tag, digest, known } in agreements {
                let place = TagId {
                    origin: origin.clone(),
                    repository: repository.clone(),
                    tag,
                };
                let hidden = known.hidden_write(now).filter(|hidden| *hidden != digest);
                let over = match hidden {
                    Some(hidden) => rows::replaced_by(db, &place, &hidden)?,
                    None => None,
                };
                let hidden = hidden.filter(|_| over == Some(digest));
                tag_records::agree(db, &place, &digest, &known, hidden.as_ref())?;
            }
            Ok(())
        })
        .await
    }

    /// Records that an announced digest was found at `place`: it is what we wrote last. Intents
    /// before it no longer count.
    pub async fn found(&self, place: &TagId, digest: &Digest) -> Result<(), Fault> {
        let place = place.clone();
        let digest = *digest;
        self.write(move |db| tag_records::wrote(db, &place, &digest))
            .await
    }

    /// Announces that a tag, which names `replaces`, is about to be named, unless a decision in
    /// force stops that: they are read in the transaction that records the announcement.
    ///
    /// # Errors
    /// When that is not on disk, where the next process finds it.
    pub async fn intend(
        &self,
        candidate: Candidate,
        replaces: Option<Digest>,
    ) -> Result<Intended, Fault> {
        if let Some(trouble) = self.audit.trouble() {
            return Err(trouble);
        }
        let known = self.in_force().await?;
        let intended = self
            .write(move |db| match decisions::judge(db, &known, &candidate)? {
                Verdict::Clear => {
                    let Candidate { place, digest, .. } = &candidate;
                    let is_new = tag_records::intend(db, place, digest, replaces.as_ref())?;
                    if let Some(index) = &candidate.index {
                        chosen::note(db, place, digest, index)?;
                    }
                    Ok(Intended::Announced { is_new })
                }
                verdict => Ok(Intended::Stopped(verdict)),
            })
            .await?;
        // After the write: a folder that vanished before it is noticed as well.
        self.check_folder()
            .map_err(|gone| Fault::retryable(gone.to_string()))?;
        Ok(intended)
    }

    /// Takes an announcement back: nothing was sent.
    pub async fn forget_intent(&self, place: &TagId, digest: &Digest) -> Result<(), Fault> {
        let place = place.clone();
        let digest = *digest;
        self.write(move |db| tag_records::forget_intent(db, &place, &digest))
            .await
    }

    /// Adds a row when a settled job says something that the last row of its key does not: see
    /// [`is_news`]. With `written`, the place now names that digest by our hand, in the same
    /// instant as the row. Returns whether a row was added.
    pub async fn record(
        &self,
        key: &Key,
        settled: &Settled,
        facts: RunFacts,
        written: Option<Digest>,
    ) -> Result<bool, Fault> {
        let key = key.clone();
        let settled = settled.clone();
        let (is_added, is_over) = self
            .write(move |db| {
                if let Some(digest) = written {
                    tag_records::wrote(db, &key.destination, &digest)?;
                }
                if let Some(there) = settled
                    .previous_digest
                    .filter(|_| matches!(settled.result, Outcome::Drift | Outcome::Existing))
                {
                    tag_records::report(db, &key.destination, &there)?;
                }
                let last = rows::last(db, &key)?;
                let news = is_news(last.as_ref().and_then(Row::settled), &settled);
                let row = match news {
                    true => Some(rows::add(db, &key, &settled, &facts)?),
                    false => None,
                };
                let is_promoted = settled.result == Outcome::Promoted;
                let named = written.or(settled.digest.filter(|_| is_promoted));
                let is_over = match (row, named) {
                    (Some(row), Some(digest)) => {
                        let row = i64::try_from(row).unwrap_or(i64::MAX);
                        decisions::used(db, &key.destination, &digest, row)?
                    }
                    _ => false,
                };
                Ok((news, is_over))
            })
            .await?;
        if is_over {
            self.refresh_decisions().await?;
        }
        if is_added {
            self.audit.row_added();
        }
        Ok(is_added)
    }

    /// Adds a row for a reading of the config.
    pub async fn reloaded(&self, reload: Reload, facts: RunFacts) -> Result<(), Fault> {
        let content = Content::Reload(Box::new(reload));
        self.write(move |db| rows::append(db, &content, None, &facts).map(drop))
            .await?;
        self.audit.row_added();
        Ok(())
    }

    /// The newest job that wrote to a place.
    pub async fn newest_job(&self, place: &TagId) -> Result<Option<Key>, Fault> {
        let place = place.clone();
        self.read(move |db| rows::newest_job(db, &place)).await
    }

    /// What staging was last seen to name for a place, by the rows of looks.
    pub async fn last_seen_of(&self, place: &TagId) -> Result<Vec<Digest>, Fault> {
        let place = place.clone();
        self.read(move |db| rows::last_seen_of(db, &place)).await
    }

    /// Whether the act of a decision has named a digest at a place since a row.
    pub async fn has_moved_since(
        &self,
        row: u64,
        place: &TagId,
        digest: &Digest,
    ) -> Result<bool, Fault> {
        let place = place.clone();
        let digest = *digest;
        self.read(move |db| rows::has_moved_since(db, row, &place, &digest))
            .await
    }

    /// What promotions of a place before a row named and what they replaced, the newest first. A
    /// move that the daemon took back because of a torn set counts as not made.
    pub async fn digests_of(&self, place: &TagId, before: u64) -> Result<Vec<Digest>, Fault> {
        let place = place.clone();
        self.read(move |db| rows::digests_of(db, &place, before))
            .await
    }

    /// The jobs that promoted a digest into the repository of a place.
    pub async fn named_by(&self, place: &TagId, digest: &Digest) -> Result<Vec<Key>, Fault> {
        let place = place.clone();
        let digest = *digest;
        self.read(move |db| rows::named_by(db, &place, &digest))
            .await
    }

    /// Whether the last row of a key before the row `before` reports production's digest as existing
    /// beside staging's, and it has not been promoted since.
    pub async fn was_existing(
        &self,
        key: &Key,
        before: u64,
        staging: Digest,
        production: Digest,
    ) -> Result<bool, Fault> {
        let key = key.clone();
        self.read(move |db| rows::was_existing(db, &key, before, &staging, &production))
            .await
    }

    /// How many tags of a route are existing by their last row.
    pub async fn count_existing(&self, route: &str) -> Result<u64, Fault> {
        let route = route.to_owned();
        self.read(move |db| rows::count_existing(db, &route)).await
    }

    /// The newest row of a key.
    pub async fn last(&self, key: &Key) -> Result<Option<Row>, Fault> {
        let key = key.clone();
        self.read(move |db| rows::last(db, &key)).await
    }

    /// The jobs of a destination repository with a newest row that is neither promoted nor up to
    /// date.
    pub async fn troubled(
        &self,
        origin: &Origin,
        repository: &RepositoryName,
    ) -> Result<Vec<UnsettledJob>, Fault> {
        let origin = origin.clone();
        let repository = repository.clone();
        self.read(move |db| rows::troubled(db, origin.as_str(), repository.as_str()))
            .await
    }

    /// Rows that this process has added: tells whether there is anything new to read.
    pub fn rows_added(&self) -> u64 {
        self.audit.rows_added()
    }

    /// Rows, a page at a time.
    pub async fn page(&self, query: Query) -> Result<Vec<Row>, Fault> {
        self.read(move |db| rows::page(db, &query)).await
    }
}

/// Whether a settled job tells more than the last row of its key. A promotion always does: it moved
/// a tag. A dry run never does: nothing happened. To be up to date with what was just promoted is
/// no news, unless a signature or another referrer has been brought since; else a change of the
/// result, of either digest, of the class of the error or of the reasons is.
pub fn is_news(last: Option<&Settled>, settled: &Settled) -> bool {
    let Some(last) = last else {
        // A tag that was never seen and is not there is no news: a registry may tell of a push before
        // the tag can be read.
        return !matches!(settled.result, Outcome::Planned | Outcome::Gone);
    };
    match (settled.result, last.result) {
        (Outcome::Promoted, _) => true,
        (Outcome::Planned, _) => false,
        (Outcome::UpToDate, _) if settled.referrers.copied > 0 => true,
        (Outcome::UpToDate, Outcome::Promoted | Outcome::UpToDate) => settled.digest != last.digest,
        (result, before) => {
            result != before
                || settled.digest != last.digest
                || settled.previous_digest != last.previous_digest
                || (settled.reasons != last.reasons && !last.expired)
                || settled.error_class() != last.error_class()
        }
    }
}

fn names(place: &TagId) -> [&str; 3] {
    [
        place.origin.as_str(),
        place.repository.as_str(),
        place.tag.as_str(),
    ]
}

fn unreadable(failure: Failure) -> Fault {
    Fault::retryable(format!("cannot read the ledger {failure}"))
}

fn unwritable(failure: Failure) -> Fault {
    Fault::retryable(format!("cannot write the ledger {failure}"))
}

#[cfg(test)]
mod tests;
