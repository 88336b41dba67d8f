//! The requests of a promotion, one after the other, and nothing else.

use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::{Response, StatusCode};

use crate::daemon::client;
use crate::image::Image;

/// The repository that is copied so, on both sides.
pub const REPOSITORY: &str = "alone";

/// Copies with plain requests.
pub struct Alone {
    source: String,
    destination: String,
    http: reqwest::Client,
}

impl Alone {
    /// Between two registries (`host:port`).
    pub fn between(source: &str, destination: &str) -> Alone {
        let base = |address: &str| format!("http://{address}/v2/{REPOSITORY}");
        Alone {
            source: base(source),
            destination: base(destination),
            http: client(),
        }
    }

    /// Both lists, the manifest, for each blob a HEAD, a GET, a POST and a PUT, a HEAD for the tag
    /// and its PUT.
    ///
    /// # Errors
    /// A request failed.
    pub async fn copy(&self, image: &Image, tag: &str) -> Result<(), String> {
        let Alone {
            source,
            destination,
            http,
        } = self;
        let root = image.root();
        for side in [source, destination] {
            self.done(http.get(format!("{side}/tags/list"))).await?;
        }
        let manifest = http.get(format!("{source}/manifests/{tag}"));
        let manifest = self.done(manifest.header(ACCEPT, &root.media_type)).await?;
        let manifest = manifest.bytes().await.map_err(|error| error.to_string())?;
        for blob in image.unique_blobs() {
            self.copy_blob(&blob.digest).await?;
        }
        let there = format!("{destination}/manifests/{tag}");
        self.done(http.head(&there)).await?;
        let put = http.put(&there).header(CONTENT_TYPE, &root.media_type);
        self.done(put.body(manifest)).await.map(drop)
    }

    async fn copy_blob(&self, digest: &str) -> Result<(), String> {
        let Alone {
            source,
            destination,
            http,
        } = self;
        self.done(http.head(format!("{destination}/blobs/{digest}")))
            .await?;
        let read = self
            .done(http.get(format!("{source}/blobs/{digest}")))
            .await?;
        let bytes = read.bytes().await.map_err(|error| error.to_string())?;
        let opened = self
            .done(http.post(format!("{destination}/blobs/uploads/")))
            .await?;
        let location = opened
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok());
        let mut url = opened
            .url()
            .join(location.ok_or("an upload without a location")?)
            .map_err(|error| error.to_string())?;
        url.query_pairs_mut().append_pair("digest", digest);
        self.done(http.put(url).body(bytes)).await.map(drop)
    }

    /// The answer to a request; what is not there is an answer, too.
    async fn done(&self, request: reqwest::RequestBuilder) -> Result<Response, String> {
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        match status.is_success() || status == StatusCode::NOT_FOUND {
            true => Ok(answer),
            false => Err(format!("{}: {status}", answer.url())),
        }
    }
}
