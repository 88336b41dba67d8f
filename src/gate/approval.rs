//! `approval`: different established principals agree. What a caller says of itself counts for
//! nothing, and neither does the principal that pushed the image.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use crate::decision::Approvals;
use crate::job::gates::Approval;
use crate::job::{GateKind, Judgement, NextJudgement};
use crate::oidc;

/// The verdict on approvals. `pushers`: the names that registries gave for pushes of the digest.
pub fn judge(gate: Approval, approvals: &Approvals, pushers: &[String]) -> Judgement {
    let mut people: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
    for approval in &approvals.people {
        people.entry(&approval.by.name).or_insert(approval.decision);
    }
    let (own, others): (Vec<_>, Vec<_>) = people
        .into_iter()
        .partition(|(by, _)| pushers.iter().any(|pusher| is_of(by, pusher)));
    let approved_by: Vec<_> = others
        .iter()
        .map(|(by, decision)| json!({"actor": by, "decision": decision}))
        .collect();
    let evidence = json!({"approved_by": approved_by, "pushed_by": pushers});
    let wanted = gate.people;
    let count = others.len();
    let mut reason = format!("approved by {count} of {wanted}");
    if count >= wanted {
        return Judgement::pass(GateKind::Approval, reason, evidence);
    }
    for (by, _) in own {
        reason.push_str(&format!("; {by} has pushed it and does not count"));
    }
    // An approval asks for a look itself.
    Judgement::wait(GateKind::Approval, reason, evidence, NextJudgement::Verify)
}

/// Whether a registry's name for a pusher is that of a principal: `alice`, or the last part of an
/// ARN.
fn is_of(principal: &str, pusher: &str) -> bool {
    let name = oidc::subject_of(principal)
        .or_else(|| principal.strip_prefix("user:"))
        .unwrap_or(principal);
    let last = pusher.rsplit('/').next().unwrap_or(pusher);
    [pusher, last]
        .iter()
        .any(|pusher| pusher.eq_ignore_ascii_case(name) || *pusher == principal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision;
    use crate::job::Actor;

    fn judged(people: usize, approvals: &[&str], pushers: &[&str]) -> Judgement {
        let approval = |(n, by): (usize, &&str)| decision::Approval {
            by: Actor::named(*by),
            decision: n as u64 + 1,
        };
        let approvals = Approvals {
            people: approvals.iter().enumerate().map(approval).collect(),
            overrides: Vec::new(),
        };
        let pushers: Vec<String> = pushers.iter().map(ToString::to_string).collect();
        judge(Approval { people }, &approvals, &pushers)
    }

    #[test]
    fn different_people_count_and_the_pusher_does_not() {
        let arn = "arn:aws:sts::123456789012:assumed-role/push/alice";
        for (people, approvals, pushers, passes) in [
            (1, &[][..], &[][..], false),
            (1, &["user:alice"][..], &[][..], true),
            (2, &["user:alice", "user:alice"], &[], false),
            (2, &["user:alice", "bob"], &[], true),
            (1, &["user:alice"], &["alice"], false),
            (1, &["user:alice"], &["Alice"], false),
            (1, &["user:alice"], &[arn], false),
            (1, &["user:alice"], &["robot", "carol"], true),
            (1, &["user:alice", "bob"], &["alice"], true),
            (2, &["user:alice", "bob"], &["alice"], false),
            (1, &["oidc:https://i.example#alice"], &[], true),
            (1, &["oidc:https://i.example#alice"], &["alice"], false),
            (
                2,
                &["oidc:https://i.example#a", "oidc:https://j.example#a"],
                &[],
                true,
            ),
        ] {
            let judgement = judged(people, approvals, pushers);
            assert_eq!(
                judgement.is_pass(),
                passes,
                "{people} {approvals:?} {pushers:?}"
            );
        }
        let own = judged(1, &["user:alice"], &["alice"]);
        assert!(own.reason.contains("user:alice has pushed it"), "{own:?}");
    }
}
