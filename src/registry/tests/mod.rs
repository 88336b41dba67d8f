//! The client against small servers on loopback that answer as told and write down what they were
//! asked.

mod generated;
mod reads;
mod tls;
mod uploads;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body as Answer;
use axum::extract::Request;
use bytes::Bytes;
use http::{Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::*;
use crate::fault::Class;
use crate::oci::{MediaType, media_type};

const BLOB: &[u8] = b"0123456789";

fn digest() -> Digest {
    Digest::sha256(BLOB)
}

fn blob() -> Descriptor {
    Descriptor::new(
        MediaType::new(media_type::OCTET_STREAM),
        digest(),
        BLOB.len() as u64,
    )
}

/// What a server was asked: method, path with query, and the headers that matter here.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: http::HeaderMap,
}

impl Asked {
    fn has(&self, name: header::HeaderName) -> bool {
        self.headers.contains_key(name)
    }
}

/// A server that lives as long as this.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(
        answer: impl Fn(&Asked) -> Response<Answer> + Clone + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let seen = asked.clone();
        let router = axum::Router::new().fallback(move |request: Request| {
            let asked = Asked {
                line: format!("{} {}", request.method(), request.uri()),
                headers: request.headers().clone(),
            };
            let answer = answer(&asked);
            seen.lock().unwrap().push(asked);
            async move {
                let _all = axum::body::to_bytes(request.into_body(), 1 << 20).await;
                answer
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await }).abort_handle();
        Server {
            address,
            asked,
            task,
        }
    }

    /// One connection, served by hand.
    async fn by_hand<F: Future<Output = ()> + Send>(
        serve: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (connection, _) = listener.accept().await.unwrap();
            serve(connection).await;
        });
        Server {
            address,
            asked: Arc::default(),
            task: task.abort_handle(),
        }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn registry(
        &self,
        kind: Kind,
        credentials: auth::Credentials,
        deadlines: Deadlines,
    ) -> Registry {
        let settings = Settings {
            name: "staging".into(),
            url: self.url("").parse().unwrap(),
            credentials,
            kind: Some(kind),
            tls: Tls::default(),
            token_realms: Vec::new(),
            insecure: false,
            deadlines,
        };
        Registry::new(
            settings,
            &Metrics::new(&prometheus::Registry::new()).unwrap(),
        )
        .unwrap()
    }

    fn repository(&self) -> Repository {
        self.registry(
            Kind::Generic,
            auth::Credentials::Anonymous,
            Deadlines::default(),
        )
        .repository("app".parse().unwrap())
    }

    fn known(&self) -> Repository {
        self.registry(Kind::Generic, basic(), Deadlines::default())
            .repository("app".parse().unwrap())
    }

    fn upload(&self, path: &str) -> Upload {
        Upload {
            location: self.url(path),
        }
    }
}

fn basic() -> auth::Credentials {
    auth::Credentials::Basic {
        username: "robot".into(),
        password: SecretString::from("word"),
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Answer>) -> Response<Answer> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

fn slow_body(pieces: Vec<Result<&'static [u8], Fault>>) -> BlobBody {
    let frames: Vec<_> = pieces
        .into_iter()
        .map(|piece| piece.map(|bytes| Frame::data(Bytes::from_static(bytes))))
        .collect();
    BlobBody::new(StreamBody::new(futures::stream::iter(frames)))
}

async fn read_all(mut body: BlobBody) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend_from_slice(&frame?);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_challenge_is_answered_once() {
    let server = Server::start(|asked| match asked.has(header::AUTHORIZATION) {
        true => answer(200, &[], ""),
        false => answer(401, &[("www-authenticate", "Basic realm=\"registry\"")], ""),
    })
    .await;
    server.known().has_blob(&digest()).await.unwrap();
    let asked: Vec<Asked> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.line.starts_with("HEAD"))
        .collect();
    let showed: Vec<bool> = asked
        .iter()
        .map(|asked| asked.has(header::AUTHORIZATION))
        .collect();
    assert_eq!(showed, [false, true], "{:?}", server.lines());
}

#[tokio::test]
async fn credentials_that_are_refused_are_not_tried_again_and_again() {
    let server =
        Server::start(|_| answer(401, &[("www-authenticate", "Basic realm=\"registry\"")], ""))
            .await;
    let fault = server
        .known()
        .resolve(&Target::Tag("v1".parse().unwrap()))
        .await
        .unwrap_err();
    assert_eq!(fault.class(), Class::Auth);
    let heads = server
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("HEAD"))
        .count();
    assert!(heads <= 2, "{:?}", server.lines());
}

#[tokio::test]
async fn redirects_of_bodies_and_into_the_network_are_refused() {
    let server = Server::start(|asked| match asked.line.starts_with("PATCH") {
        true => answer(307, &[("location", "/elsewhere")], ""),
        false => answer(
            302,
            &[(
                "location",
                "http://169.254.169.254/latest/meta-data/?token=secret",
            )],
            "",
        ),
    })
    .await;
    let repository = server.repository();
    let fault = repository
        .send_chunk(&mut server.upload("/u"), 0, 10, BlobBody::full(BLOB.into()))
        .await
        .unwrap_err();
    assert_eq!(fault.class(), Class::Rejected);
    let fault = repository.read_blob(&blob(), 0).await.unwrap_err();
    assert_eq!(fault.class(), Class::Rejected);
    assert!(
        fault.to_string().contains("a metadata service") && !fault.chain().contains("secret"),
        "{fault:?}"
    );
}

#[tokio::test]
async fn manifests_are_read_and_written_verbatim() {
    static TEXT: &str = r#"{ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] }"#;
    let server = Server::start(|asked| match asked.line.split_once(' ').unwrap().0 {
        "HEAD" => answer(405, &[], ""),
        "PUT" => answer(201, &[("oci-subject", "x")], ""),
        _ if asked.line.ends_with("/gone") => answer(404, &[], ""),
        _ if asked.line.ends_with("/lies") => answer(
            200,
            &[("docker-content-digest", &digest().to_string())],
            TEXT,
        ),
        _ if asked.line.ends_with("/large") => answer(200, &[], vec![b' '; 4 * 1024 * 1024 + 1]),
        _ => answer(200, &[("content-type", media_type::OCI_INDEX)], TEXT),
    })
    .await;
    let repository = server.repository();
    let tag = |name: &str| Target::Tag(name.parse().unwrap());
    let manifest = repository.manifest(&tag("v1")).await.unwrap().unwrap();
    assert_eq!(manifest.bytes, TEXT);
    let resolved = repository.resolve(&tag("v1")).await.unwrap().unwrap();
    assert_eq!(
        (resolved.digest, resolved.size),
        (Some(manifest.digest), Some(TEXT.len() as u64))
    );
    assert!(repository.manifest(&tag("gone")).await.unwrap().is_none());
    assert_eq!(
        repository.manifest(&tag("lies")).await.unwrap_err().class(),
        Class::Corrupt
    );
    assert_eq!(
        repository
            .manifest(&digest().into())
            .await
            .unwrap_err()
            .class(),
        Class::Corrupt
    );
    assert!(
        repository
            .manifest(&tag("large"))
            .await
            .unwrap_err()
            .to_string()
            .contains("larger than 4 MiB")
    );
    assert_eq!(
        repository
            .put_manifest(&tag("v2"), &manifest)
            .await
            .unwrap(),
        Put::Accepted { subject: true }
    );
    let put = server.asked().pop().unwrap();
    assert_eq!(put.headers[header::CONTENT_TYPE], media_type::OCI_INDEX);
    assert_eq!(
        put.headers[header::CONTENT_LENGTH],
        TEXT.len().to_string().as_str()
    );
}

#[tokio::test]
async fn listings_follow_links_at_home_only() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /v2/app/tags/list?n=1000" => answer(
            200,
            &[(
                "link",
                "</v2/app/tags/list?opaque=%2B1&n=1000>; rel=\"next\"",
            )],
            r#"{"tags":["v1","not a tag"]}"#,
        ),
        "GET /v2/app/tags/list?opaque=%2B1&n=1000" => {
            answer(200, &[("content-type", "text/plain")], r#"{"tags":["v2"]}"#)
        }
        "GET /v2/circle/tags/list?n=1000" => answer(200, &[("link", "<?n=1000>; rel=next")], "{}"),
        "GET /v2/foreign/tags/list?n=1000" => {
            answer(200, &[("link", "<https://other.example/>; rel=next")], "{}")
        }
        "GET /v2/_catalog?n=1000" => answer(200, &[], r#"{"repositories":["app","team/web"]}"#),
        _ => answer(404, &[], "<html>nothing here"),
    })
    .await;
    let registry = server.registry(
        Kind::Generic,
        auth::Credentials::Anonymous,
        Deadlines::default(),
    );
    let repository = |name: &str| registry.repository(name.parse().unwrap());
    let first = repository("app").tags(None).await.unwrap().unwrap();
    assert_eq!((first.entries.len(), first.invalid), (1, 1));
    let second = repository("app")
        .tags(first.next.as_ref())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((second.entries[0].name.as_str(), second.next), ("v2", None));
    assert!(repository("gone").tags(None).await.unwrap().is_none());
    for refused in ["circle", "foreign"] {
        assert_eq!(
            repository(refused).tags(None).await.unwrap_err().class(),
            Class::Rejected,
            "{refused}"
        );
    }
    assert_eq!(
        registry
            .repositories(None)
            .await
            .unwrap()
            .unwrap()
            .entries
            .len(),
        2
    );
}

#[tokio::test]
async fn a_registry_without_referrers_is_asked_once() {
    let server = Server::start(|asked| match asked.line.contains("/broken/") {
        true => answer(500, &[], ""),
        false => answer(404, &[], "404 page not found"),
    })
    .await;
    let registry = server.registry(
        Kind::Generic,
        auth::Credentials::Anonymous,
        Deadlines::default(),
    );
    let broken = registry.repository("broken".parse().unwrap());
    assert!(
        broken
            .referrers(&digest(), None)
            .await
            .unwrap_err()
            .class()
            .is_retryable(),
        "trouble is not an answer"
    );
    let repository = registry.repository("app".parse().unwrap());
    assert!(
        repository
            .referrers(&digest(), None)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        repository
            .referrers(&digest(), None)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn every_request_is_counted_for_whom_it_is_made() {
    let server = Server::start(|_| answer(404, &[], "")).await;
    let tally = Arc::new(Tally::default());
    let repository = server.repository().counted(&tally);
    repository.has_blob(&digest()).await.unwrap();
    repository.manifest(&digest().into()).await.unwrap();
    assert_eq!(tally.requests(), 2);
}

#[tokio::test]
async fn nobody_there_is_said_plainly() {
    let server = Server::start(|_| answer(200, &[], "")).await;
    let repository = server.repository();
    server.task.abort();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let nobody = Server {
        address,
        asked: Arc::default(),
        task: server.task.clone(),
    };
    let fault = nobody.repository().has_blob(&digest()).await.unwrap_err();
    assert!(fault.class().is_retryable(), "{fault:?}");
    assert!(
        fault
            .to_string()
            .ends_with(&format!("{address} refuses connections")),
        "{fault}"
    );
    drop(repository);
}

#[test]
fn addresses_of_registries_are_plain() {
    let made = |url: &str| {
        canonical("staging", url.parse().unwrap(), Kind::recognise("")).map(|url| url.to_string())
    };
    assert_eq!(
        made("https://registry.example:443/v2/").unwrap(),
        "https://registry.example/"
    );
    for bad in [
        "https://name:word@registry.example",
        "https://registry.example/path",
        "https://registry.example/?x",
        "ftp://x",
    ] {
        assert_eq!(made(bad).unwrap_err().class(), Class::Rejected, "{bad}");
    }
    let hub = canonical("hub", "https://docker.io".parse().unwrap(), Kind::DockerHub).unwrap();
    assert_eq!(hub.as_str(), "https://registry-1.docker.io/");
}
