//! A side that moves less than the floor is cut and tried again, and it is that side which is named
//! and counted: engines between registries in memory, under a clock that stands still.

use std::sync::Arc;
use std::time::Duration;

use blobferry::fault::Class;
use blobferry::index::Index;
use blobferry::ledger::Ledger;
use blobferry::oci::Descriptor;
use blobferry::transfer::{Engine, Limits, Metrics, Settings, Stop};
use tokio::time::Instant;

use crate::engine::{World, assert_failed, assert_promoted};
use crate::support::memory::{Operation, Registry};

const MIB: usize = 1024 * 1024;
/// A rate below the floor of 10 KiB/s.
const TRICKLE: u64 = 2 * 1024;

fn world() -> (World, prometheus::Registry) {
    let counted = prometheus::Registry::new();
    let metrics = Metrics::new(&counted).unwrap();
    let engine = Engine::new(
        Settings::default(),
        Index::in_memory(),
        Ledger::in_memory(),
        Limits::default(),
        metrics,
    );
    let (staging, production) = (Registry::new("staging"), Registry::new("production"));
    (
        World {
            engine,
            staging,
            production,
            progress: Arc::default(),
            stop: Stop::default(),
        },
        counted,
    )
}

/// `stalls_total` of staging's reads and of production's uploads.
fn stalls(counted: &prometheus::Registry) -> (u64, u64) {
    let families = counted.gather();
    let stalls = families
        .iter()
        .find(|family| family.name().ends_with("stalls_total"))
        .expect("stalls are counted");
    let of = |registry: &str, direction: &str| {
        let fits = |metric: &&prometheus::proto::Metric| {
            let has = |value: &str| {
                metric
                    .get_label()
                    .iter()
                    .any(|label| label.value() == value)
            };
            has(registry) && has(direction)
        };
        stalls
            .get_metric()
            .iter()
            .find(fits)
            .map_or(0, |metric| metric.get_counter().get_value() as u64)
    };
    assert_eq!(
        (of("staging", "sent"), of("production", "read")),
        (0, 0),
        "no side is blamed for what the other does"
    );
    (of("staging", "read"), of("production", "sent"))
}

#[tokio::test(start_paused = true)]
async fn a_source_that_trickles_is_cut_and_read_on_from_where_it_was() {
    let (world, counted) = world();
    let layer = world.layer("app", 1, 4 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    world
        .staging
        .slow_next_read(&layer.digest, MIB as u64, TRICKLE);
    let began = Instant::now();
    let ending = world.promote("app", "v1").await;
    assert_promoted(&ending);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(stalls(&counted), (1, 0));
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "one window and a moment, not {:?}",
        began.elapsed()
    );
    assert!(
        ending.cost.bytes_sent < 4 * MIB as u64 + 100_000,
        "{} bytes were sent",
        ending.cost.bytes_sent
    );
    assert_eq!(
        world.production.count(Operation::FinishUpload),
        3,
        "the config, and the layer in two requests"
    );
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_trickles_is_cut_and_sent_on_from_where_it_stands() {
    let (world, counted) = world();
    let layer = world.layer("app", 1, 4 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    // The config is the first to be sent, and too small to be slow.
    world.production.slow_next_upload(MIB as u64, TRICKLE);
    world.production.slow_next_upload(MIB as u64, TRICKLE);
    assert_promoted(&world.promote("app", "v1").await);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(stalls(&counted), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_side_that_stands_still_for_good_fails_the_job_by_its_name() {
    for slow in ["staging", "production"] {
        let (world, counted) = world();
        let layer: Descriptor = world.layer("app", 1, 4 * MIB);
        world.image("app", "v1", std::slice::from_ref(&layer));
        for _ in 0..100 {
            match slow {
                "staging" => world.staging.slow_next_read(&layer.digest, 0, 0),
                _ => world.production.slow_next_upload(0, 0),
            }
        }
        let ending = world.promote("app", "v1").await;
        assert_failed(&ending, Class::RETRYABLE);
        let text = ending.fault.as_ref().unwrap().chain();
        let says = if slow == "staging" {
            "staging/app sends less than 10 KiB/s over 30 s"
        } else {
            "production/app takes less than 10 KiB/s over 30 s"
        };
        assert!(text.contains(says), "{text}");
        let (read, sent) = stalls(&counted);
        assert!(
            if slow == "staging" {
                read > 1 && sent == 0
            } else {
                sent > 1 && read == 0
            },
            "{slow}: {read} and {sent}"
        );
        assert_eq!(world.production.tagged("app", "v1"), None);
    }
}
