//! `status`: what the daemon is doing, each route's state, and what comes next.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::lines::Lines;
use super::output::{Style, clean, plural, relative, screen_width, seconds, table, totals};
use super::progress::say;
use super::socket::{Socket, not_running};
use super::{Arguments, Failure};
use crate::clock;
use crate::config::StatePath;
use crate::decision::{Kind, Numbered};
use crate::status::board::{
    EventStatus, MessageQueueStatus, RegistryStatus, RouteStatus, Status as Board,
};

/// Show what the daemon is doing, each route's state, and what it will do next and when
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry status
  blobferry status --json | jq '.routes[] | {name, tags}'
  blobferry status --watch               again every 2 s, until Ctrl-C, through restarts
  blobferry status --watch --json        a line whenever something has changed

Asks the daemon over control.sock in its state folder; of the config only
`daemon.state` is read, so it works whatever else is wrong there. Ends with 0
when the daemon answers, whatever it says, and with 1 when none is running.")]
pub(super) struct Status {
    /// Print all of it as JSON
    #[arg(long)]
    json: bool,
    /// Show it again every two seconds until interrupted; with --json a line for each change
    #[arg(long)]
    watch: bool,
}

/// How often `--watch` asks.
const INTERVAL: Duration = Duration::from_secs(2);

/// Moves to the upper left corner of a terminal and clears it.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J\x1b[3J";

impl Status {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let state = arguments.state_path()?;
        if self.watch {
            return self.repeat(&state, lines).await;
        }
        let body = read(&state).await?;
        if self.json {
            lines.json(&body);
        } else {
            lines.line(shown(body)?);
        }
        Ok(0)
    }

    /// Until a signal ends the process. A daemon that does not answer any more may be restarting.
    async fn repeat(&self, state: &StatePath, lines: &mut Lines) -> Result<u8, Failure> {
        let mut before = read(state).await?;
        self.show(before.clone(), lines)?;
        let mut has_answered = true;
        loop {
            tokio::time::sleep(INTERVAL).await;
            match read(state).await {
                Ok(body) => {
                    if !self.json || body != before {
                        self.show(body.clone(), lines)?;
                    }
                    before = body;
                    has_answered = true;
                }
                Err(failure) if has_answered => {
                    say(&format!("{failure}; waiting for it"));
                    has_answered = false;
                }
                Err(_) => {}
            }
        }
    }

    /// One refresh.
    fn show(&self, body: Value, lines: &mut Lines) -> Result<(), Failure> {
        if self.json {
            lines.json_line(&body);
            return Ok(());
        }
        let page = shown(body)?;
        if std::io::stdout().is_terminal() {
            lines.write(CLEAR);
        }
        lines.line(page);
        Ok(())
    }
}

async fn read(state: &StatePath) -> Result<Value, Failure> {
    let body = Socket::in_state(&state.folder).read("/v1/status").await?;
    body.ok_or_else(|| not_running(state))
}

fn shown(body: Value) -> Result<String, Failure> {
    let board: Board = serde_json::from_value(body).map_err(|error| {
        Failure::said(1, format_args!("the daemon is of another version: {error}"))
    })?;
    let style = Style::of(&std::io::stdout());
    Ok(page(&board, style, screen_width(), clock::now()))
}

/// The whole page.
fn page(board: &Board, style: Style, width: Option<usize>, now: Timestamp) -> String {
    let sections = [
        head(board, now),
        routes(&board.routes, style, width, now),
        decisions(&board.decisions, width, now),
        registries(&board.registries, width),
        queues(&board.queues, width, now),
        running(board, style, width, now),
    ];
    sections
        .into_iter()
        .filter(|section| !section.is_empty())
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn head(board: &Board, now: Timestamp) -> String {
    let state = match (board.draining, board.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready: some routes have not been looked at yet",
    };
    let config = &board.config;
    let mut text = format!(
        "blobferry {}, started {}, {state}\nconfig {} ({}), read {}",
        clean(&board.version),
        relative(board.started, now),
        clean(&config.path),
        clean(&config.hash),
        relative(config.loaded, now)
    );
    if let Some(refused) = &config.refused {
        text.push_str(&format!(
            "\nthe newest config was refused, this one stays in force: {}",
            clean(refused)
        ));
    }
    text
}

fn routes(routes: &[RouteStatus], style: Style, width: Option<usize>, now: Timestamp) -> String {
    let rows = routes.iter().map(|route| {
        let tags = match route.observes {
            true => format!("observes: {}", tags(route, now)),
            false => tags(route, now),
        };
        [
            route.name.clone(),
            format!("{} {} {}", route.from, style.arrow(), route.to.join(", ")),
            plural_of(route.repositories),
            relative(route.last_look, now),
            route
                .next_look
                .map_or_else(|| "when asked".into(), |next| due(next, now)),
            tags,
        ]
    });
    let mut text = table(
        width,
        [
            "ROUTE",
            "FROM AND TO",
            "REPOSITORIES",
            "LAST LOOK",
            "NEXT LOOK",
            "TAGS",
        ],
        rows,
    );
    for route in routes {
        if let Some(event) = route.events.first() {
            text.push_str(&last_event(&route.name, event, now));
        }
        for trouble in &route.trouble {
            let line = format!(
                "\n{}: {}: {}",
                clean(&route.name),
                trouble.class.name(),
                clean(&trouble.text)
            );
            text.push_str(&style.escape(31, &line));
        }
    }
    text
}

/// `app: last event 3 s ago: webhook by receiver:harbor, app:v1, pushed 4 s ago, says alice`
fn last_event(route: &str, event: &EventStatus, now: Timestamp) -> String {
    let mut what = event.repository.clone();
    if !event.tags.is_empty() {
        what = format!("{what}:{}", event.tags.join(", "));
    }
    let mut text = format!(
        "\n{}: last event {}: {} by {}, {}",
        clean(route),
        relative(Some(event.at), now),
        event.cause,
        clean(&event.actor),
        clean(&what)
    );
    if let Some(pushed) = event.pushed {
        text.push_str(&format!(", pushed {}", relative(Some(pushed), now)));
    }
    if let Some(claimed) = &event.claimed_actor {
        text.push_str(&format!(", says {}", clean(claimed)));
    }
    text
}

/// `3 up to date, 1 pending for 2 min`, and whether that is still so.
fn tags(route: &RouteStatus, now: Timestamp) -> String {
    let mut facts: Vec<String> =
        Vec::from_iter((!totals(&route.tags, true).is_empty()).then(|| totals(&route.tags, true)));
    if route.pending > 0 {
        facts.push(format!("{} pending", route.pending));
    }
    let mut text = facts.join(", ");
    if let Some(since) = route.pending_since {
        let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        text.push_str(&format!(
            " (the oldest to go has waited {})",
            seconds(waited.as_secs_f64())
        ));
    }
    match (route.up, text.is_empty()) {
        (None, true) => "unknown".into(),
        (Some(false), true) => "unknown: no look was complete".into(),
        (Some(false), false) => format!("{text}; as last known: the newest look was not complete"),
        (_, true) => "none".into(),
        (_, false) => text,
    }
}

fn plural_of(repositories: usize) -> String {
    if repositories == 0 {
        "none found".into()
    } else {
        repositories.to_string()
    }
}

/// A look at a time that has passed is due, not "ago".
fn due(next: Timestamp, now: Timestamp) -> String {
    if next <= now {
        "now".into()
    } else {
        relative(Some(next), now)
    }
}

/// What ends a decision without an end.
fn ends_by(kind: Kind) -> &'static str {
    match kind {
        Kind::Rollback => "next push, or released",
        _ => "until released",
    }
}

fn decisions(decisions: &[Numbered], width: Option<usize>, now: Timestamp) -> String {
    let rows = decisions.iter().map(|numbered| {
        let decision = &numbered.decision;
        let until = decision.until;
        let reason = decision.actor.remarks.reason.as_ref();
        [
            numbered.id.to_string(),
            numbered.kind.to_string(),
            decision.shown_target().to_owned(),
            decision.actor.to_string(),
            until.map_or_else(
                || ends_by(numbered.kind).into(),
                |until| relative(Some(until), now),
            ),
            reason.map(ToString::to_string).unwrap_or_default(),
        ]
    });
    table(
        width,
        ["DECISION", "KIND", "TARGET", "BY", "ENDS", "REASON"],
        rows,
    )
}

fn registries(registries: &[RegistryStatus], width: Option<usize>) -> String {
    let rows = registries.iter().map(|registry| {
        let state = match (registry.up, &registry.trouble) {
            (Some(true), _) => "up".into(),
            (Some(false), None) => "down".into(),
            (Some(false), Some(trouble)) => format!("down: {trouble}"),
            (None, _) => "not asked yet".into(),
        };
        [registry.name.clone(), registry.url.clone(), state]
    });
    table(width, ["REGISTRY", "URL", "STATE"], rows)
}

fn queues(queues: &[MessageQueueStatus], width: Option<usize>, now: Timestamp) -> String {
    let rows = queues.iter().map(|queue| {
        let state = match (queue.up, &queue.trouble) {
            (Some(true), None) => "up".into(),
            (Some(true), Some(trouble)) => format!("up, but {trouble}"),
            (Some(false), None) => "down".into(),
            (Some(false), Some(trouble)) => format!("down: {trouble}"),
            (None, _) => "no answer yet".into(),
        };
        let waiting = queue
            .depth
            .map_or_else(|| "unknown".into(), |depth| depth.to_string());
        [
            queue.name.clone(),
            queue.registry.clone(),
            waiting,
            queue.in_hand.to_string(),
            relative(queue.last_message, now),
            state,
        ]
    });
    let titles = [
        "QUEUE",
        "EVENTS OF",
        "WAITING",
        "IN HAND",
        "LAST MESSAGE",
        "STATE",
    ];
    table(width, titles, rows)
}

fn running(board: &Board, style: Style, width: Option<usize>, now: Timestamp) -> String {
    let queue = &board.queue;
    let mut text = format!(
        "{} running, {} waiting",
        plural(queue.running as u64, "look"),
        queue.depth
    );
    if queue.depth > 0 {
        text.push_str(&format!(
            " (the oldest for {})",
            seconds(queue.oldest_seconds)
        ));
    }
    let rows = board.jobs.iter().map(|job| {
        let way = format!("{} {} {}", job.source, style.arrow(), job.destination);
        [job.route.clone(), way, relative(Some(job.since), now)]
    });
    let jobs = table(width, ["JOB OF", "FROM AND TO", "STARTED"], rows);
    if jobs.is_empty() {
        text
    } else {
        format!("{text}\n\n{jobs}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Totals, Trouble};
    use crate::status::board::{ConfigStatus, JobStatus, QueueStatus};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn board() -> Board {
        Board {
            version: "0.1.0".into(),
            started: Some(at(0)),
            ready: true,
            config: ConfigStatus {
                path: "/etc/b.yaml".into(),
                hash: "abc".into(),
                loaded: Some(at(0)),
                refused: None,
            },
            routes: vec![RouteStatus {
                name: "demo-app".into(),
                from: "staging/app".into(),
                to: vec!["production/app".into()],
                repositories: 1,
                last_look: Some(at(88)),
                next_look: Some(at(148)),
                up: Some(true),
                tags: Totals {
                    up_to_date: 412,
                    conflict: 1,
                    ..Totals::default()
                },
                ..RouteStatus::default()
            }],
            registries: vec![RegistryStatus {
                name: "staging".into(),
                url: "https://s.example".into(),
                up: Some(true),
                trouble: None,
            }],
            ..Board::default()
        }
    }

    #[test]
    fn the_page_shows_each_route_registry_and_the_queue() {
        assert_eq!(
            page(&board(), Style::default(), None, at(100)),
            "blobferry 0.1.0, started 1 min 40 s ago, ready\n\
             config /etc/b.yaml (abc), read 1 min 40 s ago\n\
             \n\
             ROUTE     FROM AND TO                    REPOSITORIES  LAST LOOK  NEXT LOOK  TAGS\n\
             demo-app  staging/app -> production/app  1             12 s ago   in 48 s    412 up to date, 1 conflict\n\
             \n\
             REGISTRY  URL                STATE\n\
             staging   https://s.example  up\n\
             \n\
             0 looks running, 0 waiting"
        );
    }

    #[test]
    fn trouble_of_every_kind_is_on_the_page() {
        let mut board = board();
        board.ready = false;
        board.config.refused = Some("line 3: unknown key".into());
        board.routes[0].up = Some(false);
        board.routes[0].pending = 2;
        board.routes[0].pending_since = Some(at(40));
        board.routes[0].trouble = vec![Trouble {
            class: crate::job::TroubleClass::Auth,
            text: "denied\u{7}".into(),
        }];
        board.registries[0].up = Some(false);
        board.registries[0].trouble = Some("token refused".into());
        board.queues = vec![MessageQueueStatus {
            name: "pushes".into(),
            registry: "staging".into(),
            up: Some(false),
            trouble: Some("sqs:ReceiveMessage in eu-west-1: denied".into()),
            in_hand: 7,
            last_message: Some(at(70)),
            ..MessageQueueStatus::default()
        }];
        board.queue = QueueStatus {
            depth: 2,
            running: 1,
            oldest_seconds: 90.0,
        };
        let source = "s.example/app:v1".into();
        let destination = "p.example/app:v1".into();
        board.jobs = vec![JobStatus {
            route: "demo-app".into(),
            source,
            destination,
            since: at(96),
        }];
        let page = page(&board, Style::default(), None, at(100));
        for expected in [
            "not ready",
            "this one stays in force: line 3: unknown key",
            "\ndemo-app: auth: denied\u{fffd}",
            "1 conflict, 2 pending (the oldest to go has waited 1 min); as last known: the newest look was not complete",
            "down: token refused",
            "pushes  staging    unknown  7        30 s ago      down: sqs:ReceiveMessage in eu-west-1: denied",
            "1 look running, 2 waiting (the oldest for 1 min 30 s)",
            "demo-app  s.example/app:v1 -> p.example/app:v1  4 s ago",
        ] {
            assert!(page.contains(expected), "{expected:?} in\n{page}");
        }
    }
}
