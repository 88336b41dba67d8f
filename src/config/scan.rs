//! The gate `scan`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use super::keys::{keys, word_schema};
use super::problem::complaint;
use super::section::{Item, entries, optional};
use super::shapes::OneOrMany;
use super::signers::{SignerKeys, SignerSection, trusted};
use super::units;
use crate::endpoint::Severity;
use crate::job::{Ignored, Scan, ScanOrigin, ScanSide};

/// How long a scan is waited for.
const WAIT: Duration = Duration::from_secs(2 * 3600);
/// Longest wait and longest grace.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Most exceptions.
const MOST_IGNORED: usize = 1000;

keys! {
    FindingsSection, FindingsKeys {
        /// Where findings come from: `ecr`, the scanner of the registry, or `attestation`, the
        /// newest scan that a signer has attached to the image.
        from: Scanner = "where the findings come from: ecr or attestation",
        /// With `ecr`, where the image was scanned: `source`, or `destination`, after its content
        /// was carried. Default: source.
        at: Option<ScanSide>,
        /// The severities that refuse.
        refuse: OneOrMany<Severity> = "the severities that refuse, as a list",
        /// For how long a finding of a severity is let pass.
        grace: Option<Grace>,
        /// Vulnerabilities that are let pass.
        ignore: Option<Vec<Exception>>,
        /// How long the first scan is waited for. Default: 2h.
        wait: Option<String>,
        ..signer: SignerSection, SignerKeys,
    }
}

keys! {
    Grace, GraceKeys {
        /// Since the finding is known: `720h`.
        critical: Option<String>,
        /// As `critical`.
        high: Option<String>,
        /// As `critical`.
        medium: Option<String>,
        /// As `critical`.
        low: Option<String>,
        /// As `critical`.
        informational: Option<String>,
        /// As `critical`.
        undefined: Option<String>,
    }
}

keys! {
    Exception, ExceptionKeys {
        /// The vulnerability: `CVE-2026-1`.
        id: String = "the vulnerability",
        /// The last day, in UTC: `2026-12-31`.
        until: String = "the last day of the exception",
        /// Why it does not matter here.
        reason: String = "why it does not matter here",
    }
}

/// Where findings come from.
#[derive(Clone, Copy)]
pub(super) enum Scanner {
    Ecr,
    Attestation,
}

/// As it is written.
const SCANNERS: [(&str, Scanner); 2] =
    [("ecr", Scanner::Ecr), ("attestation", Scanner::Attestation)];

word_schema!(Scanner, "Scanner", SCANNERS.map(|(word, _)| word));

/// As it is written.
const SIDES: [(&str, ScanSide); 2] = [
    ("source", ScanSide::Source),
    ("destination", ScanSide::Destination),
];

word_schema!(ScanSide, "ScanSide", SIDES.map(|(word, _)| word));

word_schema!(Severity, "Severity", Severity::ALL.map(Severity::name));

/// Reads the gate.
pub(super) fn read(item: &Item<'_>) -> Option<Scan> {
    let keys: FindingsKeys<'_> = item.keys()?;
    let scanner = keys.from.as_ref().and_then(|item| item.one_of(SCANNERS));
    let from = scanner.and_then(|scanner| origin(item, scanner, &keys));
    let refuse = keys.refuse.as_ref().and_then(severities);
    let grace = optional(&keys.grace, |item| grace(item, refuse.as_deref()));
    let ignore = optional(&keys.ignore, exceptions);
    let wait = optional(&keys.wait, duration);
    Some(Scan {
        from: from?,
        refuse: refuse?,
        grace: grace?.unwrap_or_default(),
        ignore: ignore?.unwrap_or_default(),
        wait: wait?.unwrap_or(WAIT),
    })
}

fn origin(item: &Item<'_>, scanner: Scanner, keys: &FindingsKeys<'_>) -> Option<ScanOrigin> {
    let SignerKeys {
        key_file,
        issuer,
        identity,
        root,
        on,
    } = &keys.signer;
    match scanner {
        Scanner::Ecr => {
            for item in [key_file, issuer, identity, root, on].into_iter().flatten() {
                item.wrong("has no effect: a scan of ECR is not signed");
            }
            let side = optional(&keys.at, |item| item.one_of(SIDES))?;
            Some(ScanOrigin::Registry(side.unwrap_or_default()))
        }
        Scanner::Attestation => {
            if let Some(at) = &keys.at {
                at.wrong("has no effect: attestations are read from staging");
            }
            trusted(item, &keys.signer).map(ScanOrigin::Statement)
        }
    }
}

fn severities(item: &Item<'_>) -> Option<Vec<Severity>> {
    let words = Severity::ALL.map(|severity| (severity.name(), severity));
    let severities: Vec<Option<Severity>> = entries(item)?
        .iter()
        .map(|item| item.one_of(words))
        .collect();
    severities.into_iter().collect()
}

/// `refuse`: the severities that refuse, where they could be read.
fn grace(item: &Item<'_>, refuse: Option<&[Severity]>) -> Option<BTreeMap<Severity, Duration>> {
    let keys: GraceKeys<'_> = item.keys()?;
    let written = [
        (Severity::Critical, keys.critical),
        (Severity::High, keys.high),
        (Severity::Medium, keys.medium),
        (Severity::Low, keys.low),
        (Severity::Informational, keys.informational),
        (Severity::Undefined, keys.undefined),
    ];
    let written = written.into_iter().filter_map(|(severity, item)| {
        let item = item?;
        if refuse.is_some_and(|refuse| !refuse.contains(&severity)) {
            item.wrong("has no effect: `refuse` does not name this severity");
        }
        Some(duration(&item).map(|grace| (severity, grace)))
    });
    let written: Vec<Option<(Severity, Duration)>> = written.collect();
    written.into_iter().collect()
}

fn duration(item: &Item<'_>) -> Option<Duration> {
    item.parse(|text| units::duration_within(text, Duration::from_secs(1), LONGEST))
}

fn exceptions(item: &Item<'_>) -> Option<BTreeMap<String, Ignored>> {
    let items = item.list()?;
    if items.len() > MOST_IGNORED {
        item.wrong(format!("has more than {MOST_IGNORED} entries"));
        return None;
    }
    let read: Vec<Option<(String, Ignored)>> = items.iter().map(exception).collect();
    let mut exceptions = BTreeMap::new();
    for (item, read) in items.iter().zip(read) {
        let (id, ignored) = read?;
        if exceptions.insert(id, ignored).is_some() {
            item.wrong("names a vulnerability that an entry before it names");
        }
    }
    Some(exceptions)
}

fn exception(item: &Item<'_>) -> Option<(String, Ignored)> {
    let keys: ExceptionKeys<'_> = item.keys()?;
    let id = keys.id.and_then(|item| item.parse(some_text));
    let until = keys.until.and_then(|item| item.parse(end_of_day));
    let reason = keys.reason.and_then(|item| item.parse(some_text));
    let ignored = Ignored {
        until: until?,
        reason: reason?,
    };
    Some((id?, ignored))
}

fn some_text(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.len() {
        1..=200 => Ok(text.to_owned()),
        _ => Err("is a text of 1 to 200 characters".into()),
    }
}

/// The end of a day in UTC.
fn end_of_day(text: &str) -> Result<Timestamp, String> {
    let day: Option<Date> = text.trim().parse().ok();
    let day = day.filter(|_| text.trim().len() == 10);
    let next = day.and_then(|day| day.checked_add(1.day()).ok());
    let end = next.and_then(|next| next.to_zoned(TimeZone::UTC).ok());
    end.map(|end| end.timestamp())
        .ok_or_else(|| complaint(text, "is no day (example: 2026-12-31)"))
}
