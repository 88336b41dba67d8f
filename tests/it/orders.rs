//! Explicit acts: what `sync` prints as the way out works as it is printed, and what it writes is
//! known from then on.

use serde_json::json;

use crate::support::*;

/// Registries that ask for a password, of which only the config knows.
async fn behind_passwords() -> Stage {
    let (staging, production) = (
        Program::Distribution2
            .setup()
            .delete()
            .basic("ferry", "hunter2")
            .start(),
        Program::Distribution2
            .setup()
            .delete()
            .basic("ferry", "hunter2")
            .start(),
    );
    let stage = Stage::between(staging, production, |config| config.route("app", json!({}))).await;
    let secret = stage.ferry.file("password", "hunter2\n");
    let keys = json!({"username": "ferry", "password_file": secret});
    let config = Config::new()
        .registry_with("staging", &stage.source.url(), keys.clone())
        .registry_with("production", &stage.target.url(), keys)
        .route("app", json!({}));
    stage.ferry.write_config(&config);
    stage
}

fn push(stage: &Stage) -> Client {
    stage.push().with_basic("ferry", "hunter2")
}

fn there(stage: &Stage) -> Client {
    stage.there().with_basic("ferry", "hunter2")
}

/// The command that a conflict prints, as words.
fn printed(run: &Run) -> Vec<String> {
    let line = run
        .stdout
        .lines()
        .find(|line| line.contains("blobferry copy"))
        .unwrap_or_else(|| panic!("{}", run.said()));
    let command = line.split("blobferry ").nth(1).expect("a command");
    command.split_whitespace().map(str::to_owned).collect()
}

async fn conflict(stage: &Stage) -> (Image, Image) {
    let (old, new) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    push(stage).push("app", "v1", &old).await;
    stage.ferry.sync(&[]).await.expect(0);
    push(stage).push("app", "v1", &new).await;
    (old, new)
}

async fn the_printed_command_works(stage: &Stage, new: &Image, options: &[&str]) {
    let run = stage
        .ferry
        .run(&[&["sync"], options].concat())
        .await
        .expect(4);
    let command = printed(&run);
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let copied = stage
        .ferry
        .run(&[&words[..], &["--json"]].concat())
        .await
        .expect(0);
    assert_eq!(copied.job("v1")["result"], "promoted");
    assert!(
        copied.job("v1")["unguarded"].is_null(),
        "a route leads there: {}",
        copied.stdout
    );
    there(stage).assert_holds("app", "v1", new).await;
    assert_eq!(stage.ferry.sync(&[]).await.expect(0).total("up_to_date"), 1);
    // The next push is a conflict like any other: what was copied is known to be ours.
    push(stage).push("app", "v1", &Image::oci(3, &[1000])).await;
    assert_eq!(
        stage.ferry.sync(&[]).await.expect(4).job("v1")["result"],
        "conflict",
        "it counts as drift"
    );
}

/// `sync` printed a copy that ended with 401, because it ignored the config; and after it worked,
/// the next push was drift.
#[tokio::test]
async fn the_way_out_of_a_conflict_works_as_printed_and_is_known_without_a_daemon() {
    let stage = behind_passwords().await;
    let (_, new) = conflict(&stage).await;
    the_printed_command_works(&stage, &new, &[]).await;
}

#[tokio::test]
async fn the_way_out_of_a_conflict_works_as_printed_and_is_known_beside_a_daemon() {
    let stage = behind_passwords().await;
    let (_, new) = conflict(&stage).await;
    let daemon = stage.ferry.start_ready().await;
    the_printed_command_works(&stage, &new, &[]).await;
    daemon.says("promoted").await;
}

#[tokio::test]
async fn the_printed_command_repeats_the_state_folder() {
    let stage = behind_passwords().await;
    let state = stage.ferry.path("elsewhere").display().to_string();
    let (old, new) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    push(&stage).push("app", "v1", &old).await;
    stage.ferry.sync(&["--state", &state]).await.expect(0);
    push(&stage).push("app", "v1", &new).await;
    let run = stage
        .ferry
        .run(&["sync", "--state", &state])
        .await
        .expect(4);
    let command = printed(&run);
    assert!(
        command
            .windows(2)
            .any(|pair| pair == ["--state".to_owned(), state.clone()]),
        "{command:?}"
    );
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    stage.ferry.run(&words).await.expect(0);
    stage.ferry.sync(&["--state", &state]).await.expect(0);
    assert!(
        !stage.ferry.path("state").exists(),
        "the folder of the config was not touched"
    );
}

#[tokio::test]
async fn a_promotion_where_no_route_leads_says_that_nothing_guards_it() {
    let stage = behind_passwords().await;
    push(&stage)
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let (from, to) = (
        format!("{}/app:v1", stage.source.address()),
        format!("{}/other:v1", stage.target.address()),
    );
    let alone = stage
        .ferry
        .run(&["promote", &from, &to, "--json"])
        .await
        .expect(0);
    assert_eq!(alone.job("v1")["unguarded"], true);
    let _daemon = stage.ferry.start_ready().await;
    let beside = stage
        .ferry
        .run(&["promote", &from, &to, "--json"])
        .await
        .expect(0);
    assert_eq!(
        (&beside.job("v1")["unguarded"], &beside.job("v1")["result"]),
        (&json!(true), &json!("up_to_date"))
    );
    let routed = to.replace("/other", "/app");
    let ours = stage
        .ferry
        .run(&["promote", &from, &routed, "--json"])
        .await
        .expect(0);
    assert!(ours.job("v1")["unguarded"].is_null(), "{}", ours.stdout);
    let unknown = stage
        .ferry
        .run(&["copy", "127.0.0.1:1/app:v1", &routed])
        .await
        .expect(2);
    assert!(
        unknown.stderr.contains("127.0.0.1:1") && unknown.stderr.contains("registries"),
        "{}",
        unknown.stderr
    );
}

/// A copy to where no route leads went past a denial, by the daemon's side and without one.
#[tokio::test]
async fn a_denial_holds_where_no_route_leads() {
    let stage = Stage::new(Program::Distribution2).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let from = format!("{}/app:v1", stage.source.address());
    let other = format!("{}/other:v1", stage.target.address());
    // The config does not know this place: the daemon leaves it to the command.
    let layout = format!("layout:{}:v1", stage.ferry.path("there").display());
    let deny = ["deny", image.digest(), "--reason", "CVE-2026-1"];
    stage.ferry.run(&deny).await.expect(0);
    let copy = async |to: &str, code: i32| {
        let run = stage.ferry.run(&["copy", &from, to]).await;
        run.expect(code).stdout
    };
    for to in [&other, &layout] {
        let said = copy(to, 4).await;
        assert!(said.contains("CVE-2026-1"), "{to}: {said}");
    }
    let daemon = stage.ferry.start_ready().await;
    for to in [&other, &layout] {
        let said = copy(to, 4).await;
        assert!(said.contains("CVE-2026-1"), "{to}: {said}");
    }
    assert_eq!(stage.there().digest("other", "v1").await, None);

    stage
        .ferry
        .run(&["release", image.digest()])
        .await
        .expect(0);
    for to in [&other, &layout] {
        let said = copy(to, 0).await;
        assert!(said.contains("unguarded"), "{to}: {said}");
    }
    daemon.killed().await;
    let history = stage.ferry.run(&["history", &other]).await.expect(0);
    assert!(history.stdout.contains("promoted"), "{}", history.stdout);
}

#[tokio::test]
async fn a_tag_that_names_another_digest_than_the_reference_is_not_there() {
    let stage = Stage::new(Program::Distribution2).await;
    let (image, other) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &image).await;
    stage.push().push_untagged("app", &other).await;
    let from = |digest: &str| format!("{}/app:v1@{digest}", stage.source.address());
    let to = format!("{}/app:v1", stage.target.address());
    for command in ["copy", "promote"] {
        let run = stage
            .ferry
            .run(&[command, &from(other.digest()), &to])
            .await
            .expect(5);
        assert!(
            run.stdout.contains(image.digest()) && run.stdout.contains(other.digest()),
            "{}",
            run.stdout
        );
        assert_eq!(stage.there().digest("app", "v1").await, None);
    }
    stage
        .ferry
        .run(&["copy", &from(image.digest()), &to])
        .await
        .expect(0);
    stage.there().assert_holds("app", "v1", &image).await;
}

#[tokio::test]
async fn every_tag_of_an_empty_repository_is_nothing_that_is_there() {
    let ferry = Ferry::bare();
    std::fs::create_dir_all(ferry.path("app/blobs")).expect("a layout");
    std::fs::write(
        ferry.path("app/oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("its mark");
    std::fs::write(
        ferry.path("app/index.json"),
        r#"{"schemaVersion":2,"manifests":[]}"#,
    )
    .expect("its index");
    let (from, to) = (
        format!("layout:{}", ferry.path("app").display()),
        format!("layout:{}", ferry.path("there").display()),
    );
    let run = ferry
        .run(&["promote", &from, &to, "--all-tags", "--json"])
        .await
        .expect(5);
    let trouble = &run.report()["trouble"][0];
    assert!(
        trouble.as_str().unwrap().contains("has no tags"),
        "{trouble}"
    );
}

#[tokio::test]
async fn a_source_layout_without_an_index_is_trouble_and_not_empty() {
    let ferry = Ferry::bare();
    std::fs::create_dir_all(ferry.path("images/app/blobs")).expect("a layout");
    std::fs::write(
        ferry.path("images/app/oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("its mark");
    let root = format!("layout:{}", ferry.path("images").display());
    let there = format!("layout:{}", ferry.path("there").display());
    ferry.write_config(&Config::pair(&root, &there));
    let run = ferry.sync(&[]).await.expect(1);
    let text = run.report()["trouble"][0]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(text.contains("without index.json"), "{text}");
}

#[tokio::test]
async fn check_online_refuses_the_names_that_a_look_refuses() {
    let stage = Stage::build(Program::Distribution2, |config| {
        config
            .raw_route(json!({"name": "one", "from": "staging/one/*", "to": "production/all/{1}", "tags": {"include": ["*"]}}))
            .raw_route(json!({"name": "two", "from": "staging/two/*", "to": "production/all/{1}", "tags": {"include": ["*"]}}))
    })
    .await;
    for repository in ["one/app", "two/app", "two/other"] {
        stage
            .push()
            .push(repository, "v1", &Image::oci(1, &[1000]))
            .await;
    }
    let looked = stage.ferry.sync(&["--dry-run"]).await.expect(4);
    let refused = looked.report()["trouble"][0]
        .as_str()
        .expect("a reason")
        .to_owned();
    let checked = stage.ferry.run(&["check", "--online"]).await.expect(1);
    assert!(
        checked.stdout.contains(&refused),
        "{}\nlacks {refused}",
        checked.stdout
    );
}

#[tokio::test]
async fn check_warns_of_rules_that_can_never_match() {
    let stage = Stage::with_route(
        Program::Distribution2,
        json!({"tags": {"include": ["latest", "semver:>2 <1"], "exclude": ["latest"], "moving": ["stable"]}}),
    )
    .await;
    let run = stage.ferry.run(&["check"]).await.expect(0);
    for words in [
        "semver:>2 <1 can never match",
        "latest can never match",
        "stable can never match",
    ] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
}

#[tokio::test]
async fn an_asterisk_without_quotes_gets_a_hint() {
    let ferry = Ferry::bare();
    let head = "registries:\n  a: {url: 'http://127.0.0.1:1'}\n  b: {url: 'http://127.0.0.1:2'}\nroutes:\n";
    for rules in ["[*]", "[latest, *]", "*", "[v1, *-rc]"] {
        ferry.write_config(&Config::text(&format!(
            "{head}  - {{from: a/x, to: b/x, tags: {{include: {rules}}}}}\n"
        )));
        let run = ferry.run(&["check"]).await.expect(2);
        assert!(run.stderr.contains("\"*\""), "{rules}: {}", run.stderr);
    }
}
