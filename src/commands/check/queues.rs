//! `check --online`: can each queue of push events be read?

use std::time::Duration;

use super::Check;
use crate::fault::{Class, Fault};
use crate::sqs::{Depth, Queue, Receipt};
use crate::watch::queue_consumer::Settings;

/// Tries every queue. A message that waits is received and visible again at once.
pub(super) async fn check_queues(queues: &[Settings]) -> Vec<Check> {
    let mut checks = Vec::new();
    for settings in queues {
        checks.extend(check_queue(settings).await);
    }
    checks
}

async fn check_queue(settings: &Settings) -> Vec<Check> {
    let name = || format!("queue {}", settings.name);
    let queue = Queue::new(settings.queue.clone());
    let depth = queue.depth().await;
    let read = read(&queue).await.map(|()| described(depth.as_ref().ok()));
    if read.is_err() {
        return vec![Check::of(name(), read)];
    }
    let mut checks = vec![Check::of(name(), read)];
    match &depth {
        Err(fault) => checks.push(Check::warning(name(), &fault.chain())),
        Ok(depth) if depth.max_receives.is_none() => checks.push(Check::warning(
            name(),
            "has no redrive policy: a message that always fails comes back until its retention ends",
        )),
        Ok(_) => {}
    }
    checks
}

/// Receives, and tries the other calls on a message that does not exist: they change nothing.
async fn read(queue: &Queue) -> Result<(), Fault> {
    queue.receive(1, Duration::ZERO, Duration::ZERO).await?;
    let nothing = Receipt("blobferry-check-online".into());
    let change = [(nothing.clone(), Duration::ZERO)];
    if_allowed(queue.set_visibility(&change).await)?;
    if_allowed(queue.delete(&[nothing]).await)
}

/// What is allowed fails otherwise: there is no such message.
fn if_allowed<T>(tried: Result<T, Fault>) -> Result<(), Fault> {
    match tried {
        Err(fault) if fault.class() == Class::Auth => Err(fault),
        _ => Ok(()),
    }
}

fn described(depth: Option<&Depth>) -> String {
    let Some(depth) = depth else {
        return "can be read".into();
    };
    let mut text = format!(
        "can be read; {} wait, {} are being worked on",
        messages(depth.visible),
        depth.in_flight
    );
    if let Some(count) = depth.max_receives {
        text.push_str(&format!(
            "; received {count} times, a message goes to the dead-letter queue"
        ));
    }
    text
}

fn messages(count: u64) -> String {
    match count {
        1 => "1 message".into(),
        count => format!("{count} messages"),
    }
}
