//! The verdicts of programs and services, which a plan does not ask, as the last look had them.

use crate::admin::TagView;
use crate::gate::question::NOT_ASKED;
use crate::job::{GateKind, Judgement, Outcome, Verdict};
use crate::ledger::Row;

/// Adds the verdicts of the last look by gates that are set and that the plan did not ask. Where one
/// of them did not pass, the tag waits at it.
pub(super) fn add(view: &mut TagView, set: &[GateKind]) {
    let last = view.last.as_ref().and_then(Row::settled);
    let Some(last) = last.filter(|last| last.digest == view.digest) else {
        return;
    };
    let is_unasked = |judged: &&Judgement| {
        let is_known = view.gates.iter().any(|known| known.gate == judged.gate);
        set.contains(&judged.gate) && !is_known
    };
    let unasked: Vec<Judgement> = last.gates.iter().filter(is_unasked).cloned().collect();
    let unmet = unasked.iter().filter(|judged| !judged.is_pass());
    let unmet: Vec<&Judgement> = unmet.collect();
    if let Some(result) = outcome(view.result, &unmet) {
        view.result = Some(result);
        view.reasons.retain(|reason| reason != NOT_ASKED);
        let reasons = unmet.iter();
        let reasons = reasons.map(|judged| format!("{}: {}", judged.gate, judged.reason));
        view.reasons.extend(reasons);
    }
    view.gates.extend(unasked);
}

/// What a plan comes to with these verdicts. `None`: they do not matter.
fn outcome(planned: Option<Outcome>, unmet: &[&Judgement]) -> Option<Outcome> {
    let refuses = |judged: &&Judgement| judged.verdict == Verdict::Refuse;
    let worst = match unmet.iter().any(refuses) {
        _ if unmet.is_empty() => return None,
        true => Outcome::Refused,
        false => Outcome::Waiting,
    };
    match planned? {
        Outcome::Planned => Some(worst),
        Outcome::Waiting => Some(worst),
        kept @ (Outcome::Held | Outcome::Refused) => Some(kept),
        _ => None,
    }
}
