//! One request, and what its answer means.
//!
//! Redirects are not followed: the token goes to the address of the config alone. A name that leads
//! to a metadata service is refused.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, StatusCode, header};

use super::Settings;
use crate::clock;
use crate::fault::clip;
use crate::registry::{is_metadata, named_wait};
use crate::service;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait that a receiver may ask for.
const LONGEST_HINT: Duration = Duration::from_secs(60);
/// Most characters of the reason of a failure.
const LONGEST_REASON: usize = 300;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The receiver has it.
    Done,
    /// It may be tried again, after the time that the receiver names.
    Again(Option<Duration>, String),
    /// No further try would help.
    Refused(String),
}

/// The client for a receiver.
pub(super) fn client(settings: &Settings) -> Option<Client> {
    let builder = service::client(settings.host())
        .dns_resolver(std::sync::Arc::new(Resolver))
        .timeout(TIMEOUT);
    builder.build().ok()
}

/// Posts a body.
pub(super) async fn send(client: &Client, settings: &Settings, body: Vec<u8>) -> Sent {
    let mut request = client
        .post(settings.url.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .body(body);
    if let Some(token) = &settings.token {
        request = request.bearer_auth(token.expose());
    }
    match request.send().await {
        Ok(answer) => judge(answer.status(), answer.headers()),
        Err(error) => Sent::Again(
            None,
            clip(&service::without_address(&error), LONGEST_REASON),
        ),
    }
}

fn judge(status: StatusCode, headers: &header::HeaderMap) -> Sent {
    let text = format!("it answered {}", status.as_u16());
    match status.as_u16() {
        200..=299 => Sent::Done,
        408 | 425 | 429 | 500..=599 => Sent::Again(hint(headers), text),
        300..=399 => Sent::Refused(format!("{text}, and redirects are not followed")),
        _ => Sent::Refused(text),
    }
}

/// The wait that the receiver asks for.
fn hint(headers: &header::HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    Some(named_wait(text, clock::now())?.min(LONGEST_HINT))
}

/// Resolves names by the system's means, and refuses those of metadata services.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let addresses: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if addresses.iter().any(|address| is_metadata(address.ip())) {
                return Err("the name leads to a metadata service".into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_whether_another_try_helps() {
        let headers = |wait: &'static str| {
            let mut headers = header::HeaderMap::new();
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static(wait));
            headers
        };
        let none = header::HeaderMap::new();
        assert_eq!(judge(StatusCode::NO_CONTENT, &none), Sent::Done);
        let again =
            |seconds| Sent::Again(Some(Duration::from_secs(seconds)), "it answered 429".into());
        assert_eq!(
            judge(StatusCode::TOO_MANY_REQUESTS, &headers("7")),
            again(7)
        );
        assert_eq!(
            judge(StatusCode::TOO_MANY_REQUESTS, &headers("9999")),
            again(60)
        );
        let over = "Sat, 21 Nov 2026 10:00:09 GMT";
        assert_eq!(
            judge(StatusCode::SERVICE_UNAVAILABLE, &headers(over)),
            Sent::Again(Some(Duration::ZERO), "it answered 503".into())
        );
        let far = "Thu, 31 Dec 2099 23:59:59 GMT";
        assert_eq!(
            judge(StatusCode::TOO_MANY_REQUESTS, &headers(far)),
            again(60)
        );
        let refused = |status| matches!(judge(status, &none), Sent::Refused(_));
        assert!(refused(StatusCode::FOUND) && refused(StatusCode::NOT_FOUND));
        assert!(!refused(StatusCode::BAD_GATEWAY));
    }
}
