//! `referrers`: artifact types that are attached to the image. Presence only: what is attached may
//! say anything, and any writer of staging can attach it.

use serde::Serialize;
use serde_json::json;

use crate::job::{GateKind, Judgement, NextJudgement};
use crate::oci::Digest;

/// A referrer of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Its digest.
    pub digest: Digest,
    /// Its artifact type, or the media type of its config; empty where it has none.
    pub artifact_type: String,
}

fn found<'a>(required: &str, attached: &'a [Attached]) -> Option<&'a Attached> {
    attached
        .iter()
        .find(|attached| attached.artifact_type == required)
}

/// The verdict on what is attached.
pub fn judge(required: &[String], attached: &[Attached]) -> Judgement {
    let missing: Vec<&str> = required
        .iter()
        .filter(|required| found(required, attached).is_none())
        .map(String::as_str)
        .collect();
    let evidence: Vec<_> = required
        .iter()
        .filter_map(|required| found(required, attached))
        .map(|attached| json!({"artifact_type": attached.artifact_type, "digest": attached.digest}))
        .collect();
    let evidence = json!({"referrers": evidence});
    if missing.is_empty() {
        let reason = format!("attached: {}", required.join(", "));
        return Judgement::pass(GateKind::Referrers, reason, evidence);
    }
    let reason = format!("nothing attached of type {}", missing.join(", "));
    Judgement::wait(GateKind::Referrers, reason, evidence, NextJudgement::Poll)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_must_be_attached() {
        let attached = |kind: &str| Attached {
            digest: Digest::sha256(kind.as_bytes()),
            artifact_type: kind.into(),
        };
        let required = ["a/spdx".to_owned(), "a/vex".to_owned()];
        let there = [attached("a/spdx"), attached("a/vex"), attached("a/other")];
        assert!(judge(&required, &there).is_pass());
        let waits = judge(&required, &there[..1]);
        assert!(!waits.is_pass() && waits.reason.ends_with("of type a/vex"));
        assert!(!judge(&required, &[]).is_pass());
        let near = [attached("a/spdx+json"), attached("a/vex")];
        assert!(!judge(&required, &near).is_pass(), "types are exact");
    }
}
