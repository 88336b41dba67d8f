//! The commands of the tutorial, of the README and of the page about a change from another tool
//! run in a shell, against real registries, and print what the pages show.
//!
//! The shell has a network of its own, so that the ports of the tutorial are free.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
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

/// What differs from run to run, and what is written for it.
static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
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
    let compiled = |(found, written)| (Regex::new(found).expect("an expression"), written);
    rules.map(compiled).into()
});

/// What differs from run to run is taken out of a line: times, users, how many requests it took,
/// the numbers of rows, the width of columns.
fn plain(line: &str) -> String {
    let mut line = line.to_owned();
    for (found, written) in RULES.iter() {
        line = found.replace_all(&line, *written).into_owned();
    }
    line.trim().to_owned()
}

/// Whether output is as a page shows it, where `…` is anything in a line, and alone any lines.
/// Tags that move at the same time are told in any order.
fn fits(shown: &[String], said: &[String]) -> bool {
    let pattern: String = in_order(shown).iter().map(|line| line_as(line)).collect();
    let said: Vec<String> = said.iter().map(|line| plain(line)).collect();
    let said: String = in_order(&said)
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    let pattern = Regex::new(&format!("^{pattern}$")).expect("an expression");
    pattern.is_match(&said)
}

fn line_as(shown: &str) -> String {
    if shown == "…" {
        return r"([^\n]*\n)*".to_owned();
    }
    let shown = plain(shown);
    let parts: Vec<String> = shown.split('…').map(regex::escape).collect();
    format!("{}\n", parts.join(r"[^\n]*"))
}

/// The lines of promotions, which come one after the other, in the order of their tags.
fn in_order(lines: &[String]) -> Vec<String> {
    let mut lines = lines.to_vec();
    for run in lines.chunk_by_mut(|a, b| is_of_a_tag(a) && is_of_a_tag(b)) {
        run.sort();
    }
    lines
}

fn is_of_a_tag(line: &str) -> bool {
    line.starts_with("promoted ") || line.starts_with("planned ")
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

    /// Writes a file into the folder that the tutorial makes.
    fn write(&self, name: &str, text: &str) {
        let path = self.home.path().join("tutorial").join(name);
        std::fs::write(path, text).expect("a file in the folder that the page makes");
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

impl Shell {
    /// Runs a command, which must end with 0 and print what is shown.
    async fn prove(&mut self, shown: &Shown) {
        let (said, code) = self.run(&shown.command).await;
        assert!(
            fits(&shown.output, &said) && code == 0,
            "`{}` ended with {code} and said\n{}\nThe page shows\n{}",
            shown.command,
            said.join("\n"),
            shown.output.join("\n")
        );
    }

    /// Runs a command, which must end with 0; its output comes back.
    async fn must(&mut self, command: &str) -> String {
        let (said, code) = self.run(command).await;
        let said = said.join("\n");
        assert_eq!(code, 0, "{command}: {said}");
        said
    }

    /// Does what the tutorial does before a heading.
    async fn follow_the_tutorial_to(&mut self, heading: &str) -> usize {
        let page = read("docs/tutorial.md");
        let (page, _) = page.split_once(heading).expect("the heading is there");
        let mut count = 0;
        for step in steps(page) {
            match step {
                Step::Config(text) => self.write("blobferry.yaml", &text),
                Step::Command(shown) => self.prove(&shown).await,
            }
            count += 1;
        }
        count
    }

    /// Pushes a small image to staging.
    async fn push(&mut self, image: &str, name: &str) {
        let push = format!(
            "./sample-image image {image} && blobferry copy -q layout:image:{image} 127.0.0.1:5001/{name}"
        );
        self.must(&push).await;
    }
}

#[tokio::test]
async fn the_tutorial_does_what_it_shows() {
    let mut shell = Shell::start().await;
    let count = shell.follow_the_tutorial_to("## Tidy up").await;
    assert!(count > 60, "{count}");
}

/// A text with the registries of the tutorial in place of those of an example.
fn at_home(text: &str) -> String {
    let text = text.replace("https://registry.", "http://registry.");
    let text = text.replace("registry.staging.example", "127.0.0.1:5001");
    text.replace("registry.production.example", "127.0.0.1:5002")
}

/// The password of the user `mirror` is typed where the page says so.
fn typed(command: &str) -> String {
    command.replace("; cat >", "; echo hush >")
}

#[tokio::test]
async fn the_readme_shows_what_comes_of_two_registries() {
    let mut shell = Shell::start().await;
    shell.follow_the_tutorial_to("Push a version").await;
    shell
        .must("kill $production; wait $production; htpasswd -Bbn mirror hush > users")
        .await;
    shell
        .must("printf 'auth: {htpasswd: {realm: test, path: users}}\\n' >> production.yml")
        .await;
    shell
        .must("docker-registry serve production.yml > production.log 2>&1 &")
        .await;
    shell
        .must("curl -s --retry 30 --retry-connrefused --retry-delay 1 http://127.0.0.1:5002/v2/")
        .await;
    for (image, tag) in [
        ("v1.0.0", "v1.0.0"),
        ("v1.1.0", "v1.1.0"),
        ("v1.1.0", "latest"),
        ("v1.1.0-debug", "v1.1.0-debug"),
    ] {
        shell.push(image, &format!("staging-demo-app:{tag}")).await;
    }
    let page = at_home(&read("README.md"));
    let blocks = blocks(&page);
    let of = |info: &str, words: &str| {
        let found = blocks
            .iter()
            .find(|block| block.info == info && block.text.contains(words));
        found.expect("the block is there").text.clone()
    };
    shell.write("blobferry.yaml", &of("yaml config", "production-password"));
    let mut session = commands(&of("console", "blobferry check --online"));
    let last = session.pop().expect("commands");
    assert_eq!(last.command, "blobferry run");
    // Root's own is below /var.
    shell.must("export STATE_DIRECTORY=$HOME/state").await;
    for mut shown in session {
        shown.command = typed(&shown.command);
        shell.prove(&shown).await;
    }
}

#[tokio::test]
async fn the_way_over_from_another_tool_is_walked() {
    let mut shell = Shell::start().await;
    shell.follow_the_tutorial_to("Push a version").await;
    shell.push("v1.0", "app:v1.0").await;
    let page = at_home(&read("docs/coming-from.md"));
    let blocks = blocks(&page);
    let old = blocks.iter().find(|block| block.info == "yaml regsync");
    shell.write("regsync.yml", &old.expect("the block is there").text);
    shell.write("auth.yaml", "d.example: {username: joe, password: hush}\n");
    shell.write("images.yaml", "s.example/a:v1: d.example/a\n");
    shell.must("export BLOBFERRY_CONFIG=blobferry.yaml").await;
    let mut said = String::new();
    for block in blocks.iter().filter(|block| block.info == "sh") {
        for line in block.text.lines() {
            said += &shell.must(line).await;
            // These registries have no TLS.
            shell
                .must("sed -i 's#https://127#http://127#' blobferry.yaml")
                .await;
        }
    }
    let planned = "planned 127.0.0.1:5002/app:v1.0 sha256:";
    assert_eq!(plain(&said).matches(planned).count(), 2, "{said}");
    assert!(said.contains("read 127.0.0.1:5001/app: 1 tag"), "{said}");
    let last = shell.must("cat blobferry.yaml").await;
    assert!(
        last.contains("from: s.example/a") && !last.contains("hush"),
        "{last}"
    );
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
        ("a\n…\nd", "a\nb\nc\nd", true),
        ("a\n…\nd", "a\nd", true),
        ("a\n…\nd", "a\nb", false),
        ("a…d", "a\nd", false),
        (
            "promoted a\npromoted b\nc",
            "promoted b\npromoted a\nc",
            true,
        ),
        (
            "promoted a\npromoted b\nc",
            "promoted b\npromoted b\nc",
            false,
        ),
        ("a", "a\nb", false),
    ];
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    for (shown, said, is_the_same) in table {
        assert_eq!(fits(&lines(shown), &lines(said)), is_the_same, "{said}");
    }
}
