//! What travels beside an image: it arrives late, in other registries' ways, or not at all, and is
//! counted.

use serde_json::json;

use crate::support::image::Document;
use crate::support::scripted::{Answer, Settings};
use crate::support::*;

const SIGNATURE: &str = "application/vnd.example.signature";

fn pair(staging: &Scripted, production: &Scripted) -> Ferry {
    Ferry::new(&Config::pair(&staging.url(), &production.url()))
}

fn without_referrers() -> Settings {
    Settings {
        referrers: false,
        ..Settings::default()
    }
}

/// The tag of cosign's naming that belongs to a digest.
fn beside(digest: &str, ending: &str) -> String {
    format!("{}{ending}", digest.replace(':', "-"))
}

#[tokio::test]
async fn late_signatures_of_all_that_is_there_arrive_by_the_next_sync_and_are_counted() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let platforms = [Image::oci(1, &[1000]), Image::oci(2, &[2000])];
    let image = Image::index(&platforms);
    let first = Image::referrer(10, &image, SIGNATURE);
    staging.push("app", "v1", &image);
    staging.push_untagged("app", &first);
    let ferry = pair(&staging, &production);
    let run = ferry.sync(&["--all"]).await.expect(0);
    assert_eq!(
        run.job("v1")["referrers"],
        json!({"copied": 1, "present": 0})
    );

    let late = [
        Image::referrer(11, &image, SIGNATURE),
        Image::referrer(12, &first, SIGNATURE),
        Image::referrer(13, &platforms[1], SIGNATURE),
    ];
    late.iter()
        .for_each(|signature| staging.push_untagged("app", signature));
    let run = ferry.sync(&["--all"]).await.expect(0);
    assert_eq!((run.total("promoted"), run.total("up_to_date")), (0, 1));
    assert_eq!(
        run.job("v1")["referrers"],
        json!({"copied": 3, "present": 1})
    );
    for signature in &late {
        assert!(
            production.holds("app", signature.digest()),
            "{}",
            signature.digest()
        );
    }
    let history = ferry.run(&["history", "--json"]).await;
    assert_eq!(
        history.stdout.matches(r#""referrers":{"copied":3"#).count(),
        1,
        "one row tells of them: {}",
        history.stdout
    );

    let run = ferry.sync(&["--all"]).await.expect(0);
    assert_eq!(
        run.job("v1")["referrers"],
        json!({"copied": 0, "present": 4}),
        "nothing is brought twice"
    );
    assert_eq!(
        production.tags("app"),
        ["v1"],
        "a registry that lists referrers needs no fallback tag"
    );
}

#[tokio::test]
async fn a_daemon_brings_a_late_signature_at_once_when_its_tag_is_named_and_counts_it() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let image = Image::oci(1, &[1000]);
    staging.push("app", "v1", &image);
    staging.push_untagged("app", &Image::referrer(10, &image, SIGNATURE));
    let ferry = pair(&staging, &production);
    let daemon = ferry.start_ready().await;
    let copied = async || {
        daemon
            .metric(
                "blobferry_referrers_total",
                &[("route", "app"), ("how", "copied")],
            )
            .await
    };
    assert_eq!(copied().await, Some(1.0));
    let late = Image::referrer(11, &image, SIGNATURE);
    staging.push_untagged("app", &late);
    let (status, report) = daemon
        .ping(json!({"route": "app", "tag": "v1", "wait": true}))
        .await;
    assert_eq!(
        (status, &report["totals"]["up_to_date"]),
        (200, &json!(1)),
        "{report:#}"
    );
    assert!(production.holds("app", late.digest()));
    assert_eq!(copied().await, Some(2.0));
    daemon.says("referrers brought later").await;
}

#[tokio::test]
async fn a_sig_tag_that_changed_and_the_signature_of_an_attestation_arrive_by_sync() {
    let (staging, production) = (
        Scripted::with(without_referrers()),
        Scripted::with(without_referrers()),
    );
    let image = Image::oci(1, &[1000]);
    let attestation = Image::oci(2, &[10]);
    staging.push("app", "v1", &image);
    staging.push(
        "app",
        &beside(image.digest(), ".sig"),
        &Image::oci(3, &[20]),
    );
    let ferry = pair(&staging, &production);
    ferry.sync(&[]).await.expect(0);
    assert_eq!(
        production
            .tagged("app", &beside(image.digest(), ".sig"))
            .as_deref(),
        Some(Image::oci(3, &[20]).digest())
    );

    let both = Image::oci(4, &[20, 30]);
    staging.push("app", &beside(image.digest(), ".sig"), &both);
    staging.push("app", &beside(image.digest(), ".att"), &attestation);
    staging.push(
        "app",
        &beside(attestation.digest(), ".sig"),
        &Image::oci(5, &[40]),
    );
    ferry.sync(&[]).await.expect(0);
    assert_eq!(
        production
            .tagged("app", &beside(image.digest(), ".sig"))
            .as_deref(),
        Some(both.digest())
    );
    assert_eq!(
        production
            .tagged("app", &beside(image.digest(), ".att"))
            .as_deref(),
        Some(attestation.digest())
    );
    assert_eq!(
        production
            .tagged("app", &beside(attestation.digest(), ".sig"))
            .as_deref(),
        Some(Image::oci(5, &[40]).digest())
    );

    production.push(
        "app",
        &beside(image.digest(), ".sig"),
        &Image::oci(6, &[50]),
    );
    staging.push(
        "app",
        &beside(image.digest(), ".sig"),
        &Image::oci(7, &[60]),
    );
    let run = ferry.sync(&[]).await.expect(4);
    assert_eq!(run.total("drift"), 1, "and is reported");
    assert_eq!(
        production
            .tagged("app", &beside(image.digest(), ".sig"))
            .as_deref(),
        Some(Image::oci(6, &[50]).digest()),
        "what a person put there stays"
    );
}

/// Quay answers 400 or 404 about a subject that it lacks. It was taken for a registry without the
/// endpoint: the next image went out unsigned, and fallback tags appeared.
#[tokio::test]
async fn an_answer_about_a_subject_says_nothing_about_the_endpoint() {
    for (status, code) in [
        (404, "MANIFEST_UNKNOWN"),
        (400, "MANIFEST_INVALID"),
        (404, "NAME_UNKNOWN"),
    ] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let images = [Image::oci(1, &[1000]), Image::oci(2, &[2000])];
        let signatures: Vec<Image> = (10..)
            .zip(&images)
            .map(|(seed, image)| Image::referrer(seed, image, SIGNATURE))
            .collect();
        let there = production.clone();
        production.on(move |asked| match asked.kind {
            Kind::Referrers if !there.holds("app", asked.reference()) => {
                let body = json!({"errors": [{"code": code, "message": "unknown"}]}).to_string();
                Answer::Reply(Reply::status(status).body("application/json", body))
            }
            _ => Answer::Pass,
        });
        let ferry = pair(&staging, &production);
        for ((tag, image), signature) in ["v1", "v2"].iter().zip(&images).zip(&signatures) {
            staging.push("app", tag, image);
            staging.push_untagged("app", signature);
            ferry.sync(&[]).await.expect(0);
            assert!(
                production.holds("app", signature.digest()),
                "{status} {code}: {tag} went out unsigned"
            );
        }
        assert_eq!(
            production.tags("app"),
            ["v1", "v2"],
            "{status} {code}: a stray fallback tag"
        );
    }
}

#[tokio::test]
async fn without_the_endpoint_the_fallback_list_is_merged_on_both_sides() {
    let (staging, production) = (
        Scripted::with(without_referrers()),
        Scripted::with(without_referrers()),
    );
    let image = Image::oci(1, &[1000]);
    let (ours, theirs) = (
        Image::referrer(10, &image, SIGNATURE),
        Image::referrer(11, &image, SIGNATURE),
    );
    let list = |signature: &Image| {
        let body = json!({"schemaVersion": 2, "mediaType": image::OCI_INDEX, "manifests": [signature.root().descriptor()]});
        Document::raw(image::OCI_INDEX, body.to_string())
    };
    for (registry, signature) in [(&staging, &ours), (&production, &theirs)] {
        registry.push_untagged("app", signature);
        registry.put_document("app", &list(signature));
        registry.tag("app", &beside(image.digest(), ""), &list(signature).digest);
    }
    staging.push("app", "v1", &image);
    pair(&staging, &production).sync(&[]).await.expect(0);
    let merged = production
        .document("app", &beside(image.digest(), ""))
        .unwrap();
    let text = String::from_utf8_lossy(&merged.bytes).into_owned();
    assert!(
        text.contains(ours.digest()) && text.contains(theirs.digest()),
        "{text}"
    );
}

/// A list that says the same got another digest than staging's.
#[tokio::test]
async fn a_fallback_list_that_is_copied_unchanged_keeps_its_digest() {
    let (staging, production) = (
        Scripted::with(without_referrers()),
        Scripted::with(without_referrers()),
    );
    let image = Image::oci(1, &[1000]);
    let signatures = [
        Image::referrer(10, &image, SIGNATURE),
        Image::referrer(11, &image, SIGNATURE),
    ];
    let entries: Vec<_> = signatures
        .iter()
        .map(|signature| signature.root().descriptor())
        .collect();
    let body = json!({"manifests": entries, "mediaType": image::OCI_INDEX, "schemaVersion": 2, "annotations": {"by": "another tool"}});
    let list = Document::raw(image::OCI_INDEX, format!("{body:#}"));
    signatures
        .iter()
        .for_each(|signature| staging.push_untagged("app", signature));
    staging.put_document("app", &list);
    staging.tag("app", &beside(image.digest(), ""), &list.digest);
    staging.push("app", "v1", &image);
    pair(&staging, &production).sync(&[]).await.expect(0);
    assert_eq!(
        production
            .tagged("app", &beside(image.digest(), ""))
            .as_deref(),
        Some(list.digest.as_str())
    );
    assert_eq!(
        production
            .document("app", &beside(image.digest(), ""))
            .unwrap()
            .bytes,
        list.bytes
    );
}

/// ECR has answered 405 and 400 to some referrers.
#[tokio::test]
async fn a_referrer_that_the_destination_refuses_is_told_and_holds_up_nothing() {
    for status in [405, 400] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let image = Image::oci(1, &[1000]);
        let (refused, good) = (
            Image::referrer(10, &image, "application/spdx+json"),
            Image::referrer(11, &image, SIGNATURE),
        );
        staging.push("app", "v1", &image);
        staging.push_untagged("app", &refused);
        staging.push_untagged("app", &good);
        let digest = refused.digest().to_owned();
        production.on(move |asked| match asked.kind {
            Kind::ManifestPut if asked.reference() == digest => {
                let body = r#"{"errors":[{"code":"UNSUPPORTED","message":"Invalid parameter at 'ImageManifest'"}]}"#;
                Answer::Reply(Reply::status(status).body("application/json", body))
            }
            _ => Answer::Pass,
        });
        let run = pair(&staging, &production).sync(&[]).await.expect(0);
        let job = run.job("v1");
        assert_eq!(
            (job["result"].as_str(), &job["referrers"]["copied"]),
            (Some("promoted"), &json!(1)),
            "{job:#}"
        );
        let reasons = job["reasons"].to_string();
        assert!(
            reasons.contains("refuses the referrer") && reasons.contains(refused.digest()),
            "{reasons}"
        );
        assert!(
            production.holds("app", good.digest()) && !production.holds("app", refused.digest())
        );
    }
}

/// An image passed its gate by an SBOM that its destination did not take: it was named there without
/// what had let it pass.
#[tokio::test]
async fn a_referrer_that_is_refused_keeps_its_image_back_where_a_gate_needs_it() {
    let needed = "application/spdx+json";
    for (of_gate, code) in [(needed, 1), (SIGNATURE, 0)] {
        let staging = Scripted::start();
        let production = Scripted::start();
        let image = Image::oci(1, &[1000]);
        let refused = Image::referrer(10, &image, needed);
        staging.push("app", "v1", &image);
        staging.push_untagged("app", &refused);
        staging.push_untagged("app", &Image::referrer(11, &image, SIGNATURE));
        let digest = refused.digest().to_owned();
        production.on(move |asked| match asked.kind {
            Kind::ManifestPut if asked.reference() == digest => {
                Answer::Reply(Reply::status(405).body("application/json", "{}"))
            }
            _ => Answer::Pass,
        });
        let config = Config::new()
            .registry("staging", &staging.url())
            .registry("production", &production.url())
            .route("app", json!({"gates": {"referrers": [of_gate]}}));
        let run = Ferry::new(&config).sync(&[]).await.expect(code);
        let job = run.job("v1");
        if of_gate == needed {
            assert_eq!(job["error"]["class"], "rejected", "{job:#}");
            let text = job["error"]["text"].to_string();
            assert!(text.contains("the gate referrers needs"), "{text}");
            assert_eq!(production.tagged("app", "v1"), None);
        } else {
            assert_eq!(job["result"], "promoted", "{job:#}");
            assert_eq!(
                production.tagged("app", "v1").as_deref(),
                Some(image.digest())
            );
        }
    }
}

#[tokio::test]
async fn a_referrer_that_cannot_be_read_at_staging_still_holds_up_its_image() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let image = Image::oci(1, &[1000]);
    let signature = Image::referrer(10, &image, SIGNATURE);
    staging.push("app", "v1", &image);
    staging.push_untagged("app", &signature);
    staging.on(|asked| match asked.kind {
        Kind::Referrers => Answer::Reply(Reply::status(403)),
        _ => Answer::Pass,
    });
    pair(&staging, &production).sync(&[]).await.expect(3);
    assert_eq!(production.tagged("app", "v1"), None);
}

/// A list that lags, or a signature that was deleted there, decided that nothing was missing.
#[tokio::test]
async fn a_signature_that_production_lists_and_does_not_have_is_carried() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let image = Image::oci(1, &[1000]);
    staging.push("app", "v1", &image);
    let ferry = pair(&staging, &production);
    ferry.sync(&[]).await.expect(0);
    let signature = Image::referrer(10, &image, SIGNATURE);
    staging.push_untagged("app", &signature);
    let list = json!({"schemaVersion": 2, "mediaType": image::OCI_INDEX,
        "manifests": [signature.root().descriptor()]});
    production.on(move |asked| match asked.kind {
        Kind::Referrers => {
            Answer::Reply(Reply::status(200).body(image::OCI_INDEX, list.to_string()))
        }
        _ => Answer::Pass,
    });
    ferry.sync(&[]).await.expect(0);
    assert!(production.holds("app", signature.digest()));

    production.forget_requests();
    ferry.sync(&[]).await.expect(0);
    let asked = production.log();
    assert!(
        asked
            .iter()
            .all(|record| !record.path.ends_with(signature.digest())),
        "what was brought is not asked for again: {asked:#?}"
    );
}
