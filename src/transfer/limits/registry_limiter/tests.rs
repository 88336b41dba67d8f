//! The promises of the permits for requests, on a clock that stands still.

use std::pin::pin;

use futures::future::join_all;
use futures::poll;
use proptest::prelude::*;
use tokio::time::{sleep, timeout};

use super::super::Limits;
use super::*;
use crate::job::Rank;
use crate::registry::profile::Quotas;

const CLASS: RequestClass = RequestClass::Writes;
const TEN: Duration = Duration::from_secs(10);

fn origin() -> Origin {
    Origin::new("http://127.0.0.1:1")
}

fn settings(concurrency: usize, quota: Option<u32>) -> Settings {
    let quotas = Quotas {
        writes: quota,
        ..Quotas::default()
    };
    Settings {
        concurrency: Some(concurrency),
        quotas,
        ..Settings::default()
    }
}

fn limited(concurrency: usize, quota: Option<u32>) -> Arc<RegistryLimiter> {
    let limits = Limits::default();
    limits.set(&origin(), settings(concurrency, quota));
    limits.of(&origin())
}

fn busy(after: Duration) -> Result<(), Fault> {
    Err(Fault::new(Class::Retryable { after: Some(after) }, "busy"))
}

#[tokio::test(start_paused = true)]
async fn no_request_is_sent_before_the_time_that_one_was_told() {
    let limiter = limited(4, None);
    let told = limiter.acquire(CLASS).await;
    assert_eq!(told.record(&busy(TEN)), TEN);
    drop(told);
    let start = Instant::now();
    join_all((0..20).map(|_| async { drop(limiter.acquire(CLASS).await) })).await;
    assert_eq!(start.elapsed().as_secs(), 10);
    let other = Instant::now();
    drop(limiter.acquire(RequestClass::Blobs).await);
    assert!(other.elapsed().is_zero(), "other classes are not concerned");
}

#[tokio::test(start_paused = true)]
async fn a_class_that_closes_holds_back_what_waits_and_what_was_granted_and_not_sent() {
    let limiter = limited(2, None);
    let told = limiter.acquire(CLASS).await;
    let mut granted = pin!(limiter.wait(CLASS.into(), Duration::MAX, true));
    let mut waiting = pin!(limiter.acquire(CLASS));
    assert!(poll!(&mut waiting).is_pending());
    assert_eq!(
        limiter.lock().granted.len(),
        1,
        "granted, and not polled since"
    );
    let start = Instant::now();
    told.record(&busy(TEN));
    drop(told);
    assert!(poll!(&mut waiting).is_pending() && poll!(&mut granted).is_pending());
    let epoch = granted.await.expect("it waits for as long as it takes");
    assert_eq!(start.elapsed().as_secs(), 10);
    drop(RequestPermit::new(&limiter, CLASS, epoch, true));
    drop(waiting.await);
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_turns_out_too_long_is_told_at_once() {
    let limiter = limited(1, None);
    let told = limiter.acquire(CLASS).await;
    let waits = async {
        let start = Instant::now();
        let asked = limiter.acquire_within(CLASS.into(), TEN / 2).await;
        (asked.map(drop), start.elapsed())
    };
    let refused = async {
        sleep(TEN).await;
        told.record(&busy(TEN));
        sleep(TEN).await;
    };
    let ((asked, waited), ()) = tokio::join!(waits, refused);
    assert_eq!((asked, waited), (Err(TEN), TEN));
}

/// Permits one after the other; when each came.
async fn times(limiter: &RegistryLimiter, is_look: bool, count: usize) -> Vec<Instant> {
    let mut times = Vec::new();
    let priority = if is_look {
        CLASS.of_look()
    } else {
        CLASS.into()
    };
    for _ in 0..count {
        drop(limiter.acquire(priority).await);
        times.push(Instant::now());
    }
    times
}

/// The most within one second, if each may arrive so much later than it left.
fn most_in_a_second(times: &[Instant], late: Duration) -> usize {
    let second = Duration::from_secs(1) + late;
    let within = |(at, start): (usize, &Instant)| {
        let following = times[at..].iter();
        following
            .take_while(|time| **time - *start < second)
            .count()
    };
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_kept_in_every_second_and_looks_use_a_quarter_of_it() {
    for quota in [1, 4, 10, 100, 2000] {
        for (is_look, most, part) in [(false, quota, 0.9), (true, quota / 4 + 1, 0.225)] {
            let limiter = limited(32, Some(quota));
            let start = Instant::now();
            let count = 5 * most + 1;
            let times = times(&limiter, is_look, count as usize).await;
            let seen = most_in_a_second(&times, Duration::from_millis(48));
            assert!(
                seen <= most as usize,
                "{seen} in a second where {most} may go"
            );
            let due = f64::from(count) / (f64::from(quota) * part);
            let took = start.elapsed().as_secs_f64();
            assert!(
                took < due + 1.0,
                "{count} of a quota of {quota} took {took}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_waited_for_others_to_end_go_no_faster_then() {
    let limiter = limited(1, Some(10));
    let long = limiter.acquire(RequestClass::Blobs).await;
    let ends = async {
        sleep(TEN).await;
        drop(long);
    };
    let permit = || async {
        drop(limiter.acquire(CLASS).await);
        Instant::now()
    };
    let (times, ()) = tokio::join!(join_all((0..25).map(|_| permit())), ends);
    assert!(most_in_a_second(&times, Duration::ZERO) <= 10);
}

#[tokio::test(start_paused = true)]
async fn another_config_gives_nothing_on_top_of_the_quota() {
    let limits = Limits::default();
    limits.set(&origin(), settings(32, Some(10)));
    let mut times = times(&limits.of(&origin()), false, 9).await;
    limits.set(&origin(), settings(8, Some(10)));
    times.extend(self::times(&limits.of(&origin()), false, 9).await);
    assert!(most_in_a_second(&times, Duration::ZERO) <= 10);
}

#[tokio::test(start_paused = true)]
async fn a_class_that_opens_again_does_not_turn_into_a_burst() {
    let limiter = limited(32, Some(10));
    limiter.acquire_for_body(CLASS).await.record(&busy(TEN));
    let start = Instant::now();
    let times = times(&limiter, false, 19).await;
    assert_eq!(start.elapsed().as_secs(), 12);
    assert!(most_in_a_second(&times, Duration::ZERO) <= 10);
}

#[tokio::test(start_paused = true)]
async fn a_narrower_config_holds_for_what_waits_already() {
    let limits = Limits::default();
    limits.set(&origin(), settings(1, None));
    let limiter = limits.of(&origin());
    let first = limiter.acquire(CLASS).await;
    let mut second = pin!(limiter.acquire(CLASS));
    assert!(poll!(&mut second).is_pending());
    limits.set(&origin(), settings(2, None));
    let _second = second.await;
    limits.set(&origin(), settings(1, None));
    drop(first);
    let mut third = pin!(limiter.acquire(CLASS));
    assert!(poll!(&mut third).is_pending(), "one is under way still");
}

#[tokio::test(start_paused = true)]
async fn the_put_of_a_name_passes_all_that_waits() {
    let limiter = limited(32, Some(2));
    let order = Mutex::new(Vec::new());
    let send = |name: &'static str, priority: RequestPriority| {
        let (limiter, order) = (&limiter, &order);
        async move {
            drop(limiter.acquire(priority).await);
            order.lock().unwrap().push(name);
        }
    };
    let plain = RequestPriority::from(CLASS);
    let naming = RequestPriority {
        is_naming: true,
        ..plain
    };
    let late = async {
        sleep(Duration::from_millis(100)).await;
        tokio::join!(
            send("backfill", plain.ranked(Rank::Backfill)),
            send("named", plain.ranked(Rank::Named)),
            send("name", naming.ranked(Rank::Backfill)),
        );
    };
    let early = join_all((0..4).map(|_| send("new", plain)));
    tokio::join!(early, late);
    assert_eq!(
        *order.lock().unwrap(),
        ["new", "name", "named", "backfill", "new", "new", "new"]
    );
}

/// What one caller does: comes after so long, gives up after so long, holds its permit for so long.
#[derive(Clone, Debug)]
struct Caller {
    comes: u64,
    gives_up: u64,
    holds: u64,
    is_refused: bool,
    class: usize,
    rank: usize,
}

fn caller() -> impl Strategy<Value = Caller> {
    let times = (0u64..300, 0u64..600, 0u64..50);
    let kind = (proptest::bool::weighted(0.1), 0usize..5, 0usize..4);
    (times, kind).prop_map(
        |((comes, gives_up, holds), (is_refused, class, rank))| Caller {
            comes,
            gives_up,
            holds,
            is_refused,
            class,
            rank,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Callers that give up at any time, granted or not, keeping the timer or not, take no wake-up
    /// with them: one that waits for as long as it takes is served.
    #[test]
    fn a_caller_that_gives_up_takes_no_wake_up_with_it(
        callers in proptest::collection::vec(caller(), 1..40),
        quota in proptest::option::of(5u32..50),
        concurrency in 1usize..4,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let limiter = limited(concurrency, quota);
            let ranks = [Rank::Named, Rank::Event, Rank::New, Rank::Backfill];
            let millis = Duration::from_millis;
            let run = callers.iter().map(|caller| {
                let limiter = &limiter;
                async move {
                    sleep(millis(caller.comes)).await;
                    let priority = RequestPriority::from(RequestClass::ALL[caller.class]);
                    let acquired = limiter.acquire(priority.ranked(ranks[caller.rank]));
                    if let Ok(permit) = timeout(millis(caller.gives_up), acquired).await {
                        sleep(millis(caller.holds)).await;
                        let wait = if caller.is_refused { 200 } else { 0 };
                        permit.record(&if caller.is_refused { busy(millis(wait)) } else { Ok(()) });
                    }
                }
            });
            let patient = join_all(RequestClass::ALL.map(|class| {
                let limiter = &limiter;
                async move { drop(limiter.acquire(class).await) }
            }));
            let all = async { tokio::join!(join_all(run), async { sleep(millis(150)).await; drop(patient.await) }) };
            prop_assert!(timeout(Duration::from_secs(120), all).await.is_ok(), "it stands still");
            let state = limiter.lock();
            prop_assert!(state.granted.is_empty() && state.timer.is_none());
            prop_assert_eq!(state.requests.shared().out(), 0);
            Ok(())
        })?;
    }
}
