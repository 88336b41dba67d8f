//! The tutorial's commands run from top to bottom in one shell, against real registries, and print
//! what the page shows.
//!
//! The shell has a network of its own, so that the ports of the page are free.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use regex::Regex;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::docs::{blocks, read};

/// No command of the page may take longer.
const DEADLINE: Duration = Duration::from_secs(120);
/// What the shell prints behind the output of a command, in front of its exit code.
const END: &str = "@@ the end: ";

/// What the page asks for.
enum Step {
    /// The content of `blobferry.yaml`.
    Config(String),
    Command(Shown),
}

/// A command with the output that the page shows.
struct Shown {
    command: String,
    output: Vec<String>,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in blocks(page) {
        match block.info.as_str() {
            "yaml config" => steps.push(Step::Config(block.text)),
            "console run" => steps.extend(commands(&block.text).into_iter().map(Step::Command)),
            _ => {}
        }
    }
    steps
}

fn commands(text: &str) -> Vec<Shown> {
    let mut commands: Vec<Shown> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            commands.push(Shown {
                command: command.to_owned(),
                output: Vec::new(),
            });
            continue;
        }
        let last = commands.last_mut().expect("a block begins with a command");
        match line.strip_prefix('>') {
            Some(more) => {
                last.command.push('\n');
                last.command
                    .push_str(more.strip_prefix(' ').unwrap_or(more));
            }
            None => last.output.push(line.to_owned()),
        }
    }
    commands
}

/// What differs from run to run is taken out of a line: times, users, how many requests it took,
/// the numbers of rows, the width of columns.
fn plain(line: &str) -> String {
    let rules = [
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| UTC)", "TIME"),
        (r"user:[\w.-]+", "user:NAME"),
        (
            r"( in)? ?\b\d+(\.\d+)? (s|min|h)\b( \d+ (s|min)\b)*( ago)?,?",
            " ",
        ),
        (r"\d+ requests?", "N requests"),
        (r"\b(decision|ends|row) \d+", "$1 N"),
        (r"\s+", " "),
        (r"\( ", "("),
        (r" \)", ")"),
    ];
    let mut line = line.to_owned();
    for (found, written) in rules {
        let found = Regex::new(found).expect("an expression");
        line = found.replace_all(&line, written).into_owned();
    }
    line.trim().to_owned()
}

/// Whether a line is as the page shows it, where `…` is anything.
fn fits(shown: &str, said: &str) -> bool {
    let shown = plain(shown);
    let parts: Vec<String> = shown.split('…').map(regex::escape).collect();
    let pattern = format!("^{}$", parts.join(".*"));
    Regex::new(&pattern)
        .expect("an expression")
        .is_match(&plain(said))
}

/// A shell in the folder of the sources, with a home, a `/tmp`, processes and a network of its own.
struct Shell {
    home: TempDir,
    commands: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Shell {
    async fn start() -> Shell {
        let home = TempDir::with_prefix("blobferry-tutorial-").expect("a scratch directory");
        let mut child = sandboxed_shell(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("bwrap is installed");
        let output = child.stdout.take().expect("stdout is piped");
        let mut shell = Shell {
            home,
            commands: child.stdin.take().expect("stdin is piped"),
            output: BufReader::new(output).lines(),
            _child: child,
        };
        assert_eq!(shell.run("exec 2>&1").await, ([].into(), 0));
        shell
    }

    fn write_config(&self, text: &str) {
        let path = self.home.path().join("tutorial/blobferry.yaml");
        std::fs::write(path, text).expect("a config in the folder that the page makes");
    }

    /// Runs a command; its output and its exit code come back.
    async fn run(&mut self, command: &str) -> (Vec<String>, i32) {
        let typed = format!("{command}\nprintf '\\n{END}%s\\n' $?\n");
        self.commands
            .write_all(typed.as_bytes())
            .await
            .expect("the shell reads");
        let mut said = Vec::new();
        let code = timeout(DEADLINE, self.read_to_end_of_command(&mut said)).await;
        let Ok(code) = code else {
            panic!("`{command}` takes too long; it said {said:#?}")
        };
        while said.last().is_some_and(String::is_empty) {
            said.pop();
        }
        (said, code)
    }

    async fn read_to_end_of_command(&mut self, said: &mut Vec<String>) -> i32 {
        loop {
            let line = self.output.next_line().await.expect("plain text");
            let Some(line) = line else {
                panic!("the shell has ended; it said {said:#?}")
            };
            if let Some(code) = line.strip_prefix(END) {
                return code.parse().expect("an exit code");
            }
            said.push(line);
        }
    }
}

fn sandboxed_shell(home: &Path) -> Command {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = program_in(home);
    let tools = top.join("target/tools/bin");
    let path = format!(
        "{}:{}:/usr/local/bin:/usr/bin:/bin",
        program.parent().expect("a folder").display(),
        tools.display()
    );
    let mut command = Command::new("bwrap");
    command.args(["--die-with-parent", "--unshare-pid", "--unshare-net"]);
    command.args(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]);
    // The sources and the home may lie below the folder that is covered.
    command.args(["--tmpfs", "/tmp"]);
    command.arg("--ro-bind").arg(top).arg(top);
    command.arg("--bind").arg(home).arg(home);
    command
        .arg("--ro-bind")
        .arg(env!("CARGO_BIN_EXE_blobferry"))
        .arg(&program);
    command.args(["--clearenv", "--setenv", "LANG", "C.UTF-8"]);
    command.args(["--setenv", "PATH", &path]);
    command.args(["--setenv", "HOME"]).arg(home);
    command.arg("--chdir").arg(top).args(["--", "bash"]);
    command
}

/// Where the program is mounted: as `blobferry`, in a folder of its own.
fn program_in(home: &Path) -> PathBuf {
    let folder = home.join("bin");
    std::fs::create_dir(&folder).expect("a folder in the scratch directory");
    let program = folder.join("blobferry");
    std::fs::write(&program, "").expect("a file in the scratch directory");
    program
}

#[tokio::test]
async fn the_tutorial_does_what_it_shows() {
    let mut shell = Shell::start().await;
    let mut count = 0;
    for step in steps(&read("docs/tutorial.md")) {
        let shown = match step {
            Step::Config(text) => {
                shell.write_config(&text);
                continue;
            }
            Step::Command(shown) => shown,
        };
        let (said, code) = shell.run(&shown.command).await;
        let is_as_shown = said.len() == shown.output.len()
            && shown.output.iter().zip(&said).all(|(a, b)| fits(a, b));
        assert!(
            is_as_shown && code == 0,
            "`{}` ended with {code} and said\n{}\nThe page shows\n{}",
            shown.command,
            said.join("\n"),
            shown.output.join("\n")
        );
        count += 1;
    }
    assert!(count > 60, "{count}");
}

#[test]
fn output_that_differs_is_seen() {
    let work = "1 promoted (0.05 s, 1.3 kB sent, 16 requests)";
    let held = "held by user:alice (…), read 3 s ago";
    let table = [
        (
            work,
            "1 promoted (1 min 2 s, 1.3 kB sent, 9 requests)",
            true,
        ),
        (work, "1 promoted (1.3 kB sent, 1 request)", true),
        (work, "1 promoted (0.05 s, 1.4 kB sent, 16 requests)", false),
        (work, "2 promoted (0.05 s, 1.3 kB sent, 16 requests)", false),
        (held, "held   by user:root (4dae), read 1 min 4 s ago", true),
        (held, "held by token:root (4dae), read 1 s ago", false),
        (
            held,
            "held by user:root (4dae), read 1 s ago at last",
            false,
        ),
    ];
    for (shown, said, is_the_same) in table {
        assert_eq!(fits(shown, said), is_the_same, "{said}");
    }
}
