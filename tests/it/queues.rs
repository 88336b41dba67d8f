//! Queues of push events against moto's SQS, through the built binary.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::docs;
use crate::support::ecr::HOME;
use crate::support::moto::Moto;
use crate::support::*;

/// What EventBridge sends when a tag was pushed.
fn pushed(tag: &str) -> Value {
    json!({
        "version": "0", "id": "13cde686-328b-6117-af20-0e5566167482", "detail-type": "ECR Image Action",
        "source": "aws.ecr", "account": HOME, "time": "2026-11-21T01:54:34Z", "region": "eu-west-1", "resources": [],
        "detail": {"result": "SUCCESS", "repository-name": "app", "image-digest": "sha256:7f5b", "action-type": "PUSH", "image-tag": tag},
    })
}

/// The envelope of SNS in front of a queue.
fn in_sns(event: &Value) -> Value {
    json!({"Type": "Notification", "MessageId": "m", "Message": event.to_string(),
        "TopicArn": "arn:aws:sns:eu-west-1:123456789012:t"})
}

/// The same push as a CloudEvent in structured mode, as an input transformer makes it.
fn as_cloud_event(tag: &str, account: &str) -> Value {
    json!({
        "specversion": "1.0", "id": "13cde686", "type": "com.amazon.ecr.image.push",
        "source": format!("urn:aws:ecr:eu-west-1:{account}:repository/app"), "time": "2026-11-21T01:54:34Z",
        "data": {"repositoryName": "app", "imageTag": tag, "imageDigest": "sha256:7f5b", "registryId": account},
    })
}

/// A queue of moto, and its dead-letter queue.
struct TestQueue {
    moto: Moto,
    url: String,
    dead: String,
}

impl TestQueue {
    /// A message that was received `most` times goes to the dead-letter queue.
    async fn start(most: u32) -> TestQueue {
        let moto = Moto::start().await;
        let dead = create(&moto, "dead", json!({})).await;
        let policy = json!({"deadLetterTargetArn": format!("arn:aws:sqs:eu-west-1:{HOME}:dead"), "maxReceiveCount": most});
        let url = create(
            &moto,
            "pushes",
            json!({"RedrivePolicy": policy.to_string()}),
        )
        .await;
        TestQueue { moto, url, dead }
    }

    async fn send(&self, body: &str) {
        let body = json!({"QueueUrl": self.url, "MessageBody": body});
        self.moto.sqs("SendMessage", body).await;
    }

    /// Messages that wait, and messages that some consumer has.
    async fn counts(&self) -> (u64, u64) {
        let asked = json!({"QueueUrl": self.url, "AttributeNames": ["All"]});
        let answer = self.moto.sqs("GetQueueAttributes", asked).await;
        let number = |name: &str| {
            let text = answer["Attributes"][name]
                .as_str()
                .expect("a number as text");
            text.parse().expect("a number")
        };
        let visible = number("ApproximateNumberOfMessages");
        let in_flight = number("ApproximateNumberOfMessagesNotVisible");
        (visible, in_flight)
    }

    async fn wait_for_counts(&self, expected: (u64, u64)) {
        eventually(&format!("the queue holds {expected:?}"), async || {
            (self.counts().await == expected).then_some(())
        })
        .await;
    }

    /// The body of the first dead letter.
    async fn dead_letter(&self) -> String {
        eventually("a dead letter", async || {
            let asked = json!({"QueueUrl": self.dead});
            let answer = self.moto.sqs("ReceiveMessage", asked).await;
            answer["Messages"][0]["Body"].as_str().map(str::to_owned)
        })
        .await
    }
}

async fn create(moto: &Moto, name: &str, attributes: Value) -> String {
    let body = json!({"QueueName": name, "Attributes": attributes});
    let created = moto.sqs("CreateQueue", body).await;
    created["QueueUrl"].as_str().expect("a URL").to_owned()
}

/// Two registries and a daemon that consumes the queue.
async fn stage(queue: &TestQueue, change: impl FnOnce(Config) -> Config) -> Stage {
    let config =
        |config: Config| change(config.queue("pushes", &queue.url)).route("app", json!({}));
    let mut stage = Stage::build(Program::Distribution3, config).await;
    stage.ferry = stage.ferry.with_aws_identity(&queue.moto);
    stage
}

async fn messages(daemon: &Daemon, result: &str) -> f64 {
    let labels = [("queue", "pushes"), ("result", result)];
    let value = daemon
        .metric("blobferry_queue_messages_total", &labels)
        .await;
    value.expect("the series is there from the start")
}

async fn wait_for_messages(daemon: &Daemon, result: &str, count: f64) {
    eventually(&format!("{count} messages are {result}"), async || {
        (messages(daemon, result).await >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_push_arrives_plain_and_in_an_envelope_of_sns() {
    let queue = TestQueue::start(5).await;
    let stage = stage(&queue, |config| config).await;
    let daemon = stage.ferry.start_ready().await;
    let (one, two) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    stage.push().push("app", "v1", &one).await;
    stage.push().push("app", "v2", &two).await;
    queue.send(&pushed("v1").to_string()).await;
    wait_for_messages(&daemon, "settled", 1.0).await;
    stage.there().assert_holds("app", "v1", &one).await;
    assert!(stage.there().digest("app", "v2").await.is_none());
    queue.send(&in_sns(&pushed("v2")).to_string()).await;
    wait_for_messages(&daemon, "settled", 2.0).await;
    stage.there().assert_holds("app", "v2", &two).await;
    queue.wait_for_counts((0, 0)).await;
    let status = daemon.get("/v1/status").await.text().await.expect("text");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let shown = &status["queues"][0];
    assert_eq!(
        (&shown["name"], &shown["up"]),
        (&json!("pushes"), &json!(true))
    );
    assert_eq!(
        (&shown["registry"], &shown["in_hand"]),
        (&json!("staging"), &json!(0))
    );
    let page = stage.ferry.run(&["status"]).await.expect(0).stdout;
    assert!(page.contains("QUEUE"), "{page}");
    let history = stage.ferry.run(&["history", "--json"]).await;
    assert_eq!(history.code, 0, "{}", history.said());
    assert!(
        history.stdout.contains("queue:pushes"),
        "{}",
        history.stdout
    );
}

/// A message has no headers: the structured mode is known by what the body says.
#[tokio::test]
async fn cloud_events_arrive_alone_and_in_an_envelope_of_sns() {
    let queue = TestQueue::start(5).await;
    let stage = stage(&queue, |config| config).await;
    let daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    for tag in ["v1", "v2", "v3"] {
        stage.push().push("app", tag, &image).await;
    }
    queue.send(&as_cloud_event("v1", HOME).to_string()).await;
    let enclosed = in_sns(&as_cloud_event("v2", HOME));
    queue.send(&enclosed.to_string()).await;
    wait_for_messages(&daemon, "settled", 2.0).await;
    stage.there().assert_holds("app", "v1", &image).await;
    stage.there().assert_holds("app", "v2", &image).await;
    // Neither another event, nor one without data, nor a message in a message asks for a look.
    let mut other = as_cloud_event("v3", HOME);
    other["type"] = json!("com.amazon.ecr.image.delete");
    queue.send(&other.to_string()).await;
    wait_for_messages(&daemon, "ignored", 1.0).await;
    let without_data = json!({"specversion": "1.0", "type": "com.amazon.ecr.image.push"});
    let twice = in_sns(&in_sns(&as_cloud_event("v3", HOME)));
    for body in [without_data, twice] {
        queue.send(&body.to_string()).await;
    }
    wait_for_messages(&daemon, "malformed", 2.0).await;
    assert!(stage.there().digest("app", "v3").await.is_none());
}

/// The template of `config/eventbridge`, from ECR's event to production.
#[tokio::test]
async fn the_template_brings_a_push_from_eventbridge_to_production() {
    const URL: &str = "https://sqs.eu-west-1.amazonaws.com/123456789012/blobferry-pushes";
    let moto = Moto::start().await;
    let template = docs::read("config/eventbridge/queue.yaml");
    moto.create_stack("blobferry", &template).await;
    let keys = json!({"endpoint": moto.url});
    let config = |config: Config| {
        config
            .queue_with("pushes", URL, keys)
            .route("app", json!({}))
    };
    let mut stage = Stage::build(Program::Distribution3, config).await;
    stage.ferry = stage.ferry.with_aws_identity(&moto);
    let daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    for tag in ["v1", "v2", "v3"] {
        stage.push().push("app", tag, &image).await;
    }
    let mut deleted = pushed("v2");
    deleted["detail"]["action-type"] = json!("DELETE");
    let scanned = json!({"detail-type": "Inspector2 Scan", "source": "aws.inspector2", "detail": {
        "scan-status": "INITIAL_SCAN_COMPLETE", "image-tags": ["v3"],
        "repository-name": format!("arn:aws:ecr:eu-west-1:{HOME}:repository/app"),
    }});
    let events = [pushed("v1"), deleted, scanned];
    let entries = events.map(|event| {
        json!({"Source": event["source"], "DetailType": event["detail-type"], "Detail": event["detail"].to_string()})
    });
    moto.events("PutEvents", json!({"Entries": entries})).await;
    wait_for_messages(&daemon, "settled", 2.0).await;
    stage.there().assert_holds("app", "v1", &image).await;
    stage.there().assert_holds("app", "v3", &image).await;
    assert!(
        stage.there().digest("app", "v2").await.is_none(),
        "the rule lets no deletion through"
    );
    assert_eq!(messages(&daemon, "ignored").await, 0.0);
}

#[tokio::test]
async fn a_failing_look_ends_in_the_dead_letter_queue() {
    let queue = TestQueue::start(1).await;
    let stage = stage(&queue, |config| config).await;
    let daemon = stage.ferry.start_ready().await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    // The registry understood and refuses: no attempt is repeated within the look.
    stage.target.always(Kind::ManifestPut, Reply::status(400));
    queue.send(&pushed("v1").to_string()).await;
    assert_eq!(queue.dead_letter().await, pushed("v1").to_string());
    assert_eq!(messages(&daemon, "failed").await, 1.0);
    assert_eq!(messages(&daemon, "settled").await, 0.0);
    assert!(stage.there().digest("app", "v1").await.is_none());
}

#[tokio::test]
async fn a_daemon_that_is_killed_in_mid_look_loses_no_message() {
    let queue = TestQueue::start(5).await;
    let stage = stage(&queue, |config| config).await;
    let mut daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[100_000]);
    stage.push().push("app", "v1", &image).await;
    let gate = Gate::closed();
    let held = Rule::on(&[Kind::BlobGet]).act(Act::HoldAnswer(10, gate.clone()));
    stage.source.rule(held);
    queue.send(&pushed("v1").to_string()).await;
    gate.arrived(1).await;
    daemon.signal("KILL").await;
    daemon.ended().await;
    stage.source.reset();
    gate.open();
    assert_eq!(
        queue.counts().await,
        (0, 1),
        "the message is still the dead daemon's"
    );
    queue.wait_for_counts((1, 0)).await;
    let daemon = stage.ferry.start().await;
    wait_for_messages(&daemon, "settled", 1.0).await;
    stage.there().assert_holds("app", "v1", &image).await;
    queue.wait_for_counts((0, 0)).await;
}

#[tokio::test]
async fn a_drain_returns_a_message_at_once_whose_look_cannot_end() {
    let queue = TestQueue::start(5).await;
    let stage = stage(&queue, |config| config.daemon("grace", json!("1s"))).await;
    let mut daemon = stage.ferry.start_ready().await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[100_000]))
        .await;
    let gate = Gate::closed();
    let held = Rule::on(&[Kind::BlobGet]).act(Act::HoldAnswer(10, gate.clone()));
    stage.source.rule(held);
    queue.send(&pushed("v1").to_string()).await;
    gate.arrived(1).await;
    assert_eq!(queue.counts().await, (0, 1));
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
    assert_eq!(queue.counts().await, (1, 0), "another host can take it now");
}

#[tokio::test]
async fn a_drain_deletes_the_message_of_a_look_that_settles() {
    let queue = TestQueue::start(5).await;
    let stage = stage(&queue, |config| config).await;
    let mut daemon = stage.ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    let gate = Gate::closed();
    let held = Rule::on(&[Kind::ManifestPut]).act(Act::Hold(gate.clone()));
    stage.target.rule(held);
    queue.send(&pushed("v1").to_string()).await;
    gate.arrived(1).await;
    daemon.signal("TERM").await;
    daemon.says("draining").await;
    gate.open();
    assert_eq!(daemon.ended().await, 0);
    stage.there().assert_holds("app", "v1", &image).await;
    assert_eq!(queue.counts().await, (0, 0));
}

#[tokio::test]
async fn poison_is_counted_and_ends_in_the_dead_letter_queue() {
    const POISON: &str = "{\"detail-type\": \"ECR Image Action\", \"detail\": \"hush-hush\"}";
    let queue = TestQueue::start(1).await;
    let stage = stage(&queue, |config| config).await;
    let daemon = stage.ferry.start_ready().await;
    queue.send(POISON).await;
    assert_eq!(queue.dead_letter().await, POISON);
    assert_eq!(messages(&daemon, "malformed").await, 1.0);
    let labels = [("source", "queue"), ("result", "malformed")];
    assert_eq!(
        daemon.metric("blobferry_events_total", &labels).await,
        Some(1.0)
    );
    daemon.says("a message is no push event").await;
    let log = daemon.log();
    assert!(!log.contains("hush-hush"), "{log}");
}

#[tokio::test]
async fn three_daemons_share_300_messages_and_every_tag_arrives() {
    let queue = TestQueue::start(5).await;
    let (staging, production) = (Registry::distribution3(), Registry::distribution3());
    let config = Config::pair(&staging.url(), &production.url()).queue("pushes", &queue.url);
    let ferries = [(); 3].map(|()| Ferry::new(&config).with_aws_identity(&queue.moto));
    let daemons = join_all(ferries.iter().map(Ferry::start_ready)).await;
    let tags: Vec<String> = (0..300).map(|number| format!("v{number:03}")).collect();
    staging
        .client()
        .push("app", "v000", &Image::oci(1, &[1000]))
        .await;
    staging.copy_tag("app", "v000", tags[1..].iter().cloned());
    for some in tags.chunks(10) {
        let entries: Vec<Value> = some
            .iter()
            .map(|tag| json!({"Id": tag, "MessageBody": pushed(tag).to_string()}))
            .collect();
        let body = json!({"QueueUrl": queue.url, "Entries": entries});
        queue.moto.sqs("SendMessageBatch", body).await;
    }
    queue.wait_for_counts((0, 0)).await;
    assert_eq!(production.client().tags("app").await, tags);
    let settled = join_all(daemons.iter().map(|daemon| messages(daemon, "settled"))).await;
    assert!(
        settled.iter().all(|count| *count > 0.0),
        "each took some: {settled:?}"
    );
    assert!(settled.iter().sum::<f64>() >= 300.0, "{settled:?}");
    for daemon in &daemons {
        assert_eq!(messages(daemon, "failed").await, 0.0);
    }
}

#[tokio::test]
async fn an_event_of_another_account_or_about_no_route_asks_for_no_look() {
    let queue = TestQueue::start(5).await;
    let registry = Program::Distribution3
        .setup()
        .basic("AWS", &format!("{HOME}-auth-token"))
        .start();
    let client = registry
        .client()
        .with_basic("AWS", &format!("{HOME}-auth-token"));
    for repository in ["app", "prod"] {
        let body = json!({"repositoryName": repository});
        queue.moto.call("CreateRepository", body).await;
    }
    let keys = json!({"auth": "ecr", "kind": "ecr", "region": "eu-west-1", "account": HOME, "ecr_endpoint": queue.moto.url});
    let config = Config::new()
        .registry_with("staging", &registry.url(), keys.clone())
        .registry_with("production", &registry.url(), keys)
        .queue("pushes", &queue.url)
        .raw_route(json!({"name": "app", "from": "staging/app", "to": "production/prod", "tags": {"include": ["*"]}}));
    let ferry = Ferry::new(&config).with_aws_identity(&queue.moto);
    let daemon = ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    for tag in ["v1", "v2"] {
        client.push("app", tag, &image).await;
        queue.moto.know("app", tag, &image).await;
    }
    let mut foreign = pushed("v1");
    foreign["account"] = json!("999999999999");
    let mut unrouted = pushed("v1");
    unrouted["detail"]["repository-name"] = json!("other");
    for event in [&foreign, &unrouted, &pushed("v2")] {
        queue.send(&event.to_string()).await;
    }
    wait_for_messages(&daemon, "settled", 1.0).await;
    wait_for_messages(&daemon, "ignored", 2.0).await;
    queue.wait_for_counts((0, 0)).await;
    client.assert_holds("prod", "v2", &image).await;
    assert!(client.digest("prod", "v1").await.is_none());
}

#[tokio::test]
async fn a_reload_adds_and_removes_queues() {
    let queue = TestQueue::start(5).await;
    let stage = stage(&queue, |config| config).await;
    let with = stage.config(|config| config.queue("pushes", &queue.url).route("app", json!({})));
    let without = stage.config(|config| config.route("app", json!({})));
    stage.ferry.write_config(&without);
    let daemon = stage.ferry.start_ready().await;
    assert!(!daemon.metrics().await.contains("queue=\"pushes\""));
    let image = Image::oci(1, &[1000]);
    stage.push().push("app", "v1", &image).await;
    queue.send(&pushed("v1").to_string()).await;
    stage.ferry.write_config(&with);
    daemon.signal("HUP").await;
    eventually("the message is consumed", async || {
        let labels = [("queue", "pushes"), ("result", "settled")];
        let count = daemon
            .metric("blobferry_queue_messages_total", &labels)
            .await?;
        (count == 1.0).then_some(())
    })
    .await;
    stage.there().assert_holds("app", "v1", &image).await;
    stage.ferry.write_config(&without);
    daemon.signal("HUP").await;
    eventually("its series are gone", async || {
        (!daemon.metrics().await.contains("queue=\"pushes\"")).then_some(())
    })
    .await;
    let status = daemon.get("/v1/status").await.text().await.expect("text");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert!(status.get("queues").is_none(), "{status}");
}

#[tokio::test]
async fn check_says_whether_each_queue_can_be_read_and_iam_what_that_needs() {
    let queue = TestQueue::start(5).await;
    let stage = stage(&queue, |config| {
        config.queue("missing", &queue.url.replace("/pushes", "/nowhere"))
    })
    .await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    queue.send(&pushed("v1").to_string()).await;
    let said = stage
        .ferry
        .run(&["check", "--online"])
        .await
        .expect(1)
        .stdout;
    for expected in [
        "queue pushes: can be read; 1 message wait, 0 are being worked on; received 5 times, a message goes to the dead-letter queue",
        "FAIL queue missing: sqs:ReceiveMessage in eu-west-1 for the queue",
        "is the URL right?",
    ] {
        assert!(said.contains(expected), "{expected:?} in\n{said}");
    }
    assert_eq!(queue.counts().await, (1, 0), "the message still waits");
    let policies: Value =
        serde_json::from_str(&stage.ferry.run(&["iam"]).await.expect(0).stdout).expect("JSON");
    let statement = &policies["queue:pushes"]["identity_policy"]["Statement"][0];
    assert_eq!(
        statement["Resource"],
        format!("arn:aws:sqs:eu-west-1:{HOME}:pushes")
    );
}
