//! What has no peer beside it: what a daemon keeps to while it watches, and what a setting brings.
//! The registries are in this process: they answer at once.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use crate::ahead;
use crate::ask::Ask;
use crate::fleet;
use crate::limits::Limit;
use crate::support::scripted::{Answer, Settings};
use crate::support::{Config, Daemon, Ferry, Image, Kind, Reply, Scripted};
use crate::threads;

/// Bytes a second of a slow upload.
const SLOW: u64 = 100_000;
/// Tags of each repository of the backfill.
const TAGS: u64 = 64;
/// Repositories of each wildcard route.
const REPOSITORIES: usize = 10;
/// Between two polls of the wildcard routes.
const POLL: Duration = Duration::from_secs(5);
/// So many polls are watched when all is looked at.
const POLLS: u32 = 6;

/// A scenario of a daemon that watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watching {
    /// A tag asked for by name beside a backfill over slow uploads.
    Hotfix,
    /// Many routes with wildcards over one large catalog.
    Wildcards,
    /// Large layers with one thread for the bytes and with several.
    Threads,
    /// One large layer from far away, over one connection and over several.
    Ahead,
    /// Many repositories with many small images.
    Fleet,
}

impl Watching {
    /// All of them, in the order of the report.
    pub const ALL: [Watching; 5] = [
        Watching::Hotfix,
        Watching::Wildcards,
        Watching::Threads,
        Watching::Ahead,
        Watching::Fleet,
    ];

    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Watching::Hotfix => "hotfix",
            Watching::Wildcards => "wildcards",
            Watching::Threads => "threads",
            Watching::Ahead => "ahead",
            Watching::Fleet => "fleet",
        }
    }

    /// The heading of its figures.
    pub fn title(self, ask: &Ask) -> String {
        let quick = ask.quick;
        match self {
            Watching::Hotfix => format!(
                "A tag by name beside a backfill of {} tags, each upload at 100 kB/s",
                applications(quick) * TAGS
            ),
            Watching::Wildcards => format!(
                "{} wildcard routes over {} repositories, loopback",
                routes(quick),
                routes(quick) * REPOSITORIES
            ),
            Watching::Threads => format!(
                "8 layers of {} MiB between registries that cost next to nothing, loopback",
                threads::mebibytes(quick)
            ),
            Watching::Ahead => format!(
                "One layer of {} MiB over 80 ms, 25 MB/s a connection and 100 MB/s together",
                ahead::mebibytes(quick)
            ),
            Watching::Fleet => fleet::title(ask),
        }
    }

    /// What was measured, with the limits.
    pub async fn measure(self, ask: &Ask) -> (String, Vec<Limit>) {
        match self {
            Watching::Hotfix => hotfix(ask.quick).await,
            Watching::Wildcards => wildcards(ask.quick).await,
            Watching::Threads => threads::measure(ask.quick).await,
            Watching::Ahead => ahead::measure(ask.quick).await,
            Watching::Fleet => fleet::measure(ask).await,
        }
    }
}

fn applications(quick: bool) -> u64 {
    if quick { 2 } else { 12 }
}

fn routes(quick: bool) -> usize {
    if quick { 50 } else { 1000 }
}

/// Each tag of the backfill has a layer that takes ten seconds to send. One tag is asked for by
/// name in a repository of its own, then one in a repository of the backfill.
async fn hotfix(quick: bool) -> (String, Vec<Limit>) {
    let staging = Scripted::start();
    let production = Scripted::start();
    let mut config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &slow_uploads(&production).await);
    for application in 0..applications(quick) {
        let name = format!("app-{application}");
        for tag in 0..TAGS {
            let image = Image::oci(1 + application * TAGS + tag, &[10 * SLOW as usize]);
            staging.push(&name, &format!("v{tag}"), &image);
        }
        config = config.route(&name, json!({}));
    }
    let ferry = Ferry::new(&config.route("hotfix", json!({})));
    let daemon = ferry.start().await;
    production.seen(Kind::UploadPost, TAGS as usize).await;
    let beside = by_name(&daemon, &staging, &production, "hotfix").await;
    let within = by_name(&daemon, &staging, &production, "app-0").await;
    let text = format!(
        "| tag asked for by name | s | tags of the backfill named before |\n|---|---:|---:|\n\
         | in a repository of its own | {:.2} | {} |\n| in a repository of the backfill | {:.2} | {} |\n",
        beside.seconds, beside.named, within.seconds, within.named,
    );
    let seconds = |what, by_name: &ByName| Limit::new(what, 10.0, " s", Some(by_name.seconds));
    let limits = vec![
        seconds("time in a repository of its own", &beside),
        seconds("time in a repository of the backfill", &within),
    ];
    (text, limits)
}

/// A promotion by name.
struct ByName {
    /// From the request to its answer.
    seconds: f64,
    /// Tags that the backfill had named by then.
    named: usize,
}

async fn by_name(
    daemon: &Daemon,
    staging: &Scripted,
    production: &Scripted,
    repository: &str,
) -> ByName {
    let image = Image::oci(10_000, &[400]);
    staging.push(repository, "hotfix", &image);
    let began = Instant::now();
    let ask = json!({"wait": true, "repository": repository, "tag": "hotfix"});
    let (status, report) = daemon.ping(ask).await;
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(status, 200, "{report:#}");
    let tagged = production.tagged(repository, "hotfix");
    assert_eq!(tagged.as_deref(), Some(image.digest()));
    let log = production.log();
    let of_backfill = |path: &str| path.contains("/manifests/v");
    let named = log
        .iter()
        .filter(|record| record.kind == Kind::ManifestPut && of_backfill(&record.path))
        .count();
    ByName { seconds, named }
}

/// A relay before `registry`: each connection sends at [`SLOW`].
async fn slow_uploads(registry: &Scripted) -> String {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    tokio::spawn(relay(listener, registry.host()));
    format!("http://{address}")
}

async fn relay(listener: TcpListener, target: String) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(registry) = TcpStream::connect(&target).await else {
            continue;
        };
        let (requests, mut answers) = client.into_split();
        let (mut from_registry, to_registry) = registry.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_registry, &mut answers).await });
        tokio::spawn(slowly(requests, to_registry));
    }
}

async fn slowly(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut bytes = vec![0; SLOW as usize / 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
        sleep(Duration::from_secs(1) * count as u32 / SLOW as u32).await;
    }
}

/// Repositories without tags, so that looks cost little: ten for each route.
async fn wildcards(quick: bool) -> (String, Vec<Limit>) {
    let staging = Scripted::with(Settings {
        page: 1000,
        ..Settings::default()
    });
    let production = Scripted::start();
    let config = teams(&staging, &production, routes(quick));
    let ferry = Ferry::new(&config.daemon("poll", json!(format!("{}s", POLL.as_secs()))));
    let pages = (routes(quick) * REPOSITORIES).div_ceil(1000);

    let began = Instant::now();
    let daemon = ferry.start().await;
    let first_look = async {
        staging.seen(Kind::Tags, 1).await;
        began.elapsed().as_secs_f64()
    };
    let (first_look, until_look) = asked_beside(&daemon, first_look).await;
    let ready = async {
        while daemon.get("/readyz").await.status() != 200 {
            sleep(Duration::from_millis(20)).await;
        }
        began.elapsed().as_secs_f64()
    };
    let (ready, until_ready) = asked_beside(&daemon, ready).await;

    let before = staging.count(Kind::Catalog);
    let cpu = cpu_seconds(&daemon).await;
    let ((), afterwards) = asked_beside(&daemon, sleep(POLL * POLLS)).await;
    let cpu = cpu_seconds(&daemon).await - cpu;
    let readings = (staging.count(Kind::Catalog) - before) as f64 / pages as f64;
    let slowest = until_look.max(until_ready).max(afterwards);
    let text = format!(
        "| until | s | slowest `/healthz`, ms |\n|---|---:|---:|\n\
         | the first look | {first_look:.2} | {:.0} |\n| ready: all repositories looked at | {ready:.2} | {:.0} |\n\
         | {POLLS} polls later: {cpu:.2} CPU s, {readings:.1} readings of the catalog | {:.0} | {:.0} |\n",
        until_look.as_secs_f64() * 1e3,
        until_ready.as_secs_f64() * 1e3,
        (POLL * POLLS).as_secs_f64(),
        afterwards.as_secs_f64() * 1e3,
    );
    let limits = vec![
        Limit::new("time until the first look", 10.0, " s", Some(first_look)),
        Limit::new(
            "slowest `/healthz`",
            100.0,
            " ms",
            Some(slowest.as_secs_f64() * 1e3),
        ),
        Limit::new(
            "readings of the catalog in six polls",
            // The time watched may begin and end within a reading.
            f64::from(POLLS + 1),
            "",
            Some(readings),
        ),
    ];
    (text, limits)
}

fn teams(staging: &Scripted, production: &Scripted, routes: usize) -> Config {
    let mut config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url());
    for team in 0..routes {
        for repository in 0..REPOSITORIES {
            let name = format!("s/team-{team}/app-{repository}");
            staging.tag(&name, "v1", "sha256:none");
        }
        config = config.raw_route(json!({
            "name": format!("team-{team}"),
            "from": format!("staging/s/team-{team}/**"),
            "to": format!("production/team-{team}/{{1}}"),
            "tags": {"include": ["*"]},
        }));
    }
    for registry in [staging, production] {
        registry.on(|asked| match asked.kind {
            Kind::Tags => Answer::Reply(
                Reply::status(200).body("application/json", r#"{"name":"x","tags":[]}"#),
            ),
            _ => Answer::Pass,
        });
    }
    config
}

async fn cpu_seconds(daemon: &Daemon) -> f64 {
    let seconds = daemon.metric("process_cpu_seconds_total", &[]).await;
    seconds.unwrap_or_default()
}

/// Waits for something; asks for `/healthz` all the while. Returns the slowest answer as well.
async fn asked_beside<T>(daemon: &Daemon, awaited: impl Future<Output = T>) -> (T, Duration) {
    let mut awaited = pin!(awaited);
    let mut slowest = Duration::ZERO;
    loop {
        let began = Instant::now();
        let health = daemon.get("/healthz");
        tokio::select! {
            biased;
            came = &mut awaited => return (came, slowest),
            answer = health => assert_eq!(answer.status(), 200),
        }
        slowest = slowest.max(began.elapsed());
        tokio::select! {
            biased;
            came = &mut awaited => return (came, slowest),
            () = sleep(Duration::from_millis(5)) => {}
        }
    }
}
