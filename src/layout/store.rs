//! The files of one layout: where they are, how they are read, and how they come to be.
//!
//! Everything here blocks and belongs on a blocking thread. Three promises: a file appears whole or
//! not at all (temporary file, sync, rename, sync of the folder); no path leads out of the root,
//! whatever symbolic links lie about; and what the file system refuses becomes a [`Fault`] that
//! names the path.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{Access, OFlags};
use rustix::io::Errno;
use serde::Deserialize;

use crate::fault::{Class, Fault, clip};
use crate::oci::{Digest, RepositoryName};
use crate::random;

use super::index_json::{self, IndexJson};

/// The file that makes a folder a layout.
pub(super) const MARK: &str = "oci-layout";
/// The file that lists manifests and their tags.
pub(super) const INDEX: &str = "index.json";
/// The folder of all content.
pub(super) const BLOBS: &str = "blobs";
/// Our folder for what is not whole yet: upload sessions and files about to be renamed.
pub(super) const UPLOADS: &str = ".uploads";
/// Our file that writers of the index lock.
const LOCK: &str = ".lock";
/// Linux: too many symbolic links.
const ELOOP: i32 = Errno::LOOP.raw_os_error();
/// Linux: nothing reads from the pipe.
const ENXIO: i32 = Errno::NXIO.raw_os_error();
/// Largest mark that is read, in bytes.
const MARK_MAX: u64 = 64 * 1024;

/// One layout on disk. Cheap to clone compared with any use of it.
#[derive(Clone, Debug)]
pub(super) struct Store {
    root: PathBuf,
    folder: PathBuf,
    /// Why the repository's name cannot be a folder here.
    unfit: Option<String>,
}

/// A regular file that was found.
pub(super) struct Found {
    /// Its path without symbolic links.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
}

fn too_large(path: &Path, most: u64) -> Fault {
    Fault::rejected(format!("{} is larger than {most} bytes", path.display()))
}

fn irregular(path: &Path) -> Fault {
    Fault::rejected(format!(
        "{} is not a regular file: remove it",
        path.display()
    ))
}

impl Store {
    /// The layout at `root` itself.
    pub fn single(root: &Path) -> Store {
        Store {
            root: root.into(),
            folder: root.into(),
            unfit: None,
        }
    }

    /// The layout of `repository` below `root`.
    pub fn below(root: &Path, repository: &RepositoryName) -> Store {
        // Such a folder would lie among another layout's own files.
        let own = repository
            .as_str()
            .split('/')
            .find(|part| [MARK, INDEX, BLOBS].contains(part));
        let unfit = own.map(|part| {
            format!("repository {repository} cannot be a folder of layouts: \"{part}\" is a name that layouts use themselves")
        });
        Store {
            root: root.into(),
            folder: root.join(repository.as_str()),
            unfit,
        }
    }

    /// The folder, as configured.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The regular file at `path` inside the layout. `None`: there is nothing.
    pub fn find(&self, path: impl AsRef<Path>) -> Result<Option<Found>, Fault> {
        let Some(path) = self.real(&self.folder.join(path))? else {
            return Ok(None);
        };
        match fs::metadata(&path) {
            Ok(facts) if facts.is_file() => Ok(Some(Found {
                path,
                size: facts.len(),
            })),
            Ok(_) => Err(Fault::rejected(format!(
                "{} is not a regular file",
                path.display()
            ))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(fault("look at", &path, error)),
        }
    }

    /// The file of a blob or manifest.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Found>, Fault> {
        self.find(blob_path(digest))
    }

    /// A whole small file, refused beyond `most` bytes.
    pub fn read(&self, path: impl AsRef<Path>, most: u64) -> Result<Option<Bytes>, Fault> {
        let Some(found) = self.find(path)? else {
            return Ok(None);
        };
        if found.size > most {
            return Err(too_large(&found.path, most));
        }
        let mut bytes = Vec::with_capacity(found.size as usize);
        let read =
            File::open(&found.path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
        read.map_err(|error| fault("read", &found.path, error))?;
        if bytes.len() as u64 > most {
            Err(too_large(&found.path, most))
        } else {
            Ok(Some(bytes.into()))
        }
    }

    /// Whether the folder is a layout of a version that we know.
    pub fn is_layout(&self) -> Result<bool, Fault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Mark {
            image_layout_version: String,
        }
        let Some(bytes) = self.read(MARK, MARK_MAX)? else {
            return Ok(false);
        };
        let mark: Mark = serde_json::from_slice(&bytes).map_err(|error| {
            Fault::rejected(format!("{}/{MARK} is not valid", self.folder.display())).because(error)
        })?;
        if mark.image_layout_version.starts_with("1.") {
            return Ok(true);
        }
        let version = clip(&mark.image_layout_version, 32);
        Err(Fault::rejected(format!(
            "{} is an image layout of version {version} (supported: 1)",
            self.folder.display()
        )))
    }

    /// Whether a first write may make the folder: the nearest one above it that exists decides.
    /// Nothing is made.
    pub fn may_be_made(&self) -> Result<(), Fault> {
        self.fit()?;
        let mut above = self.folder.ancestors();
        let Some(there) = above.find(|folder| folder.exists()) else {
            return Ok(());
        };
        rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| fault("create a folder in", there, error.into()))
    }

    /// The index. `None`: the folder is no layout. A layout has an index, even where it holds
    /// nothing: one without it was copied in part, and must not count as empty (image
    /// specification, image-layout.md, "index.json").
    pub fn index(&self) -> Result<Option<IndexJson>, Fault> {
        if !self.is_layout()? {
            return Ok(None);
        }
        let Some(bytes) = self.read(INDEX, index_json::MAX_SIZE)? else {
            let folder = self.folder.display();
            return Err(Fault::rejected(format!(
                "{folder} is an image layout without {INDEX}: copy the whole layout again"
            )));
        };
        IndexJson::parse(&bytes).map(Some).map_err(|error| {
            Fault::rejected(format!("{}/{INDEX} is not valid", self.folder.display()))
                .because(error)
        })
    }

    /// Makes the folder a layout where it is none. The index lock must be held.
    pub fn establish(&self) -> Result<(), Fault> {
        if self.is_layout()? {
            return Ok(());
        }
        self.make_folder(BLOBS)?;
        if self.find(INDEX)?.is_none() {
            self.write_index(&IndexJson::empty())?;
        }
        self.write("", MARK, br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// Replaces the index. The index lock must be held.
    pub fn write_index(&self, index: &IndexJson) -> Result<(), Fault> {
        let bytes = index.to_bytes();
        if bytes.len() as u64 > index_json::MAX_SIZE {
            return Err(Fault::rejected(format!(
                "{}/{INDEX} would grow too large: it lists too many tags",
                self.folder.display()
            )));
        }
        self.write("", INDEX, &bytes)
    }

    /// Writes a small blob; nothing happens when it is there with the same bytes.
    pub fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Fault> {
        let same_length = self
            .blob(digest)?
            .is_some_and(|found| found.size == bytes.len() as u64);
        if same_length
            && self
                .read(blob_path(digest), bytes.len() as u64)?
                .is_some_and(|stored| stored == bytes)
        {
            return Ok(());
        }
        self.write(&blob_folder(digest), &digest.encoded(), bytes)
    }

    fn write(&self, folder: &str, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        let folder = self.make_folder(folder)?;
        let (mut file, temporary) = self.temporary()?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| fault("write", &temporary, error));
        let placed = written.and_then(|()| place(&temporary, &folder, name));
        if placed.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        placed
    }

    /// Moves a whole file that is synced already to where the blob belongs.
    pub fn place_blob(&self, temporary: &Path, digest: &Digest) -> Result<(), Fault> {
        place(
            temporary,
            &self.make_folder(&blob_folder(digest))?,
            &digest.encoded(),
        )
    }

    /// Gives a file of another layout of this root a second name as blob of this one. `false`: the
    /// file system cannot.
    pub fn link_blob(&self, from: &Found, digest: &Digest) -> Result<bool, Fault> {
        let folder = self.make_folder(&blob_folder(digest))?;
        match fs::hard_link(&from.path, folder.join(digest.encoded())) {
            Ok(()) => sync_folder(&folder).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(self
                .blob(digest)?
                .is_some_and(|there| there.size == from.size)),
            Err(_) => Ok(false),
        }
    }

    /// A new file under a name that cannot be guessed, in the folder of what is not whole yet.
    pub fn temporary(&self) -> Result<(File, PathBuf), Fault> {
        let path = self.make_folder(UPLOADS)?.join(random_name());
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        file.map(|file| (file, path.clone()))
            .map_err(|error| fault("create", &path, error))
    }

    /// Takes the lock that writers of the index share, also with other processes. `None`: another
    /// one has it. It is given back when the file is closed.
    pub fn try_lock(&self) -> Result<Option<File>, Fault> {
        let path = self.make_folder("")?.join(LOCK);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags)
            .open(&path);
        let file = file.map_err(|error| match error.raw_os_error() {
            Some(ELOOP | ENXIO) => irregular(&path),
            _ => fault("open", &path, error),
        })?;
        if !file.metadata().is_ok_and(|facts| facts.is_file()) {
            return Err(irregular(&path));
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(fault("lock", &path, error)),
        }
    }

    /// The folder at `path` inside the layout, made where it is missing, without symbolic links.
    pub fn make_folder(&self, path: &str) -> Result<PathBuf, Fault> {
        self.fit()?;
        fs::create_dir_all(&self.root).map_err(|error| fault("create", &self.root, error))?;
        let wanted = self.folder.join(path);
        let below = wanted
            .strip_prefix(&self.root)
            .expect("a layout's folder begins with its root");
        let mut folder = self.root.clone();
        for part in below.components() {
            let parent = folder.clone();
            folder.push(part);
            // Part by part, so that nothing is made behind a link that leads away.
            match fs::create_dir(&folder) {
                Ok(()) => sync_folder(&parent)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(fault("create", &folder, error)),
            }
            self.real(&folder)?;
        }
        self.real(&folder)?.ok_or_else(|| {
            Fault::retryable(format!(
                "{} went away while it was written to",
                folder.display()
            ))
        })
    }

    /// `path` without symbolic links; refused when it leads out of the root. `None`: there is
    /// nothing.
    fn real(&self, path: &Path) -> Result<Option<PathBuf>, Fault> {
        self.fit()?;
        let Some(root) = canonical(&self.root)? else {
            return Ok(None);
        };
        let Some(real) = canonical(path)? else {
            return Ok(None);
        };
        if real.starts_with(&root) {
            return Ok(Some(real));
        }
        Err(Fault::rejected(format!(
            "{} leads out of {} through a symbolic link",
            path.display(),
            root.display()
        )))
    }

    fn fit(&self) -> Result<(), Fault> {
        self.unfit
            .as_ref()
            .map_or(Ok(()), |reason| Err(Fault::rejected(reason.clone())))
    }
}

/// Where a blob is inside a layout.
fn blob_path(digest: &Digest) -> String {
    format!("{}/{}", blob_folder(digest), digest.encoded())
}

fn blob_folder(digest: &Digest) -> String {
    format!("{BLOBS}/{}", digest.algorithm().name())
}

fn canonical(path: &Path) -> Result<Option<PathBuf>, Fault> {
    match fs::canonicalize(path) {
        Ok(real) => Ok(Some(real)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(fault("look at", path, error)),
    }
}

fn place(temporary: &Path, folder: &Path, name: &str) -> Result<(), Fault> {
    let path = folder.join(name);
    fs::rename(temporary, &path).map_err(|error| fault("create", &path, error))?;
    sync_folder(folder)
}

/// Makes names in a folder survive a power cut.
fn sync_folder(folder: &Path) -> Result<(), Fault> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| fault("sync", folder, error))
}

/// 32 hexadecimal characters.
fn random_name() -> String {
    random::name() + &random::name()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// What a refusal of the file system asks of the caller.
pub(super) fn fault(doing: &str, path: &Path, error: io::Error) -> Fault {
    let class = match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::CrossesDevices
        | io::ErrorKind::InvalidFilename
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::FileTooLarge
        | io::ErrorKind::Unsupported => Class::Rejected,
        // A circle of symbolic links has no kind on stable Rust.
        _ if error.raw_os_error() == Some(ELOOP) => Class::Rejected,
        _ => Class::RETRYABLE,
    };
    Fault::new(class, format!("cannot {doing} {}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn store(root: &Path, repository: &str) -> Store {
        Store::below(root, &repository.parse().unwrap())
    }

    #[test]
    fn what_the_file_system_refuses_has_a_class() {
        use io::ErrorKind as Kind;
        let table = [
            (Kind::PermissionDenied, Class::Rejected),
            (Kind::ReadOnlyFilesystem, Class::Rejected),
            (Kind::StorageFull, Class::RETRYABLE),
            (Kind::QuotaExceeded, Class::RETRYABLE),
            (Kind::NotADirectory, Class::Rejected),
            (Kind::Other, Class::RETRYABLE),
        ];
        for (kind, class) in table {
            let fault = fault("write", Path::new("/some/file"), kind.into());
            assert_eq!(fault.class(), class, "{kind}");
            assert!(fault.chain().contains("/some/file"), "{kind}");
        }
    }

    #[test]
    fn a_link_out_of_the_root_is_never_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), root.path().join("evil")).unwrap();
        let through = store(root.path(), "evil/app");
        assert_eq!(
            through.make_folder(UPLOADS).unwrap_err().class(),
            Class::Rejected
        );
        assert_eq!(
            fs::read_dir(outside.path()).unwrap().count(),
            1,
            "nothing was made outside"
        );

        let app = store(root.path(), "app");
        let digest = Digest::sha256(b"x");
        let folder = app.make_folder("blobs/sha256").unwrap();
        symlink(outside.path().join("secret"), folder.join(digest.encoded())).unwrap();
        assert_eq!(app.blob(&digest).err().unwrap().class(), Class::Rejected);
        symlink(outside.path().join("lock"), root.path().join("app/.lock")).unwrap();
        assert!(app.try_lock().is_err());
        assert!(!outside.path().join("lock").exists());
    }

    #[test]
    fn a_link_inside_the_root_is_followed() {
        let root = tempfile::tempdir().unwrap();
        store(root.path(), "real").establish().unwrap();
        symlink(root.path().join("real"), root.path().join("alias")).unwrap();
        assert!(store(root.path(), "alias").is_layout().unwrap());
    }

    #[test]
    fn no_repository_lies_among_the_files_of_another() {
        let root = tempfile::tempdir().unwrap();
        for name in [
            "app/blobs",
            "app/blobs/sha256",
            "app/index.json",
            "app/oci-layout/x",
        ] {
            assert_eq!(
                store(root.path(), name).establish().unwrap_err().class(),
                Class::Rejected,
                "{name}"
            );
            assert!(store(root.path(), name).find(MARK).is_err(), "{name}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let app = store(root.path(), "app");
        let digest = Digest::sha256(b"x");
        app.make_folder(&blob_path(&digest)).unwrap();
        assert_eq!(app.blob(&digest).err().unwrap().class(), Class::Rejected);
    }

    #[test]
    fn a_newer_layout_is_refused_and_files_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        let app = store(root.path(), "app");
        assert!(!app.is_layout().unwrap());
        app.write("", MARK, br#"{"imageLayoutVersion":"2.0.0"}"#)
            .unwrap();
        assert!(app.is_layout().unwrap_err().to_string().contains("2.0.0"));
        app.write("", MARK, br#"{"imageLayoutVersion":"1.1.0"}"#)
            .unwrap();
        assert!(app.is_layout().unwrap());
        app.write("", "large", &[0; 100]).unwrap();
        assert_eq!(app.read("large", 99).unwrap_err().class(), Class::Rejected);
        assert_eq!(app.read("large", 100).unwrap().unwrap().len(), 100);
    }

    #[test]
    fn the_lock_has_one_holder() {
        let root = tempfile::tempdir().unwrap();
        let one = store(root.path(), "app");
        let other = store(root.path(), "app");
        let held = one.try_lock().unwrap();
        assert!(held.is_some());
        assert!(other.try_lock().unwrap().is_none());
        drop(held);
        assert!(other.try_lock().unwrap().is_some());
    }
}
