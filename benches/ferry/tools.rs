//! The tools that are compared: each copies all tags of some repositories from one registry to
//! others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::try_join_all;
use serde_json::{Map, Value, json};
use tokio::process::Command;
use tokio::time::Instant;

use crate::machine;
use crate::process::{End, Ran, run};
use crate::registry::find;

/// How much the peers do at once, where they have a knob.
const AT_ONCE: usize = 8;
/// No pass may take longer.
const PATIENCE: Duration = Duration::from_secs(180);

/// A tool.
#[derive(Clone, Debug)]
pub struct Tool {
    /// What it is called.
    pub name: &'static str,
    path: PathBuf,
    version: &'static str,
    /// It writes to several destinations by itself; the others run once for each, side by side.
    fans_out: bool,
    commands: Commands,
}

/// What has to be run for a task, one after the other, with a folder for configs.
type Commands = fn(&Tool, &Task, &Path) -> Vec<Command>;

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Task {
    /// `host:port` of the source.
    pub source: String,
    /// `host:port` of each destination.
    pub destinations: Vec<String>,
    /// The repositories, named alike on all sides.
    pub repositories: Vec<String>,
}

impl Tool {
    /// blobferry and the peers that are installed.
    pub fn all() -> Vec<Tool> {
        let path = env!("CARGO_BIN_EXE_blobferry").into();
        let ours = Tool {
            name: "blobferry",
            path,
            version: "--version",
            fans_out: true,
            commands: blobferry,
        };
        let peers: [(&'static str, &'static str, Commands); 3] = [
            ("crane", "version", crane),
            ("regsync", "version", regsync),
            ("skopeo", "--version", skopeo),
        ];
        let peer = |(name, version, commands)| {
            Some(Tool {
                name,
                path: find(name)?,
                version,
                fans_out: false,
                commands,
            })
        };
        std::iter::once(ours)
            .chain(peers.into_iter().filter_map(peer))
            .collect()
    }

    /// Its version.
    pub fn version(&self) -> String {
        machine::version(&self.path, self.version)
    }

    /// Runs it from `home`, where it may keep what it remembers, and kills it when `halt` says so.
    ///
    /// # Errors
    /// It took too long or did not start.
    pub async fn run(
        &self,
        task: &Task,
        home: &Path,
        halt: &(dyn Fn() -> bool + Sync),
    ) -> Result<Ran, String> {
        if self.fans_out || task.destinations.len() == 1 {
            return self.script(task.clone(), home.into(), halt).await;
        }
        let scripts = task
            .destinations
            .iter()
            .enumerate()
            .map(|(number, destination)| {
                let folder = home.join(number.to_string());
                std::fs::create_dir_all(&folder).expect("a folder in the scratch directory");
                self.script(
                    Task {
                        destinations: vec![destination.clone()],
                        ..task.clone()
                    },
                    folder,
                    halt,
                )
            });
        Ok(try_join_all(scripts)
            .await?
            .into_iter()
            .fold(Ran::NOTHING, Ran::beside))
    }

    async fn script(
        &self,
        task: Task,
        home: PathBuf,
        halt: &(dyn Fn() -> bool + Sync),
    ) -> Result<Ran, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut ran = Ran::NOTHING;
        for command in (self.commands)(self, &task, &home) {
            ran = ran.then(
                run(command, &home.join("log"), deadline, halt)
                    .await
                    .map_err(|error| cut(&error))?,
            );
            if ran.end != End::Done {
                break;
            }
        }
        Ok(ran)
    }

    fn command(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .env("HOME", home)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .current_dir(home);
        command
    }
}

fn cut(error: &str) -> String {
    if error == "cut" {
        format!("cut: not done after {} s", PATIENCE.as_secs())
    } else {
        error.into()
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
    let places: Vec<String> = (1..=task.destinations.len())
        .map(|number| format!("production-{number}"))
        .collect();
    let mut registries: Map<String, Value> = places
        .iter()
        .cloned()
        .zip(task.destinations.iter().map(|address| url(address)))
        .collect();
    registries.insert("staging".into(), url(&task.source));
    let route = |name: &String| {
        let to: Vec<String> = places
            .iter()
            .map(|place| format!("{place}/{name}"))
            .collect();
        json!({"name": name, "from": format!("staging/{name}"), "to": to, "tags": {"include": ["*"]}})
    };
    let config = json!({
        "daemon": {"state": home.join("state"), "listen": "off"},
        "registries": registries,
        "routes": task.repositories.iter().map(route).collect::<Vec<_>>(),
    });
    let mut command = tool.command(home);
    command
        .arg("sync")
        .arg("-q")
        .arg("-c")
        .arg(write(home, "blobferry.yaml", &config));
    vec![command]
}

fn regsync(tool: &Tool, task: &Task, home: &Path) -> Vec<Command> {
    let destination = &task.destinations[0];
    let open = |address: &str| json!({"registry": address, "tls": "disabled"});
    let entry = |name: &String| json!({"source": format!("{}/{name}", task.source), "target": format!("{destination}/{name}"), "type": "repository"});
    let config = json!({
        "version": 1,
        "creds": [open(&task.source), open(destination)],
        "defaults": {"parallel": AT_ONCE},
        "sync": task.repositories.iter().map(entry).collect::<Vec<_>>(),
    });
    let mut command = tool.command(home);
    command
        .args(["once", "-v", "warn", "-c"])
        .arg(write(home, "regsync.yml", &config));
    vec![command]
}

fn crane(tool: &Tool, task: &Task, home: &Path) -> Vec<Command> {
    let copy = |name: &String| {
        let mut command = tool.command(home);
        command.args([
            "copy",
            "--insecure",
            "--all-tags",
            "--jobs",
            &AT_ONCE.to_string(),
        ]);
        command
            .arg(format!("{}/{name}", task.source))
            .arg(format!("{}/{name}", task.destinations[0]));
        command
    };
    task.repositories.iter().map(copy).collect()
}

fn skopeo(tool: &Tool, task: &Task, home: &Path) -> Vec<Command> {
    let images: Map<String, Value> = task
        .repositories
        .iter()
        .map(|name| (name.clone(), json!([])))
        .collect();
    let config = json!({task.source.as_str(): {"tls-verify": false, "images": images}});
    let mut command = tool.command(home);
    command.args([
        "--insecure-policy",
        "sync",
        "--all",
        "--preserve-digests",
        "--dest-tls-verify=false",
    ]);
    command.args(["--src", "yaml", "--dest", "docker"]);
    command
        .arg(write(home, "skopeo.yml", &config))
        .arg(&task.destinations[0]);
    vec![command]
}
