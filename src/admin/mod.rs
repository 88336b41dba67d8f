//! HTTP over TCP and over the control socket: metrics, health, status, triggers. It sends events
//! and reads snapshots; it decides nothing. [`ROUTES`] lists the routes with their guards; any
//! other path is a 404 that names them.
//!
//! *Open* routes and the *page* answer every client that reaches the listener. *Look* needs the control socket or
//! a bearer token; while no token is configured, loopback peers may look too, since a look is
//! harmless. *Decide* always needs the socket or a token with the right. *Receiver* needs what the
//! receiver's config says. [`access`] has the rules, and refuses pages in browsers everywhere.
//!
//! An error is `{"error":{"code","text"}}` with its status. Connections, waiting requests, header
//! time, body time and size, and unread answers are bounded.

pub mod access;
mod answer;
mod arriving_body;
mod caller;
pub mod client;
mod connections;
mod copies;
mod decisions;
mod events;
mod health;
mod page;
mod receivers;
mod request_body;
mod routes;
mod server;
mod status;
mod sync;
mod tag_list;
mod tags;
mod tokens;
mod write_timeout;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, any, get, post};
use tokio::sync::Semaphore;

pub use access::Peer;
pub use answer::Refusal;
pub use copies::{CopyHandler, CopyRequest};
pub use decisions::{DecisionAnswer, DecisionHandler, DecisionRequest};
pub use receivers::Receivers;
use routes::Endpoint;
pub use routes::{Guard, ROUTES, Route};
pub use server::{Bound, Error, bind};
pub use tags::{KnownTag, TagQuery, TagView, TagViews, TagsHandler};
pub use tokens::{Proof, SecretCheck, Token, Tokens};

use crate::ledger::Ledger;
use crate::state::FolderCheck;
use crate::telemetry::Changes;
use crate::tls::ServerTls;
use crate::watch;

/// Where to listen, and the secret of the API.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The TCP address; port 0 takes a free one. `None`: no TCP.
    pub listen: Option<SocketAddr>,
    /// The control socket's path. `None`: no control socket.
    pub socket: Option<PathBuf>,
    /// Tells whether the socket's folder is still the daemon's own: only there is a deleted socket
    /// made again.
    pub folder: Option<FolderCheck>,
    /// The bearer tokens. Once there is one, loopback alone opens nothing but metrics and health.
    pub tokens: Tokens,
    /// Which registries may notify us.
    pub receivers: Receivers,
    /// TLS of the TCP listener, or none.
    pub tls: ServerTls,
    /// How long clients may take.
    pub deadlines: Deadlines,
}

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For a request's head, counted from the connection's start or the end of the answer before
    /// it; so an idle connection ends after this long.
    pub header: Duration,
    /// For a request's body.
    pub body: Duration,
    /// Without taking a byte of the answer.
    pub write: Duration,
    /// For open requests to end, once the server stops.
    pub stop: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        let ten = Duration::from_secs(10);
        Deadlines {
            header: ten,
            body: ten,
            write: ten,
            stop: Duration::from_secs(3),
        }
    }
}

/// What the routes speak with.
#[derive(Clone)]
pub struct Services {
    /// Takes events; holds the board and the passes.
    pub watch: watch::Handle,
    /// What happened.
    pub ledger: Ledger,
    /// What `/metrics` shows.
    pub metrics: prometheus::Registry,
    /// Makes copies and promotions.
    pub copies: CopyHandler,
    /// Carries decisions out.
    pub decisions: DecisionHandler,
    /// Answers what bears on a tag.
    pub tags: TagsHandler,
    /// Refreshes gauges; called before each scrape, so it must be quick.
    pub before_scrape: Arc<dyn Fn() + Send + Sync>,
}

/// Waited-for passes at once for each peer: fewer than its connections, so that waiting never locks
/// out a scrape.
const WAITING: usize = 32;

/// What every route shares.
struct App {
    services: Services,
    rules: access::Rules,
    receivers: Receivers,
    deadlines: Deadlines,
    waiting_tcp: Arc<Semaphore>,
    waiting_socket: Arc<Semaphore>,
    reported_secrets: Changes,
}

impl App {
    fn new(services: Services, settings: &Settings) -> App {
        App {
            services,
            rules: access::Rules::new(settings.tokens.clone()),
            receivers: settings.receivers.clone(),
            deadlines: settings.deadlines,
            waiting_tcp: Arc::new(Semaphore::new(WAITING)),
            waiting_socket: Arc::new(Semaphore::new(WAITING)),
            reported_secrets: Changes::new(256),
        }
    }
}

/// The routes behind their guards. Each request must carry its [`Peer`] as an extension: one
/// without is answered 500.
pub fn router(services: Services, settings: &Settings) -> Router {
    let app = Arc::new(App::new(services, settings));
    // Inside the method's choice: a method that no route has is answered 405, credentials or not.
    let guard = from_fn_with_state(app.clone(), access::guard);
    let mut router = Router::new();
    for route in &ROUTES {
        let handler = handler(route.endpoint);
        router = match route.guard {
            Guard::Open | Guard::Page | Guard::Receiver => router.route(route.path, handler),
            Guard::Look | Guard::Decide => {
                router.route(route.path, handler.route_layer(guard.clone()))
            }
        };
    }
    router
        .method_not_allowed_fallback(answer::wrong_method)
        .fallback_service(any(answer::unknown_path).layer(guard.clone()))
        .layer(from_fn_with_state(app.clone(), access::admit))
        .layer(from_fn(answer::shield))
        .with_state(app)
}

fn handler(endpoint: Endpoint) -> MethodRouter<Arc<App>> {
    match endpoint {
        Endpoint::Page => get(page::page),
        Endpoint::PagePart => get(page::part),
        Endpoint::Metrics => get(status::metrics),
        Endpoint::Alive => get(health::alive),
        Endpoint::Ready => get(health::ready),
        Endpoint::Status => get(status::status),
        Endpoint::Promotions => get(status::promotions),
        Endpoint::Sync => post(sync::sync),
        Endpoint::Copies => post(copies::copies),
        Endpoint::Decide => post(decisions::decide),
        Endpoint::Decisions => get(decisions::list),
        Endpoint::Run => get(sync::run),
        Endpoint::Tags => get(tags::tags),
        Endpoint::Caller => get(caller::caller),
        Endpoint::Events => post(events::receive).options(events::permit),
    }
}

#[cfg(test)]
mod tests;
