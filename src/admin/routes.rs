//! The HTTP routes: method, path and guard of each. The router, the access check, the 404 and the
//! test of `docs/http.md` read this one table.

use axum::http::Method;

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    Open,
    /// Nothing: the page for browsers, which holds nothing of the daemon. Links of other sites may
    /// lead to it.
    Page,
    /// The socket, a token, or loopback while there is no token.
    Look,
    /// The socket or a token, and the right that the act takes.
    Decide,
    /// What the config says of the receiver.
    Receiver,
}

impl Guard {
    /// What `method` on `path` needs: the guard of its route; without a route, reading looks and
    /// everything else decides.
    pub fn of(method: &Method, path: &str) -> Guard {
        let served = ROUTES
            .iter()
            .find(|route| route.takes(path) && route.serves(method));
        // A method that no route of the path serves is answered 405 in any case.
        let route = served.or_else(|| ROUTES.iter().find(|route| route.takes(path)));
        match route {
            Some(route) => route.guard,
            None if method == Method::GET || method == Method::HEAD => Guard::Look,
            None => Guard::Decide,
        }
    }
}

/// What answers a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Page,
    PagePart,
    Metrics,
    Alive,
    Ready,
    Status,
    Promotions,
    Sync,
    Copies,
    Decide,
    Decisions,
    Run,
    Tags,
    Caller,
    Events,
}

/// A route of the HTTP API.
pub struct Route {
    /// The method that it takes; GET includes HEAD.
    pub method: &'static str,
    /// Its path; `{id}` or `{name}` at its end stands for one segment.
    pub path: &'static str,
    /// What a request needs.
    pub guard: Guard,
    pub(super) endpoint: Endpoint,
}

/// All of them.
pub const ROUTES: [Route; 15] = [
    Route {
        method: "GET",
        path: "/",
        guard: Guard::Page,
        endpoint: Endpoint::Page,
    },
    Route {
        method: "GET",
        path: "/page/{name}",
        guard: Guard::Page,
        endpoint: Endpoint::PagePart,
    },
    Route {
        method: "GET",
        path: "/metrics",
        guard: Guard::Open,
        endpoint: Endpoint::Metrics,
    },
    Route {
        method: "GET",
        path: "/healthz",
        guard: Guard::Open,
        endpoint: Endpoint::Alive,
    },
    Route {
        method: "GET",
        path: "/readyz",
        guard: Guard::Open,
        endpoint: Endpoint::Ready,
    },
    Route {
        method: "GET",
        path: "/v1/status",
        guard: Guard::Look,
        endpoint: Endpoint::Status,
    },
    Route {
        method: "GET",
        path: "/v1/promotions",
        guard: Guard::Look,
        endpoint: Endpoint::Promotions,
    },
    Route {
        method: "POST",
        path: "/v1/sync",
        guard: Guard::Look,
        endpoint: Endpoint::Sync,
    },
    Route {
        method: "POST",
        path: "/v1/copies",
        guard: Guard::Decide,
        endpoint: Endpoint::Copies,
    },
    Route {
        method: "POST",
        path: "/v1/decisions",
        guard: Guard::Decide,
        endpoint: Endpoint::Decide,
    },
    Route {
        method: "GET",
        path: "/v1/decisions",
        guard: Guard::Look,
        endpoint: Endpoint::Decisions,
    },
    Route {
        method: "GET",
        path: "/v1/runs/{id}",
        guard: Guard::Look,
        endpoint: Endpoint::Run,
    },
    Route {
        method: "GET",
        path: "/v1/tags",
        guard: Guard::Look,
        endpoint: Endpoint::Tags,
    },
    Route {
        method: "GET",
        path: "/v1/caller",
        guard: Guard::Look,
        endpoint: Endpoint::Caller,
    },
    Route {
        method: "POST",
        path: "/v1/events/{name}",
        guard: Guard::Receiver,
        endpoint: Endpoint::Events,
    },
];

impl Route {
    fn serves(&self, method: &Method) -> bool {
        let is_head = method == Method::HEAD && self.method == "GET";
        is_head || method.as_str() == self.method
    }

    /// Whether `path` is one of this route.
    pub(super) fn takes(&self, path: &str) -> bool {
        match self.path.split_once('{') {
            Some((prefix, _)) => path
                .strip_prefix(prefix)
                .is_some_and(|id| !id.is_empty() && !id.contains('/')),
            None => path == self.path,
        }
    }
}

/// The routes as the 404 lists them.
pub(super) fn listed() -> String {
    let lines = ROUTES.map(|route| format!("{} {}", route.method, route.path));
    let lines = lines.join(", ");
    lines.replace("{id}", "ID").replace("{name}", "NAME")
}
