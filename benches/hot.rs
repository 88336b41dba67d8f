//! What is done for every byte, every tag and every blob: the verifying stream, the plan, the
//! index.
//!
//! `cargo bench --bench hot [-- FILTER]`. First three ways over the same frames are set side by
//! side, in turn: the machine's bare SHA-256, the verifying stream, and what it replaces, a stream
//! that copies each frame before it hashes it. The ratios of the best rounds are printed; a
//! verifying stream above [`MOST`] fails the bench.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::LazyLock;

use blobferry::endpoint::{BlobBody, Origin, RepositoryId};
use blobferry::fault::Fault;
use blobferry::index::Index;
use blobferry::job::TagRules;
use blobferry::oci::{Algorithm, Descriptor, Digest, Hasher, MediaType};
use blobferry::transfer::plan::{Facts, Order, decide};
use blobferry::transfer::verify::{Checkpoint, VerifiedBlob, Watchers};
use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use http_body::Frame;
use http_body_util::StreamBody;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes that pass in one round.
const PASSING: usize = 32 * 1024 * 1024;
/// Bytes of a frame, about what a fast connection hands over.
const FRAME: usize = 400 * 1024;
/// Bytes of a frame of a connection that hands over little at a time, such as one with TLS.
const SMALL_FRAME: usize = 16 * 1024;
/// Rounds of each, in turn, after the first: many short ones, so that the best are those that
/// nothing has disturbed.
const ROUNDS: usize = 29;
/// The most that the verifying stream may cost, bare SHA-256 being one.
const MOST: f64 = 1.10;
/// Hints in the index.
const HINTS: u64 = 1_000_000;
/// Blobs that are remembered at once.
const AT_ONCE: u64 = 20;
/// Repositories that the hints are spread over.
const REPOSITORIES: u64 = 100;

fn main() -> ExitCode {
    let mut exceeded = false;
    for frame in [FRAME, SMALL_FRAME] {
        let [bare, plain, verified] = best(frame);
        let ratio = verified / bare;
        exceeded |= frame == FRAME && ratio > MOST;
        println!(
            "frames of {} KiB, best of {} rounds in turn, bare SHA-256 being one:",
            frame / 1024,
            ROUNDS + 1
        );
        println!(
            "  bare SHA-256                          1.000   {:.2} GB/s",
            PASSING as f64 / bare / 1e9
        );
        println!(
            "  plain stream, each frame copied anew  {:.3}",
            plain / bare
        );
        println!(
            "  verifying stream                      {ratio:.3}   {:.3} of the plain stream\n",
            verified / plain
        );
    }
    println!(
        "limit: the verifying stream at most {MOST} for frames of {} KiB: {}\n",
        FRAME / 1024,
        if exceeded { "missed" } else { "met" }
    );
    divan::main();
    ExitCode::from(u8::from(exceeded))
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A blob in memory.
static CONTENT: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words
        .take(PASSING / 8)
        .flatten()
        .collect::<Vec<u8>>()
        .into()
});

static BLOB: LazyLock<Descriptor> =
    LazyLock::new(|| descriptor(Digest::sha256(&CONTENT), PASSING as u64));

fn frames(frame: usize) -> impl Iterator<Item = Bytes> {
    (0..PASSING)
        .step_by(frame)
        .map(move |at| CONTENT.slice(at..(at + frame).min(PASSING)))
}

fn bare(frame: usize) {
    let mut hasher = Sha256::new();
    frames(frame).for_each(|frame| hasher.update(&frame));
    black_box(hasher.finalize());
}

fn body(frame: usize) -> BlobBody {
    BlobBody::new(StreamBody::new(futures::stream::iter(
        frames(frame).map(|frame| Ok::<_, Fault>(Frame::data(frame))),
    )))
}

/// The stream that anybody would write first: each frame is copied to a buffer of its own, hashed,
/// and handed on.
async fn plain(frame: usize) {
    let mut body = body(frame);
    let (mut hasher, mut passed) = (Sha256::new(), 0);
    while let Some(frame) = body.frame().await {
        let copy = frame.expect("the content is right").to_vec();
        hasher.update(&copy);
        passed += copy.len();
        black_box(Bytes::from(copy));
    }
    assert_eq!(
        (passed as u64, hex::encode(hasher.finalize())),
        (BLOB.size, BLOB.digest.encoded())
    );
}

async fn verified(frame: usize) {
    let open = move |_| -> blobferry::transfer::verify::Opening {
        Box::pin(async move { Ok(body(frame)) })
    };
    let (checkpoints, _kept) = mpsc::unbounded_channel();
    let watchers = Watchers {
        checkpoints,
        every: 8 << 20,
        progress: None,
        read: None,
    };
    let start = Checkpoint {
        offset: 0,
        hasher: Hasher::new(Algorithm::Sha256),
    };
    let verified = VerifiedBlob::new(
        BLOB.clone(),
        start,
        0,
        Box::new(open),
        [None, None],
        watchers,
    );
    let mut leg = verified.segment(PASSING as u64);
    while let Some(frame) = leg.frame().await {
        black_box(frame.expect("the content is right"));
    }
    assert!(verified.is_verified());
}

/// Seconds of the best round of each: bare, plain, verified.
fn best(frame: usize) -> [f64; 3] {
    let runtime = runtime();
    let mut best = [f64::MAX; 3];
    for _ in 0..=ROUNDS {
        let ways: [&dyn Fn(); 3] = [&|| bare(frame), &|| runtime.block_on(plain(frame)), &|| {
            runtime.block_on(verified(frame))
        }];
        for (best, way) in best.iter_mut().zip(ways) {
            let start = Instant::now();
            way();
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    best
}

#[divan::bench(sample_count = 20)]
fn sha256_bare(bencher: Bencher<'_, '_>) {
    bencher
        .counter(BytesCount::new(PASSING))
        .bench(|| bare(FRAME));
}

#[divan::bench(sample_count = 20)]
fn sha256_verifying_stream(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    bencher
        .counter(BytesCount::new(PASSING))
        .bench(|| runtime.block_on(verified(FRAME)));
}

#[divan::bench(sample_count = 20)]
fn sha256_plain_stream(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    bencher
        .counter(BytesCount::new(PASSING))
        .bench(|| runtime.block_on(plain(FRAME)));
}

#[divan::bench]
fn plan(bencher: Bencher<'_, '_>) {
    let digests: Vec<Option<Digest>> =
        [None, Some(Digest::sha256(b"a")), Some(Digest::sha256(b"b"))].into();
    let mut facts = Vec::new();
    for (source, destination) in digests.iter().flat_map(|source| {
        digests
            .iter()
            .map(move |destination| (*source, *destination))
    }) {
        for bits in 0..8 {
            let (ledger_known, ledger_agrees) = (bits & 1 > 0, bits & 2 > 0);
            facts.push(Facts {
                source,
                destination,
                ledger_known,
                ledger_agrees,
                ledger_is_sure: ledger_known,
            });
        }
    }
    let rules = [false, true].map(|moving| TagRules {
        moving,
        ..TagRules::default()
    });
    bencher
        .counter(ItemsCount::new(facts.len() * rules.len()))
        .bench(|| {
            for facts in &facts {
                for rules in rules {
                    black_box(decide(
                        black_box(rules),
                        black_box(facts),
                        &Order::default(),
                    ));
                }
            }
        });
}

fn descriptor(digest: Digest, size: u64) -> Descriptor {
    Descriptor::new(MediaType::new("application/octet-stream"), digest, size)
}

fn digest(number: u64) -> Digest {
    Digest::sha256(&number.to_le_bytes())
}

fn repository(origin: &Origin, number: u64) -> RepositoryId {
    let name = format!("team/app-{}", number % REPOSITORIES);
    RepositoryId {
        origin: origin.clone(),
        repository: name.parse().expect("a repository name"),
    }
}

/// An index with a million hints.
struct Full {
    runtime: Runtime,
    index: Index,
    origin: Origin,
    _folder: TempDir,
}

static FULL: LazyLock<Full> = LazyLock::new(|| {
    let (runtime, folder, origin) = (
        runtime(),
        TempDir::new().expect("a scratch directory"),
        Origin::new("https://registry.example"),
    );
    let index = Index::open(folder.path()).expect("an index").index;
    let start = Instant::now();
    runtime.block_on(async {
        for first in (0..HINTS).step_by(AT_ONCE as usize) {
            let blobs = (first..first + AT_ONCE)
                .map(|number| (digest(number), 1 << 20))
                .collect();
            index
                .remember_blobs(&repository(&origin, first / AT_ONCE), blobs, true)
                .await;
        }
        // A read sees every write before it.
        let last = index
            .blob(
                &repository(&origin, HINTS / AT_ONCE - 1),
                &digest(HINTS - 1),
            )
            .await;
        assert!(last.is_some(), "the last hint is there");
    });
    let took = start.elapsed().as_secs_f64();
    println!(
        "\nindex: {HINTS} hints, {AT_ONCE} at a time: {:.0} a second",
        HINTS as f64 / took
    );
    Full {
        runtime,
        index,
        origin,
        _folder: folder,
    }
});

/// Numbers all over the index.
fn scattered() -> impl Iterator<Item = u64> {
    let mut state = 1_u64;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % HINTS
    })
}

#[divan::bench]
fn index_point_read(bencher: Bencher<'_, '_>) {
    let full = &*FULL;
    let mut numbers = scattered();
    bencher
        .with_inputs(|| numbers.next().expect("it never ends"))
        .counter(ItemsCount::new(1_u64))
        .bench_local_values(|number| {
            let hint = full.runtime.block_on(
                full.index
                    .blob(&repository(&full.origin, number / AT_ONCE), &digest(number)),
            );
            assert!(hint.is_some());
        });
}

#[divan::bench]
fn index_64_point_reads_at_once(bencher: Bencher<'_, '_>) {
    let full = &*FULL;
    let mut numbers = scattered();
    bencher
        .with_inputs(|| numbers.by_ref().take(64).collect::<Vec<_>>())
        .counter(ItemsCount::new(64_u64))
        .bench_local_values(|wanted| {
            let read = |number| async move {
                full.index
                    .blob(&repository(&full.origin, number / AT_ONCE), &digest(number))
                    .await
            };
            let hints = full
                .runtime
                .block_on(futures::future::join_all(wanted.into_iter().map(read)));
            assert!(hints.iter().all(Option::is_some));
        });
}

#[divan::bench]
fn index_holders(bencher: Bencher<'_, '_>) {
    let full = &*FULL;
    let mut numbers = scattered();
    bencher
        .with_inputs(|| numbers.next().expect("it never ends"))
        .counter(ItemsCount::new(1_u64))
        .bench_local_values(|number| {
            let holders =
                full.runtime
                    .block_on(full.index.holders(&full.origin, &digest(number), 3));
            assert_eq!(holders.len(), 1);
        });
}
