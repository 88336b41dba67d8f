//! Documents that are not images are refused, whatever they are served as; tags that only look like
//! companions are not carried.

use serde_json::{Value, json};

use crate::support::image::{self, Document};
use crate::support::*;

fn pair(staging: &Scripted, production: &Scripted, route: Value) -> Ferry {
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url());
    Ferry::new(&config.route("app", route))
}

#[tokio::test]
async fn a_document_that_is_no_image_or_two_things_is_refused_with_its_reason() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let good = Image::oci(1, &[1000]);
    staging.push("app", "good", &good);
    let manifest: Value = serde_json::from_slice(&good.root().bytes).unwrap();
    let with = |field: &str, value: Value| {
        let mut document = manifest.clone();
        document[field] = value;
        document
    };
    let child = json!([good.root().descriptor()]);
    let documents = [
        (
            "no-image",
            image::OCI_MANIFEST,
            json!({"a": "b"}),
            "it is not an image",
        ),
        (
            "no-docker-image",
            image::DOCKER_MANIFEST,
            json!({"a": "b"}),
            "it is not an image",
        ),
        (
            "no-index",
            image::OCI_INDEX,
            json!({"schemaVersion": 2}),
            "it is not an image",
        ),
        (
            "two-in-one",
            image::OCI_MANIFEST,
            with("manifests", child),
            "CVE-2021-41190",
        ),
        (
            "other-case",
            image::OCI_MANIFEST,
            with("Layers", json!([])),
            "Layers",
        ),
        (
            "contradiction",
            image::OCI_INDEX,
            manifest.clone(),
            "calls itself",
        ),
        (
            "schema1",
            image::OCI_MANIFEST,
            with("schemaVersion", json!(1)),
            "schemaVersion",
        ),
    ];
    for (tag, media_type, body, _) in &documents {
        let document = Document::raw(media_type, body.to_string());
        staging.put_document("app", &document);
        staging.tag("app", tag, &document.digest);
    }
    let run = pair(&staging, &production, json!({}))
        .sync(&[])
        .await
        .expect(1);
    for (tag, _, _, reason) in &documents {
        let error = run.job(tag)["error"].clone();
        assert_eq!(error["class"], "rejected", "{tag}: {error}");
        assert!(
            error["text"].as_str().unwrap().contains(reason),
            "{tag}: {error}"
        );
    }
    assert_eq!(
        production.tags("app"),
        ["good"],
        "and nothing else was named"
    );
}

#[tokio::test]
async fn tags_that_only_begin_like_a_companion_keep_to_the_rules() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let image = Image::oci(1, &[1000]);
    staging.push("app", "v1", &image);
    let stem = image.digest().replace(':', "-");
    for ending in [".sig", ".backdoor1", ".backdoor2", ".sig.x"] {
        staging.push("app", &format!("{stem}{ending}"), &Image::oci(2, &[10]));
    }
    let tags = json!({"tags": {"include": ["*"], "exclude": ["sha256-*"]}});
    pair(&staging, &production, tags).sync(&[]).await.expect(0);
    assert_eq!(production.tags("app"), [format!("{stem}.sig"), "v1".into()]);

    pair(&staging, &production, json!({}))
        .sync(&[])
        .await
        .expect(0);
    assert_eq!(
        production.tags("app").len(),
        5,
        "without that rule they are tags like others"
    );
}
