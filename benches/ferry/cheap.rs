//! A registry that costs next to nothing: layers that are made up while they are sent, uploads that
//! are read and forgotten. What a copy between two of them takes is the tool's own time and the
//! kernel's.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::served;
use crate::served::{Head, MANIFEST, descriptor, digest_of, reply};

const MIB: usize = 1024 * 1024;
const CONFIG: &[u8] =
    br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;

/// The content of an image: its layers differ in their first bytes alone.
pub struct Content {
    /// A MiB of noise, the end of every MiB of each layer.
    noise: Vec<u8>,
    /// The size of each layer in MiB.
    mebibytes: usize,
    /// The numbers of the layers by their digests.
    layers: BTreeMap<String, u64>,
    config: String,
    manifest: Vec<u8>,
    digest: String,
}

impl Content {
    /// An image of so many layers of so many MiB. All of it is hashed.
    pub fn new(layers: u64, mebibytes: usize) -> Content {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut word = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let noise: Vec<u8> = (0..MIB / 8).flat_map(|_| word()).collect();
        let digests: Vec<String> = (0..layers)
            .map(|number| digest_of_layer(&noise, mebibytes, number))
            .collect();
        let config = digest_of(CONFIG);
        let listed: Vec<String> = digests
            .iter()
            .map(|digest| {
                descriptor(
                    "application/vnd.oci.image.layer.v1.tar",
                    digest,
                    mebibytes * MIB,
                )
            })
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor(
                "application/vnd.oci.image.config.v1+json",
                &config,
                CONFIG.len()
            ),
            listed.join(",")
        );
        Content {
            digest: digest_of(manifest.as_bytes()),
            manifest: manifest.into_bytes(),
            layers: digests.into_iter().zip(0..).collect(),
            noise,
            mebibytes,
            config,
        }
    }

    /// Writes the bytes of a layer from `start` to before `end`, at most a MiB at a time.
    fn send_layer(
        &self,
        number: u64,
        start: usize,
        end: usize,
        mut to: impl std::io::Write,
    ) -> std::io::Result<()> {
        let mebibyte = mebibyte_of(&self.noise, number);
        let mut at = start;
        while at < end {
            let from = at % MIB;
            let length = (MIB - from).min(end - at);
            to.write_all(&mebibyte[from..from + length])?;
            at += length;
        }
        Ok(())
    }
}

fn mebibyte_of(noise: &[u8], number: u64) -> Vec<u8> {
    let mut mebibyte = noise.to_vec();
    mebibyte[..8].copy_from_slice(&number.to_le_bytes());
    mebibyte
}

fn digest_of_layer(noise: &[u8], mebibytes: usize, number: u64) -> String {
    let mebibyte = mebibyte_of(noise, number);
    let mut hasher = Sha256::new();
    (0..mebibytes).for_each(|_| hasher.update(&mebibyte));
    format!("sha256:{}", hex::encode(hasher.finalize()))
}

/// A registry with one repository, `app`. It serves until the process ends.
pub struct Cheap {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    content: Arc<Content>,
    /// The digest that `app:v1` names.
    tagged: Mutex<Option<String>>,
}

impl Cheap {
    /// The registry that has the image as `app:v1`.
    pub fn with(content: &Arc<Content>) -> Cheap {
        Cheap::start(content, Some(content.digest.clone()))
    }

    /// A registry without any image. It takes this one only.
    pub fn without(content: &Arc<Content>) -> Cheap {
        Cheap::start(content, None)
    }

    fn start(content: &Arc<Content>, tagged: Option<String>) -> Cheap {
        let shared = Arc::new(Shared {
            content: content.clone(),
            tagged: Mutex::new(tagged),
        });
        let serving = shared.clone();
        let address = served::start(move |head, to| {
            head.pass_body_over(to)?;
            serving.answer(&head, to)
        });
        Cheap { address, shared }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The image as `host:port/app:v1`.
    pub fn image(&self) -> String {
        format!("{}/app:v1", self.address)
    }

    /// Whether `app:v1` names the image.
    pub fn has_image(&self) -> bool {
        self.shared.tagged().as_ref() == Some(&self.shared.content.digest)
    }
}

impl Shared {
    fn tagged(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.tagged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, head: &Head, to: &mut TcpStream) -> std::io::Result<()> {
        let content = &self.content;
        let name = head.path.rsplit('/').next().unwrap_or_default();
        let has_image = self.tagged().is_some();
        let is_manifest = head.path.contains("/manifests/");
        match head.method.as_str() {
            "PUT" if is_manifest => {
                *self.tagged() = Some(content.digest.clone());
                reply(
                    to,
                    "201 Created",
                    &[("docker-content-digest", &content.digest)],
                    b"",
                    false,
                )
            }
            "POST" => reply(
                to,
                "202 Accepted",
                &[("location", "/v2/app/blobs/uploads/1")],
                b"",
                false,
            ),
            "PATCH" => reply(
                to,
                "202 Accepted",
                &[("location", "/v2/app/blobs/uploads/1")],
                b"",
                false,
            ),
            "PUT" => reply(to, "201 Created", &[], b"", false),
            _ if head.path == "/v2/" => reply(to, "200 OK", &[], b"{}", false),
            "GET" if head.path.contains("/tags/list") && has_image => {
                reply(to, "200 OK", &[], br#"{"name":"app","tags":["v1"]}"#, false)
            }
            method @ ("GET" | "HEAD") if is_manifest && has_image => {
                let headers = [
                    ("content-type", MANIFEST),
                    ("docker-content-digest", &content.digest),
                ];
                reply(to, "200 OK", &headers, &content.manifest, method == "HEAD")
            }
            "GET" if name == content.config => reply(to, "200 OK", &[], CONFIG, false),
            "GET" if content.layers.contains_key(name) => {
                let size = content.mebibytes * MIB;
                let number = content.layers[name];
                let Some((first, last)) = head.range else {
                    write!(to, "HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")?;
                    return content.send_layer(number, 0, size, to);
                };
                let end = last.saturating_add(1).min(size);
                let length = end.saturating_sub(first);
                write!(
                    to,
                    "HTTP/1.1 206 Partial Content\r\ncontent-length: {length}\r\n\
                     content-range: bytes {first}-{last}/{size}\r\n\r\n"
                )?;
                content.send_layer(number, first, end, to)
            }
            method => reply(to, "404 Not Found", &[], b"{}", method == "HEAD"),
        }
    }
}
