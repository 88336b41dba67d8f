//! Ctrl-C on a terminal: no bar is left half drawn, and what is said of the transfer is true.

use crate::support::terminal::Terminal;
use crate::support::*;

const MIB: usize = 1 << 20;
const BAR: [char; 3] = ['━', '╸', '─'];

/// `sync` on a screen, once `gate` holds it up and its bars are drawn.
async fn held_up(stage: &Stage, gate: &Gate) -> Terminal {
    let terminal = Terminal::start(&stage.ferry, "sync");
    gate.arrived(1).await;
    eventually("the bars are on the screen", async || {
        let text = terminal.text();
        (text.contains(BAR) && text.contains("0 of 1 job")).then_some(())
    })
    .await;
    terminal
}

fn assert_no_bar(screen: &str) {
    for left in ["0 of 1 job", "looking", " MB of "] {
        assert!(!screen.contains(left), "{left:?} is left:\n{screen}");
    }
    assert!(!screen.contains(BAR), "a bar is left:\n{screen}");
}

#[tokio::test]
async fn ctrl_c_leaves_no_bar_and_promises_no_more_than_the_registry_keeps() {
    let stage = Stage::new(Program::Distribution2).await;
    let image = Image::oci(1, &[9 * MIB]);
    stage.push().push("app", "v1", &image).await;
    // docker-registry 2.8 keeps nothing of a request that is cut.
    let never = Gate::closed();
    stage.source.rule(
        Rule::on(&[Kind::BlobGet])
            .path(&image.blobs[1].digest)
            .times(1)
            .act(Act::HoldAnswer(5 * MIB as u64, never.clone())),
    );
    let mut terminal = held_up(&stage, &never).await;
    terminal.interrupt().await;
    let (code, screen) = terminal.ended().await;
    assert_eq!(code, 130, "{screen}");
    assert_no_bar(&screen);
    for said in [
        "stopping: running transfers end where they can be resumed, if the registry can",
        "interrupted",
        "stopped; the next pass goes on with what the registry has kept of it",
        "1 interrupted",
    ] {
        assert!(screen.contains(said), "{said:?} is missing:\n{screen}");
    }
    // The next pass sends all of it, and says so.
    stage
        .there()
        .assert_lacks("app", "v1", &[&image.blobs[1].digest])
        .await;
    let job = stage.sync().await.expect(0).job("v1");
    assert_eq!(job["blobs"]["resumed"], 0, "{job:#}");
    assert!(
        job["bytes_sent"].as_u64() >= Some(9 * MIB as u64),
        "{job:#}"
    );
}

#[tokio::test]
async fn a_second_ctrl_c_ends_at_once_and_leaves_no_bar_either() {
    let stage = Stage::new(Program::Distribution2).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    // Only the manifest is left: the first Ctrl-C waits for it.
    let never = Gate::closed();
    stage
        .target
        .once(Kind::ManifestPut, Act::HoldRequest(0, never.clone()));
    let mut terminal = held_up(&stage, &never).await;
    terminal.interrupt().await;
    eventually("the first one is taken", async || {
        terminal.text().contains("stopping").then_some(())
    })
    .await;
    terminal.interrupt().await;
    let (code, screen) = terminal.ended().await;
    assert_eq!(code, 130, "{screen}");
    assert_no_bar(&screen);
    let said = "aborted; the next pass goes on with what the registries have kept of it";
    assert!(screen.contains(said), "{screen}");
}
