//! Credential helpers: programs named `docker-credential-<name>` that hand out the credentials of a
//! registry.
//!
//! A helper reads the registry's name and writes JSON. It has 30 seconds and may write 64 KiB. Its
//! answer is cached for five minutes, its failure for five seconds, and one run serves all
//! concurrent callers.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::Instant;

use super::login::Login;
use crate::fault::{Class, Fault, clip};
use crate::single_flight::SingleFlight;

/// How long a helper may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How much a helper may say, in bytes.
const MOST_BYTES: u64 = 64 * 1024;
/// How long an answer, and how long a failure, is kept.
const KEPT: Duration = Duration::from_secs(300);
const KEPT_FAILURE: Duration = Duration::from_secs(5);
/// How many registries' answers are kept.
const MOST_KEPT: usize = 256;

/// The helpers and their answers of late.
pub(super) struct Helpers {
    path: Option<OsString>,
    deadline: Duration,
    answers: Mutex<HashMap<(String, String), Arc<CachedHelper>>>,
}

type Outcome = Result<Option<Login>, Arc<Fault>>;

/// The last answer of one helper for one registry, and the run in progress.
#[derive(Default)]
struct CachedHelper {
    run_once: SingleFlight<Option<Login>>,
    last: Mutex<Option<(Instant, Outcome)>>,
}

impl Helpers {
    /// Helpers in the folders of `path`, or where the process finds programs.
    pub(super) fn new(path: Option<OsString>) -> Helpers {
        Helpers {
            path,
            deadline: DEADLINE,
            answers: Mutex::default(),
        }
    }

    /// What the helper `name` knows of `server`; `afresh`: by a new run whatever it said last.
    pub(super) async fn login(
        &self,
        name: &str,
        server: &str,
        afresh: bool,
    ) -> Result<Option<Login>, Fault> {
        let cached = self.cached(name, server);
        if let Some(last) = cached.last().filter(|_| !afresh) {
            return last.map_err(|fault| fault.duplicate());
        }
        let program = self.program(name).await?;
        let server = server.to_owned();
        let name = name.to_owned();
        let deadline = self.deadline;
        let kept = Arc::clone(&cached);
        cached
            .run_once
            .join(|| async move {
                let result = ask(&name, program, &server, deadline).await;
                kept.keep(&result);
                result
            })
            .await
    }

    fn cached(&self, name: &str, server: &str) -> Arc<CachedHelper> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), server.to_owned());
        if answers.len() >= MOST_KEPT && !answers.contains_key(&key) {
            answers.clear();
        }
        Arc::clone(answers.entry(key).or_default())
    }

    /// The program of a helper. Its name comes from a file and must not lead anywhere else.
    async fn program(&self, name: &str) -> Result<PathBuf, Fault> {
        if name.is_empty()
            || name.len() > 64
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        {
            return Err(Fault::new(
                Class::Auth,
                format!("\"{}\" is no name of a credential helper", clip(name, 64)),
            ));
        }
        let file = format!("docker-credential-{name}");
        let folders = self
            .path
            .iter()
            .flat_map(std::env::split_paths)
            .filter(|folder| folder.is_absolute());
        for candidate in folders.map(|folder| folder.join(&file)) {
            if tokio::fs::metadata(&candidate)
                .await
                .is_ok_and(|metadata| metadata.is_file())
            {
                return Ok(candidate);
            }
        }
        if self.path.is_some() {
            Err(missing(name))
        } else {
            Ok(file.into())
        }
    }
}

impl CachedHelper {
    fn last(&self) -> Option<Outcome> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (when, result) = last.as_ref()?;
        let kept = if result.is_ok() { KEPT } else { KEPT_FAILURE };
        (when.elapsed() < kept).then(|| result.clone())
    }

    fn keep(&self, result: &Result<Option<Login>, Fault>) {
        let result = result
            .as_ref()
            .map_err(|fault| Arc::new(fault.duplicate()))
            .cloned();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), result));
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    secret: SecretString,
}

async fn ask(
    name: &str,
    program: PathBuf,
    server: &str,
    deadline: Duration,
) -> Result<Option<Login>, Fault> {
    let run = run(name, program, server);
    let (status, said) = tokio::time::timeout(deadline, run).await.map_err(|_| {
        Fault::retryable(format!(
            "credential helper {name} did not answer within {} s",
            deadline.as_secs_f32()
        ))
    })??;
    read(name, status, &said)
}

fn broken(name: &str, error: std::io::Error) -> Fault {
    let text = format!("credential helper {name} cannot be run");
    Fault::new(Class::Auth, text).because(error)
}

/// Runs the helper. Dropping the future kills the process.
async fn run(name: &str, program: PathBuf, server: &str) -> Result<(ExitStatus, Vec<u8>), Fault> {
    let mut command = Command::new(program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => missing(name),
        _ => broken(name, error),
    })?;
    let mut input = child.stdin.take().expect("stdin was asked for");
    let output = child.stdout.take().expect("stdout was asked for");
    // A helper that answers without listening has closed its end: its answer counts.
    let _ = input.write_all(server.as_bytes()).await;
    drop(input);
    let mut said = Vec::new();
    output
        .take(MOST_BYTES + 1)
        .read_to_end(&mut said)
        .await
        .map_err(|error| broken(name, error))?;
    if said.len() as u64 > MOST_BYTES {
        return Err(Fault::new(
            Class::Auth,
            format!("credential helper {name} answers more than 64 KiB"),
        ));
    }
    Ok((
        child.wait().await.map_err(|error| broken(name, error))?,
        said,
    ))
}

fn read(name: &str, status: ExitStatus, said: &[u8]) -> Result<Option<Login>, Fault> {
    let text = String::from_utf8_lossy(said);
    if !status.success() {
        if text.contains("credentials not found") {
            return Ok(None);
        }
        // A failing helper says why; one that prints credentials and fails is not quoted.
        let reason = if text.contains('{') {
            String::new()
        } else {
            format!(": {}", clip(text.trim(), 200))
        };
        return Err(Fault::new(
            Class::Auth,
            format!("credential helper {name} failed ({status}){reason}"),
        ));
    }
    let answer: HelperAnswer = serde_json::from_str(text.trim()).map_err(|_| {
        Fault::new(
            Class::Auth,
            format!("credential helper {name} did not answer with the JSON of the helper protocol"),
        )
    })?;
    let known = !answer.secret.expose_secret().is_empty() && !answer.username.is_empty();
    Ok(known.then(|| Login::from_pair(answer.username, answer.secret)))
}

fn missing(name: &str) -> Fault {
    let text = format!(
        "credential helper docker-credential-{name} is not installed; install it or take it out of the Docker configuration"
    );
    Fault::new(Class::Auth, text)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use super::*;

    /// Puts a helper into `folder`. Another process writes it: a program that this one holds open,
    /// be it in a child of another test that has not come to its own program yet, cannot be run.
    pub(in super::super) fn script(folder: &tempfile::TempDir, name: &str, body: &str) {
        let path = folder.path().join(format!("docker-credential-{name}"));
        let mut writer = std::process::Command::new("sh");
        writer
            .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
            .arg(path)
            .stdin(Stdio::piped());
        let mut writer = writer.spawn().unwrap();
        let mut input = writer.stdin.take().unwrap();
        write!(input, "#!/bin/sh\n[ \"$1\" = get ] || exit 2\n{body}\n").unwrap();
        drop(input);
        assert!(writer.wait().unwrap().success());
    }

    fn helpers(folder: &tempfile::TempDir) -> Helpers {
        Helpers::new(Some(folder.path().as_os_str().to_owned()))
    }

    #[tokio::test]
    async fn an_answer_is_asked_for_once() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let body = format!(
            r#"read server; echo run >> {}; printf '{{"ServerURL":"%s","Username":"joe","Secret":"hush"}}' "$server""#,
            count.display()
        );
        script(&folder, "counting", &body);
        let helpers = helpers(&folder);
        let answers =
            futures::future::join_all((0..5).map(|_| helpers.login("counting", "r", false))).await;
        assert!(answers.iter().all(
            |answer| matches!(answer, Ok(Some(Login::Basic { username, .. })) if username == "joe")
        ));
        helpers.login("counting", "r", false).await.unwrap();
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "run\n");
        helpers.login("counting", "r", true).await.unwrap();
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "run\nrun\n");
    }

    #[tokio::test]
    async fn answers_of_every_kind_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        script(
            &folder,
            "none",
            "cat > /dev/null; echo 'credentials not found in native keychain'; exit 1",
        );
        script(
            &folder,
            "token",
            r#"printf '{"Username":"<token>","Secret":"idt"}'"#,
        );
        script(&folder, "blank", r#"printf '{"Username":"","Secret":""}'"#);
        script(&folder, "failing", "echo 'the keychain is locked'; exit 1");
        script(
            &folder,
            "leaking",
            r#"printf '{"Username":"joe","Secret":"hush"}'; exit 3"#,
        );
        script(
            &folder,
            "strange",
            r#"printf '{"Username":"joe","Secret":["hush"]}'"#,
        );
        script(
            &folder,
            "endless",
            "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done",
        );
        let helpers = helpers(&folder);
        for name in ["none", "blank"] {
            assert!(
                helpers.login(name, "r", false).await.unwrap().is_none(),
                "{name}"
            );
        }
        let token = helpers.login("token", "r", false).await.unwrap();
        assert!(matches!(
            token,
            Some(Login::Identity { username: None, .. })
        ));
        let faults = [
            ("failing", "locked"),
            ("leaking", "failed"),
            ("strange", "JSON"),
            ("endless", "64 KiB"),
            ("absent", "not installed"),
            ("../x", "no name"),
            ("", "no name"),
        ];
        for (name, words) in faults {
            let fault = helpers.login(name, "r", false).await.unwrap_err();
            assert_eq!(fault.class(), Class::Auth, "{name}");
            assert!(
                fault.chain().contains(words) && !fault.chain().contains("hush"),
                "{fault:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        script(&folder, "hanging", "exec sleep 600");
        let helpers = Helpers {
            deadline: Duration::from_millis(100),
            ..helpers(&folder)
        };
        let fault = helpers.login("hanging", "r", false).await.unwrap_err();
        assert!(
            fault.class().is_retryable() && fault.to_string().contains("hanging"),
            "{fault}"
        );
    }
}
