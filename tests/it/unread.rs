//! A stderr or stdout that is not read: its pipe is full before the program writes its first line.

use std::io::{PipeReader, Read as _, Write as _};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::support::daemon::{end_of, send_signal};
use crate::support::*;

/// What a pipe holds on Linux.
const PIPE: usize = 64 * 1024;

/// A pipe without room, and its end that is not read.
fn full_pipe() -> (Stdio, PipeReader) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer
        .write_all(&[b'\n'; PIPE])
        .expect("a pipe has room for this");
    (Stdio::from(writer), reader)
}

/// The daemon, and the end of its stderr that is not read.
async fn start_unread(stage: &Stage) -> (Daemon, PipeReader) {
    let (stderr, reader) = full_pipe();
    (stage.ferry.start_saying_to(stderr).await, reader)
}

/// Reads on until the end.
fn read_on(mut reader: PipeReader) -> (Arc<Mutex<String>>, std::thread::JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let into = text.clone();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; PIPE];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            into.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
    (text, thread)
}

#[tokio::test]
async fn a_stderr_that_is_not_read_stops_nothing() {
    let stage = Stage::new(Program::Distribution3).await;
    let (mut daemon, reader) = start_unread(&stage).await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(
        (status, &report["totals"]["promoted"]),
        (200, &json!(1)),
        "{report:#}"
    );
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
    drop(reader);
}

/// Makes the daemon log a line of 2,000 characters: a config with many mistakes is refused.
async fn refuse_a_config(daemon: &Daemon) {
    daemon.signal("HUP").await;
    assert_eq!(daemon.get("/healthz").await.status(), 200);
}

#[tokio::test]
async fn lines_that_found_no_room_are_counted_and_the_rest_is_flushed() {
    let stage = Stage::new(Program::Distribution3).await;
    let (mut daemon, reader) = start_unread(&stage).await;
    let mistakes: String = (0..100)
        .map(|number| format!("mistake_{number}: {{is: no key of a config}}\n"))
        .collect();
    stage.ferry.write_config(&Config::text(&mistakes));
    let mut dropped = 0.0;
    for _ in 0..20 {
        for _ in 0..100 {
            refuse_a_config(&daemon).await;
        }
        dropped = daemon
            .metric("blobferry_log_lines_dropped_total", &[])
            .await
            .unwrap();
        if dropped > 0.0 {
            break;
        }
    }
    assert!(dropped > 0.0, "more was logged than the queue holds");

    let (text, reading) = read_on(reader);
    eventually("the log says how many are missing", async || {
        refuse_a_config(&daemon).await;
        text.lock()
            .unwrap()
            .contains(" log lines were dropped: stderr was not read")
            .then_some(())
    })
    .await;
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
    reading.join().unwrap();
    let text = text.lock().unwrap();
    assert!(text.contains(" started "), "the first lines are there");
    assert!(
        text.trim_end().ends_with("stopped"),
        "and the last: {}",
        text.lines().last().unwrap_or_default()
    );
}

/// The work is done and the state is free while the results wait to be read; a signal ends the
/// waiting.
#[tokio::test]
async fn a_stdout_that_is_not_read_holds_no_lock_and_no_signal() {
    for command in ["sync", "copy", "promote"] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        staging.push("app", "v1", &Image::oci(1, &[1000]));
        let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
        let source = format!("http://{}/app:v1", staging.host());
        let target = format!("http://{}/app:v1", production.host());
        let arguments: &[&str] = match command {
            "sync" => &["sync"],
            command => &[command, &source, &target],
        };
        let (stdout, reader) = full_pipe();
        let mut child = ferry.spawn_printing_to(arguments, stdout);
        eventually("the tag is in production", async || {
            production.tagged("app", "v1")
        })
        .await;
        eventually("another command gets the state", async || {
            (ferry.sync(&[]).await.code == 0).then_some(())
        })
        .await;
        let pid = child.id().expect("it waits for its reader");
        send_signal(pid, "TERM").await;
        assert_eq!(end_of(&mut child).await, 130, "{command}");
        drop(reader);
    }
}

#[tokio::test]
async fn a_stdout_that_is_read_late_gets_all_of_it() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    for number in 0..100 {
        staging.push("app", &format!("v{number}"), &Image::oci(number, &[100]));
    }
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let (stdout, reader) = full_pipe();
    let mut child = ferry.spawn_printing_to(&["sync"], stdout);
    eventually("another command gets the state", async || {
        let is_done = production.tags("app").len() == 100;
        (is_done && ferry.sync(&[]).await.code == 0).then_some(())
    })
    .await;
    let (text, reading) = read_on(reader);
    assert_eq!(end_of(&mut child).await, 0);
    reading.join().unwrap();
    let text = text.lock().unwrap();
    assert_eq!(text.matches("promoted   ").count(), 100, "{text}");
    assert!(text.contains("100 promoted"), "{text}");
}
