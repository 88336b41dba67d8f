//! What the engine promises, over registries in memory and a clock that stands still: order, bytes,
//! requests, and what is left when something goes wrong.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blobferry::endpoint::{Mount, Resume, Source as _, UploadStyle};
use blobferry::fault::Class;
use blobferry::index::Index;
use blobferry::job::{
    Actor, BlobCounts, Cause, Companions, Job, Key, ObservedVia, Outcome, Progress, Rank, TagId,
    TagRules, TagState,
};
use blobferry::ledger::Ledger;
use blobferry::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use blobferry::oci::{Descriptor, Digest, Manifest};
use blobferry::transfer::bandwidth::Plan;
use blobferry::transfer::limits::Settings as LaneSettings;
use blobferry::transfer::retry::Settings as RetrySettings;
use blobferry::transfer::{Completion, Engine, Limits, Metrics, Settings, Stop};
use serde_json::json;
use tokio::time::Instant;

use crate::support::image::noise;
use crate::support::memory::{Operation, Registry};

const MIB: usize = 1024 * 1024;

/// An engine between two registries in memory.
#[derive(Clone)]
pub struct World {
    pub engine: Engine,
    pub staging: Registry,
    pub production: Registry,
    pub progress: Arc<Progress>,
    pub stop: Stop,
}

impl World {
    pub fn new() -> World {
        World::over(Registry::new("staging"), Registry::new("production"))
    }

    fn over(staging: Registry, production: Registry) -> World {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let engine = Engine::new(
            Settings::default(),
            Index::in_memory(),
            Ledger::in_memory(),
            Limits::default(),
            metrics,
        );
        World {
            engine,
            staging,
            production,
            progress: Arc::default(),
            stop: Stop::default(),
        }
    }

    /// The same stores and registries under a process of its own.
    pub fn restarted(&self) -> World {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let (index, ledger) = (self.engine.index.clone(), self.engine.ledger.clone());
        let engine = Engine::new(
            Settings::default(),
            index,
            ledger,
            Limits::default(),
            metrics,
        );
        World {
            engine,
            progress: Arc::default(),
            stop: Stop::default(),
            ..self.clone()
        }
    }

    /// So many bytes per second from staging: under a clock that leaps, an exact place in time for
    /// every byte.
    pub fn slowly(self, bandwidth: usize) -> World {
        let origin = self.staging.repository("app").origin().clone();
        self.engine.limits.set(
            &origin,
            LaneSettings {
                bandwidth: Some(Plan::constant(bandwidth as u64)),
                ..LaneSettings::default()
            },
        );
        self
    }

    pub fn image(&self, repository: &str, tag: &str, layers: &[Descriptor]) -> Manifest {
        let config = self
            .staging
            .store_blob(repository, format!("{{\"of\":\"{repository}:{tag}\"}}"));
        self.staging
            .store_manifest(repository, Some(tag), &manifest(&config, layers))
    }

    pub fn layer(&self, repository: &str, seed: u64, size: usize) -> Descriptor {
        self.staging.store_blob(repository, noise(seed, size))
    }

    pub fn job(&self, repository: &str, tag: &str) -> Job {
        let place = TagId {
            origin: self.production.repository(repository).origin().clone(),
            repository: repository.parse().unwrap(),
            tag: tag.parse().unwrap(),
        };
        let key = Key {
            route: "app".into(),
            source: repository.parse().unwrap(),
            tag: tag.parse().unwrap(),
            destination: place,
        };
        Job {
            key,
            routes: Arc::from(["app".into()]),
            rules: TagRules {
                moving: true,
                ..TagRules::default()
            },
            gates: Default::default(),
            backup: None,
            source: TagState::Unknown,
            destination: TagState::Unknown,
            destination_via: ObservedVia::Tag,
            source_at: None,
            destination_at: Instant::now(),
            look_began: blobferry::clock::now(),
            news: Some(Instant::now()),
            fresh: false,
            cause: Cause::Cli,
            actor: Actor::daemon(),
            explicit: false,
            rollback: None,
            ends_when_moved: false,
            pinned: None,
            expect: None,
            replace: None,
            dry_run: false,
            observes: false,
            refused: Arc::default(),
            pushed: None,
            companions: Companions::Listed(Arc::default()),
            rank: Rank::New,
            max_wait: blobferry::job::LONG_WAIT,
        }
    }

    pub async fn run(&self, job: &Job) -> Completion {
        let source = self.staging.repository(job.key.source.as_str());
        let destination = self
            .production
            .repository(job.key.destination.repository.as_str());
        self.engine
            .run(job, &source, &destination, &self.progress, &self.stop)
            .await
    }

    pub async fn promote(&self, repository: &str, tag: &str) -> Completion {
        self.run(&self.job(repository, tag)).await
    }

    /// A process that is killed after so long.
    async fn killed_after(&self, repository: &str, tag: &str, time: Duration) {
        let (world, job) = (self.clone(), self.job(repository, tag));
        let running = tokio::spawn(async move { world.run(&job).await });
        tokio::time::sleep(time).await;
        running.abort();
        assert!(
            running.await.is_err(),
            "it was over before it could be killed"
        );
    }

    fn calls(&self, operation: Operation) -> Vec<u64> {
        let calls = self
            .staging
            .calls()
            .into_iter()
            .chain(self.production.calls());
        calls
            .filter(|call| call.operation == operation)
            .map(|call| call.offset)
            .collect()
    }

    #[track_caller]
    pub fn assert_arrived(&self, repository: &str, tag: &str, image: &Manifest) {
        assert_eq!(self.production.tagged(repository, tag), Some(image.digest));
        let held = self.production.held(repository);
        assert!(
            image.blobs.iter().all(|blob| held.contains(&blob.digest)),
            "a blob is missing"
        );
        assert_eq!(
            self.production.open_sessions(),
            0,
            "no session is left behind"
        );
    }
}

pub fn manifest(config: &Descriptor, layers: &[Descriptor]) -> serde_json::Value {
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entry(config), "layers": layers.iter().map(entry).collect::<Vec<_>>()})
}

pub fn index(children: &[&Manifest]) -> serde_json::Value {
    let children: Vec<_> = children
        .iter()
        .map(|child| entry(&child.descriptor()))
        .collect();
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children})
}

pub fn entry(descriptor: &Descriptor) -> serde_json::Value {
    json!({"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size})
}

#[track_caller]
pub fn assert_promoted(completion: &Completion) {
    assert_eq!(
        completion.outcome,
        Outcome::Promoted,
        "{:?} {:?}",
        completion.fault,
        completion.reasons
    );
}

#[track_caller]
pub fn assert_failed(completion: &Completion, class: Class) {
    assert_eq!(
        completion.outcome,
        Outcome::Failed,
        "{:?}",
        completion.reasons
    );
    let fault = completion.fault.as_ref().expect("a failure has a fault");
    assert_eq!(fault.class().name(), class.name(), "{}", fault.chain());
}

#[tokio::test(start_paused = true)]
async fn every_byte_crosses_once_and_the_tag_is_the_last_request() {
    let world = World::new();
    let layers = [
        world.layer("app", 1, 100_000),
        world.layer("app", 2, 0),
        world.layer("app", 3, 1),
    ];
    let image = world.image("app", "v1", &layers);
    let completion = world.promote("app", "v1").await;
    assert_promoted(&completion);
    world.assert_arrived("app", "v1", &image);
    let total: u64 = image.blobs.iter().map(|blob| blob.size).sum();
    assert_eq!(completion.cost.bytes_sent, total);
    assert_eq!(
        completion.cost.blobs,
        BlobCounts {
            copied: 4,
            ..BlobCounts::default()
        }
    );
    assert_eq!(world.progress.bytes_done.load(Ordering::Relaxed), total);
    assert_eq!(world.progress.bytes_planned.load(Ordering::Relaxed), total);
    let last = world.production.calls().pop().unwrap();
    assert_eq!(
        (last.operation, last.about.as_str()),
        (Operation::PutManifest, "v1")
    );
    assert_eq!(
        world.production.count(Operation::HasBlob),
        0,
        "the request that opens an upload asks"
    );
    assert_eq!(world.staging.count(Operation::ReadBlob), 4);
}

#[tokio::test(start_paused = true)]
async fn an_observation_from_before_another_jobs_write_is_made_again() {
    let world = World::new();
    let layer = world.layer("app", 1, 1000);
    world.image("app", "v1", &[layer]);
    let mut late = world.job("app", "v1");
    late.destination = TagState::Absent;
    late.destination_at = Instant::now();
    tokio::time::advance(Duration::from_secs(1)).await;
    let first = world.run(&world.job("app", "v1")).await;
    assert_eq!(first.outcome, Outcome::Promoted, "{:?}", first.fault);
    // The look of the second job saw no tag, and its claim is free again.
    let second = world.run(&late).await;
    assert_eq!(second.outcome, Outcome::UpToDate, "{:?}", second.fault);
}

#[tokio::test(start_paused = true)]
async fn all_ways_of_uploading_carry_the_same_bytes() {
    for style in [UploadStyle::Whole, UploadStyle::Stream] {
        let world = World::new();
        world
            .production
            .set(|settings| settings.abilities.upload = style);
        let layers = [
            world.layer("app", 1, 0),
            world.layer("app", 2, 30_000),
            world.layer("app", 3, 60_001),
            world.layer("app", 4, 17),
        ];
        let image = world.image("app", "v1", &layers);
        let completion = world.promote("app", "v1").await;
        assert_promoted(&completion);
        world.assert_arrived("app", "v1", &image);
        assert_eq!(
            completion.cost.bytes_sent,
            image.blobs.iter().map(|blob| blob.size).sum::<u64>(),
            "{style:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_breaks_off_never_restarts_the_upload() {
    let world = World::new();
    let layer = world.layer("app", 1, 500_000);
    for after in [0, 1, 16 * 1024, 200_000] {
        world.staging.cut_next_read(&layer.digest, after);
    }
    let image = world.image("app", "v1", &[layer]);
    let completion = world.promote("app", "v1").await;
    assert_promoted(&completion);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(
        world.production.count(Operation::FinishUpload),
        2,
        "one for the config, one for the layer"
    );
    let read: Vec<u64> = world
        .calls(Operation::ReadBlob)
        .into_iter()
        .filter(|offset| *offset > 0)
        .collect();
    assert_eq!(
        read,
        [1, 16 * 1024 + 1, 216_385],
        "each reading begins where the last one broke off"
    );
    assert_eq!(
        completion.cost.bytes_sent,
        image.blobs.iter().map(|blob| blob.size).sum::<u64>()
    );
}

#[tokio::test(start_paused = true)]
async fn a_break_after_the_last_byte_harms_nothing() {
    let world = World::new();
    let layer = world.layer("app", 1, 50_000);
    world.staging.cut_next_read(&layer.digest, 50_000);
    let image = world.image("app", "v1", &[layer]);
    assert_promoted(&world.promote("app", "v1").await);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(world.staging.count(Operation::ReadBlob), 2);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_breaks_off_goes_on_where_the_registry_stands() {
    let world = World::new();
    let layer = world.layer("app", 1, 30 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    world.production.pass_next(Operation::BeginUpload);
    world.production.cut_next_upload(10);
    for after in [9 * MIB, 3, 12 * MIB] {
        world.production.cut_next_upload(after as u64);
    }
    let completion = world.promote("app", "v1").await;
    assert_promoted(&completion);
    world.assert_arrived("app", "v1", &image);
    let again = completion.cost.bytes_sent - layer.size;
    assert!(again < 200_000, "{again} bytes were sent twice");
    assert_eq!(completion.cost.blobs.resumed, 2);
    assert_eq!(
        world.progress.bytes_done.load(Ordering::Relaxed),
        world.progress.bytes_planned.load(Ordering::Relaxed)
    );
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_kept_a_new_session_gets_the_whole_blob() {
    let world = World::new();
    world
        .production
        .set(|settings| settings.abilities.resume = Resume::Never);
    let layer = world.layer("app", 1, 10 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    world.production.cut_next_upload(5);
    world.production.cut_next_upload(9 * MIB as u64);
    let completion = world.promote("app", "v1").await;
    assert_promoted(&completion);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(completion.cost.blobs.resumed, 0);
    assert_eq!(
        world.production.count(Operation::UploadOffset),
        0,
        "asking would destroy more than it tells"
    );
    let planned: u64 = image.blobs.iter().map(|blob| blob.size).sum();
    assert_eq!(
        world.progress.bytes_done.load(Ordering::Relaxed),
        planned,
        "what is sent again is no progress"
    );
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_goes_on_where_the_registry_stands() {
    let world = World::new().slowly(MIB);
    let layer = world.layer("app", 1, 40 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    world
        .killed_after("app", "v1", Duration::from_secs(21))
        .await;
    assert_eq!(world.production.tagged("app", "v1"), None);
    assert_eq!(world.production.open_sessions(), 1);
    world.staging.clear_calls();
    let next = world.restarted();
    let completion = next.promote("app", "v1").await;
    assert_promoted(&completion);
    next.assert_arrived("app", "v1", &image);
    assert_eq!(completion.cost.blobs.resumed, 1);
    let sent = completion.cost.bytes_sent as usize / MIB;
    assert!(
        (18..=20).contains(&sent),
        "{sent} MiB were sent after a kill at 21 of 40"
    );
    assert_eq!(
        next.calls(Operation::ReadBlob),
        [16 * MIB as u64],
        "from the last checkpoint on"
    );
}

#[tokio::test(start_paused = true)]
async fn a_process_killed_while_it_closed_an_upload_asks_for_the_blob_first() {
    let world = World::new();
    let layer = world.layer("app", 1, 10 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    assert_promoted(&world.promote("app", "v1").await);
    // What the process knew when it was killed: that it was about to close the upload.
    let repository = world.production.repository("app").id();
    world
        .engine
        .index
        .forget_blobs(&repository, vec![layer.digest])
        .await;
    world
        .engine
        .index
        .forget_manifest(&repository, &image.digest)
        .await;
    world
        .engine
        .index
        .open_upload(&repository, &layer.digest, layer.size, "session-1")
        .await;
    world
        .engine
        .index
        .finishing(&repository, &layer.digest)
        .await;
    world.production.untag("app", "v1");
    world.production.remove("app", &image.digest);
    let completion = world.restarted().promote("app", "v1").await;
    assert_promoted(&completion);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(completion.cost.bytes_sent, 0);
    assert!(
        world
            .engine
            .index
            .upload(&repository, &layer.digest)
            .await
            .is_none(),
        "nothing is left to go on from"
    );
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_answer_costs_nothing_that_was_sent() {
    let world = World::new().slowly(MIB);
    let layer = world.layer("app", 1, 40 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    world
        .killed_after("app", "v1", Duration::from_secs(30))
        .await;
    for _ in 0..6 {
        world
            .production
            .fail_next(Operation::UploadOffset, Class::RETRYABLE);
        world
            .production
            .fail_next(Operation::BeginUpload, Class::RETRYABLE);
    }
    assert_failed(
        &world.restarted().promote("app", "v1").await,
        Class::RETRYABLE,
    );
    assert_eq!(
        world.production.open_sessions(),
        1,
        "the upload is as it was"
    );
    let completion = world.restarted().promote("app", "v1").await;
    assert_promoted(&completion);
    world.assert_arrived("app", "v1", &image);
    assert!(
        completion.cost.bytes_sent < 12 * MIB as u64,
        "{} bytes were sent",
        completion.cost.bytes_sent
    );
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_reached_more_than_was_sent_is_given_up() {
    let world = World::new();
    let layer = world.layer("app", 1, 20 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    let repository = world.production.repository("app").id();
    world
        .engine
        .index
        .open_upload(
            &repository,
            &layer.digest,
            layer.size + 1,
            "session-of-another-length",
        )
        .await;
    let completion = world.promote("app", "v1").await;
    assert_promoted(&completion);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(completion.cost.blobs.resumed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_the_closing_request_costs_no_bytes() {
    let world = World::new();
    let layer = world.layer("app", 1, 100_000);
    let image = world.image("app", "v1", &[layer]);
    world
        .production
        .lose_next_answer(Operation::FinishUpload, Class::RETRYABLE);
    world
        .production
        .lose_next_answer(Operation::FinishUpload, Class::RETRYABLE);
    let completion = world.promote("app", "v1").await;
    assert_promoted(&completion);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(
        completion.cost.bytes_sent,
        image.blobs.iter().map(|blob| blob.size).sum::<u64>()
    );
}

/// The image may be superseded before the source can be read: nothing would ever use the session.
#[tokio::test(start_paused = true)]
async fn a_session_that_took_no_byte_is_not_left_behind() {
    let world = World::new();
    let layer = world.layer("app", 1, 40 * MIB);
    world.image("app", "v1", &[layer]);
    world.production.store_blob("app", r#"{"of":"app:v1"}"#);
    let busy = Class::Retryable {
        after: Some(Duration::from_secs(3600)),
    };
    world.staging.fail_next(Operation::ReadBlob, busy);
    assert_failed(&world.promote("app", "v1").await, busy);
    assert!(world.production.count(Operation::BeginUpload) > 0);
    assert_eq!(world.production.open_sessions(), 0);
}

/// The production that takes no further session may take none for long.
#[tokio::test(start_paused = true)]
async fn a_corrupt_upload_is_not_left_behind_where_no_other_can_be_opened() {
    let world = World::new();
    let layer = world.layer("app", 1, 40 * MIB);
    world.staging.corrupt_next_read(&layer.digest);
    world.image("app", "v1", &[layer]);
    world.production.store_blob("app", r#"{"of":"app:v1"}"#);
    world.production.pass_next(Operation::BeginUpload);
    world
        .production
        .fail_next(Operation::BeginUpload, Class::Rejected);
    assert_failed(&world.promote("app", "v1").await, Class::Rejected);
    assert_eq!(world.production.count(Operation::BeginUpload), 2);
    assert_eq!(world.production.open_sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_came_corrupt_is_fetched_afresh_once() {
    let world = World::new();
    let layer = world.layer("app", 1, 100_000);
    world.staging.corrupt_next_read(&layer.digest);
    let image = world.image("app", "v1", &[layer]);
    assert_promoted(&world.promote("app", "v1").await);
    world.assert_arrived("app", "v1", &image);
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_stays_corrupt_is_never_finished_nor_named() {
    let world = World::new();
    world
        .production
        .set(|settings| settings.verifies_blobs = false);
    let layer = world.layer("app", 1, 100_000);
    world.staging.rot(&layer.digest);
    world.image("app", "v1", std::slice::from_ref(&layer));
    assert_failed(&world.promote("app", "v1").await, Class::Corrupt);
    assert_eq!(world.production.tagged("app", "v1"), None);
    assert!(!world.production.held("app").contains(&layer.digest));
    assert_eq!(world.production.open_sessions(), 0);
    assert_eq!(
        world
            .staging
            .calls()
            .iter()
            .filter(|call| call.about == layer.digest.to_string())
            .count(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn a_hint_with_another_length_is_not_believed() {
    let world = World::new();
    let layer = world.layer("app", 1, 1000);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    let repository = world.production.repository("app").id();
    world.production.store_blob("app", noise(1, 1000));
    world
        .engine
        .index
        .remember_blobs(&repository, vec![(layer.digest, 7)], false)
        .await;
    assert_promoted(&world.promote("app", "v1").await);
    world.assert_arrived("app", "v1", &image);
}

#[tokio::test(start_paused = true)]
async fn a_length_that_is_a_lie_is_found_out_even_by_a_mount() {
    let world = World::new();
    let layer = world.layer("app", 1, 1000);
    world.image("app", "v1", std::slice::from_ref(&layer));
    assert_promoted(&world.promote("app", "v1").await);
    world.staging.store_blob("other", noise(1, 1000));
    world.image("other", "v1", &[Descriptor { size: 999, ..layer }]);
    assert_failed(&world.promote("other", "v1").await, Class::Corrupt);
    assert_eq!(world.production.tagged("other", "v1"), None);
}

#[tokio::test(start_paused = true)]
async fn what_vanished_after_it_was_seen_is_brought_again() {
    let world = World::new();
    let layer = world.layer("app", 1, 1000);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    let gone = layer.digest;
    world
        .production
        .before_next(Operation::PutManifest, move |registry| {
            registry.remove("app", &gone)
        });
    assert_promoted(&world.promote("app", "v1").await);
    world.assert_arrived("app", "v1", &image);
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_lies_is_corrected_by_the_registry() {
    let world = World::new();
    let layer = world.layer("app", 1, 1000);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    let repository = world.production.repository("app").id();
    world
        .engine
        .index
        .remember_blobs(&repository, vec![(layer.digest, layer.size)], false)
        .await;
    let job = Job {
        cause: Cause::Poll,
        ..world.job("app", "v1")
    };
    assert_promoted(&world.run(&job).await);
    world.assert_arrived("app", "v1", &image);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_share_blobs_move_them_once() {
    let world = World::new();
    let repositories = ["a", "b", "c"];
    let mut images = Vec::new();
    for repository in repositories {
        let base = world.layer(repository, 1, 200_000);
        for tag in ["v1", "v2"] {
            images.push((
                repository,
                tag,
                world.image(repository, tag, std::slice::from_ref(&base)),
            ));
        }
    }
    let jobs: Vec<Job> = images
        .iter()
        .map(|(repository, tag, _)| world.job(repository, tag))
        .collect();
    let endings = futures::future::join_all(jobs.iter().map(|job| world.run(job))).await;
    endings.iter().for_each(assert_promoted);
    for (repository, tag, image) in &images {
        world.assert_arrived(repository, tag, image);
    }
    let base = images[0].2.blobs[1].digest;
    assert_eq!(
        world
            .staging
            .calls()
            .iter()
            .filter(|call| call.about == base.to_string())
            .count(),
        1,
        "the base is read once"
    );
    let blobs = endings
        .iter()
        .fold(BlobCounts::default(), |sum, completion| BlobCounts {
            present: sum.present + completion.cost.blobs.present,
            mounted: sum.mounted + completion.cost.blobs.mounted,
            copied: sum.copied + completion.cost.blobs.copied,
            resumed: 0,
        });
    assert_eq!(
        blobs,
        BlobCounts {
            present: 3,
            mounted: 2,
            copied: 7,
            resumed: 0
        }
    );
}

#[tokio::test(start_paused = true)]
async fn the_session_of_a_refused_mount_is_used() {
    let world = World::new();
    for repository in ["a", "b"] {
        let base = world.layer(repository, 1, 1000);
        world.image(repository, "v1", &[base]);
    }
    assert_promoted(&world.promote("a", "v1").await);
    world
        .production
        .set(|settings| settings.abilities.mount = Mount::Held);
    world.production.clear_calls();
    let base = Digest::sha256(&noise(1, 1000));
    world.production.remove("a", &base);
    assert_promoted(&world.promote("b", "v1").await);
    assert_eq!(
        world.production.count(Operation::BeginUpload),
        2,
        "one request for each blob"
    );
    assert_eq!(world.production.open_sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_wants_a_committed_manifest_mounts_from_one() {
    let world = World::new();
    world.production.set(|settings| {
        settings.abilities.mount = Mount::Committed;
        settings.abilities.mount_asks = false;
    });
    for repository in ["a", "b"] {
        let base = world.layer(repository, 1, 1000);
        world.image(repository, "v1", &[base]);
    }
    assert_promoted(&world.promote("a", "v1").await);
    let completion = world.promote("b", "v1").await;
    assert_promoted(&completion);
    assert_eq!(completion.cost.blobs.mounted, 1);
}

/// A registry that mounts what committed manifests refer to.
fn committed_only(world: &World) {
    world.production.set(|settings| {
        settings.abilities.mount = Mount::Committed;
        settings.abilities.mount_asks = false;
    });
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_needs_a_manifest_to_be_mounted_crosses_once_for_all_jobs() {
    let world = World::new().slowly(MIB);
    committed_only(&world);
    let mut images = Vec::new();
    for (seed, (repository, tag)) in (10..).zip([
        ("a", "v1"),
        ("a", "v2"),
        ("b", "v1"),
        ("b", "v2"),
        ("c", "v1"),
    ]) {
        let layers = [
            world.layer(repository, 1, 4 * MIB),
            world.layer(repository, seed, 2 * MIB),
        ];
        images.push((repository, tag, world.image(repository, tag, &layers)));
    }
    let jobs: Vec<Job> = images
        .iter()
        .map(|(repository, tag, _)| world.job(repository, tag))
        .collect();
    let endings = futures::future::join_all(jobs.iter().map(|job| world.run(job))).await;
    endings.iter().for_each(assert_promoted);
    for (repository, tag, image) in &images {
        world.assert_arrived(repository, tag, image);
    }
    let base = images[0].2.blobs[1].digest;
    let sent = world
        .production
        .calls()
        .into_iter()
        .filter(|call| call.operation == Operation::FinishUpload);
    assert_eq!(
        sent.filter(|call| call.about == base.to_string()).count(),
        1,
        "the base is sent once"
    );
    assert_eq!(
        endings
            .iter()
            .map(|completion| completion.cost.blobs.mounted)
            .sum::<u64>(),
        2,
        "once into each other repository"
    );
}

#[tokio::test(start_paused = true)]
async fn jobs_that_could_wait_for_each_other_in_a_circle_do_not() {
    let world = World::new().slowly(MIB);
    committed_only(&world);
    let mut images = Vec::new();
    for (number, repository) in ["a", "b", "c", "d"].into_iter().enumerate() {
        // Each begins with another of the four.
        let seed = |place: usize| ((number + place) % 4) as u64;
        let layers: Vec<Descriptor> = (0..4)
            .map(|place| world.layer(repository, seed(place), 2 * MIB))
            .collect();
        images.push((repository, world.image(repository, "v1", &layers)));
    }
    let jobs: Vec<Job> = images
        .iter()
        .map(|(repository, _)| world.job(repository, "v1"))
        .collect();
    let all = futures::future::join_all(jobs.iter().map(|job| world.run(job)));
    let endings = tokio::time::timeout(Duration::from_secs(300), all)
        .await
        .expect("nobody waits for ever");
    endings.iter().for_each(assert_promoted);
    for (repository, image) in &images {
        world.assert_arrived(repository, "v1", image);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_follows_a_job_that_fails_brings_the_blob_itself() {
    let world = World::new().slowly(MIB);
    committed_only(&world);
    let mut images = Vec::new();
    for repository in ["a", "b", "c"] {
        let base = world.layer(repository, 1, 4 * MIB);
        images.push((repository, world.image(repository, "v1", &[base])));
    }
    world
        .production
        .fail_next(Operation::PutManifest, Class::Rejected);
    let jobs: Vec<Job> = images
        .iter()
        .map(|(repository, _)| world.job(repository, "v1"))
        .collect();
    let endings = futures::future::join_all(jobs.iter().map(|job| world.run(job))).await;
    assert_failed(&endings[0], Class::Rejected);
    endings[1..].iter().for_each(assert_promoted);
    assert_eq!(
        endings
            .iter()
            .map(|completion| completion.cost.blobs.mounted)
            .sum::<u64>(),
        1,
        "the third mounts from the second"
    );
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_mounted_nobody_waits_for_another() {
    let world = World::new().slowly(MIB);
    world
        .production
        .set(|settings| settings.abilities.mount = Mount::Off);
    for repository in ["a", "b"] {
        let base = world.layer(repository, 1, 4 * MIB);
        world.image(repository, "v1", &[base]);
    }
    let (a, b) = (world.job("a", "v1"), world.job("b", "v1"));
    let running = futures::future::join(world.run(&a), world.run(&b));
    let mut running = std::pin::pin!(running);
    tokio::select! {
        _ = &mut running => panic!("eight MiB at one MiB per second"),
        () = tokio::time::sleep(Duration::from_secs(3)) => {}
    }
    assert!(
        world.production.open_sessions() >= 2,
        "both are on their way"
    );
    let (a, b) = running.await;
    assert_promoted(&a);
    assert_promoted(&b);
}

#[tokio::test(start_paused = true)]
async fn blobs_on_their_way_arrive_though_another_failed() {
    let world = World::new().slowly(MIB);
    let good = world.layer("app", 1, 3 * MIB);
    let lost = world.layer("app", 2, 10);
    world.image("app", "v1", &[good.clone(), lost.clone()]);
    world.staging.remove("app", &lost.digest);
    assert_failed(&world.promote("app", "v1").await, Class::NotFound);
    assert_eq!(world.production.tagged("app", "v1"), None);
    assert!(
        world.production.held("app").contains(&good.digest),
        "what was sent of it is not sent again"
    );
    assert_eq!(world.production.open_sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_holds_a_permit_while_waiting_for_the_next_try() {
    let mut world = World::new();
    let long = Duration::from_secs(300);
    world.engine.settings.retry = RetrySettings {
        first: long,
        longest: long,
        ..RetrySettings::default()
    };
    let origin = world.production.repository("a").origin().clone();
    world.engine.limits.set(
        &origin,
        LaneSettings {
            concurrency: Some(1),
            ..LaneSettings::default()
        },
    );
    for repository in ["a", "b"] {
        world.image(repository, "v1", &[]);
    }
    world
        .production
        .fail_next(Operation::FinishUpload, Class::RETRYABLE);
    let (a, b) = (world.job("a", "v1"), world.job("b", "v1"));
    let first = world.run(&a);
    let second = async {
        tokio::task::yield_now().await;
        let began = Instant::now();
        assert_promoted(&world.run(&b).await);
        began.elapsed()
    };
    let (first, took) = futures::future::join(first, second).await;
    assert_promoted(&first);
    assert!(
        took < Duration::from_secs(60),
        "the second waited {took:?} for the first, which waits for its next try"
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_leaves_what_the_registry_keeps_and_goes_on_later() {
    let world = World::new().slowly(MIB);
    let layer = world.layer("app", 1, 40 * MIB);
    let image = world.image("app", "v1", std::slice::from_ref(&layer));
    let drain = world.stop.drain.clone();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(25)).await;
        drain.cancel();
    };
    let began = Instant::now();
    let (completion, ()) = tokio::join!(world.promote("app", "v1"), stop);
    assert_eq!(completion.outcome, Outcome::Interrupted);
    assert!(
        began.elapsed() < Duration::from_secs(26),
        "it ended at once"
    );
    let next = world.restarted();
    let completion = next.promote("app", "v1").await;
    assert_promoted(&completion);
    next.assert_arrived("app", "v1", &image);
    assert!(
        completion.cost.bytes_sent <= 16 * MIB as u64,
        "{} bytes were sent after a drain at 25 of 40 MiB",
        completion.cost.bytes_sent
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_a_blob_arrive_that_would_be_lost() {
    let world = World::new().slowly(MIB);
    world
        .production
        .set(|settings| settings.abilities.resume = Resume::Never);
    let layer = world.layer("app", 1, 20 * MIB);
    world.image("app", "v1", std::slice::from_ref(&layer));
    let drain = world.stop.drain.clone();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        drain.cancel();
    };
    let (_, ()) = tokio::join!(world.promote("app", "v1"), stop);
    assert!(world.production.held("app").contains(&layer.digest));
}

#[tokio::test(start_paused = true)]
async fn an_abort_ends_everything_at_once() {
    let world = World::new().slowly(MIB);
    let layer = world.layer("app", 1, 20 * MIB);
    world.image("app", "v1", &[layer]);
    let stop = world.stop.clone();
    let aborting = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.drain.cancel();
        stop.abort.cancel();
    };
    let began = Instant::now();
    let (completion, ()) = tokio::join!(world.promote("app", "v1"), aborting);
    assert_eq!(completion.outcome, Outcome::Interrupted);
    assert!(began.elapsed() < Duration::from_secs(6));
    assert_eq!(world.production.tagged("app", "v1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_is_written_after_its_children_however_they_are_nested() {
    let world = World::new();
    let config = world.staging.store_blob("app", "{}");
    let leaf = world
        .staging
        .store_manifest("app", None, &manifest(&config, &[]));
    let inner = world.staging.store_manifest("app", None, &index(&[&leaf]));
    let top = world
        .staging
        .store_manifest("app", Some("v1"), &index(&[&inner, &leaf]));
    let completion = world.promote("app", "v1").await;
    assert_promoted(&completion);
    let written: Vec<String> = world
        .production
        .calls()
        .into_iter()
        .filter(|call| call.operation == Operation::PutManifest)
        .map(|call| call.about)
        .collect();
    assert_eq!(
        written,
        [
            leaf.digest.to_string(),
            inner.digest.to_string(),
            "v1".into()
        ]
    );
    assert_eq!(world.production.tagged("app", "v1"), Some(top.digest));
}

#[tokio::test(start_paused = true)]
async fn when_staging_moves_meanwhile_the_old_digest_is_not_named() {
    let world = World::new().slowly(MIB);
    // Staging's answer lasts for ten seconds.
    let layer = world.layer("app", 1, 15 * MIB);
    world.image("app", "v1", &[layer]);
    let newer = world.image("app", "v2", &[]);
    let staging = world.staging.clone();
    let named = newer.digest;
    world
        .production
        .before_next(Operation::FinishUpload, move |_| {
            staging.tag("app", "v1", &named)
        });
    assert_promoted(&world.promote("app", "v1").await);
    world.assert_arrived("app", "v1", &newer);
    let named = world
        .production
        .calls()
        .iter()
        .filter(|call| call.operation == Operation::PutManifest && call.about == "v1")
        .count();
    assert_eq!(named, 1, "the tag moved once");
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_somebody_moved_meanwhile_stays() {
    let world = World::new().slowly(MIB);
    let layer = world.layer("app", 1, 5 * MIB);
    world.image("app", "v1", &[layer]);
    let theirs = world.production.store_manifest(
        "app",
        None,
        &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
    );
    let digest = theirs.digest;
    world
        .production
        .before_next(Operation::FinishUpload, move |production| {
            production.tag("app", "v1", &digest)
        });
    let completion = world.promote("app", "v1").await;
    assert_eq!(
        completion.outcome,
        Outcome::Existing,
        "{:?}",
        completion.fault
    );
    assert_eq!(world.production.tagged("app", "v1"), Some(theirs.digest));
}

#[tokio::test(start_paused = true)]
async fn an_equal_tag_that_somebody_pushed_meanwhile_is_success() {
    let world = World::new();
    world
        .production
        .set(|settings| settings.immutable_tags = true);
    let image = world.image("app", "v1", &[]);
    let (digest, bytes) = (image.digest, image.bytes.clone());
    world
        .production
        .before_next(Operation::PutManifest, move |production| {
            production.store_manifest("app", None, &serde_json::from_slice(&bytes).unwrap());
            production.tag("app", "v1", &digest);
        });
    assert_eq!(world.promote("app", "v1").await.outcome, Outcome::UpToDate);
    world.assert_arrived("app", "v1", &image);
}
