//! Answers about a tag that say less than they seem to: a success that is no answer to a write, a
//! 404 that a list contradicts.

use serde_json::json;

use crate::support::rules::Reply;
use crate::support::scripted::{Answer, Asked};
use crate::support::*;

fn pair(staging: &Scripted, production: &Scripted) -> Ferry {
    Ferry::new(&Config::pair(&staging.url(), &production.url()))
}

/// A success that is not the answer to a write counted as one: the report said `promoted`, and the
/// tag had not moved.
#[tokio::test]
async fn a_write_that_is_neither_done_nor_refused_is_read_back() {
    for status in [202, 206, 299] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let ferry = pair(&staging, &production);
        let image = Image::oci(1, &[100]);
        staging.push("app", "v1", &image);
        production.on(move |asked| match asked.kind {
            Kind::ManifestPut => Answer::ActThen(Reply::status(status)),
            _ => Answer::Pass,
        });
        let job = ferry.sync(&[]).await.expect(0).job("v1");
        assert_eq!(job["result"], "promoted", "{status}: {job:#}");
        let tagged = production.tagged("app", "v1");
        assert_eq!(tagged.as_deref(), Some(image.digest()));
        assert_eq!(production.count(Kind::ManifestPut), 1, "{status}");
    }
}

#[tokio::test]
async fn a_write_that_is_never_done_fails_with_its_answer() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = pair(&staging, &production);
    staging.push("app", "v1", &Image::oci(1, &[100]));
    production.on(|asked| match asked.kind {
        Kind::ManifestPut => Answer::Reply(Reply::status(202)),
        _ => Answer::Pass,
    });
    let job = ferry.sync(&[]).await.expect(1).job("v1");
    assert_eq!(job["result"], "failed", "{job:#}");
    let text = job["error"]["text"].as_str().unwrap_or_default();
    assert!(text.contains("202: it may not be written yet"), "{job:#}");
    assert_eq!(production.tagged("app", "v1"), None);
}

/// What says of a PUT that it was done, and costs no further request.
#[tokio::test]
async fn a_write_that_is_done_by_its_answer_is_not_read_back() {
    for status in [200, 201, 204] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let ferry = pair(&staging, &production);
        staging.push("app", "v1", &Image::oci(1, &[100]));
        production.on(move |asked| match asked.kind {
            Kind::ManifestPut => Answer::ActThen(Reply::status(status)),
            _ => Answer::Pass,
        });
        ferry.sync(&[]).await.expect(0);
        let put = production.log();
        let put = put
            .iter()
            .rposition(|record| record.kind == Kind::ManifestPut);
        assert_eq!(put, Some(production.log().len() - 1), "{status}");
    }
}

/// A child manifest is asked for at once.
#[tokio::test]
async fn a_child_that_is_neither_written_nor_refused_is_asked_for() {
    for is_applied in [true, false] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let ferry = pair(&staging, &production);
        let index = Image::index(&[Image::oci(1, &[100]), Image::oci(2, &[100])]);
        staging.push("app", "v1", &index);
        production.on(move |asked| match asked.kind {
            Kind::ManifestPut if !asked.reference().contains(':') => Answer::Pass,
            Kind::ManifestPut if is_applied => Answer::ActThen(Reply::status(202)),
            Kind::ManifestPut => Answer::Reply(Reply::status(202)),
            _ => Answer::Pass,
        });
        ferry.sync(&[]).await.expect(i32::from(!is_applied));
        assert_eq!(production.tagged("app", "v1").is_some(), is_applied);
    }
}

/// A fixed tag is in conflict, and production's list shows it. One page of a proxy, with a 404,
/// ended the conflict: the tag moved.
#[tokio::test]
async fn one_404_does_not_end_a_conflict() {
    for kind in ["generic", "harbor", "quay", "distribution3"] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let config = Config::pair(&staging.url(), &production.url()).registry_with(
            "production",
            &production.url(),
            json!({"kind": kind}),
        );
        let ferry = Ferry::new(&config);
        let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
        staging.push("app", "v1", &first);
        ferry.sync(&[]).await.expect(0);
        staging.push("app", "v1", &second);
        ferry.sync(&[]).await.expect(4);

        let is_v1 = |asked: &Asked| {
            matches!(asked.kind, Kind::ManifestHead | Kind::ManifestGet)
                && asked.reference() == "v1"
        };
        production.on(move |asked| {
            if is_v1(asked) {
                let page = Reply::status(404).body("text/html", "<html>no backend</html>");
                return Answer::Reply(page);
            }
            Answer::Pass
        });
        let job = ferry.sync(&[]).await.expect(1).job("v1");
        assert_eq!(job["result"], "failed", "{kind}: {job:#}");
        let text = job["error"]["text"].as_str().unwrap_or_default();
        assert!(text.contains("lists the tag v1"), "{kind}: {job:#}");
        let daemon = ferry.start_ready().await;
        let asked = production.count(Kind::ManifestHead);
        let (status, report) = daemon.ping(json!({"wait": true, "tag": "v1"})).await;
        assert_eq!(status, 502, "{kind}: {report:#}");
        assert!(production.count(Kind::ManifestHead) > asked);
        daemon.killed().await;

        production.calm();
        ferry.sync(&[]).await.expect(4);
        let tagged = production.tagged("app", "v1");
        assert_eq!(tagged.as_deref(), Some(first.digest()), "{kind}");
        assert_eq!(production.count(Kind::ManifestPut), 1, "{kind}");
    }
}
