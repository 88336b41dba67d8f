//! Notifications: what receivers are told, and what a bad receiver costs.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::decisions::rights::user;
use crate::decisions::{Scene, reasons};
use crate::support::rules::Reply;
use crate::support::scripted::Answer;
use crate::support::*;

/// How a receiver answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Takes,
    /// Never answers.
    Hangs,
    /// Leads to a metadata service.
    Redirects,
}

#[derive(Clone)]
struct Hook {
    manner: Manner,
    url: String,
    told: Arc<Mutex<Vec<(String, HeaderMap, Value)>>>,
}

async fn take(State(hook): State<Hook>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let body = serde_json::from_slice(&body).expect("a body is JSON");
    hook.told
        .lock()
        .unwrap()
        .push((uri.path().to_owned(), headers, body));
    match hook.manner {
        Manner::Takes => StatusCode::NO_CONTENT.into_response(),
        Manner::Hangs => std::future::pending().await,
        Manner::Redirects => {
            let location = [("location", "http://169.254.169.254/latest/meta-data/")];
            (StatusCode::TEMPORARY_REDIRECT, location).into_response()
        }
    }
}

impl Hook {
    async fn start(manner: Manner) -> Hook {
        let mut hook = Hook {
            manner,
            url: String::new(),
            told: Arc::default(),
        };
        hook.url = serve(Router::new().fallback(take).with_state(hook.clone())).await;
        hook
    }

    fn bodies(&self) -> Vec<Value> {
        let told = self.told.lock().unwrap();
        told.iter().map(|(_, _, body)| body.clone()).collect()
    }

    /// The first message of an event.
    async fn told_of(&self, event: &str) -> Value {
        self.first(event, |body| body["event"] == event).await
    }

    /// The first message of a destination that ends so.
    async fn told_at(&self, end: &str) -> Value {
        let is_there = |body: &Value| body["destination"].as_str().unwrap().ends_with(end);
        self.first(end, is_there).await
    }

    async fn first(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let what = format!("{what} is told");
        eventually(&what, async || self.bodies().into_iter().find(&is_it)).await
    }

    fn events(&self) -> Vec<String> {
        let events = self.bodies().into_iter();
        events
            .map(|body| body["event"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

fn scripted_pair() -> (Scripted, Scripted, Config) {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url());
    (staging, production, config)
}

#[tokio::test]
async fn each_kind_is_told_once_with_its_facts() {
    let (staging, production, config) = scripted_pair();
    let hook = Hook::start(Manner::Takes).await;
    let refuses = json!({"command": {"run": ["/bin/false"]}});
    let ferry = Ferry::new(&config);
    let token = ferry.file("token", "hush-token\n");
    let notify = json!({"url": format!("{}/all", hook.url), "token_file": token});
    let config = config
        .route("app", json!({}))
        .route("guarded", json!({"gates": refuses}))
        .daemon("notify", notify);
    ferry.write_config(&config);
    let image = |number: u64| Image::oci(number, &[100]);
    staging.push("app", "old", &image(1));
    ferry.sync(&["app"]).await.expect(0);
    let daemon = ferry.start_ready().await;

    staging.push("app", "v1", &image(1));
    staging.push("app", "latest", &image(1));
    ferry.sync(&["app", "--reason", "CHG-17"]).await.expect(0);
    let promoted = hook.told_of("promoted").await;
    assert_eq!(promoted["schema"], 1);
    assert_eq!(promoted["route"], "app");
    assert!(promoted["time"].is_string() && promoted["id"].is_u64());
    assert_eq!(promoted["digest"], image(1).digest());
    assert_eq!(promoted["previous_digest"], Value::Null);
    assert_eq!(promoted["reason"], "CHG-17");
    assert!(promoted["actor"].as_str().unwrap().starts_with("user:"));

    staging.push("app", "v1", &image(2));
    production.push("app", "latest", &image(3));
    ferry.sync(&["app"]).await.expect(4);
    let conflict = hook.told_of("conflict").await;
    assert_eq!(conflict["digest"], image(2).digest());
    assert_eq!(conflict["previous_digest"], image(1).digest());
    assert!(!conflict["reasons"].as_array().unwrap().is_empty());
    hook.told_of("drift").await;

    staging.push("guarded", "v1", &image(4));
    ferry.sync(&["guarded"]).await.expect(4);
    let refused = hook.told_of("refused").await;
    assert_eq!(refused["route"], "guarded");
    let approve = [
        "approve",
        "production/guarded:v1",
        "--despite",
        "command",
        "--reason",
        "INC-4",
    ];
    ferry.run(&approve).await.expect(0);
    let passed = hook.told_of("override").await;
    assert_eq!(passed["reasons"], json!(["despite command"]));
    assert_eq!(passed["reason"], "INC-4");

    ferry.run(&["hold", "production/app:v2"]).await.expect(0);
    staging.push("app", "v2", &image(5));
    ferry.sync(&["app"]).await;
    let held = hook.told_of("held").await;
    assert!(held["destination"].as_str().unwrap().ends_with("/app:v2"));

    let before = hook.events();
    ferry.sync(&[]).await;
    let names = |event: &str| before.iter().filter(|name| *name == event).count();
    assert_eq!(
        [
            names("conflict"),
            names("drift"),
            names("held"),
            names("override")
        ],
        [1; 4]
    );
    // Only changes are told: another pass over the same troubles is none.
    staging.push("app", "v3", &image(6));
    ferry.sync(&["app", "--tag", "v3"]).await.expect(0);
    hook.told_at(":v3").await;
    let again = hook.events();
    assert_eq!(again.iter().filter(|name| *name == "conflict").count(), 1);
    for (path, headers, body) in hook.told.lock().unwrap().iter() {
        assert_eq!(path, "/all");
        assert_eq!(headers["authorization"], "Bearer hush-token");
        let destination = body["destination"].as_str().unwrap();
        assert!(!destination.ends_with(":old"), "the past is not told");
    }
    assert!(!daemon.log().contains("hush-token"));
}

#[tokio::test]
async fn a_torn_set_is_told() {
    let (staging, production, config) = scripted_pair();
    let hook = Hook::start(Manner::Takes).await;
    let notify = json!([{"url": hook.url, "on": "torn"}]);
    let config = config
        .route("api", json!({}))
        .route("web", json!({}))
        .set("shop", &["api", "web"])
        .daemon("notify", notify);
    let ferry = Ferry::new(&config);
    let _daemon = ferry.start_ready().await;
    let refused = |path: &str| path.ends_with("/web/manifests/v1");
    production.on(
        move |asked| match asked.kind == Kind::ManifestPut && refused(&asked.path) {
            true => Answer::Reply(Reply::status(400)),
            false => Answer::Pass,
        },
    );
    staging.push("api", "v1", &Image::oci(1, &[100]));
    staging.push("web", "v1", &Image::oci(2, &[100]));
    ferry.sync(&[]).await;
    let torn = hook.told_of("torn").await;
    assert!(
        torn["destination"].as_str().unwrap().contains("shop"),
        "{torn}"
    );
    assert_eq!(hook.events(), ["torn"], "nothing else is wanted");
}

/// A template in the shape of a chat's webhook.
#[tokio::test]
async fn a_template_makes_the_body() {
    let (staging, _production, config) = scripted_pair();
    let hook = Hook::start(Manner::Takes).await;
    let template = r#"{"text": "{summary}", "blocks": [{"id": "{id}"}]}"#;
    let notify = json!({"url": hook.url, "on": ["promoted"], "template": template});
    let ferry = Ferry::new(&config.route("app", json!({})).daemon("notify", notify));
    let _daemon = ferry.start_ready().await;
    staging.push("app", "v1", &Image::oci(1, &[100]));
    ferry.sync(&["--reason", "say \"hi\""]).await.expect(0);
    let told = eventually("it is told", async || hook.bodies().pop()).await;
    let text = told["text"].as_str().expect("a text");
    assert!(
        text.starts_with("promoted ") && text.ends_with("/app:v1: say \"hi\""),
        "{text}"
    );
    assert!(told["blocks"][0]["id"].is_string(), "{told}");
}

#[tokio::test]
async fn a_bad_receiver_delays_nothing_and_is_not_followed() {
    let (staging, production, config) = scripted_pair();
    let hangs = Hook::start(Manner::Hangs).await;
    let leads = Hook::start(Manner::Redirects).await;
    let well = Hook::start(Manner::Takes).await;
    let gone = format!("http://127.0.0.1:{}/hush-path", free_port());
    let notify = json!([
        {"url": format!("{}/hush-path", hangs.url)},
        {"url": format!("{}/hush-path", leads.url)},
        {"url": gone},
        {"url": well.url},
    ]);
    let ferry = Ferry::new(&config.route("app", json!({})).daemon("notify", notify));
    let mut daemon = ferry.start_ready().await;
    let image = Image::oci(1, &[100]);
    for tag in ["v1", "v2", "v3"] {
        staging.push("app", tag, &image);
        ferry.sync(&[]).await.expect(0);
        assert_eq!(
            production.tagged("app", tag).as_deref(),
            Some(image.digest())
        );
    }
    eventually("the others are told", async || {
        (well.bodies().len() == 3 && leads.bodies().len() == 3).then_some(())
    })
    .await;
    eventually("what is refused is counted", async || {
        let labels = [("result", "dropped")];
        let dropped = daemon
            .metric("blobferry_notifications_total", &labels)
            .await;
        dropped.filter(|count| *count >= 3.0)
    })
    .await;
    daemon.says("redirects are not followed").await;
    assert!(!hangs.bodies().is_empty());
    assert!(!daemon.log().contains("hush-path"), "{}", daemon.log());
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
}

/// A kill, and promotions while no daemon runs.
#[tokio::test]
async fn after_a_restart_nothing_is_told_twice_and_nothing_is_lost() {
    let (staging, _production, config) = scripted_pair();
    let hook = Hook::start(Manner::Takes).await;
    let notify = json!({"url": hook.url, "on": ["promoted"]});
    let ferry = Ferry::new(&config.route("app", json!({})).daemon("notify", notify));
    let tags = |hook: &Hook| {
        let bodies = hook.bodies().into_iter();
        let tag = |body: Value| {
            let destination = body["destination"].as_str().unwrap_or_default().to_owned();
            destination
                .rsplit(':')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        bodies.map(tag).collect::<Vec<String>>()
    };
    let daemon = ferry.start_ready().await;
    staging.push("app", "v1", &Image::oci(1, &[100]));
    ferry.sync(&[]).await.expect(0);
    eventually("v1 is counted", async || {
        let labels = [("result", "sent")];
        let sent = daemon
            .metric("blobferry_notifications_total", &labels)
            .await;
        (sent == Some(1.0)).then_some(())
    })
    .await;
    daemon.killed().await;
    staging.push("app", "v2", &Image::oci(2, &[100]));
    ferry.sync(&[]).await.expect(0);
    let _daemon = ferry.start_ready().await;
    eventually("v2 is told", async || {
        tags(&hook).contains(&"v2".into()).then_some(())
    })
    .await;
    staging.push("app", "v3", &Image::oci(3, &[100]));
    ferry.sync(&[]).await.expect(0);
    eventually("v3 is told", async || {
        tags(&hook).contains(&"v3".into()).then_some(())
    })
    .await;
    assert_eq!(tags(&hook), ["v1", "v2", "v3"]);
}

/// A decision wakes looks that find more than what it is about.
#[tokio::test]
async fn a_tag_is_told_with_the_reason_of_the_decision_that_allowed_it_alone() {
    let (staging, _production, config) = scripted_pair();
    let hook = Hook::start(Manner::Takes).await;
    let ferry = Ferry::new(&config);
    let token = ferry.file("bob", "token of bob\n");
    let notify = json!({"url": hook.url, "on": ["promoted"]});
    let config = config
        .route("app", json!({"gates": {"approval": {"people": 1}}}))
        .route("web", json!({}))
        .daemon("tokens", json!({"bob": {"file": token, "may": "approve"}}))
        .daemon("notify", notify);
    ferry.write_config(&config);
    let daemon = ferry.start_ready().await;
    let approve = async |tag: &str, image: &Image, reason: &str| {
        let body = json!({"kind": "approve", "target": format!("app:{tag}"),
            "digest": image.digest(), "actor": "robert", "reason": reason});
        let asked = daemon
            .request("/v1/decisions")
            .header("content-type", "application/json")
            .bearer_auth("token of bob")
            .body(body.to_string());
        let answer = asked.send().await.expect("the daemon answers");
        assert_eq!(answer.status().as_u16(), 201);
    };
    let images: Vec<Image> = (1..=4).map(|number| Image::oci(number, &[100])).collect();

    // What a release lets go on was approved by another principal.
    staging.push("app", "v1", &images[0]);
    let hold = ["hold", "production/app:v1", "--reason", "CHG-1"];
    ferry.run(&hold).await.expect(0);
    approve("v1", &images[0], "CHG-2").await;
    ferry.sync(&["app"]).await.expect(0);
    let release = ["release", "production/app:v1", "--reason", "CHG-3"];
    ferry.run(&release).await.expect(0);
    let released = hook.told_at("/app:v1").await;
    assert_eq!(released["reason"], Value::Null, "{released}");
    assert!(released["actor"].as_str().unwrap().starts_with("user:"));

    staging.push("app", "v2", &images[1]);
    ferry.sync(&["app"]).await.expect(0);
    approve("v2", &images[1], "CHG-4").await;
    let approved = hook.told_at("/app:v2").await;
    assert_eq!(
        (&approved["actor"], &approved["reason"]),
        (&json!("bob"), &json!("CHG-4"))
    );

    staging.push("web", "v1", &images[2]);
    ferry.sync(&["web"]).await.expect(0);
    hook.told_at("/web:v1").await;
    staging.push("web", "v1", &images[3]);
    ferry.sync(&["web"]).await.expect(4);
    let accept = ["accept", "production/web:v1", "--reason", "CHG-5"];
    ferry.run(&accept).await.expect(0);
    let is_it = |body: &Value| body["digest"] == images[3].digest();
    let accepted = hook.first("the accepted image", is_it).await;
    assert_eq!(accepted["reason"], "CHG-5");

    let history = ferry.run(&["history", "--json"]).await.stdout;
    let rows = history
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let rows: Vec<Value> = rows.filter(|row| row["result"] == "promoted").collect();
    for told in [&released, &approved, &accepted] {
        let is_it = |row: &&Value| row["id"] == told["id"];
        let row = rows.iter().find(is_it).expect("the row of the message");
        assert_eq!(row["reason"], told["reason"]);
        let claims = row["claimed_actor"].as_str();
        assert_eq!(claims, (told == &approved).then_some("robert"), "{row}");
    }
}

/// Where a poll named the tag first, its row, message and report were the daemon's own.
#[tokio::test]
async fn what_was_accepted_is_the_act_of_its_principal_whatever_names_it() {
    let hook = Hook::start(Manner::Takes).await;
    let notify = json!({"url": hook.url, "on": ["promoted"]});
    let scene = Scene::with(|config| {
        let polled = config.daemon("poll", json!("1s"));
        // After a restart a tag that was equal once is asked about by the sweep.
        let swept = polled.daemon("verify", json!("1s"));
        swept.daemon("notify", notify)
    });
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    scene.staging.push("app", "v1", &first);
    let daemon = scene.ferry.start_ready().await;
    scene.named("v1", &first).await;
    scene.staging.push("app", "v1", &second);
    scene.ferry.sync(&[]).await.expect(4);
    scene.run(&["hold"]).await.expect(0);
    let accept = ["accept", "app:v1", "--reason", "the rebuild is right"];
    scene.run(&accept).await.expect(0);
    daemon.killed().await;
    scene.run(&["release"]).await.expect(0);
    let _daemon = scene.ferry.start_ready().await;
    scene.named("v1", &second).await;
    let is_it = |body: &Value| body["digest"] == second.digest();
    let told = hook.first("the accepted image", is_it).await;
    let history = scene.run(&["history", "--json"]).await.stdout;
    let rows = history
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let mut rows = rows.filter(|row| row["id"] == told["id"]);
    let row = rows.next().expect("the row of the message");
    assert_ne!(row["cause"], "decision", "{row}");
    let by = format!("user:{}", user());
    for told in [&row, &told] {
        assert_eq!(told["actor"], by, "{told}");
        assert_eq!(told["reason"], "the rebuild is right", "{told}");
        let reasons = reasons(told);
        let accepted = format!("accepted by {by}: the rebuild is right (decision ");
        assert!(reasons.contains(&accepted), "{reasons}");
    }
}
