//! Signatures and attestations of Sigstore: the one module that knows the crate that verifies them.
//!
//! What is accepted is bound to one image and one signer: the bundle's own payload names the
//! image's digest, its predicate is the one that is asked for, and its log entry describes this
//! very signature. Everything is verified offline, against roots that are built in or named in the
//! config. A key of the config needs neither a log entry nor a timestamp.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use sigstore_verify::crypto::{KeyAlgorithm, verify_signature, verify_signature_prehashed};
use sigstore_verify::trust_root::{SigstoreInstance, TrustedRoot};
use sigstore_verify::types::{Bundle, DerPublicKey, Sha256Hash, SignatureBytes, SignatureContent};
use sigstore_verify::{PublicKeyVerificationPolicy, VerificationPolicy, Verifier};

use crate::fault::clip;
use crate::job::gates::{Identity, Key, Root, Signer};
use crate::oci::{Algorithm, Digest};

/// The predicate of a signature that cosign makes.
pub const COSIGN_SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
/// The media types of bundles begin so.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// The media type of cosign's older signatures.
pub const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// A signature that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The predicate of the statement; `None`: the signature is over the image itself.
    pub predicate: Option<String>,
    /// The identity in the certificate, or the name of the key.
    pub identity: String,
    /// The issuer of the identity; `None`: a key.
    pub issuer: Option<String>,
    /// When it was signed at the latest, where that is proven.
    pub signed: Option<Timestamp>,
    /// The index of its entry in a log.
    pub log_index: Option<u64>,
}

impl Verified {
    /// What the ledger keeps of it.
    pub fn evidence(&self) -> Value {
        json!({
            "predicate_type": self.predicate,
            "identity": self.identity,
            "issuer": self.issuer,
            "signed": self.signed,
            "log_index": self.log_index,
        })
    }
}

/// An older signature of cosign: a layer of its image, with the annotations of the layer.
#[derive(Clone, Debug, Default)]
pub struct SimpleSignature {
    /// The layer's bytes, which are what was signed.
    pub payload: Vec<u8>,
    /// `dev.cosignproject.cosign/signature`.
    pub signature: String,
    /// `dev.sigstore.cosign/certificate`.
    pub certificate: Option<String>,
    /// `dev.sigstore.cosign/chain`.
    pub chain: Option<String>,
    /// `dev.sigstore.cosign/bundle`.
    pub log_entry: Option<String>,
}

/// Whether a root can be used.
///
/// # Errors
/// Why it cannot.
pub fn check_root(root: &Root) -> Result<(), String> {
    verifiers(root).map(drop)
}

/// Whether a text is a public key in PEM that can verify.
///
/// # Errors
/// Why it cannot.
pub fn check_key(pem: &str) -> Result<(), String> {
    let key = DerPublicKey::from_pem(pem.trim()).map_err(|error| said(&error))?;
    KeyAlgorithm::from_spki(&key).map_err(|error| said(&error))?;
    Ok(())
}

/// Verifies a bundle about an image.
///
/// # Errors
/// Why it does not count, in words that depend on nothing else.
pub fn verify_bundle(bundle: &[u8], image: &Digest, signer: &Signer) -> Result<Verified, String> {
    let text = std::str::from_utf8(bundle).map_err(|_| "it is no JSON".to_owned())?;
    let bundle = Bundle::from_json(text).map_err(|error| said(&error))?;
    let image = sha256(image)?;
    let verified = match signer {
        Signer::Key(key) => by_key(&bundle, image, key)?,
        Signer::Identity(identity) => by_identity(&bundle, image, identity)?,
    };
    Ok(Verified {
        predicate: predicate(&bundle)?,
        log_index: log_index(&bundle),
        ..verified
    })
}

/// The statement in the envelope of a bundle; nothing is verified.
///
/// # Errors
/// Why there is none.
pub fn statement(bundle: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(bundle).map_err(|_| "it is no JSON".to_owned())?;
    let bundle = Bundle::from_json(text).map_err(|error| said(&error))?;
    match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => Ok(envelope.payload.as_bytes().to_vec()),
        _ => Err("it holds no statement".into()),
    }
}

/// Verifies an older signature of cosign about an image.
///
/// # Errors
/// Why it does not count.
pub fn verify_simple(
    signature: &SimpleSignature,
    image: &Digest,
    signer: &Signer,
) -> Result<Verified, String> {
    let verified = match signer {
        Signer::Key(key) => simple_by_key(signature, key)?,
        Signer::Identity(identity) => simple_by_identity(signature, identity)?,
    };
    let named = simple_subject(&signature.payload)?;
    if named != image.to_string() {
        return Err(format!("it is about {}", clip(&named, 80)));
    }
    Ok(verified)
}

fn sha256(digest: &Digest) -> Result<Sha256Hash, String> {
    if digest.algorithm() != Algorithm::Sha256 {
        return Err("only images with a sha256 digest can be verified".into());
    }
    let text = digest.to_string();
    let hex = text.split_once(':').map_or("", |(_, hex)| hex);
    Sha256Hash::from_hex(hex).map_err(|error| said(&error))
}

/// The predicate type of the statement in the envelope. The crate verifies the statement's subject
/// and leaves its predicate to the caller.
fn predicate(bundle: &Bundle) -> Result<Option<String>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statement {
        predicate_type: String,
    }
    let SignatureContent::DsseEnvelope(envelope) = &bundle.content else {
        return Ok(None);
    };
    let statement: Statement = serde_json::from_slice(envelope.payload.as_bytes())
        .map_err(|_| "its statement names no predicate".to_owned())?;
    Ok(Some(statement.predicate_type))
}

fn log_index(bundle: &Bundle) -> Option<u64> {
    let entry = bundle.verification_material.tlog_entries.first()?;
    Some(entry.log_index.get())
}

/// By a key. Timestamps prove nothing that is needed, and their authority may be unknown here.
fn by_key(bundle: &Bundle, image: Sha256Hash, key: &Key) -> Result<Verified, String> {
    let public = DerPublicKey::from_pem(key.pem.trim()).map_err(|error| said(&error))?;
    let mut bundle = bundle.clone();
    bundle.verification_material.timestamp_verification_data = Default::default();
    if bundle.verification_material.tlog_entries.is_empty() {
        signed_by(&bundle, image, &public)?;
    } else {
        // The entry is not needed, but must not be that of another signature.
        let policy = PublicKeyVerificationPolicy::new(public).skip_tlog_unsafe();
        let roots = verifiers(&Root::Sigstore)?;
        for root in roots.iter() {
            let verified = root.verifier.verify(image, &bundle, &policy);
            verified.map_err(|error| said(&error))?;
        }
    }
    Ok(of_key(key))
}

fn of_key(key: &Key) -> Verified {
    Verified {
        predicate: None,
        identity: format!("key {}", key.name),
        issuer: None,
        signed: None,
        log_index: None,
    }
}

/// Verifies what a key has signed, without a log entry.
fn signed_by(bundle: &Bundle, image: Sha256Hash, key: &DerPublicKey) -> Result<(), String> {
    let algorithm = KeyAlgorithm::from_spki(key).map_err(|error| said(&error))?;
    let scheme = algorithm.default_signing_scheme();
    match &bundle.content {
        SignatureContent::DsseEnvelope(envelope) => {
            let signature = &envelope.signature.sig;
            verify_signature(key, &envelope.pae(), signature, scheme)
                .map_err(|_| "the key has not signed it".to_owned())?;
            is_about(envelope.payload.as_bytes(), image)
        }
        SignatureContent::MessageSignature(message) => {
            verify_signature_prehashed(key, image.as_slice(), &message.signature, scheme)
                .map_err(|_| "the key has not signed it".to_owned())
        }
        _ => Err("its content is of an unknown kind".into()),
    }
}

/// Whether a statement names the image as its subject.
fn is_about(statement: &[u8], image: Sha256Hash) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Statement {
        subject: Vec<Subject>,
    }
    #[derive(Deserialize)]
    struct Subject {
        digest: BTreeMap<String, String>,
    }
    let statement: Statement =
        serde_json::from_slice(statement).map_err(|_| "it holds no statement".to_owned())?;
    let mut named = statement
        .subject
        .iter()
        .filter_map(|subject| subject.digest.get("sha256"));
    if named.any(|named| *named == image.to_hex()) {
        return Ok(());
    }
    Err("it is about another image".into())
}

/// By an identity in a certificate.
fn by_identity(
    bundle: &Bundle,
    artifact: Sha256Hash,
    identity: &Identity,
) -> Result<Verified, String> {
    let mut reason = String::new();
    let roots = verifiers(&identity.root)?;
    for root in roots.iter() {
        match root
            .verifier
            .verify(artifact, bundle, &root.policy(identity))
        {
            Ok(result) => {
                let found = result.identity().map_or("", |found| found.as_str());
                if !identity.pattern.matches(found) {
                    return Err(format!("it is signed by {}", clip(found, 200)));
                }
                let times = result.verified_timestamps().iter().min();
                return Ok(Verified {
                    predicate: None,
                    identity: found.to_owned(),
                    issuer: result.issuer().map(str::to_owned),
                    signed: times.copied().or(result.integrated_time()),
                    log_index: log_index(bundle),
                });
            }
            Err(error) => reason = said(&error),
        }
    }
    Err(reason)
}

fn simple_by_key(signature: &SimpleSignature, key: &Key) -> Result<Verified, String> {
    let public = DerPublicKey::from_pem(key.pem.trim()).map_err(|error| said(&error))?;
    let algorithm = KeyAlgorithm::from_spki(&public).map_err(|error| said(&error))?;
    let scheme = algorithm.default_signing_scheme();
    let bytes = SignatureBytes::from_base64(&signature.signature)
        .map_err(|_| "its signature is no base64".to_owned())?;
    verify_signature(&public, &signature.payload, &bytes, scheme)
        .map_err(|_| "the key has not signed it".to_owned())?;
    Ok(of_key(key))
}

/// The same as a bundle of the first version, which the crate verifies.
fn simple_by_identity(
    signature: &SimpleSignature,
    identity: &Identity,
) -> Result<Verified, String> {
    let bundle = as_bundle(signature).ok_or("it has no certificate and log entry")?;
    let bundle = Bundle::from_json(&bundle.to_string()).map_err(|error| said(&error))?;
    let payload = sha256(&Digest::sha256(&signature.payload))?;
    by_identity(&bundle, payload, identity)
}

/// <https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>
fn as_bundle(signature: &SimpleSignature) -> Option<Value> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct LogEntry {
        signed_entry_timestamp: String,
        payload: Payload,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Payload {
        body: String,
        integrated_time: i64,
        log_index: i64,
        #[serde(rename = "logID")]
        log_id: String,
    }
    let entry: LogEntry = serde_json::from_str(signature.log_entry.as_deref()?).ok()?;
    let log_id = BASE64_STANDARD.encode(hex::decode(&entry.payload.log_id).ok()?);
    let chain = signature.chain.as_deref().unwrap_or_default();
    let certificates: Vec<Value> = pem_blocks(signature.certificate.as_deref()?)
        .chain(pem_blocks(chain))
        .map(|der| json!({"rawBytes": der}))
        .collect();
    let digest =
        BASE64_STANDARD.encode(sha256(&Digest::sha256(&signature.payload)).ok()?.as_slice());
    Some(json!({
        "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1",
        "verificationMaterial": {
            "x509CertificateChain": {"certificates": certificates},
            "tlogEntries": [{
                "logIndex": entry.payload.log_index.to_string(),
                "logId": {"keyId": log_id},
                "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"},
                "integratedTime": entry.payload.integrated_time.to_string(),
                "inclusionPromise": {"signedEntryTimestamp": entry.signed_entry_timestamp},
                "canonicalizedBody": entry.payload.body,
            }],
        },
        "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": digest},
            "signature": signature.signature,
        },
    }))
}

/// The base64 of each block of a PEM text.
fn pem_blocks(text: &str) -> impl Iterator<Item = String> {
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    blocks.map(|block| {
        let body = block.split("-----").next().unwrap_or_default();
        body.split_whitespace().collect()
    })
}

/// The digest that a payload of cosign's older signatures names. Some tools have written its keys
/// with capitals, so their case does not count.
fn simple_subject(payload: &[u8]) -> Result<String, String> {
    let payload: Value =
        serde_json::from_slice(payload).map_err(|_| "its payload is no JSON".to_owned())?;
    let named = ["critical", "image", "docker-manifest-digest"]
        .into_iter()
        .try_fold(&payload, |value, key| {
            let object = value.as_object()?;
            let mut found = object
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case(key));
            // Two spellings of one key may say two things.
            match (found.next(), found.next()) {
                (Some((_, value)), None) => Some(value),
                _ => None,
            }
        });
    let named = named.and_then(Value::as_str);
    named
        .map(str::to_owned)
        .ok_or_else(|| "its payload names no image".to_owned())
}

/// A verifier with what its root can prove.
struct Trusted {
    verifier: Verifier,
    has_logs: bool,
    has_certificate_logs: bool,
}

impl Trusted {
    fn new(root: &TrustedRoot) -> Result<Trusted, String> {
        Ok(Trusted {
            verifier: Verifier::new(root).map_err(|error| said(&error))?,
            has_logs: !root.tlogs.is_empty(),
            has_certificate_logs: !root.ctlogs.is_empty(),
        })
    }

    /// A root without logs proves the time by its timestamp authorities alone, as GitHub's does.
    fn policy(&self, identity: &Identity) -> VerificationPolicy {
        let mut policy = VerificationPolicy::any_identity().require_issuer(&*identity.issuer);
        if !self.has_logs {
            policy = policy.skip_tlog_unsafe();
        }
        if !self.has_certificate_logs {
            policy = policy.skip_sct();
        }
        policy
    }
}

/// The verifiers of a root. A file may hold several, one on each line.
enum Verifiers {
    BuiltIn(&'static [Trusted]),
    Own(Vec<Trusted>),
}

impl Deref for Verifiers {
    type Target = [Trusted];

    fn deref(&self) -> &[Trusted] {
        match self {
            Verifiers::BuiltIn(trusted) => trusted,
            Verifiers::Own(trusted) => trusted,
        }
    }
}

fn verifiers(root: &Root) -> Result<Verifiers, String> {
    static SIGSTORE: OnceLock<Vec<Trusted>> = OnceLock::new();
    static GITHUB: OnceLock<Vec<Trusted>> = OnceLock::new();
    Ok(Verifiers::BuiltIn(match root {
        Root::Sigstore => SIGSTORE.get_or_init(|| built_in(SigstoreInstance::PublicGood)),
        Root::Github => GITHUB.get_or_init(|| built_in(SigstoreInstance::GitHub)),
        Root::File(text) => return of_file(text).map(Verifiers::Own),
    }))
}

fn built_in(instance: SigstoreInstance) -> Vec<Trusted> {
    let root = TrustedRoot::from_embedded(instance).expect("the crate's own roots parse");
    vec![Trusted::new(&root).expect("the crate's own roots verify")]
}

/// `cosign trusted-root create` writes one document, `gh attestation trusted-root` one a line.
fn of_file(text: &str) -> Result<Vec<Trusted>, String> {
    let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let trusted = documents.map(|document| {
        let document = document.map_err(|_| "it holds no JSON".to_owned())?;
        let root = TrustedRoot::from_json(&document.to_string()).map_err(|error| said(&error))?;
        Trusted::new(&root)
    });
    let trusted: Vec<Trusted> = trusted.collect::<Result<_, _>>()?;
    if trusted.is_empty() {
        return Err("it holds no trusted root".into());
    }
    Ok(trusted)
}

/// A failure in words, of bounded length.
fn said(error: &dyn std::error::Error) -> String {
    clip(&error.to_string(), 200)
}
