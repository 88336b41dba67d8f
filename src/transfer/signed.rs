//! What is attached to an image in staging and may be signed: Sigstore bundles among its referrers,
//! and the tag `sha256-<hex>.sig`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use serde::Deserialize;
use tokio::time::timeout;

use super::Promotion;
use super::limits::RequestClass;
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::gate::signature::{Signed, SignedImage};
use crate::gate::sigstore::{BUNDLE, SIMPLE_SIGNING, SimpleSignature};
use crate::oci::{Descriptor, Digest, Hasher, Kind, Manifest, MediaType};

/// Most statements about one manifest.
const MOST: usize = 100;
/// Largest statement, in bytes: an SBOM may be the predicate.
const MOST_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of all statements about an image and its platforms that are in memory at once. What comes
/// beyond is left out.
const MOST_TOGETHER: u64 = 32 * 1024 * 1024;
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

fn layers(manifest: &Manifest) -> Vec<Layer> {
    let document: Layers = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
    document.layers
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// What is attached to an image, and with `platforms` to the manifests of an index.
    pub(super) async fn signed_image(
        &self,
        digest: Digest,
        platforms: bool,
    ) -> Result<SignedImage, Fault> {
        let mut room = MOST_TOGETHER;
        let image = self.signed(digest, &mut room).boxed().await?;
        let mut attached = Vec::new();
        if platforms {
            for platform in self.platforms(digest).await? {
                attached.push(self.signed(platform, &mut room).boxed().await?);
            }
        }
        Ok(SignedImage {
            image,
            platforms: attached,
        })
    }

    /// The manifests of an index that are platforms; of an image, itself.
    async fn platforms(&self, digest: Digest) -> Result<Vec<Digest>, Fault> {
        let Some(manifest) = self.source_manifest(digest.into()).await? else {
            return Ok(Vec::new());
        };
        if manifest.kind != Kind::Index {
            return Ok(vec![digest]);
        }
        let mut platforms = Vec::new();
        for child in &manifest.children {
            let is_unknown = child.platform.as_deref() == Some("unknown/unknown");
            if !is_unknown || !self.holds_statements_alone(child.digest).await? {
                platforms.push(child.digest);
            }
        }
        Ok(platforms)
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

    /// What is attached to a manifest. Each referrer is read, whatever its list calls it: lists have
    /// named wrong artifact types (<https://github.com/sigstore/cosign/issues/4641>).
    async fn signed(&self, subject: Digest, room: &mut u64) -> Result<Signed, Fault> {
        let mut bundles = Vec::new();
        for referrer in self.list_referrers(&subject).await?.into_iter().take(MOST) {
            let Some(manifest) = self.source_manifest(referrer.digest.into()).await? else {
                continue;
            };
            let named = manifest.subject.as_ref().map(|named| named.digest);
            if let [layer] = &layers(&manifest)[..]
                && named == Some(subject)
                && layer.media_type.starts_with(BUNDLE)
                && let Some(bundle) = self.statement(&layer.descriptor(), room).await?
            {
                bundles.push((manifest.digest, bundle));
            }
        }
        Ok(Signed {
            subject,
            bundles,
            simple: self.simple_signatures(&subject, room).await?,
        })
    }

    /// The signatures under the tag `sha256-<hex>.sig`.
    async fn simple_signatures(
        &self,
        subject: &Digest,
        room: &mut u64,
    ) -> Result<Vec<(Digest, SimpleSignature)>, Fault> {
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
        let mut signatures = Vec::new();
        for layer in layers(&manifest).into_iter().take(MOST) {
            if layer.media_type != SIMPLE_SIGNING {
                continue;
            }
            let payload = self.statement(&layer.descriptor(), room).await?;
            let signature = payload.and_then(|payload| layer.simple_signature(&payload));
            signatures.extend(signature.map(|signature| (layer.digest, signature)));
        }
        Ok(signatures)
    }

    /// A small blob of staging. `None`: it is not there, or there is no room for it.
    async fn statement(&self, blob: &Descriptor, room: &mut u64) -> Result<Option<Bytes>, Fault> {
        if blob.size > MOST_BYTES.min(*room) {
            return Ok(None);
        }
        *room -= blob.size;
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

async fn read<S: Source>(source: &S, blob: &Descriptor) -> Result<Option<Bytes>, Fault> {
    let Some(mut body) = source.read_blob(blob, 0).await? else {
        return Ok(None);
    };
    let wrong = || {
        let address = source.address();
        Fault::corrupt(format!("{address} sends another blob than {}", blob.digest))
    };
    let mut bytes = Vec::new();
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
