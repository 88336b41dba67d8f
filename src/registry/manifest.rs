//! Manifests: what a tag names, the bytes, and writing them (end-3, end-7).
//!
//! HEAD and GET send the same `Accept`: with another list a registry may answer with another
//! document. Bytes are kept as they came, and every digest that a registry claims for them is
//! compared with theirs.

use std::collections::HashSet;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};

use super::Repository;
use super::error::{ErrorContext, Refusal, looks_like_html};
use super::metrics::Operation;
use super::transport::{Answer, Call};
use crate::endpoint::{Put, Resolved};
use crate::fault::{Fault, clip};
use crate::oci::digest::ParseError;
use crate::oci::manifest::{Error, MAX_SIZE};
use crate::oci::media_type::ACCEPT;
use crate::oci::{Algorithm, Digest, Manifest, MediaType, Target};

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// Most digests that are taken from a refusal.
const MOST_MISSING: usize = 1000;

impl Repository {
    /// What `target` names, by HEAD; by GET where HEAD is not allowed or does not say why it is
    /// refused.
    pub(super) async fn head_manifest(&self, target: &Target) -> Result<Option<Resolved>, Fault> {
        let about = self.about_manifest("ask for the manifest", target);
        let answer = self
            .transport()
            .call(&self.manifest_call(Method::HEAD, target, &about))
            .await?;
        match answer.status.as_u16() {
            200 => resolved(&answer, target, &about).map(Some),
            404 => Ok(None),
            400 | 403 | 405 | 501 => {
                Ok(self.read_manifest(target).await?.map(|manifest| Resolved {
                    digest: Some(manifest.digest),
                    size: Some(manifest.bytes.len() as u64),
                    media_type: manifest.media_type,
                    index: None,
                }))
            }
            _ => Err(self.transport().refusal(answer).await.fault(&about)),
        }
    }

    /// The manifest, verified as far as it can be.
    pub(super) async fn read_manifest(&self, target: &Target) -> Result<Option<Manifest>, Fault> {
        let about = self.about_manifest("read the manifest", target);
        let answer = self
            .transport()
            .call(&self.manifest_call(Method::GET, target, &about))
            .await?;
        match answer.status.as_u16() {
            200 => {}
            404 => return Ok(None),
            _ => return Err(self.transport().refusal(answer).await.fault(&about)),
        }
        if answer.length().is_some_and(|length| length > MAX_SIZE) {
            return Err(about.rejected(Error::TooLarge.to_string()));
        }
        let claimed = claimed_digest(&answer, &about)?;
        let served = answer.header(header::CONTENT_TYPE).map(str::to_string);
        let bytes = self
            .transport()
            .bytes(answer, MAX_SIZE as usize, &about)
            .await?;
        verified(bytes, target, claimed, served.as_deref(), &about).map(Some)
    }

    /// Writes the manifest under `target`. The specification knows 201; 200 and 204 say of a PUT
    /// that it was done. Any other success, such as a 202 of a proxy that queues, leaves open
    /// whether it was: a digest is asked for at once, a tag is read back by the caller.
    pub(super) async fn write_manifest(
        &self,
        target: &Target,
        manifest: &Manifest,
    ) -> Result<Put, Fault> {
        let about = self.about_manifest("write the manifest", target).writing();
        let url = self.manifest_url(target);
        let media_type = HeaderValue::from_str(manifest.media_type.as_str())
            .map_err(|_| about.rejected("its media type cannot be said in a header"))?;
        let call = Call::new(Operation::ManifestPut, Method::PUT, url, &self.push, &about)
            .header(header::CONTENT_TYPE, media_type)
            .text(header::CONTENT_LENGTH, &manifest.bytes.len().to_string())
            .body(manifest.bytes.clone())
            .within(self.transport().deadlines.work)
            .counted(self.tally.as_deref());
        let answer = self.transport().call(&call).await?;
        let subject = answer.headers.contains_key(SUBJECT);
        match answer.status.as_u16() {
            200 | 201 | 204 => {
                same_bytes(claimed_digest(&answer, &about)?, &manifest.bytes, &about)?;
                Ok(Put::Accepted { subject })
            }
            _ if answer.is_success() => {
                let is_there = match target {
                    Target::Digest(_) => self.head_manifest(target).await?.is_some(),
                    Target::Tag(_) => false,
                };
                let status = answer.status.as_u16();
                is_there
                    .then_some(Put::Accepted { subject })
                    .ok_or_else(|| about.retryable(format!("{status}: it may not be written yet")))
            }
            _ => {
                let refusal = self.transport().refusal(answer).await;
                put_refused(&refusal, target, manifest).ok_or_else(|| refusal.fault(&about))
            }
        }
    }

    fn about_manifest(&self, doing: &'static str, target: &Target) -> ErrorContext {
        let separator = if matches!(target, Target::Tag(_)) {
            ':'
        } else {
            '@'
        };
        self.about(doing, &format!("{separator}{target}"))
    }

    fn manifest_url(&self, target: &Target) -> url::Url {
        self.transport()
            .url(&format!("/v2/{}/manifests/{target}", self.name))
    }

    fn manifest_call<'a>(
        &'a self,
        method: Method,
        target: &Target,
        about: &'a ErrorContext,
    ) -> Call<'a> {
        let operation = if method == Method::HEAD {
            Operation::ManifestHead
        } else {
            Operation::ManifestGet
        };
        Call::new(
            operation,
            method,
            self.manifest_url(target),
            &self.pull,
            about,
        )
        .header(header::ACCEPT, HeaderValue::from_static(ACCEPT))
        .counted(self.tally.as_deref())
    }
}

fn resolved(answer: &Answer, target: &Target, about: &ErrorContext) -> Result<Resolved, Fault> {
    if let Target::Digest(digest) = target {
        agrees(answer, digest, about)?;
    }
    Ok(Resolved {
        digest: claimed_digest(answer, about)?,
        media_type: MediaType::new(answer.header(header::CONTENT_TYPE).unwrap_or_default()),
        size: answer.length(),
        index: None,
    })
}

/// The digest that an answer claims. Of an algorithm that we do not know it is no claim; malformed
/// it is a lie.
pub(super) fn claimed_digest(
    answer: &Answer,
    about: &ErrorContext,
) -> Result<Option<Digest>, Fault> {
    let Some(value) = answer.headers.get(CONTENT_DIGEST) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    match text.trim().parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(ParseError::UnknownAlgorithm(_)) => Ok(None),
        Err(ParseError::Malformed(_)) => Err(about.corrupt(format!(
            "its Docker-Content-Digest is \"{}\", which is no digest",
            clip(&text, 160)
        ))),
    }
}

/// Refuses an answer that claims another digest of the same algorithm. Of another algorithm is no
/// contradiction: distribution answers sha512 requests with the sha256 of the content.
pub(super) fn agrees(answer: &Answer, digest: &Digest, about: &ErrorContext) -> Result<(), Fault> {
    match claimed_digest(answer, about)? {
        Some(claimed) if claimed.algorithm() == digest.algorithm() && claimed != *digest => {
            Err(about.corrupt(format!("the registry answers with {claimed}")))
        }
        _ => Ok(()),
    }
}

fn same_bytes(claimed: Option<Digest>, bytes: &[u8], about: &ErrorContext) -> Result<(), Fault> {
    match claimed {
        Some(claimed) if Digest::of(claimed.algorithm(), bytes) != claimed => Err(about.corrupt(
            format!("its Docker-Content-Digest {claimed} is not the digest of its bytes"),
        )),
        _ => Ok(()),
    }
}

fn verified(
    bytes: Bytes,
    target: &Target,
    claimed: Option<Digest>,
    served: Option<&str>,
    about: &ErrorContext,
) -> Result<Manifest, Fault> {
    if looks_like_html(&bytes) {
        return Err(about.rejected("an HTML page came instead of JSON; check the registry's `url`"));
    }
    let algorithm = match target {
        Target::Digest(digest) => digest.algorithm(),
        Target::Tag(_) => Algorithm::Sha256,
    };
    if let Target::Digest(digest) = target {
        let found = Digest::of(algorithm, &bytes);
        if found != *digest {
            return Err(about.corrupt(format!("its bytes have the digest {found}")));
        }
    }
    same_bytes(claimed, &bytes, about)?;
    Manifest::parse(bytes, served, algorithm).map_err(|error| about.rejected(error.to_string()))
}

/// What a refusal of a manifest means, where that is a value.
fn put_refused(refusal: &Refusal, target: &Target, manifest: &Manifest) -> Option<Put> {
    let refused =
        (400..=499).contains(&refusal.status()) && !matches!(refusal.status(), 401 | 403 | 429);
    if matches!(target, Target::Tag(_)) && refused && refusal.mentions("immutab") {
        return Some(Put::Immutable);
    }
    let codes = ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"];
    let words = ["LayersNotFound", "ReferencedImagesNotFound"];
    let misses = codes.iter().any(|code| refusal.has(code))
        || words.iter().any(|words| refusal.mentions(words));
    let answered = !matches!(refusal.status(), 401 | 403 | 429) && !refusal.has("NAME_UNKNOWN");
    (misses && answered).then(|| Put::Missing(missing(refusal, &manifest.digest)))
}

/// The digests that a refusal names, except the manifest's own.
fn missing(refusal: &Refusal, own: &Digest) -> Vec<Digest> {
    let mut seen = HashSet::from([*own]);
    let texts = refusal
        .entries
        .iter()
        .flat_map(|entry| [entry.detail.as_str(), entry.message.as_str()]);
    texts
        .flat_map(digests_in)
        .filter(|digest| seen.insert(*digest))
        .take(MOST_MISSING)
        .collect()
}

fn digests_in(text: &str) -> impl Iterator<Item = Digest> + '_ {
    let words =
        text.split(|character: char| !character.is_ascii_alphanumeric() && character != ':');
    words.filter_map(|word| word[word.find("sha")?..].trim_end_matches(':').parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;
    use serde_json::json;

    fn manifest() -> Manifest {
        let bytes = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []});
        Manifest::parse(
            bytes.to_string().into_bytes().into(),
            None,
            Algorithm::Sha256,
        )
        .unwrap()
    }

    fn refusal(status: u16, errors: serde_json::Value) -> Refusal {
        let body = json!({ "errors": errors }).to_string();
        Refusal::read(
            StatusCode::from_u16(status).unwrap(),
            &HeaderMap::new(),
            body.as_bytes(),
            &crate::registry::secrets::Secrets::default(),
        )
    }

    fn tag() -> Target {
        Target::Tag("v1".parse().unwrap())
    }

    #[test]
    fn a_tag_that_must_not_move_is_a_value() {
        let sentence = "The image tag 'v1' already exists in the 'app' repository and cannot be overwritten because the ";
        for words in ["repository is immutable.", "tag is immutable."] {
            let refused = refusal(
                400,
                json!([{"code": "TAG_INVALID", "message": format!("{sentence}{words}")}]),
            );
            assert_eq!(
                put_refused(&refused, &tag(), &manifest()),
                Some(Put::Immutable)
            );
        }
        let harbor = refusal(
            412,
            json!([{"code": "PRECONDITION", "message": "'app:v1' configured as immutable"}]),
        );
        assert_eq!(
            put_refused(&harbor, &tag(), &manifest()),
            Some(Put::Immutable)
        );
        let other = refusal(400, json!([{"code": "TAG_INVALID", "message": "too long"}]));
        assert_eq!(put_refused(&other, &tag(), &manifest()), None);
    }

    #[test]
    fn missing_content_is_named_whatever_the_status() {
        let one = Digest::sha256(b"1");
        let two = Digest::of(Algorithm::Sha512, b"2");
        let own = manifest().digest;
        let table = [
            (
                400,
                json!([{"code": "MANIFEST_BLOB_UNKNOWN", "detail": {"digest": one.to_string()}}]),
                vec![one],
            ),
            (
                500,
                json!([{"code": "UNKNOWN"}, {"code": "UNKNOWN"}, {"code": "MANIFEST_BLOB_UNKNOWN", "detail": one.to_string()}]),
                vec![one],
            ),
            (
                404,
                json!([{"code": "MANIFEST_UNKNOWN", "message": format!("unknown child {two} of {own}")}]),
                vec![two],
            ),
            (
                400,
                json!([{"code": "X", "message": format!("LayersNotFoundException: '[{one}, {one},{two}]'")}]),
                vec![one, two],
            ),
            (
                400,
                json!([{"code": "BLOB_UNKNOWN", "detail": null}]),
                vec![],
            ),
        ];
        for (status, errors, expected) in table {
            assert_eq!(
                put_refused(&refusal(status, errors.clone()), &tag(), &manifest()),
                Some(Put::Missing(expected)),
                "{errors}"
            );
        }
        let nowhere = refusal(404, json!([{"code": "NAME_UNKNOWN"}]));
        assert_eq!(put_refused(&nowhere, &tag(), &manifest()), None);
        let denied = refusal(
            403,
            json!([{"code": "DENIED", "message": "MANIFEST_UNKNOWN"}]),
        );
        assert_eq!(put_refused(&denied, &tag(), &manifest()), None);
    }

    #[test]
    fn bytes_are_held_against_every_claim() {
        let about = ErrorContext::new(
            "read the manifest",
            &"staging".into(),
            "host.example/app:v1".into(),
        );
        let read = |bytes: &Bytes, target: &Target, claimed| {
            verified(bytes.clone(), target, claimed, None, &about)
        };
        let bytes = manifest().bytes;
        let digest = manifest().digest;
        assert_eq!(read(&bytes, &tag(), Some(digest)).unwrap().digest, digest);
        assert_eq!(
            read(&bytes, &tag(), Some(Digest::of(Algorithm::Sha512, &bytes)))
                .unwrap()
                .digest,
            digest
        );
        assert_eq!(
            read(&bytes, &tag(), Some(Digest::sha256(b"x")))
                .unwrap_err()
                .class()
                .name(),
            "corrupt"
        );
        assert_eq!(
            read(&bytes, &Digest::sha256(b"x").into(), None)
                .unwrap_err()
                .class()
                .name(),
            "corrupt"
        );
        let page = Bytes::from_static(b"<!doctype html>");
        assert!(
            read(&page, &tag(), None)
                .unwrap_err()
                .to_string()
                .contains("HTML page")
        );
        let text = read(&Bytes::from_static(b"{}"), &tag(), None)
            .unwrap_err()
            .to_string();
        assert!(text.contains("staging (host.example/app:v1)"), "{text}");
    }

    proptest! {
        #[test]
        fn looking_for_digests_never_panics(text in "\\PC{0,200}") {
            let _ = digests_in(&text).count();
        }
    }
}
