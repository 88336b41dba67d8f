//! The scanners of ECR: basic findings, and enhanced ones by Inspector.

use serde_json::{Value, json};

use super::{Ecr, Kept};

/// When scans end: 2026-11-01.
const SCANNED: i64 = 1_793_491_200;

/// The scan of an image.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    status: String,
    description: String,
    enhanced: bool,
    /// Findings of low severity that come first.
    low: usize,
    findings: Vec<Value>,
    /// The second in which a basic scan ended.
    ended: i64,
}

impl Scanned {
    /// A scan with this status and no findings.
    pub fn status(status: &str) -> Scanned {
        Scanned {
            status: status.into(),
            ended: SCANNED,
            ..Scanned::default()
        }
    }

    pub fn described(self, description: &str) -> Scanned {
        Scanned {
            description: description.into(),
            ..self
        }
    }

    /// A basic scan that is over.
    pub fn basic(findings: &[(&str, &str)]) -> Scanned {
        let findings = findings.iter();
        let findings = findings.map(|(id, severity)| json!({"name": id, "severity": severity}));
        Scanned {
            findings: findings.collect(),
            ..Scanned::status("COMPLETE")
        }
    }

    /// A scan of Inspector, each finding with the second since which it is known.
    pub fn enhanced(findings: &[(&str, &str, i64)]) -> Scanned {
        let findings = findings.iter().map(|(id, severity, since)| {
            json!({
                "severity": severity,
                "status": "ACTIVE",
                "title": format!("{id} - openssl"),
                "firstObservedAt": since,
                "packageVulnerabilityDetails": {"vulnerabilityId": id},
            })
        });
        Scanned {
            enhanced: true,
            findings: findings.collect(),
            ..Scanned::status("ACTIVE")
        }
    }

    pub fn ended(self, ended: i64) -> Scanned {
        Scanned { ended, ..self }
    }

    /// With so many findings of low severity before all others.
    pub fn after_low(self, low: usize) -> Scanned {
        Scanned { low, ..self }
    }

    /// Changes each finding.
    pub fn with(mut self, key: &str, value: Value) -> Scanned {
        for finding in &mut self.findings {
            finding[key] = value.clone();
        }
        self
    }

    fn finding(&self, number: usize) -> Value {
        match number.checked_sub(self.low) {
            Some(number) => self.findings[number].clone(),
            None => json!({"name": format!("CVE-1999-{number}"), "severity": "LOW"}),
        }
    }
}

impl Ecr {
    /// The scan of an image by its digest.
    pub fn scan(&self, repository: &str, digest: &str, scanned: Scanned) {
        let mut state = self.shared.state();
        let kept = state.repositories.get_mut(repository);
        let kept = kept.expect("the repository was created");
        kept.scans.insert(digest.into(), scanned);
    }
}

/// One page of findings; as many as are asked for, or `most`.
pub(super) fn page(kept: &Kept, asked: &Value, most: usize) -> Result<Value, &'static str> {
    let digest = asked["imageId"]["imageDigest"].as_str();
    let digest = digest.expect("scans are asked for by digest");
    if !kept.images.contains_key(digest) {
        return Err("ImageNotFoundException");
    }
    let scanned = kept.scans.get(digest).ok_or("ScanNotFoundException")?;
    let wanted = asked["maxResults"].as_u64().unwrap_or(100) as usize;
    assert!(wanted <= 1000, "a page has a thousand findings at most");
    let wanted = if most > 0 { most } else { wanted };
    let from = asked["nextToken"]
        .as_str()
        .map_or(0, |token| token.parse().expect("our own token"));
    let all = scanned.low + scanned.findings.len();
    let to = all.min(from + wanted);
    let findings: Vec<Value> = (from..to).map(|number| scanned.finding(number)).collect();
    let kind = match scanned.enhanced {
        true => "enhancedFindings",
        false => "findings",
    };
    let mut counts = json!({});
    for finding in &scanned.findings {
        let severity = finding["severity"].as_str().unwrap_or("UNDEFINED");
        counts[severity] = json!(counts[severity].as_u64().unwrap_or(0) + 1);
    }
    if scanned.low > 0 {
        counts["LOW"] = json!(scanned.low);
    }
    let mut answer = json!({
        "imageScanStatus": {"status": scanned.status, "description": scanned.description},
        "imageScanFindings": {
            "imageScanCompletedAt": scanned.ended,
            "findingSeverityCounts": counts,
            kind: findings,
        },
    });
    if to < all {
        answer["nextToken"] = json!(to.to_string());
    }
    Ok(answer)
}
