//! Clients of services beside the registries: gates, receivers of notifications, issuers of tokens.
//!
//! Redirects are not followed: what is secret goes to the address of the config alone.

use std::error::Error;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect};

use crate::oci::Host;

/// Whether a host is this machine.
pub fn is_here(host: &str) -> bool {
    host.parse().is_ok_and(|host: Host| host.is_loopback())
}

/// The client for a host. This machine is reached without a proxy.
pub fn client(host: &str) -> ClientBuilder {
    let builder = Client::builder()
        .redirect(redirect::Policy::none())
        .user_agent(concat!("blobferry/", env!("CARGO_PKG_VERSION")))
        .pool_idle_timeout(Duration::from_secs(60));
    match is_here(host) {
        true => builder.no_proxy(),
        false => builder,
    }
}

/// A failure without the address, which may hold what is secret.
pub fn without_address(error: &reqwest::Error) -> String {
    let what = if error.is_timeout() {
        "it did not answer in time"
    } else if error.is_connect() {
        "it cannot be reached"
    } else {
        "the request broke off"
    };
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    match cause {
        Some(cause) => format!("{what}: {cause}"),
        None => what.to_owned(),
    }
}
