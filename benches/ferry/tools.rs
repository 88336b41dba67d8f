//! The tools that are compared: each copies all tags of some repositories from one registry to another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::process::{Cost, measure};
use crate::registry::find;

/// How much the peers do at once, where they have a knob.
const AT_ONCE: usize = 8;
/// No run may take longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// A tool.
#[derive(Clone, Debug)]
pub struct Tool {
    /// What it is called.
    pub name: &'static str,
    path: PathBuf,
    commands: Commands,
}

/// What has to be run for a task, one after the other, with a folder for configs.
type Commands = fn(&Tool, &Task, &Path) -> Vec<Command>;

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Task {
    /// `host:port` of the source.
    pub source: String,
    /// `host:port` of the destination.
    pub destination: String,
    /// The repositories, named alike on both sides.
    pub repositories: Vec<String>,
}

impl Tool {
    /// blobferry and the peers that are installed.
    pub fn all() -> Vec<Tool> {
        let mut tools = vec![Tool { name: "blobferry", path: env!("CARGO_BIN_EXE_blobferry").into(), commands: blobferry }];
        let peers: [(&'static str, Commands); 3] = [("regsync", regsync), ("crane", crane), ("skopeo", skopeo)];
        tools.extend(peers.into_iter().filter_map(|(name, commands)| Some(Tool { name, path: find(name)?, commands })));
        tools
    }

    /// Runs it from `home`, where it may keep what it remembers.
    ///
    /// # Errors
    /// What it said when it failed.
    pub async fn run(&self, task: &Task, home: &TempDir) -> Result<Cost, String> {
        let mut cost = Cost::default();
        for command in (self.commands)(self, task, home.path()) {
            cost = cost.then(measure(command, &home.path().join("log"), PATIENCE).await?);
        }
        Ok(cost)
    }

    fn command(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(home);
        command
    }
}

/// Writes a config in JSON, which is YAML too.
fn write(home: &Path, name: &str, config: &Value) -> PathBuf {
    let path = home.join(name);
    std::fs::write(&path, config.to_string()).expect("a file in the scratch directory");
    path
}

fn blobferry(tool: &Tool, task: &Task, home: &Path) -> Vec<Command> {
    let url = |address: &str| json!({"url": format!("http://{address}")});
    let route = |name: &String| json!({"name": name, "from": format!("staging/{name}"), "to": format!("production/{name}"), "tags": {"include": ["*"]}});
    let config = json!({
        "daemon": {"state": home.join("state"), "listen": "off"},
        "registries": {"staging": url(&task.source), "production": url(&task.destination)},
        "routes": task.repositories.iter().map(route).collect::<Vec<_>>(),
    });
    let mut command = tool.command(home);
    command.arg("sync").arg("-q").arg("-c").arg(write(home, "blobferry.yaml", &config));
    vec![command]
}

fn regsync(tool: &Tool, task: &Task, home: &Path) -> Vec<Command> {
    let open = |address: &str| json!({"registry": address, "tls": "disabled"});
    let entry = |name: &String| json!({"source": format!("{}/{name}", task.source), "target": format!("{}/{name}", task.destination), "type": "repository"});
    let config = json!({
        "version": 1,
        "creds": [open(&task.source), open(&task.destination)],
        "defaults": {"parallel": AT_ONCE},
        "sync": task.repositories.iter().map(entry).collect::<Vec<_>>(),
    });
    let mut command = tool.command(home);
    command.args(["once", "-v", "warn", "-c"]).arg(write(home, "regsync.yml", &config));
    vec![command]
}

fn crane(tool: &Tool, task: &Task, home: &Path) -> Vec<Command> {
    let copy = |name: &String| {
        let mut command = tool.command(home);
        command.args(["copy", "--insecure", "--all-tags", "--jobs", &AT_ONCE.to_string()]);
        command.arg(format!("{}/{name}", task.source)).arg(format!("{}/{name}", task.destination));
        command
    };
    task.repositories.iter().map(copy).collect()
}

fn skopeo(tool: &Tool, task: &Task, home: &Path) -> Vec<Command> {
    let images: serde_json::Map<String, Value> = task.repositories.iter().map(|name| (name.clone(), json!([]))).collect();
    let config = json!({task.source.as_str(): {"tls-verify": false, "images": images}});
    let mut command = tool.command(home);
    command.args([
        "--insecure-policy",
        "sync",
        "--all",
        "--preserve-digests",
        "--dest-tls-verify=false",
        "--src",
        "yaml",
        "--dest",
        "docker",
    ]);
    command.arg(write(home, "skopeo.yml", &config)).arg(&task.destination);
    vec![command]
}
