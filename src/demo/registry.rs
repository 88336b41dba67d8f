//! An OCI registry on a loopback port, inside this process, its content in memory: distribution
//! specification 1.1 with mounts, chunked uploads, ranges, pages and referrers.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v2/` | 200 |
//! | `GET /v2/_catalog` | the repositories, in pages |
//! | `GET, HEAD /v2/NAME/blobs/DIGEST` | 200, 206 for one range |
//! | `POST /v2/NAME/blobs/uploads/` | 202; 201 when `mount` and `from` name a blob that is held, or `digest` that of the body |
//! | `PATCH, PUT, GET, DELETE` of an upload | 202, 201, 204, 204; 416 with the true end for a misplaced chunk |
//! | `GET, HEAD, PUT /v2/NAME/manifests/REFERENCE` | 200, 201 with `OCI-Subject` where there is one |
//! | `GET /v2/NAME/tags/list` | the tags, in pages |
//! | `GET /v2/NAME/referrers/DIGEST` | an index; filtered by `artifactType` |
//!
//! Anonymous, for loopback only: any client of the port may write, up to the capacity.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LINK, LOCATION, RANGE,
};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::store::{Refusal, Store};
use crate::oci::manifest::MAX_SIZE;
use crate::oci::media_type::{OCI_INDEX, OCTET_STREAM};
use crate::oci::{Digest, Kind, Manifest, RepositoryName, Tag, Target};

/// Longest wait for the next piece of a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Entries of a page that asks for no number, and the most of any.
const PAGE: usize = 1000;

/// A running registry. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    store: Store,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Registry {
    /// Starts a registry on a free port of 127.0.0.1 that holds at most `capacity` bytes.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start(capacity: u64) -> std::io::Result<Registry> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let store = Store::new(capacity);
        let stop = CancellationToken::new();
        let router = axum::Router::new()
            .fallback(answer)
            .with_state(store.clone());
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            // Serving ends with the token only: failures of single connections stay theirs.
            let _ = axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await;
        });
        Ok(Registry {
            address,
            store,
            stop,
            server,
        })
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it holds.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.cancel();
        self.server.abort();
    }
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Resource {
    Base,
    Catalog,
    Blob(RepositoryName, Digest),
    Uploads(RepositoryName),
    Upload(RepositoryName, u64),
    Manifest(RepositoryName, Target),
    Tags(RepositoryName),
    Referrers(RepositoryName, Digest),
}

/// A failure as the specification words it.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    code: &'static str,
    text: String,
    held: Option<(u64, String)>,
}

type Answer = Result<Response, Failure>;
type Query = HashMap<String, String>;

async fn answer(State(store): State<Store>, request: Request) -> Response {
    respond(&store, request)
        .await
        .unwrap_or_else(Failure::answer)
}

async fn respond(store: &Store, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let query: Query = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect();
    let headers = &head.headers;
    match (place(&head.uri)?, head.method) {
        (Resource::Base, Method::GET | Method::HEAD) => {
            Ok(json_answer(StatusCode::OK, "application/json", &json!({})))
        }
        (Resource::Catalog, Method::GET) => Ok(catalog(store, &query)),
        (Resource::Blob(name, digest), Method::GET | Method::HEAD) => {
            blob(store, &name, &digest, headers)
        }
        (Resource::Uploads(name), Method::POST) => begin(store, &name, &query, body).await,
        (Resource::Upload(name, id), Method::PATCH) => patch(store, &name, id, headers, body).await,
        (Resource::Upload(name, id), Method::PUT) => {
            finish(store, &name, id, &query, headers, body).await
        }
        (Resource::Upload(name, id), Method::GET) => Ok(session(
            StatusCode::NO_CONTENT,
            &name,
            id,
            store.received(&name, id)?,
        )),
        (Resource::Upload(name, id), Method::DELETE) => Ok(store
            .cancel(&name, id)
            .map(|()| empty(StatusCode::NO_CONTENT, &[]))?),
        (Resource::Manifest(name, target), Method::GET | Method::HEAD) => {
            manifest(store, &name, &target, headers)
        }
        (Resource::Manifest(name, target), Method::PUT) => {
            put_manifest(store, &name, &target, headers, body).await
        }
        (Resource::Tags(name), Method::GET) => tags(store, &name, &query),
        (Resource::Referrers(name, digest), Method::GET) => {
            Ok(referrers(store, &name, &digest, &query))
        }
        _ => Err(Failure::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            "this registry does not do that",
        )),
    }
}

fn place(uri: &Uri) -> Result<Resource, Failure> {
    // Some clients write the colon of a digest as %3A.
    let path = uri.path().replace("%3A", ":").replace("%3a", ":");
    let path = path
        .strip_prefix("/v2")
        .ok_or_else(no_endpoint)?
        .trim_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        [""] => Ok(Resource::Base),
        ["_catalog"] => Ok(Resource::Catalog),
        [rest @ .., "tags", "list"] => Ok(Resource::Tags(name(rest)?)),
        [rest @ .., "blobs", "uploads"] => Ok(Resource::Uploads(name(rest)?)),
        [rest @ .., "blobs", "uploads", id] => u64::from_str_radix(id, 16)
            .map_or(Err(Refusal::UploadUnknown.into()), |id| {
                Ok(Resource::Upload(name(rest)?, id))
            }),
        [rest @ .., "blobs", digest] => Ok(Resource::Blob(name(rest)?, parse_digest(digest)?)),
        [rest @ .., "manifests", reference] => {
            Ok(Resource::Manifest(name(rest)?, target(reference)?))
        }
        [rest @ .., "referrers", digest] => {
            Ok(Resource::Referrers(name(rest)?, parse_digest(digest)?))
        }
        _ => Err(no_endpoint()),
    }
}

fn name(parts: &[&str]) -> Result<RepositoryName, Failure> {
    Ok(parts.join("/").parse()?)
}

fn no_endpoint() -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        "UNSUPPORTED",
        "there is no such endpoint",
    )
}

fn target(reference: &str) -> Result<Target, Failure> {
    match reference.contains(':') {
        true => Ok(Target::Digest(parse_digest(reference)?)),
        false => Ok(Target::Tag(reference.parse::<Tag>()?)),
    }
}

fn parse_digest(text: &str) -> Result<Digest, Failure> {
    text.parse()
        .map_err(|error: crate::oci::digest::ParseError| {
            Failure::new(
                StatusCode::BAD_REQUEST,
                "DIGEST_INVALID",
                &error.to_string(),
            )
        })
}

fn catalog(store: &Store, query: &Query) -> Response {
    let (names, next) = page(store.repositories(), ToString::to_string, query);
    listing("/v2/_catalog", next, &json!({"repositories": names}))
}

fn tags(store: &Store, name: &RepositoryName, query: &Query) -> Answer {
    let tags = store
        .tags(name)
        .ok_or_else(|| Failure::unknown("NAME_UNKNOWN", "there is no such repository"))?;
    let (tags, next) = page(tags, ToString::to_string, query);
    Ok(listing(
        &format!("/v2/{name}/tags/list"),
        next,
        &json!({"name": name, "tags": tags}),
    ))
}

/// The entries after `last` by their key, at most `n`, and the query of the next page. The entries
/// are sorted by key.
fn page<T>(
    mut entries: Vec<T>,
    key: impl Fn(&T) -> String,
    query: &Query,
) -> (Vec<T>, Option<String>) {
    if let Some(last) = query.get("last") {
        entries.retain(|entry| key(entry) > *last);
    }
    let size = query
        .get("n")
        .and_then(|n| n.parse().ok())
        .unwrap_or(PAGE)
        .min(PAGE);
    let more = size > 0 && entries.len() > size;
    entries.truncate(size);
    let next = entries
        .last()
        .filter(|_| more)
        .map(|last| format!("n={size}&last={}", key(last)));
    (entries, next)
}

fn listing(path: &str, next: Option<String>, body: &Value) -> Response {
    let mut response = json_answer(StatusCode::OK, "application/json", body);
    if let Some(link) =
        next.and_then(|query| format!("<{path}?{query}>; rel=\"next\"").parse().ok())
    {
        response.headers_mut().insert(LINK, link);
    }
    response
}

fn blob(store: &Store, name: &RepositoryName, digest: &Digest, headers: &HeaderMap) -> Answer {
    let bytes = store
        .blob(name, digest)
        .ok_or_else(|| Failure::unknown("BLOB_UNKNOWN", "there is no such blob"))?;
    let digest = digest.to_string();
    let size = bytes.len();
    let fields = [
        ("docker-content-digest", digest.as_str()),
        (ACCEPT_RANGES.as_str(), "bytes"),
    ];
    let range = headers
        .get(RANGE)
        .and_then(|range| range.to_str().ok())
        .and_then(|range| byte_range(range, size));
    match range {
        None => Ok(full(StatusCode::OK, OCTET_STREAM, &fields, bytes)),
        Some(Some((start, end))) => {
            let mut response = full(
                StatusCode::PARTIAL_CONTENT,
                OCTET_STREAM,
                &fields,
                bytes.slice(start..end),
            );
            response.headers_mut().insert(
                CONTENT_RANGE,
                header(&format!("bytes {start}-{}/{size}", end - 1)),
            );
            Ok(response)
        }
        Some(None) => Ok(empty(
            StatusCode::RANGE_NOT_SATISFIABLE,
            &[(CONTENT_RANGE.as_str(), &format!("bytes */{size}"))],
        )),
    }
}

/// One range of bytes as start and end. `None`: no range of a form that must be honoured.
/// `Some(None)`: outside.
fn byte_range(text: &str, size: usize) -> Option<Option<(usize, usize)>> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (start.parse::<usize>(), end.parse::<usize>()) {
        (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(size)),
        (Ok(start), Err(_)) if end.is_empty() => (start, size),
        (Err(_), Ok(length)) if start.is_empty() => (size.saturating_sub(length), size),
        _ => return None,
    };
    Some((start < end).then_some((start, end)))
}

async fn begin(store: &Store, name: &RepositoryName, query: &Query, body: Body) -> Answer {
    if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from")) {
        let digest = parse_digest(digest)?;
        if from
            .parse::<RepositoryName>()
            .is_ok_and(|from| store.mount(name, &from, &digest))
        {
            return Ok(created(name, "blobs", &digest.to_string(), &digest));
        }
    }
    let id = store.begin(name)?;
    match query.get("digest") {
        None => Ok(session(StatusCode::ACCEPTED, name, id, 0)),
        Some(digest) => {
            let digest = parse_digest(digest)?;
            receive(store, name, id, 0, body).await?;
            store.finish(name, id, &digest)?;
            Ok(created(name, "blobs", &digest.to_string(), &digest))
        }
    }
}

async fn patch(
    store: &Store,
    name: &RepositoryName,
    id: u64,
    headers: &HeaderMap,
    body: Body,
) -> Answer {
    let offset = chunk_start(store, name, id, headers)?;
    let held = receive(store, name, id, offset, body).await?;
    Ok(session(StatusCode::ACCEPTED, name, id, held))
}

async fn finish(
    store: &Store,
    name: &RepositoryName,
    id: u64,
    query: &Query,
    headers: &HeaderMap,
    body: Body,
) -> Answer {
    let digest = parse_digest(query.get("digest").ok_or_else(|| {
        Failure::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "the closing request names no digest",
        )
    })?)?;
    let offset = chunk_start(store, name, id, headers)?;
    receive(store, name, id, offset, body).await?;
    store.finish(name, id, &digest)?;
    Ok(created(name, "blobs", &digest.to_string(), &digest))
}

/// Where the body belongs: where `Content-Range` says, else at the end of the session.
fn chunk_start(
    store: &Store,
    name: &RepositoryName,
    id: u64,
    headers: &HeaderMap,
) -> Result<u64, Failure> {
    let held = store.received(name, id)?;
    let Some(range) = headers.get(CONTENT_RANGE) else {
        return Ok(held);
    };
    let bounds = range
        .to_str()
        .ok()
        .and_then(|text| text.split_once('-'))
        .map(|(start, end)| (start.parse(), end.parse()));
    match bounds {
        Some((Ok(start), Ok::<u64, _>(end))) if start <= end && start == held => Ok(start),
        Some((Ok(start), Ok(_))) if start != held => Err(Failure::misplaced(name, id, held)),
        _ => Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "BLOB_UPLOAD_INVALID",
            "the content range is not start-end",
        )),
    }
}

/// Adds the body to the session as it arrives: what came before a broken connection stays.
async fn receive(
    store: &Store,
    name: &RepositoryName,
    id: u64,
    mut offset: u64,
    mut body: Body,
) -> Result<u64, Failure> {
    while let Some(chunk) = next_chunk(&mut body).await? {
        offset = store
            .append(name, id, offset, &chunk)
            .map_err(|refusal| match refusal {
                Refusal::RangeInvalid { held } => Failure::misplaced(name, id, held),
                other => other.into(),
            })?;
    }
    Ok(offset)
}

fn broken_upload(text: &str) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", text)
}

async fn next_chunk(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    loop {
        let frame = tokio::time::timeout(BODY_TIMEOUT, body.frame()).await;
        match frame.map_err(|_| broken_upload("the body stopped coming"))? {
            None => return Ok(None),
            Some(Err(_)) => return Err(broken_upload("the body broke off")),
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    return Ok(Some(chunk));
                }
            }
        }
    }
}

fn manifest(store: &Store, name: &RepositoryName, target: &Target, headers: &HeaderMap) -> Answer {
    let manifest = store.manifest(name, target).ok_or_else(|| {
        Failure::unknown(
            "MANIFEST_UNKNOWN",
            &format!("{name} has no manifest {target}"),
        )
    })?;
    let digest = manifest.digest.to_string();
    let tag = format!("\"{digest}\"");
    let fields = [
        ("docker-content-digest", digest.as_str()),
        (ETAG.as_str(), &tag),
    ];
    if headers
        .get(http::header::IF_NONE_MATCH)
        .is_some_and(|held| held.as_bytes() == tag.as_bytes())
    {
        return Ok(empty(StatusCode::NOT_MODIFIED, &fields));
    }
    Ok(full(
        StatusCode::OK,
        manifest.media_type.as_str(),
        &fields,
        manifest.bytes,
    ))
}

async fn put_manifest(
    store: &Store,
    name: &RepositoryName,
    target: &Target,
    headers: &HeaderMap,
    mut body: Body,
) -> Answer {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut body).await? {
        if (bytes.len() + chunk.len()) as u64 > MAX_SIZE {
            return Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "MANIFEST_INVALID",
                "the manifest is larger than 4 MiB",
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let manifest = store.put_manifest(name, target, content_type, bytes.freeze())?;
    let mut response = created(name, "manifests", &target.to_string(), &manifest.digest);
    if let Some(subject) = &manifest.subject {
        response
            .headers_mut()
            .insert("oci-subject", header(&subject.digest.to_string()));
    }
    Ok(response)
}

fn referrers(store: &Store, name: &RepositoryName, subject: &Digest, query: &Query) -> Response {
    let filter = query.get("artifactType");
    let mut manifests = store.referrers(name, subject);
    manifests.retain(|manifest| {
        filter.is_none_or(|wanted| artifact_type(manifest).as_ref() == Some(wanted))
    });
    let (manifests, next) = page(manifests, |manifest| manifest.digest.to_string(), query);
    let entries: Vec<Value> = manifests.iter().map(entry).collect();
    let body = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": entries,
    });
    let filtered = filter
        .map(|wanted| url::form_urlencoded::byte_serialize(wanted.as_bytes()).collect::<String>());
    let next = next.map(|next| {
        filtered.map_or(next.clone(), |wanted| {
            format!("{next}&artifactType={wanted}")
        })
    });
    let mut response = listing(&format!("/v2/{name}/referrers/{subject}"), next, &body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, header(OCI_INDEX));
    if filter.is_some() {
        response
            .headers_mut()
            .insert("oci-filters-applied", header("artifactType"));
    }
    response
}

/// A manifest in a list of referrers.
fn entry(manifest: &Manifest) -> Value {
    let document: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
    let mut entry = json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.bytes.len(),
    });
    if let Some(artifact_type) = artifact_type(manifest) {
        entry["artifactType"] = artifact_type.into();
    }
    if let Some(annotations) = document.get("annotations") {
        entry["annotations"] = annotations.clone();
    }
    entry
}

/// A manifest's own artifact type, else the type of its config.
fn artifact_type(manifest: &Manifest) -> Option<String> {
    let document: Value = serde_json::from_slice(&manifest.bytes).ok()?;
    let own = document["artifactType"]
        .as_str()
        .filter(|own| !own.is_empty());
    own.or_else(|| {
        document["config"]["mediaType"]
            .as_str()
            .filter(|_| manifest.kind == Kind::Image)
    })
    .map(str::to_owned)
}

/// The state of an upload session. `0-0` stands for nothing as well as for one byte: that is the
/// convention.
fn session(status: StatusCode, name: &RepositoryName, id: u64, held: u64) -> Response {
    let location = format!("/v2/{name}/blobs/uploads/{id:x}");
    let range = format!("0-{}", held.saturating_sub(1));
    empty(
        status,
        &[(LOCATION.as_str(), &location), (RANGE.as_str(), &range)],
    )
}

fn created(name: &RepositoryName, kind: &str, reference: &str, digest: &Digest) -> Response {
    let location = format!("/v2/{name}/{kind}/{reference}");
    empty(
        StatusCode::CREATED,
        &[
            (LOCATION.as_str(), &location),
            ("docker-content-digest", &digest.to_string()),
        ],
    )
}

fn json_answer(status: StatusCode, content_type: &str, body: &Value) -> Response {
    full(status, content_type, &[], body.to_string().into())
}

fn empty(status: StatusCode, fields: &[(&str, &str)]) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    add(&mut response, fields);
    response
}

fn full(status: StatusCode, content_type: &str, fields: &[(&str, &str)], bytes: Bytes) -> Response {
    let length = bytes.len().to_string();
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    add(
        &mut response,
        &[
            (CONTENT_TYPE.as_str(), content_type),
            (CONTENT_LENGTH.as_str(), &length),
        ],
    );
    add(&mut response, fields);
    response
}

fn add(response: &mut Response, fields: &[(&str, &str)]) {
    for (name, value) in fields {
        if let Ok(name) = name.parse::<http::HeaderName>() {
            response.headers_mut().insert(name, header(value));
        }
    }
}

/// A header value; media types come from peers and may hold anything.
fn header(text: &str) -> http::HeaderValue {
    text.parse()
        .unwrap_or_else(|_| http::HeaderValue::from_static(""))
}

impl Failure {
    fn new(status: StatusCode, code: &'static str, text: &str) -> Failure {
        Failure {
            status,
            code,
            text: text.into(),
            held: None,
        }
    }

    fn unknown(code: &'static str, text: &str) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, code, text)
    }

    fn misplaced(name: &RepositoryName, id: u64, held: u64) -> Failure {
        let location = format!("/v2/{name}/blobs/uploads/{id:x}");
        let refusal = Refusal::RangeInvalid { held };
        Failure {
            held: Some((held, location)),
            ..refusal.into()
        }
    }

    fn answer(self) -> Response {
        let body = json!({"errors": [{"code": self.code, "message": self.text}]});
        let mut response = json_answer(self.status, "application/json", &body);
        if let Some((held, location)) = self.held {
            let range = format!("0-{}", held.saturating_sub(1));
            add(
                &mut response,
                &[(LOCATION.as_str(), &location), (RANGE.as_str(), &range)],
            );
        }
        response
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let (status, code) = match refusal {
            Refusal::DigestInvalid { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Refusal::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Refusal::RangeInvalid { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
            Refusal::ContentUnknown(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Refusal::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Refusal::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "DENIED"),
        };
        Failure::new(status, code, &refusal.to_string())
    }
}

impl From<crate::oci::reference::ParseError> for Failure {
    fn from(error: crate::oci::reference::ParseError) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "NAME_INVALID", &error.to_string())
    }
}

#[cfg(test)]
mod tests;
