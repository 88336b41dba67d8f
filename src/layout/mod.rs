//! OCI image-layout directories as source and destination (image specification, `image-layout.md`).
//!
//! A [`Root`] is a folder of layouts, one for each repository:
//! `root/team/app/{oci-layout,index.json,blobs}`; or it is one layout. What is kept:
//!
//! - Tags are the entries of `index.json`; all content, manifests too, is under
//!   `blobs/algorithm/encoded`.
//! - A file appears whole and synced or not at all; the tag is the last file written.
//! - `index.json` is changed under a lock that works between processes (`.lock`); what others wrote
//!   into it stays.
//! - Upload sessions are files under `.uploads` and outlive the process.
//!   [`Destination::finish_upload`] takes the caller's word for the digest of a blob that comes
//!   whole in one request, once its length is right; bytes of earlier requests are read back and
//!   hashed.
//! - A mount is a hard link. Nothing is ever deleted but upload sessions that nothing has written
//!   to for a day.
//! - Nothing outside the root is read or written, whatever symbolic links say.
//!
//! The file system is used on blocking threads only. A listing is one page.

mod body;
mod index_json;
mod manifest;
mod store;
mod upload;
mod walk;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::endpoint::{
    Abilities, Begin, BlobBody, Cursor, Destination, Mount, Offset, Origin, Page, Presence, Put,
    Resolved, Resume, Sent, Source, Tag, Tally, Upload, UploadStyle,
};
use crate::fault::Fault;
use crate::oci::{Descriptor, Digest, Manifest, RepositoryName, Target};

use body::FileBody;
use manifest::{Stored, Subjects};
use store::Store;
use upload::Opened;

/// How long a writer waits for the lock of an index. Its holders write one small file.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// How often the lock of another process is tried.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A folder of layouts, or one layout. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Root(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    origin: Origin,
    path: PathBuf,
    single: bool,
    /// Lets the writers of this process queue in order; the lock file keeps other processes away.
    writers: Arc<Mutex<()>>,
    subjects: Subjects,
}

impl Root {
    /// The folder at `path`, in which every repository has a layout of its own. It is created on
    /// the first write.
    pub fn new(name: &str, path: &Path) -> Root {
        Root::open(name, path, false)
    }

    /// One layout at `path` itself: the name of its repository adds no folder.
    pub fn single(name: &str, path: &Path) -> Root {
        Root::open(name, path, true)
    }

    fn open(name: &str, path: &Path, single: bool) -> Root {
        let path = settled(path);
        let origin = Origin::new(&format!("layout:{}", path.display()));
        Root(Arc::new(Shared {
            name: name.to_owned(),
            origin,
            path,
            single,
            writers: Arc::default(),
            subjects: Subjects::default(),
        }))
    }

    /// The name in the config.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// `layout:/absolute/path`.
    pub fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// A repository, there or not.
    pub fn repository(&self, name: RepositoryName) -> Repository {
        let store = Arc::new(self.store(&name));
        Repository {
            root: self.clone(),
            name,
            store,
            tally: None,
        }
    }

    /// One page of the repositories, by name, at most 16 folders deep; symbolic links are not
    /// followed. `None`: there is no such folder.
    ///
    /// # Errors
    /// When a folder cannot be read, when this is one layout and no folder of layouts, and for a
    /// cursor that was not given here.
    pub async fn repositories(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<RepositoryName>>, Fault> {
        let path = self.0.path.clone();
        if self.0.single {
            return Err(Fault::rejected(format!(
                "{} is one image layout: it has no list of repositories",
                path.display()
            )));
        }
        let cursor = cursor.cloned();
        blocking(move || walk::repositories(&path, cursor.as_ref())).await
    }

    fn store(&self, name: &RepositoryName) -> Store {
        if self.0.single {
            Store::single(&self.0.path)
        } else {
            Store::below(&self.0.path, name)
        }
    }
}

/// The absolute path without links, as far as it exists: one folder has one origin.
fn settled(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    for there in path.ancestors() {
        if let Ok(real) = there.canonicalize() {
            let rest = path.strip_prefix(there).expect("an ancestor is a prefix");
            return if rest.as_os_str().is_empty() {
                real
            } else {
                real.join(rest)
            };
        }
    }
    path
}

/// One layout. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    root: Root,
    name: RepositoryName,
    store: Arc<Store>,
    tally: Option<Arc<Tally>>,
}

/// The lock of an index, for writers of this process and of others. Freed when dropped.
struct IndexLock {
    _file: File,
    _queue: OwnedMutexGuard<()>,
}

impl Repository {
    /// Whether it is a layout already. Nothing is made.
    ///
    /// # Errors
    /// When it cannot be read, and when it is not there and no write could make it.
    pub async fn is_there(&self) -> Result<bool, Fault> {
        self.act(|store| {
            let is_there = store.is_layout()?;
            if !is_there {
                store.may_be_made()?;
            }
            Ok(is_there)
        })
        .await
    }

    /// One act on the disk, counted, off the runtime's thread.
    async fn act<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        if let Some(tally) = &self.tally {
            tally.add();
        }
        self.step(work).await
    }

    /// A further part of an act.
    async fn step<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let store = self.store.clone();
        blocking(move || work(&store)).await
    }

    /// Tried and not waited for on a thread, so that a process that never lets go of the lock
    /// cannot keep ours alive.
    async fn lock_index(&self) -> Result<IndexLock, Fault> {
        let taken = async {
            let _queue = self.root.0.writers.clone().lock_owned().await;
            loop {
                if let Some(_file) = self.step(Store::try_lock).await? {
                    return Ok(IndexLock { _file, _queue });
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
        };
        tokio::time::timeout(LOCK_WAIT, taken)
            .await
            .unwrap_or_else(|_| {
                let folder = self.store.folder().display();
                let text = format!("another program holds the lock of {folder}");
                Err(Fault::retryable(text))
            })
    }

    /// Makes the folder a layout where it is none.
    async fn establish(&self) -> Result<(), Fault> {
        if self.step(Store::is_layout).await? {
            return Ok(());
        }
        let lock = self.lock_index().await?;
        self.step(move |store| {
            let _lock = lock;
            store.establish()
        })
        .await
    }

    /// The layout of another repository of this root.
    fn sibling(&self, name: &RepositoryName) -> Option<Store> {
        (!self.root.0.single || *name == self.name).then(|| self.root.store(name))
    }
}

impl Source for Repository {
    fn registry(&self) -> &str {
        self.root.name()
    }

    fn origin(&self) -> &Origin {
        self.root.origin()
    }

    fn repository(&self) -> &RepositoryName {
        &self.name
    }

    fn address(&self) -> String {
        format!("layout:{}", self.store.folder().display())
    }

    fn counted(&self, tally: &Arc<Tally>) -> Repository {
        Repository {
            tally: Some(tally.clone()),
            ..self.clone()
        }
    }

    async fn tags(&self, cursor: Option<&Cursor>) -> Result<Option<Page<Tag>>, Fault> {
        if cursor.is_some() {
            return Err(Fault::rejected(format!(
                "{}: the list of tags has no such page",
                self.address()
            )));
        }
        self.act(manifest::tags).await
    }

    async fn resolve(&self, target: &Target) -> Result<Option<Resolved>, Fault> {
        let target = target.clone();
        self.act(move |store| manifest::resolve(store, &target))
            .await
    }

    async fn manifest(&self, target: &Target) -> Result<Option<Manifest>, Fault> {
        let target = target.clone();
        self.act(move |store| manifest::read(store, &target)).await
    }

    fn lists_referrers(&self) -> Option<bool> {
        Some(true)
    }

    async fn referrers(
        &self,
        subject: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        if cursor.is_some() {
            return Err(Fault::rejected(format!(
                "{}: the list of referrers has no such page",
                self.address()
            )));
        }
        let subject = *subject;
        let root = self.root.clone();
        let entries = self
            .act(move |store| root.0.subjects.referrers(store, &subject))
            .await?;
        Ok(Some(Page {
            entries,
            invalid: 0,
            next: None,
        }))
    }

    async fn read_blob(&self, blob: &Descriptor, offset: u64) -> Result<Option<BlobBody>, Fault> {
        let Descriptor { digest, size, .. } = *blob;
        if offset > size {
            return Err(Fault::rejected(format!(
                "{}: {digest} is asked for from {offset} on, beyond its {size} bytes",
                self.address()
            )));
        }
        let opened = self
            .act(move |store| match store.blob(&digest)? {
                Some(found) if found.size == size => {
                    body::open(&found, offset).map(|file| Some((file, found.path)))
                }
                Some(found) => Err(Fault::corrupt(format!(
                    "{} is {} bytes long, not {size}",
                    found.path.display(),
                    found.size
                ))),
                None => Ok(None),
            })
            .await?;
        Ok(opened.map(|(file, path)| BlobBody::new(FileBody::new(file, &path, size - offset))))
    }
}

impl Destination for Repository {
    fn abilities(&self) -> Abilities {
        Abilities {
            upload: UploadStyle::Whole,
            resume: Resume::Status,
            mount: Mount::Held,
            mount_asks: true,
            current_lists: true,
            needs_fallback_lists: true,
        }
    }

    async fn has_blob(&self, digest: &Digest) -> Result<Presence, Fault> {
        let digest = *digest;
        let found = self.act(move |store| store.blob(&digest)).await?;
        Ok(found.map_or(Presence::Absent, |found| Presence::Present {
            size: Some(found.size),
        }))
    }

    async fn begin_upload(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        let digest = *digest;
        let from = from.and_then(|from| self.sibling(from));
        let begun = self.act(move |store| {
            let held = match from {
                Some(from) => from.blob(&digest)?,
                None => None,
            };
            match held {
                Some(held) if store.link_blob(&held, &digest)? => Ok(None),
                _ => upload::begin(store).map(Some),
            }
        });
        match begun.await? {
            Some(location) => Ok(Begin::Session(Upload { location })),
            None => self.establish().await.map(|()| Begin::Mounted),
        }
    }

    async fn send_chunk(
        &self,
        upload: &mut Upload,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        let location = upload.location.clone();
        let session = match self
            .act(move |store| upload::open(store, &location, offset))
            .await?
        {
            Opened::Session(session) => session,
            Opened::Ends(at) => return Ok(Sent::Misplaced(Offset::At(at))),
            Opened::Gone => return Ok(Sent::Gone),
        };
        let session = session.append(length, body).await?;
        self.step(move |_| session.sync()).await?;
        Ok(Sent::Accepted {
            reported: Some(offset + length),
        })
    }

    async fn finish_upload(
        &self,
        upload: &mut Upload,
        digest: &Digest,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        let digest = *digest;
        let location = upload.location.clone();
        let session = match self
            .act(move |store| upload::open(store, &location, offset))
            .await?
        {
            Opened::Session(session) => session,
            Opened::Ends(at) => return Ok(Sent::Misplaced(Offset::At(at))),
            Opened::Gone => return Ok(Sent::Gone),
        };
        let session = session.append(length, body).await?;
        self.establish().await?;
        self.step(move |store| session.commit(store, &digest, offset > 0))
            .await?;
        Ok(Sent::Accepted {
            reported: Some(offset + length),
        })
    }

    async fn upload_offset(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        let location = upload.location.clone();
        let offset = self
            .act(move |store| upload::offset(store, &location))
            .await?;
        Ok(offset.map_or(Offset::Gone, Offset::At))
    }

    async fn cancel_upload(&self, upload: Upload) -> Result<(), Fault> {
        self.act(move |store| upload::cancel(store, &upload.location))
            .await
    }

    async fn put_manifest(&self, target: &Target, manifest: &Manifest) -> Result<Put, Fault> {
        let subject = manifest.subject.is_some();
        let target = target.clone();
        let manifest = manifest.clone();
        let (stored, target, manifest) = self
            .act(move |store| {
                Ok((
                    manifest::store(store, &target, &manifest)?,
                    target,
                    manifest,
                ))
            })
            .await?;
        match stored {
            Stored::Missing(missing) => return Ok(Put::Missing(missing)),
            Stored::Unlisted => {}
            Stored::List(descriptor) => {
                let lock = self.lock_index().await?;
                self.step(move |store| {
                    let _lock = lock;
                    manifest::list(store, &target, &manifest, &descriptor)
                })
                .await?;
            }
        }
        Ok(Put::Accepted { subject })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Fault::cancelled()),
        },
    }
}
