//! What Tab offers in bash: options and commands, and routes and tags that the daemon or the ledger
//! knows.

use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::support::*;

/// Presses Tab behind a line, as bash does it; what is offered comes back.
async fn offered(ferry: &Ferry, line: &str) -> Vec<String> {
    let script = r#"
        source <(blobferry completions bash)
        function=$(complete -p blobferry | sed 's/.* -F \([^ ]*\).*/\1/')
        COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$' \t\n"'"'"'><=;|&(:'
        # bash makes a word of each colon.
        read -ra COMP_WORDS <<<"${1//:/ : }"
        [[ $1 != *[[:space:]:] ]] || COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        "$function" blobferry "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        [[ ${#COMPREPLY[@]} -eq 0 ]] || printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = ferry
        .command_with_program_in_path("bash")
        .args(["-c", script, "bash", line])
        .env("BLOBFERRY_CONFIG", ferry.path("blobferry.yaml"))
        .output()
        .await
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{line}: {said}");
    let offered = String::from_utf8(output.stdout).expect("plain text");
    offered.lines().map(str::to_owned).collect()
}

async fn assert_known_are_offered(stage: &Stage) {
    let host = stage.target.address().to_owned();
    let (before, after) = host.split_once(':').expect("a port");
    for (line, expected) in [
        ("blobferry sync ", vec!["app".to_owned()]),
        ("blobferry sync --tag v1", vec!["v1".into(), "v1.1".into()]),
        ("blobferry why a", vec!["app:v1".into(), "app:v1.1".into()]),
        // What stands before the colon is typed already.
        ("blobferry why app:v", vec!["v1".into(), "v1.1".into()]),
        ("blobferry why app:v1.", vec!["v1.1".into()]),
        ("blobferry rollback production/app:v1.", vec!["v1.1".into()]),
        ("blobferry hold route:", vec!["app".into()]),
        (
            &format!("blobferry rollback {before}:"),
            vec![format!("{after}/app:v1"), format!("{after}/app:v1.1")],
        ),
        ("blobferry why --js", vec!["--json".into()]),
        ("blobferry rollb", vec!["rollback".into()]),
    ] {
        let mut found = offered(&stage.ferry, line).await;
        found.sort();
        assert_eq!(found, expected, "{line}");
    }
}

/// However the name of a config with a space in it is typed, that config is the one that is asked.
async fn assert_config_with_a_space_is_asked(ferry: &Ferry) {
    let config = ferry.path("blobferry.yaml");
    let copy = ferry.path("my config.yaml").display().to_string();
    std::fs::copy(&config, &copy).expect("there is a config");
    let escaped = copy.replace(' ', "\\ ");
    for typed in [format!("\"{copy}\""), format!("'{copy}'"), escaped] {
        let line = format!("blobferry -c {typed} sync a");
        assert_eq!(offered(ferry, &line).await, ["app"], "{line}");
    }
}

#[tokio::test]
async fn tab_offers_routes_and_tags_with_a_daemon_and_without() {
    let stage = Stage::with_route(Program::Distribution2, json!({})).await;
    for (number, tag) in [(1, "v1"), (2, "v1.1")] {
        let image = Image::oci(number, &[1000]);
        stage.push().push("app", tag, &image).await;
    }
    stage.ferry.sync(&[]).await.expect(0);
    assert_known_are_offered(&stage).await;
    assert_config_with_a_space_is_asked(&stage.ferry).await;
    let _daemon = stage.ferry.start_ready().await;
    assert_known_are_offered(&stage).await;
}

#[tokio::test]
async fn tab_is_silent_where_nothing_answers() {
    let ferry = Ferry::bare();
    std::fs::create_dir(ferry.path("state")).expect("a state folder");
    let silent = UnixListener::bind(ferry.path("state/control.sock")).expect("a socket");
    let told = ferry
        .run(&["completions", "--line", "blobferry why a"])
        .await;
    assert_eq!(told.expect(0).said(), "");
    drop(silent);
    std::fs::remove_file(ferry.path("blobferry.yaml")).expect("there is a config");
    let told = ferry
        .run(&["completions", "--line", "blobferry why a"])
        .await;
    assert_eq!(told.expect(0).said(), "");
}
