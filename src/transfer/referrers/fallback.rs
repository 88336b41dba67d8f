//! Fallback lists: a tag lists the referrers of a subject where the registry keeps no list.
//! <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema>

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::MOST;
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Algorithm, Descriptor, Digest, Manifest, Tag, Target};
use crate::transfer::Promotion;
use crate::transfer::limits::RequestClass;
use crate::transfer::name::{NameOrigin, Named, TagMove};
use crate::transfer::survey::{Image, TagFacts};

/// Writes of one list before the job yields to another writer.
pub(super) const WRITES: usize = 4;

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    pub(super) async fn fallback_there(&self, tag: &Tag) -> Result<Option<Manifest>, Fault> {
        let target = Target::Tag(tag.clone());
        self.ask_destination(RequestClass::Manifests, |destination| {
            let target = target.clone();
            async move { destination.manifest(&target).await }
        })
        .await
    }

    pub(super) async fn list_fallback(&self, subject: &Digest) -> Result<Vec<Descriptor>, Fault> {
        let tag = Tag::fallback(subject);
        if !self.job.companions.of(subject).contains(&tag) {
            return Ok(Vec::new());
        }
        let Some(list) = self.source_manifest(tag.clone().into()).await? else {
            self.is_missing_tag(&tag);
            return Ok(Vec::new());
        };
        let listed = list.children;
        if listed.len() > MOST {
            let address = self.source.address();
            return Err(Fault::rejected(format!(
                "the referrers of {subject} in {address} are more than {MOST} entries"
            )));
        }
        Ok(listed)
    }

    /// The fallback list of a subject at staging. If it equals the list to write, its bytes are
    /// used.
    pub(super) async fn staged_list(&self, subject: &Digest) -> Result<Option<Manifest>, Fault> {
        let tag = Tag::fallback(subject);
        match self.job.companions.of(subject).contains(&tag) {
            true => self.source_manifest(tag.into()).await,
            false => Ok(None),
        }
    }

    /// Adds referrers to the subject's fallback list at the destination. Registries have no
    /// conditional write: the list is read again, and written again if another writer has changed
    /// it.
    pub(super) async fn list_under_fallback(
        &self,
        subject: &Digest,
        referrers: &[Manifest],
    ) -> Result<(), Fault> {
        let tag = Tag::fallback(subject);
        let place = self.place_beside(&tag);
        let _alone = self.claim_beside(&tag, subject).await?;
        let staged = self.staged_list(subject).await?;
        for _ in 0..WRITES {
            let asked = Instant::now();
            let current = self.fallback_there(&tag).await?;
            let digest = current.as_ref().map(|current| current.digest);
            let planned = TagFacts::asked_at(asked, None, digest);
            let Some(index) = merged(current.as_ref(), referrers)? else {
                return Ok(());
            };
            let index = staged
                .clone()
                .filter(|staged| lists_the_same(staged, &index))
                .unwrap_or(index);
            let image = Image::alone(index);
            let naming = TagMove {
                place: &place,
                origin: NameOrigin::List,
                image: &image,
                // It names what was carried, and nothing that is denied is.
                contents: Some(Arc::new(HashSet::from([image.top.digest]))),
                planned: &planned,
            };
            match self.move_tag(naming).await? {
                Named::Moved | Named::Again(_) => {}
                // The list is written before what it lists counts as carried.
                Named::Blocked(block) => {
                    return Err(Fault::retryable(block.reasons.join("; ")));
                }
                Named::Gated | Named::InSet(_) | Named::NoBackup(_) => return Ok(()),
                Named::Immutable => {
                    return Err(Fault::rejected(format!(
                        "{} does not take the referrers list {tag}",
                        self.destination.address()
                    )));
                }
            }
        }
        let address = self.destination.address();
        Err(Fault::retryable(format!(
            "another program writes the referrers list {tag} of {address} at the same time"
        )))
    }
}

/// Whether two lists name the same manifests and may stand for each other.
pub(super) fn lists_the_same(one: &Manifest, other: &Manifest) -> bool {
    one.media_type.as_str() == OCI_INDEX
        && one.children.len() == other.children.len()
        && listed(one) == listed(other)
}

fn listed(list: &Manifest) -> HashSet<(Digest, u64)> {
    list.children
        .iter()
        .map(|child| (child.digest, child.size))
        .collect()
}

/// The list with the referrers added. `None`: it has them all.
pub(super) fn merged(
    current: Option<&Manifest>,
    referrers: &[Manifest],
) -> Result<Option<Manifest>, Fault> {
    let mut index = match current {
        Some(current) => serde_json::from_slice(&current.bytes).map_err(|error| {
            Fault::rejected("the referrers list at the destination is not an index").because(error)
        })?,
        None => json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [],
        }),
    };
    let listed: HashSet<Digest> = current
        .map(|current| current.children.iter().map(|child| child.digest).collect())
        .unwrap_or_default();
    let new: Vec<Value> = referrers
        .iter()
        .filter(|referrer| !listed.contains(&referrer.digest))
        .map(entry)
        .collect();
    if new.is_empty() {
        return Ok(None);
    }
    let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(Fault::rejected(
            "the referrers list at the destination is not an index",
        ));
    };
    entries.extend(new);
    let bytes = Bytes::from(index.to_string());
    Manifest::parse(bytes, Some(OCI_INDEX), Algorithm::Sha256)
        .map(Some)
        .map_err(|error| Fault::rejected("the referrers list").because(error))
}

/// The descriptor of a referrer in its subject's list:
/// <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers>
pub(super) fn entry(referrer: &Manifest) -> Value {
    let document: Value = serde_json::from_slice(&referrer.bytes).unwrap_or_default();
    let own = document
        .get("artifactType")
        .filter(|own| own.as_str().is_some_and(|own| !own.is_empty()));
    let mut entry = json!({
        "mediaType": referrer.media_type,
        "digest": referrer.digest,
        "size": referrer.bytes.len(),
    });
    if let Some(artifact_type) = own.or_else(|| document.pointer("/config/mediaType")) {
        entry["artifactType"] = artifact_type.clone();
    }
    if let Some(annotations) = document
        .get("annotations")
        .filter(|annotations| annotations.is_object())
    {
        entry["annotations"] = annotations.clone();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(name: &str) -> Manifest {
        let document = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "x/y",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::sha256(b"{}"), "size": 2},
            "layers": [], "annotations": {"n": name}});
        Manifest::parse(document.to_string().into(), None, Algorithm::Sha256).unwrap()
    }

    #[test]
    fn lists_are_the_same_whatever_their_bytes() {
        let both = merged(None, &[referrer("a"), referrer("b")])
            .unwrap()
            .unwrap();
        let turned = merged(None, &[referrer("b"), referrer("a")])
            .unwrap()
            .unwrap();
        let first = merged(None, &[referrer("a")]).unwrap().unwrap();
        assert!(both.digest != turned.digest && lists_the_same(&both, &turned));
        assert!(!lists_the_same(&both, &first) && !lists_the_same(&first, &both));
    }

    #[test]
    fn a_list_keeps_what_it_has_and_gains_what_is_new() {
        let first = merged(None, &[referrer("a")]).unwrap().unwrap();
        assert_eq!(first.children.len(), 1);
        assert!(merged(Some(&first), &[referrer("a")]).unwrap().is_none());
        let second = merged(Some(&first), &[referrer("a"), referrer("b")])
            .unwrap()
            .unwrap();
        assert_eq!(second.children.len(), 2);
        let document: Value = serde_json::from_slice(&second.bytes).unwrap();
        assert_eq!(document["manifests"][1]["artifactType"], "x/y");
        assert_eq!(document["manifests"][1]["annotations"]["n"], "b");
    }
}
