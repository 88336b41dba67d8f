//! `sync --dry-run -c OTHER --changes`: what another config would do otherwise than the running
//! daemon's. Both plan at the same time, each by its own config: the daemon over its socket, the
//! other here. What differs is listed.

use std::collections::BTreeMap;

use indicatif::MultiProgress;
use serde::Serialize;
use serde_json::json;

use super::lines::Lines;
use super::output::{clean, plural};
use super::pass::{Show, Signals, follow};
use super::progress::ProgressMode;
use super::socket::{Socket, not_running};
use super::sync::{Sync, known, report};
use super::{Arguments, Failure};
use crate::commands;
use crate::config::{Config, StatePath};
use crate::job::{Outcome, Remarks, Report};
use crate::look::PassOptions;
use crate::status::board::Status;

/// What one config would do with a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Plan {
    route: String,
    result: Outcome,
}

/// A tag and destination with which the two configs would do different things; `None`: nothing at
/// all.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    source: String,
    destination: String,
    daemon: Option<Plan>,
    other: Option<Plan>,
}

/// Compares the plan of the named config with that of the daemon on the same state folder.
pub(super) async fn compare(
    sync: &Sync,
    arguments: &Arguments,
    lines: &mut Lines,
    screen: Option<MultiProgress>,
) -> Result<u8, Failure> {
    let config = &sync.compared(arguments)?;
    let options = arguments.repeated();
    let show = Show::new(sync.json, sync.all, &options);
    let mode = ProgressMode::of(arguments.quiet > 0, screen);
    let socket = Socket::in_state(&config.daemon.state);
    let Some(status) = socket.read("/v1/status").await? else {
        return Err(not_running(&StatePath {
            folder: config.daemon.state.clone(),
            doubt: None,
        }));
    };
    let status: Status = serde_json::from_value(status).map_err(|error| {
        Failure::said(1, format_args!("the daemon is of another version: {error}"))
    })?;
    let theirs: Vec<&str> = status.routes.iter().map(|route| &*route.name).collect();
    let ours = config.routes.iter().map(|route| &*route.name);
    known(&sync.routes, theirs.iter().copied().chain(ours))?;
    let mut signals = Signals::listen()?;
    let both = async {
        futures::join!(
            daemons_plan(sync, &socket, &theirs),
            own_plan(sync, config, mode, show)
        )
    };
    // Plans touch nothing: there is no transfer to wait for.
    let (theirs, other) = tokio::select! {
        biased;
        () = signals.next() => return Err(Failure::interrupted("aborted; nothing was touched")),
        plans = both => plans,
    };
    let theirs = theirs?;
    let other = other?;
    let changes = changes(theirs.as_ref(), &other);
    let reports: Vec<&Report> = theirs.iter().chain([&other]).collect();
    let exit_code = incomplete(reports.iter().map(|report| report.exit_code));
    let trouble: Vec<&String> = reports.iter().flat_map(|report| &report.trouble).collect();
    if show.json {
        let schema = 1;
        lines.json(&json!({
            "schema": schema,
            "exit_code": exit_code,
            "trouble": trouble,
            "changes": changes,
        }));
        return Ok(exit_code);
    }
    changes.iter().for_each(|change| lines.line(line(change)));
    for trouble in trouble {
        lines.line(format!("trouble: {}", clean(trouble)));
    }
    lines.line(closing(changes.len(), exit_code));
    Ok(exit_code)
}

/// `None`: the daemon has none of the routes that are asked about.
async fn daemons_plan(
    sync: &Sync,
    socket: &Socket,
    routes: &[&str],
) -> Result<Option<Report>, Failure> {
    let asked: Vec<&str> = sync
        .routes
        .iter()
        .map(String::as_str)
        .filter(|name| routes.contains(name))
        .collect();
    if asked.is_empty() && !sync.routes.is_empty() {
        return Ok(None);
    }
    let body = json!({
        "route": asked,
        "tag": sync.tag_names(),
        "wait": true,
        "dry_run": true,
        "all": true,
    });
    let answer = socket.act("/v1/sync", body).await?;
    let (status, body) =
        answer.ok_or_else(|| Failure::said(1, "the daemon went away before it answered"))?;
    report(status, body).map(Some)
}

async fn own_plan(
    sync: &Sync,
    config: &Config,
    mode: ProgressMode,
    show: Show<'_>,
) -> Result<Report, Failure> {
    let options = PassOptions {
        dry_run: true,
        all: true,
        waits: true,
    };
    let mut unread = Lines::to(std::io::sink());
    follow(show, mode, &mut unread, |observer, stop| {
        commands::sync(
            config,
            sync.scope(),
            options,
            Remarks::default(),
            observer,
            stop,
        )
    })
    .await
}

/// What differs, by source and destination.
fn changes(daemon: Option<&Report>, other: &Report) -> Vec<Change> {
    let mut plans: BTreeMap<(&str, &str), [Option<Plan>; 2]> = BTreeMap::new();
    for (side, report) in [(0, daemon), (1, Some(other))] {
        for job in report.iter().flat_map(|report| &report.jobs) {
            let plan = Plan {
                route: job.route.clone(),
                result: job.result,
            };
            plans.entry((&job.source, &job.destination)).or_default()[side] = Some(plan);
        }
    }
    plans
        .into_iter()
        .filter(|(_, [daemon, other])| daemon != other)
        .map(|((source, destination), [daemon, other])| Change {
            source: source.into(),
            destination: destination.into(),
            daemon,
            other,
        })
        .collect()
}

/// The first exit code that says that not everything was seen, else 0: a difference is an answer
/// and no failure.
fn incomplete(exit_codes: impl Iterator<Item = u8> + Clone) -> u8 {
    [130, 3, 1]
        .into_iter()
        .find(|code| exit_codes.clone().any(|exit_code| exit_code == *code))
        .unwrap_or(0)
}

fn line(change: &Change) -> String {
    clean(&format!(
        "{} from {}: now {}, with the other config {}",
        change.destination,
        change.source,
        planned(&change.daemon),
        planned(&change.other)
    ))
}

fn planned(plan: &Option<Plan>) -> String {
    match plan {
        Some(Plan { route, result }) => format!("{} ({route})", result.name().replace('_', " ")),
        None => "nothing".into(),
    }
}

fn closing(count: usize, exit_code: u8) -> String {
    let text = match count {
        0 => "no tag is treated otherwise".to_owned(),
        count => format!("{} treated otherwise", plural(count as u64, "tag")),
    };
    match exit_code {
        0 => text,
        _ => text + " (not everything could be seen)",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::output::tests::job;
    use crate::job::{Look, Settled};

    fn plan(jobs: &[(&str, &str, Outcome)]) -> Report {
        let settled = |(route, destination, result): &(&str, &str, Outcome)| Settled {
            route: (*route).into(),
            destination: (*destination).into(),
            ..job(*result)
        };
        let look = Look {
            jobs: jobs.iter().map(settled).collect(),
            found: true,
            ..Look::default()
        };
        Report::new("r", jiff::Timestamp::UNIX_EPOCH, Duration::ZERO, [look])
    }

    #[test]
    fn only_what_differs_is_listed() {
        let daemon = plan(&[
            ("app", "p/app:v1", Outcome::UpToDate),
            ("app", "p/app:v2", Outcome::Planned),
            ("app", "p/app:v3", Outcome::Conflict),
        ]);
        let other = plan(&[
            ("app", "p/app:v1", Outcome::UpToDate),
            ("app", "p/app:v3", Outcome::Existing),
            ("app", "p/app:v4", Outcome::Planned),
        ]);
        let texts = |daemon: Option<&Report>| -> Vec<String> {
            changes(daemon, &other).iter().map(line).collect()
        };
        let source = job(Outcome::Planned).source;
        assert_eq!(
            texts(Some(&daemon)),
            [
                format!("p/app:v2 from {source}: now planned (app), with the other config nothing"),
                format!(
                    "p/app:v3 from {source}: now conflict (app), with the other config existing (app)"
                ),
                format!("p/app:v4 from {source}: now nothing, with the other config planned (app)"),
            ]
        );
        assert_eq!(texts(Some(&other)), Vec::<String>::new());
        assert_eq!(texts(None).len(), 3);
    }

    #[test]
    fn a_difference_is_no_failure_and_a_blind_spot_is() {
        for (exit_codes, expected) in [
            ([0, 4], 0),
            ([5, 0], 0),
            ([0, 1], 1),
            ([1, 3], 3),
            ([130, 1], 130),
        ] {
            assert_eq!(
                incomplete(exit_codes.into_iter()),
                expected,
                "{exit_codes:?}"
            );
        }
    }
}
