//! Limits: who may send how much at once, and when.
//!
//! One lane per registry. Each kind of request has a gate of its own there (quota, back-off that all share, adaptive
//! concurrency); the pace of the config, its concurrency and its bandwidth hold for all kinds together. Permits are held for
//! the length of one request or one body, and never while waiting for a time to come or for another job. Waiting is fair:
//! first come, first served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::admission::{Admission, NamingQueue, Pulse, Room, Side};
pub use super::admission::{NamingPermit, Settings as Permits};
use super::bandwidth::{Meter, Plan};
use super::pace::{Gate, Pass, Whole};
use crate::endpoint::Origin;
use crate::endpoint::rate_limit::RateLimit;
pub use crate::endpoint::rate_limit::Traffic;
use crate::fault::{Class, Fault};
use crate::job::Rank;
use crate::registry::profile::Quotas;

/// What the config says of one registry, and what its operator documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Requests at once, 1 to 256; default [`REQUESTS`].
    pub concurrency: Option<usize>,
    /// Requests per second.
    pub requests_per_second: Option<f64>,
    /// Blob bytes per second, both ways together.
    pub bandwidth: Option<Plan>,
    /// Documented quotas, in requests per second.
    pub quotas: Quotas,
}

/// What somebody wants to send.
#[derive(Clone, Copy, Debug)]
pub struct Errand {
    /// Which kind.
    pub traffic: Traffic,
    /// Whether it is only for looking: then it keeps to a part of the quota.
    pub look: bool,
    /// How urgent the job is that it belongs to.
    pub rank: Rank,
    /// How long it may wait for a registry's time, without progress; `None`: as long as the retry settings say.
    pub max_wait: Option<Duration>,
    /// Whether it is the PUT of a name: it has the next token of the rate limiters.
    pub is_naming: bool,
}

impl From<Traffic> for Errand {
    fn from(traffic: Traffic) -> Errand {
        Errand {
            traffic,
            look: false,
            rank: Rank::New,
            max_wait: None,
            is_naming: false,
        }
    }
}

impl Errand {
    /// The same request for a job of that rank.
    pub fn ranked(self, rank: Rank) -> Errand {
        Errand { rank, ..self }
    }

    /// The same request, which waits for a registry's time for at most so long.
    pub fn within(self, max_wait: Duration) -> Errand {
        Errand {
            max_wait: Some(max_wait),
            ..self
        }
    }
}

impl Traffic {
    const ALL: [Traffic; 5] = [
        Traffic::Listing,
        Traffic::Manifests,
        Traffic::Blobs,
        Traffic::Uploads,
        Traffic::Writes,
    ];

    /// For looking only.
    pub fn of_look(self) -> Errand {
        Errand {
            look: true,
            ..Errand::from(self)
        }
    }

    fn quota(self, quotas: &Quotas) -> Option<f64> {
        let quota = match self {
            Traffic::Listing => quotas.listing,
            Traffic::Manifests => quotas.manifests,
            Traffic::Blobs => quotas.blobs,
            Traffic::Uploads => quotas.uploads,
            Traffic::Writes => quotas.writes,
        };
        quota.map(f64::from)
    }
}

/// Requests at once to a registry of which the config says nothing.
pub const REQUESTS: usize = 64;
/// Blobs of at most so many bytes are bounded by the requests of their registries alone: they take round trips, not memory.
pub const SMALL: u64 = 64 * 1024;
/// Jobs that run at once.
pub const JOBS: usize = 64;

/// All lanes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    lanes: Arc<Mutex<HashMap<Origin, Arc<Lane>>>>,
    admission: Admission,
}

/// The limits of one registry.
#[derive(Debug)]
pub struct Lane {
    origin: Origin,
    admission: Admission,
    settings: Settings,
    gates: [Gate; 5],
    whole: Whole,
    bandwidth: Option<Meter>,
    names: NamingQueue,
    /// What the registry says that it still allows.
    rate_limit: Mutex<RateLimit>,
}

/// The right to send one request, until dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    lane: &'a Lane,
    traffic: Traffic,
    pass: Pass,
}

impl Limits {
    /// Limits with so many permits for jobs and bodies.
    pub fn new(permits: Permits) -> Limits {
        Limits {
            lanes: Arc::default(),
            admission: Admission::new(permits),
        }
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    pub(super) fn pulse(&self) -> &Pulse {
        self.admission.pulse()
    }

    /// Whether tasks that could run have got no permit, byte, answer or error for a minute: a watchdog should know. To be asked
    /// regularly.
    pub fn stand_still(&self) -> bool {
        self.pulse().stands_still(self.admission.waiting())
    }

    /// Sets what the config says of a registry. A lane whose settings stay the same keeps its state.
    pub fn set(&self, origin: &Origin, settings: Settings) {
        let mut lanes = self
            .lanes
            .lock()
            .expect("nothing panics while it holds the lanes");
        let before = lanes.get(origin);
        if before.is_none_or(|lane| lane.settings != settings) {
            let mut lane = Lane::new(origin, settings, &self.admission);
            if let Some(before) = before {
                lane.gates
                    .iter_mut()
                    .zip(&before.gates)
                    .for_each(|(gate, before)| gate.inherit(before));
                lane.heed(before.rate_limit());
            }
            lanes.insert(origin.clone(), Arc::new(lane));
        }
    }

    /// From now on, what the registry says that it still allows is kept to.
    pub fn heed(&self, origin: &Origin, rate_limit: RateLimit) {
        self.lane(origin).heed(rate_limit);
    }

    /// The lane of a registry.
    pub fn lane(&self, origin: &Origin) -> Arc<Lane> {
        let mut lanes = self
            .lanes
            .lock()
            .expect("nothing panics while it holds the lanes");
        lanes
            .entry(origin.clone())
            .or_insert_with(|| Arc::new(Lane::new(origin, Settings::default(), &self.admission)))
            .clone()
    }
}

impl Lane {
    fn new(origin: &Origin, settings: Settings, admission: &Admission) -> Lane {
        let most = settings.concurrency.unwrap_or(REQUESTS);
        let lane = Lane {
            origin: origin.clone(),
            admission: admission.clone(),
            gates: Traffic::ALL.map(|traffic| Gate::new(most, traffic.quota(&settings.quotas))),
            whole: Whole::new(most, settings.requests_per_second),
            names: NamingQueue::default(),
            rate_limit: Mutex::default(),
            bandwidth: settings.bandwidth.clone().map(Meter::new),
            settings,
        };
        lane.make_room(Traffic::Blobs);
        lane.make_room(Traffic::Uploads);
        lane
    }

    /// As many bodies may move as requests of their kind may run.
    fn make_room(&self, traffic: Traffic) {
        let side = match traffic {
            Traffic::Blobs => Side::Source,
            Traffic::Uploads => Side::Destination,
            Traffic::Listing | Traffic::Manifests | Traffic::Writes => return,
        };
        let limit = self.gate(traffic).width();
        let is_firm = self.settings.concurrency.is_some() || limit < REQUESTS;
        self.admission
            .set_room(&self.origin, side, Room { limit, is_firm });
    }

    fn heed(&self, rate_limit: RateLimit) {
        *self
            .rate_limit
            .lock()
            .expect("nothing panics while it holds the rate limit") = rate_limit;
    }

    fn rate_limit(&self) -> RateLimit {
        self.rate_limit
            .lock()
            .expect("nothing panics while it holds the rate limit")
            .clone()
    }

    fn gate(&self, traffic: Traffic) -> &Gate {
        &self.gates[traffic as usize]
    }

    /// Requests that may run at once.
    pub fn concurrency(&self) -> usize {
        self.settings.concurrency.unwrap_or(REQUESTS)
    }

    /// How long nobody may send such a request, because the registry asked for it.
    pub fn closed_for(&self, traffic: Traffic) -> Duration {
        self.gate(traffic).closed_for()
    }

    /// Ends when nobody is asked to wait with such requests any more.
    pub async fn opens(&self, traffic: Traffic) {
        self.gate(traffic).opens().await;
    }

    /// The right to send one request, when its time has come.
    pub async fn turn(&self, errand: impl Into<Errand>) -> Turn<'_> {
        let Errand { traffic, look, .. } = errand.into();
        let pass = self.gate(traffic).pass(look, &self.whole).await;
        Turn::new(self, traffic, pass)
    }

    /// The right to send one request, unless the registry asks for more than `most` before it. The error is that time.
    pub async fn turn_within(&self, errand: Errand, most: Duration) -> Result<Turn<'_>, Duration> {
        let pass = self
            .gate(errand.traffic)
            .pass_within(errand.look, &self.whole, most)
            .await?;
        Ok(Turn::new(self, errand.traffic, pass))
    }

    /// The word of a request that belongs to a body with a right of its own: sent when the gate is open.
    pub async fn part(&self, traffic: Traffic) -> Turn<'_> {
        let gate = self.gate(traffic);
        gate.opens().await;
        Turn::new(self, traffic, gate.free_pass())
    }

    /// Whether the right to write has to be waited for by rule.
    pub fn is_slow_to_write(&self) -> bool {
        names_in_time(&self.settings) < JOBS
    }

    /// How long the limits of this registry hold up such a request: its quota, the pace, a time that the registry named.
    /// Zero: it would go at once, unless too many are under way.
    pub fn admitted_in(&self, traffic: Traffic) -> Duration {
        self.gate(traffic).admitted_in(&self.whole)
    }

    /// Waits until the rate limiters admit such a request. Nothing is taken, and nothing has to be held meanwhile.
    pub async fn until_admitted(&self, traffic: Traffic) {
        loop {
            let wait = self.admitted_in(traffic);
            if wait.is_zero() {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// How many jobs may hold a naming permit at once: as many as the quota allows PUTs in half a second, at most a third of
    /// the requests that may run at once, at least one.
    pub fn names_at_once(&self) -> usize {
        names_in_time(&self.settings)
            .min(self.concurrency() / 3)
            .max(1)
    }

    pub(super) fn names(&self) -> &NamingQueue {
        &self.names
    }

    /// How long to wait for so many bytes to have been allowed.
    pub fn bandwidth(&self, bytes: u64) -> Duration {
        self.bandwidth
            .as_ref()
            .map_or(Duration::ZERO, |meter| meter.take(bytes))
    }
}

/// How many tags can be moved in half a second, at least one: as many as manifests may be written, and requests sent.
/// Moving one takes three requests (each side is asked, the tag is written), and a tenth of the pace stays unused.
fn names_in_time(settings: &Settings) -> usize {
    let writes = settings.quotas.writes.map_or(f64::INFINITY, f64::from);
    let requests = settings.requests_per_second.unwrap_or(f64::INFINITY) / 3.0;
    (writes.min(requests) * 0.45).clamp(1.0, JOBS as f64) as usize
}

impl<'a> Turn<'a> {
    fn new(lane: &'a Lane, traffic: Traffic, pass: Pass) -> Turn<'a> {
        lane.admission.pulse().sent();
        Turn {
            lane,
            traffic,
            pass,
        }
    }
    /// Says what came of the request. Returns by how much longer everybody waits now because the registry asked for it, or
    /// said that nothing is left.
    pub fn learn<T>(&self, result: &Result<T, Fault>) -> Duration {
        let gate = self.lane.gate(self.traffic);
        let width = gate.width();
        let asked = match result.as_ref().map_err(Fault::class) {
            Ok(_) => {
                gate.helped(&self.pass);
                Duration::ZERO
            }
            Err(Class::Retryable { after }) => gate.congested(&self.pass, after),
            Err(_) => Duration::ZERO,
        };
        if gate.width() != width {
            self.lane.make_room(self.traffic);
        }
        asked + gate.close(self.lane.rate_limit().spent_for(self.traffic))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.lane.admission.pulse().ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::rate_limit::RateLimitHeader;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_kept_over_time() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        limits.set(
            &origin,
            Settings {
                requests_per_second: Some(10.0),
                ..Settings::default()
            },
        );
        let lane = limits.lane(&origin);
        let start = Instant::now();
        for _ in 0..60 {
            drop(lane.turn(Traffic::Manifests).await);
        }
        let took = start.elapsed().as_secs_f64();
        assert!(
            (4.9..5.2).contains(&took),
            "50 beyond the burst of 10 at 10 a second took {took}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_is_a_debt_that_is_paid_by_waiting() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        limits.set(
            &origin,
            Settings {
                bandwidth: Some(Plan::constant(1_000_000)),
                ..Settings::default()
            },
        );
        let lane = limits.lane(&origin);
        let start = Instant::now();
        for _ in 0..10 {
            tokio::time::sleep(lane.bandwidth(400_000)).await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((3.6..4.1).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn a_lane_keeps_its_permits_when_nothing_changed() {
        let limits = Limits::default();
        let origin = Origin::new("http://127.0.0.1:1");
        let settings = Settings {
            concurrency: Some(1),
            ..Settings::default()
        };
        limits.set(&origin, settings.clone());
        let lane = limits.lane(&origin);
        let turn = lane.turn(Traffic::Writes).await;
        limits.set(&origin, settings.clone());
        assert!(Arc::ptr_eq(&limits.lane(&origin), &lane));
        let busy = Fault::new(
            Class::Retryable {
                after: Some(Duration::from_secs(9)),
            },
            "busy",
        );
        assert_eq!(turn.learn(&Err::<(), _>(busy)).as_secs(), 9);
        limits.set(
            &origin,
            Settings {
                concurrency: Some(2),
                ..settings
            },
        );
        let newer = limits.lane(&origin);
        assert_eq!(newer.concurrency(), 2);
        assert!(
            newer.closed_for(Traffic::Writes).as_secs() >= 8,
            "a new config does not end what a registry asked for"
        );
        assert!(newer.closed_for(Traffic::Manifests).is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_nothing_left_is_not_asked_before_there_is_more() {
        let limits = Limits::default();
        let (origin, rate_limit) = (Origin::new("http://127.0.0.1:1"), RateLimit::default());
        limits.heed(&origin, rate_limit.clone());
        limits.set(
            &origin,
            Settings {
                concurrency: Some(3),
                ..Settings::default()
            },
        );
        let lane = limits.lane(&origin);
        let turn = lane.turn(Traffic::Manifests).await;
        rate_limit.note(
            Traffic::Manifests,
            RateLimitHeader {
                remaining: 0,
                reset: Some(Duration::from_secs(30)),
                window: None,
            },
        );
        assert_eq!(turn.learn(&Ok::<_, Fault>(())).as_secs(), 30);
        drop(turn);
        let start = Instant::now();
        drop(lane.turn(Traffic::Blobs).await);
        assert!(
            start.elapsed().is_zero(),
            "other kinds of requests are counted apart"
        );
        drop(lane.turn(Traffic::Manifests).await);
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
