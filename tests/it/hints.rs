//! What a job asks of the index, over registries in memory and an index that counts its reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blobferry::index::Index;
use blobferry::job::{Cause, Job};
use blobferry::sqlite::{Behaviour, Disk, QueueKind};

use crate::engine::{World, assert_promoted};

/// Layers of the image.
const LAYERS: u64 = 20;

/// A disk that takes one request at a time and counts those that read.
#[derive(Clone, Default)]
struct CountedReads(Arc<AtomicU64>);

impl Behaviour for CountedReads {
    fn group(&self) -> usize {
        1
    }

    fn delay(&self, queue_kind: QueueKind, _number: u64) -> Duration {
        if queue_kind == QueueKind::Read {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        Duration::ZERO
    }

    fn is_synced(&self, _number: u64) -> bool {
        true
    }
}

/// Each blob was looked up alone, one after the other where many jobs share it.
#[tokio::test(start_paused = true)]
async fn blobs_that_are_known_to_be_there_are_looked_up_together() {
    let mut world = World::new();
    let reads = CountedReads::default();
    let (index, served) = Index::on_disk(&Disk::new(reads.clone()));
    let serving = tokio::spawn(served);
    world.engine.index = index;
    let mut layers: Vec<_> = (0..LAYERS)
        .map(|seed| world.layer("app", seed, 100))
        .collect();
    world.image("app", "v1", &layers);
    layers.push(world.layer("app", LAYERS, 100));
    world.image("app", "v2", &layers);
    assert_promoted(&world.promote("app", "v1").await);

    let before = reads.0.load(Ordering::SeqCst);
    let by_poll = Job {
        cause: Cause::Poll,
        ..world.job("app", "v2")
    };
    let completion = world.run(&by_poll).await;
    assert_promoted(&completion);
    assert_eq!(completion.cost.blobs.present, LAYERS);
    let asked = reads.0.load(Ordering::SeqCst) - before;
    assert!(asked < LAYERS / 2, "{asked} reads");
    serving.abort();
}
