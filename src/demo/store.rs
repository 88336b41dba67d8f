//! What an embedded registry holds: blobs, manifests, tags and open uploads, in memory and never
//! more than its capacity.
//!
//! Content enters under its own digest only, after it has been hashed; a manifest enters only when
//! everything it lists is in its repository. A blob that several repositories hold is kept once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::oci::{Algorithm, Digest, Manifest, RepositoryName, Tag, Target};

/// Most uploads that are open at once; one more ends the oldest.
const MAX_UPLOADS: usize = 64;
/// Most repositories.
const MAX_REPOSITORIES: usize = 1000;

/// The content of one registry. Cheap to clone: all clones hold the same content.
#[derive(Clone, Debug)]
pub struct Store {
    state: Arc<Mutex<State>>,
}

/// Why something does not enter the store; the registry's error codes of the distribution
/// specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The content is not what its digest says.
    #[error("the content has the digest {found}")]
    DigestInvalid {
        /// What was hashed.
        found: Digest,
    },
    /// There is no such upload session in this repository.
    #[error("there is no such upload")]
    UploadUnknown,
    /// The chunk does not start where the session ends.
    #[error("the upload ends at {held}")]
    RangeInvalid {
        /// Bytes that the session holds.
        held: u64,
    },
    /// A manifest lists something that the repository does not hold.
    #[error("the repository does not hold {0}")]
    ContentUnknown(Digest),
    /// The document is not a manifest.
    #[error("{0}")]
    ManifestInvalid(String),
    /// The registry's capacity is used up.
    #[error("the registry is full: it holds at most {capacity} bytes")]
    Full {
        /// Its capacity in bytes.
        capacity: u64,
    },
}

#[derive(Debug)]
struct State {
    capacity: u64,
    used: u64,
    blobs: HashMap<Digest, Bytes>,
    repositories: BTreeMap<RepositoryName, Repository>,
    uploads: BTreeMap<u64, Upload>,
    opened: u64,
}

#[derive(Debug, Default)]
struct Repository {
    blobs: HashSet<Digest>,
    manifests: BTreeMap<Digest, Manifest>,
    tags: BTreeMap<Tag, Tagged>,
}

/// What a tag names, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Tagged {
    /// The manifest.
    pub digest: Digest,
    /// When the tag was last written.
    pub at: Instant,
}

#[derive(Debug)]
struct Upload {
    repository: RepositoryName,
    bytes: BytesMut,
}

impl Store {
    /// An empty store that holds at most `capacity` bytes.
    pub fn new(capacity: u64) -> Store {
        let state = State {
            capacity,
            used: 0,
            blobs: HashMap::new(),
            repositories: BTreeMap::new(),
            uploads: BTreeMap::new(),
            opened: 0,
        };
        Store {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The bytes of a blob, if the repository holds it.
    pub fn blob(&self, repository: &RepositoryName, digest: &Digest) -> Option<Bytes> {
        let state = self.lock();
        state
            .repositories
            .get(repository)?
            .blobs
            .contains(digest)
            .then(|| state.blobs.get(digest).cloned())?
    }

    /// Puts a blob into a repository.
    ///
    /// # Errors
    /// [`Refusal::Full`].
    pub fn put_blob(&self, repository: &RepositoryName, bytes: Bytes) -> Result<Digest, Refusal> {
        let digest = Digest::sha256(&bytes);
        self.lock().keep(repository, digest, bytes)?;
        Ok(digest)
    }

    /// Lets `repository` hold what `from` holds. `false`: `from` does not.
    pub fn mount(
        &self,
        repository: &RepositoryName,
        from: &RepositoryName,
        digest: &Digest,
    ) -> bool {
        let mut state = self.lock();
        let held = state
            .repositories
            .get(from)
            .is_some_and(|from| from.blobs.contains(digest));
        held && state
            .repository(repository)
            .map(|home| home.blobs.insert(*digest))
            .is_ok()
    }

    /// Opens an upload session and names it.
    ///
    /// # Errors
    /// [`Refusal::Full`].
    pub fn begin(&self, repository: &RepositoryName) -> Result<u64, Refusal> {
        let mut state = self.lock();
        state.repository(repository)?;
        if state.uploads.len() >= MAX_UPLOADS
            && let Some((_, oldest)) = state.uploads.pop_first()
        {
            state.used -= oldest.bytes.len() as u64;
        }
        state.opened += 1;
        let id = state.opened;
        state.uploads.insert(
            id,
            Upload {
                repository: repository.clone(),
                bytes: BytesMut::new(),
            },
        );
        Ok(id)
    }

    /// Adds `chunk` to a session that must end at `offset`; the new end comes back.
    ///
    /// # Errors
    /// [`Refusal::UploadUnknown`], [`Refusal::RangeInvalid`], [`Refusal::Full`].
    pub fn append(
        &self,
        repository: &RepositoryName,
        id: u64,
        offset: u64,
        chunk: &[u8],
    ) -> Result<u64, Refusal> {
        let mut state = self.lock();
        let held = state.upload(repository, id)?.bytes.len() as u64;
        if held != offset {
            return Err(Refusal::RangeInvalid { held });
        }
        state.reserve(chunk.len() as u64)?;
        state.upload(repository, id)?.bytes.extend_from_slice(chunk);
        Ok(held + chunk.len() as u64)
    }

    /// How much a session holds.
    ///
    /// # Errors
    /// [`Refusal::UploadUnknown`].
    pub fn received(&self, repository: &RepositoryName, id: u64) -> Result<u64, Refusal> {
        Ok(self.lock().upload(repository, id)?.bytes.len() as u64)
    }

    /// Gives a session up.
    ///
    /// # Errors
    /// [`Refusal::UploadUnknown`].
    pub fn cancel(&self, repository: &RepositoryName, id: u64) -> Result<(), Refusal> {
        self.lock().end_upload(repository, id).map(drop)
    }

    /// Closes a session: its content becomes the blob `digest`. The session ends either way.
    ///
    /// # Errors
    /// [`Refusal::UploadUnknown`], [`Refusal::DigestInvalid`].
    pub fn finish(
        &self,
        repository: &RepositoryName,
        id: u64,
        digest: &Digest,
    ) -> Result<(), Refusal> {
        let mut state = self.lock();
        let bytes = state.end_upload(repository, id)?;
        let found = Digest::of(digest.algorithm(), &bytes);
        if found != *digest {
            return Err(Refusal::DigestInvalid { found });
        }
        state.keep(repository, *digest, bytes)
    }

    /// Writes a manifest under a tag or its digest.
    ///
    /// # Errors
    /// [`Refusal::ManifestInvalid`], [`Refusal::DigestInvalid`], [`Refusal::ContentUnknown`],
    /// [`Refusal::Full`].
    pub fn put_manifest(
        &self,
        repository: &RepositoryName,
        target: &Target,
        content_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<Manifest, Refusal> {
        let algorithm = match target {
            Target::Digest(digest) => digest.algorithm(),
            Target::Tag(_) => Algorithm::Sha256,
        };
        let manifest = Manifest::parse(bytes, content_type, algorithm)
            .map_err(|error| Refusal::ManifestInvalid(error.to_string()))?;
        match target {
            Target::Digest(digest) if *digest != manifest.digest => Err(Refusal::DigestInvalid {
                found: manifest.digest,
            }),
            _ => self.lock().keep_manifest(repository, target, manifest),
        }
    }

    /// The manifest that `target` names.
    pub fn manifest(&self, repository: &RepositoryName, target: &Target) -> Option<Manifest> {
        let state = self.lock();
        let repository = state.repositories.get(repository)?;
        let digest = match target {
            Target::Digest(digest) => *digest,
            Target::Tag(tag) => repository.tags.get(tag)?.digest,
        };
        repository.manifests.get(&digest).cloned()
    }

    /// The tags of a repository, sorted. `None`: there is no such repository.
    pub fn tags(&self, repository: &RepositoryName) -> Option<Vec<Tag>> {
        Some(
            self.lock()
                .repositories
                .get(repository)?
                .tags
                .keys()
                .cloned()
                .collect(),
        )
    }

    /// What a tag names.
    pub fn tagged(&self, repository: &RepositoryName, tag: &Tag) -> Option<Tagged> {
        self.lock()
            .repositories
            .get(repository)?
            .tags
            .get(tag)
            .copied()
    }

    /// All repositories, sorted.
    pub fn repositories(&self) -> Vec<RepositoryName> {
        self.lock().repositories.keys().cloned().collect()
    }

    /// The manifests of a repository with this subject.
    pub fn referrers(&self, repository: &RepositoryName, subject: &Digest) -> Vec<Manifest> {
        let state = self.lock();
        let manifests = state
            .repositories
            .get(repository)
            .into_iter()
            .flat_map(|home| home.manifests.values());
        manifests
            .filter(|manifest| {
                manifest
                    .subject
                    .as_ref()
                    .is_some_and(|named| named.digest == *subject)
            })
            .cloned()
            .collect()
    }

    /// Bytes held, open uploads included.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Walks from what `tag` names to every blob below it and hashes all of it again. The count of
    /// documents and blobs comes back.
    ///
    /// # Errors
    /// What is missing or damaged, as a sentence.
    pub fn verify(&self, repository: &RepositoryName, tag: &Tag) -> Result<usize, String> {
        let state = self.lock();
        let home = state
            .repositories
            .get(repository)
            .ok_or_else(|| format!("there is no repository {repository}"))?;
        let tagged = home
            .tags
            .get(tag)
            .ok_or_else(|| format!("there is no tag {repository}:{tag}"))?;
        let reached = home.reachable([tagged.digest]);
        for digest in &reached {
            let bytes = home
                .manifests
                .get(digest)
                .map(|manifest| &manifest.bytes)
                .or_else(|| state.blobs.get(digest));
            let bytes = bytes.ok_or_else(|| format!("{repository}:{tag} lacks {digest}"))?;
            if Digest::of(digest.algorithm(), bytes) != *digest {
                return Err(format!(
                    "{repository}:{tag}: the content of {digest} is damaged"
                ));
            }
        }
        Ok(reached.len())
    }

    /// Forgets all but the `count` tags written last, and what only the forgotten ones needed.
    pub fn keep_newest(&self, repository: &RepositoryName, count: usize) {
        let mut state = self.lock();
        let Some(home) = state.repositories.get_mut(repository) else {
            return;
        };
        let gone = home.forget_oldest(count);
        let manifests: u64 = gone
            .iter()
            .filter_map(|digest| home.manifests.remove(digest))
            .map(|m| m.bytes.len() as u64)
            .sum();
        for digest in &gone {
            home.blobs.remove(digest);
        }
        state.used -= manifests;
        state.drop_unheld(&gone);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds the store")
    }
}

impl State {
    fn reserve(&mut self, bytes: u64) -> Result<(), Refusal> {
        if self.used + bytes > self.capacity {
            return Err(Refusal::Full {
                capacity: self.capacity,
            });
        }
        self.used += bytes;
        Ok(())
    }

    fn repository(&mut self, name: &RepositoryName) -> Result<&mut Repository, Refusal> {
        if !self.repositories.contains_key(name) && self.repositories.len() >= MAX_REPOSITORIES {
            return Err(Refusal::Full {
                capacity: self.capacity,
            });
        }
        Ok(self.repositories.entry(name.clone()).or_default())
    }

    fn upload(&mut self, repository: &RepositoryName, id: u64) -> Result<&mut Upload, Refusal> {
        self.uploads
            .get_mut(&id)
            .filter(|upload| upload.repository == *repository)
            .ok_or(Refusal::UploadUnknown)
    }

    fn end_upload(&mut self, repository: &RepositoryName, id: u64) -> Result<Bytes, Refusal> {
        self.upload(repository, id)?;
        let upload = self.uploads.remove(&id).ok_or(Refusal::UploadUnknown)?;
        self.used -= upload.bytes.len() as u64;
        Ok(upload.bytes.freeze())
    }

    fn keep(
        &mut self,
        repository: &RepositoryName,
        digest: Digest,
        bytes: Bytes,
    ) -> Result<(), Refusal> {
        if !self.blobs.contains_key(&digest) {
            self.reserve(bytes.len() as u64)?;
            self.blobs.insert(digest, bytes);
        }
        self.repository(repository)?.blobs.insert(digest);
        Ok(())
    }

    fn keep_manifest(
        &mut self,
        name: &RepositoryName,
        target: &Target,
        manifest: Manifest,
    ) -> Result<Manifest, Refusal> {
        let home = self.repository(name)?;
        if let Some(missing) = home.missing(&manifest) {
            return Err(Refusal::ContentUnknown(missing));
        }
        if !home.manifests.contains_key(&manifest.digest) {
            self.reserve(manifest.bytes.len() as u64)?;
        }
        let home = self.repository(name)?;
        home.manifests.insert(manifest.digest, manifest.clone());
        if let Target::Tag(tag) = target {
            home.tags.insert(
                tag.clone(),
                Tagged {
                    digest: manifest.digest,
                    at: Instant::now(),
                },
            );
        }
        Ok(manifest)
    }

    /// Drops those of `digests` that no repository holds as a blob any more.
    fn drop_unheld(&mut self, digests: &BTreeSet<Digest>) {
        for digest in digests {
            if !self
                .repositories
                .values()
                .any(|home| home.blobs.contains(digest))
                && let Some(bytes) = self.blobs.remove(digest)
            {
                self.used -= bytes.len() as u64;
            }
        }
    }
}

impl Repository {
    /// The first thing that `manifest` lists and the repository does not hold.
    fn missing(&self, manifest: &Manifest) -> Option<Digest> {
        let blobs = manifest
            .blobs
            .iter()
            .filter(|blob| !blob.media_type.is_foreign_layer());
        let children = manifest
            .children
            .iter()
            .filter(|child| !self.manifests.contains_key(&child.digest));
        blobs
            .chain(children)
            .map(|listed| listed.digest)
            .find(|digest| !self.blobs.contains(digest))
    }

    /// Everything below `roots`, with the manifests that name something of it as their subject, and
    /// all below those.
    fn reachable(&self, roots: impl IntoIterator<Item = Digest>) -> BTreeSet<Digest> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<Digest> = roots.into_iter().collect();
        while let Some(digest) = next.pop() {
            if !reached.insert(digest) {
                continue;
            }
            let Some(manifest) = self.manifests.get(&digest) else {
                continue;
            };
            let held = manifest
                .blobs
                .iter()
                .filter(|layer| !layer.media_type.is_foreign_layer());
            next.extend(
                manifest
                    .children
                    .iter()
                    .chain(held)
                    .map(|entry| entry.digest),
            );
            next.extend(
                self.manifests
                    .values()
                    .filter(|other| {
                        other
                            .subject
                            .as_ref()
                            .is_some_and(|subject| subject.digest == digest)
                    })
                    .map(|other| other.digest),
            );
        }
        reached
    }

    /// Removes all but the `count` newest tags; what only they reached comes back.
    fn forget_oldest(&mut self, count: usize) -> BTreeSet<Digest> {
        let mut ages: Vec<(Instant, Tag)> = self
            .tags
            .iter()
            .map(|(tag, tagged)| (tagged.at, tag.clone()))
            .collect();
        ages.sort_by(|left, right| right.cmp(left));
        let old = ages
            .into_iter()
            .skip(count)
            .filter_map(|(_, tag)| self.tags.remove(&tag))
            .map(|tagged| tagged.digest);
        let old: Vec<Digest> = old.collect();
        let kept = self.reachable(
            self.tags
                .values()
                .map(|tagged| tagged.digest)
                .collect::<Vec<_>>(),
        );
        self.reachable(old).difference(&kept).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::image::{Image, Sample};

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn push(store: &Store, repository: &RepositoryName, image: &Image, tags: &[&str]) {
        image
            .push(
                store,
                repository,
                &tags.iter().map(|text| tag(text)).collect::<Vec<_>>(),
            )
            .unwrap();
    }

    #[test]
    fn a_manifest_without_its_content_does_not_enter() {
        let store = Store::new(1 << 24);
        let home = name("app");
        let image = Sample::new(1).image(1);
        let refused = store.put_manifest(&home, &tag("v1").into(), None, image.index.clone());
        assert!(matches!(refused, Err(Refusal::ContentUnknown(_))));
        assert!(store.tagged(&home, &tag("v1")).is_none());
        push(&store, &home, &image, &["v1"]);
        assert_eq!(
            store.verify(&home, &tag("v1")).unwrap(),
            3 + 5 + 3,
            "documents, blobs, and the list of packages that refers to it"
        );
    }

    #[test]
    fn forgotten_tags_give_their_room_back_and_leave_the_rest_whole() {
        let store = Store::new(1 << 24);
        let home = name("app");
        let sample = Sample::new(1);
        push(&store, &home, &sample.image(1), &["v1", "latest"]);
        let one = store.used();
        for round in 2..6 {
            push(
                &store,
                &home,
                &sample.image(round),
                &[&format!("v{round}"), "latest"],
            );
        }
        let five = store.used();
        store.keep_newest(&home, 2);
        assert_eq!(store.tags(&home).unwrap(), [tag("latest"), tag("v5")]);
        assert!(store.used() < five && store.used().abs_diff(one) < 64);
        store.verify(&home, &tag("v5")).unwrap();
    }

    #[test]
    fn the_capacity_is_never_exceeded() {
        let store = Store::new(100);
        let home = name("app");
        store.put_blob(&home, Bytes::from(vec![1; 60])).unwrap();
        store
            .put_blob(&name("other"), Bytes::from(vec![1; 60]))
            .unwrap();
        assert_eq!(store.used(), 60, "the same content is kept once");
        assert!(matches!(
            store.put_blob(&home, Bytes::from(vec![2; 60])),
            Err(Refusal::Full { capacity: 100 })
        ));
        let id = store.begin(&home).unwrap();
        store.append(&home, id, 0, &[3; 40]).unwrap();
        assert!(matches!(
            store.append(&home, id, 40, &[3]),
            Err(Refusal::Full { .. })
        ));
        store.cancel(&home, id).unwrap();
        assert_eq!(store.used(), 60);
    }

    #[test]
    fn an_upload_with_the_wrong_digest_ends_and_leaves_nothing() {
        let store = Store::new(100);
        let home = name("app");
        let id = store.begin(&home).unwrap();
        store.append(&home, id, 0, b"right").unwrap();
        assert_eq!(
            store.append(&home, id, 3, b"x"),
            Err(Refusal::RangeInvalid { held: 5 })
        );
        assert_eq!(
            store.append(&name("other"), id, 5, b"x"),
            Err(Refusal::UploadUnknown)
        );
        let found = Digest::sha256(b"right");
        assert_eq!(
            store.finish(&home, id, &Digest::sha256(b"wrong")),
            Err(Refusal::DigestInvalid { found })
        );
        assert_eq!(store.received(&home, id), Err(Refusal::UploadUnknown));
        assert_eq!((store.used(), store.blob(&home, &found)), (0, None));
    }
}
