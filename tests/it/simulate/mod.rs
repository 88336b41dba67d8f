//! The simulator: the real engine over registries in memory that misbehave, with people beside it, on a clock that leaps.
//! Every seed is a world; an oracle reads its trace and says which promises were broken.
//!
//! `SIMULATE_SEEDS=A..B` plays these seeds, `SIMULATE_SECONDS=N` new ones for so long. A seed that fails prints its story.

mod chance;
mod found;
mod oracle;
mod people;
mod process;
mod registry;
mod story;
mod trace;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Seeds that failed once, after the code or the oracle was mended.
const ONCE_FAILED: &[u64] = &[];
/// Seeds of a usual run.
const SEEDS: u64 = 100;
/// Each so many-th seed is played twice.
const TWICE: u64 = 20;

#[test]
fn seeds_that_failed_once_keep_every_promise() {
    keep_every_promise(ONCE_FAILED.iter().copied());
}

#[test]
#[ignore = "the code does not keep them all yet"]
fn new_seeds_keep_every_promise() {
    if let Some(seeds) = seeds_asked_for() {
        keep_every_promise(seeds);
        return;
    }
    // New ones at every run; a failure says which.
    let first = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
        & 0xffff_ffff_ffff;
    let seconds = std::env::var("SIMULATE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let start = Instant::now();
    let enough = |played| {
        seconds.map_or(played >= SEEDS, |seconds| {
            start.elapsed() >= Duration::from_secs(seconds)
        })
    };
    keep_every_promise(
        (first..)
            .enumerate()
            .take_while(|(played, _)| !enough(*played as u64))
            .map(|(_, seed)| seed),
    );
}

fn seeds_asked_for() -> Option<Range<u64>> {
    let text = std::env::var("SIMULATE_SEEDS").ok()?;
    let (from, to) = text
        .split_once("..")
        .expect("SIMULATE_SEEDS is written A..B");
    let number = |text: &str| {
        text.parse()
            .expect("SIMULATE_SEEDS is written A..B, with numbers")
    };
    Some(number(from)..number(to))
}

/// Plays seeds until one breaks a promise, or, with `SIMULATE_ALL`, all of them, and then says how often each was broken.
#[track_caller]
fn keep_every_promise(seeds: impl Iterator<Item = u64>) {
    let (start, all) = (Instant::now(), std::env::var_os("SIMULATE_ALL").is_some());
    let (mut played, mut entries, mut first) = (0_u64, 0, None);
    let mut broken = BTreeMap::<&str, Vec<u64>>::new();
    for seed in seeds {
        played += 1;
        let outcome = world::play(seed);
        entries += outcome.entries.len();
        let promises: BTreeSet<&str> = outcome
            .findings
            .iter()
            .map(|finding| finding.promise)
            .collect();
        for promise in promises {
            let seeds = broken.entry(promise).or_default();
            seeds.push(seed);
            if all && seeds.len() == 1 {
                println!("{}", outcome.story_of(promise).unwrap_or_default());
            }
        }
        first = first.or_else(|| outcome.story());
        if first.is_some() && !all {
            break;
        }
        if seed.is_multiple_of(TWICE) {
            assert_eq!(
                world::play(seed).hash,
                outcome.hash,
                "seed {seed} played twice gives two traces"
            );
        }
    }
    println!(
        "{played} seeds with {entries} events in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    for (promise, seeds) in &broken {
        println!(
            "{:>6} of {played}: {promise}; seeds {:?}",
            seeds.len(),
            &seeds[..seeds.len().min(5)]
        );
    }
    if let Some(story) = first {
        panic!("{story}");
    }
}
