//! Referrers: the manifests that name another one as their subject (end-12).
//!
//! A registry without this endpoint is remembered as such for a while. Only answers that speak of the endpoint itself
//! count: a 404 that speaks of the repository or the manifest, or says nothing, holds for this question alone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use serde::Deserialize;
use tokio::time::Instant;

use super::Repository;
use super::error::{About, Refusal, looks_like_html};
use super::metrics::Operation;
use super::tags::{page_url, parse, read_page};
use super::transport::{Answer, Call};
use crate::endpoint::{Cursor, Page};
use crate::fault::Fault;
use crate::oci::manifest::MAX_ENTRIES;
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Descriptor, Digest, Kind, MediaType};

/// How long a registry without referrers is not asked again.
const MEMORY: Duration = Duration::from_secs(300);

/// Whether a registry is known to keep no lists of referrers.
#[derive(Default)]
pub(super) struct Support(Mutex<Option<Instant>>);

impl Support {
    fn is_missing(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < MEMORY)
    }

    fn note(&self, missing: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = missing.then(Instant::now);
    }
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
}

impl Repository {
    /// One page of the referrers of `subject`. `None`: no such list here.
    pub(super) async fn referrer_page(&self, subject: &Digest, cursor: Option<&Cursor>) -> Result<Option<Page<Descriptor>>, Fault> {
        if !self.registry.profile().keeps_referrers || self.registry.referrers().is_missing() {
            return Ok(None);
        }
        let about = self.about("list the referrers", &format!("@{subject}"));
        let first = self.transport().url(&format!("/v2/{}/referrers/{subject}", self.name));
        let url = match cursor {
            Some(_) => page_url(&self.registry, first, cursor, &about)?,
            None => first,
        };
        let call = Call::new(Operation::Referrers, Method::GET, url, &self.pull, &about)
            .header(header::ACCEPT, HeaderValue::from_static(OCI_INDEX))
            .counted(self.tally.as_deref());
        let answer = self.transport().call(&call).await?;
        if answer.is_success() { self.listed(call.url(), answer, &about).await } else { self.not_listed(answer, &about).await }
    }

    async fn listed(&self, asked: &url::Url, answer: Answer, about: &About) -> Result<Option<Page<Descriptor>>, Fault> {
        let (moved, served) = (answer.moved, MediaType::new(answer.header(header::CONTENT_TYPE).unwrap_or_default()));
        let (bytes, next) = read_page(&self.registry, asked, answer, about).await?;
        // Some registries lead unknown paths to a page for people.
        if moved && (looks_like_html(&bytes) || served.as_str() == "text/html") {
            self.registry.referrers().note(true);
            return Ok(None);
        }
        let page = entries(&bytes, &served, next, about)?;
        self.registry.referrers().note(false);
        Ok(Some(page))
    }

    async fn not_listed(&self, answer: Answer, about: &About) -> Result<Option<Page<Descriptor>>, Fault> {
        let refusal = self.transport().refusal(answer).await;
        if !matches!(refusal.status(), 400 | 404 | 405 | 501) {
            return Err(refusal.fault(about));
        }
        if speaks_of_the_endpoint(&refusal) {
            self.registry.referrers().note(true);
        }
        Ok(None)
    }
}

fn speaks_of_the_endpoint(refusal: &Refusal) -> bool {
    let of_content = ["NAME_UNKNOWN", "MANIFEST_UNKNOWN", "NAME_INVALID", "DIGEST_INVALID"];
    let of_content = of_content.iter().any(|code| refusal.has(code));
    !of_content && (refusal.status() != 404 || !refusal.entries.is_empty())
}

fn entries(bytes: &Bytes, served: &MediaType, next: Option<Cursor>, about: &About) -> Result<Page<Descriptor>, Fault> {
    if !matches!(served.kind(), Kind::Index) && !matches!(served.as_str(), "" | "application/json" | "text/plain") {
        return Err(about.rejected(format!("the answer is of the type {served}, not an image index")));
    }
    let listed = parse::<Index>(bytes, about)?.manifests.unwrap_or_default();
    if listed.len() > MAX_ENTRIES {
        return Err(about.rejected(format!("the page lists more than {MAX_ENTRIES} referrers")));
    }
    let total = listed.len();
    let descriptor =
        |entry: Entry| Some(Descriptor::new(MediaType::new(&entry.media_type), entry.digest.parse().ok()?, entry.size));
    let entries: Vec<Descriptor> = listed.into_iter().filter_map(descriptor).collect();
    Ok(Page { invalid: total - entries.len(), entries, next })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, StatusCode};

    #[tokio::test(start_paused = true)]
    async fn a_missing_endpoint_is_remembered_for_a_while() {
        let support = Support::default();
        assert!(!support.is_missing());
        support.note(true);
        assert!(support.is_missing());
        tokio::time::advance(MEMORY).await;
        assert!(!support.is_missing());
    }

    #[test]
    fn only_answers_about_the_endpoint_are_remembered() {
        let speaks = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            speaks_of_the_endpoint(&Refusal::read(status, &HeaderMap::new(), body.as_bytes()))
        };
        assert!(speaks(404, "404 page not found\n"));
        assert!(speaks(405, ""));
        assert!(!speaks(404, ""));
        assert!(!speaks(404, r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#));
        assert!(!speaks(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#));
    }

    #[test]
    fn lists_are_read_and_other_documents_are_not() {
        let about = About::new("list the referrers", &"staging".into(), "host.example/app".into());
        let digest = Digest::sha256(b"signature");
        let body = serde_json::json!({"manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 9, "artifactType": "x"},
            {"digest": "blake3:00", "size": 1},
        ]});
        let body = Bytes::from(body.to_string());
        let page = entries(&body, &MediaType::new(OCI_INDEX), None, &about).unwrap();
        assert_eq!((page.entries[0].digest, page.entries[0].size, page.invalid), (digest, 9, 1));
        assert!(entries(&body, &MediaType::new("text/html"), None, &about).is_err());
        assert_eq!(entries(&Bytes::from_static(b"{}"), &MediaType::default(), None, &about).unwrap().entries, []);
    }
}
