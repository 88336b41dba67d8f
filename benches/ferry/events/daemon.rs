//! A daemon that takes push events.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::queue::Moto;
use crate::machine;
use crate::process::peak;

/// Repositories, each with a route.
pub const REPOSITORIES: usize = 20;
/// What the receiver and its sender share.
pub const SECRET: &str = "a-long-random-word";

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pid: u32,
    base: String,
    http: reqwest::Client,
    _home: TempDir,
}

/// The repository of the push with this number.
pub fn repository(number: usize) -> String {
    format!("app{}", number % REPOSITORIES)
}

impl Daemon {
    /// One between two registries (`host:port`), which no poll wakes.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(
        source: &str,
        destination: &str,
        queue: Option<&Moto>,
    ) -> Result<Daemon, String> {
        let home = TempDir::with_prefix("blobferry-bench-").map_err(|error| error.to_string())?;
        let path = |name: &str| home.path().join(name);
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .map_err(|error| error.to_string())?;
        let mut config = config(source, destination);
        config["daemon"] =
            json!({"listen": address.to_string(), "state": path("state"), "poll": "off"});
        config["receivers"]["pushes"]["secret_file"] = json!(path("secret"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_blobferry"));
        command.env_clear().env("HOME", home.path());
        if let Some(moto) = queue {
            config["queues"] = json!({"pushes": {"sqs": moto.queue("pushes"), "registry": "staging",
                "region": "eu-west-1"}});
            command.envs(moto.identity());
        }
        for (name, text) in [
            ("secret", SECRET.to_owned()),
            ("config", config.to_string()),
        ] {
            std::fs::write(path(name), text).map_err(|error| error.to_string())?;
        }
        let child = command
            .args(["-q", "run", "-c"])
            .arg(path("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| error.to_string())?;
        let daemon = Daemon {
            pid: child.id().ok_or("the daemon has ended")?,
            child,
            base: format!("http://{address}"),
            http: client(),
            _home: home,
        };
        daemon.ready().await
    }

    async fn ready(mut self) -> Result<Daemon, String> {
        for _ in 0..500 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the daemon ended with {status}"));
            }
            let asked = self.http.get(format!("{}/readyz", self.base)).send().await;
            if asked.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(self);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("the daemon is not ready within 10 s".into())
    }

    /// The status of a notification as distribution sends it.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn notify(&self, secret: &str, number: usize, tag: &str) -> Result<u16, String> {
        let target = json!({"repository": repository(number), "tag": tag,
            "mediaType": "application/vnd.oci.image.manifest.v1+json"});
        let body = json!({"events": [{"action": "push", "target": target}]});
        let request = self
            .http
            .post(format!("{}/v1/events/pushes", self.base))
            .bearer_auth(secret)
            .body(body.to_string());
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        answer.bytes().await.map_err(|error| error.to_string())?;
        Ok(status)
    }

    /// How many notifications it has counted with this result.
    pub async fn counted(&self, result: &str) -> f64 {
        let asked = self.http.get(format!("{}/metrics", self.base)).send().await;
        let text = match asked {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        };
        let series = format!("blobferry_events_total{{result=\"{result}\",source=\"webhook\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&series));
        line.and_then(|count| count.parse().ok()).unwrap_or(0.0)
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

fn config(source: &str, destination: &str) -> Value {
    let url = |address: &str| json!({"url": format!("http://{address}")});
    let route = |number: usize| {
        let name = repository(number);
        json!({"name": name, "from": format!("staging/{name}"), "to": format!("production/{name}"),
            "tags": {"include": ["*"]}})
    };
    let registries = Map::from_iter([
        ("staging".to_owned(), url(source)),
        ("production".to_owned(), url(destination)),
    ]);
    json!({
        "registries": registries,
        "receivers": {"pushes": {"kind": "distribution", "registry": "staging"}},
        "routes": (0..REPOSITORIES).map(route).collect::<Vec<_>>(),
    })
}
