//! One request: credentials, one challenge round, redirects, deadlines, counting.
//!
//! The only place that sends. Credentials go to the registry's own scheme, host and port and
//! nowhere else. A body that was streamed is never sent twice: when its credentials turn out to be
//! stale they are renewed, and the attempt is lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use reqwest::{Body, Client, Request, Response};
use tokio::time::{Instant, timeout};
use url::Url;

use super::Deadlines;
use super::auth::{Authorizer, Scopes};
use super::body::{self, BodyMonitor, Overdue};
use super::client::{ClientKind, Clients};
use super::error::{ErrorContext, Refusal, broken};
use super::metrics::{Meter, Operation};
use super::rate_limit_headers::{date, rate_limit_header, request_class};
use super::redirect::{AddressGuard, Hops, HostKind, Refused};
use crate::clock;
use crate::endpoint::ClockSkew;
use crate::endpoint::rate_limit::RateLimit;
use crate::endpoint::{BlobBody, Tally};
use crate::fault::Fault;

/// Most that is read of an answer which is a failure.
const MOST_OF_AN_ERROR: usize = 64 * 1024;

/// What sends for one registry.
pub(super) struct Transport {
    pub(super) name: Arc<str>,
    /// `host[:port]`.
    pub(super) host: Arc<str>,
    pub(super) base: Url,
    pub(super) guard: Arc<AddressGuard>,
    pub(super) clients: Clients,
    pub(super) authorizer: Authorizer,
    pub(super) deadlines: Deadlines,
    pub(super) meter: Meter,
    /// What the registry says that it still allows.
    pub(super) rate_limit: RateLimit,
    /// How far our clock is off the registry's.
    pub(super) clock_skew: ClockSkew,
}

/// A request without a body, or with a small one that can be sent again.
pub(super) struct Call<'a> {
    operation: Operation,
    method: Method,
    url: Url,
    scopes: &'a Scopes,
    about: &'a ErrorContext,
    headers: HeaderMap,
    body: Bytes,
    client_kind: ClientKind,
    deadline: Option<Duration>,
    tally: Option<&'a Tally>,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        operation: Operation,
        method: Method,
        url: Url,
        scopes: &'a Scopes,
        about: &'a ErrorContext,
    ) -> Call<'a> {
        let (headers, body, client_kind, deadline, tally) =
            (HeaderMap::new(), Bytes::new(), ClientKind::Api, None, None);
        Call {
            operation,
            method,
            url,
            scopes,
            about,
            headers,
            body,
            client_kind,
            deadline,
            tally,
        }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Call<'a> {
        self.headers.insert(name, value);
        self
    }

    /// A header with a value of our own digits and letters.
    pub(super) fn text(self, name: HeaderName, value: &str) -> Call<'a> {
        self.header(
            name,
            HeaderValue::from_str(value).expect("digits and letters are a header value"),
        )
    }

    pub(super) fn body(mut self, body: Bytes) -> Call<'a> {
        self.body = body;
        self
    }

    pub(super) fn on(mut self, client_kind: ClientKind) -> Call<'a> {
        self.client_kind = client_kind;
        self
    }

    /// Time to the head of the answer, where it is not the usual.
    pub(super) fn within(mut self, deadline: Duration) -> Call<'a> {
        self.deadline = Some(deadline);
        self
    }

    pub(super) fn counted(mut self, tally: Option<&'a Tally>) -> Call<'a> {
        self.tally = tally;
        self
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    fn has_no_body(&self) -> bool {
        self.body.is_empty()
    }

    /// Where the redirects of this request may be followed.
    fn follows(&self, status: StatusCode) -> bool {
        match self.method {
            Method::GET | Method::HEAD => true,
            Method::POST => self.has_no_body() && matches!(status.as_u16(), 307 | 308),
            _ => false,
        }
    }
}

/// An answer: its head, and the body still to be read.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Where it came from, after redirects.
    pub(super) url: Url,
    /// Whether it came from the registry itself.
    pub(super) host_kind: HostKind,
    pub(super) moved: bool,
    body: Content,
}

enum Content {
    Coming(Body),
    Read(Bytes),
}

impl Answer {
    fn new(response: Response, host_kind: HostKind, moved: bool) -> Answer {
        let url = response.url().clone();
        let (parts, body) = http::Response::<Body>::from(response).into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            url,
            host_kind,
            moved,
            body: Content::Coming(body),
        }
    }

    pub(super) fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// A header as text; what is no text is not there.
    pub(super) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().map(str::trim)
    }

    /// `Content-Length` as sent, which for HEAD is all there is.
    pub(super) fn length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }

    /// The same head over the bytes that have been read, to be told as a refusal.
    pub(super) fn peek(&self) -> Answer {
        let bytes = match &self.body {
            Content::Read(bytes) => bytes.clone(),
            Content::Coming(_) => Bytes::new(),
        };
        let headers = self.headers.clone();
        let url = self.url.clone();
        Answer {
            status: self.status,
            headers,
            url,
            host_kind: self.host_kind,
            moved: self.moved,
            body: Content::Read(bytes),
        }
    }

    /// The body as it comes.
    pub(super) fn into_body(self) -> Body {
        match self.body {
            Content::Coming(body) => body,
            Content::Read(bytes) => Body::from(bytes),
        }
    }

    /// The first `most` bytes of the body and whether that was all of it.
    async fn collect(self, most: usize) -> (Bytes, Result<bool, reqwest::Error>) {
        let mut body = match self.body {
            Content::Read(bytes) => return (bytes, Ok(true)),
            Content::Coming(body) => body,
        };
        let mut collected = BytesMut::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Err(error) => return (collected.freeze(), Err(error)),
                Ok(frame) => {
                    let Ok(bytes) = frame.into_data() else {
                        continue;
                    };
                    let room = most - collected.len();
                    collected.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    if bytes.len() > room {
                        return (collected.freeze(), Ok(false));
                    }
                }
            }
        }
        (collected.freeze(), Ok(true))
    }
}

impl Transport {
    /// The address of a path of the registry.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url
    }

    /// Sends `call`; follows redirects and answers one challenge. Whatever status comes back in the
    /// end is an answer.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        let mut hops = Hops::new(call.url.clone());
        let mut host_kind = self.judge(call)?;
        let mut authorization = self.authorization(call, host_kind).await?;
        let mut challenged = false;
        loop {
            let operation = if hops.moved() {
                Operation::Redirect
            } else {
                call.operation
            };
            let hop = Hop {
                operation,
                url: hops.at(),
                host_kind,
                authorization: authorization.as_ref(),
            };
            let response = self.send(call, hop).await?;
            if host_kind == HostKind::Foreign {
                hops.answered_from(response.remote_addr(), &self.guard);
            }
            let mut answer = Answer::new(response, host_kind, hops.moved());
            if host_kind == HostKind::Own
                && !challenged
                && self
                    .asks_for_credentials(&mut answer, authorization.is_some(), call)
                    .await
            {
                challenged = true;
                match self
                    .authorizer
                    .answer(call.scopes, &answer.headers, authorization.as_ref())
                    .await?
                {
                    Some(fresh) => authorization = Some(fresh),
                    None => return Ok(answer),
                }
                continue;
            }
            match redirection(&answer) {
                None => return Ok(answer),
                Some(_) if !call.follows(answer.status) => {
                    return Err(not_followed(&answer, call.about));
                }
                Some(location) => {
                    host_kind = hops
                        .follow(location, &self.guard)
                        .map_err(|refused| self.refused(call.about, &refused))?
                }
            }
        }
    }

    /// Sends a body of `length` bytes once. The answer's body has been read; the flag says whether
    /// all was taken.
    ///
    /// # Errors
    /// The body's own failure comes out as it is.
    pub(super) async fn upload(
        &self,
        call: &Call<'_>,
        body: BlobBody,
        length: u64,
    ) -> Result<(Answer, bool), Fault> {
        let host_kind = self.judge(call)?;
        let authorization = self.authorization(call, host_kind).await?;
        let (sending, hold) = body::watched(body, length, self.meter.sent.clone());
        let client = self.clients.of(host_kind, call.client_kind).await?;
        self.admit(call, &call.url, host_kind).await?;
        let hop = Hop {
            operation: call.operation,
            url: &call.url,
            host_kind,
            authorization: authorization.as_ref(),
        };
        let sent = self.transmit(client, call, hop, Body::wrap(sending));
        let close = call.deadline.unwrap_or(self.deadlines.close);
        let sent = body::answered(sent, &hold, self.deadlines.idle, close).await;
        if let Some(fault) = hold.take_fault() {
            return Err(fault);
        }
        let host = host_of(&call.url);
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(broken(error, call.about, &host, &after(&hold, length))),
            Err(overdue) => return Err(self.stalled(call, overdue, &hold, length)),
        };
        let whole = hold.taken().1;
        hold.pause();
        let mut answer = Answer::new(response, host_kind, false);
        self.read_excerpt(&mut answer).await;
        if host_kind == HostKind::Own
            && self
                .asks_for_credentials(&mut answer, authorization.is_some(), call)
                .await
        {
            return Err(self.renewed(call, &answer, authorization.as_ref()).await?);
        }
        if redirection(&answer).is_some() {
            return Err(not_followed(&answer, call.about));
        }
        Ok((answer, whole))
    }

    /// The whole body of a small answer, at most `most` bytes.
    pub(super) async fn bytes(
        &self,
        answer: Answer,
        most: usize,
        about: &ErrorContext,
    ) -> Result<Bytes, Fault> {
        let host = host_of(&answer.url);
        if answer
            .header(header::CONTENT_ENCODING)
            .is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
        {
            return Err(about.corrupt(
                "the answer is compressed on the way; turn that off in the proxy that does it",
            ));
        }
        match timeout(self.deadlines.work, answer.collect(most)).await {
            Ok((bytes, Ok(true))) => Ok(bytes),
            Ok((_, Ok(false))) => Err(about.rejected(format!(
                "the answer is larger than {} MiB",
                most / 1024 / 1024
            ))),
            Ok((_, Err(error))) => Err(broken(error, about, &host, "")),
            Err(_) => Err(about.retryable(format!("{host} does not finish its answer in time"))),
        }
    }

    /// Reads an answer that is no success.
    pub(super) async fn refusal(&self, mut answer: Answer) -> Refusal {
        let bytes = self.read_excerpt(&mut answer).await;
        Refusal::read(
            answer.status,
            &answer.headers,
            &bytes,
            self.authorizer.secrets(),
        )
    }

    fn judge(&self, call: &Call<'_>) -> Result<HostKind, Fault> {
        self.guard
            .judge_stored(&call.url)
            .map_err(|refused| self.refused(call.about, &refused))
    }

    /// Judges a name that a proxy would resolve.
    async fn admit(&self, call: &Call<'_>, to: &Url, host_kind: HostKind) -> Result<(), Fault> {
        if host_kind == HostKind::Own {
            return Ok(());
        }
        self.guard
            .admit(to)
            .await
            .map_err(|refused| self.refused(call.about, &refused))
    }

    /// Has a token at hand for what needs `scopes`. A failure is told by the request that needs it.
    pub(super) async fn prepare(&self, scopes: &Scopes) {
        if let Err(fault) = self.authorizer.header(scopes).await {
            tracing::debug!(error = %fault.chain(), "no token ahead of the write");
        }
    }

    async fn authorization(
        &self,
        call: &Call<'_>,
        host_kind: HostKind,
    ) -> Result<Option<HeaderValue>, Fault> {
        if host_kind == HostKind::Foreign {
            return Ok(None);
        }
        let header = self.authorizer.header(call.scopes).await?;
        if let Some(expiry) = self.authorizer.expiry() {
            self.meter.expiry(expiry);
        }
        Ok(header)
    }

    /// Reads the start of an answer's body and keeps it there; what breaks off is no longer told.
    pub(super) async fn read_excerpt(&self, answer: &mut Answer) -> Bytes {
        if let Content::Read(bytes) = &answer.body {
            return bytes.clone();
        }
        let body = std::mem::replace(&mut answer.body, Content::Read(Bytes::new()));
        let Content::Coming(mut body) = body else {
            return Bytes::new();
        };
        let mut collected = BytesMut::new();
        let reading = async {
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(bytes) = frame.into_data() else {
                    continue;
                };
                let room = MOST_OF_AN_ERROR - collected.len();
                collected.extend_from_slice(&bytes[..bytes.len().min(room)]);
                if collected.len() == MOST_OF_AN_ERROR {
                    break;
                }
            }
        };
        let _late = timeout(self.deadlines.answer, reading).await;
        let bytes = collected.freeze();
        answer.body = Content::Read(bytes.clone());
        bytes
    }

    /// Whether an answer wants credentials, or others than it got.
    async fn asks_for_credentials(&self, answer: &mut Answer, had: bool, call: &Call<'_>) -> bool {
        match answer.status.as_u16() {
            401 => true,
            403 if had && call.method != Method::HEAD => {
                let bytes = self.read_excerpt(answer).await;
                Refusal::read(
                    answer.status,
                    &answer.headers,
                    &bytes,
                    self.authorizer.secrets(),
                )
                .says_expired()
            }
            _ => false,
        }
    }

    /// Renews the credentials for the next attempt; this one is lost with its body.
    async fn renewed(
        &self,
        call: &Call<'_>,
        answer: &Answer,
        rejected: Option<&HeaderValue>,
    ) -> Result<Fault, Fault> {
        let bytes = match &answer.body {
            Content::Read(bytes) => bytes.clone(),
            Content::Coming(_) => Bytes::new(),
        };
        let fresh = self
            .authorizer
            .answer(call.scopes, &answer.headers, rejected)
            .await?;
        Ok(match fresh {
            Some(fresh) if Some(&fresh) != rejected => call
                .about
                .retryable("the credentials ran out on the way and were renewed"),
            _ => Refusal::read(
                answer.status,
                &answer.headers,
                &bytes,
                self.authorizer.secrets(),
            )
            .fault(call.about),
        })
    }

    async fn send(&self, call: &Call<'_>, hop: Hop<'_>) -> Result<Response, Fault> {
        let deadline = call.deadline.unwrap_or(self.deadlines.answer);
        let client = self.clients.of(hop.host_kind, call.client_kind).await?;
        self.admit(call, hop.url, hop.host_kind).await?;
        let host = host_of(hop.url);
        match timeout(
            deadline,
            self.transmit(client, call, hop, Body::from(call.body.clone())),
        )
        .await
        {
            Ok(sent) => sent.map_err(|error| broken(error, call.about, &host, "")),
            Err(_) => Err(call.about.retryable(format!(
                "{host} does not answer within {} s",
                deadline.as_secs()
            ))),
        }
    }

    /// Builds and sends one HTTP request; the only place that does.
    async fn transmit(
        &self,
        client: &Client,
        call: &Call<'_>,
        hop: Hop<'_>,
        body: Body,
    ) -> Result<Response, reqwest::Error> {
        if let Some(tally) = call.tally {
            tally.add();
        }
        if hop.host_kind == HostKind::Foreign || hop.url.path().contains("/uploads/") {
            self.authorizer.secrets().sent_to(hop.url);
        }
        let mut request = Request::new(call.method.clone(), hop.url.clone());
        let headers = request.headers_mut();
        headers.clone_from(&call.headers);
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        if let (HostKind::Own, Some(authorization)) = (hop.host_kind, hop.authorization) {
            let mut authorization = authorization.clone();
            authorization.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, authorization);
        }
        if !matches!(call.method, Method::GET | Method::HEAD) {
            *request.body_mut() = Some(body);
        }
        let mut observed = Observed {
            meter: &self.meter,
            operation: hop.operation,
            since: Instant::now(),
            status: None,
        };
        let response = client.execute(request).await?;
        observed.status = Some(response.status().as_u16());
        if hop.host_kind == HostKind::Own {
            self.guard.answered_from(response.remote_addr());
            if let Some(date) = date(response.headers()) {
                self.clock_skew.note(date, clock::now());
            }
        }
        if let (HostKind::Own, Some(class)) = (hop.host_kind, request_class(hop.operation))
            && let Some(header) = rate_limit_header(response.headers(), clock::now())
        {
            self.rate_limit.note(class, header);
        }
        Ok(response)
    }

    fn refused(&self, about: &ErrorContext, refused: &Refused) -> Fault {
        about.rejected(self.authorizer.secrets().scrub(&refused.to_string()))
    }

    /// A failure without what was sent to the registry.
    pub(super) fn scrubbed(&self, fault: Fault) -> Fault {
        self.authorizer.secrets().scrub_fault(fault)
    }

    fn stalled(
        &self,
        call: &Call<'_>,
        overdue: Overdue,
        watch: &BodyMonitor,
        length: u64,
    ) -> Fault {
        let host = host_of(&call.url);
        let text = match overdue {
            Overdue::Take => {
                format!(
                    "{host} has taken nothing for {} s{}",
                    self.deadlines.idle.as_secs(),
                    after(watch, length)
                )
            }
            Overdue::Answer => format!("{host} has all {length} bytes and does not answer"),
        };
        call.about.retryable(text)
    }
}

/// One leg of a request.
#[derive(Clone, Copy)]
struct Hop<'a> {
    operation: Operation,
    url: &'a Url,
    host_kind: HostKind,
    authorization: Option<&'a HeaderValue>,
}

/// Counts a request when it ends, whichever way: answered, broken, timed out, dropped.
struct Observed<'a> {
    meter: &'a Meter,
    operation: Operation,
    since: Instant,
    status: Option<u16>,
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        self.meter
            .observe(self.operation, self.status, self.since.elapsed());
    }
}

/// How far a body came, for sentences.
fn after(watch: &BodyMonitor, length: u64) -> String {
    format!(" after {} of {length} bytes", watch.taken().0)
}

/// Where an answer leads, if it is a redirect.
fn redirection(answer: &Answer) -> Option<&str> {
    matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308)
        .then(|| answer.header(header::LOCATION))?
}

fn not_followed(answer: &Answer, about: &ErrorContext) -> Fault {
    let status = answer.status.as_u16();
    about.rejected(format!("{status}: a redirect of this request is not followed; set `url` to the address that it leads to"))
}

/// `host[:port]` of an address, for sentences: never its query.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    url.port()
        .map_or_else(|| host.to_string(), |port| format!("{host}:{port}"))
}
