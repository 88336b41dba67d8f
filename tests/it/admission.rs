//! No source, destination or backfill holds up another: permits over registries in memory and a
//! clock that stands still.

use std::time::Duration;

use blobferry::endpoint::{Mount, Source as _};
use blobferry::fault::Class;
use blobferry::job::{self, Job, Outcome, Rank, TagId};
use blobferry::oci::Descriptor;
use blobferry::transfer::Completion;
use blobferry::transfer::limits::Settings as LaneSettings;
use tokio::time::{Instant, sleep, timeout};

use crate::engine::{World, assert_promoted};
use crate::support::image::noise;
use crate::support::memory::{Operation, Registry};

const KIB: usize = 1024;

/// Brings `repository:tag` from `from` to `to`.
async fn bring(world: World, from: Registry, to: Registry, job: Job) -> Completion {
    let source = from.repository(job.key.source.as_str());
    let destination = to.repository(job.key.destination.repository.as_str());
    world
        .engine
        .run(&job, &source, &destination, &world.progress, &world.stop)
        .await
}

fn job(world: &World, to: &Registry, repository: &str, tag: &str, rank: Rank) -> Job {
    let mut job = world.job(repository, tag);
    let origin = to.repository(repository).origin().clone();
    job.key.destination = TagId {
        origin,
        ..job.key.destination
    };
    Job {
        rank,
        max_wait: job::SHORT_WAIT,
        ..job
    }
}

fn limit(world: &World, registry: &Registry, concurrency: usize) {
    let settings = LaneSettings {
        concurrency: Some(concurrency),
        ..LaneSettings::default()
    };
    world
        .engine
        .limits
        .set(registry.repository("app").origin(), settings);
}

/// Refused mounts leave sessions that are sent through alone; the other destination shares its
/// reads. With few permits the two ways once waited for each other in a circle.
async fn assert_all_finish(concurrency: usize, tags: usize) {
    let world = World::new();
    let second = Registry::new("second");
    world
        .production
        .set(|settings| settings.abilities.mount = Mount::Off);
    for registry in [&world.staging, &world.production, &second] {
        limit(&world, registry, concurrency);
    }
    let base = world.layer("app", 1, 300 * KIB);
    let believed = second.repository("elsewhere");
    for number in 0..tags {
        let own = world.layer("app", 100 + number as u64, 100 * KIB);
        let held = vec![(own.digest, own.size)];
        world
            .engine
            .index
            .remember_blobs(&believed.id(), held, true)
            .await;
        world.image("app", &format!("v{number}"), &[base.clone(), own]);
    }
    // Every ninth upload is told to come again.
    for opened in 1..4 * tags {
        let busy = Class::Retryable {
            after: Some(Duration::from_secs(1)),
        };
        match opened % 9 {
            0 => second.fail_next(Operation::BeginUpload, busy),
            _ => second.pass_next(Operation::BeginUpload),
        }
    }
    let mut running = Vec::new();
    for number in 0..tags {
        for to in [&world.production, &second] {
            let mut job = job(&world, to, "app", &format!("v{number}"), Rank::New);
            job.max_wait = job::LONG_WAIT;
            running.push(tokio::spawn(bring(
                world.clone(),
                world.staging.clone(),
                to.clone(),
                job,
            )));
        }
    }
    let all = timeout(
        Duration::from_secs(1200),
        futures::future::join_all(running),
    )
    .await
    .expect("it stands still");
    for completion in all {
        assert_promoted(&completion.unwrap());
    }
    assert_eq!(world.production.open_sessions() + second.open_sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn uploads_with_and_without_a_shared_read_do_not_wait_for_each_other_in_a_circle() {
    assert_all_finish(2, 46).await;
    assert_all_finish(8, 90).await;
}

/// A source whose layers drip, beside a healthy one. The two share a base layer.
async fn beside_a_dripping_source(shares_base: bool) -> Duration {
    let world = World::new();
    let sick = Registry::new("sick");
    let bytes = |seed| noise(seed, 3 * KIB * KIB);
    let base = sick.store_blob("app", bytes(1));
    for number in 0..80_u64 {
        let layer = if number == 0 {
            base.clone()
        } else {
            sick.store_blob("app", noise(1000 + number, 200 * KIB))
        };
        sick.slow_next_read(&layer.digest, 0, 1500);
        let config = sick.store_blob("app", format!("{number}"));
        sick.store_manifest(
            "app",
            Some(&format!("v{number}")),
            &crate::engine::manifest(&config, &[layer]),
        );
    }
    let mut running = Vec::new();
    for number in 0..80 {
        let job = job(
            &world,
            &world.production,
            "app",
            &format!("v{number}"),
            Rank::New,
        );
        running.push(tokio::spawn(bring(
            world.clone(),
            sick.clone(),
            world.production.clone(),
            job,
        )));
        if number == 0 {
            // The base is claimed first.
            sleep(Duration::from_millis(10)).await;
        }
    }
    sleep(Duration::from_secs(2)).await;
    let layers: Vec<Descriptor> = (0..3)
        .map(|seed| {
            world
                .staging
                .store_blob("well", noise(50 + seed, 100 * KIB))
        })
        .collect();
    let all: Vec<_> = if shares_base {
        [world.staging.store_blob("well", bytes(1))]
            .into_iter()
            .chain(layers)
            .collect()
    } else {
        layers
    };
    world.image("well", "v1", &all);
    let start = Instant::now();
    let job = job(&world, &world.production, "well", "v1", Rank::New);
    assert_promoted(
        &bring(
            world.clone(),
            world.staging.clone(),
            world.production.clone(),
            job,
        )
        .await,
    );
    running.iter().for_each(tokio::task::JoinHandle::abort);
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_dripping_source_holds_up_no_other() {
    let took = beside_a_dripping_source(false).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_base_layer_from_a_dripping_source_holds_up_no_other() {
    let took = beside_a_dripping_source(true).await;
    assert!(took < Duration::from_secs(40), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_registry_that_asks_for_a_long_time_end_at_once_and_say_when() {
    let world = World::new();
    let sick = Registry::new("sick");
    let layer = sick.store_blob("app", noise(1, 1000));
    let mut running = Vec::new();
    for number in 0..80 {
        let config = sick.store_blob("app", format!("{number}"));
        sick.store_manifest(
            "app",
            Some(&format!("v{number}")),
            &crate::engine::manifest(&config, std::slice::from_ref(&layer)),
        );
        sick.fail_next(
            Operation::Manifest,
            Class::Retryable {
                after: Some(Duration::from_secs(700)),
            },
        );
        let job = job(
            &world,
            &world.production,
            "app",
            &format!("v{number}"),
            Rank::New,
        );
        running.push(tokio::spawn(bring(
            world.clone(),
            sick.clone(),
            world.production.clone(),
            job,
        )));
    }
    let start = Instant::now();
    let mut told = 0;
    for completion in futures::future::join_all(running).await {
        let completion = completion.unwrap();
        assert_eq!(completion.outcome, Outcome::Failed);
        let after = completion.retry_after().expect("it says when").as_secs();
        told += u32::from((690..=700).contains(&after));
        // One answer stops the others for a minute.
        assert!(
            (50..=60).contains(&after) || (690..=700).contains(&after),
            "{after} s"
        );
    }
    assert!(
        told > 0,
        "what was answered rests for as long as it was told"
    );
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(!world.engine.limits.stand_still());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_gets_the_job_done_after_the_time_that_was_named() {
    let world = World::new();
    let layer = world.layer("app", 1, 1000);
    world.image("app", "v1", &[layer]);
    world.staging.fail_next(
        Operation::Manifest,
        Class::Retryable {
            after: Some(Duration::from_secs(200)),
        },
    );
    let start = Instant::now();
    assert_promoted(&world.promote("app", "v1").await);
    assert!(
        (200..310).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_hotfix_by_name_does_not_wait_for_a_backfill() {
    let world = World::new();
    world
        .production
        .set(|settings| settings.rate = Some(100_000));
    let mut running = Vec::new();
    for number in 0..12 * 64_u64 {
        let (app, tag) = (format!("app-{}", number % 12), format!("v{number}"));
        let layer = world.layer(&app, number, 100 * KIB);
        world.image(&app, &tag, &[layer]);
        let job = job(&world, &world.production, &app, &tag, Rank::Backfill);
        running.push(tokio::spawn(bring(
            world.clone(),
            world.staging.clone(),
            world.production.clone(),
            job,
        )));
    }
    sleep(Duration::from_secs(3)).await;
    let layer = world.layer("hotfix", 5000, 400);
    world.image("hotfix", "v1", &[layer]);
    let start = Instant::now();
    let job = job(&world, &world.production, "hotfix", "v1", Rank::Named);
    assert_promoted(
        &bring(
            world.clone(),
            world.staging.clone(),
            world.production.clone(),
            job,
        )
        .await,
    );
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        running.iter().any(|running| !running.is_finished()),
        "the backfill was over before"
    );
    for completion in futures::future::join_all(running).await {
        assert_promoted(&completion.unwrap());
    }
}

/// `panics` plans a panic in the first read of a blob that two destinations share.
async fn assert_a_panic_poisons_nothing(panics: impl FnOnce(&World, &Descriptor)) {
    let world = World::new();
    let second = Registry::new("second");
    let layer = world.layer("app", 1, 300 * KIB);
    world.image("app", "v1", std::slice::from_ref(&layer));
    let other = world.layer("other", 2, 300 * KIB);
    world.image("other", "v1", &[other]);
    panics(&world, &layer);
    let both = [&world.production, &second].map(|to| {
        let job = job(&world, to, "app", "v1", Rank::New);
        tokio::spawn(bring(world.clone(), world.staging.clone(), to.clone(), job))
    });
    let endings = futures::future::join_all(both).await;
    assert_promoted(&world.promote("other", "v1").await);
    let is_failed = |ending: &Completion| ending.outcome == Outcome::Failed;
    let mut endings = endings
        .iter()
        .map(|ending| ending.as_ref().expect("no job aborts"));
    assert!(endings.any(is_failed), "nothing panicked");
    for to in [&world.production, &second] {
        let job = job(&world, to, "app", "v1", Rank::New);
        let again = bring(world.clone(), world.staging.clone(), to.clone(), job).await;
        let is_done = matches!(again.outcome, Outcome::Promoted | Outcome::UpToDate);
        assert!(is_done, "{again:?}");
        assert_eq!(to.tagged("app", "v1"), world.staging.tagged("app", "v1"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_read_fails_its_job_and_no_other() {
    assert_a_panic_poisons_nothing(|world, _| {
        let panics = |_: &Registry| panic!("a part of the program fails");
        world.staging.before_next(Operation::ReadBlob, panics);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_poll_of_a_body_fails_its_job_and_no_other() {
    for after in [0, 100_000] {
        assert_a_panic_poisons_nothing(|world, layer| {
            world.staging.panic_next_read(&layer.digest, after);
        })
        .await;
    }
}
