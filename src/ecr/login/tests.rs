use std::sync::atomic::{AtomicUsize, Ordering};

use crate::clock;
use aws_sdk_ecr::config::retry::RetryConfig;
use aws_sdk_ecr::config::{BehaviorVersion, Credentials, Region};
use secrecy::ExposeSecret as _;

use super::*;
use crate::registry::auth::{self, Authorizer, Scopes};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

struct ControlPlane {
    url: String,
    calls: Arc<AtomicUsize>,
}

/// Answers each call with `answer(number of the call)`: a status and a body.
async fn control_plane(
    answer: impl Fn(usize) -> (u16, String) + Clone + Send + Sync + 'static,
) -> ControlPlane {
    let calls = Arc::new(AtomicUsize::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let counter = Arc::clone(&calls);
    let app = axum::Router::new().fallback(move || {
        let (status, body) = answer(counter.fetch_add(1, Ordering::SeqCst) + 1);
        let status = http::StatusCode::from_u16(status).unwrap();
        std::future::ready((
            status,
            [("content-type", "application/x-amz-json-1.1")],
            body,
        ))
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    ControlPlane { url, calls }
}

fn token_body(password: &str, expires: i64) -> String {
    let token = STANDARD.encode(format!("AWS:{password}"));
    format!(
        r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":{expires},"proxyEndpoint":"https://{HOST}"}}]}}"#
    )
}

/// A login with a ready client that uses fixed keys instead of the default chain.
fn login(plane: &ControlPlane) -> Login {
    let login = Login::new(Settings::default(), HOST);
    let config = aws_sdk_ecr::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("eu-west-1"))
        .retry_config(RetryConfig::disabled())
        .endpoint_url(&plane.url)
        .credentials_provider(Credentials::new("AKIDEXAMPLE", "key", None, None, "test"));
    let sts = aws_sdk_sts::Client::from_conf(
        aws_sdk_sts::Config::builder()
            .behavior_version_latest()
            .build(),
    );
    let client = Client {
        ecr: aws_sdk_ecr::Client::from_conf(config.build()),
        sts,
        region: "eu-west-1".to_owned(),
        credentials: None,
    };
    assert!(login.0.client.set(client).is_ok());
    login
}

async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

fn authorizer(origin: &str, credentials: auth::Credentials) -> Authorizer {
    let settings = auth::Settings::new("staging", origin.parse().unwrap(), credentials);
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    Authorizer::new(settings, http.build().unwrap())
}

fn pull(repository: &str) -> Scopes {
    Scopes::pull(&repository.parse().unwrap())
}

fn text(header: Option<http::HeaderValue>) -> String {
    header.unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn one_call_serves_all_until_the_token_nears_its_end() {
    let plane = control_plane(|call| {
        (
            200,
            token_body(&format!("p:{call}"), clock::now().as_second() + 12 * 3600),
        )
    })
    .await;
    let login = login(&plane);
    let tokens = futures::future::join_all((0..10).map(|_| login.token())).await;
    assert!(
        tokens
            .into_iter()
            .all(|token| token.unwrap().password.expose_secret() == "p:1")
    );
    assert_eq!(plane.calls.load(Ordering::SeqCst), 1);
    assert!(login.expiry().unwrap() > clock::now());
    later(Duration::from_secs(10 * 3600)).await;
    assert_eq!(login.token().await.unwrap().password.expose_secret(), "p:1");
    later(Duration::from_secs(3600)).await;
    assert_eq!(login.token().await.unwrap().password.expose_secret(), "p:2");
}

#[tokio::test]
async fn a_token_that_is_past_its_end_is_used_and_asked_for_once_a_minute() {
    let plane = control_plane(|call| (200, token_body(&call.to_string(), 1_420_070_400))).await;
    let login = login(&plane);
    for _ in 0..5 {
        assert_eq!(login.token().await.unwrap().username, "AWS");
    }
    assert_eq!(plane.calls.load(Ordering::SeqCst), 1);
    let refused = SecretString::from("1");
    assert_eq!(
        login
            .renewed(&refused)
            .await
            .unwrap()
            .password
            .expose_secret(),
        "2",
        "replaced at once"
    );
    let second = SecretString::from("2");
    assert_eq!(
        login
            .renewed(&second)
            .await
            .unwrap()
            .password
            .expose_secret(),
        "2",
        "but not at every turn"
    );
    assert_eq!(
        login
            .renewed(&refused)
            .await
            .unwrap()
            .password
            .expose_secret(),
        "2",
        "somebody else replaced it already"
    );
    assert_eq!(plane.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_token_that_lasts_survives_a_failure_to_replace_it() {
    let plane = control_plane(|call| match call {
        1 => (
            200,
            token_body("first", clock::now().as_second() + 12 * 3600),
        ),
        _ => (
            400,
            r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#.to_owned(),
        ),
    })
    .await;
    let login = login(&plane);
    login.token().await.unwrap();
    later(Duration::from_secs(11 * 3600)).await;
    for _ in 0..3 {
        assert_eq!(
            login.token().await.unwrap().password.expose_secret(),
            "first"
        );
    }
    assert_eq!(
        plane.calls.load(Ordering::SeqCst),
        2,
        "and is not replaced at every turn"
    );
    later(Duration::from_secs(3600)).await;
    assert!(login.token().await.unwrap_err().class().is_retryable());
}

#[tokio::test]
async fn a_refusal_names_action_region_and_way_out() {
    let denied = r#"{"__type":"AccessDeniedException","Message":"User: arn:aws:iam::1:user/x is not authorized to perform: ecr:GetAuthorizationToken"}"#;
    let plane = control_plane(move |_| (400, denied.to_owned())).await;
    let fault = login(&plane).token().await.unwrap_err();
    assert_eq!(fault.class(), Class::Auth);
    assert!(
        fault
            .to_string()
            .contains("ecr:GetAuthorizationToken in eu-west-1"),
        "{fault}"
    );
    let plane = control_plane(|_| (200, r#"{"authorizationData":[]}"#.to_owned())).await;
    assert_eq!(
        login(&plane).token().await.unwrap_err().class(),
        Class::Auth
    );
    let public = Login::new(Settings::default(), "public.ecr.aws")
        .token()
        .await
        .unwrap_err();
    assert_eq!(public.class(), Class::Auth);
}

#[test]
fn a_login_never_shows_its_token() {
    let login = Login::new(Settings::default(), HOST);
    let token = Token {
        username: "AWS".to_owned(),
        password: "hush".into(),
        expires: clock::now(),
    };
    assert!(!format!("{token:?}").contains("hush"));
    *login.0.held() = Some(Held::new(token));
    assert!(!format!("{login:?}").contains("hush"));
    assert_eq!(login.account(), Some("123456789012"));
}

#[tokio::test]
async fn a_dual_stack_host_is_asked_about_at_the_dual_stack_control_plane() {
    for (host, dual_stack, fips) in [
        ("123456789012.dkr-ecr.eu-central-1.on.aws", true, false),
        ("123456789012.dkr-ecr-fips.us-east-2.on.aws", true, true),
        (HOST, false, false),
    ] {
        let config = Login::new(Settings::default(), host)
            .0
            .access()
            .load()
            .await;
        let uses = (
            config.use_dual_stack().unwrap_or(false),
            config.use_fips().unwrap_or(false),
        );
        assert_eq!(uses, (dual_stack, fips), "{host}");
        let profile = Settings {
            profile: Some("build".into()),
            ..Settings::default()
        };
        let config = Login::new(profile, host).0.access().load().await;
        assert_eq!(
            config.use_dual_stack().unwrap_or(false),
            dual_stack,
            "{host} under a profile"
        );
    }
    let one = Login::new(Settings::default(), HOST);
    assert!(
        one.sharing_token(
            &Settings::default(),
            "123456789012.dkr-ecr.eu-west-1.on.aws"
        )
        .is_none(),
        "another control plane"
    );
}

#[tokio::test]
async fn a_token_is_sent_without_a_challenge_and_renewed_when_refused() {
    let end = clock::now().as_second() + 12 * 3600;
    let plane = control_plane(move |call| (200, token_body(&format!("word-{call}"), end))).await;
    let ecr = auth::Credentials::from(login(&plane));
    let authorizer = authorizer(&format!("https://{HOST}"), ecr);
    let header = authorizer.header(&pull("a")).await.unwrap();
    assert_eq!(
        text(header.clone()),
        format!("Basic {}", STANDARD.encode("AWS:word-1"))
    );
    assert!(authorizer.expiry().unwrap() > clock::now());
    let expired = http::HeaderMap::new();
    let renewed = authorizer
        .answer(&pull("a"), &expired, header.as_ref())
        .await
        .unwrap();
    assert_eq!(
        text(renewed.clone()),
        format!("Basic {}", STANDARD.encode("AWS:word-2"))
    );
    assert_eq!(authorizer.header(&pull("b")).await.unwrap(), renewed);
    assert!(
        authorizer
            .answer(&pull("a"), &expired, renewed.as_ref())
            .await
            .unwrap()
            .is_none(),
        "a new token cured nothing"
    );
    assert_eq!(plane.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_failing_control_plane_is_an_auth_fault_of_the_registry() {
    let settings = Settings {
        identity: Some("arn:aws:iam::123456789012:user/x".to_owned()),
        ..Settings::default()
    };
    let login = Login::new(settings, "public.ecr.aws");
    let authorizer = authorizer("https://public.ecr.aws", login.into());
    let fault = authorizer.header(&pull("a")).await.unwrap_err();
    assert!(
        fault.class() == Class::Auth && fault.to_string().contains("staging"),
        "{fault}"
    );
    assert_eq!(
        authorizer.user().as_deref(),
        Some("arn:aws:iam::123456789012:user/x")
    );
}
