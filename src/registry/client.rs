//! The HTTP clients of one registry: trust, proxies, connections.
//!
//! Three of them. `api` speaks HTTP/2 where it can; `blob` speaks HTTP/1.1 only, since one
//! connection for each body is faster than many bodies on one. `foreign` goes where answers lead:
//! it never holds the registry's client certificate. None follows redirects, keeps cookies, or
//! decompresses.
//!
//! A connection belongs to the thread that opened it. Each byte thread has a `blob` and a `foreign`
//! of its own, built when it first needs one.

use std::fmt::Formatter;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity, redirect};
use secrecy::{ExposeSecret as _, SecretSlice};
use tokio::sync::OnceCell;
use url::Url;

use super::Deadlines;
use super::redirect::{AddressGuard, HostKind, Resolver, Resolves};
use crate::byte_threads;
use crate::byte_threads::MOST;
use crate::fault::Fault;

/// The certificates to trust, and the client certificate to present.
#[derive(Clone, Default)]
pub struct Tls {
    /// Certificates in PEM that are trusted besides the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// Our certificate chain and private key in one PEM text, for registries that ask for one.
    pub identity_pem: Option<SecretSlice<u8>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca_pem.is_some())
            .field("identity", &self.identity_pem.is_some())
            .finish()
    }
}

/// Which client a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientKind {
    /// Small questions and answers.
    Api,
    /// Bodies of blobs.
    Blob,
}

/// The clients of one registry.
pub(super) struct Clients {
    pub(super) api: Client,
    /// Of the deciding thread.
    blob: Client,
    /// Of the byte threads, by their numbers less one.
    blobs: [OnceCell<Client>; MOST],
    /// Of all threads; the first is the deciding one.
    foreign: [OnceCell<Client>; MOST + 1],
    config: ClientConfig,
}

/// All it takes to build a client.
#[derive(Clone)]
struct ClientConfig {
    name: String,
    url: Url,
    certificates: Vec<Certificate>,
    identity: Option<Identity>,
    loopback: bool,
    connect: Duration,
    guard: Arc<AddressGuard>,
}

impl Clients {
    /// Builds the clients of the registry called `name` at `url`. `realms` says whether token
    /// servers elsewhere are named, which speak https even when the registry does not.
    ///
    /// # Errors
    /// Certificates or keys that do not parse, and a system without CA certificates when https
    /// needs them.
    pub(super) fn new(
        name: &str,
        url: &Url,
        tls: &Tls,
        realms: bool,
        deadlines: &Deadlines,
        guard: Arc<AddressGuard>,
    ) -> Result<Clients, Fault> {
        let config = ClientConfig::new(name, url, tls, deadlines, guard)?;
        let trusting = url.scheme() == "https" || realms || !config.certificates.is_empty();
        let api = match (config.api(trusting), trusting) {
            // Plain http must work on a system without CA certificates.
            (Err(_), true) if url.scheme() == "http" => config.api(false),
            (built, _) => built,
        };
        let blob = config.own_blob().map_err(|error| config.fault(error))?;
        Ok(Clients {
            api: api.map_err(|error| config.fault(error))?,
            blob,
            blobs: [const { OnceCell::const_new() }; MOST],
            foreign: [const { OnceCell::const_new() }; MOST + 1],
            config,
        })
    }

    /// The client of this thread for an address.
    pub(super) async fn of(
        &self,
        host_kind: HostKind,
        client_kind: ClientKind,
    ) -> Result<&Client, Fault> {
        let thread = byte_threads::current();
        match (host_kind, client_kind, thread.checked_sub(1)) {
            (HostKind::Own, ClientKind::Api, _) => Ok(&self.api),
            (HostKind::Own, ClientKind::Blob, None) => Ok(&self.blob),
            (HostKind::Own, ClientKind::Blob, Some(byte_thread)) => {
                self.blobs[byte_thread]
                    .get_or_try_init(|| self.config.built(ClientConfig::own_blob))
                    .await
            }
            (HostKind::Foreign, _, _) => {
                self.foreign[thread]
                    .get_or_try_init(|| self.config.built(ClientConfig::foreign))
                    .await
            }
        }
    }
}

impl ClientConfig {
    fn new(
        name: &str,
        url: &Url,
        tls: &Tls,
        deadlines: &Deadlines,
        guard: Arc<AddressGuard>,
    ) -> Result<ClientConfig, Fault> {
        let unusable = |what: &str| Fault::rejected(format!("registry {name}: {what}"));
        let certificates = match &tls.ca_pem {
            None => Vec::new(),
            Some(pem) => Certificate::from_pem_bundle(pem)
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| unusable("`ca_file` holds no certificate in PEM"))?,
        };
        let identity = tls
            .identity_pem
            .as_ref()
            .map(|pem| Identity::from_pem(pem.expose_secret()))
            .transpose();
        Ok(ClientConfig {
            name: name.to_string(),
            url: url.clone(),
            certificates,
            identity: identity
                .map_err(|_| unusable("`client_cert_file` and `client_key_file` hold no certificate and private key in PEM"))?,
            loopback: super::is_loopback(url),
            connect: deadlines.connect,
            guard,
        })
    }

    fn base(&self, trusting: bool, resolves: Resolves) -> ClientBuilder {
        let mut builder = Client::builder()
            .user_agent(concat!("blobferry/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.connect)
            .pool_idle_timeout(Duration::from_secs(15))
            .tcp_keepalive(Duration::from_secs(30))
            .dns_resolver(Resolver {
                guard: self.guard.clone(),
                resolves,
            });
        if self.loopback {
            builder = builder.no_proxy();
        }
        if trusting {
            builder.tls_certs_merge(self.certificates.iter().cloned())
        } else {
            builder.tls_certs_only([])
        }
    }

    fn known(&self, trusting: bool) -> ClientBuilder {
        let builder = self.base(trusting, Resolves::Own);
        match &self.identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    }

    fn api(&self, trusting: bool) -> reqwest::Result<Client> {
        let beat = Duration::from_secs(10);
        self.known(trusting)
            .http2_keep_alive_interval(beat)
            .http2_keep_alive_timeout(beat)
            .build()
    }

    fn own_blob(&self) -> reqwest::Result<Client> {
        let trusting = self.url.scheme() == "https";
        self.known(trusting).http1_only().build()
    }

    fn foreign(&self) -> reqwest::Result<Client> {
        let trusting = self.base(true, Resolves::Foreign).http1_only().build();
        match trusting {
            Err(_) if self.url.scheme() == "http" => {
                self.base(false, Resolves::Foreign).http1_only().build()
            }
            built => built,
        }
    }

    /// Loads the system's certificates from disk, hence beside the runtime.
    async fn built(
        &self,
        build: impl FnOnce(&ClientConfig) -> reqwest::Result<Client> + Send + 'static,
    ) -> Result<Client, Fault> {
        let config = self.clone();
        let built = tokio::task::spawn_blocking(move || build(&config))
            .await
            .map_err(|error| Fault::retryable("the HTTP client was not built").because(error))?;
        built.map_err(|error| self.fault(error))
    }

    fn fault(&self, error: reqwest::Error) -> Fault {
        let text = if self.certificates.is_empty() && self.identity.is_none() {
            "no CA certificates on this system; install them (package ca-certificates) or name the registry's CA with `ca_file`"
        } else {
            "its certificates cannot be used; check `ca_file`, `client_cert_file` and `client_key_file`"
        };
        Fault::rejected(format!("registry {}: {text}", self.name)).because(error.without_url())
    }
}
