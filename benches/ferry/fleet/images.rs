//! The images of the fleet: all are made up while they are asked for. The images of a repository
//! share a config and a layer; each tag has a manifest of its own.

use crate::served::{MANIFEST, descriptor, digest_of};

/// Bytes of each layer.
const LAYER: usize = 10_000;

/// The content of all repositories.
pub struct Images {
    /// The end of each layer.
    noise: Vec<u8>,
    /// The blobs of each repository.
    blobs: Vec<Blobs>,
    tags: usize,
}

/// The digests of a repository's blobs.
struct Blobs {
    config: String,
    layer: String,
}

/// One of the two blobs of a repository.
#[derive(Clone, Copy)]
pub enum Blob {
    Config,
    Layer,
}

impl Images {
    /// So many repositories with so many tags each.
    pub fn new(repositories: usize, tags: usize) -> Images {
        let noise: Vec<u8> = (0..LAYER as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8)
            .collect();
        let blobs = (0..repositories)
            .map(|repository| Blobs {
                config: digest_of(&config(repository)),
                layer: digest_of(&layer(&noise, repository)),
            })
            .collect();
        Images { noise, blobs, tags }
    }

    /// How many repositories there are.
    pub fn repositories(&self) -> usize {
        self.blobs.len()
    }

    /// How many tags each repository has.
    pub fn tags(&self) -> usize {
        self.tags
    }

    /// The blob of a repository that has this digest.
    pub fn blob(&self, repository: usize, digest: &str) -> Option<Blob> {
        let blobs = &self.blobs[repository];
        if blobs.config == digest {
            return Some(Blob::Config);
        }
        (blobs.layer == digest).then_some(Blob::Layer)
    }

    /// The bytes of a blob.
    pub fn bytes(&self, repository: usize, blob: Blob) -> Vec<u8> {
        match blob {
            Blob::Config => config(repository),
            Blob::Layer => layer(&self.noise, repository),
        }
    }

    /// The manifest that a tag names.
    pub fn manifest(&self, repository: usize, tag: usize) -> String {
        let blobs = &self.blobs[repository];
        let config_type = "application/vnd.oci.image.config.v1+json";
        let config = descriptor(config_type, &blobs.config, config(repository).len());
        let layer = descriptor(
            "application/vnd.oci.image.layer.v1.tar",
            &blobs.layer,
            LAYER,
        );
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{layer}],"annotations":{{"org.opencontainers.image.version":"{tag}"}}}}"#
        )
    }

    /// The name of a repository.
    pub fn name(repository: usize) -> String {
        format!("fleet/app-{repository:05}")
    }

    /// The number of the repository with this name.
    pub fn repository(&self, name: &str) -> Option<usize> {
        let number = name.strip_prefix("fleet/app-")?.parse().ok()?;
        (number < self.repositories()).then_some(number)
    }

    /// The number of a tag by its name.
    pub fn tag(&self, name: &str) -> Option<usize> {
        let number = name.strip_prefix('v')?.parse().ok()?;
        (number < self.tags).then_some(number)
    }
}

fn config(repository: usize) -> Vec<u8> {
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Labels":{{"number":"{repository}"}}}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    )
    .into_bytes()
}

fn layer(noise: &[u8], repository: usize) -> Vec<u8> {
    let mut layer = noise.to_vec();
    layer[..8].copy_from_slice(&(repository as u64).to_le_bytes());
    layer
}
