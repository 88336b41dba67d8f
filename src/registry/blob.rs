//! Blobs: whether there is one, and its bytes (end-2).

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use http_body::{Body as _, Frame, SizeHint};
use prometheus::IntCounter;
use reqwest::Body;
use tokio::time::{Instant, Sleep};

use super::Repository;
use super::client::ClientKind;
use super::error::{ErrorContext, broken};
use super::metrics::Operation;
use super::redirect::HostKind;
use super::transport::{Answer, Call, host_of};
use crate::endpoint::{BlobBody, Presence};
use crate::fault::{Fault, clip};
use crate::oci::{Descriptor, Digest};

impl Repository {
    /// Asks with HEAD; where that is refused or not allowed, as storage services do with addresses
    /// signed for GET, with a GET of one byte.
    pub(super) async fn blob_presence(&self, digest: &Digest) -> Result<Presence, Fault> {
        let about = self.about("ask for the blob", &format!("@{digest}"));
        let answer = self
            .transport()
            .call(&self.blob_call(Method::HEAD, digest, &about))
            .await?;
        match answer.status.as_u16() {
            200 => self.present(&answer, answer.length(), digest, &about),
            404 => Ok(Presence::Absent),
            400 | 403 | 405 | 501 => self.blob_presence_by_read(digest, &about).await,
            _ => Err(self.transport().refusal(answer).await.fault(&about)),
        }
    }

    async fn blob_presence_by_read(
        &self,
        digest: &Digest,
        about: &ErrorContext,
    ) -> Result<Presence, Fault> {
        let call = self
            .blob_call(Method::GET, digest, about)
            .on(ClientKind::Blob)
            .text(header::RANGE, "bytes=0-0");
        let answer = self.transport().call(&call).await?;
        let range = answer
            .header(header::CONTENT_RANGE)
            .and_then(ContentRange::parse);
        match answer.status.as_u16() {
            200 => self.present(&answer, answer.length(), digest, about),
            206 => self.present(&answer, range.and_then(|range| range.total), digest, about),
            // Not even the first byte: the blob is there and empty.
            416 => Ok(Presence::Present { size: Some(0) }),
            404 => Ok(Presence::Absent),
            _ => Err(self.read_refused(answer, about).await),
        }
    }

    fn present(
        &self,
        answer: &Answer,
        size: Option<u64>,
        digest: &Digest,
        about: &ErrorContext,
    ) -> Result<Presence, Fault> {
        super::manifest::agrees(answer, digest, about)?;
        Ok(Presence::Present { size })
    }

    /// The bytes from `offset` on. A registry that ignores the range sends the whole blob: the body
    /// then leaves out the first `offset` bytes.
    pub(super) async fn blob_bytes(
        &self,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<Option<BlobBody>, Fault> {
        if offset == blob.size {
            return Ok(Some(BlobBody::full(Bytes::new())));
        }
        let about = self.about("read the blob", &format!("@{}", blob.digest));
        let wanted = offset..blob.size;
        let answer = self.blob_answer(blob, &wanted, &about).await?;
        let sent = match answer.status.as_u16() {
            200 => 0..blob.size,
            206 => wanted,
            404 => return Ok(None),
            416 => {
                return Err(about.corrupt(format!(
                    "it ends before byte {offset} of {} announced",
                    blob.size
                )));
            }
            _ => return Err(self.read_refused(answer, &about).await),
        };
        sends_plain(&answer, &sent, blob.size, &about)?;
        let skip = offset - sent.start;
        Ok(Some(self.reading(answer, skip, blob.size - offset, about)))
    }

    /// The bytes of `part`. `None`: there is no such blob, or the registry ignores the range.
    pub(super) async fn blob_part(
        &self,
        blob: &Descriptor,
        part: Range<u64>,
    ) -> Result<Option<BlobBody>, Fault> {
        let about = self.about("read a part of the blob", &format!("@{}", blob.digest));
        let answer = self.blob_answer(blob, &part, &about).await?;
        match answer.status.as_u16() {
            206 => {
                sends_plain(&answer, &part, blob.size, &about)?;
                let length = part.end - part.start;
                Ok(Some(self.reading(answer, 0, length, about)))
            }
            200 | 404 => Ok(None),
            _ => Err(self.read_refused(answer, &about).await),
        }
    }

    async fn blob_answer(
        &self,
        blob: &Descriptor,
        part: &Range<u64>,
        about: &ErrorContext,
    ) -> Result<Answer, Fault> {
        let call = self
            .blob_call(Method::GET, &blob.digest, about)
            .on(ClientKind::Blob);
        let last = part.end - 1;
        let call = match *part == (0..blob.size) {
            true => call,
            false => call.text(header::RANGE, &format!("bytes={}-{last}", part.start)),
        };
        self.transport().call(&call).await
    }

    fn reading(&self, answer: Answer, skip: u64, left: u64, about: ErrorContext) -> BlobBody {
        let host = host_of(&answer.url);
        let idle = self.transport().deadlines.idle;
        let read = self.transport().meter.read.clone();
        BlobBody::new(BlobReader {
            inner: answer.into_body(),
            skip,
            left,
            idle,
            timer: None,
            waiting: false,
            read,
            about,
            host,
        })
    }

    /// A refusal of a read. A storage service refuses when its signed address has run out: the
    /// registry gives a new one.
    async fn read_refused(&self, answer: Answer, about: &ErrorContext) -> Fault {
        let foreign = answer.host_kind == HostKind::Foreign;
        let host = host_of(&answer.url);
        let refusal = self.transport().refusal(answer).await;
        if foreign && matches!(refusal.status(), 400 | 401 | 403) {
            let code = refusal
                .entries
                .first()
                .map_or("without a code", |entry| entry.code.as_str());
            let status = refusal.status();
            let code = clip(code, 60);
            return about.retryable(format!(
                "the storage at {host} answers {status} {code}; its signed address may have run out"
            ));
        }
        refusal.fault(about)
    }

    fn blob_call<'a>(
        &'a self,
        method: Method,
        digest: &Digest,
        about: &'a ErrorContext,
    ) -> Call<'a> {
        let url = self
            .transport()
            .url(&format!("/v2/{}/blobs/{digest}", self.name));
        let operation = if method == Method::HEAD {
            Operation::BlobHead
        } else {
            Operation::BlobGet
        };
        Call::new(operation, method, url, &self.pull, about).counted(self.tally.as_deref())
    }
}

/// Checks that an answer is about to send the bytes of `part` of a blob of `size` bytes, as they
/// are.
fn sends_plain(
    answer: &Answer,
    part: &Range<u64>,
    size: u64,
    about: &ErrorContext,
) -> Result<(), Fault> {
    if let Some(coding) = answer
        .header(header::CONTENT_ENCODING)
        .filter(|coding| !coding.eq_ignore_ascii_case("identity"))
    {
        let coding = clip(coding, 40);
        return Err(about.corrupt(format!(
            "it comes as Content-Encoding {coding}; turn that off in the proxy that does it"
        )));
    }
    let last = part.end - 1;
    if answer.status.as_u16() == 206 {
        let expected = ContentRange {
            part: Some((part.start, last)),
            total: Some(size),
        };
        let range = answer
            .header(header::CONTENT_RANGE)
            .and_then(ContentRange::parse);
        if range != Some(expected) {
            let found = answer
                .header(header::CONTENT_RANGE)
                .map_or("none".to_string(), |text| clip(text, 80));
            return Err(about.corrupt(format!(
                "asked for the bytes {}-{last} of {size}, got Content-Range {found}",
                part.start
            )));
        }
    }
    let expected = part.end - part.start;
    match answer.length() {
        Some(length) if length != expected => Err(about.corrupt(format!(
            "{length} bytes are offered where {expected} are expected"
        ))),
        _ => Ok(()),
    }
}

/// A `Content-Range` of an answer: `bytes 0-9/100`, `bytes */100`, `bytes 0-9/*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentRange {
    part: Option<(u64, u64)>,
    total: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<ContentRange> {
        let (unit, rest) = text.trim().split_once(' ')?;
        let (part, total) = rest.trim().split_once('/')?;
        let part = match part {
            "*" => None,
            _ => Some(span(part)?),
        };
        let total = match total {
            "*" => None,
            _ => Some(number(total)?),
        };
        let sound =
            part.is_none_or(|(start, end)| start <= end && total.is_none_or(|total| end < total));
        (unit.eq_ignore_ascii_case("bytes") && sound).then_some(ContentRange { part, total })
    }
}

/// `start-end`, both inclusive.
pub(super) fn span(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.split_once('-')?;
    Some((number(start)?, number(end)?))
}

/// Digits and nothing else.
pub(super) fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// The bytes of a blob as they come: counted, bounded, and never waited for longer than `idle` at a
/// time.
struct BlobReader {
    inner: Body,
    skip: u64,
    left: u64,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    read: IntCounter,
    about: ErrorContext,
    host: String,
}

impl BlobReader {
    /// The next frame of the connection, or the fault of waiting too long for it.
    fn poll_connection(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(frame.map(|frame| {
                frame.map_err(|error| {
                    broken(
                        error,
                        &self.about,
                        &self.host,
                        &format!(" with {} bytes to come", self.left),
                    )
                })
            }));
        }
        let due = Instant::now() + self.idle;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if !self.waiting {
            timer.as_mut().reset(due);
            self.waiting = true;
        }
        ready!(timer.as_mut().poll(cx));
        let text = format!(
            "{} sends nothing for {} s, with {} bytes to come",
            self.host,
            self.idle.as_secs(),
            self.left
        );
        Poll::Ready(Some(Err(self.about.retryable(text))))
    }

    /// What of `bytes` belongs to the blob and is wanted.
    fn take(&mut self, mut bytes: Bytes) -> Result<Bytes, Fault> {
        self.read.inc_by(bytes.len() as u64);
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let wanted = bytes.split_off(skipped as usize);
        self.left = match self.left.checked_sub(wanted.len() as u64) {
            Some(left) => left,
            None => return Err(self.about.corrupt("more bytes come than the blob has")),
        };
        Ok(wanted)
    }
}

impl http_body::Body for BlobReader {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        loop {
            let Some(frame) = ready!(self.poll_connection(cx)) else {
                break;
            };
            let Ok(bytes) = frame?.into_data() else {
                continue;
            };
            let wanted = self.take(bytes)?;
            if !wanted.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(wanted))));
            }
        }
        if self.left == 0 && self.skip == 0 {
            return Poll::Ready(None);
        }
        let text = format!(
            "{} ends the blob with {} bytes to come",
            self.host, self.left
        );
        Poll::Ready(Some(Err(self.about.retryable(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_ranges_are_read_exactly() {
        let range = |start, end, total| {
            Some(ContentRange {
                part: Some((start, end)),
                total,
            })
        };
        let table = [
            ("bytes 0-9/100", range(0, 9, Some(100))),
            ("Bytes 5-5/6", range(5, 5, Some(6))),
            ("bytes 0-9/*", range(0, 9, None)),
            (
                "bytes */100",
                Some(ContentRange {
                    part: None,
                    total: Some(100),
                }),
            ),
            ("bytes 9-0/100", None),
            ("bytes 0-100/100", None),
            ("bytes=0-9/100", None),
            ("0-9/100", None),
            ("bytes +1-9/100", None),
            ("bytes 1-/100", None),
            ("items 0-9/100", None),
            ("bytes 0-99999999999999999999/*", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(ContentRange::parse(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn content_ranges_come_back(start in any::<u32>(), more in any::<u32>(), rest in 1..1000u64) {
            let start = u64::from(start);
            let end = start + u64::from(more);
            let parsed = ContentRange::parse(&format!("bytes {start}-{end}/{}", end + rest));
            prop_assert_eq!(parsed, Some(ContentRange { part: Some((start, end)), total: Some(end + rest) }));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = ContentRange::parse(&text);
            let _ = span(&text);
        }
    }
}
