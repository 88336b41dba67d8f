//! Many notifications, right and wrong.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::daemon::{Daemon, REPOSITORIES, SECRET, repository};
use crate::image::Image;
use crate::limits::Limit;
use crate::registry::Program;
use crate::scratch::Place;
use crate::table::percentile;

/// Notifications in a second.
const RATE: usize = 1000;
/// Sent together at each tick.
const TOGETHER: usize = 10;
/// Connections, as many as a proxy may keep.
const CONNECTIONS: usize = 100;

/// What came of a flood of notifications with one secret.
struct Sent {
    /// From when each was due to its answer, in milliseconds.
    times: Vec<f64>,
    /// Answers with another status than was expected.
    others: usize,
    /// The daemon's CPU seconds for each second.
    cpu: f64,
}

/// A thousand notifications a second.
pub struct Flood {
    right: Sent,
    wrong: Sent,
    /// Notifications that were not counted as queued.
    lost: f64,
    /// Most resident MiB before and after.
    memory: [u64; 2],
    /// The status of the right secret after all the wrong ones.
    after: u16,
}

impl Flood {
    /// Sends for so many seconds with the right secret, then as long with a wrong one.
    ///
    /// # Errors
    /// The daemon did not answer.
    pub async fn measure(
        program: &Program,
        place: &Place,
        seconds: usize,
    ) -> Result<Flood, String> {
        let source = program.start(&place.folder).await;
        let destination = program.start(&place.folder).await;
        let staging = source.client();
        for number in 0..REPOSITORIES {
            let image = Image::oci(number as u64 + 1, &[1000]);
            staging.push(&repository(number), "v1", &image).await;
        }
        let daemon = Daemon::start(source.address(), destination.address(), None).await?;
        let daemon = Arc::new(daemon);
        let before = daemon.memory() >> 20;
        let right = sent(&daemon, seconds, SECRET, 202).await?;
        let after = daemon.memory() >> 20;
        let lost = right.times.len() as f64 - daemon.counted("queued").await;
        let wrong = sent(&daemon, seconds, "a-wrong-word", 401).await?;
        Ok(Flood {
            right,
            wrong,
            lost,
            memory: [before, after],
            after: daemon.notify(SECRET, 0, "v1").await?,
        })
    }

    /// Of both.
    pub fn limits(&self) -> Vec<Limit> {
        let p99 = percentile(&mut self.right.times.to_vec(), 0.99);
        let locked_out = if self.after == 202 { 0.0 } else { 1.0 };
        let limit = |what, at_most, unit, measured| Limit::new(what, at_most, unit, Some(measured));
        vec![
            limit("p99 of 1,000 notifications a second", 20.0, " ms", p99),
            limit("notifications that were lost", 0.0, "", self.lost),
            limit(
                "cores for 1,000 wrong secrets a second",
                0.1,
                "",
                self.wrong.cpu,
            ),
            limit("senders that wrong secrets lock out", 0.0, "", locked_out),
        ]
    }
}

impl fmt::Display for Flood {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |share| percentile(&mut self.right.times.to_vec(), share);
        write!(
            formatter,
            "{} notifications, {RATE} a second: the answer after {:.1} ms at p50, {:.1} ms at p99, {:.1} ms at most; {} not queued; {:.2} cores; peak memory {} MiB, {} MiB before. ",
            self.right.times.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            self.lost + self.right.others as f64,
            self.right.cpu,
            self.memory[1],
            self.memory[0],
        )?;
        write!(
            formatter,
            "{} wrong secrets, {RATE} a second: {} not refused, {:.3} cores; the right one is answered {} afterwards.",
            self.wrong.times.len(),
            self.wrong.others,
            self.wrong.cpu,
            self.after,
        )
    }
}

async fn sent(
    daemon: &Arc<Daemon>,
    seconds: usize,
    secret: &'static str,
    expected: u16,
) -> Result<Sent, String> {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let mut ticks = interval(Duration::from_secs(1) / (RATE / TOGETHER) as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    let cpu = daemon.cpu();
    let mut running = JoinSet::new();
    for batch in 0..seconds * RATE / TOGETHER {
        let due = ticks.tick().await;
        for number in 0..TOGETHER {
            let daemon = daemon.clone();
            let connections = connections.clone();
            running.spawn(async move {
                let _permit = connections.acquire().await;
                let status = daemon
                    .notify(secret, batch * TOGETHER + number, "v1")
                    .await?;
                Ok::<_, String>((status, due.elapsed().as_secs_f64() * 1000.0))
            });
        }
    }
    let mut sent = Sent {
        times: Vec::new(),
        others: 0,
        cpu: 0.0,
    };
    while let Some(one) = running.join_next().await {
        let (status, time) = one.map_err(|error| error.to_string())??;
        sent.times.push(time);
        sent.others += usize::from(status != expected);
    }
    sent.cpu = (daemon.cpu() - cpu) / began.elapsed().as_secs_f64();
    Ok(sent)
}
