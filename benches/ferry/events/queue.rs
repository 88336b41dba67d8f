//! Queues of moto, which plays SQS.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use crate::daemon::client;
use crate::registry::find;

/// The owner of moto's queues.
const ACCOUNT: &str = "123456789012";

/// A running moto with a queue for the daemon and one that a plain consumer empties.
pub struct Moto {
    child: Child,
    calls: Calls,
    plain: Mutex<mpsc::Receiver<()>>,
    consumer: JoinHandle<()>,
}

#[derive(Clone)]
struct Calls {
    url: String,
    http: reqwest::Client,
}

impl Moto {
    /// `None`: it is not installed.
    pub async fn start() -> Option<Moto> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/python/bin/moto_server");
        let program = Some(own)
            .filter(|path| path.is_file())
            .or_else(|| find("moto_server"))?;
        let free = std::net::TcpListener::bind("127.0.0.1:0").ok()?;
        let port = free.local_addr().ok()?.port();
        drop(free);
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let calls = Calls {
            url: format!("http://127.0.0.1:{port}"),
            http: client(),
        };
        let (received, plain) = mpsc::channel(16);
        let moto = Moto {
            child,
            consumer: tokio::spawn(consume(calls.clone(), received)),
            calls,
            plain: Mutex::new(plain),
        };
        moto.created().await.then_some(moto)
    }

    async fn created(&self) -> bool {
        for _ in 0..500 {
            let mut are_there = true;
            for name in ["pushes", "plain"] {
                let created = self
                    .calls
                    .sqs("CreateQueue", json!({"QueueName": name}))
                    .await;
                are_there &= created.is_ok();
            }
            if are_there {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// The URL of a queue.
    pub fn queue(&self, name: &str) -> String {
        self.calls.queue(name)
    }

    /// Credentials that moto takes.
    pub fn identity(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", "AKIDBENCH".into()),
            ("AWS_SECRET_ACCESS_KEY", "secret-of-the-bench".into()),
            ("AWS_REGION", "eu-west-1".into()),
            ("AWS_ENDPOINT_URL_STS", self.calls.url.clone()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ]
    }

    /// Tells the daemon of a push as EventBridge does.
    ///
    /// # Errors
    /// moto did not take it.
    pub async fn send_push(&self, repository: &str, tag: &str) -> Result<(), String> {
        let event = json!({"detail-type": "ECR Image Action", "source": "aws.ecr", "detail": {
            "result": "SUCCESS", "action-type": "PUSH", "repository-name": repository, "image-tag": tag}});
        self.calls.send("pushes", &event).await
    }

    /// One message from its sender to a plain consumer.
    ///
    /// # Errors
    /// It did not arrive.
    pub async fn round(&self) -> Result<(), String> {
        let mut plain = self.plain.lock().await;
        self.calls.send("plain", &json!({})).await?;
        plain
            .recv()
            .await
            .ok_or("the plain consumer has ended".to_owned())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.consumer.abort();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Calls {
    fn queue(&self, name: &str) -> String {
        format!("{}/{ACCOUNT}/{name}", self.url)
    }

    async fn send(&self, queue: &str, body: &Value) -> Result<(), String> {
        let message = json!({"QueueUrl": self.queue(queue), "MessageBody": body.to_string()});
        self.sqs("SendMessage", message).await.map(drop)
    }

    async fn sqs(&self, action: &str, body: Value) -> Result<Value, String> {
        let signed = "AWS4-HMAC-SHA256 Credential=AKID/20261121/eu-west-1/sqs/aws4_request, SignedHeaders=host, Signature=0";
        let request = self
            .http
            .post(&self.url)
            .header("authorization", signed)
            .header("content-type", "application/x-amz-json-1.0")
            .header("x-amz-target", format!("AmazonSQS.{action}"))
            .body(body.to_string());
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("{action}: {status} {text}"));
        }
        serde_json::from_str(&text).or(Ok(Value::Null))
    }
}

/// Receives and deletes, as plainly as it can be done.
async fn consume(calls: Calls, received: mpsc::Sender<()>) {
    let queue = calls.queue("plain");
    loop {
        let asked = json!({"QueueUrl": queue, "WaitTimeSeconds": 20});
        let Ok(answer) = calls.sqs("ReceiveMessage", asked).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        for message in answer["Messages"].as_array().into_iter().flatten() {
            if received.send(()).await.is_err() {
                return;
            }
            let ended = json!({"QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"]});
            // A message that stays comes again, and the next round would be over at once.
            if let Err(error) = calls.sqs("DeleteMessage", ended).await {
                eprintln!("{error}");
            }
        }
    }
}
