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

/// Answers with status 200 that are no list of the repository's tags, or not all of it.
fn no_lists() -> Vec<(&'static str, Reply)> {
    let json = |body: &'static str| Reply::status(200).body("application/json", body);
    let list = || json(r#"{"name":"app","tags":["a"]}"#);
    vec![
        (
            "an error document",
            json(r#"{"errors":[{"code":"DENIED","message":"no"}]}"#),
        ),
        ("an empty object", json("{}")),
        (
            "the list of another repository",
            json(r#"{"name":"other","tags":["a"]}"#),
        ),
        (
            "a link without brackets",
            list().header("link", r#"/v2/app/tags/list?last=a&n=1; rel="next""#),
        ),
        (
            "a link without a relation",
            list().header("link", "</v2/app/tags/list?last=a&n=1>"),
        ),
        (
            "a next page in another repository",
            list().header("link", r#"</v2/zz/tags/list?last=a>; rel="next""#),
        ),
        (
            "a page for people",
            Reply::status(200).body("text/html", r#"{"name":"app","tags":["a"]}"#),
        ),
    ]
}

/// They counted as an empty list, and what came before as all of it.
#[tokio::test]
async fn an_answer_of_staging_that_is_no_list_is_a_failed_listing() {
    for (what, reply) in no_lists() {
        let (staging, production) = (Scripted::start(), Scripted::start());
        staging.push("app", "a", &Image::oci(1, &[10]));
        staging.push("app", "b", &Image::oci(2, &[10]));
        staging.on(move |asked| match asked.kind {
            Kind::Tags => Answer::Reply(reply.clone()),
            _ => Answer::Pass,
        });
        let run = pair(&staging, &production).sync(&[]).await.expect(1);
        assert_eq!(
            run.report()["trouble"].as_array().map(Vec::len),
            Some(1),
            "{what}"
        );
        assert!(production.tags("app").is_empty(), "{what}");
    }
}

/// A fixed tag was overwritten without one question about it.
#[tokio::test]
async fn an_answer_of_production_that_is_no_list_overwrites_no_tag() {
    for kind in ["distribution3", "zot", "generic"] {
        let mut answers = no_lists();
        let nameless = Reply::status(200).body("application/json", r#"{"tags":["a"]}"#);
        answers.push(("a list without a name", nameless));
        for (what, reply) in answers {
            let (staging, production) = (Scripted::start(), Scripted::start());
            let theirs = Image::oci(1, &[10]);
            production.push("app", "v1", &theirs);
            staging.push("app", "v1", &Image::oci(2, &[10]));
            production.on(move |asked| match asked.kind {
                Kind::Tags => Answer::Reply(reply.clone()),
                _ => Answer::Pass,
            });
            let config = Config::new()
                .registry("staging", &staging.url())
                .registry_with("production", &production.url(), json!({"kind": kind}))
                .route("app", json!({}));
            Ferry::new(&config).sync(&[]).await;
            assert_eq!(
                production.tagged("app", "v1").as_deref(),
                Some(theirs.digest()),
                "{kind}, {what}"
            );
        }
    }
}

#[tokio::test]
async fn an_empty_repository_may_list_its_tags_as_null() {
    for kind in ["distribution3", "generic"] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let image = Image::oci(1, &[10]);
        staging.push("app", "v1", &image);
        production.on(|asked| match asked.kind {
            Kind::Tags => Answer::Reply(
                Reply::status(200).body("application/json", r#"{"name":"app","tags":null}"#),
            ),
            _ => Answer::Pass,
        });
        let config = Config::new()
            .registry("staging", &staging.url())
            .registry_with("production", &production.url(), json!({"kind": kind}))
            .route("app", json!({}));
        Ferry::new(&config).sync(&[]).await.expect(0);
        assert_eq!(
            production.tagged("app", "v1").as_deref(),
            Some(image.digest()),
            "{kind}"
        );
    }
}

/// An error document with status 200 was a list without entries: the signature stayed behind.
#[tokio::test]
async fn an_answer_that_is_no_list_of_referrers_is_a_failure() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    staging.push("app", "v1", &Image::oci(1, &[10]));
    staging.on(|asked| match asked.kind {
        Kind::Referrers => Answer::Reply(
            Reply::status(200).body("application/json", r#"{"errors":[{"code":"DENIED"}]}"#),
        ),
        _ => Answer::Pass,
    });
    let run = pair(&staging, &production).sync(&[]).await.expect(1);
    let error = run.job("v1")["error"].to_string();
    assert!(error.contains("not a list of referrers"), "{error}");
    assert_eq!(production.tagged("app", "v1"), None);
}
