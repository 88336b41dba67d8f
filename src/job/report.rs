//! What came of jobs, looks and passes, as reports, the ledger and the HTTP API show it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Actor, BlobCounts, Cause, Gated, Judgement, Outcome, ReferrerCounts};
use crate::fault::{Class, Fault};
use crate::oci::{Digest, Tag};

/// What kind of trouble it is: the class of a failure, or a rule of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleClass {
    /// [`Class::Retryable`].
    Retryable,
    /// [`Class::Auth`].
    Auth,
    /// [`Class::NotFound`].
    NotFound,
    /// [`Class::Corrupt`].
    Corrupt,
    /// [`Class::Rejected`].
    Rejected,
    /// [`Class::Cancelled`].
    Cancelled,
    /// A rule of the config refuses it: nothing failed.
    Refused,
}

impl TroubleClass {
    /// The name in reports, the ledger and metrics.
    pub fn name(self) -> &'static str {
        match self {
            TroubleClass::Retryable => Class::RETRYABLE.name(),
            TroubleClass::Auth => Class::Auth.name(),
            TroubleClass::NotFound => Class::NotFound.name(),
            TroubleClass::Corrupt => Class::Corrupt.name(),
            TroubleClass::Rejected => Class::Rejected.name(),
            TroubleClass::Cancelled => Class::Cancelled.name(),
            TroubleClass::Refused => "refused",
        }
    }
}

impl From<Class> for TroubleClass {
    fn from(class: Class) -> TroubleClass {
        match class {
            Class::Retryable { .. } => TroubleClass::Retryable,
            Class::Auth => TroubleClass::Auth,
            Class::NotFound => TroubleClass::NotFound,
            Class::Corrupt => TroubleClass::Corrupt,
            Class::Rejected => TroubleClass::Rejected,
            Class::Cancelled => TroubleClass::Cancelled,
        }
    }
}

/// A failure as reports show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What it asks for.
    pub class: TroubleClass,
    /// What happened, to what, and the way out.
    pub text: String,
}

impl Trouble {
    /// Something that was named is not there.
    pub fn not_found(text: String) -> Trouble {
        Trouble {
            class: TroubleClass::NotFound,
            text,
        }
    }

    /// A rule of the config refuses something.
    pub fn refused(text: String) -> Trouble {
        Trouble {
            class: TroubleClass::Refused,
            text,
        }
    }
}

impl From<&Fault> for Trouble {
    fn from(fault: &Fault) -> Trouble {
        Trouble {
            class: fault.class().into(),
            text: fault.chain(),
        }
    }
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The source tag.
    pub tag: Tag,
    /// What the failure asks for.
    pub class: Class,
}

/// A settled job, as reports show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settled {
    /// The route's name; empty for `copy`.
    pub route: String,
    /// `host/repository:tag` of the source.
    pub source: String,
    /// `host/repository:tag` of the destination.
    pub destination: String,
    /// What staging named.
    pub digest: Option<Digest>,
    /// Of a route with `platform`: the index from which the digest was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// What production named before.
    pub previous_digest: Option<Digest>,
    /// Why.
    pub cause: Cause,
    /// The principal, and what it said.
    #[serde(flatten)]
    pub actor: Actor,
    /// What came of it.
    pub result: Outcome,
    /// Why it came to this, for people.
    pub reasons: Vec<String>,
    /// The failure, if it failed.
    pub error: Option<Trouble>,
    /// The failure of this very attempt, for what decides when to try again.
    #[serde(skip)]
    pub failure: Option<Failure>,
    /// Verdicts of gates.
    #[serde(default)]
    pub gates: Vec<Judgement>,
    /// That gates kept it from its tag, for what decides when to look again.
    #[serde(skip)]
    pub gated: Option<Gated>,
    /// Its blobs.
    pub blobs: BlobCounts,
    /// Its referrers and companion tags.
    #[serde(default)]
    pub referrers: ReferrerCounts,
    /// Blob bytes put on the wire to the destination, repeats included.
    pub bytes_sent: u64,
    /// Sizes of the blobs that were present or mounted.
    pub bytes_spared: u64,
    /// Requests on both sides.
    pub requests: u64,
    /// From start to end.
    pub duration_seconds: f64,
    /// Of `copy` and `promote`: no route's rules covered it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unguarded: bool,
    /// Of a row of the ledger: it is older than `daemon.retention`, and its texts are gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
}

impl Settled {
    /// What production names after it, as far as the job saw.
    pub fn production(&self) -> Option<Digest> {
        match self.result {
            Outcome::Promoted | Outcome::UpToDate => self.digest,
            _ => self.previous_digest,
        }
    }

    /// The class of the failure, if it failed.
    pub fn error_class(&self) -> Option<TroubleClass> {
        self.error.as_ref().map(|error| error.class)
    }
}

/// The tag of a `host/repository:tag`.
pub fn tag_of(reference: &str) -> Option<&str> {
    reference.rsplit_once(':').map(|(_, tag)| tag)
}

#[cfg(test)]
impl Settled {
    /// A job of the tag `v1` that came to `result`, for unit tests.
    pub(crate) fn sample(result: Outcome) -> Settled {
        Settled {
            route: "app".into(),
            source: "s/app:v1".into(),
            destination: "p/app:v1".into(),
            digest: None,
            index: None,
            previous_digest: None,
            cause: Cause::Poll,
            actor: Actor::daemon(),
            result,
            reasons: Vec::new(),
            error: None,
            failure: None,
            gates: Vec::new(),
            gated: None,
            blobs: BlobCounts::default(),
            referrers: ReferrerCounts::default(),
            bytes_sent: 0,
            bytes_spared: 0,
            requests: 0,
            duration_seconds: 0.0,
            unguarded: false,
            expired: false,
        }
    }
}

/// How much a look saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sight {
    /// The lists of both sides.
    #[default]
    Full,
    /// A list is missing: the look tells nothing about tags that it does not report.
    Blind,
}

/// What a look at one source repository and its destinations came to.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Settled jobs, and with them what is up to date when that was asked for.
    pub jobs: Vec<Settled>,
    /// Tags by result.
    pub totals: Totals,
    /// What ended the look before it could see all, by destination or for the source.
    pub trouble: Vec<Trouble>,
    /// How much it saw.
    pub sight: Sight,
    /// Whether any source repository that was asked for is there.
    pub found: bool,
    /// The tags that were asked for by name.
    pub named: Vec<NamedTag>,
}

impl Look {
    /// A look that failed as a whole.
    pub fn failed(fault: &Fault) -> Look {
        Look {
            trouble: vec![Trouble::from(fault)],
            sight: Sight::Blind,
            ..Look::default()
        }
    }

    /// A look that will not take place: the daemon stops, or the config no longer has the route.
    pub fn interrupted() -> Look {
        let text =
            "interrupted before its turn: the daemon stops, or the config no longer has the route";
        Look {
            totals: Totals {
                interrupted: 1,
                ..Totals::default()
            },
            trouble: vec![Trouble {
                class: TroubleClass::Cancelled,
                text: text.into(),
            }],
            sight: Sight::Blind,
            ..Look::default()
        }
    }
}

/// A tag that was asked for by name, as one source repository knows it.
#[derive(Clone, Debug)]
pub struct NamedTag {
    /// Its name.
    pub name: Tag,
    /// Why it is not looked at here: the repository lacks it, or the rules leave it out.
    pub missing: Option<String>,
    /// Whether the source has no such tag.
    pub is_absent: bool,
}

/// Missing tags that a report lists at most.
const MOST_MISSING: usize = 100;

/// Counts of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// See [`Outcome::Promoted`].
    pub promoted: u64,
    /// See [`Outcome::UpToDate`].
    pub up_to_date: u64,
    /// See [`Outcome::Conflict`].
    pub conflict: u64,
    /// See [`Outcome::Drift`].
    pub drift: u64,
    /// See [`Outcome::Existing`].
    pub existing: u64,
    /// See [`Outcome::Refused`].
    pub refused: u64,
    /// See [`Outcome::Gone`].
    pub gone: u64,
    /// See [`Outcome::Waiting`].
    pub waiting: u64,
    /// See [`Outcome::Held`].
    pub held: u64,
    /// See [`Outcome::Planned`].
    pub planned: u64,
    /// See [`Outcome::Interrupted`].
    pub interrupted: u64,
    /// See [`Outcome::Failed`].
    pub failed: u64,
    /// Source tags that the rules leave out.
    pub excluded: u64,
    /// Destination tags that the source does not have.
    pub only_in_destination: u64,
}

impl Totals {
    /// Counts one more of `outcome`.
    pub fn add(&mut self, outcome: Outcome) {
        *self.of_mut(outcome) += 1;
    }

    /// The count of `outcome`.
    pub fn of(&self, outcome: Outcome) -> u64 {
        *self.clone().of_mut(outcome)
    }

    fn of_mut(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Promoted => &mut self.promoted,
            Outcome::UpToDate => &mut self.up_to_date,
            Outcome::Conflict => &mut self.conflict,
            Outcome::Drift => &mut self.drift,
            Outcome::Existing => &mut self.existing,
            Outcome::Refused => &mut self.refused,
            Outcome::Gone => &mut self.gone,
            Outcome::Waiting => &mut self.waiting,
            Outcome::Held => &mut self.held,
            Outcome::Planned => &mut self.planned,
            Outcome::Interrupted => &mut self.interrupted,
            Outcome::Failed => &mut self.failed,
        }
    }

    /// Counts one fewer of `outcome`; what was promoted is up to date by now.
    pub fn remove(&mut self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::UpToDate if self.up_to_date == 0 => Outcome::Promoted,
            other => other,
        };
        let count = self.of_mut(outcome);
        *count = count.saturating_sub(1);
    }

    /// Adds the counts of another look.
    pub fn merge(&mut self, other: &Totals) {
        for outcome in Outcome::ALL {
            *self.of_mut(outcome) += other.of(outcome);
        }
        self.excluded += other.excluded;
        self.only_in_destination += other.only_in_destination;
    }

    /// Takes away the counts of a look that was added before.
    pub fn subtract(&mut self, other: &Totals) {
        for outcome in Outcome::ALL {
            *self.of_mut(outcome) -= other.of(outcome);
        }
        self.excluded -= other.excluded;
        self.only_in_destination -= other.only_in_destination;
    }
}

/// The report of a pass: `sync --json`, a waited-for `/v1/sync`, `/v1/runs/ID`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this shape.
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// Names the pass.
    pub run_id: String,
    /// When it started.
    pub started: Timestamp,
    /// How long it took.
    pub duration_seconds: f64,
    /// What a command line would end with.
    pub exit_code: u8,
    /// Counts.
    pub totals: Totals,
    /// What could not be looked at, or was named and is not there, in words.
    #[serde(default)]
    pub trouble: Vec<String>,
    /// What changed or is in trouble; with `all` every tag and destination.
    pub jobs: Vec<Settled>,
}

impl Report {
    /// Puts looks together. The exit code is the first that applies: 130 interrupted, 3
    /// authentication, 1 failed, 4 conflict, drift, refused, or asked for by name and held or
    /// waiting, 5 nothing there, 0.
    pub fn new(
        run_id: &str,
        started: Timestamp,
        duration: Duration,
        looks: impl IntoIterator<Item = Look>,
    ) -> Report {
        let mut report = Report {
            schema: 1,
            version: env!("CARGO_PKG_VERSION").into(),
            run_id: run_id.into(),
            started,
            duration_seconds: (duration.as_secs_f64() * 1000.0).round() / 1000.0,
            exit_code: 0,
            totals: Totals::default(),
            trouble: Vec::new(),
            jobs: Vec::new(),
        };
        let mut verdict = Verdict::default();
        let mut trouble = Vec::new();
        let mut named: BTreeMap<Tag, (bool, Vec<String>)> = BTreeMap::new();
        for look in looks {
            report.totals.merge(&look.totals);
            verdict.found |= look.found;
            if !look.named.is_empty() {
                verdict.named_and_blocked |= look.totals.held + look.totals.waiting > 0;
            }
            report.jobs.extend(look.jobs);
            trouble.extend(look.trouble);
            for tag in look.named {
                let entry = named.entry(tag.name).or_default();
                match tag.missing {
                    None => entry.0 = true,
                    Some(text) => entry.1.push(text),
                }
            }
        }
        // A tag that one repository has is not missed in the others.
        let missing = named
            .into_values()
            .filter(|(is_found, _)| !is_found)
            .flat_map(|(_, texts)| texts);
        trouble.extend(missing.take(MOST_MISSING).map(Trouble::not_found));
        report.exit_code = verdict.exit_code(&report, &trouble);
        report.trouble = trouble.into_iter().map(|trouble| trouble.text).collect();
        report
    }

    /// The same report with something that was named and is not there.
    pub fn with_missing(mut self, missing: Vec<Trouble>) -> Report {
        if self.exit_code == 0 && !missing.is_empty() {
            self.exit_code = 5;
        }
        self.trouble
            .extend(missing.into_iter().map(|trouble| trouble.text));
        self
    }
}

/// What decides on the exit code beside totals and trouble.
#[derive(Default)]
struct Verdict {
    /// Whether any source repository that was asked for is there.
    found: bool,
    /// Whether a tag that was asked for by its name is held or waiting.
    named_and_blocked: bool,
}

impl Verdict {
    fn exit_code(&self, report: &Report, trouble: &[Trouble]) -> u8 {
        let classes: HashSet<TroubleClass> = report
            .jobs
            .iter()
            .filter_map(|job| job.error.as_ref())
            .chain(trouble)
            .map(|error| error.class)
            .collect();
        let totals = &report.totals;
        let is_against_a_rule = totals.conflict + totals.drift + totals.refused > 0;
        if totals.interrupted > 0 || classes.contains(&TroubleClass::Cancelled) {
            130
        } else if classes.contains(&TroubleClass::Auth) {
            3
        } else if totals.failed > 0
            || trouble.iter().any(|trouble| {
                ![TroubleClass::NotFound, TroubleClass::Refused].contains(&trouble.class)
            })
        {
            1
        } else if is_against_a_rule || self.named_and_blocked {
            4
        } else if !self.found || classes.contains(&TroubleClass::NotFound) {
            5
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_written_as_it_is_named() {
        for class in [
            TroubleClass::Retryable,
            TroubleClass::Auth,
            TroubleClass::NotFound,
            TroubleClass::Corrupt,
            TroubleClass::Rejected,
            TroubleClass::Cancelled,
            TroubleClass::Refused,
        ] {
            assert_eq!(serde_json::json!(class), class.name());
        }
    }

    fn report(totals: Totals, trouble: Vec<Trouble>, found: bool) -> u8 {
        let look = Look {
            totals,
            trouble,
            found,
            ..Look::default()
        };
        Report::new("r", Timestamp::UNIX_EPOCH, Duration::ZERO, [look]).exit_code
    }

    #[test]
    fn the_first_exit_code_that_applies_wins() {
        let trouble = |class: TroubleClass| {
            vec![Trouble {
                class,
                text: String::new(),
            }]
        };
        assert_eq!(report(Totals::default(), vec![], true), 0);
        assert_eq!(report(Totals::default(), vec![], false), 5);
        assert_eq!(
            report(
                Totals {
                    existing: 3,
                    only_in_destination: 1,
                    ..Totals::default()
                },
                vec![],
                true
            ),
            0
        );
        assert_eq!(
            report(
                Totals {
                    conflict: 1,
                    ..Totals::default()
                },
                vec![],
                true
            ),
            4
        );
        assert_eq!(
            report(
                Totals {
                    drift: 1,
                    failed: 1,
                    ..Totals::default()
                },
                vec![],
                true
            ),
            1
        );
        assert_eq!(
            report(
                Totals {
                    failed: 1,
                    ..Totals::default()
                },
                trouble(TroubleClass::Auth),
                true
            ),
            3
        );
        assert_eq!(
            report(
                Totals {
                    interrupted: 1,
                    ..Totals::default()
                },
                trouble(TroubleClass::Auth),
                true
            ),
            130
        );
        assert_eq!(
            report(Totals::default(), trouble(TroubleClass::NotFound), false),
            5
        );
        assert_eq!(
            report(Totals::default(), trouble(TroubleClass::Retryable), false),
            1
        );
        assert_eq!(
            report(
                Totals {
                    refused: 1,
                    ..Totals::default()
                },
                trouble(TroubleClass::Refused),
                false
            ),
            4
        );
    }

    #[test]
    fn what_is_held_or_waits_ends_with_4_only_where_it_was_asked_for_by_name() {
        let exit_code = |totals: Totals, is_named: bool| {
            let tag = NamedTag {
                name: "v1".parse().unwrap(),
                missing: None,
                is_absent: false,
            };
            let look = Look {
                totals,
                found: true,
                named: Vec::from_iter(is_named.then_some(tag)),
                ..Look::default()
            };
            Report::new("r", Timestamp::UNIX_EPOCH, Duration::ZERO, [look]).exit_code
        };
        for outcome in [Outcome::Held, Outcome::Waiting] {
            let mut totals = Totals::default();
            totals.add(outcome);
            assert_eq!(exit_code(totals, false), 0, "{outcome}");
            assert_eq!(exit_code(totals, true), 4, "{outcome}");
            totals.add(Outcome::Failed);
            assert_eq!(exit_code(totals, true), 1, "{outcome}");
        }
    }

    #[test]
    fn a_tag_is_missed_only_when_no_repository_has_it() {
        let look = |tags: &[(&str, Option<&str>)]| {
            let named = |(name, missing): &(&str, Option<&str>)| NamedTag {
                name: name.parse().unwrap(),
                missing: missing.map(str::to_owned),
                is_absent: false,
            };
            Look {
                found: true,
                named: tags.iter().map(named).collect(),
                ..Look::default()
            }
        };
        let looks = [
            look(&[("v1", None), ("v2", Some("a lacks v2"))]),
            look(&[("v1", Some("b lacks v1")), ("v2", Some("b lacks v2"))]),
        ];
        let report = Report::new("r", Timestamp::UNIX_EPOCH, Duration::ZERO, looks);
        assert_eq!(report.trouble, ["a lacks v2", "b lacks v2"]);
        assert_eq!(report.exit_code, 5);
        let report = Report::new(
            "r",
            Timestamp::UNIX_EPOCH,
            Duration::ZERO,
            [look(&[("v1", None)])],
        );
        assert_eq!((report.trouble.len(), report.exit_code), (0, 0));
    }
}
