//! Signatures and attestations: by cosign itself with keys, and by an instance of Sigstore of the
//! tests' own. Each trap that a verifier has fallen into is a case.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{stage, verdicts};
use crate::support::image::sha256;
use crate::support::keyless::{Sigstore, statement};
use crate::support::registry::installed;
use crate::support::*;

const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
const SLSA: &str = "https://slsa.dev/provenance/v1";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const GITHUB: &str = "https://token.actions.githubusercontent.com";
const RELEASE: &str = "https://github.com/acme/app/.github/workflows/release.yml@refs/tags/v1";

/// cosign, with keys in a folder of its own.
pub(super) struct Cosign {
    program: PathBuf,
    folder: tempfile::TempDir,
}

impl Cosign {
    pub(super) fn new() -> Cosign {
        Cosign {
            program: installed(&["cosign"], "tests/run builds it"),
            folder: tempfile::tempdir().expect("a scratch directory"),
        }
    }

    async fn run(&self, arguments: &[&str]) {
        let output = tokio::process::Command::new(&self.program)
            .args(arguments)
            .current_dir(self.folder.path())
            .env("COSIGN_PASSWORD", "")
            .env("HOME", self.folder.path())
            .output()
            .await
            .expect("cosign starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cosign {arguments:?}: {said}");
    }

    /// Makes a pair of keys; returns the public one.
    pub(super) async fn key(&self, name: &str) -> PathBuf {
        self.run(&["generate-key-pair", "--output-key-prefix", name])
            .await;
        self.folder.path().join(format!("{name}.pub"))
    }

    async fn with_key(&self, act: &str, key: &str, more: &[&str], place: &str) {
        let key = format!("{key}.key");
        let usual = [
            act,
            "--key",
            &key,
            "--yes",
            "--tlog-upload=false",
            "--use-signing-config=false",
        ];
        self.run(&[&usual[..], more, &[place]].concat()).await;
    }

    pub(super) async fn sign(&self, key: &str, place: &str) {
        self.with_key("sign", key, &[], place).await;
    }

    async fn sign_as_before(&self, key: &str, place: &str) {
        self.with_key("sign", key, &["--new-bundle-format=false"], place)
            .await;
    }

    async fn attest(&self, key: &str, predicate: &str, place: &str) {
        self.attest_with(key, predicate, &json!({}), place).await;
    }

    pub(super) async fn attest_with(&self, key: &str, predicate: &str, said: &Value, place: &str) {
        let file = self.folder.path().join("predicate.json");
        std::fs::write(&file, said.to_string()).expect("a predicate");
        let file = file.display().to_string();
        let more = ["--type", predicate, "--predicate", &file];
        self.with_key("attest", key, &more, place).await;
    }
}

pub(super) fn by_key(key: &Path) -> Value {
    json!({"signature": [{"cosign": {"key_file": key}}]})
}

/// Where an image of staging is, past the proxy.
pub(super) fn place(stage: &Stage, image: &Image) -> String {
    format!("{}/app@{}", stage.staging.address(), image.digest())
}

/// Asserts that the tag waits for this gate, and that nothing of the image is in production.
async fn assert_waits(stage: &Stage, image: &Image, gate: &str) -> Value {
    let run = stage.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = run.job("v1");
    assert_eq!(job["result"], "waiting", "{job:#}");
    assert_eq!(verdicts(&job), json!({gate: "wait"}));
    assert_eq!(stage.there().digest("app", "v1").await, None);
    assert_eq!(stage.there().digest("app", image.digest()).await, None);
    job
}

/// Why statements did not count.
pub(super) fn rejected(job: &Value) -> Vec<String> {
    let rejected = job["gates"][0]["evidence"]["rejected"].as_array();
    let rejected = rejected.expect("what was rejected").iter();
    rejected
        .map(|one| one["reason"].as_str().unwrap().to_owned())
        .collect()
}

pub(super) async fn assert_promoted(stage: &Stage, image: &Image) -> Value {
    let run = stage.sync().await.expect(0);
    let job = run.job("v1");
    assert_eq!(job["result"], "promoted", "{job:#}");
    stage.there().assert_holds("app", "v1", image).await;
    job
}

#[tokio::test]
async fn an_image_waits_for_the_signature_of_the_right_key() {
    let cosign = Cosign::new();
    let key = cosign.key("ours").await;
    cosign.key("theirs").await;
    let stage = stage(by_key(&key)).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let job = assert_waits(&stage, &image, "signature").await;
    assert_eq!(
        job["reasons"],
        json!(["signature: no signature by the key ours.pub"])
    );
    assert_eq!(rejected(&job), Vec::<String>::new());

    cosign.sign("theirs", &place(&stage, &image)).await;
    let job = assert_waits(&stage, &image, "signature").await;
    assert_eq!(rejected(&job), ["the key has not signed it"]);

    cosign.sign("ours", &place(&stage, &image)).await;
    let job = assert_promoted(&stage, &image).await;
    let signature = &job["gates"][0]["evidence"]["signatures"][0];
    assert_eq!(signature["identity"], "key ours.pub");
    assert_eq!(signature["predicate_type"], SIGN);
    let referrer = signature["statement"].as_str().unwrap();
    let there = stage.there().digest("app", referrer).await;
    assert_eq!(there.as_deref(), Some(referrer), "the signature came along");
}

/// A stage that wants a signature by this key, with the image `v1` and another one.
async fn stage_with_two_images(key: &Path) -> (Stage, Image, Image) {
    let stage = stage(by_key(key)).await;
    let image = Image::oci(1, &[1000]);
    let other = Image::oci(2, &[1000]);
    stage.push().push("app", "v1", &image).await;
    stage.push().push("app", "other", &other).await;
    (stage, image, other)
}

#[tokio::test]
async fn a_signature_of_the_older_form_counts_for_its_own_image_alone() {
    let cosign = Cosign::new();
    let key = cosign.key("ours").await;
    let (stage, image, other) = stage_with_two_images(&key).await;
    cosign.sign_as_before("ours", &place(&stage, &other)).await;

    // The right key over another image.
    let tag = |image: &Image| format!("{}.sig", image.digest().replace(':', "-"));
    let theirs = stage.push().manifest("app", &tag(&other)).await.unwrap();
    stage
        .push()
        .put_manifest("app", &tag(&image), &theirs)
        .await;
    let job = assert_waits(&stage, &image, "signature").await;
    assert_eq!(rejected(&job), [format!("it is about {}", other.digest())]);

    cosign.sign_as_before("ours", &place(&stage, &image)).await;
    assert_promoted(&stage, &image).await;
    let there = stage.there().digest("app", &tag(&image)).await;
    assert!(there.is_some(), "the signature came along");
}

/// A referrer of `subject` that holds this bundle.
pub(super) fn referrer(subject: &Image, bundle: &[u8]) -> Image {
    Image::referrer_of(subject, BUNDLE, Blob::new(BUNDLE, bundle.to_vec()))
}

/// The bundles that cosign has attached to an image.
pub(super) async fn bundles(stage: &Stage, image: &Image) -> Vec<Vec<u8>> {
    let fallback = image.digest().replace(':', "-");
    let list = stage.push().manifest("app", &fallback).await.unwrap();
    let list: Value = serde_json::from_slice(&list.bytes).unwrap();
    let mut bundles = Vec::new();
    for entry in list["manifests"].as_array().unwrap() {
        let digest = entry["digest"].as_str().unwrap();
        let manifest = stage.push().manifest("app", digest).await.unwrap();
        let manifest: Value = serde_json::from_slice(&manifest.bytes).unwrap();
        let layer = manifest["layers"][0]["digest"].as_str().unwrap();
        bundles.push(stage.push().blob("app", layer).await.unwrap().to_vec());
    }
    bundles
}

#[tokio::test]
async fn a_statement_counts_for_its_own_image_and_its_own_predicate() {
    let cosign = Cosign::new();
    let key = cosign.key("ours").await;
    let (stage, image, other) = stage_with_two_images(&key).await;
    cosign.sign("ours", &place(&stage, &other)).await;

    // The right key over another image.
    let moved = referrer(&image, &bundles(&stage, &other).await[0]);
    super::attach(&stage, &image, &[&moved]).await;
    let job = assert_waits(&stage, &image, "signature").await;
    assert_eq!(rejected(&job), ["it is about another image"]);

    // An attestation is no signature.
    cosign.attest("ours", SLSA, &place(&stage, &image)).await;
    let job = assert_waits(&stage, &image, "signature").await;
    assert!(
        rejected(&job).contains(&format!("its predicate is {SLSA}")),
        "{job:#}"
    );

    // And a signature, or a statement of another kind, is no such attestation.
    let other_kind = "https://example.com/other";
    let attested = json!({"predicate": other_kind, "key_file": key});
    let wanted =
        json!({"gates": {"attestation": [{"predicate": SLSA, "key_file": key}, attested]}});
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("app", wanted)));
    cosign.sign("ours", &place(&stage, &image)).await;
    let job = assert_waits(&stage, &image, "attestation").await;
    let reason = format!("attestation: no attestation of {other_kind} by the key ours.pub");
    assert_eq!(job["reasons"], json!([reason]));
    cosign
        .attest("ours", other_kind, &place(&stage, &image))
        .await;
    let job = assert_promoted(&stage, &image).await;
    let found = job["gates"][0]["evidence"]["attestations"]
        .as_array()
        .unwrap();
    let predicates: Vec<&Value> = found.iter().map(|one| &one["predicate_type"]).collect();
    assert_eq!(predicates, [SLSA, other_kind]);
}

#[tokio::test]
async fn the_index_or_each_of_its_platforms_must_be_signed() {
    let cosign = Cosign::new();
    let key = cosign.key("ours").await;
    let stage = stage(by_key(&key)).await;
    let platforms = [Image::oci(1, &[1000]), Image::oci(2, &[1000])];
    let image = Image::index(&platforms);
    stage.push().push("app", "v1", &image).await;
    cosign.sign("ours", &place(&stage, &platforms[0])).await;
    assert_waits(&stage, &image, "signature").await;

    let on_platforms = json!({"cosign": {"key_file": key, "on": "platforms"}});
    let route = json!({"gates": {"signature": [on_platforms]}});
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("app", route)));
    cosign.sign("ours", &place(&stage, &image)).await;
    assert_waits(&stage, &image, "signature").await;
    cosign.sign("ours", &place(&stage, &platforms[1])).await;
    let job = assert_promoted(&stage, &image).await;
    let signatures = job["gates"][0]["evidence"]["signatures"]
        .as_array()
        .unwrap();
    let subjects: Vec<&Value> = signatures.iter().map(|one| &one["subject"]).collect();
    assert_eq!(subjects, [platforms[0].digest(), platforms[1].digest()]);
}

/// An index of an image and of a child of an unknown platform.
pub(super) fn with_unknown_child(image: &Image, child: &Image) -> Image {
    let mut index = Image::index(&[image.clone(), child.clone()]);
    let root = index.documents.pop().expect("an index has a manifest");
    let mut document: Value = serde_json::from_slice(&root.bytes).unwrap();
    document["manifests"][1]["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    index
        .documents
        .push(Document::raw(&root.media_type, document.to_string()));
    index
}

/// An image of an unknown platform was taken for an attestation, and needed no signature.
#[tokio::test]
async fn a_child_of_an_unknown_platform_needs_a_signature_unless_nothing_in_it_can_be_run() {
    let cosign = Cosign::new();
    let key = cosign.key("ours").await;
    let on_platforms = json!({"signature": [{"cosign": {"key_file": key, "on": "platforms"}}]});
    let stage = stage(on_platforms).await;
    let signed = Image::oci(1, &[1000]);
    let image = with_unknown_child(&signed, &Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &image).await;
    cosign.sign("ours", &place(&stage, &signed)).await;
    assert_waits(&stage, &image, "signature").await;

    let statements = Image::statements(3);
    let image = with_unknown_child(&signed, &statements);
    stage.push().push("app", "v1", &image).await;
    assert_promoted(&stage, &image).await;
}

fn keyless(identity: &str, root: &str) -> Value {
    let cosign = json!({"issuer": GITHUB, "identity": identity, "root": root});
    json!({"gates": {"signature": [{"cosign": cosign}]}})
}

#[tokio::test]
async fn a_certificate_counts_by_identity_issuer_root_and_log() {
    let sigstore = Sigstore::new();
    let stage = Stage::with_route(Program::Distribution3, json!({})).await;
    let root = stage
        .ferry
        .file("root.json", &sigstore.root(None).to_string());
    let expired = sigstore.root(Some("2021-06-01")).to_string();
    let expired = stage.ferry.file("expired.json", &expired);
    let another = Sigstore::new();
    let foreign = stage
        .ferry
        .file("foreign.json", &another.root(None).to_string());
    let pattern = "https://github.com/acme/*/.github/workflows/release.yml@refs/tags/**";
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let signed = statement(image.digest(), SIGN);
    let signer = sigstore.signer(RELEASE, GITHUB);
    let bundle = sigstore.bundle(&signer, &signed);
    let by =
        |identity: &str, issuer: &str| sigstore.bundle(&sigstore.signer(identity, issuer), &signed);
    let mut other_entry = bundle.clone();
    let other = sigstore.bundle(&signer, &statement(image.digest(), SLSA));
    other_entry["verificationMaterial"]["tlogEntries"] =
        other["verificationMaterial"]["tlogEntries"].clone();
    let mut unlogged = bundle.clone();
    unlogged["verificationMaterial"]["tlogEntries"] = json!([]);
    let branch = RELEASE.replace("refs/tags/v1", "refs/heads/main");
    for (what, bundle, root) in [
        ("another identity", by(&branch, GITHUB), &root),
        (
            "another issuer",
            by(RELEASE, "https://accounts.example"),
            &root,
        ),
        ("another root", bundle.clone(), &foreign),
        ("an expired root", bundle.clone(), &expired),
        ("the entry of another statement", other_entry, &root),
        ("no entry", unlogged, &root),
        (
            "another image",
            sigstore.bundle(&signer, &statement(&sha256(b"other"), SIGN)),
            &root,
        ),
        ("another predicate", other, &root),
        ("no bundle", json!({"mediaType": BUNDLE}), &root),
    ] {
        let route = keyless(pattern, root);
        stage
            .ferry
            .write_config(&stage.config(|config| config.route("app", route)));
        let attached = referrer(&image, bundle.to_string().as_bytes());
        super::attach(&stage, &image, &[&attached]).await;
        let job = assert_waits(&stage, &image, "signature").await;
        assert_eq!(rejected(&job).len(), 1, "{what}: {job:#}");
    }

    // Two roots in one file, one a line: each is tried.
    let both = format!("{}\n{}\n", another.root(None), sigstore.root(None));
    let both = stage.ferry.file("both.json", &both);
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("app", keyless(pattern, &both))));
    let attached = referrer(&image, bundle.to_string().as_bytes());
    super::attach(&stage, &image, &[&attached]).await;
    let job = assert_promoted(&stage, &image).await;
    let signature = &job["gates"][0]["evidence"]["signatures"][0];
    assert_eq!(signature["identity"], RELEASE);
    assert_eq!(signature["issuer"], GITHUB);
    assert_eq!(signature["log_index"], 0);
    assert!(signature["signed"].is_string(), "{signature}");
}

#[tokio::test]
async fn a_certificate_of_the_older_form_counts_by_its_log_entry() {
    let sigstore = Sigstore::new();
    let stage = Stage::with_route(Program::Distribution3, json!({})).await;
    let root = stage
        .ferry
        .file("root.json", &sigstore.root(None).to_string());
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("app", keyless(RELEASE, &root))));
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let payload = |digest: &str| {
        json!({"critical": {"identity": {"docker-reference": "s/app"},
        "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"}, "optional": null}).to_string()
    };
    let signer = sigstore.signer(RELEASE, GITHUB);
    let right = payload(image.digest());
    let other = payload(&sha256(b"other"));
    let of = |payload: &str| sigstore.simple(&signer, payload.as_bytes());
    let mut unlogged = of(&right);
    unlogged
        .as_object_mut()
        .unwrap()
        .remove("dev.sigstore.cosign/bundle");
    let mut other_entry = of(&right);
    other_entry["dev.sigstore.cosign/bundle"] = of(&other)["dev.sigstore.cosign/bundle"].clone();
    let stranger = sigstore.signer("https://github.com/evil/app", GITHUB);
    let tag = format!("{}.sig", image.digest().replace(':', "-"));
    for (what, payload, annotations, expected) in [
        ("another image", &other, of(&other), "waiting"),
        ("another payload", &right, of(&other), "waiting"),
        ("no entry", &right, unlogged, "waiting"),
        ("the entry of another", &right, other_entry, "waiting"),
        (
            "another identity",
            &right,
            sigstore.simple(&stranger, right.as_bytes()),
            "waiting",
        ),
        ("the right one", &right, of(&right), "promoted"),
    ] {
        let signature = simple(payload, &annotations);
        stage.push().push("app", &tag, &signature).await;
        let run = stage.sync().await;
        assert_eq!(run.job("v1")["result"], expected, "{what}: {}", run.stdout);
    }
    stage.there().assert_holds("app", "v1", &image).await;
}

/// An image of cosign's older signatures.
fn simple(payload: &str, annotations: &Value) -> Image {
    let simple = "application/vnd.dev.cosign.simplesigning.v1+json";
    let config = Blob::new("application/vnd.oci.image.config.v1+json", "{}");
    let layer = Blob::new(simple, payload.to_owned());
    let document = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest, "size": 2},
        "layers": [{"mediaType": simple, "digest": layer.digest, "size": payload.len(), "annotations": annotations}],
    });
    Image {
        documents: vec![Document::raw(
            "application/vnd.oci.image.manifest.v1+json",
            document.to_string(),
        )],
        blobs: vec![config, layer],
    }
}
