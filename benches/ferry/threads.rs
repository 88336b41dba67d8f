//! What more threads for the bytes bring, and cost: large layers between two registries that cost
//! next to nothing, with one thread and with as many as there are processors, in turn.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Duration, Instant};

use crate::cheap::{Cheap, Content};
use crate::limits::Limit;
use crate::machine::children_seconds;
use crate::process::{End, run};

const LAYERS: u64 = 8;
const MIB: f64 = 1024.0 * 1024.0;
/// No run may take longer.
const DEADLINE: Duration = Duration::from_secs(180);

/// The size of each layer in MiB.
pub fn mebibytes(quick: bool) -> usize {
    if quick { 16 } else { 512 }
}

/// One run.
struct Cost {
    wall: f64,
    cpu: f64,
    peak: f64,
}

/// The figures, with the limits.
pub async fn measure(quick: bool) -> (String, Vec<Limit>) {
    let content = Arc::new(Content::new(LAYERS, mebibytes(quick)));
    let source = Cheap::with(&content);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut one = Vec::new();
    let mut several = Vec::new();
    for _ in 0..if quick { 1 } else { 5 } {
        one.push(copied(&source, &Cheap::without(&content), 1).await);
        several.push(copied(&source, &Cheap::without(&content), processors).await);
    }
    let gibibytes = LAYERS as f64 * mebibytes(quick) as f64 / 1024.0;
    let row = |threads, costs: &[Cost]| {
        let wall = of(costs, |cost| cost.wall);
        let cpu = of(costs, |cost| cost.cpu);
        let per_gibibyte = cpu / gibibytes;
        let busy = of(costs, |cost| cost.cpu / cost.wall);
        let peak = of(costs, |cost| cost.peak);
        format!(
            "| {threads} | {wall:.2} | {cpu:.2} | {per_gibibyte:.2} | {busy:.2} | {peak:.0} |\n"
        )
    };
    let text = format!(
        "| `threads` | s | CPU s | CPU s for each GiB | CPU s over s | peak MiB |\n|---|---:|---:|---:|---:|---:|\n{}{}",
        row(1, &one),
        row(processors, &several)
    );
    let limits = vec![
        Limit::new(
            "seconds over CPU seconds",
            0.8,
            "",
            Some(of(&several, |cost| cost.wall / cost.cpu)),
        ),
        Limit::new(
            "CPU seconds over those of one thread",
            1.05,
            "",
            Some(of(&several, |cost| cost.cpu) / of(&one, |cost| cost.cpu)),
        ),
        Limit::new(
            "peak memory",
            64.0,
            " MiB",
            Some(of(&several, |cost| cost.peak)),
        ),
    ];
    (text, limits)
}

/// The median of a figure.
fn of(costs: &[Cost], figure: impl Fn(&Cost) -> f64) -> f64 {
    let mut figures: Vec<f64> = costs.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

async fn copied(source: &Cheap, destination: &Cheap, threads: usize) -> Cost {
    let home = TempDir::with_prefix("blobferry-bench-").expect("a scratch folder");
    let config = json!({
        "daemon": {"state": home.path().join("state"), "listen": "off", "threads": threads},
        "registries": {"staging": {"url": source.url()}, "production": {"url": destination.url()}},
        "routes": [{"name": "app", "from": "staging/app", "to": "production/app", "tags": {"include": ["*"]}}],
    });
    let file = home.path().join("blobferry.yaml");
    std::fs::write(&file, config.to_string()).expect("a file in the scratch folder");
    let before = children_seconds();
    let command = sync(home.path(), &file);
    let log = home.path().join("log");
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

fn sync(home: &Path, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blobferry"));
    command.env_clear().env("HOME", home).current_dir(home);
    command.args(["sync", "-q", "-c"]).arg(config);
    command
}
