//! Gates: pure judgements over gathered facts, made before a tag moves.
//!
//! | gate | judges | kind |
//! |---|---|---|
//! | [`signature`] | signatures and attestations of trusted signers | evidence |
//! | [`scan`] | what a scanner has found: of a registry, or in a statement ([`vulnerabilities`]) | evidence |
//! | [`command`] | what a program says | evidence |
//! | [`http`] | what a service says | evidence |
//! | [`referrers`] | artifact types that are attached to the image | evidence |
//! | [`min_age`] | how long ago staging was first seen to name the digest | time |
//! | [`window`] | the hours of the week | time |
//! | [`approval`] | how many principals agree | decisions |
//! | [`forward_only`] | the versions of what a moving tag names on both sides | evidence |
//!
//! Evidence is judged before anything is carried, since a digest can be pulled without a tag; all
//! gates are judged again with fresh facts directly before the tag moves. What cannot be evaluated
//! waits.

pub mod approval;
pub mod command;
pub mod forward_only;
pub mod http;
pub mod min_age;
pub mod question;
pub mod referrers;
pub mod scan;
pub mod signature;
pub mod sigstore;
pub mod vulnerabilities;
pub mod window;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::endpoint::is_clock_off;
use crate::job::{GateKind, Gates, Judgement, NextJudgement};

/// How soon a clock that is off is compared again.
const SKEW_AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// What the time gates judge.
#[derive(Clone, Copy, Debug)]
pub struct TimeFacts {
    /// The time of day.
    pub now: Timestamp,
    /// Our clock minus the destination's, by its last answer. `None`: it has no clock.
    pub skew: Option<SignedDuration>,
    /// When the ledger first saw staging name the digest. `None`: it is not recorded yet.
    pub first_seen: Option<Timestamp>,
}

impl TimeFacts {
    /// Whether our clock cannot be trusted.
    pub fn is_skewed(&self) -> bool {
        is_clock_off(self.skew)
    }

    /// A time gate waits while the clocks differ.
    fn skewed(&self, gate: GateKind) -> Option<Judgement> {
        let skew = self.skew.filter(|_| self.is_skewed())?;
        let reason = "our clock is more than 60 s off the destination's: set it (the time gates wait until then)";
        let evidence = json!({"clock_ahead_seconds": skew.as_secs()});
        let next = NextJudgement::At(self.now.saturating_add(SKEW_AGAIN).unwrap_or(self.now));
        Some(Judgement::wait(gate, reason, evidence, next))
    }
}

/// The verdicts of the time gates.
pub fn time_gates(gates: &Gates, facts: &TimeFacts) -> Vec<Judgement> {
    let mut judgements = Vec::new();
    for gates in gates.all() {
        judgements.extend(gates.min_age.map(|age| {
            facts
                .skewed(GateKind::MinAge)
                .unwrap_or_else(|| min_age::judge(age, facts))
        }));
        judgements.extend(gates.window.as_ref().map(|window| {
            facts
                .skewed(GateKind::Window)
                .unwrap_or_else(|| window::judge(window, facts.now))
        }));
    }
    judgements
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::Verdict;

    #[test]
    fn time_gates_wait_while_the_clocks_differ_by_more_than_a_minute() {
        let gates = Gates {
            min_age: Some(Duration::from_secs(1)),
            window: Some(crate::job::gates::Window {
                zone: jiff::tz::TimeZone::UTC,
                open: Vec::new(),
                closed: Vec::new(),
            }),
            ..Gates::default()
        };
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let verdicts = |skew: Option<i64>| -> Vec<Verdict> {
            let facts = TimeFacts {
                now,
                skew: skew.map(SignedDuration::from_secs),
                first_seen: Some(Timestamp::UNIX_EPOCH),
            };
            let judged = time_gates(&gates, &facts);
            judged.iter().map(|judged| judged.verdict).collect()
        };
        for trusted in [None, Some(0), Some(60), Some(-60)] {
            assert_eq!(verdicts(trusted), [Verdict::Pass; 2], "{trusted:?}");
        }
        for off in [Some(61), Some(-61), Some(i64::from(i32::MAX))] {
            assert_eq!(verdicts(off), [Verdict::Wait; 2], "{off:?}");
        }
    }
}
