//! A real registry on a loopback port of its own with a scratch directory, gone when dropped.
//!
//! The registry takes a free port itself and says so in its log: that line is the sign that it is
//! ready, and two tests can never fight for a port.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tempfile::TempDir;

use super::{Client, TokenServer};

/// Lines of a registry's log that are shown when a test fails.
const SHOWN: usize = 60;

/// Which registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Debian's docker-registry 2.8: forgets half-sent uploads, lists tags on one page.
    Distribution2,
    /// distribution 3: keeps half-sent uploads, pages its listings.
    Distribution3,
}

impl Program {
    pub const ALL: [Program; 2] = [Program::Distribution2, Program::Distribution3];

    pub fn start(self) -> Registry {
        self.setup().start()
    }

    pub fn setup(self) -> Setup {
        Setup {
            program: self,
            delete: false,
            read_only: false,
            lenient: false,
            auth: String::new(),
            notifications: String::new(),
        }
    }

    fn command(self) -> Command {
        match self {
            Program::Distribution2 => Command::new(installed(
                &["docker-registry"],
                "apt-get install docker-registry",
            )),
            Program::Distribution3 => {
                let how = "go install github.com/distribution/distribution/v3/cmd/registry@v3.1.1 (tests/run puts it into target/tools/bin)";
                Command::new(installed(&["registry"], how))
            }
        }
    }
}

/// What a registry shall be like.
pub struct Setup {
    program: Program,
    delete: bool,
    read_only: bool,
    lenient: bool,
    auth: String,
    notifications: String,
}

impl Setup {
    /// Manifests can be deleted.
    pub fn delete(mut self) -> Setup {
        self.delete = true;
        self
    }

    /// Nothing can be written.
    pub fn read_only(mut self) -> Setup {
        self.read_only = true;
        self
    }

    /// Foreign layers and children that are no manifests are accepted.
    pub fn lenient(mut self) -> Setup {
        self.lenient = true;
        self
    }

    /// Only this user may come in, with Basic authentication.
    pub fn basic(mut self, user: &str, password: &str) -> Setup {
        self.auth = format!("htpasswd:{user}:{password}");
        self
    }

    /// It notifies this URL of pushes, with a bearer secret.
    pub fn notifying(mut self, url: &str, secret: &str) -> Setup {
        self.notifications = format!(
            "notifications:\n  endpoints:\n    - name: blobferry\n      url: {url}\n      headers:\n        Authorization: [Bearer {secret}]\n      timeout: 5s\n      threshold: 5\n      backoff: 1s\n"
        );
        self
    }

    /// Only tokens of this server open the door.
    pub fn token(mut self, server: &TokenServer) -> Setup {
        self.auth = format!(
            "auth:\n  token:\n    realm: {}\n    service: {}\n    issuer: {}\n    rootcertbundle: {}\n",
            server.realm(),
            server.service(),
            server.issuer(),
            server.root_certificate().display(),
        );
        self
    }

    /// Starts it and waits until it listens.
    pub fn start(self) -> Registry {
        let scratch = TempDir::with_prefix("blobferry-registry-").expect("a scratch directory");
        let path = scratch.path().join("config.yml");
        std::fs::write(&path, self.config(scratch.path()))
            .expect("a config file in the scratch directory");
        Registry::launch(self.program, scratch, &path)
    }

    fn config(&self, scratch: &Path) -> String {
        let mut text =
            String::from("version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\n");
        let root = scratch.join("data");
        let _ = write!(
            text,
            "storage:\n  filesystem:\n    rootdirectory: {}\n  redirect:\n    disable: true\n  delete:\n    enabled: {}\n  maintenance:\n    uploadpurging:\n      enabled: false\n    readonly:\n      enabled: {}\n",
            root.display(),
            self.delete,
            self.read_only,
        );
        text.push_str("http:\n  addr: 127.0.0.1:0\n");
        if self.lenient {
            text.push_str("validation:\n  manifests:\n    urls:\n      allow: [\".*\"]\n");
            if self.program == Program::Distribution3 {
                text.push_str("    indexes:\n      platforms: none\n");
            }
        }
        match self.auth.strip_prefix("htpasswd:") {
            Some(login) => text.push_str(&htpasswd(scratch, login)),
            None => text.push_str(&self.auth),
        }
        text.push_str(&self.notifications);
        text
    }
}

/// A running registry.
pub struct Registry {
    program: Program,
    child: Child,
    address: String,
    log: Arc<Mutex<Vec<String>>>,
    scratch: TempDir,
}

impl Registry {
    pub fn distribution2() -> Registry {
        Program::Distribution2.start()
    }

    pub fn distribution3() -> Registry {
        Program::Distribution3.start()
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A client without credentials.
    pub fn client(&self) -> Client {
        Client::new(&self.url())
    }

    /// Where it keeps its files.
    pub fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// Gives what a tag names more names, on the disk: ten thousand pushes take too long.
    pub fn copy_tag(&self, repository: &str, tag: &str, names: impl Iterator<Item = String>) {
        let tags = self
            .data()
            .join("docker/registry/v2/repositories")
            .join(repository)
            .join("_manifests/tags");
        let link = std::fs::read(tags.join(tag).join("current/link")).expect("the tag is there");
        for name in names {
            let folder = tags.join(name).join("current");
            std::fs::create_dir_all(&folder).expect("a folder of a tag");
            std::fs::write(folder.join("link"), &link).expect("a tag");
        }
    }

    fn launch(program: Program, scratch: TempDir, config: &Path) -> Registry {
        let mut command = program.command();
        command.arg("serve").arg(config).current_dir(scratch.path());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("OTEL_TRACES_EXPORTER", "none");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the registry starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (listens, listening) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let _ = listens.send(
                        rest.split(['"', ',', ' '])
                            .next()
                            .unwrap_or_default()
                            .to_owned(),
                    );
                }
                lines.lock().expect("no panic while logging").push(line);
            }
        });
        let mut registry = Registry {
            program,
            child,
            address: String::new(),
            log,
            scratch,
        };
        match listening.recv_timeout(Duration::from_secs(30)) {
            Ok(address) => registry.address = address,
            Err(_) => panic!("{program:?} did not listen within 30 s"),
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log.lock().map(|log| log.clone()).unwrap_or_default();
            let shown = log[log.len().saturating_sub(SHOWN)..].join("\n");
            eprintln!(
                "--- {:?} at {} said last:\n{shown}",
                self.program, self.address
            );
        }
    }
}

fn htpasswd(scratch: &Path, login: &str) -> String {
    let (user, password) = login.split_once(':').expect("user:password");
    let made = Command::new(installed(&["htpasswd"], "apt-get install apache2-utils"))
        .args(["-Bbn", user, password])
        .output();
    let path = scratch.join("htpasswd");
    std::fs::write(&path, made.expect("htpasswd runs").stdout)
        .expect("a password file in the scratch directory");
    format!(
        "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
        path.display()
    )
}

/// Where a program is; panics with the way to install it when it is nowhere. Tests are never
/// skipped for want of a tool.
pub fn installed(names: &[&str], how: &str) -> PathBuf {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin")];
    folders.extend(std::env::var_os("GOBIN").map(PathBuf::from));
    folders.push(home.join("go/bin"));
    folders.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let candidates = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{names:?} is not installed; {how}"))
}
