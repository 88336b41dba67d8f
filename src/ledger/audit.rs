//! The audit file: one line of JSON for each row, each batch on disk before the next name.
//!
//! The file follows the ledger: it starts again after its last line, whatever ended the process. A
//! line that a crash has torn is cut off and written again. The daemon and each command that writes
//! the ledger keep it by one [`AuditTask`]. While a row cannot be written, no name
//! is announced. A file that was moved away is made again, without the rows that went with it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::rows::Row;
use super::{Ledger, Query, chain};
use crate::fault::Fault;
use crate::oci::Digest;
use crate::state;

/// Rows that are written together.
const BATCH: u32 = 500;
/// Bytes of the last line at most.
const MOST_LINE: u64 = 4 << 20;
/// How often a file that cannot be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often rows without a waiting caller are looked for.
const LOST: Duration = Duration::from_secs(5);

/// A ledger and its last row, as something beside it knows them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KnownEnd {
    /// The ledger's identity.
    pub ledger: String,
    /// The number of the row.
    pub id: u64,
    /// The hash of the row, where that is known.
    #[serde(default)]
    pub hash: Option<Digest>,
}

/// The audit file.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    file: File,
    /// The last row that it has.
    last: u64,
}

/// Keeps the audit file, until it is ended or dropped.
#[derive(Debug)]
pub struct AuditTask {
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl AuditTask {
    /// Ends it once the rows up to now are written; rows that cannot be are left to the next
    /// process.
    pub async fn end(mut self) {
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
    }
}

#[derive(Serialize)]
struct Line<'a> {
    ledger: &'a str,
    #[serde(flatten)]
    row: &'a Row,
}

impl AuditFile {
    /// Opens the file, created with its folder when it is missing, and reads its last line. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// When it cannot be read and written.
    pub fn open(path: &Path) -> io::Result<(AuditFile, Option<KnownEnd>)> {
        if let Some(folder) = path.parent() {
            state::create_folder(folder)?;
        }
        let mut file = open(path)?;
        let end = last_line(&mut file)?;
        let known = match end {
            Some(line) => Some(serde_json::from_slice::<KnownEnd>(&line).map_err(|error| {
                io::Error::other(format!("its last line is no row of a ledger: {error}"))
            })?),
            None => None,
        };
        let last = known.as_ref().map_or(0, |known| known.id);
        let path = path.to_owned();
        Ok((AuditFile { path, file, last }, known))
    }

    /// All rows of the ledger follow: those in the file are of another one.
    pub fn start_over(&mut self) {
        self.last = 0;
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        if !self.is_in_place()? {
            self.file = open(&self.path)?;
        }
        let end = self.file.seek(SeekFrom::End(0))?;
        let written = self
            .file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data());
        if written.is_err() {
            // A part of a line must not stay in front of the next try.
            let _ = self.file.set_len(end);
        }
        written
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        let there = std::fs::symlink_metadata(&self.path);
        Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())))
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(
            (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK)
                .bits()
                .cast_signed(),
        )
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// The last whole line; what follows it is cut off.
fn last_line(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(MOST_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    Read::by_ref(file).take(MOST_LINE).read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
        if start > 0 {
            return Err(io::Error::other("its last line is too long"));
        }
        file.set_len(0)?;
        return Ok(None);
    };
    if end + 1 < tail.len() {
        file.set_len(start + end as u64 + 1)?;
    }
    let begin = tail[..end].iter().rposition(|byte| *byte == b'\n');
    Ok(Some(tail[begin.map_or(0, |at| at + 1)..end].to_vec()))
}

/// Lines that are to be written.
struct Batch {
    lines: String,
    last: u64,
}

impl Batch {
    fn append_to(&self, audit: &Mutex<AuditFile>) -> Result<(), String> {
        let mut audit = audit.lock().unwrap_or_else(PoisonError::into_inner);
        let written = audit.append(&self.lines);
        if written.is_ok() {
            audit.last = self.last;
        }
        let path = audit.path.display();
        written.map_err(|error| format!("the audit file {path} cannot be written: {error}"))
    }
}

/// Whether the audit file follows.
#[derive(Debug, Default)]
pub(super) struct AuditState {
    appended: Notify,
    /// Rows that this process has added.
    additions: watch::Sender<u64>,
    trouble: Mutex<Option<Arc<str>>>,
}

impl AuditState {
    /// A row was added: the audit file gets it, too.
    pub(super) fn row_added(&self) {
        self.additions.send_modify(|count| *count += 1);
        self.appended.notify_one();
    }

    /// Changes with each row.
    pub(super) fn additions(&self) -> watch::Receiver<u64> {
        self.additions.subscribe()
    }

    /// Rows that this process has added.
    pub(super) fn rows_added(&self) -> u64 {
        *self.additions.borrow()
    }

    /// Why nothing may be named, if so.
    pub(super) fn trouble(&self) -> Option<Fault> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_deref().map(Fault::retryable)
    }

    fn set(&self, trouble: Option<String>) {
        let mut current = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&trouble, &*current) {
            (Some(text), None) => tracing::error!(
                error = text,
                "nothing is named until the audit file can be written"
            ),
            (None, Some(_)) => tracing::info!("the audit file is written again; promotion goes on"),
            _ => {}
        }
        *current = trouble.map(Into::into);
    }
}

impl Ledger {
    /// The ledger's identity and its last row.
    pub async fn end(&self) -> Result<KnownEnd, Fault> {
        self.read(|db| {
            let last = chain::last_row(db)?;
            Ok(KnownEnd {
                ledger: chain::identity(db)?,
                id: last.map_or(0, |(id, _)| id),
                hash: last.map(|(_, hash)| hash),
            })
        })
        .await
    }

    /// What contradicts this ledger in what something beside it knows: another ledger, a row that
    /// is not here, or another row of that number. Knowing less is normal.
    pub async fn contradicted_by(&self, known: &KnownEnd) -> Result<Option<String>, Fault> {
        let end = self.end().await?;
        if known.ledger != end.ledger {
            return Ok(Some(format!(
                "it knows the ledger {}, and this one is {}",
                known.ledger, end.ledger
            )));
        }
        if known.id > end.id {
            return Ok(Some(format!(
                "it knows row {}, and the last one here is {}",
                known.id, end.id
            )));
        }
        let query = Query {
            after: known.id.saturating_sub(1),
            limit: 1,
            ..Query::default()
        };
        let row = self.page(query).await?.pop();
        let row = row.filter(|row| row.id == known.id);
        let is_other = row
            .zip(known.hash)
            .is_some_and(|(row, hash)| row.hash != hash);
        Ok(is_other.then(|| format!("it knows another row {}", known.id)))
    }

    /// Writes the rows that the file lacks, and each later one until the task is ended. While that
    /// fails, no name is announced.
    pub async fn keep_audit(&self, audit: AuditFile) -> AuditTask {
        let audit = Arc::new(Mutex::new(audit));
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        self.follow_and_tell(&audit).await;
        task.spawn(self.clone().keep_following(audit, stop.clone()));
        AuditTask { stop, task }
    }

    async fn keep_following(self, audit: Arc<Mutex<AuditFile>>, stop: CancellationToken) {
        loop {
            let appended = self.audit.appended.notified();
            let is_last = stop.is_cancelled();
            let is_written = self.follow_and_tell(&audit).await;
            if is_last {
                return;
            }
            // Rows of a caller that went away are found by the clock.
            let wait = timeout(if is_written { LOST } else { RETRY }, appended);
            stop.run_until_cancelled(wait).await;
        }
    }

    /// Returns whether the file has every row.
    async fn follow_and_tell(&self, audit: &Arc<Mutex<AuditFile>>) -> bool {
        let trouble = self.follow(audit).await.err();
        let is_written = trouble.is_none();
        self.audit.set(trouble.map(|fault| fault.chain()));
        is_written
    }

    /// Writes the rows that the file lacks.
    async fn follow(&self, audit: &Arc<Mutex<AuditFile>>) -> Result<(), Fault> {
        loop {
            let last = audit.lock().unwrap_or_else(PoisonError::into_inner).last;
            let Some(batch) = self.lines_after(last).await? else {
                return Ok(());
            };
            let audit = audit.clone();
            let appended = tokio::task::spawn_blocking(move || batch.append_to(&audit)).await;
            appended
                .unwrap_or_else(|error| Err(error.to_string()))
                .map_err(Fault::retryable)?;
        }
    }

    async fn lines_after(&self, last: u64) -> Result<Option<Batch>, Fault> {
        let query = Query {
            after: last,
            limit: BATCH,
            ..Query::default()
        };
        let rows = self.page(query).await?;
        let Some(last) = rows.last().map(|row| row.id) else {
            return Ok(None);
        };
        let ledger = self.end().await?.ledger;
        let mut lines = String::new();
        for row in &rows {
            let line = Line {
                ledger: &ledger,
                row,
            };
            let line = serde_json::to_string(&line);
            lines += &line.map_err(|error| Fault::retryable(error.to_string()))?;
            lines.push('\n');
        }
        Ok(Some(Batch { lines, last }))
    }
}
