//! The machine: what it is, how busy it is, and who has its CPU.

use std::path::Path;
use std::process::Command;

/// Ticks of a second in `/proc`, the same on every Linux.
const TICKS: f64 = 100.0;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The line of `name: value` in a file of `/proc`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        Some(
            line.strip_prefix(name)?
                .split_once(':')?
                .1
                .trim()
                .to_owned(),
        )
    })
}

/// What figures are made on.
pub fn description() -> String {
    let cpu = read("/proc/cpuinfo");
    let model = field(&cpu, "model name").unwrap_or_else(|| "unknown processor".into());
    let sha = if field(&cpu, "flags").is_some_and(|flags| flags.contains("sha_ni")) {
        " (SHA extensions)"
    } else {
        ""
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let (cores, kernel) = (cores(), read("/proc/sys/kernel/osrelease"));
    format!(
        "{model}{sha}, {cores} cores, {} GiB, Linux {}",
        memory.unwrap_or(0) >> 20,
        plain(kernel.trim())
    )
}

/// Processors that we may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes that programs could still take.
pub fn memory_available() -> u64 {
    let text = field(&read("/proc/meminfo"), "MemAvailable").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// Programs that wanted a processor in the last minute, on average.
pub fn load() -> String {
    read("/proc/loadavg")
        .split(' ')
        .next()
        .unwrap_or("unknown")
        .to_owned()
}

/// The word of a program's own that looks like its version.
pub fn version(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let looks_right = |word: &&str| {
        word.trim_start_matches('v')
            .starts_with(|first: char| first.is_ascii_digit())
            && word.contains('.')
    };
    text.split_whitespace().find(looks_right).map_or_else(
        || "of unknown version".into(),
        |word| plain(word.trim_start_matches('v')).to_owned(),
    )
}

/// A version without what its builder has added to it.
fn plain(version: &str) -> &str {
    version.split(['-', '+']).next().unwrap_or(version)
}

/// CPU seconds of a process.
pub fn cpu_seconds(pid: u32) -> f64 {
    times(&pid.to_string())[0]
}

/// CPU seconds of the children that this process has waited for.
pub fn children_seconds() -> f64 {
    times("self")[1]
}

/// CPU seconds of a process and of the children it has waited for.
fn times(pid: &str) -> [f64; 2] {
    let stat = read(&format!("/proc/{pid}/stat"));
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .map_or("", |(_, rest)| rest)
        .split(' ')
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    [
        (ticks(11) + ticks(12)) / TICKS,
        (ticks(13) + ticks(14)) / TICKS,
    ]
}

/// CPU seconds of everybody at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    source: f64,
    destinations: f64,
    link: f64,
    tool: f64,
    busy: f64,
    idle: f64,
    all: f64,
}

/// Who had the CPU during a pass, in CPU seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shares {
    /// The registry that was read.
    pub source: f64,
    /// The registries that were written to.
    pub destinations: f64,
    /// The bench itself: links and counting.
    pub link: f64,
    /// The tool.
    pub tool: f64,
    /// Everything else on the machine, the kernel's own threads among it.
    pub elsewhere: f64,
    /// Share of the machine that nobody used, 0 to 1.
    pub idle: f64,
}

impl Clocks {
    /// Reads all clocks. The tools are the only children that are waited for while a pass lasts.
    pub fn now(source: u32, destinations: &[u32]) -> Clocks {
        let [link, tool] = times("self");
        let text = read("/proc/stat");
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|field| field.parse().ok())
            .collect();
        let at = |place: usize| ticks.get(place).copied().unwrap_or(0.0) / TICKS;
        let (idle, all) = (at(3) + at(4), ticks.iter().sum::<f64>() / TICKS);
        Clocks {
            source: times(&source.to_string())[0],
            destinations: destinations
                .iter()
                .map(|pid| times(&pid.to_string())[0])
                .sum(),
            link,
            tool,
            busy: all - idle - at(7),
            idle,
            all,
        }
    }

    /// What has happened since `before`.
    pub fn since(&self, before: &Clocks) -> Shares {
        let (source, destinations) = (
            self.source - before.source,
            self.destinations - before.destinations,
        );
        let (link, tool) = (self.link - before.link, self.tool - before.tool);
        let elsewhere = (self.busy - before.busy - source - destinations - link - tool).max(0.0);
        let idle = (self.idle - before.idle) / (self.all - before.all).max(1.0 / TICKS);
        Shares {
            source,
            destinations,
            link,
            tool,
            elsewhere,
            idle,
        }
    }
}
