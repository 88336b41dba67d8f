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
