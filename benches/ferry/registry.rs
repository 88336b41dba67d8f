//! A real registry on loopback with a scratch directory, gone when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::client::Client;

/// The registry programs, the better known first: command and what it is called here.
const PROGRAMS: [(&str, &str); 2] = [
    ("registry", "distribution"),
    ("docker-registry", "docker-registry"),
];

/// A registry program that was found.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    /// For people.
    pub name: &'static str,
}

impl Program {
    /// Those that are installed.
    pub fn all() -> Vec<Program> {
        PROGRAMS
            .iter()
            .filter_map(|(command, name)| {
                Some(Program {
                    path: find(command)?,
                    name,
                })
            })
            .collect()
    }

    /// Its version.
    pub fn version(&self) -> String {
        crate::machine::version(&self.path, "--version")
    }

    /// Starts one that keeps its files in `folder`, and waits until it listens.
    pub async fn start(&self, folder: &Path) -> Registry {
        let scratch =
            TempDir::with_prefix_in("blobferry-bench-", folder).expect("a scratch directory");
        let address = TcpListener::bind("127.0.0.1:0")
            .await
            .and_then(|free| free.local_addr())
            .expect("a loopback port")
            .to_string();
        let root = scratch.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  maintenance:\n    uploadpurging:\n      enabled: false\nhttp:\n  addr: {address}\n",
            root.display()
        );
        let config = scratch.path().join("config.yml");
        std::fs::write(&config, text).expect("a file in the scratch directory");
        let mut command = Command::new(&self.path);
        command
            .arg("serve")
            .arg(config)
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the registry starts");
        let registry = Registry {
            child,
            address,
            scratch,
        };
        for _ in 0..500 {
            if TcpStream::connect(&registry.address).await.is_ok() {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} does not listen within 10 s", self.name)
    }
}

/// A running registry.
pub struct Registry {
    child: Child,
    address: String,
    scratch: TempDir,
}

impl Registry {
    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A plain client of it.
    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address))
    }

    /// Gives what a tag names more names, on the disk.
    pub fn copy_tag(&self, repository: &str, tag: &str, names: impl Iterator<Item = String>) {
        let tags = self
            .scratch
            .path()
            .join("data/docker/registry/v2/repositories")
            .join(repository)
            .join("_manifests/tags");
        let link = std::fs::read(tags.join(tag).join("current/link")).expect("the tag is there");
        for name in names {
            let folder = tags.join(name).join("current");
            std::fs::create_dir_all(&folder).expect("a folder of a tag");
            std::fs::write(folder.join("link"), &link).expect("a tag");
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a program is: what `benches/peers` has installed goes first.
pub fn find(command: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(own).chain(std::env::split_paths(&path));
    folders
        .map(|folder| folder.join(command))
        .find(|path| path.is_file())
}
