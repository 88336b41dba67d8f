//! What each scenario may cost at most, and whether it did.

use crate::scenario::Scenario;
use crate::stage::Run;
use crate::table::{Facts, Row, median, most};

const MIB: f64 = 1024.0 * 1024.0;

/// Something that must not be exceeded.
pub struct Limit {
    what: &'static str,
    at_most: f64,
    unit: &'static str,
    measured: Option<f64>,
}

/// What came of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not exceeded.
    Met,
    /// Exceeded.
    Missed,
    /// Whatever it is set against was not measured.
    Unknown,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Verdict; 3] = [Verdict::Met, Verdict::Missed, Verdict::Unknown];

    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::Unknown => "unknown",
        }
    }
}

impl Limit {
    /// `what` may come to `at_most`; `None`: it was not measured.
    pub fn new(
        what: &'static str,
        at_most: f64,
        unit: &'static str,
        measured: Option<f64>,
    ) -> Limit {
        Limit {
            what,
            at_most,
            unit,
            measured,
        }
    }

    /// A figure is compared as it is printed, with two digits.
    fn rounded(&self) -> Option<f64> {
        self.measured
            .map(|measured| (measured * 100.0).round() / 100.0)
    }

    /// What it is about.
    pub fn name(&self) -> &'static str {
        self.what.trim_end_matches(',')
    }

    /// Whether it was kept.
    pub fn verdict(&self) -> Verdict {
        match self.rounded() {
            Some(measured) if measured <= self.at_most => Verdict::Met,
            Some(_) => Verdict::Missed,
            None => Verdict::Unknown,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Limit {
            what,
            at_most,
            unit,
            ..
        } = self;
        let measured = self
            .rounded()
            .map_or("nothing".into(), |measured| format!("{measured:.2}"));
        write!(
            formatter,
            "- limit: {what} at most {at_most}{unit}; measured {measured}: **{}**",
            self.verdict().word()
        )
    }
}

/// The rows of a scenario, by name.
struct Rows<'a>(&'a [Row]);

impl Rows<'_> {
    fn runs(&self, name: &str) -> Option<&[Run]> {
        self.0
            .iter()
            .find(|row| row.name == name)?
            .runs
            .as_deref()
            .ok()
    }

    fn wall(&self, name: &str) -> Option<f64> {
        Some(median(self.runs(name)?, |run| run.wall))
    }

    /// Our time for each second of `peer`'s.
    fn beside(&self, peer: &str, suffix: &str) -> Option<f64> {
        Some(self.wall(&format!("blobferry{suffix}"))? / self.wall(&format!("{peer}{suffix}"))?)
    }

    fn beside_best(&self) -> Option<f64> {
        let peers = ["crane", "regsync", "skopeo"]
            .into_iter()
            .filter_map(|peer| self.beside(peer, ""));
        peers.max_by(f64::total_cmp)
    }

    fn ours(&self, value: impl Fn(&Run) -> f64) -> Option<f64> {
        Some(most(self.runs("blobferry")?, value))
    }

    fn again(&self, value: impl Fn(&Run) -> f64) -> Option<f64> {
        Some(most(self.runs("blobferry, again")?, value))
    }
}

/// The limits of a scenario at its full size, with what was measured.
pub fn limits(facts: &Facts, rows: &[Row]) -> Vec<Limit> {
    let rows = Rows(rows);
    let limit = Limit::new;
    let memory = rows.ours(|run| run.memory as f64 / MIB);
    match facts.scenario {
        Scenario::Apps => vec![
            limit(
                "time",
                1.2,
                " × the link's own",
                rows.wall("blobferry")
                    .zip(facts.link)
                    .map(|(wall, link)| wall / link),
            ),
            limit("time", 0.5, " × the best peer's", rows.beside_best()),
            limit(
                "requests at the destination",
                550.0,
                "",
                rows.ours(|run| run.sides[1].requests as f64),
            ),
            limit(
                "bytes sent, heads and manifests included,",
                1.01,
                " × the unique ones",
                rows.ours(|run| facts.sent_ratio(run)),
            ),
        ],
        Scenario::Tags => vec![
            limit(
                "requests a tag, both sides,",
                10.0,
                "",
                rows.ours(|run| facts.requests_a_tag(run)),
            ),
            limit("time", 0.21, " × crane's", rows.beside("crane", "")),
            limit(
                "again, requests a tag, both sides,",
                2.0,
                "",
                rows.again(|run| facts.requests_a_tag(run)),
            ),
            limit(
                "again, time",
                0.15,
                " × crane's",
                rows.beside("crane", ", again"),
            ),
        ],
        Scenario::Layer => vec![
            limit(
                "CPU seconds a GiB",
                1.25,
                "",
                rows.ours(|run| facts.cpu_a_gib(run)),
            ),
            limit("peak memory", 24.0, " MiB", memory),
        ],
        Scenario::Layers => vec![limit("peak memory", 64.0, " MiB", memory)],
        Scenario::Fanout => vec![limit(
            "bytes read",
            1.01,
            " × the unique ones",
            rows.ours(|run| facts.read_ratio(run)),
        )],
        Scenario::Interrupted => vec![
            limit(
                "read again",
                32.0,
                " MiB",
                rows.ours(|run| facts.read_again(run)),
            ),
            limit(
                "sent again",
                32.0,
                " MiB",
                rows.ours(|run| facts.sent_again(run)),
            ),
        ],
        Scenario::Storm => {
            let missing =
                |run: &Run| (facts.tags * facts.scenario.destinations()) as f64 - run.right as f64;
            vec![
                limit("exit code", 0.0, "", rows.ours(|run| f64::from(run.code))),
                limit("tags missing", 0.0, "", rows.ours(missing)),
            ]
        }
        Scenario::Unchanged => vec![limit(
            "requests a tag, both sides,",
            2.0,
            "",
            rows.ours(|run| facts.requests_a_tag(run)),
        )],
    }
}
