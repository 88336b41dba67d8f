//! `check --online --probe-repository`: what a registry does where its documentation is silent,
//! tried in a throw-away repository. It leaves a few blobs and small images there and deletes
//! nothing.

use bytes::Bytes;
use futures::FutureExt as _;

use super::check::Check;
use crate::backend::Repository;
use crate::config::Config;
use crate::endpoint::{
    Begin, BlobBody, Destination as _, Offset, Put, Repositories as _, Sent, Source as _, Upload,
};
use crate::fault::Fault;
use crate::oci::{Algorithm, Digest, Manifest, RepositoryName, Tag, Target};
use crate::parts::Parts;

const MIB: usize = 1024 * 1024;
/// The least that ECR takes as a part that is not the last.
const PART: usize = 5 * MIB;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Tries everything in the repository `place`, written `registry/repository`.
pub async fn probe(config: &Config, place: &str) -> Vec<Check> {
    match open(config, place) {
        Err(fault) => vec![Check::of(format!("probe {place}"), Err(fault))],
        Ok((_parts, there)) => {
            Probe {
                there,
                seed: crate::watch::run_id(),
            }
            .run()
            .await
        }
    }
}

fn open(config: &Config, place: &str) -> Result<(Parts, Repository), Fault> {
    let (registry, name) = place
        .split_once('/')
        .ok_or_else(|| Fault::rejected(format!("\"{place}\" is not registry/repository")))?;
    let name: RepositoryName = name
        .parse()
        .map_err(|error| Fault::rejected(format!("\"{place}\": {error}")))?;
    let parts = Parts::in_memory().map_err(|error| Fault::rejected(error.to_string()))?;
    let topology = parts
        .topology(config, None)
        .map_err(|error| Fault::rejected(error.to_string()))?;
    let backend = topology.backends.get(registry).ok_or_else(|| {
        let known: Vec<&str> = topology.backends.keys().map(|name| &**name).collect();
        Fault::rejected(format!(
            "there is no registry \"{registry}\" (`registries` has: {})",
            known.join(", ")
        ))
    })?;
    Ok((parts, backend.repository(name)))
}

fn probe_name(what: &str) -> String {
    format!("probe {what}")
}

struct Probe {
    there: Repository,
    /// Makes the content new in every run.
    seed: String,
}

impl Probe {
    async fn run(&self) -> Vec<Check> {
        let chunks = self.content(b"chunks", 3 * PART + 1000);
        let mut checks = Vec::new();
        checks.push(Check::of(
            probe_name("chunks"),
            self.chunks(&chunks).boxed().await,
        ));
        checks.push(Check::of(probe_name("cut"), self.cut().boxed().await));
        checks.push(Check::of(
            probe_name("mount before the manifest"),
            self.mount(&chunks).await,
        ));
        let first = self.image(&chunks, "first");
        checks.push(Check::of(
            probe_name("manifest"),
            self.tag(&first, "a").await,
        ));
        checks.push(Check::of(
            probe_name("mount after the manifest"),
            self.mount(&chunks).await,
        ));
        checks.push(Check::of(
            probe_name("the same tag again"),
            self.tag(&first, "a").await,
        ));
        checks.push(Check::of(
            probe_name("another image under the tag"),
            self.tag(&self.image(&chunks, "second"), "a").await,
        ));
        checks.push(Check::of(
            probe_name("a manifest without its layer"),
            self.tag(&self.image(b"never sent", "third"), "b").await,
        ));
        checks.push(Check::of(
            probe_name("what a tag names"),
            self.named().await,
        ));
        checks.push(Check::of(
            probe_name("time of the push"),
            self.push_time(&first).boxed().await,
        ));
        checks.push(Check::of(
            probe_name("referrers"),
            self.referrers(&first).await,
        ));
        checks
    }

    /// Bytes that no registry has seen.
    fn content(&self, what: &[u8], length: usize) -> Bytes {
        let block = Digest::sha256(&[self.seed.as_bytes(), what].concat()).to_string();
        block.bytes().cycle().take(length).collect()
    }

    async fn session(&self, digest: &Digest) -> Result<Upload, Fault> {
        match self.there.begin_upload(digest, None).await? {
            Begin::Session(upload) => Ok(upload),
            Begin::Mounted => Err(Fault::rejected(
                "the blob is there although nobody has sent it",
            )),
        }
    }

    /// Three parts, the status, a part in the wrong place, the last part in the closing request.
    async fn chunks(&self, content: &Bytes) -> Result<String, Fault> {
        let digest = Digest::sha256(content);
        let mut upload = self.session(&digest).await?;
        let mut found = Vec::new();
        for offset in [0, PART, 2 * PART] {
            let body = BlobBody::full(content.slice(offset..offset + PART));
            let sent = self
                .there
                .send_chunk(&mut upload, offset as u64, PART as u64, body)
                .await?;
            let Sent::Accepted { reported } = sent else {
                return Err(Fault::rejected(format!("part at {offset}: {sent:?}")));
            };
            found.push(reported.map_or("nothing".into(), |reported| reported.to_string()));
        }
        let status = match &self.there {
            Repository::Ecr(there) => there.inner().upload_offset(&mut upload).await?,
            there => there.upload_offset(&mut upload).await?,
        };
        let probed = self.there.upload_offset(&mut upload).await?;
        let at = 3 * PART;
        let last = BlobBody::full(content.slice(at..));
        let closed = self
            .there
            .finish_upload(
                &mut upload,
                &digest,
                at as u64,
                (content.len() - at) as u64,
                last,
            )
            .await?;
        Ok(format!(
            "three parts of 5 MiB are taken; the registry then reports {} (the truth ends in {at}); its status says {}; a part in the wrong place says {}; the last part in the closing request: {}",
            found.join(", "),
            told(status),
            told(probed),
            if matches!(closed, Sent::Accepted { .. }) {
                "taken".to_owned()
            } else {
                format!("{closed:?}")
            },
        ))
    }

    /// A body that breaks off, and where the session stands then.
    async fn cut(&self) -> Result<String, Fault> {
        let content = self.content(b"cut", 12 * MIB);
        let digest = Digest::sha256(&content);
        let mut upload = self.session(&digest).await?;
        let broken = self
            .there
            .finish_upload(
                &mut upload,
                &digest,
                0,
                content.len() as u64,
                broken(content.slice(..8 * MIB)),
            )
            .await;
        let Err(_) = broken else {
            return Err(Fault::rejected("half a body was taken for a whole one"));
        };
        let mut offset = Offset::Unknown;
        let mut last = None;
        for _ in 0..20 {
            offset = self.there.upload_offset(&mut upload).await?;
            if last == Some(offset) {
                break;
            }
            last = Some(offset);
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        let Offset::At(at) = offset else {
            return Ok(format!(
                "after a cut at 8 MiB the session is {}: uploads start over",
                told(offset)
            ));
        };
        let start = usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
        let rest = BlobBody::full(content.slice(start..));
        let closed = self
            .there
            .finish_upload(&mut upload, &digest, at, content.len() as u64 - at, rest)
            .await;
        let went_on = matches!(closed, Ok(Sent::Accepted { .. }));
        Ok(format!(
            "after a cut at 8 MiB the session stands at {at}; going on from there {}",
            if went_on {
                "works"
            } else {
                "does not work: uploads start over"
            }
        ))
    }

    async fn mount(&self, content: &[u8]) -> Result<String, Fault> {
        let from = self.there.repository();
        let registry = match &self.there {
            Repository::Ecr(there) => {
                there
                    .inner()
                    .begin_upload(&Digest::sha256(content), Some(from))
                    .await?
            }
            there => {
                there
                    .begin_upload(&Digest::sha256(content), Some(from))
                    .await?
            }
        };
        match registry {
            Begin::Mounted => Ok("granted".into()),
            Begin::Session(upload) => {
                // A session that stays open expires by itself.
                let _ = self.there.cancel_upload(upload).await;
                Ok("refused, with a session to upload to".into())
            }
        }
    }

    /// An image with `layer` as its only layer and as its config.
    fn image(&self, layer: &[u8], note: &str) -> Manifest {
        let descriptor = serde_json::json!({
            "mediaType": "application/octet-stream",
            "digest": Digest::sha256(layer).to_string(),
            "size": layer.len(),
        });
        let body = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor, "layers": [descriptor],
            "annotations": {"note": format!("{note} {}", self.seed)}});
        Manifest::parse(body.to_string().into(), Some(MANIFEST), Algorithm::Sha256)
            .expect("a manifest that was written here")
    }

    fn name(&self, tag: &str) -> Target {
        Target::Tag(
            format!(
                "blobferry-probe-{tag}-{}",
                &self.seed[..self.seed.len().min(12)]
            )
            .parse()
            .expect("letters and digits are a tag"),
        )
    }

    async fn tag(&self, image: &Manifest, tag: &str) -> Result<String, Fault> {
        match self.there.put_manifest(&self.name(tag), image).await {
            Ok(Put::Accepted { subject }) => Ok(format!(
                "taken{}",
                if subject { ", with OCI-Subject" } else { "" }
            )),
            Ok(Put::Immutable) => Ok("refused: the tag is immutable".into()),
            Ok(Put::Missing(named)) => {
                Ok(format!("refused, {} of what is missing named", named.len()))
            }
            Err(fault) => Ok(format!("refused: {}", fault.chain())),
        }
    }

    async fn named(&self) -> Result<String, Fault> {
        let resolved = self.there.resolve(&self.name("a")).await?;
        let digest = resolved
            .ok_or_else(|| Fault::not_found("the tag that was just written is not there"))?
            .digest;
        Ok(format!(
            "HEAD says {}",
            if digest.is_some() {
                "its digest"
            } else {
                "no digest: manifests are read and hashed"
            }
        ))
    }

    /// Whether a second tag changes the time of the push.
    async fn push_time(&self, image: &Manifest) -> Result<String, Fault> {
        let Target::Tag(name) = self.name("a") else {
            return Err(Fault::rejected("a tag is a tag"));
        };
        let before = self.pushed(&name).await?;
        self.tag(image, "c").await?;
        let after = self.pushed(&name).await?;
        Ok(match (before, after) {
            (Some(before), Some(after)) if before == after => "a new tag leaves it".into(),
            (Some(_), Some(_)) => "a new tag changes it".into(),
            _ => "the listing does not tell it".into(),
        })
    }

    async fn pushed(&self, name: &Tag) -> Result<Option<jiff::Timestamp>, Fault> {
        let page = self.there.tags(None).await?;
        Ok(page
            .into_iter()
            .flat_map(|page| page.entries)
            .find(|tag| tag.name == *name)
            .and_then(|tag| tag.pushed))
    }

    async fn referrers(&self, image: &Manifest) -> Result<String, Fault> {
        Ok(match self.there.referrers(&image.digest, None).await? {
            Some(page) => format!(
                "the registry keeps lists of them ({} for an image without any)",
                page.entries.len()
            ),
            None => "no list: fallback tags are used".into(),
        })
    }
}

fn told(offset: Offset) -> String {
    match offset {
        Offset::At(at) => at.to_string(),
        Offset::Gone => "gone".into(),
        Offset::Unknown => "nothing".into(),
    }
}

/// A body that ends in a failure after `content`.
fn broken(content: Bytes) -> BlobBody {
    use http_body_util::{BodyExt as _, StreamBody};
    let frames = [
        Ok(http_body::Frame::data(content)),
        Err(Fault::retryable("cut on purpose")),
    ];
    BlobBody::new(StreamBody::new(futures::stream::iter(frames)).map_err(|fault| fault))
}
