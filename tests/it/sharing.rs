//! One read for all destinations that need a blob now, over registries in memory and a clock that
//! stands still: which bytes are read how often, and which of them wait.

use std::time::Duration;

use blobferry::endpoint::{Abilities, Mount, Source as _};
use blobferry::job::TagId;
use blobferry::oci::Digest;
use blobferry::transfer::Completion;
use blobferry::transfer::limits::Settings as LaneSettings;
use serde_json::json;
use tokio::time::Instant;

use crate::engine::{World, assert_promoted};
use crate::support::image::Corpus;
use crate::support::memory::{Operation, Registry};
use crate::support::{self, Act, Config, Ferry, Gate, Kind, Proxy, THREADS};

const MIB: usize = 1024 * 1024;

/// Three repositories on one base, and a production that does not mount.
fn on_one_base(mount: Mount, size: usize) -> (World, Digest) {
    let world = World::new();
    world.production.set(|settings| {
        settings.abilities = Abilities {
            mount,
            mount_asks: false,
            ..settings.abilities
        };
        settings.rate = Some(10 * MIB as u64);
    });
    let mut base = None;
    for (number, app) in APPS.iter().enumerate() {
        let layers = [
            world.layer(app, 1, size),
            world.layer(app, 10 + number as u64, MIB),
        ];
        world.image(app, "v1", &layers);
        base = Some(layers[0].digest);
    }
    (world, base.expect("there is an app"))
}

const APPS: [&str; 3] = ["app-a", "app-b", "app-c"];

fn reads(world: &World, digest: &Digest) -> usize {
    let is_read = |call: &&crate::support::memory::Call| {
        call.operation == Operation::ReadBlob && call.about == digest.to_string()
    };
    world.staging.calls().iter().filter(is_read).count()
}

async fn promote_all(world: &World) -> Duration {
    let start = Instant::now();
    for completion in futures::future::join_all(APPS.map(|app| world.promote(app, "v1"))).await {
        assert_promoted(&completion);
    }
    for app in APPS {
        assert_eq!(
            world.production.tagged(app, "v1"),
            world.staging.tagged(app, "v1")
        );
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn where_mounts_are_off_one_read_feeds_all_repositories() {
    for mount in [Mount::Off, Mount::Committed] {
        let (world, base) = on_one_base(mount, 20 * MIB);
        // Three blobs each: all begin before the first is read.
        let mut begun: Vec<_> = (0..9)
            .map(|_| world.production.hold_next(Operation::BeginUpload))
            .collect();
        let all_begin = async {
            for hold in &mut begun {
                hold.reached().await;
            }
            drop(begun);
        };
        tokio::join!(promote_all(&world), all_begin);
        assert_eq!(reads(&world, &base), 1, "{mount:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_stands_in_line_to_send_is_not_waited_for() {
    let (world, base) = on_one_base(Mount::Off, 20 * MIB);
    let origin = world.production.repository("app").origin().clone();
    world.engine.limits.set(
        &origin,
        LaneSettings {
            concurrency: Some(1),
            ..LaneSettings::default()
        },
    );
    let took = promote_all(&world).await;
    assert!(reads(&world, &base) <= 3);
    assert!(
        took < Duration::from_secs(7),
        "63 MiB at 10 MiB a second, one at a time, took {took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn one_that_lacks_the_blob_in_staging_does_not_fail_the_others() {
    let (world, base) = on_one_base(Mount::Off, 20 * MIB);
    world.staging.remove("app-a", &base);
    let [lacking, other, third] =
        futures::future::join_all(APPS.map(|app| world.promote(app, "v1")))
            .await
            .try_into()
            .unwrap();
    assert!(lacking.fault.is_some());
    assert_promoted(&other);
    assert_promoted(&third);
}

/// Brings app:v1 to `to`.
async fn bring(world: &World, to: &Registry) -> Completion {
    let destination = to.repository("app");
    let mut job = world.job("app", "v1");
    job.key.destination = TagId {
        origin: destination.origin().clone(),
        ..job.key.destination
    };
    let source = world.staging.repository("app");
    world
        .engine
        .run(&job, &source, &destination, &world.progress, &world.stop)
        .await
}

fn at(name: &str, rate: usize) -> Registry {
    let registry = Registry::new(name);
    registry.set(|settings| settings.rate = Some(rate as u64));
    registry
}

/// An image of 40 MiB in a few layers: 40 s at the healthy one's rate, in virtual time.
fn image_of_40_mib() -> World {
    let world = World::new();
    let layers: Vec<_> = (0..4)
        .map(|number| world.layer("app", number, 10 * MIB))
        .collect();
    world.image("app", "v1", &layers);
    world
}

#[tokio::test(start_paused = true)]
async fn beside_a_slow_and_a_dead_destination_the_healthy_one_takes_at_most_a_tenth_longer() {
    const RATE: usize = MIB / 4;
    let world = image_of_40_mib();
    let start = Instant::now();
    assert_promoted(&bring(&world, &at("healthy", RATE)).await);
    let alone = start.elapsed();
    assert!(
        alone >= Duration::from_secs(39),
        "the layers move side by side at the rate of each: {alone:?}"
    );

    let world = image_of_40_mib();
    let [healthy, slow, dead] = [at("healthy", RATE), at("slow", RATE / 10), at("dead", 1)];
    let others = [&slow, &dead].map(|to| {
        let (world, to) = (world.clone(), to.clone());
        tokio::spawn(async move { bring(&world, &to).await })
    });
    let start = Instant::now();
    assert_promoted(&bring(&world, &healthy).await);
    let beside = start.elapsed();
    assert!(
        beside <= alone.mul_f64(1.1),
        "{beside:?} beside the others, {alone:?} alone"
    );
    assert_eq!(
        (slow.tagged("app", "v1"), dead.tagged("app", "v1")),
        (None, None),
        "nobody else is done yet"
    );
    others.into_iter().for_each(|other| other.abort());
}

#[tokio::test]
async fn a_registry_that_does_not_mount_costs_staging_one_read_of_the_base() {
    for threads in THREADS {
        reads_the_base_once(threads).await;
    }
}

async fn reads_the_base_once(threads: usize) {
    let (staging, production) = (
        support::Registry::distribution3(),
        support::Registry::distribution3(),
    );
    let (source, target) = (
        Proxy::before(&staging.url()).await,
        Proxy::before(&production.url()).await,
    );
    let corpus = Corpus::shared_base(1, 3, 1, &[7 * MIB, 300_000], 5000);
    for app in &corpus.apps {
        for (tag, image) in &app.versions {
            staging.client().push(&app.name, tag, image).await;
        }
    }
    let config = Config::new()
        .threads(threads)
        .registry("staging", &source.url());
    let config = config.registry_with("production", &target.url(), json!({"kind": "gar"}));
    let route = json!({"name": "apps", "from": "staging/app-*", "to": "production/app-{1}", "tags": {"include": ["v*"]}});
    let ferry = Ferry::new(&config.raw_route(route));
    // Four blobs each: all have begun before the first is read.
    let gate = Gate::closed();
    source.always(Kind::BlobGet, Act::Hold(gate.clone()));
    let all_begun = async {
        target.seen(Kind::UploadPost, 12).await;
        gate.open();
    };
    let (run, ()) = tokio::join!(ferry.sync(&[]), all_begun);
    assert_eq!(run.expect(0).total("promoted"), 3);
    for app in &corpus.apps {
        for (tag, image) in &app.versions {
            production
                .client()
                .assert_holds(&app.name, tag, image)
                .await;
        }
    }
    let unique: u64 = corpus
        .unique_blobs()
        .iter()
        .map(|blob| blob.bytes.len() as u64)
        .sum();
    let read = source.bytes(&[Kind::BlobGet]).1;
    assert!(
        read < unique + 2 * MIB as u64,
        "{read} bytes were read for {unique}"
    );
}
