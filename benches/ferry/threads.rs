//! What more threads for the bytes bring, and cost: large layers between two registries that cost
//! next to nothing, with one thread and with as many as there are processors, and by crane where it
//! is installed, in turn; then once more by a daemon, which is asked for its health meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Duration, Instant, sleep};

use crate::cheap::{Cheap, Content};
use crate::limits::Limit;
use crate::machine::children_seconds;
use crate::process::{End, run};
use crate::registry::find;
use crate::support::{Config, Ferry};
use crate::table::percentile;

const LAYERS: u64 = 8;
const MIB: f64 = 1024.0 * 1024.0;
/// No run may take longer.
const DEADLINE: Duration = Duration::from_secs(180);
/// Between two questions for the health.
const PAUSE: Duration = Duration::from_millis(5);

/// The size of each layer in MiB.
pub fn mebibytes(quick: bool) -> usize {
    if quick { 16 } else { 512 }
}

/// One run.
pub struct Cost {
    /// Seconds.
    pub wall: f64,
    /// Seconds of the processors.
    pub cpu: f64,
    /// The most memory, in MiB.
    pub peak: f64,
}

/// The figures, with the limits.
pub async fn measure(quick: bool) -> (String, Vec<Limit>) {
    let content = Arc::new(Content::new(LAYERS, mebibytes(quick)));
    let source = Cheap::with(&content);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let crane = find("crane");
    let mut one = Vec::new();
    let mut several = Vec::new();
    let mut by_crane = Vec::new();
    for _ in 0..if quick { 1 } else { 5 } {
        one.push(copied(&source, &Cheap::without(&content), 1).await);
        several.push(copied(&source, &Cheap::without(&content), processors).await);
        if let Some(crane) = &crane {
            by_crane.push(copied_by(crane, &source.image(), &Cheap::without(&content)).await);
        }
    }
    let mut health = answers(&source, &Cheap::without(&content), processors).await;
    let health = percentile(&mut health, 0.99);
    let gibibytes = LAYERS as f64 * mebibytes(quick) as f64 / 1024.0;
    let names = [
        "blobferry, `threads: 1`".to_owned(),
        format!("blobferry, `threads: {processors}`"),
        "crane".to_owned(),
    ];
    let rows = names.iter().zip([&one, &several, &by_crane]);
    let rows: String = rows
        .map(|(name, costs)| row(name, costs, gibibytes))
        .collect();
    let text = format!(
        "| | s | CPU s | CPU s for each GiB | CPU s over s | peak MiB |\n|---|---:|---:|---:|---:|---:|\n{rows}\n\
         `/healthz` of a daemon meanwhile: {health:.1} ms at p99.\n"
    );
    let of_crane = (!by_crane.is_empty())
        .then(|| of(&several, |cost| cost.wall) / of(&by_crane, |cost| cost.wall));
    let busy = Some(of(&several, |cost| cost.wall / cost.cpu));
    let of_one = Some(of(&several, |cost| cost.cpu) / of(&one, |cost| cost.cpu));
    let peak = Some(of(&several, |cost| cost.peak));
    let limits = vec![
        Limit::new("seconds over CPU seconds", 0.8, "", busy),
        Limit::new("seconds over those of crane", 1.0, "", of_crane),
        Limit::new("CPU seconds over those of one thread", 1.05, "", of_one),
        Limit::new("peak memory", 64.0, " MiB", peak),
        Limit::new("`/healthz` at p99", 50.0, " ms", Some(health)),
    ];
    (text, limits)
}

/// A line of the table; empty for a tool that is not installed.
fn row(name: &str, costs: &[Cost], gibibytes: f64) -> String {
    if costs.is_empty() {
        return String::new();
    }
    let wall = of(costs, |cost| cost.wall);
    let cpu = of(costs, |cost| cost.cpu);
    let per_gibibyte = cpu / gibibytes;
    let busy = of(costs, |cost| cost.cpu / cost.wall);
    let peak = of(costs, |cost| cost.peak);
    format!("| {name} | {wall:.2} | {cpu:.2} | {per_gibibyte:.2} | {busy:.2} | {peak:.0} |\n")
}

/// The median of a figure.
pub fn of(costs: &[Cost], figure: impl Fn(&Cost) -> f64) -> f64 {
    let mut figures: Vec<f64> = costs.iter().map(figure).collect();
    percentile(&mut figures, 0.5)
}

async fn copied(source: &Cheap, destination: &Cheap, threads: usize) -> Cost {
    synced(&source.url(), &destination.url(), destination, threads).await
}

/// The image from the registry at one URL to `destination`, which is at the other.
pub async fn synced(from: &str, to: &str, destination: &Cheap, threads: usize) -> Cost {
    let home = TempDir::with_prefix("blobferry-bench-").expect("a scratch folder");
    let config = json!({
        "daemon": {"state": home.path().join("state"), "listen": "off", "threads": threads},
        "registries": {"staging": {"url": from}, "production": {"url": to}},
        "routes": [{"name": "app", "from": "staging/app", "to": "production/app", "tags": {"include": ["*"]}}],
    });
    let file = home.path().join("blobferry.yaml");
    std::fs::write(&file, config.to_string()).expect("a file in the scratch folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_blobferry"));
    command.args(["sync", "-q", "-c"]).arg(file);
    measured(command, home.path(), destination).await
}

/// The same by crane.
pub async fn copied_by(crane: &PathBuf, source: &str, destination: &Cheap) -> Cost {
    let home = TempDir::with_prefix("blobferry-bench-").expect("a scratch folder");
    let mut command = Command::new(crane);
    command.args(["copy", "--insecure"]);
    command.args([source, &destination.image()]);
    measured(command, home.path(), destination).await
}

/// What a program costs that copies the image.
async fn measured(mut command: Command, home: &Path, destination: &Cheap) -> Cost {
    command.env_clear().env("HOME", home).current_dir(home);
    let before = children_seconds();
    let log = home.join("log");
    let ran = run(command, &log, Instant::now() + DEADLINE, &|| false).await;
    let ran = ran.expect("it starts and ends");
    assert_eq!(ran.end, End::Done);
    assert!(destination.has_image(), "the tag names the image");
    Cost {
        wall: ran.wall.as_secs_f64(),
        cpu: children_seconds() - before,
        peak: ran.memory as f64 / MIB,
    }
}

/// How long a daemon takes to answer `/healthz` while it copies the image, in milliseconds.
async fn answers(source: &Cheap, destination: &Cheap, threads: usize) -> Vec<f64> {
    let config = Config::new()
        .registry("staging", &source.url())
        .registry("production", &destination.url())
        .daemon("threads", json!(threads))
        .route("app", json!({}));
    let ferry = Ferry::new(&config);
    let daemon = ferry.start().await;
    let mut times = Vec::new();
    let end = Instant::now() + DEADLINE;
    while !destination.has_image() {
        assert!(Instant::now() < end, "the image arrives");
        let asked = Instant::now();
        assert_eq!(daemon.get("/healthz").await.status(), 200);
        times.push(asked.elapsed().as_secs_f64() * 1e3);
        sleep(PAUSE).await;
    }
    times
}
