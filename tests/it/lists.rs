//! Lists that never end, or hold more than anything can use, cost bounded time and memory.

use serde_json::json;

use crate::support::scripted::{Answer, Asked};
use crate::support::*;

const MIB: u64 = 1024 * 1024;

fn pair(staging: &Scripted, production: &Scripted) -> Ferry {
    Ferry::new(&Config::pair(&staging.url(), &production.url()))
}

/// A page of referrers without an entry, and always one more behind it.
fn one_more_page(asked: &Asked) -> Answer {
    let next = format!("<{}?page={}>; rel=\"next\"", asked.path, asked.nth);
    let body =
        json!({"schemaVersion": 2, "mediaType": image::OCI_INDEX, "manifests": []}).to_string();
    Answer::Reply(
        Reply::status(200)
            .header("link", &next)
            .body(image::OCI_INDEX, body),
    )
}

#[tokio::test]
async fn pages_of_referrers_without_entries_end_on_either_side() {
    for endless_source in [true, false] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let image = Image::oci(1, &[1000]);
        staging.push("app", "v1", &image);
        staging.push_untagged(
            "app",
            &Image::referrer(10, &image, "application/vnd.example.signature"),
        );
        let endless = if endless_source {
            &staging
        } else {
            &production
        };
        endless.on(|asked| match asked.kind {
            Kind::Referrers => one_more_page(asked),
            _ => Answer::Pass,
        });
        let run = pair(&staging, &production).sync(&[]).await.expect(1);
        let error = run.job("v1")["error"].clone();
        assert_eq!(error["class"], "rejected");
        let text = error["text"].as_str().unwrap();
        assert!(
            text.contains("never ends its list") && text.contains(image.digest()),
            "{text}"
        );
        assert!(
            endless.count(Kind::Referrers) < 20,
            "{} pages were read",
            endless.count(Kind::Referrers)
        );
        assert_eq!(production.tagged("app", "v1"), None);
    }
}

/// As many names as fit into the largest page.
fn a_page_of_names(key: &str) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut page = format!("{{\"{key}\":[");
    for number in 0..1_190_000_usize {
        let digit = |place: u32| DIGITS[number / 36_usize.pow(place) % 36] as char;
        page.extend(['"', digit(3), digit(2), digit(1), digit(0), '"', ',']);
    }
    page.pop();
    page + "]}"
}

#[tokio::test]
async fn a_page_of_a_million_tags_is_refused_by_name_within_128_mib() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let page = a_page_of_names("tags");
    staging.on(move |asked| match asked.kind {
        Kind::Tags => Answer::Reply(Reply::status(200).body("application/json", page.clone())),
        _ => Answer::Pass,
    });
    let run = pair(&staging, &production).sync(&[]).await.expect(1);
    assert!(
        run.said().contains("lists more than 200000 tags") && run.said().contains("staging"),
        "{}",
        run.said()
    );
    assert!(
        run.peak_memory < 128 * MIB,
        "{} MiB were resident",
        run.peak_memory / MIB
    );
}

#[tokio::test]
async fn a_page_of_a_million_repositories_is_refused_by_name_within_128_mib() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let page = a_page_of_names("repositories");
    staging.on(move |asked| match asked.kind {
        Kind::Catalog => Answer::Reply(Reply::status(200).body("application/json", page.clone())),
        _ => Answer::Pass,
    });
    let route = json!({"name": "all", "from": "staging/*", "to": "production/{1}", "tags": {"include": ["*"]}});
    let base = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url());
    let run = Ferry::new(&base.raw_route(route)).sync(&[]).await;
    assert_ne!(run.code, 0);
    assert!(
        run.said().contains("lists more than 200000 repositories"),
        "{}",
        run.said()
    );
    assert!(
        run.peak_memory < 128 * MIB,
        "{} MiB were resident",
        run.peak_memory / MIB
    );
}

#[tokio::test]
async fn a_page_of_too_many_referrers_is_refused_by_name() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let image = Image::oci(1, &[1000]);
    staging.push("app", "v1", &image);
    let entry = image.root().descriptor();
    let body = json!({"schemaVersion": 2, "manifests": vec![entry; 20_000]}).to_string();
    staging.on(move |asked| match asked.kind {
        Kind::Referrers => Answer::Reply(Reply::status(200).body(image::OCI_INDEX, body.clone())),
        _ => Answer::Pass,
    });
    let run = pair(&staging, &production).sync(&[]).await.expect(1);
    assert!(
        run.said().contains("lists more than 10000 referrers"),
        "{}",
        run.said()
    );
    assert!(
        run.peak_memory < 128 * MIB,
        "{} MiB were resident",
        run.peak_memory / MIB
    );
    assert_eq!(production.tagged("app", "v1"), None);
}
