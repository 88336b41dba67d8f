//! What the tests stand on: real registries, a proxy that breaks things, images with real digests,
//! and the built binary.
//!
//! Faults live in the network between real programs. Nothing here uses blobferry's own code: what
//! the tests compare with must not be wrong in the same way.

pub mod authority;
pub mod browser;
pub mod client;
pub mod config;
pub mod daemon;
pub mod ecr;
pub mod image;
pub mod keyless;
pub mod layout;
pub mod memory;
pub mod moto;
pub mod peer;
pub mod prometheus;
pub mod proxy;
pub mod registry;
pub mod rules;
pub mod scripted;
pub mod skopeo;
pub mod stage;
pub mod terminal;
pub mod token;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

pub use client::Client;
pub use config::{Config, THREADS};
pub use daemon::{Daemon, Ferry, Run};
pub use ecr::Ecr;
pub use image::{Blob, Document, Image};
pub use proxy::{Kind, Proxy};
pub use registry::{Program, Registry};
pub use rules::{Act, Cut, Gate, Reply, Rule};
pub use scripted::Scripted;
pub use stage::Stage;
pub use token::TokenServer;

/// Asks again and again until there is an answer; panics after 30 s. For states of other processes
/// that send no event.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not within 30 s");
}

/// Serves on loopback until the test ends; returns `http://` and the address.
pub async fn serve(router: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await.expect("a server") });
    format!("http://{address}")
}

/// A loopback port for a program that cannot tell which one it took. It lies below the ports that
/// the kernel hands to outgoing connections, so no other process takes it meanwhile by chance.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 64) as u16 * 180;
    (0..180)
        .map(|_| 20_000 + start + NEXT.fetch_add(1, Ordering::Relaxed) % 180)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port among 180")
}
