//! OIDC tokens that others show us: signed by a key of their issuer, for our audience, in time, and
//! with the claims that the config asks for.
//!
//! The keys come from the issuer's discovery document (`keys`). Only asymmetric algorithms are
//! taken: a token that is signed with `none`, or with a public key as a shared secret, is refused.

mod keys;

use std::collections::BTreeMap;
use std::sync::Arc;

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use self::keys::KeySource;
pub use self::keys::{Issuer, IssuerError};
use crate::clock;
use crate::glob::Glob;

/// How far the issuer's clock may be off, in seconds.
const LEEWAY: i64 = 60;
/// Characters of a subject at most.
/// <https://openid.net/specs/openid-connect-core-1_0.html#IDToken>
const LONGEST_SUBJECT: usize = 255;
/// What the principal of a token begins with.
const PRINCIPAL: &str = "oidc:";
/// The algorithms that are taken.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Which tokens are accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The issuer.
    pub issuer: Issuer,
    /// What the token must be for.
    pub audience: String,
    /// Claims that the token must have. Every account of a public issuer gets tokens for every
    /// audience, so there is at least one.
    pub claims: BTreeMap<String, Glob>,
}

/// Whether a claim is as the config asks.
fn fits(glob: &Glob, value: &Value) -> bool {
    match value {
        Value::String(text) => glob.matches(text),
        Value::Bool(_) | Value::Number(_) => glob.matches(&value.to_string()),
        _ => false,
    }
}

/// Why a token is refused. No text of the token is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No token where one belongs.
    #[error("send a token of the issuer as `Authorization: Bearer …`")]
    Missing,
    /// Not a signed token, or signed in a way that proves nothing.
    #[error("this is not a token that is signed with an algorithm for public keys")]
    NotAToken,
    /// The issuer has no such key.
    #[error("the issuer has no key with the token's key id")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the token's signature is not the issuer's")]
    Signature,
    /// Of another issuer.
    #[error("the token is of another issuer")]
    Issuer,
    /// For another audience.
    #[error("the token is for another audience")]
    Audience,
    /// Too old, or not valid yet.
    #[error("the token has expired or is not valid yet")]
    Expired,
    /// A claim is missing or another one.
    #[error("the token's claim `{0}` is not what the config asks for")]
    Claim(String),
    /// No subject, or none that can be shown.
    #[error("the token has no `sub` of 1 to {LONGEST_SUBJECT} printable ASCII characters")]
    Subject,
    /// The issuer's keys cannot be read now.
    #[error("the issuer's keys cannot be read now; send it again later")]
    Unreachable,
}

/// A token that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    issuer: Issuer,
    subject: Option<String>,
}

impl Accepted {
    /// The principal of the token, `oidc:ISSUER#SUBJECT`: a subject is unique within its issuer,
    /// and an issuer has no `#`.
    ///
    /// # Errors
    /// [`Refused::Subject`].
    pub fn principal(&self) -> Result<String, Refused> {
        let subject = self.subject.as_ref().ok_or(Refused::Subject)?;
        Ok(format!("{PRINCIPAL}{}#{subject}", self.issuer.as_str()))
    }
}

/// The subject in the principal of a token.
pub fn subject_of(principal: &str) -> Option<&str> {
    let (_, subject) = principal.strip_prefix(PRINCIPAL)?.split_once('#')?;
    Some(subject)
}

/// Checks tokens. Clones share the issuer's keys.
#[derive(Clone, Debug)]
pub struct Verifier {
    settings: Settings,
    keys: Arc<KeySource>,
}

impl Verifier {
    /// A verifier that has no keys yet: the first token fetches them.
    pub fn new(settings: Settings) -> Verifier {
        Verifier {
            keys: Arc::new(KeySource::new(settings.issuer.clone())),
            settings,
        }
    }

    /// Which tokens it accepts.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Accepts a token or refuses it. A token that names another issuer fetches no keys.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn verify(&self, token: &str) -> Result<Accepted, Refused> {
        self.accept(&self.signed(token).await?)
    }

    /// The claims of a token that the issuer has signed. A token that names another issuer fetches
    /// no keys.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn signed(&self, token: &str) -> Result<Map<String, Value>, Refused> {
        let header = decode_header(token).map_err(|_| Refused::NotAToken)?;
        // An extension that is critical and not known here: RFC 7515, section 4.1.11.
        if !ALGORITHMS.contains(&header.alg) || header.crit.is_some() {
            return Err(Refused::NotAToken);
        }
        let claimed: Map<String, Value> =
            insecure_decode_claims(token).map_err(|_| Refused::NotAToken)?;
        self.check_issuer(&claimed)?;
        let key = self.keys.key(header.kid.as_deref()).await?;
        let is_for_it = key
            .common
            .key_algorithm
            .is_none_or(|algorithm| algorithm.to_string() == format!("{:?}", header.alg));
        if !is_for_it {
            return Err(Refused::Signature);
        }
        let key = DecodingKey::from_jwk(&key).map_err(|_| Refused::UnknownKey)?;
        let signed = decode::<Map<String, Value>>(token, &key, &signature_alone(header.alg));
        Ok(signed.map_err(|_| Refused::Signature)?.claims)
    }

    /// Accepts what the issuer has signed, or refuses it.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn accept(&self, claims: &Map<String, Value>) -> Result<Accepted, Refused> {
        self.check_issuer(claims)?;
        self.check(claims)?;
        Ok(Accepted {
            issuer: self.settings.issuer.clone(),
            subject: subject(claims),
        })
    }

    fn check_issuer(&self, claims: &Map<String, Value>) -> Result<(), Refused> {
        let issuer = claims.get("iss").and_then(Value::as_str);
        match issuer == Some(self.settings.issuer.as_str()) {
            true => Ok(()),
            false => Err(Refused::Issuer),
        }
    }

    fn check(&self, claims: &Map<String, Value>) -> Result<(), Refused> {
        let settings = &self.settings;
        let is_ours = |audience: &Value| audience.as_str() == Some(&settings.audience);
        let is_for_us = match claims.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(is_ours),
            Some(audience) => is_ours(audience),
            None => false,
        };
        if !is_for_us {
            return Err(Refused::Audience);
        }
        if !is_in_time(claims) {
            return Err(Refused::Expired);
        }
        let differs = settings
            .claims
            .iter()
            .find(|(name, glob)| !claims.get(*name).is_some_and(|value| fits(glob, value)));
        match differs {
            Some((name, _)) => Err(Refused::Claim(name.clone())),
            None => Ok(()),
        }
    }
}

/// Validation of the signature: the claims are checked here, against the program's own clock.
fn signature_alone(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation
}

/// The subject, unless the ledger cannot show it.
fn subject(claims: &Map<String, Value>) -> Option<String> {
    let subject = claims.get("sub").and_then(Value::as_str)?;
    let is_printable = subject
        .bytes()
        .all(|byte| byte.is_ascii_graphic() || byte == b' ');
    let is_subject = is_printable && (1..=LONGEST_SUBJECT).contains(&subject.len());
    is_subject.then(|| subject.to_owned())
}

fn time(claims: &Map<String, Value>, name: &str) -> Option<i64> {
    let value = claims.get(name)?;
    value
        .as_i64()
        .or_else(|| value.as_f64().map(|time| time as i64))
}

/// A token without an end is refused.
fn is_in_time(claims: &Map<String, Value>) -> bool {
    let now = clock::now().as_second();
    let has_begun = match claims.contains_key("nbf") {
        true => time(claims, "nbf").is_some_and(|begin| begin <= now.saturating_add(LEEWAY)),
        false => true,
    };
    has_begun && time(claims, "exp").is_some_and(|end| end > now.saturating_sub(LEEWAY))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_principal_is_the_subject_with_its_issuer() {
        let long = "x".repeat(256);
        for (subject, expected) in [
            (
                json!("repo:acme/app:ref:refs/heads/main"),
                Some("oidc:https://ci.example#repo:acme/app:ref:refs/heads/main"),
            ),
            (json!("a b"), Some("oidc:https://ci.example#a b")),
            (json!(""), None),
            (json!("a\nb"), None),
            (json!("\u{202e}b"), None),
            (json!(long), None),
            (json!(7), None),
            (Value::Null, None),
        ] {
            let claims = Map::from_iter([("sub".to_owned(), subject.clone())]);
            let accepted = Accepted {
                issuer: Issuer::parse("https://ci.example").unwrap(),
                subject: super::subject(&claims),
            };
            assert_eq!(accepted.principal().ok().as_deref(), expected, "{subject}");
        }
        let principal = "oidc:https://ci.example#a#b";
        assert_eq!(subject_of(principal), Some("a#b"));
        assert_eq!(subject_of("user:alice"), None);
    }

    #[test]
    fn a_claim_is_compared_as_a_whole() {
        for (pattern, value, expected) in [
            ("acme/*", json!("acme/app"), true),
            ("acme/*", json!("acme/app/x"), false),
            ("acme/**", json!("acme/app/x"), true),
            ("acme/*", json!("not-acme/app"), false),
            ("acme/app", json!("acme/app\n"), false),
            ("acme.example", json!("acmexexample"), false),
            ("true", json!(true), true),
            ("17", json!(17), true),
            ("*", json!(["a"]), false),
            ("*", json!(null), false),
        ] {
            let matches = fits(&pattern.parse().unwrap(), &value);
            assert_eq!(matches, expected, "{pattern} {value}");
        }
    }
}
