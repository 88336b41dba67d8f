//! The secret that a receiver and its sender share.
//!
//! | kind | where the sender puts it |
//! |---|---|
//! | ghcr | `X-Hub-Signature-256: sha256=HEX`, HMAC-SHA256 of the body |
//! | gitea | `X-Gitea-Signature` or `X-Forgejo-Signature: HEX`, else `X-Hub-Signature-256` |
//! | nexus | `X-Nexus-Webhook-Signature: HEX`, HMAC-SHA1 of the body |
//! | artifactory | `X-JFrog-Event-Auth`: the secret, or the HMAC-SHA256 of the body as HEX |
//! | generic | `X-Signature: sha256=HEX`, or Standard Webhooks |
//! | others | `Authorization` (bare, `Bearer`, or the password of `Basic`), `X-Webhook-Secret`, `X-JFrog-Event-Auth` |
//! | quay, dockerhub, acr, ecr | also `?secret=`, since these senders cannot set every header |
//!
//! Signatures cover the raw bytes and are checked before the body is parsed. Every comparison takes
//! the same time for right and wrong values. Two secrets may be valid at once, so that one can
//! replace the other without a lost event.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use url::form_urlencoded;

use super::Kind;

/// Secrets that are valid at once.
pub const MAX_SECRETS: usize = 2;
/// How far the clock of a Standard Webhooks sender may be off, which bounds replays.
/// <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);
/// What a Standard Webhooks secret begins with.
const STANDARD_PREFIX: &str = "whsec_";

/// A delivery, before anything of it is believed.
#[derive(Clone, Copy, Debug)]
pub struct Unverified<'a> {
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The query of the URL, without its question mark.
    pub query: Option<&'a str>,
    /// The raw body.
    pub body: &'a [u8],
    /// When it arrived.
    pub arrived: Timestamp,
}

/// Why a delivery is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Neither a signature nor a secret.
    #[error("the request has no signature and no secret where this kind of receiver expects one")]
    Missing,
    /// A signature or a secret that is not ours.
    #[error("the signature or the secret is not the one of this receiver")]
    Wrong,
    /// A signed delivery that is too old or from the future.
    #[error("the delivery's timestamp is more than five minutes away from our clock")]
    Stale,
}

/// The secrets of a receiver; the newest first.
#[derive(Clone)]
pub struct Secrets(Vec<SecretString>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

/// A secret file that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// No line with characters.
    #[error("the secret file is empty; put a long random word into it")]
    Empty,
    /// More lines than may be valid at once.
    #[error(
        "the secret file has more than {MAX_SECRETS} lines; keep the new secret and the one before it"
    )]
    TooMany,
}

impl Secrets {
    /// One secret on each line of `text`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn parse(text: &str) -> Result<Secrets, FileError> {
        let secrets: Vec<SecretString> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(SecretString::from)
            .collect();
        match secrets.len() {
            0 => Err(FileError::Empty),
            1..=MAX_SECRETS => Ok(Secrets(secrets)),
            _ => Err(FileError::TooMany),
        }
    }

    /// Whether the delivery comes from a sender that has one of the secrets.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self, kind: Kind, delivery: Unverified<'_>) -> Result<(), Refused> {
        let proof = Proof::of(kind, &delivery).ok_or(Refused::Missing)?;
        if proof.is_stale(delivery.arrived) {
            return Err(Refused::Stale);
        }
        let is_ours = self
            .0
            .iter()
            .map(|secret| proof.matches(secret.expose_secret(), delivery.body))
            .fold(false, |any, one| any | one);
        if is_ours { Ok(()) } else { Err(Refused::Wrong) }
    }
}

/// What a sender shows.
enum Proof {
    /// The secret itself.
    Plain(Vec<u8>),
    /// The HMAC-SHA256 of the body.
    Sha256(Vec<u8>),
    /// The HMAC-SHA1 of the body.
    Sha1(Vec<u8>),
    /// The secret itself, or the HMAC-SHA256 of the body as hex.
    PlainOrSha256(Vec<u8>),
    /// Standard Webhooks: signatures of `ID.TIMESTAMP.BODY`.
    Standard {
        id: String,
        timestamp: i64,
        signatures: Vec<Vec<u8>>,
    },
}

impl Proof {
    fn of(kind: Kind, delivery: &Unverified<'_>) -> Option<Proof> {
        let headers = delivery.headers;
        match kind {
            Kind::Ghcr => hub_signature(headers),
            Kind::Gitea => gitea_signature(headers).or_else(|| hub_signature(headers)),
            Kind::Nexus => {
                let signature = header(headers, "x-nexus-webhook-signature")?;
                Some(Proof::Sha1(unhex(signature)))
            }
            Kind::Artifactory => {
                let shown = header(headers, "x-jfrog-event-auth")?;
                Some(Proof::PlainOrSha256(shown.as_bytes().to_vec()))
            }
            Kind::Generic => {
                prefixed_signature(headers, "x-signature").or_else(|| standard(headers))
            }
            Kind::Acr | Kind::Dockerhub | Kind::Ecr | Kind::Quay => {
                plain(headers).or_else(|| query_secret(delivery.query))
            }
            Kind::Distribution | Kind::Gar | Kind::Harbor | Kind::Zot => plain(headers),
        }
    }

    fn is_stale(&self, arrived: Timestamp) -> bool {
        let Proof::Standard { timestamp, .. } = self else {
            return false;
        };
        let Ok(signed) = Timestamp::from_second(*timestamp) else {
            return true;
        };
        arrived.duration_since(signed).abs() > TOLERANCE
    }

    fn matches(&self, secret: &str, body: &[u8]) -> bool {
        match self {
            Proof::Plain(shown) => is_equal(secret.as_bytes(), shown),
            Proof::Sha256(tag) => verifies(hmac::HMAC_SHA256, secret.as_bytes(), body, tag),
            Proof::Sha1(tag) => {
                let algorithm = hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY;
                verifies(algorithm, secret.as_bytes(), body, tag)
            }
            Proof::PlainOrSha256(shown) => {
                let tag = hex::decode(shown).unwrap_or_default();
                let is_signed = verifies(hmac::HMAC_SHA256, secret.as_bytes(), body, &tag);
                is_equal(secret.as_bytes(), shown) | is_signed
            }
            Proof::Standard {
                id,
                timestamp,
                signatures,
            } => {
                let mut signed = format!("{id}.{timestamp}.").into_bytes();
                signed.extend_from_slice(body);
                let key = standard_key(secret);
                signatures
                    .iter()
                    .map(|tag| verifies(hmac::HMAC_SHA256, &key, &signed, tag))
                    .fold(false, |any, one| any | one)
            }
        }
    }
}

/// `sha256=HEX`, as GitHub sends it.
fn hub_signature(headers: &HeaderMap) -> Option<Proof> {
    prefixed_signature(headers, "x-hub-signature-256")
}

fn prefixed_signature(headers: &HeaderMap, name: &str) -> Option<Proof> {
    let signature = header(headers, name)?.strip_prefix("sha256=")?;
    Some(Proof::Sha256(unhex(signature)))
}

fn gitea_signature(headers: &HeaderMap) -> Option<Proof> {
    let signature =
        header(headers, "x-gitea-signature").or_else(|| header(headers, "x-forgejo-signature"))?;
    Some(Proof::Sha256(unhex(signature)))
}

/// `webhook-id`, `webhook-timestamp` and `webhook-signature: v1,BASE64 v1,BASE64`.
fn standard(headers: &HeaderMap) -> Option<Proof> {
    /// A sender that rotates its keys sends two.
    const MAX_SIGNATURES: usize = 8;
    let signatures = header(headers, "webhook-signature")?
        .split(' ')
        .filter_map(|signature| signature.strip_prefix("v1,"))
        .take(MAX_SIGNATURES)
        .map(|text| STANDARD.decode(text).unwrap_or_default())
        .collect();
    Some(Proof::Standard {
        id: header(headers, "webhook-id")?.to_owned(),
        timestamp: header(headers, "webhook-timestamp")?.parse().ok()?,
        signatures,
    })
}

/// The key of a Standard Webhooks secret: base64 behind its prefix, else the characters.
fn standard_key(secret: &str) -> Vec<u8> {
    secret
        .strip_prefix(STANDARD_PREFIX)
        .and_then(|encoded| STANDARD.decode(encoded).ok())
        .unwrap_or_else(|| secret.as_bytes().to_vec())
}

/// The secret in a header.
fn plain(headers: &HeaderMap) -> Option<Proof> {
    let shown = match header(headers, AUTHORIZATION.as_str()) {
        Some(value) => authorization(value),
        None => header(headers, "x-webhook-secret")
            .or_else(|| header(headers, "x-jfrog-event-auth"))?
            .as_bytes()
            .to_vec(),
    };
    Some(Proof::Plain(shown))
}

/// `Bearer SECRET`, `Basic BASE64(USER:SECRET)`, or the secret alone.
fn authorization(value: &str) -> Vec<u8> {
    let (scheme, credentials) = value.split_once(' ').unwrap_or(("", value));
    if scheme.eq_ignore_ascii_case("bearer") {
        return credentials.trim().as_bytes().to_vec();
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(credentials.trim()).unwrap_or_default();
        let colon = decoded.iter().position(|byte| *byte == b':');
        return colon.map_or(Vec::new(), |at| decoded[at + 1..].to_vec());
    }
    value.as_bytes().to_vec()
}

fn query_secret(query: Option<&str>) -> Option<Proof> {
    let (_, shown) = form_urlencoded::parse(query?.as_bytes()).find(|(key, _)| key == "secret")?;
    Some(Proof::Plain(shown.into_owned().into_bytes()))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The bytes of a signature; none of what is not hex, which verifies nothing.
fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text.trim()).unwrap_or_default()
}

fn verifies(algorithm: hmac::Algorithm, secret: &[u8], message: &[u8], tag: &[u8]) -> bool {
    hmac::verify(&hmac::Key::new(algorithm, secret), message, tag).is_ok()
}

/// Compares in constant time. Digests have one length, so the time taken does not even show the
/// length of the secret.
pub fn is_equal(ours: &[u8], shown: &[u8]) -> bool {
    SecretHash::of(ours).is_equal(&SecretHash::of(shown))
}

/// The hash of a secret. It does not print.
#[derive(Clone)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Hashes a secret.
    pub fn of(secret: &[u8]) -> SecretHash {
        SecretHash(Sha256::digest(secret).into())
    }

    /// Compares in constant time.
    pub fn is_equal(&self, other: &SecretHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash")
    }
}
