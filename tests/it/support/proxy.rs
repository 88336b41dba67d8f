//! An HTTP/1.1 reverse proxy in front of a registry that counts, logs, and breaks things by
//! [`Rule`].
//!
//! Bodies stream through; nothing is buffered. Each connection of a client has connections of its
//! own to the registry, one for each request, so a cut on one side is a cut on the other.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, LOCATION, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivatePkcs8KeyDer};

use super::rules::{Act, Cut, Reply, Rule};
use tap::{Body, Broken, Mark};

mod tap;

/// Which endpoint a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Ping,
    BlobHead,
    BlobGet,
    UploadPost,
    UploadPatch,
    UploadPut,
    UploadStatus,
    UploadDelete,
    ManifestHead,
    ManifestGet,
    ManifestPut,
    Tags,
    Catalog,
    Referrers,
    Token,
    Other,
}

impl Kind {
    /// Requests that change the registry.
    pub const WRITES: [Kind; 4] = [
        Kind::UploadPost,
        Kind::UploadPatch,
        Kind::UploadPut,
        Kind::ManifestPut,
    ];

    pub(super) fn of(method: &Method, path: &str) -> Kind {
        let path = path.split('?').next().unwrap_or_default();
        match method.as_str() {
            "GET" | "HEAD" if path == "/v2/" || path == "/v2" => Kind::Ping,
            "GET" if path == "/v2/_catalog" => Kind::Catalog,
            "GET" if path.ends_with("/tags/list") => Kind::Tags,
            "GET" if path.contains("/referrers/") => Kind::Referrers,
            "POST" if path.contains("/blobs/uploads") => Kind::UploadPost,
            "PATCH" if path.contains("/blobs/uploads") => Kind::UploadPatch,
            "PUT" if path.contains("/blobs/uploads") => Kind::UploadPut,
            "DELETE" if path.contains("/blobs/uploads") => Kind::UploadDelete,
            "GET" | "HEAD" if path.contains("/blobs/uploads") => Kind::UploadStatus,
            "HEAD" if path.contains("/blobs/") => Kind::BlobHead,
            "GET" if path.contains("/blobs/") => Kind::BlobGet,
            "HEAD" if path.contains("/manifests/") => Kind::ManifestHead,
            "GET" if path.contains("/manifests/") => Kind::ManifestGet,
            "PUT" if path.contains("/manifests/") => Kind::ManifestPut,
            _ if path.contains("token") => Kind::Token,
            _ => Kind::Other,
        }
    }
}

/// One request that came by.
#[derive(Clone, Debug)]
pub struct Entry {
    pub kind: Kind,
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Whether it carried credentials.
    pub authorization: bool,
    /// The answer's status; none while there is no answer.
    pub status: Option<u16>,
    /// When it came.
    pub at: Instant,
    /// When it was answered.
    pub answered_at: Option<Instant>,
    sent: Arc<AtomicU64>,
    read: Arc<AtomicU64>,
}

impl Entry {
    /// Bytes of the request's body that have gone to the registry.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes of the answer's body that have gone to the client.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// A running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    certificate: Option<String>,
    server: JoinHandle<()>,
}

struct Shared {
    upstream: Option<String>,
    origin: String,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Entry>>,
    changed: watch::Sender<usize>,
}

impl Proxy {
    /// A proxy in front of `upstream` (`http://host:port`).
    pub async fn before(upstream: &str) -> Proxy {
        Proxy::start(Some(upstream), false).await
    }

    /// The same, speaking TLS with a certificate of its own for 127.0.0.1.
    pub async fn tls_before(upstream: &str) -> Proxy {
        Proxy::start(Some(upstream), true).await
    }

    /// A host with nothing behind it: 404 unless a rule answers.
    pub async fn alone() -> Proxy {
        Proxy::start(None, false).await
    }

    async fn start(upstream: Option<&str>, tls: bool) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a loopback port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let (acceptor, certificate) = if tls { secure() } else { (None, None) };
        let shared = Arc::new(Shared {
            upstream: upstream.map(|url| {
                url.trim_start_matches("http://")
                    .trim_end_matches('/')
                    .into()
            }),
            origin: format!("{}://{address}", if tls { "https" } else { "http" }),
            rules: Mutex::default(),
            log: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let server = tokio::spawn(accept(listener, acceptor, shared.clone()));
        Proxy {
            shared,
            address,
            certificate,
            server,
        }
    }

    /// `http://127.0.0.1:port`, or `https`.
    pub fn url(&self) -> String {
        self.shared.origin.clone()
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The certificate that a client must trust, as PEM.
    pub fn certificate(&self) -> &str {
        self.certificate
            .as_deref()
            .expect("a proxy that speaks TLS")
    }

    /// Adds a rule; rules act in the order in which they were added.
    pub fn rule(&self, rule: Rule) {
        self.shared
            .rules
            .lock()
            .expect("no panic while matching")
            .push(rule);
    }

    /// Breaks every request of this kind.
    pub fn always(&self, kind: Kind, act: impl Into<Act>) {
        self.rule(Rule::on(&[kind]).act(act));
    }

    /// Breaks the next request of this kind.
    pub fn once(&self, kind: Kind, act: impl Into<Act>) {
        self.rule(Rule::on(&[kind]).times(1).act(act));
    }

    /// Breaks the next three requests of this kind: by a reset and by a close before anything is
    /// sent, and by a close within the answer.
    pub fn thrice(&self, kind: Kind) {
        self.once(kind, Act::CutRequest(0, Cut::Reset));
        let nth = |number| Rule::on(&[kind]).from(number).times(1);
        self.rule(nth(1).act(Act::CutRequest(0, Cut::Fin)));
        self.rule(nth(2).act(Act::CutAnswer(1, Cut::Fin)));
    }

    /// Forgets all rules and what came by.
    pub fn reset(&self) {
        self.shared
            .rules
            .lock()
            .expect("no panic while matching")
            .clear();
        self.shared.log().clear();
    }

    /// Everything that came by, in order of arrival.
    pub fn log(&self) -> Vec<Entry> {
        self.shared.log().clone()
    }

    /// What came by of these kinds; all when there are none.
    pub fn of(&self, kinds: &[Kind]) -> Vec<Entry> {
        self.log()
            .into_iter()
            .filter(|entry| kinds.is_empty() || kinds.contains(&entry.kind))
            .collect()
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.of(&[kind]).len()
    }

    /// Bytes of request bodies to the registry and of answers' bodies from it, over these kinds.
    pub fn bytes(&self, kinds: &[Kind]) -> (u64, u64) {
        self.of(kinds).iter().fold((0, 0), |(sent, read), entry| {
            (sent + entry.bytes_sent(), read + entry.bytes_read())
        })
    }

    /// Waits until so many requests of a kind have come; panics after 60 s.
    pub async fn seen(&self, kind: Kind, count: usize) {
        let mut changed = self.shared.changed.subscribe();
        let there = changed.wait_for(|_| self.count(kind) >= count);
        if tokio::time::timeout(Duration::from_secs(60), there)
            .await
            .is_err()
        {
            panic!(
                "{} of {count} {kind:?} within 60 s: {:#?}",
                self.count(kind),
                self.log()
            );
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
        if std::thread::panicking() {
            eprintln!("--- the proxy at {} saw:", self.shared.origin);
            for entry in self.shared.log().iter().rev().take(60).rev() {
                eprintln!(
                    "{} {} -> {:?}, {} sent, {} read",
                    entry.method,
                    entry.path,
                    entry.status,
                    entry.bytes_sent(),
                    entry.bytes_read()
                );
            }
        }
    }
}

fn secure() -> (Option<TlsAcceptor>, Option<String>) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["127.0.0.1".into(), "localhost".into()])
            .expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
    let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("the key fits its certificate");
    (Some(TlsAcceptor::from(Arc::new(config))), Some(cert.pem()))
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Dropping the set ends every connection.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        let socket = Socket {
            stream,
            reset: Arc::default(),
        };
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        connections.spawn(async move {
            let reset = socket.reset.clone();
            match acceptor {
                None => converse(socket, reset, shared).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        converse(stream, reset, shared).await;
                    }
                }
            }
        });
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    reset: Arc<AtomicBool>,
    shared: Arc<Shared>,
) {
    let service = service_fn(move |request| serve(shared.clone(), reset.clone(), request));
    // An error here is a cut that a rule or a peer made.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn serve(
    shared: Arc<Shared>,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Broken> {
    let (number, entry, acts) = shared.arrive(&request);
    let mut request_marks = Vec::new();
    let mut after = Vec::new();
    for act in acts {
        match act {
            Act::Delay(time) => tokio::time::sleep(time).await,
            Act::Hold(gate) => gate.pass().await,
            Act::Silent => std::future::pending().await,
            Act::Answer(reply) => return Ok(shared.answer(number, &entry, reply)),
            Act::EndlessTags => {
                return Ok(shared.answer(number, &entry, one_more_page(&entry.path)));
            }
            Act::CutRequest(0, cut) => return Err(tap::cut(cut, &reset)),
            Act::CutRequest(at, cut) => request_marks.push((at, Mark::Cut(cut, reset.clone()))),
            Act::HoldRequest(at, gate) => request_marks.push((at, Mark::Hold(gate))),
            other => after.push(other),
        }
    }
    let Some(upstream) = &shared.upstream else {
        return Ok(shared.answer(number, &entry, Reply::status(404)));
    };
    let answer = forward(
        upstream,
        request.map(|body| tap::tapped(body, request_marks, entry.sent.clone())),
    )
    .await?;
    shared.answered(number, answer.status().as_u16());
    Ok(shared.altered(answer, after, &entry, &reset))
}

async fn forward(upstream: &str, mut request: Request<Body>) -> Result<Response<Incoming>, Broken> {
    request.headers_mut().remove(CONNECTION);
    if request.headers().contains_key(CONTENT_LENGTH) {
        request.headers_mut().remove(TRANSFER_ENCODING);
    }
    let path = request
        .uri()
        .path_and_query()
        .expect("a request to a server has a path")
        .as_str()
        .parse();
    *request.uri_mut() = path.expect("a path stays a path");
    let stream = TcpStream::connect(upstream).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the sender and both bodies are gone.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.log
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn arrive(&self, request: &Request<Incoming>) -> (usize, Entry, Vec<Act>) {
        let path = request
            .uri()
            .path_and_query()
            .map(ToString::to_string)
            .unwrap_or_default();
        let kind = Kind::of(request.method(), &path);
        let authorization = request.headers().contains_key(AUTHORIZATION);
        let (sent, read) = Default::default();
        let entry = Entry {
            kind,
            method: request.method().clone(),
            path,
            authorization,
            status: None,
            at: Instant::now(),
            answered_at: None,
            sent,
            read,
        };
        let number = {
            let mut log = self.log();
            log.push(entry.clone());
            log.len() - 1
        };
        self.changed.send_modify(|count| *count += 1);
        let acts = self
            .rules
            .lock()
            .expect("no panic while matching")
            .iter_mut()
            .flat_map(|rule| rule.meets(&entry))
            .collect();
        (number, entry, acts)
    }

    fn answered(&self, number: usize, status: u16) {
        // The log may have been forgotten since.
        if let Some(entry) = self.log().get_mut(number) {
            entry.status = Some(status);
            entry.answered_at = Some(Instant::now());
        }
    }

    fn answer(&self, number: usize, entry: &Entry, reply: Reply) -> Response<Body> {
        self.answered(number, reply.status.as_u16());
        entry
            .read
            .fetch_add(reply.body.len() as u64, Ordering::Relaxed);
        let mut response = Response::new(tap::full(reply.body));
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        if reply.close {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn altered(
        &self,
        answer: Response<Incoming>,
        acts: Vec<Act>,
        entry: &Entry,
        reset: &Arc<AtomicBool>,
    ) -> Response<Body> {
        let (mut head, body) = answer.into_parts();
        self.keep_location_here(&mut head.headers);
        head.headers.remove(CONNECTION);
        let mut marks = Vec::new();
        for act in acts {
            let length = head
                .headers
                .get(CONTENT_LENGTH)
                .and_then(|value| value.to_str().ok())
                .and_then(|text| text.parse::<u64>().ok());
            let mut resize = |to: u64| head.headers.insert(CONTENT_LENGTH, to.into());
            match act {
                Act::CutAnswer(at, cut) => marks.push((at, Mark::Cut(cut, reset.clone()))),
                Act::HoldAnswer(at, gate) => marks.push((at, Mark::Hold(gate))),
                Act::FlipByte(at) => marks.push((at, Mark::Flip)),
                Act::Truncate(to) => {
                    length.map(|length| resize(length.min(to)));
                    marks.push((to, Mark::End));
                }
                Act::Extend(by) => {
                    let length = length.expect("only an answer of known length can be made longer");
                    resize(length + by);
                    marks.push((length, Mark::More(by)));
                }
                Act::Header(name, Some(value)) => {
                    let value = HeaderValue::from_str(&value).expect("a header's value");
                    head.headers.insert(HeaderName::from_static(name), value);
                }
                Act::Header(name, None) => drop(head.headers.remove(name)),
                _ => {}
            }
        }
        Response::from_parts(head, tap::tapped(body, marks, entry.read.clone()))
    }

    fn keep_location_here(&self, headers: &mut http::HeaderMap) {
        let Some(upstream) = &self.upstream else {
            return;
        };
        let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else {
            return;
        };
        if let Some(rest) = location.strip_prefix(&format!("http://{upstream}")) {
            let here = format!("{}{rest}", self.origin);
            headers.insert(LOCATION, here.parse().expect("a location stays a location"));
        } else if let Some(rest) = location
            .strip_prefix("http://")
            .filter(|_| self.origin.starts_with("https"))
        {
            headers.insert(
                LOCATION,
                format!("https://{rest}")
                    .parse()
                    .expect("a location stays a location"),
            );
        }
    }
}

fn one_more_page(path: &str) -> Reply {
    let page = path
        .split("page=")
        .nth(1)
        .and_then(|page| page.parse::<u64>().ok())
        .unwrap_or(0);
    let tags: Vec<String> = (0..100).map(|number| format!("t{page}-{number}")).collect();
    let bare = path.split('?').next().unwrap_or_default();
    let link = format!("<{bare}?page={}>; rel=\"next\"", page + 1);
    let body = serde_json::json!({"name": "endless", "tags": tags}).to_string();
    Reply::status(200)
        .header("link", &link)
        .body("application/json", body)
}

/// A client's connection; reset instead of closed when a rule says so.
struct Socket {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.reset.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
