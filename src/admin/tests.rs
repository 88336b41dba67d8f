//! The routes and their guards, without sockets.

mod sockets;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::decision::Rights;
use crate::job::{Cause, Look, Totals, Trouble};
use crate::status::Board;
use crate::status::board::RouteStatus;
use crate::watch::{Event, Handle};

const LOOPBACK: Peer = Peer::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5000));
const LOOPBACK_6: Peer = Peer::Tcp(SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 5000));
const REMOTE: Peer = Peer::Tcp(SocketAddr::new(
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
    5000,
));
const SOCKET: Peer = Peer::Socket {
    uid: 4_000_000_001,
    login_uid: None,
};

fn services() -> (Services, mpsc::Receiver<Event>) {
    let (events, received) = mpsc::channel(64);
    let watch = Handle::new(events, Board::default());
    let services = Services {
        watch,
        ledger: Ledger::in_memory(),
        metrics: prometheus::Registry::new(),
        copies: Arc::new(|_, _| {
            Box::pin(async { Err(super::Refusal::bad_request("nothing is copied here")) })
        }),
        decisions: Arc::new(|request, principal| {
            Box::pin(async move {
                let text = format!("{} by {}", request.kind, principal.name);
                Err(super::Refusal::bad_request(text))
            })
        }),
        tags: Arc::new(|_| Box::pin(async { Ok(Vec::new()) })),
        before_scrape: Arc::new(|| {}),
    };
    (services, received)
}

fn secret(word: &str) -> Settings {
    Settings {
        tokens: Tokens::new(tokens(word)),
        ..Settings::default()
    }
}

fn tokens(word: &str) -> Vec<Token> {
    vec![Token {
        name: "secret".into(),
        proof: Proof::Secret(word.to_owned().into()),
        user: None,
        rights: Rights::look(),
        routes: None,
    }]
}

fn request(method: &str, path: &str, peer: Peer) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "127.0.0.1:9464")
        .extension(peer);
    request.body(Body::empty()).unwrap()
}

fn post(peer: Peer, body: &str) -> Request<Body> {
    let request = Request::post("/v1/sync")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json");
    request
        .extension(peer)
        .body(Body::from(body.to_owned()))
        .unwrap()
}

async fn answer(router: &Router, request: Request<Body>) -> Response<Body> {
    TowerToHyperService::new(router.clone())
        .call(request)
        .await
        .unwrap()
}

async fn read(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// A watcher that queues `queued` looks for each event and answers each with `look`.
fn watcher(
    mut events: mpsc::Receiver<Event>,
    queued: usize,
    look: Look,
) -> JoinHandle<Vec<(Cause, String)>> {
    tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(event) = events.recv().await {
            seen.push((event.cause, event.actor.to_string()));
            let reply = event.reply.unwrap();
            reply.queued.send(queued).unwrap();
            for _ in 0..queued {
                reply.looks.send(look.clone().into()).unwrap();
            }
        }
        seen
    })
}

fn found() -> Look {
    Look {
        found: true,
        ..Look::default()
    }
}

#[tokio::test]
async fn access_follows_the_table() {
    // No secret, a secret; then `secret: …` in a row sends that bearer secret.
    let open = Settings::default();
    let closed = secret("word");
    let rows: &[(&Settings, &str, Peer, &str, u16)] = &[
        // Metrics and health: anyone, by any name from beyond loopback.
        (&open, "GET /metrics", REMOTE, "", 200),
        (
            &closed,
            "GET /metrics",
            REMOTE,
            "host: build.example:9464",
            200,
        ),
        (
            &closed,
            "GET /healthz",
            REMOTE,
            "x-forwarded-for: 1.2.3.4",
            200,
        ),
        (&closed, "HEAD /healthz", LOOPBACK, "", 200),
        (&closed, "GET /metrics", LOOPBACK, "secret: wrong", 200),
        (
            &open,
            "GET /metrics",
            LOOPBACK,
            "host: rebound.example",
            421,
        ),
        (&open, "GET /readyz", REMOTE, "", 503),
        // The page: anyone, by any name from beyond loopback, by links of other sites; scripts and
        // frames of those get nothing.
        (&closed, "GET /", LOOPBACK, "", 200),
        (&closed, "GET /", REMOTE, "host: build.example:9464", 200),
        (&closed, "GET /page/page.js", REMOTE, "", 200),
        (&closed, "GET /page/none.js", REMOTE, "", 404),
        (&open, "GET /", LOOPBACK, "host: rebound.example", 421),
        (&open, "POST /", LOOPBACK, "", 405),
        (
            &closed,
            "GET /",
            LOOPBACK,
            "sec-fetch-site: cross-site|sec-fetch-mode: navigate|sec-fetch-dest: document",
            200,
        ),
        (
            &closed,
            "GET /",
            LOOPBACK,
            "sec-fetch-site: cross-site|sec-fetch-mode: navigate|sec-fetch-dest: iframe",
            403,
        ),
        (
            &closed,
            "GET /page/page.js",
            LOOPBACK,
            "sec-fetch-site: cross-site|sec-fetch-mode: no-cors|sec-fetch-dest: script",
            403,
        ),
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "sec-fetch-site: cross-site|sec-fetch-mode: navigate|sec-fetch-dest: document",
            403,
        ),
        // Without a secret: loopback and the socket.
        (&open, "GET /v1/status", LOOPBACK, "", 200),
        (&open, "GET /v1/status", LOOPBACK_6, "host: [::1]:9464", 200),
        (
            &open,
            "GET /v1/status",
            Peer::Tcp("[::ffff:127.0.0.1]:5000".parse().unwrap()),
            "",
            200,
        ),
        (
            &open,
            "GET /v1/promotions",
            LOOPBACK,
            "host: LOCALHOST",
            200,
        ),
        (&open, "POST /v1/sync", LOOPBACK, "", 202),
        (&open, "GET /v1/status", SOCKET, "", 200),
        (&open, "POST /v1/sync", SOCKET, "", 202),
        (&open, "GET /v1/status", REMOTE, "", 403),
        (&open, "GET /v1/status", REMOTE, "secret: any", 403),
        (&open, "POST /v1/sync", REMOTE, "", 403),
        (&open, "GET /nowhere", REMOTE, "", 403),
        (&open, "GET /v1", LOOPBACK, "", 404),
        (&open, "POST /v1/decide", LOOPBACK, "", 403),
        (&open, "POST /v1/decide", SOCKET, "", 404),
        // Copies: the socket alone, whatever is shown.
        (&open, "POST /v1/copies", LOOPBACK, "", 403),
        (&closed, "POST /v1/copies", REMOTE, "secret: word", 403),
        (&open, "POST /v1/copies", SOCKET, "", 400),
        // With a secret: it, or the socket.
        (&closed, "GET /v1/status", LOOPBACK, "", 401),
        (&closed, "GET /v1/status", REMOTE, "", 401),
        (&closed, "POST /v1/sync", LOOPBACK, "", 401),
        (&closed, "GET /v1/status", REMOTE, "secret: word", 200),
        (
            &closed,
            "GET /v1/status",
            REMOTE,
            "authorization: bearer word",
            200,
        ),
        (
            &closed,
            "GET /v1/status",
            REMOTE,
            "authorization: Basic word",
            401,
        ),
        (
            &closed,
            "GET /v1/status",
            REMOTE,
            "authorization: word",
            401,
        ),
        (&closed, "GET /v1/status", REMOTE, "secret: wor", 401),
        (&closed, "GET /v1/status", REMOTE, "secret: wordy", 401),
        (&closed, "GET /v1/status", REMOTE, "secret: ", 401),
        (
            &closed,
            "GET /v1/status",
            REMOTE,
            "secret: word|secret: other",
            401,
        ),
        (&closed, "POST /v1/sync", REMOTE, "secret: word", 202),
        (&closed, "POST /v1/decide", REMOTE, "secret: word", 404),
        (&closed, "GET /v1/status", SOCKET, "", 200),
        // Names: an address or localhost, any with the secret.
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "host: rebound.example:9464",
            421,
        ),
        (
            &open,
            "POST /v1/sync",
            LOOPBACK,
            "host: localhost.example",
            421,
        ),
        (
            &open,
            "POST /v1/sync",
            LOOPBACK,
            "host: 127.0.0.1.example",
            421,
        ),
        (&open, "GET /v1/status", LOOPBACK, "host:", 400),
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "host: user@127.0.0.1",
            400,
        ),
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "host: 127.0.0.1|host: rebound.example",
            400,
        ),
        (
            &open,
            "GET http://rebound.example/v1/status",
            LOOPBACK,
            "",
            421,
        ),
        (
            &closed,
            "GET /v1/status",
            LOOPBACK,
            "host: build.example|secret: word",
            200,
        ),
        (
            &closed,
            "GET /v1/status",
            LOOPBACK,
            "host: build.example|secret: wrong",
            421,
        ),
        (&open, "GET /v1/status", SOCKET, "host: anything", 200),
        // Pages in browsers.
        (
            &open,
            "GET /metrics",
            LOOPBACK,
            "origin: http://evil.example",
            403,
        ),
        (
            &open,
            "GET /healthz",
            REMOTE,
            "sec-fetch-site: cross-site",
            403,
        ),
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "sec-fetch-site: same-site",
            403,
        ),
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "sec-fetch-site: none",
            200,
        ),
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "sec-fetch-site: same-origin",
            200,
        ),
        (&open, "POST /v1/sync", LOOPBACK, "origin: null", 403),
        (
            &open,
            "POST /v1/sync",
            LOOPBACK,
            "origin: http://127.0.0.1:80",
            403,
        ),
        (
            &open,
            "POST /v1/sync",
            LOOPBACK,
            "origin: http://127.0.0.1:9464",
            202,
        ),
        (
            &open,
            "POST /v1/sync",
            LOOPBACK,
            "origin: http://127.0.0.1:9464|origin: http://evil.example",
            403,
        ),
        (
            &open,
            "OPTIONS /v1/sync",
            LOOPBACK,
            "origin: http://evil.example",
            403,
        ),
        (
            &open,
            "GET /v1/status",
            SOCKET,
            "origin: http://evil.example",
            403,
        ),
        (
            &closed,
            "POST /v1/sync",
            REMOTE,
            "secret: word|origin: http://evil.example",
            403,
        ),
        (
            &closed,
            "POST /v1/sync",
            REMOTE,
            "host: b.example|secret: word|origin: https://b.example",
            202,
        ),
        // Behind a proxy every client is a loopback peer.
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "x-forwarded-for: 1.2.3.4",
            403,
        ),
        (
            &open,
            "GET /v1/status",
            LOOPBACK,
            "x-forwarded-proto: https",
            403,
        ),
        (
            &open,
            "POST /v1/sync",
            LOOPBACK,
            "forwarded: for=1.2.3.4",
            403,
        ),
        (&open, "POST /v1/sync", LOOPBACK, "x-real-ip: 1.2.3.4", 403),
        (&open, "POST /v1/sync", LOOPBACK, "via: 1.1 proxy", 403),
        (&open, "POST /v1/sync", SOCKET, "via: 1.1 proxy", 403),
        (&closed, "POST /v1/sync", LOOPBACK, "via: 1.1 proxy", 401),
        (
            &closed,
            "POST /v1/sync",
            LOOPBACK,
            "via: 1.1 proxy|secret: word",
            202,
        ),
        // Methods that a path does not have.
        (&closed, "POST /metrics", REMOTE, "", 405),
        (&closed, "GET /v1/sync", LOOPBACK, "", 405),
        (&open, "DELETE /v1/status", LOOPBACK, "", 405),
    ];
    for (settings, line, peer, headers, expected) in rows {
        let (services, events) = services();
        let watcher = watcher(events, 1, found());
        let router = router(services, settings);
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = request(method, path, *peer);
        for (at, (name, value)) in headers
            .split('|')
            .filter_map(|header| header.split_once(':'))
            .enumerate()
        {
            match (name, value.trim()) {
                ("host", "") => drop(request.headers_mut().remove(header::HOST)),
                ("host", host) if at == 0 => drop(
                    request
                        .headers_mut()
                        .insert(header::HOST, host.parse().unwrap()),
                ),
                ("secret", word) => {
                    let bearer = format!("Bearer {word}").parse().unwrap();
                    request.headers_mut().append(header::AUTHORIZATION, bearer);
                }
                (name, value) => {
                    let name: axum::http::HeaderName = name.parse().unwrap();
                    request.headers_mut().append(name, value.parse().unwrap());
                }
            }
        }
        let response = answer(&router, request).await;
        let row = format!(
            "{line} {peer:?} {headers:?} secret {}",
            settings.tokens.is_set()
        );
        assert_eq!(response.status().as_u16(), *expected, "{row}");
        assert!(
            response
                .headers()
                .keys()
                .all(|name| !name.as_str().starts_with("access-control")),
            "{row}"
        );
        assert_eq!(
            response.headers()[header::CACHE_CONTROL],
            "no-store",
            "{row}"
        );
        if response.status().is_client_error() {
            let (_, body) = read(response).await;
            assert!(
                body["error"]["code"].is_string() && body["error"]["text"].is_string(),
                "{row}: {body}"
            );
        }
        drop(router);
        let asked = !watcher.await.unwrap().is_empty();
        assert_eq!(asked, *expected == 202, "{row}");
    }
}

#[tokio::test]
async fn a_request_from_nowhere_is_not_served() {
    let router = router(services().0, &Settings::default());
    let request = Request::get("/v1/status")
        .header(header::HOST, "127.0.0.1")
        .body(Body::empty())
        .unwrap();
    assert_eq!(answer(&router, request).await.status(), 500);
}

#[tokio::test]
async fn refusals_say_the_way_out() {
    let router = router(services().0, &secret("word"));
    let response = answer(&router, request("PUT", "/v1/sync", LOOPBACK)).await;
    assert_eq!(response.headers()[header::ALLOW], "POST");
    assert_eq!(
        read(response).await.1["error"]["code"],
        "method_not_allowed"
    );
    let response = answer(&router, request("GET", "/v1/status", REMOTE)).await;
    assert_eq!(
        response.headers()[header::WWW_AUTHENTICATE],
        "Bearer realm=\"blobferry\""
    );
    let (_, body) = read(answer(&router, request("GET", "/nowhere", SOCKET)).await).await;
    assert!(
        body["error"]["text"]
            .as_str()
            .unwrap()
            .contains("POST /v1/sync"),
        "{body}"
    );
}

#[tokio::test]
async fn a_new_secret_holds_from_the_next_request_on() {
    let settings = secret("old");
    let router = router(services().0, &settings);
    let status = async |word: &str| {
        let mut request = request("GET", "/v1/status", REMOTE);
        request.headers_mut().insert(
            header::AUTHORIZATION,
            format!("Bearer {word}").parse().unwrap(),
        );
        answer(&router, request).await.status().as_u16()
    };
    assert_eq!((status("old").await, status("new").await), (200, 401));
    assert!(!settings.tokens.replace(tokens("old")));
    assert!(settings.tokens.replace(tokens("new")));
    assert_eq!((status("old").await, status("new").await), (401, 200));
    assert!(settings.tokens.replace(Vec::new()));
    assert_eq!(
        status("new").await,
        403,
        "beyond loopback nothing opens without a secret"
    );
}

#[tokio::test]
async fn an_event_says_who_and_why() {
    for (peer, settings, cause, actor) in [
        (
            LOOPBACK,
            Settings::default(),
            Cause::Ping,
            "address:127.0.0.1",
        ),
        (LOOPBACK_6, Settings::default(), Cause::Ping, "address:::1"),
        (REMOTE, secret("word"), Cause::Ping, "secret"),
        (SOCKET, secret("word"), Cause::Cli, "uid:4000000001"),
    ] {
        let (services, events) = services();
        let watcher = watcher(events, 1, found());
        let router = router(services, &settings);
        let mut request = request("POST", "/v1/sync", peer);
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, "Bearer word".parse().unwrap());
        assert_eq!(answer(&router, request).await.status(), 202);
        drop(router);
        assert_eq!(watcher.await.unwrap(), [(cause, actor.to_owned())]);
    }
}

#[tokio::test]
async fn a_body_narrows_the_look() {
    let (services, mut events) = services();
    let router = router(services, &Settings::default());
    let digest = format!("sha256:{}", "a".repeat(64));
    let body = json!({"route": "demo", "repository": "staging-app", "tag": "v7", "digest": digest, "dry_run": true, "all": true});
    let asking = tokio::spawn(async move {
        answer(&router, post(SOCKET, &body.to_string()))
            .await
            .status()
    });
    let event = events.recv().await.unwrap();
    assert_eq!(event.scope.routes, ["demo"]);
    assert_eq!(event.scope.repository.unwrap().as_str(), "staging-app");
    assert_eq!(event.scope.tags[0].as_str(), "v7");
    assert_eq!(event.scope.digest.unwrap().to_string(), digest);
    assert!(event.options.dry_run && event.options.all);
    event.reply.unwrap().queued.send(1).unwrap();
    assert_eq!(asking.await.unwrap(), 202);
}

#[tokio::test]
async fn bodies_that_are_not_right_ask_for_nothing() {
    let json = Some("application/json");
    let large = format!("{{\"route\":\"{}\"}}", "x".repeat(70_000));
    for (content_type, body, expected) in [
        (json, "{}", 202),
        (json, "{\"route\":[\"a\",\"b\"],\"tag\":null}", 202),
        (json, "{\"route\":null}", 202),
        (Some("Application/JSON; charset=utf-8"), "{}", 202),
        (None, "", 202),
        (Some("application/x-www-form-urlencoded"), "", 202),
        (None, "{}", 415),
        (Some("text/plain"), "{}", 415),
        (Some("application/jsonp"), "{}", 415),
        (json, "{\"rout\":\"a\"}", 400),
        (json, "{\"tag\":\"../x\"}", 400),
        (json, "{\"repository\":\"UPPER\"}", 400),
        (json, "{\"route\":7}", 400),
        (json, "{\"wait\":\"yes\"}", 400),
        (json, "{\"digest\":\"sha256:zz\",\"tag\":\"v1\"}", 400),
        (
            json,
            &format!("{{\"digest\":\"sha256:{}\"}}", "a".repeat(64)),
            400,
        ),
        (json, "[]", 400),
        (json, "nonsense", 400),
        (json, &large, 413),
    ] {
        let (services, events) = services();
        let watcher = watcher(events, 1, found());
        let router = router(services, &Settings::default());
        let mut request = post(LOOPBACK, body);
        request.headers_mut().remove(header::CONTENT_TYPE);
        if let Some(content_type) = content_type {
            request
                .headers_mut()
                .insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        let response = answer(&router, request).await;
        let at = &body[..body.len().min(60)];
        assert_eq!(
            response.status().as_u16(),
            expected,
            "{content_type:?} {at}"
        );
        drop((router, response));
        assert_eq!(
            watcher.await.unwrap().len(),
            usize::from(expected == 202),
            "{content_type:?} {at}"
        );
    }
}

#[tokio::test]
async fn a_body_without_a_known_length_is_bounded_too() {
    let router = router(services().0, &Settings::default());
    let chunks = futures::stream::repeat_with(|| {
        Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 4096]))
    });
    let mut request = post(LOOPBACK, "");
    *request.body_mut() = Body::from_stream(chunks);
    assert_eq!(answer(&router, request).await.status(), 413);
}

#[tokio::test]
async fn a_waited_for_pass_answers_with_its_report() {
    let totals = |change: fn(&mut Totals)| {
        let mut look = found();
        change(&mut look.totals);
        look
    };
    let trouble = |class: crate::job::TroubleClass| Look {
        trouble: vec![Trouble {
            class,
            text: "no".into(),
        }],
        ..found()
    };
    for (look, exit_code, status) in [
        (totals(|totals| totals.promoted = 1), 0, 200),
        (totals(|totals| totals.conflict = 1), 4, 409),
        (totals(|totals| totals.drift = 1), 4, 409),
        (totals(|totals| totals.refused = 1), 4, 409),
        (Look::default(), 5, 404),
        (totals(|totals| totals.failed = 1), 1, 502),
        (trouble(crate::job::TroubleClass::Auth), 3, 502),
        (totals(|totals| totals.interrupted = 1), 130, 503),
    ] {
        let (services, events) = services();
        watcher(events, 2, look);
        let router = router(services, &Settings::default());
        let (answered, body) = read(answer(&router, post(LOOPBACK, "{\"wait\":true}")).await).await;
        assert_eq!(
            (answered.as_u16(), body["exit_code"].as_u64()),
            (status, Some(exit_code)),
            "{body}"
        );
        assert!(
            body["run_id"].is_string() && body["totals"]["promoted"].is_u64(),
            "{body}"
        );
    }
}

#[tokio::test]
async fn nothing_matched_is_404_waited_for_or_not() {
    let (services, events) = services();
    watcher(events, 0, found());
    let router = router(services, &Settings::default());
    let (status, body) = read(answer(&router, post(LOOPBACK, "{}")).await).await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (404, &json!("nothing_matched"))
    );
    let asked = r#"{"repository":"team/ap"}"#;
    let (_, body) = read(answer(&router, post(LOOPBACK, asked)).await).await;
    let text = body["error"]["text"].as_str().unwrap();
    assert!(text.contains("source repository team/ap;"), "{text}");
    let (status, body) = read(answer(&router, post(LOOPBACK, "{\"wait\":true}")).await).await;
    assert_eq!((status.as_u16(), &body["exit_code"]), (404, &json!(5)));
}

#[tokio::test]
async fn a_daemon_that_drains_or_is_full_says_so() {
    let (services, mut events) = services();
    let router = router(services, &Settings::default());
    let waiting = {
        let router = router.clone();
        tokio::spawn(
            async move { read(answer(&router, post(LOOPBACK, "{\"wait\":true}")).await).await },
        )
    };
    drop(events.recv().await.unwrap());
    let (status, body) = waiting.await.unwrap();
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (503, &json!("draining")),
        "dropped while it waited"
    );
    events.close();
    let (status, body) = read(answer(&router, post(LOOPBACK, "")).await).await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (503, &json!("draining")),
        "not even queued"
    );

    let (events, _received) = mpsc::channel(1);
    let full = Services {
        watch: Handle::new(events.clone(), Board::default()),
        ..self::services().0
    };
    let router = super::router(full.clone(), &Settings::default());
    tokio::spawn(async move {
        full.watch
            .ask(
                Default::default(),
                Cause::Poll,
                crate::job::Actor::daemon(),
                Default::default(),
            )
            .await
    });
    while events.capacity() > 0 {
        tokio::task::yield_now().await;
    }
    let (status, body) = read(answer(&router, post(LOOPBACK, "")).await).await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (503, &json!("busy"))
    );
}

#[tokio::test]
async fn a_run_is_followed_by_its_id() {
    let (services, mut events) = services();
    let watch = services.watch.clone();
    let router = router(services, &Settings::default());
    let asking = {
        let router = router.clone();
        tokio::spawn(async move { answer(&router, post(LOOPBACK, "")).await })
    };
    let reply = events.recv().await.unwrap().reply.unwrap();
    reply.queued.send(3).unwrap();
    let response = asking.await.unwrap();
    let location = response.headers()[header::LOCATION]
        .to_str()
        .unwrap()
        .to_owned();
    let (_, queued) = read(response).await;
    let id = queued["run_id"].as_str().unwrap();
    assert_eq!(
        (queued["queued"].as_u64(), &*location),
        (Some(3), &*format!("/v1/runs/{id}"))
    );

    let (status, body) = read(answer(&router, request("GET", &location, LOOPBACK)).await).await;
    assert_eq!(
        (status.as_u16(), body),
        (202, json!({"run_id": id, "queued": 3, "done": false}))
    );

    for _ in 0..3 {
        reply.looks.send(found().into()).unwrap();
    }
    while watch.run(id).unwrap().report().is_none() {
        tokio::task::yield_now().await;
    }
    let (status, body) = read(answer(&router, request("GET", &location, LOOPBACK)).await).await;
    assert_eq!(
        (status.as_u16(), &body["run_id"], &body["exit_code"]),
        (200, &json!(id), &json!(0))
    );
    let (status, body) =
        read(answer(&router, request("GET", "/v1/runs/unknown", LOOPBACK)).await).await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (404, &json!("unknown_run"))
    );
}

#[tokio::test]
async fn waiting_has_a_bound_of_its_own_for_each_door() {
    let (services, mut events) = services();
    let router = router(services, &Settings::default());
    let mut held = Vec::new();
    for _ in 0..WAITING {
        let router = router.clone();
        let waiting =
            tokio::spawn(async move { answer(&router, post(LOOPBACK, "{\"wait\":true}")).await });
        held.push((events.recv().await.unwrap(), waiting));
    }
    let (status, body) = read(answer(&router, post(LOOPBACK, "{\"wait\":true}")).await).await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (503, &json!("busy"))
    );
    assert_eq!(
        answer(&router, request("GET", "/healthz", LOOPBACK))
            .await
            .status(),
        200
    );
    let socket =
        tokio::spawn(async move { answer(&router, post(SOCKET, "{\"wait\":true}")).await });
    assert_eq!(
        events.recv().await.unwrap().cause,
        Cause::Cli,
        "the socket's places are its own"
    );
    drop(held);
    assert_eq!(socket.await.unwrap().status(), 503);
}

#[tokio::test]
async fn ready_is_what_the_board_says() {
    let (services, _events) = services();
    let board = services.watch.board().clone();
    let router = router(services, &Settings::default());
    let ready = async || read(answer(&router, request("GET", "/readyz", REMOTE)).await).await;
    let route = |name: &str| RouteStatus {
        name: name.into(),
        ..RouteStatus::default()
    };
    board.update(|status| status.routes = vec![route("a"), route("b")]);
    board.update_route("a", |route| route.last_look = Some(crate::clock::now()));
    let (status, body) = ready().await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (503, &json!("starting"))
    );
    assert_eq!(
        body["error"]["text"],
        "1 of 2 routes have not been looked at yet: b"
    );
    board.update(|status| status.ready = true);
    assert_eq!(ready().await.0, 200);
    board.update(|status| status.draining = true);
    let (status, body) = ready().await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (503, &json!("draining"))
    );
    assert_eq!(
        answer(&router, request("GET", "/healthz", REMOTE))
            .await
            .status(),
        200,
        "alive while it drains"
    );
}

#[tokio::test]
async fn a_scrape_refreshes_the_gauges_first() {
    let (mut services, _events) = services();
    let gauge = prometheus::IntGauge::new("blobferry_queue_depth", "Looks that wait.").unwrap();
    services.metrics.register(Box::new(gauge.clone())).unwrap();
    services.before_scrape = Arc::new(move || gauge.inc());
    let router = router(services, &Settings::default());
    let response = answer(&router, request("GET", "/metrics", REMOTE)).await;
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("\nblobferry_queue_depth 1\n"));
}

#[tokio::test]
async fn a_panic_in_a_route_is_an_answer() {
    let (mut services, _events) = services();
    services.before_scrape = Arc::new(|| panic!("a bug"));
    let router = router(services, &Settings::default());
    let (status, body) = read(answer(&router, request("GET", "/metrics", REMOTE)).await).await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (500, &json!("internal"))
    );
    assert_eq!(
        answer(&router, request("GET", "/healthz", REMOTE))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn pages_of_the_ledger_have_bounds() {
    let router = router(services().0, &Settings::default());
    for (query, expected) in [
        ("", 200),
        ("?after=7&limit=1000&repository=a&tag=b&newest=true", 200),
        ("?limit=0", 400),
        ("?limit=1001", 400),
        ("?after=-1", 400),
        ("?before=1", 400),
        ("?newest=maybe", 400),
    ] {
        let path = format!("/v1/promotions{query}");
        let (status, body) = read(answer(&router, request("GET", &path, LOOPBACK)).await).await;
        assert_eq!(status.as_u16(), expected, "{query}: {body}");
        assert_eq!(
            body["promotions"].is_array(),
            expected == 200,
            "{query}: {body}"
        );
    }
}
