//! Tells a trace in words, in order: what people did, what processes sent and were told, and what
//! came of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use blobferry::oci::Digest;

use super::guards::Guarded;
use super::oracle::Finding;
use super::trace::{About, Answer, By, Call, Entry, Event, Operation, Place, Rules};

/// Most lines of a story, where `SIMULATE_LINES` does not say: the newest are told.
const LINES: usize = 60;

/// The story that led to a finding: what concerns its tag on both sides, and what concerns all.
pub fn tell(entries: &[Entry], names: &BTreeMap<Digest, String>, finding: &Finding) -> String {
    let asked_for = std::env::var("SIMULATE_TAG").ok();
    let of_finding = finding.place.as_ref().map(|place| &*place.tag);
    let teller = Teller {
        names,
        tag: asked_for.as_deref().or(of_finding),
        blob: std::env::var("SIMULATE_BLOB").ok(),
    };
    let mut calls: BTreeMap<u64, (Duration, &Call)> = BTreeMap::new();
    let mut told: Vec<Line> = Vec::new();
    for entry in entries.iter().take_while(|entry| entry.at <= finding.at) {
        if let Event::Sent { request, call } = &entry.event {
            calls.insert(*request, (entry.at, call));
        }
        let Some(words) = teller.words(&entry.event, &calls) else {
            continue;
        };
        match told.last_mut() {
            Some(last) if last.words == words => {
                (last.again, last.until) = (last.again + 1, entry.at)
            }
            _ => told.push(Line {
                at: entry.at,
                words,
                again: 0,
                until: entry.at,
            }),
        }
    }
    let lines: Vec<String> = told.into_iter().map(Line::shown).collect();
    let mut story = String::new();
    let most = std::env::var("SIMULATE_LINES").ok();
    let most = most.and_then(|most| most.parse().ok()).unwrap_or(LINES);
    let left_out = lines.len().saturating_sub(most);
    if left_out > 0 {
        // Writing to a text does not fail.
        let _ = writeln!(story, "            … {left_out} lines before");
    }
    for line in lines.into_iter().skip(left_out) {
        let _ = writeln!(story, "{line}");
    }
    let place = finding
        .place
        .as_ref()
        .map(|place| format!(" of {}", shown(place)))
        .unwrap_or_default();
    let _ = writeln!(
        story,
        "{:>9.3} s  BROKEN: {}{place}: {}",
        finding.at.as_secs_f64(),
        finding.promise,
        finding.text
    );
    story
}

/// A line of a story, and how often it came again.
struct Line {
    at: Duration,
    words: String,
    again: u32,
    until: Duration,
}

impl Line {
    fn shown(self) -> String {
        let again = if self.again > 0 {
            format!(
                " ({} times more until {:.3} s)",
                self.again,
                self.until.as_secs_f64()
            )
        } else {
            String::new()
        };
        format!("{:>9.3} s  {}{again}", self.at.as_secs_f64(), self.words)
    }
}

struct Teller<'a> {
    names: &'a BTreeMap<Digest, String>,
    tag: Option<&'a str>,
    /// The beginning of a digest; its uploads are told as well.
    blob: Option<String>,
}

impl Teller<'_> {
    fn words(&self, event: &Event, calls: &BTreeMap<u64, (Duration, &Call)>) -> Option<String> {
        match event {
            Event::Person { text } => Some(format!("somebody {text}")),
            Event::Started { process, ledger } => {
                let with = if *ledger {
                    "with its ledger"
                } else {
                    "with an empty ledger"
                };
                Some(format!("process {process} starts {with}"))
            }
            Event::Configured { process, rules } => {
                let rules: Vec<String> = rules.iter().map(rules_shown).collect();
                Some(format!("process {process} goes by: {}", rules.join("; ")))
            }
            Event::Killed { process } => Some(format!("process {process} is killed")),
            Event::Stopped { process } => Some(format!("process {process} has drained")),
            Event::Moved { place, to, by, .. } if self.concerns(place) => {
                let by = match by {
                    By::Process(process) => format!("process {process}"),
                    By::Person => "somebody".into(),
                };
                Some(format!(
                    "    {} now names {} by {by}",
                    shown(place),
                    self.digest(to.as_ref())
                ))
            }
            Event::Incomplete { request, missing } => {
                let about = calls
                    .get(request)
                    .map(|(_, call)| self.call(call))
                    .unwrap_or_default();
                Some(format!(
                    "    {about}: {} parts are missing there",
                    missing.len()
                ))
            }
            Event::Sent { call, .. }
                if self.matters(call) && call.operation == Operation::PutManifest =>
            {
                Some(format!(
                    "process {} sends {}",
                    call.process,
                    self.call(call)
                ))
            }
            Event::Answered { request, answer } => {
                let (sent, call) = calls.get(request).filter(|(_, call)| self.matters(call))?;
                let asked = if call.operation == Operation::PutManifest {
                    String::new()
                } else {
                    if matches!(answer, Answer::Failed { .. }) {
                        String::new()
                    } else {
                        format!(", asked at {:.3} s", sent.as_secs_f64())
                    }
                };
                Some(format!(
                    "process {} is told of {}: {}{asked}",
                    call.process,
                    self.call(call),
                    self.answer(answer)
                ))
            }
            Event::Abandoned { request, .. } => {
                let (_, call) = calls.get(request).filter(|(_, call)| self.matters(call))?;
                Some(format!(
                    "process {} waits no longer for {}",
                    call.process,
                    self.call(call)
                ))
            }
            Event::Settled {
                process,
                destination,
                result,
                error,
                digest,
                ..
            } if self.concerns(destination) => {
                let error = error
                    .as_ref()
                    .map(|error| format!(" ({error})"))
                    .unwrap_or_default();
                let digest = self.digest(digest.as_ref());
                Some(format!(
                    "process {process} settles {} with {digest}: {result}{error}",
                    shown(destination)
                ))
            }
            Event::Guard(guarded) => self.guarded(guarded),
            Event::Calm => Some("from now on all is calm".into()),
            _ => None,
        }
    }

    fn guarded(&self, guarded: &Guarded) -> Option<String> {
        match guarded {
            Guarded::Judged { place, .. }
            | Guarded::Ordered { place, .. }
            | Guarded::RollingBack { place, .. }
                if !self.concerns(place) =>
            {
                None
            }
            guarded => Some(format!("    {guarded:?}")),
        }
    }

    fn concerns(&self, place: &Place) -> bool {
        self.tag.is_none_or(|tag| tag == &*place.tag)
    }

    fn matters(&self, call: &Call) -> bool {
        let is_tag = matches!(&call.about, About::Tag(tag) if self.tag.is_none_or(|wanted| wanted == &**tag));
        let is_blob = matches!((&call.about, &self.blob), (About::Content(digest), Some(blob))
            if digest.encoded().starts_with(&**blob));
        is_tag || is_blob || (self.tag.is_some() && call.operation == Operation::Tags)
    }

    fn call(&self, call: &Call) -> String {
        let about = match &call.about {
            About::Repository => String::new(),
            About::Tag(tag) => format!(":{tag}"),
            About::Content(digest) => format!("@{}", self.digest(Some(digest))),
        };
        let content = call
            .content
            .map(|content| format!(" = {}", self.digest(Some(&content))))
            .unwrap_or_default();
        format!(
            "{:?} {}/{}{about}{content}",
            call.operation, call.registry, call.repository
        )
    }

    fn answer(&self, answer: &Answer) -> String {
        match answer {
            Answer::Names(digest) => self.digest(digest.as_ref()),
            Answer::Listed { tags: None, .. } => "no such repository".into(),
            Answer::Listed {
                tags: Some(tags), ..
            } => {
                let found = tags.iter().find(|(tag, _)| self.tag == Some(&**tag));
                let with = match found {
                    Some((_, digest)) => format!("with it, as {}", self.digest(digest.as_ref())),
                    None => "without it".into(),
                };
                format!("{} tags, {with}", tags.len())
            }
            Answer::Failed {
                class,
                after: Some(after),
            } => format!("{class}, not before {after} s"),
            Answer::Failed { class, after: None } => (*class).into(),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    fn digest(&self, digest: Option<&Digest>) -> String {
        match digest {
            None => "nothing".into(),
            Some(digest) => self
                .names
                .get(digest)
                .cloned()
                .unwrap_or_else(|| digest.short()),
        }
    }
}

fn shown(place: &Place) -> String {
    format!("{}/{}:{}", place.registry, place.repository, place.tag)
}

fn rules_shown(rules: &Rules) -> String {
    let (from, to) = (&rules.source, &rules.destination);
    let keeps = format!("existing {:?}, drift {:?}", rules.existing, rules.drift).to_lowercase();
    let mut shown = format!(
        "{}: {}/{} to {}/{}, {keeps}",
        rules.route, from.0, from.1, to.0, to.1
    );
    let lists = [
        ("takes", &rules.include),
        ("without", &rules.exclude),
        ("moving", &rules.moving),
        ("forward only", &rules.forward_only),
    ];
    for (what, patterns) in lists.iter().filter(|(_, patterns)| !patterns.is_empty()) {
        let _ = write!(shown, ", {what} {}", patterns.join(" "));
    }
    if let Some(set) = &rules.set {
        let _ = write!(shown, ", of set {set}");
    }
    let traits = [("observes", rules.observes), ("backs up", rules.backs_up)];
    for (name, _) in traits.iter().filter(|(_, has)| *has) {
        let _ = write!(shown, ", {name}");
    }
    shown
}
