//! The consumer over a queue in memory, in virtual time.

mod memory;

use prometheus::Registry;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use self::memory::Memory;
use super::*;
use crate::status::metrics::queues::MessageResult;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// An event of EventBridge about a push to `app`.
fn pushed(tag: &str) -> String {
    format!(
        r#"{{"version":"0","detail-type":"ECR Image Action","source":"aws.ecr","account":"123456789012",
        "time":"2026-11-21T19:45:02Z","region":"eu-west-1","resources":[],"detail":{{"result":"SUCCESS",
        "repository-name":"app","image-digest":"sha256:00","action-type":"PUSH","image-tag":"{tag}"}}}}"#
    )
}

/// What a look does.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// It ends at once.
    Ends(Settlement),
    /// It ends after a time.
    Takes(Duration),
    /// It ends when the watch drains.
    Interrupted,
    /// So many events are not taken; the next one settles.
    Busy(u32),
}

/// Looks that end as the test says.
#[derive(Clone)]
struct ScriptedLooks {
    ending: Ending,
    looked: Arc<Mutex<Vec<String>>>,
    counted: Arc<Mutex<BTreeMap<String, usize>>>,
    begun: Arc<Notify>,
    drained: CancellationToken,
}

impl ScriptedLooks {
    fn new(ending: Ending) -> ScriptedLooks {
        ScriptedLooks {
            ending,
            looked: Arc::default(),
            counted: Arc::default(),
            begun: Arc::default(),
            drained: CancellationToken::new(),
        }
    }

    fn looked(&self) -> Vec<String> {
        self.looked.lock().unwrap().clone()
    }
}

impl Looks for ScriptedLooks {
    async fn look(&self, push: Push) -> Result<Settlement, Busy> {
        let tags: Vec<&str> = push.tags.iter().map(|tag| tag.as_str()).collect();
        self.looked.lock().unwrap().push(tags.join(","));
        self.begun.notify_one();
        match self.ending {
            Ending::Ends(settlement) => return Ok(settlement),
            Ending::Takes(time) => sleep(time).await,
            Ending::Interrupted => {
                self.drained.cancelled().await;
                return Ok(Settlement::Interrupted);
            }
            Ending::Busy(times) if self.looked().len() <= times as usize => return Err(Busy::Full),
            Ending::Busy(_) => {}
        }
        Ok(Settlement::Settled)
    }

    fn count(&self, result: &str) {
        *self
            .counted
            .lock()
            .unwrap()
            .entry(result.into())
            .or_default() += 1;
    }
}

/// A consumer that runs.
struct Running {
    task: JoinHandle<()>,
    drain: CancellationToken,
    metrics: crate::status::Metrics,
    registry: Registry,
    board: Board,
}

impl Running {
    fn start(queue: &Memory, looks: &ScriptedLooks) -> Running {
        let registry = Registry::new();
        let metrics = crate::status::Metrics::new(&registry).unwrap();
        metrics.queues.prepare("q");
        let board = Board::default();
        board.update(|status| {
            status.queues = vec![MessageQueueStatus {
                name: "q".into(),
                ..MessageQueueStatus::default()
            }];
        });
        let drain = CancellationToken::new();
        let consumer = Consumer {
            name: "q".into(),
            queue: queue.clone(),
            looks: looks.clone(),
            metrics: metrics.queues.clone(),
            board: board.clone(),
            drain: drain.clone(),
        };
        Running {
            task: tokio::spawn(consumer.run()),
            drain,
            metrics,
            registry,
            board,
        }
    }

    async fn drained(self) {
        self.drain.cancel();
        self.task.await.unwrap();
    }

    fn count(&self, result: MessageResult) -> f64 {
        let families = self.registry.gather();
        let messages = families
            .iter()
            .filter(|family| family.name() == "blobferry_queue_messages_total")
            .flat_map(|family| family.get_metric());
        let of_result = |metric: &&prometheus::proto::Metric| {
            let mut labels = metric.get_label().iter();
            labels.any(|label| label.value() == result.name())
        };
        messages
            .filter(of_result)
            .map(|metric| metric.get_counter().get_value())
            .sum()
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_deleted_when_its_look_has_settled() {
    let queue = Memory::new(5);
    let looks = ScriptedLooks::new(Ending::Takes(SECOND * 95));
    queue.send(&pushed("v1"));
    let started = Instant::now();
    let running = Running::start(&queue, &looks);
    queue.wait_until_empty().await;
    assert_eq!(started.elapsed(), SECOND * 95);
    assert_eq!(looks.looked(), ["v1"]);
    assert_eq!(running.count(MessageResult::Settled), 1.0);
    let renewals = queue.visibilities();
    assert_eq!(renewals, [SECOND * 30; 9], "every 10 s, to 30 s");
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_look_ends_in_the_dead_letter_queue() {
    let queue = Memory::new(5);
    let looks = ScriptedLooks::new(Ending::Ends(Settlement::Failed));
    queue.send(&pushed("v1"));
    let started = Instant::now();
    let running = Running::start(&queue, &looks);
    let dead = queue.wait_for_dead_letter().await;
    assert_eq!(dead, pushed("v1"));
    assert_eq!(looks.looked().len(), 5);
    assert_eq!(
        queue.visibilities(),
        [10, 20, 40, 80, 160].map(Duration::from_secs)
    );
    assert_eq!(started.elapsed(), SECOND * 310);
    assert_eq!(running.count(MessageResult::Failed), 5.0);
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_look_is_tried_every_15_minutes_in_the_end() {
    let queue = Memory::new(12);
    let looks = ScriptedLooks::new(Ending::Ends(Settlement::Failed));
    queue.send(&pushed("v1"));
    let running = Running::start(&queue, &looks);
    queue.wait_for_dead_letter().await;
    let last: Vec<u64> = queue.visibilities()[5..]
        .iter()
        .map(Duration::as_secs)
        .collect();
    assert_eq!(last, [320, 640, 900, 900, 900, 900, 900]);
    running.drained().await;
}

/// SQS would give the message to another consumer after 12 h, whatever is renewed.
#[tokio::test(start_paused = true)]
async fn a_message_is_deleted_after_11_hours_although_its_look_runs() {
    let queue = Memory::new(5);
    let looks = ScriptedLooks::new(Ending::Takes(HOUR * 20));
    queue.send(&pushed("v1"));
    let started = Instant::now();
    let running = Running::start(&queue, &looks);
    queue.wait_until_empty().await;
    assert_eq!(started.elapsed(), HOUR * 11);
    assert_eq!(running.count(MessageResult::Expired), 1.0);
    assert_eq!(
        looks.looked().len(),
        1,
        "no other consumer has received it meanwhile"
    );
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_dies_gives_its_messages_back_within_30_seconds() {
    let queue = Memory::new(5);
    let slow = ScriptedLooks::new(Ending::Takes(HOUR));
    queue.send(&pushed("v1"));
    let first = Running::start(&queue, &slow);
    slow.begun.notified().await;
    sleep(SECOND * 25).await;
    first.task.abort();
    let died = Instant::now();
    let quick = ScriptedLooks::new(Ending::Ends(Settlement::Settled));
    let second = Running::start(&queue, &quick);
    queue.wait_until_empty().await;
    assert_eq!(quick.looked(), ["v1"]);
    assert_eq!(
        died.elapsed(),
        SECOND * 25,
        "30 s after the renewal at 20 s"
    );
    second.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_returns_at_once_what_has_not_settled() {
    let queue = Memory::new(5);
    let looks = ScriptedLooks::new(Ending::Interrupted);
    queue.send(&pushed("v1"));
    let running = Running::start(&queue, &looks);
    looks.begun.notified().await;
    let began = Instant::now();
    looks.drained.cancel();
    running.drain.cancel();
    running.task.await.unwrap();
    assert_eq!(queue.visibilities(), [Duration::ZERO]);
    let other = ScriptedLooks::new(Ending::Ends(Settlement::Settled));
    let second = Running::start(&queue, &other);
    queue.wait_until_empty().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(other.looked(), ["v1"]);
    second.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_looks_that_still_settle() {
    let queue = Memory::new(5);
    let looks = ScriptedLooks::new(Ending::Takes(SECOND * 15));
    queue.send(&pushed("v1"));
    let running = Running::start(&queue, &looks);
    looks.begun.notified().await;
    running.drain.cancel();
    sleep(SECOND).await;
    queue.send(&pushed("v2"));
    running.drained().await;
    assert_eq!(
        looks.looked(),
        ["v1"],
        "nothing is received during the drain"
    );
    assert_eq!(queue.len(), 1);
}

/// A config without the route interrupts its looks: the message is judged again later.
#[tokio::test(start_paused = true)]
async fn a_look_that_loses_its_route_gives_the_message_back_with_a_delay() {
    let queue = Memory::new(1);
    let looks = ScriptedLooks::new(Ending::Ends(Settlement::Interrupted));
    queue.send(&pushed("v1"));
    let running = Running::start(&queue, &looks);
    queue.wait_for_dead_letter().await;
    assert_eq!(queue.visibilities(), [SECOND * 10]);
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn poison_is_counted_and_left_to_the_redrive_policy() {
    let queue = Memory::new(2);
    let looks = ScriptedLooks::new(Ending::Ends(Settlement::Settled));
    queue.send("{\"detail-type\": 5}");
    let running = Running::start(&queue, &looks);
    assert_eq!(queue.wait_for_dead_letter().await, "{\"detail-type\": 5}");
    assert_eq!(looks.looked(), [""; 0]);
    assert_eq!(running.count(MessageResult::Malformed), 2.0);
    assert_eq!(looks.counted.lock().unwrap()["malformed"], 2);
    assert_eq!(queue.deletions(), 0);
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn what_no_route_has_is_deleted() {
    let queue = Memory::new(2);
    let looks = ScriptedLooks::new(Ending::Ends(Settlement::Ignored));
    queue.send(&pushed("v1"));
    queue.send(&pushed("v1").replace("PUSH", "DELETE"));
    let running = Running::start(&queue, &looks);
    queue.wait_until_empty().await;
    assert_eq!(looks.looked(), ["v1"], "a deletion asks for no look");
    assert_eq!(running.count(MessageResult::Ignored), 2.0);
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn an_envelope_of_sns_is_opened() {
    let queue = Memory::new(2);
    let looks = ScriptedLooks::new(Ending::Ends(Settlement::Settled));
    let envelope =
        serde_json::json!({"Type": "Notification", "MessageId": "m", "Message": pushed("v7")});
    queue.send(&envelope.to_string());
    let running = Running::start(&queue, &looks);
    queue.wait_until_empty().await;
    assert_eq!(looks.looked(), ["v7"]);
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn messages_in_hand_are_bounded() {
    let queue = Memory::new(5);
    let looks = ScriptedLooks::new(Ending::Takes(HOUR));
    (0..1000).for_each(|number| queue.send(&pushed(&format!("v{number}"))));
    let running = Running::start(&queue, &looks);
    sleep(HOUR / 2).await;
    assert_eq!(looks.looked().len(), MOST);
    assert_eq!(running.board.snapshot().queues[0].in_hand, MOST);
    assert_eq!(
        running.board.snapshot().queues[0].depth,
        Some(1000 - MOST as u64)
    );
    sleep(HOUR / 2 + SECOND).await;
    assert_eq!(looks.looked().len(), 2 * MOST);
    running.task.abort();
}

#[tokio::test(start_paused = true)]
async fn three_consumers_share_a_queue() {
    let queue = Memory::new(5);
    let looks = ScriptedLooks::new(Ending::Takes(SECOND * 3));
    (0..300).for_each(|number| queue.send(&pushed(&format!("v{number}"))));
    let running = [(); 3].map(|()| Running::start(&queue, &looks));
    queue.wait_until_empty().await;
    let mut looked = looks.looked();
    looked.sort_unstable();
    looked.dedup();
    assert_eq!((looked.len(), looks.looked().len()), (300, 300));
    for one in running {
        assert!(
            one.count(MessageResult::Settled) > 0.0,
            "each has taken some"
        );
        one.drained().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_does_not_answer_is_asked_less_and_less_often() {
    let queue = Memory::new(5);
    queue.fail(Some("no way to AWS"));
    let looks = ScriptedLooks::new(Ending::Ends(Settlement::Settled));
    let running = Running::start(&queue, &looks);
    sleep(SECOND * 600).await;
    // At 0, 1, 3, 7, 15, 31, 63 s, then every minute.
    assert_eq!(queue.receives(), 15);
    let shown = running.board.snapshot().queues.remove(0);
    assert_eq!((shown.up, shown.depth), (Some(false), None));
    assert!(shown.trouble.unwrap().contains("no way to AWS"));
    queue.send(&pushed("v1"));
    queue.fail(None);
    queue.wait_until_empty().await;
    // Of the depth, which is asked for every 30 s.
    sleep(SECOND * 31).await;
    let shown = running.board.snapshot().queues.remove(0);
    assert_eq!(
        (shown.up, shown.depth, shown.trouble),
        (Some(true), Some(0), None)
    );
    running.metrics.refresh();
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_takes_no_more_events_keeps_the_message() {
    let queue = Memory::new(1);
    let looks = ScriptedLooks::new(Ending::Busy(20));
    queue.send(&pushed("v1"));
    let running = Running::start(&queue, &looks);
    queue.wait_until_empty().await;
    assert_eq!(looks.looked().len(), 21);
    assert_eq!(running.count(MessageResult::Settled), 1.0);
    assert!(queue.visibilities().iter().all(|time| *time == SECOND * 30));
    running.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_fails_is_tried_again() {
    let queue = Memory::new(1);
    let looks = ScriptedLooks::new(Ending::Takes(SECOND));
    queue.send(&pushed("v1"));
    let running = Running::start(&queue, &looks);
    looks.begun.notified().await;
    queue.fail(Some("throttled"));
    sleep(SECOND * 3).await;
    queue.fail(None);
    queue.wait_until_empty().await;
    assert_eq!(looks.looked().len(), 1, "the message did not come back");
    running.drained().await;
}
