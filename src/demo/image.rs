//! A small image that looks like a real one: two platforms over one shared base layer, a new
//! application layer each round, a list of packages that refers to it, and real digests all
//! through.

use bytes::Bytes;
use serde_json::{Value, json};

use super::store::{Refusal, Store};
use crate::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use crate::oci::{Digest, RepositoryName, Tag};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PACKAGES: &str = "application/spdx+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// Size of the file in the shared base layer, in bytes.
const BASE_SIZE: usize = 256 * 1024;
/// Size of the program in each application layer, in bytes.
const APP_SIZE: usize = 48 * 1024;

/// Makes images that share a base layer.
#[derive(Clone, Debug)]
pub struct Sample {
    seed: u64,
    base: Bytes,
}

/// One multi-platform image, ready to be pushed.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers and configs.
    pub blobs: Vec<Bytes>,
    /// The image manifests, one for each platform.
    pub manifests: Vec<Bytes>,
    /// The index over them.
    pub index: Bytes,
    /// An artifact with the index as its subject.
    pub referrer: Bytes,
}

impl Sample {
    /// Equal seeds make equal images.
    pub fn new(seed: u64) -> Sample {
        let base = archive(&[
            (
                "etc/os-release",
                0o644,
                b"NAME=\"blobferry demo\"\nID=demo\n".to_vec(),
            ),
            ("usr/lib/base.bin", 0o644, noise(seed, BASE_SIZE)),
        ]);
        Sample { seed, base }
    }

    /// The image of a round: other application layers than all other rounds, the same base.
    pub fn image(&self, round: u64) -> Image {
        let mut blobs = vec![self.base.clone()];
        let mut manifests = Vec::new();
        let mut children = Vec::new();
        for (position, architecture) in (0..).zip(ARCHITECTURES) {
            let layer = self.application(round, position);
            let config = document(&image_config(architecture, round, &[&self.base, &layer]));
            let layers = [descriptor(LAYER, &self.base), descriptor(LAYER, &layer)];
            let manifest = document(&json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(CONFIG, &config), "layers": layers,
            }));
            let mut child = descriptor(OCI_MANIFEST, &manifest);
            child["platform"] = json!({"os": "linux", "architecture": architecture});
            children.push(child);
            blobs.extend([layer, config]);
            manifests.push(manifest);
        }
        let index = document(&json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": children,
        }));
        let packages = document(&json!({
            "spdxVersion": "SPDX-2.3",
            "name": "demo-app",
            "versionInfo": format!("v{round}"),
        }));
        let empty = Bytes::from_static(b"{}");
        let referrer = document(&json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": PACKAGES, "config": descriptor(EMPTY, &empty),
            "layers": [descriptor(PACKAGES, &packages)], "subject": descriptor(OCI_INDEX, &index),
        }));
        blobs.extend([packages, empty]);
        Image {
            blobs,
            manifests,
            index,
            referrer,
        }
    }

    fn application(&self, round: u64, platform: u64) -> Bytes {
        let version = format!("v{round}\n").into_bytes();
        let seed = self.seed ^ round.rotate_left(8) ^ (platform + 1).rotate_left(48);
        archive(&[
            ("app/VERSION", 0o644, version),
            ("app/demo-app", 0o755, noise(seed, APP_SIZE)),
        ])
    }
}

impl Image {
    /// The digest of the index.
    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.index)
    }

    /// Bytes of all of it.
    pub fn size(&self) -> usize {
        let documents = self.manifests.iter().chain([&self.index, &self.referrer]);
        self.blobs.iter().chain(documents).map(Bytes::len).sum()
    }

    /// Puts the image into a repository: content first, what refers to it next, the tags last.
    ///
    /// # Errors
    /// [`Refusal::Full`].
    pub fn push(
        &self,
        store: &Store,
        repository: &RepositoryName,
        tags: &[Tag],
    ) -> Result<(), Refusal> {
        for blob in &self.blobs {
            store.put_blob(repository, blob.clone())?;
        }
        for manifest in self.manifests.iter().chain([&self.referrer]) {
            store.put_manifest(
                repository,
                &Digest::sha256(manifest).into(),
                Some(OCI_MANIFEST),
                manifest.clone(),
            )?;
        }
        for tag in tags {
            store.put_manifest(
                repository,
                &tag.clone().into(),
                Some(OCI_INDEX),
                self.index.clone(),
            )?;
        }
        Ok(())
    }
}

fn document(value: &Value) -> Bytes {
    value.to_string().into()
}

fn descriptor(media_type: &str, content: &Bytes) -> Value {
    json!({
        "mediaType": media_type,
        "digest": Digest::sha256(content),
        "size": content.len(),
    })
}

fn image_config(architecture: &str, round: u64, layers: &[&Bytes]) -> Value {
    json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/app/demo-app"], "Labels": {"org.opencontainers.image.version": format!("v{round}")}},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| Digest::sha256(layer)).collect::<Vec<_>>()},
    })
}

/// Bytes that do not compress and are the same for the same seed (splitmix64).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    });
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

/// A tar archive (POSIX ustar) of regular files: path, mode, content.
fn archive(files: &[(&str, u32, Vec<u8>)]) -> Bytes {
    const BLOCK: usize = 512;
    let mut bytes = Vec::new();
    for (path, mode, content) in files {
        bytes.extend(tar_header(path, *mode, content.len()));
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes.into()
}

fn tar_header(path: &str, mode: u32, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut field =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, path);
    field(100, &format!("{mode:07o}"));
    field(108, "0000000");
    field(116, "0000000");
    field(124, &format!("{size:011o}"));
    field(136, "00000000000");
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\u{0}00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\u{0} ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Kind, Manifest};

    fn parse(bytes: &Bytes) -> Manifest {
        Manifest::parse(bytes.clone(), None, Algorithm::Sha256).unwrap()
    }

    #[test]
    fn every_digest_in_the_documents_is_that_of_the_content() {
        let image = Sample::new(7).image(3);
        let index = parse(&image.index);
        assert_eq!((index.kind, index.digest), (Kind::Index, image.digest()));
        let platforms: Vec<_> = index
            .children
            .iter()
            .map(|child| child.platform.clone().unwrap())
            .collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
        assert_eq!(
            index
                .children
                .iter()
                .map(|child| child.digest)
                .collect::<Vec<_>>(),
            image
                .manifests
                .iter()
                .map(|manifest| Digest::sha256(manifest))
                .collect::<Vec<_>>()
        );
        let held: Vec<(Digest, u64)> = image
            .blobs
            .iter()
            .map(|blob| (Digest::sha256(blob), blob.len() as u64))
            .collect();
        for manifest in image.manifests.iter().chain([&image.referrer]) {
            assert!(
                parse(manifest)
                    .blobs
                    .iter()
                    .all(|blob| held.contains(&(blob.digest, blob.size)))
            );
        }
        assert_eq!(
            parse(&image.referrer).subject.unwrap().digest,
            image.digest()
        );
    }

    #[test]
    fn rounds_share_the_base_and_nothing_else_of_weight() {
        let sample = Sample::new(7);
        let first = sample.image(1);
        let second = sample.image(2);
        let shared = first
            .blobs
            .iter()
            .filter(|blob| second.blobs.contains(blob))
            .map(Bytes::len)
            .collect::<Vec<_>>();
        assert_eq!(shared, [sample.base.len(), 2]);
        assert_eq!(
            sample.image(1).digest(),
            Sample::new(7).image(1).digest(),
            "the same seed makes the same image"
        );
        assert_ne!(sample.image(1).digest(), Sample::new(8).image(1).digest());
        assert!((300_000..500_000).contains(&first.size()));
    }

    #[test]
    fn layers_are_archives_with_a_right_checksum() {
        let layer = Sample::new(7).application(1, 0);
        assert_eq!(layer.len() % 512, 0);
        assert_eq!(&layer[257..265], b"ustar\x0000");
        let written =
            u32::from_str_radix(std::str::from_utf8(&layer[148..154]).unwrap(), 8).unwrap();
        let spaces = 8 * u32::from(b' ');
        let rest: u32 = layer[..148]
            .iter()
            .chain(&layer[156..512])
            .map(|byte| u32::from(*byte))
            .sum();
        assert_eq!(written, rest + spaces);
    }
}
