//! The shares of registry pairs and of ranks.

use super::*;

const SIXTEEN: Capacity = Capacity {
    all: 16,
    by_name: 4,
};

fn with_pairs(pairs: &[&str]) -> Queue {
    let mut queue = Queue::default();
    let names: Vec<Arc<str>> = pairs.iter().map(|pair| Arc::from(*pair)).collect();
    queue.set_registry_pairs(names.iter().map(|name| (name, name.to_string())));
    queue
}

fn in_lane(pair: &str, repository: usize) -> LookKey {
    LookKey {
        route: pair.into(),
        repository: format!("r{repository}").parse().unwrap(),
        dry_run: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_answer_leaves_places_to_the_others() {
    let mut queue = with_pairs(&["sick", "well"]);
    let now = Instant::now();
    for number in 0..100 {
        queue.add(
            in_lane("sick", number),
            ask(Cause::Ping, &["v1"]),
            None,
            now,
        );
        queue.add(
            in_lane("sick", 100 + number),
            ask(Cause::Start, &[]),
            None,
            now,
        );
    }
    let started = std::iter::from_fn(|| queue.start(now, SIXTEEN)).count();
    assert_eq!(started, 12, "not even by name does one pair take all");
    queue.add(in_lane("well", 0), ask(Cause::Ping, &["v1"]), None, now);
    assert!(
        queue
            .start(now, SIXTEEN)
            .is_some_and(|(key, _)| &*key.route == "well")
    );

    let mut queue = with_pairs(&["sick", "well"]);
    let now = Instant::now();
    (0..100)
        .for_each(|number| queue.add(in_lane("sick", number), ask(Cause::Start, &[]), None, now));
    assert_eq!(std::iter::from_fn(|| queue.start(now, SIXTEEN)).count(), 6);
    queue.add(in_lane("well", 0), ask(Cause::Start, &[]), None, now);
    assert!(
        queue
            .start(now, SIXTEEN)
            .is_some_and(|(key, _)| &*key.route == "well")
    );

    let mut queue = with_pairs(&["only"]);
    let now = Instant::now();
    (0..100)
        .for_each(|number| queue.add(in_lane("only", number), ask(Cause::Start, &[]), None, now));
    assert_eq!(
        std::iter::from_fn(|| queue.start(now, SIXTEEN)).count(),
        12,
        "alone it has all but the reserved ones"
    );
}

#[tokio::test(start_paused = true)]
async fn events_new_pushes_and_backfills_take_turns() {
    let mut queue = with_pairs(&["one"]);
    let now = Instant::now();
    for number in 0..100 {
        for (position, cause) in [(0, Cause::Webhook), (100, Cause::Poll), (200, Cause::Start)] {
            queue.add(
                in_lane("one", position + number),
                ask(cause, &[]),
                None,
                now,
            );
        }
    }
    let capacity = Capacity {
        all: 1000,
        by_name: 0,
    };
    let causes: Vec<Cause> = std::iter::from_fn(|| queue.start(now, capacity))
        .map(|(_, waiting)| waiting.request.cause)
        .collect();
    let of = |cause: Cause| causes[..65].iter().filter(|other| **other == cause).count();
    assert_eq!(
        (of(Cause::Webhook), of(Cause::Poll), of(Cause::Start)),
        (40, 20, 5)
    );
    assert_eq!(causes.len(), 300);
}

#[tokio::test(start_paused = true)]
async fn lanes_take_turns_however_much_one_of_them_asks() {
    let mut queue = with_pairs(&["busy", "quiet"]);
    let now = Instant::now();
    (0..50).for_each(|number| queue.add(in_lane("busy", number), ask(Cause::Poll, &[]), None, now));
    for _ in 0..5 {
        queue.start(now, ANY);
    }
    (0..5).for_each(|number| queue.add(in_lane("quiet", number), ask(Cause::Poll, &[]), None, now));
    let next: Vec<_> = (0..10)
        .filter_map(|_| queue.start(now, ANY))
        .map(|(key, _)| key.route.to_string())
        .collect();
    assert_eq!(
        next.iter().filter(|route| *route == "quiet").count(),
        5,
        "{next:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pair_that_begins_after_a_blocked_one_has_started_takes_turns() {
    let mut queue = with_pairs(&["blocked", "busy", "late"]);
    let now = Instant::now();
    let add = |queue: &mut Queue, pair: &str| {
        for number in 0..100 {
            queue.add(in_lane(pair, number), ask(Cause::Poll, &[]), None, now);
        }
    };
    add(&mut queue, "blocked");
    let mut blocked: Vec<_> = std::iter::from_fn(|| queue.start(now, SIXTEEN)).collect();
    assert_eq!(blocked.len(), 6, "its cap");
    add(&mut queue, "busy");
    for _ in 0..50 {
        let (key, _) = queue.start(now, SIXTEEN).unwrap();
        assert_eq!(&*key.route, "busy");
        queue.settled(&key, false, true, now);
    }
    let (ended, _) = blocked.pop().unwrap();
    queue.settled(&ended, false, true, now);
    let (key, _) = queue.start(now, SIXTEEN).unwrap();
    assert_eq!(&*key.route, "blocked", "its turn is the oldest");
    add(&mut queue, "late");
    let routes: Vec<String> = (0..10)
        .map(|_| {
            let (key, _) = queue.start(now, SIXTEEN).unwrap();
            queue.settled(&key, false, true, now);
            key.route.to_string()
        })
        .collect();
    let late = routes.iter().filter(|route| *route == "late").count();
    assert_eq!(late, 5, "{routes:?}");
}

#[tokio::test(start_paused = true)]
async fn wide_requests_leave_the_reserve_to_requests_that_name_tags() {
    for cause in [Cause::Cli, Cause::Ping, Cause::Signal] {
        let mut queue = with_pairs(&["one"]);
        let now = Instant::now();
        (0..1000).for_each(|number| queue.add(in_lane("one", number), ask(cause, &[]), None, now));
        let started = std::iter::from_fn(|| queue.start(now, SIXTEEN)).count();
        assert_eq!(started, 12, "{cause}");
        queue.add(in_lane("one", 999), ask(Cause::Ping, &["v1"]), None, now);
        let (hotfix, waiting) = queue.start(now, SIXTEEN).expect("a reserved place");
        assert_eq!(
            (hotfix, waiting.request.tags.len()),
            (in_lane("one", 999), 1),
            "{cause}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn wide_requests_and_events_take_turns() {
    let mut queue = with_pairs(&["one"]);
    let now = Instant::now();
    for number in 0..100 {
        queue.add(in_lane("one", number), ask(Cause::Signal, &[]), None, now);
        queue.add(
            in_lane("one", 100 + number),
            ask(Cause::Webhook, &["v1"]),
            None,
            now,
        );
    }
    let events = std::iter::from_fn(|| queue.start(now, ANY))
        .take(20)
        .filter(|(_, waiting)| waiting.request.cause == Cause::Webhook)
        .count();
    assert_eq!(events, 10);
}
