//! A registry of many repositories that costs next to nothing. It takes what the fleet consists of
//! and nothing else, and remembers which tags it has, not their content.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::images::Images;
use crate::served;
use crate::served::{Head, MANIFEST, digest_of, reply};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry. It serves until the process ends.
pub struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    images: Arc<Images>,
    /// Whether it has each tag, by repository.
    has_tag: Vec<AtomicBool>,
    /// Whether it has the blobs of each repository.
    has_blobs: Vec<[AtomicBool; 2]>,
    named: AtomicUsize,
    requests: AtomicU64,
    lists_referrers: bool,
}

impl Registry {
    /// The registry that has everything.
    pub fn full(images: &Arc<Images>, lists_referrers: bool) -> Registry {
        Registry::start(images, true, lists_referrers)
    }

    /// A registry that has nothing.
    pub fn empty(images: &Arc<Images>) -> Registry {
        Registry::start(images, false, false)
    }

    fn start(images: &Arc<Images>, has_all: bool, lists_referrers: bool) -> Registry {
        let tags = images.repositories() * images.tags();
        let flag = || AtomicBool::new(has_all);
        let shared = Arc::new(Shared {
            images: images.clone(),
            has_tag: (0..tags).map(|_| flag()).collect(),
            has_blobs: (0..images.repositories())
                .map(|_| [flag(), flag()])
                .collect(),
            named: AtomicUsize::new(if has_all { tags } else { 0 }),
            requests: AtomicU64::new(0),
            lists_referrers,
        });
        let serving = shared.clone();
        let address = served::start(move |head, to| serving.answer(head, to));
        Registry { address, shared }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests it has had.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many tags it has.
    pub fn named(&self) -> usize {
        self.shared.named.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn answer(&self, mut head: Head, to: &mut TcpStream) -> std::io::Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let body = head.body(to)?;
        let is_head = head.method == "HEAD";
        let path = head.path.strip_prefix("/v2/").unwrap_or_default();
        if path.starts_with("_catalog") {
            return self.catalog(path, to);
        }
        let Some((repository, endpoint)) = self.split(path) else {
            return not_found(to, "NAME_UNKNOWN", is_head);
        };
        match (endpoint, head.method.as_str()) {
            (Endpoint::Tags, _) => self.tags(repository, to),
            (Endpoint::Manifest(name), "PUT") => self.put_manifest(repository, name, &body, to),
            (Endpoint::Manifest(name), _) => self.manifest(repository, name, is_head, to),
            (Endpoint::Upload(_), "POST") => accepted(repository, to),
            (Endpoint::Upload(digest), _) => self.put_blob(repository, digest, &body, to),
            (Endpoint::Blob(digest), _) => self.blob(repository, digest, is_head, to),
            (Endpoint::Referrers, _) if self.lists_referrers => {
                let list = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#);
                reply(
                    to,
                    "200 OK",
                    &[("content-type", INDEX)],
                    list.as_bytes(),
                    is_head,
                )
            }
            (Endpoint::Referrers, _) => reply(to, "404 Not Found", &[], b"no such page", is_head),
        }
    }

    fn split<'a>(&self, path: &'a str) -> Option<(usize, Endpoint<'a>)> {
        let ends = [
            "/tags/list",
            "/manifests/",
            "/blobs/uploads/",
            "/blobs/",
            "/referrers/",
        ];
        let (kind, at) = ends
            .into_iter()
            .find_map(|end| Some((end, path.find(end)?)))?;
        let repository = self.images.repository(&path[..at])?;
        let rest = &path[at + kind.len()..];
        let endpoint = match kind {
            "/tags/list" => Endpoint::Tags,
            "/manifests/" => Endpoint::Manifest(rest),
            "/blobs/uploads/" => {
                Endpoint::Upload(rest.split_once("digest=").map_or("", |(_, digest)| digest))
            }
            "/blobs/" => Endpoint::Blob(rest),
            _ => Endpoint::Referrers,
        };
        Some((repository, endpoint))
    }

    /// A page of the names.
    fn catalog(&self, path: &str, to: &mut TcpStream) -> std::io::Result<()> {
        let parameter = |name: &str| {
            let query = path.split_once('?')?.1;
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            Some(
                pairs
                    .find(|(found, _)| *found == name)?
                    .1
                    .replace("%2F", "/"),
            )
        };
        let last = parameter("last").and_then(|last| self.images.repository(&last));
        let first = last.map_or(0, |last| last + 1);
        let count = parameter("n").and_then(|count| count.parse().ok());
        let end = self
            .images
            .repositories()
            .min(first + count.unwrap_or(1000));
        let names: Vec<String> = (first..end)
            .map(|repository| format!("\"{}\"", Images::name(repository)))
            .collect();
        let list = format!(r#"{{"repositories":[{}]}}"#, names.join(","));
        let next = format!(
            "</v2/_catalog?n={}&last={}>; rel=\"next\"",
            end - first,
            Images::name(end.saturating_sub(1))
        );
        let headers: &[(&str, &str)] = if end < self.images.repositories() {
            &[("link", &next)]
        } else {
            &[]
        };
        reply(to, "200 OK", headers, list.as_bytes(), false)
    }

    fn has_tag(&self, repository: usize, tag: usize) -> &AtomicBool {
        &self.has_tag[repository * self.images.tags() + tag]
    }

    fn tags(&self, repository: usize, to: &mut TcpStream) -> std::io::Result<()> {
        let names: Vec<String> = (0..self.images.tags())
            .filter(|tag| self.has_tag(repository, *tag).load(Ordering::Relaxed))
            .map(|tag| format!("\"v{tag}\""))
            .collect();
        if names.is_empty() {
            return not_found(to, "NAME_UNKNOWN", false);
        }
        let name = Images::name(repository);
        let list = format!(r#"{{"name":"{name}","tags":[{}]}}"#, names.join(","));
        reply(to, "200 OK", &[], list.as_bytes(), false)
    }

    /// A manifest by its tag, or by its digest, which is searched for.
    fn manifest(
        &self,
        repository: usize,
        name: &str,
        is_head: bool,
        to: &mut TcpStream,
    ) -> std::io::Result<()> {
        let found = match self.images.tag(name) {
            Some(tag) => Some(tag),
            None => (0..self.images.tags())
                .find(|tag| digest_of(self.images.manifest(repository, *tag).as_bytes()) == name),
        };
        let there = found.filter(|tag| self.has_tag(repository, *tag).load(Ordering::Relaxed));
        let Some(tag) = there else {
            return not_found(to, "MANIFEST_UNKNOWN", is_head);
        };
        let manifest = self.images.manifest(repository, tag);
        let digest = digest_of(manifest.as_bytes());
        let headers = [
            ("content-type", MANIFEST),
            ("docker-content-digest", digest.as_str()),
        ];
        reply(to, "200 OK", &headers, manifest.as_bytes(), is_head)
    }

    fn put_manifest(
        &self,
        repository: usize,
        name: &str,
        body: &[u8],
        to: &mut TcpStream,
    ) -> std::io::Result<()> {
        let has_blobs = self.has_blobs[repository]
            .iter()
            .all(|has| has.load(Ordering::Relaxed));
        let named = self
            .images
            .tag(name)
            .filter(|tag| has_blobs && self.images.manifest(repository, *tag).as_bytes() == body);
        let Some(tag) = named else {
            return refused(to, "400 Bad Request", "MANIFEST_INVALID", false);
        };
        if !self.has_tag(repository, tag).swap(true, Ordering::Relaxed) {
            self.named.fetch_add(1, Ordering::Relaxed);
        }
        let digest = digest_of(body);
        reply(
            to,
            "201 Created",
            &[("docker-content-digest", &digest)],
            b"",
            false,
        )
    }

    fn blob(
        &self,
        repository: usize,
        digest: &str,
        is_head: bool,
        to: &mut TcpStream,
    ) -> std::io::Result<()> {
        let found = self.images.blob(repository, digest);
        let there =
            found.filter(|blob| self.has_blobs[repository][*blob as usize].load(Ordering::Relaxed));
        let Some(blob) = there else {
            return not_found(to, "BLOB_UNKNOWN", is_head);
        };
        let bytes = self.images.bytes(repository, blob);
        reply(to, "200 OK", &[], &bytes, is_head)
    }

    fn put_blob(
        &self,
        repository: usize,
        digest: &str,
        body: &[u8],
        to: &mut TcpStream,
    ) -> std::io::Result<()> {
        let digest = digest.replace("%3A", ":");
        let blob = self.images.blob(repository, &digest);
        let Some(blob) = blob.filter(|_| digest_of(body) == digest) else {
            return refused(to, "400 Bad Request", "DIGEST_INVALID", false);
        };
        self.has_blobs[repository][blob as usize].store(true, Ordering::Relaxed);
        reply(to, "201 Created", &[], b"", false)
    }
}

/// What is asked of a repository.
enum Endpoint<'a> {
    Tags,
    /// By tag or digest.
    Manifest(&'a str),
    /// By digest.
    Blob(&'a str),
    /// With the digest that closes it.
    Upload(&'a str),
    Referrers,
}

fn accepted(repository: usize, to: &mut TcpStream) -> std::io::Result<()> {
    let location = format!("/v2/{}/blobs/uploads/1", Images::name(repository));
    reply(to, "202 Accepted", &[("location", &location)], b"", false)
}

fn not_found(to: &mut TcpStream, code: &str, is_head: bool) -> std::io::Result<()> {
    refused(to, "404 Not Found", code, is_head)
}

fn refused(to: &mut TcpStream, status: &str, code: &str, is_head: bool) -> std::io::Result<()> {
    let body = format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#);
    reply(to, status, &[], body.as_bytes(), is_head)
}
