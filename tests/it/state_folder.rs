//! The state folder vanishes under a running daemon, or its disk is full.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::json;

use crate::support::*;

/// The whole config of the stage's daemon, for a second daemon on a port of its own.
fn second_daemon(stage: &Stage) -> Ferry {
    let state = stage.ferry.path("state").display().to_string();
    Ferry::new(&stage.config(|config| config.route("app", json!({})).daemon("state", json!(state))))
}

#[tokio::test]
async fn without_its_state_folder_the_daemon_names_nothing_and_says_so() {
    let stage = Stage::new(Program::Distribution3).await;
    let first = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &first).await;
    let mut daemon = stage.ferry.start_ready().await;
    stage.there().assert_holds("app", "v1", &first).await;

    std::fs::remove_dir_all(stage.ferry.path("state")).expect("the folder is there");
    let second = Image::oci(2, &[1000]);
    stage.push().push("app", "v2", &second).await;
    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(
        (status, &report["exit_code"]),
        (502, &json!(1)),
        "{report:#}"
    );
    let text = report["jobs"][0]["error"]["text"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        text.contains("was removed or replaced") && text.contains("restart"),
        "{report:#}"
    );
    assert_eq!(stage.there().digest("app", "v2").await, None);

    eventually("readiness and the metric say so", async || {
        let unready = daemon.get("/readyz").await;
        let is_503 = unready.status() == 503;
        let told = unready
            .text()
            .await
            .unwrap_or_default()
            .contains("was removed or replaced");
        (is_503 && told && daemon.metric("blobferry_state_folder_held", &[]).await == Some(0.0))
            .then_some(())
    })
    .await;
    let up = [("route", "app"), ("destination", "production")];
    assert_eq!(daemon.metric("blobferry_route_up", &up).await, Some(0.0));
    assert_eq!(
        daemon.get("/healthz").await.status(),
        200,
        "it gives the folder some time to come back"
    );
    daemon
        .says("ERROR the state folder is not ours any more")
        .await;

    assert_eq!(daemon.ended().await, 1, "systemd starts it again");
    daemon.says("was removed or replaced").await;
    assert_eq!(stage.there().digest("app", "v2").await, None);
    assert!(
        !stage.ferry.path("state").exists(),
        "nothing was made in its place"
    );
    let mut daemon = stage.ferry.start_ready().await;
    stage.there().assert_holds("app", "v2", &second).await;
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
}

/// Another daemon takes the folder's place: the socket in it is its own, and the first daemon names
/// nothing and ends.
#[tokio::test]
async fn a_daemon_whose_folder_is_anothers_leaves_the_folder_alone() {
    let stage = Stage::new(Program::Distribution3).await;
    stage
        .push()
        .push("app", "v0", &Image::oci(0, &[1000]))
        .await;
    let mut first = stage.ferry.start_ready().await;
    std::fs::remove_dir_all(stage.ferry.path("state")).expect("the folder is there");
    let other = second_daemon(&stage);
    let mut second = other.start_ready().await;
    let socket = stage.ferry.path("state").join("control.sock");
    std::fs::remove_file(&socket).expect("it can be deleted");
    let remade = eventually("the second daemon makes its socket again", async || {
        std::fs::metadata(&socket).ok()
    })
    .await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    assert_eq!(first.ended().await, 1);
    assert_eq!(stage.there().digest("app", "v1").await, None);
    assert_eq!(
        std::fs::metadata(&socket)
            .expect("the socket is there")
            .ino(),
        remade.ino()
    );

    let run = other.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), 1, "the second daemon answers");
    second.signal("TERM").await;
    assert_eq!(second.ended().await, 0);
}

#[tokio::test]
async fn a_state_folder_that_comes_back_is_used_again() {
    let stage = Stage::new(Program::Distribution2).await;
    let daemon = stage.ferry.start_ready().await;
    let (folder, aside) = (stage.ferry.path("state"), stage.ferry.path("aside"));
    std::fs::rename(&folder, &aside).expect("the folder is there");
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 502);
    assert_eq!(stage.there().digest("app", "v1").await, None);
    std::fs::rename(&aside, &folder).expect("the folder is aside");
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 200);
    stage.there().assert_holds("app", "v1", &image).await;
    daemon.ready().await;
}

/// A mount that the kernel makes for one process, and that is gone with it: a disk of a megabyte as
/// the state folder.
const SMALL_DISK: &str = "mount -t tmpfs -o size=1m,mode=0700 tmpfs \"$1\"; shift; exec \"$@\"";

/// The words before a command that give it a small disk at `state`.
fn on_a_small_disk(state: &Path) -> Vec<String> {
    let state = state.display().to_string();
    let is_root = rustix::process::geteuid().is_root();
    let user: &[&str] = if is_root {
        &[]
    } else {
        &["--user", "--map-root-user"]
    };
    let mut words = vec!["unshare", "--mount"];
    words.extend(user);
    words.extend(["sh", "-ec", SMALL_DISK, "sh", &state]);
    words.into_iter().map(str::to_owned).collect()
}

/// A file that takes all that is left of its disk.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("the disk has room");
    while file.write_all(&[0; 4096]).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
}

/// Readiness was 200 while every promotion failed.
#[tokio::test]
async fn on_a_full_disk_the_daemon_is_not_ready_until_there_is_room() {
    let stage = Stage::new(Program::Distribution2).await;
    let state = stage.ferry.path("state");
    std::fs::create_dir(&state).expect("it is not there yet");
    let second = second_daemon(&stage).within(on_a_small_disk(&state));
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let mut daemon = second.start_ready().await;
    let disk = format!("/proc/{}/root{}", daemon.pid, state.display());
    let filler = Path::new(&disk).join("filler");
    fill(&filler);

    let image = Image::oci(2, &[1000]);
    stage.push().push("app", "v2", &image).await;
    let (status, report) = daemon.ping(json!({"wait": true, "tag": "v2"})).await;
    assert_eq!((status, &report["totals"]["failed"]), (502, &json!(1)));
    let text = report["jobs"][0]["error"]["text"].to_string();
    assert!(text.contains("the disk is full"), "{report:#}");
    eventually("readiness and the metric say so", async || {
        let unready = daemon.get("/readyz").await;
        let is_503 = unready.status() == 503;
        let text = unready.text().await.unwrap_or_default();
        let writable = daemon.metric("blobferry_ledger_writable", &[]).await;
        (is_503 && text.contains("the disk is full") && writable == Some(0.0)).then_some(())
    })
    .await;
    daemon.says("ERROR the ledger cannot be written").await;
    assert_eq!(stage.there().digest("app", "v2").await, None);

    std::fs::remove_file(&filler).expect("it is there");
    daemon.ready().await;
    let writable = daemon.metric("blobferry_ledger_writable", &[]).await;
    assert_eq!(writable, Some(1.0));
    let (status, report) = daemon.ping(json!({"wait": true, "tag": "v2"})).await;
    assert_eq!(status, 200, "{report:#}");
    stage.there().assert_holds("app", "v2", &image).await;
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
}
