//! `command`: a program that judges. It reads the question from its standard input and answers
//! with its exit code: 0 pass, 75 wait (`EX_TEMPFAIL` of `sysexits.h`), any other refuse.
//!
//! The program leads a process group of its own, which is killed when the program has ended, at
//! the deadline and when the caller goes away. Its environment is PATH and LANG.

use std::io::ErrorKind;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::FusedFuture as _;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::time::timeout;

use crate::fault::clip;
use crate::gate::question::LONGEST_REASON;
use crate::job::gates::Command;
use crate::job::{GateKind, Judgement, Verdict};

/// The exit code of a program that cannot say yet.
const WAIT: i32 = 75;
/// Most that is kept of each of its outputs, in bytes; more is read and dropped.
const MOST_KEPT: usize = 4096;
/// How long the outputs of a program that has ended may stay open: a child of its own that left
/// the group holds them.
const LEFT_OPEN: Duration = Duration::from_secs(1);

/// What a program came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// How it ended.
    pub ended: Ended,
    /// The first line that it printed.
    pub said: String,
}

impl Run {
    fn not_run(reason: String) -> Run {
        Run {
            ended: Ended::NotRun(reason),
            said: String::new(),
        }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exit(i32),
    /// By a signal.
    Signal,
    /// It was killed at the deadline.
    TimedOut,
    /// It could not be run.
    NotRun(String),
}

/// Kills a process group when it is dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // The group is gone when all of its processes are.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// Runs the program of a gate. Dropping the future kills it.
pub async fn run(command: &Command, question: &[u8]) -> Run {
    let mut child = match spawn(command) {
        Ok(child) => child,
        Err(error) => return Run::not_run(error.to_string()),
    };
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let Some(group) = pid.map(Group) else {
        return Run::not_run("it ended before it began".into());
    };
    let [out, errors] = [Mutex::default(), Mutex::default()];
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let talk = async {
        let asking = async {
            // A program that answers without listening has closed its end.
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(question).await;
            }
        };
        tokio::join!(asking, keep(stdout, &out), keep(stderr, &errors))
    };
    let mut talk = std::pin::pin!(talk.fuse());
    let ending = async {
        tokio::select! {
            biased;
            status = child.wait() => status,
            _ = &mut talk => child.wait().await,
        }
    };
    let ended = match timeout(command.timeout, ending).await {
        Ok(Ok(status)) => ended(status),
        Ok(Err(error)) => Ended::NotRun(error.to_string()),
        Err(_) => Ended::TimedOut,
    };
    drop(group);
    // What it said before it ended is in the pipes.
    if !talk.is_terminated() {
        let _ = timeout(LEFT_OPEN, talk).await;
    }
    let mut said = [&out, &errors].map(first_line).into_iter();
    let said = said.find(|line| !line.is_empty());
    Run {
        ended,
        said: said.unwrap_or_default(),
    }
}

fn spawn(command: &Command) -> std::io::Result<Child> {
    let [program, arguments @ ..] = &command.run[..] else {
        return Err(ErrorKind::NotFound.into());
    };
    tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(
            command
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Reads an output to its end and keeps its beginning.
async fn keep(output: Option<impl AsyncRead + Unpin>, kept: &Mutex<Vec<u8>>) {
    let Some(mut output) = output else {
        return;
    };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_KEPT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

fn first_line(output: &Mutex<Vec<u8>>) -> String {
    let output = output.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&output);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    clip(line.unwrap_or_default(), LONGEST_REASON)
}

fn ended(status: ExitStatus) -> Ended {
    status.code().map_or(Ended::Signal, Ended::Exit)
}

/// The verdict of a program.
pub fn judge(command: &Command, run: &Run) -> Judgement {
    let program = command.run.first().map_or("", String::as_str);
    let (verdict, evidence) = match &run.ended {
        Ended::Exit(0) => (Verdict::Pass, json!({"exit_code": 0})),
        Ended::Exit(WAIT) => (Verdict::Wait, json!({"exit_code": WAIT})),
        Ended::Exit(code) => (Verdict::Refuse, json!({"exit_code": code})),
        Ended::Signal | Ended::TimedOut | Ended::NotRun(_) => (Verdict::Wait, Value::Null),
    };
    let reason = match &run.ended {
        Ended::Exit(_) if !run.said.is_empty() => run.said.clone(),
        Ended::Exit(code) => format!("{program} ended with {code}"),
        Ended::Signal => format!("{program} was killed by a signal"),
        Ended::TimedOut => {
            let seconds = command.timeout.as_secs_f32();
            format!("{program} did not end within {seconds} s and was killed")
        }
        Ended::NotRun(error) => format!("{program} cannot be run: {error}"),
    };
    Judgement::answered(GateKind::Command, verdict, reason, evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Command {
        Command {
            run: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            timeout,
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    async fn verdict(command: &Command) -> (Verdict, String) {
        let run = run(command, b"{\"schema\":1}").await;
        let judged = judge(command, &run);
        (judged.verdict, judged.reason)
    }

    #[tokio::test]
    async fn the_exit_code_is_the_verdict_and_the_first_line_its_reason() {
        for (script, expected, reason) in [
            ("exit 0", Verdict::Pass, "/bin/sh ended with 0"),
            (
                "cat >/dev/null; echo; echo ' fine '; echo more",
                Verdict::Pass,
                "fine",
            ),
            ("echo later; exit 75", Verdict::Wait, "later"),
            ("echo no >&2; exit 1", Verdict::Refuse, "no"),
            ("exit 74", Verdict::Refuse, "/bin/sh ended with 74"),
            (
                "kill -9 $$",
                Verdict::Wait,
                "/bin/sh was killed by a signal",
            ),
            (
                "printf '\\033[31mred'; exit 3",
                Verdict::Refuse,
                "\\u{1b}[31mred",
            ),
        ] {
            let found = verdict(&shell(script, LONG)).await;
            assert_eq!(found, (expected, reason.to_owned()), "{script}");
        }
    }

    #[tokio::test]
    async fn it_reads_the_question_and_sees_nothing_of_our_environment() {
        let command = shell(
            "read question; echo \"$question $(env | cut -d= -f1 | sort | tr '\\n' ' ')\"",
            LONG,
        );
        let (_, reason) = verdict(&command).await;
        let names = reason.strip_prefix("{\"schema\":1} ").unwrap();
        // The shell sets some itself.
        let own = ["PATH", "PWD", "OLDPWD", "SHLVL", "_"];
        assert!(names.split(' ').all(|name| own.contains(&name)), "{names}");
    }

    #[tokio::test]
    async fn a_flood_is_read_and_not_kept() {
        let script = "head -c 20000000 /dev/zero | tr '\\0' x; exit 75";
        let (found, reason) = verdict(&shell(script, LONG)).await;
        assert_eq!(found, Verdict::Wait);
        assert_eq!(reason.chars().count(), LONGEST_REASON + 1);
    }

    #[tokio::test]
    async fn a_program_that_is_missing_or_hangs_waits_and_leaves_nothing_behind() {
        let missing = Command {
            run: vec!["/nowhere/gate".into()],
            ..shell("", LONG)
        };
        let (found, reason) = verdict(&missing).await;
        assert_eq!(found, Verdict::Wait);
        assert!(
            reason.starts_with("/nowhere/gate cannot be run"),
            "{reason}"
        );

        // Its own children go with it, and an output that they hold open is not waited for.
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let script = format!(
            "sleep 600 & echo $! >> {0}; echo $$ >> {0}; wait",
            pids.display()
        );
        let hanging = shell(&script, Duration::from_millis(500));
        let (found, reason) = verdict(&hanging).await;
        assert_eq!(found, Verdict::Wait);
        assert!(reason.contains("did not end within 0.5 s"), "{reason}");
        let forking = shell(
            &format!("sleep 600 & echo $! >> {}; exit 75", pids.display()),
            LONG,
        );
        assert_eq!(verdict(&forking).await.0, Verdict::Wait);
        for pid in std::fs::read_to_string(&pids).unwrap().lines() {
            gone(pid).await;
        }
    }

    /// Waits until a killed process is gone; it stays as a zombie until its parent has noticed.
    async fn gone(pid: &str) {
        for _ in 0..600 {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
            if status.is_ok_and(|status| !status.contains("State:\tZ")) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            } else {
                return;
            }
        }
        panic!("{pid} lives");
    }
}
