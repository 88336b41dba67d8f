//! What is promised about names, through the program: registries that hide, lose, lie or refuse,
//! and people who push by hand.

use serde_json::{Value, json};

use crate::support::rules::Reply;
use crate::support::scripted::{Answer, Asked};
use crate::support::*;

fn pair(staging: &Scripted, production: &Scripted) -> Ferry {
    Ferry::new(&Config::pair(&staging.url(), &production.url()))
}

/// The rows of `history --json`, oldest first: result and digest.
async fn history(ferry: &Ferry) -> Vec<(String, String)> {
    let run = ferry.run(&["history", "--json", "--limit", "1000"]).await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let rows = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a row is JSON"));
    let mut rows: Vec<(u64, String, String)> = rows
        .map(|row| {
            (
                row["id"].as_u64().unwrap(),
                text(&row, "result"),
                text(&row, "digest"),
            )
        })
        .collect();
    rows.sort();
    rows.into_iter()
        .map(|(_, result, digest)| (result, digest))
        .collect()
}

/// Names the config that is in force.
async fn config_hash(daemon: &Daemon) -> String {
    let text = daemon
        .get("/v1/status")
        .await
        .text()
        .await
        .expect("the status is text");
    let status: Value = serde_json::from_str(&text).expect("the status is JSON");
    status["config"]["hash"]
        .as_str()
        .expect("a config has a hash")
        .to_owned()
}

/// 1. Staging moves `latest` to the second image; the PUT is applied, and no answer about the tag
///    comes back any more. 2. A later pass finds both sides equal. 3. A person goes back to the
///    first image by hand: that stays.
#[tokio::test]
async fn a_rollback_by_hand_after_a_lost_answer_stays() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = pair(&staging, &production);
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    staging.push("app", "latest", &first);
    ferry.sync(&[]).await.expect(0);
    staging.push("app", "latest", &second);
    loses_answers_about_latest(&production, &first);
    ferry.sync(&[]).await.expect(1);
    assert_eq!(
        production.tagged("app", "latest").as_deref(),
        Some(second.digest()),
        "it was applied"
    );
    production.calm();
    ferry.sync(&[]).await.expect(0);
    let promoted = |image: &Image| ("promoted".to_owned(), image.digest().to_owned());
    let rows = history(&ferry).await;
    assert!(
        rows.contains(&promoted(&first)) && rows.contains(&promoted(&second)),
        "{rows:?}"
    );

    production.tag("app", "latest", first.digest());
    for _ in 0..2 {
        let run = ferry.sync(&[]).await.expect(4);
        assert_eq!(run.job("latest")["result"], "drift");
        assert_eq!(
            production.tagged("app", "latest").as_deref(),
            Some(first.digest())
        );
    }
}

/// Production applies the write of `latest`, loses the answer, and does not answer about the tag
/// any more.
fn loses_answers_about_latest(production: &Scripted, before: &Image) {
    let asked_after = production.clone();
    let before = before.digest().to_owned();
    production.on(move |asked| {
        let is_latest = asked.path.ends_with("/manifests/latest");
        let was_written = || {
            asked_after
                .tagged("app", "latest")
                .is_some_and(|digest| digest != before)
        };
        match asked.kind {
            Kind::ManifestPut if is_latest => Answer::Lose,
            Kind::ManifestHead | Kind::ManifestGet if is_latest && was_written() => {
                Answer::Reply(Reply::status(504))
            }
            _ => Answer::Pass,
        }
    });
}

/// A write that was applied, whose answer was lost, and that a person took back before production
/// was asked again leaves the same facts as a write that never arrived. The tag moves again, and
/// says why: a promotion that does not happen would be worse.
#[tokio::test]
async fn a_rollback_by_hand_before_a_lost_answer_was_asked_about_is_promoted_over_and_told() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = pair(&staging, &production);
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    staging.push("app", "latest", &first);
    ferry.sync(&[]).await.expect(0);
    staging.push("app", "latest", &second);
    loses_answers_about_latest(&production, &first);
    ferry.sync(&[]).await.expect(1);
    assert_eq!(
        production.tagged("app", "latest").as_deref(),
        Some(second.digest())
    );

    production.tag("app", "latest", first.digest());
    production.calm();
    let job = ferry.sync(&[]).await.expect(0).job("latest");
    assert_eq!(job["result"], "promoted", "{job:#}");
    assert!(
        job["reasons"].to_string().contains("got no answer"),
        "{job:#}"
    );
    assert_eq!(
        production.tagged("app", "latest").as_deref(),
        Some(second.digest())
    );

    // The answer is known now: the next rollback by hand is drift.
    production.tag("app", "latest", first.digest());
    let run = ferry.sync(&[]).await.expect(4);
    assert_eq!(run.job("latest")["result"], "drift", "{}", run.stdout);
}

/// A write that was refused with an answer did not happen: nothing is said of it when the tag moves
/// later.
#[tokio::test]
async fn a_write_that_was_refused_with_an_answer_leaves_no_doubt() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = pair(&staging, &production);
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    staging.push("app", "latest", &first);
    ferry.sync(&[]).await.expect(0);
    staging.push("app", "latest", &second);
    production.on(|asked| match asked.kind {
        Kind::ManifestPut if asked.reference() == "latest" => Answer::Reply(Reply::status(403)),
        _ => Answer::Pass,
    });
    ferry.sync(&[]).await.expect(3);
    production.calm();
    let job = ferry.sync(&[]).await.expect(0).job("latest");
    assert_eq!(
        (&job["result"], &job["reasons"]),
        (&json!("promoted"), &json!([])),
        "{job:#}"
    );
}

/// A registry answers about a tag with 404 when the document's type is not accepted, and later
/// whatever is accepted.
#[tokio::test]
async fn a_listed_tag_that_is_answered_with_404_is_not_overwritten() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let config = Config::pair(&staging.url(), &production.url()).registry_with(
        "production",
        &production.url(),
        json!({"kind": "distribution3"}),
    );
    let (ours, theirs) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    staging.push("app", "v1", &ours);
    production.push("app", "v1", &theirs);
    let unknown = || {
        let body =
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest type not accepted"}]}"#;
        Answer::Reply(Reply::status(404).body("application/json", body))
    };
    let is_v1 = |asked: &Asked| {
        matches!(asked.kind, Kind::ManifestHead | Kind::ManifestGet) && asked.reference() == "v1"
    };
    let takes_any = |asked: &Asked| {
        let accepted = asked.headers.get_all("accept").iter();
        accepted
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.contains("*/*"))
    };
    production.on(move |asked| match is_v1(asked) && !takes_any(asked) {
        true => unknown(),
        false => Answer::Pass,
    });
    let run = Ferry::new(&config).sync(&[]).await.expect(0);
    assert_eq!((run.total("existing"), run.total("promoted")), (1, 0));

    production.on(move |asked| match is_v1(asked) {
        true => unknown(),
        false => Answer::Pass,
    });
    let ferry = Ferry::new(&config);
    let run = ferry.sync(&[]).await.expect(1);
    let job = run.job("v1");
    let text = job["error"]["text"].as_str().unwrap_or_default();
    assert!(text.contains("lists the tag v1"), "{job:#}");
    assert_eq!(
        production.tagged("app", "v1").as_deref(),
        Some(theirs.digest())
    );
    assert_eq!(production.count(Kind::ManifestPut), 0);

    // A tag that the list does not show either is absent.
    production.calm();
    production.untag("app", "v1");
    ferry.sync(&[]).await.expect(0);
    assert_eq!(
        production.tagged("app", "v1").as_deref(),
        Some(ours.digest())
    );
}

/// The PUT of a fixed tag is told to come back in three seconds, and a person pushes the tag
/// meanwhile.
#[tokio::test]
async fn a_fixed_tag_pushed_by_hand_while_ours_waits_stays() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let (ours, theirs) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    staging.push("app", "v1", &ours);
    production.push_untagged("app", &theirs);
    let (registry, digest) = (production.clone(), theirs.digest().to_owned());
    production.on(move |asked| match asked.kind {
        Kind::ManifestPut if asked.nth_here == 1 && asked.reference() == "v1" => {
            registry.tag("app", "v1", &digest);
            Answer::Reply(Reply::status(429).header("retry-after", "3"))
        }
        _ => Answer::Pass,
    });
    let run = pair(&staging, &production).sync(&[]).await.expect(0);
    assert_eq!(
        (run.total("existing"), run.total("promoted")),
        (1, 0),
        "{}",
        run.stdout
    );
    assert_eq!(
        production.tagged("app", "v1").as_deref(),
        Some(theirs.digest())
    );
    assert_eq!(writes_of_v1(&production), 1);
}

/// How often the tag `v1` was written, whatever came of it.
fn writes_of_v1(production: &Scripted) -> usize {
    let puts = production.of(Kind::ManifestPut);
    puts.iter().filter(|put| put.path.ends_with("/v1")).count()
}

/// The tag is there by HEAD, and the list does not show it, or is not there at all.
#[tokio::test]
async fn a_tag_that_the_list_hides_is_not_overwritten_by_any_command() {
    let hides = |asked: &Asked| {
        if asked.kind == Kind::Tags {
            Some(Reply::status(200).body("application/json", r#"{"name":"app","tags":[]}"#))
        } else {
            None
        }
    };
    let lacks = |asked: &Asked| {
        if asked.kind == Kind::Tags {
            Some(Reply::status(404).body(
                "application/json",
                r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#,
            ))
        } else {
            None
        }
    };
    let scripts: [fn(&Asked) -> Option<Reply>; 2] = [hides, lacks];
    for script in scripts {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let (ours, theirs) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
        staging.push("app", "v1", &ours);
        production.push("app", "v1", &theirs);
        production.on(move |asked| script(asked).map_or(Answer::Pass, Answer::Reply));
        let ferry = pair(&staging, &production);
        let run = ferry.sync(&[]).await.expect(0);
        assert_eq!(
            (run.total("existing"), run.total("promoted")),
            (1, 0),
            "{}",
            run.stdout
        );
        let (source, target) = (
            format!("http://{}/app", staging.host()),
            format!("http://{}/app", production.host()),
        );
        ferry
            .run(&["promote", "--all-tags", &source, &target])
            .await
            .expect(4);
        ferry
            .run(&["promote", &format!("{source}:v1"), &target])
            .await
            .expect(4);
        ferry
            .run(&["copy", &format!("{source}:v1"), &format!("{target}:v1")])
            .await
            .expect(4);
        assert_eq!(
            production.tagged("app", "v1").as_deref(),
            Some(theirs.digest())
        );
        assert_eq!(writes_of_v1(&production), 0);
    }
}

/// Staging answers every HEAD with the digest that production names, for `latest` and for
/// production's own signature. It has neither image.
#[tokio::test]
async fn a_source_that_says_yes_to_everything_gets_nothing_replaced() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let (ours, theirs) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    let signature = format!("{}.sig", ours.digest().replace(':', "-"));
    let (signed, their_signature) = (Image::oci(3, &[30]), Image::oci(4, &[40]));
    staging.push("app", "latest", &ours);
    staging.push("app", "v1", &ours);
    staging.push("app", &signature, &signed);
    production.push("app", "latest", &theirs);
    production.push("app", &signature, &their_signature);
    let there = production.clone();
    staging.on(
        move |asked| match (asked.kind, there.document("app", asked.reference())) {
            (Kind::ManifestHead, Some(document)) => Answer::Reply(
                Reply::status(200)
                    .header("docker-content-digest", &document.digest)
                    .header("content-type", "application/vnd.oci.image.manifest.v1+json"),
            ),
            _ => Answer::Pass,
        },
    );
    let ferry = pair(&staging, &production);
    for _ in 0..2 {
        ferry.sync(&[]).await;
    }
    staging.calm();
    let run = ferry.sync(&["--all"]).await;
    assert_eq!(run.job("latest")["result"], "existing", "{}", run.stdout);
    assert_eq!(
        production.tagged("app", "latest").as_deref(),
        Some(theirs.digest())
    );
    assert_eq!(
        production.tagged("app", &signature).as_deref(),
        Some(their_signature.digest())
    );
}

/// After `drift` was kept the whole state is lost: one pass leaves what the person did.
#[tokio::test]
async fn a_lost_state_leaves_what_a_person_changed() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    staging.push("app", "latest", &second);
    staging.push("app", "v1", &first);
    let ferry = pair(&staging, &production);
    ferry.sync(&[]).await.expect(0);
    production.tag("app", "latest", first.digest());
    assert_eq!(
        ferry.sync(&[]).await.expect(4).job("latest")["result"],
        "drift"
    );
    std::fs::remove_dir_all(ferry.path("state")).expect("there is a state");
    let run = ferry.sync(&["--all"]).await.expect(0);
    assert_eq!(run.job("latest")["result"], "existing");
    assert_eq!(
        production.tagged("app", "latest").as_deref(),
        Some(first.digest())
    );
}

/// While a layer is on its way the config is mended: another address of production, or the tag is
/// excluded now.
#[tokio::test]
async fn a_reload_counts_for_a_job_that_runs() {
    for excluded in [false, true] {
        let (staging, production, other) =
            (Scripted::start(), Scripted::start(), Scripted::start());
        let image = Image::oci(1, &[100]);
        let ferry = pair(&staging, &production);
        let mut daemon = ferry.start_ready().await;
        staging.push("app", "v1", &image);
        let gate = Gate::closed();
        let held = gate.clone();
        staging.on(move |asked| {
            if asked.kind == Kind::BlobGet {
                Answer::Hold(held.clone())
            } else {
                Answer::Pass
            }
        });
        daemon.ping(json!({})).await;
        gate.arrived(1).await;
        let before = config_hash(&daemon).await;
        ferry.write_config(&if excluded {
            let config = Config::new()
                .registry("staging", &staging.url())
                .registry("production", &production.url());
            config.route(
                "app",
                json!({"tags": {"include": ["*"], "exclude": ["v1"]}}),
            )
        } else {
            Config::pair(&staging.url(), &other.url())
        });
        daemon.signal("HUP").await;
        eventually("the config was read again", async || {
            (config_hash(&daemon).await != before).then_some(())
        })
        .await;
        gate.open();
        staging.calm();
        // A pass by the new config: it ends after the job that ran, since looks of one repository
        // do not overlap.
        daemon.ping(json!({"wait": true})).await;
        assert_eq!(production.tagged("app", "v1"), None, "excluded: {excluded}");
        assert_eq!(other.tagged("app", "v1").is_some(), !excluded);
        daemon.signal("TERM").await;
        daemon.ended().await;
    }
}

/// Drift is reported; the polls after it trust no hint that says otherwise.
#[tokio::test]
async fn a_drift_stays_reported_over_the_polls_that_follow() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let (ours, theirs) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    staging.push("app", "v1", &ours);
    let ferry =
        Ferry::new(&Config::pair(&staging.url(), &production.url()).daemon("poll", json!("1s")));
    let mut daemon = ferry.start_ready().await;
    production.push("app", "v1", &theirs);
    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!((status, &report["totals"]["drift"]), (409, &json!(1)));
    let polled = staging.count(Kind::Tags);
    staging.seen(Kind::Tags, polled + 4).await;
    daemon.signal("TERM").await;
    daemon.ended().await;
    let rows: Vec<String> = history(&ferry)
        .await
        .into_iter()
        .map(|(result, _)| result)
        .collect();
    assert_eq!(rows, ["promoted", "drift"]);
    assert_eq!(
        production.tagged("app", "v1").as_deref(),
        Some(theirs.digest())
    );
}
