//! What the numbers say of a route: whether it is looked at, what waits, and since when. Each story
//! was told wrong once.

use serde_json::{Value, json};

use crate::support::*;

async fn status(daemon: &Daemon) -> Value {
    let body = daemon
        .get("/v1/status")
        .await
        .bytes()
        .await
        .expect("a body");
    serde_json::from_slice(&body).expect("JSON")
}

const PLACE: [(&str, &str); 2] = [("route", "app"), ("destination", "production")];

async fn up(daemon: &Daemon) -> Option<f64> {
    daemon.metric("blobferry_route_up", &PLACE).await
}

async fn tags(daemon: &Daemon, state: &str) -> Option<f64> {
    daemon
        .metric(
            "blobferry_tags",
            &[&PLACE[..], &[("state", state)]].concat(),
        )
        .await
}

async fn looks(daemon: &Daemon, result: &str) -> f64 {
    daemon
        .metric(
            "blobferry_looks_total",
            &[("route", "app"), ("result", result)],
        )
        .await
        .expect("a series")
}

/// A route whose repository is mistyped showed `failed` 0, `registry_up` 1, ready, and raised no
/// alert.
#[tokio::test]
async fn a_route_whose_repository_does_not_exist_is_not_up() {
    let stage = Stage::with_route(Program::Distribution2, json!({"from": "staging/ap"})).await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let daemon = stage.ferry.start_ready().await;
    assert_eq!(up(&daemon).await, Some(0.0));
    assert_eq!(
        (looks(&daemon, "failed").await, looks(&daemon, "done").await),
        (1.0, 0.0)
    );
    assert_eq!(
        daemon
            .metric("blobferry_last_success_timestamp_seconds", &PLACE)
            .await,
        Some(0.0)
    );
    assert!(
        daemon
            .metric("blobferry_last_look_timestamp_seconds", &PLACE)
            .await
            .unwrap()
            > 0.0,
        "looks do end"
    );
    assert_eq!(
        daemon
            .metric("blobferry_registry_up", &[("registry", "staging")])
            .await,
        Some(1.0)
    );
    let page = stage.ferry.run(&["status"]).await.expect(0).stdout;
    assert!(
        page.contains("no look was complete") && page.contains("does not exist"),
        "{page}"
    );

    stage.push().push("ap", "v1", &Image::oci(1, &[1000])).await;
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 200);
    assert_eq!(
        (up(&daemon).await, looks(&daemon, "done").await),
        (Some(1.0), 1.0)
    );
    assert!(
        daemon
            .metric("blobferry_last_success_timestamp_seconds", &PLACE)
            .await
            .unwrap()
            > 0.0
    );
}

/// With production down and a new version waiting, the numbers said `3 up to date`, and that
/// nothing was pending.
#[tokio::test]
async fn what_waits_while_production_is_down_is_counted_from_stagings_side() {
    let stage = Stage::new(Program::Distribution2).await;
    for tag in ["v1", "v2", "latest"] {
        stage.push().push("app", tag, &Image::oci(1, &[1000])).await;
    }
    let daemon = stage.ferry.start_ready().await;
    assert_eq!(
        (tags(&daemon, "up_to_date").await, up(&daemon).await),
        (Some(3.0), Some(1.0))
    );

    stage
        .target
        .rule(Rule::on(&[]).act(Act::CutRequest(0, Cut::Reset)));
    let newer = Image::oci(2, &[1000]);
    stage.push().push("app", "v3", &newer).await;
    stage.push().push("app", "latest", &newer).await;
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 502);
    assert_eq!(
        (
            tags(&daemon, "up_to_date").await,
            tags(&daemon, "pending").await
        ),
        (Some(2.0), Some(2.0))
    );
    assert_eq!(
        (up(&daemon).await, tags(&daemon, "failed").await),
        (Some(0.0), Some(0.0))
    );
    let age = async || {
        daemon
            .metric("blobferry_oldest_pending_age_seconds", &[("route", "app")])
            .await
            .expect("a series")
    };
    let before = age().await;
    assert!(before > 0.0);
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 502);
    assert!(
        age().await > before,
        "another look in the outage does not start the time anew"
    );
    let route = status(&daemon).await["routes"][0].clone();
    assert_eq!(
        (&route["up"], &route["pending"]),
        (&json!(false), &json!(2)),
        "{route:#}"
    );
    let page = stage.ferry.run(&["status"]).await.expect(0).stdout;
    assert!(
        page.contains("2 up to date, 2 pending (the oldest to go has waited"),
        "{page}"
    );

    stage.target.reset();
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 200);
    assert_eq!(
        (
            tags(&daemon, "up_to_date").await,
            tags(&daemon, "pending").await
        ),
        (Some(4.0), Some(0.0))
    );
    assert_eq!((up(&daemon).await, age().await), (Some(1.0), 0.0));
    let arrived = daemon
        .metric(
            "blobferry_seen_to_production_seconds_count",
            &[("route", "app")],
        )
        .await;
    assert_eq!(arrived, Some(5.0));
}

#[tokio::test]
async fn a_wildcard_route_without_a_match_has_been_looked_at_and_is_well() {
    let stage = Stage::build(Program::Distribution2, |config| {
        config.raw_route(json!({"name": "app", "from": "staging/team/*", "to": "production/team/{1}", "tags": {"include": ["*"]}}))
    })
    .await;
    let daemon = stage.ferry.start_ready().await;
    assert_eq!(
        (up(&daemon).await, looks(&daemon, "done").await),
        (Some(1.0), 1.0)
    );
    for name in ["last_look", "last_success"] {
        let metric = daemon
            .metric(&format!("blobferry_{name}_timestamp_seconds"), &PLACE)
            .await;
        assert!(metric.is_some_and(|at| at > 0.0), "{name}: {metric:?}");
    }
    stage
        .source
        .rule(Rule::on(&[Kind::Catalog]).act(Reply::status(403)));
    daemon.ping(json!({"wait": true})).await;
    assert_eq!(
        (up(&daemon).await, looks(&daemon, "failed").await),
        (Some(0.0), 1.0),
        "the catalog cannot be read"
    );
}

/// `NEXT LOOK in 1 s` was shown for 28 s while polls were held back.
#[tokio::test]
async fn the_next_look_is_the_one_that_will_be_made() {
    let stage = Stage::build(Program::Distribution2, |config| {
        config.daemon("poll", json!("1s")).route("app", json!({}))
    })
    .await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    stage.source.rule(Rule::on(&[]).act(Reply::status(500)));
    let daemon = stage.ferry.start().await;
    eventually("a look has failed", async || {
        (looks(&daemon, "failed").await > 0.0).then_some(())
    })
    .await;
    let route = status(&daemon).await["routes"][0].clone();
    let time = |key: &str| {
        route[key]
            .as_str()
            .expect("a time")
            .parse::<jiff::Timestamp>()
            .expect("a time")
    };
    let wait = time("next_look").duration_since(time("last_look"));
    assert!(
        wait > jiff::SignedDuration::from_secs(5),
        "polls wait 15 s after a failed look, not {wait:?}"
    );
    assert!(wait <= jiff::SignedDuration::from_secs(16), "{wait:?}");
}

#[tokio::test]
async fn what_is_named_and_not_there_is_said_in_words() {
    let stage = Stage::with_route(
        Program::Distribution2,
        json!({"tags": {"include": ["v*"], "exclude": ["*-rc*"]}}),
    )
    .await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    stage
        .push()
        .push("app", "v2-rc1", &Image::oci(1, &[1000]))
        .await;
    for ask in ["alone", "beside a daemon"] {
        let _daemon = if ask == "alone" {
            None
        } else {
            Some(stage.ferry.start_ready().await)
        };
        for (tags, code, said) in [
            (vec!["v1"], 0, None),
            (vec!["v9"], 5, Some("has no tag v9")),
            (vec!["v1", "v9"], 5, Some("has no tag v9")),
            (vec!["v2-rc1"], 5, Some("the rules leave")),
        ] {
            let options: Vec<&str> = tags.iter().flat_map(|tag| ["--tag", *tag]).collect();
            let run = stage.ferry.sync(&options).await.expect(code);
            let trouble = run.report()["trouble"].clone();
            match said {
                None => assert_eq!(trouble, json!([]), "{ask} {tags:?}"),
                Some(said) => {
                    assert!(
                        trouble[0].as_str().unwrap().contains(said),
                        "{ask} {tags:?}: {trouble}"
                    );
                }
            }
        }
    }
    let daemon = stage.ferry.start_ready().await;
    for (ask, said) in [
        (
            json!({"wait": true, "route": "absent"}),
            "there is no route \"absent\" (the config has: app)",
        ),
        (
            json!({"wait": true, "repository": "absent"}),
            "no route has the source repository absent",
        ),
        (json!({"wait": true, "tag": "absent"}), "has no tag absent"),
    ] {
        let (status, report) = daemon.ping(ask.clone()).await;
        assert_eq!(
            (status, &report["exit_code"]),
            (404, &json!(5)),
            "{ask}: {report:#}"
        );
        assert!(
            report["trouble"][0]
                .as_str()
                .is_some_and(|text| text.contains(said)),
            "{ask}: {report:#}"
        );
    }
    let (status, refusal) = daemon.ping(json!({"route": ["absent"]})).await;
    assert_eq!(
        (status, &refusal["error"]["code"]),
        (404, &json!("nothing_matched"))
    );
    let unknown = daemon.get("/v1/runs/%ff").await;
    assert_eq!(unknown.status(), 404);
    let body: Value =
        serde_json::from_slice(&unknown.bytes().await.unwrap()).expect("errors are JSON");
    assert_eq!(body["error"]["code"], "unknown_run");
}

#[tokio::test]
async fn events_that_are_not_taken_are_counted_by_the_reason() {
    let stage = Stage::new(Program::Distribution2).await;
    let secret = stage.ferry.file("secret", "open sesame\n");
    stage.ferry.write_config(&stage.config(|config| {
        config
            .daemon("secret_file", json!(secret))
            .route("app", json!({}))
    }));
    let daemon = stage.ferry.start_ready().await;
    let ask = async |secret: &str, body: String| {
        let request = daemon
            .request("/v1/sync")
            .bearer_auth(secret)
            .header("content-type", "application/json");
        request
            .body(body)
            .send()
            .await
            .expect("an answer")
            .status()
            .as_u16()
    };
    assert_eq!(ask("wrong", "{}".into()).await, 401);
    assert_eq!(ask("open sesame", "{\"no\": 1}".into()).await, 400);
    assert_eq!(ask("open sesame", " ".repeat(70 << 10)).await, 413);
    assert_eq!(
        ask("open sesame", "{\"route\": \"absent\"}".into()).await,
        404
    );
    for result in ["unauthenticated", "malformed", "too_large", "ignored"] {
        let labels = [("source", "ping"), ("result", result)];
        assert_eq!(
            daemon.metric("blobferry_events_total", &labels).await,
            Some(1.0),
            "{result}"
        );
    }
}

#[tokio::test]
async fn with_log_format_json_every_line_on_stderr_is_an_object() {
    let stage = Stage::new(Program::Distribution2).await;
    for arguments in [
        &["status", "--log-format", "json"][..],
        &["--log-format=json", "fly"],
        &["check", "--log-format", "json", "-c", "/no/such/file"],
        &["sync", "absent", "--log-format", "json"],
    ] {
        let run = stage.ferry.run(arguments).await;
        assert!(run.code != 0 && !run.stderr.is_empty(), "{arguments:?}");
        for line in run.stderr.lines() {
            let object: Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {line}"));
            let message = object["message"].as_str().unwrap_or_default();
            assert!(!message.is_empty() && object["level"] == "error", "{line}");
            assert!(
                !message.contains("\\n"),
                "an escape within an escape: {line}"
            );
        }
    }
}
