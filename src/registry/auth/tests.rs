//! The whole of authorization against small servers on this machine.

mod direct;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http::header::WWW_AUTHENTICATE;

use super::*;
use crate::clock;
use crate::oci::RepositoryName;

/// What a server was asked.
#[derive(Clone, Debug)]
struct Recorded {
    method: Method,
    query: Vec<(String, String)>,
    form: Vec<(String, String)>,
    path: String,
    authorization: Option<String>,
}

impl Recorded {
    fn scopes(&self) -> Vec<&str> {
        let pairs = self.query.iter().chain(&self.form);
        pairs
            .filter(|(name, _)| name == "scope")
            .map(|(_, value)| value.as_str())
            .collect()
    }

    fn pair(&self, name: &str) -> Option<&str> {
        let mut pairs = self.query.iter().chain(&self.form);
        pairs
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A server that answers by a function and keeps what it was asked.
struct Server {
    url: Url,
    seen: Arc<Mutex<Vec<Recorded>>>,
}

impl Server {
    async fn start(
        answer: impl Fn(usize, &Recorded) -> Response + Clone + Send + Sync + 'static,
    ) -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let app = axum::Router::new().fallback(move |request: Request| async move {
            let one = read(request).await;
            let count = {
                let mut kept = kept.lock().unwrap();
                kept.push(one.clone());
                kept.len()
            };
            tokio::task::yield_now().await;
            answer(count, &one)
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Server { url, seen }
    }

    /// A token server that gives `token-<number>`.
    async fn of_tokens(life: u64) -> Server {
        Server::start(move |count, _| {
            json(
                200,
                &format!(r#"{{"token":"token-{count}","expires_in":{life}}}"#),
            )
        })
        .await
    }

    fn seen(&self) -> Vec<Recorded> {
        self.seen.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

async fn read(request: Request) -> Recorded {
    let pairs = |text: &[u8]| {
        url::form_urlencoded::parse(text)
            .into_owned()
            .collect::<Vec<_>>()
    };
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let authorization = parts
        .headers
        .get(AUTHORIZATION)
        .map(|value| value.to_str().unwrap().to_owned());
    let query = pairs(parts.uri.query().unwrap_or_default().as_bytes());
    Recorded {
        method: parts.method,
        query,
        form: pairs(&body),
        path: parts.uri.path().to_owned(),
        authorization,
    }
}

fn json(status: u16, body: &str) -> Response {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap()
}

fn bearer_challenge(realm: &Url) -> HeaderMap {
    challenge(&format!(
        r#"Bearer realm="{realm}token?fixed=1",service="registry""#
    ))
}

fn challenge(line: &str) -> HeaderMap {
    HeaderMap::from_iter([(WWW_AUTHENTICATE, line.parse().unwrap())])
}

fn client() -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    builder.tls_certs_only([]).build().unwrap()
}

fn settings(origin: &str, credentials: Credentials) -> Settings {
    Settings::new("staging", Url::parse(origin).unwrap(), credentials)
}

fn authorizer(credentials: Credentials) -> Authorizer {
    Authorizer::new(settings("http://127.0.0.1:9", credentials), client())
}

fn joe() -> Credentials {
    Credentials::Basic {
        username: "joe".to_owned(),
        password: "hush".into(),
    }
}

fn basic_joe() -> String {
    format!("Basic {}", STANDARD.encode("joe:hush"))
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn pull(text: &str) -> Scopes {
    Scopes::pull(&name(text))
}

fn text(header: Option<HeaderValue>) -> String {
    header.map_or("nothing".to_owned(), |header| {
        header.to_str().unwrap().to_owned()
    })
}

async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn after_one_challenge_every_token_is_fetched_ahead() {
    let server = Server::of_tokens(300).await;
    let authorizer = authorizer(joe());
    let mount = Scopes::mount(&name("prod/app"), &name("staging/app"));
    assert!(
        authorizer.header(&mount).await.unwrap().is_none(),
        "nothing is known yet"
    );
    let header = authorizer
        .answer(&mount, &bearer_challenge(&server.url), None)
        .await
        .unwrap();
    assert!(header.as_ref().unwrap().is_sensitive());
    assert_eq!(text(header), "Bearer token-1");
    assert_eq!(
        text(authorizer.header(&mount).await.unwrap()),
        "Bearer token-1"
    );
    assert_eq!(
        text(authorizer.header(&pull("other")).await.unwrap()),
        "Bearer token-2"
    );
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(
        seen[0].scopes(),
        [
            "repository:prod/app:pull,push",
            "repository:staging/app:pull"
        ]
    );
    assert_eq!(
        (
            seen[0].pair("service"),
            seen[0].pair("fixed"),
            seen[0].method.as_str()
        ),
        (Some("registry"), Some("1"), "GET")
    );
    assert_eq!(seen[0].authorization, Some(basic_joe()));
    assert_eq!(seen[1].scopes(), ["repository:other:pull"]);
    assert_eq!(authorizer.user().as_deref(), Some("joe"));
    assert!(authorizer.expiry().unwrap() > clock::now());
    assert!(!format!("{authorizer:?}{:?}", authorizer.0.settings).contains("hush"));
}

#[tokio::test]
async fn nobody_gets_tokens_too() {
    let server = Server::of_tokens(300).await;
    let authorizer = authorizer(Credentials::Anonymous);
    assert_eq!(
        text(
            authorizer
                .answer(&pull("a"), &bearer_challenge(&server.url), None)
                .await
                .unwrap()
        ),
        "Bearer token-1"
    );
    assert_eq!(server.seen()[0].authorization, None);
}

#[tokio::test]
async fn many_callers_make_one_request() {
    let server = Server::of_tokens(300).await;
    let authorizer = authorizer(joe());
    let scopes = Scopes::none();
    let headers = bearer_challenge(&server.url);
    let answers = (0..20).map(|_| authorizer.answer(&scopes, &headers, None));
    for answer in futures::future::join_all(answers).await {
        assert_eq!(text(answer.unwrap()), "Bearer token-1");
    }
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn a_caller_who_leaves_takes_nobody_along() {
    let server = Server::of_tokens(300).await;
    let authorizer = authorizer(joe());
    let scopes = pull("a");
    let headers = bearer_challenge(&server.url);
    let mut first = Box::pin(authorizer.answer(&scopes, &headers, None));
    assert!(futures::poll!(&mut first).is_pending());
    let mut second = Box::pin(authorizer.answer(&scopes, &headers, None));
    assert!(futures::poll!(&mut second).is_pending());
    drop(first);
    assert_eq!(text(second.await.unwrap()), "Bearer token-1");
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn tokens_are_renewed_before_they_end_and_outlive_a_failing_renewal() {
    let server = Server::start(|count, _| match count {
        2 | 3 => json(503, ""),
        _ => json(
            200,
            &format!(r#"{{"access_token":"token-{count}","expires_in":300}}"#),
        ),
    })
    .await;
    let authorizer = authorizer(joe());
    let scopes = pull("a");
    authorizer
        .answer(&scopes, &bearer_challenge(&server.url), None)
        .await
        .unwrap();
    later(260).await;
    assert_eq!(
        text(authorizer.header(&scopes).await.unwrap()),
        "Bearer token-1"
    );
    assert_eq!(server.count(), 1);
    later(15).await;
    for _ in 0..3 {
        assert_eq!(
            text(authorizer.header(&scopes).await.unwrap()),
            "Bearer token-1",
            "the server is away, the token lives"
        );
    }
    assert_eq!(server.count(), 2, "and the server is left in peace");
    later(30).await;
    assert!(
        authorizer
            .header(&scopes)
            .await
            .unwrap_err()
            .class()
            .is_retryable()
    );
    assert!(
        authorizer.header(&scopes).await.unwrap().is_none(),
        "the registry is asked for its challenge again"
    );
    assert_eq!(
        text(
            authorizer
                .answer(&scopes, &bearer_challenge(&server.url), None)
                .await
                .unwrap()
        ),
        "Bearer token-4"
    );
}

#[tokio::test]
async fn a_token_refused_twice_is_a_final_no() {
    let server = Server::of_tokens(300).await;
    let authorizer = authorizer(joe());
    let scopes = pull("a");
    let headers = bearer_challenge(&server.url);
    let first = authorizer.answer(&scopes, &headers, None).await.unwrap();
    let second = authorizer
        .answer(&scopes, &headers, first.as_ref())
        .await
        .unwrap();
    assert_eq!(text(second.clone()), "Bearer token-2");
    let late = authorizer
        .answer(&scopes, &headers, first.as_ref())
        .await
        .unwrap();
    assert_eq!(
        text(late),
        "Bearer token-2",
        "somebody else had the old one replaced already"
    );
    for _ in 0..5 {
        assert!(
            authorizer
                .answer(&scopes, &headers, second.as_ref())
                .await
                .unwrap()
                .is_none()
        );
    }
    assert_eq!(server.count(), 2);
    later(61).await;
    assert_eq!(
        text(
            authorizer
                .answer(&scopes, &HeaderMap::new(), second.as_ref())
                .await
                .unwrap()
        ),
        "Bearer token-3"
    );
}

#[tokio::test]
async fn the_same_token_again_is_a_final_no() {
    let server = Server::start(|_, _| json(200, r#"{"token":"always"}"#)).await;
    let authorizer = authorizer(joe());
    let headers = bearer_challenge(&server.url);
    let first = authorizer
        .answer(&Scopes::none(), &headers, None)
        .await
        .unwrap();
    assert!(
        authorizer
            .answer(&Scopes::none(), &headers, first.as_ref())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_foreign_realm_gets_nothing() {
    let server = Server::of_tokens(300).await;
    let port = server.url.port().unwrap();
    let realms = [
        format!("http://127.0.0.1:{port}/"),
        format!("https://localhost:{port}/"),
        format!("https://127.0.0.1:{port}/"),
    ];
    for realm in realms {
        let authorizer = Authorizer::new(settings("https://registry.example.com", joe()), client());
        let headers = challenge(&format!("Bearer realm=\"{realm}\""));
        let fault = authorizer
            .answer(&pull("a"), &headers, None)
            .await
            .unwrap_err();
        assert_eq!(fault.class(), Class::Auth);
        assert!(
            fault.to_string().contains("staging") && !fault.to_string().contains("hush"),
            "{fault}"
        );
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_realm_that_redirects_is_not_followed() {
    let target = Server::of_tokens(300).await;
    let to = target.url.clone();
    let server = Server::start(move |_, _| {
        Response::builder()
            .status(307)
            .header("location", to.as_str())
            .body(Body::empty())
            .unwrap()
    })
    .await;
    let fault = authorizer(joe())
        .answer(&pull("a"), &bearer_challenge(&server.url), None)
        .await
        .unwrap_err();
    assert!(
        fault.class() == Class::Auth && fault.to_string().contains("redirects"),
        "{fault}"
    );
    assert_eq!(target.count(), 0);
}

#[tokio::test]
async fn credentials_do_not_travel_in_plain_sight() {
    let origin = "http://registry.example.com";
    let basic = challenge("Basic realm=\"r\"");
    let fault = Authorizer::new(settings(origin, joe()), client())
        .answer(&pull("a"), &basic, None)
        .await
        .unwrap_err();
    assert!(
        fault.class() == Class::Auth && fault.to_string().contains("insecure: true"),
        "{fault}"
    );
    let token = Credentials::Bearer("hush".into());
    let fault = Authorizer::new(settings(origin, token.clone()), client())
        .header(&pull("a"))
        .await
        .unwrap_err();
    assert_eq!(fault.class(), Class::Auth);
    let open = Settings {
        insecure: true,
        ..settings(origin, token)
    };
    assert_eq!(
        text(
            Authorizer::new(open, client())
                .header(&pull("a"))
                .await
                .unwrap()
        ),
        "Bearer hush"
    );
    let listed = Settings {
        token_realms: vec!["192.0.2.1".to_owned()],
        ..settings("http://localhost:5000", joe())
    };
    let plain = challenge("Bearer realm=\"http://192.0.2.1/token\"");
    let fault = Authorizer::new(listed, client())
        .answer(&pull("a"), &plain, None)
        .await
        .unwrap_err();
    assert!(fault.to_string().contains("its token server"), "{fault}");
}

#[tokio::test]
async fn a_silent_token_server_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let settings = Settings {
        deadline: Duration::from_millis(100),
        ..settings("http://127.0.0.1:9", joe())
    };
    let authorizer = Authorizer::new(settings, client());
    let headers = bearer_challenge(&realm);
    let a = pull("a");
    let b = pull("b");
    let (one, other) = tokio::join!(
        authorizer.answer(&a, &headers, None),
        authorizer.answer(&b, &headers, None)
    );
    for fault in [one.unwrap_err(), other.unwrap_err()] {
        assert!(
            fault.class().is_retryable() && fault.to_string().contains("/token did not answer"),
            "{fault}"
        );
    }
    let gone = authorizer
        .answer(
            &pull("c"),
            &challenge("Bearer realm=\"http://127.0.0.1:1/x?k=v\""),
            None,
        )
        .await
        .unwrap_err();
    assert!(
        gone.class().is_retryable() && !gone.chain().contains("k=v"),
        "{gone:?}"
    );
}

#[tokio::test]
async fn answers_that_are_no_tokens_are_faults() {
    let html = "<html>please log in with hush</html>".to_owned();
    for (body, words) in [
        (html, "without a token"),
        (r#"{"token":""}"#.to_owned(), "empty token"),
        ("x".repeat(70_000), "64 KiB"),
    ] {
        let server = Server::start(move |_, _| json(200, &body)).await;
        let fault = authorizer(joe())
            .answer(&pull("a"), &bearer_challenge(&server.url), None)
            .await
            .unwrap_err();
        assert_eq!(fault.class(), Class::Auth);
        assert!(
            fault.chain().contains(words) && !fault.chain().contains("hush"),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_refused_password_is_shown_twice_however_many_ask() {
    let server =
        Server::start(|_, _| json(401, r#"{"details":"incorrect username or password"}"#)).await;
    let authorizer = authorizer(joe());
    let headers = bearer_challenge(&server.url);
    let scopes: Vec<Scopes> = (0..20).map(|number| pull(&format!("r{number}"))).collect();
    let answers = scopes
        .iter()
        .map(|scopes| authorizer.answer(scopes, &headers, None));
    for answer in futures::future::join_all(answers).await {
        let fault = answer.unwrap_err();
        assert_eq!(fault.class(), Class::Auth);
        assert!(
            fault.to_string().contains("incorrect username") && fault.to_string().contains("joe"),
            "{fault}"
        );
    }
    let scopes_shown = |server: &Server| -> Vec<usize> {
        server
            .seen()
            .iter()
            .map(|seen| seen.scopes().len())
            .collect()
    };
    assert_eq!(
        scopes_shown(&server),
        [1, 0],
        "for the scopes, then for none"
    );
    later(61).await;
    for scopes in &scopes {
        authorizer.answer(scopes, &headers, None).await.unwrap_err();
    }
    assert_eq!(
        scopes_shown(&server),
        [1, 0, 0],
        "one more try after the rest"
    );
}

/// <https://learn.microsoft.com/azure/container-registry/container-registry-repository-scoped-permissions>
#[tokio::test]
async fn a_401_for_one_scope_is_no_refusal_of_the_password() {
    let server = Server::start(|_, seen| match seen.scopes().first() {
        Some(&"repository:open:pull") | None => json(200, r#"{"token":"t"}"#),
        Some(_) => json(
            401,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"no access"}]}"#,
        ),
    })
    .await;
    let authorizer = authorizer(joe());
    let headers = bearer_challenge(&server.url);
    for repository in ["a", "b", "a", "b"] {
        let answer = authorizer.answer(&pull(repository), &headers, None).await;
        let fault = answer.unwrap_err();
        assert!(
            fault.class() == Class::Auth && fault.to_string().contains("no access"),
            "{fault}"
        );
    }
    assert_eq!(server.count(), 4, "each scope once, and each time for none");
    assert_eq!(
        text(authorizer.header(&pull("open")).await.unwrap()),
        "Bearer t"
    );
}

#[tokio::test]
async fn a_denied_repository_leaves_the_others_alone() {
    let server = Server::start(|_, seen| match seen.scopes()[0] {
        "repository:secret:pull" => json(
            403,
            r#"{"errors":[{"code":"DENIED","message":"access forbidden"}]}"#,
        ),
        _ => json(200, r#"{"token":"t"}"#),
    })
    .await;
    let authorizer = authorizer(joe());
    let headers = bearer_challenge(&server.url);
    for _ in 0..3 {
        let fault = authorizer
            .answer(&pull("secret"), &headers, None)
            .await
            .unwrap_err();
        assert!(
            fault.class() == Class::Auth && fault.to_string().contains("access forbidden"),
            "{fault}"
        );
    }
    assert_eq!(server.count(), 1);
    assert_eq!(
        text(authorizer.header(&pull("open")).await.unwrap()),
        "Bearer t"
    );
}

#[tokio::test]
async fn a_changed_password_is_tried_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let write = |password: &str| {
        std::fs::write(
            &path,
            format!(
                r#"{{"auths":{{"127.0.0.1:9":{{"username":"joe","password":"{password}"}}}}}}"#
            ),
        )
        .unwrap();
    };
    write("old");
    let new = format!("Basic {}", STANDARD.encode("joe:renewed"));
    let server = Server::start(
        move |_, seen| match seen.authorization == Some(new.clone()) {
            true => json(200, r#"{"token":"t"}"#),
            false => json(401, ""),
        },
    )
    .await;
    let authorizer = authorizer(Credentials::DockerConfig(docker::Store::new(
        vec![path.clone()],
        None,
    )));
    let headers = bearer_challenge(&server.url);
    authorizer
        .answer(&pull("a"), &headers, None)
        .await
        .unwrap_err();
    write("renewed");
    later(2).await;
    assert_eq!(
        text(authorizer.answer(&pull("a"), &headers, None).await.unwrap()),
        "Bearer t"
    );
    assert_eq!(authorizer.user().as_deref(), Some("joe"));
}

fn identity(entry: &str) -> (tempfile::TempDir, Authorizer) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, format!(r#"{{"auths":{{"127.0.0.1:9":{entry}}}}}"#)).unwrap();
    (
        folder,
        authorizer(Credentials::DockerConfig(docker::Store::new(
            vec![path],
            None,
        ))),
    )
}

/// ECR Public: the token server is the registry itself, and names a scope that no other registry
/// has.
#[tokio::test]
async fn the_public_ecr_gives_tokens_to_anybody_and_to_those_who_have_logged_in() {
    for (credentials, shown) in [(Credentials::Anonymous, None), (joe(), Some(basic_joe()))] {
        let server = Server::of_tokens(300).await;
        let authorizer = Authorizer::new(settings(server.url.as_str(), credentials), client());
        let line = format!(
            r#"Bearer realm="{}token/",service="public.ecr.aws",scope="aws""#,
            server.url
        );
        let scopes = pull("docker/library/alpine");
        assert_eq!(
            text(
                authorizer
                    .answer(&scopes, &challenge(&line), None)
                    .await
                    .unwrap()
            ),
            "Bearer token-1"
        );
        let seen = &server.seen()[0];
        assert_eq!(
            (seen.pair("service"), &seen.authorization),
            (Some("public.ecr.aws"), &shown)
        );
        assert_eq!(
            seen.scopes(),
            ["aws", "repository:docker/library/alpine:pull"]
        );
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged_in_a_form() {
    let server = Server::of_tokens(300).await;
    let (_folder, authorizer) = identity(r#"{"identitytoken":"idt"}"#);
    let mount = Scopes::mount(&name("a"), &name("b"));
    assert_eq!(
        text(
            authorizer
                .answer(&mount, &bearer_challenge(&server.url), None)
                .await
                .unwrap()
        ),
        "Bearer token-1"
    );
    let seen = &server.seen()[0];
    assert_eq!(
        (seen.method.as_str(), seen.authorization.as_ref()),
        ("POST", None)
    );
    assert_eq!(
        (seen.pair("grant_type"), seen.pair("refresh_token")),
        (Some("refresh_token"), Some("idt"))
    );
    assert_eq!(
        (seen.pair("service"), seen.pair("scope")),
        (
            Some("registry"),
            Some("repository:a:pull,push repository:b:pull")
        )
    );
}

#[tokio::test]
async fn an_identity_token_is_a_password_where_the_form_is_unknown() {
    for status in [400, 404, 405] {
        let server = Server::start(move |_, seen| match seen.method {
            Method::POST => json(status, ""),
            _ => json(200, r#"{"token":"t"}"#),
        })
        .await;
        let (_folder, with_name) = identity(r#"{"username":"joe","identitytoken":"hush"}"#);
        assert_eq!(
            text(
                with_name
                    .answer(&pull("a"), &bearer_challenge(&server.url), None)
                    .await
                    .unwrap()
            ),
            "Bearer t"
        );
        assert_eq!(server.seen()[1].authorization, Some(basic_joe()));
        let (_folder, nameless) = identity(r#"{"identitytoken":"hush"}"#);
        let fault = nameless
            .answer(&pull("a"), &bearer_challenge(&server.url), None)
            .await
            .unwrap_err();
        assert_eq!(fault.class(), Class::Rejected);
    }
    let server = Server::start(|_, _| json(400, r#"{"error":"invalid_grant"}"#)).await;
    let (_folder, refused) = identity(r#"{"username":"joe","identitytoken":"hush"}"#);
    let fault = refused
        .answer(&pull("a"), &bearer_challenge(&server.url), None)
        .await
        .unwrap_err();
    assert!(
        fault.class() == Class::Auth && server.count() == 2,
        "{fault}: for the scope, then for none"
    );
}

#[tokio::test]
async fn a_refusal_without_a_challenge_is_made_up_for_by_the_version_check() {
    let tokens = Server::of_tokens(300).await;
    let line = bearer_challenge(&tokens.url)[WWW_AUTHENTICATE].clone();
    let registry = Server::start(move |_, _| {
        let mut response = json(401, "");
        response
            .headers_mut()
            .insert(WWW_AUTHENTICATE, line.clone());
        response
    })
    .await;
    let authorizer = Authorizer::new(
        settings(registry.url.as_str(), Credentials::Anonymous),
        client(),
    );
    assert_eq!(
        text(
            authorizer
                .answer(&pull("a"), &HeaderMap::new(), None)
                .await
                .unwrap()
        ),
        "Bearer token-1"
    );
    let open = Server::start(|_, _| json(200, "{}")).await;
    let authorizer = Authorizer::new(settings(open.url.as_str(), joe()), client());
    assert!(
        authorizer
            .answer(&pull("a"), &HeaderMap::new(), None)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_realm_in_other_words_gets_what_the_registry_demands() {
    let server = Server::of_tokens(300).await;
    let authorizer = authorizer(joe());
    let line = format!(
        r#"Basic realm="x", Bearer realm="{}",scope="repository:inner/app:pull repository:other:push""#,
        server.url
    );
    authorizer
        .answer(&pull("app"), &challenge(&line), None)
        .await
        .unwrap();
    assert_eq!(
        server.seen()[0].scopes(),
        ["repository:inner/app:pull", "repository:app:pull"]
    );
}
