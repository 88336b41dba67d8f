//! From a push to the tag in production.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::alone::{self, Alone};
use super::daemon::{Daemon, REPOSITORIES, SECRET, repository};
use super::queue::Moto;
use crate::client::Client;
use crate::image::Image;
use crate::limits::Limit;
use crate::link::{Link, Nature};
use crate::registry::Program;
use crate::scratch::Place;
use crate::table::percentile;

/// Bytes of the one layer.
const LAYER: usize = 10_000;
/// Pauses between two questions whether production has the tag.
const PAUSE: Duration = Duration::from_millis(1);
/// No push may take longer.
const LONGEST: Duration = Duration::from_secs(60);
/// Between the daemon and each registry of the far stage.
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Images that are copied with plain requests have these numbers and more.
const OTHERS: u64 = 1_000_000;

/// How the event comes.
pub enum Way {
    /// By a notification.
    Webhook,
    /// By a message of a queue.
    Queue(Moto),
}

impl Way {
    fn moto(&self) -> Option<&Moto> {
        match self {
            Way::Webhook => None,
            Way::Queue(moto) => Some(moto),
        }
    }

    async fn send(&self, daemon: &Daemon, number: usize, tag: &str) -> Result<(), String> {
        match self {
            Way::Webhook => match daemon.notify(SECRET, number, tag).await? {
                202 => Ok(()),
                status => Err(format!("a notification was answered {status}")),
            },
            Way::Queue(moto) => moto.send_push(&repository(number), tag).await,
        }
    }
}

/// What the pushes took, in milliseconds.
pub struct Pushes {
    times: Vec<f64>,
    /// The requests alone.
    alone: Vec<f64>,
    /// Requests for each push, where they were counted.
    requests: f64,
}

impl Pushes {
    /// The head of the table.
    pub const HEAD: &str = "| from the push to the tag in production | pushes | p50 ms | p99 ms | the requests alone, p50 ms | p99 ms |\n|---|---|---|---|---|---|\n";

    /// On loopback, each beside a copy with plain requests.
    ///
    /// # Errors
    /// A push did not arrive.
    pub async fn near(
        program: &Program,
        place: &Place,
        way: Way,
        count: usize,
    ) -> Result<Pushes, String> {
        let source = program.start(&place.folder).await;
        let destination = program.start(&place.folder).await;
        let daemon = Daemon::start(source.address(), destination.address(), way.moto()).await?;
        let by_hand = Alone::between(source.address(), destination.address());
        let staging = source.client();
        let production = destination.client();
        let mut pushes = Pushes {
            times: Vec::new(),
            alone: Vec::new(),
            requests: 0.0,
        };
        for number in 0..REPOSITORIES + count {
            let tag = format!("v{number}");
            let image = Image::oci(number as u64 + 1, &[LAYER]);
            let took = pushed(&staging, &production, &daemon, &way, number, &image).await?;
            let other = Image::oci(OTHERS + number as u64, &[LAYER]);
            staging.push(alone::REPOSITORY, &tag, &other).await;
            let began = Instant::now();
            if let Some(moto) = way.moto() {
                moto.round().await?;
            }
            by_hand.copy(&other, &tag).await?;
            let by_hand = milliseconds(began.elapsed());
            // The first of each repository is another thing: it is not there yet.
            if number >= REPOSITORIES {
                pushes.times.push(took);
                pushes.alone.push(by_hand);
            }
        }
        Ok(pushes)
    }

    /// Over links with latency.
    ///
    /// # Errors
    /// A push did not arrive.
    pub async fn far(program: &Program, place: &Place, count: usize) -> Result<Pushes, String> {
        let source = program.start(&place.folder).await;
        let destination = program.start(&place.folder).await;
        let nature = Nature {
            round_trip: ROUND_TRIP,
            ..Nature::TRANSPARENT
        };
        let near = Link::before(source.address(), nature).await;
        let far = Link::before(destination.address(), nature).await;
        let daemon = Daemon::start(near.address(), far.address(), None).await?;
        let staging = source.client();
        let production = destination.client();
        let mut times = Vec::new();
        for number in 0..REPOSITORIES + count {
            if number == REPOSITORIES {
                near.take();
                far.take();
            }
            let image = Image::oci(number as u64 + 1, &[LAYER]);
            let took = pushed(
                &staging,
                &production,
                &daemon,
                &Way::Webhook,
                number,
                &image,
            )
            .await?;
            if number >= REPOSITORIES {
                times.push(took);
            }
        }
        let requests = (near.take().requests + far.take().requests) as f64;
        Ok(Pushes {
            times,
            alone: Vec::new(),
            requests: requests / count as f64,
        })
    }

    /// A line of the table.
    pub fn row(&self, way: &str) -> String {
        let Pushes { times, alone, .. } = self;
        let at = |times: &[f64], share| percentile(&mut times.to_vec(), share);
        format!(
            "| {way} | {} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
            times.len(),
            at(times, 0.5),
            at(times, 0.99),
            at(alone, 0.5),
            at(alone, 0.99),
        )
    }

    /// Of the times on loopback: of their median and of their 99th percentile.
    pub fn limits(&self, [p50, p99]: [&'static str; 2]) -> Vec<Limit> {
        let alone = percentile(&mut self.alone.to_vec(), 0.5);
        vec![
            Limit::new(p50, 50.0, " ms", Some(self.at(0.5) - alone)),
            Limit::new(p99, 250.0, " ms", Some(self.at(0.99) - alone)),
        ]
    }

    /// Of the times over links.
    pub fn trips(&self) -> String {
        format!(
            "With 20 ms of round trip, over {} pushes: p50 {:.0} ms ({:.1} round trips), p99 {:.0} ms, {:.1} requests for each push.",
            self.times.len(),
            self.at(0.5),
            self.round_trips(),
            self.at(0.99),
            self.requests,
        )
    }

    /// At most twelve.
    pub fn trips_limit(&self) -> Limit {
        let what = "round trips from the event to the tag";
        Limit::new(what, 12.0, "", Some(self.round_trips()))
    }

    fn at(&self, share: f64) -> f64 {
        percentile(&mut self.times.to_vec(), share)
    }

    fn round_trips(&self) -> f64 {
        self.at(0.5) / milliseconds(ROUND_TRIP)
    }
}

/// Pushes an image, sends the event, and waits until production has the tag.
async fn pushed(
    staging: &Client,
    production: &Client,
    daemon: &Daemon,
    way: &Way,
    number: usize,
    image: &Image,
) -> Result<f64, String> {
    let repository = repository(number);
    let tag = format!("v{number}");
    staging.push(&repository, &tag, image).await;
    let began = Instant::now();
    way.send(daemon, number, &tag).await?;
    while production.digest(&repository, &tag).await.as_deref() != Some(image.digest()) {
        if began.elapsed() > LONGEST {
            return Err(format!("{repository}:{tag} did not arrive"));
        }
        sleep(PAUSE).await;
    }
    Ok(milliseconds(began.elapsed()))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
