//! Rights of principals, and how a principal is established.

use serde_json::{Value, json};

use super::Scene;
use crate::support::*;

/// The daemon's tokens: one that may look, one for on call and the shop alone, one for root.
fn tokens(scene: &Scene) -> Value {
    let file = |name: &str| scene.ferry.file(name, &format!("token of {name}\n"));
    json!({
        "ci": {"file": file("ci"), "may": "look"},
        "oncall": {"file": file("oncall"), "may": ["hold"], "routes": ["shop-*"]},
        "rescue": {"file": file("rescue"), "may": ["rollback"], "routes": ["shop-*"]},
        "root-token": {"file": file("root-token"), "may": "decide", "user": user()},
    })
}

/// The user of this process.
pub fn user() -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").expect("there are users");
    let uid = rustix::process::getuid().as_raw().to_string();
    let line = passwd
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&uid));
    let name = line.and_then(|line| line.split(':').next());
    name.expect("this user has a name").to_owned()
}

async fn scene() -> (Scene, Daemon) {
    let scene = Scene::new();
    let config = Config::pair(&scene.staging.url(), &scene.production.url())
        .route("shop-api", json!({}))
        .daemon("tokens", tokens(&scene));
    scene.ferry.write_config(&config);
    let daemon = scene.ferry.start().await;
    (scene, daemon)
}

pub async fn decide(daemon: &Daemon, token: Option<&str>, body: Value) -> (u16, Value) {
    let mut request = daemon
        .request("/v1/decisions")
        .header("content-type", "application/json")
        .body(body.to_string());
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer token of {token}"));
    }
    let answer = request.send().await.expect("the daemon answers");
    let status = answer.status().as_u16();
    let body = answer.text().await.expect("a body");
    (status, serde_json::from_str(&body).expect("JSON"))
}

#[tokio::test]
async fn a_token_decides_what_it_may_and_a_refusal_is_a_row() {
    let (scene, daemon) = scene().await;
    let hold = |target: &str| json!({"kind": "hold", "target": target, "reason": "INC-4"});
    for (token, body, expected, said) in [
        (None, hold("route:shop-api"), 401, "daemon.tokens"),
        (
            Some("stranger"),
            hold("route:shop-api"),
            401,
            "daemon.tokens",
        ),
        (
            Some("ci"),
            hold("route:shop-api"),
            403,
            "not the right `hold`",
        ),
        (Some("oncall"), hold("route:app"), 403, "routes app"),
        (
            Some("oncall"),
            json!({"kind": "hold"}),
            403,
            "more than the routes",
        ),
        (Some("oncall"), hold("production/shop-api:v1"), 201, ""),
        (Some("oncall"), hold("route:nope"), 404, "no route"),
        (
            Some("oncall"),
            json!({"kind": "hold", "target": "App"}),
            400,
            "no target",
        ),
        (
            Some("oncall"),
            json!({"kind": "hold", "frobnicate": 1}),
            400,
            "unknown field",
        ),
        (Some("oncall"), json!(["hold"]), 400, "not a JSON object"),
        (Some("root-token"), hold("route:app"), 201, ""),
        // What another right was taken for takes that right to end.
        (
            Some("ci"),
            json!({"kind": "release", "target": "route:app"}),
            403,
            "not the right `hold`",
        ),
        (
            Some("oncall"),
            json!({"kind": "release", "target": "route:app"}),
            403,
            "routes app",
        ),
        (
            Some("oncall"),
            json!({"kind": "release", "target": "production/shop-api:v1"}),
            201,
            "",
        ),
        (
            Some("oncall"),
            json!({"kind": "release", "target": "production/shop-api:v1"}),
            404,
            "no decision about production/shop-api:v1",
        ),
    ] {
        let (status, answer) = decide(&daemon, token, body.clone()).await;
        assert_eq!(status, expected, "{token:?} {body}: {answer}");
        assert!(
            answer.to_string().contains(said),
            "{token:?} {body}: {answer}"
        );
    }
    let history = scene.run(&["history", "--json"]).await.stdout;
    let rows: Vec<Value> = history
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row is JSON"))
        .collect();
    let refused: Vec<&Value> = rows
        .iter()
        .filter(|row| row["kind"] == "refused_decision")
        .collect();
    let by = |name: &str| refused.iter().filter(|row| row["actor"] == name).count();
    assert_eq!(
        (by("ci"), by("oncall"), refused.len()),
        (2, 3, 5),
        "{history}"
    );
    assert!(rows.iter().any(|row| row["kind"] == "hold"
        && row["actor"] == "oncall"
        && row["reason"] == "INC-4"
        && row["target"] == "production/shop-api:v1"));
}

#[tokio::test]
async fn accept_and_rollback_answer_with_what_came_of_them() {
    let (scene, daemon) = scene().await;
    let images: Vec<Image> = (1..=3).map(|seed| Image::oci(seed, &[100])).collect();
    for image in &images[..2] {
        scene.staging.push("shop-api", "latest", image);
        scene.ferry.sync(&["shop-api"]).await.expect(0);
    }
    let zeros = format!("sha256:{}", "0".repeat(64));
    let back = |more: Value| {
        let mut body = json!({"kind": "rollback", "target": "shop-api:latest", "reason": "INC-4"});
        let more = more.as_object().expect("keys").clone();
        body.as_object_mut().expect("an object").extend(more);
        body
    };
    let accept = json!({"kind": "accept", "target": "shop-api:latest", "reason": "x"});
    for (token, body, expected, said) in [
        (None, back(json!({})), 401, "daemon.tokens"),
        (
            Some("oncall"),
            back(json!({})),
            403,
            "not the right `rollback`",
        ),
        (
            Some("rescue"),
            back(json!({"target": "app:latest"})),
            403,
            "routes app",
        ),
        (Some("rescue"), accept, 403, "not the right `accept`"),
        (
            Some("rescue"),
            back(json!({"digest": zeros})),
            400,
            "has no `digest`",
        ),
        (
            Some("rescue"),
            back(json!({"all": true})),
            400,
            "has no `all`",
        ),
        (
            Some("rescue"),
            back(json!({"reason": null})),
            400,
            "needs a `reason`",
        ),
        (
            Some("rescue"),
            back(json!({"target": "route:shop-api"})),
            400,
            "name one tag",
        ),
        (
            Some("rescue"),
            back(json!({"target": "nope:v1"})),
            404,
            "no route leads",
        ),
        (
            Some("rescue"),
            back(json!({"target": "shop-api:v9"})),
            404,
            "is not there",
        ),
        (
            Some("rescue"),
            back(json!({"to": zeros})),
            404,
            "the ledger shows",
        ),
        (
            Some("rescue"),
            back(json!({"to": images[1].digest()})),
            409,
            "already",
        ),
        (Some("rescue"), back(json!({})), 201, images[0].digest()),
    ] {
        let (status, answer) = decide(&daemon, token, body.clone()).await;
        assert_eq!(status, expected, "{token:?} {body}: {answer}");
        let answer = answer.to_string();
        assert!(answer.contains(said), "{token:?} {body}: {answer}");
    }
    let there = scene.production.tagged("shop-api", "latest");
    assert_eq!(there.as_deref(), Some(images[0].digest()));
}

#[tokio::test]
async fn socket_and_token_are_one_person() {
    let (scene, daemon) = scene().await;
    scene.run(&["hold", "route:app"]).await.expect(0);
    let body = json!({"kind": "hold", "target": "route:shop-api"});
    assert_eq!(decide(&daemon, Some("root-token"), body).await.0, 201);
    let in_force = scene.in_force().await;
    let actors: Vec<&Value> = in_force.iter().map(|decision| &decision["actor"]).collect();
    assert_eq!(actors, [&json!(format!("user:{}", user())); 2]);
}

#[tokio::test]
async fn the_secret_may_look_and_no_more() {
    let scene = Scene::new();
    let secret = scene.ferry.file("secret", "token of old\n");
    let config = Config::pair(&scene.staging.url(), &scene.production.url())
        .daemon("secret_file", json!(secret));
    scene.ferry.write_config(&config);
    let daemon = scene.ferry.start().await;
    let (status, answer) = decide(&daemon, Some("old"), json!({"kind": "hold"})).await;
    assert_eq!(status, 403, "{answer}");
    let looked = daemon
        .request("/v1/sync")
        .header("authorization", "Bearer token of old")
        .send()
        .await
        .expect("the daemon answers");
    assert_eq!(looked.status().as_u16(), 202);
}
