//! The HTTP routes: method, path, guard and handler of each. The router, the access check, the 404
//! and the test of `docs/http.md` read this one table.

use std::sync::Arc;

use axum::routing::{MethodRouter, get, post};

use super::access::Guard;
use super::{App, copies, health, status, sync};

/// A route of the HTTP API.
pub struct Route {
    /// The method that it takes; GET includes HEAD.
    pub method: &'static str,
    /// Its path; `{id}` stands for one segment.
    pub path: &'static str,
    /// What a request needs.
    pub guard: Guard,
    pub(super) handler: fn() -> MethodRouter<Arc<App>>,
}

/// All of them.
pub const ROUTES: [Route; 8] = [
    Route {
        method: "GET",
        path: "/metrics",
        guard: Guard::Open,
        handler: || get(status::metrics),
    },
    Route {
        method: "GET",
        path: "/healthz",
        guard: Guard::Open,
        handler: || get(health::alive),
    },
    Route {
        method: "GET",
        path: "/readyz",
        guard: Guard::Open,
        handler: || get(health::ready),
    },
    Route {
        method: "GET",
        path: "/v1/status",
        guard: Guard::Look,
        handler: || get(status::status),
    },
    Route {
        method: "GET",
        path: "/v1/promotions",
        guard: Guard::Look,
        handler: || get(status::promotions),
    },
    Route {
        method: "POST",
        path: "/v1/sync",
        guard: Guard::Look,
        handler: || post(sync::sync),
    },
    Route {
        method: "POST",
        path: "/v1/copies",
        guard: Guard::Decide,
        handler: || post(copies::copies),
    },
    Route {
        method: "GET",
        path: "/v1/runs/{id}",
        guard: Guard::Look,
        handler: || get(sync::run),
    },
];

impl Route {
    /// Whether `path` is one of this route.
    pub(super) fn takes(&self, path: &str) -> bool {
        match self.path.strip_suffix("{id}") {
            Some(prefix) => path
                .strip_prefix(prefix)
                .is_some_and(|id| !id.is_empty() && !id.contains('/')),
            None => path == self.path,
        }
    }
}

/// The routes as the 404 lists them.
pub(super) fn listed() -> String {
    let lines = ROUTES.map(|route| format!("{} {}", route.method, route.path));
    lines.join(", ").replace("{id}", "ID")
}
