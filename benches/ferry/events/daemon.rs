//! A daemon that takes push events.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::queue::Moto;
use crate::daemon;

/// Repositories, each with a route.
pub const REPOSITORIES: usize = 20;
/// What the receiver and its sender share.
pub const SECRET: &str = "a-long-random-word";

/// A running daemon; killed when dropped.
pub struct Daemon(daemon::Daemon);

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
        let secret = home.path().join("secret");
        std::fs::write(&secret, SECRET).map_err(|error| error.to_string())?;
        let mut config = config(source, destination);
        config["receivers"]["pushes"]["secret_file"] = json!(secret);
        let mut variables = Vec::new();
        if let Some(moto) = queue {
            config["queues"] = json!({"pushes": {"sqs": moto.queue("pushes"), "registry": "staging",
                "region": "eu-west-1"}});
            variables.extend(moto.identity());
        }
        let program = Path::new(env!("CARGO_BIN_EXE_blobferry"));
        let mut daemon = daemon::Daemon::start(program, &["-q", "run"], home, config, variables)?;
        daemon.ready(Duration::from_secs(10)).await?;
        Ok(Daemon(daemon))
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
            .0
            .post("/v1/events/pushes")
            .bearer_auth(secret)
            .body(body.to_string());
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        answer.bytes().await.map_err(|error| error.to_string())?;
        Ok(status)
    }

    /// How many notifications it has counted with this result.
    pub async fn counted(&self, result: &str) -> f64 {
        let asked = self.0.get("/metrics").send().await;
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
        self.0.cpu()
    }

    /// Most resident bytes so far.
    pub fn memory(&self) -> u64 {
        self.0.memory()
    }
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
        "daemon": {"poll": "off"},
        "registries": registries,
        "receivers": {"pushes": {"kind": "distribution", "registry": "staging"}},
        "routes": (0..REPOSITORIES).map(route).collect::<Vec<_>>(),
    })
}
