//! The state folder: its permissions and its lock.
//!
//! One daemon at a time holds the lock of a folder. The lock is the kernel's and ends with its
//! process, so a crash leaves nothing to clean up; the number in the file is for people.
//!
//! The folder belongs to the effective user and only that user can write to it, and files in it are
//! opened without following symbolic links: no other user can make a process of ours, root's least
//! of all, write to a file elsewhere.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod folder_check;

pub use folder_check::{FolderCheck, FolderReplaced};

use rustix::fs::OFlags;
use rustix::process::geteuid;

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
    /// Other users could put files of their choice into it.
    #[error("the state folder {} {problem}", folder.display())]
    Exposed {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it, and the way out.
        problem: String,
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
    if holder == 0 {
        "(unknown)".into()
    } else {
        holder.to_string()
    }
}

/// The hold on a state folder: it ends when this is dropped.
#[derive(Debug)]
pub struct StateLock {
    folder: PathBuf,
    file: Arc<File>,
}

fn unusable(folder: &Path, source: io::Error) -> Error {
    Error::Unusable {
        folder: folder.into(),
        source,
    }
}

fn exposed(folder: &Path, problem: String) -> Error {
    Error::Exposed {
        folder: folder.into(),
        problem,
    }
}

impl StateLock {
    /// Takes the folder, which is created for this user alone when it is missing.
    pub fn acquire(folder: &Path) -> Result<StateLock, Error> {
        create_folder(folder).map_err(|source| unusable(folder, source))?;
        check_folder(folder)?;
        make_file_private(&folder.join("lock")).map_err(|source| unusable(folder, source))?;
        let mut file = open_lock(
            folder,
            OpenOptions::new().read(true).write(true).create(true),
        )
        .map_err(|source| unusable(folder, source))?;
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Held {
                    folder: folder.into(),
                    holder: written_in(&mut file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(folder, source)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|source| unusable(folder, source))?;
        Ok(StateLock {
            folder: folder.into(),
            file: Arc::new(file),
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tells later whether the folder is still the one that was locked.
    pub fn check(&self) -> FolderCheck {
        FolderCheck::new(&self.folder, self.file.clone())
    }
}

/// The process that holds the folder, 0 when its number is unknown. `None`: the folder is free.
pub fn holder(folder: &Path) -> Option<u32> {
    let mut file = open_lock(folder, OpenOptions::new().read(true)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(written_in(&mut file)),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Creates a folder and its missing parents for this user alone. An existing folder is not changed.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Checks that a folder belongs to the effective user and that no other user can write to it.
///
/// The folder may be reached through a symbolic link (systemd's `DynamicUser` makes one) of this
/// user or of root.
///
/// # Errors
/// [`Error::Exposed`] with the way out.
pub fn check_folder(folder: &Path) -> Result<(), Error> {
    let user = geteuid().as_raw();
    let named = fs::symlink_metadata(folder).map_err(|source| unusable(folder, source))?;
    if named.is_symlink() && !matches!(named.uid(), 0) && named.uid() != user {
        let problem = format!(
            "is a symbolic link of user {}: name the folder that it leads to",
            named.uid()
        );
        return Err(exposed(folder, problem));
    }
    let facts = fs::metadata(folder).map_err(|source| unusable(folder, source))?;
    if facts.uid() != user {
        let problem = format!(
            "belongs to user {}, and this process runs as user {user}: run it as that user, or give this one a folder of \
             its own (--state, daemon.state)",
            facts.uid()
        );
        return Err(exposed(folder, problem));
    }
    if is_writable_by_others(&facts) {
        let path = folder.display();
        let problem = format!(
            "can be written to by other users (mode {:04o}): chmod 700 {path}",
            facts.mode() & 0o7777
        );
        return Err(exposed(folder, problem));
    }
    Ok(())
}

/// Creates a private file of the state folder, or sees that the one that is there is a regular file
/// of this user and makes it private. The folder has been checked: no other user can put another
/// file in its place meanwhile.
///
/// A file that is there is not opened: closing it would end the locks that SQLite holds on it in
/// this process (<https://sqlite.org/howtocorrupt.html>, section 2.2).
///
/// # Errors
/// Errors of the system; a symbolic link, another kind of file than a regular one, and a file of
/// another user.
pub fn create_file(path: &Path) -> io::Result<()> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => make_file_private(path),
        created => created.map(drop),
    }
}

/// Takes the rights of other users to a file of the state folder away; a file that is not there is
/// private.
///
/// # Errors
/// As [`create_file`].
pub fn make_file_private(path: &Path) -> io::Result<()> {
    let facts = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        facts => facts?,
    };
    check_file(&facts)?;
    if facts.mode() & 0o177 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o600))
    } else {
        Ok(())
    }
}

/// Opens the lock: never through a symbolic link, never waiting for the other end of a pipe.
fn open_lock(folder: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(folder.join("lock"))
}

fn check_file(facts: &Metadata) -> io::Result<()> {
    if facts.is_symlink() {
        return Err(io::Error::other("a symbolic link lies there: move it away"));
    }
    if !facts.is_file() {
        return Err(io::Error::other(
            "what lies there is not a regular file: move it away",
        ));
    }
    if facts.uid() != geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "the file belongs to user {}: move it away",
            facts.uid()
        )));
    }
    Ok(())
}

fn is_writable_by_others(facts: &Metadata) -> bool {
    facts.mode() & 0o022 != 0
}

/// A process that only reads the holder takes the lock for an instant: further attempts outlast
/// that.
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
    read.ok()
        .and_then(|_| text.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_second_daemon_learns_who_holds_the_folder() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("state");
        assert_eq!(holder(&folder), None);
        let first = StateLock::acquire(&folder).unwrap();
        assert_eq!(holder(&folder), Some(std::process::id()));
        let text = StateLock::acquire(&folder).unwrap_err().to_string();
        assert!(
            text.contains(&folder.display().to_string())
                && text.contains(&std::process::id().to_string()),
            "{text}"
        );
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

    /// A state folder in which another user of the machine planted links to files that must stay as
    /// they are.
    #[test]
    fn a_planted_link_is_not_followed() {
        let above = tempfile::tempdir().unwrap();
        let victim = above.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        fs::set_permissions(&victim, Permissions::from_mode(0o644)).unwrap();
        let folder = above.path().join("state");
        create_folder(&folder).unwrap();
        symlink(&victim, folder.join("lock")).unwrap();
        symlink(above.path().join("absent"), folder.join("index.db")).unwrap();
        assert!(matches!(
            StateLock::acquire(&folder).unwrap_err(),
            Error::Unusable { .. }
        ));
        create_file(&folder.join("index.db")).unwrap_err();
        make_file_private(&folder.join("lock")).unwrap_err();
        assert_eq!(holder(&folder), None);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o777, 0o644);
        assert!(!above.path().join("absent").exists());
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused_with_the_way_out() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("state");
        create_folder(&folder).unwrap();
        for mode in [0o777, 0o1777, 0o770, 0o720, 0o702] {
            fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
            let text = StateLock::acquire(&folder).unwrap_err().to_string();
            assert!(
                text.contains(&format!("chmod 700 {}", folder.display())),
                "{mode:o}: {text}"
            );
            assert!(!folder.join("lock").exists(), "nothing was made in it");
        }
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        StateLock::acquire(&folder).unwrap();
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let folder = match geteuid().is_root() {
            true => {
                let folder = above.path().join("state");
                create_folder(&folder).unwrap();
                std::os::unix::fs::chown(&folder, Some(12_345), None).unwrap();
                folder
            }
            false => PathBuf::from("/usr"),
        };
        let text = StateLock::acquire(&folder).unwrap_err().to_string();
        assert!(
            text.contains("belongs to user") && text.contains("--state"),
            "{text}"
        );
        assert!(!folder.join("lock").exists());
    }

    #[test]
    fn a_folder_of_our_own_may_be_reached_through_a_link_of_our_own() {
        let above = tempfile::tempdir().unwrap();
        create_folder(&above.path().join("private/state")).unwrap();
        symlink("private/state", above.path().join("state")).unwrap();
        StateLock::acquire(&above.path().join("state")).unwrap();
    }

    #[test]
    fn a_pipe_is_no_file_of_the_state() {
        let above = tempfile::tempdir().unwrap();
        let pipe = above.path().join("lock");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, rustix::fs::Mode::RWXU, 0).unwrap();
        let error = create_file(&pipe).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        assert!(matches!(
            StateLock::acquire(above.path()),
            Err(Error::Unusable { .. })
        ));
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = StateLock::acquire(&file.path().join("state")).unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }));
        assert!(
            error
                .to_string()
                .contains(&file.path().display().to_string())
        );
    }
}
