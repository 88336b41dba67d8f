//! The program under test: the built binary with a config, a state folder and an environment of its
//! own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Config, eventually, free_port};

/// No run of the program may take longer, unless a test says so.
const DEADLINE: Duration = Duration::from_secs(120);

/// A place to run the program from: scratch folder, config file, state.
pub struct Ferry {
    scratch: TempDir,
    port: u16,
    environment: Vec<(String, String)>,
    program: PathBuf,
    /// Words before the program.
    wrapper: Vec<String>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// The most memory it was seen to have resident, in bytes.
    pub peak_memory: u64,
}

impl Ferry {
    pub fn new(config: &Config) -> Ferry {
        let scratch = TempDir::with_prefix("blobferry-").expect("a scratch directory");
        let program = PathBuf::from(env!("CARGO_BIN_EXE_blobferry"));
        let ferry = Ferry {
            scratch,
            port: free_port(),
            environment: Vec::new(),
            program,
            wrapper: Vec::new(),
        };
        std::fs::create_dir(ferry.path("home")).expect("a home in the scratch directory");
        ferry.write_config(config);
        ferry
    }

    /// A place for commands that need no config.
    pub fn bare() -> Ferry {
        Ferry::new(&Config::new())
    }

    /// Adds a variable to the otherwise clean environment.
    pub fn with_env(mut self, name: &str, value: &str) -> Ferry {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The port of the daemon.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A path in the scratch folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Writes a file into the scratch folder; returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("a file in the scratch directory");
        self.path(name).display().to_string()
    }

    pub fn write_config(&self, config: &Config) {
        self.file(
            "blobferry.yaml",
            &config.write(
                &format!("127.0.0.1:{}", self.port),
                &self.path("state").display().to_string(),
            ),
        );
    }

    /// Forgets what production was seen to hold.
    pub fn delete_index(&self) {
        self.delete_database("index");
    }

    /// Forgets what was written and decided.
    pub fn delete_ledger(&self) {
        self.delete_database("ledger");
    }

    fn delete_database(&self, name: &str) {
        let mut found = false;
        for suffix in ["", "-wal", "-shm"] {
            found |=
                std::fs::remove_file(self.path("state").join(format!("{name}.db{suffix}"))).is_ok();
        }
        assert!(
            found,
            "there was no {name}.db in {}",
            self.path("state").display()
        );
    }

    /// Runs a command to its end; panics when that takes longer than two minutes.
    pub async fn run(&self, arguments: &[&str]) -> Run {
        self.run_within(DEADLINE, arguments).await
    }

    /// `sync --json`.
    pub async fn sync(&self, more: &[&str]) -> Run {
        self.run(&[&["sync", "--json"], more].concat()).await
    }

    /// Runs a command that must end within `deadline`.
    pub async fn run_within(&self, deadline: Duration, arguments: &[&str]) -> Run {
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let pid = child
            .id()
            .expect("a child that was not waited for has an id");
        let stdout = collect(child.stdout.take().expect("stdout is piped"));
        let stderr = collect(child.stderr.take().expect("stderr is piped"));
        let mut peak = 0;
        let ended = timeout(deadline, async {
            loop {
                peak = peak.max(peak_memory(pid).unwrap_or(0));
                if let Ok(status) = timeout(Duration::from_millis(20), child.wait()).await {
                    break status.expect("waiting for a child");
                }
            }
        });
        let Ok(status) = ended.await else {
            child.kill().await.expect("killing a child");
            panic!(
                "{arguments:?} did not end within {deadline:?}; stderr:\n{}",
                stderr.text()
            );
        };
        let (stdout, stderr) = (stdout.end().await, stderr.end().await);
        let code = status
            .code()
            .unwrap_or_else(|| panic!("{arguments:?} was killed: {status}; stderr:\n{stderr}"));
        Run {
            code,
            stdout,
            stderr,
            peak_memory: peak,
        }
    }

    /// Starts `blobferry run` and waits until it is alive.
    pub async fn start(&self) -> Daemon {
        self.spawn(&[], Stdio::piped()).await
    }

    /// The same with variables that only the daemon has, as systemd gives them to a service.
    pub async fn start_with(&self, variables: &[(&str, &str)]) -> Daemon {
        self.spawn(variables, Stdio::piped()).await
    }

    /// The same with a stderr of the test's own; [`Daemon::log`] is empty then.
    pub async fn start_saying_to(&self, stderr: Stdio) -> Daemon {
        self.spawn(&[], stderr).await
    }

    /// Starts `blobferry run` with TLS, which this client trusts.
    pub async fn start_tls(&self, client: &reqwest::Client) -> Daemon {
        let base = format!("https://127.0.0.1:{}", self.port);
        self.spawn_at(base, client.clone(), &[], Stdio::piped())
            .await
    }

    async fn spawn(&self, variables: &[(&str, &str)], stderr: Stdio) -> Daemon {
        let base = format!("http://127.0.0.1:{}", self.port);
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client without options");
        self.spawn_at(base, http, variables, stderr).await
    }

    async fn spawn_at(
        &self,
        base: String,
        http: reqwest::Client,
        variables: &[(&str, &str)],
        stderr: Stdio,
    ) -> Daemon {
        let mut command = self.command(&["run"]);
        command.envs(variables.iter().copied());
        let mut child = command
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the program starts");
        let log = match child.stderr.take() {
            Some(stderr) => collect(stderr),
            None => collect(tokio::io::empty()),
        };
        let pid = child
            .id()
            .expect("a child that was not waited for has an id");
        let mut daemon = Daemon {
            child,
            pid,
            base,
            http,
            log,
        };
        eventually("the daemon is alive", async || {
            if let Some(status) = daemon.child.try_wait().expect("asking for a child") {
                panic!("the daemon ended with {status}:\n{}", daemon.log());
            }
            daemon
                .http
                .get(format!("{}/healthz", daemon.base))
                .send()
                .await
                .ok()
                .filter(|answer| answer.status().is_success())
        })
        .await;
        daemon
    }

    /// Starts a command and leaves it to the test.
    pub fn spawn_command(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts")
    }

    /// The same with a stdout of the test's own.
    pub fn spawn_printing_to(&self, arguments: &[&str], stdout: Stdio) -> Child {
        self.command(arguments)
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts")
    }

    /// The same with a stderr of the test's own.
    pub fn spawn_saying_to(&self, arguments: &[&str], stderr: Stdio) -> Child {
        self.command(arguments)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the program starts")
    }

    /// Runs a line of a shell in which the program is called `blobferry`; returns its exit code.
    pub async fn shell(&self, line: &str) -> i32 {
        let mut command = self.command_with_program_in_path("sh");
        command.args(["-ec", line]).stdin(Stdio::null());
        let status = timeout(DEADLINE, command.status())
            .await
            .expect("the shell ends in time");
        status
            .expect("the shell starts")
            .code()
            .expect("an exit code")
    }

    /// Another program, which finds this one as `blobferry`.
    pub fn command_with_program_in_path(&self, other: &str) -> Command {
        let bin = self.path("bin");
        if !bin.exists() {
            std::fs::create_dir(&bin).expect("a folder in the scratch directory");
            std::os::unix::fs::symlink(&self.program, bin.join("blobferry"))
                .expect("a link to the program");
        }
        let path = format!(
            "{}:{}",
            bin.display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut command = Command::new(other);
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.path("home"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.scratch.path()).kill_on_drop(true);
        command
    }

    /// The same with the program as it is shipped: what it needs of memory is a matter of the
    /// build.
    pub fn released(mut self) -> Ferry {
        let built = PathBuf::from(env!("CARGO_BIN_EXE_blobferry"));
        let target = built
            .parent()
            .and_then(|profile| profile.parent())
            .expect("a target folder");
        self.program = target.join("release/blobferry");
        assert!(
            self.program.exists(),
            "{} is missing: cargo build --release",
            self.program.display()
        );
        self
    }

    /// Starts `blobferry run` and waits until every route has been looked at once.
    pub async fn start_ready(&self) -> Daemon {
        let daemon = self.start().await;
        daemon.ready().await;
        daemon
    }

    /// Runs the program behind these words, which run what follows them.
    pub fn within(mut self, wrapper: Vec<String>) -> Ferry {
        self.wrapper = wrapper;
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut words = self
            .wrapper
            .iter()
            .map(AsRef::as_ref)
            .chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("HOME", self.path("home"))
            .env("BLOBFERRY_CONFIG", self.path("blobferry.yaml"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .current_dir(self.scratch.path())
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

impl Run {
    /// The report on stdout.
    pub fn report(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("{error} in:\n{}\nstderr:\n{}", self.stdout, self.stderr)
        })
    }

    /// Asserts the exit code, here and in the report.
    #[track_caller]
    pub fn expect(self, code: i32) -> Run {
        assert_eq!(
            self.code, code,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        if self.stdout.starts_with('{') {
            let report = self.report();
            assert!(
                report["schema"].is_null() || report["exit_code"] == code,
                "the report says {}, not {code}",
                report["exit_code"]
            );
        }
        self
    }

    /// A count of the report's totals.
    pub fn total(&self, name: &str) -> u64 {
        self.report()["totals"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {}", self.stdout))
    }

    /// The report's job for a tag.
    pub fn job(&self, tag: &str) -> Value {
        let report = self.report();
        let jobs = report["jobs"].as_array().expect("a report has jobs");
        let ending = format!(":{tag}");
        let found = jobs.iter().find(|job| {
            job["source"]
                .as_str()
                .is_some_and(|source| source.ends_with(&ending))
        });
        found
            .unwrap_or_else(|| panic!("no job for {tag} in {report:#}"))
            .clone()
    }

    /// Everything that was said.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub pid: u32,
    base: String,
    http: reqwest::Client,
    log: Collected,
}

impl Daemon {
    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// What was read of its log until now. A line that was written is not always read at once:
    /// a test that wants to see one waits for it with [`Daemon::says`].
    pub fn log(&self) -> String {
        self.log.text()
    }

    pub async fn says(&self, words: &str) {
        eventually(&format!("the log says {words:?}"), async || {
            self.log().contains(words).then_some(())
        })
        .await;
    }

    pub async fn ready(&self) {
        eventually("every route was looked at", async || {
            let answer = self
                .http
                .get(format!("{}/readyz", self.base))
                .send()
                .await
                .ok();
            answer.filter(|answer| answer.status().is_success())
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.http
            .get(format!("{}{path}", self.base))
            .send()
            .await
            .expect("the daemon answers")
    }

    /// `POST /v1/events/NAME`, which is taken.
    pub async fn notify(&self, receiver: &str, event: &Value) {
        let request = self
            .request(&format!("/v1/events/{receiver}"))
            .header("content-type", "application/json")
            .body(event.to_string());
        let answer = request.send().await.expect("the daemon answers");
        assert_eq!(answer.status().as_u16(), 202, "{event}");
    }

    /// `POST /v1/sync`: status and body.
    pub async fn ping(&self, body: Value) -> (u16, Value) {
        let request = self
            .request("/v1/sync")
            .header("content-type", "application/json")
            .body(body.to_string());
        let answer = request.send().await.expect("the daemon answers");
        let status = answer.status().as_u16();
        (
            status,
            serde_json::from_slice(&answer.bytes().await.expect("a body"))
                .expect("an answer in JSON"),
        )
    }

    /// A POST that is not sent yet, for headers of all kinds.
    pub fn request(&self, path: &str) -> reqwest::RequestBuilder {
        self.http
            .post(format!("{}{path}", self.base))
            .timeout(DEADLINE)
    }

    pub async fn metrics(&self) -> String {
        self.get("/metrics")
            .await
            .text()
            .await
            .expect("metrics are text")
    }

    /// The value of a series, such as `blobferry_queue_depth` or with labels in braces; all given
    /// labels must be there.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let text = self.metrics().await;
        let wanted: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let fits = |line: &&str| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && wanted.iter().all(|label| rest.contains(label.as_str()))
        };
        let values: Vec<f64> = text
            .lines()
            .filter(fits)
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Sends a signal by name, such as `USR1`.
    pub async fn signal(&self, name: &str) {
        send_signal(self.pid, name).await;
    }

    /// Waits for the end; returns the exit code. Panics when it takes longer than a minute.
    pub async fn ended(&mut self) -> i32 {
        let status = timeout(Duration::from_secs(60), self.child.wait()).await;
        let status = status
            .unwrap_or_else(|_| panic!("the daemon did not end within 60 s:\n{}", self.log()));
        status.expect("waiting for a child").code().unwrap_or(-1)
    }

    /// Kills it and waits for its end.
    pub async fn killed(mut self) {
        self.signal("KILL").await;
        self.ended().await;
    }

    /// The most memory it ever had resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        peak_memory(self.pid).expect("the daemon runs")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- the daemon said last:\n{}",
                lines[lines.len().saturating_sub(80)..].join("\n")
            );
        }
    }
}

/// Sends a signal by name, such as `USR1`, to a process that the test has started.
pub async fn send_signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()
        .await
        .expect("kill runs");
    assert!(sent.success(), "the process is not there to be told {name}");
}

/// Waits for the end of a command; returns the exit code, -1 after a signal. Panics when it takes
/// longer than a minute.
pub async fn end_of(child: &mut Child) -> i32 {
    let status = timeout(Duration::from_secs(60), child.wait()).await;
    let status = status.expect("the command ends within 60 s");
    status.expect("waiting for a child").code().unwrap_or(-1)
}

/// `VmHWM` of a process, in bytes.
fn peak_memory(pid: u32) -> Option<u64> {
    let status =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// What a child says, gathered while it runs.
struct Collected {
    text: Arc<Mutex<String>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Collected {
    fn text(&self) -> String {
        self.text.lock().expect("no panic while gathering").clone()
    }

    async fn end(self) -> String {
        self.reader.await.expect("gathering lines");
        self.text.lock().expect("no panic while gathering").clone()
    }
}

fn collect(stream: impl tokio::io::AsyncRead + Unpin + Send + 'static) -> Collected {
    let text = Arc::new(Mutex::new(String::new()));
    let into = text.clone();
    let reader = tokio::spawn(async move {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .await
            .is_ok_and(|count| count > 0)
        {
            into.lock()
                .expect("no panic while gathering")
                .push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
    Collected { text, reader }
}
