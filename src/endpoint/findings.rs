//! The findings of a scan of an image: by the registry's own scanner, or as a statement has them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Cursor;
use crate::fault::clip;

/// Longest id that is kept, in characters.
const LONGEST_ID: usize = 200;

/// How bad a finding is; the worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Critical.
    Critical,
    /// High.
    High,
    /// Medium.
    Medium,
    /// Low.
    Low,
    /// Worth knowing.
    Informational,
    /// The scanner has not decided.
    Undefined,
}

impl Severity {
    /// All of them, the worst first.
    pub const ALL: [Severity; 6] = [
        Severity::Critical,
        Severity::High,
        Severity::Medium,
        Severity::Low,
        Severity::Informational,
        Severity::Undefined,
    ];

    /// The name in the config and in evidence.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::High => "high",
            Severity::Medium => "medium",
            Severity::Low => "low",
            Severity::Informational => "informational",
            Severity::Undefined => "undefined",
        }
    }

    /// The severity that a scanner means by its word, in any case.
    pub fn of(word: &str) -> Option<Severity> {
        let word = word.trim().to_ascii_lowercase();
        let named = Severity::ALL.into_iter().find(|one| one.name() == word);
        named.or(match &*word {
            "untriaged" => Some(Severity::Undefined),
            _ => None,
        })
    }
}

/// One finding of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The vulnerability: `CVE-2026-1`.
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// Since when it is known for this image. `None`: the scanner does not say.
    pub since: Option<Timestamp>,
}

impl Finding {
    /// A finding by the words of a scanner; `severity` knows those for how bad it is.
    ///
    /// # Errors
    /// What it is and its word, where that is not known.
    pub fn read(
        id: Option<&str>,
        word: Option<&str>,
        since: Option<Timestamp>,
        severity: impl FnOnce(&str) -> Option<Severity>,
    ) -> Result<Finding, String> {
        let id = clip(id.unwrap_or("a finding without a name"), LONGEST_ID);
        let severity = match word {
            Some(word) => {
                severity(word).ok_or_else(|| format!("{id} has the severity {}", clip(word, 40)))?
            }
            None => Severity::Undefined,
        };
        Ok(Finding {
            id,
            severity,
            since,
        })
    }
}

/// One page of the findings of a scan.
#[derive(Clone, Debug, Default)]
pub struct FindingsPage {
    /// When the image was scanned last.
    pub scanned: Option<Timestamp>,
    /// All findings by severity, as the scanner counts them. `None`: it does not.
    pub counts: Option<BTreeMap<Severity, u64>>,
    /// The findings of this page.
    pub findings: Vec<Finding>,
    /// The severities of findings of this page that are over: mended, or suppressed at the scanner.
    pub over: BTreeSet<Severity>,
    /// Why a finding of this page could not be read.
    pub unreadable: Option<String>,
    /// Where the next page is; `None` after the last.
    pub next: Option<Cursor>,
}

/// What a registry says of the scan of one image.
#[derive(Clone, Debug)]
pub enum ScanAnswer {
    /// It scans no images.
    NoScanner,
    /// There are no findings yet, with the registry's word for it.
    Pending(String),
    /// The scan ended without findings, with the registry's words for it.
    Ended(String),
    /// A page of findings.
    Findings(FindingsPage),
}
