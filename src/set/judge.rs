//! The judgement: whether a tag of a set may be named, and which member is the next.

use super::fact::{Fact, State};
use super::naming::Naming;
use super::{MemberTag, SetTag};
use crate::oci::Tag;

/// What the facts come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is named, for this reason.
    Waits(String),
    /// All have passed; these have to pass anew, since it was long ago.
    Anew(Vec<usize>),
    /// The member that is named next.
    Next(usize),
    /// All are named.
    Whole,
}

/// Judges a tag of a set; `facts` are those of its members, in their order.
pub fn judge(set: &SetTag, facts: &[Fact], begun: Option<&Naming>) -> Verdict {
    let mut members = set.members.iter().zip(facts);
    let next = members.position(|(member, fact)| !is_done(set, member, fact, begun));
    let Some(next) = next else {
        return Verdict::Whole;
    };
    if begun.is_some() {
        return Verdict::Next(next);
    }
    if let Some(reason) = lacks(set, facts).or_else(|| differs(set, facts)) {
        return Verdict::Waits(reason);
    }
    let stale = facts.iter().enumerate().filter(|(_, fact)| {
        matches!(
            fact.state,
            State::Ready {
                is_fresh: false,
                ..
            }
        )
    });
    let stale: Vec<usize> = stale.map(|(position, _)| position).collect();
    if stale.is_empty() {
        Verdict::Next(next)
    } else {
        Verdict::Anew(stale)
    }
}

fn is_done(set: &SetTag, member: &MemberTag, fact: &Fact, begun: Option<&Naming>) -> bool {
    match (&fact.state, begun) {
        (State::Named(digest), Some(begun)) if set.is_moving => {
            let goal = begun.goal(&member.key.destination);
            goal.is_none_or(|goal| goal == *digest)
        }
        (State::Named(_), _) => true,
        _ => false,
    }
}

/// What the set lacks.
fn lacks(set: &SetTag, facts: &[Fact]) -> Option<String> {
    let members = set.members.iter().zip(facts);
    let missing: Vec<String> = members
        .clone()
        .filter(|(_, fact)| fact.state == State::Missing)
        .map(|(member, _)| member.shown())
        .collect();
    let kept_back: Vec<String> = members
        .filter_map(|(member, fact)| match &fact.state {
            State::KeptBack(how) => Some(format!("{} ({how})", member.shown())),
            _ => None,
        })
        .collect();
    let name = &set.name.set;
    let parts = [("lacks", missing), ("waits for", kept_back)];
    let said = parts.into_iter().filter(|(_, members)| !members.is_empty());
    let said: Vec<String> = said
        .map(|(verb, members)| format!("{verb} {}", members.join(", ")))
        .collect();
    (!said.is_empty()).then(|| format!("set {name} {}", said.join(" and ")))
}

/// What a moving tag names where its members have no version in common.
fn differs(set: &SetTag, facts: &[Fact]) -> Option<String> {
    if !set.is_moving {
        return None;
    }
    let all = facts.iter().map(|fact| fact.versions.clone());
    let common = all.reduce(|common, versions| &common & &versions);
    if common.is_some_and(|common| !common.is_empty()) {
        return None;
    }
    let named: Vec<String> = set
        .members
        .iter()
        .zip(facts)
        .map(|(member, fact)| {
            let versions: Vec<&str> = fact.versions.iter().map(Tag::as_str).collect();
            let versions = match versions.is_empty() {
                true => "no fixed tag of production".to_owned(),
                false => versions.join(", "),
            };
            format!("{} names {versions}", member.shown())
        })
        .collect();
    let name = &set.name.set;
    Some(format!(
        "set {name} has no fixed tag in common: {}",
        named.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::decision::SetMove;
    use crate::oci::Digest;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    /// `-` missing, `h` held, `r` ready, `s` ready long ago, `n` named; then the versions.
    fn fact(text: &str) -> Fact {
        let versions: BTreeSet<Tag> = text[1..]
            .split_whitespace()
            .map(|tag| tag.parse().unwrap())
            .collect();
        let ready = |is_fresh| State::Ready {
            digest: digest(&text[1..]),
            previous: None,
            is_fresh,
        };
        let state = match &text[..1] {
            "-" => State::Missing,
            "h" => State::KeptBack("held".into()),
            "r" => ready(true),
            "s" => ready(false),
            _ => State::Named(digest(&text[1..])),
        };
        Fact { state, versions }
    }

    fn judged(tag: &str, facts: [&str; 3]) -> Verdict {
        judge(&SetTag::sample(tag), &facts.map(fact), None)
    }

    #[test]
    fn a_fixed_tag_is_named_once_all_have_passed() {
        let waits = |reason: &str| Verdict::Waits(reason.into());
        for (facts, expected) in [
            (["r", "r", "r"], Verdict::Next(0)),
            (["n", "r", "r"], Verdict::Next(1)),
            (["r", "n", "n"], Verdict::Next(0)),
            (["n", "n", "n"], Verdict::Whole),
            (["s", "r", "s"], Verdict::Anew(vec![0, 2])),
            (["n", "s", "r"], Verdict::Anew(vec![1])),
            (["r", "r", "-"], waits("set shop lacks worker:v1")),
            (["-", "r", "-"], waits("set shop lacks api:v1, worker:v1")),
            (["r", "h", "n"], waits("set shop waits for web:v1 (held)")),
            (
                ["-", "h", "s"],
                waits("set shop lacks api:v1 and waits for web:v1 (held)"),
            ),
        ] {
            assert_eq!(judged("v1", facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_moving_tag_needs_a_version_in_common() {
        for (facts, expected) in [
            (["rv2", "rv2", "rv2"], Some(Verdict::Next(0))),
            (["nv2", "rv1 v2", "rv2"], Some(Verdict::Next(1))),
            (["nv1", "nv1", "nv1"], Some(Verdict::Whole)),
            // What is named stays so, whatever it is.
            (["nv1", "nv2", "nv3"], Some(Verdict::Whole)),
            (["rv2", "nv1", "nv1"], None),
            (["rv2", "rv2", "r"], None),
            (["r", "r", "r"], None),
        ] {
            let verdict = judged("latest", facts);
            match expected {
                Some(expected) => assert_eq!(verdict, expected, "{facts:?}"),
                None => assert!(matches!(verdict, Verdict::Waits(_)), "{facts:?}"),
            }
        }
        assert_eq!(
            judged("latest", ["rv2", "nv1", "r"]),
            Verdict::Waits("set shop has no fixed tag in common: api:latest names v2; web:latest names v1; worker:latest names no fixed tag of production".into())
        );
    }

    #[test]
    fn what_has_begun_goes_on_and_is_torn_by_what_it_has_moved() {
        let set = SetTag::sample("latest");
        let facts = ["rv2", "rv2", "rv2"].map(fact);
        let naming = Naming::of(&set, &facts, jiff::Timestamp::UNIX_EPOCH);
        let now = ["nv2", "hv2", "rv2"].map(fact);
        assert_eq!(judge(&set, &now, Some(&naming)), Verdict::Next(1));
        let named = [Some(digest("v2")), None, Some(digest("v1"))];
        let made: Vec<SetMove> = naming.made(&set, &named);
        let place = &set.members[0].key.destination;
        assert_eq!(made, [SetMove::new(place, digest("v2"), None)]);
        // What production names from before is not what was announced.
        let now = ["nv1", "nv2", "nv2"].map(fact);
        assert_eq!(judge(&set, &now, Some(&naming)), Verdict::Next(0));
        let named = [Some(digest("v1")), Some(digest("v2")), Some(digest("v2"))];
        assert_eq!(naming.made(&set, &named).len(), 2);
        assert!(!naming.is_over(&set, &named));
        assert!(naming.is_over(&set, &[Some(digest("v2")); 3]));
    }
}
