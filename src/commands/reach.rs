//! `check --online`: is every receiver reachable from here?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::{Client, Method, StatusCode, redirect};

use super::check::Check;
use crate::config::Config;
use crate::fault::Fault;

/// Time for one answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Asks the daemon that runs with this config for each of its receivers. Nothing is notified.
pub async fn check_receivers(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    for receiver in &config.receivers {
        let name = format!("receiver {}", receiver.name);
        let path = format!("/v1/events/{}", receiver.name);
        checks.push(match reached(config, &path).await {
            Ok(Reached::Yes(url)) => Check::of(name, Ok(format!("reachable at {url}"))),
            Ok(Reached::NoDaemon(url)) => {
                let text = format!("no daemon answers at {url}; it is tried once one runs");
                Check::warning(name, &text)
            }
            Err(fault) => Check::of(name, Err(fault)),
        });
    }
    checks
}

enum Reached {
    Yes(String),
    NoDaemon(String),
}

async fn reached(config: &Config, path: &str) -> Result<Reached, Fault> {
    let Some(listen) = config.daemon.listen else {
        let text = "daemon.listen is off: no registry can reach the receiver";
        return Err(Fault::rejected(text));
    };
    let scheme = match config.daemon.tls {
        Some(_) => "https",
        None => "http",
    };
    let url = format!("{scheme}://{}{path}", from_here(listen));
    // The certificate is for the name that registries use. Nothing secret is sent.
    let client = Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(DEADLINE)
        .tls_danger_accept_invalid_certs(true)
        .build()
        .map_err(|error| Fault::rejected(error.to_string()))?;
    let asked = client.request(Method::OPTIONS, &url).send().await;
    let status = match asked {
        Ok(answer) => answer.status(),
        Err(error) if error.is_connect() => return Ok(Reached::NoDaemon(url)),
        Err(error) => return Err(Fault::retryable(format!("{url}: {error}"))),
    };
    match status {
        StatusCode::OK => Ok(Reached::Yes(url)),
        StatusCode::NOT_FOUND => {
            let text = format!("{url} has no receiver of that name; reload the daemon");
            Err(Fault::rejected(text))
        }
        status => Err(Fault::rejected(format!("{url} answers {status}"))),
    }
}

/// An address of this machine at which a listener is reached.
fn from_here(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, listen.port())
}
