//! `min_age`: the time since the ledger first saw staging name the digest.

use std::time::Duration;

use serde_json::json;

use super::TimeFacts;
use crate::job::{GateKind, Judgement, NextJudgement};

/// The verdict on a digest's age.
pub fn judge(age: Duration, facts: &TimeFacts) -> Judgement {
    let Some(seen) = facts.first_seen else {
        let reason = "the digest is not in the ledger yet: its age begins with the first look";
        let next = NextJudgement::Poll;
        return Judgement::wait(GateKind::MinAge, reason, json!({}), next);
    };
    let evidence = json!({"first_seen": seen});
    // Beyond the calendar is never.
    let due = seen.saturating_add(age).unwrap_or(jiff::Timestamp::MAX);
    if facts.now >= due {
        let reason = format!("staging was first seen to name it at {seen:.0}");
        return Judgement::pass(GateKind::MinAge, reason, evidence);
    }
    let reason = format!("old enough at {due:.0}");
    Judgement::wait(GateKind::MinAge, reason, evidence, NextJudgement::At(due))
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;

    #[test]
    fn a_digest_is_old_enough_at_its_time_and_not_before() {
        let seen: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let age = Duration::from_secs(3600);
        let at = |seconds| TimeFacts {
            now: seen + SignedDuration::from_secs(seconds),
            skew: None,
            first_seen: Some(seen),
        };
        let early = judge(age, &at(3599));
        assert_eq!(
            early.next,
            NextJudgement::At(seen + SignedDuration::from_secs(3600))
        );
        assert!(early.reason.contains("2026-11-30T13:00:00Z"), "{early:?}");
        assert!(judge(age, &at(3600)).is_pass());
        assert!(!judge(age, &at(-5)).is_pass(), "the clock was set back");
        let unseen = TimeFacts {
            first_seen: None,
            ..at(1)
        };
        assert!(!judge(Duration::ZERO, &unseen).is_pass());
    }
}
