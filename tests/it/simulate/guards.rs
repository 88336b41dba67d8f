//! What stands between a tag and its name in a simulated world: gates of routes, a service with
//! verdicts that change, holds and denials, and orders by hand.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blobferry::gate::http::{Reply, Service};
use blobferry::job::gates::{Http, Window};
use blobferry::job::{Gates, Verdict};
use blobferry::oci::Digest;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::chance::{Chance, Draw};
use super::process;
use super::trace::{Event, Place, Trace};

/// The second since 1970 in which every world begins.
pub const START: i64 = 1_795_000_000;
/// Minutes of a day.
const DAY: u64 = 24 * 60;

/// The gates of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GateRules {
    /// How old a digest is when it is named.
    pub min_age: Option<Duration>,
    /// The minutes of the day in which tags move.
    pub window: Option<(u64, u64)>,
    /// Whether a service is asked.
    pub asks: bool,
}

impl GateRules {
    /// Draws some.
    pub fn draw(draw: &mut Draw) -> GateRules {
        let opens = Self::minute(draw.millis(0, 600_000));
        let closes = draw.pick(&[DAY, opens + 180]).min(DAY);
        let window = draw.percent(40).then_some((opens, closes));
        GateRules {
            min_age: draw.percent(40).then(|| draw.millis(1_000, 300_000)),
            window: window.filter(|(opens, closes)| opens < closes),
            asks: draw.percent(50),
        }
    }

    /// The minute of the day, as long as the clock is not set.
    fn minute(at: Duration) -> u64 {
        (START.unsigned_abs() + at.as_secs()) / 60 % DAY
    }

    /// Whether tags may move at that time.
    pub fn is_open(&self, at: Duration) -> bool {
        let minute = Self::minute(at);
        self.window
            .is_none_or(|(opens, closes)| opens <= minute && minute < closes)
    }

    /// As a config says them.
    pub fn gates(&self) -> Arc<Gates> {
        let clock = |minute: u64| format!("{:02}:{:02}", minute / 60, minute % 60);
        let window = self.window.map(|(opens, closes)| {
            let hours = format!("{}-{}", clock(opens), clock(closes));
            Window {
                zone: TimeZone::UTC,
                open: vec![hours.parse().expect("hours of a day")],
                closed: Vec::new(),
            }
        });
        let http = self.asks.then(|| Http {
            url: "http://gate.example/".parse().expect("an address"),
            token: None,
            timeout: Duration::from_secs(10),
        });
        Arc::new(Gates {
            min_age: self.min_age,
            window,
            http,
            ..Gates::default()
        })
    }
}

/// What a decision covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Covers {
    /// A hold of everything.
    Everything,
    /// A hold of what a route names.
    Route(Arc<str>),
    /// A hold of one production tag.
    Tag(Place),
    /// A denial of an image.
    Image(Digest),
    /// A rollback of a production tag, which keeps out these images.
    Rollback(Place, Vec<Digest>),
    /// An accept of a production tag.
    Accept(Accept),
}

/// A production tag is to name staging's digest once, over what it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Accept {
    pub place: Place,
    pub digest: Digest,
    pub replaces: Digest,
}

impl Covers {
    /// The target of the decision.
    pub fn target(&self) -> String {
        match self {
            Covers::Everything => String::new(),
            Covers::Route(name) => format!("route:{name}"),
            Covers::Tag(place) | Covers::Rollback(place, _) => {
                format!("{}/{}:{}", place.registry, place.repository, place.tag)
            }
            Covers::Accept(Accept { place, .. }) => {
                format!("{}/{}:{}", place.registry, place.repository, place.tag)
            }
            Covers::Image(digest) => digest.to_string(),
        }
    }
}

/// A set of which a part was named, as the ledger says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TornSet {
    /// The number of the hold.
    pub id: u64,
    pub set: Arc<str>,
    pub tag: Arc<str>,
    /// The tags that were named, what they name, and what they named before.
    pub moves: Vec<(Place, Digest, Option<Digest>)>,
    pub goes_back: bool,
    /// Another digest in staging ends the hold.
    pub staging: Vec<Digest>,
}

/// What happens to guards.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Guarded {
    /// A person is about to decide.
    Deciding { number: u64, covers: Covers },
    /// The decision is in force.
    Decided { number: u64, id: u64 },
    /// A person is about to end decisions.
    Releasing { ids: Vec<u64> },
    /// They are not in force any more.
    Released { ids: Vec<u64> },
    /// None is in force any more.
    AllReleased,
    /// The service has answered about a tag.
    Judged {
        process: u32,
        /// The digest of the question: each has its own verdict.
        question: Digest,
        place: Place,
        digest: Digest,
        /// It was asked directly before the tag.
        at_name: bool,
        passes: bool,
    },
    /// A person promotes a tag by hand.
    Ordered {
        number: u64,
        process: u32,
        source: Place,
        place: Place,
        replace: Option<Digest>,
    },
    /// A person rolls a tag back; the decision keeps the rest out.
    RollingBack {
        number: u64,
        process: u32,
        place: Place,
        to: Digest,
    },
    /// An order or a rollback has come to its end.
    OrderEnded { number: u64 },
    /// A set is torn: it is held from a moment before.
    Torn(TornSet),
}

/// The service: its verdicts are drawn, and pass once all is calm.
pub struct Judge {
    chance: Chance,
    trace: Trace,
    calm: Duration,
    asked: Mutex<BTreeMap<(Place, Digest, bool), u64>>,
}

/// The service as one process reaches it.
pub struct Line {
    pub judge: Arc<Judge>,
    pub process: u32,
}

impl Judge {
    /// A service with verdicts that change until that time.
    pub fn new(chance: Chance, trace: &Trace, calm: Duration) -> Judge {
        Judge {
            chance,
            trace: trace.clone(),
            calm,
            asked: Mutex::default(),
        }
    }

    fn verdict(&self, draw: &mut Draw) -> Verdict {
        if self.trace.now() >= self.calm {
            return Verdict::Pass;
        }
        draw.pick(&[Verdict::Pass, Verdict::Pass, Verdict::Wait, Verdict::Refuse])
    }

    async fn judge(&self, process: u32, question: Vec<u8>) -> Reply {
        let asked_about = Digest::sha256(&question);
        let question: Value = serde_json::from_slice(&question).expect("a question is JSON");
        let text = |key: &str| question[key].as_str().expect("a text").to_owned();
        let place = process::place(&text("destination"));
        let digest: Digest = text("digest").parse().expect("a digest");
        let at_name = text("phase") == "name";
        let key = (place.clone(), digest, at_name);
        let nth = {
            let mut asked = self.asked.lock().expect("nothing panics while it counts");
            let nth = asked.entry(key.clone()).or_default();
            *nth += 1;
            *nth
        };
        let mut draw = self.chance.of(("gate", key, nth));
        tokio::time::sleep(draw.millis(1, 3_000)).await;
        let verdict = self.verdict(&mut draw);
        self.trace.note(Event::Guard(Guarded::Judged {
            process,
            question: asked_about,
            place,
            digest,
            at_name,
            passes: verdict == Verdict::Pass,
        }));
        let reason = "drawn".into();
        Reply::Verdict { verdict, reason }
    }
}

impl Service for Line {
    fn ask<'a>(&'a self, _: &'a Http, question: Vec<u8>) -> BoxFuture<'a, Reply> {
        self.judge.judge(self.process, question).boxed()
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}
