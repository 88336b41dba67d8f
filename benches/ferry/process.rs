//! Runs a program and asks the kernel what it cost.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, interval};

/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With success.
    Done,
    /// With this exit code and these last words.
    Failed { code: i32, words: String },
    /// Killed by us, as was asked for.
    Killed,
}

/// A run of a program, or of several.
#[derive(Clone, Debug)]
pub struct Ran {
    /// From start to end.
    pub wall: Duration,
    /// Most resident bytes.
    pub memory: u64,
    /// How it ended; of several, the first end that is not success.
    pub end: End,
}

impl Ran {
    /// Nothing has run yet.
    pub const NOTHING: Ran = Ran {
        wall: Duration::ZERO,
        memory: 0,
        end: End::Done,
    };

    /// This one and then the next.
    pub fn then(self, next: Ran) -> Ran {
        Ran {
            wall: self.wall + next.wall,
            memory: self.memory.max(next.memory),
            end: self.end.or(next.end),
        }
    }

    /// Both at once.
    pub fn beside(self, other: Ran) -> Ran {
        Ran {
            wall: self.wall.max(other.wall),
            memory: self.memory + other.memory,
            end: self.end.or(other.end),
        }
    }
}

impl End {
    fn or(self, next: End) -> End {
        if self == End::Done { next } else { self }
    }
}

/// Runs `command` to its end, or until `halt` says so: then it is killed.
///
/// # Errors
/// It cannot be started, or has not ended at `deadline`.
pub async fn run(
    mut command: Command,
    log: &Path,
    deadline: Instant,
    halt: &(dyn Fn() -> bool + Sync),
) -> Result<Ran, String> {
    let file = std::fs::File::create(log).map_err(|error| error.to_string())?;
    let also = file.try_clone().map_err(|error| error.to_string())?;
    command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(also)
        .kill_on_drop(true);
    let began = Instant::now();
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let pid = child.id().expect("it has not been waited for");
    let (mut memory, mut killed, mut looks) = (0, false, interval(LOOK));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(|error| error.to_string())?,
            _ = looks.tick() => memory = memory.max(peak(pid)),
        }
        if Instant::now() > deadline {
            child.kill().await.map_err(|error| error.to_string())?;
            return Err("cut".into());
        }
        if !killed && halt() {
            child.start_kill().map_err(|error| error.to_string())?;
            killed = true;
        }
    };
    let end = match status.code() {
        Some(0) => End::Done,
        Some(code) => End::Failed {
            code,
            words: last_words(log),
        },
        None if killed => End::Killed,
        None => End::Failed {
            code: -1,
            words: format!("{status}: {}", last_words(log)),
        },
    };
    Ok(Ran {
        wall: began.elapsed(),
        memory,
        end,
    })
}

/// Most resident bytes of a process so far; 0 when it has ended.
pub fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let words = lines[lines.len().saturating_sub(3)..].join(" / ");
    words.chars().take(400).collect()
}
