//! What an operator does beside a running daemon works from any shell, whatever has become of the
//! config on disk.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::*;

/// The stage of the shipped unit: a secret behind a variable that only the service has.
async fn with_a_credential() -> (Stage, Daemon) {
    let stage = Stage::new(Program::Distribution2).await;
    let folder = stage.ferry.path("credentials");
    std::fs::create_dir(&folder).expect("a folder in the scratch directory");
    std::fs::write(folder.join("secret"), "open sesame\n").expect("a secret");
    let config = stage.config(|config| {
        config
            .daemon("secret_file", json!("${CREDENTIALS_DIRECTORY}/secret"))
            .route("app", json!({}))
    });
    stage.ferry.write_config(&config);
    let daemon = stage
        .ferry
        .start_with(&[(
            "CREDENTIALS_DIRECTORY",
            folder.to_str().expect("a plain path"),
        )])
        .await;
    daemon.ready().await;
    (stage, daemon)
}

#[tokio::test]
async fn status_history_and_sync_need_neither_the_secrets_nor_the_variables_of_the_config() {
    let (stage, _daemon) = with_a_credential().await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    stage.ferry.run(&["check"]).await.expect(2);
    let status = stage.ferry.run(&["status"]).await.expect(0);
    assert!(status.stdout.contains("ready"), "{}", status.stdout);
    assert_eq!(stage.sync().await.expect(0).total("promoted"), 1);
    let history = stage.ferry.run(&["history"]).await.expect(0);
    assert!(history.stdout.contains("promoted"), "{}", history.stdout);
}

#[tokio::test]
async fn a_broken_edit_on_disk_does_not_hide_the_daemon() {
    let stage = Stage::new(Program::Distribution2).await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let daemon = stage.ferry.start_ready().await;
    let state = stage.ferry.path("state").display().to_string();
    for broken in [
        format!("daemon: {{state: {state}, no_such_key: 1}}\nroutes: nonsense\n"),
        format!("daemon:\n  state: {state}\nroutes:\n  - {{from: [\n"),
    ] {
        stage.ferry.write_config(&Config::text(&broken));
        stage.ferry.run(&["check"]).await.expect(2);
        stage.ferry.run(&["status", "--json"]).await.expect(0);
        stage.ferry.sync(&[]).await.expect(0);
    }
    std::fs::remove_file(stage.ferry.path("blobferry.yaml")).expect("the config is there");
    stage
        .ferry
        .run(&["status", "--state", &state])
        .await
        .expect(0);
    stage
        .ferry
        .run(&["sync", "--state", &state])
        .await
        .expect(0);
    stage
        .ferry
        .run(&["history", "--state", &state])
        .await
        .expect(0);
    let lost = stage.ferry.run(&["status"]).await.expect(1);
    assert!(
        lost.stderr.contains("--state DIR") && lost.stderr.contains("blobferry.yaml"),
        "{}",
        lost.stderr
    );
    assert_eq!(daemon.get("/healthz").await.status(), 200);
}

#[tokio::test]
async fn an_unknown_route_is_refused_in_the_same_way_with_a_daemon_and_without() {
    let stage = Stage::new(Program::Distribution2).await;
    let alone = stage.ferry.run(&["sync", "absent"]).await.expect(5);
    let _daemon = stage.ferry.start_ready().await;
    let beside = stage.ferry.run(&["sync", "absent"]).await.expect(5);
    assert!(
        alone
            .stderr
            .contains("there is no route \"absent\" (the config has: app)"),
        "{}",
        alone.stderr
    );
    assert_eq!(alone.stderr, beside.stderr);
}

#[tokio::test]
async fn an_empty_variable_names_no_config() {
    let ferry = Ferry::bare().with_env("BLOBFERRY_CONFIG", "");
    ferry.run(&["schema"]).await.expect(0);
    ferry.run(&["demo", "--for", "100ms"]).await.expect(0);
    let run = ferry.run(&["check"]).await.expect(2);
    assert!(
        run.stderr.contains("/etc/blobferry/blobferry.yaml"),
        "{}",
        run.stderr
    );
}

/// It began with a warning, since nothing was pushed before the daemon looked.
#[tokio::test]
async fn the_demo_warns_of_nothing() {
    let demo = Ferry::bare().run(&["demo", "--for", "100ms"]).await;
    let demo = demo.expect(0);
    assert_eq!(demo.stderr, "");
    let pushed = demo.stdout.find("pushed      staging/v1");
    let promoted = demo.stdout.find("promoted    ");
    assert!(pushed.is_some() && pushed < promoted, "{}", demo.stdout);
}

/// A password that every user could read was taken without a word.
#[tokio::test]
async fn check_warns_of_a_secret_that_every_user_can_read() {
    let ferry = Ferry::bare();
    let secret = ferry.file("password", "hunter2\n");
    let login = json!({"username": "joe", "password_file": secret});
    let config = Config::new()
        .registry("staging", "http://127.0.0.1:9")
        .registry_with("production", "http://127.0.0.1:10", login)
        .route("app", json!({}));
    ferry.write_config(&config);
    for (mode, is_warned) in [(0o644, true), (0o640, false), (0o600, false)] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&secret, mode).expect("a mode");
        let said = ferry.run(&["check"]).await.expect(0).stdout;
        let warning =
            format!("password_file: every user of this machine can read it: chmod 600 {secret}");
        assert_eq!(said.contains(&warning), is_warned, "{said}");
    }
}

/// The names and contents of a folder, and of those in it.
fn snapshot(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
    {
        let content = if entry.is_dir() {
            Vec::new()
        } else {
            std::fs::read(&entry).unwrap_or_default()
        };
        found.push((entry.display().to_string(), content));
        if entry.is_dir() {
            found.extend(snapshot(&entry));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_dry_run_writes_nothing_anywhere() {
    let stage = Stage::new(Program::Distribution2).await;
    let (image, other) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &image).await;
    let planned = stage.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(planned.total("planned"), 1);
    assert!(
        !stage.ferry.path("state").exists(),
        "a dry run made the state folder"
    );

    stage.sync().await.expect(0);
    stage.push().push("app", "v1", &other).await;
    let before = snapshot(&stage.ferry.path("state"));
    let conflict = stage.ferry.sync(&["--dry-run"]).await.expect(4);
    assert_eq!(
        conflict.job("v1")["result"],
        "conflict",
        "the ledger was read"
    );
    assert_eq!(snapshot(&stage.ferry.path("state")), before);
    let (from, to) = (
        format!("{}/app:v1", stage.source.address()),
        format!("{}/app:v1", stage.target.address()),
    );
    let state = stage.ferry.path("state").display().to_string();
    stage
        .ferry
        .run(&["copy", &from, &to, "--dry-run", "--state", &state])
        .await
        .expect(4);
    stage.ferry.run(&["history"]).await.expect(0);
    assert_eq!(snapshot(&stage.ferry.path("state")), before);
    assert_eq!(
        stage.there().digest("app", "v1").await.as_deref(),
        Some(image.digest())
    );
}

#[tokio::test]
async fn another_config_is_planned_with_beside_the_daemon() {
    let stage = Stage::new(Program::Distribution2).await;
    stage
        .push()
        .push("second", "v1", &Image::oci(1, &[1000]))
        .await;
    let daemon = stage.ferry.start_ready().await;
    stage
        .ferry
        .write_config(&stage.config(|config| config.route("second", json!({}))));
    let config = stage.ferry.path("blobferry.yaml").display().to_string();
    let planned = stage
        .ferry
        .sync(&["--dry-run", "-c", &config])
        .await
        .expect(0);
    assert_eq!(planned.total("planned"), 1, "{}", planned.stdout);
    assert_eq!(stage.there().digest("second", "v1").await, None);
    let status = daemon
        .get("/v1/status")
        .await
        .bytes()
        .await
        .expect("a body");
    let status: Value = serde_json::from_slice(&status).expect("JSON");
    assert_eq!(status["routes"][0]["name"], "app");
}

/// The pass of another config was ordered, and the daemon's rules ran without a word.
#[tokio::test]
async fn a_pass_of_another_config_is_refused_beside_the_daemon() {
    let stage = Stage::new(Program::Distribution2).await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let _daemon = stage.ferry.start_ready().await;
    let own = stage.ferry.path("blobferry.yaml");
    let text = std::fs::read_to_string(&own).expect("the config");
    let other = stage.ferry.file("other.yaml", &text);
    let refused = stage.ferry.run(&["sync", "-c", &other]).await.expect(2);
    let words = format!(
        "the running daemon uses {}, not {other}; change that file and reload the daemon, or use --dry-run",
        own.display()
    );
    assert!(refused.stderr.contains(&words), "{}", refused.stderr);
    let link = stage.ferry.path("link.yaml");
    std::os::unix::fs::symlink(&own, &link).expect("a link");
    let link = link.display().to_string();
    stage.ferry.run(&["sync", "-c", &link]).await.expect(0);
    stage
        .ferry
        .run(&["sync", "--dry-run", "-c", &other])
        .await
        .expect(0);
}

/// The plan of another config differs by one tag more and one tag less; what both do alike is not
/// listed.
#[tokio::test]
async fn changes_are_what_another_config_would_do_otherwise() {
    let stage =
        Stage::with_route(Program::Distribution2, json!({"tags": {"include": ["v*"]}})).await;
    let daemon = stage.ferry.start_ready().await;
    for (number, tag) in ["v1", "v2", "w1"].into_iter().enumerate() {
        let image = Image::oci(number as u64, &[1000]);
        stage.push().push("app", tag, &image).await;
    }
    let other =
        stage.config(|config| config.route("app", json!({"tags": {"include": ["v1", "w*"]}})));
    let other = other.daemon("state", json!(stage.ferry.path("state")));
    let path = stage.ferry.file("other.yaml", &other.text_of());
    let compare = ["sync", "--dry-run", "-c", &path, "--changes"];
    let run = stage
        .ferry
        .run(&[&compare[..], &["--json"]].concat())
        .await
        .expect(0);
    let changes = run.report()["changes"].clone();
    let there = |tag: &str| format!("{}/app:{tag}", stage.target.address());
    let planned = json!({"route": "app", "result": "planned"});
    assert_eq!(changes.as_array().map(Vec::len), Some(2), "{changes:#}");
    for (change, tag, [theirs, ours]) in [
        (&changes[0], "v2", [&planned, &Value::Null]),
        (&changes[1], "w1", [&Value::Null, &planned]),
    ] {
        assert_eq!(change["destination"], there(tag), "{changes:#}");
        assert_eq!(
            [&change["daemon"], &change["other"]],
            [theirs, ours],
            "{changes:#}"
        );
    }
    let text = stage.ferry.run(&compare).await.expect(0).stdout;
    assert!(text.ends_with("2 tags treated otherwise\n"), "{text}");
    assert_eq!(text.lines().count(), 3, "{text}");
    stage.there().assert_lacks("app", "v1", &[]).await;

    let own = stage.ferry.path("blobferry.yaml").display().to_string();
    let same = ["sync", "--dry-run", "-c", &own, "--changes"];
    let text = stage.ferry.run(&same).await.expect(0).stdout;
    assert_eq!(text, "no tag is treated otherwise\n");
    // A registry that cannot be read is no answer to the question.
    stage.source.always(Kind::Tags, Reply::status(403));
    let blind = stage.ferry.run(&compare).await;
    assert!(
        blind.code != 0 && blind.stdout.contains("not everything could be seen"),
        "{blind:?}"
    );
    stage
        .ferry
        .run(&["sync", "--dry-run", "--changes"])
        .await
        .expect(2);
    drop(daemon);
}

#[tokio::test]
async fn changes_need_a_daemon_to_compare_with() {
    let stage = Stage::new(Program::Distribution2).await;
    let path = stage.ferry.path("blobferry.yaml").display().to_string();
    let run = stage
        .ferry
        .run(&["sync", "--dry-run", "-c", &path, "--changes"])
        .await
        .expect(1);
    assert!(
        run.stderr.contains("no daemon is running"),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn a_daemon_whose_socket_is_gone_is_not_taken_for_none() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    std::fs::remove_file(stage.ferry.path("state/control.sock")).expect("the socket is there");
    for command in ["status", "sync", "history"] {
        let run = stage.ferry.run(&[command]).await;
        // The daemon makes it again within seconds.
        assert!(
            run.code == 0 || run.stderr.contains(&format!("process {}", daemon.pid)),
            "{command}: {}",
            run.stderr
        );
    }
    eventually("the socket is there again", async || {
        (stage.ferry.run(&["status"]).await.code == 0).then_some(())
    })
    .await;
    daemon.says("the control socket was deleted").await;
}

#[tokio::test]
async fn a_control_socket_that_cannot_be_made_ends_the_daemon_with_2() {
    let stage = Stage::new(Program::Distribution2).await;
    std::fs::create_dir_all(stage.ferry.path("state/control.sock")).expect("a folder in the way");
    let run = stage.ferry.run(&["run"]).await.expect(2);
    assert!(
        run.stderr.contains("control.sock is not a socket"),
        "{}",
        run.stderr
    );
}

/// A signal that came while the config was being read was the end of the process.
#[tokio::test]
async fn signals_that_come_before_the_daemon_is_up_are_kept() {
    let stage = Stage::new(Program::Distribution2).await;
    let text = std::fs::read(stage.ferry.path("blobferry.yaml")).expect("the config");
    let pipe = stage.ferry.path("pipe.yaml");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    let mut daemon =
        stage
            .ferry
            .spawn_command(&["run", "-c", pipe.to_str().expect("a plain path")]);
    // Opening a pipe to write waits for its reader: the daemon is reading its config by then.
    let mut config =
        tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(pipe))
            .await
            .unwrap()
            .unwrap();
    let pid = daemon.id().expect("it runs").to_string();
    for signal in ["-USR1", "-TERM"] {
        assert!(
            std::process::Command::new("kill")
                .args([signal, &pid])
                .status()
                .expect("kill runs")
                .success()
        );
    }
    std::io::Write::write_all(&mut config, &text).expect("the daemon reads");
    drop(config);
    let status = tokio::time::timeout(std::time::Duration::from_secs(60), daemon.wait())
        .await
        .expect("it drains")
        .unwrap();
    assert_eq!(
        status.code(),
        Some(0),
        "a drain, not a death by signal: {status}"
    );
}
