//! `ls`, `tags` and `digest` show what registries hold; `history` and `man` print for other
//! programs.

use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn either_side_is_shown_by_its_name_in_the_config_and_by_its_address() {
    let stage = Stage::new(Program::Distribution3).await;
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[100]));
    stage.push().push("app", "v1", &first).await;
    stage.push().push("app", "v2", &second).await;
    stage.push().push("team/api", "v1", &first).await;
    stage.ferry.sync(&["--tag", "v1"]).await.expect(0);
    let before = stage.source.count(Kind::ManifestPut) + stage.target.count(Kind::ManifestPut);

    let ls = stage.ferry.run(&["ls", "staging"]).await.expect(0);
    assert_eq!(ls.stdout, "app\nteam/api\n");
    let host = stage.target.url().replace("http://", "");
    let ls = stage.ferry.run(&["ls", &host, "--json"]).await;
    assert_eq!(ls.stdout, "{\"repository\":\"app\"}\n");

    let tags = stage.ferry.run(&["tags", "staging/app"]).await.expect(0);
    assert_eq!(tags.stdout, "v1\nv2\n");
    let tags = stage.ferry.run(&["tags", &format!("{host}/app")]).await;
    assert_eq!((tags.code, &*tags.stdout), (0, "v1\n"));

    for reference in ["production/app:v1".to_owned(), format!("{host}/app:v1")] {
        let digest = stage.ferry.run(&["digest", &reference]).await.expect(0);
        assert_eq!(digest.stdout, format!("{}\n", first.digest()));
    }
    let by_digest = format!("staging/app@{}", second.digest());
    stage.ferry.run(&["digest", &by_digest]).await.expect(0);

    for (arguments, code) in [
        (["digest", "production/app:v2"], 5),
        (["digest", "production/app:latest"], 5),
        (["digest", "production/app"], 2),
        (["digest", "nowhere"], 2),
        (["tags", "production/none"], 5),
        (["tags", "staging/app:v1"], 2),
        (["ls", "layout:/srv"], 2),
    ] {
        let run = stage.ferry.run(&arguments).await;
        assert_eq!(run.code, code, "{arguments:?}: {}", run.said());
        assert_eq!(run.stdout, "", "{arguments:?}");
    }
    let after = stage.source.count(Kind::ManifestPut) + stage.target.count(Kind::ManifestPut);
    assert_eq!(after, before, "nothing is written");
}

#[tokio::test]
async fn a_wrong_password_is_an_error_of_its_own() {
    let staging = Program::Distribution3
        .setup()
        .basic("joe", "hunter2")
        .start();
    let ferry = Ferry::bare();
    let secret = ferry.file("password", "wrong-password\n");
    let config = Config::new()
        .registry_with(
            "staging",
            &staging.url(),
            json!({"username": "joe", "password_file": secret}),
        )
        .registry("production", "http://127.0.0.1:9")
        .route("app", json!({}));
    ferry.write_config(&config);
    for arguments in [
        ["ls", "staging"],
        ["tags", "staging/app"],
        ["digest", "staging/app:v1"],
    ] {
        let run = ferry.run(&arguments).await.expect(3);
        assert!(!run.said().contains("wrong-password"), "{}", run.said());
    }
}

#[tokio::test]
async fn the_history_is_cut_by_time_and_printed_for_spreadsheets() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let image = Image::oci(1, &[100]);
    staging.push("app", "v1", &image);
    ferry.sync(&[]).await.expect(0);
    let reason = "he said \"no\", twice, and left";
    ferry
        .run(&["hold", "route:app", "--reason", reason])
        .await
        .expect(0);

    let csv = ferry.run(&["history", "--csv"]).await.expect(0);
    let mut reader = csv::Reader::from_reader(csv.stdout.as_bytes());
    let names = reader.headers().expect("a line of names").clone();
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
    let cell = |row: usize, name: &str| {
        let column = names.iter().position(|known| known == name).expect(name);
        rows[row][column].to_owned()
    };
    assert_eq!(rows.len(), 2, "{}", csv.stdout);
    assert_eq!(
        (cell(0, "result"), cell(1, "result")),
        ("promoted".into(), "hold".into())
    );
    assert_eq!(cell(0, "digest"), image.digest().to_string());
    assert_eq!(cell(0, "route"), "app");
    assert!(
        cell(1, "why").contains("he said \"no\", twice"),
        "{}",
        csv.stdout
    );

    for of_the_tag in ["app:v1", "production/app:v1", "staging/app:v1"] {
        let rows = ferry
            .run(&["history", "--json", of_the_tag])
            .await
            .expect(0);
        assert_eq!(rows.stdout.lines().count(), 1, "{of_the_tag}");
    }
    ferry.run(&["history", "other/app:v1"]).await.expect(5);

    let old = ferry.run(&["history", "--json", "--since", "1h"]).await;
    assert_eq!(old.stdout.lines().count(), 2);
    let last: Value = serde_json::from_str(old.stdout.lines().last().expect("two rows")).unwrap();
    let at: jiff::Timestamp = last["at"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("RFC 3339");
    let later = (at + jiff::SignedDuration::from_secs(1)).to_string();
    let none = ferry.run(&["history", "--json", "--since", &later]).await;
    assert_eq!((none.code, &*none.stdout), (0, ""));
    // The daemon answers the same.
    let daemon = ferry.start_ready().await;
    let rows = ferry.run(&["history", "--json", "--since", "1h"]).await;
    assert_eq!(rows.stdout, old.stdout);
    let none = ferry.run(&["history", "--json", "--since", &later]).await;
    assert_eq!(none.stdout, "");
    drop(daemon);
    for wrong in ["yesterday", "-1h", "24"] {
        ferry
            .run(&["history", &format!("--since={wrong}")])
            .await
            .expect(2);
    }
}

#[tokio::test]
async fn a_watched_status_tells_each_change() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let config = Config::pair(&staging.url(), &production.url());
    let ferry = Ferry::new(&config);
    let none = ferry.run(&["status", "--watch"]).await.expect(1);
    assert!(
        none.stderr.contains("no daemon is running"),
        "{}",
        none.stderr
    );
    let daemon = ferry.start_ready().await;
    let file = ferry.path("watched");
    let stdout = std::fs::File::create(&file).expect("a new file");
    let mut watching = ferry.spawn_printing_to(&["status", "--watch", "--json"], stdout.into());
    let shows = async |text: &str| {
        eventually(text, async || {
            let shown = std::fs::read_to_string(&file).expect("it is there");
            shown.contains(text).then_some(())
        })
        .await;
    };
    shows(r#""name":"app""#).await;
    ferry
        .run(&["hold", "route:app", "--reason", "watch-me"])
        .await
        .expect(0);
    shows("watch-me").await;
    let shown = std::fs::read_to_string(&file).expect("it is there");
    for line in shown.lines() {
        serde_json::from_str::<Value>(line).expect("a line is a document");
    }
    drop(daemon);
    let daemon = ferry.start_ready().await;
    ferry
        .run(&["hold", "--reason", "watched-through-a-restart"])
        .await
        .expect(0);
    shows("watched-through-a-restart").await;
    drop(daemon);
    watching.kill().await.expect("it still runs");
}

#[tokio::test]
async fn every_command_has_a_manual_page() {
    let ferry = Ferry::bare();
    let page = ferry.run(&["man"]).await.expect(0);
    assert!(page.stdout.contains(".TH blobferry 1"), "{}", page.stdout);
    let folder = ferry.path("man1");
    ferry
        .run(&["man", "--to", &folder.to_string_lossy()])
        .await
        .expect(0);
    for name in [
        "blobferry",
        "blobferry-sync",
        "blobferry-history",
        "blobferry-hold",
    ] {
        let page = std::fs::read_to_string(folder.join(format!("{name}.1"))).expect(name);
        assert!(page.contains(".SH"), "{name}");
    }
    ferry.file("taken", "a file");
    let taken = ferry.run(&["man", "--to", "taken"]).await.expect(1);
    assert!(taken.stderr.contains("taken"), "{}", taken.stderr);
}
