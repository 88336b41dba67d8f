//! How much evidence is read, and how often.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::signed::{Cosign, assert_promoted, bundles, by_key, place, referrer, rejected};
use crate::support::*;

const MIB: usize = 1024 * 1024;

/// A bundle that nothing verifies, of about this size.
fn bundle(mebibytes: usize) -> Vec<u8> {
    let statement = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"00"}}}}],"predicateType":"https://spdx.dev/Document","predicate":"{}"}}"#,
        "x".repeat(mebibytes * MIB / 4 * 3)
    );
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": STANDARD.encode(statement),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": "AAAA"}],
        },
    });
    bundle.to_string().into_bytes()
}

fn config(staging: &Scripted, production: &Scripted, key: &Path) -> Config {
    let pair = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url());
    pair.route("app", json!({"gates": by_key(key)}))
}

/// Many tags wait for a signature, and a large statement is attached to each.
#[tokio::test]
async fn the_statements_of_all_tags_share_one_room_and_are_read_once() {
    let cosign = Cosign::new();
    let key = cosign.key("ours").await;
    let (staging, production) = (Scripted::start(), Scripted::start());
    let large = bundle(14);
    for number in 0..10 {
        let image = Image::oci(number, &[100]);
        staging.push("app", &format!("v{number}"), &image);
        staging.push_untagged("app", &referrer(&image, &large));
    }
    let beyond = Image::oci(10, &[100]);
    staging.push("app", "v10", &beyond);
    staging.push_untagged("app", &referrer(&beyond, &bundle(18)));
    let ferry = Ferry::new(&config(&staging, &production, &key));
    let daemon = ferry.start_ready().await;
    let look = async || {
        let (status, report) = daemon.ping(json!({"wait": true})).await;
        assert_eq!(status, 200, "{report:#}");
        assert_eq!(report["totals"]["waiting"], 11, "{report:#}");
        let jobs = report["jobs"].as_array().unwrap().clone();
        let reasons: Vec<Value> = jobs.iter().map(|job| json!(rejected(job))).collect();
        reasons
    };
    let reasons = look().await;
    let count = |reason: &str| {
        let reason = json!([reason]);
        reasons.iter().filter(|reasons| **reasons == reason).count()
    };
    assert_eq!(count("the key has not signed it"), 10, "{reasons:?}");
    assert_eq!(
        count("it is larger than 16 MiB, and left out"),
        1,
        "{reasons:?}"
    );
    let read = staging.count(Kind::BlobGet);
    assert_eq!(
        read, 10,
        "each statement is read once, and what is too large is not"
    );
    look().await;
    assert_eq!(
        staging.count(Kind::BlobGet),
        read,
        "nothing has changed since"
    );
    let peak = daemon.peak_memory() as usize / MIB;
    assert!(peak < 200, "{peak} MiB were resident");
}

/// An image has many SBOMs; it is signed after them.
#[tokio::test]
async fn a_signature_behind_many_other_referrers_counts() {
    let cosign = Cosign::new();
    let key = cosign.key("ours").await;
    let stage = super::stage(by_key(&key)).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    cosign.sign("ours", &place(&stage, &image)).await;
    let signature = referrer(&image, &bundles(&stage, &image).await[0]);
    let mut attached: Vec<Image> = (0..101)
        .map(|number| Image::referrer(100 + number, &image, super::SPDX))
        .collect();
    attached.push(signature);
    let attached: Vec<&Image> = attached.iter().collect();
    super::attach(&stage, &image, &attached).await;
    assert_promoted(&stage, &image).await;
}
