//! Bodies of uploads as ECR keeps them: in whole parts, whatever becomes of the connection
//! afterwards.

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, header};
use http_body_util::BodyExt as _;

use super::{Shared, error, reply};

/// A session that is being written to.
pub(super) struct Writing<'a> {
    pub(super) repository: &'a str,
    pub(super) id: &'a str,
    /// Where the registry behind has it.
    pub(super) upstream: String,
    /// Bytes that it holds.
    pub(super) stored: u64,
}

impl Shared {
    /// Keeps a body part by part. The bytes of a dead client count like those of a living one: who
    /// comes second with the same part is told where the session stands.
    pub(super) async fn in_parts(
        &self,
        mut at: Writing<'_>,
        part: u64,
        query: &str,
        request: Request<Body>,
    ) -> Response {
        let (head, mut body) = request.into_parts();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return error(400, "BLOB_UPLOAD_INVALID", "the body broke off");
            };
            rest.extend_from_slice(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
            while rest.len() as u64 > part {
                let piece = rest.split_to(part as usize).freeze();
                if let Err(refused) = self.keep(&mut at, Method::PATCH, "", piece).await {
                    return *refused;
                }
            }
        }
        let patch = head.method == Method::PATCH;
        match self.keep(&mut at, head.method, query, rest.freeze()).await {
            Err(refused) => *refused,
            Ok(mut answer) => {
                if patch {
                    let location = format!("/v2/{}/blobs/uploads/{}", at.repository, at.id);
                    answer
                        .headers_mut()
                        .insert(header::LOCATION, location.parse().expect("a location"));
                    answer
                        .headers_mut()
                        .insert(header::RANGE, "0-5242879".parse().expect("a range"));
                }
                answer
            }
        }
    }

    async fn keep(
        &self,
        at: &mut Writing<'_>,
        method: Method,
        query: &str,
        piece: Bytes,
    ) -> Result<Response, Box<Response>> {
        let (start, length) = (at.stored, piece.len() as u64);
        let url = if query.is_empty() {
            at.upstream.clone()
        } else {
            format!("{}&{query}", at.upstream)
        };
        let call = self
            .http
            .request(method.clone(), url)
            .header(header::CONTENT_LENGTH, length);
        let call = call.header(
            header::CONTENT_RANGE,
            format!("{start}-{}", start + length - 1),
        );
        let Ok(answer) = call.body(piece).send().await else {
            return Err(Box::new(error(
                503,
                "UNAVAILABLE",
                "the registry behind is away",
            )));
        };
        match answer.status().as_u16() {
            200..=299 => {
                if method == Method::PATCH {
                    at.upstream = self.absolute(answer.headers());
                }
                at.stored += length;
                Ok(reply(201, "application/json", ""))
            }
            416 => Err(Box::new(self.misplaced(at, start).await)),
            status => Err(Box::new(error(
                status,
                "BLOB_UPLOAD_INVALID",
                "None of the provided layer digests match",
            ))),
        }
    }

    async fn misplaced(&self, at: &Writing<'_>, start: u64) -> Response {
        let stored = self
            .stored(&at.upstream)
            .await
            .map_or(0, |(stored, _)| stored);
        error(
            416,
            "BLOB_UPLOAD_INVALID",
            &format!("First byte of the layer part is {start} instead of {stored}"),
        )
    }

    /// Bytes that a session holds, and where its next request goes; none when it is gone.
    pub(super) async fn stored(&self, upstream: &str) -> Option<(u64, String)> {
        let status = self
            .http
            .get(upstream)
            .send()
            .await
            .ok()
            .filter(|answer| answer.status().is_success())?;
        let range = status.headers().get(header::RANGE)?.to_str().ok()?;
        let last: u64 = range.rsplit('-').next()?.parse().ok()?;
        Some((
            if last == 0 { 0 } else { last + 1 },
            self.absolute(status.headers()),
        ))
    }
}
