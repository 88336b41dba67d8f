//! A real Prometheus that scrapes, and its linter for metrics.

use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use super::registry::installed;
use super::{eventually, free_port};

/// A running Prometheus with one target.
pub struct Prometheus {
    base: String,
    http: reqwest::Client,
    _child: Child,
    _scratch: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `target` (`host:port`) every second.
    pub async fn scraping(target: &str) -> Prometheus {
        let scratch = TempDir::with_prefix("blobferry-prometheus-").expect("a scratch directory");
        let config = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: blobferry\n    static_configs:\n      - targets: [\"{target}\"]\n"
        );
        let path = scratch.path().join("prometheus.yml");
        std::fs::write(&path, config).expect("a config file in the scratch directory");
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new(installed(&["prometheus"], "apt-get install prometheus"))
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                scratch.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus starts");
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client without options");
        Prometheus {
            base: format!("http://{address}"),
            http,
            _child: child,
            _scratch: scratch,
        }
    }

    /// Waits until the target is up.
    pub async fn target_up(&self) {
        eventually("prometheus has the target up", async || {
            (self.query("up").await? == 1.0).then_some(())
        })
        .await;
    }

    /// The first value of a query's answer.
    pub async fn query(&self, query: &str) -> Option<f64> {
        let mut url =
            url::Url::parse(&format!("{}/api/v1/query", self.base)).expect("a loopback URL");
        url.query_pairs_mut().append_pair("query", query);
        let answer = self.http.get(url).send().await.ok()?.bytes().await.ok()?;
        let answer: Value = serde_json::from_slice(&answer).ok()?;
        answer["data"]["result"][0]["value"][1]
            .as_str()?
            .parse()
            .ok()
    }
}

/// What `promtool check metrics` says about an exposition; empty when it has nothing to say.
pub async fn lint(exposition: &str) -> String {
    let mut child = Command::new(installed(&["promtool"], "apt-get install prometheus"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin
        .write_all(exposition.as_bytes())
        .await
        .expect("promtool reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("promtool ends");
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Asserts that Prometheus reads queries.
pub fn assert_read(queries: &[String]) {
    let rules: Vec<Value> = queries
        .iter()
        .map(|query| json!({"record": "job:query", "expr": query}))
        .collect();
    let groups = json!({"groups": [{"name": "queries", "rules": rules}]});
    let file = NamedTempFile::new().expect("a scratch file");
    std::fs::write(&file, groups.to_string()).expect("a file");
    let promtool = installed(&["promtool"], "apt-get install prometheus");
    let output = std::process::Command::new(promtool)
        .args(["check", "rules", "--lint=none"])
        .arg(file.path())
        .output()
        .expect("promtool runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
