//! One large blob over several connections: engines between registries in memory under a clock that
//! leaps, and the program before a registry that does not send parts.

use std::time::Duration;

use blobferry::fault::Class;
use serde_json::json;
use tokio::time::Instant;

use crate::engine::{World, assert_failed, assert_promoted};
use crate::support::memory::{Operation, Settings};
use crate::support::scripted::{Answer, Asked};
use crate::support::{Config, Ferry, Image, Kind, Reply, Scripted};

const MIB: usize = 1024 * 1024;
/// Bytes that a connection of the source brings in a second.
const CONNECTION: u64 = 16 * MIB as u64;

fn world() -> World {
    let world = World::new();
    world
        .staging
        .set(|settings: &mut Settings| settings.read_rate = Some(CONNECTION));
    world
}

/// The time that one connection takes.
fn alone(size: usize) -> Duration {
    Duration::from_secs_f64(size as f64 / CONNECTION as f64)
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_is_read_over_several_connections() {
    let world = world();
    let size = 160 * MIB;
    let layer = world.layer("app", 1, size);
    let image = world.image("app", "v1", &[layer]);
    let began = Instant::now();
    assert_promoted(&world.promote("app", "v1").await);
    world.assert_arrived("app", "v1", &image);
    assert!(world.staging.count(Operation::ReadPart) > 8);
    assert!(began.elapsed() < alone(size) / 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_destination_is_read_for_over_one_connection() {
    let world = world();
    world
        .production
        .set(|settings: &mut Settings| settings.rate = Some(CONNECTION / 2));
    let layer = world.layer("app", 1, 80 * MIB);
    world.image("app", "v1", &[layer]);
    assert_promoted(&world.promote("app", "v1").await);
    assert_eq!(world.staging.count(Operation::ReadPart), 0);
}

/// The blob is read on over one connection, from where the part began.
#[tokio::test(start_paused = true)]
async fn a_part_that_is_refused_costs_no_byte_twice() {
    let world = world();
    let layer = world.layer("app", 1, 80 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    world.staging.pass_next(Operation::ReadPart);
    world
        .staging
        .fail_next(Operation::ReadPart, Class::Rejected);
    assert_promoted(&world.promote("app", "v1").await);
    world.assert_arrived("app", "v1", &image);
    let calls = world.staging.calls();
    let of_layer: Vec<_> = calls
        .iter()
        .filter(|call| call.about == layer.digest.to_string())
        .map(|call| (call.operation, call.offset > 0))
        .collect();
    let whole = (Operation::ReadBlob, false);
    assert_eq!(of_layer.first(), Some(&whole));
    assert!(!of_layer[1..].contains(&whole), "{of_layer:?}");
    assert_eq!(
        world.production.count(Operation::BeginUpload),
        2,
        "its own and the config's"
    );
}

#[tokio::test(start_paused = true)]
async fn corrupt_parts_are_never_named() {
    let world = world();
    let layer = world.layer("app", 1, 80 * MIB);
    world.staging.rot(&layer.digest);
    world.image("app", "v1", std::slice::from_ref(&layer));
    assert_failed(&world.promote("app", "v1").await, Class::Corrupt);
    assert!(world.staging.count(Operation::ReadPart) > 0);
    assert_eq!(world.production.tagged("app", "v1"), None);
    assert_eq!(world.production.open_sessions(), 0);
}

/// A part: a range that ends before the last byte.
fn is_part(asked: &Asked, size: usize) -> bool {
    let range = asked.headers.get("range");
    let range = range.and_then(|range| range.to_str().ok()?.split_once('-'));
    range.is_some_and(|(_, last)| last.parse::<usize>().is_ok_and(|last| last + 1 < size))
}

fn largest(image: &Image) -> String {
    let blobs = image.unique_blobs();
    let largest = blobs.iter().max_by_key(|blob| blob.bytes.len());
    largest.expect("it has blobs").digest.clone()
}

/// Promotes an image with a large layer that drips, while `parts` answers what asks for a part of it.
/// Returns how often the layer was asked for: in all, and for a part.
async fn promoted(parts: impl Fn(usize) -> Answer + Send + Sync + 'static) -> (usize, usize) {
    promoted_by(move |asked, _| parts(asked.nth)).await
}

async fn promoted_by(
    parts: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static,
) -> (usize, usize) {
    const SIZE: usize = 56 * MIB;
    let staging = Scripted::start();
    let production = Scripted::start();
    let image = Image::oci(1, &[SIZE]);
    staging.push("app", "v1", &image);
    let large = largest(&image);
    let asked_for = large.clone();
    staging.on(move |asked| match asked.kind {
        Kind::BlobGet if asked.reference() != asked_for => Answer::Pass,
        Kind::BlobGet if is_part(asked, SIZE) => parts(asked, SIZE),
        Kind::BlobGet => Answer::Drip(28 * MIB as u64),
        _ => Answer::Pass,
    });
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url())
        .route("app", json!({}));
    let ferry = Ferry::new(&config);
    let run = ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), 1);
    assert_eq!(
        production.tagged("app", "v1"),
        Some(image.digest().to_owned())
    );
    assert!(production.holds("app", &large));
    let reads = staging.of(Kind::BlobGet);
    let of_layer: Vec<_> = reads
        .iter()
        .filter(|record| record.path.ends_with(large.as_str()))
        .collect();
    let ranges = of_layer.iter().filter(|record| {
        let range = record.headers.get("range");
        range.is_some_and(|range| !range.to_str().unwrap().ends_with(&format!("-{}", SIZE - 1)))
    });
    (of_layer.len(), ranges.count())
}

#[tokio::test]
async fn the_program_reads_parts() {
    let (_, parts) = promoted(|_| Answer::Drip(28 * MIB as u64)).await;
    assert!(parts > 4, "{parts} parts");
}

/// Registries that ignore the end of a range, or the range, or that refuse it.
#[tokio::test]
async fn the_program_reads_on_over_one_connection_where_no_part_comes() {
    let refusals = [
        Reply::status(200).body("application/octet-stream", vec![1; 1000]),
        Reply::status(206)
            .header("content-range", "bytes 0-999/1000")
            .body("application/octet-stream", vec![1; 1000]),
        Reply::status(500),
        Reply::status(416),
        Reply::status(404),
    ];
    let runs = refusals.map(|refusal| async move {
        let text = format!("{refusal:?}");
        let (all, parts) = promoted(move |_| Answer::Reply(refusal.clone())).await;
        assert!((1..=8).contains(&parts), "{parts} parts: {text}");
        assert!((2..=5).contains(&(all - parts)), "{all}, {parts}: {text}");
    });
    futures::future::join_all(runs).await;
}

/// A part that breaks off in the middle is read on from there.
#[tokio::test]
async fn the_program_reads_on_where_a_part_breaks_off() {
    let (all, parts) = promoted(|_| Answer::CutBody(MIB as u64)).await;
    assert!(parts >= 1, "{parts}");
    assert!((2..=5).contains(&(all - parts)), "{all}, {parts}");
}

/// The whole is right, its parts are not.
#[tokio::test]
async fn the_program_reads_the_whole_where_parts_bring_other_bytes() {
    let wrong = Reply::status(206).body("application/octet-stream", vec![7; 4 * MIB]);
    let (all, parts) = promoted_by(move |asked, size| {
        let range = asked.headers["range"].to_str().unwrap();
        let range = range.trim_start_matches("bytes=");
        let answer = wrong.clone();
        Answer::Reply(answer.header("content-range", &format!("bytes {range}/{size}")))
    })
    .await;
    assert!(parts >= 1);
    assert!(all > parts + 1, "{all}, {parts}");
}
