//! Asking a running daemon over the control socket in its state folder.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::Failure;
use super::output::clean;
use super::progress::say;
use crate::admin::client::{self, Error};
use crate::config::StatePath;
use crate::state;

/// Where the daemon's control socket is. Whether anybody answers there shows when it is asked.
#[derive(Clone, Debug)]
pub(super) struct Socket(PathBuf);

/// How long a question about what is known may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long an order waits for the socket of a process that holds the state folder: a daemon that
/// starts makes it within seconds.
const STARTING: Duration = Duration::from_secs(10);
/// How often it looks for the socket.
const AGAIN: Duration = Duration::from_millis(100);
/// How often a daemon that has not answered an order yet is asked whether it answers at all.
const PROBE: Duration = Duration::from_secs(1);
/// How often an order is given anew, since another process took the state folder meanwhile.
const TURNS: usize = 3;

/// What came of an order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ordered<T> {
    /// The daemon's answer.
    ByDaemon(StatusCode, Value),
    /// It was done in this process: no daemon runs.
    Alone(T),
}

impl Socket {
    pub(super) fn in_state(state: &Path) -> Socket {
        Socket(state.join("control.sock"))
    }

    /// Asks for something that is known. `None`: no daemon runs.
    ///
    /// # Errors
    /// The daemon is not for us, or does not know.
    pub(super) async fn read(&self, path_and_query: &str) -> Result<Option<Value>, Failure> {
        let Some((status, body)) = self
            .ask(Method::GET, path_and_query, None, Some(DEADLINE))
            .await?
        else {
            return Ok(None);
        };
        if status.is_success() {
            Ok(Some(body))
        } else {
            Err(refusal(status, &body))
        }
    }

    /// Asks for something that is found out first, however long it takes. `None`: no daemon runs.
    ///
    /// # Errors
    /// The daemon is not for us, or does not know.
    pub(super) async fn find_out(&self, path_and_query: &str) -> Result<Option<Value>, Failure> {
        match self.ask(Method::GET, path_and_query, None, None).await? {
            Some((status, body)) if status.is_success() => Ok(Some(body)),
            Some((status, body)) => Err(refusal(status, &body)),
            None => Ok(None),
        }
    }

    /// Asks for something to be done, however long it takes. `None`: no daemon runs.
    ///
    /// # Errors
    /// The daemon is not for us, or went away before it answered.
    pub(super) async fn act(
        &self,
        path: &str,
        body: Value,
    ) -> Result<Option<(StatusCode, Value)>, Failure> {
        self.ask(Method::POST, path, Some(body), None).await
    }

    /// Orders a decision of the daemon, which may be starting: while a process holds the state
    /// folder, its socket is waited for. `None`: no daemon runs.
    ///
    /// # Errors
    /// The daemon is not for us, went away before it answered, is frozen, or makes no socket in
    /// time.
    pub(super) async fn order(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<Option<(StatusCode, Value)>, Failure> {
        let began = Instant::now();
        let mut is_told = false;
        loop {
            let order = self.exchange(Method::POST, path, Some(body.clone()), None);
            if let Some(answer) = self.unless_frozen(order).await? {
                return Ok(Some(answer));
            }
            let Some(absent) = self.absent() else {
                return Ok(None);
            };
            if began.elapsed() >= STARTING {
                return Err(absent);
            }
            if !std::mem::replace(&mut is_told, true) {
                say("a process holds the state folder, and does not answer yet: waits for it");
            }
            sleep(AGAIN).await;
        }
    }

    /// Orders something of the daemon, or does it in this process where none runs. `alone` comes to
    /// `None` where a process has taken the state folder meanwhile: a daemon that starts.
    ///
    /// # Errors
    /// As [`Socket::order`], and those of `alone`.
    pub(super) async fn order_or<T>(
        &self,
        path: &str,
        body: &Value,
        alone: impl AsyncFn() -> Result<Option<T>, Failure>,
    ) -> Result<Ordered<T>, Failure> {
        for _ in 0..TURNS {
            if let Some((status, body)) = self.order(path, body).await? {
                return Ok(Ordered::ByDaemon(status, body));
            }
            if let Some(done) = alone().await? {
                return Ok(Ordered::Alone(done));
            }
        }
        let text = "other processes take the state folder in turn: try it again";
        Err(self.absent().unwrap_or_else(|| Failure::said(1, text)))
    }

    /// Asks for something that can be done without a daemon as well. `None`: no daemon runs, or it
    /// is not for us.
    ///
    /// # Errors
    /// The daemon went away before it answered.
    pub(super) async fn offer(
        &self,
        path: &str,
        body: Value,
    ) -> Result<Option<(StatusCode, Value)>, Failure> {
        match self.exchange(Method::POST, path, Some(body), None).await {
            Err(Error::Denied { .. }) => Ok(None),
            answer => answer.map_err(|error| Failure::new(1, error)),
        }
    }

    /// Why nothing answers although a process holds the state folder: none may use the state beside
    /// it.
    fn absent(&self) -> Option<Failure> {
        let folder = self.0.parent()?;
        let process = match state::holder(folder)? {
            0 => "a process".into(),
            holder => format!("process {holder}"),
        };
        Some(Failure::said(
            1,
            format_args!(
                "{process} holds the state folder {}, but nothing answers at {}: \
                 if it is the daemon, it makes the socket again within seconds; if it is `blobferry sync`, wait for its end",
                folder.display(),
                self.0.display()
            ),
        ))
    }

    async fn ask(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<Value>,
        deadline: Option<Duration>,
    ) -> Result<Option<(StatusCode, Value)>, Failure> {
        let asked = self.exchange(method, path_and_query, body, deadline).await;
        match asked.map_err(|error| Failure::new(1, error))? {
            Some(answer) => Ok(Some(answer)),
            None => self.absent().map_or(Ok(None), Err),
        }
    }

    /// One request and its answer. `None`: nothing listens.
    async fn exchange(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<Value>,
        deadline: Option<Duration>,
    ) -> Result<Option<(StatusCode, Value)>, Error> {
        match client::request(&self.0, method, path_and_query, body, deadline).await {
            Err(Error::NotRunning { .. }) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Waits for the answer to an order while the daemon answers other questions: a rollback takes
    /// as long as its content does.
    async fn unless_frozen<T>(
        &self,
        order: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        let mut order = pin!(order);
        let ended = tokio::select! {
            biased;
            ended = &mut order => Some(ended),
            () = self.until_frozen() => None,
        };
        let Some(ended) = ended else {
            return Err(Failure::said(
                1,
                format_args!(
                    "the daemon at {} took the request, but has answered nothing for {} s: the decision may have been \
                     recorded, now or when the daemon goes on; `blobferry status` lists the decisions in force, and \
                     `blobferry history` all of them",
                    self.0.display(),
                    DEADLINE.as_secs()
                ),
            ));
        };
        ended.map_err(|error| Failure::new(1, error))
    }

    /// Ends when the daemon does not answer in time whether it is alive.
    async fn until_frozen(&self) {
        loop {
            sleep(PROBE).await;
            let health = client::request(&self.0, Method::GET, "/healthz", None, None);
            if timeout(DEADLINE, health).await.is_err() {
                return;
            }
        }
    }
}

/// No daemon runs on the state folder.
pub(super) fn not_running(state: &StatePath) -> Failure {
    let folder = state.folder.display();
    let doubt = state
        .doubt
        .iter()
        .map(|doubt| format!("; {doubt}"))
        .collect::<String>();
    let way_out =
        "start one with `blobferry run`, or name the folder of a running one with --state DIR";
    Failure::said(
        1,
        format_args!("no daemon is running on the state folder {folder} ({way_out}){doubt}"),
    )
}

/// An answer of the daemon that is not what was asked for: `{"error":{"code","text"}}`.
pub(super) fn refusal(status: StatusCode, body: &Value) -> Failure {
    let text = body["error"]["text"]
        .as_str()
        .map_or_else(|| format!("status {status}"), clean);
    let code = match status {
        StatusCode::NOT_FOUND => 5,
        StatusCode::BAD_REQUEST => 2,
        _ => 1,
    };
    Failure::said(code, format_args!("the daemon says: {text}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use tokio::net::UnixListener;

    use super::*;

    /// A daemon takes the folder after it was found free, and before the order takes it.
    #[tokio::test]
    async fn an_order_that_finds_the_folder_taken_asks_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Socket::in_state(folder.path());
        let daemon = Mutex::new(None);
        let alone = async || {
            let listener = UnixListener::bind(&socket.0).unwrap();
            let routes = Router::new().fallback(async || axum::Json("recorded"));
            let served = tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
            let before = daemon.lock().unwrap().replace(served);
            assert!(before.is_none(), "it is done once");
            Ok(None::<()>)
        };
        let ordered = socket.order_or("/v1/decisions", &Value::Null, alone).await;
        let answer = Ordered::ByDaemon(StatusCode::OK, "recorded".into());
        assert_eq!(ordered.unwrap(), answer);
        let served = daemon.lock().unwrap().take();
        served.unwrap().abort();
    }

    /// It was refused as a mistake of the caller, with the advice to stop that process.
    #[tokio::test]
    async fn an_order_that_never_gets_the_folder_fails_without_advice() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Socket::in_state(folder.path());
        let alone = async || Ok(None::<()>);
        let ordered = socket.order_or("/v1/decisions", &Value::Null, alone).await;
        let failure = ordered.unwrap_err();
        assert_eq!(failure.code, 1);
        assert!(failure.to_string().contains("try it again"), "{failure}");
    }

    #[test]
    fn refusals_keep_the_daemons_words_and_get_an_exit_code() {
        for (status, code) in [(404, 5), (400, 2), (503, 1)] {
            let body = serde_json::json!({"error": {"code": "x", "text": "no such\u{1b} tag"}});
            let failure = refusal(StatusCode::from_u16(status).unwrap(), &body);
            assert_eq!(
                (failure.code, failure.to_string().as_str()),
                (code, "the daemon says: no such\u{fffd} tag")
            );
        }
        assert!(
            refusal(StatusCode::BAD_GATEWAY, &Value::Null)
                .to_string()
                .contains("502")
        );
    }
}
