//! The systemd unit is one that systemd takes, is hardened, and gives the daemon the time that it
//! needs.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const UNIT: &str = include_str!("../../systemd/blobferry.service");
/// `daemon.grace` where the config does not say.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    let mut command = Command::new("systemd-analyze");
    command
        .args(arguments)
        .arg(unit)
        .env("SYSTEMD_COLORS", "0")
        .output()
        .expect("systemd-analyze is installed")
}

/// The unit with a program that exists on this machine.
fn unit_in(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("blobferry.service");
    std::fs::write(
        &path,
        UNIT.replace("/usr/bin/blobferry", env!("CARGO_BIN_EXE_blobferry")),
    )
    .unwrap();
    path
}

/// All values of a key, as written.
fn values<'a>(key: &'a str) -> impl Iterator<Item = &'static str> + 'a {
    UNIT.lines()
        .filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='))
}

fn seconds(key: &str) -> Duration {
    let value = values(key).last().unwrap_or_else(|| panic!("{key} is set"));
    let seconds = value
        .strip_suffix('s')
        .unwrap_or_else(|| panic!("{key}={value} is in seconds"));
    Duration::from_secs(seconds.parse().unwrap())
}

#[test]
fn systemd_has_nothing_to_say_against_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let output = analyze(&["verify", "--man=no"], &unit_in(folder.path()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn the_service_is_hardened() {
    let folder = tempfile::tempdir().unwrap();
    let output = analyze(
        &["security", "--offline=true", "--no-pager", "--threshold=20"],
        &unit_in(folder.path()),
    );
    let said = String::from_utf8_lossy(&output.stdout);
    let verdict = said
        .lines()
        .find(|line| line.contains("Overall exposure level"))
        .expect("a verdict");
    let level: f64 = verdict
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .expect("a level");
    assert!(output.status.success() && level < 1.5, "{verdict}");
}

#[test]
fn secrets_are_in_no_core_dump_and_memory_is_bounded() {
    assert_eq!(values("LimitCORE").last(), Some("0"));
    assert!(
        values("MemoryMax")
            .last()
            .is_some_and(|most| most != "infinity")
    );
}

#[test]
fn a_drain_ends_before_systemd_loses_patience() {
    assert!(seconds("TimeoutStopSec") >= DEFAULT_GRACE + Duration::from_secs(10));
}

#[test]
fn a_broken_configuration_does_not_restart_for_ever() {
    assert_eq!(values("RestartPreventExitStatus").last(), Some("2"));
    assert!(
        values("StartLimitBurst").next().is_some()
            && values("StartLimitIntervalSec").next().is_some()
    );
}

#[test]
fn a_reload_checks_the_configuration_that_runs_before_the_signal() {
    let reload: Vec<&str> = values("ExecReload").collect();
    let config = values("ExecStart")
        .last()
        .unwrap()
        .rsplit_once("-c ")
        .unwrap()
        .1;
    assert_eq!(reload.len(), 2, "{reload:?}");
    assert!(
        reload[0].contains("blobferry check") && reload[0].ends_with(config),
        "{reload:?}"
    );
    assert_eq!(reload[1], "/bin/kill -HUP $MAINPID");
}
