//! `forward_only`: a moving tag never goes to an image with a lower version than that of the image
//! that production's tag names. The version of an image is the highest version tag that names it.

use serde_json::json;

use crate::job::{GateKind, Judgement, NextJudgement, Verdict};
use crate::oci::{Digest, Tag};
use crate::route::rules::version;

/// What a moving tag names on both sides, with the highest version tag of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// What staging names.
    pub staging: Versioned,
    /// What production names, if anything.
    pub production: Option<Versioned>,
}

/// An image with its highest version tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The image.
    pub digest: Digest,
    /// The tag, as staging calls it. `None`: no tag that is a version names the image.
    pub tag: Option<Tag>,
}

impl Versioned {
    fn tag_text(&self) -> Option<String> {
        self.tag.as_ref().map(Tag::to_string)
    }

    fn rank(&self) -> Option<semver::Version> {
        self.tag.as_ref().and_then(version)
    }
}

/// The verdict on the move.
pub fn judge(versions: &Versions) -> Judgement {
    let gate = GateKind::ForwardOnly;
    let production = versions.production.as_ref();
    let evidence = json!({
        "staging": versions.staging.tag_text(),
        "production": production.and_then(Versioned::tag_text),
    });
    let sides = versions.production.iter().chain([&versions.staging]);
    let unversioned = sides.into_iter().find(|side| side.tag.is_none());
    if let Some(Versioned { digest, .. }) = unversioned {
        let side = match *digest == versions.staging.digest {
            true => "staging",
            false => "production",
        };
        let reason = format!(
            "{side} names {digest}, and no version tag does: which image is the newer one cannot be told"
        );
        return Judgement::wait(gate, reason, evidence, NextJudgement::Poll);
    }
    let to = versions.staging.tag_text().unwrap_or_default();
    let Some(production) = production else {
        let reason = format!("staging names {to}, production nothing");
        return Judgement::pass(gate, reason, evidence);
    };
    let from = production.tag_text().unwrap_or_default();
    if versions.staging.rank() >= production.rank() {
        let reason = format!("from {from} to {to}");
        return Judgement::pass(gate, reason, evidence);
    }
    let reason = format!(
        "staging names {to}, which is lower than production's {from} (`blobferry rollback` goes back)"
    );
    Judgement::answered(gate, Verdict::Refuse, reason, evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versioned(name: &str, tag: Option<&str>) -> Versioned {
        Versioned {
            digest: Digest::sha256(name.as_bytes()),
            tag: tag.map(|tag| tag.parse().unwrap()),
        }
    }

    #[test]
    fn a_move_goes_to_a_version_that_is_not_lower() {
        let table = [
            (Some("v1.5.0"), Some("v1.4.0"), Verdict::Pass),
            (Some("v1.4.0"), Some("v1.5.0"), Verdict::Refuse),
            // By precedence, not by text.
            (Some("v1.10.0"), Some("v1.9.0"), Verdict::Pass),
            (Some("v1.9.0"), Some("1.10.0"), Verdict::Refuse),
            (Some("v2.0.0-rc.1"), Some("v2.0.0"), Verdict::Refuse),
            // Two spellings of one version.
            (Some("1.5.0"), Some("v1.5.0"), Verdict::Pass),
            (None, Some("v1.5.0"), Verdict::Wait),
            (Some("v1.5.0"), None, Verdict::Wait),
            (None, None, Verdict::Wait),
        ];
        for (staging, production, expected) in table {
            let versions = Versions {
                staging: versioned("staging", staging),
                production: Some(versioned("production", production)),
            };
            let judged = judge(&versions);
            assert_eq!(judged.verdict, expected, "{staging:?} over {production:?}");
            for tag in [staging, production].into_iter().flatten() {
                let is_named = judged.reason.contains(tag) || expected == Verdict::Wait;
                assert!(is_named, "{}", judged.reason);
            }
        }
    }

    #[test]
    fn a_first_move_needs_a_version_too() {
        let first = |tag| Versions {
            staging: versioned("staging", tag),
            production: None,
        };
        assert_eq!(judge(&first(Some("v1.0.0"))).verdict, Verdict::Pass);
        let waits = judge(&first(None));
        assert_eq!(
            (waits.verdict, waits.next),
            (Verdict::Wait, NextJudgement::Poll)
        );
        assert!(
            waits.reason.starts_with("staging names sha256:"),
            "{}",
            waits.reason
        );
    }
}
