//! Whether the state folder is still the one that was locked.
//!
//! A lock and a database outlive their names: after `rm -r` of the folder, or after another one was
//! put in its place, the process would write to files that nothing else sees, and a second daemon
//! could lock the new folder. So files are compared by device and inode with what their paths lead
//! to now.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Compares the files of a locked state folder with the files at the same paths now. Cheap to
/// clone; a check takes a few microseconds.
#[derive(Clone, Debug)]
pub struct FolderCheck {
    folder: Arc<Path>,
    lock: Arc<File>,
    /// Files that this process keeps open, as they were when it opened them.
    files: Vec<(PathBuf, Identity)>,
}

/// The state folder is not the one that was locked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} was removed or replaced while this process used it: nothing is promoted any more, since what is written there would \
     be lost and another process may use the new one (put the state folder back as it was; or restart, which begins with \
     what is there)",
    path.display()
)]
pub struct FolderReplaced {
    path: PathBuf,
}

/// What tells a file from all others. The kernel does not give an inode's number away while the
/// file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(facts: &Metadata) -> Identity {
        Identity {
            device: facts.dev(),
            inode: facts.ino(),
        }
    }
}

impl FolderCheck {
    pub(super) fn new(folder: &Path, lock: Arc<File>) -> FolderCheck {
        FolderCheck {
            folder: folder.into(),
            lock,
            files: Vec::new(),
        }
    }

    /// Watches over another file of the folder, too. It must stay open in this process: it is not
    /// opened here, since closing it would end the locks that SQLite holds on it.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn and(mut self, name: &str) -> io::Result<FolderCheck> {
        let path = self.folder.join(name);
        let identity = Identity::of(&fs::symlink_metadata(&path)?);
        self.files.push((path, identity));
        Ok(self)
    }

    /// Whether the paths still lead to the files that this process has open.
    ///
    /// # Errors
    /// [`FolderReplaced`], also when the system does not let us see.
    pub fn check(&self) -> Result<(), FolderReplaced> {
        let lock = self.lock.metadata().map(|facts| Identity::of(&facts)).ok();
        compare(self.folder.join("lock"), lock)?;
        self.files
            .iter()
            .try_for_each(|(path, identity)| compare(path.clone(), Some(*identity)))
    }
}

fn compare(path: PathBuf, held: Option<Identity>) -> Result<(), FolderReplaced> {
    let there = fs::symlink_metadata(&path)
        .ok()
        .map(|facts| Identity::of(&facts));
    if held.is_some() && there == held {
        Ok(())
    } else {
        Err(FolderReplaced { path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateLock;

    #[test]
    fn a_folder_that_was_removed_or_replaced_is_noticed_and_one_that_comes_back_is_good() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("state");
        let held = StateLock::acquire(&folder).unwrap();
        let ledger = File::create(folder.join("ledger.db")).unwrap();
        let check = held.check().and("ledger.db").unwrap();
        assert_eq!(check.check(), Ok(()));

        let aside = above.path().join("aside");
        fs::rename(&folder, &aside).unwrap();
        assert!(check.check().is_err(), "it was moved away");
        let second = StateLock::acquire(&folder).expect("nothing holds the new folder");
        let text = check
            .check()
            .expect_err("another process holds the new one")
            .to_string();
        assert!(text.contains(&folder.display().to_string()), "{text}");
        drop(second);

        fs::remove_dir_all(&folder).unwrap();
        fs::rename(&aside, &folder).unwrap();
        assert_eq!(check.check(), Ok(()), "it is the same again");

        fs::remove_file(folder.join("ledger.db")).unwrap();
        File::create(folder.join("ledger.db")).unwrap();
        assert!(
            check.check().unwrap_err().to_string().contains("ledger.db"),
            "the ledger alone"
        );
        drop(ledger);
    }
}
