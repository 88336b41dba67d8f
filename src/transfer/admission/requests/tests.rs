//! The promises of the pure core for requests.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::endpoint::Origin;
use crate::transfer::admission::pools::Flow;
use crate::transfer::pace::Concurrency;

const CLASSES: [RequestClass; 5] = [
    RequestClass::Listing,
    RequestClass::Manifests,
    RequestClass::Blobs,
    RequestClass::Uploads,
    RequestClass::Writes,
];

fn requests(most: usize, quota: Option<f64>, rate: Option<f64>, now: Instant) -> Requests {
    let limit = Concurrency { usual: most, most };
    limited(limit, quota, rate, now)
}

fn limited(limit: Concurrency, quota: Option<f64>, rate: Option<f64>, now: Instant) -> Requests {
    let limiters = CLASSES.map(|_| ClassLimiter::new(limit, quota, now));
    Requests::new(limiters, SharedLimiter::new(limit, rate, now))
}

fn queue(route: &str, rank: Rank) -> RequestQueue {
    let flow = Flow {
        route: route.into(),
        source: Origin::new("http://s"),
        destination: Origin::new("http://d"),
    };
    (Some(Arc::new(flow)), rank)
}

fn ask(class: RequestClass, route: &str, rank: Rank) -> Ask {
    Ask {
        class,
        is_look: false,
        is_naming: false,
        is_sent: true,
        ticket: None,
        queue: queue(route, rank),
        max_wait: Duration::MAX,
    }
}

/// Asks all, then answers one request after the other; the queues in the order in which they were
/// served.
fn served(requests: &mut Requests, now: Instant) -> Vec<(u64, RequestQueue)> {
    let mut served = Vec::new();
    while let Some((id, ask)) = requests.grant(now) {
        requests.release(ask.class);
        served.push((id, ask.queue));
    }
    served
}

fn count(served: &[(u64, RequestQueue)], queue: &RequestQueue) -> usize {
    served.iter().filter(|(_, other)| other == queue).count()
}

#[tokio::test(start_paused = true)]
async fn by_name_goes_first_then_each_by_its_weight_and_the_oldest_of_a_queue() {
    let now = Instant::now();
    let mut requests = requests(1, None, None, now);
    for rank in [Rank::Backfill, Rank::New, Rank::Event, Rank::Request] {
        for _ in 0..200 {
            requests.ask(ask(RequestClass::Writes, "r", rank));
        }
    }
    let named = requests.ask(ask(RequestClass::Writes, "r", Rank::Named));
    let served = served(&mut requests, now);
    assert_eq!(served[0].0, named);
    let first = &served[1..211];
    let shares = [Rank::Request, Rank::Event, Rank::New, Rank::Backfill]
        .map(|rank| count(first, &queue("r", rank)));
    assert_eq!(shares, [80, 80, 40, 10]);
    for rank in Rank::ALL {
        let of_rank: Vec<u64> = served
            .iter()
            .filter(|(_, queue)| queue.1 == rank)
            .map(|(id, _)| *id)
            .collect();
        assert!(of_rank.is_sorted(), "{rank:?}");
    }
    assert_eq!(served.len(), 801);
}

#[tokio::test(start_paused = true)]
async fn flows_of_one_rank_take_turns_whatever_waits_in_each() {
    let now = Instant::now();
    let mut requests = requests(1, None, None, now);
    for _ in 0..500 {
        requests.ask(ask(RequestClass::Manifests, "large", Rank::New));
    }
    let large = served_after(&mut requests, 100, now);
    assert_eq!(large.len(), 100);
    for _ in 0..10 {
        requests.ask(ask(RequestClass::Manifests, "small", Rank::New));
    }
    let served = served_after(&mut requests, 22, now);
    assert_eq!(count(&served, &queue("small", Rank::New)), 10, "{served:?}");
}

fn served_after(requests: &mut Requests, most: usize, now: Instant) -> Vec<(u64, RequestQueue)> {
    let mut served = Vec::new();
    while served.len() < most
        && let Some((id, ask)) = requests.grant(now)
    {
        requests.release(ask.class);
        served.push((id, ask.queue));
    }
    served
}

/// What one class did alone gives it no debt in another, and what it could not use gives it little
/// credit.
#[tokio::test(start_paused = true)]
async fn a_queue_that_was_alone_is_not_starved_by_one_that_had_to_wait() {
    let now = Instant::now();
    let mut requests = requests(1, None, None, now);
    requests
        .class_mut(RequestClass::Writes)
        .close(Duration::from_secs(60), now);
    for _ in 0..2000 {
        requests.ask(ask(RequestClass::Writes, "waits", Rank::New));
        requests.ask(ask(RequestClass::Blobs, "busy", Rank::New));
    }
    assert_eq!(served(&mut requests, now).len(), 2000);
    for _ in 0..50 {
        requests.ask(ask(RequestClass::Blobs, "busy", Rank::New));
    }
    let later = now + Duration::from_secs(61);
    let served = served_after(&mut requests, 200, later);
    assert_eq!(count(&served, &queue("busy", Rank::New)), 50);
}

#[tokio::test(start_paused = true)]
async fn a_put_under_a_naming_permit_has_the_next_token_of_its_class() {
    let now = Instant::now();
    let mut requests = requests(8, Some(1.0), None, now);
    for rank in Rank::ALL {
        for _ in 0..10 {
            requests.ask(ask(RequestClass::Writes, "r", rank));
        }
    }
    assert!(requests.grant(now).is_some());
    assert!(requests.grant(now).is_none(), "one token is saved up");
    let put = requests.ask(Ask {
        is_naming: true,
        ..ask(RequestClass::Writes, "r", Rank::Backfill)
    });
    let next = requests.next_time(now).expect("a token comes");
    assert_eq!(requests.grant(next).map(|(id, _)| id), Some(put));
    assert!(requests.grant(next).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_probe_takes_nothing_and_is_answered_before_others_take_the_token() {
    let now = Instant::now();
    let mut requests = requests(8, Some(1.0), None, now);
    requests.ask(ask(RequestClass::Writes, "r", Rank::New));
    assert!(requests.grant(now).is_some(), "one token is saved up");
    let sent = requests.ask(ask(RequestClass::Writes, "r", Rank::Named));
    let probe = requests.ask(Ask {
        is_sent: false,
        ..ask(RequestClass::Writes, "r", Rank::Backfill)
    });
    let next = requests.next_time(now).expect("a token comes");
    let granted: Vec<u64> = std::iter::from_fn(|| requests.grant(next))
        .map(|(id, _)| id)
        .collect();
    assert_eq!(granted, [probe, sent]);
}

#[tokio::test(start_paused = true)]
async fn a_class_that_waits_for_its_time_holds_up_no_other() {
    let now = Instant::now();
    let mut requests = requests(1, None, None, now);
    requests
        .class_mut(RequestClass::Writes)
        .close(Duration::from_secs(700), now);
    for _ in 0..80 {
        requests.ask(ask(RequestClass::Writes, "sick", Rank::Named));
    }
    requests.ask(ask(RequestClass::Manifests, "well", Rank::Backfill));
    assert_eq!(
        count(&served(&mut requests, now), &queue("well", Rank::Backfill)),
        1
    );
    assert_eq!(
        requests.next_time(now),
        Some(now + crate::transfer::pace::CLOSED_AT_MOST),
        "one answer closes a class for no longer"
    );
    assert_eq!(requests.runnable(now), 0, "none of them could go");
}

/// A repository with answers after 25 s held the whole window: a hotfix waited for them.
#[tokio::test(start_paused = true)]
async fn requests_whose_answers_take_long_leave_room_for_what_is_asked_for_by_name() {
    let now = Instant::now();
    let limit = Concurrency { usual: 3, most: 5 };
    let mut requests = limited(limit, None, None, now);
    for class in [RequestClass::Blobs, RequestClass::Writes] {
        for _ in 0..9 {
            requests.ask(ask(class, "slow", Rank::New));
            requests.ask(Ask {
                is_naming: true,
                ..ask(class, "slow", Rank::Backfill)
            });
        }
    }
    let slow: Vec<_> = std::iter::from_fn(|| requests.grant(now)).collect();
    assert_eq!(slow.len(), 3);
    for _ in 0..3 {
        requests.ask(ask(RequestClass::Blobs, "hotfix", Rank::Named));
    }
    let named: Vec<_> = std::iter::from_fn(|| requests.grant(now)).collect();
    let is_named = |(_, ask): &(u64, Ask)| ask.queue.1 == Rank::Named;
    assert!(
        named.len() == 2 && named.iter().all(is_named),
        "as many as there is room for: {named:?}"
    );
    requests.release(RequestClass::Blobs);
    assert!(
        requests
            .grant(now)
            .is_some_and(|granted| is_named(&granted))
    );
    assert!(requests.grant(now).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_becomes_urgent_takes_its_waiting_requests_along() {
    let now = Instant::now();
    let mut requests = requests(1, None, None, now);
    for _ in 0..50 {
        requests.ask(ask(RequestClass::Writes, "r", Rank::Backfill));
    }
    let raised = requests.ask(Ask {
        ticket: Some(7),
        ..ask(RequestClass::Writes, "r", Rank::Backfill)
    });
    requests.reorder(|ticket| (ticket == 7).then(|| queue("r", Rank::Named)));
    assert_eq!(requests.grant(now).map(|(id, _)| id), Some(raised));
}

/// What a request of a random run is for.
#[derive(Clone, Copy, Debug)]
enum Sort {
    Job,
    Look,
    Naming,
    Probe,
}

/// What a random run does next.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        class: usize,
        flow: usize,
        rank: usize,
        sort: Sort,
    },
    Answer(usize),
    Cancel(usize),
    GiveBack(usize),
    Close {
        class: usize,
        millis: u64,
    },
    Congested(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let ask = (
        0usize..5,
        0usize..3,
        0usize..5,
        prop_oneof![5 => Just(Sort::Job), 3 => Just(Sort::Look), 1 => Just(Sort::Naming), 1 => Just(Sort::Probe)],
    );
    prop_oneof![
        6 => ask.prop_map(|(class, flow, rank, sort)| Step::Ask { class, flow, rank, sort }),
        4 => (0usize..100).prop_map(Step::Answer),
        1 => (0usize..100).prop_map(Step::Cancel),
        1 => (0usize..100).prop_map(Step::GiveBack),
        1 => (0usize..5, 0u64..2000).prop_map(|(class, millis)| Step::Close { class, millis }),
        1 => (0usize..5).prop_map(Step::Congested),
        3 => (1u64..500).prop_map(Step::Wait),
    ]
}

/// The windows of a random run.
const LIMIT: Concurrency = Concurrency { usual: 4, most: 6 };
/// A quarter of nine tenths of twenty in a second, and one at once.
const LOOKS: usize = 6;

/// Grants all that may go; checks that no limit is exceeded and that the order is kept.
fn grant_all(
    requests: &mut Requests,
    out: &mut Vec<(u64, Ask)>,
    waiting: &mut BTreeMap<u64, Ask>,
    looks: &mut Vec<(RequestClass, Instant)>,
    now: Instant,
) -> Result<(), TestCaseError> {
    while let Some((id, ask)) = requests.grant(now) {
        let class = requests.class(ask.class);
        let of_class = |out: &[(u64, Ask)]| {
            let is_alike = |(_, other): &&(u64, Ask)| other.class == ask.class;
            out.iter().filter(is_alike).count()
        };
        prop_assert!(class.closed_for(now).is_zero(), "sent before its time");
        prop_assert!(
            requests.shared().out() <= LIMIT.most,
            "the shared window is exceeded"
        );
        waiting.remove(&id);
        if !ask.is_sent {
            continue;
        }
        let is_named = |ask: &Ask| ask.queue.1 == Rank::Named;
        let has_usual_room = out.len() < LIMIT.usual && of_class(out) < class.width();
        prop_assert!(
            has_usual_room || (is_named(&ask) && of_class(out) < class.named_width()),
            "the window is exceeded"
        );
        if ask.is_look {
            looks.push((ask.class, now));
            let second = now - Duration::from_secs(1);
            let lately = looks
                .iter()
                .filter(|(class, at)| *class == ask.class && *at > second)
                .count();
            prop_assert!(lately <= LOOKS, "{lately} requests of looks in a second");
        }
        // What keeps to the looks' part may have to wait where others need not.
        let goes_before = |other: &Ask| {
            let may_go = other.is_sent && (ask.is_look || !other.is_look);
            may_go
                && (has_usual_room || is_named(other))
                && LineKey::of(other).tier < LineKey::of(&ask).tier
        };
        let passed = waiting
            .values()
            .any(|other| other.class == ask.class && goes_before(other));
        prop_assert!(!passed, "{ask:?} went before what goes first");
        let older = waiting.iter().any(|(number, other)| {
            *number < id
                && other.is_sent
                && other.class == ask.class
                && LineKey::of(other) == LineKey::of(&ask)
        });
        prop_assert!(!older, "{ask:?} went before an older one of its queue");
        out.push((id, ask));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: no limit is exceeded, the order is kept, everything that waits is sent in
    /// the end, and nothing is left behind.
    #[test]
    fn everything_is_sent_in_order_and_within_the_limits(steps in proptest::collection::vec(step(), 1..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut now = Instant::now();
            let mut requests = limited(LIMIT, Some(20.0), Some(50.0), now);
            let mut out = Vec::<(u64, Ask)>::new();
            let mut waiting = BTreeMap::<u64, Ask>::new();
            let mut looks = Vec::new();
            for step in steps {
                match step {
                    Step::Ask { class, flow, rank, sort } => {
                        let route = ["a", "b", "c"][flow];
                        let ask = Ask {
                            is_look: matches!(sort, Sort::Look),
                            is_naming: matches!(sort, Sort::Naming),
                            is_sent: !matches!(sort, Sort::Probe),
                            ..ask(CLASSES[class], route, Rank::ALL[rank])
                        };
                        let id = requests.ask(ask.clone());
                        waiting.insert(id, ask);
                    }
                    Step::Answer(at) if !out.is_empty() => {
                        let (_, ask) = out.remove(at % out.len());
                        let epoch = requests.class(ask.class).epoch();
                        requests.class_mut(ask.class).helped(epoch);
                        requests.release(ask.class);
                    }
                    Step::Cancel(at) if !waiting.is_empty() => {
                        let id = *waiting.keys().nth(at % waiting.len()).expect("it is there");
                        waiting.remove(&id);
                        requests.cancel(id);
                    }
                    Step::GiveBack(at) if !out.is_empty() => {
                        let (id, ask) = out.remove(at % out.len());
                        if ask.is_look {
                            let last = looks.iter().rposition(|(class, _)| *class == ask.class);
                            looks.remove(last.expect("it was granted"));
                        }
                        requests.ask_again(id, ask.clone(), now);
                        waiting.insert(id, ask);
                    }
                    Step::Close { class, millis } => {
                        requests.class_mut(CLASSES[class]).close(Duration::from_millis(millis), now);
                    }
                    Step::Congested(class) => {
                        let limits = requests.class_mut(CLASSES[class]);
                        let epoch = limits.epoch();
                        // Those that are out may be more than the window is wide now: as many as it
                        // was before.
                        if out.iter().all(|(_, ask)| ask.class != CLASSES[class]) {
                            limits.congested(epoch, None, now);
                        }
                    }
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                    Step::Answer(_) | Step::Cancel(_) | Step::GiveBack(_) => {}
                }
                grant_all(&mut requests, &mut out, &mut waiting, &mut looks, now)?;
            }
            for _ in 0..10_000 {
                for (_, ask) in out.drain(..) {
                    requests.release(ask.class);
                }
                if waiting.is_empty() {
                    break;
                }
                grant_all(&mut requests, &mut out, &mut waiting, &mut looks, now)?;
                if out.is_empty() && !waiting.is_empty() {
                    now = requests.next_time(now).expect("what waits is told when its time comes");
                }
            }
            prop_assert!(waiting.is_empty(), "{} were never sent", waiting.len());
            prop_assert_eq!(requests.shared().out(), 0);
            prop_assert!(requests.asks.is_empty() && requests.oldest().is_none());
            prop_assert!(requests.classes.iter().all(|class| class.lines.is_empty() && class.probes.is_empty()));
            Ok(())
        })?;
    }
}
