//! Runs a program and asks the kernel what it cost.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep};

/// Ticks of a second in `/proc/<pid>/stat`, the same on every Linux.
const TICKS: f64 = 100.0;

/// What a run cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Seconds from start to end.
    pub wall: f64,
    /// User and system seconds of all threads.
    pub cpu: f64,
    /// Most resident bytes.
    pub memory: u64,
}

impl Cost {
    /// Two runs after each other.
    pub fn then(self, next: Cost) -> Cost {
        Cost { wall: self.wall + next.wall, cpu: self.cpu + next.cpu, memory: self.memory.max(next.memory) }
    }
}

/// Runs `command` to its end, or for `patience`.
///
/// # Errors
/// What the program said last, when it fails or takes too long.
pub async fn measure(mut command: Command, log: &Path, patience: Duration) -> Result<Cost, String> {
    let file = std::fs::File::create(log).map_err(|error| error.to_string())?;
    let also = file.try_clone().map_err(|error| error.to_string())?;
    command.stdin(Stdio::null()).stdout(file).stderr(also).kill_on_drop(true);
    let began = Instant::now();
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let pid = child.id().expect("it has not been waited for");
    let mut cost = Cost::default();
    // Nobody waits for the child before it is a zombie, whose times can still be read.
    while !is_over(pid, &mut cost) {
        if began.elapsed() > patience {
            return Err(format!("not within {} s", patience.as_secs()));
        }
        sleep(Duration::from_millis(2)).await;
    }
    cost.wall = began.elapsed().as_secs_f64();
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if status.success() { Ok(cost) } else { Err(format!("{status}: {}", last_words(log))) }
}

/// Reads times and memory; whether the process has ended.
fn is_over(pid: u32, cost: &mut Cost) -> bool {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let status = read("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    if let Some(kib) = peak.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()) {
        cost.memory = cost.memory.max(kib * 1024);
    }
    let stat = read("stat");
    // The name in parentheses may hold anything.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return true };
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    cost.cpu = (ticks(11) + ticks(12)) / TICKS;
    fields.first() == Some(&"Z")
}

fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}
