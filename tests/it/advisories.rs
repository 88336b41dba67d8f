//! The check for advisories is a job of its own, and its verdict is that of the tool that makes it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the script with a `cargo-deny` that says how it was called and ends with `verdict`; `None`:
/// without one.
fn run(verdict: Option<i32>) -> Output {
    let scratch = tempfile::tempdir().unwrap();
    let bin = scratch.path().join("bin");
    std::fs::create_dir_all(scratch.path().join("tests")).unwrap();
    std::fs::create_dir(&bin).unwrap();
    let script: PathBuf = scratch.path().join("tests/advisories");
    std::fs::copy(top().join("tests/advisories"), &script).unwrap();
    if let Some(verdict) = verdict {
        let tool = bin.join("cargo-deny");
        let text = format!("#!/bin/sh\necho \"$PWD $*\"\nexit {verdict}\n");
        std::fs::write(&tool, text).unwrap();
        std::fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let output = Command::new(&script).env_clear().env("PATH", path).output();
    let output = output.expect("the script is executable");
    let said = String::from_utf8_lossy(&output.stdout);
    if verdict.is_some() {
        let folder = scratch.path().canonicalize().unwrap();
        assert_eq!(
            said.trim(),
            format!("{} --locked check advisories", folder.display())
        );
    }
    output
}

#[test]
fn the_script_asks_for_advisories_and_passes_the_verdict_on() {
    for verdict in [0, 1, 7] {
        assert_eq!(run(Some(verdict)).status.code(), Some(verdict));
    }
}

#[test]
fn without_the_tool_the_script_fails_and_says_what_is_missing() {
    let output = run(None);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("cargo-deny is missing"),
        "{said}"
    );
}

/// Other tests need no network.
#[test]
fn the_other_checks_do_not_fetch_the_database() {
    let run = std::fs::read_to_string(top().join("tests/run")).unwrap();
    let denies: Vec<&str> = run
        .lines()
        .filter(|line| line.contains("cargo deny "))
        .collect();
    assert_eq!(denies.len(), 1, "{denies:?}");
    assert!(
        denies[0].contains("--offline") && !denies[0].contains("advisories"),
        "{denies:?}"
    );
    assert!(!run.contains("tests/advisories"));
}
