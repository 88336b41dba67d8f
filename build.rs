//! The revision that is built: `BLOBFERRY_REVISION` where the caller knows it, else what git says.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=BLOBFERRY_REVISION");
    println!("cargo:rerun-if-changed=build.rs");
    let named = std::env::var("BLOBFERRY_REVISION")
        .ok()
        .filter(|revision| !revision.trim().is_empty());
    let revision = named.or_else(of_git).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=BLOBFERRY_REVISION={}", revision.trim());
}

/// The commit, and whether the tree differs from it. A debug build is not made again for a commit that changes no source,
/// so it only names the commit near which it was built.
fn of_git() -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    if std::env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return Some(format!("{commit}-debug"));
    }
    for path in ["HEAD", "logs/HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", path]) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])
        .is_some_and(|changes| !changes.is_empty());
    Some(if changed {
        format!("{commit}-modified")
    } else {
        commit
    })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
