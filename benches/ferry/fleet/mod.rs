//! Many repositories with many small images: what the first pass costs, and what a daemon asks and
//! costs when everything is equal.

mod images;
mod registry;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::ask::Ask;
use crate::daemon::Daemon;
use crate::limits::Limit;
use images::Images;
use registry::Registry;

const MIB: f64 = 1024.0 * 1024.0;
/// A first pass that takes longer is cut: what it has cost until then counts.
const FIRST_PASS: Duration = Duration::from_secs(180);
/// The same with ten times as many repositories, which nothing is copied to.
const LARGE_FIRST_PASS: Duration = Duration::from_secs(900);
/// So many polls are watched.
const POLLS: u32 = 2;

/// How many there are of everything.
struct Size {
    repositories: usize,
    tags: usize,
    poll: Duration,
}

impl Size {
    fn of(ask: &Ask) -> Size {
        let repositories = match (ask.quick, ask.large) {
            (true, _) => 50,
            (false, true) => 10_000,
            (false, false) => 1_000,
        };
        Size {
            repositories,
            tags: if ask.quick { 20 } else { 100 },
            poll: Duration::from_secs(if ask.quick { 5 } else { 60 }),
        }
    }
}

/// The heading of its figures.
pub fn title(ask: &Ask) -> String {
    let Size {
        repositories,
        tags,
        poll,
    } = Size::of(ask);
    format!(
        "{repositories} repositories × {tags} small tags, polled every {} s, loopback",
        poll.as_secs()
    )
}

/// The figures, with the limits.
pub async fn measure(ask: &Ask) -> (String, Vec<Limit>) {
    let size = Size::of(ask);
    let images = Arc::new(Images::new(size.repositories, size.tags));
    let own = Path::new(env!("CARGO_BIN_EXE_blobferry"));
    if ask.large {
        return large(own, &images, &size).await;
    }
    let beside = match &ask.beside {
        Some(other) => Some(first_pass(other, &images, &size).await.0),
        None => None,
    };
    let (cold, stage) = first_pass(own, &images, &size).await;
    let plain = match cold.is_whole {
        true => Some(stage.watched(&size).await),
        false => None,
    };
    drop(stage);
    let listing = Stage::equal(own, &images, &size, true).await;
    let with_referrers = match &listing {
        Some(stage) => Some(stage.watched(&size).await),
        None => None,
    };
    let mut text = FirstPass::HEAD.to_owned() + &cold.row("first pass");
    if let Some(beside) = &beside {
        text += &beside.row("first pass of the other program");
    }
    text += "\n";
    text += &watched_table(plain.as_ref(), with_referrers.as_ref());
    let ratio = beside.map(|beside| cold.micros_a_request() / beside.micros_a_request());
    let mut limits = vec![Limit::new(
        "CPU of a request of the first pass over the other program's",
        0.7,
        "",
        ratio,
    )];
    limits.extend(watched_limits([50.0, 80.0], [plain, with_referrers]));
    (text, limits)
}

/// Ten times as many repositories; production has everything already.
async fn large(own: &Path, images: &Arc<Images>, size: &Size) -> (String, Vec<Limit>) {
    let mut watched = [None, None];
    for (lists_referrers, watched) in [false, true].into_iter().zip(&mut watched) {
        if let Some(stage) = Stage::equal(own, images, size, lists_referrers).await {
            *watched = Some(stage.watched(size).await);
        }
    }
    let [plain, with_referrers] = watched;
    let text = watched_table(plain.as_ref(), with_referrers.as_ref());
    let memory = [&plain, &with_referrers]
        .into_iter()
        .flatten()
        .map(|watched| watched.memory);
    let mut limits = vec![Limit::new(
        "peak memory",
        256.0,
        " MiB",
        memory.max_by(f64::total_cmp),
    )];
    limits.extend(watched_limits([500.0, 800.0], [plain, with_referrers]));
    (text, limits)
}

/// A daemon between two registries.
struct Stage {
    staging: Registry,
    production: Registry,
    daemon: Daemon,
}

impl Stage {
    fn set(program: &Path, staging: Registry, production: Registry, size: &Size) -> Stage {
        let home = TempDir::with_prefix("blobferry-bench-").expect("a scratch folder");
        let config = config(&staging.url(), &production.url(), size);
        let daemon = Daemon::start(program, &["run"], home, config, Vec::new());
        Stage {
            staging,
            production,
            daemon: daemon.expect("the daemon starts"),
        }
    }

    /// A daemon that has seen that both sides are equal. `None`: that took too long.
    async fn equal(
        program: &Path,
        images: &Arc<Images>,
        size: &Size,
        lists_referrers: bool,
    ) -> Option<Stage> {
        let staging = Registry::full(images, lists_referrers);
        let production = Registry::full(images, lists_referrers);
        let mut stage = Stage::set(program, staging, production, size);
        let came = stage.daemon.ready(LARGE_FIRST_PASS).await;
        came.map_err(|why| eprintln!("fleet: {why}")).ok()?;
        Some(stage)
    }

    fn requests(&self) -> u64 {
        self.staging.requests() + self.production.requests()
    }

    /// Watches it for some polls.
    async fn watched(&self, size: &Size) -> Watched {
        let staging = self.staging.requests();
        let production = self.production.requests();
        let cpu = self.daemon.cpu();
        let began = Instant::now();
        sleep(size.poll * POLLS).await;
        let seconds = began.elapsed().as_secs_f64();
        Watched {
            staging: (self.staging.requests() - staging) as f64 / seconds,
            production: (self.production.requests() - production) as f64 / seconds,
            core: (self.daemon.cpu() - cpu) / seconds * 100.0,
            memory: self.daemon.memory() as f64 / MIB,
        }
    }
}

fn config(staging: &str, production: &str, size: &Size) -> Value {
    json!({
        "daemon": {"poll": format!("{}s", size.poll.as_secs())},
        "registries": {"staging": {"url": staging}, "production": {"url": production}},
        "routes": [{"name": "fleet", "from": "staging/fleet/*", "to": "production/fleet/{1}",
            "tags": {"include": ["*"]}}],
    })
}

/// What a first pass came to.
struct FirstPass {
    /// Seconds.
    wall: f64,
    /// Seconds of the processors.
    cpu: f64,
    requests: u64,
    named: usize,
    is_whole: bool,
    memory: f64,
}

impl FirstPass {
    const HEAD: &str = "| | s | tags | requests | CPU s | µs of CPU a request | peak MiB |\n\
        |---|---:|---:|---:|---:|---:|---:|\n";

    fn micros_a_request(&self) -> f64 {
        self.cpu / self.requests as f64 * 1e6
    }

    fn row(&self, name: &str) -> String {
        let FirstPass {
            wall,
            cpu,
            requests,
            named,
            memory,
            ..
        } = self;
        let cut = if self.is_whole { "" } else { ", cut" };
        let micros = self.micros_a_request();
        format!(
            "| {name}{cut} | {wall:.1} | {named} | {requests} | {cpu:.2} | {micros:.0} | {memory:.0} |\n"
        )
    }
}

/// The first pass of a daemon over an empty production.
async fn first_pass(program: &Path, images: &Arc<Images>, size: &Size) -> (FirstPass, Stage) {
    let began = Instant::now();
    let staging = Registry::full(images, false);
    let mut stage = Stage::set(program, staging, Registry::empty(images), size);
    let came = stage.daemon.ready(FIRST_PASS).await;
    let named = stage.production.named();
    let pass = FirstPass {
        wall: began.elapsed().as_secs_f64(),
        cpu: stage.daemon.cpu(),
        requests: stage.requests(),
        named,
        is_whole: came.is_ok() && named == size.repositories * size.tags,
        memory: stage.daemon.memory() as f64 / MIB,
    };
    (pass, stage)
}

/// What a daemon asks and costs while nothing changes.
struct Watched {
    /// Requests a second.
    staging: f64,
    /// Requests a second.
    production: f64,
    /// Per cent of a core.
    core: f64,
    /// The most memory so far, in MiB.
    memory: f64,
}

fn watched_table(plain: Option<&Watched>, with_referrers: Option<&Watched>) -> String {
    let mut text = "| all equal, over two polls | requests a second to staging | to production | % of a core | peak MiB |\n\
        |---|---:|---:|---:|---:|\n"
        .to_owned();
    let rows = [
        ("registries without a list of referrers", plain),
        ("with one", with_referrers),
    ];
    for (name, watched) in rows {
        let Some(watched) = watched else {
            text += &format!("| {name} | | | | |\n");
            continue;
        };
        let Watched {
            staging,
            production,
            core,
            memory,
        } = watched;
        text += &format!("| {name} | {staging:.1} | {production:.1} | {core:.2} | {memory:.0} |\n");
    }
    text
}

fn watched_limits(requests: [f64; 2], watched: [Option<Watched>; 2]) -> Vec<Limit> {
    let [plain, with_referrers] = watched.each_ref().map(Option::as_ref);
    let core = watched.iter().flatten().map(|watched| watched.core);
    vec![
        Limit::new(
            "requests a second to staging",
            requests[0],
            "",
            plain.map(|watched| watched.staging),
        ),
        Limit::new(
            "the same where referrers are listed",
            requests[1],
            "",
            with_referrers.map(|watched| watched.staging),
        ),
        Limit::new("share of a core", 1.0, " %", core.max_by(f64::total_cmp)),
    ]
}
