//! Gates that ask: a program, a service. Their question, their answers, and what they do wrong.

use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::{asks_for_time_before, attach, verdicts};
use crate::support::*;

/// A program that notes its questions and answers by what a file says: an exit code for each phase.
struct Judge {
    folder: tempfile::TempDir,
}

impl Judge {
    fn new() -> Judge {
        let folder = tempfile::tempdir().expect("a scratch directory");
        let script = "cd \"$1\" && read -r question && echo \"$question\" >>questions && \
                      case $question in *'\"phase\":\"carry\"'*) code=$(cat carry);; *) code=$(cat name);; esac && \
                      echo \"says $code\" && exit \"$code\"";
        std::fs::write(folder.path().join("judge"), script).expect("a script");
        let judge = Judge { folder };
        judge.answers(0, 0);
        judge
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// From now on these exit codes. Whole files appear: a judge that reads sees the old or the new.
    fn answers(&self, carry: i32, name: i32) {
        for (phase, code) in [("carry", carry), ("name", name)] {
            let new = self.path().join("new");
            std::fs::write(&new, code.to_string()).expect("an answer");
            std::fs::rename(&new, self.path().join(phase)).expect("an answer");
        }
    }

    fn questions(&self) -> Vec<Value> {
        let asked = std::fs::read_to_string(self.path().join("questions")).unwrap_or_default();
        asked
            .lines()
            .map(|line| serde_json::from_str(line).expect("a question is JSON"))
            .collect()
    }

    fn gates(&self) -> Value {
        let script = self.path().join("judge");
        json!({"command": {"run": ["/bin/sh", script, self.path()]}})
    }

    async fn stage(&self) -> Stage {
        Stage::with_route(Program::Distribution3, json!({"gates": self.gates()})).await
    }
}

#[tokio::test]
async fn a_program_is_asked_before_anything_is_carried_and_before_the_tag() {
    let judge = Judge::new();
    let stage = judge.stage().await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let document = Image::referrer(2, &image, "application/spdx+json");
    attach(&stage, &image, &[&document]).await;
    judge.answers(75, 75);
    let run = stage.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "waiting");
    assert_eq!(run.job("v1")["reasons"], json!(["command: says 75"]));
    assert_eq!(
        run.job("v1")["gates"][0]["evidence"],
        json!({"exit_code": 75})
    );
    let question = json!({
        "schema": 1,
        "phase": "carry",
        "route": "app",
        "source": format!("{}/app:v1", stage.source.address()),
        "destination": format!("{}/app:v1", stage.target.address()),
        "digest": image.digest(),
        "previous_digest": null,
        "media_type": image.root().media_type,
        "referrers": [{"digest": document.digest(), "artifact_type": "application/spdx+json"}],
    });
    assert_eq!(judge.questions(), std::slice::from_ref(&question));
    assert_eq!(stage.there().digest("app", image.digest()).await, None);

    // The image may be carried, but not be named yet.
    judge.answers(0, 75);
    let run = stage.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "waiting");
    assert_eq!(stage.there().digest("app", "v1").await, None);
    let blob = image.unique_blobs()[0].digest.clone();
    assert!(stage.there().has_blob("app", &blob).await, "it was carried");

    judge.answers(0, 0);
    let run = stage.sync().await.expect(0);
    assert_eq!(verdicts(&run.job("v1")), json!({"command": "pass"}));
    stage.there().assert_holds("app", "v1", &image).await;
    let mut named = question;
    named["phase"] = "name".into();
    assert_eq!(judge.questions().last(), Some(&named));
}

#[tokio::test]
async fn a_refused_image_is_not_in_production_by_its_digest_either() {
    let judge = Judge::new();
    let stage = judge.stage().await;
    let image = Image::index(&[Image::oci(1, &[1000]), Image::oci(2, &[1000])]);
    stage.push().push("app", "v1", &image).await;
    let document = Image::referrer(3, &image, "application/spdx+json");
    attach(&stage, &image, &[&document]).await;
    judge.answers(1, 1);
    for arguments in [&["--tag", "v1"][..], &[]] {
        let run = stage.ferry.sync(arguments).await.expect(4);
        assert_eq!(run.job("v1")["result"], "refused");
        assert_eq!(run.job("v1")["reasons"], json!(["command: says 1"]));
    }
    for document in image.documents.iter().chain(&document.documents) {
        let there = stage.there().digest("app", &document.digest).await;
        assert_eq!(there, None, "a manifest of a refused image");
    }
    assert_eq!(stage.there().tags("app").await, Vec::<String>::new());
    assert_eq!(stage.target.count(Kind::ManifestPut), 0);
    assert_eq!(stage.target.count(Kind::UploadPost), 0);
}

/// Polls report a refused tag and ask nothing; a wait is asked again by itself.
#[tokio::test]
async fn what_is_refused_rests_and_what_waits_is_asked_again() {
    let judge = Judge::new();
    let stage = Stage::build(Program::Distribution3, |config| {
        let route = json!({"gates": judge.gates()});
        config.daemon("poll", json!("200ms")).route("app", route)
    })
    .await;
    judge.answers(1, 1);
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let daemon = stage.ferry.start_ready().await;
    let refused = [("route", "app"), ("gate", "command"), ("verdict", "refuse")];
    let counted = async || daemon.metric("blobferry_gates_total", &refused).await;
    assert_eq!(counted().await, Some(1.0));
    let polls = stage.source.count(Kind::Tags) + 5;
    stage.source.seen(Kind::Tags, polls).await;
    assert_eq!(judge.questions().len(), 1, "polls leave it alone");
    let state = [
        ("route", "app"),
        ("destination", "production"),
        ("state", "refused"),
    ];
    assert_eq!(daemon.metric("blobferry_tags", &state).await, Some(1.0));

    judge.answers(75, 0);
    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(
        (status, &report["jobs"][0]["result"]),
        (200, &json!("waiting"))
    );
    assert_eq!(judge.questions().len(), 2, "a ping asks at once");
    judge.answers(0, 0);
    eventually("the tag moves without an event", async || {
        stage.there().digest("app", "v1").await
    })
    .await;
    stage.there().assert_holds("app", "v1", &image).await;
    assert_eq!(counted().await, Some(1.0));
}

#[tokio::test]
async fn a_dry_run_asks_neither_programs_nor_services() {
    let judge = Judge::new();
    let stage = judge.stage().await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let plan = stage.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(plan.job("v1")["result"], "planned");
    let reason = "a dry run asks neither `command` nor `http`";
    assert_eq!(plan.job("v1")["reasons"], json!([reason]));
    assert!(judge.questions().is_empty());
}

/// One image's gate hangs: the others do not wait for it.
#[tokio::test]
async fn a_program_that_hangs_or_is_missing_keeps_its_own_tag_alone() {
    let hangs = "read -r question; case $question in *:bad*) sleep 600;; esac";
    let command = json!({"run": ["/bin/sh", "-c", hangs], "timeout": "1s"});
    let route = json!({"gates": {"command": command}});
    let stage = Stage::with_route(Program::Distribution3, route).await;
    stage
        .push()
        .push("app", "bad", &Image::oci(1, &[1000]))
        .await;
    stage
        .push()
        .push("app", "good", &Image::oci(2, &[1000]))
        .await;
    let run = stage.sync().await.expect(0);
    assert_eq!(run.job("good")["result"], "promoted");
    assert_eq!(run.job("bad")["result"], "waiting");
    let said = run.job("bad")["reasons"].to_string();
    assert!(
        said.contains("/bin/sh did not end within 1 s and was killed"),
        "{said}"
    );

    let missing = json!({"gates": {"command": {"run": ["no-such-gate"]}}});
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("app", missing)));
    let run = stage.sync().await.expect(0);
    assert_eq!(run.job("bad")["result"], "waiting");
    let said = run.job("bad")["reasons"].to_string();
    assert!(said.contains("no-such-gate cannot be run"), "{said}");
}

/// Production asks for time at the first attempt to name; meanwhile the config is read with another
/// gate of the same kind. The pass of the gate before says nothing about it.
#[tokio::test]
async fn a_gate_that_a_reload_replaces_is_asked_by_a_job_that_waits_for_its_write() {
    let base = service(Asked::default()).await;
    let judge = |verdict: &str, code: u8| {
        let script = format!("echo policy says {verdict}; exit {code}");
        json!({"command": {"run": ["/bin/sh", "-c", script]}})
    };
    let ask = |verdict: &str| json!({"http": {"url": format!("{base}/{verdict}")}});
    for (before, after, gate) in [
        (judge("pass", 0), judge("refuse", 1), "command"),
        (ask("pass"), ask("refuse"), "http"),
    ] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let config = |gates: Value| {
            let pair = Config::new()
                .registry("staging", &staging.url())
                .registry("production", &production.url());
            pair.route("app", json!({"gates": gates}))
        };
        let ferry = Ferry::new(&config(before));
        asks_for_time_before(&production, "v1");
        staging.push("app", "v1", &Image::oci(1, &[100]));
        let daemon = ferry.start().await;
        production.seen(Kind::ManifestPut, 1).await;
        ferry.write_config(&config(after));
        daemon.signal("HUP").await;
        daemon.says("the config was read again").await;
        let refused = [("route", "app"), ("gate", gate), ("verdict", "refuse")];
        eventually("the gate in force is asked", async || {
            let count = daemon.metric("blobferry_gates_total", &refused).await;
            count.filter(|count| *count > 0.0)
        })
        .await;
        assert_eq!(production.tagged("app", "v1"), None, "{gate}");
        assert_eq!(production.count(Kind::ManifestPut), 1, "{gate}");
    }
}

/// What a service was asked, and with which token.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A service that answers by its path.
async fn service(asked: Asked) -> String {
    let answers = |State(asked): State<Asked>,
                   uri: axum::http::Uri,
                   headers: HeaderMap,
                   body: Bytes| async move {
        let token = headers.get("authorization");
        let token = token.map(|token| token.to_str().unwrap().to_owned());
        let question = serde_json::from_slice(&body).unwrap_or(Value::Null);
        asked
            .lock()
            .unwrap()
            .push((token.unwrap_or_default(), question));
        answer(uri.path()).await
    };
    serve(Router::new().fallback(answers).with_state(asked)).await
}

async fn answer(path: &str) -> Response {
    let verdict = |verdict: &str| {
        json!({"verdict": verdict, "reason": format!("policy says {verdict}")}).to_string()
    };
    match path {
        "/redirects" => (StatusCode::TEMPORARY_REDIRECT, [("location", "/pass")]).into_response(),
        "/hangs" => std::future::pending().await,
        "/nonsense" => "pass".into_response(),
        "/long" => json!({"verdict": "pass", "reason": "x".repeat(100_000)})
            .to_string()
            .into_response(),
        "/broken" => (StatusCode::INTERNAL_SERVER_ERROR, verdict("pass")).into_response(),
        "/created" => (StatusCode::CREATED, verdict("pass")).into_response(),
        path => verdict(&path[1..]).into_response(),
    }
}

#[tokio::test]
async fn a_service_of_this_machine_is_asked_past_the_proxy() {
    let asked = Asked::default();
    let base = service(asked.clone()).await;
    let through_proxy = Asked::default();
    let proxy = service(through_proxy.clone()).await;
    let (staging, production) = (Scripted::start(), Scripted::start());
    staging.push("app", "v1", &Image::oci(1, &[1000]));
    let http = json!({"url": format!("{base}/refuse")});
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url())
        .route("app", json!({"gates": {"http": http}}));
    let ferry = Ferry::new(&config)
        .with_env("http_proxy", &format!("{proxy}/pass"))
        .with_env("HTTP_PROXY", &format!("{proxy}/pass"));
    let run = ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "refused");
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert!(through_proxy.lock().unwrap().is_empty());
    assert_eq!(production.tagged("app", "v1"), None);
}

#[tokio::test]
async fn a_service_judges_and_whatever_is_no_verdict_waits() {
    let asked = Asked::default();
    let base = service(asked.clone()).await;
    let stage = Stage::with_route(Program::Distribution3, json!({})).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let token = stage.ferry.file("token", "hush\n");
    for (path, result, reason) in [
        ("/wait", "waiting", "http: policy says wait"),
        ("/refuse", "refused", "http: policy says refuse"),
        (
            "/nonsense",
            "waiting",
            "http: 127.0.0.1: its answer is no verdict",
        ),
        (
            "/long",
            "waiting",
            "http: 127.0.0.1: its answer is longer than 64 KiB",
        ),
        (
            "/broken",
            "waiting",
            "http: 127.0.0.1: it answered 500 instead of 200",
        ),
        (
            "/created",
            "waiting",
            "http: 127.0.0.1: it answered 201 instead of 200",
        ),
        (
            "/hangs",
            "waiting",
            "http: 127.0.0.1: it did not answer within 0.5 s",
        ),
        (
            "/redirects",
            "waiting",
            "http: 127.0.0.1: it answered 307 instead of 200",
        ),
    ] {
        asked.lock().unwrap().clear();
        let http = json!({"url": format!("{base}{path}"), "token_file": token, "timeout": "500ms"});
        let route = json!({"gates": {"http": http}});
        stage
            .ferry
            .write_config(&stage.config(|config| config.route("app", route)));
        let run = stage.ferry.sync(&["--tag", "v1"]).await.expect(4);
        assert_eq!(run.job("v1")["result"], result, "{path}");
        assert_eq!(run.job("v1")["reasons"], json!([reason]), "{path}");
        assert!(!run.said().contains("hush"), "{path}");
        let questions = asked.lock().unwrap().clone();
        let [(sent, question)] = &questions[..] else {
            panic!("{path}: asked {} times", questions.len());
        };
        assert_eq!(sent, "Bearer hush");
        assert_eq!(question["digest"], image.digest());
    }
    assert_eq!(stage.there().digest("app", image.digest()).await, None);

    let unreachable =
        json!({"gates": {"http": {"url": format!("http://127.0.0.1:{}/", free_port())}}});
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("app", unreachable)));
    let run = stage.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "waiting");

    let passes = json!({"gates": {"http": {"url": format!("{base}/pass")}}});
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("app", passes)));
    let run = stage.sync().await.expect(0);
    assert_eq!(run.job("v1")["result"], "promoted");
    let evidence = &run.job("v1")["gates"][0]["evidence"];
    assert_eq!(*evidence, json!({"host": "127.0.0.1"}));
    stage.there().assert_holds("app", "v1", &image).await;
    let (sent, question) = asked.lock().unwrap().last().cloned().unwrap();
    assert_eq!((&*sent, &question["phase"]), ("", &json!("name")));
}
