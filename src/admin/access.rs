//! Access: pure rules over a request's head, and the two layers that apply them.
//!
//! 1. [`Rules::admit`], on every path: a page in a browser gets nothing. A foreign `Origin` or
//!    `Sec-Fetch-Site` is refused. Over TCP, `Host` must be an IP address or `localhost`, which no
//!    rebound name can be; any other name needs the secret. Metrics and health accept any name from
//!    peers beyond loopback, so that they can be scraped by name, and so does the page; receivers
//!    accept any name. A link of another site may open the page, which holds nothing of the daemon.
//! 2. [`Rules::principal`], on guarded paths but receivers, which have proofs of their own: the
//!    control socket, where the file mode is the credential, or a bearer token. While no token is
//!    configured, a loopback peer may look
//!    as well, but no request that came through a proxy: behind a proxy every client is a loopback
//!    peer.
//!
//! No answer ever carries a CORS header.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN, VIA};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::answer::Refusal;
use super::connections::ClientKey;
use super::routes::Guard;
use super::tokens::{SecretCheck, Tokens};
use crate::decision::{Principal, Rights};
use crate::job::{Actor, Cause};
use crate::oidc;

/// The code of a token that is missing or refused.
const UNAUTHORIZED: &str = "unauthorized";
/// The code of a token that cannot be judged now: the keys of its issuer cannot be read.
pub(super) const UNVERIFIABLE: &str = "unverifiable";

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP, from this peer.
    Tcp(SocketAddr),
    /// Over the control socket, from a process of this user.
    Socket {
        /// The user.
        uid: u32,
        /// The user that logged in, as far as that is known.
        login_uid: Option<u32>,
    },
}

impl Peer {
    /// The client behind it, as far as its connections are counted.
    pub(super) fn client_key(self) -> ClientKey {
        match self {
            Peer::Tcp(address) => ClientKey::Network(network(address.ip())),
            Peer::Socket { uid, .. } => ClientKey::User(uid),
        }
    }
}

/// A request that passed [`Rules::admit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthContext {
    /// Where it came in.
    pub peer: Peer,
    /// Which token it showed.
    pub secret_check: SecretCheck,
}

/// The rules.
#[derive(Clone, Debug)]
pub struct Rules {
    tokens: Tokens,
}

impl Rules {
    /// The rules with or without tokens.
    pub fn new(tokens: Tokens) -> Rules {
        Rules { tokens }
    }

    /// The token that a request shows. Issuers are asked for guarded paths alone: health and metrics
    /// wait for no other machine, and receivers have proofs of their own.
    pub async fn check_secret(&self, guard: Guard, headers: &HeaderMap) -> SecretCheck {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(first) = values.next() else {
            return SecretCheck::Missing;
        };
        if values.next().is_some() {
            return SecretCheck::Wrong;
        }
        match self.tokens.secret(first.as_bytes()) {
            SecretCheck::Wrong if matches!(guard, Guard::Look | Guard::Decide) => {
                self.tokens.issued(first.as_bytes()).await
            }
            check => check,
        }
    }

    /// Keeps browsers' pages and rebound names out.
    ///
    /// # Errors
    /// 403 for a page, 421 for a name that is not ours, 400 for a `Host` that is missing, doubled
    /// or broken.
    pub fn admit(
        &self,
        context: &AuthContext,
        guard: Guard,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let hosts = hosts(uri, headers)?;
        if guard != Guard::Page || !is_navigation(headers) {
            refuse_pages(headers, hosts.first())?;
        }
        if let Peer::Tcp(address) = context.peer {
            if hosts.is_empty() {
                return Err(Refusal::bad_request(
                    "the request has no Host header: send one",
                ));
            }
            // A receiver has a secret of its own, and a registry knows us by some name. A refused
            // token of an issuer learns its reason from the guard, which lets nothing through.
            let by_name = matches!(
                context.secret_check,
                SecretCheck::Valid(_) | SecretCheck::Refused(_)
            ) || guard == Guard::Receiver
                || (matches!(guard, Guard::Open | Guard::Page) && !is_loopback(address.ip()));
            if !by_name && !hosts.iter().all(is_literal) {
                let text = "this name is not known here; use the IP address or localhost, or show the secret";
                return Err(Refusal::new(
                    StatusCode::MISDIRECTED_REQUEST,
                    "unknown_host",
                    text,
                ));
            }
        }
        Ok(())
    }

    /// The principal of a request that its credentials allow.
    ///
    /// # Errors
    /// 401 where a token would help, 403 where none is even configured, 503 where the token cannot
    /// be judged now.
    pub fn principal(
        &self,
        context: &AuthContext,
        guard: Guard,
        headers: &HeaderMap,
    ) -> Result<Principal, Refusal> {
        match (context.peer, &context.secret_check) {
            (Peer::Tcp(_), SecretCheck::Valid(principal)) if self.tokens.is_set() => {
                Ok(principal.clone())
            }
            (Peer::Tcp(_), secret_check) if self.tokens.is_set() => Err(unauthorized(secret_check)),
            (_, secret_check) if !secret_check.is_valid() && came_through_proxy(headers) => {
                Err(Refusal::forbidden(
                    "forwarded",
                    "requests through a proxy need a bearer token: set daemon.tokens or daemon.secret_file and send it as `Authorization: Bearer …`",
                ))
            }
            (Peer::Socket { uid, login_uid }, _) => {
                let name = crate::user::principal(uid, login_uid);
                Ok(Principal::new(name, Rights::all()))
            }
            (Peer::Tcp(address), _) if guard == Guard::Look && is_loopback(address.ip()) => {
                let name = format!("address:{}", address.ip().to_canonical());
                Ok(Principal::new(name, Rights::look()))
            }
            _ => Err(Refusal::forbidden(
                "no_secret",
                "this needs a bearer token and none is configured: set daemon.tokens, or use the control socket",
            )),
        }
    }
}

/// On every path: [`Rules::admit`].
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(peer) = request.extensions().get::<Peer>().copied() else {
        return Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the request carries no peer",
        )
        .into_response();
    };
    let guard = Guard::of(request.method(), request.uri().path());
    let secret_check = app.rules.check_secret(guard, request.headers()).await;
    let context = AuthContext { peer, secret_check };
    let admitted = app
        .rules
        .admit(&context, guard, request.uri(), request.headers());
    match admitted {
        Ok(()) => {
            request.extensions_mut().insert(context);
            next.run(request).await
        }
        Err(refusal) => refused(peer, refusal),
    }
}

/// On guarded paths: [`Rules::principal`].
pub(super) async fn guard(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let context = request
        .extensions()
        .get::<AuthContext>()
        .expect("admit stands in front")
        .clone();
    let guard = Guard::of(request.method(), request.uri().path());
    let verdict = app.rules.principal(&context, guard, request.headers());
    tell_secrets(&app, &context);
    match verdict {
        Ok(principal) => {
            let actor = Actor::named(principal.name.clone());
            request.extensions_mut().insert(actor);
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(refusal) => {
            if request.uri().path() == "/v1/sync" && matches!(context.peer, Peer::Tcp(_)) {
                let result = match refusal.code {
                    UNVERIFIABLE => UNVERIFIABLE,
                    _ => "unauthenticated",
                };
                app.services.watch.count(Cause::Ping, result);
            }
            refused(context.peer, refusal)
        }
    }
}

fn refused(peer: Peer, refusal: Refusal) -> Response {
    tracing::debug!(?peer, code = refusal.code, "request refused");
    refusal.into_response()
}

/// A wrong secret is told once for each peer, until that peer shows the right one.
fn tell_secrets(app: &App, context: &AuthContext) {
    let Peer::Tcp(address) = context.peer else {
        return;
    };
    let state = match &context.secret_check {
        SecretCheck::Missing | SecretCheck::Refused(oidc::Refused::Unreachable) => return,
        SecretCheck::Valid(_) => "",
        SecretCheck::Wrong | SecretCheck::Refused(_) if app.rules.tokens.is_set() => "wrong",
        SecretCheck::Wrong | SecretCheck::Refused(_) => return,
    };
    let network = network(address.ip());
    if app.reported_secrets.changed(&network.to_string(), state) && state == "wrong" {
        tracing::warn!(peer = %network, "a wrong bearer secret was shown");
    }
}

/// The address, or for IPv6 its /64: a host with one address of a /64 can take every other.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

fn unauthorized(secret_check: &SecretCheck) -> Refusal {
    if let SecretCheck::Refused(refused) = secret_check {
        return refused.clone().into();
    }
    let text = match secret_check {
        SecretCheck::Missing => {
            "send the secret of daemon.secret_file or one of daemon.tokens as `Authorization: Bearer …`"
        }
        _ => "this is neither the secret of daemon.secret_file nor one of daemon.tokens",
    };
    Refusal::new(StatusCode::UNAUTHORIZED, UNAUTHORIZED, text)
}

impl From<oidc::Refused> for Refusal {
    fn from(refused: oidc::Refused) -> Refusal {
        let (status, code) = match refused {
            oidc::Refused::Unreachable => (StatusCode::SERVICE_UNAVAILABLE, UNVERIFIABLE),
            _ => (StatusCode::UNAUTHORIZED, UNAUTHORIZED),
        };
        Refusal::new(status, code, refused.to_string())
    }
}

/// The hosts that a request names: in its target, in `Host`, or both.
fn hosts(uri: &Uri, headers: &HeaderMap) -> Result<Vec<Authority>, Refusal> {
    let mut hosts: Vec<Authority> = uri.authority().cloned().into_iter().collect();
    let mut values = headers.get_all(HOST).iter();
    let host = values.next();
    if values.next().is_some() {
        return Err(Refusal::bad_request(
            "the request has more than one Host header: send one",
        ));
    }
    if let Some(host) = host {
        let authority = Authority::try_from(host.as_bytes())
            .ok()
            .filter(|authority| !authority.as_str().contains('@'));
        hosts.push(authority.ok_or_else(|| {
            Refusal::bad_request(
                "the Host header is not a host (examples: 127.0.0.1:9464, localhost)",
            )
        })?);
    }
    Ok(hosts)
}

/// A name that no foreign DNS server can point at us.
fn is_literal(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn refuse_pages(headers: &HeaderMap, host: Option<&Authority>) -> Result<(), Refusal> {
    let is_own_origin = headers
        .get_all(ORIGIN)
        .iter()
        .all(|origin| host.is_some_and(|host| same_origin(origin.as_bytes(), host)));
    let is_own_site = headers
        .get_all("sec-fetch-site")
        .iter()
        .all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    if is_own_origin && is_own_site {
        return Ok(());
    }
    Err(Refusal::forbidden(
        "foreign_origin",
        "pages of other sites get nothing here: ask from the same host, or without a browser",
    ))
}

/// Whether a browser opens this as a page of its own, as a link of another site has it do. What it
/// shows then is out of that site's reach.
fn is_navigation(headers: &HeaderMap) -> bool {
    says(headers, "sec-fetch-mode", "navigate")
        && says(headers, "sec-fetch-dest", "document")
        && !headers.contains_key(ORIGIN)
}

fn says(headers: &HeaderMap, name: &str, value: &str) -> bool {
    headers.get(name).is_some_and(|said| said == value)
}

fn same_origin(origin: &[u8], host: &Authority) -> bool {
    let Ok(origin) = Uri::try_from(origin) else {
        return false;
    };
    let Some(authority) = origin.authority() else {
        return false;
    };
    let default = if origin.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let port = authority.port_u16().unwrap_or(default);
    let own_port = host.port_u16().unwrap_or(default);
    authority.host().eq_ignore_ascii_case(host.host()) && port == own_port
}

fn came_through_proxy(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
        || headers.contains_key(VIA)
        || headers.contains_key("x-real-ip")
        || headers
            .keys()
            .any(|name| name.as_str().starts_with("x-forwarded-"))
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
