//! The keys of an issuer: found through its discovery document, cached, and fetched again when a
//! token names a key that is not among them.
//!
//! Only one fetch runs at a time. A stranger can make up key ids, so fetches are limited; keys stay
//! valid for a day while the issuer does not answer.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet};
use reqwest::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::Url;

use super::Refused;
use crate::body;
use crate::fault::Fault;
use crate::service;
use crate::single_flight::SingleFlight;
use crate::token_bucket::TokenBucket;

/// Keys are fetched again after this time.
const FRESH: Duration = Duration::from_secs(3600);
/// While the issuer does not answer, its keys count for so long.
const USABLE: Duration = Duration::from_secs(24 * 3600);
/// Fetches that may follow each other at once.
const AT_ONCE: f64 = 3.0;
/// Fetches in a second beyond that.
const RATE: f64 = 1.0 / 30.0;
/// Time for one document.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a document at most.
const LONGEST: usize = 256 << 10;

/// The URL of an issuer, as its tokens name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer(String);

/// The text is not an issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not https://host[/path] (http only for this machine)")]
pub struct IssuerError;

impl Issuer {
    /// An `https` URL without query; `http` for this machine alone.
    ///
    /// # Errors
    /// [`IssuerError`].
    pub fn parse(text: &str) -> Result<Issuer, IssuerError> {
        let url = Url::parse(text).map_err(|_| IssuerError)?;
        let is_bare = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        (is_safe(&url) && is_bare)
            .then(|| Issuer(text.to_owned()))
            .ok_or(IssuerError)
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn host(&self) -> String {
        let url = Url::parse(&self.0).ok();
        let host = url.as_ref().and_then(Url::host_str);
        host.unwrap_or_default().to_owned()
    }

    fn discovery(&self) -> String {
        let base = self.0.trim_end_matches('/');
        format!("{base}/.well-known/openid-configuration")
    }
}

/// Whether nothing on the way can change what comes from there.
fn is_safe(url: &Url) -> bool {
    let has_host = url.host().is_some();
    (url.scheme() == "https" && has_host) || (url.scheme() == "http" && is_here(url))
}

fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: Url,
}

/// The keys of one issuer.
pub(super) struct KeySource {
    issuer: Issuer,
    known: Mutex<Known>,
    fetch: SingleFlight<Arc<JwkSet>>,
}

struct Known {
    keys: Option<(Arc<JwkSet>, Instant)>,
    /// Whether the newest fetch has told what keys there are.
    is_current: bool,
    fetches: TokenBucket,
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySource({})", self.issuer.0)
    }
}

impl KeySource {
    pub(super) fn new(issuer: Issuer) -> KeySource {
        let fetches = TokenBucket::new(RATE, AT_ONCE, Instant::now());
        KeySource {
            issuer,
            known: Mutex::new(Known {
                keys: None,
                is_current: false,
                fetches,
            }),
            fetch: SingleFlight::new(),
        }
    }

    /// The key with this id; without an id, the only key.
    pub(super) async fn key(&self, id: Option<&str>) -> Result<Jwk, Refused> {
        let cached = self.cached(USABLE);
        let found = cached.as_ref().and_then(|keys| pick(keys, id));
        if let Some(key) = &found
            && self.cached(FRESH).is_some()
        {
            return Ok(key.clone());
        }
        if !self.may_fetch() {
            let otherwise = match self.lock().is_current {
                true => Refused::UnknownKey,
                false => Refused::Unreachable,
            };
            return found.ok_or(otherwise);
        }
        let issuer = self.issuer.clone();
        let fetched = self.fetch.join(|| fetch(issuer)).await;
        self.note(fetched.as_ref().ok());
        match fetched {
            Ok(keys) => pick(&keys, id).ok_or(Refused::UnknownKey),
            Err(fault) => {
                tracing::warn!(
                    issuer = self.issuer.0,
                    error = %fault.chain(),
                    "the keys of an OIDC issuer cannot be read"
                );
                found.ok_or(Refused::Unreachable)
            }
        }
    }

    /// Keeps what a fetch has brought.
    fn note(&self, fetched: Option<&Arc<JwkSet>>) {
        let mut known = self.lock();
        known.is_current = fetched.is_some();
        if let Some(keys) = fetched {
            known.keys = Some((keys.clone(), Instant::now()));
        }
    }

    fn cached(&self, age: Duration) -> Option<Arc<JwkSet>> {
        let known = self.lock();
        let (keys, at) = known.keys.as_ref()?;
        (at.elapsed() < age).then(|| keys.clone())
    }

    fn may_fetch(&self) -> bool {
        self.lock().fetches.try_take(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pick(keys: &JwkSet, id: Option<&str>) -> Option<Jwk> {
    match (id, &keys.keys[..]) {
        (Some(id), _) => keys.find(id).cloned(),
        (None, [only]) => Some(only.clone()),
        (None, _) => None,
    }
}

async fn fetch(issuer: Issuer) -> Result<Arc<JwkSet>, Fault> {
    let client = service::client(&issuer.host())
        .connect_timeout(DEADLINE)
        .timeout(DEADLINE);
    let client = client
        .build()
        .map_err(|error| Fault::rejected(error.to_string()))?;
    let found: Discovery = document(&client, &issuer.discovery()).await?;
    if found.issuer != issuer.0 {
        let text = "the discovery document is of another issuer";
        return Err(Fault::rejected(text));
    }
    if !is_safe(&found.jwks_uri) {
        let text = "the discovery document names keys that do not come over https";
        return Err(Fault::rejected(text));
    }
    let keys: JwkSet = document(&client, found.jwks_uri.as_str()).await?;
    Ok(Arc::new(keys))
}

async fn document<T: DeserializeOwned>(client: &Client, url: &str) -> Result<T, Fault> {
    let failed = |error| Fault::retryable(format!("{url}: {}", service::without_address(&error)));
    let mut answer = client.get(url).send().await.map_err(failed)?;
    if !answer.status().is_success() {
        let text = format!("{url} answered {}", answer.status());
        return Err(Fault::retryable(text));
    }
    let Some(body) = body::read(&mut answer, LONGEST).await.map_err(failed)? else {
        let text = format!("{url} has more than {LONGEST} bytes");
        return Err(Fault::rejected(text));
    };
    serde_json::from_slice(&body)
        .map_err(|error| Fault::rejected(format!("{url} is not what it should be: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_https_or_from_this_machine() {
        for (text, is_right) in [
            ("https://token.actions.githubusercontent.com", true),
            ("https://gitlab.example/group", true),
            ("http://127.0.0.1:8080", true),
            ("http://localhost:8080", true),
            ("http://issuer.example", false),
            ("http://10.0.0.1", false),
            ("https://user:word@issuer.example", false),
            ("https://issuer.example/?tenant=1", false),
            ("issuer.example", false),
        ] {
            assert_eq!(Issuer::parse(text).is_ok(), is_right, "{text}");
        }
    }
}
