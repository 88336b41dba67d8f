//! What is attached to an image in staging and may be signed: Sigstore bundles among its referrers,
//! and the tag `sha256-<hex>.sig`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use tokio::time::timeout;

use super::Promotion;
use super::limits::RequestClass;
use super::retry::stoppable;
use super::statements::MOST_BYTES;
use crate::endpoint::{Destination, Source, missing_manifest};
use crate::fault::Fault;
use crate::gate::signature::{Examined, Signed, SignedImage, Statement};
use crate::gate::sigstore::{BUNDLE, SIMPLE_SIGNING, SimpleSignature};
use crate::job::gates::Signer;
use crate::oci::{Descriptor, Digest, Hasher, Kind, Manifest, MediaType};

/// Most statements about one manifest.
const MOST: usize = 100;
/// Most indexes in which platforms are looked for.
const MOST_INDEXES: usize = 64;
/// Bytes of all statements about an image and its platforms. What comes beyond is left out.
const MOST_TOGETHER: u64 = 32 * 1024 * 1024;
/// From this size on a statement is verified beside the main thread.
pub(super) const LARGE: u64 = 64 * 1024;
/// Longest time for one of them.
const LONGEST: Duration = Duration::from_secs(60);

/// The media type of a layer that holds a statement, unsigned or within an envelope.
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// The layers of a manifest, with their annotations.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Layers {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Layer {
    fn descriptor(&self) -> Descriptor {
        let media_type = MediaType::new(&self.media_type);
        Descriptor::new(media_type, self.digest, self.size)
    }

    fn simple_signature(&self, payload: &Bytes) -> Option<SimpleSignature> {
        let text = |name: &str| self.annotations.get(name).cloned();
        Some(SimpleSignature {
            payload: payload.to_vec(),
            signature: text("dev.cosignproject.cosign/signature")?,
            certificate: text("dev.sigstore.cosign/certificate"),
            chain: text("dev.sigstore.cosign/chain"),
            log_entry: text("dev.sigstore.cosign/bundle"),
        })
    }
}

/// A statement that was found.
pub(super) struct Found {
    /// The manifest that holds it.
    holder: Digest,
    /// What evidence calls it by.
    shown: Digest,
    pub(super) blob: Descriptor,
    /// The layer of an older signature of cosign; `None`: it is a bundle.
    simple: Option<Layer>,
}

fn layers(manifest: &Manifest) -> Vec<Layer> {
    let document: Layers = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
    document.layers
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// What is attached to an image, and with `platforms` to the manifests of an index, as the
    /// signers verify it.
    pub(super) async fn signed_image(
        &self,
        digest: Digest,
        platforms: bool,
        signers: &Arc<[Signer]>,
    ) -> Result<SignedImage, Fault> {
        let mut room = MOST_TOGETHER;
        let image = self.signed(digest, signers, &mut room).boxed().await?;
        let mut attached = Vec::new();
        if platforms {
            for platform in self.platforms(digest).await? {
                let signed = self.signed(platform, signers, &mut room);
                attached.push(signed.boxed().await?);
            }
        }
        Ok(SignedImage {
            image,
            platforms: attached,
        })
    }

    /// The manifests of an index that are platforms; of an image, itself.
    pub(super) async fn platforms(&self, digest: Digest) -> Result<Vec<Digest>, Fault> {
        let Some(manifest) = self.source_manifest(digest.into()).await? else {
            return Ok(Vec::new());
        };
        if manifest.kind != Kind::Index {
            return Ok(vec![digest]);
        }
        let mut platforms = Vec::new();
        // The same manifest may be listed twice.
        let mut seen = BTreeSet::from([digest]);
        let mut indexes = 1;
        let mut children: VecDeque<Descriptor> = manifest.children.into();
        while let Some(child) = children.pop_front() {
            if !seen.insert(child.digest) {
                continue;
            }
            if child.media_type.kind() == Kind::Index {
                indexes += 1;
                if indexes > MOST_INDEXES {
                    let text = format!("{digest} has more than {MOST_INDEXES} indexes in it");
                    return Err(Fault::rejected(text));
                }
                children.extend(self.children(&child.digest, digest).await?);
                continue;
            }
            let is_unknown = child.platform.as_deref() == Some("unknown/unknown");
            if !is_unknown || !self.holds_statements_alone(child.digest).await? {
                platforms.push(child.digest);
            }
        }
        Ok(platforms)
    }

    /// What an index in an index lists.
    async fn children(&self, index: &Digest, within: Digest) -> Result<Vec<Descriptor>, Fault> {
        let manifest = self.source_manifest((*index).into()).await?;
        let manifest = manifest.ok_or_else(|| missing_manifest(&self.source, index, &within))?;
        Ok(manifest.children)
    }

    /// Whether nothing of a manifest can be run. BuildKit puts its attestations beside the platforms
    /// as such a manifest of an unknown platform; any image may be called that.
    async fn holds_statements_alone(&self, digest: Digest) -> Result<bool, Fault> {
        let Some(manifest) = self.source_manifest(digest.into()).await? else {
            return Ok(false);
        };
        let layers = layers(&manifest);
        Ok(!layers.is_empty() && layers.iter().all(|layer| layer.media_type == IN_TOTO))
    }

    /// What is attached to a manifest.
    async fn signed(
        &self,
        subject: Digest,
        signers: &Arc<[Signer]>,
        room: &mut u64,
    ) -> Result<Signed, Fault> {
        let mut signed = Signed::of(subject);
        let referrers = self.list_referrers(&subject).await?;
        let bundles = stream::iter(referrers)
            .map(|referrer| self.bundle_of(referrer.digest, subject).boxed())
            .buffered(self.engine.settings.bounds.referrers);
        let bundles: Vec<Option<Found>> = bundles.try_collect().await?;
        let bundles: Vec<Found> = bundles.into_iter().flatten().collect();
        let simple = self.simple_signatures(&subject).await?;
        for (found, examined) in [(bundles, &mut signed.bundles), (simple, &mut signed.simple)] {
            signed.left_out += found.len().saturating_sub(MOST);
            for found in found.into_iter().take(MOST) {
                examined.extend(self.examine(found, subject, signers, room).await?);
            }
        }
        Ok(signed)
    }

    /// The bundle that a referrer of `subject` holds. Each referrer is read, whatever its list
    /// calls it: lists have named wrong artifact types
    /// (<https://github.com/sigstore/cosign/issues/4641>).
    pub(super) async fn bundle_of(
        &self,
        referrer: Digest,
        subject: Digest,
    ) -> Result<Option<Found>, Fault> {
        let statements = &self.engine.statements;
        let bundle = match statements.bundle(referrer, subject) {
            Some(known) => known,
            None => {
                let Some(manifest) = self.source_manifest(referrer.into()).await? else {
                    return Ok(None);
                };
                let bundle = bundle_in(&manifest, subject);
                statements.keep_bundle(referrer, subject, bundle.clone());
                bundle
            }
        };
        Ok(bundle.map(|blob| Found {
            holder: referrer,
            shown: referrer,
            blob,
            simple: None,
        }))
    }

    /// The signatures under the tag `sha256-<hex>.sig`.
    async fn simple_signatures(&self, subject: &Digest) -> Result<Vec<Found>, Fault> {
        let Some(tag) = self
            .job
            .companions
            .of(subject)
            .into_iter()
            .find(|tag| tag.as_str().ends_with(".sig"))
        else {
            return Ok(Vec::new());
        };
        let Some(manifest) = self.tagged_manifest(&tag).await? else {
            return Ok(Vec::new());
        };
        let layers = layers(&manifest).into_iter();
        let signatures = layers.filter(|layer| layer.media_type == SIMPLE_SIGNING);
        let found = signatures.map(|layer| Found {
            holder: manifest.digest,
            shown: layer.digest,
            blob: layer.descriptor(),
            simple: Some(layer),
        });
        Ok(found.collect())
    }

    /// Verifies a statement by each signer, unless that is known. `None`: it is not there.
    async fn examine(
        &self,
        found: Found,
        subject: Digest,
        signers: &Arc<[Signer]>,
        room: &mut u64,
    ) -> Result<Option<Examined>, Fault> {
        let Found {
            holder,
            shown,
            blob,
            simple,
        } = found;
        let left_out = |why: &str| Ok(Some(Examined::left_out(shown, signers, why)));
        if blob.size > MOST_BYTES {
            return left_out("it is larger than 16 MiB, and left out");
        }
        if blob.size > *room {
            return left_out("it is left out: all statements about an image may have 32 MiB");
        }
        *room -= blob.size;
        let key = (holder, blob.digest, subject);
        let statements = &self.engine.statements;
        if let Some(known) = statements.examined(&key, signers) {
            return Ok(Some(known));
        }
        let hold = self.engine.settings.retry.hold;
        let taken = statements.room(blob.size, hold);
        let taken = stoppable(&self.stop.drain, taken).await??;
        let Some(bytes) = self.statement(&blob).await? else {
            return Ok(None);
        };
        let statement = match simple {
            None => Statement::Bundle(bytes),
            Some(layer) => match layer.simple_signature(&bytes) {
                Some(signature) => Statement::Simple(signature),
                None => return Ok(None),
            },
        };
        let signers = signers.clone();
        let verify = move || {
            let examined = Examined::by(&signers, shown, &statement, &subject);
            drop((statement, taken));
            examined
        };
        let examined = if blob.size < LARGE {
            verify()
        } else {
            let verified = tokio::task::spawn_blocking(verify).await;
            verified
                .map_err(|_| Fault::rejected(format!("statement {shown} broke its verification")))?
        };
        statements.keep_examined(key, examined.clone());
        Ok(Some(examined))
    }

    /// A small blob of staging. `None`: it is not there.
    pub(super) async fn statement(&self, blob: &Descriptor) -> Result<Option<Bytes>, Fault> {
        self.ask_source(RequestClass::Blobs, |source| {
            let blob = blob.clone();
            async move {
                let late = || Fault::retryable(format!("blob {} came too slowly", blob.digest));
                timeout(LONGEST, read(&source, &blob))
                    .await
                    .unwrap_or_else(|_| Err(late()))
            }
        })
        .await
    }
}

/// The bundle of a manifest about `subject`.
fn bundle_in(manifest: &Manifest, subject: Digest) -> Option<Descriptor> {
    let named = manifest.subject.as_ref().map(|named| named.digest);
    match &layers(manifest)[..] {
        [layer] if named == Some(subject) && layer.media_type.starts_with(BUNDLE) => {
            Some(layer.descriptor())
        }
        _ => None,
    }
}

async fn read<S: Source>(source: &S, blob: &Descriptor) -> Result<Option<Bytes>, Fault> {
    let Some(mut body) = source.read_blob(blob, 0).await? else {
        return Ok(None);
    };
    let wrong = || {
        let address = source.address();
        Fault::corrupt(format!("{address} sends another blob than {}", blob.digest))
    };
    let mut bytes = Vec::with_capacity(blob.size as usize);
    let mut hasher = Hasher::new(blob.digest.algorithm());
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        if (bytes.len() + frame.len()) as u64 > blob.size {
            return Err(wrong());
        }
        hasher.update(&frame);
        bytes.extend_from_slice(&frame);
    }
    if hasher.finish() == blob.digest {
        Ok(Some(bytes.into()))
    } else {
        Err(wrong())
    }
}
