//! Push events: how long after a push production has the image, and what many notifications cost.
//!
//! Each push is followed by a copy of another image of the same shape with plain requests, one
//! after the other: the time that the requests alone need, in the same run on the same registries.

mod alone;
mod daemon;
mod flood;
mod pushes;
mod queue;

use crate::limits::Limit;
use crate::registry::Program;
use crate::scratch::Place;

use flood::Flood;
use pushes::{Pushes, Way};

/// Bytes that the registries need.
pub const ROOM: u64 = 512 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// From a push to the tag in production.
    Pushes,
    /// Many notifications at once.
    Flood,
}

impl Events {
    /// All of them, in the order of the report.
    pub const ALL: [Events; 2] = [Events::Pushes, Events::Flood];

    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Events::Pushes => "events",
            Events::Flood => "flood",
        }
    }

    /// The heading of its figures.
    pub fn title(self, quick: bool) -> String {
        match self {
            Events::Pushes => format!("{} pushes by events, loopback and 20 ms", pushes(quick)),
            Events::Flood => format!("1,000 notifications a second for {} s", seconds(quick)),
        }
    }

    /// What was measured, with the limits.
    ///
    /// # Errors
    /// The daemon did not start, or a push did not arrive.
    pub async fn measure(
        self,
        program: &Program,
        place: &Place,
        quick: bool,
    ) -> Result<(String, Vec<Limit>), String> {
        match self {
            Events::Pushes => measure_pushes(program, place, pushes(quick)).await,
            Events::Flood => {
                let flood = Flood::measure(program, place, seconds(quick)).await?;
                Ok((format!("{flood}\n"), flood.limits()))
            }
        }
    }
}

fn pushes(quick: bool) -> usize {
    if quick { 20 } else { 1000 }
}

fn seconds(quick: bool) -> usize {
    if quick { 3 } else { 60 }
}

async fn measure_pushes(
    program: &Program,
    place: &Place,
    count: usize,
) -> Result<(String, Vec<Limit>), String> {
    let webhook = Pushes::near(program, place, Way::Webhook, count).await?;
    let mut text = format!("{}{}", Pushes::HEAD, webhook.row("webhook"));
    let mut limits = webhook.limits([
        "webhook, p50 above the requests alone,",
        "webhook, p99 above the requests alone,",
    ]);
    match queue::Moto::start().await {
        Some(moto) => {
            let queue = Pushes::near(program, place, Way::Queue(moto), count).await?;
            text += &queue.row("queue");
            limits.extend(queue.limits([
                "queue, p50 above the requests alone,",
                "queue, p99 above the requests alone,",
            ]));
        }
        None => text += "\nThrough a queue: not measured, moto is not installed.\n",
    }
    let far = Pushes::far(program, place, count / 20).await?;
    limits.push(far.trips_limit());
    Ok((format!("{text}\n{}\n", far.trips()), limits))
}
