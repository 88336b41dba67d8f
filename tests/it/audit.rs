//! The ledger tells whether it is as it was recorded.

use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn a_changed_row_is_named_and_ends_with_1() {
    let stage = Stage::new(Program::Distribution2).await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let missing = stage.ferry.run(&["history", "--verify"]).await.expect(5);
    assert!(
        missing.stderr.contains("there is no ledger"),
        "{}",
        missing.stderr
    );
    stage.sync().await.expect(0);
    let daemon = stage.ferry.start_ready().await;
    let good = stage.ferry.run(&["history", "--verify"]).await.expect(0);
    assert!(
        good.stdout.starts_with("1 row, all as recorded"),
        "{}",
        good.stdout
    );

    // Readings of the config are rows, whether they were accepted or not.
    let state = stage.ferry.path("state").display().to_string();
    let recorded = async |text: &str| {
        let history = stage.ferry.run(&["history", "--state", &state]).await;
        history.stdout.contains(text).then_some(history.stdout)
    };
    daemon.signal("HUP").await;
    eventually("the reading is in the ledger", async || {
        recorded("config read").await
    })
    .await;
    stage.ferry.write_config(&Config::text("routes: nonsense"));
    daemon.signal("HUP").await;
    let said = eventually("the refused reading is in the ledger", async || {
        recorded("config refused").await
    })
    .await;
    assert!(said.contains("routes"), "{said}");
    stage
        .ferry
        .run(&["history", "--verify", "--state", &state])
        .await
        .expect(0);
    daemon.killed().await;

    let ledger = rusqlite::Connection::open(stage.ferry.path("state").join("ledger.db"))
        .expect("the ledger opens");
    ledger
        .execute(
            "UPDATE rows SET content = replace(content, 'promoted', 'conflict') WHERE id = 1",
            [],
        )
        .expect("the row is there");
    drop(ledger);
    let bad = stage
        .ferry
        .run(&["history", "--verify", "--state", &state])
        .await
        .expect(1);
    assert!(
        bad.stderr.contains("row 1 is not as it was recorded"),
        "{}",
        bad.stderr
    );
}

/// The lines of the audit file.
fn lines(ferry: &Ferry) -> Vec<Value> {
    let text = std::fs::read_to_string(ferry.path("audit.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect()
}

fn numbers(ferry: &Ferry) -> Vec<u64> {
    let lines = lines(ferry);
    lines
        .iter()
        .map(|line| line["id"].as_u64().unwrap())
        .collect()
}

async fn written(ferry: &Ferry, rows: u64) {
    eventually("the rows are in the audit file", async || {
        (numbers(ferry).last() == Some(&rows)).then_some(())
    })
    .await;
    assert_eq!(numbers(ferry), (1..=rows).collect::<Vec<_>>());
}

fn audited() -> (Scripted, Scripted, Ferry) {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let config = Config::pair(&staging.url(), &production.url());
    let ferry = Ferry::new(&config);
    let path = ferry.path("audit.jsonl").display().to_string();
    ferry.write_config(&config.daemon("audit_file", json!(path)));
    (staging, production, ferry)
}

#[tokio::test]
async fn every_row_is_one_line_of_the_audit_file_whatever_ends_the_process() {
    let (staging, _production, ferry) = audited();
    staging.push("app", "v1", &Image::oci(1, &[100]));
    ferry.sync(&[]).await.expect(0);
    let daemon = ferry.start_ready().await;
    written(&ferry, 1).await;
    ferry.run(&["hold", "--reason", "CHG-17"]).await.expect(0);
    written(&ferry, 2).await;
    daemon.killed().await;
    // A crash has torn a line, and a row was recorded without the daemon.
    ferry.run(&["release"]).await.expect(0);
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(ferry.path("audit.jsonl"))
        .expect("the audit file");
    std::io::Write::write_all(&mut file, b"{\"ledger\":\"ab").expect("the audit file is written");
    let _daemon = ferry.start_ready().await;
    written(&ferry, 3).await;
    let lines = lines(&ferry);
    let facts = |at: usize| {
        (
            &lines[at]["kind"],
            lines[at]["ledger"] == lines[0]["ledger"],
        )
    };
    assert_eq!(facts(0), (&json!("outcome"), true));
    assert_eq!(facts(1), (&json!("hold"), true));
    assert_eq!(
        (facts(2), &lines[1]["reason"]),
        ((&json!("release"), true), &json!("CHG-17"))
    );
}

#[tokio::test]
async fn nothing_is_named_while_the_audit_file_cannot_be_written() {
    let (staging, production, ferry) = audited();
    staging.push("app", "v1", &Image::oci(1, &[100]));
    let daemon = ferry.start_ready().await;
    written(&ferry, 1).await;
    // A folder stands where the file was.
    let (path, aside) = (ferry.path("audit.jsonl"), ferry.path("aside"));
    std::fs::rename(&path, &aside).expect("the audit file is there");
    std::fs::create_dir(&path).expect("nothing is in its place");
    ferry.run(&["hold", "route:app"]).await.expect(0);
    daemon
        .says("nothing is named until the audit file can be written")
        .await;
    ferry.run(&["release", "route:app"]).await.expect(0);
    staging.push("app", "v2", &Image::oci(2, &[100]));
    let failed = ferry.sync(&["--tag", "v2"]).await;
    assert_eq!(failed.code, 1, "{}", failed.said());
    assert!(failed.stdout.contains("audit file"), "{}", failed.stdout);
    assert_eq!(production.tagged("app", "v2"), None);
    std::fs::remove_dir(&path).expect("the folder is empty");
    std::fs::rename(&aside, &path).expect("nothing is in its place");
    production
        .until("it is named then", |_| {
            production.tagged("app", "v2").is_some()
        })
        .await;
    eventually("no row is missing", async || {
        let numbers = numbers(&ferry);
        let is_whole = numbers == (1..=numbers.len() as u64).collect::<Vec<_>>();
        (is_whole && numbers.len() >= 5).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restored_ledger_holds_everything_until_it_is_released() {
    let (staging, production, ferry) = audited();
    staging.push("app", "v1", &Image::oci(1, &[100]));
    ferry.sync(&[]).await.expect(0);
    let (ledger, copy) = (ferry.path("state/ledger.db"), ferry.path("copy.db"));
    std::fs::copy(&ledger, &copy).expect("a backup");
    ferry.run(&["hold", "--reason", "freeze"]).await.expect(0);
    staging.push("app", "v2", &Image::oci(2, &[100]));
    let held = ferry.sync(&["--tag", "v2"]).await.expect(4);
    assert!(held.stdout.contains("freeze"), "{}", held.stdout);

    // The copy knows of no freeze; the index knows that the ledger was further.
    std::fs::copy(&copy, &ledger).expect("the backup is restored");
    let daemon = ferry.start_ready().await;
    let held = ferry.sync(&["--tag", "v2"]).await.expect(4);
    assert!(
        held.stdout.contains("contradicts the ledger"),
        "{}",
        held.stdout
    );
    assert_eq!(production.tagged("app", "v2"), None);
    daemon.says("blobferry release").await;
    daemon.killed().await;
    // It is told once, and the hold lasts.
    let _daemon = ferry.start_ready().await;
    let status = ferry.run(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(status["decisions"].as_array().map(Vec::len), Some(1));
    ferry.run(&["release"]).await.expect(0);
    production
        .until("it goes on", |_| production.tagged("app", "v2").is_some())
        .await;
}

/// A copy of the ledger that went on in another folder is as long as the one that it replaces.
#[tokio::test]
async fn a_restored_ledger_that_has_grown_to_the_old_length_holds_everything() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    staging.push("app", "v1", &Image::oci(1, &[100]));
    ferry.sync(&[]).await.expect(0);
    let elsewhere = ferry.path("elsewhere");
    blobferry::state::create_folder(&elsewhere).expect("a folder");
    let ledger = ferry.path("state/ledger.db");
    std::fs::copy(&ledger, elsewhere.join("ledger.db")).expect("a backup");
    ferry.run(&["hold", "--reason", "freeze"]).await.expect(0);

    for tag in ["app:other", "app:more"] {
        let state = elsewhere.display().to_string();
        let hold = ["hold", tag, "--state", &state];
        ferry.run(&hold).await.expect(0);
    }
    std::fs::copy(elsewhere.join("ledger.db"), &ledger).expect("the backup is restored");
    staging.push("app", "v2", &Image::oci(2, &[100]));
    let held = ferry.sync(&["--tag", "v2"]).await.expect(4);
    assert!(
        held.stdout.contains("it knows another row 2"),
        "{}",
        held.stdout
    );
    assert_eq!(production.tagged("app", "v2"), None);
    ferry.run(&["history", "--verify"]).await.expect(0);
    ferry.run(&["release"]).await.expect(0);
    ferry.sync(&["--tag", "v2"]).await.expect(0);
}

/// `sync`, `copy` and decisions without a daemon left their rows to the next daemon.
#[tokio::test]
async fn commands_without_a_daemon_keep_the_audit_file() {
    let (staging, production, ferry) = audited();
    staging.push("app", "v1", &Image::oci(1, &[100]));
    ferry.sync(&[]).await.expect(0);
    written(&ferry, 1).await;
    staging.push("app", "v2", &Image::oci(2, &[100]));
    let from = format!("{}/app:v2", staging.url());
    let to = |repository: &str| format!("{}/{repository}:v2", production.url());
    ferry.run(&["copy", &from, &to("app")]).await.expect(0);
    written(&ferry, 2).await;
    ferry.run(&["promote", &from, &to("other")]).await.expect(0);
    written(&ferry, 3).await;
    ferry.run(&["hold", "app:v2"]).await.expect(0);
    written(&ferry, 4).await;
    let elsewhere = ferry.path("elsewhere").display().to_string();
    let elsewhere = ["--state", &elsewhere];
    ferry
        .run(&[&["hold"], &elsewhere[..]].concat())
        .await
        .expect(0);
    ferry.run(&["release", "app:v2"]).await.expect(0);
    written(&ferry, 5).await;
    let lines = lines(&ferry);
    let kinds: Vec<&str> = lines
        .iter()
        .map(|line| line["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["outcome", "outcome", "outcome", "hold", "release"]);
    assert_eq!(lines[2]["unguarded"], true);
    ferry.run(&["history", "--verify"]).await.expect(0);
}

#[tokio::test]
async fn commands_name_nothing_while_the_audit_file_cannot_be_written() {
    let (staging, production, ferry) = audited();
    staging.push("app", "v1", &Image::oci(1, &[100]));
    let from = format!("{}/app:v1", staging.url());
    let to = format!("{}/app:v1", production.url());
    std::fs::create_dir(ferry.path("audit.jsonl")).expect("nothing is there");
    for command in [
        &["sync"][..],
        &["copy", &from, &to],
        &["promote", &from, &to],
        &["run"],
    ] {
        let refused = ferry.run(command).await.expect(2);
        assert!(
            refused.stderr.contains("audit.jsonl") && refused.stderr.contains("daemon.audit_file"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(production.tagged("app", "v1"), None);
    // A hold names nothing, and must not fail when things go wrong.
    let held = ferry.run(&["hold", "app:v1"]).await.expect(0);
    assert!(
        held.stderr.contains("not in the audit file yet"),
        "{}",
        held.stderr
    );
    std::fs::remove_dir(ferry.path("audit.jsonl")).expect("the folder is empty");
    ferry.run(&["release", "app:v1"]).await.expect(0);
    written(&ferry, 2).await;
    ferry.sync(&[]).await.expect(0);
    written(&ferry, 3).await;
}

#[tokio::test]
async fn the_folder_of_the_audit_file_is_made_or_the_way_out_is_said() {
    let (_staging, _production, ferry) = audited();
    let config = Config::pair("http://127.0.0.1:1", "http://127.0.0.1:2");
    let with = |path: &str| {
        let path = ferry.path(path).display().to_string();
        ferry.write_config(&config.clone().daemon("audit_file", json!(path)));
    };
    with("logs/deep/audit.jsonl");
    let checked = ferry.run(&["check"]).await.expect(0);
    assert!(
        checked.stdout.contains("logs/deep does not exist"),
        "{}",
        checked.stdout
    );
    let daemon = ferry.start().await;
    daemon.says("started").await;
    assert!(ferry.path("logs/deep/audit.jsonl").exists());
    daemon.killed().await;

    ferry.file("file", "no folder");
    with("file/audit.jsonl");
    let refused = ferry.run(&["run"]).await.expect(2);
    assert!(
        refused.stderr.contains("daemon.audit_file")
            && refused.stderr.contains("/var/log/blobferry"),
        "{}",
        refused.stderr
    );
}
