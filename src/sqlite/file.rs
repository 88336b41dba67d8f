//! The file of a database: private, checked, brought to the newest schema; or set aside.

use std::fmt::Display;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::task::describe;
use crate::state;

/// What a database of ours looks like.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Names its threads.
    pub name: &'static str,
    /// Whether a commit outlives a loss of power. Without it the last commits may be lost then, and
    /// nothing is broken; a process that dies loses none either way.
    pub durable: bool,
    /// Written into the file, so that no other program's database is taken for ours.
    pub application: i32,
    /// Each brings the database from the version that is its place in the list to the next. What
    /// has been released is never edited, only added to.
    pub migrations: &'static [&'static str],
    /// Fills in what SQL alone cannot, after the steps and in their transaction.
    pub fill: fn(&Connection) -> rusqlite::Result<()>,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not a database of ours, or broken.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer program wrote it.
    #[error("{} was written by a newer version of this program (its schema is {found}, known is {known})", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// Other users can write to its folder.
    #[error(transparent)]
    Exposed(Box<state::Error>),
    /// It cannot be reached.
    #[error("cannot open {}: {reason} (it must be on a local disk and belong to the user of this process)", path.display())]
    Unavailable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

/// Opens the writing and the reading connection.
pub(super) fn open(path: &Path, schema: &Schema) -> Result<(Connection, Connection), OpenError> {
    create(path)?;
    let real = real(path)?;
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let writing = Connection::open_with_flags(&real, flags | OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|error| classify(path, &error))?;
    prepare(&writing, schema).map_err(|error| classify(path, &error))?;
    recognise(&writing, path, schema)?;
    let journal = writing
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0))
        .map_err(|error| classify(path, &error))?;
    if journal != "wal" {
        return Err(unavailable(
            path,
            "its file system cannot hold a write-ahead log",
        ));
    }
    migrate(&writing, schema).map_err(|error| classify(path, &error))?;
    let reading = Connection::open_with_flags(&real, flags | OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|error| classify(path, &error))?;
    prepare(&reading, schema).map_err(|error| classify(path, &error))?;
    Ok((writing, reading))
}

/// Opens a database that is there and changes nothing of it; `None`: it is not there. One of an
/// older version is read into memory and brought to the newest there.
pub(super) fn open_to_read(path: &Path, schema: &Schema) -> Result<Option<Connection>, OpenError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unavailable(path, error)),
        // Made by a process that has not written its tables yet.
        Ok(metadata) if metadata.len() == 0 && !with_suffix(path, "-wal").exists() => {
            return Ok(None);
        }
        Ok(_) => {}
    }
    // Without a log no process has it open, and reading it as unchangeable leaves no files of a log
    // behind.
    let immutable = if with_suffix(path, "-wal").exists() {
        ""
    } else {
        "&immutable=1"
    };
    let name = uri(&real(path)?) + "?mode=ro" + immutable;
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI;
    let file = Connection::open_with_flags(name, flags | OpenFlags::SQLITE_OPEN_NOFOLLOW)
        .map_err(|error| classify(path, &error))?;
    prepare(&file, schema).map_err(|error| classify(path, &error))?;
    recognise(&file, path, schema)?;
    let version: i64 = file
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|error| classify(path, &error))?;
    if version == schema.migrations.len() as i64 {
        return Ok(Some(file));
    }
    let mut copy = Connection::open_in_memory().map_err(|error| classify(path, &error))?;
    Backup::new(&file, &mut copy)
        .and_then(|backup| backup.run_to_completion(1024, Duration::ZERO, None))
        .map_err(|error| classify(path, &error))?;
    prepare(&copy, schema).map_err(|error| classify(path, &error))?;
    migrate(&copy, schema).map_err(|error| classify(path, &error))?;
    Ok(Some(copy))
}

/// The path with the links of its folder followed and that of the file itself left, for SQLite to
/// refuse.
fn real(path: &Path) -> Result<PathBuf, OpenError> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(unavailable(path, "it is no file"));
    };
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    Ok(folder
        .canonicalize()
        .map_err(|error| unavailable(path, error))?
        .join(name))
}

/// A path as SQLite's URI: <https://sqlite.org/uri.html>.
fn uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri += &format!("%{byte:02x}");
        }
    }
    uri
}

/// A database in memory, at the newest version.
pub(super) fn in_memory(schema: &Schema) -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    bring_up(&connection, schema)?;
    Ok(connection)
}

/// Brings a database in memory to the newest version.
pub(super) fn bring_up(connection: &Connection, schema: &Schema) -> rusqlite::Result<()> {
    prepare(connection, schema)?;
    migrate(connection, schema)
}

/// Moves a database that cannot be used out of the way, with its log, over one that was moved there
/// before. Returns where it is now.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    make_private(path)?;
    let aside = with_suffix(path, ".aside");
    // The log first: a crash in between must not leave it to the database that starts afresh.
    for part in ["-wal", "-shm", ""] {
        let from = with_suffix(path, part);
        let to = with_suffix(&aside, part);
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => remove(&to)?,
            other => other?,
        }
    }
    Ok(aside)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// SQLite gives the log and its index the mode of the database, so the database must be private
/// before it is opened.
fn create(path: &Path) -> Result<(), OpenError> {
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        state::create_folder(folder).map_err(|error| unavailable(path, error))?;
        state::check_folder(folder).map_err(|error| OpenError::Exposed(Box::new(error)))?;
    }
    state::create_file(path).map_err(|error| unavailable(path, error))?;
    make_private(path).map_err(|error| unavailable(path, error))
}

fn make_private(path: &Path) -> io::Result<()> {
    ["", "-wal", "-shm"]
        .into_iter()
        .try_for_each(|part| state::make_file_private(&with_suffix(path, part)))
}

fn prepare(connection: &Connection, schema: &Schema) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(
        None,
        "synchronous",
        if schema.durable { "FULL" } else { "NORMAL" },
    )?;
    // In kibibytes where negative; the log is cut back to 16 MiB after it has been folded in.
    connection.execute_batch(
        "PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -8192; PRAGMA journal_size_limit = 16777216;",
    )
}

/// Sees that the database is new or ours, not newer than us, and whole.
fn recognise(connection: &Connection, path: &Path, schema: &Schema) -> Result<(), OpenError> {
    let found = number(connection, path, "PRAGMA user_version")?;
    let known = schema.migrations.len() as i64;
    let empty = number(connection, path, "SELECT count(*) FROM sqlite_schema")? == 0;
    if found == 0 && empty {
        return Ok(());
    }
    if number(connection, path, "PRAGMA application_id")? != i64::from(schema.application) {
        return Err(damaged(path, "another program's database"));
    }
    if found > known {
        return Err(OpenError::Newer {
            path: path.into(),
            found,
            known,
        });
    }
    let check = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
        .map_err(|error| classify(path, &error))?;
    if check == "ok" {
        Ok(())
    } else {
        Err(damaged(path, &check))
    }
}

/// Takes every step that is missing, all or none.
fn migrate(connection: &Connection, schema: &Schema) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(version).unwrap_or(0);
    for step in schema.migrations.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    if done < schema.migrations.len() {
        (schema.fill)(&transaction)?;
        transaction.pragma_update(None, "application_id", schema.application)?;
        transaction.pragma_update(None, "user_version", schema.migrations.len() as i64)?;
    }
    transaction.commit()
}

fn number(connection: &Connection, path: &Path, sql: &str) -> Result<i64, OpenError> {
    connection
        .query_row(sql, [], |row| row.get(0))
        .map_err(|error| classify(path, &error))
}

fn damaged(path: &Path, reason: &str) -> OpenError {
    OpenError::Damaged {
        path: path.into(),
        reason: reason.into(),
    }
}

fn classify(path: &Path, error: &rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            damaged(path, &error.to_string())
        }
        _ => unavailable(path, describe(error)),
    }
}

fn unavailable(path: &Path, reason: impl Display) -> OpenError {
    OpenError::Unavailable {
        path: path.into(),
        reason: reason.to_string(),
    }
}
