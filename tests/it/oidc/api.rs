//! Tokens of an identity provider at the HTTP API: a CI job as a caller with a name and rights.

use super::*;

/// The tokens of the API: a job of `acme` may look, one that deploys may approve as well.
fn tokens(provider: &Provider) -> Value {
    let oidc = |claims: Value| json!({"issuer": provider.issuer(), "audience": AUDIENCE, "claims": claims});
    json!({
        "deploy": {"oidc": oidc(json!({"repository": "acme/*", "environment": "production"})),
            "may": "approve", "routes": ["app"]},
        "github": {"oidc": oidc(json!({"repository": "acme/*"})), "may": "look"},
        "alice": {"oidc": oidc(json!({"email": "alice@acme.example"})), "may": "approve",
            "user": "alice"},
    })
}

/// A daemon between two registries with these gates; its API takes tokens of `provider`.
async fn api(provider: &Provider, gates: Value) -> (Scripted, Scripted, Ferry, Daemon) {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url())
        .route("app", json!({"gates": gates}))
        .daemon("tokens", tokens(provider));
    let ferry = Ferry::new(&config);
    let daemon = ferry.start_ready().await;
    (staging, production, ferry, daemon)
}

async fn asked(daemon: &Daemon, path: &str, token: &str, body: Value) -> (u16, Value) {
    let request = daemon
        .request(path)
        .bearer_auth(token)
        .header("content-type", "application/json")
        .body(body.to_string());
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    let body = answer.text().await.expect("a body");
    (status, serde_json::from_str(&body).expect("JSON"))
}

async fn pinged(daemon: &Daemon, token: &str) -> u16 {
    asked(daemon, "/v1/sync", token, json!({})).await.0
}

async fn counted_pings(daemon: &Daemon, result: &str) -> f64 {
    counted_from(daemon, "ping", result).await
}

#[tokio::test]
async fn a_ci_job_is_a_caller_with_a_name_and_rights() {
    let (provider, key) = Provider::with_key().await;
    let (staging, production, ferry, daemon) = api(&provider, json!({})).await;
    let image = Image::oci(1, &[100]);
    staging.push("app", "v1", &image);
    let shown = token("k1", &key, &provider.claims());
    let body = json!({"repository": "app", "tag": "v1", "wait": true});
    let (status, report) = asked(&daemon, "/v1/sync", &shown, body).await;
    let subject = format!("oidc:{}#repo:acme/app", provider.issuer());
    assert_eq!(
        (status, &report["jobs"][0]["actor"]),
        (200, &json!(subject))
    );
    assert_eq!(
        production.tagged("app", "v1").as_deref(),
        Some(image.digest())
    );
    // It has the rights of its token and no others.
    let hold = json!({"kind": "hold", "target": "route:app"});
    let (status, answer) = asked(&daemon, "/v1/decisions", &shown, hold).await;
    assert_eq!(status, 403, "{answer}");
    assert!(
        answer.to_string().contains("not the right `hold`"),
        "{answer}"
    );
    let history = ferry.run(&["history"]).await.expect(0).stdout;
    assert!(history.contains(&subject), "{history}");
    assert!(
        !daemon.log().contains(shown.as_str()),
        "a token is in the log"
    );
}

#[tokio::test]
async fn a_token_that_does_not_fit_opens_nothing_and_is_counted() {
    let (provider, key) = Provider::with_key().await;
    let (_staging, _production, _ferry, daemon) = api(&provider, json!({})).await;
    let good = provider.claims();
    let now = blobferry::clock::now().as_second();
    let other_issuer = with(&good, "iss", json!("https://other.example"));
    // No key is fetched for what no issuer of the config has signed.
    let strange = [
        ("no token of an issuer", "a-long-random-word".to_owned()),
        ("another issuer", token("k1", &key, &other_issuer)),
        (
            "alg none",
            format!("{}.{}.", part(&json!({"alg": "none"})), part(&good)),
        ),
    ];
    for (what, token) in &strange {
        assert_eq!(pinged(&daemon, token).await, 401, "{what}");
    }
    assert_eq!(provider.asked(), 0);
    let refused = [
        ("expired", "exp", json!(now - 3600)),
        ("another audience", "aud", json!("other")),
        ("claim", "repository", json!("evil/app")),
        ("sub", "sub", json!("")),
        ("sub", "sub", json!("a\nb")),
    ];
    for (said, name, value) in &refused {
        let token = token("k1", &key, &with(&good, name, value.clone()));
        let (status, answer) = asked(&daemon, "/v1/sync", &token, json!({})).await;
        assert_eq!(status, 401, "{said}: {answer}");
        assert!(answer.to_string().contains(said), "{said}: {answer}");
    }
    let count = (strange.len() + refused.len()) as f64;
    assert_eq!(counted_pings(&daemon, "unauthenticated").await, count);
    assert_eq!(counted_pings(&daemon, "queued").await, 0.0);
    assert_eq!(pinged(&daemon, &token("k1", &key, &good)).await, 202);
}

/// A CI job reaches the daemon by a name.
#[tokio::test]
async fn a_refused_token_learns_why_under_any_name() {
    let (provider, key) = Provider::with_key().await;
    let (_staging, _production, _ferry, daemon) = api(&provider, json!({})).await;
    let good = provider.claims();
    let expired = with(&good, "exp", json!(1_000_000_000));
    for (shown, expected) in [
        (token("k1", &key, &good), 202),
        (token("k1", &key, &expired), 401),
        ("a-long-random-word".to_owned(), 421),
    ] {
        let answer = daemon
            .request("/v1/sync")
            .header("host", "build.example")
            .header("content-type", "application/json")
            .bearer_auth(&shown)
            .body("{}")
            .send()
            .await
            .expect("the daemon answers");
        assert_eq!(answer.status().as_u16(), expected);
    }
    assert_eq!(counted_pings(&daemon, "unauthenticated").await, 1.0);
}

#[tokio::test]
async fn keys_that_cannot_be_read_are_no_refusal_and_health_asks_no_issuer() {
    let provider = Provider::start().await;
    let [old, new] = keys_of_issuer();
    let (_staging, _production, _ferry, daemon) = api(&provider, json!({})).await;
    let claims = provider.claims();
    let shown = token("old", &old, &claims);
    let health = daemon.request("/healthz").bearer_auth(&shown);
    let health = health.send().await.expect("an answer").status().as_u16();
    // POST: no such method, and no question to the issuer before that is known.
    assert_eq!((health, provider.asked()), (405, 0));
    let (status, answer) = asked(&daemon, "/v1/sync", &shown, json!({})).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (503, &json!("unverifiable"))
    );
    assert_eq!(counted_pings(&daemon, "unverifiable").await, 1.0);
    provider.show(&[("old", &old)]);
    assert_eq!(pinged(&daemon, &shown).await, 202);
    provider.show(&[("new", &new)]);
    assert_eq!(pinged(&daemon, &token("new", &new, &claims)).await, 202);
    assert_eq!(pinged(&daemon, &shown).await, 401, "a key that is no more");
}

/// Fetches are limited: between them nothing tells that a new key is wrong.
#[tokio::test]
async fn a_new_key_is_unverifiable_while_the_issuer_does_not_answer() {
    let provider = Provider::start().await;
    let [old, new] = keys_of_issuer();
    let (_staging, _production, _ferry, daemon) = api(&provider, json!({})).await;
    let claims = provider.claims();
    provider.show(&[("old", &old)]);
    assert_eq!(pinged(&daemon, &token("old", &old, &claims)).await, 202);
    provider.hide();
    let rotated = token("new", &new, &claims);
    for _ in 0..4 {
        assert_eq!(pinged(&daemon, &rotated).await, 503);
    }
    assert_eq!(provider.asked(), 3);
    assert_eq!(pinged(&daemon, &token("old", &old, &claims)).await, 202);
}

#[tokio::test]
async fn an_approval_counts_the_subject_with_its_issuer() {
    let (provider, key) = Provider::with_key().await;
    let gates = json!({"approval": {"people": 3}});
    let (staging, production, ferry, daemon) = api(&provider, gates).await;
    let image = Image::oci(1, &[100]);
    staging.push("app", "v1", &image);
    let job = |subject: &str| {
        let claims = with(&provider.claims(), "environment", json!("production"));
        token("k1", &key, &with(&claims, "sub", json!(subject)))
    };
    let person = {
        let claims = with(&provider.claims(), "email", json!("alice@acme.example"));
        token("k1", &key, &with(&claims, "repository", Value::Null))
    };
    let approve = json!({"kind": "approve", "target": "app:v1", "digest": image.digest()});
    // The same subject twice is one; an entry with `user` is that user.
    for (shown, count) in [(job("a"), 1), (job("a"), 1), (person, 2)] {
        let (status, answer) = asked(&daemon, "/v1/decisions", &shown, approve.clone()).await;
        assert_eq!(status, 201, "{answer}");
        let run = ferry.sync(&["--tag", "v1"]).await.expect(4);
        let why = run.job("v1")["reasons"].to_string();
        assert!(why.contains(&format!("approved by {count} of 3")), "{why}");
    }
    let (status, answer) = asked(&daemon, "/v1/decisions", &job("b"), approve).await;
    assert_eq!(status, 201, "{answer}");
    let is_named = |_: &_| production.tagged("app", "v1").as_deref() == Some(image.digest());
    production.until("v1", is_named).await;
    let history = ferry.run(&["history", "--json"]).await.stdout;
    let is_person = |row: &Value| row["actor"] == "user:alice" && row["kind"] == "approve";
    let mut rows = history.lines().map(serde_json::from_str::<Value>);
    let found = rows.any(|row| is_person(&row.expect("a row is JSON")));
    assert!(found, "{history}");
}
