//! The plan: decides about a tag from facts, without side effects.
//!
//! S is staging's digest, P production's, L what the ledger knows of the production tag: written by
//! us, or agreed (both sides were equal).
//!
//! | | fixed tag | moving tag |
//! |---|---|---|
//! | P absent | promote | promote |
//! | P = S | up to date | up to date |
//! | P ≠ S, P = L | conflict | promote |
//! | P ≠ S, P ≠ L, L known | drift (`restore` → as P = L) | drift (`restore` → promote) |
//! | P ≠ S, L unknown | existing (`adopt` → conflict) | existing (`adopt` → promote) |
//! | S gone | nothing | nothing |

use crate::job::{Drift, Existing, TagRules};
use crate::ledger::TagRecord;
use crate::oci::Digest;

/// What is known of a tag on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// S: what staging names; `None`: the tag is gone.
    pub source: Option<Digest>,
    /// P: what production names.
    pub destination: Option<Digest>,
    /// Whether the ledger knows the production tag (L).
    pub ledger_known: bool,
    /// Whether P is what the ledger knows (P = L).
    pub ledger_agrees: bool,
    /// Whether the ledger knows more than an announced write without a known outcome. Such a write
    /// may never have been sent: then P was not changed, it was there before.
    pub ledger_is_sure: bool,
}

impl Facts {
    /// What both sides name, and what the ledger knows of the production tag.
    pub fn of(source: Option<Digest>, destination: Option<Digest>, known: &TagRecord) -> Facts {
        Facts {
            source,
            destination,
            ledger_known: known.is_known(destination.as_ref()),
            ledger_agrees: destination.is_some_and(|production| known.is_ours(&production)),
            ledger_is_sure: known.digest.is_some(),
        }
    }
}

/// An explicit order beyond the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// An explicit act: a moving tag moves over drift and existing digests.
    pub explicit: bool,
    /// Only this digest may be promoted.
    pub expect: Option<Digest>,
    /// The production digest that may be replaced, even under a fixed tag.
    pub replace: Option<Digest>,
    /// Whether S is in conflict under a fixed tag of the same repository.
    pub refused: bool,
}

/// The decision about a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: both sides name the same digest.
    UpToDate,
    /// Carry the content, then move the tag.
    Promote,
    /// A fixed tag names another digest: nothing is done, and it is reported.
    Conflict(String),
    /// Production's tag changed after the daemon wrote it: nothing is done.
    Drift(String),
    /// Production's tag predates the daemon: nothing is done.
    Existing(String),
    /// A rule refuses the tag: nothing is done.
    Refused(String),
    /// Staging lacks the tag: nothing is done.
    Gone,
}

/// Decides by the order, then by the table above.
pub fn decide(rules: TagRules, facts: &Facts, order: &Order) -> Decision {
    let Some(source) = facts.source else {
        return Decision::Gone;
    };
    if let Some(expected) = order.expect.filter(|expected| *expected != source) {
        return Decision::Refused(format!(
            "staging names {source}, but {expected} was expected"
        ));
    }
    let Some(production) = facts.destination else {
        return if order.refused && rules.moving {
            refused(source)
        } else {
            Decision::Promote
        };
    };
    if production == source {
        return Decision::UpToDate;
    }
    if order.replace == Some(production) {
        return Decision::Promote;
    }
    let decision = if order.explicit {
        explicit(rules, order, source, production)
    } else {
        by_rules(rules, facts, source, production)
    };
    if decision == Decision::Promote && order.refused {
        refused(source)
    } else {
        decision
    }
}

fn refused(source: Digest) -> Decision {
    Decision::Refused(format!(
        "{source} is in conflict under a fixed tag of this repository; resolve that first"
    ))
}

fn explicit(rules: TagRules, order: &Order, source: Digest, production: Digest) -> Decision {
    match order.replace {
        _ if rules.moving => Decision::Promote,
        Some(named) => Decision::Conflict(format!(
            "production names {production}, not {named}, which was to be replaced; it stays"
        )),
        None => Decision::Conflict(format!(
            "production names {production}, not {source}; to move this fixed tag, say --replace {production}"
        )),
    }
}

fn by_rules(rules: TagRules, facts: &Facts, source: Digest, production: Digest) -> Decision {
    match (facts.ledger_known, facts.ledger_agrees) {
        (true, true) => promote_moving(rules, moved_in_staging(source, production)),
        (true, false) if rules.drift == Drift::Restore && !facts.ledger_is_sure => {
            Decision::Drift(doubtful(source, production))
        }
        (true, false) if rules.drift == Drift::Restore => {
            promote_moving(rules, changed_in_production(source, production))
        }
        (true, false) => Decision::Drift(drift_text(rules, source, production)),
        (false, _) => existing(rules, source, production),
    }
}

fn promote_moving(rules: TagRules, conflict: String) -> Decision {
    if rules.moving {
        Decision::Promote
    } else {
        Decision::Conflict(conflict)
    }
}

fn moved_in_staging(source: Digest, production: Digest) -> String {
    format!(
        "staging moved a fixed tag to {source}, production keeps {production}; push the content under a new tag and put staging's old tag back (or exclude it): until then it stays a conflict, and a moving tag of the same digest is refused. Or list the tag under `moving`, or move it once with `blobferry accept` (without a daemon: copy with --replace {production})"
    )
}

fn changed_in_production(source: Digest, production: Digest) -> String {
    format!(
        "the fixed tag was changed in production to {production}, and `drift: restore` moves no fixed tag; to put {source} there, say `blobferry accept` (without a daemon: copy with --replace {production})"
    )
}

fn doubtful(source: Digest, production: Digest) -> String {
    format!(
        "an earlier write of the tag has no known outcome, and production names {production}, which may have been there before; it stays. To put {source} there, say `blobferry accept` (without a daemon: copy it over by hand)"
    )
}

fn existing(rules: TagRules, source: Digest, production: Digest) -> Decision {
    match (rules.moving, rules.existing) {
        (true, Existing::Adopt) => Decision::Promote,
        (false, Existing::Adopt) => Decision::Conflict(format!(
            "production names {production}, not {source}, and `existing: adopt` moves no fixed tag; to put {source} there, say `blobferry accept` (without a daemon: copy with --replace {production})"
        )),
        (_, Existing::Keep) => Decision::Existing(existing_text(rules, production)),
    }
}

/// A setting helps a moving tag only: a fixed tag with another digest would be a conflict under
/// any.
fn drift_text(rules: TagRules, source: Digest, production: Digest) -> String {
    let setting = if rules.moving {
        "set `drift: restore` on the route, or "
    } else {
        ""
    };
    format!(
        "the production tag was changed to {production}; it stays. To put {source} there, {setting}say `blobferry accept` (without a daemon: copy it over by hand)"
    )
}

fn existing_text(rules: TagRules, production: Digest) -> String {
    let setting = if rules.moving {
        " (or `existing: adopt` on the route)"
    } else {
        ""
    };
    format!(
        "production names {production}, which is not in the ledger; it stays. `blobferry accept` takes it over{setting}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Want {
        UpToDate,
        Promote,
        Conflict,
        Drift,
        Existing,
        Refused,
        Gone,
    }

    fn kind(decision: &Decision) -> Want {
        match decision {
            Decision::UpToDate => Want::UpToDate,
            Decision::Promote => Want::Promote,
            Decision::Conflict(_) => Want::Conflict,
            Decision::Drift(_) => Want::Drift,
            Decision::Existing(_) => Want::Existing,
            Decision::Refused(_) => Want::Refused,
            Decision::Gone => Want::Gone,
        }
    }

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    /// A row of the table: the facts, then the expected results for fixed and moving tags, under
    /// keep, and under adopt and restore.
    #[test]
    fn the_table_holds_cell_by_cell() {
        use Want::*;
        let facts =
            |source: Option<&str>, destination: Option<&str>, ledger_known, ledger_agrees| Facts {
                source: source.map(digest),
                destination: destination.map(digest),
                ledger_known,
                ledger_agrees,
                ledger_is_sure: ledger_known,
            };
        let table = [
            (
                "P absent",
                facts(Some("s"), None, false, false),
                [Promote, Promote, Promote, Promote],
            ),
            (
                "P absent, L known",
                facts(Some("s"), None, true, false),
                [Promote, Promote, Promote, Promote],
            ),
            (
                "P = S",
                facts(Some("s"), Some("s"), true, false),
                [UpToDate, UpToDate, UpToDate, UpToDate],
            ),
            (
                "P = L",
                facts(Some("s"), Some("p"), true, true),
                [Conflict, Promote, Conflict, Promote],
            ),
            (
                "P ≠ L",
                facts(Some("s"), Some("p"), true, false),
                [Drift, Drift, Conflict, Promote],
            ),
            (
                "L unknown",
                facts(Some("s"), Some("p"), false, false),
                [Existing, Existing, Conflict, Promote],
            ),
            (
                "S gone",
                facts(None, Some("p"), true, true),
                [Gone, Gone, Gone, Gone],
            ),
            (
                "S gone, P absent",
                facts(None, None, false, false),
                [Gone, Gone, Gone, Gone],
            ),
        ];
        for (name, facts, want) in table {
            let rules = |moving, loose: bool| TagRules {
                moving,
                existing: if loose {
                    job::Existing::Adopt
                } else {
                    job::Existing::Keep
                },
                drift: if loose {
                    job::Drift::Restore
                } else {
                    job::Drift::Keep
                },
                forward_only: false,
            };
            let got = [
                rules(false, false),
                rules(true, false),
                rules(false, true),
                rules(true, true),
            ]
            .map(|rules| kind(&decide(rules, &facts, &Order::default())));
            assert_eq!(got, want, "{name}");
        }
    }

    /// The write may never have been sent: what production names may be its own.
    #[test]
    fn a_write_without_a_known_outcome_restores_nothing() {
        let record = TagRecord {
            intended: vec![digest("ours")],
            ..TagRecord::default()
        };
        let facts = Facts::of(Some(digest("s")), Some(digest("p")), &record);
        let moving = TagRules {
            moving: true,
            drift: job::Drift::Restore,
            ..TagRules::default()
        };
        let decision = decide(moving, &facts, &Order::default());
        assert_eq!(kind(&decision), Want::Drift, "{decision:?}");
        let written = TagRecord {
            digest: Some(digest("ours")),
            ..record
        };
        let facts = Facts::of(facts.source, facts.destination, &written);
        let decision = decide(moving, &facts, &Order::default());
        assert_eq!(kind(&decision), Want::Promote);
    }

    #[test]
    fn a_person_can_order_more_but_not_everything() {
        let facts = Facts {
            source: Some(digest("s")),
            destination: Some(digest("p")),
            ledger_known: true,
            ledger_agrees: false,
            ledger_is_sure: true,
        };
        let fixed = TagRules::default();
        let moving = TagRules {
            moving: true,
            ..fixed
        };
        let explicit = Order {
            explicit: true,
            ..Order::default()
        };
        assert_eq!(kind(&decide(fixed, &facts, &explicit)), Want::Conflict);
        assert_eq!(kind(&decide(moving, &facts, &explicit)), Want::Promote);
        let replace = |name| Order {
            explicit: true,
            replace: Some(digest(name)),
            ..Order::default()
        };
        assert_eq!(kind(&decide(fixed, &facts, &replace("p"))), Want::Promote);
        assert_eq!(
            kind(&decide(fixed, &facts, &replace("other"))),
            Want::Conflict
        );
        let expect = |name| Order {
            expect: Some(digest(name)),
            ..Order::default()
        };
        assert_eq!(
            kind(&decide(moving, &facts, &expect("other"))),
            Want::Refused
        );
        assert_eq!(
            kind(&decide(
                moving,
                &Facts {
                    destination: None,
                    ..facts
                },
                &expect("s")
            )),
            Want::Promote
        );
    }

    /// The reason of a decision that leaves production as it is.
    fn reason(decision: Decision) -> String {
        match decision {
            Decision::Conflict(text)
            | Decision::Drift(text)
            | Decision::Existing(text)
            | Decision::Refused(text) => text,
            other => panic!("{other:?} has no reason"),
        }
    }

    #[test]
    fn a_stale_replace_is_told_with_both_digests() {
        let facts = Facts {
            source: Some(digest("s")),
            destination: Some(digest("p")),
            ledger_known: true,
            ledger_agrees: true,
            ledger_is_sure: true,
        };
        let order = Order {
            explicit: true,
            replace: Some(digest("other")),
            ..Order::default()
        };
        assert_eq!(
            reason(decide(TagRules::default(), &facts, &order)),
            format!(
                "production names {}, not {}, which was to be replaced; it stays",
                digest("p"),
                digest("other")
            )
        );
    }

    /// `drift: restore` on a fixed tag that was changed in production said that staging had moved
    /// it.
    #[test]
    fn a_reason_names_the_side_that_changed() {
        let facts = |ledger_known, ledger_agrees| Facts {
            source: Some(digest("s")),
            destination: Some(digest("p")),
            ledger_known,
            ledger_agrees,
            ledger_is_sure: ledger_known,
        };
        let restore = TagRules {
            drift: job::Drift::Restore,
            ..TagRules::default()
        };
        let told = |rules, facts: &Facts| reason(decide(rules, facts, &Order::default()));
        let (s, p) = (digest("s"), digest("p"));
        assert!(told(restore, &facts(true, true)).starts_with(&format!(
            "staging moved a fixed tag to {s}, production keeps {p}; "
        )));
        let restored = told(restore, &facts(true, false));
        assert!(
            restored.starts_with(&format!("the fixed tag was changed in production to {p}, ")),
            "{restored}"
        );
        assert_eq!(
            told(TagRules::default(), &facts(false, false)),
            format!(
                "production names {p}, which is not in the ledger; it stays. `blobferry accept` takes it over"
            )
        );
    }

    #[test]
    fn a_digest_in_conflict_gets_no_moving_tag() {
        let refused = Order {
            refused: true,
            ..Order::default()
        };
        let moving = TagRules {
            moving: true,
            ..TagRules::default()
        };
        let absent = Facts {
            source: Some(digest("s")),
            destination: None,
            ledger_known: false,
            ledger_agrees: false,
            ledger_is_sure: true,
        };
        let ours = Facts {
            destination: Some(digest("p")),
            ledger_known: true,
            ledger_agrees: true,
            ..absent
        };
        assert_eq!(kind(&decide(moving, &absent, &refused)), Want::Refused);
        assert_eq!(kind(&decide(moving, &ours, &refused)), Want::Refused);
        assert_eq!(
            kind(&decide(
                moving,
                &Facts {
                    destination: absent.source,
                    ..absent
                },
                &refused
            )),
            Want::UpToDate
        );
    }
}
