//! Follows the rows of the ledger and tells one receiver of them.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::send::{self, Sent};
use super::{Event, Message, Metrics, Settings};
use crate::backoff::Backoff;
use crate::fault::Fault;
use crate::ledger::{Ledger, Query, Row};

/// Rows of one reading.
const PAGE: u32 = 200;
/// Rows that nothing was told of are kept as read so many at a time.
const UNTOLD: u64 = 500;
/// Most messages that are told before the ledger keeps that. Each such mark is a commit, which
/// promotions share; after a crash what was told since is told again.
const MOST_UNKEPT: u64 = 100;
/// Longest time until the ledger keeps what was told.
const UNKEPT_FOR: Duration = Duration::from_secs(1);
/// How a daemon tells: it tries for about an hour. A burst of promotions runs ahead of any receiver,
/// and must not push out what a person has to act on.
pub const PACE: Pace = Pace {
    tries: 64,
    again: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
    promotions_behind: 10_000,
    others_behind: 100_000,
};
/// Rows are looked for so often, whatever is announced.
const LOST: Duration = Duration::from_secs(10);

/// How often a message is tried, the waits between, and how late it may be.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Tries before it is dropped.
    pub tries: u32,
    /// The waits, which grow with each try.
    pub again: Backoff,
    /// A promotion that so many rows follow is dropped.
    pub promotions_behind: u64,
    /// What else so many rows follow is dropped.
    pub others_behind: u64,
}

impl Pace {
    fn is_too_late(&self, event: Event, behind: u64) -> bool {
        behind
            >= match event {
                Event::Promoted => self.promotions_behind,
                _ => self.others_behind,
            }
    }
}

/// Tells a receiver of each row that it wants to hear of.
pub struct Follower {
    /// The receiver.
    pub receiver: Arc<Settings>,
    /// The rows.
    pub ledger: Ledger,
    /// Counts.
    pub metrics: Metrics,
    /// Ends it between two requests.
    pub stop: CancellationToken,
    /// How it tries.
    pub pace: Pace,
}

impl Follower {
    /// Follows until it is stopped.
    pub async fn run(self) {
        let Some(client) = send::client(&self.receiver) else {
            let host = self.receiver.host();
            tracing::error!(
                host,
                "nothing can be told: no TLS, the system has no certificates"
            );
            return;
        };
        let mut told = Told {
            client,
            key: self.receiver.key(),
            row: None,
            kept: 0,
            unkept: Unkept::default(),
            too_late: 0,
            is_down: false,
        };
        let mut added = self.ledger.additions();
        while !self.stop.is_cancelled() {
            added.mark_unchanged();
            match self.catch_up(&mut told).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "the ledger cannot be read for notifications")
                }
            }
            let next = timeout(LOST, added.changed());
            self.stop.run_until_cancelled(next).await;
        }
    }

    /// Tells of the next rows; whether there may be more.
    async fn catch_up(&self, told: &mut Told) -> Result<bool, Fault> {
        let end = self.ledger.end().await?.id;
        let row = match told.row {
            Some(row) => row,
            None => {
                told.kept = self.ledger.told(&told.key).await?.unwrap_or(end);
                told.kept
            }
        };
        // A ledger that was restored from a copy is shorter.
        let row = row.min(end);
        told.row = Some(row);
        let rows = self.rows_after(row).await?;
        let dropped_before = told.too_late;
        for row in &rows {
            let Some(event) = self.wanted(row) else {
                continue;
            };
            let behind = end.saturating_sub(row.id);
            let ended = match self.pace.is_too_late(event, behind) {
                true => self.drop_late(told),
                false => self.tell(told, &Message::of(row, event)).await,
            };
            if ended == Ended::Stopped {
                self.keep_told(told).await?;
                return Ok(false);
            }
            told.unkept.add(row.id, ended);
            if told.unkept.is_due() {
                self.keep_told(told).await?;
            }
        }
        self.keep_told(told).await?;
        if told.too_late == dropped_before {
            self.note_dropped(told);
        }
        if let Some(last) = rows.last() {
            told.row = Some(last.id);
            if last.id.saturating_sub(told.kept) >= UNTOLD {
                self.keep(told, last.id).await?;
            }
        }
        Ok(rows.len() == PAGE as usize)
    }

    async fn rows_after(&self, row: u64) -> Result<Vec<Row>, Fault> {
        let query = Query {
            after: row,
            limit: PAGE,
            ..Query::default()
        };
        self.ledger.page(query).await
    }

    /// What a row tells, if the receiver wants to hear of that.
    fn wanted(&self, row: &Row) -> Option<Event> {
        Event::of(row).filter(|event| self.receiver.on.contains(event))
    }

    /// Drops a message that too many rows follow.
    fn drop_late(&self, told: &mut Told) -> Ended {
        if told.too_late == 0 {
            let host = self.receiver.host();
            tracing::warn!(
                host,
                "a receiver is too far behind: notifications are dropped, promotions first"
            );
        }
        told.too_late += 1;
        Ended::Dropped
    }

    /// Says how many messages came too late, once no more do.
    fn note_dropped(&self, told: &mut Told) {
        let dropped = std::mem::take(&mut told.too_late);
        if dropped > 0 {
            let host = self.receiver.host();
            tracing::warn!(host, dropped, "a receiver is told of all again");
        }
    }

    /// Keeps what was told. What is counted is kept: a restart does not tell it again.
    async fn keep_told(&self, told: &mut Told) -> Result<(), Fault> {
        let Some(unkept) = told.unkept.take() else {
            return Ok(());
        };
        let kept = self.keep(told, unkept.row).await;
        self.metrics.sent(unkept.taken);
        self.metrics.dropped(unkept.dropped);
        kept
    }

    /// A row that the disk does not take counts as told in this process all the same.
    async fn keep(&self, told: &mut Told, row: u64) -> Result<(), Fault> {
        told.row = Some(row);
        self.ledger.set_told(&told.key, row).await?;
        told.kept = row;
        Ok(())
    }

    /// Sends a message, or gives it up after some tries.
    async fn tell(&self, told: &mut Told, message: &Message) -> Ended {
        let body = match &self.receiver.template {
            Some(template) => template.body(message),
            None => message.json(),
        };
        let host = self.receiver.host();
        for attempt in 1..=self.pace.tries {
            if self.stop.is_cancelled() {
                return Ended::Stopped;
            }
            let (hint, reason) = match send::send(&told.client, &self.receiver, body.clone()).await
            {
                Sent::Done => {
                    if std::mem::take(&mut told.is_down) {
                        tracing::info!(host, "notifications are taken again");
                    }
                    return Ended::Taken;
                }
                Sent::Refused(reason) => {
                    tracing::warn!(
                        host,
                        reason,
                        id = message.id,
                        "a notification was refused and is dropped"
                    );
                    return Ended::Dropped;
                }
                Sent::Again(hint, reason) => (hint, reason),
            };
            if !std::mem::replace(&mut told.is_down, true) {
                tracing::warn!(
                    host,
                    reason,
                    "a notification was not taken; it is tried again"
                );
            }
            // The wait may be long. What the disk does not take is tried with the next mark.
            if let Err(error) = self.keep_told(told).await {
                tracing::debug!(error = %error.chain(), "what was told is not kept yet");
            }
            if attempt < self.pace.tries {
                let wait = self.pace.again.wait(attempt).max(hint.unwrap_or_default());
                let pause = tokio::time::sleep(wait);
                self.stop.run_until_cancelled(pause).await;
            }
        }
        tracing::warn!(
            host,
            id = message.id,
            "a notification was not taken in time and is dropped"
        );
        Ended::Dropped
    }
}

/// What came of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Taken,
    Dropped,
    /// The follower is stopped; the message is told later.
    Stopped,
}

/// How far a receiver has come.
struct Told {
    client: Client,
    key: String,
    /// The last row; unknown before the first reading.
    row: Option<u64>,
    /// The last row that the ledger knows.
    kept: u64,
    /// What was told after that.
    unkept: Unkept,
    /// Messages that were dropped in a row of readings since too many rows follow them.
    too_late: u64,
    /// Whether it did not take the last message.
    is_down: bool,
}

/// What was told, and is not kept in the ledger yet.
#[derive(Default)]
struct Unkept {
    /// When the first message was told; `None`: all is kept.
    since: Option<Instant>,
    /// The last row.
    row: u64,
    /// Messages that the receiver took.
    taken: u64,
    /// Messages that were given up.
    dropped: u64,
}

impl Unkept {
    fn add(&mut self, row: u64, ended: Ended) {
        self.since.get_or_insert_with(Instant::now);
        self.row = row;
        match ended {
            Ended::Taken => self.taken += 1,
            Ended::Dropped | Ended::Stopped => self.dropped += 1,
        }
    }

    fn is_due(&self) -> bool {
        let is_old = self
            .since
            .is_some_and(|since| since.elapsed() >= UNKEPT_FOR);
        is_old || self.taken + self.dropped >= MOST_UNKEPT
    }

    fn take(&mut self) -> Option<Unkept> {
        self.since?;
        Some(std::mem::take(self))
    }
}
