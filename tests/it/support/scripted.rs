//! A small registry over HTTP that a test programs: it serves the distribution API from memory with
//! real digests, records every request, and lets the test put any answer in place of its own.
//!
//! ```ignore
//! let staging = Scripted::start();
//! staging.push("app", "v1", &Image::oci(1, &[1000]));
//! staging.on(|request| match request.kind {
//!     Kind::Referrers => Answer::Reply(Reply::status(500)),
//!     Kind::BlobGet if request.nth == 1 => Answer::CutBody(100),
//!     _ => Answer::Pass,
//! });
//! let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
//! …
//! assert_eq!(staging.count(Kind::Referrers), 1);
//! ```
//!
//! Closures are asked newest first; the first answer that is not [`Answer::Pass`] counts. A closure
//! is called before the request's body is read, without any lock held: it may change the registry
//! through a clone. Content is changed directly with [`Scripted::push`],
//! [`Scripted::put_document`], [`Scripted::tag`], [`Scripted::untag`] and [`Scripted::remove`].
//! [`Settings`] hold what a registry can do; what is wrong with it is said by closures.

#![allow(dead_code, reason = "each test uses the parts that it needs")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::image::{Document, Image, OCI_INDEX, sha256};
use super::proxy::Kind;
use super::rules::{Gate, Reply};

type Body = UnsyncBoxBody<Bytes, Broken>;
type Broken = Box<dyn std::error::Error + Send + Sync>;
type Script = dyn Fn(&Asked) -> Answer + Send + Sync;

/// Bytes of one frame of an answer.
const FRAME: usize = 64 * 1024;
/// Pieces of a dripping body in one second.
const DRIPS: u64 = 10;

/// What a closure is asked about.
#[derive(Clone, Debug)]
pub struct Asked {
    pub kind: Kind,
    pub method: Method,
    /// Without the query.
    pub path: String,
    /// As it was sent; empty where there is none.
    pub query: String,
    pub headers: HeaderMap,
    /// The how many-th request of this kind it is, from 1.
    pub nth: usize,
    /// The how many-th request of this method and path it is, from 1.
    pub nth_here: usize,
}

impl Asked {
    /// The last part of the path: a tag, a digest, a session.
    pub fn reference(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The registry's own answer, or that of an older closure.
    Pass,
    /// This answer; the registry does nothing. The request's body is read to its end.
    Reply(Reply),
    /// This answer, before a byte of the request's body is read; the registry does nothing.
    Early(Reply),
    /// The registry does it, and this is what it says.
    ActThen(Reply),
    /// The registry does it, and the connection breaks before a byte of the answer.
    Lose,
    /// No answer, ever.
    Hang,
    /// The request waits at the gate, then the registry does it.
    Hold(Gate),
    /// The registry's own answer, its body at so many bytes a second.
    Drip(u64),
    /// The registry's own answer; the connection breaks after so many bytes of its body.
    CutBody(u64),
    /// The connection breaks after so many bytes of the request's body; an upload keeps those.
    CutRequest(u64),
    /// The request's body is taken up to so many bytes, and then nothing more happens; an upload
    /// keeps those.
    HangRequest(u64),
    /// The registry's own answer with this header.
    Header(&'static str, String),
}

/// What the registry can do.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Mounts what another repository holds.
    pub mounts: bool,
    /// Has the referrers endpoint.
    pub referrers: bool,
    /// Refuses manifests whose content it lacks.
    pub checks_content: bool,
    /// Most entries of a page.
    pub page: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            mounts: true,
            referrers: true,
            checks_content: true,
            page: 1000,
        }
    }
}

/// One request that came.
#[derive(Clone, Debug)]
pub struct Record {
    pub kind: Kind,
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub at: Instant,
    /// The answer's status; none while there is no answer, or where it was lost.
    pub status: Option<u16>,
    /// Bytes of the request's body that came.
    pub received: u64,
}

/// A running registry. Clones are the same registry.
#[derive(Clone)]
pub struct Scripted {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrivals: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    settings: Settings,
    scripts: Vec<Arc<Script>>,
    log: Vec<Record>,
    repositories: BTreeMap<String, Repository>,
    uploads: HashMap<String, Upload>,
    opened: u64,
}

#[derive(Default)]
struct Repository {
    blobs: BTreeMap<String, Bytes>,
    manifests: BTreeMap<String, Document>,
    tags: BTreeMap<String, String>,
}

struct Upload {
    repository: String,
    bytes: BytesMut,
}

impl Scripted {
    /// An empty registry on a free loopback port. It ends with the test's runtime.
    pub fn start() -> Scripted {
        Scripted::with(Settings::default())
    }

    /// The same with other abilities.
    pub fn with(settings: Settings) -> Scripted {
        Scripted::at("127.0.0.1:0", settings)
    }

    /// The same at an address of the test's choice.
    pub fn at(address: &str, settings: Settings) -> Scripted {
        Scripted::listening(address, settings, None)
    }

    /// The same behind TLS.
    pub fn tls_at(address: &str, tls: TlsAcceptor) -> Scripted {
        Scripted::listening(address, Settings::default(), Some(tls))
    }

    fn listening(address: &str, settings: Settings, tls: Option<TlsAcceptor>) -> Scripted {
        let listener = std::net::TcpListener::bind(address).expect("an address of this machine");
        listener
            .set_nonblocking(true)
            .expect("a socket can be non-blocking");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let listener = TcpListener::from_std(listener).expect("a test runs in a runtime");
        let shared = Arc::new(Shared::default());
        shared.state().settings = settings;
        tokio::spawn(accept(listener, tls, shared.clone()));
        Scripted { address, shared }
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Adds a closure, to be asked before those that are there.
    pub fn on(&self, script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        self.shared.state().scripts.push(Arc::new(script));
    }

    /// Forgets the closures.
    pub fn calm(&self) {
        self.shared.state().scripts.clear();
    }

    /// Forgets the requests.
    pub fn forget_requests(&self) {
        self.shared.state().log.clear();
    }

    /// Changes what it can do.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.shared.state().settings);
    }

    /// Puts an image there without a request, under a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.push_untagged(repository, image);
        self.tag(repository, tag, image.digest());
    }

    /// Puts an image there without a request, under its digest only.
    pub fn push_untagged(&self, repository: &str, image: &Image) {
        for blob in image.unique_blobs() {
            self.put_blob(repository, &blob.digest, blob.bytes.clone());
        }
        for document in &image.documents {
            self.put_document(repository, document);
        }
    }

    /// Puts a blob there under a digest that need not be its own.
    pub fn put_blob(&self, repository: &str, digest: &str, bytes: Bytes) {
        self.shared
            .state()
            .repository(repository)
            .blobs
            .insert(digest.into(), bytes);
    }

    /// Puts a manifest there, unchecked.
    pub fn put_document(&self, repository: &str, document: &Document) {
        let mut state = self.shared.state();
        state
            .repository(repository)
            .manifests
            .insert(document.digest.clone(), document.clone());
    }

    /// Points a tag at a digest.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.shared
            .state()
            .repository(repository)
            .tags
            .insert(tag.into(), digest.into());
    }

    /// Takes a tag away.
    pub fn untag(&self, repository: &str, tag: &str) {
        self.shared.state().repository(repository).tags.remove(tag);
    }

    /// Takes a blob or manifest away.
    pub fn remove(&self, repository: &str, digest: &str) {
        let mut state = self.shared.state();
        let repository = state.repository(repository);
        repository.blobs.remove(digest);
        repository.manifests.remove(digest);
    }

    /// Ends every upload session.
    pub fn drop_uploads(&self) {
        self.shared.state().uploads.clear();
    }

    /// What a tag names.
    pub fn tagged(&self, repository: &str, tag: &str) -> Option<String> {
        self.shared
            .state()
            .repositories
            .get(repository)?
            .tags
            .get(tag)
            .cloned()
    }

    /// All tags, sorted.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let state = self.shared.state();
        state
            .repositories
            .get(repository)
            .map(|held| held.tags.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// Whether a blob or manifest is there.
    pub fn holds(&self, repository: &str, digest: &str) -> bool {
        let state = self.shared.state();
        let held = state.repositories.get(repository);
        held.is_some_and(|held| {
            held.blobs.contains_key(digest) || held.manifests.contains_key(digest)
        })
    }

    /// The manifest behind a tag or digest.
    pub fn document(&self, repository: &str, reference: &str) -> Option<Document> {
        self.shared
            .state()
            .repositories
            .get(repository)?
            .document(reference)
            .cloned()
    }

    /// Everything that came, in order of arrival.
    pub fn log(&self) -> Vec<Record> {
        self.shared.state().log.clone()
    }

    /// What came of one kind.
    pub fn of(&self, kind: Kind) -> Vec<Record> {
        self.log()
            .into_iter()
            .filter(|record| record.kind == kind)
            .collect()
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.of(kind).len()
    }

    /// Bytes of all bodies of one kind that came.
    pub fn received(&self, kind: Kind) -> u64 {
        self.of(kind).iter().map(|record| record.received).sum()
    }

    /// Waits until the requests so far are as wanted; looked at again at each arrival and answer.
    /// Panics after 60 s.
    pub async fn until(&self, what: &str, mut wanted: impl FnMut(&[Record]) -> bool) {
        let mut arrivals = self.shared.arrivals.subscribe();
        let there = arrivals.wait_for(|_| wanted(&self.log()));
        if tokio::time::timeout(Duration::from_secs(60), there)
            .await
            .is_err()
        {
            panic!("{what}: not within 60 s: {:#?}", self.log());
        }
    }

    /// Waits until so many requests of a kind have come; panics after 60 s.
    pub async fn seen(&self, kind: Kind, count: usize) {
        let wanted =
            |log: &[Record]| log.iter().filter(|record| record.kind == kind).count() >= count;
        self.until(&format!("{count} {kind:?}"), wanted).await;
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (tls, shared) = (tls.clone(), shared.clone());
        connections.spawn(async move {
            match tls {
                None => converse(stream, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shared: Arc<Shared>,
) {
    let service = service_fn(move |request| serve(shared.clone(), request));
    // An error here is a break that a script or the client made.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn serve(
    shared: Arc<Shared>,
    request: http::Request<Incoming>,
) -> Result<Response<Body>, Broken> {
    let (head, body) = request.into_parts();
    let (number, asked) = shared.arrive(&head);
    let mut reading = Reading {
        shared: &shared,
        number,
        body,
        left: u64::MAX,
        hangs: false,
    };
    let answer = shared.answer_to(&asked);
    match answer {
        Answer::Hang => std::future::pending().await,
        Answer::Reply(reply) => {
            reading.drain().await?;
            return Ok(shared.replied(number, reply));
        }
        Answer::Early(reply) => return Ok(shared.replied(number, reply)),
        Answer::Hold(ref gate) => gate.pass().await,
        Answer::CutRequest(at) => reading.left = at,
        Answer::HangRequest(at) => (reading.left, reading.hangs) = (at, true),
        _ => {}
    }
    let reply = shared.act(&asked, &mut reading).await?;
    match answer {
        Answer::Lose => Err("the answer is lost".into()),
        Answer::CutRequest(_) => Err("the connection breaks".into()),
        Answer::ActThen(reply) => Ok(shared.replied(number, reply)),
        Answer::Header(name, value) => {
            let mut reply = reply;
            let value = HeaderValue::from_str(&value).expect("a header's value");
            reply.headers.insert(HeaderName::from_static(name), value);
            Ok(shared.replied(number, reply))
        }
        Answer::Drip(rate) => Ok(shared
            .replied(number, reply)
            .map(|body| dripping(body, rate))),
        Answer::CutBody(at) => Ok(shared.replied(number, reply).map(|body| cut(body, at))),
        _ => Ok(shared.replied(number, reply)),
    }
}

/// A request's body, counted while it comes.
struct Reading<'a> {
    shared: &'a Shared,
    number: usize,
    body: Incoming,
    /// Bytes before the connection breaks.
    left: u64,
    /// Whether it does not break there, but nothing happens any more.
    hangs: bool,
}

impl Reading<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            if self.left == 0 && self.hangs {
                self.shared.arrivals.send_modify(|count| *count += 1);
                std::future::pending::<()>().await;
            }
            if self.left == 0 {
                return Err("the connection breaks".into());
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let Ok(mut bytes) = frame?.into_data() else {
                continue;
            };
            bytes.truncate(
                usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len()),
            );
            self.left -= bytes.len() as u64;
            self.shared
                .record(self.number, |record| record.received += bytes.len() as u64);
            return Ok(Some(bytes));
        }
    }

    async fn drain(&mut self) -> Result<(), Broken> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    async fn whole(&mut self) -> Result<Bytes, Broken> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(&self, head: &http::request::Parts) -> (usize, Asked) {
        let path = head.uri.path().replace("%3A", ":");
        let kind = Kind::of(&head.method, &path);
        let query = head.uri.query().unwrap_or_default().to_owned();
        let mut state = self.state();
        let nth = state
            .log
            .iter()
            .filter(|record| record.kind == kind)
            .count()
            + 1;
        let here = |record: &&Record| record.method == head.method && record.path == path;
        let nth_here = state.log.iter().filter(here).count() + 1;
        let record = Record {
            kind,
            method: head.method.clone(),
            path: path.clone(),
            query: query.clone(),
            headers: head.headers.clone(),
            at: Instant::now(),
            status: None,
            received: 0,
        };
        state.log.push(record);
        let number = state.log.len() - 1;
        drop(state);
        self.arrivals.send_modify(|count| *count += 1);
        let headers = head.headers.clone();
        (
            number,
            Asked {
                kind,
                method: head.method.clone(),
                path,
                query,
                headers,
                nth,
                nth_here,
            },
        )
    }

    fn answer_to(&self, asked: &Asked) -> Answer {
        let scripts = self.state().scripts.clone();
        let answers = scripts.iter().rev().map(|script| script(asked));
        answers
            .into_iter()
            .find(|answer| !matches!(answer, Answer::Pass))
            .unwrap_or(Answer::Pass)
    }

    fn record(&self, number: usize, change: impl FnOnce(&mut Record)) {
        // The log may have been forgotten since.
        if let Some(record) = self.state().log.get_mut(number) {
            change(record);
        }
    }

    fn replied(&self, number: usize, reply: Reply) -> Response<Body> {
        self.record(number, |record| record.status = Some(reply.status.as_u16()));
        self.arrivals.send_modify(|count| *count += 1);
        let mut response = Response::new(framed(reply.body.clone()));
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        if reply.close {
            response
                .headers_mut()
                .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        if !response.headers().contains_key(CONTENT_LENGTH) && reply.status != 204 {
            response
                .headers_mut()
                .insert(CONTENT_LENGTH, reply.body.len().into());
        }
        response
    }

    async fn act(&self, asked: &Asked, reading: &mut Reading<'_>) -> Result<Reply, Broken> {
        let query: HashMap<String, String> = url::form_urlencoded::parse(asked.query.as_bytes())
            .into_owned()
            .collect();
        let rest = asked.path.strip_prefix("/v2/").unwrap_or_default();
        let (name, tail) = [
            "/blobs/uploads",
            "/blobs/",
            "/manifests/",
            "/tags/list",
            "/referrers/",
        ]
        .iter()
        .find_map(|part| rest.split_once(part))
        .unwrap_or_default();
        let tail = tail.trim_matches('/');
        match asked.kind {
            Kind::Ping => Ok(Reply::status(200).body("application/json", "{}")),
            Kind::UploadPatch => self.append(tail, &asked.headers, reading).await,
            Kind::UploadPut => {
                let appended = self.append(tail, &asked.headers, reading).await?;
                if !appended.status.is_success() {
                    return Ok(appended);
                }
                Ok(self
                    .state()
                    .finish(name, tail, query.get("digest").map_or("", String::as_str)))
            }
            Kind::ManifestPut => {
                let bytes = reading.whole().await?;
                let media_type = asked
                    .headers
                    .get(CONTENT_TYPE)
                    .and_then(|value| value.to_str().ok());
                let document = Document::raw(media_type.unwrap_or_default(), bytes);
                Ok(self.state().put_manifest(name, tail, document))
            }
            kind => {
                reading.drain().await?;
                Ok(self.state().read(kind, name, tail, &query, &asked.headers))
            }
        }
    }

    async fn append(
        &self,
        id: &str,
        headers: &HeaderMap,
        reading: &mut Reading<'_>,
    ) -> Result<Reply, Broken> {
        let held = self
            .state()
            .uploads
            .get(id)
            .map(|upload| upload.bytes.len());
        let Some(held) = held else {
            return Ok(refused(404, "BLOB_UPLOAD_UNKNOWN"));
        };
        let range = headers
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok());
        let start = range
            .and_then(|range| range.split_once('-'))
            .and_then(|(start, _)| start.parse().ok());
        if start.is_some_and(|start: usize| start != held) {
            return Ok(self.state().session(416, id));
        }
        while let Some(bytes) = reading.next().await? {
            if let Some(upload) = self.state().uploads.get_mut(id) {
                upload.bytes.extend_from_slice(&bytes);
            }
        }
        Ok(self.state().session(202, id))
    }
}

impl State {
    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.into()).or_default()
    }

    fn session(&self, status: u16, id: &str) -> Reply {
        let Some(upload) = self.uploads.get(id) else {
            return refused(404, "BLOB_UPLOAD_UNKNOWN");
        };
        Reply::status(status)
            .header(
                "location",
                &format!("/v2/{}/blobs/uploads/{id}", upload.repository),
            )
            .header("docker-upload-uuid", id)
            .header(
                "range",
                &format!("0-{}", upload.bytes.len().saturating_sub(1)),
            )
    }

    fn open(&mut self, name: &str, query: &HashMap<String, String>) -> Reply {
        if let (Some(digest), Some(from), true) =
            (query.get("mount"), query.get("from"), self.settings.mounts)
        {
            let held = self
                .repositories
                .get(from)
                .and_then(|from| from.blobs.get(digest))
                .cloned();
            if let Some(bytes) = held {
                self.repository(name).blobs.insert(digest.clone(), bytes);
                return created(&format!("/v2/{name}/blobs/{digest}"), digest);
            }
        }
        self.opened += 1;
        let id = format!("session-{}", self.opened);
        self.repository(name);
        self.uploads.insert(
            id.clone(),
            Upload {
                repository: name.into(),
                bytes: BytesMut::new(),
            },
        );
        self.session(202, &id)
    }

    fn finish(&mut self, name: &str, id: &str, digest: &str) -> Reply {
        let Some(upload) = self.uploads.remove(id) else {
            return refused(404, "BLOB_UPLOAD_UNKNOWN");
        };
        let bytes = upload.bytes.freeze();
        if digest.starts_with("sha256:") && sha256(&bytes) != digest {
            return refused(400, "DIGEST_INVALID");
        }
        self.repository(name).blobs.insert(digest.into(), bytes);
        created(&format!("/v2/{name}/blobs/{digest}"), digest)
    }

    fn put_manifest(&mut self, name: &str, reference: &str, document: Document) -> Reply {
        let Ok(body) = serde_json::from_slice::<Value>(&document.bytes) else {
            return refused(400, "MANIFEST_INVALID");
        };
        let checks_content = self.settings.checks_content;
        let referrers = self.settings.referrers;
        let repository = self.repository(name);
        if checks_content && let Some(missing) = repository.missing(&body) {
            let text = json!({"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "detail": {"digest": missing}}]});
            return Reply::status(404).body("application/json", text.to_string());
        }
        let digest = document.digest.clone();
        if !reference.contains(':') {
            repository.tags.insert(reference.into(), digest.clone());
        }
        repository.manifests.insert(digest.clone(), document);
        let reply = created(&format!("/v2/{name}/manifests/{digest}"), &digest);
        match body["subject"]["digest"].as_str().filter(|_| referrers) {
            Some(subject) => reply.header("oci-subject", subject),
            None => reply,
        }
    }

    fn read(
        &mut self,
        kind: Kind,
        name: &str,
        tail: &str,
        query: &HashMap<String, String>,
        headers: &HeaderMap,
    ) -> Reply {
        match kind {
            Kind::UploadPost => return self.open(name, query),
            Kind::UploadStatus => return self.session(204, tail),
            Kind::UploadDelete => {
                let known = self.uploads.remove(tail).is_some();
                return Reply::status(if known { 204 } else { 404 });
            }
            Kind::Catalog => {
                let names = self.repositories.keys().cloned().collect();
                return self.page("/v2/_catalog", "repositories", names, query);
            }
            _ => {}
        }
        let Some(repository) = self.repositories.get(name) else {
            return refused(404, "NAME_UNKNOWN");
        };
        match kind {
            Kind::Tags => {
                let tags = repository.tags.keys().cloned().collect();
                self.page(&format!("/v2/{name}/tags/list"), "tags", tags, query)
            }
            Kind::BlobHead | Kind::BlobGet => match repository.blobs.get(tail) {
                Some(bytes) => blob(kind, tail, bytes, headers),
                None => refused(404, "BLOB_UNKNOWN"),
            },
            Kind::ManifestHead | Kind::ManifestGet => match repository.document(tail) {
                Some(document) => manifest(kind, document),
                None => refused(404, "MANIFEST_UNKNOWN"),
            },
            Kind::Referrers if self.settings.referrers => {
                Reply::status(200).body(OCI_INDEX, repository.referrers(tail).to_string())
            }
            _ => refused(404, "UNSUPPORTED"),
        }
    }

    fn page(
        &self,
        path: &str,
        key: &str,
        names: Vec<String>,
        query: &HashMap<String, String>,
    ) -> Reply {
        let asked = query
            .get("n")
            .and_then(|n| n.parse().ok())
            .unwrap_or(usize::MAX);
        let size = self.settings.page.min(asked);
        let last = query.get("last").cloned().unwrap_or_default();
        let left: Vec<String> = names.into_iter().filter(|name| *name > last).collect();
        let shown = &left[..size.min(left.len())];
        let mut list = json!({ key: shown });
        if let Some(name) = path.strip_suffix("/tags/list") {
            list["name"] = name.trim_start_matches("/v2/").into();
        }
        let reply = Reply::status(200).body("application/json", list.to_string());
        match shown.last().filter(|_| shown.len() < left.len()) {
            Some(last) => reply.header(
                "link",
                &format!("<{path}?n={size}&last={last}>; rel=\"next\""),
            ),
            None => reply,
        }
    }
}

impl Repository {
    fn document(&self, reference: &str) -> Option<&Document> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        self.manifests.get(digest)
    }

    fn missing(&self, body: &Value) -> Option<String> {
        let entries = |key: &str| body[key].as_array().cloned().unwrap_or_default();
        let needed = [body["config"].clone()]
            .into_iter()
            .chain(entries("layers"))
            .chain(entries("manifests"));
        let digests = needed
            .filter(|entry| entry["urls"].is_null())
            .filter_map(|entry| entry["digest"].as_str().map(String::from));
        digests
            .into_iter()
            .find(|digest| !self.blobs.contains_key(digest) && !self.manifests.contains_key(digest))
    }

    fn referrers(&self, subject: &str) -> Value {
        let about = |document: &&Document| {
            let body: Value = serde_json::from_slice(&document.bytes).unwrap_or_default();
            body["subject"]["digest"] == subject
        };
        let entries: Vec<Value> = self
            .manifests
            .values()
            .filter(about)
            .map(Document::descriptor)
            .collect();
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    }
}

fn blob(kind: Kind, digest: &str, bytes: &Bytes, headers: &HeaderMap) -> Reply {
    let reply = |status| Reply::status(status).header("docker-content-digest", digest);
    if kind == Kind::BlobHead {
        return reply(200).header("content-length", &bytes.len().to_string());
    }
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let range = range.and_then(|range| {
        let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let last = last.parse().unwrap_or(usize::MAX);
        Some((start.parse::<usize>().ok()?, last.min(bytes.len() - 1)))
    });
    match range {
        None => reply(200).body("application/octet-stream", bytes.clone()),
        Some((start, last)) if start < bytes.len() => reply(206)
            .header(
                "content-range",
                &format!("bytes {start}-{last}/{}", bytes.len()),
            )
            .body("application/octet-stream", bytes.slice(start..=last)),
        Some(_) => reply(416),
    }
}

fn manifest(kind: Kind, document: &Document) -> Reply {
    let reply = Reply::status(200).header("docker-content-digest", &document.digest);
    match kind {
        Kind::ManifestHead => reply
            .header("content-type", &document.media_type)
            .header("content-length", &document.bytes.len().to_string()),
        _ => reply.body(&document.media_type, document.bytes.clone()),
    }
}

fn created(location: &str, digest: &str) -> Reply {
    Reply::status(201)
        .header("location", location)
        .header("docker-content-digest", digest)
}

/// A refusal as the specification words it.
fn refused(status: u16, code: &str) -> Reply {
    Reply::status(status).body(
        "application/json",
        json!({"errors": [{"code": code, "message": "no"}]}).to_string(),
    )
}

fn framed(mut bytes: Bytes) -> Body {
    let frames = std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| Ok(Frame::data(bytes.split_to(bytes.len().min(FRAME)))))
    });
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn dripping(body: Body, rate: u64) -> Body {
    let piece = usize::try_from((rate / DRIPS).max(1)).unwrap_or(usize::MAX);
    let frames = stream::try_unfold(
        (body, Bytes::new()),
        move |(mut body, mut waiting)| async move {
            while waiting.is_empty() {
                let Some(frame) = body.frame().await else {
                    return Ok::<_, Broken>(None);
                };
                waiting = frame?.into_data().unwrap_or_default();
            }
            let bytes = waiting.split_to(piece.min(waiting.len()));
            let time = bytes.len() as f64 / rate as f64;
            tokio::time::sleep(Duration::from_secs_f64(time)).await;
            Ok(Some((Frame::data(bytes), (body, waiting))))
        },
    );
    StreamBody::new(frames).boxed_unsync()
}

fn cut(body: Body, at: u64) -> Body {
    let frames = stream::try_unfold((body, at), |(mut body, left)| async move {
        if left == 0 {
            // The peer shall have exactly what passed: the connection gets its turns to write it.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            return Err::<_, Broken>("the connection breaks".into());
        }
        let Some(frame) = body.frame().await else {
            return Ok(None);
        };
        let mut bytes = frame?.into_data().unwrap_or_default();
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
        let left = left - bytes.len() as u64;
        Ok(Some((Frame::data(bytes), (body, left))))
    });
    StreamBody::new(frames).boxed_unsync()
}
