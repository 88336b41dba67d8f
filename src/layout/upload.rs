//! Upload sessions: a file under `.uploads` for each, which outlives the process.
//!
//! The file's length is the offset. Bytes received before a failure stay. The caller has hashed
//! what it sends, so a blob that comes whole in one request is trusted once its length is right and
//! it is synced. Bytes that came in earlier requests may have been written by a process that a
//! power cut ended, so they are read back and hashed before the blob is renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::endpoint::BlobBody;
use crate::fault::Fault;
use crate::oci::Digest;
use crate::oci::digest::Hasher;

use super::store::{Store, UPLOADS, fault};

/// Bytes gathered for one write.
const BATCH: usize = 512 * 1024;
/// Sessions that nothing has written to for so long are removed when the next one begins: their
/// writer is gone.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Most sessions looked at when old ones are removed.
const SWEEP: usize = 1000;

/// A session, opened to be written by us alone.
pub(super) struct Session {
    file: File,
    path: PathBuf,
}

/// What came of opening a session at an offset.
pub(super) enum Opened {
    /// It ends there.
    Session(Session),
    /// It ends elsewhere.
    Ends(u64),
    /// It is gone.
    Gone,
}

/// Opens a new session; its location is a name that cannot be guessed.
pub(super) fn begin(store: &Store) -> Result<String, Fault> {
    let (_file, path) = store.temporary()?;
    if let Some(folder) = path.parent() {
        remove_stale(folder);
    }
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.expect("names of sessions are hexadecimal").to_owned())
}

fn is_stale(path: &Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|facts| facts.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE))
}

fn remove_stale(folder: &Path) {
    for entry in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .take(SWEEP)
    {
        let ours = entry.file_name().to_str().is_some_and(is_location);
        if ours && is_stale(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The session's length. `None`: it is gone.
pub(super) fn offset(store: &Store, location: &str) -> Result<Option<u64>, Fault> {
    if !is_location(location) {
        return Ok(None);
    }
    Ok(store
        .find(Path::new(UPLOADS).join(location))?
        .map(|found| found.size))
}

/// Removes a session; one that is gone already is none the worse.
pub(super) fn cancel(store: &Store, location: &str) -> Result<(), Fault> {
    let found = if is_location(location) {
        store.find(Path::new(UPLOADS).join(location))?
    } else {
        None
    };
    match found.map(|found| (fs::remove_file(&found.path), found.path)) {
        Some((Err(error), path)) if error.kind() != io::ErrorKind::NotFound => {
            Err(fault("remove", &path, error))
        }
        _ => Ok(()),
    }
}

/// Opens a session to go on at `offset`.
pub(super) fn open(store: &Store, location: &str, offset: u64) -> Result<Opened, Fault> {
    let found = if is_location(location) {
        store.find(Path::new(UPLOADS).join(location))?
    } else {
        None
    };
    let Some(found) = found else {
        return Ok(Opened::Gone);
    };
    let file = match OpenOptions::new().append(true).open(&found.path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Opened::Gone),
        Err(error) => return Err(fault("open", &found.path, error)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            return Err(Fault::retryable(format!(
                "an upload session of {} is still being written",
                store.folder().display()
            )));
        }
        Err(fs::TryLockError::Error(error)) => return Err(fault("lock", &found.path, error)),
    }
    // The lock is held: no other writer can extend the file now.
    let size = file
        .metadata()
        .map_err(|error| fault("look at", &found.path, error))?
        .len();
    Ok(if size == offset {
        Opened::Session(Session {
            file,
            path: found.path,
        })
    } else {
        Opened::Ends(size)
    })
}

/// Locations come back from the index, where anything may have happened to them: only a session's
/// name is looked for.
fn is_location(location: &str) -> bool {
    location.len() == 32
        && location
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Session {
    /// Appends the `length` bytes of `body`, writing a batch while the next one arrives. What came
    /// before a failure is kept.
    pub async fn append(self, length: u64, mut body: BlobBody) -> Result<Session, Fault> {
        let mut left = length;
        let mut writer = Writer {
            path: self.path.clone(),
            file: Some(self.file),
            writing: None,
            batch: Vec::new(),
            held: 0,
        };
        let ended = loop {
            match body.frame().await {
                Some(Ok(frame)) if frame.len() as u64 <= left => {
                    left -= frame.len() as u64;
                    writer.push(frame).await?;
                }
                Some(Ok(_)) => {
                    break Err(Fault::corrupt(format!(
                        "the body goes on after its {length} bytes"
                    )));
                }
                Some(Err(fault)) => break Err(fault),
                None if left == 0 => break Ok(()),
                None => {
                    break Err(Fault::corrupt(format!(
                        "the body ended {left} bytes early, of {length}"
                    )));
                }
            }
        };
        let file = writer.close().await?;
        ended.map(|()| Session {
            file,
            path: self.path,
        })
    }

    /// Makes what was written survive a power cut.
    pub fn sync(&self) -> Result<(), Fault> {
        self.file
            .sync_all()
            .map_err(|error| fault("sync", &self.path, error))
    }

    /// Gives the content its name, after every byte is on the disk. With `reread` the bytes are
    /// hashed before.
    pub fn commit(self, store: &Store, digest: &Digest, reread: bool) -> Result<(), Fault> {
        self.sync()?;
        if reread && hash(&self.path, digest)? != *digest {
            let _ = fs::remove_file(&self.path);
            let at = store.folder().display();
            return Err(Fault::corrupt(format!(
                "what {at} received for {digest} does not have that digest; the upload was dropped"
            )));
        }
        store.place_blob(&self.path, digest)
    }
}

fn hash(path: &Path, digest: &Digest) -> Result<Digest, Fault> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; BATCH];
    let mut file = File::open(path).map_err(|error| fault("open", path, error))?;
    loop {
        match file
            .read(&mut buffer)
            .map_err(|error| fault("read", path, error))?
        {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Writes frames in batches off the runtime's thread. At most two batches are in memory.
struct Writer {
    path: PathBuf,
    file: Option<File>,
    writing: Option<JoinHandle<io::Result<File>>>,
    batch: Vec<Bytes>,
    held: usize,
}

impl Writer {
    async fn push(&mut self, frame: Bytes) -> Result<(), Fault> {
        self.held += frame.len();
        self.batch.push(frame);
        if self.held < BATCH {
            Ok(())
        } else {
            self.flush().await
        }
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        let mut file = self.settled().await?;
        let batch = std::mem::take(&mut self.batch);
        self.held = 0;
        self.writing = Some(spawn_blocking(move || {
            batch.iter().try_for_each(|frame| file.write_all(frame))?;
            Ok(file)
        }));
        Ok(())
    }

    async fn close(mut self) -> Result<File, Fault> {
        self.flush().await?;
        self.settled().await
    }

    /// The file, once the batch on its way is written.
    async fn settled(&mut self) -> Result<File, Fault> {
        match self.writing.take() {
            None => Ok(self
                .file
                .take()
                .expect("the file is here while nothing is being written")),
            Some(writing) => match writing.await {
                Ok(written) => written.map_err(|error| fault("write", &self.path, error)),
                Err(_) => Err(Fault::cancelled()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_never_a_path() {
        for bad in [
            "",
            "../../etc/passwd",
            "..",
            "/etc/passwd",
            &"A".repeat(32),
            &"a".repeat(33),
            "0123456789abcdef0123456789abcde/",
        ] {
            assert!(!is_location(bad), "{bad}");
        }
        assert!(is_location("0123456789abcdef0123456789abcdef"));
    }

    #[test]
    fn sessions_of_long_ago_are_removed_and_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::below(root.path(), &"app".parse().unwrap());
        let old = begin(&store).unwrap();
        let young = begin(&store).unwrap();
        let file = File::options()
            .write(true)
            .open(root.path().join("app/.uploads").join(&old))
            .unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * STALE)
            .unwrap();
        begin(&store).unwrap();
        assert_eq!(offset(&store, &old).unwrap(), None);
        assert_eq!(offset(&store, &young).unwrap(), Some(0));
    }

    #[tokio::test]
    async fn a_session_has_one_writer() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::below(root.path(), &"app".parse().unwrap());
        let location = begin(&store).unwrap();
        let Opened::Session(session) = open(&store, &location, 0).unwrap() else {
            panic!("an empty session is at 0")
        };
        assert!(
            open(&store, &location, 0)
                .err()
                .unwrap()
                .class()
                .is_retryable()
        );
        drop(
            session
                .append(3, BlobBody::full(Bytes::from_static(b"abc")))
                .await
                .unwrap(),
        );
        assert!(matches!(
            open(&store, &location, 0).unwrap(),
            Opened::Ends(3)
        ));
    }
}
