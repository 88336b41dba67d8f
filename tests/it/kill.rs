//! Killed at any point, the program goes on where it was: no tag is early, nothing is corrupt, and
//! what is sent or read again stays within what the registry's kind allows.
//!
//! The points are chosen by a fixed seed and found by the bytes that pass the proxy. What the
//! process had written into its sockets still arrives after its death, as it does over a real
//! network.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::*;

const MIB: u64 = 1024 * 1024;
/// What a kill may cost in bytes sent or read again, where the registry keeps what it received.
const BOUND: u64 = 32 * MIB;

const KINDS: [(Program, &str); 2] = [
    (Program::Distribution3, "distribution3"),
    (Program::Distribution2, "distribution2"),
];

/// Numbers that look random and are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A stage whose production is known to be of this kind.
async fn stage(program: Program, kind: &str, threads: usize) -> Stage {
    let stage = Stage::new(program).await;
    move_bytes_on(&stage, kind, threads);
    stage
}

/// The next start has so many threads for the bytes.
fn move_bytes_on(stage: &Stage, kind: &str, threads: usize) {
    let config = stage.config(|config| {
        config.registry_with("production", &stage.target.url(), json!({"kind": kind}))
    });
    let config = config.threads(threads).daemon("grace", json!("10s"));
    stage.ferry.write_config(&config.route("app", json!({})));
}

/// Starts the daemon, lets it come to the gate, kills it, and lets what it had sent arrive.
pub async fn killed_at(ferry: &Ferry, gate: &Gate) {
    let mut daemon = ferry.start().await;
    gate.arrived(1).await;
    daemon.signal("KILL").await;
    daemon.ended().await;
    gate.open();
}

/// Bytes that half-sent uploads of the repository hold on the registry's disk, once that stands
/// still.
pub async fn kept(registry: &Registry, repository: &str) -> u64 {
    let uploads = registry
        .data()
        .join("docker/registry/v2/repositories")
        .join(repository)
        .join("_uploads");
    let mut last = None;
    eventually("the uploads stand still", async || {
        let now: u64 = files(&uploads)
            .iter()
            .filter(|path| path.ends_with("data"))
            .filter_map(|path| path.metadata().ok())
            .map(|file| file.len())
            .sum();
        (last.replace(now) == Some(now)).then_some(now)
    })
    .await
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            if entry.path().is_dir() {
                files(&entry.path())
            } else {
                vec![entry.path()]
            }
        })
        .collect()
}

fn sent(stage: &Stage) -> u64 {
    stage.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0
}

fn read(stage: &Stage) -> u64 {
    stage.source.bytes(&[Kind::BlobGet]).1
}

async fn finishes(stage: &Stage, image: &Image) {
    stage.reset();
    let daemon = stage.ferry.start_ready().await;
    eventually("the tag is in production", async || {
        stage.there().digest("app", "v1").await
    })
    .await;
    stage.there().assert_holds("app", "v1", image).await;
    drop(daemon);
}

#[tokio::test]
async fn twenty_kills_cost_at_most_what_was_under_way_on_distribution_3() {
    let stage = stage(Program::Distribution3, "distribution3", 1).await;
    let image = Image::oci(1, &[160 * MIB as usize]);
    let layer = image.blobs[1].clone();
    stage.push().push("app", "v1", &image).await;
    let mut dice = Dice(0x5eed);
    let mut before = 0;
    for (kill, threads) in (0..20).zip(THREADS.into_iter().cycle()) {
        stage.reset();
        move_bytes_on(&stage, "distribution3", threads);
        let (gate, after) = (Gate::closed(), 1 + dice.below(4 * MIB));
        stage.target.rule(
            Rule::on(&[Kind::UploadPut])
                .path(&layer.digest)
                .act(Act::HoldRequest(after, gate.clone())),
        );
        killed_at(&stage.ferry, &gate).await;
        let now = kept(&stage.production, "app").await;
        let progress = now.saturating_sub(before);
        let (sent, read) = (sent(&stage), read(&stage));
        assert!(
            now >= before,
            "kill {kill}: {before} bytes were kept, now {now}"
        );
        assert!(
            sent <= progress + BOUND,
            "kill {kill} at {after}: {sent} bytes sent for {progress}"
        );
        assert!(
            read <= progress + BOUND,
            "kill {kill} at {after}: {read} bytes read for {progress}"
        );
        stage
            .there()
            .assert_lacks("app", "v1", &[&layer.digest])
            .await;
        before = now;
    }
    assert!(before > 32 * MIB, "twenty runs got only to {before}");
    finishes(&stage, &image).await;
    assert!(sent(&stage) <= 160 * MIB - before + BOUND);
}

#[tokio::test]
async fn twenty_kills_end_in_a_new_session_and_never_in_corruption_on_distribution_2() {
    let stage = stage(Program::Distribution2, "distribution2", 1).await;
    let size = 24 * MIB;
    let image = Image::oci(1, &[size as usize]);
    let layer = image.blobs[1].clone();
    stage.push().push("app", "v1", &image).await;
    let mut dice = Dice(0xd1ce);
    for (kill, threads) in (0..20).zip(THREADS.into_iter().cycle()) {
        stage.reset();
        move_bytes_on(&stage, "distribution2", threads);
        let (gate, after) = (Gate::closed(), 1 + dice.below(size / 2));
        stage.target.rule(
            Rule::on(&[Kind::UploadPut])
                .path(&layer.digest)
                .act(Act::HoldRequest(after, gate.clone())),
        );
        killed_at(&stage.ferry, &gate).await;
        assert!(
            sent(&stage) <= size + 1000,
            "kill {kill}: one run sends the layer at most once"
        );
        stage
            .there()
            .assert_lacks("app", "v1", &[&layer.digest])
            .await;
    }
    finishes(&stage, &image).await;
    assert!(sent(&stage) <= size + 1000);
}

#[tokio::test]
async fn a_kill_between_two_requests_costs_no_byte_that_had_arrived() {
    for ((program, kind), threads) in KINDS.into_iter().zip([8, 2]) {
        let stage = stage(program, kind, threads).await;
        let image = Image::index(&[Image::oci(1, &[12 * MIB as usize])]);
        let layer = image.blobs[1].clone();
        stage.push().push("app", "v1", &image).await;
        for phase in [Kind::UploadPost, Kind::ManifestPut] {
            stage.reset();
            let gate = Gate::closed();
            stage
                .target
                .rule(Rule::on(&[phase]).act(Act::Hold(gate.clone())));
            killed_at(&stage.ferry, &gate).await;
        }
        assert!(
            stage.there().has_blob("app", &layer.digest).await,
            "the layer had arrived"
        );
        finishes(&stage, &image).await;
        assert_eq!(sent(&stage), 0, "{kind}: nothing is sent again");
        assert_eq!(read(&stage), 0, "{kind}: nothing is read again");
    }
}

#[tokio::test]
async fn a_kill_before_the_answer_to_the_closing_request_costs_no_byte() {
    for ((program, kind), threads) in KINDS.into_iter().zip([2, 8]) {
        let stage = stage(program, kind, threads).await;
        let size = 12 * MIB;
        let image = Image::oci(1, &[size as usize]);
        let layer = image.blobs[1].clone();
        stage.push().push("app", "v1", &image).await;
        let gate = Gate::closed();
        stage
            .target
            .rule(Rule::on(&[Kind::ManifestPut]).act(Act::Hold(gate.clone())));
        stage.target.rule(
            Rule::on(&[Kind::UploadPut])
                .path(&layer.digest)
                .act(Act::HoldAnswer(0, gate.clone())),
        );
        killed_at(&stage.ferry, &gate).await;
        eventually("the registry has the layer", async || {
            stage
                .there()
                .has_blob("app", &layer.digest)
                .await
                .then_some(())
        })
        .await;
        finishes(&stage, &image).await;
        assert!(
            sent(&stage) < MIB,
            "{kind}: {} bytes were sent again",
            sent(&stage)
        );
    }
}

#[tokio::test]
async fn a_drain_in_mid_layer_goes_on_where_it_was() {
    for threads in THREADS {
        let stage = stage(Program::Distribution3, "distribution3", threads).await;
        drains_in_mid_layer(&stage).await;
    }
}

async fn drains_in_mid_layer(stage: &Stage) {
    let size = 48 * MIB;
    let image = Image::oci(1, &[size as usize]);
    let layer = image.blobs[1].clone();
    stage.push().push("app", "v1", &image).await;
    let gate = Gate::closed();
    stage.target.rule(
        Rule::on(&[Kind::UploadPut])
            .path(&layer.digest)
            .act(Act::HoldRequest(30 * MIB, gate.clone())),
    );
    let mut daemon = stage.ferry.start().await;
    gate.arrived(1).await;
    daemon.signal("TERM").await;
    assert_eq!(
        daemon.ended().await,
        0,
        "a drain is a good end:\n{}",
        daemon.log()
    );
    gate.open();
    let before = kept(&stage.production, "app").await;
    assert!(before >= 29 * MIB, "{before} bytes were kept");
    stage
        .there()
        .assert_lacks("app", "v1", &[&layer.digest])
        .await;
    finishes(stage, &image).await;
    assert!(
        sent(stage) <= size - before + MIB,
        "{} bytes were sent for {}",
        sent(stage),
        size - before
    );
    assert!(
        read(stage) <= size - before + 9 * MIB,
        "{} bytes were read for {}",
        read(stage),
        size - before
    );
}
