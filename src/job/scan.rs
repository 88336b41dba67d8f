//! The gate `scan`, as the config says it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::gates::Trusted;
use crate::endpoint::Severity;

/// What a scanner must not have found.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// Where the findings come from.
    pub from: ScanOrigin,
    /// The severities that refuse; not empty.
    pub refuse: Vec<Severity>,
    /// For how long a finding of a severity is let pass.
    pub grace: BTreeMap<Severity, Duration>,
    /// Vulnerabilities that are let pass, by their ids.
    pub ignore: BTreeMap<String, Ignored>,
    /// How long the first scan is waited for.
    pub wait: Duration,
}

/// Where findings come from.
#[derive(Clone, Debug, PartialEq)]
pub enum ScanOrigin {
    /// The scanner of a registry.
    Registry(ScanSide),
    /// A statement of a signer, attached to the image in staging.
    Statement(Trusted),
}

impl Scan {
    /// The side with the scanner that is asked; `None`: none is.
    pub fn side(&self) -> Option<ScanSide> {
        match &self.from {
            ScanOrigin::Registry(side) => Some(*side),
            ScanOrigin::Statement(_) => None,
        }
    }

    /// What lets more pass than it may seem to.
    pub fn warnings(&self, now: Timestamp) -> Vec<String> {
        let least = self.refuse.iter().max();
        let worse = least.into_iter().flat_map(|least| {
            let worse = Severity::ALL.into_iter().take_while(|one| one < least);
            worse.filter(|one| !self.refuse.contains(one))
        });
        let worse: Vec<&str> = worse.map(Severity::name).collect();
        let lets_pass = (!worse.is_empty()).then(|| {
            let worse = worse.join(", ");
            format!(
                "gates.scan.refuse does not name {worse}, which are worse than others that it names"
            )
        });
        let over = self
            .ignore
            .iter()
            .filter(|(_, ignored)| ignored.until <= now);
        let over = over.map(|(id, ignored)| {
            let until = ignored.until;
            format!("gates.scan.ignore: {id} counts again since {until}")
        });
        lets_pass.into_iter().chain(over).collect()
    }

    /// The signer that is trusted; `None`: a scanner is asked.
    pub fn trusted(&self) -> Option<&Trusted> {
        match &self.from {
            ScanOrigin::Registry(_) => None,
            ScanOrigin::Statement(trusted) => Some(trusted),
        }
    }
}

/// Where the image was scanned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanSide {
    /// In staging, before anything is carried.
    #[default]
    Source,
    /// In production, after its content was carried and before the tag moves.
    Destination,
}

/// A vulnerability that is let pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// Until then.
    pub until: Timestamp,
    /// Why.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_although_it_is_worse_is_told_and_so_is_an_exception_that_has_ended() {
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let ignored = |until: &str| Ignored {
            until: until.parse().unwrap(),
            reason: "unreachable".into(),
        };
        let scan = |refuse: &[Severity], ignore: &[(&str, &str)]| Scan {
            from: ScanOrigin::Registry(ScanSide::Source),
            refuse: refuse.to_vec(),
            grace: BTreeMap::new(),
            ignore: ignore
                .iter()
                .map(|(id, until)| ((*id).to_owned(), ignored(until)))
                .collect(),
            wait: Duration::ZERO,
        };
        let right = scan(
            &[Severity::High, Severity::Critical],
            &[("CVE-1", "2026-12-01T00:00:00Z")],
        );
        assert_eq!(right.warnings(now), Vec::<String>::new());
        let wrong = scan(&[Severity::Medium], &[("CVE-1", "2026-11-30T00:00:00Z")]);
        assert_eq!(
            wrong.warnings(now),
            [
                "gates.scan.refuse does not name critical, high, which are worse than others that it names",
                "gates.scan.ignore: CVE-1 counts again since 2026-11-30T00:00:00Z",
            ]
        );
    }
}
