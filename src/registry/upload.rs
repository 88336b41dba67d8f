//! Upload sessions: opened, filled, closed, asked about, given up (end-4a, 5, 6, 11, 13, 14).
//!
//! A session's location is used as the registry gave it: resolved against the address of the
//! answer, its query untouched. It may lie on another host, which then gets no credentials, and it
//! is judged again before each use, since it may have been written down by another process.

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use url::Url;

use super::Repository;
use super::auth::Scopes;
use super::blob::{number, span};
use super::client::ClientKind;
use super::error::{ErrorContext, Refusal};
use super::manifest::agrees;
use super::metrics::Operation;
use super::transport::{Answer, Call};
use crate::endpoint::{Begin, BlobBody, Offset, Sent, Upload, UploadStyle};
use crate::fault::{Class, Fault};
use crate::oci::media_type::OCTET_STREAM;
use crate::oci::{Algorithm, Digest, RepositoryName};

/// Registries bound the length of an address far below this; some of Google's are several
/// kilobytes.
const MOST_LOCATION: usize = 32 * 1024;

impl Repository {
    /// Opens a session, offering `from` as a mount source. A mount that is refused, whatever the
    /// reason, is followed by a plain opening request.
    pub(super) async fn open(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        if let Some(from) = from
            && let Some(begun) = self.open_by_mount(digest, from).await?
        {
            return Ok(begun);
        }
        let about = self
            .about("open an upload", &format!("@{digest}"))
            .writing();
        let mut url = self.uploads();
        if digest.algorithm() != Algorithm::Sha256 {
            url.query_pairs_mut()
                .append_pair("digest-algorithm", digest.algorithm().name());
        }
        let answer = self
            .transport()
            .call(&self.opening(Operation::UploadOpen, url, &self.push, &about))
            .await?;
        if !answer.is_success() {
            return Err(self.transport().refusal(answer).await.fault(&about));
        }
        session(&answer, &about).map(Begin::Session)
    }

    /// `None`: this mount was refused, which says nothing about a plain upload.
    async fn open_by_mount(
        &self,
        digest: &Digest,
        from: &RepositoryName,
    ) -> Result<Option<Begin>, Fault> {
        let about = self
            .about("mount the blob", &format!("@{digest}"))
            .writing();
        let mut url = self.uploads();
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from.as_str());
        let scopes = Scopes::mount(&self.name, from);
        let answer = match self
            .transport()
            .call(&self.opening(Operation::BlobMount, url, &scopes, &about))
            .await
        {
            // Token servers refuse where the other repository may not be read.
            Err(fault) if fault.class() == Class::Auth => return Ok(None),
            answer => answer?,
        };
        match answer.status.as_u16() {
            201 => agrees(&answer, digest, &about).map(|()| Some(Begin::Mounted)),
            200..=299 => session(&answer, &about).map(|session| Some(Begin::Session(session))),
            429 => Err(self.transport().refusal(answer).await.fault(&about)),
            400..=501 => Ok(None),
            _ => Err(self.transport().refusal(answer).await.fault(&about)),
        }
    }

    /// Sends one chunk.
    pub(super) async fn chunk(
        &self,
        upload: &mut Upload,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        let about = self.about("send a chunk", "").writing();
        let mut call = self.session_call(
            Operation::UploadChunk,
            Method::PATCH,
            self.location(upload, &about)?,
            &about,
        );
        let streams =
            offset == 0 && self.registry.profile().abilities.upload == UploadStyle::Stream;
        if !streams && length > 0 {
            call = call.text(
                header::CONTENT_RANGE,
                &format!("{offset}-{}", offset + length - 1),
            );
        }
        let (answer, whole) = self.send_body(call, length, body).await?;
        if !answer.is_success() {
            return self.refused(answer, upload, &about).await;
        }
        relocate(upload, &answer, &about)?;
        if !whole {
            return Err(about.retryable("it was accepted before all of it was sent"));
        }
        Ok(Sent::Accepted {
            reported: held(&answer),
        })
    }

    /// Sends the rest and closes the session.
    pub(super) async fn close(
        &self,
        upload: &mut Upload,
        digest: &Digest,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        let about = self
            .about("close the upload", &format!("@{digest}"))
            .writing();
        let url = with_digest(&self.location(upload, &about)?, digest);
        let mut call = self
            .session_call(Operation::UploadFinish, Method::PUT, url, &about)
            .within(self.transport().deadlines.close);
        if offset > 0 && length > 0 {
            call = call.text(
                header::CONTENT_RANGE,
                &format!("{offset}-{}", offset + length - 1),
            );
        }
        // A registry that got the blob on another way may say so before it has taken all of this
        // one.
        let (answer, whole) = self.send_body(call, length, body).await?;
        match answer.status.as_u16() {
            200 | 201 | 204 => agrees(&answer, digest, &about).map(|()| match whole {
                true => Sent::Accepted { reported: None },
                false => Sent::Early,
            }),
            200..=299 => Err(about.rejected(format!(
                "{}: it is neither created nor refused",
                answer.status.as_u16()
            ))),
            _ => self.close_refused(answer, upload, &about).await,
        }
    }

    async fn close_refused(
        &self,
        answer: Answer,
        upload: &mut Upload,
        about: &ErrorContext,
    ) -> Result<Sent, Fault> {
        let refusal = self.transport().refusal(answer.peek()).await;
        if refusal.mentions("LayerAlreadyExists") {
            return Ok(Sent::Accepted { reported: None });
        }
        let invalid = refusal.has("BLOB_UPLOAD_INVALID")
            && refusal.status() == 400
            && refusal.mentions("digest");
        if refusal.has("DIGEST_INVALID") || invalid {
            return Err(refusal.fault(about).with_class(Class::Corrupt));
        }
        self.refused(answer, upload, about).await
    }

    /// How much of the session is there.
    pub(super) async fn held(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        let about = self.about("ask for the state of an upload", "");
        let call = self
            .session_call(
                Operation::UploadStatus,
                Method::GET,
                self.location(upload, &about)?,
                &about,
            )
            .on(ClientKind::Api);
        let answer = self.transport().call(&call).await?;
        match answer.status.as_u16() {
            200..=299 => {
                relocate(upload, &answer, &about)?;
                Ok(answer
                    .header(header::RANGE)
                    .and_then(upload_range)
                    .map_or(Offset::Unknown, Offset::At))
            }
            400 | 404 => Ok(Offset::Gone),
            300..=499 if !matches!(answer.status.as_u16(), 401 | 403 | 408 | 425 | 429) => {
                Ok(Offset::Unknown)
            }
            501 => Ok(Offset::Unknown),
            _ => Err(self.transport().refusal(answer).await.fault(&about)),
        }
    }

    /// Gives the session up; what the registry says to that changes nothing.
    pub(super) async fn abandon(&self, upload: Upload) -> Result<(), Fault> {
        let about = self.about("give up an upload", "").writing();
        let call = self
            .session_call(
                Operation::UploadCancel,
                Method::DELETE,
                self.location(&upload, &about)?,
                &about,
            )
            .on(ClientKind::Api);
        self.transport().call(&call).await.map(drop)
    }

    fn uploads(&self) -> Url {
        self.transport()
            .url(&format!("/v2/{}/blobs/uploads/", self.name))
    }

    fn opening<'a>(
        &'a self,
        operation: Operation,
        url: Url,
        scopes: &'a Scopes,
        about: &'a ErrorContext,
    ) -> Call<'a> {
        let call =
            Call::new(operation, Method::POST, url, scopes, about).counted(self.tally.as_deref());
        call.header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))
    }

    fn session_call<'a>(
        &'a self,
        operation: Operation,
        method: Method,
        url: Url,
        about: &'a ErrorContext,
    ) -> Call<'a> {
        Call::new(operation, method, url, &self.push, about)
            .counted(self.tally.as_deref())
            .on(ClientKind::Blob)
    }

    /// Sends a body. An empty body can be sent twice, so it goes through `call`, which answers a
    /// challenge.
    async fn send_body(
        &self,
        call: Call<'_>,
        length: u64,
        body: BlobBody,
    ) -> Result<(Answer, bool), Fault> {
        let call = call.header(header::CONTENT_TYPE, HeaderValue::from_static(OCTET_STREAM));
        let call = call.text(header::CONTENT_LENGTH, &length.to_string());
        if length > 0 {
            return self.transport().upload(&call, body, length).await;
        }
        drop(body);
        let mut answer = self.transport().call(&call.body(Bytes::new())).await?;
        self.transport().read_excerpt(&mut answer).await;
        Ok((answer, true))
    }

    fn location(&self, upload: &Upload, about: &ErrorContext) -> Result<Url, Fault> {
        let url = Url::parse(&upload.location)
            .map_err(|_| about.rejected("the upload location is no address"))?;
        self.transport()
            .guard
            .judge_stored(&url)
            .map_err(|refused| about.rejected(refused.to_string()))?;
        Ok(url)
    }

    /// What a refusal of a chunk or of the closing request means.
    async fn refused(
        &self,
        answer: Answer,
        upload: &mut Upload,
        about: &ErrorContext,
    ) -> Result<Sent, Fault> {
        let refusal = self.transport().refusal(answer.peek()).await;
        let told = expected_first_byte(&refusal);
        match refusal.status() {
            // GHCR answers 416 to a chunk that is too large.
            416 if refusal.mentions("too large") => {
                Err(about.rejected("the registry does not take chunks of this size"))
            }
            416 => {
                relocate(upload, &answer, about)?;
                let offset = told
                    .or_else(|| held(&answer))
                    .map_or(Offset::Unknown, Offset::At);
                Ok(Sent::Misplaced(offset))
            }
            400 if told.is_some() => Ok(Sent::Misplaced(told.map_or(Offset::Unknown, Offset::At))),
            404 if refusal.has("NAME_UNKNOWN") => Err(refusal.fault(about)),
            404 => Ok(Sent::Gone),
            // A session that another writer, a cut or the clock has ended.
            400 if refusal.has("BLOB_UPLOAD_INVALID") => Ok(Sent::Gone),
            400..=499 if refusal.has("BLOB_UPLOAD_UNKNOWN") => Ok(Sent::Gone),
            _ => Err(refusal.fault(about)),
        }
    }
}

/// The session that an answer opened.
fn session(answer: &Answer, about: &ErrorContext) -> Result<Upload, Fault> {
    let mut upload = Upload {
        location: String::new(),
    };
    relocate(&mut upload, answer, about)?;
    if upload.location.is_empty() {
        return Err(about.rejected(format!(
            "{} without a Location: no upload was opened",
            answer.status.as_u16()
        )));
    }
    Ok(upload)
}

/// Takes the location of an answer over, if it has one.
fn relocate(upload: &mut Upload, answer: &Answer, about: &ErrorContext) -> Result<(), Fault> {
    let Some(location) = answer
        .header(header::LOCATION)
        .filter(|location| !location.is_empty())
    else {
        return Ok(());
    };
    let next = resolve(&answer.url, location)
        .ok_or_else(|| about.rejected("the Location of the upload is no address"))?;
    upload.location = next.into();
    Ok(())
}

/// A `Location` seen from the address of the answer that holds it.
fn resolve(answered: &Url, location: &str) -> Option<Url> {
    if location.len() > MOST_LOCATION {
        return None;
    }
    let mut next = answered.join(location).ok()?;
    next.set_fragment(None);
    Some(next)
}

/// The location with the digest appended; what stands in its query stays as it is.
fn with_digest(location: &Url, digest: &Digest) -> Url {
    let mut url = location.clone();
    let query = match location.query() {
        Some(query) if !query.is_empty() => format!("{query}&digest={digest}"),
        _ => format!("digest={digest}"),
    };
    url.set_query(Some(&query));
    url
}

/// The length that an answer says is held. `0-0` may be none or one byte, and says nothing here.
fn held(answer: &Answer) -> Option<u64> {
    answer
        .header(header::RANGE)
        .and_then(upload_range)
        .filter(|held| *held > 0)
}

/// `Range: 0-<last>`, with or without a unit: the length held. `0-0` right after opening means
/// nothing at all.
fn upload_range(text: &str) -> Option<u64> {
    let text = text
        .strip_prefix("bytes")
        .map_or(text, |rest| rest.trim_start_matches(['=', ' ']));
    match span(text.trim())? {
        (0, 0) => Some(0),
        (0, last) => last.checked_add(1),
        _ => None,
    }
}

/// The offset in ECR's words: "First byte of the layer part is 0 instead of 11304960".
fn expected_first_byte(refusal: &Refusal) -> Option<u64> {
    let messages = refusal.entries.iter().map(|entry| entry.message.as_str());
    messages
        .filter_map(|message| {
            message
                .split_once("First byte of the layer part is")?
                .1
                .split_once("instead of")
        })
        .find_map(|(_, rest)| {
            let rest = rest.trim_start();
            let end = rest
                .find(|character: char| !character.is_ascii_digit())
                .unwrap_or(rest.len());
            number(&rest[..end])
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;

    #[test]
    fn locations_are_resolved_and_kept_verbatim() {
        let answered =
            Url::parse("https://registry.example/v2/app/blobs/uploads/?mount=x").unwrap();
        let digest = Digest::sha256(b"x");
        let table = [
            (
                "/v2/app/blobs/uploads/1",
                "https://registry.example/v2/app/blobs/uploads/1?",
            ),
            (
                "/v2/app/blobs/uploads/1?_state=a%2Fb%3D&x=1",
                "https://registry.example/v2/app/blobs/uploads/1?_state=a%2Fb%3D&x=1&",
            ),
            (
                "https://upload.example:8443/u?sig=%2B+a",
                "https://upload.example:8443/u?sig=%2B+a&",
            ),
            ("//upload.example/u", "https://upload.example/u?"),
            ("1", "https://registry.example/v2/app/blobs/uploads/1?"),
            ("/u?", "https://registry.example/u?"),
            ("/u%2F1#part", "https://registry.example/u%2F1?"),
        ];
        for (location, expected) in table {
            let url = with_digest(&resolve(&answered, location).unwrap(), &digest);
            assert_eq!(
                url.as_str(),
                format!("{expected}digest={digest}"),
                "{location}"
            );
        }
        assert!(resolve(&answered, "https://[").is_none());
        assert!(resolve(&answered, &"a".repeat(MOST_LOCATION + 1)).is_none());
    }

    #[test]
    fn upload_ranges_are_read_tolerantly() {
        let table = [
            ("0-99", Some(100)),
            ("bytes=0-99", Some(100)),
            ("bytes 0-99", Some(100)),
            ("0-0", Some(0)),
            ("5-99", None),
            ("0-", None),
            ("0--1", None),
            ("0-18446744073709551615", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(upload_range(text), expected, "{text}");
        }
    }

    #[test]
    fn the_offset_is_read_from_the_words_of_ecr() {
        let read = |message: &str| {
            let body = serde_json::json!({"errors": [{"code": "BLOB_UPLOAD_INVALID", "message": message}]}).to_string();
            expected_first_byte(&Refusal::read(
                StatusCode::RANGE_NOT_SATISFIABLE,
                &HeaderMap::new(),
                body.as_bytes(),
                &crate::registry::secrets::Secrets::default(),
            ))
        };
        assert_eq!(
            read("First byte of the layer part is 0 instead of 11304960"),
            Some(11_304_960)
        );
        assert_eq!(
            read("First byte of the layer part is 0 instead of 5242880."),
            Some(5_242_880)
        );
        assert_eq!(
            read("First byte of the layer part is 0 instead of nothing"),
            None
        );
        assert_eq!(read("instead of 7"), None);
    }

    proptest! {
        #[test]
        fn upload_ranges_come_back(held in 2u64..u64::MAX) {
            prop_assert_eq!(upload_range(&format!("0-{}", held - 1)), Some(held));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}") {
            let _ = upload_range(&text);
            let _ = resolve(&Url::parse("https://registry.example/v2/").unwrap(), &text);
        }
    }
}
