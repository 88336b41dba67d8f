//! One tag fails: the others of its repository do not wait for it.

use serde_json::json;

use crate::support::scripted::Answer;
use crate::support::*;

/// Production refuses the manifest of the tag `bad`.
fn refuses_bad() -> (Scripted, Scripted, Config) {
    let (staging, production) = (Scripted::start(), Scripted::start());
    production.on(|asked| match asked.kind {
        Kind::ManifestPut if asked.reference() == "bad" => Answer::Reply(
            Reply::status(403).body("application/json", r#"{"errors":[{"code":"DENIED"}]}"#),
        ),
        _ => Answer::Pass,
    });
    let config = Config::pair(&staging.url(), &production.url()).daemon("poll", json!("1s"));
    (staging, production, config)
}

fn tries(production: &Scripted) -> usize {
    production
        .of(Kind::ManifestPut)
        .iter()
        .filter(|put| put.path.ends_with("/bad"))
        .count()
}

#[tokio::test]
async fn a_refused_tag_rests_and_the_polls_of_its_repository_go_on() {
    let (staging, production, config) = refuses_bad();
    staging.push("app", "bad", &Image::oci(1, &[1000]));
    let ferry = Ferry::new(&config);
    let daemon = ferry.start_ready().await;
    let tried = tries(&production);
    assert!(tried > 0, "it was tried");

    for number in 0..4 {
        let (tag, image) = (format!("v{number}"), Image::oci(10 + number, &[1000]));
        staging.push("app", &tag, &image);
        let wanted = format!("/{tag}");
        production
            .until(&tag, |log| {
                log.iter()
                    .any(|put| put.kind == Kind::ManifestPut && put.path.ends_with(&wanted))
            })
            .await;
    }
    assert_eq!(
        tries(&production),
        tried,
        "four polls and more left it alone"
    );
    let failed = [
        ("route", "app"),
        ("destination", "production"),
        ("state", "failed"),
    ];
    assert_eq!(
        daemon.metric("blobferry_tags", &failed).await,
        Some(1.0),
        "and still report it"
    );

    // What is asked for by name is tried at once, and so is another digest.
    assert_eq!(
        daemon.ping(json!({"wait": true, "tag": "bad"})).await.0,
        502
    );
    let asked = tries(&production);
    assert!(asked > tried);
    staging.push("app", "bad", &Image::oci(2, &[1000]));
    production
        .until("the other digest is tried", |_| tries(&production) > asked)
        .await;

    // Once it is allowed, whatever asks promotes it.
    production.calm();
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 200);
    assert_eq!(
        production.tagged("app", "bad"),
        staging.tagged("app", "bad")
    );
    assert_eq!(daemon.metric("blobferry_tags", &failed).await, Some(0.0));
}

#[tokio::test]
async fn a_new_config_is_a_reason_to_try_again() {
    let (staging, production, config) = refuses_bad();
    staging.push("app", "bad", &Image::oci(1, &[1000]));
    let ferry = Ferry::new(&config);
    let daemon = ferry.start_ready().await;
    production.calm();
    daemon.signal("HUP").await;
    production
        .until("it is tried again", |_| {
            production.tagged("app", "bad").is_some()
        })
        .await;
}

/// Azure's token server answers 401 where a login lacks a right. It counted as a wrong password,
/// and no other repository got a token.
#[tokio::test]
async fn a_401_of_the_token_server_for_one_repository_leaves_the_others_alone() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    for repository in ["app", "other"] {
        staging.push(repository, "v1", &Image::oci(1, &[1000]));
    }
    let host = production.host();
    production.on(move |asked| {
        let authorization = asked.headers.get("authorization");
        let is_bearer = authorization.is_some_and(|value| value.as_bytes().starts_with(b"Bearer"));
        if asked.path == "/token" {
            let reply = if asked.query.contains("app") {
                let refusal = r#"{"errors":[{"code":"UNAUTHORIZED","message":"no access"}]}"#;
                Reply::status(401).body("application/json", refusal)
            } else {
                Reply::status(200).body("application/json", r#"{"token":"abc","expires_in":60}"#)
            };
            return Answer::Reply(reply);
        }
        if is_bearer {
            return Answer::Pass;
        }
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="x""#);
        Answer::Reply(Reply::status(401).header("www-authenticate", &challenge))
    });
    let ferry = Ferry::bare();
    let password = ferry.file("password", "not-a-real-one");
    let login = json!({"username": "joe", "password_file": password});
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry_with("production", &production.url(), login)
        .route("app", json!({}))
        .route("other", json!({}));
    ferry.write_config(&config);
    let run = ferry.sync(&[]).await.expect(3);
    assert!(run.said().contains("no access"), "{}", run.said());
    assert_eq!(production.tagged("app", "v1"), None);
    assert!(production.tagged("other", "v1").is_some());
}

/// One answer about one repository stopped every read of the registry for an hour, also what was
/// asked for by name, while `status` said that all was well.
#[tokio::test]
async fn a_retry_after_of_an_hour_stops_nothing_that_is_asked_for() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    staging.push("app", "v1", &Image::oci(1, &[1000]));
    staging.push("other", "v1", &Image::oci(2, &[1000]));
    let told = std::sync::atomic::AtomicBool::new(false);
    staging.on(move |asked| {
        let is_read = matches!(asked.kind, Kind::ManifestHead | Kind::ManifestGet)
            && asked.path.starts_with("/v2/app/");
        let is_first = is_read && !told.swap(true, std::sync::atomic::Ordering::Relaxed);
        match is_first {
            true => Answer::Reply(Reply::status(503).header("retry-after", "86400")),
            false => Answer::Pass,
        }
    });
    let config = Config::pair(&staging.url(), &production.url())
        .route("other", json!({}))
        .daemon("poll", json!("1s"));
    let ferry = Ferry::new(&config);
    let daemon = ferry.start().await;
    let is_told = |log: &[scripted::Record]| log.iter().any(|record| record.status == Some(503));
    staging.until("the hint", is_told).await;
    // Polls go on, and the registry is not up while it asks for time.
    let polled = staging.count(Kind::Tags);
    staging.seen(Kind::Tags, polled + 4).await;
    let up = daemon.metric("blobferry_registry_up", &[("registry", "staging")]);
    assert_eq!(up.await, Some(0.0));

    let newer = Image::oci(3, &[1000]);
    staging.push("other", "v2", &newer);
    let asked = json!({"repository": "other", "tag": "v2", "wait": true});
    let (status, report) = daemon.ping(asked).await;
    assert_eq!(status, 200, "{report:#}");
    assert_eq!(
        production.tagged("other", "v2").as_deref(),
        Some(newer.digest())
    );
    ferry.sync(&[]).await.expect(0);
    assert!(production.tagged("app", "v1").is_some());
    let up = daemon.metric("blobferry_registry_up", &[("registry", "staging")]);
    assert_eq!(up.await, Some(1.0));
}
