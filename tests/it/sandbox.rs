//! The unit's sandbox, tried: the built binary does its work with what the unit leaves it, and
//! nothing beyond.
//!
//! `bwrap` makes what systemd makes of these options: `ProtectSystem=strict` with one writable
//! folder, `PrivateTmp=`, `PrivateDevices=`, `NoNewPrivileges=`, no capabilities, `RemoveIPC=`,
//! `ProtectHostname=`. The unit's own values go in.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::*;

const UNIT: &str = include_str!("../../systemd/blobferry.service");

/// The last value of a key of the unit.
fn value(key: &str) -> &'static str {
    UNIT.lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .next_back()
        .unwrap_or_else(|| panic!("the unit sets {key}"))
}

/// The words before a command that put it into the sandbox. The command's process id is written
/// into the state folder.
fn sandbox(scratch: &Path, state: &Path) -> Vec<String> {
    let inside = format!(
        "umask {}; ulimit -c {}; echo $$ > \"$0/pid\"; exec \"$@\"",
        value("UMask"),
        value("LimitCORE")
    );
    let [scratch, state] = [scratch, state].map(|path| path.display().to_string());
    // The tree may lie below `/tmp`, which is empty inside.
    let program = env!("CARGO_BIN_EXE_blobferry");
    let mut words: Vec<&str> = vec!["bwrap", "--ro-bind", "/", "/", "--tmpfs", "/tmp"];
    words.extend(["--dev", "/dev", "--proc", "/proc"]);
    words.extend(["--ro-bind", program, program]);
    words.extend(["--ro-bind", &scratch, &scratch, "--bind", &state, &state]);
    words.extend(["--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL"]);
    words.extend(["--new-session", "--die-with-parent", "--"]);
    words.extend(["sh", "-c", &inside, &state]);
    words.into_iter().map(str::to_owned).collect()
}

fn proc_line(pid: &str, file: &str, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find(|line| line.starts_with(key));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn what_is_tried_is_what_the_unit_says() {
    for (key, expected) in [
        ("ProtectSystem", "strict"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("RemoveIPC", "yes"),
        ("ProtectHostname", "yes"),
        ("StateDirectoryMode", "0700"),
        ("LogsDirectory", "blobferry"),
        ("LogsDirectoryMode", "0700"),
    ] {
        assert_eq!(value(key), expected, "{key}");
    }
}

#[tokio::test]
async fn the_daemon_promotes_inside_the_sandbox_and_writes_nowhere_else() {
    let (staging, production) = (Registry::distribution2(), Registry::distribution2());
    let image = Image::oci(1, &[100_000, 20]);
    staging.client().push("app", "v1", &image).await;
    staging.client().push("outside", "v1", &image).await;
    let ferry = Ferry::bare();
    let outside = ferry.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let to = json!("outside/outside");
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url())
        .registry("outside", &format!("layout:{}", outside.display()))
        .route("app", json!({}))
        .route("outside", json!({"to": to}));
    ferry.write_config(&config);
    let state = ferry.path("state");
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&state)
        .unwrap();
    let words = sandbox(ferry.path("").as_path(), &state);
    let ferry = ferry.within(words);

    let mut daemon = ferry.start().await;
    let pid = std::fs::read_to_string(state.join("pid")).unwrap();
    let pid = pid.trim();
    let (status, report) = daemon.ping(json!({"wait": true, "all": true})).await;
    assert_eq!(
        status, 502,
        "the folder outside cannot be written: {report:#}"
    );
    production.client().assert_holds("app", "v1", &image).await;
    let jobs = report["jobs"].as_array().unwrap();
    let refused = jobs.iter().find(|job| job["route"] == "outside").unwrap();
    let text = refused["error"]["text"].as_str().unwrap_or_default();
    assert!(text.contains("Read-only file system"), "{report:#}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);

    for (file, line) in [
        ("status", "CapPrm: 0000000000000000"),
        ("status", "CapEff: 0000000000000000"),
        ("status", "NoNewPrivs: 1"),
        ("limits", "Max core file size 0 0 bytes"),
    ] {
        let key = line.split(' ').next().unwrap();
        let key = if file == "limits" {
            "Max core file size"
        } else {
            key
        };
        assert_eq!(proc_line(pid, file, key), line);
    }
    for entry in std::fs::read_dir(&state).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
    let stopped = Command::new("kill").args(["-TERM", pid]).status().unwrap();
    assert!(stopped.success());
    assert_eq!(daemon.ended().await, 0, "{}", daemon.log());
}
