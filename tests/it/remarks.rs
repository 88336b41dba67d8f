//! Each act has the principal that blobferry established, and beside it what the caller said: in
//! reports, in the ledger, in `history`, with a daemon and without.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::*;

fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The principal of this very process, as the tools of the system know it.
fn principal() -> String {
    let login = std::fs::read_to_string("/proc/self/loginuid").unwrap_or_default();
    let is_known = !["", "4294967295"].contains(&login.trim());
    let name = match said_by("id", &["-u"]).as_str() {
        "0" if is_known => said_by("id", &["-un", login.trim()]),
        _ => said_by("id", &["-un"]),
    };
    format!("user:{name}")
}

fn facts(job: &Value) -> Value {
    json!([
        job["actor"],
        job["claimed_actor"],
        job["reason"],
        job["gates"]
    ])
}

#[tokio::test]
async fn every_act_tells_its_principal_and_what_the_caller_said() {
    let stage = Stage::new(Program::Distribution2).await;
    let said = ["--actor", "bob", "--reason", "CHG-17: hotfix"];
    let expected = json!([principal(), "bob", "CHG-17: hotfix", []]);
    let source = format!("{}/app:v1", stage.source.address());
    let destination = format!("{}/app", stage.target.address());
    for beside_a_daemon in [true, false] {
        let daemon = match beside_a_daemon {
            true => Some(stage.ferry.start_ready().await),
            false => None,
        };
        for (number, act) in ["sync", "copy", "promote"].into_iter().enumerate() {
            let tag = format!("{act}-{beside_a_daemon}");
            let image = Image::oci(number as u64 + 10, &[1000]);
            stage.push().push("app", &tag, &image).await;
            let from = source.replace(":v1", &format!(":{tag}"));
            let to = format!("{destination}:{tag}");
            let arguments: &[&str] = match act {
                "sync" => &["sync", "--json"],
                _ => &[act, &from, &to, "--json"],
            };
            let run = stage
                .ferry
                .run(&[arguments, &said].concat())
                .await
                .expect(0);
            assert_eq!(facts(&run.job(&tag)), expected, "{act} {beside_a_daemon}");
        }
        let history = stage.ferry.run(&["history", "--json"]).await;
        assert_eq!(history.code, 0, "{}", history.stderr);
        let rows: Vec<Value> = history
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(rows.iter().all(|row| facts(row) == expected), "{rows:#?}");
        let text = stage.ferry.run(&["history"]).await.expect(0).stdout;
        assert!(
            text.contains("says to be bob") && text.contains("says: CHG-17: hotfix"),
            "{text}"
        );
        if let Some(mut daemon) = daemon {
            daemon.signal("TERM").await;
            assert_eq!(daemon.ended().await, 0);
        }
    }
}

#[tokio::test]
async fn a_ping_may_say_who_and_why_and_that_counts_for_nothing() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    for (key, text) in [
        ("actor", String::new()),
        ("reason", "two\nlines".into()),
        ("reason", "x".repeat(1001)),
    ] {
        let (status, refusal) = daemon.ping(json!({key: text})).await;
        assert_eq!(
            (status, &refusal["error"]["code"]),
            (400, &json!("bad_request")),
            "{refusal}"
        );
    }
    let body = json!({"wait": true, "actor": "user:root", "reason": "because"});
    let (status, report) = daemon.ping(body).await;
    assert_eq!(status, 200, "{report:#}");
    let job = &report["jobs"][0];
    assert_eq!(
        facts(job),
        json!(["address:127.0.0.1", "user:root", "because", []])
    );

    // What says nothing has no claim, and no reason.
    stage
        .push()
        .push("app", "v2", &Image::oci(2, &[1000]))
        .await;
    let (_, report) = daemon.ping(json!({"wait": true})).await;
    let job = report["jobs"][0].as_object().unwrap();
    assert_eq!(job["actor"], "address:127.0.0.1");
    assert!(
        job["reason"].is_null() && !job.contains_key("claimed_actor"),
        "{job:?}"
    );
}
