//! A token server for registries with bearer authentication: real JWTs, signed with a key whose
//! certificate the registry knows, and ways to misbehave.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How the server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A good token for whoever asks with the right login.
    Token,
    /// It takes the request and never answers.
    Silent,
    /// A page for people.
    Html,
    /// 401, whatever the login.
    Denied,
}

/// One request to the server.
#[derive(Clone, Debug)]
pub struct Asked {
    pub scopes: Vec<String>,
    pub authorization: Option<String>,
}

/// A running token server.
pub struct TokenServer {
    address: String,
    issue: Arc<Issue>,
    scratch: TempDir,
    server: JoinHandle<()>,
}

struct Issue {
    key: KeyPair,
    certificate: Vec<u8>,
    login: (String, String),
    lifetime: i64,
    manner: Mutex<Manner>,
    asked: Mutex<Vec<Asked>>,
}

const ISSUER: &str = "test-issuer";
const SERVICE: &str = "test-registry";

impl TokenServer {
    /// A server that gives tokens of five minutes to `user` with `password`.
    pub async fn start(user: &str, password: &str) -> TokenServer {
        TokenServer::with_lifetime(user, password, 300).await
    }

    /// A server whose tokens live for `lifetime` seconds.
    pub async fn with_lifetime(user: &str, password: &str, lifetime: i64) -> TokenServer {
        let key = KeyPair::generate().expect("a P-256 key");
        let certificate = CertificateParams::new(vec!["token.test".into()])
            .and_then(|params| params.self_signed(&key));
        let certificate = certificate.expect("a self-signed certificate");
        let scratch = TempDir::with_prefix("blobferry-token-").expect("a scratch directory");
        std::fs::write(scratch.path().join("root.pem"), certificate.pem())
            .expect("a certificate file");
        let issue = Arc::new(Issue {
            key,
            certificate: certificate.der().to_vec(),
            login: (user.into(), password.into()),
            lifetime,
            manner: Mutex::new(Manner::Token),
            asked: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a loopback port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address")
            .to_string();
        let router = Router::new()
            .route("/token", axum::routing::get(token).post(no_oauth))
            .with_state(issue.clone());
        let server = tokio::spawn(async move {
            axum::serve(listener, router)
                .await
                .expect("serving on loopback")
        });
        TokenServer {
            address,
            issue,
            scratch,
            server,
        }
    }

    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    pub fn service(&self) -> &'static str {
        SERVICE
    }

    pub fn issuer(&self) -> &'static str {
        ISSUER
    }

    pub fn root_certificate(&self) -> PathBuf {
        Path::new(self.scratch.path()).join("root.pem")
    }

    pub fn behave(&self, manner: Manner) {
        *self.issue.manner.lock().expect("no panic while answering") = manner;
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.issue
            .asked
            .lock()
            .expect("no panic while answering")
            .clone()
    }

    /// A token for the tests' own client: everything in these repositories.
    pub fn mint(&self, repositories: &[&str]) -> String {
        let scopes: Vec<String> = repositories
            .iter()
            .map(|name| format!("repository:{name}:pull,push,delete"))
            .collect();
        self.issue.sign(&scopes)
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn no_oauth() -> StatusCode {
    StatusCode::NOT_FOUND
}

async fn token(
    State(issue): State<Arc<Issue>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = query.unwrap_or_default();
    let scopes: Vec<String> = url::form_urlencoded::parse(query.as_bytes())
        .filter(|(key, _)| key == "scope")
        .flat_map(|(_, value)| value.split(' ').map(String::from).collect::<Vec<_>>())
        .collect();
    let authorization = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .map(String::from);
    issue
        .asked
        .lock()
        .expect("no panic while answering")
        .push(Asked {
            scopes: scopes.clone(),
            authorization: authorization.clone(),
        });
    let manner = *issue.manner.lock().expect("no panic while answering");
    match manner {
        Manner::Silent => std::future::pending().await,
        Manner::Html => Html("<!doctype html><title>Sign in</title>").into_response(),
        Manner::Token if authorization.as_deref() == Some(&issue.basic()) => {
            axum::Json(json!({"token": issue.sign(&scopes), "expires_in": issue.lifetime}))
                .into_response()
        }
        Manner::Token | Manner::Denied => (
            StatusCode::UNAUTHORIZED,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"wrong login"}]}"#,
        )
            .into_response(),
    }
}

impl Issue {
    fn basic(&self) -> String {
        format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", self.login.0, self.login.1))
        )
    }

    fn sign(&self, scopes: &[String]) -> String {
        let now = blobferry::clock::now().as_second();
        let header =
            json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)]});
        let claims = json!({"iss": ISSUER, "aud": SERVICE, "sub": self.login.0, "iat": now, "nbf": now - 60,
            "exp": now + self.lifetime, "jti": "1", "access": scopes.iter().filter_map(|scope| access(scope)).collect::<Vec<_>>()});
        let text = format!("{}.{}", part(&header), part(&claims));
        let signature = self
            .key
            .sign(text.as_bytes())
            .expect("signing with our own key");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(fixed_width(&signature)))
    }
}

/// A part of a JWT.
pub fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn access(scope: &str) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
}

/// A JWT wants both numbers of the signature side by side, 32 bytes each; the key gives them in
/// ASN.1.
pub fn fixed_width(asn1: &[u8]) -> Vec<u8> {
    let mut rest = &asn1[2..];
    let mut both = Vec::with_capacity(64);
    for _ in 0..2 {
        let length = rest[1] as usize;
        let number = &rest[2..2 + length];
        let digits = &number[number.len().saturating_sub(32)..];
        both.extend(std::iter::repeat_n(0, 32 - digits.len()));
        both.extend_from_slice(digits);
        rest = &rest[2 + length..];
    }
    both
}
