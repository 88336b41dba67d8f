//! Notifications of registries: `POST /v1/events/NAME` through the built binary.

use std::collections::BTreeMap;

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::docs;
use crate::support::scripted::{self, Answer, Scripted};
use crate::support::*;

const SECRET: &str = "a-long-random-word";

/// A daemon between two scripted registries, with receivers that share one secret.
struct Scene {
    staging: Scripted,
    production: Scripted,
    ferry: Ferry,
    daemon: Daemon,
}

impl Scene {
    async fn of_kinds(kinds: &[&str]) -> Scene {
        Scene::with(|config, secret| {
            kinds.iter().fold(config, |config, kind| {
                config.receiver(kind, json!({"kind": kind, "secret_file": secret}))
            })
        })
        .await
    }

    async fn with(config: impl FnOnce(Config, &str) -> Config) -> Scene {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let pair = Config::pair(&staging.url(), &production.url());
        let ferry = Ferry::new(&pair);
        let secret = ferry.file("secret", SECRET);
        ferry.write_config(&config(pair, &secret));
        let daemon = ferry.start_ready().await;
        Scene {
            staging,
            production,
            ferry,
            daemon,
        }
    }

    fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.daemon
            .request(&format!("/v1/events/{path}"))
            .body(body)
    }

    /// The answer to the head of a delivery of 10 MiB.
    async fn large(&self, path: &str) -> String {
        let address = self.daemon.url().trim_start_matches("http://");
        let mut stream = TcpStream::connect(address)
            .await
            .expect("the daemon listens");
        let head = format!(
            "POST /v1/events/{path} HTTP/1.1\r\nhost: {address}\r\nauthorization: {SECRET}\r\ncontent-length: 10485760\r\n\r\n"
        );
        stream
            .write_all(head.as_bytes())
            .await
            .expect("a head is sent");
        let mut lines = BufReader::new(stream).lines();
        let line = lines.next_line().await.expect("an answer");
        line.expect("a line")
    }

    async fn counted(&self, result: &str) -> f64 {
        let labels = [("source", "webhook"), ("result", result)];
        let name = "blobferry_events_total";
        self.daemon.metric(name, &labels).await.unwrap_or_default()
    }

    async fn looks(&self) -> f64 {
        let labels = [("cause", "webhook")];
        let name = "blobferry_looks_total";
        self.daemon.metric(name, &labels).await.unwrap_or_default()
    }

    async fn looked(&self, count: f64) {
        eventually("the looks have ended", async || {
            (self.looks().await >= count).then_some(())
        })
        .await;
    }
}

fn bearer(request: RequestBuilder) -> RequestBuilder {
    request.header("authorization", format!("Bearer {SECRET}"))
}

/// An envelope of distribution with one push.
fn pushed(repository: &str, tag: Option<&str>) -> Value {
    let mut target = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "repository": repository,
        "digest": format!("sha256:{}", "0".repeat(64)),
        "url": "http://elsewhere.example/v2/app/manifests/x",
    });
    if let Some(tag) = tag {
        target["tag"] = tag.into();
    }
    json!({"events": [{"action": "push", "timestamp": blobferry::clock::now(), "target": target}]})
}

async fn status(request: RequestBuilder) -> u16 {
    let answer = request.send().await.expect("the daemon answers");
    answer.status().as_u16()
}

/// Distribution tells of a manifest before it writes the tag, and of blobs: each was a tag that is
/// gone.
#[tokio::test]
async fn a_tag_that_was_never_seen_is_not_counted_as_gone() {
    let scene = Scene::of_kinds(&["distribution"]).await;
    let told = async |looks: f64| {
        let body = pushed("app", Some("v1")).to_string();
        assert_eq!(status(bearer(scene.post("distribution", body))).await, 202);
        scene.looked(looks).await;
    };
    let outcomes = async |result: &str| {
        let labels = [("result", result)];
        let name = "blobferry_outcomes_total";
        scene.daemon.metric(name, &labels).await.unwrap_or_default()
    };
    let is_unreadable = |asked: &scripted::Asked| asked.path.ends_with("/manifests/v1");
    let not_there = move |asked: &scripted::Asked| match is_unreadable(asked) {
        true => Answer::Reply(Reply::status(404)),
        false => Answer::Pass,
    };
    let image = Image::oci(1, &[1000]);
    scene.staging.push("app", "v1", &image);
    scene.staging.on(not_there);
    told(1.0).await;
    assert_eq!(outcomes("gone").await, 0.0);
    scene.staging.calm();
    scene
        .production
        .until("the look that follows sees it", |_| {
            scene.production.tagged("app", "v1").is_some()
        })
        .await;
    eventually("it is counted", async || {
        (outcomes("promoted").await == 1.0).then_some(())
    })
    .await;
    scene.staging.on(not_there);
    told(3.0).await;
    eventually("a known tag is gone", async || {
        (outcomes("gone").await == 1.0).then_some(())
    })
    .await;
}

/// Drift that an event or `sync --tag` had found showed after the next look at everything.
#[tokio::test]
async fn a_look_at_named_tags_shows_what_it_has_found_at_once() {
    let scene = Scene::of_kinds(&["distribution"]).await;
    let images = [1, 2, 3, 4].map(|seed| Image::oci(seed, &[1000]));
    scene.staging.push("app", "v1", &images[0]);
    scene.staging.push("app", "v2", &images[1]);
    assert_eq!(scene.daemon.ping(json!({"wait": true})).await.0, 200);
    let told = async |tag: &str| {
        let body = pushed("app", Some(tag)).to_string();
        assert_eq!(status(bearer(scene.post("distribution", body))).await, 202);
    };
    let shown = async |up_to_date: u64, drift: u64| {
        let what = format!("{up_to_date} up to date, {drift} in drift");
        eventually(&what, async || {
            let states = [("up_to_date", up_to_date), ("drift", drift)];
            for (state, count) in states {
                let labels = [("route", "app"), ("state", state)];
                let metric = scene.daemon.metric("blobferry_tags", &labels).await;
                if metric != Some(count as f64) {
                    return None;
                }
            }
            let status = scene.daemon.get("/v1/status").await;
            let status = status.bytes().await.expect("a body");
            let status: Value = serde_json::from_slice(&status).expect("JSON");
            let tags = &status["routes"][0]["tags"];
            (tags["up_to_date"] == up_to_date && tags["drift"] == drift).then_some(())
        })
        .await;
    };
    shown(2, 0).await;
    scene.production.push("app", "v1", &images[2]);
    told("v1").await;
    shown(1, 1).await;
    scene.staging.push("app", "v3", &images[3]);
    told("v3").await;
    shown(2, 1).await;
    scene.production.push("app", "v1", &images[0]);
    scene.ferry.sync(&["--tag", "v1"]).await.expect(0);
    shown(3, 0).await;
    scene.production.push("app", "v2", &images[2]);
    scene.ferry.sync(&["--tag", "v2"]).await.expect(4);
    shown(2, 1).await;
    let looks = [("cause", "ping")];
    let name = "blobferry_looks_total";
    assert_eq!(scene.daemon.metric(name, &looks).await, Some(1.0));
}

/// Four hundred bodies that stalled at a receiver that signs kept health, metrics and the events of
/// their peer out.
#[tokio::test]
async fn stalled_bodies_of_one_peer_keep_nothing_of_it_out() {
    let scene = Scene::of_kinds(&["generic", "harbor"]).await;
    let address = scene.daemon.url().trim_start_matches("http://");
    let head = format!(
        "POST /v1/events/generic HTTP/1.1\r\nhost: {address}\r\nx-signature: sha256={}\r\n\
         content-length: 1000\r\nexpect: 100-continue\r\n\r\n",
        "a".repeat(64)
    );
    let mut stalled = Vec::new();
    for _ in 0..400 {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let mut stream = BufReader::new(stream);
        stream
            .write_all(head.as_bytes())
            .await
            .expect("a head is sent");
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("an answer");
        assert!(line.contains("100 Continue"), "the body is read: {line}");
        stalled.push(stream);
    }
    for path in ["/healthz", "/metrics"] {
        let answer = scene.daemon.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
    }
    let body = json!({"type": "PUSH_ARTIFACT", "event_data": {
        "resources": [{"tag": "v1"}], "repository": {"repo_full_name": "app"}}});
    let body = body.to_string();
    let sent = status(bearer(scene.post("harbor", body))).await;
    assert_eq!(sent, 202);
    let newest = stalled.last_mut().expect("the last one");
    newest
        .write_all(&[b'x'; 1000])
        .await
        .expect("it is open still");
    let mut answer = String::new();
    while !answer.contains("HTTP/1.1 401") {
        let read = newest.read_line(&mut answer).await.expect("an answer");
        assert_ne!(read, 0, "{answer}");
    }
}

#[tokio::test]
async fn a_notification_is_only_a_hint() {
    let scene = Scene::of_kinds(&["distribution"]).await;
    let image = Image::oci(1, &[1000]);
    scene.staging.push("app", "v1", &image);
    scene.staging.push("app", "v2", &Image::oci(2, &[1000]));
    // Another digest and another host than the truth.
    let body = pushed("app", Some("v1")).to_string();
    let sent = bearer(scene.post("distribution", body)).send().await;
    assert_eq!(sent.expect("an answer").status(), 202);
    scene.looked(1.0).await;
    assert_eq!(
        scene.production.tags("app"),
        ["v1"],
        "the tag that was named alone"
    );
    let there = scene.production.tagged("app", "v1");
    assert_eq!(there.as_deref(), Some(image.digest()));
    let timed = "blobferry_push_to_production_seconds_count";
    assert_eq!(scene.daemon.metric(timed, &[]).await, Some(1.0));
    // Doubled: nothing to do.
    let body = pushed("app", Some("v1")).to_string();
    assert_eq!(status(bearer(scene.post("distribution", body))).await, 202);
    scene.looked(2.0).await;
    assert_eq!(scene.daemon.metric(timed, &[]).await, Some(1.0));
    // Of a repository that no route has.
    let body = pushed("other", Some("v1")).to_string();
    assert_eq!(status(bearer(scene.post("distribution", body))).await, 202);
    eventually("it is ignored", async || {
        (scene.counted("ignored").await == 1.0).then_some(())
    })
    .await;
    assert_eq!(scene.counted("queued").await, 2.0);
}

#[tokio::test]
async fn a_push_to_production_shows_drift_at_once() {
    let scene = Scene::with(|config, secret| {
        let keys = json!({"kind": "distribution", "registry": "production", "secret_file": secret});
        config.receiver("production", keys)
    })
    .await;
    scene.staging.push("app", "v1", &Image::oci(1, &[1000]));
    let (code, _) = scene.daemon.ping(json!({"wait": true})).await;
    assert_eq!(code, 200);
    let by_hand = Image::oci(2, &[1000]);
    scene.production.push("app", "v1", &by_hand);
    let body = pushed("app", Some("v1")).to_string();
    assert_eq!(status(bearer(scene.post("production", body))).await, 202);
    scene.looked(1.0).await;
    let drifts = [("result", "drift")];
    let outcomes = scene
        .daemon
        .metric("blobferry_outcomes_total", &drifts)
        .await;
    assert_eq!(outcomes, Some(1.0));
    // Without a tag nothing has moved there.
    let body = pushed("app", None).to_string();
    assert_eq!(status(bearer(scene.post("production", body))).await, 202);
    eventually("it is ignored", async || {
        (scene.counted("ignored").await == 1.0).then_some(())
    })
    .await;
}

/// A delivery that is refused: how it is sent, and the status.
type Refused = (&'static str, fn(RequestBuilder) -> RequestBuilder, u16);

#[tokio::test]
async fn no_look_is_caused_by_a_stranger() {
    let scene = Scene::of_kinds(&["distribution", "generic", "quay", "zot", "gar"]).await;
    let listed = scene.staging.count(Kind::Tags);
    let table: &[Refused] = &[
        ("distribution", |request| request, 401),
        (
            "distribution",
            |request| request.header("authorization", "Bearer wrong"),
            401,
        ),
        (
            "distribution",
            |request| request.header("authorization", "Bearer a-long-random-wor"),
            401,
        ),
        (
            "distribution",
            |request| request.header("authorization", "Basic ####"),
            401,
        ),
        (
            "distribution?secret=a-long-random-word",
            |request| request,
            401,
        ),
        ("quay?secret=wrong", |request| request, 401),
        (
            "generic",
            |request| request.header("x-signature", "sha256=00"),
            401,
        ),
        (
            "generic",
            |request| request.header("x-signature", format!("sha256={}", "0".repeat(64))),
            401,
        ),
        // The signature of an empty body.
        (
            "generic",
            |request| request.header("x-signature", signature(b"")),
            401,
        ),
        ("generic", |request| standard(request, -600), 401),
        ("nobody", bearer, 404),
        ("distribution/", bearer, 403),
        ("distribution", |request| bearer(request).body("{"), 400),
        (
            "distribution",
            |request| bearer(request).body("[".repeat(100_000)),
            400,
        ),
        (
            "distribution",
            |request| bearer(request).body(pushed("UPPER", Some("v1")).to_string()),
            400,
        ),
        (
            "distribution",
            |request| bearer(request).body(pushed("app", Some("a\u{0}b")).to_string()),
            400,
        ),
        (
            "distribution",
            |request| bearer(request).body(pushed("../app", Some("v1")).to_string()),
            400,
        ),
        ("zot", |request| bearer(request).body("{}"), 400),
        (
            "gar",
            |request| bearer(request).body(r#"{"message":{"data":"%%%"}}"#),
            400,
        ),
    ];
    for (number, (path, sent, expected)) in table.iter().enumerate() {
        let marked = pushed("app", Some("marked-by-the-test")).to_string();
        let got = status(sent(scene.post(path, marked))).await;
        assert_eq!(got, *expected, "{number}: {path}");
    }
    let mut expected = BTreeMap::new();
    for (_, _, status) in table {
        let result = match status {
            401 => "unauthenticated",
            400 => "malformed",
            _ => continue,
        };
        *expected.entry(result).or_insert(0.0) += 1.0;
    }
    expected.insert("too_large", 2.0);
    for path in ["distribution", "generic"] {
        assert_eq!(scene.large(path).await, "HTTP/1.1 413 Payload Too Large");
    }
    for (result, count) in expected {
        assert_eq!(scene.counted(result).await, count, "{result}");
    }
    assert_eq!(
        (scene.looks().await, scene.counted("queued").await),
        (0.0, 0.0)
    );
    assert_eq!(scene.staging.count(Kind::Tags), listed);
    let log = scene.daemon.log();
    for secret in [SECRET, "wrong", "marked-by-the-test", "?secret"] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

/// `X-Signature` of the script's own kind.
fn signature(body: &[u8]) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, body);
    format!("sha256={}", hex::encode(tag))
}

/// A right Standard Webhooks signature of a body, so many seconds from now.
fn standard(request: RequestBuilder, seconds: i64) -> RequestBuilder {
    use base64::Engine as _;
    let body = r#"{"repository":"app","tag":"v1"}"#;
    let at = blobferry::clock::now().as_second() + seconds;
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, format!("msg_1.{at}.{body}").as_bytes());
    let encoded = base64::engine::general_purpose::STANDARD.encode(tag);
    request
        .header("webhook-id", "msg_1")
        .header("webhook-timestamp", at)
        .header("webhook-signature", format!("v1,{encoded}"))
        .body(body)
}

#[tokio::test]
async fn the_right_signature_opens_and_a_replay_is_one_more_look() {
    let scene = Scene::of_kinds(&["generic"]).await;
    scene.staging.push("app", "v1", &Image::oci(1, &[1000]));
    let body = r#"{"repository":"app","tag":"v1"}"#;
    for count in [1.0, 2.0] {
        let signed = scene
            .post("generic", body)
            .header("x-signature", signature(body.as_bytes()));
        assert_eq!(status(signed).await, 202);
        scene.looked(count).await;
    }
    assert_eq!(status(standard(scene.post("generic", ""), 0)).await, 202);
    scene.looked(3.0).await;
    assert_eq!(scene.production.tags("app"), ["v1"]);
    assert_eq!(scene.production.count(Kind::ManifestPut), 1);
}

#[tokio::test]
async fn wrong_secrets_lock_out_nothing() {
    let scene = Scene::with(|config, secret| {
        let keys = json!({"kind": "harbor", "secret_file": secret, "limit": 5});
        config.receiver("harbor", keys)
    })
    .await;
    for _ in 0..1000 {
        let wrong = scene.post("harbor", "{}").header("authorization", "wrong");
        assert_eq!(status(wrong).await, 401);
    }
    let body = r#"{"type":"PULL_ARTIFACT","event_data":{}}"#;
    let right = || scene.post("harbor", body).header("authorization", SECRET);
    assert_eq!(status(right()).await, 202, "none of them used up the limit");
    let mut limited = None;
    for _ in 0..100 {
        let answer = right().send().await.expect("an answer");
        if answer.status() == 429 {
            limited = Some(answer);
            break;
        }
    }
    let limited = limited.expect("a hundred in a moment are more than five in a second");
    assert_eq!(limited.headers()["retry-after"], "1");
    assert_eq!(scene.counted("unauthenticated").await, 1000.0);
    assert_eq!(scene.counted("limited").await, 1.0);
}

#[tokio::test]
async fn two_secrets_are_valid_while_one_replaces_the_other() {
    let scene = Scene::of_kinds(&["harbor"]).await;
    let body = r#"{"type":"PULL_ARTIFACT","event_data":{}}"#;
    let with = async |secret: &str| {
        status(scene.post("harbor", body).header("authorization", secret)).await
    };
    for (file, old, new) in [
        (format!("new-word\n{SECRET}\n"), 202, 202),
        ("new-word\n".to_owned(), 401, 202),
    ] {
        scene.ferry.file("secret", &file);
        let before = scene
            .daemon
            .log()
            .matches("the config was read again")
            .count();
        scene.daemon.signal("HUP").await;
        eventually("the config was read again", async || {
            let log = scene.daemon.log();
            (log.matches("the config was read again").count() > before).then_some(())
        })
        .await;
        assert_eq!((with(SECRET).await, with("new-word").await), (old, new));
    }
}

#[tokio::test]
async fn a_receiver_is_reached_by_any_name_and_without_the_daemons_token() {
    let scene = Scene::with(|config, secret| {
        let keys = json!({"kind": "acr", "secret_file": secret});
        let config = config.receiver("acr", keys);
        let token = format!("{secret}-of-the-daemon");
        std::fs::write(&token, "another-word").expect("a file in the scratch directory");
        config.daemon("secret_file", json!(token))
    })
    .await;
    let ping = r#"{"action":"ping"}"#;
    let proxied = |request: RequestBuilder| {
        request
            .header("host", "events.example")
            .header("x-forwarded-for", "192.0.2.7")
            .header("via", "1.1 proxy")
    };
    let right = proxied(scene.post("acr", ping)).header("authorization", SECRET);
    assert_eq!(status(right).await, 200, "a handshake");
    let other = proxied(scene.post("acr", ping)).header("authorization", "Bearer another-word");
    assert_eq!(
        status(other).await,
        401,
        "the daemon's token is not the receiver's"
    );
    let page = scene
        .post("acr", ping)
        .header("origin", "https://pages.example");
    assert_eq!(status(page.header("authorization", SECRET)).await, 403);

    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let url = format!("{}/v1/events/acr", scene.daemon.url());
    let options = client
        .request(reqwest::Method::OPTIONS, &url)
        .header("webhook-request-origin", "eventgrid.azure.net")
        .send()
        .await
        .expect("an answer");
    assert_eq!(options.status(), 200);
    assert_eq!(
        options.headers()["webhook-allowed-origin"],
        "eventgrid.azure.net"
    );
    let validation = r#"[{"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"c-1"}}]"#;
    let answer = scene
        .post(&format!("acr?secret={SECRET}"), validation)
        .send()
        .await;
    let answer: Value =
        serde_json::from_slice(&answer.expect("an answer").bytes().await.expect("a body"))
            .expect("JSON");
    assert_eq!(answer, json!({"validationResponse": "c-1"}));
    let get = client.get(&url).send().await.expect("an answer");
    assert_eq!(get.status(), 405);
}

/// The lines of docs/events.md that try a receiver, by kind.
fn lines_to_try() -> BTreeMap<String, String> {
    let blocks = docs::blocks(&docs::read("docs/events.md")).into_iter();
    blocks
        .filter_map(|block| Some((block.info.strip_prefix("sh ")?.to_owned(), block.text)))
        .collect()
}

#[tokio::test]
async fn the_line_to_try_each_receiver_leads_to_a_look() {
    let lines = lines_to_try();
    let kinds: Vec<&str> = lines.keys().map(String::as_str).collect();
    let names: Vec<&str> = blobferry::watch::receiver::Kind::ALL
        .map(|kind| kind.name())
        .into();
    assert_eq!(kinds, names, "a line for each kind");
    let scene = Scene::with(|config, secret| {
        let config = ["team/app", "project/team/app"]
            .into_iter()
            .fold(config, |config, name| config.route(name, json!({})));
        kinds.iter().fold(config, |config, kind| {
            config.receiver(kind, json!({"kind": kind, "secret_file": secret}))
        })
    })
    .await;
    for (done, (kind, line)) in lines.iter().enumerate() {
        let url = format!("{}/v1/events/{kind}", scene.daemon.url());
        let prelude = format!(
            "S={SECRET}; URL={url}; sign() {{ openssl dgst -sha256 -hmac \"$S\" -r | cut -d' ' -f1; }}; \
             curl() {{ command curl -sS --noproxy '*' --fail-with-body \"$@\"; }};\n"
        );
        let code = scene.ferry.shell(&(prelude + line)).await;
        assert_eq!(code, 0, "{kind}: {line}");
        scene.looked(done as f64 + 1.0).await;
    }
}

#[tokio::test]
async fn check_online_tries_each_receiver_from_here() {
    let scene = Scene::of_kinds(&["harbor"]).await;
    scene.staging.push("app", "v1", &Image::oci(1, &[1000]));
    scene.production.push("app", "v1", &Image::oci(1, &[1000]));
    let run = scene.ferry.run(&["check", "--online"]).await.expect(0);
    let reachable = format!(
        "receiver harbor: reachable at {}/v1/events/harbor",
        scene.daemon.url()
    );
    assert!(run.stdout.contains(&reachable), "{}", run.stdout);
    let Scene { ferry, daemon, .. } = scene;
    daemon.killed().await;
    let run = ferry.run(&["check", "--online"]).await;
    assert!(
        run.stdout.contains("no daemon answers at"),
        "{}",
        run.stdout
    );
}
