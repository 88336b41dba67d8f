//! A daemon with a config, a state folder and an address of its own.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::machine;
use crate::process::peak;

/// Between two questions whether it is ready.
const PAUSE: Duration = Duration::from_millis(20);

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pid: u32,
    base: String,
    http: reqwest::Client,
    _home: TempDir,
}

impl Daemon {
    /// Starts `program` with these words and a config that lacks the address and the state folder;
    /// they are added.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        program: &Path,
        words: &[&str],
        home: TempDir,
        mut config: Value,
        variables: Vec<(&str, String)>,
    ) -> Result<Daemon, String> {
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .map_err(|error| error.to_string())?;
        config["daemon"]["listen"] = json!(address.to_string());
        config["daemon"]["state"] = json!(home.path().join("state"));
        let file = home.path().join("config");
        std::fs::write(&file, config.to_string()).map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .env_clear()
            .env("HOME", home.path())
            .envs(variables)
            .args(words)
            .arg("-c")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| error.to_string())?;
        Ok(Daemon {
            pid: child.id().ok_or("the daemon has ended")?,
            child,
            base: format!("http://{address}"),
            http: client(),
            _home: home,
        })
    }

    /// Waits until every route has been looked at.
    ///
    /// # Errors
    /// It has ended, or takes longer than `within`.
    pub async fn ready(&mut self, within: Duration) -> Result<(), String> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the daemon ended with {status}"));
            }
            let asked = self.get("/readyz").send().await;
            if asked.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(format!(
            "the daemon is not ready within {} s",
            within.as_secs()
        ))
    }

    /// A GET that is not sent yet.
    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }

    /// A POST that is not sent yet.
    pub fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.base))
    }

    /// CPU seconds so far.
    pub fn cpu(&self) -> f64 {
        machine::cpu_seconds(self.pid)
    }

    /// Most resident bytes so far.
    pub fn memory(&self) -> u64 {
        peak(self.pid)
    }
}

/// A client that keeps its connections.
pub fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().build();
    client.expect("a client without options")
}
