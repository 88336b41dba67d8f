//! Arguments in, exit code out.
//!
//! stdout carries results, stderr carries logs and progress. Exit codes, the first that applies: 2
//! usage or configuration · 130 interrupted · 3 authentication · 1 at least one job failed · 4
//! nothing failed, but something is in conflict, drifted, refused by a rule, or asked for by name
//! and held or waiting · 5 what was named is not there or is excluded · 0 everything else.

mod candidates;
mod changes;
mod check;
mod completions;
mod copy;
mod decide;
mod decide_tag;
mod delegate;
mod demo;
mod files;
mod history;
mod iam;
mod inspect;
mod junit;
mod lines;
mod man;
mod migrate;
mod output;
mod pass;
mod progress;
mod promote;
mod remarks;
mod run;
mod schema;
mod socket;
mod status;
mod sync;
mod typed_words;
mod why;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, CommandFactory as _, Parser, Subcommand, ValueEnum};
use futures::FutureExt as _;
use indicatif::MultiProgress;
use tokio::time::timeout;
use tracing::Level;

use crate::config::{Config, StatePath, registry_names, state_path};
use crate::fault::without_passwords;
use crate::telemetry;

use lines::Lines;
use pass::Signals;
use progress::ProgressMode;

/// The version, with the revision that was built.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BLOBFERRY_REVISION"),
    ")"
);

const EXAMPLES: &str = "\
Examples:
  blobferry demo                see it work: two registries and a sample image
  blobferry check --online      is the config right, do the registries let us in
  blobferry sync --dry-run      what would be promoted now
  blobferry run                 the daemon

Exit codes, the first that applies: 2 usage or configuration, 130 interrupted,
3 authentication, 1 a job failed, 4 conflict, drift or refusal, 5 what was named
is not there, 0 everything else.";

const RUN: &str = "\
Examples:
  blobferry run                          with /etc/blobferry/blobferry.yaml
  blobferry run -c blobferry.yaml -v     by hand, with more to read
  kill -USR1 PID                         look at everything now

Looks at each route every `daemon.poll` and whenever it is asked: by SIGUSR1, by
`blobferry sync`, by POST /v1/sync. SIGTERM and SIGINT drain: within
`daemon.grace` transfers end where the registry can resume them; a second one
stops at once. A config that is not right is refused, at start with exit code 2,
on SIGHUP by keeping the old one.";

const SCHEMA: &str = "\
Examples:
  blobferry schema > blobferry.schema.json
  first line of a config, for editors with a YAML language server:
  # yaml-language-server: $schema=./blobferry.schema.json";

/// Promotes container images from a staging registry to production: every byte hashed, every blob
/// once, the tag last.
#[derive(Debug, Parser)]
#[command(name = "blobferry", version = VERSION, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Arguments {
    /// The config file [default: $BLOBFERRY_CONFIG, else /etc/blobferry/blobferry.yaml]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The state folder, instead of `daemon.state` of the config
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,

    /// How logs on stderr are written; BLOBFERRY_LOG filters them, as in
    /// "info,blobferry::registry=debug"
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// Log more; twice: still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    /// Log less, and show no progress; twice: errors only
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,

    #[command(subcommand)]
    command: Command,
}

/// The exit code of a command that a signal has ended.
const INTERRUPTED: u8 = 130;
/// How long a stdout that is not read may hold up the end after a signal.
const LAST_LINES: Duration = Duration::from_secs(1);

const DEFAULT_CONFIG: &str = "/etc/blobferry/blobferry.yaml";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl From<LogFormat> for telemetry::Format {
    fn from(format: LogFormat) -> telemetry::Format {
        match format {
            LogFormat::Text => telemetry::Format::Text,
            LogFormat::Json => telemetry::Format::Json,
        }
    }
}

/// What `--log-format` says, for a command line that may not be readable as a whole.
fn log_format(arguments: &[OsString]) -> LogFormat {
    let mut words = arguments.iter().map(|argument| argument.to_str());
    while let Some(word) = words.next() {
        let value = match word.and_then(|word| word.strip_prefix("--log-format")) {
            Some("") => words.next().flatten(),
            Some(value) => value.strip_prefix('='),
            None => None,
        };
        if value == Some("json") {
            return LogFormat::Json;
        }
    }
    LogFormat::Text
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon until SIGTERM or SIGINT; SIGUSR1 looks at everything now, SIGHUP reads the
    /// config again
    #[command(after_help = RUN)]
    Run,
    /// Make one pass over the routes, asking both sides; a running daemon does it, if there is one
    Sync(sync::Sync),
    /// Copy one reference, with what the config knows of its hosts
    Copy(copy::Copy),
    /// Promote images: the pipeline step, which needs no config file
    Promote(promote::Promote),
    /// Show what the daemon is doing, each route's state, and what it will do next and when
    Status(status::Status),
    /// Check the config, and with --online whether the registries let us read and write
    Check(check::Check),
    /// Show what was promoted, and what was not and why
    History(history::History),
    /// Print the repositories of a registry
    Ls(inspect::Ls),
    /// Print the tags of a repository, on either side
    Tags(inspect::Tags),
    /// Print the digest that a reference names
    Digest(inspect::DigestOf),
    /// Why a tag is in production, or not: both sides, rules, gates, decisions, trouble, what comes next
    Why(why::Why),
    /// Hold: looks and carrying go on, no tag is named
    Hold(decide::Hold),
    /// End decisions: all with this target, or the one with this number
    Release(decide::Release),
    /// Deny: this content is never carried, named or repaired, here or as part of anything
    Deny(decide::Deny),
    /// Approve: agree that a tag goes to the digest that staging names
    Approve(decide_tag::Approve),
    /// Accept: staging's digest is named once, over what production names
    Accept(decide_tag::Accept),
    /// Roll back: move a tag to what it named before, and keep what was replaced out of it
    Rollback(decide_tag::Rollback),
    /// See it work at once: two registries on loopback ports, a sample image, the daemon
    Demo(demo::Demo),
    /// Turn the config of another tool, or the commands of a pipeline, into a config of blobferry
    Migrate(migrate::Migrate),
    /// Print the IAM policies that the config's ECR registries need
    Iam(iam::Iam),
    /// Print the JSON schema of the config file, for editors
    #[command(after_help = SCHEMA)]
    Schema,
    /// Print a completion script for a shell
    Completions(completions::Completions),
    /// Print the manual page, or write those of all commands
    Man(man::Man),
}

/// What ends a command early: printed once, by `main`.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What happened, and the way out.
    pub error: anyhow::Error,
}

impl Failure {
    fn new(code: u8, error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code,
            error: error.into(),
        }
    }

    fn said(code: u8, text: impl std::fmt::Display) -> Failure {
        Failure {
            code,
            error: anyhow::anyhow!("{text}"),
        }
    }

    /// Usage or configuration.
    fn usage(text: impl std::fmt::Display) -> Failure {
        Failure::said(2, text)
    }

    fn interrupted(text: impl std::fmt::Display) -> Failure {
        Failure::said(INTERRUPTED, text)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        for level in self.error.chain().map(ToString::to_string) {
            // Wrappers often repeat their cause: say each thing once.
            if !text.contains(&level) {
                text.push_str(if text.is_empty() { "" } else { ": " });
                text.push_str(&level);
            }
        }
        f.write_str(&without_passwords(&text))
    }
}

/// Reads a command line.
///
/// # Errors
/// The exit code, once help, version or the mistake has been printed: 0 or 2.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, u8> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let format = log_format(&arguments);
    telemetry::say_as(format.into());
    Arguments::try_parse_from(&arguments).map_err(|error| {
        // The message repeats what was written: it is made again from arguments that are fit to be
        // printed.
        let fit = arguments
            .iter()
            .map(|argument| without_passwords(&argument.to_string_lossy()).replace('\n', "\\n"));
        let error = Arguments::try_parse_from(fit)
            .err()
            .unwrap_or_else(|| unprintable(error.kind()));
        if error.use_stderr() && format == LogFormat::Json {
            telemetry::say(Level::ERROR, error.render().to_string().trim_end());
        } else {
            // An error means that stdout or stderr is closed.
            let _ = error.print();
        }
        u8::try_from(error.exit_code()).unwrap_or(2)
    })
}

/// The mistake went away with what cannot be printed.
fn unprintable(kind: clap::error::ErrorKind) -> clap::Error {
    let text = "an argument holds a password (`user:password@host`) or control characters, and is not right with them";
    Arguments::command().error(kind, text)
}

/// Does what the command line asks for; the exit code comes back.
///
/// # Errors
/// What kept the command from its work, with its exit code.
pub async fn run(arguments: Arguments) -> Result<u8, Failure> {
    let mut lines = Lines::stdout();
    let screen = arguments.draws_bars().then(MultiProgress::new);
    start_logs(&arguments, screen.clone())?;
    let result = dispatch(&arguments, &mut lines, screen).await;
    finish(lines, result).await
}

/// Waits until the reader of stdout has everything. No lock is held any more, and a signal ends the
/// waiting.
async fn finish(lines: Lines, result: Result<u8, Failure>) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let is_aborted = matches!(&result, Err(failure) if failure.code == INTERRUPTED);
    let wait = if is_aborted {
        LAST_LINES
    } else {
        Duration::MAX
    };
    let written = tokio::select! {
        biased;
        written = timeout(wait, lines.close()) => written.unwrap_or(Ok(())),
        () = signals.next() => return Err(Failure::interrupted("stdout was not read to its end")),
    };
    let code = result?;
    written.map_err(|error| {
        let error = anyhow::Error::new(error).context("stdout cannot be written");
        Failure::new(1, error)
    })?;
    Ok(code)
}

async fn dispatch(
    arguments: &Arguments,
    lines: &mut Lines,
    screen: Option<MultiProgress>,
) -> Result<u8, Failure> {
    match &arguments.command {
        Command::Run => run::run(arguments).boxed_local().await,
        Command::Sync(command) if command.changes => {
            changes::compare(command, arguments, lines, screen)
                .boxed_local()
                .await
        }
        Command::Sync(command) => command.run(arguments, lines, screen).boxed_local().await,
        Command::Copy(command) => {
            command
                .run(
                    arguments,
                    lines,
                    ProgressMode::of(arguments.quiet > 0, screen),
                )
                .boxed_local()
                .await
        }
        Command::Promote(command) => {
            command
                .run(
                    arguments,
                    lines,
                    ProgressMode::of(arguments.quiet > 0, screen),
                )
                .boxed_local()
                .await
        }
        Command::Status(command) => command.run(arguments, lines).boxed_local().await,
        Command::Check(command) => command.run(arguments, lines).boxed_local().await,
        Command::History(command) => command.run(arguments, lines).boxed_local().await,
        Command::Ls(command) => command.run(arguments, lines).boxed_local().await,
        Command::Tags(command) => command.run(arguments, lines).boxed_local().await,
        Command::Digest(command) => command.run(arguments, lines).boxed_local().await,
        Command::Why(command) => command.run(arguments, lines).boxed_local().await,
        Command::Hold(command) => command.run(arguments, lines).boxed_local().await,
        Command::Release(command) => command.run(arguments, lines).boxed_local().await,
        Command::Deny(command) => command.run(arguments, lines).boxed_local().await,
        Command::Approve(command) => command.run(arguments, lines).boxed_local().await,
        Command::Accept(command) => command.run(arguments, lines).boxed_local().await,
        Command::Rollback(command) => command.run(arguments, lines).boxed_local().await,
        Command::Demo(command) => command.run(lines).boxed_local().await,
        Command::Migrate(command) => command.run(lines),
        Command::Iam(command) => command.run(arguments, lines).boxed_local().await,
        Command::Schema => Ok(schema::run(lines)),
        Command::Completions(command) => Ok(command.run(arguments, lines).boxed_local().await),
        Command::Man(command) => command.run(lines),
    }
}

impl Arguments {
    /// The config, with what the command line says of it. The audit file is that of the ledger in
    /// the config's own state folder.
    fn config(&self) -> Result<Config, Failure> {
        let mut config = load(&self.config_path())?;
        if let Some(state) = &self.state {
            if !sync::is_same_file(state, &config.daemon.state) {
                config.daemon.audit_file = None;
            }
            config.daemon.state.clone_from(state);
        }
        Ok(config)
    }

    fn config_path(&self) -> PathBuf {
        self.named_config().unwrap_or_else(|| DEFAULT_CONFIG.into())
    }

    /// The config file that the option or the environment names.
    fn named_config(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| {
            environment("BLOBFERRY_CONFIG")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        })
    }

    /// The options that a command must repeat to work with the same config and state, each with a
    /// space in front.
    fn repeated(&self) -> String {
        [("-c", &self.config), ("--state", &self.state)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)))
            .map(|(name, value)| format!(" {name} {}", quoted(&value.display().to_string())))
            .collect()
    }

    /// The state folder, as far as it is known.
    fn state_folder(&self) -> Option<PathBuf> {
        let told = || state_path(&self.config_path(), &environment).map(|state| state.folder);
        self.state.clone().or_else(told)
    }

    /// The state folder for a command that needs nothing else of the config.
    fn state_path(&self) -> Result<StatePath, Failure> {
        if let Some(folder) = &self.state {
            return Ok(StatePath {
                folder: folder.clone(),
                doubt: None,
            });
        }
        state_path(&self.config_path(), &environment).ok_or_else(|| {
            Failure::usage("the state folder is not known: give --state DIR, or set `daemon.state` in the config, or HOME")
        })
    }

    /// The names of the config's registries, as far as it can be read.
    fn registry_names(&self) -> Vec<String> {
        registry_names(&self.config_path(), &environment)
    }

    /// Whether moving bars are drawn: for a command that has some, on a terminal, unless asked to
    /// be quiet.
    fn draws_bars(&self) -> bool {
        let moves = matches!(
            self.command,
            Command::Sync(_) | Command::Copy(_) | Command::Promote(_)
        );
        moves && self.quiet == 0 && std::io::stderr().is_terminal()
    }

    /// Commands that print what happens log only what they do not print; the daemon logs all of it.
    fn verbosity(&self) -> i8 {
        let base = if matches!(self.command, Command::Run) {
            0
        } else {
            -1
        };
        let steps = i16::from(self.verbose) - i16::from(self.quiet) + base;
        i8::try_from(steps).unwrap_or(if steps < 0 { i8::MIN } else { i8::MAX })
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || "/._-+=:@%,".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Logs go to stderr; where bars are drawn, above them.
fn start_logs(arguments: &Arguments, screen: Option<MultiProgress>) -> Result<(), Failure> {
    let settings = telemetry::Settings {
        format: arguments.log_format.into(),
        verbosity: arguments.verbosity(),
        filter: environment("BLOBFERRY_LOG"),
        color: output::color(&std::io::stderr()),
        journald: stderr_is_the_journal(),
    };
    let started = match screen {
        None => telemetry::start(settings),
        Some(screen) => telemetry::start_with(
            settings,
            Box::new(move |line| screen.suspend(|| telemetry::to_stderr(line))),
        ),
    };
    started.map_err(|error| Failure::new(2, error))
}

/// systemd names the journal's stream in `JOURNAL_STREAM`; a child with another stderr inherits the
/// variable all the same.
fn stderr_is_the_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Some(named) = environment("JOURNAL_STREAM") else {
        return false;
    };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| named == format!("{}:{}", stderr.dev(), stderr.ino()))
}

fn load(path: &Path) -> Result<Config, Failure> {
    Config::load(path, &environment).map_err(|error| Failure::new(2, error))
}

/// The only reading of the environment, next to that of the config file by `config`.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("blobferry").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn command_lines_are_taken_or_refused() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for good in [
            "run",
            "run -c other.yaml -vv",
            "--log-format json run -q",
            "sync",
            "sync one two --tag v1 --dry-run --json --all",
            "sync --actor alice --reason CHG-17",
            "sync --dry-run -c other.yaml --changes",
            "promote --actor alice --reason CHG-17",
            "copy host.example/app:v1 other.example/app:v1",
            &format!(
                "copy layout:/a:v1 http://h.example/b:v1 --expect {digest} --replace {digest} --state /s --dry-run --json"
            ),
            "promote",
            "promote a.example/b:c d.example/e:f g.example/h i.example/j --report r.json --junit r.xml --imagedefinitions i.json --container e=web",
            "promote a.example/b d.example/e --all-tags --state /s",
            "status --json",
            "check --online --probe-repository staging/throw-away",
            "check --online",
            "history",
            "history prod.example/app:v1 --limit 5 --json",
            "history --verify",
            "hold",
            "hold production/app:v1 --until 36h --reason CHG-17 --actor alice",
            "release",
            "release 12 --json",
            &format!("deny {digest} --reason CVE"),
            "demo --for 1m30s",
            "migrate regsync.yml",
            "migrate --from skopeo --to registry.example/team --scoped -",
            "iam -c other.yaml",
            "schema",
            "completions bash",
            "completions --line x",
        ] {
            parsed(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in [
            "",
            "fly",
            "run extra",
            "sync --tag .bad",
            "sync --changes",
            "copy one",
            "copy a.example/b:c d.example/e:f --expect abc",
            "promote --all-tags --imagedefinitions i.json",
            "promote --imagedefinitions i.json --container web",
            "promote --expect latest",
            "history --limit 0",
            "check --probe-repository staging/x",
            "deny production/app:v1",
            "accept",
            "rollback app:v1 --to v0",
            "demo --for soon",
            "migrate",
            "migrate --from helm values.yaml",
            "demo --for -3s",
            "completions cmd",
            "run -v -q",
            "run --log-format xml",
        ] {
            assert_eq!(parsed(bad).expect_err(bad).exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn the_config_is_never_found_in_the_current_folder() {
        if std::env::var_os("BLOBFERRY_CONFIG").is_none() {
            assert_eq!(
                parsed("run").unwrap().config_path(),
                Path::new(DEFAULT_CONFIG)
            );
        }
        assert_eq!(
            parsed("run -c here.yaml").unwrap().config_path(),
            Path::new("here.yaml")
        );
    }

    #[test]
    fn a_failure_is_printed_without_passwords_and_control_characters() {
        let failure = Failure::usage("\"user:hush@host/app\u{1b}[2J\": names no registry");
        assert_eq!(
            failure.to_string(),
            "\"[hidden]@host/app\\u{1b}[2J\": names no registry"
        );
    }

    #[test]
    fn a_printed_command_works_with_the_same_config_and_state() {
        assert_eq!(parsed("sync").unwrap().repeated(), "");
        assert_eq!(
            parsed("sync -c a.yaml --state /s").unwrap().repeated(),
            " -c a.yaml --state /s"
        );
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
    }

    #[test]
    fn a_failure_says_each_thing_once() {
        let inner = anyhow::anyhow!("no such file");
        let failure = Failure::new(
            2,
            inner
                .context("cannot read x: no such file")
                .context("bad config"),
        );
        assert_eq!(
            failure.to_string(),
            "bad config: cannot read x: no such file"
        );
    }
}
