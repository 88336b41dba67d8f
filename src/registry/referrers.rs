//! Referrers: the manifests that name another one as their subject (end-12).
//!
//! Whether a registry has this endpoint is learnt from answers that speak of the endpoint itself: a
//! list says that it has, and for a while an answer that knows no such path says that it has not. A
//! 400 or 404 that speaks of the repository or the manifest (Quay gives one for a subject that it
//! lacks), or that says nothing, holds for this question alone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use serde::Deserialize;
use tokio::time::Instant;

use super::Repository;
use super::error::{ErrorContext, Refusal, looks_like_html};
use super::metrics::Operation;
use super::tags::{Bounded, Listed, listed, page_url, parse, read_page};
use super::transport::{Answer, Call};
use crate::endpoint::{Cursor, Page};
use crate::fault::Fault;
use crate::oci::manifest::MAX_ENTRIES;
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Descriptor, Digest, Kind, MediaType};

/// How long a registry without referrers is not asked again.
const MEMORY: Duration = Duration::from_secs(300);

/// Whether a registry is known to have the endpoint, and since when.
#[derive(Default)]
pub(super) struct ReferrersSupport(Mutex<Option<(bool, Instant)>>);

impl ReferrersSupport {
    /// `None`: no answer has told, or it was too long ago that one said no.
    pub(super) fn known(&self) -> Option<bool> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .filter(|(has, at)| *has || at.elapsed() < MEMORY)
            .map(|(has, _)| has)
    }

    fn note(&self, has: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((has, Instant::now()));
    }
}

#[derive(Deserialize)]
struct Index {
    #[serde(default, deserialize_with = "listed")]
    manifests: Listed<Entry, MAX_ENTRIES>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
}

impl Repository {
    /// Whether the registry has the endpoint, as far as its answers have told.
    pub(super) fn has_referrers_endpoint(&self) -> Option<bool> {
        if !self.registry.profile().keeps_referrers {
            return Some(false);
        }
        self.registry.referrers().known()
    }

    /// One page of the referrers of `subject`. `None`: no such list here.
    pub(super) async fn referrer_page(
        &self,
        subject: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        if self.has_referrers_endpoint() == Some(false) {
            return Ok(None);
        }
        let about = self.about("list the referrers", &format!("@{subject}"));
        let first = self
            .transport()
            .url(&format!("/v2/{}/referrers/{subject}", self.name));
        let url = match cursor {
            Some(_) => page_url(&self.registry, first, cursor, &about)?,
            None => first,
        };
        let call = Call::new(
            Operation::ReferrerList,
            Method::GET,
            url,
            &self.pull,
            &about,
        )
        .header(header::ACCEPT, HeaderValue::from_static(OCI_INDEX))
        .counted(self.tally.as_deref());
        let answer = self.transport().call(&call).await?;
        if answer.is_success() {
            self.listed(call.url(), answer, &about).await
        } else {
            self.not_listed(answer, &about).await
        }
    }

    async fn listed(
        &self,
        asked: &url::Url,
        answer: Answer,
        about: &ErrorContext,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        let moved = answer.moved;
        let served = MediaType::new(answer.header(header::CONTENT_TYPE).unwrap_or_default());
        let (bytes, next) = read_page(&self.registry, asked, answer, about).await?;
        // Some registries lead unknown paths to a page for people.
        if moved && (looks_like_html(&bytes) || served.as_str() == "text/html") {
            self.registry.referrers().note(false);
            return Ok(None);
        }
        let page = entries(&bytes, &served, next, about)?;
        self.registry.referrers().note(true);
        Ok(Some(page))
    }

    async fn not_listed(
        &self,
        answer: Answer,
        about: &ErrorContext,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        let refusal = self.transport().refusal(answer).await;
        if !matches!(refusal.status(), 400 | 404 | 405 | 501) {
            return Err(refusal.fault(about));
        }
        // A registry that has listed before has not lost the endpoint by this.
        if speaks_of_the_endpoint(&refusal) && self.registry.referrers().known() != Some(true) {
            self.registry.referrers().note(false);
        }
        Ok(None)
    }
}

fn speaks_of_the_endpoint(refusal: &Refusal) -> bool {
    let codes = [
        "NAME_UNKNOWN",
        "MANIFEST_UNKNOWN",
        "BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "NAME_INVALID",
        "DIGEST_INVALID",
        "TAG_INVALID",
    ];
    let of_content =
        codes.iter().any(|code| refusal.has(code)) || refusal.mentions("manifest unknown");
    match refusal.status() {
        _ if of_content => false,
        // "Bad request" is about what was asked, unless it says that there is no such thing to ask.
        400 => refusal.has("UNSUPPORTED"),
        404 => !refusal.entries.is_empty(),
        _ => true,
    }
}

fn entries(
    bytes: &Bytes,
    served: &MediaType,
    next: Option<Cursor>,
    about: &ErrorContext,
) -> Result<Page<Descriptor>, Fault> {
    if !matches!(served.kind(), Kind::Index)
        && !matches!(served.as_str(), "" | "application/json" | "text/plain")
    {
        return Err(about.rejected(format!(
            "the answer is of the type {served}, not an image index"
        )));
    }
    let Some(manifests) = parse::<Index>(bytes, about)?.manifests else {
        return Err(about.rejected("the answer is not a list of referrers"));
    };
    let listed = Bounded::within(manifests, "referrers", about)?;
    let total = listed.len();
    let entries: Vec<Descriptor> = listed
        .into_iter()
        .filter_map(|entry| {
            Some(Descriptor::new(
                MediaType::new(&entry.media_type),
                entry.digest.parse().ok()?,
                entry.size,
            ))
        })
        .collect();
    Ok(Page {
        invalid: total - entries.len(),
        entries,
        next,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, StatusCode};

    #[tokio::test(start_paused = true)]
    async fn a_missing_endpoint_is_remembered_for_a_while() {
        let support = ReferrersSupport::default();
        assert_eq!(support.known(), None);
        support.note(false);
        assert_eq!(support.known(), Some(false));
        tokio::time::advance(MEMORY).await;
        assert_eq!(support.known(), None);
        support.note(true);
        tokio::time::advance(MEMORY).await;
        assert_eq!(support.known(), Some(true));
    }

    #[test]
    fn only_answers_about_the_endpoint_are_remembered() {
        let speaks = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            speaks_of_the_endpoint(&Refusal::read(
                status,
                &HeaderMap::new(),
                body.as_bytes(),
                &crate::registry::secrets::Secrets::default(),
            ))
        };
        assert!(speaks(404, "404 page not found\n"));
        assert!(speaks(405, ""));
        assert!(!speaks(404, ""));
        assert!(!speaks(404, r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#));
        assert!(!speaks(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#));
        assert!(!speaks(
            400,
            r#"{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid"}]}"#
        ));
        assert!(!speaks(400, ""));
        assert!(speaks(400, r#"{"errors":[{"code":"UNSUPPORTED"}]}"#));
        assert!(speaks(501, ""));
    }

    #[test]
    fn lists_are_read_and_other_documents_are_not() {
        let about = ErrorContext::new(
            "list the referrers",
            &"staging".into(),
            "host.example/app".into(),
        );
        let digest = Digest::sha256(b"signature");
        let body = serde_json::json!({"manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 9, "artifactType": "x"},
            {"digest": "blake3:00", "size": 1},
        ]});
        let body = Bytes::from(body.to_string());
        let page = entries(&body, &MediaType::new(OCI_INDEX), None, &about).unwrap();
        assert_eq!(
            (page.entries[0].digest, page.entries[0].size, page.invalid),
            (digest, 9, 1)
        );
        assert!(entries(&body, &MediaType::new("text/html"), None, &about).is_err());
        let plain = |text: &'static str| {
            entries(
                &Bytes::from_static(text.as_bytes()),
                &MediaType::default(),
                None,
                &about,
            )
        };
        assert_eq!(plain(r#"{"manifests":null}"#).unwrap().entries, []);
        for other in ["{}", r#"{"errors":[{"code":"DENIED"}]}"#] {
            assert!(plain(other).is_err(), "{other}");
        }
    }
}
