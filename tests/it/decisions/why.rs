//! Why is v1.4.0 not in production?

use serde_json::{Value, json};

use super::Scene;
use crate::support::*;

/// The only entry of the answer about a tag.
async fn why(scene: &Scene, tag: &str, code: i32) -> Value {
    let run = scene.run(&["why", tag, "--json"]).await;
    assert_eq!(run.code, code, "{}{}", run.stdout, run.stderr);
    let answer: Value = serde_json::from_str(&run.stdout).expect("JSON");
    let tags = answer["tags"].as_array().expect("a list").clone();
    assert_eq!(tags.len(), 1, "{answer:#}");
    tags[0].clone()
}

#[tokio::test]
async fn why_v1_4_0_is_not_in_production() {
    let scene = Scene::new();
    let gates = json!({
        "window": {"open": "mon-sun", "closed": ["2000-01-01/2999-12-31"]},
        "command": {"run": ["/bin/sh", "-c", "echo two critical findings; exit 1"]},
    });
    let tags = json!({"include": ["v*", "latest"], "exclude": ["*-rc*"]});
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route("app", json!({"gates": gates, "tags": tags}));
    scene.ferry.write_config(&config);
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1.4.0", &image);
    scene.staging.push("app", "v1.5.0-rc1", &image);
    let daemon = scene.ferry.start_ready().await;
    scene
        .run(&["hold", "app:v1.4.0", "--reason", "CHG-17"])
        .await
        .expect(0);
    scene.run(&["hold", "app:v9"]).await.expect(0);
    scene.ferry.sync(&["--tag", "v1.4.0"]).await.expect(4);
    let puts = scene.production.count(Kind::ManifestPut);
    let view = why(&scene, "production/app:v1.4.0", 0).await;
    assert_eq!(view["route"], "app");
    assert_eq!(view["digest"], image.digest());
    assert_eq!(view["production"], Value::Null);
    assert_eq!(view["known"]["digest"], Value::Null);
    assert_eq!(view["moving"], false);
    assert_ne!(view["result"], "planned");
    let reasons = view["reasons"].to_string();
    assert!(
        reasons.contains("CHG-17") && reasons.contains("window"),
        "{view:#}"
    );
    let gates = view["gates"].to_string();
    assert!(
        gates.contains("two critical findings"),
        "as it said last: {gates}"
    );
    let decisions = view["decisions"].as_array().expect("a list");
    assert_eq!(decisions.len(), 1, "{view:#}");
    assert_eq!(decisions[0]["target"], "app:v1.4.0");
    assert!(view["last"]["at"].is_string(), "{view:#}");
    assert_eq!(
        scene.production.count(Kind::ManifestPut),
        puts,
        "it changes nothing"
    );
    // By every name that the tag has.
    let host = format!("{}/app:v1.4.0", scene.production.host());
    for name in ["app:v1.4.0", "staging/app:v1.4.0", &host] {
        assert_eq!(
            why(&scene, name, 0).await["digest"],
            view["digest"],
            "{name}"
        );
    }
    let text = scene.run(&["why", "app:v1.4.0"]).await.expect(0).stdout;
    for said in [
        "is not in production",
        "CHG-17",
        "window: wait",
        "command: refuse",
        "a fixed tag",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    // Not there, excluded, and of no route.
    let gone = why(&scene, "app:v7", 5).await;
    assert!(
        gone["reasons"].to_string().contains("has no tag v7"),
        "{gone:#}"
    );
    let excluded = why(&scene, "app:v1.5.0-rc1", 5).await;
    assert!(
        excluded["reasons"].to_string().contains("leave"),
        "{excluded:#}"
    );
    assert_eq!(excluded["digest"], image.digest());
    scene.run(&["why", "nope:v1"]).await.expect(5);
    scene.run(&["why", "app"]).await.expect(2);

    // What the ledger knows without the daemon.
    daemon.killed().await;
    let view = why(&scene, "production/app:v1.4.0", 0).await;
    assert_eq!(view["digest"], image.digest());
    assert!(
        view["gates"].to_string().contains("two critical findings"),
        "{view:#}"
    );
    assert_eq!(view["decisions"][0]["reason"], "CHG-17");
    scene.run(&["why", "nope:v1"]).await.expect(5);
}

#[tokio::test]
async fn why_a_tag_is_in_production() {
    let scene = Scene::new();
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "latest", &image);
    let _daemon = scene.ferry.start_ready().await;
    let view = why(&scene, "app:latest", 0).await;
    assert_eq!(view["result"], "up_to_date");
    assert_eq!(view["production"], image.digest());
    assert_eq!(view["known"]["digest"], image.digest());
    assert_eq!(view["moving"], true);
    let text = scene.run(&["why", "app:latest"]).await.expect(0).stdout;
    assert!(text.contains("is in production"), "{text}");
}

/// It was said to be planned, since a plan asks no program.
#[tokio::test]
async fn why_a_tag_waits_at_a_program() {
    let scene = Scene::new();
    let script = "echo not yet; exit 75";
    let gates = json!({"command": {"run": ["/bin/sh", "-c", script]}});
    let gated = |gates: Value| {
        Config::new()
            .registry("staging", &scene.staging.url())
            .registry("production", &scene.production.url())
            .route("app", json!({"gates": gates}))
    };
    scene.ferry.write_config(&gated(gates));
    scene.staging.push("app", "v1", &Image::oci(1, &[100]));
    let daemon = scene.ferry.start_ready().await;
    let view = why(&scene, "app:v1", 0).await;
    assert_eq!(view["result"], "waiting", "{view:#}");
    assert_eq!(view["reasons"], json!(["command: not yet"]));
    let since = view["result_since"].clone();
    assert_eq!(since, view["last"]["at"]);
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(why(&scene, "app:v1", 0).await["result_since"], since);
    let headline = async || {
        let text = scene.run(&["why", "app:v1"]).await.expect(0).stdout;
        let first = text.lines().find(|line| line.contains("in production"));
        first.expect("a headline").to_owned()
    };
    let waits = headline().await;
    assert!(
        waits.contains(": waiting at the gate command since 20"),
        "{waits}"
    );

    // A gate that was taken out keeps nothing.
    scene.run(&["hold"]).await.expect(0);
    scene.ferry.write_config(&gated(json!({})));
    daemon.signal("HUP").await;
    daemon.says("the config was read again").await;
    let held = why(&scene, "app:v1", 0).await;
    assert_eq!(held["result"], "held");
    assert_eq!(held["gates"], json!([]));
    let headline = headline().await;
    assert!(headline.contains(": held since 20"), "{headline}");
    drop(daemon);
}
