//! Looks that notifications of pushes ask for.

use jiff::Timestamp;

use super::*;

const LATER: Duration = Duration::from_secs(5);

fn pushed(tag: &str, second: i64) -> LookRequest {
    let at = Timestamp::from_second(second).unwrap();
    LookRequest {
        pushed: [(tag.parse().unwrap(), at)].into(),
        ..ask(Cause::Webhook, &[tag])
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_looked_at_without_what_was_pushed_without_one() {
    let now = Instant::now();
    for children_first in [true, false] {
        let mut queue = Queue::default();
        let untagged = |queue: &mut Queue| {
            let wide = ask(Cause::Webhook, &[]);
            queue.add_at(key("a"), wide, None, now + LATER, now);
        };
        if children_first {
            untagged(&mut queue);
        }
        queue.add(key("a"), pushed("v1", 1), None, now);
        if !children_first {
            untagged(&mut queue);
        }
        let (running, waiting) = queue.start(now, ANY).expect("the tag is due");
        assert_eq!(waiting.request.tags, ["v1".parse().unwrap()]);
        queue.settled(&running, false, true, now);
        assert!(queue.start(now, ANY).is_none(), "not before its time");
        let (_, waiting) = queue.start(now + LATER, ANY).expect("the rest is due");
        assert!(waiting.request.tags.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_one_repository_is_one_look_with_the_newest_times() {
    let mut queue = Queue::default();
    let now = Instant::now();
    for second in [3, 1, 2] {
        queue.add(key("a"), pushed("v1", second), None, now);
    }
    queue.add(key("a"), pushed("v2", 7), None, now);
    let (_, waiting) = queue.start(now, ANY).unwrap();
    let times: Vec<i64> = waiting
        .request
        .pushed
        .values()
        .map(|at| at.as_second())
        .collect();
    assert_eq!((waiting.request.tags.len(), times), (2, vec![3, 7]));
    assert!(queue.start(now, ANY).is_none());
}

/// The daemon's own look at a resting tag took the count of attempts down: a push that never showed
/// was looked for without end.
#[tokio::test(start_paused = true)]
async fn attempts_at_a_push_count_on_beside_the_daemons_own_looks() {
    let now = Instant::now();
    let again = LookRequest {
        attempt: 2,
        ..ask(Cause::Webhook, &["v1"])
    };
    let own = || ask(Cause::Verify, &["v4"]);
    for requests in [[again.clone(), own()], [own(), again.clone()]] {
        let mut queue = Queue::default();
        for request in requests {
            queue.add(key("a"), request, None, now);
        }
        let (_, waiting) = queue.start(now, ANY).expect("it is due");
        assert_eq!(waiting.request.attempt, 2);
    }
    let mut queue = Queue::default();
    for request in [again.clone(), pushed("v1", 1)] {
        queue.add(key("a"), request, None, now);
    }
    let (_, waiting) = queue.start(now, ANY).expect("it is due");
    assert_eq!(waiting.request.attempt, 0, "a new push begins anew");
}

#[tokio::test(start_paused = true)]
async fn notifications_cannot_fill_the_queue() {
    let mut queue = Queue::default();
    let now = Instant::now();
    for number in 0..NOTIFIED {
        queue.add(
            key(&format!("r{number}")),
            ask(Cause::Webhook, &[]),
            None,
            now,
        );
    }
    assert!(!queue.has_room(&key("new")) && queue.has_room(&key("r7")));
}
