//! Manifests of a layout: found by tag or digest, verified, written, and listed under their
//! subject.
//!
//! A tag is an entry of the index; a manifest by digest is any blob that parses as one. A tag with
//! missing or damaged content is a fault and never "absent": an absent tag may be written.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::endpoint::{Page, Resolved, Tag as Listed};
use crate::fault::{Class, Fault};
use crate::oci::manifest::{Error, MAX_SIZE};
use crate::oci::media_type::{OCI_ARTIFACT, OCI_INDEX, OCI_MANIFEST, ORAS_ARTIFACT};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Tag, Target};

use super::index_json::{IndexJson, Named};
use super::store::{Found, INDEX, Store};

/// Largest number of cached subjects.
const SUBJECTS_MAX: usize = 65_536;

/// The tags. A tag with missing content, or with content of another length than the index gives, is
/// listed without its digest: resolving the tag reports what is wrong. `None`: the folder is no
/// layout.
pub(super) fn tags(store: &Store) -> Result<Option<Page<Listed>>, Fault> {
    let Some(index) = store.index()? else {
        return Ok(None);
    };
    let mut whole = HashMap::new();
    for Descriptor { digest, size, .. } in index.descriptors() {
        let is_whole = store.blob(digest)?.is_some_and(|found| found.size == *size);
        *whole.entry(*digest).or_insert(true) &= is_whole;
    }
    let mut page = index.tags();
    for tag in &mut page.entries {
        tag.digest = tag.digest.filter(|digest| whole.get(digest) == Some(&true));
    }
    Ok(Some(page))
}

/// What a target names.
pub(super) fn resolve(store: &Store, target: &Target) -> Result<Option<Resolved>, Fault> {
    if let Target::Tag(tag) = target {
        let Some(descriptor) = named(store, tag)? else {
            return Ok(None);
        };
        if !descriptor.media_type.is_empty() {
            content(store, tag, &descriptor)?;
            let Descriptor {
                media_type,
                digest,
                size,
                ..
            } = descriptor;
            return Ok(Some(Resolved {
                digest: Some(digest),
                media_type,
                size: Some(size),
                index: None,
            }));
        }
    }
    let Some(Manifest {
        bytes,
        media_type,
        digest,
        ..
    }) = read(store, target)?
    else {
        return Ok(None);
    };
    Ok(Some(Resolved {
        digest: Some(digest),
        media_type,
        size: Some(bytes.len() as u64),
        index: None,
    }))
}

/// The manifest that a target names, verified.
pub(super) fn read(store: &Store, target: &Target) -> Result<Option<Manifest>, Fault> {
    match target {
        Target::Tag(tag) => {
            let Some(descriptor) = named(store, tag)? else {
                return Ok(None);
            };
            content(store, tag, &descriptor)?;
            let served = Some(&descriptor.media_type);
            verified(store, &descriptor.digest, served)?
                .map(|read| read.map_err(|error| not_a_manifest(store, target, error)))
                .transpose()
        }
        Target::Digest(digest) => {
            let Some(index) = store.index()? else {
                return Ok(None);
            };
            match verified(
                store,
                digest,
                index.listed(digest).map(|listed| &listed.media_type),
            )? {
                // Content that is no manifest is a blob: as a manifest it is not there.
                None | Some(Err(Error::TooLarge | Error::Malformed(_) | Error::UnknownType(_))) => {
                    Ok(None)
                }
                Some(read) => read
                    .map(Some)
                    .map_err(|error| not_a_manifest(store, target, error)),
            }
        }
    }
}

fn named(store: &Store, tag: &Tag) -> Result<Option<Descriptor>, Fault> {
    let folder = store.folder().display();
    match store.index()?.and_then(|index| index.named(tag)) {
        None => Ok(None),
        Some(Named::One(descriptor)) => Ok(Some(descriptor)),
        Some(Named::Several) => Err(Fault::rejected(format!(
            "{folder}/{INDEX} gives the tag {tag} to manifests of different digests: leave one"
        ))),
        Some(Named::Unreadable(reason)) => Err(Fault::rejected(format!(
            "the tag {tag} in {folder}/{INDEX}: {reason}"
        ))),
    }
}

/// The content of a tag, with the length that the index gives.
fn content(store: &Store, tag: &Tag, descriptor: &Descriptor) -> Result<Found, Fault> {
    let Descriptor { digest, size, .. } = descriptor;
    let at = store.folder().display();
    match store.blob(digest)? {
        Some(found) if found.size == *size => Ok(found),
        Some(found) => Err(Fault::corrupt(format!(
            "{at}: {digest}, which the tag {tag} names, is {} bytes long, not {size}: restore the file, or take the tag out of {INDEX}",
            found.size
        ))),
        None => Err(Fault::corrupt(format!(
            "{at}: {digest}, which the tag {tag} names, is not among the blobs: restore the file, or take the tag out of {INDEX}"
        ))),
    }
}

/// The bytes of `digest`, verified and read as a manifest.
fn verified(
    store: &Store,
    digest: &Digest,
    served: Option<&MediaType>,
) -> Result<Option<Result<Manifest, Error>>, Fault> {
    let Some(found) = store.blob(digest)? else {
        return Ok(None);
    };
    if found.size > MAX_SIZE {
        return Ok(Some(Err(Error::TooLarge)));
    }
    let Some(bytes) = store.read(&found.path, MAX_SIZE)? else {
        return Ok(None);
    };
    if Digest::of(digest.algorithm(), &bytes) != *digest {
        return Err(Fault::corrupt(format!(
            "the bytes of {} do not have that digest",
            found.path.display()
        )));
    }
    Ok(Some(Manifest::parse(
        bytes,
        served.map(MediaType::as_str),
        digest.algorithm(),
    )))
}

fn not_a_manifest(store: &Store, target: &Target, error: Error) -> Fault {
    Fault::rejected(format!(
        "cannot read {target} of {}",
        store.folder().display()
    ))
    .because(error)
}

/// What came of the first half of a put: the bytes.
pub(super) enum Stored {
    /// They are there; the index must list them.
    List(Descriptor),
    /// They are there, and that is all.
    Unlisted,
    /// Not written: the layout lacks this content.
    Missing(Vec<Digest>),
}

/// Writes the bytes of a manifest once everything it refers to is there.
pub(super) fn store(store: &Store, target: &Target, manifest: &Manifest) -> Result<Stored, Fault> {
    let digest = match target {
        Target::Digest(digest) => *digest,
        Target::Tag(_) => manifest.digest,
    };
    if Digest::of(digest.algorithm(), &manifest.bytes) != digest {
        return Err(Fault::corrupt(format!(
            "the manifest's bytes do not have the digest {digest}"
        )));
    }
    let missing = missing(store, manifest)?;
    if !missing.is_empty() {
        return Ok(Stored::Missing(missing));
    }
    store.write_blob(&digest, &manifest.bytes)?;
    let listed =
        matches!(target, Target::Tag(_)) || must_be_listed(manifest) || !store.is_layout()?;
    Ok(if listed {
        Stored::List(Descriptor {
            digest,
            ..manifest.descriptor()
        })
    } else {
        Stored::Unlisted
    })
}

fn missing(store: &Store, manifest: &Manifest) -> Result<Vec<Digest>, Fault> {
    let mut missing = Vec::new();
    for entry in manifest.children.iter().chain(&manifest.blobs) {
        let whole = store
            .blob(&entry.digest)?
            .is_some_and(|found| found.size == entry.size);
        // A foreign layer is fetched from elsewhere: no place that holds images has to have it.
        if !whole && !entry.media_type.is_foreign_layer() {
            missing.push(entry.digest);
        }
    }
    Ok(missing)
}

/// Whether the index must know a manifest even without a tag: to be found as a referrer, or because
/// its bytes do not tell its media type.
fn must_be_listed(manifest: &Manifest) -> bool {
    let alone = Manifest::parse(manifest.bytes.clone(), None, manifest.digest.algorithm());
    manifest.subject.is_some()
        || alone.map_or(true, |alone| alone.media_type != manifest.media_type)
}

/// Writes a stored manifest into the index, and makes the folder a layout. The index lock must be
/// held.
pub(super) fn list(
    store: &Store,
    target: &Target,
    manifest: &Manifest,
    descriptor: &Descriptor,
) -> Result<(), Fault> {
    store.establish()?;
    let mut index = store.index()?.unwrap_or_else(IndexJson::empty);
    let changed = match target {
        Target::Tag(tag) => index.name(tag, descriptor, |old| {
            verified(store, old, None).is_ok_and(|old| {
                old.and_then(Result::ok)
                    .is_some_and(|old| must_be_listed(&old))
            })
        }),
        Target::Digest(_) => must_be_listed(manifest) && index.list(descriptor),
    };
    if changed {
        store.write_index(&index)
    } else {
        Ok(())
    }
}

/// Which manifests name which subject: true forever of a digest, so remembered.
#[derive(Debug, Default)]
pub(super) struct Subjects(Mutex<HashMap<Digest, Option<Digest>>>);

impl Subjects {
    /// The manifests that name `subject`, from the index and from the fallback tag that some tools
    /// write into layouts.
    pub fn referrers(&self, store: &Store, subject: &Digest) -> Result<Vec<Descriptor>, Fault> {
        let Some(index) = store.index()? else {
            return Ok(Vec::new());
        };
        let mut candidates: Vec<Descriptor> = index.descriptors().cloned().collect();
        if let Some(Named::One(fallback)) = index.named(&Tag::fallback(subject))
            && let Some(Ok(fallback)) =
                verified(store, &fallback.digest, Some(&fallback.media_type))?
        {
            candidates.extend(fallback.children);
        }
        let mut seen = HashSet::new();
        candidates.retain(|candidate| {
            may_have_subject(&candidate.media_type) && seen.insert(candidate.digest)
        });
        let mut referrers = Vec::new();
        for candidate in candidates {
            if self.of(store, &candidate)? == Some(*subject) {
                referrers.push(Descriptor {
                    platform: None,
                    ..candidate
                });
            }
        }
        Ok(referrers)
    }

    /// The subject of one manifest. One that is missing or damaged has none: what is wrong with it
    /// shows when it is asked for.
    fn of(&self, store: &Store, candidate: &Descriptor) -> Result<Option<Digest>, Fault> {
        if let Some(known) = self.remembered().get(&candidate.digest) {
            return Ok(*known);
        }
        let read = match verified(store, &candidate.digest, Some(&candidate.media_type)) {
            Ok(Some(Ok(manifest))) => manifest,
            Ok(None | Some(Err(_))) => return Ok(None),
            Err(fault) if fault.class() == Class::Corrupt => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let subject = read.subject.map(|subject| subject.digest);
        let mut remembered = self.remembered();
        if remembered.len() >= SUBJECTS_MAX {
            remembered.clear();
        }
        remembered.insert(candidate.digest, subject);
        Ok(subject)
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<Digest, Option<Digest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Docker's types have no subject, so their documents need not be read.
fn may_have_subject(media_type: &MediaType) -> bool {
    matches!(
        media_type.as_str(),
        OCI_MANIFEST | OCI_INDEX | OCI_ARTIFACT | ORAS_ARTIFACT
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_tag_is_listed_with_its_digest_exactly_when_its_content_has_the_length_of_the_index(
            files in proptest::collection::vec((1usize..40, proptest::option::of(0usize..60)), 1..6),
        ) {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join("blobs/sha256");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(root.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
            let mut entries = Vec::new();
            for (number, (size, there)) in files.iter().enumerate() {
                let digest = Digest::sha256(&[number as u8]);
                if let Some(length) = there {
                    std::fs::write(folder.join(digest.encoded()), vec![b'x'; *length]).unwrap();
                }
                entries.push(json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size,
                    "annotations": {"org.opencontainers.image.ref.name": format!("v{number}")}}));
            }
            let index = json!({"schemaVersion": 2, "manifests": entries});
            std::fs::write(root.path().join(INDEX), index.to_string()).unwrap();
            let page = tags(&Store::single(root.path())).unwrap().unwrap();
            prop_assert_eq!(page.entries.len(), files.len());
            for (tag, (size, there)) in page.entries.iter().zip(&files) {
                prop_assert_eq!(tag.digest.is_some(), *there == Some(*size), "{}", tag.name);
            }
        }
    }
}
