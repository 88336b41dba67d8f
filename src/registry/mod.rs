//! The client of the OCI distribution protocol.
//!
//! One request per function (two where the protocol asks for a second look): no retries, no waiting
//! beyond a request's own deadlines, no memory of jobs. What can happen normally is a value; a
//! [`Fault`] names the registry, the repository and the way out. Nothing that works like a password
//! (credentials, upload locations, queries of signed addresses) is shown.
//!
//! | file | what is there |
//! |---|---|
//! | `transport` | the only place that sends: credentials, one challenge round, redirects, deadlines, counting |
//! | `client`, `redirect`, `body` | HTTP clients and trust; where a request may lead; the body of an upload on its way |
//! | `blob`, `upload`, `manifest`, `tags`, `referrers` | the endpoints |
//! | [`auth`] | credentials, challenges, tokens |
//! | [`profile`] | what each kind of registry does differently |
//! | `error`, `rate_limit_headers`, [`metrics`] | statuses and codes → faults; what is left of a quota; what is counted |

pub mod auth;
mod blob;
mod body;
mod client;
mod error;
mod manifest;
pub mod metrics;
pub mod profile;
mod rate_limit_headers;
mod redirect;
mod referrers;
mod secrets;
mod tags;
mod transport;
mod upload;

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::SignedDuration;
use url::Url;

use self::auth::{Authorizer, Scopes};
use self::client::Clients;
use self::error::ErrorContext;
use self::metrics::Operation;
use self::profile::{Kind, Profile};
use self::redirect::AddressGuard;
use self::transport::{Call, Transport, host_of};
use crate::endpoint::rate_limit::RateLimit;
use crate::endpoint::{
    Abilities, Begin, BlobBody, ClockSkew, Cursor, Destination, Offset, Origin, Page, Presence,
    Put, Resolved, Sent, Source, Tag, Tally, Upload,
};
use crate::fault::Fault;
use crate::oci::{Descriptor, Digest, Host, Manifest, RepositoryName, Target};

pub use self::client::Tls;
pub use self::error::named_wait;
pub use self::metrics::Metrics;
pub use self::redirect::is_metadata;
pub use self::tags::MAX_PAGES;

/// What a registry is made from.
#[derive(Clone)]
pub struct Settings {
    /// Its name in the config: the label of metrics, the word in messages.
    pub name: String,
    /// `https://host[:port]` or `http://host[:port]`.
    pub url: Url,
    /// The credentials.
    pub credentials: auth::Credentials,
    /// Its kind, where the host name does not tell.
    pub kind: Option<Kind>,
    /// The certificates to trust, and the client certificate.
    pub tls: Tls,
    /// Hosts of token servers beyond the registry's own domain.
    pub token_realms: Vec<String>,
    /// Whether credentials may travel over plain http beyond this machine.
    pub insecure: bool,
    /// How long each thing may take.
    pub deadlines: Deadlines,
}

/// How long each thing may take. Every wait of a request has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// A connection, with its TLS handshake.
    pub connect: Duration,
    /// From a request without a body to the head of its answer.
    pub answer: Duration,
    /// Answers that a registry has to work for: a manifest written, the body of a listing.
    pub work: Duration,
    /// Between two reads of a blob's body, and between two takes of an upload's.
    pub idle: Duration,
    /// From the last byte of an upload to its answer: some registries hash the whole blob
    /// meanwhile.
    pub close: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(15),
            work: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            close: Duration::from_secs(15 * 60),
        }
    }
}

/// A registry. A handle: cheap to clone, shared connections behind it.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    transport: Transport,
    profile: Profile,
    origin: Origin,
    referrers: referrers::ReferrersSupport,
}

impl Registry {
    /// A client of the registry. Connects to nothing.
    ///
    /// # Errors
    /// An address that is not `http(s)://host[:port]`, certificates that do not parse, or no CA
    /// certificates at all on this system where https needs them.
    pub fn new(settings: Settings, metrics: &Metrics) -> Result<Registry, Fault> {
        let Settings {
            name,
            url,
            credentials,
            kind,
            tls,
            token_realms,
            insecure,
            deadlines,
        } = settings;
        let kind = kind.unwrap_or_else(|| Kind::recognise(url.host_str().unwrap_or_default()));
        let base = canonical(&name, url, kind)?;
        let guard = AddressGuard::new(base.clone()).with_listed(&token_realms);
        // The clients take no proxy to this machine.
        let guard = Arc::new(if is_loopback(&base) {
            guard
        } else {
            guard.with_proxies()
        });
        let clients = Clients::new(
            &name,
            &base,
            &tls,
            !token_realms.is_empty(),
            &deadlines,
            guard.clone(),
        )?;
        let authorizer = auth::Settings {
            registry: name.clone(),
            origin: base.clone(),
            credentials,
            token_realms,
            insecure,
            deadline: deadlines.answer,
        };
        let authorizer = Authorizer::guarded(authorizer, clients.api.clone(), guard.clone());
        let meter = metrics.meter(&name);
        let host = host_of(&base).into();
        let origin = Origin::new(&base.origin().ascii_serialization());
        let transport = Transport {
            name: name.into(),
            host,
            base,
            guard,
            clients,
            authorizer,
            deadlines,
            meter,
            rate_limit: RateLimit::default(),
            clock_skew: ClockSkew::default(),
        };
        Ok(Registry(Arc::new(Shared {
            transport,
            profile: kind.profile(),
            origin,
            referrers: Default::default(),
        })))
    }

    /// Its name in the config.
    pub fn name(&self) -> &str {
        &self.transport().name
    }

    /// Its canonical scheme, host and port.
    pub fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// `host[:port]`, as in references.
    pub fn host(&self) -> &str {
        &self.transport().host
    }

    /// How it is treated.
    pub fn profile(&self) -> &Profile {
        &self.0.profile
    }

    /// What it says that it still allows.
    pub fn rate_limit(&self) -> &RateLimit {
        &self.transport().rate_limit
    }

    /// How far our clock is ahead of its, by its last answer.
    pub fn clock_skew(&self) -> Option<SignedDuration> {
        self.transport().clock_skew.get()
    }

    /// The principal at the registry, where the credentials tell it.
    pub fn user(&self) -> Option<String> {
        self.transport().authorizer.user()
    }

    /// One of its repositories. On Docker Hub a name of one part is an official image and lives
    /// under `library`.
    pub fn repository(&self, name: RepositoryName) -> Repository {
        let official = self.profile().kind == Kind::DockerHub && !name.as_str().contains('/');
        let longer = official
            .then(|| format!("library/{name}").parse().ok())
            .flatten();
        let name = longer.unwrap_or(name);
        let pull = Arc::new(Scopes::pull(&name));
        let push = Arc::new(Scopes::push(&name));
        Repository {
            registry: self.clone(),
            name,
            pull,
            push,
            tally: None,
        }
    }

    /// The version check: the registry is there, speaks the protocol and accepts us.
    ///
    /// # Errors
    /// As any request; another service at this address is `Rejected`.
    pub async fn ping(&self) -> Result<(), Fault> {
        self.check_version()
            .await
            .map_err(|fault| self.transport().scrubbed(fault))
    }

    async fn check_version(&self) -> Result<(), Fault> {
        let about = self.about("check the registry");
        let scopes = Scopes::none();
        let call = Call::new(
            Operation::Ping,
            Method::GET,
            self.transport().url("/v2/"),
            &scopes,
            &about,
        );
        let answer = self.transport().call(&call).await?;
        match answer.status.as_u16() {
            200..=299 => Ok(()),
            404 => Err(about.rejected("404: what answers is not a registry; check its `url`")),
            _ => Err(self.transport().refusal(answer).await.fault(&about)),
        }
    }

    fn transport(&self) -> &Transport {
        &self.0.transport
    }

    fn referrers(&self) -> &referrers::ReferrersSupport {
        &self.0.referrers
    }

    fn about(&self, doing: &'static str) -> ErrorContext {
        ErrorContext::new(doing, &self.transport().name, self.host().to_string())
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({}, {})", self.name(), self.origin())
    }
}

/// The address that requests go to, without path, query or password.
fn canonical(name: &str, mut url: Url, kind: Kind) -> Result<Url, Fault> {
    let refuse = |text: &str| Err(Fault::rejected(format!("registry {name}: {text}")));
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return refuse("`url` must be http://host[:port] or https://host[:port]");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("`url` holds a name or password; use `username` and `password_file`");
    }
    if !matches!(url.path(), "" | "/" | "/v2" | "/v2/")
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return refuse(
            "`url` holds more than scheme, host and port; a path belongs in front of the repository names",
        );
    }
    url.set_path("/");
    if kind == Kind::DockerHub && matches!(url.host_str(), Some("docker.io" | "index.docker.io")) {
        url.set_host(Some("registry-1.docker.io"))
            .expect("a literal host name is valid");
    }
    Ok(url)
}

/// Whether an address names this machine by its very words.
fn is_loopback(url: &Url) -> bool {
    host_of(url)
        .parse::<Host>()
        .is_ok_and(|host| host.is_loopback())
}

/// One repository of a registry. A handle: cheap to clone.
#[derive(Clone)]
pub struct Repository {
    registry: Registry,
    name: RepositoryName,
    pull: Arc<Scopes>,
    push: Arc<Scopes>,
    tally: Option<Arc<Tally>>,
}

impl Repository {
    fn transport(&self) -> &Transport {
        self.registry.transport()
    }

    /// What goes out of here holds no credential that the registry has seen.
    fn scrubbed<T>(&self, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|fault| self.transport().scrubbed(fault))
    }

    /// What is being done to this repository; `reference` is empty, `:tag` or `@digest`.
    fn about(&self, doing: &'static str, reference: &str) -> ErrorContext {
        ErrorContext::new(
            doing,
            &self.transport().name,
            format!("{}/{}{reference}", self.registry.host(), self.name),
        )
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({})", self.address())
    }
}

impl Source for Repository {
    fn registry(&self) -> &str {
        self.registry.name()
    }

    fn origin(&self) -> &Origin {
        self.registry.origin()
    }

    fn repository(&self) -> &RepositoryName {
        &self.name
    }

    fn address(&self) -> String {
        format!("{}/{}", self.registry.host(), self.name)
    }

    fn counted(&self, tally: &Arc<Tally>) -> Repository {
        Repository {
            tally: Some(tally.clone()),
            ..self.clone()
        }
    }

    async fn tags(&self, cursor: Option<&Cursor>) -> Result<Option<Page<Tag>>, Fault> {
        self.scrubbed(self.tag_page(cursor).await)
    }

    async fn resolve(&self, target: &Target) -> Result<Option<Resolved>, Fault> {
        self.scrubbed(self.head_manifest(target).await)
    }

    async fn manifest(&self, target: &Target) -> Result<Option<Manifest>, Fault> {
        self.scrubbed(self.read_manifest(target).await)
    }

    fn lists_referrers(&self) -> Option<bool> {
        self.has_referrers_endpoint()
    }

    async fn referrers(
        &self,
        subject: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        self.scrubbed(self.referrer_page(subject, cursor).await)
    }

    async fn read_blob(&self, blob: &Descriptor, offset: u64) -> Result<Option<BlobBody>, Fault> {
        self.scrubbed(self.blob_bytes(blob, offset).await)
    }

    async fn read_part(
        &self,
        blob: &Descriptor,
        part: Range<u64>,
    ) -> Result<Option<BlobBody>, Fault> {
        self.scrubbed(self.blob_part(blob, part).await)
    }
}

impl Destination for Repository {
    fn abilities(&self) -> Abilities {
        self.registry.profile().abilities
    }

    fn clock_skew(&self) -> Option<SignedDuration> {
        self.registry.clock_skew()
    }

    async fn prepare_push(&self) {
        self.transport().prepare(&self.push).await;
    }

    async fn has_blob(&self, digest: &Digest) -> Result<Presence, Fault> {
        self.scrubbed(self.blob_presence(digest).await)
    }

    async fn begin_upload(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        self.scrubbed(self.open(digest, from).await)
    }

    async fn send_chunk(
        &self,
        upload: &mut Upload,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        self.scrubbed(self.chunk(upload, offset, length, body).await)
    }

    async fn finish_upload(
        &self,
        upload: &mut Upload,
        digest: &Digest,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        self.scrubbed(self.close(upload, digest, offset, length, body).await)
    }

    async fn upload_offset(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        self.scrubbed(self.held(upload).await)
    }

    async fn cancel_upload(&self, upload: Upload) -> Result<(), Fault> {
        self.scrubbed(self.abandon(upload).await)
    }

    async fn put_manifest(&self, target: &Target, manifest: &Manifest) -> Result<Put, Fault> {
        self.scrubbed(self.write_manifest(target, manifest).await)
    }
}
