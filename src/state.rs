//! The state folder: who may use it, and who does.
//!
//! One daemon at a time holds the lock of a folder. The lock is the kernel's and ends with its process, so a crash leaves
//! nothing to clean up; the number in the file is for people.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Why the state folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it.
    #[error(
        "the state folder {} is in use by process {} (stop that process, or give this one a folder of its own)",
        folder.display(), shown(*holder)
    )]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The process, 0 when it is not known.
        holder: u32,
    },
    /// It cannot be created or locked.
    #[error("cannot use the state folder {} (it must be on a local disk and belong to the user of this process)", folder.display())]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

fn shown(holder: u32) -> String {
    if holder == 0 { "(unknown)".into() } else { holder.to_string() }
}

/// The hold on a state folder: it ends when this is dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the folder, which is created for this user alone when it is missing.
    pub fn acquire(folder: &Path) -> Result<StateLock, Error> {
        let unusable = |source| Error::Unusable { folder: folder.into(), source };
        create_folder(folder).map_err(unusable)?;
        let mut file = open(folder, true).map_err(unusable)?;
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Held { folder: folder.into(), holder: written_in(&mut file) }),
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(unusable)?;
        Ok(StateLock { _file: file })
    }
}

/// The process that holds the folder, 0 when its number is not known. `None`: nobody does.
pub fn holder(folder: &Path) -> Option<u32> {
    let mut file = open(folder, false).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(written_in(&mut file)),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Creates a folder, and those above it that are missing, for this user alone; one that is there stays as it is.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn open(folder: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(create).create(create).truncate(false).mode(0o600).open(folder.join("lock"))
}

/// A process that only asks who holds the folder holds it itself for an instant: a second try outlasts that.
fn lock(file: &File) -> Result<(), TryLockError> {
    for _ in 0..200 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            settled => return settled,
        }
    }
    file.try_lock()
}

fn written_in(file: &mut File) -> u32 {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_second_daemon_learns_who_holds_the_folder() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("state");
        assert_eq!(holder(&folder), None);
        let first = StateLock::acquire(&folder).unwrap();
        assert_eq!(holder(&folder), Some(std::process::id()));
        let text = StateLock::acquire(&folder).unwrap_err().to_string();
        assert!(text.contains(&folder.display().to_string()) && text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        assert_eq!(holder(&folder), None);
        StateLock::acquire(&folder).unwrap();
    }

    #[test]
    fn the_folder_and_the_lock_are_for_this_user_alone() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("a/b");
        let _lock = StateLock::acquire(&folder).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("lock"))), (0o700, 0o600));
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = StateLock::acquire(&file.path().join("state")).unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }));
        assert!(error.to_string().contains(&file.path().display().to_string()));
    }
}
