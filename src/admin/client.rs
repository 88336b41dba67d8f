//! A small HTTP client for the control socket: how the command line asks the daemon beside it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
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
    let broken = |text: String| Error::Broken {
        socket: socket.into(),
        text,
    };
    let exchange = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| unreachable(socket, &error))?;
        let request =
            written(method, path_and_query, body).map_err(|error| broken(error.to_string()))?;
        let (status, answer) = exchange(stream, request).await.map_err(broken)?;
        let answer = read(&answer).map_err(|error| {
            broken(format!(
                "{status}, and not JSON ({error}): {}",
                clip(&String::from_utf8_lossy(&answer), 200)
            ))
        })?;
        Ok((status, answer))
    };
    match deadline {
        None => exchange.await,
        Some(deadline) => {
            let late = |_| broken(format!("no answer within {} s", deadline.as_secs_f64()));
            timeout(deadline, exchange).await.map_err(late)?
        }
    }
}

fn written(
    method: Method,
    path_and_query: &str,
    body: Option<Value>,
) -> Result<Request<Full<Bytes>>, axum::http::Error> {
    let request = Request::builder()
        .method(method)
        .uri(path_and_query)
        .header(header::HOST, "localhost");
    match body {
        Some(body) => request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string()))),
        None => request.body(Full::default()),
    }
}

async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| said(&error))?;
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| said(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_ANSWER)
            .collect()
            .await
            .map_err(|error| said(&*error))?;
        Ok((status, body.to_bytes()))
    };
    // The connection moves the bytes; its own end, good or bad, shows in the answer.
    let moving = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        () = moving => Err("the connection ended".into()),
    }
}

fn read(answer: &[u8]) -> serde_json::Result<Value> {
    if answer.is_empty() {
        Ok(Value::Null)
    } else {
        serde_json::from_slice(answer)
    }
}

/// An error of hyper and what is behind it, in one line.
fn said(error: &(dyn std::error::Error + 'static)) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> Error {
    let socket = socket.to_path_buf();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning { socket },
        io::ErrorKind::PermissionDenied => {
            let owner = socket
                .ancestors()
                .find_map(|path| path.symlink_metadata().ok())
                .map(|metadata| metadata.uid());
            Error::Denied { socket, owner }
        }
        _ => Error::Broken {
            socket,
            text: format!("cannot connect: {error}"),
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
        let error = unreachable(&hidden, &io::ErrorKind::PermissionDenied.into());
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
