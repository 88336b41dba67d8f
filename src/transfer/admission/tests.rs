//! The promises of the pure core for jobs and bodies, and of the shell around it.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::pools::{Above, Flow, Grant, Held, Pools, Settings, Want};
use super::{Admission, Room, Side};
use crate::endpoint::Origin;
use crate::job::Rank;

fn origin(name: &str) -> Origin {
    Origin::new(&format!("http://{name}"))
}

fn flow(route: &str, source: &str, destination: &str) -> Flow {
    Flow {
        route: route.into(),
        source: origin(source),
        destination: origin(destination),
    }
}

const RANKS: [Rank; 4] = [Rank::Named, Rank::Event, Rank::New, Rank::Backfill];
const LARGE: Want = Want::Body {
    slot: true,
    share: None,
};
const SMALL: Want = Want::Body {
    slot: false,
    share: None,
};

fn all_grants(pools: &mut Pools, now: Instant) -> Vec<(u64, Grant)> {
    std::iter::from_fn(|| pools.grant(now)).collect()
}

fn parts(grant: Grant) -> Vec<Held> {
    match grant {
        Grant::Job(held) => vec![held],
        Grant::Body { reading, writing } => reading.into_iter().chain([writing]).collect(),
    }
}

fn release(pools: &mut Pools, grant: Grant, now: Instant) {
    parts(grant)
        .into_iter()
        .for_each(|held| pools.release(held, now));
}

/// What a random run does next.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        flow: usize,
        rank: usize,
        want: usize,
    },
    Cancel(usize),
    Release(usize),
    Raise(usize),
    Narrow {
        registry: usize,
        limit: usize,
    },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6_usize, 0..4_usize, 0..4_usize).prop_map(|(flow, rank, want)| Step::Ask { flow, rank, want }),
        1 => any::<usize>().prop_map(Step::Cancel),
        5 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Raise),
        1 => (0..4_usize, 1..4_usize).prop_map(|(registry, limit)| Step::Narrow { registry, limit }),
        2 => (1..20_000_u64).prop_map(Step::Wait),
    ]
}

const REGISTRIES: [&str; 4] = ["a", "b", "c", "d"];

/// A run over three sources and two destinations; what is out, and what waits.
struct Run {
    pools: Pools,
    now: Instant,
    asked: BTreeMap<u64, (u64, Want)>,
    granted: Vec<(u64, Grant)>,
    share: u64,
}

impl Run {
    fn new() -> Run {
        let settings = Settings {
            jobs: 3,
            bodies: 2,
            named_above: 1,
            passed_over: 8,
            ..Settings::default()
        };
        let mut pools = Pools::new(settings);
        let share = pools.open_share();
        Run {
            pools,
            now: Instant::now(),
            asked: BTreeMap::new(),
            granted: Vec::new(),
            share,
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Ask {
                flow: number,
                rank,
                want,
            } => {
                let (source, destination) = (REGISTRIES[number % 3], REGISTRIES[1 + number % 2]);
                let ticket = self
                    .pools
                    .enter(flow("route", source, destination), RANKS[rank]);
                let want = [
                    Want::Job,
                    SMALL,
                    LARGE,
                    Want::Body {
                        slot: true,
                        share: Some(self.share),
                    },
                ][want];
                let id = self.pools.ask(ticket, want, self.now);
                self.asked.insert(id, (ticket, want));
            }
            Step::Cancel(nth) => {
                let Some(id) = self
                    .asked
                    .keys()
                    .nth(nth % self.asked.len().max(1))
                    .copied()
                else {
                    return;
                };
                self.pools.cancel(id);
                let (ticket, _) = self.asked.remove(&id).expect("it is one of them");
                self.pools.leave(ticket);
            }
            Step::Release(nth) if !self.granted.is_empty() => {
                let (ticket, grant) = self.granted.swap_remove(nth % self.granted.len());
                release(&mut self.pools, grant, self.now);
                self.pools.leave(ticket);
            }
            Step::Release(_) => {}
            Step::Raise(nth) => {
                let Some((ticket, _)) = self.asked.values().nth(nth % self.asked.len().max(1))
                else {
                    return;
                };
                self.pools.raise(*ticket, Rank::Named, self.now);
            }
            Step::Narrow { registry, limit } => {
                let room = Room {
                    limit,
                    named: limit + limit / 3,
                    is_firm: limit > 1,
                };
                self.pools
                    .set_room(&origin(REGISTRIES[registry]), Side::Destination, room);
                self.pools
                    .set_room(&origin(REGISTRIES[registry]), Side::Source, room);
            }
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
        }
        for (id, grant) in all_grants(&mut self.pools, self.now) {
            let (ticket, want) = self
                .asked
                .remove(&id)
                .expect("only what was asked for is granted, and once");
            self.assert_all_or_none(want, &grant);
            self.granted.push((ticket, grant));
        }
    }

    fn assert_all_or_none(&self, want: Want, grant: &Grant) {
        match (want, grant) {
            (Want::Job, Grant::Job(_)) => {}
            (Want::Body { share, .. }, Grant::Body { reading, .. }) => {
                let shared = self.granted.iter().any(|(_, grant)| {
                    matches!(
                        grant,
                        Grant::Body {
                            reading: Some(Held::Reading { share: Some(_), .. }),
                            ..
                        }
                    )
                });
                assert_eq!(
                    reading.is_none(),
                    share.is_some() && shared,
                    "a body reads unless another one reads for it"
                );
            }
            _ => panic!("{want:?} was granted {grant:?}"),
        }
    }

    /// Jobs and large bodies that count against the limits.
    fn by_rule(&self) -> (usize, usize) {
        let held = self
            .granted
            .iter()
            .flat_map(|(_, grant)| parts(grant.clone()));
        held.fold((0, 0), |(jobs, slots), held| match held {
            Held::Job {
                above: Above::No, ..
            } => (jobs + 1, slots),
            Held::Reading { slot: true, .. } => (jobs, slots + 1),
            _ => (jobs, slots),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_stands_still_nothing_leaks_and_a_body_gets_all_or_nothing(steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run::new();
        for step in &steps {
            run.take(step);
            let (jobs, slots) = run.by_rule();
            prop_assert!(jobs <= 3 && slots <= 2, "{jobs} jobs, {slots} slots");
            // Permits that are out come back some time: then whatever waits is granted.
            prop_assert!(run.asked.is_empty() || !run.granted.is_empty(), "something waits and nothing is out");
        }
        let mut left = run.asked.len() * 4 + run.granted.len() + 10;
        while !run.granted.is_empty() {
            run.take(&Step::Release(0));
            run.take(&Step::Wait(1000));
            left -= 1;
            prop_assert!(left > 0, "not everything is granted in the end");
        }
        prop_assert!(run.asked.is_empty(), "{:?} wait for ever", run.asked);
        prop_assert_eq!(run.pools.waiting(), 0);
        prop_assert!(run.pools.is_idle(), "something is left behind: {:?}", run.pools);
    }
}

#[test]
fn permit_seconds_are_shared_by_weight_and_names_go_first() {
    let now = Instant::now();
    let mut pools = Pools::new(Settings {
        jobs: 1,
        named_above: 0,
        ..Settings::default()
    });
    let tickets = [Rank::Event, Rank::New, Rank::Backfill, Rank::Named]
        .map(|rank| pools.enter(flow("r", "s", "d"), rank));
    let mut asked = BTreeMap::new();
    for ticket in tickets {
        for _ in 0..if ticket == tickets[3] { 5 } else { 200 } {
            asked.insert(pools.ask(ticket, Want::Job, now), ticket);
        }
    }
    let mut order = Vec::new();
    for second in 0..135 {
        let now = now + Duration::from_secs(second);
        let (id, grant) = pools.grant(now).expect("one runs at a time");
        assert!(pools.grant(now).is_none());
        order.push(asked[&id]);
        release(&mut pools, grant, now + Duration::from_secs(1));
    }
    assert!(
        order[..5].iter().all(|ticket| *ticket == tickets[3]),
        "by name first"
    );
    let turns = |ticket| order[5..].iter().filter(|other| **other == ticket).count();
    let [event, new, backfill, _] = tickets.map(turns);
    assert!(
        (78..=82).contains(&event) && (38..=42).contains(&new) && (9..=12).contains(&backfill),
        "{event} {new} {backfill}"
    );
}

#[test]
fn a_sick_source_that_holds_everything_leaves_one_transfer_to_each_idle_registry() {
    let now = Instant::now();
    let mut pools = Pools::new(Settings::default());
    let sick = pools.enter(flow("sick", "sick", "production"), Rank::New);
    for _ in 0..100 {
        pools.ask(sick, LARGE, now);
        pools.ask(sick, Want::Job, now);
    }
    assert_eq!(all_grants(&mut pools, now).len(), 64 + 16);
    let well = pools.enter(flow("well", "staging", "production"), Rank::New);
    let asked = [
        pools.ask(well, Want::Job, now),
        pools.ask(well, LARGE, now),
        pools.ask(well, LARGE, now),
    ];
    let granted = all_grants(&mut pools, now);
    assert_eq!(
        granted.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        asked[..2],
        "one of each goes above the limits"
    );
    for (_, grant) in granted {
        release(&mut pools, grant, now);
    }
    assert_eq!(pools.grant(now).map(|(id, _)| id), Some(asked[2]));
}

#[test]
fn four_by_name_go_above_the_limits_as_far_as_a_registry_has_room_for_them() {
    let now = Instant::now();
    let mut pools = Pools::new(Settings::default());
    let backfill = pools.enter(flow("r", "s", "d"), Rank::Backfill);
    let named = pools.enter(flow("r", "s", "d"), Rank::Named);
    for _ in 0..20 {
        pools.ask(backfill, LARGE, now);
    }
    assert_eq!(all_grants(&mut pools, now).len(), 16);
    for _ in 0..10 {
        pools.ask(named, LARGE, now);
    }
    assert_eq!(all_grants(&mut pools, now).len(), 4);

    let mut pools = Pools::new(Settings::default());
    pools.set_room(
        &origin("d"),
        Side::Destination,
        Room {
            limit: 2,
            named: 3,
            is_firm: true,
        },
    );
    let backfill = pools.enter(flow("r", "s", "d"), Rank::Backfill);
    let named = pools.enter(flow("r", "s", "d"), Rank::Named);
    for ticket in [backfill, backfill, backfill] {
        pools.ask(ticket, SMALL, now);
    }
    assert_eq!(all_grants(&mut pools, now).len(), 2);
    let asked = [named, named].map(|ticket| pools.ask(ticket, SMALL, now));
    let granted = all_grants(&mut pools, now);
    assert!(
        granted.len() == 1 && granted[0].0 == asked[0],
        "{granted:?}"
    );
}

#[test]
fn a_body_between_two_busy_registries_has_its_turn() {
    let mut now = Instant::now();
    let mut pools = Pools::new(Settings {
        passed_over: 16,
        ..Settings::default()
    });
    for name in ["s", "d"] {
        pools.set_room(
            &origin(name),
            Side::Source,
            Room {
                limit: 1,
                named: 1,
                is_firm: true,
            },
        );
        pools.set_room(
            &origin(name),
            Side::Destination,
            Room {
                limit: 1,
                named: 1,
                is_firm: true,
            },
        );
    }
    let [one, other] =
        [("s", "e"), ("t", "d")].map(|(from, to)| pools.enter(flow("r", from, to), Rank::New));
    let between = pools.enter(flow("r", "s", "d"), Rank::New);
    let mut held = BTreeMap::new();
    for ticket in [one, other] {
        held.insert(ticket, {
            pools.ask(ticket, SMALL, now);
            pools.grant(now).expect("there is room").1
        });
    }
    let wanted = pools.ask(between, SMALL, now);
    // The two others take turns and never end at once.
    for round in 0..100 {
        now += Duration::from_millis(100);
        let ticket = [one, other][round % 2];
        pools.ask(ticket, SMALL, now);
        let Some(ended) = held.remove(&ticket) else {
            continue;
        };
        release(&mut pools, ended, now);
        for (id, grant) in all_grants(&mut pools, now) {
            if id == wanted {
                return;
            }
            held.insert(ticket, grant);
        }
    }
    panic!("it was passed over for ever");
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_a_body_that_cannot_move_is_kept_for_a_short_time() {
    let settings = super::Settings {
        passed_over: 4,
        ..super::Settings::default()
    };
    let admission = Admission::new(settings);
    let firm = Room {
        limit: 1,
        named: 1,
        is_firm: true,
    };
    admission.set_room(&origin("dead"), Side::Source, firm);
    admission.set_room(
        &origin("d"),
        Side::Destination,
        Room {
            limit: 2,
            named: 2,
            is_firm: true,
        },
    );
    let enter =
        |source: &str| admission.enter(&"r".into(), &origin(source), &origin("d"), Rank::New);
    let (dead, stuck, well) = (enter("dead"), enter("dead"), enter("well"));
    let _held = dead.body(false, None).await;
    let stuck = tokio::spawn(async move { drop(stuck.body(false, None).await) });
    tokio::task::yield_now().await;
    let mut waits = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        drop(well.body(false, None).await);
        waits.push(start.elapsed());
    }
    let kept: Vec<Duration> = waits.into_iter().filter(|wait| !wait.is_zero()).collect();
    assert!(!kept.is_empty(), "something is kept for it");
    assert!(
        kept.iter().all(|wait| *wait <= settings.kept_for),
        "{kept:?}"
    );
    stuck.abort();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiter_gives_its_place_and_its_grant_to_the_next() {
    let admission = Admission::new(super::Settings {
        jobs: 1,
        named_above: 0,
        ..super::Settings::default()
    });
    let ticket = admission.enter(&"r".into(), &origin("s"), &origin("d"), Rank::New);
    let first = ticket.job().await;
    let mut second = Box::pin(ticket.job());
    let mut third = Box::pin(ticket.job());
    assert!(futures::poll!(&mut second).is_pending() && futures::poll!(&mut third).is_pending());
    drop(first);
    drop(second);
    assert!(futures::poll!(&mut third).is_ready());
    drop(third);
    drop(ticket);
    assert!(admission.lock().pools.is_idle() && admission.lock().granted.is_empty());
}
