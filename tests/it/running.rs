//! The daemon at work: what starts it, what it answers, what it refuses, how it ends.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::*;

const MIB: usize = 1024 * 1024;

async fn arrives(stage: &Stage, tag: &str, image: &Image) {
    eventually(&format!("{tag} is in production"), async || {
        let named = stage.there().digest("app", tag).await;
        (named.as_deref() == Some(image.digest())).then_some(())
    })
    .await;
    stage.there().assert_holds("app", tag, image).await;
}

#[tokio::test]
async fn a_push_is_in_production_after_a_ping() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let (status, answer) = daemon.ping(json!({})).await;
    assert_eq!(status, 202);
    assert_eq!(answer["queued"], 1);
    assert!(
        answer["run_id"].as_str().is_some_and(|id| !id.is_empty()),
        "{answer}"
    );
    arrives(&stage, "v1", &image).await;
    let run = answer["run_id"].as_str().unwrap();
    eventually("the run has its report", async || {
        let answer = daemon
            .get(&format!("/v1/runs/{run}"))
            .await
            .text()
            .await
            .unwrap();
        answer.contains("\"promoted\"").then_some(())
    })
    .await;
    assert_eq!(daemon.get("/v1/runs/0000000000000000").await.status(), 404);
}

#[tokio::test]
async fn a_push_is_in_production_after_a_signal() {
    let stage = Stage::new(Program::Distribution3).await;
    let daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    daemon.signal("USR1").await;
    arrives(&stage, "v1", &image).await;
}

#[tokio::test]
async fn a_push_is_in_production_after_a_poll() {
    let stage = Stage::build(Program::Distribution3, |config| {
        config.daemon("poll", json!("1s")).route("app", json!({}))
    })
    .await;
    let daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    arrives(&stage, "v1", &image).await;
    let moved = Image::oci(2, &[1000]);
    stage.push().push("app", "latest", &moved).await;
    arrives(&stage, "latest", &moved).await;
    assert_eq!(
        daemon
            .metric(
                "blobferry_promotions_total",
                &[("route", "app"), ("destination", "production")]
            )
            .await,
        Some(2.0)
    );
}

#[tokio::test]
async fn a_start_looks_at_everything() {
    let stage = Stage::new(Program::Distribution2).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let daemon = stage.ferry.start_ready().await;
    arrives(&stage, "v1", &image).await;
    let history = stage.ferry.run(&["history", "--json"]).await.expect(0);
    assert!(
        history.stdout.contains(image.digest()) && history.stdout.contains("\"start\""),
        "{}",
        history.stdout
    );
    let status = stage.ferry.run(&["status", "--json"]).await.expect(0);
    let status: Value = serde_json::from_str(&status.stdout).expect("a status in JSON");
    assert_eq!(status["routes"][0]["name"], "app");
    assert_eq!(status["ready"], true);
    let listed: Value = serde_json::from_slice(
        &daemon
            .get("/v1/promotions?limit=5")
            .await
            .bytes()
            .await
            .unwrap(),
    )
    .unwrap();
    assert!(listed.to_string().contains(image.digest()), "{listed}");
}

#[tokio::test]
async fn two_hundred_pings_during_one_transfer_cost_one_extra_look() {
    let stage = Stage::new(Program::Distribution3).await;
    let daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[2 * MIB]);
    stage.push().push("app", "v1", &image).await;
    let gate = Gate::closed();
    stage.source.rule(
        Rule::on(&[Kind::BlobGet])
            .path(&image.blobs[1].digest)
            .act(Act::HoldAnswer(MIB as u64, gate.clone())),
    );
    daemon.ping(json!({})).await;
    gate.arrived(1).await;
    let listings = stage.source.count(Kind::Tags);
    for _ in 0..200 {
        assert_eq!(daemon.ping(json!({})).await.0, 202);
    }
    assert!(
        daemon.metric("blobferry_queue_depth", &[]).await.unwrap() <= 1.0,
        "pings pile up"
    );
    gate.open();
    arrives(&stage, "v1", &image).await;
    let looks = async || {
        daemon
            .metric(
                "blobferry_looks_total",
                &[("route", "app"), ("cause", "ping")],
            )
            .await
            .unwrap_or(0.0)
    };
    eventually("the extra look is over", async || {
        let idle = daemon.metric("blobferry_queue_depth", &[]).await?
            + daemon.metric("blobferry_jobs_in_flight", &[]).await?
            == 0.0;
        (looks().await >= 2.0 && idle).then_some(())
    })
    .await;
    assert_eq!(looks().await, 2.0);
    assert_eq!(
        stage.source.count(Kind::Tags) - listings,
        1,
        "one more listing of staging"
    );
    assert_eq!(
        stage
            .source
            .of(&[Kind::BlobGet])
            .iter()
            .filter(|get| get.path.contains(&image.blobs[1].digest))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_waited_for_sync_answers_with_what_came_of_it() {
    let stage = Stage::new(Program::Distribution3).await;
    let daemon = stage.ferry.start_ready().await;
    let (image, other) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &image).await;

    let (status, report) = daemon
        .ping(json!({"wait": true, "route": "app", "tag": "v1"}))
        .await;
    assert_eq!(
        (status, &report["exit_code"]),
        (200, &json!(0)),
        "{report:#}"
    );
    assert_eq!(
        (&report["jobs"][0]["result"], &report["jobs"][0]["cause"]),
        (&json!("promoted"), &json!("ping"))
    );
    stage.there().assert_holds("app", "v1", &image).await;

    stage.push().push("app", "v1", &other).await;
    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(
        (status, &report["exit_code"]),
        (409, &json!(4)),
        "{report:#}"
    );
    assert_eq!(
        stage.there().digest("app", "v1").await.as_deref(),
        Some(image.digest())
    );

    for nothing in [
        json!({"wait": true, "route": "absent"}),
        json!({"wait": true, "repository": "absent"}),
        json!({"wait": true, "tag": "absent"}),
    ] {
        let (status, answer) = daemon.ping(nothing.clone()).await;
        assert_eq!(status, 404, "{nothing}: {answer:#}");
    }

    stage.push().push("app", "v2", &Image::oci(3, &[10])).await;
    stage.target.rule(
        Rule::on(&[Kind::ManifestPut])
            .act(Reply::status(403).body("application/json", r#"{"errors":[{"code":"DENIED"}]}"#)),
    );
    let (status, report) = daemon.ping(json!({"wait": true, "tag": "v2"})).await;
    assert_eq!(status, 502, "{report:#}");
    assert_eq!(stage.there().digest("app", "v2").await, None);
}

#[tokio::test]
async fn a_digest_in_a_ping_is_compared_and_never_written_from() {
    let stage = Stage::new(Program::Distribution3).await;
    let daemon = stage.ferry.start_ready().await;
    let (image, claimed) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &image).await;
    stage.push().push_untagged("app", &claimed).await;
    daemon
        .ping(json!({"wait": true, "repository": "app", "tag": "v1", "digest": claimed.digest()}))
        .await;
    assert_ne!(
        stage.there().digest("app", "v1").await.as_deref(),
        Some(claimed.digest()),
        "a digest from outside was named"
    );
}

#[tokio::test]
async fn a_bad_config_changes_nothing_and_a_good_one_does() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    assert_eq!(
        daemon
            .metric("blobferry_config_last_reload_successful", &[])
            .await,
        Some(1.0)
    );
    stage.ferry.write_config(&Config::text(
        "routes: [{from: nowhere/at-all, too: many}]\n",
    ));
    daemon.signal("HUP").await;
    let reloaded = async |wanted: f64| {
        eventually("the config was read again", async || {
            (daemon
                .metric("blobferry_config_last_reload_successful", &[])
                .await
                == Some(wanted))
            .then_some(())
        })
        .await;
    };
    reloaded(0.0).await;
    let (image, other) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &image).await;
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 200);
    stage.there().assert_holds("app", "v1", &image).await;

    stage.push().push("second", "v1", &other).await;
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("second", json!({}))));
    daemon.signal("HUP").await;
    reloaded(1.0).await;
    assert_eq!(
        daemon
            .ping(json!({"wait": true, "route": "second"}))
            .await
            .0,
        200
    );
    stage.there().assert_holds("second", "v1", &other).await;
    assert_eq!(
        daemon.ping(json!({"wait": true, "route": "app"})).await.0,
        404,
        "the removed route is gone"
    );
}

#[tokio::test]
async fn a_reload_brings_the_new_secret_and_says_each_time_what_needs_a_restart() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    let secret = stage.ferry.file("secret", "open sesame\n");
    let audit = stage.ferry.path("audit.jsonl");
    stage.ferry.write_config(&stage.config(|config| {
        config
            .daemon("secret_file", json!(secret))
            .daemon("listen", json!("off"))
            .daemon("audit_file", json!(audit))
            .route("app", json!({}))
    }));
    let warnings = |setting: &str| {
        daemon
            .log()
            .lines()
            .filter(|line| line.contains("takes a restart") && line.contains(setting))
            .count()
    };
    for reload in 1..=2 {
        daemon.signal("HUP").await;
        for setting in ["listen", "audit_file"] {
            eventually(
                &format!("the log says that `{setting}` takes a restart"),
                async || (warnings(setting) == reload).then_some(()),
            )
            .await;
        }
    }
    eventually("the secret is needed", async || {
        (daemon.get("/v1/status").await.status() == 401).then_some(())
    })
    .await;
    let asked = daemon
        .request("/v1/sync")
        .header("authorization", "Bearer open sesame")
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_ne!(asked.status(), 401);
    assert!(!daemon.log().contains("sesam"), "the secret was said");
}

#[tokio::test]
async fn a_stop_in_mid_transfer_ends_well_and_goes_on_later() {
    let stage = Stage::build(Program::Distribution3, |config| {
        config.daemon("grace", json!("2s")).route("app", json!({}))
    })
    .await;
    let mut daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[48 * MIB]);
    let layer = image.blobs[1].clone();
    stage.push().push("app", "v1", &image).await;
    let never = Gate::closed();
    stage.source.rule(
        Rule::on(&[Kind::BlobGet])
            .path(&layer.digest)
            .times(1)
            .act(Act::HoldAnswer(33 * MIB as u64, never.clone())),
    );
    daemon.ping(json!({})).await;
    never.arrived(1).await;
    daemon.signal("TERM").await;
    assert_eq!(
        daemon.ended().await,
        0,
        "a drain is a good end:\n{}",
        daemon.log()
    );
    stage
        .there()
        .assert_lacks("app", "v1", &[&layer.digest])
        .await;

    let before = stage.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0;
    let _daemon = stage.ferry.start_ready().await;
    arrives(&stage, "v1", &image).await;
    let again = stage.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0 - before;
    assert!(
        again < 32 * MIB as u64,
        "{again} of {} bytes were sent again after a stop at 33 MiB",
        48 * MIB
    );
}

#[tokio::test]
async fn a_killed_daemon_goes_on_where_the_registry_stands() {
    let stage = Stage::new(Program::Distribution3).await;
    let mut daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[48 * MIB]);
    let layer = image.blobs[1].clone();
    stage.push().push("app", "v1", &image).await;
    let never = Gate::closed();
    stage.source.rule(
        Rule::on(&[Kind::BlobGet])
            .path(&layer.digest)
            .times(1)
            .act(Act::HoldAnswer(33 * MIB as u64, never.clone())),
    );
    daemon.ping(json!({})).await;
    never.arrived(1).await;
    daemon.signal("KILL").await;
    daemon.ended().await;
    stage
        .there()
        .assert_lacks("app", "v1", &[&layer.digest])
        .await;

    let before = stage.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0;
    let daemon = stage.ferry.start_ready().await;
    arrives(&stage, "v1", &image).await;
    let again = stage.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0 - before;
    assert!(
        again < 32 * MIB as u64,
        "{again} of {} bytes were sent again after a kill at 33 MiB",
        48 * MIB
    );
    assert_eq!(
        daemon.metric("blobferry_resumes_total", &[]).await,
        Some(1.0)
    );
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let stage = Stage::build(Program::Distribution2, |config| {
        config.daemon("grace", json!("10m")).route("app", json!({}))
    })
    .await;
    let mut daemon = stage.ferry.start_ready().await;
    stage.push().push("app", "v1", &Image::oci(1, &[MIB])).await;
    let never = Gate::closed();
    stage
        .source
        .rule(Rule::on(&[Kind::BlobGet]).act(Act::Hold(never.clone())));
    daemon.ping(json!({})).await;
    never.arrived(1).await;
    daemon.signal("TERM").await;
    eventually("readiness ends with the drain", async || {
        (daemon.get("/readyz").await.status() == 503).then_some(())
    })
    .await;
    daemon.signal("TERM").await;
    daemon.ended().await;
    stage.there().assert_lacks("app", "v1", &[]).await;
}

#[tokio::test]
async fn sync_beside_the_daemon_goes_through_it() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let run = stage.sync().await.expect(0);
    assert_eq!(
        (run.total("promoted"), &run.job("v1")["result"]),
        (1, &json!("promoted"))
    );
    assert_eq!(run.job("v1")["cause"], "cli");
    stage.there().assert_holds("app", "v1", &image).await;
    let counted = daemon
        .metric(
            "blobferry_promotions_total",
            &[("route", "app"), ("destination", "production")],
        )
        .await;
    assert_eq!(counted, Some(1.0), "the daemon did it");
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    let second = stage.ferry.run(&["run"]).await.expect(2);
    assert!(second.stderr.contains("state"), "{}", second.stderr);
    assert_eq!(daemon.get("/healthz").await.status(), 200);
}

#[tokio::test]
async fn what_a_browser_sends_is_refused() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    let looks = async || {
        daemon
            .metric(
                "blobferry_looks_total",
                &[("route", "app"), ("cause", "ping")],
            )
            .await
    };
    let before = looks().await;
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("host", "evil.example"),
        ("host", "evil.example:9464"),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
    ] {
        let answer = daemon
            .request("/v1/sync")
            .header(name, value)
            .send()
            .await
            .expect("a refusal is an answer");
        let status = answer.status().as_u16();
        assert!(
            [400, 401, 403, 421].contains(&status),
            "{name}: {value} got {status}"
        );
        let body: Value =
            serde_json::from_slice(&answer.bytes().await.unwrap()).expect("refusals are JSON");
        assert!(
            body["error"]["code"].is_string() && body["error"]["text"].is_string(),
            "{body}"
        );
    }
    assert_eq!(looks().await, before, "a refused request caused a look");
    let plain = daemon
        .request("/v1/sync")
        .header("content-type", "application/json")
        .body("{\"no\": \"such key\"}");
    assert_eq!(plain.send().await.unwrap().status().as_u16() / 100, 4);
}

#[tokio::test]
async fn with_a_secret_only_its_bearer_may() {
    let stage = Stage::new(Program::Distribution2).await;
    let secret = stage.ferry.file("secret", "open sesame\n");
    stage.ferry.write_config(&stage.config(|config| {
        config
            .daemon("secret_file", json!(secret))
            .route("app", json!({}))
    }));
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let daemon = stage.ferry.start_ready().await;
    let ask = async |bearer: Option<&str>| {
        let request = daemon.request("/v1/sync");
        let request = if let Some(bearer) = bearer {
            request.bearer_auth(bearer)
        } else {
            request
        };
        request.send().await.expect("an answer").status().as_u16()
    };
    assert_eq!(ask(None).await, 401);
    assert_eq!(ask(Some("open sesam")).await, 401);
    assert_eq!(ask(Some("open sesame")).await, 202);
    assert_eq!(daemon.get("/metrics").await.status(), 200);
    assert_eq!(daemon.get("/v1/status").await.status(), 401);
    stage.sync().await.expect(0);
    assert!(!daemon.log().contains("sesam"), "the secret was said");
}

#[tokio::test]
async fn a_config_that_cannot_be_right_is_refused_with_its_place() {
    let ferry = Ferry::bare();
    ferry.file("empty", "");
    let secret = ferry.path("empty").display().to_string();
    let head = "registries:\n  a: {url: 'http://127.0.0.1:1'}\n  b: {url: 'http://127.0.0.1:2'}\n";
    for (text, named) in [
        (
            format!(
                "{head}routes:\n  - {{from: a/x, to: b/x, tags: {{include: ['*']}}, moving: [x]}}\n"
            ),
            "moving",
        ),
        (
            format!("{head}routes:\n  - {{from: c/x, to: b/x, tags: {{include: ['*']}}}}\n"),
            "there is no registry \"c\"",
        ),
        (
            format!("{head}routes:\n  - {{from: a/x, to: 'b/{{1}}', tags: {{include: ['*']}}}}\n"),
            "{1}",
        ),
        (
            format!("{head}routes:\n  - {{from: a/x, to: b/x}}\n"),
            "include",
        ),
        (
            format!(
                "{head}routes:\n  - {{from: a/x, to: b/y, tags: {{include: ['${{UNSET}}']}}}}\n"
            ),
            "UNSET",
        ),
        (
            format!("{head}routes: []\ndaemon: {{secret_file: {secret}}}\n"),
            "empty",
        ),
    ] {
        ferry.write_config(&Config::text(&text));
        let run = ferry.run(&["check"]).await.expect(2);
        assert!(
            run.said().contains(named) && run.said().contains("blobferry.yaml"),
            "{text}\n{}",
            run.said()
        );
    }
}

#[tokio::test]
async fn a_registry_that_is_down_does_not_keep_the_daemon_from_starting() {
    let stage = Stage::new(Program::Distribution2).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    stage
        .target
        .rule(Rule::on(&[]).act(Act::CutRequest(0, Cut::Reset)));
    let daemon = stage.ferry.start_ready().await;
    eventually("production counts as down", async || {
        (daemon
            .metric("blobferry_registry_up", &[("registry", "production")])
            .await
            == Some(0.0))
        .then_some(())
    })
    .await;
    assert_eq!(
        daemon
            .metric("blobferry_registry_up", &[("registry", "staging")])
            .await,
        Some(1.0)
    );
    stage.target.reset();
    let answer =
        tokio::time::timeout(Duration::from_secs(60), daemon.ping(json!({"wait": true}))).await;
    assert_eq!(answer.expect("an answer within a minute").0, 200);
    stage.there().assert_holds("app", "v1", &image).await;
}
