//! An instance of Sigstore of the tests' own: a certificate authority, a log, and what they make,
//! after the specifications.
//!
//! - bundles: <https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto>
//! - certificates: <https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md>
//! - log entries: <https://github.com/sigstore/rekor/tree/main/pkg/types>
//! - checkpoints: <https://github.com/C2SP/C2SP/blob/main/tlog-checkpoint.md>

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, SanType, date_time_ymd,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const IN_TOTO: &str = "application/vnd.in-toto+json";
/// The extension of Fulcio's certificates that names the issuer of the identity.
const ISSUER: [u64; 9] = [1, 3, 6, 1, 4, 1, 57264, 1, 8];

/// A certificate authority and a log.
pub struct Sigstore {
    authority: CertifiedIssuer<'static, KeyPair>,
    log: KeyPair,
}

/// A certificate with its key.
pub struct Signer {
    key: KeyPair,
    der: Vec<u8>,
    pem: String,
}

/// A statement about an image.
pub fn statement(digest: &str, predicate: &str) -> Value {
    let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
    json!({"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": hex}}],
        "predicateType": predicate, "predicate": {}})
}

impl Sigstore {
    pub fn new() -> Sigstore {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are right names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "fulcio of a test");
        Sigstore {
            authority: CertifiedIssuer::self_signed(params, key()).expect("a certificate"),
            log: key(),
        }
    }

    /// Its trusted root; `until`: the day after which the authority counts no more.
    pub fn root(&self, until: Option<&str>) -> Value {
        let mut valid = json!({"start": "2020-01-01T00:00:00Z"});
        if let Some(day) = until {
            valid["end"] = format!("{day}T00:00:00Z").into();
        }
        let key = self.log.subject_public_key_info();
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [{
                "baseUrl": "https://rekor.test",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {"rawBytes": base64(&key), "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": {"start": "2020-01-01T00:00:00Z"}},
                "logId": {"keyId": base64(&sha256(&key))},
            }],
            "certificateAuthorities": [{
                "subject": {"organization": "test", "commonName": "fulcio of a test"},
                "uri": "https://fulcio.test",
                "certChain": {"certificates": [{"rawBytes": base64(self.authority.as_ref().der())}]},
                "validFor": valid,
            }],
            "ctlogs": [],
            "timestampAuthorities": [],
        })
    }

    /// A certificate for an identity of an issuer.
    pub fn signer(&self, identity: &str, issuer: &str) -> Signer {
        let key = key();
        let mut params = CertificateParams::new(Vec::new()).expect("no names are right names");
        params.subject_alt_names = vec![SanType::URI(identity.try_into().expect("ASCII"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = date_time_ymd(2021, 1, 1);
        params.not_after = date_time_ymd(2045, 1, 1);
        // A UTF8String of at most 127 bytes in DER.
        let length = u8::try_from(issuer.len()).expect("a short issuer");
        let text = [&[0x0c, length][..], issuer.as_bytes()].concat();
        let extension = CustomExtension::from_oid_content(&ISSUER, text);
        params.custom_extensions = vec![extension];
        let certificate = params
            .signed_by(&key, &self.authority)
            .expect("a certificate");
        Signer {
            key,
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
        }
    }

    /// A bundle of version 0.3 over a statement.
    pub fn bundle(&self, signer: &Signer, statement: &Value) -> Value {
        let payload = statement.to_string();
        let signature = signer.sign(&pae(payload.as_bytes()));
        let entry = json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
            "envelopeHash": {"algorithm": "sha256", "value": hex::encode(sha256(b"not looked at"))},
            "payloadHash": {"algorithm": "sha256", "value": hex::encode(sha256(payload.as_bytes()))},
            "signatures": [{"signature": base64(&signature), "verifier": base64(signer.pem.as_bytes())}],
        }});
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": base64(&signer.der)},
                "tlogEntries": [self.logged("dsse", &entry)],
            },
            "dsseEnvelope": {"payload": base64(payload.as_bytes()), "payloadType": IN_TOTO,
                "signatures": [{"sig": base64(&signature)}]},
        })
    }

    /// A layer of cosign's older signatures, with its annotations.
    pub fn simple(&self, signer: &Signer, payload: &[u8]) -> Value {
        let signature = base64(&signer.sign(payload));
        let entry = json!({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": hex::encode(sha256(payload))}},
            "signature": {"content": signature, "publicKey": {"content": base64(signer.pem.as_bytes())}},
        }});
        let logged = self.logged("hashedrekord", &entry);
        let set = &logged["inclusionPromise"]["signedEntryTimestamp"];
        let bundle = json!({"SignedEntryTimestamp": set, "Payload": {
            "body": logged["canonicalizedBody"],
            "integratedTime": number(&logged["integratedTime"]),
            "logIndex": number(&logged["logIndex"]),
            "logID": self.log_id(),
        }});
        json!({
            "dev.cosignproject.cosign/signature": signature,
            "dev.sigstore.cosign/certificate": signer.pem,
            "dev.sigstore.cosign/chain": self.authority.as_ref().pem(),
            "dev.sigstore.cosign/bundle": bundle.to_string(),
        })
    }

    fn log_id(&self) -> String {
        hex::encode(sha256(&self.log.subject_public_key_info()))
    }

    /// The only entry of a log of its own, a minute old.
    fn logged(&self, kind: &str, entry: &Value) -> Value {
        let body = entry.to_string();
        let time = blobferry::clock::now().as_second() - 60;
        let promised = format!(
            r#"{{"body":"{}","integratedTime":{time},"logID":"{}","logIndex":0}}"#,
            base64(body.as_bytes()),
            self.log_id(),
        );
        let root = sha256(&[&[0_u8][..], body.as_bytes()].concat());
        let note = format!("rekor.test\n1\n{}\n", base64(&root));
        let id = sha256(&self.log.subject_public_key_info());
        let signed = [&id[..4], &sign(&self.log, note.as_bytes())[..]].concat();
        let checkpoint = format!("{note}\n\u{2014} rekor.test {}\n", base64(&signed));
        json!({
            "logIndex": "0",
            "logId": {"keyId": base64(&id)},
            "kindVersion": {"kind": kind, "version": "0.0.1"},
            "integratedTime": time.to_string(),
            "inclusionPromise": {"signedEntryTimestamp": base64(&sign(&self.log, promised.as_bytes()))},
            "inclusionProof": {"logIndex": "0", "rootHash": base64(&root), "treeSize": "1", "hashes": [],
                "checkpoint": {"envelope": checkpoint}},
            "canonicalizedBody": base64(body.as_bytes()),
        })
    }
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        sign(&self.key, message)
    }
}

/// The encoding that is signed: <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>
fn pae(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {IN_TOTO} {} ", IN_TOTO.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn number(text: &Value) -> i64 {
    text.as_str().expect("a text").parse().expect("a number")
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der());
    let signed = key
        .expect("a P-256 key")
        .sign(&SystemRandom::new(), message);
    signed.expect("a signature").as_ref().to_vec()
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}
