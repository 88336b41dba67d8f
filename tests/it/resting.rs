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
