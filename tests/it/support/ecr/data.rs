//! The data plane: a real registry behind ECR's ways.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::parts::Writing;
use super::{Act, Refused, Session, Shared, TESTS, bytes, error, reply};
use crate::support::image::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, sha256};

/// The repository, and what of it is asked for.
fn parts(path: &str) -> Option<(String, &'static str, String)> {
    let rest = path.strip_prefix("/v2/")?;
    for (mark, what) in [
        ("/blobs/uploads/", "upload"),
        ("/blobs/", "blob"),
        ("/manifests/", "manifest"),
        ("/referrers/", "referrers"),
        ("/tags/list", "tags"),
    ] {
        if let Some((repository, reference)) = rest.split_once(mark) {
            return Some((repository.into(), what, reference.into()));
        }
    }
    None
}

fn action(method: &Method, what: &str) -> &'static str {
    match (method.as_str(), what) {
        ("HEAD", "blob") => "BatchCheckLayerAvailability",
        ("GET", "blob") => "GetDownloadUrlForLayer",
        ("POST", "upload") => "InitiateLayerUpload",
        ("PATCH", "upload") => "UploadLayerPart",
        ("PUT", "upload") => "CompleteLayerUpload",
        ("GET" | "DELETE", "upload") => "no action",
        ("GET" | "HEAD", "manifest") => "BatchGetImage",
        ("PUT", "manifest") => "PutImage",
        ("GET", "tags") => "ListImages",
        ("GET", "referrers") => "BatchGetImage",
        (method, what) => panic!("the data plane was asked to {method} {what}"),
    }
}

impl Shared {
    /// Who a password was given to.
    fn caller(&self, headers: &HeaderMap) -> Result<String, Box<Response>> {
        let denied = |message: &str| Box::new(error(403, "DENIED", message));
        let unauthorized = || {
            let mut response = error(401, "UNAUTHORIZED", "not authorized");
            let challenge = format!(
                "Basic realm=\"http://{}/\",service=\"ecr.amazonaws.com\"",
                self.address
            );
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                challenge.parse().expect("a challenge"),
            );
            Box::new(response)
        };
        let text = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.strip_prefix("Basic "));
        let decoded = text
            .and_then(|text| STANDARD.decode(text).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let password = decoded
            .as_deref()
            .and_then(|text| text.strip_prefix("AWS:"))
            .ok_or_else(unauthorized)?;
        if password == TESTS {
            return Ok(TESTS.into());
        }
        let mut state = self.state();
        let most = state
            .ways
            .uses
            .filter(|_| !state.ways.ends_once || password.starts_with("password-0-"));
        let (principal, uses) = state.issued.get_mut(password).ok_or_else(unauthorized)?;
        *uses += 1;
        match most.is_some_and(|most| *uses > most) {
            true => Err(denied(
                "Your authorization token has expired. Reauthenticate and try again.",
            )),
            false => Ok(principal.clone()),
        }
    }

    pub(super) async fn data(&self, request: Request<Body>) -> Response {
        let principal = match self.caller(request.headers()) {
            Ok(principal) => principal,
            Err(response) => return *response,
        };
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let Some((repository, what, reference)) = parts(&path) else {
            return reply(200, "application/json", "{}");
        };
        let action = action(request.method(), what);
        match self.admit(action, &principal, &repository) {
            Ok(()) => {}
            Err(Refused::Throttled) => return error(429, "TOOMANYREQUESTS", "Rate exceeded"),
            Err(Refused::Denied(text)) => return error(403, "DENIED", &text),
        }
        if let Some((status, body)) = self.state().ways.bars.filter(|_| principal != TESTS) {
            return reply(
                status,
                if body.starts_with('{') {
                    "application/json"
                } else {
                    "text/plain"
                },
                body,
            );
        }
        if let Err(text) = self.admit_more(&principal, &repository, &query, &request) {
            return error(403, "DENIED", &text);
        }
        if !self.is_there(&repository, request.method(), what) {
            let text = format!(
                "The repository with name '{repository}' does not exist in the registry with id '{}'",
                self.account
            );
            return error(404, "NAME_UNKNOWN", &text);
        }
        if what == "blob" && request.method() == Method::GET && principal != TESTS {
            self.expire(&repository, &reference);
        }
        if principal != TESTS
            && matches!(request.method().as_str(), "GET" | "HEAD")
            && self.state().vanished.contains(&reference)
        {
            let code = if what == "blob" {
                "BLOB_UNKNOWN"
            } else {
                "MANIFEST_UNKNOWN"
            };
            return error(404, code, "Requested image not found");
        }
        let held = self.state().ways.holds_manifest.clone();
        let held = held.filter(|(held, _)| *held == reference && principal != TESTS);
        if let Some((_, gate)) = held {
            gate.pass().await;
        }
        match (request.method().as_str(), what) {
            ("POST", "upload") => self.open(&repository, &query, request).await,
            (_, "upload") => {
                self.session(&repository, &reference, &query, request, principal == TESTS)
                    .await
            }
            (_, "manifest") if self.invented(&repository, &reference).is_some() => reply(
                200,
                OCI_MANIFEST,
                self.invented(&repository, &reference).unwrap_or_default(),
            ),
            ("GET", "blob") if principal != TESTS && self.state().ways.storage.is_some() => {
                self.lead_to_storage(&path)
            }
            ("GET" | "HEAD", "manifest")
                if principal != TESTS && self.state().ways.converts && !reference.contains(':') =>
            {
                self.converted(&path).await
            }
            ("GET", "referrers") if self.state().ways.lists_referrers => {
                self.referrers(&repository, &reference)
            }
            ("PUT", "manifest") => self.put_manifest(&repository, &reference, request).await,
            _ => self.pass(request).await,
        }
    }

    /// A closing request with a body sends a part, a mount reads from the other repository: rights
    /// of their own.
    fn admit_more(
        &self,
        principal: &str,
        repository: &str,
        query: &str,
        request: &Request<Body>,
    ) -> Result<(), String> {
        let has_body = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length != "0");
        let act = |action: &str, repository: &str| Act {
            action: action.into(),
            principal: principal.into(),
            repository: repository.into(),
            at: Instant::now(),
        };
        let from = url::form_urlencoded::parse(query.as_bytes())
            .find(|(key, _)| key == "from")
            .map(|(_, from)| from.into_owned());
        let closes = request.method() == Method::PUT && query.contains("digest=");
        let sends = (closes && has_body).then(|| act("UploadLayerPart", repository));
        let mounts = from
            .filter(|_| request.method() == Method::POST)
            .map(|from| act("GetDownloadUrlForLayer", &from));
        if principal == TESTS {
            return Ok(());
        }
        let mut state = self.state();
        let denied = sends
            .as_ref()
            .and_then(|act| self.denial(&state, &act.action, principal, repository));
        state.log.extend([sends, mounts].into_iter().flatten());
        denied.map_or(Ok(()), Err)
    }

    /// A lifecycle policy takes a blob, and every tag and image of its repository.
    fn expire(&self, repository: &str, digest: &str) {
        let mut state = self.state();
        if state.ways.vanishes.take_if(|goes| goes == digest).is_some() {
            state.vanished.extend([digest.to_owned()]);
            let kept = state
                .repositories
                .get_mut(repository)
                .expect("it was there a moment ago");
            let images = std::mem::take(&mut kept.images);
            kept.tags.clear();
            state.vanished.extend(images.into_keys());
        }
    }

    fn invented(&self, repository: &str, digest: &str) -> Option<String> {
        self.state()
            .repositories
            .get(repository)?
            .invented
            .get(digest)
            .cloned()
    }

    fn is_there(&self, repository: &str, method: &Method, what: &str) -> bool {
        let mut state = self.state();
        let pushes = matches!(
            (method.as_str(), what),
            ("POST", "upload") | ("PUT", "manifest")
        );
        if state.ways.create_on_push && pushes {
            state.repositories.entry(repository.into()).or_default();
        }
        state.repositories.contains_key(repository)
    }

    /// A signed address on the storage's host.
    fn lead_to_storage(&self, path: &str) -> Response {
        let mut state = self.state();
        state.signed += 1;
        let storage = state.ways.storage.clone().expect("a storage was set");
        let signature = &sha256(format!("{}{}", state.signed, self.account).as_bytes())[7..];
        let mut response = reply(307, "text/plain", "");
        let location = format!(
            "{storage}{path}?X-Amz-Expires=300&X-Amz-Security-Token=storage-token&X-Amz-Signature={signature}"
        );
        response
            .headers_mut()
            .insert(header::LOCATION, location.parse().expect("a location"));
        response
    }

    /// The manifest in Docker's format: another document with another digest, which nothing was
    /// ever pushed under.
    async fn converted(&self, path: &str) -> Response {
        let call = self
            .http
            .get(format!("{}{path}", self.upstream))
            .header(header::ACCEPT, OCI_MANIFEST);
        let answer = call.send().await.expect("the registry answers");
        if !answer.status().is_success() {
            return error(404, "MANIFEST_UNKNOWN", "Requested image not found");
        }
        // As it is but for the words: what is pretty stays so.
        let text = answer.text().await.expect("a manifest is text");
        let text = text.replace(
            "vnd.oci.image.manifest.v1",
            "vnd.docker.distribution.manifest.v2",
        );
        let text = text.replace("vnd.oci.image.config.v1", "vnd.docker.container.image.v1");
        reply(
            200,
            DOCKER_MANIFEST,
            text.replace(
                "vnd.oci.image.layer.v1.tar+gzip",
                "vnd.docker.image.rootfs.diff.tar.gzip",
            ),
        )
    }

    /// Sends a request on as it is.
    async fn pass(&self, request: Request<Body>) -> Response {
        let path = request.uri().path_and_query().expect("a path").to_string();
        self.forward(&format!("{}{path}", self.upstream), request)
            .await
    }

    async fn forward(&self, url: &str, request: Request<Body>) -> Response {
        let (head, body) = request.into_parts();
        let mut headers = head.headers;
        headers.remove(header::AUTHORIZATION);
        headers.remove(header::HOST);
        let has_body = headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length != "0");
        let call = self.http.request(head.method, url).headers(headers);
        let call = if has_body {
            call.body(reqwest::Body::wrap_stream(body.into_data_stream()))
        } else {
            call
        };
        let Ok(answer) = call.send().await else {
            return error(503, "UNAVAILABLE", "the registry behind is away");
        };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        // ECR was seen not to send it.
        response.headers_mut().remove("docker-content-digest");
        *response.body_mut() = Body::from_stream(answer.bytes_stream());
        response
    }

    /// A mount needs the account's setting and a committed manifest in the other repository.
    async fn open(&self, repository: &str, query: &str, request: Request<Body>) -> Response {
        let pairs: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let mounts = {
            let state = self.state();
            let committed = |from: &str, digest: &str| {
                state
                    .repositories
                    .get(from)
                    .is_some_and(|kept| kept.committed.contains(digest))
            };
            state.ways.mounting
                && pairs
                    .get("from")
                    .zip(pairs.get("mount"))
                    .is_some_and(|(from, digest)| committed(from, digest))
        };
        let url = format!(
            "{}/v2/{repository}/blobs/uploads/{}",
            self.upstream,
            if mounts {
                format!("?{query}")
            } else {
                String::new()
            }
        );
        let mut response = self.forward(&url, request).await;
        if response.status() == StatusCode::ACCEPTED {
            let upstream = self.absolute(response.headers());
            let id = sha256(upstream.as_bytes())[7..39].to_owned();
            self.state().sessions.insert(
                id.clone(),
                Session {
                    upstream,
                    cut: false,
                },
            );
            let location = format!("/v2/{repository}/blobs/uploads/{id}");
            response
                .headers_mut()
                .insert(header::LOCATION, location.parse().expect("a location"));
            response.headers_mut().remove(header::RANGE);
        }
        response
    }

    pub(super) fn absolute(&self, headers: &HeaderMap) -> String {
        let location = headers[header::LOCATION]
            .to_str()
            .expect("a location is text");
        url::Url::parse(&self.upstream)
            .and_then(|base| base.join(location))
            .expect("a location is a URL")
            .into()
    }

    /// A session: its status is 404, a chunk is answered with 201 and the end of the first one, a
    /// wrong start with 416.
    async fn session(
        &self,
        repository: &str,
        id: &str,
        query: &str,
        request: Request<Body>,
        own: bool,
    ) -> Response {
        let Some(session) = self.state().sessions.get(id).cloned() else {
            return error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        };
        if request.method() == Method::GET {
            return error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        }
        let Some((stored, upstream)) = self.stored(&session.upstream).await else {
            return error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        };
        let content_range = request
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .map(str::to_owned);
        let start: u64 = content_range
            .as_deref()
            .and_then(|range| range.split('-').next()?.parse().ok())
            .unwrap_or(0);
        let has_body = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length != "0");
        if has_body && start != stored && !own {
            return error(
                416,
                "BLOB_UPLOAD_INVALID",
                &format!("First byte of the layer part is {start} instead of {stored}"),
            );
        }
        let length = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let cut = self
            .state()
            .ways
            .cut
            .filter(|most| !own && !session.cut && length.is_some_and(|length| length > *most));
        if let Some(most) = cut {
            return self.cut(id, &upstream, request, most, stored).await;
        }
        let parts = self.state().ways.parts.filter(|_| has_body && !own);
        if let Some(part) = parts {
            return self
                .in_parts(
                    Writing {
                        repository,
                        id,
                        upstream,
                        stored,
                    },
                    part,
                    query,
                    request,
                )
                .await;
        }
        let patch = request.method() == Method::PATCH;
        let url = if query.is_empty() {
            upstream
        } else {
            format!("{upstream}&{query}")
        };
        let mut response = self.forward(&url, request).await;
        if response.status().is_success() && patch {
            let upstream = self.absolute(response.headers());
            self.state().sessions.insert(
                id.into(),
                Session {
                    upstream,
                    ..session
                },
            );
            *response.status_mut() = StatusCode::CREATED;
            response
                .headers_mut()
                .insert(header::RANGE, "0-5242879".parse().expect("a range"));
            let location = format!("/v2/{repository}/blobs/uploads/{id}");
            response
                .headers_mut()
                .insert(header::LOCATION, location.parse().expect("a location"));
        }
        response
    }

    /// Keeps what has come of a body and breaks the connection.
    async fn cut(
        &self,
        id: &str,
        upstream: &str,
        request: Request<Body>,
        most: u64,
        stored: u64,
    ) -> Response {
        let mut body = request.into_body();
        let mut kept = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            kept.extend_from_slice(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
            if kept.len() as u64 >= most {
                break;
            }
        }
        kept.truncate(most as usize);
        let end = stored + kept.len() as u64 - 1;
        let call = self
            .http
            .patch(upstream)
            .header(header::CONTENT_RANGE, format!("{stored}-{end}"))
            .header(header::CONTENT_LENGTH, kept.len());
        let answer = call.body(kept).send().await.expect("the registry answers");
        assert!(
            answer.status().is_success(),
            "the kept part was refused: {}",
            answer.status()
        );
        let upstream = self.absolute(answer.headers());
        self.state().sessions.insert(
            id.into(),
            Session {
                upstream,
                cut: true,
            },
        );
        let broken =
            futures::stream::once(async { Err::<bytes::Bytes, _>(std::io::Error::other("cut")) });
        let mut response = Response::new(Body::from_stream(broken));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }

    /// An immutable tag is refused, also when it would name what it names already.
    async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        request: Request<Body>,
    ) -> Response {
        let (head, body) = request.into_parts();
        let document = bytes(body).await;
        let immutable = {
            let state = self.state();
            let kept = &state.repositories[repository];
            let rule = kept.settings["imageTagMutability"]
                .as_str()
                .unwrap_or("MUTABLE")
                .to_owned();
            let exempt = kept.settings["imageTagMutabilityExclusionFilters"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|filter| {
                    let filter = filter["filter"].as_str().unwrap_or_default();
                    reference.starts_with(filter.trim_end_matches('*'))
                });
            rule.starts_with("IMMUTABLE") && !exempt && kept.tags.contains_key(reference)
        };
        if immutable {
            let text = format!(
                "The image tag '{reference}' already exists in the '{repository}' repository and cannot be overwritten because the repository is immutable."
            );
            return error(400, "TAG_INVALID", &text);
        }
        let response = self
            .pass(Request::from_parts(head, Body::from(document.clone())))
            .await;
        if response.status().is_success() {
            self.commit(repository, reference, &document);
        }
        response
    }

    fn referrers(&self, repository: &str, subject: &str) -> Response {
        let state = self.state();
        let named = state.repositories[repository]
            .referrers
            .iter()
            .filter(|(_, (named, _))| named == subject);
        let entry = |(digest, (_, size)): (&String, &(String, usize))| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size});
        let manifests: Vec<Value> = named.map(entry).collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        reply(200, OCI_INDEX, index.to_string())
    }

    fn commit(&self, repository: &str, reference: &str, document: &[u8]) {
        let digest = sha256(document);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs_f64();
        let body: Value = serde_json::from_slice(document).unwrap_or_default();
        let mut state = self.state();
        let kept = state
            .repositories
            .get_mut(repository)
            .expect("it was there a moment ago");
        kept.images.insert(digest.clone(), now);
        if let Some(subject) = body["subject"]["digest"].as_str() {
            kept.referrers
                .insert(digest.clone(), (subject.to_owned(), document.len()));
        }
        if !reference.contains(':') {
            kept.tags.insert(reference.into(), digest);
        }
        let layers = body["layers"]
            .as_array()
            .into_iter()
            .flatten()
            .chain([&body["config"]]);
        kept.committed
            .extend(layers.filter_map(|layer| layer["digest"].as_str().map(str::to_owned)));
    }
}
