//! Images with real digests: seeded random layers, every kind of manifest that registries hold.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

const MIB: usize = 1024 * 1024;

/// The sha256 digest of some bytes, as it is written.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Bytes that only this seed has: one random MiB, each repetition marked with its number.
pub fn noise(seed: u64, size: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut block = Vec::with_capacity(MIB.min(size) + 8);
    while block.len() < MIB.min(size) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend_from_slice(&state.to_le_bytes());
    }
    let mut bytes = Vec::with_capacity(size + MIB);
    for number in 0..size.div_ceil(MIB) as u64 {
        let start = bytes.len();
        bytes.extend_from_slice(&block[..MIB.min(block.len())]);
        if number > 0 {
            bytes[start..start + 8].copy_from_slice(&number.to_le_bytes());
        }
    }
    bytes.truncate(size);
    bytes.into()
}

/// A blob and the way a manifest speaks of it.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub bytes: Bytes,
    media_type: String,
    urls: Vec<String>,
}

impl Blob {
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Blob {
        let bytes = bytes.into();
        Blob {
            digest: sha256(&bytes),
            bytes,
            media_type: media_type.into(),
            urls: Vec::new(),
        }
    }

    /// An OCI layer of `size` random bytes.
    pub fn layer(seed: u64, size: usize) -> Blob {
        Blob::new(OCI_LAYER, noise(seed, size))
    }

    /// A Docker layer of `size` random bytes.
    pub fn docker_layer(seed: u64, size: usize) -> Blob {
        Blob::new(DOCKER_LAYER, noise(seed, size))
    }

    /// A layer that stays at `url` and is in no registry.
    pub fn foreign(seed: u64, size: usize, url: &str) -> Blob {
        Blob {
            urls: vec![url.into()],
            ..Blob::new(OCI_FOREIGN, noise(seed, size))
        }
    }

    /// The two bytes `{}`.
    pub fn empty_json() -> Blob {
        Blob::new(OCI_EMPTY, &b"{}"[..])
    }

    /// The same bytes under their sha512 digest.
    pub fn with_sha512(self) -> Blob {
        Blob {
            digest: format!("sha512:{}", hex::encode(Sha512::digest(&self.bytes))),
            ..self
        }
    }

    pub fn is_foreign(&self) -> bool {
        !self.urls.is_empty()
    }

    fn descriptor(&self) -> Value {
        let mut descriptor =
            json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()});
        if self.is_foreign() {
            descriptor["urls"] = json!(self.urls);
        }
        descriptor
    }
}

/// A manifest or index: its exact bytes.
#[derive(Clone, Debug)]
pub struct Document {
    pub media_type: String,
    pub digest: String,
    pub bytes: Bytes,
}

impl Document {
    fn new(media_type: &str, body: &Value) -> Document {
        // Indented on purpose: who writes the JSON anew changes the digest.
        let bytes =
            Bytes::from(serde_json::to_vec_pretty(body).expect("JSON of strings and numbers"));
        Document::raw(media_type, bytes)
    }

    pub fn raw(media_type: &str, bytes: impl Into<Bytes>) -> Document {
        let bytes = bytes.into();
        Document {
            media_type: media_type.into(),
            digest: sha256(&bytes),
            bytes,
        }
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// Everything below one tag: documents children first, the last one is what the tag names.
#[derive(Clone, Debug)]
pub struct Image {
    pub documents: Vec<Document>,
    pub blobs: Vec<Blob>,
}

impl Image {
    /// An OCI image with random layers of these sizes.
    pub fn oci(seed: u64, sizes: &[usize]) -> Image {
        let layers = (1..)
            .zip(sizes)
            .map(|(number, size)| Blob::layer(seed * 1000 + number, *size))
            .collect();
        Image::of_layers(seed, layers)
    }

    /// A Docker schema 2 image with random layers of these sizes.
    pub fn docker(seed: u64, sizes: &[usize]) -> Image {
        let layers = (1..)
            .zip(sizes)
            .map(|(number, size)| Blob::docker_layer(seed * 1000 + number, *size))
            .collect();
        Image::build(
            DOCKER_MANIFEST,
            Blob::new(DOCKER_CONFIG, config_json(seed)),
            layers,
            json!({}),
        )
    }

    /// An OCI image of these layers, with a config of its own.
    pub fn of_layers(seed: u64, layers: Vec<Blob>) -> Image {
        Image::build(
            OCI_MANIFEST,
            Blob::new(OCI_CONFIG, config_json(seed)),
            layers,
            json!({}),
        )
    }

    /// An image whose config and only layer are the same two-byte blob.
    pub fn empty_config(seed: u64) -> Image {
        let more = json!({"artifactType": "application/vnd.example.empty", "annotations": {"seed": seed.to_string()}});
        Image::build(
            OCI_MANIFEST,
            Blob::empty_json(),
            vec![Blob::empty_json()],
            more,
        )
    }

    /// Something said about `subject`: a signature, a list of parts.
    pub fn referrer(seed: u64, subject: &Image, artifact_type: &str) -> Image {
        let said = Blob::new("application/octet-stream", noise(seed, 300));
        Image::referrer_of(subject, artifact_type, said)
    }

    /// A referrer of `subject` that says this.
    pub fn referrer_of(subject: &Image, artifact_type: &str, said: Blob) -> Image {
        let more = json!({"artifactType": artifact_type, "subject": subject.root().descriptor()});
        Image::build(OCI_MANIFEST, Blob::empty_json(), vec![said], more)
    }

    /// What BuildKit puts beside the platforms of an image: statements, and nothing to run.
    pub fn statements(seed: u64) -> Image {
        Image::build(
            OCI_MANIFEST,
            Blob::new(OCI_CONFIG, config_json(seed)),
            vec![Blob::new("application/vnd.in-toto+json", noise(seed, 300))],
            json!({}),
        )
    }

    /// The artifact manifest of the release candidates: `blobs` in place of config and layers.
    pub fn artifact(seed: u64, size: usize) -> Image {
        let blob = Blob::new("application/octet-stream", noise(seed, size));
        let body = json!({"mediaType": OCI_ARTIFACT, "artifactType": "application/vnd.example.thing", "blobs": [blob.descriptor()]});
        Image {
            documents: vec![Document::new(OCI_ARTIFACT, &body)],
            blobs: vec![blob],
        }
    }

    /// An OCI index; its children may be indexes themselves.
    pub fn index(children: &[Image]) -> Image {
        Image::family(OCI_INDEX, children)
    }

    /// A Docker manifest list.
    pub fn list(children: &[Image]) -> Image {
        Image::family(DOCKER_LIST, children)
    }

    /// A build cache: an index whose children are blobs.
    pub fn cache(seed: u64, sizes: &[usize]) -> Image {
        let mut blobs: Vec<Blob> = (1..)
            .zip(sizes)
            .map(|(number, size)| Blob::layer(seed * 1000 + number, *size))
            .collect();
        blobs.push(Blob::new(CACHE_CONFIG, config_json(seed)));
        let children: Vec<Value> = blobs.iter().map(Blob::descriptor).collect();
        let body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children});
        Image {
            documents: vec![Document::new(OCI_INDEX, &body)],
            blobs,
        }
    }

    fn build(media_type: &str, config: Blob, layers: Vec<Blob>, more: Value) -> Image {
        let mut body = json!({"schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>()});
        for (key, value) in more.as_object().expect("an object of additions") {
            body[key] = value.clone();
        }
        let blobs = std::iter::once(config).chain(layers).collect();
        Image {
            documents: vec![Document::new(media_type, &body)],
            blobs,
        }
    }

    fn family(media_type: &str, children: &[Image]) -> Image {
        let platforms = ["amd64", "arm64", "s390x", "ppc64le", "riscv64"];
        let described: Vec<Value> = children
            .iter()
            .zip(platforms.iter().cycle())
            .map(|(child, architecture)| {
                let mut descriptor = child.root().descriptor();
                descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
                descriptor
            })
            .collect();
        let body = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": described});
        let mut documents: Vec<Document> = children
            .iter()
            .flat_map(|child| child.documents.clone())
            .collect();
        documents.push(Document::new(media_type, &body));
        Image {
            documents,
            blobs: children
                .iter()
                .flat_map(|child| child.blobs.clone())
                .collect(),
        }
    }

    /// What the tag names.
    pub fn root(&self) -> &Document {
        self.documents.last().expect("an image has a manifest")
    }

    pub fn digest(&self) -> &str {
        &self.root().digest
    }

    /// Each blob of the image that lives in registries, once.
    pub fn unique_blobs(&self) -> Vec<&Blob> {
        unique(self.blobs.iter())
    }
}

/// Each blob once, foreign layers left out, in order of appearance.
pub fn unique<'a>(blobs: impl Iterator<Item = &'a Blob>) -> Vec<&'a Blob> {
    let mut seen = std::collections::HashSet::new();
    blobs
        .filter(|blob| !blob.is_foreign() && seen.insert(blob.digest.clone()))
        .collect()
}

/// Applications built on one base: each has the base's layers and one of its own, in a few
/// versions.
pub struct Corpus {
    pub apps: Vec<App>,
}

/// One repository of a corpus.
pub struct App {
    pub name: String,
    pub versions: Vec<(String, Image)>,
}

impl Corpus {
    /// `apps` applications of `versions` versions on a base of layers of these sizes; own layers
    /// have `own` bytes.
    pub fn shared_base(
        seed: u64,
        apps: usize,
        versions: usize,
        base: &[usize],
        own: usize,
    ) -> Corpus {
        let base: Vec<Blob> = (1..)
            .zip(base)
            .map(|(number, size)| Blob::layer(seed * 1_000_000 + number, *size))
            .collect();
        let image = |app: usize, version: usize| {
            let id = seed * 1_000_000 + 1000 * (app as u64 + 1) + version as u64;
            let layers = base.iter().cloned().chain([Blob::layer(id, own)]).collect();
            Image::of_layers(id, layers)
        };
        let app = |number: usize| App {
            name: format!("app-{number}"),
            versions: (0..versions)
                .map(|version| (format!("v1.{version}.0"), image(number, version)))
                .collect(),
        };
        Corpus {
            apps: (0..apps).map(app).collect(),
        }
    }

    /// Each blob of the corpus, once.
    pub fn unique_blobs(&self) -> Vec<&Blob> {
        unique(
            self.apps
                .iter()
                .flat_map(|app| &app.versions)
                .flat_map(|(_, image)| &image.blobs),
        )
    }
}

fn config_json(seed: u64) -> Vec<u8> {
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": [format!("SEED={seed}")]},
        "rootfs": {"type": "layers", "diff_ids": []}});
    serde_json::to_vec(&config).expect("JSON of strings")
}
