//! Receivers that take tokens of an identity provider.

mod api;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};

use crate::support::token::{fixed_width, part};
use crate::support::*;

const AUDIENCE: &str = "blobferry";

/// An identity provider on loopback.
struct Provider {
    address: String,
    state: Arc<Shown>,
}

#[derive(Default)]
struct Shown {
    /// The document with the keys; none: it does not answer.
    keys: Mutex<Option<Value>>,
    asked: AtomicUsize,
}

fn keys_of_issuer() -> [KeyPair; 2] {
    [(); 2].map(|()| KeyPair::generate().expect("a key"))
}

impl Provider {
    /// One that shows a key, `k1`.
    async fn with_key() -> (Provider, KeyPair) {
        let provider = Provider::start().await;
        let key = KeyPair::generate().expect("a key");
        provider.show(&[("k1", &key)]);
        (provider, key)
    }

    async fn start() -> Provider {
        let state = Arc::new(Shown::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let issuer = format!("http://{address}");
        let found = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")});
        let router = axum::Router::new()
            .route(
                "/.well-known/openid-configuration",
                axum::routing::get(async move || axum::Json(found)),
            )
            .route("/keys", axum::routing::get(keys))
            .with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Provider { address, state }
    }

    fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    fn show(&self, keys: &[(&str, &KeyPair)]) {
        let keys: Vec<Value> = keys.iter().map(|(id, key)| jwk(id, key)).collect();
        *self.state.keys.lock().expect("no panic") = Some(json!({"keys": keys}));
    }

    /// The keys are not to be had from here on.
    fn hide(&self) {
        *self.state.keys.lock().expect("no panic") = None;
    }

    fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }

    fn claims(&self) -> Value {
        let now = blobferry::clock::now().as_second();
        json!({"iss": self.issuer(), "aud": AUDIENCE, "sub": "repo:acme/app", "exp": now + 300,
            "nbf": now - 5, "repository": "acme/app"})
    }
}

async fn keys(State(state): State<Arc<Shown>>) -> Response {
    state.asked.fetch_add(1, Ordering::SeqCst);
    match &*state.keys.lock().expect("no panic") {
        Some(keys) => axum::Json(keys.clone()).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn jwk(id: &str, key: &KeyPair) -> Value {
    let point = key.der_bytes();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": id,
        "x": number(&point[1..33]), "y": number(&point[33..65])})
}

fn token(id: &str, key: &KeyPair, claims: &Value) -> String {
    token_under(
        &json!({"typ": "JWT", "alg": "ES256", "kid": id}),
        key,
        claims,
    )
}

fn token_under(header: &Value, key: &KeyPair, claims: &Value) -> String {
    let text = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(text.as_bytes()).expect("signing");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(fixed_width(&signature)))
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

/// A daemon with a receiver that takes tokens of `provider`.
async fn daemon(provider: &Provider, staging: &Scripted, production: &Scripted) -> (Ferry, Daemon) {
    let oidc = json!({"issuer": provider.issuer(), "audience": AUDIENCE,
        "claims": {"repository": "acme/*"}});
    let config = Config::pair(&staging.url(), &production.url())
        .receiver("ci", json!({"kind": "distribution", "oidc": oidc}));
    let ferry = Ferry::new(&config);
    let daemon = ferry.start_ready().await;
    (ferry, daemon)
}

async fn sent(daemon: &Daemon, token: &str) -> u16 {
    let body = json!({"events": [{"action": "push", "target": {"repository": "app", "tag": "v1",
        "mediaType": "application/vnd.oci.image.manifest.v1+json"}}]});
    let request = daemon
        .request("/v1/events/ci")
        .bearer_auth(token)
        .body(body.to_string());
    let answer = request.send().await.expect("an answer");
    answer.status().as_u16()
}

async fn counted(daemon: &Daemon, result: &str) -> f64 {
    counted_from(daemon, "webhook", result).await
}

/// How many requests of a source have come to a result.
async fn counted_from(daemon: &Daemon, source: &str, result: &str) -> f64 {
    let labels = [("source", source), ("result", result)];
    let count = daemon.metric("blobferry_events_total", &labels).await;
    count.unwrap_or_default()
}

#[tokio::test]
async fn a_token_is_taken_only_as_the_config_says() {
    let provider = Provider::start().await;
    let (staging, production) = (Scripted::start(), Scripted::start());
    let [key, stranger] = keys_of_issuer();
    provider.show(&[("k1", &key)]);
    let (_ferry, daemon) = daemon(&provider, &staging, &production).await;
    let good = provider.claims();
    let now = blobferry::clock::now().as_second();
    let none = format!("{}.{}.", part(&json!({"alg": "none"})), part(&good));
    let hmac = {
        // The public key as a shared secret.
        let text = format!(
            "{}.{}",
            part(&json!({"alg": "HS256", "kid": "k1"})),
            part(&good)
        );
        let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key.der_bytes());
        let tag = aws_lc_rs::hmac::sign(&secret, text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let signed = token("k1", &key, &good);
    let (head, _) = signed.rsplit_once('.').expect("three parts");
    let critical = json!({"alg": "ES256", "kid": "k1", "crit": ["x"], "x": 1});
    let refused = [
        (
            "an unknown critical header",
            token_under(&critical, &key, &good),
        ),
        ("not a token", "a-long-random-word".to_owned()),
        ("alg none", none),
        ("a public key as a secret", hmac),
        ("no signature", format!("{head}.")),
        ("a key of somebody else", token("k1", &stranger, &good)),
        ("an unknown key", token("k9", &key, &good)),
        (
            "expired",
            token("k1", &key, &with(&good, "exp", json!(now - 3600))),
        ),
        (
            "without an end",
            token("k1", &key, &with(&good, "exp", Value::Null)),
        ),
        (
            "not valid yet",
            token("k1", &key, &with(&good, "nbf", json!(now + 3600))),
        ),
        (
            "another audience",
            token("k1", &key, &with(&good, "aud", json!(["other"]))),
        ),
        (
            "another issuer",
            token(
                "k1",
                &key,
                &with(&good, "iss", json!("https://other.example")),
            ),
        ),
        (
            "another repository",
            token("k1", &key, &with(&good, "repository", json!("evil/app"))),
        ),
        (
            "no repository",
            token("k1", &key, &with(&good, "repository", Value::Null)),
        ),
    ];
    for (what, token) in &refused {
        assert_eq!(sent(&daemon, token).await, 401, "{what}");
    }
    assert_eq!(
        counted(&daemon, "unauthenticated").await,
        refused.len() as f64
    );
    assert_eq!(counted(&daemon, "queued").await, 0.0);
    let many = with(&good, "aud", json!(["other", AUDIENCE]));
    for claims in [&good, &many] {
        assert_eq!(sent(&daemon, &token("k1", &key, claims)).await, 202);
    }
    eventually("both lead to looks", async || {
        (counted(&daemon, "queued").await == 2.0).then_some(())
    })
    .await;
    assert!(
        !daemon.log().contains(signed.as_str()),
        "a token is in the log"
    );
}

#[tokio::test]
async fn keys_rotate_and_unknown_ones_are_not_fetched_for_ever() {
    let provider = Provider::start().await;
    let (staging, production) = (Scripted::start(), Scripted::start());
    let [old, new] = keys_of_issuer();
    let (_ferry, daemon) = daemon(&provider, &staging, &production).await;
    let claims = provider.claims();
    // The keys cannot be read: the sender may try again.
    assert_eq!(sent(&daemon, &token("old", &old, &claims)).await, 503);
    assert_eq!(counted(&daemon, "unverifiable").await, 1.0);
    provider.show(&[("old", &old)]);
    assert_eq!(sent(&daemon, &token("old", &old, &claims)).await, 202);
    assert_eq!(sent(&daemon, &token("old", &old, &claims)).await, 202);
    assert_eq!(provider.asked(), 2, "keys are kept");
    provider.show(&[("old", &old), ("new", &new)]);
    assert_eq!(sent(&daemon, &token("new", &new, &claims)).await, 202);
    for number in 0..50 {
        let made_up = token(&format!("k{number}"), &new, &claims);
        assert_eq!(sent(&daemon, &made_up).await, 401);
    }
    assert!(provider.asked() <= 5, "{} fetches", provider.asked());
    assert_eq!(sent(&daemon, &token("new", &new, &claims)).await, 202);
}
