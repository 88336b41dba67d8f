//! Time gates at the moment of the write: between a verdict and the PUT the window may close.

use std::time::Duration;

use blobferry::clock;
use blobferry::job::gates::Window;
use blobferry::job::{Gates, Job, NextJudgement, ObservedVia, Outcome, TagState, Verdict};
use blobferry::transfer::retry::{CurrentRules, RulesInForce};
use jiff::SignedDuration;
use jiff::tz::TimeZone;

use crate::engine::World;
use crate::support::memory::Operation;

const OPENS: &str = "2026-12-01T09:00:00Z";

/// Mondays from nine to ten.
fn mondays() -> Gates {
    let window = Window {
        zone: TimeZone::UTC,
        open: vec!["mon-tue 09:00-10:00".parse().unwrap()],
        closed: Vec::new(),
    };
    Gates {
        window: Some(window),
        ..Gates::default()
    }
}

fn gated(world: &World, gates: Gates) -> Job {
    Job {
        gates: gates.into(),
        ..world.job("app", "v1")
    }
}

fn at(time: &str) {
    clock::simulate(time.parse().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_window_that_closes_while_content_is_carried_keeps_the_tag() {
    let world = World::new();
    world.image("app", "v1", &[world.layer("app", 1, 1_000_000)]);
    let slow = |settings: &mut crate::support::memory::Settings| settings.rate = Some(100_000);
    world.production.set(slow);
    at("2026-11-30T09:59:55Z");
    let ending = world.run(&gated(&world, mondays())).await;
    assert_eq!(ending.outcome, Outcome::Waiting);
    assert_eq!(world.production.tagged("app", "v1"), None);
    let judged = &ending.gates[0];
    let next = NextJudgement::At(OPENS.parse().unwrap());
    assert_eq!((judged.verdict, judged.next), (Verdict::Wait, next));
}

/// Production answers late: the window is open when the answer is asked for, and closed when the
/// tag could be written.
#[tokio::test(start_paused = true)]
async fn a_window_that_closes_between_the_answer_and_the_write_keeps_the_tag() {
    for (late, expected) in [(0, Outcome::Promoted), (5, Outcome::Waiting)] {
        let world = World::new();
        let abilities = |settings: &mut crate::support::memory::Settings| {
            settings.abilities.current_lists = false;
        };
        world.production.set(abilities);
        world.image("app", "v1", &[]);
        at("2026-11-30T09:59:57Z");
        // Only a list that may lag has told of production: it is asked after the verdict.
        let job = Job {
            destination: TagState::Absent,
            destination_via: ObservedVia::List,
            ..gated(&world, mondays())
        };
        world.production.before_next(Operation::Resolve, move |_| {
            clock::step(SignedDuration::from_secs(late));
        });
        let ending = world.run(&job).await;
        assert_eq!(ending.outcome, expected, "{late} s late");
        let is_named = world.production.tagged("app", "v1").is_some();
        assert_eq!(is_named, expected == Outcome::Promoted);
    }
}

/// The config is read while the content is carried: a gate that it adds counts.
#[tokio::test(start_paused = true)]
async fn a_gate_that_a_new_config_adds_counts_for_running_jobs() {
    let mut world = World::new();
    world.image("app", "v1", &[world.layer("app", 1, 1_000_000)]);
    let slow = |settings: &mut crate::support::memory::Settings| settings.rate = Some(100_000);
    world.production.set(slow);
    at("2026-11-30T12:00:00Z");
    let job = world.job("app", "v1");
    let tag = job.rules;
    let reloaded = tokio::time::Instant::now() + Duration::from_secs(5);
    world.stop.rules = CurrentRules::new(move |_, _| {
        let is_gated = tokio::time::Instant::now() >= reloaded;
        let gates = if is_gated {
            mondays()
        } else {
            Gates::default()
        };
        Some(RulesInForce {
            tag,
            gates: gates.into(),
            ..RulesInForce::default()
        })
    });
    let ending = world.run(&job).await;
    assert_eq!(ending.outcome, Outcome::Waiting);
    assert_eq!(world.production.tagged("app", "v1"), None);
    // The tag was never written: what stands there later is another's.
    let record = world.engine.ledger.written(&job.key.destination).await;
    assert!(record.unwrap().intended.is_empty());
}

/// The clock is set back: the digest is not younger by that.
#[tokio::test(start_paused = true)]
async fn an_age_counts_from_the_first_sight_whatever_becomes_of_the_clock() {
    let world = World::new();
    world.image("app", "v1", &[]);
    at("2026-11-30T12:00:00Z");
    let gates = || Gates {
        min_age: Some(Duration::from_secs(3600)),
        ..Gates::default()
    };
    let job = gated(&world, gates());
    assert_eq!(world.run(&job).await.outcome, Outcome::Waiting);
    at("2026-11-30T11:00:00Z");
    assert_eq!(world.run(&job).await.outcome, Outcome::Waiting);
    at("2026-11-30T12:59:59Z");
    assert_eq!(world.run(&job).await.outcome, Outcome::Waiting);
    at("2026-11-30T13:00:00Z");
    assert_eq!(world.run(&job).await.outcome, Outcome::Promoted);

    // Another digest under the tag has an age of its own.
    world.image("app", "v2", &[world.layer("app", 2, 10)]);
    let moved = world.staging.tagged("app", "v2").unwrap();
    world.staging.tag("app", "v1", &moved);
    assert_eq!(world.run(&job).await.outcome, Outcome::Waiting);
}
