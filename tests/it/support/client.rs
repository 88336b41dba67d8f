//! A registry client of the tests' own: plain requests, nothing shared with the program under test.

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, LINK, LOCATION};
use reqwest::{Method, RequestBuilder, Response, StatusCode};

use super::image::{self, Blob, Document, Image};

/// One upload request carries at most so many bytes.
const CHUNK: usize = 32 * 1024 * 1024;

/// A registry as seen from the tests.
#[derive(Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
    login: Login,
}

#[derive(Clone)]
enum Login {
    None,
    Basic(String, String),
    Bearer(String),
}

impl Client {
    pub fn new(base: &str) -> Client {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build();
        Client {
            base: base.trim_end_matches('/').into(),
            http: http.expect("a client without options"),
            login: Login::None,
        }
    }

    pub fn with_basic(self, user: &str, password: &str) -> Client {
        Client {
            login: Login::Basic(user.into(), password.into()),
            ..self
        }
    }

    pub fn with_bearer(self, token: &str) -> Client {
        Client {
            login: Login::Bearer(token.into()),
            ..self
        }
    }

    /// Puts the whole image into `repository` and names it `tag`.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) {
        for blob in image.unique_blobs() {
            self.push_blob(repository, blob).await;
        }
        let (root, children) = image
            .documents
            .split_last()
            .expect("an image has a manifest");
        for child in children {
            self.put_manifest(repository, &child.digest, child).await;
        }
        self.put_manifest(repository, tag, root).await;
    }

    /// Puts a manifest without a tag, under its digest.
    pub async fn push_untagged(&self, repository: &str, image: &Image) {
        self.push(repository, image.digest(), image).await;
    }

    pub async fn push_blob(&self, repository: &str, blob: &Blob) {
        let opened = self
            .send(self.request(Method::POST, &format!("/v2/{repository}/blobs/uploads/")))
            .await;
        assert_eq!(
            opened.status(),
            StatusCode::ACCEPTED,
            "opening an upload in {repository}"
        );
        let mut location = self.location(&opened);
        let chunks: Vec<Bytes> = (0..blob.bytes.len())
            .step_by(CHUNK)
            .map(|at| blob.bytes.slice(at..(at + CHUNK).min(blob.bytes.len())))
            .collect();
        for chunk in chunks {
            let patch = self
                .at(Method::PATCH, &location)
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(chunk);
            let patched = self.send(patch).await;
            // ECR says "created".
            assert!(
                matches!(patched.status().as_u16(), 201 | 202),
                "a chunk of {}: {}",
                blob.digest,
                patched.status()
            );
            location = self.location(&patched);
        }
        let joint = if location.contains('?') { '&' } else { '?' };
        let closed = self
            .send(self.at(
                Method::PUT,
                &format!("{location}{joint}digest={}", blob.digest),
            ))
            .await;
        assert_eq!(
            closed.status(),
            StatusCode::CREATED,
            "closing the upload of {}",
            blob.digest
        );
    }

    pub async fn put_manifest(&self, repository: &str, reference: &str, document: &Document) {
        let put = self.request(
            Method::PUT,
            &format!("/v2/{repository}/manifests/{reference}"),
        );
        let answer = self
            .send(
                put.header(CONTENT_TYPE, &document.media_type)
                    .body(document.bytes.clone()),
            )
            .await;
        let status = answer.status();
        assert_eq!(
            status,
            StatusCode::CREATED,
            "{repository}:{reference}: {}",
            answer.text().await.unwrap_or_default()
        );
    }

    /// The digest that a tag or digest names; `None` when it names nothing. The bytes are hashed
    /// here.
    pub async fn digest(&self, repository: &str, reference: &str) -> Option<String> {
        self.manifest(repository, reference)
            .await
            .map(|document| document.digest)
    }

    /// The exact manifest behind a tag or digest.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Option<Document> {
        let all = [
            image::OCI_INDEX,
            image::DOCKER_LIST,
            image::OCI_MANIFEST,
            image::DOCKER_MANIFEST,
            image::OCI_ARTIFACT,
        ]
        .join(", ");
        let answer = self
            .send(
                self.request(
                    Method::GET,
                    &format!("/v2/{repository}/manifests/{reference}"),
                )
                .header(ACCEPT, all),
            )
            .await;
        let answer = there(answer)?;
        let media_type = answer.headers()[CONTENT_TYPE]
            .to_str()
            .expect("a media type is text")
            .to_owned();
        Some(Document::raw(
            &media_type,
            answer.bytes().await.expect("a manifest's body"),
        ))
    }

    pub async fn blob(&self, repository: &str, digest: &str) -> Option<Bytes> {
        let answer = self
            .send(self.request(Method::GET, &format!("/v2/{repository}/blobs/{digest}")))
            .await;
        Some(there(answer)?.bytes().await.expect("a blob's body"))
    }

    pub async fn has_blob(&self, repository: &str, digest: &str) -> bool {
        there(
            self.send(self.request(Method::HEAD, &format!("/v2/{repository}/blobs/{digest}")))
                .await,
        )
        .is_some()
    }

    /// All tags, sorted; none for a repository that is not there.
    pub async fn tags(&self, repository: &str) -> Vec<String> {
        let mut tags = Vec::new();
        let mut next = Some(format!("/v2/{repository}/tags/list"));
        while let Some(path) = next {
            let Some(page) = there(self.send(self.request(Method::GET, &path)).await) else {
                break;
            };
            next = page
                .headers()
                .get(LINK)
                .and_then(|link| link.to_str().ok())
                .map(next_page);
            let body: serde_json::Value =
                serde_json::from_slice(&page.bytes().await.expect("a page"))
                    .expect("a page is JSON");
            tags.extend(
                body["tags"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|tag| tag.as_str().map(String::from)),
            );
        }
        tags.sort();
        tags
    }

    /// Removes a manifest and with it every tag that names it.
    pub async fn delete(&self, repository: &str, digest: &str) {
        let answer = self
            .send(self.request(
                Method::DELETE,
                &format!("/v2/{repository}/manifests/{digest}"),
            ))
            .await;
        assert_eq!(
            answer.status(),
            StatusCode::ACCEPTED,
            "deleting {digest} from {repository}"
        );
    }

    /// Asserts that `repository:tag` is exactly this image: every manifest byte for byte, every
    /// blob with its digest.
    pub async fn assert_holds(&self, repository: &str, tag: &str, image: &Image) {
        let named = self
            .manifest(repository, tag)
            .await
            .unwrap_or_else(|| panic!("{repository}:{tag} is missing"));
        assert_eq!(
            named.bytes,
            image.root().bytes,
            "{repository}:{tag} is another manifest"
        );
        assert_eq!(
            named.media_type,
            image.root().media_type,
            "{repository}:{tag} has another type"
        );
        for document in &image.documents {
            let held = self
                .manifest(repository, &document.digest)
                .await
                .unwrap_or_else(|| panic!("{} is missing", document.digest));
            assert_eq!(held.bytes, document.bytes, "{} changed", document.digest);
        }
        for blob in image.unique_blobs() {
            let held = self
                .blob(repository, &blob.digest)
                .await
                .unwrap_or_else(|| panic!("{} is missing", blob.digest));
            assert!(held == blob.bytes, "{} changed", blob.digest);
        }
    }

    /// Asserts that nothing of `repository:tag` can be seen: no tag, none of these blobs.
    pub async fn assert_lacks(&self, repository: &str, tag: &str, blobs: &[&str]) {
        assert_eq!(
            self.digest(repository, tag).await,
            None,
            "{repository}:{tag} was named"
        );
        for blob in blobs {
            assert!(
                !self.has_blob(repository, blob).await,
                "{blob} was finished in {repository}"
            );
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.at(method, &format!("{}{path}", self.base))
    }

    fn at(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.login {
            Login::None => request,
            Login::Basic(user, password) => request.basic_auth(user, Some(password)),
            Login::Bearer(token) => request.bearer_auth(token),
        }
    }

    async fn send(&self, request: RequestBuilder) -> Response {
        request
            .send()
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?}", self.base))
    }

    fn location(&self, answer: &Response) -> String {
        let location = answer.headers()[LOCATION]
            .to_str()
            .expect("a location is text");
        answer
            .url()
            .join(location)
            .expect("a location is a URL")
            .into()
    }
}

fn there(answer: Response) -> Option<Response> {
    match answer.status() {
        StatusCode::NOT_FOUND => None,
        status => {
            assert!(status.is_success(), "{}: {status}", answer.url());
            Some(answer)
        }
    }
}

fn next_page(link: &str) -> String {
    let target = link.split(['<', '>']).nth(1).expect("a link has a target");
    target
        .find("/v2/")
        .map_or(target, |at| &target[at..])
        .into()
}
