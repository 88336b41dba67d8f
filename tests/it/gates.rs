//! Gates: what must be so before a tag moves. Through the program and real registries.

mod asked;
mod evidence;
mod naming;
mod orders;
mod scan_attested;
mod scan_grace;
mod scan_wakes;
mod scanned;
mod scanned_there;
mod signed;
mod slow;
mod times;
mod wrong;

use serde_json::{Value, json};

use crate::support::scripted::Answer;
use crate::support::*;

const SPDX: &str = "application/spdx+json";

/// A stage with one gated route.
async fn stage(gates: Value) -> Stage {
    Stage::with_route(Program::Distribution3, json!({"gates": gates})).await
}

/// Attaches referrers to an image in staging, which keeps no lists: by the fallback tag.
async fn attach(stage: &Stage, image: &Image, referrers: &[&Image]) {
    let fallback = image.digest().replace(':', "-");
    let referrers: Vec<Image> = referrers.iter().map(|one| (*one).clone()).collect();
    let list = Image::index(&referrers);
    stage.push().push("app", &fallback, &list).await;
}

/// The verdicts of a job of a report, by gate.
fn verdicts(job: &Value) -> Value {
    let gates = job["gates"].as_array().expect("a job has gates");
    gates
        .iter()
        .map(|judged| {
            (
                judged["gate"].as_str().unwrap().to_owned(),
                judged["verdict"].clone(),
            )
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn nothing_is_carried_before_the_evidence_is_there() {
    let stage = stage(json!({"referrers": [SPDX]})).await;
    let image = Image::oci(1, &[1000, 2000]);
    stage.push().push("app", "v1", &image).await;

    let run = stage.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = run.job("v1");
    assert_eq!(job["result"], "waiting");
    assert_eq!(verdicts(&job), json!({"referrers": "wait"}));
    let reason = format!("referrers: nothing attached of type {SPDX}");
    assert_eq!(job["reasons"], json!([reason]));
    assert_eq!(stage.sync().await.expect(0).total("waiting"), 1);
    let blobs: Vec<&str> = image
        .unique_blobs()
        .iter()
        .map(|blob| &*blob.digest)
        .collect();
    stage.there().assert_lacks("app", "v1", &blobs).await;
    assert_eq!(stage.there().digest("app", image.digest()).await, None);

    // Another type is none.
    let other = Image::referrer(2, &image, "application/vnd.example");
    attach(&stage, &image, &[&other]).await;
    assert_eq!(stage.sync().await.expect(0).total("waiting"), 1);

    let document = Image::referrer(3, &image, SPDX);
    attach(&stage, &image, &[&other, &document]).await;
    let run = stage.sync().await.expect(0);
    let job = run.job("v1");
    assert_eq!(job["result"], "promoted");
    let evidence = &job["gates"][0]["evidence"]["referrers"][0];
    assert_eq!(evidence["digest"], document.digest());
    stage.there().assert_holds("app", "v1", &image).await;
    for attached in [&other, &document] {
        let there = stage.there().digest("app", attached.digest()).await;
        assert_eq!(there.as_deref(), Some(attached.digest()));
    }

    // The ledger has both results, each with its evidence.
    let history = stage.ferry.run(&["history", "--json"]).await;
    let rows: Vec<Value> = history
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let shown = |row: &Value| json!([row["result"], verdicts(row)]);
    let mut shown: Vec<Value> = rows.iter().map(shown).collect();
    shown.sort_by_key(Value::to_string);
    let promoted = json!(["promoted", {"referrers": "pass"}]);
    assert_eq!(shown, [promoted, json!(["waiting", {"referrers": "wait"}])]);
}

#[tokio::test]
async fn a_dry_run_judges_and_changes_nothing() {
    let stage = stage(json!({"referrers": [SPDX], "min_age": "1h"})).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let plan = stage.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(plan.job("v1")["result"], "waiting");
    let expected = json!({"min_age": "wait", "referrers": "wait"});
    assert_eq!(verdicts(&plan.job("v1")), expected);
    let document = Image::referrer(2, &image, SPDX);
    attach(&stage, &image, &[&document]).await;
    let plan = stage.ferry.sync(&["--dry-run"]).await.expect(0);
    let expected = json!({"min_age": "wait", "referrers": "pass"});
    assert_eq!(verdicts(&plan.job("v1")), expected);
    let reason = plan.job("v1")["reasons"][0].as_str().unwrap().to_owned();
    assert!(reason.contains("not in the ledger yet"), "{reason}");
    assert_eq!(stage.target.count(Kind::ManifestPut), 0);
}

/// The daemon looks again when the time has come, without an event and without a poll.
#[tokio::test]
async fn an_age_is_waited_for_and_the_content_is_there_by_then() {
    let stage = stage(json!({"min_age": "3s"})).await;
    let image = Image::oci(1, &[1000]);
    let daemon = stage.ferry.start_ready().await;
    stage.push().push("app", "v1", &image).await;
    let signature = format!("{}.sig", image.digest().replace(':', "-"));
    let signed = Image::oci(7, &[100]);
    stage.push().push("app", &signature, &signed).await;

    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(status, 200, "{report:#}");
    let job = &report["jobs"][0];
    assert_eq!(job["result"], "waiting", "{job:#}");
    assert!(
        job["reasons"][0]
            .as_str()
            .unwrap()
            .contains("old enough at")
    );
    let seen = job["gates"][0]["evidence"]["first_seen"].clone();
    assert!(seen.is_string(), "{job:#}");
    for blob in image.unique_blobs() {
        let is_there = stage.there().has_blob("app", &blob.digest).await;
        assert!(is_there, "it is carried while its time has not come");
    }
    for tag in ["v1", &signature] {
        assert_eq!(stage.there().digest("app", tag).await, None, "{tag}");
    }
    let waiting = [
        ("route", "app"),
        ("destination", "production"),
        ("state", "waiting"),
    ];
    assert_eq!(daemon.metric("blobferry_tags", &waiting).await, Some(1.0));

    eventually("the tag moves by itself", async || {
        stage.there().digest("app", "v1").await
    })
    .await;
    stage.there().assert_holds("app", "v1", &image).await;
    let there = stage.there().digest("app", &signature).await;
    assert_eq!(there.as_deref(), Some(signed.digest()));
    let counted = async |verdict: &str| {
        let labels = [("route", "app"), ("gate", "min_age"), ("verdict", verdict)];
        daemon.metric("blobferry_gates_total", &labels).await
    };
    eventually("the verdict is counted", async || {
        (counted("pass").await == Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(counted("wait").await, Some(1.0), "asked once, at its time");
    assert_eq!(counted("refuse").await, Some(0.0));
}

#[tokio::test]
async fn a_window_is_that_of_the_config_in_force() {
    let closed = json!({"window": {"zone": "Europe/Zurich", "closed": "2000-01-01/2999-12-31"}});
    let stage = stage(closed).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let daemon = stage.ferry.start_ready().await;
    let named = json!({"wait": true, "repository": "app", "tag": "v1"});
    let (status, report) = daemon.ping(named.clone()).await;
    assert_eq!(status, 409, "{report:#}");
    assert_eq!(report["jobs"][0]["result"], "waiting");
    let evidence = &report["jobs"][0]["gates"][0]["evidence"];
    assert_eq!(evidence["zone"], "Europe/Zurich");

    // `copy` and `promote` over the heads of the gates are kept back as well.
    let from = format!("{}/app:v1", stage.source.address());
    let to = format!("{}/app:v1", stage.target.address());
    for act in ["copy", "promote"] {
        let run = stage
            .ferry
            .run(&[act, &from, &to, "--json"])
            .await
            .expect(4);
        assert_eq!(verdicts(&run.job("v1")), json!({"window": "wait"}), "{act}");
    }
    assert_eq!(stage.there().digest("app", "v1").await, None);

    let open = json!({"gates": {"window": {"open": "mon-sun"}}});
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("app", open)));
    daemon.signal("HUP").await;
    eventually("the tag moves under the new config", async || {
        stage.there().digest("app", "v1").await
    })
    .await;
    stage.there().assert_holds("app", "v1", &image).await;
}

/// A look over tags that are equal asks no gate.
#[tokio::test]
async fn unchanged_tags_cost_no_more_requests_with_gates_than_without() {
    let gates = json!({"referrers": [SPDX], "min_age": "1s", "window": {"open": "mon-sun"}});
    let mut requests = Vec::new();
    for gates in [json!({}), gates] {
        let stage = Stage::with_route(Program::Distribution3, json!({})).await;
        for number in 0..20 {
            let tag = format!("v{number}");
            stage
                .push()
                .push("app", &tag, &Image::oci(number, &[100]))
                .await;
        }
        assert_eq!(stage.sync().await.expect(0).total("promoted"), 20);
        let route = json!({"gates": gates});
        let config = stage.config(|config| config.route("app", route));
        stage.ferry.write_config(&config);
        stage.reset();
        assert_eq!(stage.sync().await.expect(0).total("up_to_date"), 20);
        requests.push(stage.source.log().len() + stage.target.log().len());
    }
    assert_eq!(requests[0], requests[1]);
}

/// The registry answers the first attempt to write a tag with a wait of three seconds.
fn asks_for_time_before(registry: &Scripted, tag: &'static str) {
    registry.on(move |asked| match (asked.kind, asked.reference()) {
        (Kind::ManifestPut, named) if named == tag && asked.nth_here == 1 => {
            Answer::Reply(Reply::status(429).header("retry-after", "3"))
        }
        _ => Answer::Pass,
    });
}
