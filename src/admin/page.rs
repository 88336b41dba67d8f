//! `GET /` and `GET /page/NAME`: a page for browsers, with its style and scripts.
//!
//! The page holds nothing of the daemon: its script asks the API, as any caller does, and shows what
//! that gives to the token that was typed in. Each answer forbids the browser to load, run, frame or
//! send anything beyond this server.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::answer::Refusal;

/// What browsers may do with the page. Trusted types forbid the script to make markup of a text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The parts by name, each with its type.
const PARTS: [(&str, &str, &str); 12] = [
    ("page.css", CSS, include_str!("page/page.css")),
    ("icon.svg", SVG, include_str!("page/icon.svg")),
    ("page.js", JAVASCRIPT, include_str!("page/page.js")),
    ("api.js", JAVASCRIPT, include_str!("page/api.js")),
    ("element.js", JAVASCRIPT, include_str!("page/element.js")),
    ("overview.js", JAVASCRIPT, include_str!("page/overview.js")),
    ("tags.js", JAVASCRIPT, include_str!("page/tags.js")),
    ("tag.js", JAVASCRIPT, include_str!("page/tag.js")),
    (
        "decisions.js",
        JAVASCRIPT,
        include_str!("page/decisions.js"),
    ),
    ("act.js", JAVASCRIPT, include_str!("page/act.js")),
    ("parts.js", JAVASCRIPT, include_str!("page/parts.js")),
    ("steps.js", JAVASCRIPT, include_str!("page/steps.js")),
];

/// `GET /`.
pub(super) async fn page() -> Response {
    answer(HTML, include_str!("page/index.html"))
}

/// `GET /page/NAME`.
pub(super) async fn part(name: Result<Path<String>, PathRejection>) -> Result<Response, Refusal> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let part = PARTS.iter().find(|(known, ..)| *known == name);
    let (_, content_type, body) = part.ok_or_else(|| {
        let text = "the page has no such part; it is at /";
        Refusal::new(StatusCode::NOT_FOUND, "not_found", text)
    })?;
    Ok(answer(content_type, body))
}

fn answer(content_type: &'static str, body: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    let opener = [("cross-origin-opener-policy", "same-origin")];
    (opener, headers, body).into_response()
}
