//! `sync`: one pass over the routes. Beside a running daemon the daemon makes it, since only one
//! process may use a state.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use http::StatusCode;
use indicatif::MultiProgress;
use serde_json::{Value, json};

use super::lines::Lines;
use super::output::plural;
use super::pass::{Show, Signals, follow};
use super::progress::{Display, ProgressMode};
use super::remarks::Said;
use super::socket::{Socket, refusal};
use super::{Arguments, Failure};
use crate::commands;
use crate::config::Config;
use crate::job::{Remarks, Report};
use crate::look::PassOptions;
use crate::oci::Tag;
use crate::status::board::Status;
use crate::watch::Scope;

/// The exit code where what was named is not there.
const NOT_THERE: u8 = 5;
/// How often a daemon that makes our pass is asked what it is doing.
const GLANCE: Duration = Duration::from_secs(1);

/// Make one pass over the routes, asking both sides; a running daemon does it, if there is one
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry sync                        every route
  blobferry sync demo-app --tag v7      one tag of one route; --tag again for more
  blobferry sync --dry-run --all        what would happen to every tag
  blobferry sync --json | jq .totals    the report for programs
  blobferry sync --dry-run -c new.yaml  what another config would do
  blobferry sync --dry-run -c new.yaml --changes
                                        only what it would do otherwise

stdout has a line for each change or trouble and the totals, or with --json the
report alone; stderr has the progress: bars on a terminal, else a heartbeat. The
first SIGINT or SIGTERM lets running transfers end where the registry can resume
them, the second stops at once.")]
pub(super) struct Sync {
    /// Only these routes
    #[arg(value_name = "ROUTE")]
    pub(super) routes: Vec<String>,
    /// Only this tag; may be said more than once
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Tag>,
    /// Say what would be done, and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// List what is up to date as well
    #[arg(long)]
    pub(super) all: bool,
    /// With --dry-run -c FILE: list what differs from what the running daemon would do
    #[arg(long, requires = "dry_run", conflicts_with = "all")]
    pub(super) changes: bool,
    #[command(flatten)]
    said: Said,
}

impl Sync {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
        screen: Option<MultiProgress>,
    ) -> Result<u8, Failure> {
        let options = arguments.repeated();
        let show = Show::new(self.json, self.all, &options);
        let mode = ProgressMode::of(arguments.quiet > 0, screen);
        if let Some(config) = self.plan_of_its_own(arguments).await? {
            return self.run_here(&config, show, mode, lines).await;
        }
        let socket = Socket::in_state(&arguments.state_path()?.folder);
        let named = arguments.named_config().filter(|_| !self.dry_run);
        if let Some(report) = self.ask_daemon(&socket, named, mode.clone(), show).await? {
            show.report(lines, &report);
            return Ok(report.exit_code);
        }
        let config = arguments.config()?;
        known(&self.routes, config.routes.iter().map(|route| &*route.name))?;
        self.run_here(&config, show, mode, lines).await
    }

    /// The config that `--changes` compares with the daemon's.
    pub(super) fn compared(&self, arguments: &Arguments) -> Result<Config, Failure> {
        if arguments.config.is_none() {
            return Err(Failure::usage(
                "--changes compares another config with the daemon's: name it with -c FILE",
            ));
        }
        arguments.config()
    }

    /// The config of a dry run that a running daemon would not plan with, because it was started
    /// with another one.
    async fn plan_of_its_own(&self, arguments: &Arguments) -> Result<Option<Config>, Failure> {
        let named = arguments.named_config().filter(|_| self.dry_run);
        let Some(named) = named else {
            return Ok(None);
        };
        let socket = Socket::in_state(&arguments.state_path()?.folder);
        let Some(status) = socket.read("/v1/status").await? else {
            return Ok(None);
        };
        // The variable is set for every command: a broken edit must not hide the daemon.
        if arguments.config.is_none() && is_same_file(&named, daemons_config(&status)) {
            return Ok(None);
        }
        let config = arguments.config()?;
        if status["config"]["hash"] == config.hash {
            return Ok(None);
        }
        known(&self.routes, config.routes.iter().map(|route| &*route.name))?;
        Ok(Some(config))
    }

    async fn run_here(
        &self,
        config: &Config,
        show: Show<'_>,
        mode: ProgressMode,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let options = PassOptions {
            dry_run: self.dry_run,
            all: self.all,
            waits: true,
        };
        follow(show, mode, lines, |observer, stop| {
            let remarks = self.said.remarks();
            commands::sync(config, self.scope(), options, remarks, observer, stop)
        })
        .await
        .map(|report| report.exit_code)
    }

    /// The daemon's report. `None`: there is no daemon.
    async fn ask_daemon(
        &self,
        socket: &Socket,
        named: Option<PathBuf>,
        mode: ProgressMode,
        show: Show<'_>,
    ) -> Result<Option<Report>, Failure> {
        let Some(status) = socket.read("/v1/status").await? else {
            return Ok(None);
        };
        if let Some(named) = named {
            follows(&named, daemons_config(&status))?;
        }
        if let Ok(status) = serde_json::from_value::<Status>(status) {
            known(
                &self.routes,
                status.routes.iter().map(|route| route.name.as_str()),
            )?;
        }
        let answer = socket.act("/v1/sync", self.request());
        let left = "no longer waiting; the daemon goes on, see `blobferry status`";
        let answer = at_work(socket, mode, show, left, answer).await?;
        answer
            .map(|(status, body)| report(status, body))
            .transpose()
    }

    /// What is looked at.
    pub(super) fn scope(&self) -> Scope {
        Scope {
            routes: self.routes.clone(),
            tags: self.tags.clone(),
            ..Scope::default()
        }
    }

    pub(super) fn tag_names(&self) -> Vec<&str> {
        self.tags.iter().map(Tag::as_str).collect()
    }

    fn request(&self) -> Value {
        let Remarks {
            reason,
            claimed_actor,
        } = self.said.remarks();
        json!({"route": self.routes, "tag": self.tag_names(), "wait": true, "dry_run": self.dry_run, "all": self.all,
            "actor": claimed_actor, "reason": reason})
    }
}

/// Waits for an answer of the daemon and shows meanwhile what it is doing; `left` is said when a
/// signal ends the waiting.
pub(super) async fn at_work<T>(
    socket: &Socket,
    mode: ProgressMode,
    show: Show<'_>,
    left: &str,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut signals = Signals::listen()?;
    let mut display = Display::new(mode, show.style.unicode);
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = signals.next() => return Err(Failure::interrupted(left)),
            text = glance(socket) => display.note(&text),
        }
    }
}

pub(super) fn report(status: StatusCode, body: Value) -> Result<Report, Failure> {
    let said = refusal(status, &body);
    serde_json::from_value(body).map_err(|_| said)
}

/// What the daemon is doing, a moment from now.
async fn glance(socket: &Socket) -> String {
    tokio::time::sleep(GLANCE).await;
    let status = socket
        .read("/v1/status")
        .await
        .ok()
        .flatten()
        .and_then(|body| serde_json::from_value::<Status>(body).ok());
    match status {
        Some(status) => format!(
            "the daemon is at work: {} running, {} waiting",
            plural(status.jobs.len() as u64, "job"),
            plural(status.queue.depth as u64, "look")
        ),
        None => "the daemon is at work".into(),
    }
}

fn daemons_config(status: &Value) -> &Path {
    Path::new(status["config"]["path"].as_str().unwrap_or_default())
}

/// Refuses a config that the daemon does not follow: its own rules would run instead.
fn follows(named: &Path, daemons: &Path) -> Result<(), Failure> {
    if is_same_file(named, daemons) {
        return Ok(());
    }
    Err(Failure::usage(format_args!(
        "the running daemon uses {}, not {}; change that file and reload the daemon, or use --dry-run",
        daemons.display(),
        named.display()
    )))
}

/// Whether two paths lead to one file, there or not.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((resolve(one), resolve(other)), (Ok(one), Ok(other)) if one == other)
}

fn resolve(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize().or_else(|_| std::path::absolute(path))
}

/// Refuses a route that the config does not have.
pub(super) fn known<'a>(
    asked: &[String],
    routes: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Failure> {
    match asked
        .iter()
        .find(|name| !routes.clone().any(|route| route == *name))
    {
        None => Ok(()),
        Some(unknown) => {
            let routes: Vec<&str> = routes.collect();
            let text = format!(
                "there is no route \"{unknown}\" (the config has: {})",
                routes.join(", ")
            );
            Err(Failure::said(NOT_THERE, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_route_is_not_there_and_the_known_ones_are_named() {
        let routes = ["one", "two"];
        assert!(known(&["two".into()], routes.into_iter()).is_ok());
        assert!(known(&[], [].into_iter()).is_ok());
        let failure = known(&["one".into(), "three".into()], routes.into_iter()).unwrap_err();
        assert_eq!(
            (failure.code, failure.to_string().as_str()),
            (5, "there is no route \"three\" (the config has: one, two)")
        );
    }

    #[test]
    fn an_answer_without_a_report_is_the_daemons_refusal() {
        let body = json!({"error": {"code": "nothing_matched", "text": "nothing matches"}});
        let failure = report(StatusCode::NOT_FOUND, body).unwrap_err();
        assert_eq!(
            (failure.code, failure.to_string().as_str()),
            (5, "the daemon says: nothing matches")
        );
        let empty = Report::new("run", jiff::Timestamp::UNIX_EPOCH, Duration::ZERO, []);
        let body = serde_json::to_value(&empty).unwrap();
        assert_eq!(report(StatusCode::NOT_FOUND, body).unwrap().exit_code, 5);
    }
}
