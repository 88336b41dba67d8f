//! `scan`: what a scanner has found in the image, or in each platform of an index.
//!
//! The findings come page by page and are counted, not kept. The reading ends with the page of the
//! first finding that refuses.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::TimeFacts;
use crate::endpoint::{Cursor, Finding, FindingsPage, ScanAnswer, Severity};
use crate::job::{GateKind, Judgement, NextJudgement, Scan, ScanOrigin};
use crate::oci::Digest;

/// Most findings that are read of one image and its platforms.
const MOST: u64 = 100_000;
/// What a page counts for at least: a list of empty pages has an end, too.
const LEAST: u64 = 100;
/// How far the clock of a scanner may be ahead of ours.
const AHEAD: SignedDuration = SignedDuration::from_mins(10);
/// Most findings and images that are named.
const NAMED: usize = 5;

/// What was found so far.
#[derive(Debug)]
pub struct Findings<'a> {
    gate: &'a Scan,
    time: TimeFacts,
    images: BTreeSet<Digest>,
    /// The scan of the image that is read now.
    current: Current,
    read: u64,
    /// By severity, as the scanner counts them, else as they were read.
    counts: BTreeMap<Severity, u64>,
    /// The oldest scan.
    scanned: Option<Timestamp>,
    refusing: BTreeSet<(Severity, String)>,
    ignored: BTreeSet<String>,
    in_grace: BTreeSet<String>,
    /// When the first grace or the first exception ends.
    until: Option<Timestamp>,
    /// Whether a finding has a grace or an exception, ended or not.
    is_timed: bool,
    /// Images without findings yet, with the scanner's word for it.
    pending: Vec<(Digest, String)>,
    /// Why there are none that could be judged.
    refused: Option<String>,
    /// The statements that hold the findings.
    statements: Vec<Value>,
}

/// The scan of one image, page by page.
#[derive(Debug, Default)]
struct Current {
    scanned: Option<Timestamp>,
    counts: Option<BTreeMap<Severity, u64>>,
    /// The severities of what its pages have listed.
    listed: BTreeSet<Severity>,
}

impl Current {
    /// Whether another page is of the same scan.
    fn has(&self, page: &FindingsPage) -> bool {
        let counts = self.counts.as_ref().zip(page.counts.as_ref());
        self.scanned == page.scanned && counts.is_none_or(|(first, other)| first == other)
    }

    fn add(&mut self, page: &FindingsPage) {
        let listed = page.findings.iter().map(|finding| finding.severity);
        self.listed.extend(listed.chain(page.over.iter().copied()));
    }

    /// A severity that is counted, although no finding has it.
    fn missing(&self, severities: &[Severity]) -> Option<Severity> {
        let counts = self.counts.as_ref()?;
        let mut unlisted = severities
            .iter()
            .filter(|severity| !self.listed.contains(severity));
        unlisted
            .find(|severity| counts.get(severity).is_some_and(|count| *count > 0))
            .copied()
    }
}

/// A scan that a statement holds.
#[derive(Clone, Debug)]
pub struct SignedScan {
    /// What the ledger keeps of the statement.
    pub evidence: Value,
    /// Its findings, or why not even their time can be read.
    pub page: Result<FindingsPage, String>,
}

impl SignedScan {
    fn time(&self) -> Option<Timestamp> {
        self.page.as_ref().ok()?.scanned
    }
}

/// What is read next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// This page of the same image.
    Page(Cursor),
    /// The next image.
    Image,
    /// Nothing: the verdict is there.
    Done,
}

impl<'a> Findings<'a> {
    /// Nothing has been read.
    pub fn new(gate: &'a Scan, time: TimeFacts) -> Findings<'a> {
        Findings {
            gate,
            time,
            images: BTreeSet::new(),
            current: Current::default(),
            read: 0,
            counts: BTreeMap::new(),
            scanned: None,
            refusing: BTreeSet::new(),
            ignored: BTreeSet::new(),
            in_grace: BTreeSet::new(),
            until: None,
            is_timed: false,
            pending: Vec::new(),
            refused: None,
            statements: Vec::new(),
        }
    }

    /// Adds the scans of an image that statements of its signer hold: the newest counts. Where one
    /// is of an unknown time, or of a time to come, none is the newest. `signer` names the signer.
    pub fn add_signed(&mut self, image: Digest, signer: &str, scans: Vec<SignedScan>) {
        let unknown = scans.iter().find_map(|scan| match &scan.page {
            Ok(page) => self.to_come(page.scanned?),
            Err(why) => Some(why.clone()),
        });
        if let Some(why) = unknown {
            self.images.insert(image);
            return self.pending.push((image, why));
        }
        let Some(newest) = scans.iter().filter_map(SignedScan::time).max() else {
            self.images.insert(image);
            return self.pending.push((image, format!("no scan by {signer}")));
        };
        for scan in scans.into_iter().filter(|scan| scan.time() == Some(newest)) {
            self.statements.push(scan.evidence);
            let page = scan.page.unwrap_or_default();
            self.add(image, signer, ScanAnswer::Findings(page));
        }
    }

    /// What is wrong with the time of a scan that has not come yet.
    fn to_come(&self, scanned: Timestamp) -> Option<String> {
        let is_to_come = self.is_to_come(scanned);
        is_to_come.then(|| format!("a scan says that it ends at {scanned:.0}, which is to come"))
    }

    fn is_to_come(&self, time: Timestamp) -> bool {
        let latest = self.time.now.saturating_add(AHEAD);
        latest.is_ok_and(|latest| time > latest)
    }

    /// Adds what `registry` says of an image.
    pub fn add(&mut self, image: Digest, registry: &str, answer: ScanAnswer) -> Reading {
        let is_first = self.images.insert(image);
        match answer {
            ScanAnswer::Findings(page) => return self.add_page(image, page, is_first),
            ScanAnswer::Pending(status) => self.pending.push((image, status)),
            ScanAnswer::NoScanner => {
                self.refused = Some(format!("{registry} is no ECR registry, and scans nothing"));
            }
            ScanAnswer::Ended(status) => {
                self.refused = Some(format!("the scan of {image} ended as {status}"));
            }
        }
        self.next(None)
    }

    fn add_page(&mut self, image: Digest, page: FindingsPage, is_first: bool) -> Reading {
        if is_first {
            self.current = Current {
                scanned: page.scanned,
                counts: page.counts.clone(),
                listed: BTreeSet::new(),
            };
        } else if !self.current.has(&page) {
            let why = "another scan ended while its pages were read".to_owned();
            self.pending.push((image, why));
            return self.next(None);
        }
        self.current.add(&page);
        self.scanned = [self.scanned, page.scanned].into_iter().flatten().min();
        self.read += LEAST.max(page.findings.len() as u64);
        let counted = page.counts.is_some();
        for (severity, count) in page.counts.into_iter().flatten().filter(|_| is_first) {
            *self.counts.entry(severity).or_default() += count;
        }
        for finding in page.findings {
            if !counted {
                *self.counts.entry(finding.severity).or_default() += 1;
            }
            self.add_finding(finding);
        }
        if let Some(why) = page.unreadable {
            self.pending.push((image, why));
        }
        if self.read >= MOST && page.next.is_some() {
            let text = format!("the scan of {image} has too many findings: {MOST} were read");
            self.refused.get_or_insert(text);
        }
        let missing = self.current.missing(&self.gate.refuse);
        if let Some(severity) = missing.filter(|_| page.next.is_none()) {
            let severity = severity.name();
            let why = format!("its scan counts findings of {severity}, and lists none");
            self.pending.push((image, why));
        }
        self.next(page.next)
    }

    fn add_finding(&mut self, finding: Finding) {
        if !self.gate.refuse.contains(&finding.severity) {
            return;
        }
        let ignored = self.gate.ignore.get(&finding.id);
        let ignored = ignored.map(|ignored| ignored.until);
        let grace = self.grace_of(&finding);
        let is_timed = ignored.is_some() || grace.is_some();
        self.is_timed |= is_timed;
        if is_timed && self.time.is_skewed() {
            // Whether it has ended cannot be told.
            return;
        }
        if let Some(until) = ignored.filter(|until| *until > self.time.now) {
            add_bounded(&mut self.ignored, finding.id);
            return self.note_end(until);
        }
        match grace.filter(|end| *end > self.time.now) {
            Some(end) => {
                add_bounded(&mut self.in_grace, finding.id);
                self.note_end(end);
            }
            None => add_bounded(&mut self.refusing, (finding.severity, finding.id)),
        }
    }

    /// When the grace for a finding ends. `None`: it has none, or is of an unknown age, or of a day
    /// to come.
    fn grace_of(&self, finding: &Finding) -> Option<Timestamp> {
        let grace = self.gate.grace.get(&finding.severity)?;
        let grace = SignedDuration::try_from(*grace).ok()?;
        let since = finding.since.filter(|since| !self.is_to_come(*since));
        since?.saturating_add(grace).ok()
    }

    fn note_end(&mut self, end: Timestamp) {
        self.until = [self.until, Some(end)].into_iter().flatten().min();
    }

    fn next(&self, page: Option<Cursor>) -> Reading {
        if self.is_refused() || self.pending.len() >= NAMED {
            return Reading::Done;
        }
        page.map_or(Reading::Image, Reading::Page)
    }

    fn is_refused(&self) -> bool {
        self.refused.is_some() || !self.refusing.is_empty()
    }

    /// Whether the verdict depends on how long the scan has been waited for.
    pub fn is_pending(&self) -> bool {
        !self.is_refused() && (self.images.is_empty() || !self.pending.is_empty())
    }

    /// The verdict. `since`: when findings were asked for first; `None`: now.
    pub fn judge(self, since: Option<Timestamp>) -> Judgement {
        let evidence = self.evidence();
        if let Some(reason) = self.refusal() {
            return Judgement::refuse(GateKind::Scan, reason, evidence);
        }
        if self.is_pending() {
            return self.wait(since, evidence);
        }
        let is_timed = self.is_timed;
        if let Some(skewed) = self.time.skewed(GateKind::Scan).filter(|_| is_timed) {
            return skewed;
        }
        Judgement::pass(GateKind::Scan, self.passed(), evidence)
    }

    fn refusal(&self) -> Option<String> {
        if self.refusing.is_empty() {
            return self.refused.clone();
        }
        let found = self.refusing.iter().take(NAMED);
        let found: Vec<String> = found
            .map(|(severity, id)| format!("{id} ({})", severity.name()))
            .collect();
        let more = match self.refusing.len() > NAMED {
            true => " and more",
            false => "",
        };
        Some(format!("found {}{more}", found.join(", ")))
    }

    fn wait(self, since: Option<Timestamp>, evidence: Value) -> Judgement {
        let pending = match self.pending.first() {
            Some((image, status)) => format!("{image} has no findings yet ({status})"),
            None => "there is no image to scan".to_owned(),
        };
        let time = self.time;
        let deadline = since.filter(|_| !time.is_skewed()).and_then(|since| {
            let wait = SignedDuration::try_from(self.gate.wait).ok()?;
            since.saturating_add(wait).ok()
        });
        match deadline {
            Some(deadline) if deadline <= time.now => {
                let reason = format!("{pending}, and was waited for until {deadline:.0}");
                Judgement::refuse(GateKind::Scan, reason, evidence)
            }
            Some(deadline) => {
                let reason = format!("{pending}: waits until {deadline:.0}");
                let next = NextJudgement::PollUntil(deadline);
                Judgement::wait(GateKind::Scan, reason, evidence, next)
            }
            None => Judgement::wait(GateKind::Scan, pending, evidence, NextJudgement::Poll),
        }
    }

    fn passed(&self) -> String {
        let refuse: Vec<&str> = self.gate.refuse.iter().map(|one| one.name()).collect();
        let let_pass = !self.ignored.is_empty() || !self.in_grace.is_empty();
        let but = if let_pass {
            " that is not let pass"
        } else {
            ""
        };
        format!("no finding of {}{but}", refuse.join(" or "))
    }

    fn evidence(&self) -> Value {
        let counts = self.counts.iter();
        let counts: BTreeMap<&str, u64> = counts
            .filter(|(_, count)| **count > 0)
            .map(|(severity, count)| (severity.name(), *count))
            .collect();
        let found = self.refusing.iter().take(NAMED);
        let found: Vec<Value> = found
            .map(|(severity, id)| json!({"id": id, "severity": severity}))
            .collect();
        let pending = self.pending.iter().take(NAMED);
        let pending: Vec<Value> = pending
            .map(|(image, status)| json!({"image": image, "status": status}))
            .collect();
        let in_grace: Vec<&String> = self.in_grace.iter().take(NAMED).collect();
        let ignored: BTreeMap<&String, &str> = self
            .ignored
            .iter()
            .take(NAMED)
            .filter_map(|id| Some((id, self.gate.ignore.get(id)?.reason.as_str())))
            .collect();
        let from = match &self.gate.from {
            ScanOrigin::Registry(side) => json!({"from": "ecr", "at": side}),
            ScanOrigin::Statement(_) => {
                json!({"from": "attestation", "attestations": self.statements})
            }
        };
        let findings = json!({
            "images": self.images.len(),
            "scanned": self.scanned,
            "counts": counts,
            "found": found,
            "ignored": ignored,
            "grace": in_grace,
            "until": self.until,
            "pending": pending,
        });
        joined(from, findings)
    }
}

/// The members of two objects.
fn joined(first: Value, second: Value) -> Value {
    let both = [first, second].into_iter();
    let members = both.filter_map(|one| match one {
        Value::Object(members) => Some(members),
        _ => None,
    });
    members.flatten().collect::<serde_json::Map<_, _>>().into()
}

/// Keeps the first ones and one more, which tells that there are more.
fn add_bounded<T: Ord>(kept: &mut BTreeSet<T>, one: T) {
    kept.insert(one);
    if kept.len() > NAMED + 1 {
        kept.pop_last();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::{ScanSide, Verdict};

    fn gate() -> Scan {
        Scan {
            from: ScanOrigin::Registry(ScanSide::Source),
            refuse: vec![Severity::Critical],
            grace: BTreeMap::new(),
            ignore: BTreeMap::new(),
            wait: Duration::from_secs(3600),
        }
    }

    fn at(now: &str, skew: Option<SignedDuration>) -> TimeFacts {
        TimeFacts {
            now: now.parse().unwrap(),
            skew,
            first_seen: None,
        }
    }

    fn pending() -> ScanAnswer {
        ScanAnswer::Pending("PENDING".into())
    }

    #[test]
    fn a_list_of_empty_pages_has_an_end() {
        let gate = gate();
        let mut findings = Findings::new(&gate, at("2026-11-30T12:00:00Z", None));
        let image = Digest::sha256(b"image");
        let endless = || {
            let next = Some(Cursor("again".into()));
            ScanAnswer::Findings(FindingsPage {
                next,
                ..FindingsPage::default()
            })
        };
        let mut pages = 1;
        while findings.add(image, "ecr", endless()) != Reading::Done {
            pages += 1;
        }
        assert_eq!(pages, 1000);
        assert_eq!(findings.judge(None).verdict, Verdict::Refuse);
    }

    #[test]
    fn an_index_of_many_platforms_without_scans_is_not_asked_about_each_of_them() {
        let gate = gate();
        let mut findings = Findings::new(&gate, at("2026-11-30T12:00:00Z", None));
        let mut asked = 0_u8;
        loop {
            asked += 1;
            if findings.add(Digest::sha256(&[asked]), "ecr", pending()) == Reading::Done {
                break;
            }
        }
        assert_eq!(usize::from(asked), NAMED);
        assert_eq!(findings.judge(None).verdict, Verdict::Wait);
    }

    /// A clean scan of the year 2099 would stand over all scans until then.
    #[test]
    fn a_scan_of_a_time_to_come_makes_none_the_newest() {
        let scan = |scanned: &str| SignedScan {
            evidence: Value::Null,
            page: Ok(FindingsPage {
                scanned: scanned.parse().ok(),
                ..FindingsPage::default()
            }),
        };
        let gate = gate();
        for (scanned, verdict) in [
            ("2099-01-01T00:00:00Z", Verdict::Wait),
            ("2026-11-30T12:11:00Z", Verdict::Wait),
            ("2026-11-30T12:09:00Z", Verdict::Pass),
        ] {
            let mut findings = Findings::new(&gate, at("2026-11-30T12:00:00Z", None));
            let scans = vec![scan("2026-11-29T00:00:00Z"), scan(scanned)];
            findings.add_signed(Digest::sha256(b"image"), "a signer", scans);
            assert_eq!(findings.judge(None).verdict, verdict, "{scanned}");
        }
    }

    /// A critical finding of a scan that ended in between was on the page that had been read.
    #[test]
    fn pages_of_two_scans_are_no_scan() {
        let page = |scanned: &str, critical: u64| FindingsPage {
            scanned: scanned.parse().ok(),
            counts: Some(BTreeMap::from([(Severity::Critical, critical)])),
            ..FindingsPage::default()
        };
        let (before, after) = ("2026-11-29T00:00:00Z", "2026-11-30T00:00:00Z");
        for (second, expected) in [
            (page(before, 0), Verdict::Pass),
            (page(after, 0), Verdict::Wait),
            (page(before, 1), Verdict::Wait),
        ] {
            let gate = gate();
            let mut findings = Findings::new(&gate, at("2026-11-30T12:00:00Z", None));
            let image = Digest::sha256(b"image");
            for page in [page(before, 0), second] {
                findings.add(image, "ecr", ScanAnswer::Findings(page));
            }
            assert_eq!(findings.judge(None).verdict, expected);
        }
    }

    #[test]
    fn what_is_counted_and_not_listed_is_waited_for() {
        let gate = gate();
        let over = BTreeSet::from([Severity::Critical]);
        for (over, expected) in [(BTreeSet::new(), Verdict::Wait), (over, Verdict::Pass)] {
            let mut findings = Findings::new(&gate, at("2026-11-30T12:00:00Z", None));
            let page = FindingsPage {
                counts: Some(BTreeMap::from([(Severity::Critical, 3)])),
                over,
                ..FindingsPage::default()
            };
            findings.add(Digest::sha256(b"image"), "ecr", ScanAnswer::Findings(page));
            assert_eq!(findings.judge(None).verdict, expected);
        }
    }

    #[test]
    fn a_finding_of_a_day_to_come_has_no_grace() {
        let gate = Scan {
            grace: BTreeMap::from([(Severity::Critical, Duration::from_secs(3600))]),
            ..gate()
        };
        for (since, expected) in [
            ("2099-01-01T00:00:00Z", Verdict::Refuse),
            ("2026-11-30T11:59:00Z", Verdict::Pass),
        ] {
            let mut findings = Findings::new(&gate, at("2026-11-30T12:00:00Z", None));
            let page = FindingsPage {
                findings: vec![Finding {
                    id: "CVE-1".into(),
                    severity: Severity::Critical,
                    since: since.parse().ok(),
                }],
                ..FindingsPage::default()
            };
            findings.add(Digest::sha256(b"image"), "ecr", ScanAnswer::Findings(page));
            assert_eq!(findings.judge(None).verdict, expected, "{since}");
        }
    }

    /// A clock that was two days ahead refused what an exception still let pass.
    #[test]
    fn nothing_that_is_let_pass_for_a_while_ends_by_a_clock_that_is_off() {
        let ended = crate::job::Ignored {
            until: "2026-11-30T00:00:00Z".parse().unwrap(),
            reason: "unreachable".into(),
        };
        let ahead = Some(SignedDuration::from_hours(48));
        let found = |id: &str| Finding {
            id: id.into(),
            severity: Severity::Critical,
            since: "2026-11-01T00:00:00Z".parse().ok(),
        };
        let ignoring = Scan {
            ignore: BTreeMap::from([("CVE-1".to_owned(), ended)]),
            ..gate()
        };
        let gracious = Scan {
            grace: BTreeMap::from([(Severity::Critical, Duration::from_secs(3600))]),
            ..gate()
        };
        for (gate, id, skew, expected) in [
            (&ignoring, "CVE-1", ahead, Verdict::Wait),
            (&ignoring, "CVE-1", None, Verdict::Refuse),
            (&ignoring, "CVE-2", ahead, Verdict::Refuse),
            (&gracious, "CVE-1", ahead, Verdict::Wait),
            (&gracious, "CVE-1", None, Verdict::Refuse),
        ] {
            let mut findings = Findings::new(gate, at("2026-12-01T12:00:00Z", skew));
            let page = FindingsPage {
                findings: vec![found(id)],
                ..FindingsPage::default()
            };
            findings.add(Digest::sha256(b"image"), "ecr", ScanAnswer::Findings(page));
            assert_eq!(findings.judge(None).verdict, expected, "{id} {skew:?}");
        }
    }

    #[test]
    fn a_wait_is_over_by_a_clock_that_is_right() {
        let since = "2026-11-30T11:00:00Z".parse().ok();
        let hour = Some(SignedDuration::from_hours(1));
        for (now, skew, expected) in [
            ("2026-11-30T11:59:59Z", None, Verdict::Wait),
            ("2026-11-30T12:00:00Z", None, Verdict::Refuse),
            ("2026-11-30T12:00:00Z", hour, Verdict::Wait),
        ] {
            let gate = gate();
            let mut findings = Findings::new(&gate, at(now, skew));
            findings.add(Digest::sha256(b"image"), "ecr", pending());
            assert_eq!(findings.judge(since).verdict, expected, "{now}");
        }
    }
}
