//! A small HTTP client for the control socket: how the command line asks the daemon beside it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{Method, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use tokio::time::timeout;

use crate::fault::clip;

/// Bytes of an answer at most.
const MOST_ANSWER: usize = 64 << 20;

/// The daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens there.
    #[error("no daemon is running: nothing answers at {}", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// We may not use the socket.
    #[error("not allowed to use {}{}", socket.display(), owned_by(*owner))]
    Denied {
        /// The socket.
        socket: PathBuf,
        /// The owner of the socket, or of the nearest folder above it that can be read.
        owner: Option<u32>,
    },
    /// The daemon was there, but its answer was not.
    #[error("the daemon at {} did not answer properly: {text}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        text: String,
    },
}

/// Sends one request and reads the answer, whatever its status: at most 64 MiB of JSON; an empty
/// body is `null`. `path_and_query` is in its encoded form. Without a deadline it waits as long as
/// the daemon lives.
///
/// # Errors
/// [`Error`] when there is no whole answer.
pub async fn request(
    socket: &Path,
    method: Method,
    path_and_query: &str,
    body: Option<Value>,
    deadline: Option<Duration>,
) -> Result<(StatusCode, Value), Error> {
    let exchange = exchange(socket, method, path_and_query, body);
    let (status, answer) = match deadline {
        None => exchange.await?,
        Some(deadline) => timeout(deadline, exchange).await.map_err(|_| {
            let text = format!("no answer within {} s", deadline.as_secs_f64());
            broken(socket, text)
        })??,
    };
    let answer = read(&answer).map_err(|error| {
        let answer = String::from_utf8_lossy(&answer);
        let text = format!("{status}, and not JSON ({error}): {}", clip(&answer, 200));
        broken(socket, text)
    })?;
    Ok((status, answer))
}

async fn exchange(
    socket: &Path,
    method: Method,
    path_and_query: &str,
    body: Option<Value>,
) -> Result<(StatusCode, Bytes), Error> {
    // No certificate is needed, and reading the system's takes a while.
    let client = reqwest::Client::builder()
        .unix_socket(socket)
        .no_proxy()
        .tls_certs_only([])
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| broken(socket, said(&error)))?;
    let mut request = client.request(method, format!("http://localhost{path_and_query}"));
    if let Some(body) = body {
        request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_string());
    }
    let response = request
        .send()
        .await
        .map_err(|error| unreachable(socket, &error.without_url()))?;
    let status = response.status();
    let body = Limited::new(reqwest::Body::from(response), MOST_ANSWER)
        .collect()
        .await
        .map_err(|error| broken(socket, said(&*error)))?;
    Ok((status, body.to_bytes()))
}

fn broken(socket: &Path, text: String) -> Error {
    Error::Broken {
        socket: socket.into(),
        text,
    }
}

fn read(answer: &[u8]) -> serde_json::Result<Value> {
    if answer.is_empty() {
        Ok(Value::Null)
    } else {
        serde_json::from_slice(answer)
    }
}

/// An error and what is behind it, in one line.
fn said(error: &(dyn std::error::Error + 'static)) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn unreachable(socket: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let system = chain
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .last();
    let socket = socket.to_path_buf();
    match system.map(io::Error::kind) {
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Error::NotRunning { socket }
        }
        Some(io::ErrorKind::PermissionDenied) => {
            let owner = socket
                .ancestors()
                .find_map(|path| path.symlink_metadata().ok())
                .map(|metadata| metadata.uid());
            Error::Denied { socket, owner }
        }
        _ => Error::Broken {
            socket,
            text: said(error),
        },
    }
}

fn owned_by(owner: Option<u32>) -> String {
    match owner {
        Some(0) => ": it belongs to root; try it with sudo".into(),
        Some(uid) => {
            format!(": it belongs to the user with id {uid}; run this as that user or as root")
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_user_learns_whose_socket_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let owner = folder.path().metadata().unwrap().uid();
        let hidden = folder.path().join("state/control.sock");
        let error = unreachable(&hidden, &io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(matches!(error, Error::Denied { owner: Some(uid), .. } if uid == owner));
        let text = Error::Denied {
            socket: "/state/control.sock".into(),
            owner: Some(1000),
        }
        .to_string();
        assert_eq!(
            text,
            "not allowed to use /state/control.sock: it belongs to the user with id 1000; run this as that user or as root"
        );
    }
}
